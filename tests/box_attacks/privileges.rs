//! What the agent can do to the kernel, to PID 1, and to the secrets of others.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::Duration;

use crate::rig::{AGENT, BoxOptions, GH_TOKEN, OAUTH_TOKEN, Rig, must, run};

#[test]
fn t41_the_session_has_no_privilege_left() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let status = guest.as_session("cat /proc/self/status").out;
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(&format!("{name}:")));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set).as_deref(), Some("0000000000000000"), "{set}");
    }
    assert_eq!(field("NoNewPrivs").as_deref(), Some("1"));
    assert_eq!(field("Seccomp").as_deref(), Some("2"));
    assert_eq!(field("Uid").as_deref(), Some("1000\t1000\t1000\t1000"));
    assert_eq!(field("Gid").as_deref(), Some("1000\t1000\t1000\t1000"));
    assert!(matches!(field("Groups").as_deref(), Some("" | "1000")), "{:?}", field("Groups"));
    // What `docker exec` gets without the session's confinement, the session does not.
    for attempt in KERNEL_DOORS {
        let open = guest.exec_agent(attempt);
        assert!(open.ok(), "the control must get through: {attempt}: {open:?}");
        let closed = guest.as_session(attempt);
        assert!(!closed.ok(), "{attempt}: {closed:?}");
    }
    for attempt in ["sudo -n id", "su -c id", "chroot / id", "python3 -c 'import os; os.setuid(0)'"] {
        assert!(!guest.as_session(attempt).ok(), "{attempt}");
    }
    let setuid = guest.as_session("find / -xdev -perm /6000 -type f 2>/dev/null");
    assert_eq!(setuid.out, "");
}

/// Doors of the kernel that Docker leaves open to a box with SYS_ADMIN.
const KERNEL_DOORS: &[&str] = &[
    "unshare --user --map-root-user true",
    "python3 -c 'import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)'",
    "python3 -c 'import ctypes; c = ctypes.CDLL(None, use_errno=True); exit(c.syscall(101, 0, 0, 0, 0) != 0)'",
];

#[test]
fn t64_the_processes_of_others_are_closed_books() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let look = |pid: &str| {
        format!(
            "for f in environ mem maps auxv stack; do head -c1 /proc/{pid}/$f >/dev/null 2>&1 && echo read $f; done; \
             for l in root cwd exe; do readlink /proc/{pid}/$l >/dev/null 2>&1 && echo read $l; done; \
             ls /proc/{pid}/fd >/dev/null 2>&1 && echo read fd; true"
        )
    };
    let own = guest.as_session(&look("self"));
    assert!(own.out.contains("read environ") && own.out.contains("read fd"), "{own:?}");
    let status = guest.status();
    let workers = status["workers"].as_array().unwrap().iter();
    let mut pids: Vec<String> = workers
        .filter(|one| one["name"] != "tmux")
        .filter_map(|one| one["pid"].as_i64())
        .map(|p| p.to_string())
        .collect();
    assert!(!pids.is_empty());
    pids.push("1".to_owned());
    for pid in pids {
        for (who, read) in
            [("session", guest.as_session(&look(&pid))), ("docker exec", guest.exec_agent(&look(&pid)))]
        {
            assert_eq!(read.out, "", "{who} of {pid}");
        }
    }
    // And from the host, which may read everything: there is nothing in it.
    let environ = std::fs::read(format!("/proc/{}/environ", guest.pid())).unwrap();
    assert_eq!(environ, b"", "{}", String::from_utf8_lossy(&environ));
}

/// What was found in the command lines and environments of a box's processes, over its whole life.
#[derive(Debug, Default)]
struct Seen {
    argv: BTreeSet<String>,
    environ: BTreeSet<String>,
}

