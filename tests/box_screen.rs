//! What an operator and the agent see of a box: the live screen and its keys, what is used up, octets, and the morning
//! page. The real image on the fake internet; the operator's terminal is a pseudo-terminal whose every byte counts.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends by panicking; clippy.toml exempts test functions but not what they share"
)]

#[path = "support/rig.rs"]
mod rig;
#[path = "box_session/terminal.rs"]
#[expect(dead_code, reason = "shared with the tests of the session, which use all of it")]
mod terminal;

use std::time::{Duration, Instant};

use rig::{AGENT, BoxOptions, Rig, RunningBox, host};
use serde_json::Value;
use terminal::Terminal;

/// An operator's `innkeeper status --watch`, or somebody else's.
fn watch(guest: &RunningBox, user: &str, cols: u16, rows: u16) -> Terminal {
    let argv = ["docker", "exec", "-it", "-u", user, &guest.name, "innkeeper", "status", "--watch"];
    let mut terminal = Terminal::run(&argv, cols, rows);
    terminal.sees("q quit");
    terminal
}

/// Whether the agent gets a page of this name's web server, judged by the server's own token.
fn reaches(guest: &RunningBox, name: &str, server: &str) -> bool {
    let page = guest.exec_agent(&format!("curl -sS -m 5 http://{name}/"));
    page.out.contains(&format!("token-{}", host(server)))
}

fn denied<'a>(status: &'a Value, what: &str) -> Option<&'a Value> {
    status["denials"].as_array()?.iter().find(|denial| denial["what"].as_str().unwrap().starts_with(what))
}

#[test]
fn a_key_opens_what_was_refused_for_an_hour_and_everybody_sees_who_and_until_when() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    assert!(reaches(&guest, "ok.test", "ok"), "the rig reaches what is allowed");
    assert!(!reaches(&guest, "two.test", "ok"));
    guest.await_status("the denial", |status| denied(status, "two.test").is_some());
    let mut terminal = watch(&guest, "0", 100, 30);
    terminal.sees("two.test");
    terminal.keys("a");
    // The dialogue has the whole rule, and Enter decides nothing.
    terminal.sees("Allow two.test?");
    terminal.keys("\r");
    terminal.forget();
    terminal.keys("y");
    let status = guest.await_status("the rule", |status| {
        let rules = status["policy"]["rules"].as_array();
        rules.is_some_and(|rules| {
            rules.iter().any(|rule| rule["rule"] == "two.test:443" || rule["rule"] == "two.test")
        })
    });
    let rules = status["policy"]["rules"].as_array().unwrap();
    let rule = rules.iter().find(|rule| rule["rule"].as_str().unwrap().starts_with("two.test")).unwrap();
    assert_eq!(rule["origin"], "operator");
    assert!(rule["expires_at"].as_str().is_some(), "for an hour: {rule}");
    let page = guest.exec_agent("curl -sSk -m 5 https://two.test/");
    assert!(page.out.contains(&format!("token-{}", host("ok"))), "open now: {page:?}");
    let log = guest.innkeeper(&["log"]).expect("log");
    assert!(log.contains("two.test"), "{log}");
    terminal.keys("q");
    assert_eq!(terminal.ends(), 0);
    assert!(terminal.is_restored());
}

#[test]
fn however_it_ends_the_terminal_is_as_it_was() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    for end in ["q", "\x03", "TERM", "HUP", "INT"] {
        let mut terminal = watch(&guest, "0", 80, 24);
        assert!(!terminal.is_restored(), "it is in raw mode");
        terminal.forget();
        let code = if end.len() > 1 {
            guest.exec_root(&format!("pkill -{end} -f '^innkeeper status --watch'")).expect("pkill");
            terminal.ends();
            None
        } else {
            terminal.keys(end);
            Some(terminal.ends())
        };
        assert!(code.is_none_or(|code| code == 0), "{end:?}: {code:?}");
        for restored in ["\x1b[?1049l", "\x1b[?25h", "\x1b[0m", "\x1b[?7h"] {
            assert!(terminal.saw(restored), "{end:?}: {restored:?} in {:?}", terminal.text());
        }
        assert!(terminal.is_restored(), "{end:?}");
    }
    // The other end of the terminal goes away: nothing is left running.
    let terminal = watch(&guest, "0", 80, 24);
    drop(terminal);
    let left = || guest.exec_root("pgrep -fc '^innkeeper status --watch'").out.trim().to_owned();
    let until = Instant::now() + rig::PATIENCE;
    while left() != "0" {
        // The engine's client was killed, and with it the engine's end of the terminal; some engines leave the program
        // running then, which must end when it writes.
        assert!(Instant::now() < until, "{} still run", left());
        guest.exec_root("pkill -HUP -f '^innkeeper status --watch'");
    }
    let no_terminal = guest.innkeeper(&["status", "--watch"]);
    assert_eq!(no_terminal.code, Some(64));
    assert!(no_terminal.err.contains("not a terminal"), "{no_terminal:?}");
}

