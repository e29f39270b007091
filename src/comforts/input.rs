//! What Claude Code gives to hooks and to its status line, on standard input: bounded, and believed in nothing.

use std::io::Read;

use serde::Deserialize;
use serde_json::Value;

/// A hook's input holds what a tool was given and what it brought; a longer one is not understood, and that is all.
const MAX_INPUT: u64 = 8 << 20;

/// All of standard input that is JSON.
pub(super) fn read() -> Option<Value> {
    parse(std::io::stdin().lock())
}

pub(super) fn parse(input: impl Read) -> Option<Value> {
    let mut bytes = Vec::new();
    input.take(MAX_INPUT).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// What of a hook's input counts. A field of another type than expected makes the whole of it nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Hook {
    pub(super) hook_event_name: String,
    pub(super) session_id: String,
    pub(super) transcript_path: String,
    pub(super) last_assistant_message: String,
    pub(super) source: String,
    pub(super) tool_name: String,
    pub(super) tool_input: Value,
    pub(super) tool_response: Value,
    pub(super) duration_ms: Option<u64>,
    pub(super) is_interrupt: bool,
}

pub(super) fn hook() -> Option<Hook> {
    serde_json::from_value(read()?).ok()
}

#[cfg(test)]
pub(super) const HOSTILE: [&str; 14] = [
    "",
    "{",
    "null",
    "[]",
    "42",
    "\"text\"",
    "not JSON at all",
    "{}",
    r#"{"hook_event_name":7}"#,
    r#"{"hook_event_name":"PostToolUse","tool_name":"Bash","duration_ms":-1}"#,
    r#"{"hook_event_name":"PostToolUse","tool_name":"Write","tool_input":{"file_path":["x"]}}"#,
    r#"{"hook_event_name":"PostToolUse","tool_name":"Write","tool_input":"x","tool_response":null}"#,
    r#"{"model":{"display_name":"\u001b]52;c;eA==\u0007\u202e\n\nx"},"context_window":{"used_percentage":1e308}}"#,
    r#"{"model":null,"context_window":[],"cost":{"total_cost_usd":-1e300},"rate_limits":{"five_hour":5}}"#,
];

#[cfg(test)]
mod tests {
    use super::{HOSTILE, MAX_INPUT, parse};

    #[test]
    fn what_is_not_json_or_too_long_is_nothing() {
        assert!(HOSTILE.iter().take(2).all(|text| parse(text.as_bytes()).is_none()));
        let long = std::io::repeat(b'[').take(MAX_INPUT * 2);
        assert!(parse(long).is_none());
        // Deep nesting is an error of the parser's, not the end of the stack.
        assert!(parse("[".repeat(200_000).as_bytes()).is_none());
        assert!(parse("{\"a\":".repeat(100_000).as_bytes()).is_none());
        assert!(parse(&b"\xff\xfe{}"[..]).is_none());
    }
    use std::io::Read;
}
