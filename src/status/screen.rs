//! The report as one screen of 80×24: is it safe, is it working, what was refused, what to do. (pure)

use std::fmt::Write;

use super::report::{Phase, PolicyRule, Report, RepositoryState, SessionState, StepState};
use crate::report::{bounded, inert};

const WIDTH: usize = 80;
const HEIGHT: usize = 24;

struct Screen {
    lines: Vec<String>,
    colour: bool,
}

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

impl Screen {
    /// A line of inert text, cut to the screen, perhaps in one colour.
    fn line(&mut self, style: &str, text: &str) {
        let text = cut(&inert(text));
        let styled = if self.colour && !style.is_empty() { format!("{style}{text}{PLAIN}") } else { text };
        self.lines.push(styled);
    }

    fn room(&self, wanted: usize, reserved: usize) -> usize {
        wanted.min(HEIGHT.saturating_sub(1 + reserved).saturating_sub(self.lines.len()))
    }
}

fn cut(text: &str) -> String {
    if text.chars().count() > WIDTH { bounded(text, WIDTH - 1) } else { text.to_owned() }
}

/// Renders the report; with `colour` for a terminal.
#[must_use]
pub fn render(report: &Report, colour: bool) -> String {
    let mut screen = Screen { lines: Vec::new(), colour };
    head(&mut screen, report);
    protections(&mut screen, report);
    network(&mut screen, report);
    session(&mut screen, report);
    warnings(&mut screen, report);
    denials(&mut screen, report);
    let mut text = screen.lines.join("\n");
    text.push('\n');
    text
}

fn head(screen: &mut Screen, report: &Report) {
    let (word, style) = match report.phase {
        Phase::Booting => ("BOOTING", YELLOW),
        Phase::Ready => ("READY", GREEN),
        Phase::Stopping => ("STOPPING", YELLOW),
        Phase::Failed => ("FAILED", RED),
    };
    let mut times = String::new();
    if let Some(lockdown) = report.boot.lockdown_ms {
        write!(times, ", closed after {lockdown:.1} ms").ok();
    }
    if let Some(ready) = report.boot.ready_ms {
        write!(times, ", ready after {ready:.0} ms").ok();
    }
    let name = bounded(&report.box_.name, 20);
    let open: Vec<&str> =
        report.protections.iter().filter(|one| !one.held).map(|one| one.name.as_str()).collect();
    // What does not hold comes first: a green line on top would be believed.
    let (style, open) = match open.as_slice() {
        [] => (style, String::new()),
        names => (RED, format!("  NOT HELD: {}", names.join(", "))),
    };
    screen.line(style, &format!("{word}{open}  {name}, innkeeper {}{times}", report.version));
    for step in &report.boot.steps {
        match step.state {
            StepState::Failed => screen.line(RED, &format!("  {} failed: {}", step.name, step.detail)),
            StepState::Running => screen.line(YELLOW, &format!("  {} …", step.name)),
            StepState::Degraded => {
                screen.line(YELLOW, &format!("  {} degraded: {}", step.name, step.detail));
            }
            StepState::Pending | StepState::Ok => {}
        }
    }
}

fn protections(screen: &mut Screen, report: &Report) {
    screen.line(BOLD, "Protections");
    for protection in &report.protections {
        let time = protection.verified_at.get(11..19).unwrap_or_default();
        let (mark, style) = if protection.held { ("held", "") } else { ("NOT HELD", RED) };
        let text = [protection.how.as_str(), protection.detail.as_str()].map(str::trim);
        let text = text.iter().filter(|text| !text.is_empty()).copied().collect::<Vec<_>>().join(": ");
        screen.line(style, &format!("  {:<12} {mark:<8} {time}Z  {text}", protection.name));
    }
}

fn network(screen: &mut Screen, report: &Report) {
    let upstreams: Vec<String> = report
        .dns
        .upstreams
        .iter()
        .map(|upstream| format!("{}{}", upstream.address, if upstream.healthy { "" } else { " (down)" }))
        .collect();
    screen.line(BOLD, "Network");
    let dns = &report.dns;
    screen.line(
        "",
        &format!(
            "  dns       {} questions: {} allowed, {} denied; asks {}",
            dns.queries,
            dns.allowed,
            dns.denied,
            upstreams.join(", ")
        ),
    );
    if !dns.failing.is_empty() {
        let names: Vec<&str> = dns.failing.iter().map(|failing| failing.name.as_str()).collect();
        screen.line(YELLOW, &format!("  {} names don't resolve: {}", names.len(), names.join(", ")));
    }
    let stale = report.firewall.addresses.iter().filter(|address| address.stale).count();
    let stale = if stale > 0 { format!(" ({stale} stale)") } else { String::new() };
    screen.line(
        "",
        &format!(
            "  firewall  {} rules of generation {}, {} addresses open{stale}, {} packets refused",
            report.policy.rules.len(),
            report.policy.generation,
            report.firewall.addresses.len(),
            report.firewall.denied
        ),
    );
    let granted = report.policy.rules.iter().filter(|rule| rule.origin == OPERATOR);
    let shown = |rule: &PolicyRule| match rule.expires_at.as_deref().and_then(|at| at.get(11..16)) {
        Some(end) => format!("{} until {end}Z", rule.rule),
        None => rule.rule.clone(),
    };
    let granted: Vec<String> = granted.map(shown).collect();
    if !granted.is_empty() {
        screen.line(YELLOW, &format!("  operator  {}", granted.join(", ")));
    }
}

