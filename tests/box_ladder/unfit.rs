//! What is missing is named with its remedy, one by one, and the network is left as it was.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use serde_json::json;

use super::{Found, data, least, least_with, listed, outcomes, refused, seccomp, without};
use crate::rig::{AGENT, BoxOptions, CAPABILITIES, PLACES, Rig, host};

const EPERM: u8 = 1;
const EACCES: u8 = 13;

/// Runs them all, and looks that nothing of them stayed.
#[track_caller]
fn each_is_refused(rig: &Rig, table: Vec<(BoxOptions, Vec<String>)>) {
    let before = Found::of(rig);
    let (options, words): (Vec<_>, Vec<_>) = table.into_iter().unzip();
    for (outcome, words) in outcomes(rig, &options).iter().zip(words) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        refused(outcome, &words);
        assert!(!outcome.1.contains("lockdown ok"), "{words:?}: the network was touched:\n{}", outcome.1);
    }
    before.is_still_so(rig);
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[test]
fn f08_each_capability_is_missed_by_name() {
    let Some(rig) = Rig::new() else { return };
    let rest = |missing: &str| {
        let least = BoxOptions::new().without_cap("SYS_ADMIN").without_cap("NET_ADMIN").tmpfs(&PLACES);
        let mut least =
            least.docker(&["--read-only", "--security-opt", "no-new-privileges", "--cap-drop", "ALL"]);
        for capability in CAPABILITIES.iter().filter(|capability| **capability != missing) {
            least = least.cap(capability);
        }
        least
    };
    let mut table: Vec<_> = CAPABILITIES
        .iter()
        .map(|missing| {
            let said = [
                format!("missing capabilities: {missing} (to "),
                format!("docker run --cap-add {missing} …"),
            ];
            (rest(missing), said.to_vec())
        })
        .collect();
    table.push((
        BoxOptions::new().docker(&["--user", "1000"]),
        words(&["another user than root", "leave out --user"]),
    ));
    each_is_refused(&rig, table);
    // A namespace in which port 53 is root's needs one more.
    rig.inside("echo 1024 > /proc/sys/net/ipv4/ip_unprivileged_port_start").expect("the border of ports");
    let said = words(&["NET_BIND_SERVICE (to listen on port 53", "--cap-add NET_BIND_SERVICE"]);
    each_is_refused(&rig, vec![(least(), said)]);
    rig.boot(&least().cap("NET_BIND_SERVICE"));
}

#[test]
fn f09_each_place_is_missed_by_name() {
    let Some(rig) = Rig::new() else { return };
    let mut table = Vec::new();
    for place in PLACES {
        let path = place.split(':').next().unwrap();
        let own = if path == "/run" { "/run/innkeeper, /run/user/1000" } else { path };
        table.push((
            least_with(place, &[]),
            words(&[
                &format!("cannot mount a tmpfs on {own}: "),
                &format!("--tmpfs {place}"),
                "--cap-add SYS_ADMIN",
            ]),
        ));
        if path != "/run" {
            let said = [&format!("{path} is mounted noexec"), &format!("with exec: --tmpfs {place}")];
            table.push((least_with(place, &["--tmpfs", path]), words(&said.map(String::as_str))));
        }
    }
    let data = data(&rig);
    table.push((
        least().volume(&data),
        words(&["still writable: /data", "--read-only", "--cap-add SYS_ADMIN", "BOOT_ACCEPT=rootfs"]),
    ));
    let volume = rig.volume();
    let mount = format!("{volume}:/workspace");
    let rest: Vec<&str> = PLACES.into_iter().filter(|place| !place.starts_with("/workspace")).collect();
    let said = [
        "/workspace allows setuid files or devices",
        "--security-opt no-new-privileges",
        "--cap-add SYS_ADMIN",
    ];
    table.push((listed().tmpfs(&rest).docker(&["--read-only", "-v", &mount]), words(&said)));
    each_is_refused(&rig, table);
}

