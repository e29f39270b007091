//! Claude Code's managed settings, which win over the user's and the repository's. (pure)
//!
//! Without them a repository's `.claude/settings.json` could send the token elsewhere: `ANTHROPIC_BASE_URL` and proxies
//! there are obeyed (seen).

use serde_json::{Value, json};

/// What of the settings the box decides by its configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClaudePlan {
    /// Where Claude Code reaches its model, where that is an address of its own.
    pub model_url: Option<String>,
    /// Variables that no other settings may turn.
    pub env: Vec<(String, String)>,
    pub status_line: bool,
    /// Each hook that is on: its event, what it is for, its command and its seconds.
    pub hooks: Vec<Hook>,
    /// The operator's CLAUDE.md.
    pub instructions: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    pub event: &'static str,
    /// A regular expression over tools or sources; blank is all.
    pub matcher: &'static str,
    pub command: String,
    pub seconds: u8,
}

const INNKEEPER: &str = "/usr/local/bin/innkeeper";

/// A hook that runs one of the comforts.
#[must_use]
pub fn comfort(event: &'static str, matcher: &'static str, what: &str, seconds: u8) -> Hook {
    Hook { event, matcher, command: format!("{INNKEEPER} comfort {what}"), seconds }
}

/// The text of the file.
#[must_use]
pub fn settings(plan: &ClaudePlan) -> String {
    let mut env = serde_json::Map::new();
    for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        env.insert(proxy.to_owned(), "".into());
    }
    env.insert("DISABLE_AUTOUPDATER".to_owned(), "1".into());
    if let Some(url) = &plan.model_url {
        env.insert("ANTHROPIC_BASE_URL".to_owned(), url.as_str().into());
    }
    env.extend(plan.env.iter().map(|(name, value)| (name.clone(), value.as_str().into())));
    let mut settings = json!({
        "skipDangerousModePermissionPrompt": true,
        "permissions": { "disableAutoMode": "disable" },
        "env": env,
        "hooks": hooks(plan),
    });
    if let Value::Object(settings) = &mut settings {
        // Off is its line: cost and limits PID 1 learns by no other way.
        let silent = if plan.status_line { "" } else { " --silent" };
        let command = format!("{INNKEEPER} comfort status-line{silent}");
        settings
            .insert("statusLine".to_owned(), json!({ "type": "command", "command": command, "padding": 0 }));
    }
    format!("{settings:#}\n")
}

fn hooks(plan: &ClaudePlan) -> Value {
    let mut events = serde_json::Map::new();
    for hook in told().iter().chain(&plan.hooks) {
        let run = json!([{ "type": "command", "command": hook.command, "timeout": hook.seconds }]);
        let entry = json!({ "matcher": hook.matcher, "hooks": run });
        match events.get_mut(hook.event) {
            Some(Value::Array(entries)) => entries.push(entry),
            Some(_) | None => drop(events.insert(hook.event.to_owned(), json!([entry]))),
        }
    }
    Value::Object(events)
}

/// By these PID 1 learns whether Claude works or waits for a person. Those around tools are for the two that ask one.
fn told() -> Vec<Hook> {
    let asks = "AskUserQuestion|ExitPlanMode";
    let events = [
        ("SessionStart", ""),
        ("UserPromptSubmit", ""),
        ("PreToolUse", asks),
        ("PostToolUse", asks),
        ("Notification", ""),
        ("Stop", ""),
        ("StopFailure", ""),
    ];
    let hook = |(event, matcher)| Hook { event, matcher, command: format!("{INNKEEPER} hook"), seconds: 5 };
    events.map(hook).into()
}

#[cfg(test)]
mod tests {
    use super::{ClaudePlan, comfort, settings};

    #[test]
    fn every_hook_of_an_event_is_kept_and_what_is_off_is_not_there() {
        let plan = ClaudePlan {
            status_line: true,
            hooks: vec![
                comfort("SessionStart", "", "note", 5),
                comfort("PostToolUse", "Bash", "hint", 5),
                comfort("PostToolUseFailure", "Bash", "hint", 5),
            ],
            env: vec![("CLAUDE_CODE_ENABLE_TELEMETRY".into(), "0".into())],
            ..ClaudePlan::default()
        };
        let text: serde_json::Value = serde_json::from_str(&settings(&plan)).unwrap();
        assert_eq!(text["hooks"]["SessionStart"].as_array().unwrap().len(), 2);
        assert_eq!(text["hooks"]["PostToolUse"][1]["matcher"], "Bash");
        assert_eq!(text["hooks"]["PostToolUseFailure"][0]["hooks"][0]["timeout"], 5);
        assert_eq!(text["statusLine"]["command"], "/usr/local/bin/innkeeper comfort status-line");
        assert_eq!(text["env"]["CLAUDE_CODE_ENABLE_TELEMETRY"], "0");
        let bare = settings(&ClaudePlan::default());
        assert!(!bare.contains("comfort note") && bare.contains("innkeeper hook"), "{bare}");
        assert!(bare.contains("innkeeper comfort status-line --silent"), "{bare}");
    }
}
