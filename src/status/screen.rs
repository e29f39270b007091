//! The report as one screen of 80×24: is it safe, is it working, what was refused, what to do. (pure)
//!
//! The screen is made of sections. Each has a rank and a number of entries that it wants at least; where there is no
//! room for everything, those of low rank get their least or nothing, and the heading of what was shortened says how
//! much is missing. What is not held, what failed, and what waits for the operator is never left out before the rest.

mod sections;

use std::time::SystemTime;

pub(crate) use sections::denied;

use super::report::Report;

/// How a line is meant; a terminal shows it as a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Title,
    Good,
    Attention,
    Bad,
}

/// One line of inert text that fits the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub tone: Tone,
    pub text: String,
}

/// Where it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub width: usize,
    pub height: usize,
}

impl Frame {
    /// What everybody has.
    pub const STANDARD: Self = Self { width: 80, height: 24 };
}

/// What belongs together.
#[derive(Debug, Default)]
struct Section {
    /// The heading, if it has one; what could not be shown is said behind it.
    title: Option<Line>,
    /// Whole or not at all.
    entries: Vec<Vec<Line>>,
    /// So many entries come before the other sections' further ones.
    least: usize,
    /// A small one is served first.
    rank: u8,
    /// Where the rest can be seen.
    rest: &'static str,
}

impl Section {
    fn rows(&self, entries: usize) -> usize {
        let title = usize::from(self.title.is_some() && entries > 0);
        title + self.entries.iter().take(entries).map(Vec::len).sum::<usize>()
    }
}

/// The lines of the report, at most as many as there are, the last left to the prompt.
#[must_use]
pub fn lines(report: &Report, frame: Frame, now: SystemTime) -> Vec<Line> {
    let sections = sections::of(report, frame.width.max(1), now);
    let room = frame.height.saturating_sub(1);
    let shown = share(&sections, room);
    let mut lines = Vec::new();
    for (section, shown) in sections.into_iter().zip(shown) {
        if shown == 0 {
            continue;
        }
        let (missing, rest) = (section.entries.len() - shown, section.rest);
        let untitled = section.title.is_none() && missing > 0 && !rest.is_empty();
        if let Some(title) = section.title {
            let text = if missing > 0 { more(&title.text, missing, rest, frame) } else { title.text };
            lines.push(Line { text, ..title });
        }
        lines.extend(section.entries.into_iter().take(shown).flatten());
        if let Some(last) = lines.last_mut().filter(|_| untitled) {
            last.text = more(&last.text, missing, rest, frame);
        }
    }
    lines
}

/// The line with how much is missing behind it, for which it makes room.
fn more(text: &str, missing: usize, rest: &str, frame: Frame) -> String {
    let note = format!(" … {missing} more: {rest}");
    let room = frame.width.saturating_sub(note.chars().count());
    super::wording::cut(&format!("{}{note}", super::wording::cut(text, room)), frame.width)
}

/// How many entries of each section are shown: first the least of every one by rank, then the rest by rank, one of each
/// at a time.
fn share(sections: &[Section], room: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sections.len()).collect();
    order.sort_by_key(|at| sections.get(*at).map(|section| section.rank));
    let (mut shown, mut left) = (vec![0_usize; sections.len()], room);
    let mut grow = |at: usize, shown: &mut Vec<usize>| -> bool {
        let (Some(section), Some(entries)) = (sections.get(at), shown.get_mut(at)) else { return false };
        let cost = section.rows(*entries + 1) - section.rows(*entries);
        let fits = *entries < section.entries.len() && cost <= left;
        if fits {
            *entries += 1;
            left -= cost;
        }
        fits
    };
    for at in &order {
        let least = sections.get(*at).map_or(0, |section| section.least);
        for _ in 0..least {
            grow(*at, &mut shown);
        }
    }
    // One more of each in turn, until none fits.
    while order.iter().filter(|at| grow(**at, &mut shown)).count() > 0 {}
    shown
}

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

/// The screen as text; with `colour` for a terminal.
#[must_use]
pub fn render(report: &Report, frame: Frame, colour: bool, now: SystemTime) -> String {
    let paint = |line: Line| match line.tone {
        Tone::Plain => line.text,
        _ if !colour => line.text,
        Tone::Title => format!("{BOLD}{}{PLAIN}", line.text),
        Tone::Good => format!("{GREEN}{}{PLAIN}", line.text),
        Tone::Attention => format!("{YELLOW}{}{PLAIN}", line.text),
        Tone::Bad => format!("{RED}{}{PLAIN}", line.text),
    };
    lines(report, frame, now).into_iter().map(|line| paint(line) + "\n").collect()
}

#[cfg(test)]
mod tests;
