//! Times, and lines that fit a screen. (pure)

use std::time::{Duration, SystemTime};

use crate::report::{bounded, inert};

/// How long ago, or how long yet: "3 s", "12 min", "3 h 12 min", "2 d 4 h".
#[must_use]
pub fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) if minutes % 60 == 0 => format!("{hours} h"),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        (_, _, _) if hours % 24 == 0 => format!("{days} d"),
        (_, _, _) => format!("{days} d {} h", hours % 24),
    }
}

fn parse(at: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(at).ok()
}

/// How long ago a time of RFC 3339 was. A clock that was set back makes it now.
#[must_use]
pub fn since(at: &str, now: SystemTime) -> Option<Duration> {
    parse(at).map(|at| now.duration_since(at).unwrap_or_default())
}

/// How long it is until a time of RFC 3339.
#[must_use]
pub fn until(at: &str, now: SystemTime) -> Option<Duration> {
    parse(at).map(|at| at.duration_since(now).unwrap_or_default())
}

/// "08:00:12Z" of a time of RFC 3339.
#[must_use]
pub fn clock(at: &str) -> String {
    at.get(11..19).map_or_else(String::new, |time| format!("{time}Z"))
}

/// Inert text, cut with a mark.
#[must_use]
pub fn cut(text: &str, width: usize) -> String {
    let text = inert(text);
    if text.chars().count() > width { bounded(&text, width.saturating_sub(1)) } else { text }
}

/// Words over several lines, each begun with `indent`; a word that is longer than a line is cut through.
#[must_use]
pub fn wrap(text: &str, width: usize, indent: &str) -> Vec<String> {
    let indent = if indent.chars().count() < width { indent } else { "" };
    let room = width.saturating_sub(indent.chars().count()).max(1);
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in inert(text).split(' ').filter(|word| !word.is_empty()) {
        let mut word = word.to_owned();
        let used = line.chars().count();
        if used > 0 && used + 1 + word.chars().count() > room {
            lines.push(format!("{indent}{line}"));
            line.clear();
        } else if used > 0 {
            line.push(' ');
        }
        while word.chars().count() > room {
            let end = word.char_indices().nth(room).map_or(word.len(), |(end, _)| end);
            let rest = word.split_off(end);
            lines.push(format!("{indent}{word}"));
            word = rest;
        }
        line.push_str(&word);
    }
    if !line.is_empty() {
        lines.push(format!("{indent}{line}"));
    }
    lines
}

/// A command, whole: where it is longer than a line it goes on after a backslash, so that what is copied still is the
/// same command.
#[must_use]
pub fn command(text: &str, width: usize, indent: &str) -> Vec<String> {
    let text = inert(text);
    if indent.chars().count() + text.chars().count() <= width {
        return vec![format!("{indent}{text}")];
    }
    let characters: Vec<char> = format!("{indent}{text}").chars().collect();
    let mut pieces: Vec<String> =
        characters.chunks(width.saturating_sub(1).max(1)).map(|piece| piece.iter().collect()).collect();
    let last = pieces.pop();
    pieces.iter_mut().for_each(|piece| piece.push('\\'));
    pieces.extend(last);
    pieces
}

#[cfg(test)]
mod tests {
    use super::{clock, command, cut, since, span, until, wrap};
    use std::time::{Duration, SystemTime};

    #[test]
    fn times_are_short() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3_600, "1 h"),
            (11_520, "3 h 12 min"),
            (86_400, "1 d"),
            (187_200, "2 d 4 h"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        assert_eq!(since("1970-01-01T00:01:30.000Z", now), Some(Duration::from_secs(10)));
        assert_eq!(since("1970-01-01T00:02:30.000Z", now), Some(Duration::ZERO));
        assert_eq!(until("1970-01-01T00:02:30.000Z", now), Some(Duration::from_secs(50)));
        assert_eq!(
            (since("", now), clock("x"), clock("1970-01-01T00:02:30Z")),
            (None, String::new(), "00:02:30Z".into())
        );
    }

    #[test]
    fn no_line_is_longer_and_no_word_is_lost() {
        let text = "a bb ccc dddddddddddd e";
        for width in 1..30 {
            let lines = wrap(text, width + 2, "  ");
            assert!(lines.iter().all(|line| line.chars().count() <= width + 2), "{width}: {lines:?}");
            let joined: String = lines.concat().replace(' ', "");
            assert_eq!(joined, text.replace(' ', ""), "{width}");
        }
        assert_eq!(cut("ünïcode", 4), "ünï…");
        assert_eq!(wrap("x\u{1b}y", 80, ""), ["x\\u{1b}y"]);
    }

    #[test]
    fn a_command_is_whole_and_can_be_copied() {
        let text = format!("innkeeper allow {}.example", "x".repeat(200));
        assert_eq!(command("innkeeper allow a.b", 80, "  "), ["  innkeeper allow a.b"]);
        for width in 2..300 {
            let lines = command(&text, width, "  ");
            assert!(lines.iter().all(|line| line.chars().count() <= width), "{width}: {lines:?}");
            // As a shell reads it.
            assert_eq!(lines.join("\n").replace("\\\n", "").trim(), text, "{width}");
        }
    }
}