/// Looks every 10 ms at every process that is not of the host's pid namespace, until told to end.
fn poll(end: &mpsc::Receiver<()>) -> Seen {
    let host = std::fs::read_link("/proc/self/ns/pid").unwrap();
    let mut seen = Seen::default();
    while end.recv_timeout(Duration::from_millis(10)) == Err(mpsc::RecvTimeoutError::Timeout) {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let process = entry.path();
            let inside = std::fs::read_link(process.join("ns/pid")).is_ok_and(|namespace| namespace != host);
            if !inside {
                continue;
            }
            for (file, found) in [("cmdline", &mut seen.argv), ("environ", &mut seen.environ)] {
                let text = std::fs::read(process.join(file)).unwrap_or_default();
                found.extend(
                    text.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()),
                );
            }
        }
    }
    seen
}

#[test]
fn t65_t68_no_secret_is_ever_in_a_command_line_or_an_environment() {
    let Some(rig) = Rig::new() else { return };
    // Tokens of this test alone: others' boxes run beside it.
    let gh = GH_TOKEN.replace("canary", "CANA65");
    let oauth = OAUTH_TOKEN.replace("canary", "CANA65");
    std::fs::write(rig.world.dir.join("github-token"), &gh).unwrap();
    let secrets = rig.dir.join("secrets");
    rig.file("secrets/GH_TOKEN", &gh);
    rig.file("secrets/CLAUDE_CODE_OAUTH_TOKEN", &oauth);
    let options = BoxOptions::new()
        .claude()
        .without_env("GH_TOKEN")
        .without_env("CLAUDE_CODE_OAUTH_TOKEN")
        .volume(&format!("{}:/run/secrets:ro", secrets.display()))
        .env("REPO_URL", "https://github.com/acme/private")
        .env("INNKEEPER_SESSION_ARGS", "--append-system-prompt\nseen-in-argv-65")
        .env("ANTHROPIC_MODEL", "seen-in-environ-65");
    let (end, ended) = mpsc::channel();
    let poller = std::thread::spawn(move || poll(&ended));
    let guest = rig.boot(&options);
    guest.await_status("the private repository", |status| {
        status["repositories"][0]["state"] == "cloned" && status["session"]["state"] == "running"
    });
    let pushed =
        guest.as_session("cd /workspace/repo && git commit -q --allow-empty -m x && git push -q origin HEAD");
    assert!(pushed.ok(), "the credential works: {pushed:?}");
    let environment = guest.as_session("env").out;
    let by_docker = guest.exec_agent("env").out;
    end.send(()).unwrap();
    let seen = poller.join().unwrap();
    assert!(seen.argv.contains("seen-in-argv-65"), "the poller sees command lines");
    assert!(seen.environ.iter().any(|one| one.contains("seen-in-environ-65")), "and environments");
    let texts = seen.argv.iter().chain(&seen.environ).map(String::as_str);
    for text in texts.chain([environment.as_str(), by_docker.as_str()]) {
        assert!(!text.contains("CANA65"), "{text}");
    }
    assert!(!guest.logs().contains("CANA65"));
    let inspected = must("docker", &["inspect", &guest.name]);
    assert!(!inspected.contains("CANA65"));
    let read = guest.as_session("cat /run/secrets/* 2>/dev/null");
    assert_eq!(read.out, "", "the secrets' files are covered");
}

#[test]
fn t67_nothing_dumps_core() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let crash = |limit: &str, place: &str| {
        format!("mkdir -p {place}; cd {place} && {limit}; bash -c 'kill -SEGV $$'; find {place} -type f")
    };
    let free = guest.exec_agent(&crash("ulimit -c unlimited", "/workspace/free"));
    let cores = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    if !cores.starts_with(['|', '/']) {
        assert!(free.out.contains("core"), "without a limit there is one: {free:?}");
    }
    let held = guest.as_session(&crash("ulimit -c unlimited", "/workspace/held"));
    assert_eq!(held.out, "", "{held:?}");
    assert_eq!(guest.as_session("ulimit -Hc").out, "0\n");
    let of = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    // PID 1 and what descends from it; what `docker exec` and the health check start has Docker's limits.
    let (first, all) = (guest.pid(), guest.host_pids());
    let mut looked_at = 0;
    for pid in all.iter().copied().filter(|pid| descends(*pid, first)) {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let limits = of(pid);
        let line = limits.lines().find(|line| line.starts_with("Max core file size"));
        let Some(line) = line else { continue };
        let values: Vec<&str> = line.split_whitespace().skip(4).take(2).collect();
        assert_eq!(values, ["0", "0"], "{comm} {pid}");
        looked_at += 1;
    }
    assert!(looked_at >= 4, "PID 1, the DNS worker, tmux and the session: {looked_at} of {all:?}");
}