#[test]
fn each_program_of_the_image_is_missed_by_name() {
    let Some(rig) = Rig::new() else { return };
    let image = |path: &str| BoxOptions::new().claude().image(&without(&rig, path));
    let hidden =
        |directory: &str| BoxOptions::new().claude().docker(&["--tmpfs", &format!("{directory}:ro")]);
    let passwd = "root:x:0:0:root:/root:/bin/bash\nclaude:x:1000:1000::/home/claude:/bin/bash\n\
                  innkeeper-watch:x:903:903::/nonexistent:/usr/sbin/nologin\n";
    let passwd = format!("{}:/etc/passwd:ro", rig.file("passwd", passwd).display());
    let dockerfile = "innkeeper's Dockerfile";
    let table = vec![
        (hidden("/opt/claude"), words(&["/usr/local/bin/claude is missing in the image", "session.command"])),
        (image("/usr/bin/tmux"), words(&["/usr/bin/tmux is missing in the image", dockerfile])),
        (
            image("/usr/bin/git").env("REPO_URL", "https://github.com/acme/widgets"),
            words(&[
                "/usr/bin/git is missing in the image: a repository is to be cloned",
                "leave out REPO_URL",
            ]),
        ),
        (hidden("/opt/innkeeper"), words(&["/opt/innkeeper/home is missing in the image", dockerfile])),
        (BoxOptions::new().volume(&passwd), words(&["the image has no user innkeeper-dns", dockerfile])),
        (
            BoxOptions::new().env("INNKEEPER_SESSION_COMMAND", "/usr/bin/nothing"),
            words(&["/usr/bin/nothing is missing in the image: session.command names it"]),
        ),
        (
            BoxOptions::new().env("INNKEEPER_SESSION_COMMAND", "sleep\n1"),
            words(&["session.command is not an absolute path"]),
        ),
    ];
    each_is_refused(&rig, table);
    // Without a repository nobody asks for git.
    rig.boot(&image("/usr/bin/git").env("INNKEEPER_SESSION_COMMAND", "/bin/sleep\ninfinity"));
}

#[test]
fn f05_without_a_packet_filter_no_agent_is_started() {
    let Some(rig) = Rig::new() else { return };
    // socket(AF_NETLINK, …, NETLINK_NETFILTER); iptables' own sockets are raw ones.
    let netlink = json!({ "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 93, "args": [
        { "index": 0, "value": 16, "op": "SCMP_CMP_EQ" }, { "index": 2, "value": 12, "op": "SCMP_CMP_EQ" }
    ] });
    let raw = json!({ "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [
        { "index": 1, "value": 3, "op": "SCMP_CMP_MASKED_EQ", "valueTwo": 3 }, { "index": 0, "value": 16, "op": "SCMP_CMP_NE" }
    ] });
    let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [netlink, raw] });
    let profile = format!("seccomp={}", rig.file("filterless.json", &profile.to_string()).display());
    let volume = rig.volume();
    let options = BoxOptions::new()
        .volume(&format!("{volume}:/workspace"))
        .env("INNKEEPER_SESSION_COMMAND", "/usr/bin/touch\n/workspace/the-agent-was-here");
    let before = Found::of(&rig);
    let outcome = outcomes(&rig, &[options.clone().docker(&["--security-opt", &profile])]).remove(0);
    refused(&outcome, &["packet filter"]);
    before.is_still_so(&rig);
    let fit = rig.boot(&options);
    let trace = "test ! -e /workspace/the-agent-was-here || echo was here";
    fit.await_status("a session that ended", |status| status["session"]["last_exit"].is_string());
    assert_eq!(fit.exec_root(trace).out, "was here\n", "the trace is one");
}

