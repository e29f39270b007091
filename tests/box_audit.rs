//! The audit log beyond the box: on a volume, in standard error, as a chain that whoever keeps the last hash can check.

#[cfg(test)]
#[path = "support/rig.rs"]
mod rig;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Instant;

    use serde_json::Value;

    use crate::rig::{BoxOptions, Done, PATIENCE, Rig, RunningBox, host, must, run};

    /// The box's own binary, on the host: lines can be checked anywhere.
    fn verify(paths: &[&PathBuf], more: &[&str]) -> Done {
        let paths = paths.iter().map(|path| path.to_str().unwrap());
        let args: Vec<&str> =
            ["log", "--verify"].into_iter().chain(paths).chain(more.iter().copied()).collect();
        run(env!("CARGO_BIN_EXE_innkeeper"), &args)
    }

    fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "never: {what}");
        }
    }

    fn lines(text: &str) -> Vec<Value> {
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
    }

    /// A directory of the host that is the box's volume.
    fn volume(rig: &Rig) -> (PathBuf, String) {
        let file = rig.file("audit/keep", "");
        let directory = file.parent().unwrap().to_owned();
        std::fs::remove_file(file).unwrap();
        let option = format!("{}:/audit", directory.display());
        (directory.join("box.jsonl"), option)
    }

    fn logging(option: &str) -> BoxOptions {
        BoxOptions::new().volume(option).env("INNKEEPER_LOG_FILE", "/audit/box.jsonl")
    }

    #[track_caller]
    fn refused(guest: &RunningBox, name: &str) {
        assert!(!guest.exec_agent(&format!("getent hosts {name}")).ok(), "{name}");
    }

    #[test]
    fn the_log_outlives_the_box_and_the_next_box_goes_on_with_it() {
        let Some(rig) = Rig::new() else { return };
        let (path, option) = volume(&rig);
        let guest = rig.boot(&logging(&option));
        let id = guest.status()["box"]["id"].as_str().unwrap().to_owned();
        for _ in 0..3 {
            refused(&guest, "x.evil.test");
        }
        assert!(guest.exec_agent("curl -sS -m 10 http://ok.test/").out.contains("token-"));
        guest.innkeeper(&["allow", "two.test:80", "--for", "1h"]).expect("allow");
        guest.await_status("the use and the refusals", |status| {
            let denied = status["denials"].as_array().is_some_and(|all| !all.is_empty());
            denied && guest.innkeeper(&["log", "--json"]).out.contains(r#""event":"used""#)
        });
        let shown = guest.await_status("the file has it all", |status| {
            let head = status["audit"]["head"].as_str().unwrap_or_default();
            verify(&[&path], &["--head", head]).ok()
        });
        assert_eq!(shown["audit"]["file"], "/audit/box.jsonl");
        assert_eq!((&shown["audit"]["lost"], &shown["audit"]["trouble"]), (&Value::from(0), &Value::Null));
        assert_eq!(guest.stop(), 143);
        drop(guest);
        let text = std::fs::read_to_string(&path).unwrap();
        let all = lines(&text);
        assert!(all.iter().all(|one| one["schema"] == 1 && one["box"] == id.as_str()), "{text}");
        let has = |event: &str| all.iter().any(|one| one["event"] == event);
        for event in ["note", "policy", "denied", "used", "session", "worker"] {
            assert!(has(event), "{event}:\n{text}");
        }
        // Written once when it was new, and once more with its last count.
        let counts: Vec<_> =
            all.iter().filter(|one| one["what"] == "x.evil.test").map(|one| &one["count"]).collect();
        assert!(counts.last().and_then(|count| count.as_u64()) >= Some(3), "{counts:?}");
        assert!(all.last().unwrap().to_string().contains("exit status 143"), "{text}");
        assert!(all[0].to_string().contains("config") || all[0]["event"] == "note", "{}", all[0]);
        let mode = must("stat", &["-c", "%a %u", path.to_str().unwrap()]);
        assert_eq!(mode.trim(), "600 0");

        let next = rig.boot(&logging(&option));
        let second = next.status()["box"]["id"].as_str().unwrap().to_owned();
        assert_ne!(id, second);
        until("both are in one chain", || {
            let said = verify(&[&path], &[]);
            said.out.contains("from the first one on") && said.out.contains(&id) && said.out.contains(&second)
        });
        // One character of the first box's past.
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replacen("x.evil.test", "y.evil.test", 1)).unwrap();
        let said = verify(&[&path], &[]);
        assert!(said.code == Some(1) && said.err.contains("does not follow"), "{}", said.both());
    }

    #[test]
    fn t74_the_agent_neither_reads_nor_writes_the_log_and_a_wrong_place_is_refused() {
        let Some(rig) = Rig::new() else { return };
        let (path, option) = volume(&rig);
        let guest = rig.boot(&logging(&option));
        for attempt in [
            "cat /audit/box.jsonl",
            "echo x >> /audit/box.jsonl",
            "mv /audit/box.jsonl /audit/b",
            "ln -s /etc/passwd /audit/box.jsonl.1",
            "rm -f /audit/box.jsonl",
        ] {
            assert!(!guest.exec_agent(attempt).ok(), "{attempt}");
        }
        // A volume that root alone writes is no hole in the seal, and everything else is sealed as ever.
        let status = guest.status();
        let rootfs =
            status["protections"].as_array().unwrap().iter().find(|one| one["name"] == "rootfs").unwrap();
        assert_eq!(rootfs["held"], true, "{rootfs}");
        assert!(!guest.exec_root("touch /opt/x").ok() && guest.exec_root("test -s /audit/box.jsonl").ok());
        // Root of the box, and so whoever is at its terminal, can: that is what the hash is for.
        assert!(verify(&[&path], &[]).ok());
        drop(guest);

        std::fs::set_permissions(path.parent().unwrap(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .unwrap();
        let table = [
            (logging(&option), "the agent can write /audit"),
            (BoxOptions::new().env("INNKEEPER_LOG_FILE", "/var/log/box.jsonl"), "root file system"),
            (BoxOptions::new().env("INNKEEPER_LOG_FILE", "/workspace/box.jsonl"), "root file system"),
            (logging(&format!("{option}:ro")), "read-only"),
            (BoxOptions::new().env("INNKEEPER_LOG_FILE", "audit.jsonl"), "absolute"),
        ];
        for (options, words) in table {
            let guest = rig.start(&options);
            assert_eq!(guest.exit_code(), 78, "{words}:\n{}", guest.logs());
            let log = guest.logs();
            assert!(log.contains(words) && !log.contains("lockdown ok"), "{words}:\n{log}");
        }
    }

    #[test]
    fn f17_a_full_volume_loses_lines_and_nothing_else() {
        let Some(rig) = Rig::new() else { return };
        let options = BoxOptions::new().env("INNKEEPER_LOG_FILE", "/audit/box.jsonl");
        let guest = rig.boot(&options.docker(&["--tmpfs", "/audit:size=64k,mode=0755"]));
        guest.exec_root("head -c 1m /dev/zero >/audit/filler");
        for i in 0..40 {
            refused(&guest, &format!("n{i}.evil.test"));
        }
        let status = guest.await_status("it is said", |status| {
            status["audit"]["lost"].as_u64() > Some(0) && !status["audit"]["trouble"].is_null()
        });
        assert!(status["audit"]["trouble"].as_str().unwrap().contains("space"), "{}", status["audit"]);
        // Nothing else minds.
        assert!(guest.exec_agent("curl -sS -m 10 http://ok.test/").out.contains("token-"));
        guest.innkeeper(&["allow", "two.test:80"]).expect("allow");
        assert!(guest.exec_agent("curl -sS -m 10 http://two.test/").out.contains("token-"));
        assert!(
            guest.innkeeper(&["log", "--denied"]).out.contains("n39.evil.test"),
            "the box's own log has it"
        );
        guest.exec_root("rm /audit/filler").expect("room");
        refused(&guest, "after.evil.test");
        guest.await_status("it is written again", |status| status["audit"]["trouble"].is_null());
        let text = guest.exec_root("cat /audit/box.jsonl").out;
        assert!(text.contains("lines are missing here") && text.contains("after.evil.test"), "{text}");
        let copy = rig.file("copy.jsonl", &text);
        assert!(verify(&[&copy], &[]).ok(), "the chain goes over the gap:\n{text}");
    }

    /// More kinds of refusals than the queues hold: the box's end is written all the same, and its reason last.
    #[test]
    fn the_end_of_a_flooded_box_is_in_the_file_and_its_reason_is_the_last_line() {
        let Some(rig) = Rig::new() else { return };
        let (path, option) = volume(&rig);
        let guest = rig.boot(&logging(&option));
        let flood = "import socket\nfor i in range(450):\n  try: socket.getaddrinfo(f'n{i}.evil.test', 80)\n  except OSError: pass";
        guest.exec_program(crate::rig::AGENT, &["python3", "-c", flood]);
        let kinds = |guest: &RunningBox| guest.innkeeper(&["log", "--denied", "--json"]).out.lines().count();
        until("more than a queue holds", || kinds(&guest) > 400);
        let known = kinds(&guest);
        assert_eq!(guest.stop(), 143);
        let text = std::fs::read_to_string(&path).unwrap();
        let all = lines(&text);
        let refused =
            all.iter().filter(|one| one["event"] == "denied").filter_map(|one| one["what"].as_str());
        let refused: std::collections::HashSet<&str> = refused.collect();
        assert!(refused.len() >= known, "{} of {known}", refused.len());
        assert!(all.last().unwrap().to_string().contains("exit status 143"), "{}", all.last().unwrap());
        assert!(!text.contains("lines are missing here") && verify(&[&path], &[]).ok());
    }

    #[test]
    fn standard_error_is_a_chain_too() {
        let Some(rig) = Rig::new() else { return };
        let guest = rig.start(&BoxOptions::new().env("INNKEEPER_LOG_FORMAT", "json"));
        guest.await_line("ready after").expect("a boot");
        refused(&guest, "x.evil.test");
        guest.client(crate::rig::AGENT, &["tcp", &host("evil"), "80", "x"]);
        guest.await_status("both refusals", |status| {
            status["denials"].as_array().is_some_and(|all| all.len() == 2)
        });
        let id = guest.status()["box"]["id"].as_str().unwrap().to_owned();
        assert_eq!(guest.stop(), 143);
        let said = run("docker", &["logs", &guest.name]);
        assert!(said.out.is_empty(), "standard output belongs to the session");
        let text = said.err;
        let all = lines(&text);
        assert!(all.iter().all(|one| one["schema"] == 1 && one["box"] == id.as_str()), "{text}");
        let copy = rig.file("stderr.jsonl", &text);
        let said = verify(&[&copy], &[]);
        assert!(said.ok() && said.out.contains("from the first one on"), "{}\n{text}", said.both());
        assert!(all.last().unwrap().to_string().contains("exit status 143"), "{text}");
    }

    /// What the box says is what `innkeeper schema` promises.
    #[test]
    fn every_line_and_the_status_are_valid_by_their_schemas() {
        let Some(rig) = Rig::new() else { return };
        let guest = rig.boot(&BoxOptions::new());
        refused(&guest, "x.evil.test");
        guest.client(crate::rig::AGENT, &["tcp", &host("evil"), "80", "x"]);
        assert!(guest.exec_agent("curl -sS -m 10 http://ok.test/").out.contains("token-"));
        guest.innkeeper(&["allow", "two.test:80", "--for", "1h"]).expect("allow");
        until("a use", || guest.innkeeper(&["log", "--json"]).out.contains(r#""event":"used""#));
        let judge = |subject: &str, values: &[Value]| {
            let schema = guest.innkeeper(&["schema", subject]).expect("a schema");
            let (mut compiler, mut schemas) = (boon::Compiler::new(), boon::Schemas::new());
            compiler.add_resource("s.json", serde_json::from_str(&schema).unwrap()).unwrap();
            let index = compiler.compile("s.json", &mut schemas).unwrap();
            for value in values {
                let result = schemas.validate(value, index);
                assert!(result.is_ok(), "{subject}: {}\n{value}", result.unwrap_err());
            }
        };
        judge("status", &[guest.status()]);
        let events = lines(&guest.innkeeper(&["log", "--json"]).out);
        assert!(events.len() > 10, "{events:?}");
        judge("events", &events);
    }

    #[test]
    fn the_log_is_asked_since_when() {
        let Some(rig) = Rig::new() else { return };
        let guest = rig.boot(&BoxOptions::new());
        refused(&guest, "early.evil.test");
        let denied = |since: &str| guest.innkeeper(&["log", "--denied", "--json", "--since", since]);
        until("the first", || denied("1h").out.contains("early.evil.test"));
        let now = guest.exec_root("date -u +%Y-%m-%dT%H:%M:%S.%3NZ").out.trim().to_owned();
        refused(&guest, "late.evil.test");
        until("the second", || denied(&now).out.contains("late.evil.test"));
        assert!(!denied(&now).out.contains("early"), "{}", denied(&now).out);
        let id = guest.status()["box"]["id"].clone();
        assert!(lines(&denied("1h").out).iter().all(|one| one["box"] == id && one["event"] == "denied"));
        let wrong = guest.innkeeper(&["log", "--since", "yesterday"]);
        assert!(wrong.code == Some(64) && wrong.err.contains("15m"), "{}", wrong.both());
        // It is the operator's.
        let agents = guest.exec_agent("innkeeper log");
        assert_eq!(agents.code, Some(77), "{}", agents.both());
    }
}