#[test]
fn any_size_is_drawn_and_a_box_that_goes_away_is_said() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let mut terminal = watch(&guest, "0", 80, 24);
    for (cols, rows) in [(20, 6), (5, 2), (1, 1), (300, 90), (80, 24)] {
        terminal.resize(cols, rows);
        terminal.forget();
        terminal.keys("?x");
    }
    terminal.sees("q quit");
    // Root alone can do this; it is how a box looks whose PID 1 answers no more.
    terminal.forget();
    guest.exec_root("mv /run/innkeeper/control.sock /run/innkeeper/away").expect("mv");
    terminal.sees("the box does not answer");
    terminal.forget();
    guest.exec_root("mv /run/innkeeper/away /run/innkeeper/control.sock").expect("mv");
    terminal.sees("q quit");
    terminal.keys("q");
    assert_eq!(terminal.ends(), 0);
    let mut terminal = watch(&guest, "0", 80, 24);
    guest.stop();
    terminal.ends();
}

/// What the agent is told of its box.
#[test]
fn the_agent_sees_what_it_needs_and_not_who_looks_on() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().env("INNKEEPER_NETWORK_REQUESTS", "queue"));
    guest.exec_agent("getent hosts evil.test");
    guest.exec_root("getent hosts roots.evil.test");
    let mut visitor = Terminal::run(&["docker", "exec", "-it", &guest.name, "innkeeper", "attach"], 80, 24);
    visitor.sees("Leave with");
    let operators = |status: &Value| status["operators"].as_array().is_some_and(|all| !all.is_empty());
    let full = guest.await_status("the denials and a visitor", |status| {
        denied(status, "evil.test").is_some()
            && denied(status, "roots.evil.test").is_some()
            && operators(status)
    });
    assert!(full["warnings"].as_array().is_some_and(|all| !all.is_empty()));
    let told = guest.as_session("innkeeper status --json").expect("the agent's status");
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["audience"], "agent");
    for empty in ["operators", "warnings"] {
        assert_eq!(told[empty].as_array().unwrap().len(), 0, "{empty}: {told:#}");
    }
    assert_eq!(told["dns"]["upstreams"].as_array().unwrap().len(), 0);
    assert!(!told.to_string().contains("9.9.9.53"), "whom the box asks: {told:#}");
    assert!(denied(&told, "roots.evil.test").is_none(), "what root was refused");
    assert_eq!(denied(&told, "evil.test").unwrap()["allow"], "innkeeper request evil.test --reason WHY");
    assert!(
        told["protections"].as_array().unwrap().iter().all(|one| one["held"] == true && one["detail"] == "")
    );
    let screen = guest.as_session("innkeeper status").expect("the agent's screen");
    assert!(
        screen.contains("innkeeper request evil.test") && !screen.contains("innkeeper allow"),
        "{screen}"
    );
    assert!(!guest.as_session("innkeeper report").ok(), "the morning page is the operator's");
    let mut terminal = watch(&guest, AGENT, 80, 24);
    assert!(!terminal.saw("a allow"), "{}", terminal.text());
    terminal.keys("a");
    terminal.sees("only the operator decides");
    terminal.keys("q");
    assert_eq!(terminal.ends(), 0);
    visitor.keys("\x02d");
    visitor.ends();
}

