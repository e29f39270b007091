//! Saved at the end, by the timer and when asked; back in the next box.

use super::rig::{AGENT, BoxOptions, Rig};
use super::{REPOSITORY, saves, state, with};

#[test]
fn a_stopped_box_loses_nothing() {
    let Some(rig) = Rig::new() else { return };
    let volume = rig.volume();
    let guest = rig.boot(&with(&volume));
    assert_eq!(guest.exec_root("stat -c '%u %a' /persist").expect("the volume"), "1000 700\n");
    let options = guest.exec_root("grep ' /persist ' /proc/1/mountinfo").expect("the mount");
    for option in ["nosuid", "nodev", "noexec"] {
        assert!(options.contains(option), "{option}: {options}");
    }
    guest.exec_agent(REPOSITORY).expect("a repository");
    let before = state(&guest);
    assert!(before.contains("ita") && before.contains("stash@{1}"), "{before}");
    assert_eq!(guest.stop(), 143);
    assert!(guest.logs().contains("persist: saved 1 repository"), "{}", guest.logs());

    let next = rig.boot(&with(&volume));
    let restored = next.await_status("a session", |status| status["session"]["state"] == "running");
    assert_eq!(state(&next), before, "{}", next.logs());
    assert_eq!(
        next.exec_agent("cd /workspace/repo; ls *.o; git fsck --strict --no-dangling").out,
        "",
        "ignored files stay away"
    );
    let persist = &restored["persist"];
    assert!(persist["restored"].as_str().unwrap().contains("1 repository"), "{persist}");
    let repository = &restored["repositories"][0];
    assert_eq!(
        (repository["path"].as_str(), repository["state"].as_str()),
        (Some("/workspace/repo"), Some("cloned"))
    );
    let steps = restored["boot"]["steps"].as_array().unwrap().clone();
    assert!(steps.iter().any(|step| step["name"] == "restore" && step["state"] == "ok"), "{steps:?}");
    let owners = next.exec_root("find /workspace /persist ! -uid 1000 | head").expect("owners");
    assert_eq!(owners, "", "everything is the agent's");
    let screen = next.innkeeper(&["status"]).expect("status");
    assert!(screen.contains("Saved to /persist"), "{screen}");
}

#[test]
fn save_says_what_it_saved_and_a_save_of_nothing_new_is_none() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&with(&rig.volume()));
    guest.exec_agent(REPOSITORY).expect("a repository");
    let said = guest.innkeeper(&["save"]).expect("save");
    assert!(said.contains("saved 1 repository, 6 files in no commit"), "{said}");
    assert_eq!(saves(&guest).len(), 1);
    let said = guest.innkeeper(&["save"]).expect("save");
    assert!(said.contains("nothing has changed"), "{said}");
    assert_eq!(saves(&guest).len(), 1);
    // A commit is an increment; what it takes is small.
    guest.exec_agent("cd /workspace/repo && git commit -qm second").expect("a commit");
    let json: serde_json::Value =
        serde_json::from_str(&guest.innkeeper(&["save", "--json"]).expect("save --json")).unwrap();
    assert_eq!((json["schema"].as_u64(), json["path"].as_str()), (Some(1), Some("/persist")));
    assert!(json["saved_at"].is_string() && json["trouble"].is_null(), "{json}");
    for number in 0..4 {
        guest.exec_agent(&format!("cd /workspace/repo && echo {number} >more")).expect("a change");
        guest.innkeeper(&["save"]).expect("save");
    }
    assert_eq!(saves(&guest).len(), 3, "the last three are kept");
    let refused = guest.exec_program(AGENT, &["innkeeper", "save"]);
    assert_eq!(refused.code, Some(77), "{refused:?}");
    let left = guest.exec_agent("ls /persist/innkeeper").expect("the volume");
    assert_eq!(left, "aside\nlock\nobjects\nsaves\n");
}