/// Whether this process is that one, or a child of its children.
fn descends(pid: i32, from: i32) -> bool {
    let parent = |pid: i32| -> Option<i32> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
    };
    std::iter::successors(Some(pid), |pid| parent(*pid)).any(|ancestor| ancestor == from)
}

#[test]
fn t80_every_writable_mount_is_nosuid_and_nodev() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let places = "for d in /workspace /tmp ~ /dev/shm /run/user/1000; do test -w $d && echo $d; done";
    let writable = guest.as_session(places).out;
    assert_eq!(writable.lines().count(), 5, "{writable}");
    let mounts = guest.as_session("cat /proc/self/mounts").out;
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let options: Vec<&str> = fields[3].split(',').collect();
        if options.contains(&"rw") && !["proc", "devpts"].contains(&fields[2]) {
            assert!(
                options.contains(&"nosuid") && (options.contains(&"nodev") || fields[1] == "/dev"),
                "{line}"
            );
        }
    }
    // Nothing else can be written, whoever owns it.
    let found = guest.as_session(
        "find / \\( -path /proc -o -path /workspace -o -path /tmp -o -path /home/claude -o -path /dev/shm -o -path /run/user/1000 \\) \
         -prune -o -writable ! -type l -print 2>/dev/null",
    );
    let devices = [
        "/dev/null",
        "/dev/zero",
        "/dev/full",
        "/dev/random",
        "/dev/urandom",
        "/dev/tty",
        "/dev/ptmx",
        "/dev/mqueue",
    ];
    let sockets = ["/run/innkeeper/control.sock"];
    let known =
        |path: &str| devices.contains(&path) || sockets.contains(&path) || path.starts_with("/dev/pts");
    let others: Vec<&str> = found.out.lines().filter(|path| !known(path)).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn t72_the_session_can_not_mount() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let before = guest.exec_root("cat /proc/self/mountinfo").out;
    // Root with SYS_ADMIN can, in a mount namespace that ends with it: what stops the session is its confinement.
    let control = guest.exec_root("unshare --mount sh -c 'mount -t tmpfs none /opt && mount -o remount,bind,rw / && touch /control && rm /control'");
    assert!(control.ok(), "{control:?}");
    for attempt in [
        "mount -o remount,rw /",
        "mount -o remount,bind,rw /",
        "mount -t tmpfs none /workspace",
        "mount --bind /tmp /etc",
        "umount /tmp",
        "umount -l /etc/resolv.conf",
        "unshare --mount true",
        "unshare --user --map-root-user --mount mount -t tmpfs none /opt",
        "python3 -c 'import ctypes; exit(ctypes.CDLL(None).syscall(430, b\"tmpfs\", 0) < 0)'",
        "python3 -c 'import ctypes; exit(ctypes.CDLL(None).syscall(428, -100, b\"/\", 1) < 0)'",
        "python3 -c 'import ctypes; exit(ctypes.CDLL(None).pivot_root(b\"/tmp\", b\"/tmp\") < 0)'",
        "touch /etc/x /usr/local/bin/x /opt/x /var/x /run/x /x 2>/dev/null && true",
    ] {
        assert!(!guest.as_session(attempt).ok(), "{attempt}");
    }
    assert_eq!(guest.exec_root("cat /proc/self/mountinfo").out, before);
}

