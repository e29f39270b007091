use super::page::{Style, render};
use super::work::{Commit, RepositoryWork};
use super::{Morning, tell};
use crate::audit::{Coming, Entry, PolicyChange, Refused, SessionChange, Visit, What};
use crate::status::audience::tests::full;
use crate::status::report::SessionState;

fn at(seq: u64, time: &str, what: What) -> Entry {
    Entry { schema: 1, seq, time: format!("2026-11-21T{time}.000Z"), what }
}

fn session(seq: u64, time: &str, state: SessionState, detail: &str) -> Entry {
    at(seq, time, What::Session(SessionChange { state, detail: detail.into(), claude_pid: None }))
}

fn visit(seq: u64, time: &str, action: Coming) -> Entry {
    at(seq, time, What::Operator(Visit { id: 1, action, place: "session".into(), read_only: true }))
}

fn refused(seq: u64, time: &str, target: &str, count: u64) -> Entry {
    let time_of = format!("2026-11-21T{time}.000Z");
    let refused = Refused {
        layer: "dns".into(),
        target: target.into(),
        uid: Some(1000),
        process: None,
        reason: "not in the allowlist".into(),
        allow: format!("innkeeper allow {target}"),
        first: time_of.clone(),
        last: time_of,
        count,
    };
    at(seq, time, What::Denied(refused))
}

fn night() -> Vec<Entry> {
    let change = PolicyChange {
        generation: 2,
        rules: 3,
        by: "the operator".into(),
        change: "allowed a.test\nallowed b.test".into(),
    };
    vec![
        session(1, "01:00:00", SessionState::Starting, ""),
        session(2, "01:00:10", SessionState::Running, ""),
        refused(3, "02:00:00", "few.test", 1),
        refused(4, "02:30:00", "many.test", 90),
        at(5, "03:00:00", What::Policy(change)),
        visit(6, "04:00:00", Coming::Entered),
        visit(7, "04:10:00", Coming::Left),
        session(8, "05:00:10", SessionState::Exited, "Claude Code ended (exit status 0)"),
    ]
}

fn repository() -> RepositoryWork {
    let commit = Commit {
        id: "abc1234".into(),
        time: 1_795_000_000,
        author: "Claude".into(),
        subject: "Fix <script> [x](http://evil.test) @everybody `id`".into(),
        files: 2,
        insertions: 10,
        deletions: 3,
    };
    RepositoryWork {
        path: "/workspace/repo".into(),
        branch: Some("main".into()),
        commits: vec![commit; 20],
        commit_count: 20,
        unpushed: Some(2),
        files: 40,
        insertions: 200,
        deletions: 60,
        changed: 1,
        untracked: 4,
        trouble: None,
    }
}

pub(crate) fn morning(from: Option<&str>) -> Morning {
    let mut report = full();
    report.session.state = SessionState::Exited;
    report.session.detail = "Claude Code ended (exit status 0)".into();
    report.session.last_message = Some("All done.\n\nSee **main**.".into());
    tell(report, &night(), vec![repository()], from, "2026-11-21T07:00:10.000Z")
}

#[test]
fn states_have_their_times_and_it_says_why_it_stopped() {
    let told = morning(None);
    assert_eq!(told.from, "2026-11-21T01:00:00.000Z");
    let times: Vec<_> = told.session.times.iter().map(|time| (time.state, time.seconds)).collect();
    assert_eq!(
        times,
        [(SessionState::Running, 14_400), (SessionState::Exited, 7_200), (SessionState::Starting, 10)]
    );
    assert_eq!(told.session.why, "Claude Code ended (exit status 0)");
    let denied: Vec<_> = told.denied.iter().map(|one| (one.what.as_str(), one.count)).collect();
    assert_eq!(denied, [("many.test", 90), ("few.test", 1)], "the most first");
    assert_eq!(told.visits.len(), 1);
    assert!(told.visits[0].from.is_some() && told.visits[0].to.is_some() && told.visits[0].read_only);
    assert_eq!(told.changes[0].change, "allowed a.test; allowed b.test");
    assert!(told.notes.is_empty());
}

