//! The page as text for a terminal, or as Markdown for a mail or an issue. (pure)

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use super::work::RepositoryWork;
use super::{Morning, SessionHistory};
use crate::report::inert;
use crate::resources::warnings::octets;
use crate::status::report::RequestState;
use crate::status::wording::{clock, cut, span, wrap};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Text { width: usize },
    Markdown,
}

/// Rows of each list; all of them are in the JSON.
const ROWS: usize = 12;

struct Page {
    style: Style,
    text: String,
}

impl Page {
    /// In words of our own; in Markdown, what else is in it is a code span already.
    fn heading(&mut self, title: &str) {
        let gap = if self.text.is_empty() { "" } else { "\n" };
        self.text.push_str(gap);
        match self.style {
            Style::Text { width } => {
                self.text.extend(wrap(title, width, "").into_iter().map(|line| line + "\n"));
            }
            Style::Markdown => self.text.push_str(&format!("## {title}\n\n")),
        }
    }

    /// A paragraph of somebody's words.
    fn words(&mut self, text: &str) {
        match self.style {
            Style::Text { width } => {
                for line in text.lines().take(ROWS) {
                    let lines = wrap(line, width, "  ");
                    self.text.extend(lines.into_iter().map(|line| line + "\n"));
                }
            }
            Style::Markdown => {
                for line in text.lines().take(ROWS) {
                    let line = if line.trim().is_empty() { String::new() } else { code(line) };
                    writeln!(self.text, "> {line}").ok();
                    // Each on a line of its own.
                    self.text.push_str(">\n");
                }
                self.text.push('\n');
            }
        }
    }

    /// One item and the command that goes with it, which is never cut: in the same line or on its own.
    fn proposal(&mut self, text: &str, command: &str) {
        let whole = if command.is_empty() { text.to_owned() } else { format!("{text}; {command}") };
        match self.style {
            Style::Text { width } if whole.chars().count() + 2 > width && !command.is_empty() => {
                self.item(text);
                let lines = crate::status::wording::command(command, width, "    ");
                self.text.extend(lines.into_iter().map(|line| line + "\n"));
            }
            Style::Text { .. } | Style::Markdown => self.item(&whole),
        }
    }

    /// One item of a list.
    fn item(&mut self, text: &str) {
        match self.style {
            Style::Text { width } => {
                let lines = wrap(text, width, "  ");
                self.text.extend(lines.into_iter().map(|line| line + "\n"));
            }
            Style::Markdown => {
                writeln!(self.text, "- {}", code(text)).ok();
            }
        }
    }

    fn items<T>(&mut self, all: &[T], show: impl Fn(&T) -> String) {
        self.proposals(all, |one| (show(one), String::new()));
    }

    fn proposals<T>(&mut self, all: &[T], show: impl Fn(&T) -> (String, String)) {
        for one in all.iter().take(ROWS) {
            let (text, command) = show(one);
            self.proposal(&text, &command);
        }
        if all.len() > ROWS {
            self.item(&format!("… {} more: innkeeper report --json", all.len() - ROWS));
        }
    }
}

/// A code span (CommonMark 6.1): nothing in it is a mark-up, and no forge makes a link, a mention or a reference of what is
/// there, which they do after the escapes of Markdown are gone. Its fence is longer than any of the text's own.
fn code(text: &str) -> String {
    let text = inert(text);
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or_default();
    let fence = "`".repeat(longest + 1);
    // One space on each side is not shown.
    format!("{fence} {text} {fence}")
}

pub(super) fn render(morning: &Morning, style: Style) -> String {
    let mut page = Page { style, text: String::new() };
    head(&mut page, morning);
    session(&mut page, &morning.session);
    for repository in &morning.repositories {
        work(&mut page, repository);
    }
    requests(&mut page, morning);
    denied(&mut page, morning);
    changes(&mut page, morning);
    traffic(&mut page, morning);
    trouble(&mut page, morning);
    visits(&mut page, morning);
    page.text
}

fn head(page: &mut Page, morning: &Morning) {
    let title = format!("{} from {} to {}", morning.name, minute(&morning.from), minute(&morning.to));
    match page.style {
        Style::Text { width } => writeln!(page.text, "{}", cut(&title, width)),
        Style::Markdown => writeln!(page.text, "# {}", code(&title)),
    }
    .ok();
    for note in &morning.notes {
        page.item(note);
    }
}

/// "1 file", "2 files"
fn many(count: u64, of: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {of}{plural}")
}

/// "2026-11-21 08:00Z"
fn minute(time: &str) -> String {
    match (time.get(..10), time.get(11..16)) {
        (Some(day), Some(minute)) => format!("{day} {minute}Z"),
        _ => time.to_owned(),
    }
}

