//! How a box boots: what the host lacks, what the configuration says, what is kept, and what a running box takes over.

#[cfg(test)]
#[path = "support/rig.rs"]
mod rig;

#[cfg(test)]
mod unfit {
    use crate::rig::{AGENT, BoxOptions, GH_TOKEN, Rig, RunningBox, host, run};

    /// A session that leaves a trace on the volume as soon as there is one.
    fn tracing(rig: &Rig) -> (BoxOptions, String) {
        let volume = rig.volume();
        let options = BoxOptions::new()
            .volume(&format!("{volume}:/workspace"))
            .env("INNKEEPER_SESSION_COMMAND", "/usr/bin/touch\n/workspace/the-agent-was-here");
        (options, volume)
    }

    fn traced(volume: &str) -> bool {
        let mount = format!("{volume}:/v");
        let image = crate::rig::image();
        let look =
            ["run", "--rm", "--network", "none", "-v", &mount, "--entrypoint", "/bin/ls", &image, "-A", "/v"];
        let seen = run("docker", &look);
        assert!(seen.ok(), "{seen:?}");
        seen.out.contains("the-agent-was-here")
    }

    /// Exit status 78, a reason and a remedy.
    fn refused(guest: &RunningBox, remedy: &str) -> String {
        assert_eq!(guest.exit_code(), 78, "{}", guest.logs());
        let logs = guest.logs();
        assert!(logs.contains("next: ") && logs.contains(remedy), "no word about {remedy}:\n{logs}");
        logs
    }

    #[test]
    fn f08_without_net_admin_the_boot_is_refused_before_any_agent_exists() {
        let Some(rig) = Rig::new() else { return };
        let (options, volume) = tracing(&rig);
        let guest = rig.start(&options.clone().without_cap("NET_ADMIN"));
        let logs = refused(&guest, "--cap-add NET_ADMIN");
        assert!(!logs.contains("lockdown ok"), "{logs}");
        assert!(!traced(&volume), "the agent ran:\n{logs}");
        // The same box with the capability: the trace is one.
        let fit = rig.boot(&options);
        fit.await_status("a session that ended", |status| status["session"]["last_exit"].is_string());
        assert!(traced(&volume), "{}", fit.logs());
    }

    #[test]
    fn f09_without_sys_admin_the_boot_is_refused_with_both_remedies() {
        let Some(rig) = Rig::new() else { return };
        let (options, volume) = tracing(&rig);
        let guest = rig.start(&options.without_cap("SYS_ADMIN"));
        let logs = refused(&guest, "--cap-add SYS_ADMIN");
        assert!(logs.contains("--tmpfs /run"), "{logs}");
        assert!(!traced(&volume), "the agent ran:\n{logs}");
    }

    const RUNTIME_MOUNTS: &[&str] = &[
        "--read-only",
        "--tmpfs",
        "/run",
        "--tmpfs",
        "/tmp:exec,mode=1777",
        "--tmpfs",
        "/workspace:exec",
        "--tmpfs",
        "/home/claude:exec",
    ];

    #[test]
    fn f09_mounts_that_the_runtime_made_are_as_good_as_our_own() {
        let Some(rig) = Rig::new() else { return };
        let guest = rig.boot(&BoxOptions::new().without_cap("SYS_ADMIN").docker(RUNTIME_MOUNTS));
        let status = guest.status();
        for protection in status["protections"].as_array().unwrap() {
            assert_eq!(protection["held"], true, "{protection}");
        }
        assert!(guest.exec_agent("curl -sS http://ok.test/").out.contains("token-"));
        assert_eq!(guest.client(AGENT, &["dns", "8.8.8.8", "x.evil.test"]).out, "NXDOMAIN\n");
        let places = "for d in /workspace /tmp ~ /dev/shm; do echo x > $d/file || echo not $d; done; \
                      for d in / /etc /run /usr/local/bin /var /opt; do touch $d/file 2>/dev/null && echo writable $d; done; true";
        let session = guest.as_session(places);
        assert_eq!(session.both(), "");
        let script = guest.as_session("printf '#!/bin/sh\\necho ran\\n' > ~/x && chmod +x ~/x && ~/x");
        assert_eq!(script.out, "ran\n", "{script:?}");
    }

