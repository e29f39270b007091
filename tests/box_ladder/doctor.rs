//! `doctor` says what the boot would, in its words, and changes nothing.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use super::{Found, data, least, least_with, listed, outcomes, seccomp};
use crate::rig::{BoxOptions, PLACES, Rig};

/// Its exit status and what it printed.
fn examined(rig: &Rig, options: &BoxOptions) -> (i32, Value) {
    let (code, logs) = outcomes(rig, &[options.clone().args(&["doctor", "--json"])]).remove(0);
    let line = logs.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("no JSON:\n{logs}"));
    (code, serde_json::from_str(line).unwrap())
}

fn verdict<'a>(examination: &'a Value, mechanism: &str) -> &'a Value {
    let findings = examination["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["mechanism"] == mechanism);
    &found.unwrap_or_else(|| panic!("no {mechanism}: {examination}"))["verdict"]
}

#[test]
fn doctor_and_boot_agree_and_doctor_changes_nothing() {
    let Some(rig) = Rig::new() else { return };
    let door = rig.dir.join("host.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&door).unwrap();
    std::fs::set_permissions(&door, std::fs::Permissions::from_mode(0o666)).unwrap();
    let door = format!("{}:/run/host.sock", door.display());
    let refusal = json!({ "names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13 });
    let profile = seccomp(&rig, "mount.json", &refusal);
    let data = data(&rig);
    let hosts = [
        (least(), true),
        (BoxOptions::new(), true),
        (listed().cap("SYS_ADMIN"), true),
        (BoxOptions::new().without_cap("SYS_ADMIN").tmpfs(&PLACES).docker(&["--read-only"]), true),
        (BoxOptions::new().without_cap("NET_ADMIN"), false),
        (BoxOptions::new().without_cap("SYS_ADMIN"), false),
        (BoxOptions::new().docker(&["--user", "1000"]), false),
        (least_with("/workspace:exec", &["--tmpfs", "/workspace"]), false),
        (least_with("/tmp:exec,mode=1777", &[]), false),
        (listed().tmpfs(&PLACES), true),
        (least().volume(&data), false),
        (least().volume(&data).env("INNKEEPER_BOOT_ACCEPT", "rootfs"), true),
        (BoxOptions::new().docker(&["--security-opt", &profile]), false),
        (BoxOptions::new().claude().docker(&["--tmpfs", "/opt/claude:ro"]), false),
        (BoxOptions::bare(), false),
        (least().volume(&door), false),
        (least().volume(&door).env("INNKEEPER_BOOT_ACCEPT", "host-doors"), true),
        (BoxOptions::new().volume(&door), true),
        (BoxOptions::new().env("INNKEEPER_SESSION_ON_EXIT", "dance"), false),
    ];
    for (options, fit) in &hosts {
        let before = Found::of(&rig);
        let (code, examination) = examined(&rig, options);
        before.is_still_so(&rig);
        assert_eq!(
            (examination["schema"].clone(), examination["runtime"].clone()),
            (json!(1), json!("docker"))
        );
        assert_eq!(examination["fit"], json!(fit), "{options:?}: {}", examination["reasons"]);
        assert_eq!(code, if *fit { 0 } else { 78 });
        if *fit {
            let guest = rig.boot(options);
            guest.stop();
            // A network that was closed by a box stays so; the next look is at an open one.
            rig.inside("nft delete table inet innkeeper").expect("what the box left");
            continue;
        }
        let (code, logs) = outcomes(&rig, std::slice::from_ref(options)).remove(0);
        assert_eq!(code, 78, "{logs}");
        let inert = |text: &Value| text.as_str().unwrap().to_owned();
        let first = &examination["reasons"][0];
        assert!(logs.contains(&inert(&first["what"])), "{first} is not in the boot's words:\n{logs}");
        assert!(logs.contains(&inert(&first["next"])), "{first} is not in the boot's words:\n{logs}");
    }
}

#[test]
fn doctor_names_every_mechanism() {
    let Some(rig) = Rig::new() else { return };
    let (_, examination) = examined(&rig, &least());
    for mechanism in [
        "root",
        "capability NET_ADMIN",
        "capability DAC_OVERRIDE",
        "no_new_privs",
        "reaper of orphans",
        "network namespace",
        "another box",
        "packet log (NFLOG)",
        "::1",
        "way out by IPv6",
        "resolvers",
        "/workspace",
        "/tmp",
        "/home/claude",
        "root file system",
        "mounts and seal",
        "seccomp filter",
        "memory limit",
        "process limit",
        "oom_score_adj",
        "/proc/sys",
        "/usr/bin/tmux",
        "tmux 3.6 or newer",
        "users of the image",
        "configuration",
    ] {
        let verdict = verdict(&examination, mechanism);
        assert!(verdict == "ok" || mechanism.ends_with("limit"), "{mechanism}: {verdict}");
    }
    assert_eq!(verdict(&examination, "capability SYS_ADMIN"), "n/a");
    assert_eq!(verdict(&examination, "memory limit"), "weaker");
    let limits = least().docker(&["--memory", "1g", "--pids-limit", "300"]);
    let (_, examination) = examined(&rig, &limits);
    assert_eq!(verdict(&examination, "memory limit"), "ok");
    assert_eq!(verdict(&examination, "process limit"), "ok");
    assert_eq!(verdict(&examination, "AppArmor"), "n/a");
    // In a living box, and on the host's own network.
    let guest = rig.boot(&least());
    let inside = guest.innkeeper(&["doctor"]);
    assert_eq!(inside.code, Some(78), "{inside:?}");
    assert!(inside.out.contains("another box runs in this network"), "{inside:?}");
    let (code, examination) = examined(&rig, &BoxOptions::new().network("host"));
    assert_eq!(code, 78);
    assert_eq!(verdict(&examination, "network namespace"), "missing");
}
