//! `innkeeper hook`, as the agent: Claude Code's own hooks run it, and it tells PID 1 what Claude does.
//!
//! Claude waits for it and would take what it prints for an order: it says nothing, ends well whatever happens, and gives
//! the box half a second. What it tells is hearsay: whoever runs as the agent can tell the same.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::Deserialize;

use crate::control::protocol::{MAX_REQUEST, Request, SOCKET, Turn};

/// A hook's input holds the prompt or the result of a tool; longer ones are not understood, and that is all.
const MAX_INPUT: u64 = 4 << 20;
/// A box that is slower than this is told nothing.
const PATIENCE: Duration = Duration::from_millis(500);
/// Characters of Claude's message that are told.
pub const MAX_TEXT: usize = 2000;

/// What of a hook's input counts (https://code.claude.com/docs/en/hooks).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Input {
    hook_event_name: String,
    source: String,
    notification_type: String,
    message: String,
    tool_name: String,
    last_assistant_message: String,
    error: serde_json::Value,
}

/// Tells what standard input says.
pub fn run() {
    if crate::comforts::is_aside() {
        return;
    }
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().take(MAX_INPUT).read_to_end(&mut bytes);
    if read.is_ok()
        && let Ok(input) = serde_json::from_slice(&bytes)
        && let Some((turn, text)) = meaning(&input)
    {
        // A box that does not listen is no business of Claude's.
        tell(&request(turn, text)).ok();
    }
}

fn meaning(input: &Input) -> Option<(Turn, &str)> {
    match input.hook_event_name.as_str() {
        "UserPromptSubmit" | "PostToolUse" => Some((Turn::Began, "")),
        "PreToolUse" => Some((Turn::Asks, "a question")),
        "Notification" => match input.notification_type.as_str() {
            "" | "permission_prompt" | "idle_prompt" | "elicitation_dialog" => {
                Some((Turn::Asks, &input.message))
            }
            _ => None,
        },
        "Stop" => Some((Turn::Ended, &input.last_assistant_message)),
        "StopFailure" => Some((Turn::Failed, input.error.as_str().unwrap_or("an error of the model's API"))),
        // In the middle of its work Claude makes room for more of it.
        "SessionStart" if input.source != "compact" => Some((Turn::Idle, "")),
        _ => None,
    }
}

/// Within the size that PID 1 takes of the agent.
fn request(turn: Turn, text: &str) -> Vec<u8> {
    let mut characters = MAX_TEXT;
    loop {
        let text = crate::report::bounded(text, characters);
        let mut line = serde_json::to_vec(&Request::Hook { turn, text }).unwrap_or_default();
        line.push(b'\n');
        if line.len() < MAX_REQUEST || characters == 0 {
            return line;
        }
        characters = characters * 3 / 4;
    }
}

fn tell(line: &[u8]) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(SOCKET)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(line)?;
    // The next hook's news must not overtake this one's.
    BufReader::new(stream).take(1024).read_line(&mut String::new()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::{Input, MAX_TEXT, meaning, request};
    use crate::control::protocol::{MAX_REQUEST, Request, Turn};

    #[test]
    fn hooks_mean_what_claude_does() {
        for (text, wanted) in [
            (r#"{"hook_event_name":"UserPromptSubmit","prompt":"x"}"#, Some((Turn::Began, ""))),
            (r#"{"hook_event_name":"Stop","last_assistant_message":"Done."}"#, Some((Turn::Ended, "Done."))),
            (r#"{"hook_event_name":"Stop"}"#, Some((Turn::Ended, ""))),
            (r#"{"hook_event_name":"StopFailure","error":"rate_limit"}"#, Some((Turn::Failed, "rate_limit"))),
            (
                r#"{"hook_event_name":"Notification","notification_type":"permission_prompt","message":"may I?"}"#,
                Some((Turn::Asks, "may I?")),
            ),
            (r#"{"hook_event_name":"Notification","notification_type":"auth_success"}"#, None),
            (r#"{"hook_event_name":"SessionStart","source":"startup"}"#, Some((Turn::Idle, ""))),
            (r#"{"hook_event_name":"SessionStart","source":"compact"}"#, None),
            (r#"{"hook_event_name":"Else"}"#, None),
            ("{}", None),
        ] {
            let input: Input = serde_json::from_str(text).unwrap();
            assert_eq!(meaning(&input), wanted, "{text}");
        }
    }

    #[test]
    fn a_message_of_any_size_and_script_fits() {
        for text in ["a".repeat(100_000), "\u{1f980}".repeat(5000), "\u{0}".repeat(5000), "\"".repeat(5000)] {
            let line = request(Turn::Ended, &text);
            assert!(line.len() <= MAX_REQUEST);
            let line = String::from_utf8(line).unwrap();
            let Request::Hook { text, .. } = Request::parse(line.trim_end()).unwrap() else {
                panic!("{line}")
            };
            assert!((500..=MAX_TEXT + 1).contains(&text.chars().count()));
        }
    }
}
