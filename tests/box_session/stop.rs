//! Signals, the order in which things end, and the dead that PID 1 buries.

use super::rig::{BoxOptions, Rig, RunningBox, must, run};
use super::until;

/// A session that says on the volume when it is told to end, and a daemon of the agent's that says so too.
const POLITE: &str = "trap 'echo claude-told >>/workspace/order; cat /dev/null; echo claude-ended >>/workspace/order; \
                      exit 0' TERM; echo up >/workspace/up; while :; do sleep 1000 & wait; done";
const DAEMON: &str = "trap 'echo daemon-told >>/workspace/order; exit 0' TERM; echo up >/workspace/daemon; \
                      while :; do sleep 1000 & wait; done";
/// One that hears nothing.
const STUBBORN: &str = "trap '' TERM INT HUP; echo up >/workspace/up; while :; do sleep 1000 & wait; done";

fn session(line: &str, volume: &str) -> BoxOptions {
    let command = format!("/bin/bash\n-c\n{line}");
    BoxOptions::new().env("INNKEEPER_SESSION_COMMAND", &command).volume(&format!("{volume}:/workspace"))
}

#[track_caller]
fn up(guest: &RunningBox, file: &str) {
    until(file, || guest.exec_root(&format!("test -s /workspace/{file}")).ok());
}

/// A file of the volume after the box has ended.
fn read(volume: &str, file: &str) -> String {
    let point = must("docker", &["volume", "inspect", "-f", "{{.Mountpoint}}", volume]);
    std::fs::read_to_string(format!("{}/{file}", point.trim())).unwrap_or_default()
}

#[test]
fn docker_stop_ends_the_session_first_then_what_the_agent_left_behind() {
    let Some(rig) = Rig::new() else { return };
    let volume = rig.volume();
    let guest = rig.boot(&session(POLITE, &volume));
    up(&guest, "up");
    guest.write_as_agent("/workspace/daemon.sh", DAEMON);
    guest.as_session(
        "setsid nohup bash /workspace/daemon.sh >/dev/null 2>&1 & setsid nohup sleep 1000 >/dev/null 2>&1 &",
    );
    up(&guest, "daemon");
    assert_eq!(guest.stop(), 143);
    assert_eq!(read(&volume, "order"), "claude-told\nclaude-ended\ndaemon-told\n");
    let logs = guest.logs();
    let (begun, ended) =
        (logs.find("stop: SIGTERM: ending the session"), logs.find("stopped by SIGTERM (exit status 143)"));
    assert!(begun.is_some() && begun < ended, "{logs}");
    assert!(!logs.contains("not everything had ended"), "{logs}");
}

#[test]
fn a_session_that_does_not_listen_is_ended_within_the_stop_timeout() {
    let Some(rig) = Rig::new() else { return };
    let volume = rig.volume();
    let guest = rig.boot(&session(STUBBORN, &volume).env("INNKEEPER_SESSION_STOP_TIMEOUT", "3s"));
    up(&guest, "up");
    // Docker's own SIGKILL would be 137.
    must("docker", &["stop", "-t", "20", &guest.name]);
    assert_eq!(guest.exit_code(), 143, "{}", guest.logs());
}

#[test]
fn a_second_sigterm_stops_at_once() {
    let Some(rig) = Rig::new() else { return };
    let volume = rig.volume();
    let guest = rig.boot(&session(STUBBORN, &volume).env("INNKEEPER_SESSION_STOP_TIMEOUT", "3600s"));
    up(&guest, "up");
    guest.signal("TERM");
    assert!(guest.await_line("stop: SIGTERM: ending the session").is_some());
    let stopping = guest.status();
    assert_eq!(stopping["phase"], "stopping");
    assert_eq!(guest.innkeeper(&["status", "--check", "ready"]).code, Some(1));
    guest.signal("TERM");
    assert_eq!(guest.exit_code(), 143);
    assert!(guest.logs().contains("SIGTERM again: stopped at once (exit status 143)"), "{}", guest.logs());
}