#[test]
fn t73_the_kernels_switches_are_out_of_reach() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let write = |path: &str| format!("echo x 2>/dev/null >{path}");
    for writable in ["/dev/shm/t73", "/tmp/t73", "/workspace/t73", "/proc/self/comm"] {
        assert!(guest.as_session(&write(writable)).ok(), "{writable}");
    }
    for path in [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/vm/drop_caches",
        "/proc/sysrq-trigger",
        "/proc/1/oom_score_adj",
        "/proc/1/mem",
        "/proc/kmsg",
        "/proc/kcore",
        "/sys/kernel/uevent_helper",
        "/sys/fs/cgroup/release_agent",
        "/sys/fs/cgroup/memory/release_agent",
        "/sys/fs/cgroup/memory/notify_on_release",
        "/sys/fs/cgroup/cgroup.procs",
        "/dev/kmsg",
        "/dev/mem",
    ] {
        assert!(!guest.as_session(&write(path)).ok(), "{path}");
    }
    // Nothing below them is writable either, whatever it is called.
    let found = guest.as_session("find /proc/sys /sys -writable -type f 2>/dev/null | head");
    assert_eq!(found.out, "");
    let lowered = guest.as_session("echo -900 > /proc/self/oom_score_adj");
    assert!(!lowered.ok(), "{lowered:?}");
}

