//! What the agent can do to its own session's surroundings: what it inherits, what it is given on asking, what it can use
//! up, and whose places it can take.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::rig::{AGENT, BoxOptions, GH_TOKEN, OAUTH_TOKEN, PATIENCE, Rig, RunningBox, run_with_input};

#[test]
fn t68_the_session_inherits_no_secret() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    guest.await_session();
    let shown = "env; tmux show-environment -g; tmux show-environment -t claude; cat /proc/$PPID/environ | tr '\\0' '\\n'";
    let seen = guest.as_session(shown);
    assert!(seen.out.contains("HOME=/home/claude"), "{seen:?}");
    for secret in [GH_TOKEN, OAUTH_TOKEN] {
        assert!(!seen.both().contains(secret), "{}", seen.both());
    }
    // Accepted and documented: what was given with -e is in every `docker exec`. Given as a file it is in none.
    assert!(guest.exec_agent("env").out.contains(OAUTH_TOKEN));
    // One box at a time in this network.
    guest.stop();
    let file =
        |name: &str, value: &str| format!("{}:/run/secrets/{name}:ro", rig.file(name, value).display());
    let files = BoxOptions::new()
        .without_env("GH_TOKEN")
        .without_env("CLAUDE_CODE_OAUTH_TOKEN")
        .volume(&file("GH_TOKEN", GH_TOKEN))
        .volume(&file("CLAUDE_CODE_OAUTH_TOKEN", OAUTH_TOKEN));
    let guest = rig.boot(&files);
    let seen = guest.exec_agent("env; cat /run/secrets/* 2>&1; cat /proc/1/environ 2>&1; true").both();
    for secret in [GH_TOKEN, OAUTH_TOKEN] {
        assert!(!seen.contains(secret), "{seen}");
    }
}

#[test]
fn t69_the_forges_token_is_given_for_its_host_alone_and_lies_in_no_file() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    guest.await_session();
    let fill = |protocol: &str, host: &str| {
        guest.as_session(&format!(
            "printf 'protocol={protocol}\\nhost={host}\\n\\n' | GIT_TERMINAL_PROMPT=0 git credential fill 2>&1"
        ))
    };
    // Until the broker holds it the agent can have it, and `status` says so.
    assert!(fill("https", "github.com").out.contains(GH_TOKEN));
    let status = guest.status();
    let held =
        status["secrets"].as_array().unwrap().iter().find(|one| one["name"] == "GH_TOKEN").unwrap().clone();
    assert_eq!((&held["held_by"], &held["agent_can_read"]), (&json!("helper"), &json!(true)));
    for (protocol, host) in [
        ("http", "github.com"),
        ("https", "evil.test"),
        ("https", "github.com.evil.test"),
        ("https", "ok.test"),
    ] {
        let answer = fill(protocol, host);
        assert!(!answer.both().contains(GH_TOKEN), "{protocol}://{host}: {answer:?}");
    }
    assert!(!guest.as_session("sudo -n /usr/bin/cat /opt/gh-config/.ghtoken || su -c id").ok());
    let hunt = format!(
        "grep -rlsF '{}' /home /workspace /tmp /run /etc /opt/innkeeper /root 2>/dev/null; true",
        &GH_TOKEN[4..]
    );
    // The command itself stands in the pane's file of the test, which is not the box's.
    let found = guest.as_session(&hunt).out;
    let found: Vec<&str> = found
        .lines()
        .filter(|line| !line.starts_with("/tmp/.session-") && !line.contains("history"))
        .collect();
    assert_eq!(found, Vec::<&str>::new());
}

/// What must go on whatever the agent uses up.
#[track_caller]
fn is_alive(guest: &RunningBox, name: &str) {
    let status = guest.innkeeper(&["status"]);
    assert!(status.ok(), "{status:?}");
    guest.innkeeper(&["allow", name]).expect("allow");
    guest.innkeeper(&["reload"]).expect("reload");
    let resolved = guest.exec_root(&format!("getent ahostsv4 {name}"));
    assert!(resolved.ok(), "{name}: {resolved:?}");
    let checked = guest.innkeeper(&["check", name]);
    assert!(checked.ok(), "{checked:?}");
}

