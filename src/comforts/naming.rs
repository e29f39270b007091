//! Names a conversation: asks PID 1 for it after a turn, and tells Claude before the next.
//!
//! The model is asked by PID 1, which holds the credential; here is none. Only the first words of the conversation go
//! there, as hearsay.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::input::{self, Hook};
use crate::control::client;
use crate::control::protocol::{MAX_REQUEST, Request, Response};

pub(super) const LIMIT: Duration = Duration::from_secs(3);
/// Characters of the prompt and of the answer.
const MAX_TEXT: usize = 1000;
/// The first prompt stands at the beginning of a conversation's file.
const MAX_TRANSCRIPT: u64 = 256 << 10;

pub(super) fn run() -> String {
    let Some(hook) = input::hook().filter(|hook| is_id(&hook.session_id)) else { return String::new() };
    let told = told_file(&hook.session_id);
    if std::fs::symlink_metadata(&told).is_ok() {
        return String::new();
    }
    let text = if hook.hook_event_name == "Stop" { beginning(&hook) } else { String::new() };
    let Ok(Response::Named { name: Some(name) }) = client::ask(&request(&hook.session_id, &text)) else {
        return String::new();
    };
    if !matches!(hook.hook_event_name.as_str(), "UserPromptSubmit" | "SessionStart") {
        return String::new();
    }
    // Once: after that the name is the person's who works with it.
    drop(std::fs::OpenOptions::new().write(true).create_new(true).open(told));
    json!({ "hookSpecificOutput": { "hookEventName": hook.hook_event_name, "sessionTitle": name } })
        .to_string()
}

/// A UUID, as Claude Code has them: it becomes part of a path.
#[must_use]
pub(super) fn is_id(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

/// Says that Claude has been told, in the agent's own directory.
fn told_file(id: &str) -> PathBuf {
    let directory = crate::filesystem::layout::runtime_directory(nix::unistd::getuid().as_raw());
    Path::new(&directory).join(format!("named-{id}"))
}

/// The hook may take five seconds.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(50);

/// What the person said first, and what Claude answered last.
fn beginning(hook: &Hook) -> String {
    let until = Instant::now() + PATIENCE;
    let mut prompt = first_prompt(Path::new(&hook.transcript_path));
    // A short first turn ends before its transcript is written.
    while prompt.is_none() && Instant::now() < until {
        std::thread::park_timeout(LOOK);
        prompt = first_prompt(Path::new(&hook.transcript_path));
    }
    let prompt = prompt.unwrap_or_default();
    let cut = |text: &str| text.chars().take(MAX_TEXT).collect::<String>();
    format!("{}\n\n{}", cut(&prompt), cut(&hook.last_assistant_message)).trim().to_owned()
}

fn first_prompt(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    let file = std::fs::metadata(path)
        .ok()
        .filter(std::fs::Metadata::is_file)
        .and_then(|_| std::fs::File::open(path).ok())?;
    file.take(MAX_TRANSCRIPT).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|line| {
        let content = (line.get("type")? == "user").then(|| line.pointer("/message/content"))??;
        let first = content.get(0).and_then(|block| block.get("text"));
        content.as_str().or_else(|| first.and_then(Value::as_str)).map(str::to_owned)
    })
}

/// Within the size that PID 1 takes of the agent.
fn request(id: &str, text: &str) -> Request {
    let mut characters = 2 * MAX_TEXT + 2;
    loop {
        let text: String = text.chars().take(characters).collect();
        let request = Request::Name { conversation: id.to_owned(), text };
        let length = serde_json::to_vec(&request).map_or(0, |line| line.len());
        if length < MAX_REQUEST || characters == 0 {
            return request;
        }
        characters = characters * 3 / 4;
    }
}

#[cfg(test)]
mod tests {
    use super::{is_id, request};
    use crate::control::protocol::MAX_REQUEST;

    #[test]
    fn an_id_is_a_uuid_and_no_path() {
        assert!(is_id("7e9dfdc7-e6c5-4e88-b899-405cb8cc2f67"));
        for bad in ["", "../../../../../../../../etc/passwd..", "7e9dfdc7-e6c5-4e88-b899-405cb8cc2f6/", "x"] {
            assert!(!is_id(bad), "{bad}");
        }
    }

    #[test]
    fn any_text_fits_a_request() {
        for text in ["a".repeat(9000), "\u{0}".repeat(9000), "\u{1f980}".repeat(9000)] {
            let line = serde_json::to_vec(&request("7e9dfdc7-e6c5-4e88-b899-405cb8cc2f67", &text)).unwrap();
            assert!(line.len() < MAX_REQUEST);
        }
    }
}