/// AppArmor's way of refusing a mount, and seccomp's; both come after the lockdown, which is taken back.
#[test]
fn f09_mounts_that_are_refused_in_spite_of_the_capability_leave_the_network_as_it_was() {
    let Some(rig) = Rig::new() else { return };
    let evil = ["tcp", &host("evil"), "80", "GET / HTTP/1.0\r\n\r\n"];
    rig.inside("nft add table inet others; nft add chain inet others c '{ type filter hook output priority 0; }'; nft add rule inet others c counter")
        .expect("rules of others");
    let before = Found::of(&rig);
    for (errno, remedy) in [(EACCES, "apparmor=unconfined"), (EPERM, "let seccomp allow mounts")] {
        let rule = json!({ "names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno });
        let profile = seccomp(&rig, &format!("mount-{errno}.json"), &rule);
        let refusing = ["--security-opt", &profile];
        let outcome = outcomes(&rig, &[BoxOptions::new().docker(&refusing)]).remove(0);
        refused(&outcome, &["cannot mount a tmpfs on /run/innkeeper", remedy, "--tmpfs /run"]);
        assert!(
            outcome.1.contains("lockdown ok") && outcome.1.contains("rules were taken back"),
            "{}",
            outcome.1
        );
        before.is_still_so(&rig);
        assert!(rig.outside(&evil).ok(), "as open as it was");
        // What the runtime mounted is as good.
        let fit = BoxOptions::new().tmpfs(&PLACES).docker(&["--read-only"]).docker(&refusing);
        let (code, logs) = outcomes(&rig, &[fit.args(&["doctor"])]).remove(0);
        assert_eq!(code, 0, "{logs}");
    }
}

/// Late failures: the resolver's port is taken, a door of the host can't be covered.
#[test]
fn a_boot_that_fails_late_puts_rules_and_resolv_conf_back() {
    let Some(rig) = Rig::new() else { return };
    let evil = ["tcp", &host("evil"), "80", "GET / HTTP/1.0\r\n\r\n"];
    let serve = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('127.0.0.53', 53))\nprint('up', flush=True)\nimport sys; sys.stdin.read()";
    let before = Found::of(&rig);
    let mut squatter = rig.spawn_inside(&["python3", "-c", serve]);
    assert_eq!(squatter.hear(), "up");
    let outcome = outcomes(&rig, &[BoxOptions::new()]).remove(0);
    refused(&outcome, &["cannot listen on 127.0.0.53:53", "something else listens"]);
    squatter.end();
    before.is_still_so(&rig);

    let old = rig.file("tmux", "#!/bin/sh\necho tmux 2.9a\n");
    std::fs::set_permissions(&old, std::fs::Permissions::from_mode(0o755)).unwrap();
    let old = BoxOptions::new().volume(&format!("{}:/usr/bin/tmux:ro", old.display()));
    refused(&outcomes(&rig, &[old]).remove(0), &["tmux 2.9 is too old", "install tmux 3.6 or newer"]);
    before.is_still_so(&rig);

    let (door, _listener) = door(&rig);
    let outcome = outcomes(&rig, std::slice::from_ref(&door)).remove(0);
    refused(&outcome, &["host-doors: ", "/run/host.sock", "INNKEEPER_BOOT_ACCEPT=host-doors"]);
    assert!(outcome.1.contains("rules were taken back"), "{}", outcome.1);
    before.is_still_so(&rig);
    assert!(rig.outside(&evil).ok(), "as open as it was");

    // Where an earlier box left the network closed, it is closed as before.
    rig.boot(&BoxOptions::new()).stop();
    let closed = rig.in_pause("cat /etc/resolv.conf").out;
    assert!(!rig.outside(&evil).ok());
    let outcome = outcomes(&rig, &[door]).remove(0);
    refused(&outcome, &["host-doors: "]);
    assert!(!outcome.1.contains("rules were taken back"), "{}", outcome.1);
    assert!(!rig.outside(&evil).ok(), "what was closed stays closed");
    let resolv_conf = || rig.in_pause("cat /etc/resolv.conf").out;
    assert_eq!(resolv_conf(), closed);
}

/// A socket of the host's that everybody may use, in a box in which nothing can be bound over it.
fn door(rig: &Rig) -> (BoxOptions, UnixListener) {
    let path = rig.dir.join("host.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    // MS_BIND alone: covers, and no remount.
    let rule = json!({ "names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [
        { "index": 3, "value": 4096, "op": "SCMP_CMP_EQ" }
    ] });
    let profile = seccomp(rig, "no-bind.json", &rule);
    let mount = format!("{}:/run/host.sock", path.display());
    (BoxOptions::new().docker(&["--security-opt", &profile, "-v", &mount]), listener)
}

#[test]
fn a_shared_network_without_ipv6_is_told_from_a_missing_one() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&least());
    // A second box meets the first one's name, and the first keeps its rules.
    let before = Found::of(&rig);
    let outcome = outcomes(&rig, &[least()]).remove(0);
    refused(&outcome, &["another box runs in this network", "give each box a network of its own"]);
    before.is_still_so(&rig);
    assert!(!guest.client(AGENT, &["tcp", &host("evil"), "80", "leak"]).ok());
}