#[test]
fn without_a_volume_it_is_said_what_would_be_lost() {
    let Some(rig) = Rig::new() else { return };
    let options = BoxOptions::new().env("REPO_URL", "https://github.com/acme/widgets");
    let guest = rig.boot(&options);
    // Not by `status`, which would have it looked at before there is anything.
    assert!(guest.await_line("is running").is_some());
    guest.exec_agent("cd /workspace/repo && echo x >new && echo y >>README.md && git commit -qm mine README.md && echo z >>README.md")
        .expect("work");
    let status = guest.await_status("a look", |status| status["persist"]["at_risk"][0]["files"] == 2);
    let risk = &status["persist"]["at_risk"][0];
    assert_eq!((risk["path"].as_str(), risk["commits"].as_u64()), (Some("/workspace/repo"), Some(1)));
    assert!(status["persist"]["path"].is_null());
    let screen = guest.innkeeper(&["status"]).expect("status");
    assert!(screen.contains("Lost with the box"), "{screen}");
    assert_eq!(guest.innkeeper(&["save"]).code, Some(78));
}

#[test]
fn the_timer_saves_what_is_new() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&with(&rig.volume()).env("INNKEEPER_PERSIST_INTERVAL", "2s"));
    guest.exec_agent(REPOSITORY).expect("a repository");
    assert!(guest.await_line("persist: saved 1 repository").is_some());
    guest.exec_agent("echo x >/workspace/repo/by-timer").expect("a change");
    assert!(guest.await_line("persist: saved 1 repository").is_some());
}

/// What a box leaves that is killed in the midst of a save is the save before, whole.
#[test]
fn a_box_that_is_killed_while_it_saves_leaves_the_save_before() {
    let Some(rig) = Rig::new() else { return };
    let volume = rig.volume();
    let guest = rig.boot(&with(&volume));
    guest.exec_agent(REPOSITORY).expect("a repository");
    guest.innkeeper(&["save"]).expect("save");
    let before = state(&guest);
    guest
        .exec_agent(
            "cd /workspace/repo && head -c 60M /dev/urandom >large && git add large && git commit -qm large",
        )
        .expect("a large commit");
    // Its work directory shows that it is under way; there it stands until the box is gone.
    let midst = "innkeeper save & s=$!; while kill -0 $s; do \
                 find /persist/innkeeper -name 'new-*' -size +1M 2>/dev/null | grep -q . && \
                 pkill -STOP -f 'persist-[s]ave' && exit 0; done; exit 1";
    guest.exec_root(midst).expect("the midst of a save");
    super::rig::must("docker", &["kill", "-s", "KILL", &guest.name]);
    let next = rig.boot(&with(&volume));
    next.await_session();
    let after = state(&next);
    assert_eq!(saves(&next).len(), 1, "the save was over before the kill");
    assert_eq!(after, before, "{}", next.logs());
    // What was cut off is cleared away.
    next.innkeeper(&["save"]).expect("save");
    assert_eq!(
        next.exec_agent("ls /persist/innkeeper").expect("the volume"),
        "aside\nlock\nobjects\nsaves\n"
    );
}

#[test]
fn a_full_volume_is_trouble_and_nothing_else() {
    let Some(rig) = Rig::new() else { return };
    let options = BoxOptions::new().docker(&["--tmpfs", "/persist:size=3m"]);
    let guest = rig.boot(&options);
    guest.exec_agent(REPOSITORY).expect("a repository");
    guest.innkeeper(&["save"]).expect("save");
    let kept = saves(&guest);
    guest.exec_agent("cd /workspace/repo && head -c 10M /dev/urandom >large").expect("a large file");
    let said = guest.innkeeper(&["save"]);
    assert_eq!(said.code, Some(75), "{said:?}");
    assert!(said.err.contains("No space left"), "{said:?}");
    assert_eq!(saves(&guest), kept);
    let status = guest.status();
    assert!(
        status["persist"]["trouble"].as_str().unwrap().contains("No space left"),
        "{}",
        status["persist"]
    );
    assert!(guest.innkeeper(&["status"]).expect("status").contains("NOT SAVED"));
    guest.exec_agent("rm /workspace/repo/large").expect("room");
    guest.innkeeper(&["save"]).expect("save");
    assert!(guest.status()["persist"]["trouble"].is_null());
}

