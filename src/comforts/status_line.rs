//! The line below Claude's prompt: model, context, name, cost; and the same for PID 1, as hearsay.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::bar::bar;
use super::input;
use crate::control::protocol::{Gauge, Request, SOCKET};
use crate::money::Microusd;
use crate::report::harmless;

/// Claude shows nothing new while it runs.
pub(super) const LIMIT: Duration = Duration::from_secs(2);
/// A box that is slower than this is told nothing.
const PATIENCE: Duration = Duration::from_millis(300);
/// The same news again would say nothing, unless PID 1 has forgotten it meanwhile.
const AGAIN: Duration = Duration::from_secs(60);
/// Characters of a name.
const MAX_NAME: usize = 50;

/// Shows the line that standard input asks for, unless it is not wanted, and tells PID 1.
pub(super) fn run(silent: bool) -> String {
    let Some(input) = input::read() else { return String::new() };
    let gauge = gauge(&input);
    if is_news(&gauge) {
        // A box that does not listen is no business of Claude's.
        tell(&gauge).ok();
    }
    if silent { String::new() } else { line(&input, &gauge) }
}

fn text<'a>(input: &'a Value, path: &str) -> Option<&'a str> {
    input.pointer(path)?.as_str().map(str::trim).filter(|text| !text.is_empty())
}

/// A number of nought or more.
fn number(input: &Value, path: &str) -> Option<f64> {
    input.pointer(path)?.as_f64().filter(|number| number.is_finite() && *number >= 0.0)
}

/// As an integer, at most `most`: an f64 holds these exactly.
fn whole(number: f64, most: u32) -> u64 {
    // The text of a rounded number is its digits: there is no cast that could cut one.
    format!("{:.0}", number.min(f64::from(most))).parse().unwrap_or_default()
}

fn gauge(input: &Value) -> Gauge {
    let percent = number(input, "/context_window/used_percentage");
    let percent = percent.and_then(|percent| u8::try_from(whole(percent, 100)).ok());
    let cost = number(input, "/cost/total_cost_usd").map(Microusd::from_usd);
    let reached = |name: &str| {
        let used = number(input, &format!("/rate_limits/{name}/used_percentage"))?;
        let until = number(input, &format!("/rate_limits/{name}/resets_at"))?;
        (used >= 100.0).then(|| whole(until, u32::MAX))
    };
    Gauge {
        cost_microusd: cost,
        context_percent: percent,
        // Both may be reached: it goes on when the later one ends.
        limited_until: reached("five_hour").max(reached("seven_day")),
        name: text(input, "/session_name").map(|name| harmless(name, MAX_NAME)),
    }
}

fn line(input: &Value, gauge: &Gauge) -> String {
    let model = text(input, "/model/display_name").unwrap_or("Claude");
    let mut line = format!("{} {}", harmless(model, 40), bar(gauge.context_percent));
    if let Some(name) = &gauge.name {
        line.push_str(&format!(" · {name}"));
    }
    if let Some(cost) = gauge.cost_microusd.filter(|cost| *cost > Microusd::default()) {
        line.push_str(&format!(" · {cost}"));
    }
    line
}

/// What was told last, in a file of the agent's own, which nobody else reads.
fn last_told() -> PathBuf {
    let directory = crate::filesystem::layout::runtime_directory(nix::unistd::getuid().as_raw());
    PathBuf::from(directory).join("gauge")
}

/// Whether it differs from what was told last, or that is a while ago.
fn is_news(gauge: &Gauge) -> bool {
    let path = last_told();
    let now = serde_json::to_string(gauge).unwrap_or_default();
    let same = || {
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
        let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(&path).ok()?;
        let age = file.metadata().ok()?.modified().ok()?.elapsed().ok()?;
        let mut told = String::new();
        file.take(4096).read_to_string(&mut told).ok()?;
        (told == now && age < AGAIN).then_some(())
    };
    if same().is_some() {
        return false;
    }
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).custom_flags(flags).open(&path);
    // Without it the same is told again, which is heard or not.
    file.and_then(|mut file| file.write_all(now.as_bytes())).ok();
    true
}

fn tell(gauge: &Gauge) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(SOCKET)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(&Request::Gauge { gauge: gauge.clone() }).unwrap_or_default();
    line.push(b'\n');
    stream.write_all(&line)?;
    // It is in order that the answer is not waited for longer: it says nothing.
    stream.take(1024).read(&mut [0; 64]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::{gauge, line};
    use crate::comforts::input::{HOSTILE, parse};
    use crate::control::protocol::{Gauge, MAX_REQUEST, Request};
    use crate::money::Microusd;

    fn shown(text: &str) -> (String, Gauge) {
        let input = parse(text.as_bytes()).unwrap();
        let gauge = gauge(&input);
        (line(&input, &gauge), gauge)
    }

    #[test]
    fn model_context_name_and_cost_are_shown_and_told() {
        let (line, gauge) = shown(
            r#"{"session_name":"fix-the-login","model":{"id":"x","display_name":"Sonnet 5.5"},
                "cost":{"total_cost_usd":0.4212},"context_window":{"used_percentage":31,"context_window_size":200000}}"#,
        );
        assert!(line.starts_with("Sonnet 5.5 \u{1b}[32m██████"), "{line}");
        assert!(line.ends_with(" 31 % · fix-the-login · $0.43"), "{line}");
        assert_eq!(gauge.cost_microusd, Some(Microusd(421_200)));
        assert_eq!(gauge.context_percent, Some(31));
        assert_eq!(gauge.name.as_deref(), Some("fix-the-login"));
        assert_eq!(gauge.limited_until, None);
    }

    #[test]
    fn a_limit_counts_once_it_is_reached() {
        let limits = |five: u8, seven: u8| {
            let text = format!(
                r#"{{"rate_limits":{{"five_hour":{{"used_percentage":{five},"resets_at":1795260000}},
                    "seven_day":{{"used_percentage":{seven},"resets_at":1795300000}}}}}}"#
            );
            shown(&text).1.limited_until
        };
        assert_eq!(limits(99, 50), None);
        assert_eq!(limits(100, 50), Some(1_795_260_000));
        assert_eq!(limits(100, 100), Some(1_795_300_000));
    }

    #[test]
    fn before_the_first_turn_little_is_known() {
        let (line, gauge) =
            shown(r#"{"model":{"display_name":"Opus"},"context_window":{"used_percentage":null}}"#);
        assert!(line.starts_with("Opus \u{1b}[2m░") && !line.contains('%') && !line.contains('$'), "{line}");
        assert_eq!(gauge, Gauge::default());
    }

    #[test]
    fn hostile_input_is_one_inert_line_and_fits_a_request() {
        let long = format!(
            r#"{{"session_name":"{0}","model":{{"display_name":"{0}"}}}}"#,
            "\u{1f980}".repeat(100_000)
        );
        for text in HOSTILE.into_iter().chain([long.as_str()]) {
            let Some(input) = parse(text.as_bytes()) else { continue };
            let gauge = gauge(&input);
            let line = line(&input, &gauge);
            assert!(!line.contains('\n') && line.chars().count() < 400, "{line:?}");
            // The only escapes are our colours.
            let escapes = line.match_indices('\u{1b}');
            assert!(escapes.into_iter().all(|(at, _)| line[at..].starts_with("\u{1b}[")), "{line:?}");
            assert!(!line.contains('\u{202e}') && !line.contains('\u{7}'), "{line:?}");
            assert!(serde_json::to_string(&Request::Gauge { gauge }).unwrap().len() < MAX_REQUEST);
        }
    }
}
