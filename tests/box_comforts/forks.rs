//! Forks: the upstream is found out, and a fork follows it where that is switched on.

use serde_json::json;

use super::rig::{Rig, must};
use super::{await_so, await_turn, bash, done, results, task};

#[test]
fn a_fork_gets_its_upstream_and_others_get_none() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([
        bash("git remote -v; cat /run/innkeeper/etc/remotes; echo x > /run/innkeeper/etc/remotes"),
        done()
    ]));
    let guest = rig.boot(&task().env("REPO_URL", "https://github.com/octo/widgets"));
    let found = results(&await_turn(&guest, &rig.world, 1));
    assert!(found[0].contains("upstream\thttps://github.com/acme/widgets (fetch)"), "{}", found[0]);
    assert!(found[0].contains("/workspace/repo\thttps://github.com/octo/widgets"), "{}", found[0]);
    assert!(found[0].contains("Read-only") || found[0].contains("ermission denied"), "{}", found[0]);
    guest.stop();
    rig.world.script(&json!([bash("git remote"), done()]));
    let guest = rig.boot(&task());
    await_so("a second box", || guest.running());
    let until = || super::messages(&rig.world).iter().filter(|message| message["turn"] == 1).count() == 2;
    await_so("its turn", until);
    let last = super::messages(&rig.world).pop().unwrap();
    assert_eq!(results(&last)[0].trim(), "origin");
}

#[test]
fn a_fork_follows_its_upstream_only_where_that_is_switched_on() {
    let Some(rig) = Rig::new() else { return };
    rig.world.script(&json!([done()]));
    let forge = |name: &str| rig.world.dir.join(format!("git/{name}.git")).display().to_string();
    let head = |name: &str| must("git", &["-C", &forge(name), "rev-parse", "main"]);
    let options = || task().env("REPO_URL", "https://github.com/octo/widgets");
    // The upstream goes on; what the fork has of its own is in the way.
    let work = rig.dir.join("upstream").display().to_string();
    must("git", &["clone", "-q", &forge("acme/widgets"), &work]);
    let who = ["-c", "user.name=U", "-c", "user.email=u@ok.test", "-C", &work];
    let news = || {
        must("git", &[&who[..], &["commit", "-q", "--allow-empty", "-m", "news"]].concat());
        must("git", &[&who[..], &["push", "-q", "origin", "HEAD:main"]].concat());
    };
    news();
    let own = head("octo/widgets");
    let syncs = || options().env("INNKEEPER_CLAUDE_SYNC_FORK", "on");
    let asked = || {
        let log = rig.world.log("api");
        log.iter()
            .filter(|line| line["target"].as_str().is_some_and(|at| at.ends_with("/merge-upstream")))
            .count()
    };
    let guest = rig.boot(&syncs());
    await_so("a try", || asked() == 1);
    assert_eq!(head("octo/widgets"), own, "never forced");
    guest.stop();
    let same = format!("+{}", "main:main");
    must("git", &["-C", &forge("octo/widgets"), "fetch", "-q", &forge("acme/widgets"), &same]);
    news();
    let old = head("octo/widgets");
    assert_ne!(old, head("acme/widgets"));
    let guest = rig.boot(&options());
    await_turn(&guest, &rig.world, 0);
    guest.await_status("the end of the turn", |status| status["session"]["state"] == "waiting");
    assert_eq!((head("octo/widgets"), asked()), (old, 1), "off unless it is switched on");
    guest.stop();
    let guest = rig.boot(&syncs());
    await_so("the fork follows", || head("octo/widgets") == head("acme/widgets"));
    let here = || guest.exec_agent("git -C /workspace/repo log -1 --format=%s").out;
    await_so("the clone follows", || here().trim() == "news");
}