#[test]
fn sigint_stops_with_130_and_sighup_reloads() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    guest.signal("HUP");
    assert!(guest.await_line("policy: generation 2").is_some());
    guest.signal("INT");
    assert_eq!(guest.exit_code(), 130);
    assert!(guest.logs().contains("stopped by SIGINT (exit status 130)"), "{}", guest.logs());
}

#[test]
fn a_stop_during_the_boot_does_not_wait_for_the_boot() {
    let silent =
        |zone: &mut serde_json::Value| zone["servers"]["9.9.9.53"] = serde_json::json!({ "drop": true });
    let Some(rig) = Rig::with_zone(silent) else { return };
    let guest = rig.start(&BoxOptions::new().env("INNKEEPER_NETWORK_BOOT_TIMEOUT", "300s"));
    assert!(guest.await_line("boot: dns ok").is_some());
    guest.signal("TERM");
    assert_eq!(guest.exit_code(), 143, "{}", guest.logs());
    assert!(!guest.logs().contains("boot: ready"), "{}", guest.logs());
    assert!(guest.logs().contains("stopped by SIGTERM"), "{}", guest.logs());
}

/// Makes so many children whose parent ends before them.
fn orphans(count: u32) -> String {
    format!("for i in $(seq {count}); do (sleep 0.05 & exec true) & [ $((i % 50)) = 0 ] && wait; done; wait")
}

/// The dead whom nobody buried, of everybody in the container.
fn zombies(pids: &[i32]) -> usize {
    let state = |pid: &&i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
    };
    pids.iter().filter(state).count()
}

#[track_caller]
fn all_are_buried(guest: &RunningBox) {
    let done = guest.as_session(&orphans(2000));
    assert!(done.ok(), "{done:?}");
    until("no zombies", || zombies(&guest.host_pids()) == 0);
    // Nobody was taken from the one who waits for him: children of PID 1 end as they should.
    assert_eq!(guest.as_session("bash -c 'exit 9'").code, Some(9));
    assert_eq!(guest.status()["session"]["restarts"], 0);
    assert_eq!(guest.stop(), 143);
}

fn first_process(guest: &RunningBox) -> String {
    guest.exec_root("tr '\\0' ' ' </proc/1/cmdline").out
}

#[test]
fn two_thousand_orphans_are_reaped_by_pid_1() {
    let Some(rig) = Rig::new() else { return };
    // Where PID 1 buries nobody they stay.
    let careless = format!("{}-careless", rig.name);
    rig.at_end(&["docker", "rm", "-f", &careless]);
    let sleep = ["--no-healthcheck", "--entrypoint", "/bin/sleep", &super::rig::image(), "infinity"];
    must("docker", &[&["run", "-d", "--name", &careless, "--network", "none"], &sleep[..]].concat());
    run("docker", &["exec", &careless, "bash", "-c", &orphans(20)]);
    let zombies = || run("docker", &["exec", &careless, "ps", "-eo", "stat="]).out.matches('Z').count();
    until("zombies", || zombies() == 20);

    let guest = rig.boot(&BoxOptions::new());
    assert!(first_process(&guest).starts_with("innkeeper"));
    all_are_buried(&guest);
}

#[test]
fn two_thousand_orphans_are_reaped_where_innkeeper_is_not_pid_1() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().docker(&["--init"]).args(&["init"]));
    assert!(!first_process(&guest).starts_with("innkeeper"));
    // Orphans are innkeeper's, not the engine's init's.
    let parent = guest.as_session("bash -c '(setsid sleep 30 & echo $! >/tmp/orphan)'; ps -o args= -p $(ps -o ppid= -p $(cat /tmp/orphan))");
    assert!(parent.out.starts_with("innkeeper init"), "{parent:?}");
    all_are_buried(&guest);
}

#[test]
fn dockers_own_init_needs_no_further_word() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().docker(&["--init"]));
    assert_eq!(guest.stop(), 143);
}

