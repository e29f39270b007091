//! What an operator may give up: exactly that one, and it is shown for ever.

use serde_json::json;

use super::{data, least, not_held, outcomes, refused, seccomp};
use crate::rig::{BoxOptions, Rig, RunningBox, host};

/// Exactly this protection is not held, in JSON and on the screen, also when it is looked at again.
#[track_caller]
fn only_this_is_given_up(guest: &RunningBox, name: &str, why: &str) {
    for look in ["first", "second"] {
        let status = guest.status();
        assert_eq!(not_held(&status), [name], "{look}: {}", status["protections"]);
        let protections = status["protections"].as_array().unwrap();
        let shown = protections.iter().find(|one| one["name"] == name).unwrap();
        assert_eq!(shown["how"], "given up by the operator (boot.accept)", "{look}");
        assert!(shown["detail"].as_str().unwrap().contains(why), "{look}: {shown}");
    }
    let screen = guest.innkeeper(&["status"]).expect("status");
    let first = screen.lines().next().unwrap();
    assert!(first.starts_with("READY") && first.contains(&format!("NOT HELD: {name}")), "{screen}");
    let row = screen.lines().find(|line| line.trim_start().starts_with(name)).unwrap();
    assert!(row.contains("NOT HELD"), "{screen}");
    let page = guest.exec_agent("curl -sS -m 10 http://ok.test/");
    assert!(page.out.contains(&format!("token-{}", host("ok"))), "{page:?}");
}

#[test]
fn rootfs_is_given_up_by_its_name() {
    let Some(rig) = Rig::new() else { return };
    let open = least().volume(&data(&rig));
    refused(&outcomes(&rig, std::slice::from_ref(&open)).remove(0), &["INNKEEPER_BOOT_ACCEPT=rootfs"]);
    let guest = rig.boot(&open.env("INNKEEPER_BOOT_ACCEPT", "rootfs"));
    only_this_is_given_up(&guest, "rootfs", "still writable: /data");
    guest.as_session("echo x > /data/file").expect("that is what was given up");
    assert!(!guest.as_session("touch /etc/file /usr/bin/file").ok());
    // Given up where it holds all the same, it is held.
    guest.stop();
    let guest = rig.boot(&least().env("INNKEEPER_BOOT_ACCEPT", "rootfs,host-doors,egress-ipv6"));
    assert_eq!(not_held(&guest.status()), Vec::<String>::new());
}

#[test]
fn host_doors_are_given_up_by_their_name() {
    use std::os::unix::fs::PermissionsExt;
    let Some(rig) = Rig::new() else { return };
    let path = rig.dir.join("host.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mount = format!("{}:/run/host.sock", path.display());
    // Only root of the host's may use it: the agent can't, so nothing is given up.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let closed = rig.boot(&least().volume(&mount));
    assert_eq!(not_held(&closed.status()), Vec::<String>::new());
    closed.stop();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let open = least().volume(&mount);
    let said = ["host-doors: ", "/run/host.sock", "--cap-add SYS_ADMIN", "INNKEEPER_BOOT_ACCEPT=host-doors"];
    refused(&outcomes(&rig, std::slice::from_ref(&open)).remove(0), &said);
    let guest = rig.boot(&open.env("INNKEEPER_BOOT_ACCEPT", "host-doors"));
    only_this_is_given_up(&guest, "host-doors", "/run/host.sock");
    guest.stop();
    // With the capability it is covered, and nothing has to be given up.
    let covered = rig.boot(&BoxOptions::new().volume(&mount));
    assert_eq!(not_held(&covered.status()), Vec::<String>::new());
    let knock = "python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"/run/host.sock\")'";
    assert!(!covered.exec_agent(knock).ok());
}

#[test]
fn a_shared_network_is_given_up_by_its_name() {
    let Some(rig) = Rig::new() else { return };
    rig.inside("ip link add br-others type bridge").expect("a bridge in the box's network");
    let said = ["br-others", "INNKEEPER_BOOT_ACCEPT=shared-network"];
    refused(&outcomes(&rig, &[least()]).remove(0), &said);
    let guest = rig.boot(&least().env("INNKEEPER_BOOT_ACCEPT", "shared-network"));
    only_this_is_given_up(&guest, "shared-network", "br-others");
}

/// The others are what a box is for.
#[test]
fn what_can_not_be_given_up_is_said() {
    let Some(rig) = Rig::new() else { return };
    for name in ["egress-ipv4", "dns", "agent", "control", "everything"] {
        let outcome = outcomes(&rig, &[least().env("INNKEEPER_BOOT_ACCEPT", name)]).remove(0);
        refused(&outcome, &["INNKEEPER_BOOT_ACCEPT", name, "egress-ipv6"]);
        assert!(!outcome.1.contains("lockdown"), "{}", outcome.1);
    }
}

/// A protection that does not hold and can't be given up does not recommend the giving up.
#[test]
fn the_agents_confinement_stops_the_boot_whatever_is_accepted() {
    let Some(rig) = Rig::new() else { return };
    let rule = json!({ "names": ["seccomp"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 });
    let profile = seccomp(&rig, "no-seccomp.json", &rule);
    let options = BoxOptions::new()
        .docker(&["--security-opt", &profile])
        .env("INNKEEPER_BOOT_ACCEPT", "rootfs,host-doors,egress-ipv6,shared-network");
    let outcome = outcomes(&rig, &[options]).remove(0);
    refused(&outcome, &["seccomp"]);
    assert!(!outcome.1.contains("BOOT_ACCEPT=agent"), "{}", outcome.1);
}
