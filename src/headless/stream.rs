//! `innkeeper stream`: the child between a headless Claude and PID 1's standard output.
//!
//! It copies every octet as it came and reads along: results, limits and costs are in lines of Claude's stream-json, and
//! PID 1 parses nothing of the agent's. What it understands it tells on standard error, a short line each. It runs with the
//! agent's rights, but the agent can neither stop nor change it (`run_as::become_untouchable`): it holds the operator's
//! output.

use std::io::{BufRead, BufReader, IsTerminal, Write};

use serde::{Deserialize, Serialize};

use crate::money::Microusd;

/// What PID 1 learns of the run: hearsay by origin, of this shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "fact", deny_unknown_fields)]
pub enum Fact {
    /// The last line of a run.
    Result(RunResult),
    /// A usage limit was reached; until then, in seconds since 1970.
    Limited { until: Option<u64> },
}

/// What a run came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunResult {
    pub is_error: bool,
    /// `success`, `error_max_turns`, `error_max_budget_usd` …
    pub subtype: String,
    /// The first characters of the final message.
    pub text: String,
    pub cost_microusd: Microusd,
    pub turns: u64,
    /// The status with which the model's API refused, if it did.
    pub api_status: Option<u16>,
}

/// A line that is longer is copied like all others, and not read.
const MAX_LINE: usize = 4 << 20;
/// Characters of the final message that PID 1 is told.
pub const MAX_TEXT: usize = 2000;
/// What one fact takes at most.
pub const MAX_FACT: usize = 16 << 10;

/// What of a line of stream-json counts (https://code.claude.com/docs/en/headless).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    subtype: String,
    is_error: bool,
    result: Option<String>,
    total_cost_usd: f64,
    num_turns: u64,
    api_error_status: Option<u16>,
    rate_limit_info: Option<RateLimit>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RateLimit {
    status: String,
    #[serde(rename = "resetsAt")]
    resets_at: Option<u64>,
}

/// Copies standard input to standard output until it ends.
pub fn run() {
    let terminal = std::io::stdout().is_terminal();
    let mut out = std::io::stdout().lock();
    let mut tell = std::io::stderr().lock();
    let mut copied = Copied { show: true, terminal };
    let mut line = Vec::new();
    let mut reader = BufReader::with_capacity(64 << 10, std::io::stdin().lock());
    loop {
        let chunk = match reader.fill_buf() {
            Ok([]) => break,
            Ok(chunk) => chunk,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        copied.write(chunk, &mut out);
        let length = chunk.len();
        for part in chunk.split_inclusive(|octet| *octet == b'\n') {
            if line.len() <= MAX_LINE {
                line.extend_from_slice(part);
            }
            if part.ends_with(b"\n") {
                say(&line, &mut tell);
                line.clear();
            }
        }
        reader.consume(length);
    }
    say(&line, &mut tell);
}

struct Copied {
    /// Somebody reads it.
    show: bool,
    terminal: bool,
}

impl Copied {
    /// Claude goes on when nobody reads any more, and its result is told all the same.
    fn write(&mut self, chunk: &[u8], out: &mut impl Write) {
        if !self.show {
            return;
        }
        let written = if self.terminal {
            out.write_all(&harmless(chunk)).and_then(|()| out.flush())
        } else {
            out.write_all(chunk).and_then(|()| out.flush())
        };
        self.show = written.is_ok();
    }
}

/// What a terminal would act upon is left out: stream-json holds none of it, another program's output may.
fn harmless(chunk: &[u8]) -> Vec<u8> {
    let acts =
        |octet: u8| octet < 0x20 && !matches!(octet, b'\n' | b'\t' | b'\r') || octet == 0x7f || octet >= 0x80;
    chunk.iter().map(|octet| if acts(*octet) { b'?' } else { *octet }).collect()
}

fn say(line: &[u8], tell: &mut impl Write) {
    if line.len() > MAX_LINE {
        return;
    }
    if let Some(fact) = fact(line) {
        let mut text = serde_json::to_vec(&fact).unwrap_or_default();
        text.push(b'\n');
        // PID 1 reads to the end; without it there is nobody to tell.
        drop(tell.write_all(&text));
    }
}

/// What a line says, if it says something of the run.
#[must_use]
pub fn fact(line: &[u8]) -> Option<Fact> {
    if !line.starts_with(b"{") {
        return None;
    }
    let line: Line = serde_json::from_slice(line).ok()?;
    match line.kind.as_str() {
        "result" => {
            let text = line.result.unwrap_or_default();
            Some(Fact::Result(RunResult {
                is_error: line.is_error,
                subtype: crate::report::harmless(&line.subtype, 40),
                api_status: line.api_error_status.or_else(|| refused_with(&text)),
                text: crate::report::bounded(&text, MAX_TEXT),
                cost_microusd: Microusd::from_usd(line.total_cost_usd),
                turns: line.num_turns,
            }))
        }
        "rate_limit_event" => {
            let limit = line.rate_limit_info?;
            (limit.status == "rejected").then_some(Fact::Limited { until: limit.resets_at })
        }
        _ => None,
    }
}

/// Claude's words for a refusal of the API: `API Error: 529 …`.
fn refused_with(text: &str) -> Option<u16> {
    let rest = text.trim_start().strip_prefix("API Error: ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Fact, MAX_FACT, MAX_TEXT, RunResult, fact, harmless};
    use crate::money::Microusd;

    #[test]
    fn results_and_limits_are_understood() {
        let line = br#"{"type":"result","subtype":"success","is_error":false,"num_turns":3,"result":"All done.","total_cost_usd":0.0421,"usage":{"x":[1]}}"#;
        let done = RunResult {
            subtype: "success".into(),
            text: "All done.".into(),
            cost_microusd: Microusd(42_100),
            turns: 3,
            ..RunResult::default()
        };
        assert_eq!(fact(line), Some(Fact::Result(done)));
        let limited =
            br#"{"type":"rate_limit_event","rate_limit_info":{"status":"rejected","resetsAt":1795260000}}"#;
        assert_eq!(fact(limited), Some(Fact::Limited { until: Some(1_795_260_000) }));
        let allowed = br#"{"type":"rate_limit_event","rate_limit_info":{"status":"allowed"}}"#;
        assert_eq!(fact(allowed), None);
        let overloaded =
            br#"{"type":"result","is_error":true,"result":"API Error: 529 {\"type\":\"error\"}"}"#;
        let Some(Fact::Result(result)) = fact(overloaded) else { panic!() };
        assert_eq!((result.is_error, result.api_status), (true, Some(529)));
        for other in
            [&b""[..], b"{", b"[]", b"null", b"{}", br#"{"type":7}"#, b"\xff\xfe", br#"{"type":"assistant"}"#]
        {
            assert_eq!(fact(other), None);
        }
    }

    #[test]
    fn a_fact_is_small_whatever_was_said() {
        let long = serde_json::json!({ "type": "result", "subtype": "\u{1b}".repeat(9000), "result": "\u{1}".repeat(90_000) });
        let told = fact(long.to_string().as_bytes()).unwrap();
        assert!(serde_json::to_vec(&told).unwrap().len() < MAX_FACT);
        let Fact::Result(told) = told else { panic!() };
        assert!(told.text.chars().count() <= MAX_TEXT + 1 && !told.subtype.contains('\u{1b}'));
    }

    #[test]
    fn a_terminal_gets_nothing_that_acts_on_it() {
        assert_eq!(harmless(b"{\"a\":1}\n\x1b]52;c;x\x07\x9b2J"), b"{\"a\":1}\n?]52;c;x??2J");
    }
}