/// Whether a packet of whoever uses the box's network arrives in the world.
#[track_caller]
fn gets_out(rig: &Rig) -> bool {
    let mark = rig.world.sync();
    rig.inside("timeout 1 bash -c 'exec 3<>/dev/tcp/45.33.32.66/443'; timeout 1 bash -c 'exec 3<>/dev/tcp/9.9.9.53/53'");
    rig.world.sync();
    rig.world.packets_since(mark).iter().any(|packet| packet["flags"].is_string())
}

#[test]
fn a_stop_at_any_step_of_the_boot_ends_well_and_leaves_the_rules_closed() {
    for line in [
        "boot: config ok",
        "boot: lockdown ok",
        "boot: mounts ok",
        "boot: home ok",
        "boot: dns ok",
        "boot: firewall ok",
        "boot: identity ok",
        "boot: seal ok",
        "boot: readiness ok",
        "boot: ready after",
        "Claude Code is running",
    ] {
        let Some(rig) = Rig::new() else { return };
        assert!(gets_out(&rig), "the network is closed before there is a box");
        let guest = rig.start(&BoxOptions::new());
        assert!(guest.await_line(line).is_some(), "{line}: {}", guest.logs());
        guest.signal("TERM");
        assert_eq!(guest.exit_code(), 143, "{line}: {}", guest.logs());
        let logs = guest.logs();
        assert!(
            logs.contains("stopped by SIGTERM") && !logs.contains("not everything had ended"),
            "{line}: {logs}"
        );
        if !line.contains("config") {
            assert!(!gets_out(&rig), "{line}: open after the end");
        }
    }
}

fn state(guest: &RunningBox, state: &str) {
    guest.await_status(state, |status| status["session"]["state"] == state);
}

#[test]
fn a_stop_at_any_moment_of_life_ends_at_once() {
    let Some(rig) = Rig::new() else { return };
    let line =
        |line: &str| BoxOptions::new().env("INNKEEPER_SESSION_COMMAND", &format!("/bin/bash\n-c\n{line}"));
    let failing = "exit 3";
    let moments: [(&str, BoxOptions, fn(&RunningBox)); 5] = [
        ("in back-off", line(failing), |guest| state(guest, "backoff")),
        ("as a shell", line(failing).env("INNKEEPER_SESSION_ON_EXIT", "shell"), |guest| {
            state(guest, "exited")
        }),
        ("parked", BoxOptions::new(), |guest| {
            state(guest, "running");
            guest.innkeeper(&["session", "stop"]).expect("stop");
            state(guest, "parked");
        }),
        ("limited", BoxOptions::new(), |guest| {
            state(guest, "running");
            let input = r#"{"hook_event_name":"StopFailure","error":"rate_limit"}"#;
            guest.exec_agent(&format!("echo '{input}' | innkeeper hook")).expect("hook");
            state(guest, "limited");
        }),
        ("without tmux", BoxOptions::new(), |guest| {
            state(guest, "running");
            guest.tmux(&["kill-server"]);
            assert!(guest.await_line("the tmux server ended").is_some());
        }),
    ];
    for (moment, options, come) in moments {
        let guest = rig.boot(&options.env("INNKEEPER_SESSION_STOP_TIMEOUT", "60s"));
        come(&guest);
        // Docker's own patience is ten seconds: whoever waits for the time-out is killed with 137.
        assert_eq!(guest.stop(), 143, "{moment}: {}", guest.logs());
        assert!(!guest.logs().contains("not everything had ended"), "{moment}: {}", guest.logs());
    }
}

#[test]
fn a_session_that_was_stopped_with_sigstop_is_told_to_end_all_the_same() {
    let Some(rig) = Rig::new() else { return };
    let volume = rig.volume();
    let guest = rig.boot(&session(POLITE, &volume));
    up(&guest, "up");
    guest.exec_agent("pkill -STOP -f '^/bin/bash -c trap'; pkill -STOP -x tmux; true").expect("stop");
    assert_eq!(guest.stop(), 143);
    assert_eq!(read(&volume, "order"), "claude-told\nclaude-ended\n");
}