/// How the origin of a rule that was added in the living box reads.
const OPERATOR: &str = "operator";

fn session(screen: &mut Screen, report: &Report) {
    let session = &report.session;
    let (word, style) = match session.state {
        SessionState::Starting => ("starting", YELLOW),
        SessionState::Running => ("running", GREEN),
        SessionState::Waiting => ("waiting for a person", YELLOW),
        SessionState::Limited => ("waiting for the usage limit", YELLOW),
        SessionState::Exited => ("Claude Code has ended", RED),
        SessionState::Backoff => ("starting again", YELLOW),
        SessionState::Parked => ("parked", ""),
        SessionState::Done => ("done", ""),
    };
    let since = session.since.get(11..19).unwrap_or_default();
    screen.line(BOLD, "Session");
    let pid = session.claude_pid.map_or_else(String::new, |pid| format!(", pid {pid}"));
    let last = session.last_exit.as_ref().map_or_else(String::new, |exit| format!("; last: {exit}"));
    screen.line(style, &format!("  {word} since {since}Z{pid}, {} restarts{last}", session.restarts));
    if !session.detail.is_empty() {
        screen.line("", &format!("  {}", session.detail));
    }
    for repository in &report.repositories {
        let (word, style) = match repository.state {
            RepositoryState::Cloned => ("cloned", ""),
            RepositoryState::Cloning => ("cloning", YELLOW),
            RepositoryState::Failed => ("FAILED", RED),
        };
        screen.line(style, &format!("  {} {word}: {}", repository.path, repository.detail));
    }
    let readable: Vec<&str> = report
        .secrets
        .iter()
        .filter(|secret| secret.agent_can_read)
        .map(|secret| secret.name.as_str())
        .collect();
    if !readable.is_empty() {
        screen.line(RED, &format!("  the agent can read {}", readable.join(", ")));
    }
}

fn warnings(screen: &mut Screen, report: &Report) {
    let count = screen.room(report.warnings.len(), 3);
    for warning in report.warnings.iter().take(count) {
        screen.line(YELLOW, &format!("! {warning}"));
    }
}

fn denials(screen: &mut Screen, report: &Report) {
    if report.denials.is_empty() {
        screen.line(BOLD, "Nothing was refused");
        return;
    }
    screen.line(BOLD, "Refused (the newest first)");
    let count = screen.room(report.denials.len(), 0);
    for denial in report.denials.iter().take(count) {
        let time = denial.time.get(11..19).unwrap_or_default();
        let who = denial.uid.map_or_else(|| "?".to_owned(), |uid| uid.to_string());
        let process = denial.process.as_ref().map_or_else(String::new, |process| format!(" {process}"));
        let text = format!(
            "  {time}Z {:<8} {} ({}×, uid {who}{process}): {}",
            denial.layer, denial.what, denial.count, denial.allow
        );
        screen.line("", &text);
    }
}

#[cfg(test)]
mod tests {
    use super::render;
    use crate::status::Board;
    use crate::status::report::{BoxIdentity, Denial, SecretHeld};

    fn board() -> Board {
        let board = Board::new(BoxIdentity { name: "box".into(), ..BoxIdentity::default() });
        for i in 0..40 {
            board.deny(Denial {
                time: "2026-11-21T08:00:00.000Z".into(),
                layer: "dns".into(),
                what: format!("n{i}.example.\x1b]0;x\x07{}", "long".repeat(40)),
                uid: Some(1000),
                process: None,
                reason: "not in the allowlist".into(),
                count: 1,
                allow: format!("innkeeper allow n{i}.example"),
            });
            board.warn(format!("warning {i} {}", "x".repeat(100)));
        }
        board
    }

    #[test]
    fn it_fits_80_by_24_and_is_inert() {
        let text = render(&board().report(None), false);
        assert!(text.lines().count() <= 24, "{}", text.lines().count());
        assert!(text.lines().all(|line| line.chars().count() <= 80));
        assert!(!text.contains('\x1b') && !text.contains('\x07'));
        assert!(text.contains("n39.example"), "the newest denial is there:\n{text}");
    }

    #[test]
    fn what_the_agent_can_read_is_said_in_red() {
        let board = board();
        board.secret(SecretHeld {
            name: "GH_TOKEN".into(),
            source: "env".into(),
            held_by: "helper".into(),
            agent_can_read: true,
        });
        let text = render(&board.report(None), true);
        assert!(text.contains("\x1b[31m  the agent can read GH_TOKEN"), "{text}");
    }
}