#[test]
fn t79_full_places_and_no_inodes_left_stop_nothing_of_ours() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(
        &BoxOptions::new()
            // An engine's: ours have as many inodes as the machine's memory allows (tmpfs(5)), too many to use up.
            .docker(&["--tmpfs", "/tmp:exec,mode=1777,size=24m,nr_inodes=4k"])
            .env("INNKEEPER_FILESYSTEM_WORKSPACE_SIZE", "24M")
            .env("INNKEEPER_FILESYSTEM_HOME_SIZE", "24M"),
    );
    guest.await_session();
    let places = ["/tmp", "/workspace", "/home/claude", "/run/user/1000", "/dev/shm"];
    for place in places {
        let fill =
            format!("cd {place} && mkdir -p full && cd full && head -c 4G /dev/zero > bytes; ls -la bytes");
        let filled = guest.exec_agent(&fill);
        assert!(filled.both().contains("No space left"), "the control must fill {place}: {filled:?}");
    }
    is_alive(&guest, "new1.wild.test");
    let full = guest.await_status("what is full", |status| {
        let warnings = status["warnings"].as_array().unwrap();
        ["/tmp", "/workspace", "/home/claude"]
            .iter()
            .all(|place| warnings.iter().any(|warning| warning.as_str().unwrap().contains(place)))
    });
    assert_eq!(full["phase"], "ready");
    // A session that is made again needs no place of the agent's beyond its socket.
    let before = full["session"]["claude_pid"].as_i64().unwrap();
    guest.exec_agent(&format!("kill -KILL {before}")).expect("kill");
    guest.await_status("another session", |status| {
        status["session"]["state"] == "running" && status["session"]["claude_pid"].as_i64() != Some(before)
    });
    for place in places {
        guest.exec_agent(&format!("rm -rf {place}/full")).expect("free");
    }
    let inodes = "import os\nn = 0\ntry:\n  os.mkdir('/tmp/many')\n  while n < 150000:\n    open(f'/tmp/many/{n}', 'x').close(); n += 1\nexcept OSError as e: print(e.strerror)\nprint(n)";
    let many = run_with_input("docker", &["exec", "-i", "-u", AGENT, &guest.name, "python3", "-"], inodes);
    assert!(many.ok() && many.out.contains("No space left"), "the control must use up the inodes: {many:?}");
    let octets = guest.exec_agent("df --output=pcent /tmp | tail -n 1").out;
    assert!(octets.trim().trim_end_matches('%').parse::<u8>().unwrap() < 50, "octets are left: {octets}");
    is_alive(&guest, "new2.wild.test");
    guest.exec_agent("rm -rf /tmp/many").expect("free");
    guest.await_status("nothing is full any more", |status| {
        let warnings = status["warnings"].as_array().unwrap();
        !warnings.iter().any(|warning| warning.as_str().unwrap().contains("/workspace is"))
    });
    is_alive(&guest, "new3.wild.test");
}

#[test]
fn t85_bombs_of_processes_threads_descriptors_and_memory_leave_the_operator_a_way_in() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().docker(&[
        "--pids-limit",
        "500",
        "--memory",
        "700m",
        "--memory-swap",
        "700m",
    ]));
    guest.await_session();
    guest.type_into_pane("1", ":(){ :|:& };:");
    // None where the exec itself found no process left for it.
    let crowd = || guest.exec_root("ls /proc | grep -c '^[0-9]'").out.trim().parse::<usize>().ok();
    let becomes = |what: &str, is_so: fn(usize) -> bool| {
        let until = Instant::now() + PATIENCE;
        while !crowd().is_some_and(is_so) {
            assert!(Instant::now() < until, "{what}: {:?} processes", crowd());
            std::thread::park_timeout(Duration::from_millis(200));
        }
    };
    becomes("the bomb did not go off", |count| count >= 300);
    is_alive(&guest, "new1.wild.test");
    guest.attach_and_leave("/");
    // One order ends all of it, and the session is there again.
    guest.innkeeper(&["session", "restart"]).expect("session restart");
    guest.await_session();
    becomes("many are left", |count| count < 60);
    for bomb in [
        "python3 -c 'import os\nwhile True: os.open(\"/dev/null\", 0)'",
        "python3 -c 'import os, threading, time\ntry:\n  while True: threading.Thread(target=time.sleep, args=(600,)).start()\nexcept RuntimeError as e: print(e, flush=True); os._exit(1)'",
        "python3 -c 'x = []\nwhile True: x.append(bytearray(1 << 20))'",
    ] {
        let went = guest.as_session(&format!("{bomb} >/dev/null 2>&1; echo ended $?"));
        assert!(went.out.starts_with("ended ") && went.out != "ended 0\n", "{bomb}: {went:?}");
        is_alive(&guest, "new2.wild.test");
    }
}