#[test]
fn t84_r18_the_agent_can_not_signal_the_supervisor_or_its_workers() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let control = guest.as_session("sleep 100 & kill -KILL $!");
    assert!(control.ok(), "{control:?}");
    let before = guest.status();
    let workers = before["workers"].as_array().unwrap().clone();
    let others = workers.iter().filter(|one| one["name"] != "tmux").filter_map(|one| one["pid"].as_i64());
    let mut pids: Vec<String> = others.map(|pid| pid.to_string()).collect();
    pids.push("1".to_owned());
    for pid in &pids {
        for signal in ["KILL", "STOP", "TERM", "INT", "HUP", "CHLD", "SEGV", "USR1", "RTMIN", "RTMAX", "0"] {
            let kill = format!("kill -{signal} {pid}");
            let sent = guest.as_session(&kill);
            assert!(!sent.ok() && sent.err.contains("not permitted"), "{kill}: {sent:?}");
        }
        assert!(!guest.exec_agent(&format!("kill -KILL {pid}")).ok());
    }
    let after = guest.status();
    assert_eq!(after["phase"], "ready");
    assert_eq!(after["policy"]["generation"], before["policy"]["generation"]);
    let restarts = |status: &serde_json::Value| {
        let workers = status["workers"].as_array().unwrap();
        workers.iter().map(|one| (one["name"].clone(), one["restarts"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(restarts(&after), restarts(&before));
}

const WEAK: &str = "\
RUN cp /usr/bin/id /usr/local/bin/weak-setuid && chmod 4755 /usr/local/bin/weak-setuid
RUN cp /usr/bin/id /opt/weak-setgid && chmod 2755 /opt/weak-setgid
RUN echo 'toor:x:0:0::/:/bin/sh' >> /etc/passwd
RUN chmod 0777 /usr/local/bin
RUN echo /usr/local/lib/nowhere.so > /etc/ld.so.preload
";

#[test]
fn t98_a_weak_image_boots_and_its_weaknesses_are_named_and_without_effect() {
    let Some(rig) = Rig::new() else { return };
    let image = format!("{}-weak", rig.name);
    let from = crate::rig::image();
    let file = rig.file("weak/Dockerfile", &format!("FROM {from}\nUSER root\n{WEAK}"));
    rig.at_end(&["docker", "rmi", "-f", &image]);
    let context = file.parent().unwrap().to_str().unwrap();
    must("docker", &["build", "-q", "--network", "none", "-t", &image, context]);
    let control =
        ["run", "--rm", "--network", "none", "-u", AGENT, "--entrypoint", "weak-setuid", &image, "-u"];
    assert_eq!(run("docker", &control).out, "0\n", "without Innkeeper the file has its effect");
    let guest = rig.boot(&BoxOptions::new().image(&image));
    assert_eq!(guest.exec_program(AGENT, &["weak-setuid", "-u"]).out, "1000\n");
    assert_eq!(guest.as_session("weak-setuid -u; /opt/weak-setgid -g").out, "1000\n1000\n");
    assert!(!guest.as_session("echo x > /usr/local/bin/weak-new").ok());
    let named = ["/usr/local/bin/weak-setuid", "/opt/weak-setgid", "toor", "/usr/local/bin", "ld.so.preload"];
    let warned = |status: &serde_json::Value, what: &str| {
        let warnings = status["warnings"].as_array().cloned().unwrap_or_default();
        warnings.iter().any(|warning| warning.as_str().is_some_and(|text| text.contains(what)))
    };
    let all = guest
        .await_status("warnings about the image", |status| named.iter().all(|what| warned(status, what)));
    assert!(all["warnings"].to_string().contains("root's PATH"), "{}", all["warnings"]);
}

/// The trampolines are commands like others: whoever calls them gets what the kernel gives that caller.
#[test]
fn t97_no_command_of_innkeepers_lends_the_agent_a_right() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    // It works for who may: PID 1 starts everything by it.
    let own = guest.as_session("innkeeper run-as --uid 1000 --gid 1000 -- id -u");
    assert_eq!(own.out.trim(), "1000", "{own:?}");
    let job = r#"{"program":"/usr/bin/id"}"#;
    let attempts = [
        "innkeeper run-as --uid 0 --gid 0 -- id -u".to_owned(),
        "innkeeper run-as --uid 903 --gid 903 -- id -u".to_owned(),
        "innkeeper run-as --uid 1000 --gid 0 -- id -u".to_owned(),
        "innkeeper run-as --uid 4294967296 --gid 0 -- id -u".to_owned(),
        "innkeeper run-as --uid -1 --gid -1 -- id -u".to_owned(),
        "innkeeper shell -c id".to_owned(),
        "innkeeper init".to_owned(),
        "innkeeper dns </dev/null".to_owned(),
        "innkeeper watch </dev/null".to_owned(),
        "innkeeper engine-inner".to_owned(),
        format!("echo '{job}' | innkeeper tables"),
        format!("innkeeper probe --uid 0 --gid 0 --attack '{job}'"),
        "innkeeper reload".to_owned(),
        "innkeeper allow -- --for".to_owned(),
        "innkeeper revoke github.com".to_owned(),
        "innkeeper rules".to_owned(),
    ];
    for attempt in attempts {
        for done in [guest.exec_agent(&format!("timeout 20 {attempt}")), guest.as_session(&attempt)] {
            assert!(!done.ok() && done.code != Some(124), "{attempt}: {done:?}");
            assert!(!done.both().contains("uid=0") && done.out.trim() != "0", "{attempt}: {done:?}");
        }
    }
    assert_eq!(guest.status()["policy"]["generation"], 1);
}

/// Arguments are somebody else's words, for the operator's commands too.
#[test]
fn t97_hostile_arguments_are_an_error_with_a_reason_and_nothing_else() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let long = "a".repeat(100_000);
    let many: Vec<String> = (0..15).map(|_| long.clone()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let table: [&[&str]; 9] = [
        &["check", "-rf"],
        &["check", "--", "--help"],
        &["check", &long],
        &["check", "a\nb"],
        &["check", "$(id)"],
        &["allow", "\u{1b}]0;x\u{7}.example"],
        &["allow", "--", "-x.example"],
        &["run-as", "--uid", "1000", "--gid", "1000", "--", "-c", "id"],
        &["run-as", "--uid", "1000", "--gid", "1000", "--cwd", "/nonexistent", "--", "/bin/true"],
    ];
    for args in table {
        let done = guest.innkeeper(args);
        let shown = &args[..args.len().min(3)].concat();
        let shown = &shown[..shown.len().min(60)];
        assert!(matches!(done.code, Some(1..=78)), "{shown:?}: {done:?}");
        assert!(!done.both().trim().is_empty() && !done.both().contains("uid="), "{shown:?}: {done:?}");
        assert!(!done.both().contains(['\u{1b}', '\u{7}']), "{shown:?}: {done:?}");
        assert!(done.both().len() < 8192, "{shown:?}: {} octets of answer", done.both().len());
    }
    let done = guest.innkeeper(&[&["allow", "ok.example"], &many[..]].concat());
    assert!(!done.ok() && done.both().len() < 8192, "{:?}", done.code);
    assert_eq!(guest.status()["policy"]["generation"], 1, "all of them or none");
}
