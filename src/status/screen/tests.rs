use std::time::{Duration, SystemTime};

use super::{Frame, render};
use crate::status::Board;
use crate::status::audience::{for_agent, tests::full};
use crate::status::report::{
    AccessRequest, Audit, BoxIdentity, Denial, Fill, Memory, Operator, Phase, PolicyRule, Protection, Report,
    Repository, RepositoryState, RequestState, Resources, SecretHeld, SessionState, Traffic, Upstream,
};

const TIME: &str = "2026-11-21T08:00:00.000Z";

fn now() -> SystemTime {
    humantime::parse_rfc3339("2026-11-21T08:00:07.500Z").unwrap()
}

fn denial(what: &str) -> Denial {
    Denial {
        time: TIME.into(),
        layer: "dns".into(),
        what: what.into(),
        uid: Some(1000),
        process: Some("curl".into()),
        reason: "not in the allowlist".into(),
        count: 3,
        allow: format!("innkeeper allow {what}"),
    }
}

fn protection(name: &str, held: bool) -> Protection {
    Protection {
        name: name.into(),
        held,
        how: "nftables".into(),
        verified_at: TIME.into(),
        detail: "4 attempts refused".into(),
    }
}

fn rule(i: u32) -> PolicyRule {
    PolicyRule {
        judged_by: Vec::new(),
        rule: format!("granted-{i}.example"),
        by: "agent".into(),
        origin: if i.is_multiple_of(2) { "operator".into() } else { format!("request {i}, operator") },
        since: TIME.into(),
        reason: None,
        expires_at: Some("2026-11-21T09:00:07.500Z".into()),
    }
}

fn request(id: u64) -> AccessRequest {
    AccessRequest {
        id,
        rule: format!("wanted-{id}.example"),
        reason: "for the wheels ".repeat(20),
        state: RequestState::Pending,
        time: TIME.into(),
        decided_at: None,
        until: None,
        detail: String::new(),
        count: 1,
    }
}

/// Everything that can happen has happened, and everywhere there is more than fits.
fn busy() -> Report {
    let board = Board::new(BoxIdentity { name: "box".into(), ..BoxIdentity::default() });
    for i in 0..40 {
        board.deny(denial(&format!("n{i}.{}.example", "long".repeat(15))));
    }
    let mut report = board.report(None);
    report.warnings = (0..40).map(|i| format!("warning {i} {}", "x".repeat(100))).collect();
    report.phase = Phase::Ready;
    let names = ["egress-ipv4", "egress-ipv6", "dns", "rootfs", "host-doors", "agent", "control"];
    report.protections = names.iter().map(|name| protection(name, true)).collect();
    report.session.state = SessionState::Running;
    report.session.since = TIME.into();
    report.session.last_exit = Some("Claude Code ended (exit status 1)".into());
    report.session.detail = "something".into();
    report.operators = vec![Operator { id: 1, since: TIME.into(), place: "session".into(), read_only: true }];
    report.dns.upstreams = vec![Upstream { address: "9.9.9.9:53".into(), healthy: false, note: None }];
    report.secrets = vec![SecretHeld {
        name: "GH_TOKEN".into(),
        source: "env".into(),
        held_by: "helper".into(),
        agent_can_read: true,
    }];
    report.policy.rules = (0..30).map(rule).collect();
    report.requests = (1..=20).map(request).collect();
    let fill =
        |path: &str| Fill { path: path.into(), size: 512 << 20, used: 500 << 20, inodes: 10, inodes_used: 1 };
    report.resources = Resources {
        memory: Some(Memory { used: 3 << 30, limit: Some(4 << 30) }),
        oom_kills: 2,
        oom_victims: vec!["2026 Claude Code".into()],
        mounts: ["/workspace", "/tmp", "/home/claude", "/run/innkeeper"].map(fill).to_vec(),
    };
    report.repositories = (0..9)
        .map(|i| Repository {
            path: format!("/workspace/r{i}"),
            url: String::new(),
            state: RepositoryState::Failed,
            detail: "y".repeat(200),
        })
        .collect();
    report.traffic =
        vec![Traffic { name: "a.test".into(), port: 443, connections: 1, bytes_out: 5 << 20, bytes_in: 7 }];
    report.audit =
        Audit { trouble: Some("no space left".into()), file: Some("/log".into()), ..Audit::default() };
    report
}

fn text(report: &Report, width: usize, height: usize) -> String {
    render(report, Frame { width, height }, false, now())
}

