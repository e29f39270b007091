//! `scripts/run` and `innkeeper run` start the same container: both are run with an engine that writes its command line
//! down. Needs no root; it is among the host tests because it is about the same command.
#![allow(clippy::disallowed_methods, reason = "no reaper runs beside a test")]

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};

    /// Answers the questions, and writes `run` with all its words down.
    const FAKE: &str = "#!/bin/sh
case \"$1\" in
  version) echo 1.0 ;;
  info) echo \"[name=seccomp $SECURITY]\" ;;
  container) case \"$*\" in *Running*) [ -n \"$RUNNING\" ] && echo $RUNNING || exit 1 ;; *) [ -n \"$RUNNING\" ] || exit 1 ;; esac ;;
  run) printf '%s\\n' \"$0\" \"$@\" | sed 's/.*\\/docker$/docker/; s/.*\\/podman$/podman/' > \"$WRITTEN\" ;;
esac
";

    struct Fake(PathBuf);

    impl Fake {
        fn new(name: &str) -> Self {
            let directory =
                std::env::temp_dir().join(format!("innkeeper-fake-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&directory).unwrap();
            for engine in ["docker", "podman"] {
                let program = directory.join(engine);
                std::fs::write(&program, FAKE).unwrap();
                std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
            }
            Self(directory)
        }

        /// The words that the engine was started with, the exit status, and what was said.
        fn written(
            &self,
            program: &Path,
            args: &[&str],
            env: &[(&str, &str)],
        ) -> (String, Option<i32>, String) {
            let written = self.0.join("written");
            drop(std::fs::remove_file(&written));
            let path = format!("{}:/usr/local/bin:/usr/bin:/bin", self.0.display());
            let done = Command::new(program)
                .args(args)
                .env_clear()
                .env("PATH", path)
                .env("WRITTEN", &written)
                .env("INNKEEPER_IMAGE", "innkeeper:fake")
                .env("HOME", "/nonexistent")
                .envs(env.iter().copied())
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            (std::fs::read_to_string(&written).unwrap_or_default(), done.status.code(), said)
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }

    const TOKEN: (&str, &str) = ("CLAUDE_CODE_OAUTH_TOKEN", "secret-value");

    #[test]
    fn the_script_and_the_binary_start_the_same_container() {
        let fake = Fake::new("same");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/run");
        let binary = Path::new(env!("CARGO_BIN_EXE_innkeeper"));
        for engine in ["docker", "podman"] {
            for security in ["", "name=apparmor"] {
                let env = [
                    TOKEN,
                    ("GH_TOKEN", "another-secret"),
                    ("INNKEEPER_NETWORK_ALLOW", "ok.test"),
                    ("INNKEEPER_TEST_IMAGE", "not for the box"),
                    ("INNKEEPER_PROGRAMS", "not for the box"),
                    ("SSH_AUTH_SOCK", "/nowhere"),
                    ("SECURITY", security),
                ];
                let of_script =
                    fake.written(&script, &["--engine", engine, "--name", "box-1", "-v", "a:b"], &env);
                let of_binary = fake.written(
                    binary,
                    &["run", "--engine", engine, "--name", "box-1", "--", "-v", "a:b"],
                    &env,
                );
                assert_eq!(of_script.1, Some(0), "{}", of_script.2);
                assert_eq!(of_binary.1, Some(0), "{}", of_binary.2);
                assert_eq!(of_script.0, of_binary.0);
                assert!(of_script.0.starts_with(&format!("{engine}\nrun\n--detach\n")), "{}", of_script.0);
                assert!(of_script.0.ends_with("-v\na:b\ninnkeeper:fake\n"), "{}", of_script.0);
                assert_eq!(of_script.0.contains("apparmor=unconfined"), !security.is_empty());
                for absent in ["secret", "SSH_AUTH", "TEST_IMAGE", "PROGRAMS"] {
                    assert!(!of_script.0.contains(absent), "{absent}: {}", of_script.0);
                }
            }
        }
    }

    #[test]
    fn a_box_that_runs_is_not_started_twice() {
        let fake = Fake::new("twice");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/run");
        let binary = Path::new(env!("CARGO_BIN_EXE_innkeeper"));
        let env = [TOKEN, ("RUNNING", "true")];
        for (program, args) in
            [(script.as_path(), &["--engine", "docker"][..]), (binary, &["run", "--engine", "docker"])]
        {
            let (words, status, said) = fake.written(program, args, &env);
            assert_eq!(words, "", "{said}");
            assert_eq!(status, Some(64), "{said}");
            assert!(said.contains("a box named innkeeper is running"), "{said}");
        }
    }
}