    #[test]
    fn f09_a_runtime_tmpfs_without_exec_is_named() {
        let Some(rig) = Rig::new() else { return };
        let mounts: Vec<&str> = RUNTIME_MOUNTS
            .iter()
            .map(|one| if *one == "/workspace:exec" { "/workspace" } else { one })
            .collect();
        let guest = rig.start(&BoxOptions::new().without_cap("SYS_ADMIN").docker(&mounts));
        refused(&guest, "--tmpfs /workspace:exec");
    }

    #[test]
    fn every_problem_of_the_configuration_is_named_at_once_and_no_secret_with_it() {
        let Some(rig) = Rig::new() else { return };
        let toml =
            rig.file("innkeeper.toml", "[session]\non_exti = \"stop\"\n[filesystem]\ntmp_size = \"lots\"\n");
        let domains = rig.file("domains.conf", "ok.test\n10.0.0.1\nok.test:99999\nok.test sideways\n");
        let oauth = "sk-ant-oat01-canaryBAD with blanks";
        let guest = rig.start(
            &BoxOptions::new()
                .volume(&format!("{}:/etc/innkeeper/innkeeper.toml:ro", toml.display()))
                .volume(&format!("{}:/etc/innkeeper/network/domains.conf:ro", domains.display()))
                .env("CLAUDE_CODE_OAUTH_TOKEN", oauth)
                .env("INNKEEPER_SESION_PROMPT", "x")
                .env("INNKEEPER_NETWORK_ALLOW", "https://ok.test/;*.*.test")
                .env("INNKEEPER_SESSION_ON_EXIT", "dance")
                .env("INNKEEPER_NETWORK_REFRESH", "soon")
                .env("INNKEEPER_SECRETS_REQUIRED", "MY_MISSING_KEY")
                .env("REPO_URL", &format!("https://x:{GH_TOKEN}@github.com/acme/widgets"))
                .env("INNKEEPER_NETWORK_PROFILES", "claude,nosuchprofile"),
        );
        let logs = refused(&guest, "problems with the configuration");
        for named in [
            "session.on_exti",
            "filesystem.tmp_size",
            "domains.conf:2",
            "domains.conf:3",
            "domains.conf:4",
            "CLAUDE_CODE_OAUTH_TOKEN",
            "INNKEEPER_SESION_PROMPT",
            "INNKEEPER_SESSION_PROMPT",
            "INNKEEPER_NETWORK_ALLOW",
            "INNKEEPER_SESSION_ON_EXIT",
            "dance",
            "INNKEEPER_NETWORK_REFRESH",
            "MY_MISSING_KEY",
            "REPO_URL",
            "nosuchprofile",
        ] {
            assert!(logs.contains(named), "{named} is not named:\n{logs}");
        }
        assert!(!logs.contains("canary"), "{logs}");
        assert!(!logs.contains("boot: lockdown"), "nothing was done:\n{logs}");
    }

    #[test]
    fn missing_credentials_are_named_with_the_way_to_get_them() {
        let Some(rig) = Rig::new() else { return };
        let guest = rig.start(&BoxOptions::bare());
        let logs = refused(&guest, "claude setup-token");
        assert!(logs.contains("CLAUDE_CODE_OAUTH_TOKEN") && logs.contains("ANTHROPIC_API_KEY"), "{logs}");
        // Without a GitHub token public repositories can be read; that is said, and is no reason to stop.
        let without = rig.boot(
            &BoxOptions::new().without_env("GH_TOKEN").env("REPO_URL", "https://github.com/acme/widgets"),
        );
        without.await_status("the repository", |status| status["repositories"][0]["state"] == "cloned");
        let status = without.status();
        assert!(status["warnings"].to_string().contains("GH_TOKEN"), "{}", status["warnings"]);
    }