/// Somebody who is root in the box's network takes our table away: within ten seconds the operator knows.
#[test]
fn a_rule_that_root_removed_shows_within_ten_seconds() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    if !rig.inside("nft list table inet innkeeper").ok() {
        // Boxes on iptables have no such table.
        return;
    }
    assert_eq!(guest.innkeeper(&["status", "--check", "ready"]).code, Some(0));
    let removed = Instant::now();
    rig.inside("nft delete table inet innkeeper").expect("deleting the table");
    let told = |status: &Value| {
        let protections = status["protections"].as_array();
        let open = protections.is_some_and(|all| all.iter().any(|one| one["held"] == false));
        open || status["warnings"].to_string().contains("somebody changed")
            || guest.logs().contains("somebody changed")
    };
    guest.await_status("word of it", told);
    let took = removed.elapsed();
    assert!(took < Duration::from_secs(10), "told after {took:?}");
    guest.await_status("the repair", |_| rig.inside("nft list table inet innkeeper").ok());
    assert!(!reaches(&guest, "two.test", "ok") && reaches(&guest, "ok.test", "ok"));
}

/// Every place of the agent's is full: what is refused stays refused, what is allowed works, and it is said.
#[test]
fn f17_a_full_disk_stops_nothing_and_shows() {
    let Some(rig) = Rig::new() else { return };
    let small = |name: &str| format!("INNKEEPER_FILESYSTEM_{name}_SIZE");
    let options = ["WORKSPACE", "TMP", "HOME"]
        .iter()
        .fold(BoxOptions::new(), |options, name| options.env(&small(name), "16M"));
    let guest = rig.boot(&options);
    assert!(reaches(&guest, "ok.test", "ok") && !reaches(&guest, "two.test", "ok"));
    let places = "/tmp /workspace ~ /run/user/1000 /dev/shm";
    guest.exec_agent(&format!("for d in {places}; do cat /dev/zero >$d/fill 2>/dev/null; for i in $(seq 3000); do : >$d/i$i || break; done 2>/dev/null; done"));
    let full = |status: &Value, path: &str| {
        status["warnings"]
            .as_array()
            .is_some_and(|all| all.iter().any(|one| one.as_str().unwrap().starts_with(path)))
    };
    let status = guest.await_status("the warnings", |status| {
        ["/tmp", "/workspace", "/home/claude"].iter().all(|path| full(status, path))
    });
    let mounts = status["resources"]["mounts"].as_array().unwrap();
    let tmp = mounts.iter().find(|fill| fill["path"] == "/tmp").unwrap();
    assert!(tmp["used"].as_u64() >= tmp["size"].as_u64().map(|size| size * 9 / 10), "{tmp}");
    let own = mounts.iter().find(|fill| fill["path"] == "/run/innkeeper").unwrap();
    assert!(
        own["used"].as_u64().unwrap() < own["size"].as_u64().unwrap() / 2,
        "Innkeeper's own place is its own: {own}"
    );
    assert!(reaches(&guest, "ok.test", "ok") && !reaches(&guest, "two.test", "ok"));
    guest.innkeeper(&["allow", "two.test:80", "--for", "1h"]).expect("policy goes on");
    assert!(reaches(&guest, "two.test", "ok"));
    guest.innkeeper(&["reload"]).expect("reload");
    assert!(guest.innkeeper(&["log"]).expect("log").contains("% full"), "an event");
    let screen = guest.innkeeper(&["status"]).expect("status");
    assert!(screen.contains("! /tmp is ") && screen.contains("Refused"), "{screen}");
    guest.exec_agent(&format!("for d in {places}; do rm -rf $d/fill $d/i*; done"));
    guest.await_status("room", |status| !full(status, "/tmp") && !full(status, "/workspace"));
    assert!(guest.innkeeper(&["log"]).expect("log").contains("/tmp has room again"));
}

#[test]
fn octets_are_counted_by_name() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new());
    let before =
        |status: &Value| row(status, "ok.test", 80).map_or(0, |row| row["bytes_out"].as_u64().unwrap());
    let start = before(&guest.status());
    // A body of known length; the request's head is a little more.
    guest
        .exec_agent(
            "head -c 50000 /dev/zero | curl -sS -m 10 -X POST --data-binary @- -H Expect: http://ok.test/",
        )
        .expect("a POST");
    let status = guest.await_status("the octets", |status| before(status) >= start + 50_000);
    let counted = before(&status) - start;
    assert!((50_000..51_000).contains(&counted), "{counted}");
    assert!(row(&status, "ok.test", 80).unwrap()["bytes_in"].as_u64().unwrap() > 0);
    assert_eq!(status["traffic_note"], Value::Null);
    assert!(
        status["traffic"].as_array().unwrap().iter().all(|row| row["port"] != 53),
        "questions stay inside"
    );
}