/// The limit of persist.size: a file that is too large is left out and named, the rest is saved.
#[test]
fn what_is_larger_than_the_limit_is_left_out_by_its_name() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&with(&rig.volume()).env("INNKEEPER_PERSIST_SIZE", "1M"));
    guest.exec_agent(REPOSITORY).expect("a repository");
    guest.exec_agent("cd /workspace/repo && head -c 10M /dev/urandom >large").expect("a large file");
    let said = guest.innkeeper(&["save"]).expect("save");
    assert!(said.contains("not saved: repo/large: it would take more than"), "{said}");
    assert_eq!(saves(&guest).len(), 1);
}

/// H9: what is not restored yet is not replaced: not by the end of a box that never got its task, and not by `innkeeper save`.
#[test]
fn a_box_that_waits_for_its_task_saves_nothing_over_the_work() {
    let Some(rig) = Rig::new() else { return };
    let volume = rig.volume();
    let guest = rig.boot(&with(&volume));
    guest.exec_agent(REPOSITORY).expect("a repository");
    let before = state(&guest);
    assert_eq!(guest.stop(), 143);

    let waits = rig.boot(&with(&volume).env("INNKEEPER_SESSION_START", "wait"));
    waits.await_status("waiting", |status| status["session"]["state"] == "parked");
    let said = waits.innkeeper(&["save"]);
    assert_eq!(said.code, Some(75), "{said:?}");
    assert!(said.err.contains("has not been restored yet"), "{said:?}");
    assert_eq!(waits.stop(), 143);
    assert!(waits.logs().contains("persist: not saved: what the volume holds"), "{}", waits.logs());

    let next = rig.boot(&with(&volume));
    next.await_session();
    assert_eq!(saves(&next).len(), 1);
    assert_eq!(state(&next), before, "{}", next.logs());
}

/// H10: what did not come back stays on the volume, whatever this box saves, and even if it clones to the same place.
#[test]
fn what_did_not_come_back_stays_saved() {
    let Some(rig) = Rig::new() else { return };
    let volume = rig.volume();
    let guest = rig.boot(&with(&volume));
    guest.exec_agent(REPOSITORY).expect("a repository");
    guest.exec_agent("head -c 9M /dev/urandom >/workspace/repo/large").expect("a large file");
    let before = state(&guest);
    assert_eq!(guest.stop(), 143);

    let small = with(&volume).env("INNKEEPER_FILESYSTEM_WORKSPACE_SIZE", "5M");
    let full = rig.boot(&small.env("REPO_URL", "https://github.com/acme/widgets"));
    let status = full.await_session();
    assert_eq!(status["repositories"][0]["state"], "cloned", "{}", full.logs());
    assert!(full.logs().contains("did not come back"), "{}", full.logs());
    let kept = "repo: it did not come back; it stays as it was saved, as repo.unrestored";
    for number in 0..4 {
        full.exec_agent(&format!("echo {number} >/workspace/repo/work-after")).expect("new work");
        let said = full.innkeeper(&["save"]).expect("save");
        assert!(said.contains(kept), "{said}");
    }
    let left_out = full.status()["persist"]["left_out"].to_string();
    assert!(left_out.contains(kept), "{left_out}");
    assert_eq!(full.stop(), 143);

    let next = rig.boot(&with(&volume));
    next.await_session();
    assert_eq!(next.exec_agent("cat /workspace/repo/work-after").expect("new work"), "3\n");
    next.exec_agent("cd /workspace && rm -r repo && mv repo.unrestored repo").expect("the older work");
    assert_eq!(state(&next), before, "{}", next.logs());
}