    #[test]
    fn f01_a_silent_upstream_delays_the_boot_for_a_bounded_time_and_opens_nothing() {
        let drop_all = serde_json::json!({"9.9.9.53": {"drop": true}, "*": {}});
        let Some(rig) = Rig::with_zone(|zone| zone["servers"] = drop_all) else { return };
        let evil = ["tcp", &host("evil"), "80", "GET / HTTP/1.0\r\n\r\n"];
        assert!(rig.outside(&evil).ok());
        let guest = rig.boot(&BoxOptions::new().env("INNKEEPER_NETWORK_BOOT_TIMEOUT", "2s"));
        assert!(guest.logs().contains("not every name was answered in time"), "{}", guest.logs());
        let mark = rig.world.sync();
        assert!(!guest.client(AGENT, &evil).ok());
        let resolved = guest.client(AGENT, &["dns", "127.0.0.53", "ok.test"]);
        assert!(!resolved.out.contains("NOERROR"), "{resolved:?}");
        let status = guest.await_status("failing names", |status| {
            let failing = status["dns"]["failing"].as_array().cloned().unwrap_or_default();
            failing.iter().any(|one| one["name"] == "ok.test")
                && status["dns"]["upstreams"][0]["healthy"] == false
        });
        assert!(
            status["boot"]["steps"].to_string().contains("degraded"),
            "no step is degraded: {}",
            status["boot"]
        );
        let packets = rig.world.packets_since(mark);
        assert!(
            packets.iter().all(|packet| packet["dport"] == 53 && packet["dst"] == "9.9.9.53"),
            "{packets:?}"
        );
        rig.world.zone(|zone| zone["servers"] = serde_json::json!({"*": {}}));
        guest.await_answer("curl -sS -m 5 http://ok.test/", "token-");
        let healed = guest.await_status("a healthy upstream", |status| {
            status["dns"]["upstreams"][0]["healthy"] == true
                && status["dns"]["failing"]
                    .as_array()
                    .is_some_and(|failing| failing.iter().all(|one| one["name"] != "ok.test"))
        });
        assert!(healed["firewall"]["addresses"].to_string().contains("ok.test"));
    }
}

#[cfg(test)]
mod kept {
    use crate::rig::{AGENT, BoxOptions, Rig, host, must};

    #[test]
    fn a_box_boots_and_reaches_what_is_allowed() {
        let Some(rig) = Rig::new() else { return };
        let guest = rig.boot(&BoxOptions::new());
        let answer = guest.exec_agent("curl -sS http://ok.test/");
        assert!(answer.out.contains(&format!("token-{}", host("ok"))), "{answer:?}");
        assert!(guest.client(AGENT, &["dns", "8.8.8.8", "ok.test"]).out.contains(&host("ok")));
        let session = guest.as_session("id -u; grep Seccomp: /proc/self/status");
        assert!(session.ok() && session.out.starts_with("1000\nSeccomp:\t2"), "{session:?}");
        assert_eq!(guest.stop(), 143);
    }

    #[test]
    fn workspace_and_home_on_volumes_are_kept_with_all_that_is_in_them() {
        let Some(rig) = Rig::new() else { return };
        let (home, workspace) = (rig.volume(), rig.volume());
        let options = BoxOptions::new()
            .volume(&format!("{home}:/home/claude"))
            .volume(&format!("{workspace}:/workspace"))
            .env("REPO_URL", "https://github.com/acme/widgets");
        let first = rig.boot(&options);
        first.await_status("the repository", |status| status["repositories"][0]["state"] == "cloned");
        let wrote = first.as_session(
            "cd /workspace/repo && echo work > uncommitted && git commit -q --allow-empty -m mine && git rev-parse HEAD && \
             echo mine > ~/.bashrc && mkdir ~/deep && echo y > ~/deep/file && chmod 640 ~/deep/file && echo z > /tmp/gone",
        );
        assert!(wrote.ok(), "{wrote:?}");
        assert_eq!(first.stop(), 143);
        let second = rig.boot(&options);
        let status = second.await_status("the repository", |status| {
            let repositories = status["repositories"].as_array().cloned().unwrap_or_default();
            repositories.first().is_some_and(|one| one["state"] != "cloning")
        });
        assert_eq!(status["repositories"][0]["state"], "cloned", "{}", status["repositories"]);
        let read = second.as_session(
            "cd /workspace/repo && git rev-parse HEAD && cat uncommitted ~/.bashrc ~/deep/file && stat -c '%U %a' ~/deep/file ~ /workspace && \
             ls /tmp/gone 2>/dev/null; echo more >> ~/deep/file && echo more >> uncommitted && echo wrote",
        );
        let commit = wrote.out.trim();
        assert_eq!(
            read.out,
            format!("{commit}\nwork\nmine\ny\nclaude 640\nclaude 700\nclaude 755\nwrote\n"),
            "{read:?}"
        );
        let mounts = second.exec_agent("grep -E ' (/workspace|/home/claude) ' /proc/mounts").out;
        assert_eq!(mounts.lines().count(), 2);
        assert!(mounts.lines().all(|line| line.contains("nosuid") && line.contains("nodev")), "{mounts}");
    }

