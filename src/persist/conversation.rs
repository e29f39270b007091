//! Which of Claude's files are its conversations, and what of `.claude.json` belongs to them. (pure)
//!
//! Conversations, plans and to-do lists are kept. Settings, hooks, servers, skills and credentials are not: a box begins
//! with those of its image.

use serde_json::{Map, Value};

use super::path::RelPath;

/// Below the home.
pub const DIRECTORY: &str = ".claude";
pub const STATE: &str = ".claude.json";
/// Directories of [`DIRECTORY`] that are kept with all that is in them.
pub const DIRECTORIES: &[&str] = &["projects", "todos", "tasks", "plans", "file-history"];
/// Files of it.
pub const FILES: &[&str] = &["history.jsonl"];
pub const MOST_FILES: usize = 50_000;
/// What is read of `.claude.json`, as `home` does.
pub const LARGEST_STATE: u64 = 64 << 20;

#[must_use]
pub fn is_kept(path: &RelPath) -> bool {
    let parts: Vec<&str> = path.parts().collect();
    match parts.as_slice() {
        [DIRECTORY, name] => FILES.contains(name),
        [DIRECTORY, directory, ..] => DIRECTORIES.contains(directory),
        _ => false,
    }
}

/// Whether it is what `--continue` in that directory goes on with.
#[must_use]
pub fn is_conversation_of(path: &RelPath, directory: &str) -> bool {
    // As Claude names them (seen).
    let directory: String =
        directory.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let parts: Vec<&str> = path.parts().collect();
    matches!(parts.as_slice(), [DIRECTORY, "projects", name, file] if *name == directory && file.ends_with(".jsonl"))
}

/// How Claude was used and in which conversations: numbers and names, nothing that it would execute or connect to.
fn is_of_conversations(key: &str) -> bool {
    matches!(key, "userID" | "numStartups" | "firstStartTime" | "promptQueueUseCount")
}

fn is_of_a_project(key: &str) -> bool {
    key == "history" || key.starts_with("last")
}

/// What of `.claude.json` is kept.
#[must_use]
pub fn of_state(state: &Value) -> Value {
    let mut kept = Map::new();
    let Value::Object(state) = state else { return Value::Object(kept) };
    kept.extend(state.iter().filter(|(key, _)| is_of_conversations(key)).map(owned));
    if let Some(Value::Object(projects)) = state.get("projects") {
        let of = |project: &Value| match project {
            Value::Object(project) => {
                Value::Object(project.iter().filter(|(key, _)| is_of_a_project(key)).map(owned).collect())
            }
            _ => Value::Object(Map::new()),
        };
        let projects = projects.iter().map(|(directory, project)| (directory.clone(), of(project)));
        kept.insert("projects".to_owned(), Value::Object(projects.collect()));
    }
    Value::Object(kept)
}

fn owned((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

/// Adds what was kept to the state that the home has. What is there stays, and what would not have been kept is not
/// believed.
#[must_use]
pub fn merge(mut state: Value, saved: &Value) -> Value {
    let saved = of_state(saved);
    let (Value::Object(there), Value::Object(saved)) = (&mut state, saved) else { return state };
    for (key, value) in saved {
        if key != "projects" {
            there.entry(key).or_insert(value);
            continue;
        }
        let projects = there.entry(key).or_insert_with(|| Value::Object(Map::new()));
        let (Value::Object(projects), Value::Object(saved)) = (projects, value) else { continue };
        for (directory, project) in saved {
            let known = projects.entry(directory).or_insert_with(|| Value::Object(Map::new()));
            if let (Value::Object(known), Value::Object(project)) = (known, project) {
                for (key, value) in project {
                    known.entry(key).or_insert(value);
                }
            }
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use super::{is_conversation_of, is_kept, merge, of_state};
    use crate::persist::path::RelPath;
    use serde_json::json;

    #[test]
    fn t206_conversations_are_kept_and_settings_are_not() {
        let kept = |text: &str| is_kept(&RelPath::try_from(text.to_owned()).unwrap());
        assert!(kept(".claude/projects/-workspace-repo/a.jsonl") && kept(".claude/history.jsonl"));
        for text in [
            ".claude/settings.json",
            ".claude/settings.local.json",
            ".claude/hooks/x",
            ".claude/skills/x/SKILL.md",
            ".claude/CLAUDE.md",
            ".claude/.credentials.json",
            ".claude/plugins/x",
            ".claude/agents/x.md",
            ".claude/projects",
            ".claude.json",
            ".bashrc",
            "projects/x",
        ] {
            assert!(!kept(text), "{text}");
        }
    }

    #[test]
    fn a_conversation_is_of_one_directory() {
        let path = |text: &str| RelPath::try_from(text.to_owned()).unwrap();
        let conversation = path(".claude/projects/-workspace-my-repo/a.jsonl");
        assert!(is_conversation_of(&conversation, "/workspace/my.repo"));
        assert!(!is_conversation_of(&conversation, "/workspace"));
        assert!(!is_conversation_of(&path(".claude/projects/-workspace/a/b.jsonl"), "/workspace"));
    }

    #[test]
    fn t206_nothing_of_the_state_that_claude_would_execute_comes_back() {
        let saved = json!({
            "userID": "u", "numStartups": 3, "mcpServers": {"x": {"command": "sh"}}, "apiKeyHelper": "sh",
            "env": {"ANTHROPIC_BASE_URL": "https://evil.test"}, "oauthAccount": {"x": 1}, "hooks": {},
            "projects": {"/workspace/repo": {
                "lastSessionId": "s", "history": [{"display": "hi"}], "mcpServers": {"x": {}},
                "allowedTools": ["*"], "hasTrustDialogAccepted": true, "enabledMcpjsonServers": ["x"]
            }, "/x": 7}
        });
        let kept = of_state(&saved);
        assert_eq!(
            kept,
            json!({"userID": "u", "numStartups": 3, "projects": {
                "/workspace/repo": {"lastSessionId": "s", "history": [{"display": "hi"}]}, "/x": {}}})
        );
        // A manifest that was written by hand is believed as little.
        let there =
            json!({"userID": "mine", "projects": {"/workspace/repo": {"hasTrustDialogAccepted": true}}});
        let merged = merge(there, &saved);
        assert_eq!(merged["userID"], "mine");
        assert_eq!(merged["projects"]["/workspace/repo"]["lastSessionId"], "s");
        assert!(
            merged["projects"]["/workspace/repo"]["mcpServers"].is_null() && merged["mcpServers"].is_null()
        );
        for odd in [json!(null), json!([1]), json!({"projects": []}), json!({"projects": {"a": null}})] {
            assert_eq!(merge(odd.clone(), &json!([])), odd);
        }
    }
}