fn session(page: &mut Page, session: &SessionHistory) {
    page.heading(&format!("Session: {} since {}", session.state, minute(&session.since)));
    if !session.why.is_empty() {
        page.item(&session.why);
    }
    if let Some(exit) = session.last_exit.as_ref().filter(|exit| **exit != session.why) {
        page.item(&format!("last end: {exit}"));
    }
    let times: Vec<String> = session
        .times
        .iter()
        .map(|time| format!("{} {}", time.state, span(Duration::from_secs(time.seconds))))
        .collect();
    if !times.is_empty() {
        page.item(&times.join(", "));
    }
    if let Some(message) = &session.last_message {
        page.heading("Claude's last words");
        page.words(message);
    }
}

fn work(page: &mut Page, work: &RepositoryWork) {
    let branch = work.branch.as_ref().map_or_else(String::new, |branch| format!(" on {branch}"));
    let place = format!("{}{branch}", work.path);
    page.heading(&format!(
        "{}: {}, {}, +{} −{}",
        if page.style == Style::Markdown { code(&place) } else { place },
        many(work.commit_count, "commit"),
        many(work.files, "file"),
        work.insertions,
        work.deletions
    ));
    if let Some(trouble) = &work.trouble {
        page.item(&format!("not everything is known: {trouble}"));
    }
    let mut left = Vec::new();
    left.extend(
        work.unpushed.filter(|count| *count > 0).map(|count| format!("{} not pushed", many(count, "commit"))),
    );
    left.extend(
        (work.changed > 0).then(|| format!("{} changed and not committed", many(work.changed, "file"))),
    );
    left.extend(
        (work.untracked > 0).then(|| format!("{} that git does not know", many(work.untracked, "file"))),
    );
    if !left.is_empty() {
        page.item(&left.join(", "));
    }
    page.items(&work.commits, |commit| {
        let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(commit.time));
        // A year of five digits is no time of RFC 3339.
        let at = at.filter(|_| commit.time < 253_402_300_800).map(crate::report::time).unwrap_or_default();
        format!(
            "{} {} (+{} −{}) {}",
            minute(&at),
            commit.id,
            commit.insertions,
            commit.deletions,
            commit.subject
        )
    });
}

fn requests(page: &mut Page, morning: &Morning) {
    if morning.requests.is_empty() {
        return;
    }
    page.heading("Asked for");
    page.items(&morning.requests, |request| {
        let next = match request.state {
            RequestState::Pending => format!("; innkeeper grant {}", request.id),
            RequestState::Granted | RequestState::Refused | RequestState::Expired => String::new(),
        };
        format!("{} {}: {}{next}", request.rule, request.state, request.reason)
    });
}

fn denied(page: &mut Page, morning: &Morning) {
    page.heading(if morning.denied.is_empty() { "Nothing was refused" } else { "Refused" });
    page.proposals(&morning.denied, |denied| {
        (format!("{} ({}×, {})", denied.what, denied.count, denied.layer), denied.allow.clone())
    });
}

fn changes(page: &mut Page, morning: &Morning) {
    if !morning.changes.is_empty() {
        page.heading("Changes of the policy");
        page.items(&morning.changes, |change| {
            format!("{} {}: {}", clock(&change.time), change.by, change.change)
        });
    }
}

fn traffic(page: &mut Page, morning: &Morning) {
    if morning.traffic.is_empty() && morning.traffic_note.is_none() {
        return;
    }
    page.heading("Carried, since the box began");
    if let Some(note) = &morning.traffic_note {
        page.item(note);
    }
    page.items(&morning.traffic, |row| {
        let port = if row.port == 0 { String::new() } else { format!(":{}", row.port) };
        let (out, back) = (octets(row.bytes_out), octets(row.bytes_in));
        format!("{}{port}: out {out}, in {back}, {}", row.name, many(row.connections, "connection"))
    });
}

fn trouble(page: &mut Page, morning: &Morning) {
    let trouble = &morning.trouble;
    let mut lines = Vec::new();
    lines.extend(trouble.not_held.iter().map(|name| format!("NOT HELD: {name}")));
    lines.extend(
        (trouble.session_restarts > 0)
            .then(|| format!("the session was started again {} times", trouble.session_restarts)),
    );
    lines.extend(
        trouble
            .workers
            .iter()
            .map(|worker| format!("{} was started again {} times", worker.name, worker.restarts)),
    );
    lines.extend(
        (trouble.oom_kills > 0)
            .then(|| format!("{} processes were ended for want of memory", trouble.oom_kills)),
    );
    lines.extend(trouble.oom_victims.iter().cloned());
    lines.extend(trouble.warnings.iter().cloned());
    if !lines.is_empty() {
        page.heading("To be looked at");
        page.items(&lines, Clone::clone);
    }
}

fn visits(page: &mut Page, morning: &Morning) {
    if morning.visits.is_empty() {
        return;
    }
    page.heading("Who was here");
    page.items(&morning.visits, |stay| {
        let how = if stay.read_only { ", looking only" } else { "" };
        let from = stay.from.as_deref().map_or_else(|| "before".to_owned(), clock);
        let to = stay.to.as_deref().map_or_else(|| "now".to_owned(), clock);
        format!("{} from {from} to {to}{how}", stay.place)
    });
}