    #[test]
    fn a_further_volume_becomes_read_only() {
        let Some(rig) = Rig::new() else { return };
        let volume = rig.volume();
        let mount = format!("{volume}:/data");
        let image = crate::rig::image();
        let prepare = "mkdir /data/own && echo text > /data/own/file && chown -R 1000:1000 /data";
        let plain = |user: &str, script: &str| {
            let args = [
                "run",
                "--rm",
                "--network",
                "none",
                "-u",
                user,
                "-v",
                &mount,
                "--entrypoint",
                "/bin/sh",
                &image,
                "-c",
                script,
            ];
            must("docker", &args)
        };
        plain("0", prepare);
        plain(AGENT, "echo more >> /data/own/file");
        let guest = rig.boot(&BoxOptions::new().volume(&mount));
        for attempt in [
            "echo x >> /data/own/file",
            "touch /data/new",
            "rm /data/own/file",
            "mkdir /data/own/d",
            "chmod 777 /data",
        ] {
            for done in [guest.as_session(attempt), guest.exec_agent(attempt)] {
                assert!(!done.ok() && done.err.contains("Read-only file system"), "{attempt}: {done:?}");
            }
        }
        assert_eq!(guest.as_session("cat /data/own/file").out, "text\nmore\n");
    }

    #[test]
    fn t23_a_read_only_resolv_conf_changes_nothing_for_programs() {
        let Some(rig) = Rig::new() else { return };
        let file = rig.file("resolv.conf", "search corp.test\nnameserver 9.9.9.53\nnameserver 8.8.8.8\n");
        let mount = format!("{}:/etc/resolv.conf:ro", file.display());
        assert!(rig.outside(&["dns", "8.8.8.8", "control.evil.test"]).out.starts_with("NOERROR"));
        let guest = rig.boot(&BoxOptions::new().volume(&mount));
        let status = guest.status();
        assert!(status["warnings"].to_string().contains("/etc/resolv.conf"), "{}", status["warnings"]);
        assert!(guest.as_session("getent ahostsv4 ok.test").out.contains(&host("ok")));
        assert!(guest.exec_agent("curl -sS http://ok.test/").out.contains("token-"));
        let mark = rig.world.sync();
        assert!(!guest.as_session("getent hosts leak.evil.test").ok());
        let tried = guest
            .as_session("echo nameserver 8.8.8.8 > /etc/resolv.conf; echo 45.33.32.66 ok.test >> /etc/hosts");
        assert_eq!(
            tried.err.matches("Read-only file system").count()
                + tried.err.matches("Permission denied").count(),
            2,
            "{tried:?}"
        );
        assert!(!rig.world.saw("leak"), "{:?}", rig.world.asked());
        assert!(rig.world.packets_since(mark).iter().all(|packet| packet["dst"] != "8.8.8.8"));
    }

    #[test]
    fn a_box_under_dockers_own_init_adopts_orphans_and_stops_well() {
        let Some(rig) = Rig::new() else { return };
        let guest = rig.boot(&BoxOptions::new().docker(&["--init"]));
        let pid_1 = guest.exec_root("cat /proc/1/comm").out;
        assert_ne!(pid_1, "innkeeper\n", "docker's init is pid 1");
        let parent = guest.as_session("(setsid sh -c 'echo $$ > /tmp/orphan; exec sleep 300' &) ; until [ -s /tmp/orphan ]; do :; done; cat /tmp/orphan");
        let orphan = parent.out.trim().to_owned();
        let comm = guest
            .exec_agent(&format!("cat /proc/$(awk '/^PPid/ {{ print $2 }}' /proc/{orphan}/status)/comm"));
        assert_eq!(comm.out, "innkeeper\n", "{comm:?}");
        guest.as_session(&format!("for i in $(seq 30); do (setsid true &); done; kill {orphan}"));
        // Zombies are there for a moment; they must not stay.
        guest.await_answer("ps -eo stat= | grep -c ^Z; true", "0\n");
        assert!(guest.exec_agent("curl -sS http://ok.test/").out.contains("token-"));
        assert_eq!(guest.stop(), 143);
    }