#[test]
fn t95_nobody_takes_a_workers_place() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().docker(&["--sysctl", "net.ipv4.ip_unprivileged_port_start=0"]));
    guest.await_session();
    let bind = "import socket, sys\n\
        for family, address in ((2, '127.0.0.53'), (2, '0.0.0.0'), (2, '127.0.0.1'), (10, '::1'), (10, '::')):\n\
        \x20 for kind in (1, 2):\n\
        \x20   s = socket.socket(family, kind); s.setsockopt(1, 15, 1); s.setsockopt(1, 2, 1)\n\
        \x20   try: s.bind((address, 53)); s.listen() if kind == 1 else None; print('BOUND', address, kind, flush=True); held = globals().setdefault('held', []); held.append(s)\n\
        \x20   except OSError as e: print(address, kind, e.strerror, flush=True)\n\
        import time; time.sleep(float(sys.argv[1]))\n";
    // An address that nobody has can be had: the attempt itself works.
    let control =
        guest.exec_agent("python3 -c \"import socket; socket.socket(2, 2).bind(('127.0.0.9', 53))\"");
    assert!(control.ok(), "{control:?}");
    guest.write_as_agent("/tmp/bind.py", bind);
    let tried = guest.exec_agent("python3 /tmp/bind.py 0");
    for line in tried.out.lines().filter(|line| line.contains("127.0.0.53") || line.starts_with("::1 ")) {
        assert!(!line.starts_with("BOUND"), "{}", tried.out);
    }
    // Neither while a worker is away: PID 1 holds its sockets.
    let dns = |status: &Value| {
        let workers = status["workers"].as_array().unwrap().clone();
        workers.iter().find(|worker| worker["name"] == "dns").unwrap().clone()
    };
    for round in 1..=3 {
        let pid = dns(&guest.status())["pid"].as_i64().unwrap();
        guest.exec_root(&format!("kill -KILL {pid}")).expect("kill");
        let tried = guest.exec_agent("python3 /tmp/bind.py 0");
        assert!(!tried.out.contains("BOUND 127.0.0.53"), "{}", tried.out);
        guest.await_status("the worker again", |status| dns(status)["restarts"].as_u64() >= Some(round));
    }
    // What listens elsewhere on the loopback answers nobody's questions.
    let mut squatter = guest.spawn(AGENT, &["python3", "/tmp/bind.py", "600"]);
    let _ = squatter.hear();
    let address = crate::rig::host("ok");
    let resolved = guest.as_session("getent ahostsv4 ok.test; getent ahostsv4 evil.test; true");
    assert!(resolved.out.contains(&address), "{resolved:?}");
    assert!(!resolved.out.contains("evil.test"), "{resolved:?}");
    assert!(!rig.world.asked().iter().any(|name| name.contains("evil.test")));
    drop(squatter);
    workers_stay(&guest);
}

/// The agent finds the processes that it would have to end, and can't end them.
#[track_caller]
fn workers_stay(guest: &RunningBox) {
    let pids = |status: &Value| -> Vec<i64> {
        let workers = status["workers"].as_array().unwrap().iter();
        let ours = workers.filter(|worker| worker["name"] == "dns" || worker["name"] == "watch");
        ours.map(|worker| worker["pid"].as_i64().unwrap()).collect()
    };
    let before = pids(&guest.status());
    assert_eq!(before.len(), 2);
    let found = guest.as_session("pgrep -x 'innkeeper-dns|innkeeper-watch'");
    let mut found: Vec<i64> = found.out.lines().map(|pid| pid.parse().unwrap()).collect();
    found.sort_unstable();
    let mut sorted = before.clone();
    sorted.sort_unstable();
    assert_eq!(found, sorted, "the control must find them");
    let kill = "sleep 600 & kill -KILL $! && echo killed; \
                for pid in 1 $(pgrep -x 'innkeeper-dns|innkeeper-watch'); do kill -KILL $pid; done; true";
    let killed = guest.as_session(kill);
    assert!(killed.out.contains("killed"), "its own it can end: {killed:?}");
    assert_eq!(killed.err.matches("not permitted").count(), 3, "{killed:?}");
    assert_eq!(pids(&guest.status()), before);
    assert!(guest.running());
}

#[test]
fn f30_every_phase_of_the_boot_is_timed() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().env("REPO_URL", "https://github.com/acme/widgets"));
    guest.await_session();
    let boot = guest.status()["boot"].clone();
    let ready = boot["ready_ms"].as_f64().unwrap();
    assert!(boot["lockdown_ms"].as_f64().unwrap() > 0.0 && boot["lockdown_ms"].as_f64().unwrap() < ready);
    let steps = boot["steps"].as_array().unwrap();
    let names: Vec<&str> = steps.iter().map(|step| step["name"].as_str().unwrap()).collect();
    for name in ["config", "lockdown", "mounts", "home", "dns", "firewall", "identity", "seal", "readiness"] {
        assert!(names.contains(&name), "{names:?}");
    }
    // Those of the task are no part of the boot, and take as long as they take.
    for step in
        steps.iter().filter(|step| !["repositories", "session"].contains(&step["name"].as_str().unwrap()))
    {
        assert!(step["ms"].as_f64().is_some_and(|ms| ms >= 0.0), "{step}");
    }
}