fn row<'a>(status: &'a Value, name: &str, port: u16) -> Option<&'a Value> {
    status["traffic"].as_array()?.iter().find(|row| row["name"] == name && row["port"] == port)
}

/// Who was killed for want of memory is told as far as it is known.
#[test]
fn a_process_that_memory_ended_is_counted() {
    let Some(rig) = Rig::new() else { return };
    let guest = rig.boot(&BoxOptions::new().docker(&["--memory", "256m", "--memory-swap", "256m"]));
    let memory = guest.await_status("a look", |status| !status["resources"]["memory"].is_null());
    assert_eq!(memory["resources"]["memory"]["limit"], 256 << 20);
    guest.exec_agent("python3 -c 'x = bytearray(512 << 20)'");
    let status = guest.await_status("the kill", |status| status["resources"]["oom_kills"].as_u64() > Some(0));
    assert!(guest.innkeeper(&["log"]).expect("log").contains("memory was used up"), "{status:#}");
    assert!(guest.innkeeper(&["status"]).expect("status").contains("Out of memory"));
}

#[test]
fn t77_the_morning_page_has_commits_refusals_and_runs_nothing_of_the_repositorys() {
    let Some(rig) = Rig::new() else { return };
    let options = BoxOptions::new()
        .env("REPO_URL", "https://github.com/acme/widgets")
        .env("INNKEEPER_SESSION_ON_EXIT", "shell");
    let guest = rig.boot(&options);
    guest.await_status("the clone", |status| status["repositories"][0]["state"] == "cloned");
    let script = "cd /workspace/repo && echo one >>new.txt && git add new.txt && git commit -qm 'Add \x1b[31mnew' && echo two >other.txt";
    guest.as_session(script).expect("a commit");
    // A repository that would like to be executed, by root at best.
    guest.as_session("cd /workspace/repo && git config core.fsmonitor 'id >/tmp/pwned; false' && git config core.pager 'id >/tmp/pwned' && git config core.hooksPath /tmp/hooks").expect("git config");
    guest.exec_agent("getent hosts evil.test; curl -sS -m 5 http://ok.test/ >/dev/null");
    guest.await_status("the denial", |status| denied(status, "evil.test").is_some());
    // The gate tells once a second what it carried.
    guest.await_status("the octets", |status| status["traffic"].to_string().contains("ok.test"));
    let json: Value = serde_json::from_str(&guest.innkeeper(&["report", "--json"]).expect("report")).unwrap();
    let repository = &json["repositories"][0];
    assert_eq!(repository["path"], "/workspace/repo");
    assert_eq!(
        (&repository["commit_count"], &repository["untracked"]),
        (&1.into(), &1.into()),
        "{repository:#}"
    );
    assert_eq!(repository["commits"][0]["insertions"], 1);
    assert_eq!(repository["unpushed"], 1);
    assert!(json["denied"].as_array().unwrap().iter().any(|one| one["what"] == "evil.test"));
    assert!(json["traffic"].as_array().unwrap().iter().any(|one| one["name"] == "ok.test"));
    assert!(!json["session"]["times"].as_array().unwrap().is_empty());
    for args in [&["report"][..], &["report", "--md"]] {
        let text = guest.innkeeper(args).expect("report");
        assert!(text.contains("evil.test") && text.contains(" commit"), "{text}");
        assert!(!text.contains('\x1b'), "{text:?}");
    }
    assert!(!guest.exec_root("cat /tmp/pwned").ok(), "something of the repository was executed");
    assert_eq!(guest.innkeeper(&["report", "--since", "nonsense"]).code, Some(64));
    // It hangs on purpose: the page comes all the same, and says so.
    guest.as_session("cd /workspace/repo && git config filter.x.clean 'sleep 1000' && echo '* filter=x' >.gitattributes && touch -d 2001-01-01 README*").expect("a filter");
    let text = guest.innkeeper(&["report"]).expect("report");
    assert!(text.contains("evil.test") && text.contains("git status took too long"), "{text}");
}