    #[test]
    fn f26_a_restart_of_the_same_container_boots_again_with_a_clean_slate() {
        let Some(rig) = Rig::new() else { return };
        let evil = ["tcp", &host("evil"), "80", "GET / HTTP/1.0\r\n\r\n"];
        assert!(rig.outside(&evil).ok());
        let guest = rig.boot(&BoxOptions::new());
        let first = guest.status();
        assert!(guest.as_session("echo x > /tmp/left && echo x > /workspace/left").ok());
        guest.restart();
        let status = guest.status();
        assert_ne!(status["box"]["id"], first["box"]["id"]);
        let rules = |status: &serde_json::Value| -> Vec<String> {
            let rules = status["policy"]["rules"].as_array().unwrap().iter();
            rules.map(|rule| format!("{} {}", rule["rule"], rule["origin"])).collect()
        };
        assert_eq!(rules(&status), rules(&first));
        assert_eq!(status["dns"]["upstreams"], first["dns"]["upstreams"]);
        assert_eq!(guest.as_session("ls /tmp/left /workspace/left 2>/dev/null").out, "");
        assert!(guest.exec_agent("curl -sS http://ok.test/").out.contains("token-"));
        assert!(!guest.client(AGENT, &evil).ok());
        assert_eq!(guest.client(AGENT, &["dns", "8.8.8.8", "x.evil.test"]).out, "NXDOMAIN\n");
        for protection in status["protections"].as_array().unwrap() {
            assert_eq!(protection["held"], true, "{protection}");
        }
        // Killed without a chance to clean up, it comes back as well.
        guest.signal("KILL");
        assert_eq!(guest.exit_code(), 137);
        guest.restart();
        assert!(guest.exec_agent("curl -sS http://ok.test/").out.contains("token-"));
        assert!(!guest.client(AGENT, &evil).ok());
    }
}

#[cfg(test)]
mod reload {
    use crate::rig::{AGENT, BoxOptions, Rig, RunningBox};

    fn resolves(guest: &RunningBox, name: &str) -> bool {
        guest.client(AGENT, &["dns", "127.0.0.53", name]).out.starts_with("NOERROR ")
    }

    #[test]
    fn a_hup_takes_over_a_changed_allowlist_whole_or_not_at_all() {
        let Some(rig) = Rig::new() else { return };
        let file = rig.file("domains.conf", "ok.test:443,80\ntwo.test:80\n");
        let mount = format!("{}:/etc/innkeeper/network/domains.conf:ro", file.display());
        let guest = rig.boot(&BoxOptions::new().without_env("INNKEEPER_NETWORK_ALLOW").volume(&mount));
        assert!(resolves(&guest, "ok.test") && resolves(&guest, "two.test"));
        assert!(!resolves(&guest, "many.test"));

        // A new name works, and what was there stays.
        std::fs::write(&file, "ok.test:443,80\ntwo.test:80\nmany.test:80\n").unwrap();
        guest.signal("HUP");
        guest.await_line("policy: generation 2").expect("a reload");
        assert!(guest.exec_agent("curl -sS -m 10 http://many.test/").out.contains("token-"));
        assert!(resolves(&guest, "ok.test"));

        // A broken file changes nothing, and the line is named.
        std::fs::write(&file, "two.test:80\nmany.test:80\nok.test:eighty\n").unwrap();
        guest.signal("HUP");
        guest.await_line("the old policy stays").expect("a refusal");
        let logs = guest.logs();
        assert!(logs.contains("domains.conf:3"), "{logs}");
        assert!(guest.exec_agent("curl -sS -m 10 http://ok.test/").out.contains("token-"));
        assert_eq!(guest.status()["policy"]["generation"], 2);
        let refused = guest.innkeeper(&["reload"]);
        assert_eq!(refused.code, Some(78), "{refused:?}");
        assert!(refused.err.contains("domains.conf:3"), "{refused:?}");

        // A name that is gone is closed, and so is a port.
        std::fs::write(&file, "ok.test:443\n").unwrap();
        guest.innkeeper(&["reload"]).expect("reload");
        assert!(!resolves(&guest, "two.test") && !resolves(&guest, "many.test"));
        assert!(resolves(&guest, "ok.test"));
        let closed = guest.exec_agent("curl -sS -m 5 http://ok.test/");
        assert!(closed.out.contains("allowed on 443 only") && !closed.out.contains("token-"), "{closed:?}");
    }

    #[test]
    fn only_the_operator_may_reload() {
        let Some(rig) = Rig::new() else { return };
        let guest = rig.boot(&BoxOptions::new());
        assert!(guest.innkeeper(&["reload"]).ok());
        for done in [guest.as_session("innkeeper reload"), guest.exec_agent("innkeeper reload")] {
            assert_eq!(done.code, Some(77), "{done:?}");
            assert!(done.err.contains("only the operator"), "{done:?}");
        }
        assert_eq!(guest.status()["policy"]["generation"], 2);
    }
}