#[test]
fn since_a_time_only_what_was_then() {
    let told = morning(Some("2026-11-21T04:05:00.000Z"));
    assert!(told.denied.is_empty() && told.changes.is_empty());
    let times: Vec<_> = told.session.times.iter().map(|time| (time.state, time.seconds)).collect();
    assert_eq!(times, [(SessionState::Exited, 7_200), (SessionState::Running, 3_310)], "cut at the time");
    assert_eq!((told.visits[0].from.as_ref(), told.visits[0].to.is_some()), (None, true), "was here before");
}

#[test]
fn the_page_fits_a_terminal_and_has_everything() {
    for width in [40, 80, 120] {
        let text = render(&morning(None), Style::Text { width });
        assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
    }
    let text = render(&morning(None), Style::Text { width: 100 });
    for word in [
        "Session: exited since",
        "running 4 h, exited 2 h, starting 10 s",
        "All done.",
        "/workspace/repo on main: 20 commits, 40 files, +200 −60",
        "2 commits not pushed, 1 file changed and not committed, 4 files that git does not know",
        "… 8 more: innkeeper report --json",
        "many.test (90×, dns); innkeeper allow many.test",
        "session from 04:00:00Z to 04:10:00Z, looking only",
        "shown-request.test pending",
    ] {
        assert!(text.contains(word), "{word}:\n{text}");
    }
}

#[test]
fn in_markdown_the_agents_words_are_words() {
    let text = render(&morning(None), Style::Markdown);
    assert!(text.contains("## Session: exited since"), "{text}");
    let outside = without_code(&text);
    for word in ["script", "evil.test", "@everybody", "**main**", "All done", "/workspace/repo", "http"] {
        assert!(text.contains(word) && !outside.contains(word), "{word}:\n{outside}");
    }
}

/// What is left of a page when its code spans are taken out, as CommonMark finds them: to the next run of the same length.
fn without_code(text: &str) -> String {
    let mut left = String::new();
    for line in text.lines() {
        let mut rest = line;
        while let Some(at) = rest.find('`') {
            left.push_str(&rest[..at]);
            let run = rest[at..].chars().take_while(|c| *c == '`').count();
            let mut inside = &rest[at + run..];
            loop {
                let end = inside.find('`').expect("a code span ends in its line");
                let close = inside[end..].chars().take_while(|c| *c == '`').count();
                inside = &inside[end + close..];
                if close == run {
                    break;
                }
            }
            rest = inside;
        }
        left.push_str(rest);
        left.push('\n');
    }
    left
}

#[test]
fn no_forge_makes_a_link_of_the_agents_words() {
    for words in [
        "https://evil.test",
        "www.evil.test",
        "@user",
        "#1",
        "a ` b `` c ``` www.evil.test",
        "`",
        "``` x",
        "x\r\n# y",
    ] {
        let mut told = morning(None);
        told.session.last_message = Some(format!("{words}\nand\n"));
        told.session.why = words.into();
        told.repositories[0].branch = Some(words.into());
        told.repositories[0].commits[0].subject = words.into();
        told.denied[0].what = words.into();
        told.name = words.into();
        let outside = without_code(&render(&told, Style::Markdown));
        for bad in ["http", "www", "@", "#1", "user", "x", "y\n"] {
            let heads = outside.replace("exited", "").replace("policy\n", "").replace("of the policy", "");
            assert!(!heads.contains(bad), "{words:?} {bad}:\n{outside}");
        }
    }
}

#[test]
fn a_refusal_that_was_counted_up_is_told_once_and_who_is_here_is_told() {
    let mut entries = night();
    entries.push(refused(9, "06:00:00", "few.test", 7));
    let mut report = full();
    report.operators[0].id = 9;
    let told = tell(report, &entries, Vec::new(), None, "2026-11-21T07:00:10.000Z");
    let few: Vec<u64> =
        told.denied.iter().filter(|one| one.what == "few.test").map(|one| one.count).collect();
    assert_eq!(few, [7]);
    let stays: Vec<_> = told.visits.iter().map(|stay| (stay.id, stay.to.is_some())).collect();
    assert_eq!(stays, [(1, true), (9, false)]);
}

#[test]
fn an_empty_night_is_a_page_too() {
    let told = tell(full(), &[], Vec::new(), None, "2026-11-21T07:00:10.000Z");
    let text = render(&told, Style::Text { width: 80 });
    assert!(text.contains("Nothing was refused"), "{text}");
    serde_json::from_str::<Morning>(&serde_json::to_string(&told).unwrap()).unwrap();
}