#[test]
fn it_fits_80_by_24_and_is_inert() {
    let mut report = busy();
    report.denials.insert(0, denial("evil.\x1b]0;x\x07.example"));
    let text = text(&report, 80, 24);
    assert!(text.lines().count() <= 23, "{}:\n{text}", text.lines().count());
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(!text.contains('\x1b') && !text.contains('\x07'));
    // The important of everything is there.
    for word in [
        "READY",
        "egress-ipv4",
        "control",
        "held, proven 7 s ago",
        "the agent can read GH_TOKEN",
        "running since 08:00:00Z (7 s)",
        "1 attached (1 read-only)",
        "9.9.9.9:53 (DOWN)",
        "wanted-20.example",
        "innkeeper grant 20: wanted-20.example, asked 7 s ago: for the wheels",
        "Out of memory: 2 processes",
        "FAILED",
        "no space left",
        "Refused",
        "evil.\\u{1b}]0;x\\u{7}.example",
        "more: innkeeper log --denied",
        "more: innkeeper requests",
        "granted-0.example until 09:00:07Z (1 h left)",
    ] {
        assert!(text.contains(word), "{word} is not in\n{text}");
    }
}

#[test]
fn every_size_is_kept_to() {
    let report = busy();
    for width in [2, 3, 10, 33, 79, 80, 81, 200] {
        for height in [0, 1, 2, 5, 10, 23, 24, 50, 200] {
            let text = text(&report, width, height);
            assert!(text.lines().count() < height.max(1), "{width}×{height}:\n{text}");
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}×{height}:\n{text}");
        }
    }
    // What there is room for is shown.
    let all = text(&report, 120, 400);
    assert!(!all.contains("more:") || all.matches("more:").count() == 1, "only the grants are cut:\n{all}");
}

#[test]
fn what_does_not_hold_comes_first_and_is_never_left_out() {
    let mut report = busy();
    report.protections[0] = Protection { detail: "z ".repeat(500), ..protection("egress-ipv4", false) };
    for height in [24, 10, 6] {
        let text = text(&report, 80, height);
        let mut lines = text.lines();
        assert!(lines.next().unwrap().starts_with("READY  NOT HELD: egress-ipv4"), "{text}");
        assert!(lines.next().unwrap().contains("egress-ipv4 NOT HELD (7 s ago): nftables: z"), "{text}");
    }
}

#[test]
fn the_command_that_would_allow_it_is_never_cut() {
    let mut report = busy();
    for length in [10, 30, 45, 60, 63] {
        let what = format!("{}.{}.{}.example", "a".repeat(length), "b".repeat(length), "c".repeat(length));
        report.denials = vec![denial(&what)];
        report.warnings.clear();
        let text = text(&report, 80, 24);
        assert!(text.replace("\\\n", "").contains(&format!("innkeeper allow {what}")), "{length}:\n{text}");
    }
}

#[test]
fn a_quiet_box_is_a_short_screen() {
    let board = Board::new(BoxIdentity { name: "box".into(), ..BoxIdentity::default() });
    let mut report = board.report(None);
    report.session.since = TIME.into();
    let text = text(&report, 80, 24);
    assert!(text.lines().count() < 10, "{text}");
    assert!(text.contains("Nothing was refused"));
    for zero in ["gate", "Warnings", "Granted", "Audit", "asks for", "0 attached", "memory"] {
        assert!(!text.contains(zero), "{zero} says nothing here:\n{text}");
    }
}

#[test]
fn the_agents_screen_has_no_command_of_the_operators() {
    let mut report = busy();
    report.denials.truncate(2);
    let agents = text(&for_agent(report, 1000), 80, 24);
    for hidden in ["innkeeper allow", "innkeeper grant", "attached", "9.9.9.9", "warning", "/log", "can read"]
    {
        assert!(!agents.contains(hidden), "{hidden}:\n{agents}");
    }
    assert!(agents.contains("innkeeper request n39."), "{agents}");
    assert!(agents.contains("Waiting for the operator"), "{agents}");
    let full = text(&for_agent(full(), 1000), 80, 24);
    assert!(!full.contains("hidden"), "{full}");
}

#[test]
fn what_the_agent_can_read_is_said_in_red() {
    let text = render(&busy(), Frame::STANDARD, true, now());
    assert!(text.contains("\x1b[31m  the agent can read GH_TOKEN\x1b[0m"), "{text}");
    assert!(
        render(&busy(), Frame::STANDARD, false, now() + Duration::from_secs(60)).contains("proven 1 min ago")
    );
}
