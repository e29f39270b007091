//! What the configuration makes of Claude's comforts and telemetry: its managed settings, arguments and variables.

use super::host;
use super::places::agent_identity;
use crate::comforts::{ASIDE, ASIDE_FILE};
use crate::config::{Comfort, Config, Mode, Model, Requests};
use crate::control::protocol::ClaudeStart;
use crate::identity::claude::{ClaudePlan, comfort};
use crate::innkeeper::Innkeeper;
use crate::prerequisites::programs::CLAUDE;
use crate::supervisor::run_as::Identity;
use crate::telemetry;

/// Plugins are few; a directory of more is none of plugins.
const MAX_PLUGINS: usize = 64;

/// The managed settings of this box.
pub(super) fn plan(config: &Config) -> ClaudePlan {
    let claude = &config.claude;
    let mut hooks = Vec::new();
    if claude.has(Comfort::Notes) {
        let requests = if config.network.requests == Requests::Queue { " --requests" } else { "" };
        hooks.push(comfort("SessionStart", "", &format!("note{requests}"), 5));
    }
    if claude.has(Comfort::Hints) {
        for event in ["PostToolUse", "PostToolUseFailure"] {
            hooks.push(comfort(event, "Bash", "hint", 5));
        }
    }
    if let Some(patterns) = &claude.formatters {
        let path = shell_word(&patterns.display().to_string());
        hooks.push(comfort("PostToolUse", "Edit|Write|MultiEdit", &format!("format --patterns {path}"), 15));
    }
    // A headless run has nobody who looks for a name.
    if claude.has(Comfort::SessionNames) && config.session.mode == Mode::Tmux {
        for event in ["Stop", "UserPromptSubmit", "SessionStart"] {
            hooks.push(comfort(event, "", "name", 5));
        }
    }
    if claude.has(Comfort::SyncFork) {
        hooks.push(comfort("SessionStart", "", "sync-fork", 5));
    }
    let model_url = match &config.model {
        Model::Anthropic => Some("https://api.anthropic.com".to_owned()),
        Model::Gateway { url } => Some(url.as_str().to_owned()),
        Model::Bedrock { .. } | Model::Vertex { .. } => None,
    };
    ClaudePlan {
        model_url,
        env: config.telemetry.as_ref().map_or_else(telemetry::pinned_off, telemetry::Telemetry::pinned),
        status_line: claude.has(Comfort::StatusLine),
        hooks,
        instructions: claude.instructions.clone(),
    }
}

/// A Claude that answers one question of the box's own, by the cheapest model: without tools, without the telemetry and
/// the prompt of the session's, in a directory that is no project.
pub(crate) fn aside(innkeeper: &Innkeeper, question: String) -> std::io::Result<(Identity, ClaudeStart)> {
    let mark = std::fs::read_to_string(ASIDE_FILE)?;
    let plan = innkeeper.with_config(|config| host::session_plan(innkeeper, config, None));
    let mut env = plan.start.env;
    env.retain(|(name, _)| !name.starts_with("OTEL_") && !name.contains("TELEMETRY"));
    env.push((ASIDE.to_owned(), mark));
    let args = ["-p", "--model", "haiku", "--max-turns", "1", "--tools", "", "--no-session-persistence"];
    let start = ClaudeStart {
        program: CLAUDE.to_owned(),
        args: args.map(str::to_owned).to_vec(),
        env,
        cwd: "/".to_owned(),
        prompt: Some(question),
        resume: false,
        oauth_token: plan.start.oauth_token,
        files: plan.start.files,
    };
    Ok((agent_identity(innkeeper, "/"), start))
}

/// Claude gives a hook's command to a shell.
fn shell_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// `--plugin-dir` for each of the operator's plugins; the directory is the image's or a mount, never the agent's.
pub(super) fn plugin_arguments(innkeeper: &Innkeeper) -> Vec<String> {
    let Some(directory) = &innkeeper.config.claude.plugins else { return Vec::new() };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            innkeeper.board().warn(format!("no plugins: {}: {error}", directory.display()));
            return Vec::new();
        }
    };
    let mut plugins = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        if path.join(".claude-plugin/plugin.json").is_file() {
            plugins.push(path.display().to_string());
        } else {
            let path = crate::report::harmless(&path.display().to_string(), 200);
            innkeeper.board().warn(format!("{path} is no plugin: it has no .claude-plugin/plugin.json"));
        }
    }
    plugins.sort();
    if plugins.len() > MAX_PLUGINS {
        innkeeper.board().warn(format!("of {} plugins the first {MAX_PLUGINS} are given", plugins.len()));
        plugins.truncate(MAX_PLUGINS);
    }
    plugins.into_iter().flat_map(|path| ["--plugin-dir".to_owned(), path]).collect()
}

/// What Claude's process gets for its telemetry, the credential included.
pub(super) fn telemetry_variables(innkeeper: &Innkeeper, config: &Config) -> Vec<(String, String)> {
    let Some(telemetry) = &config.telemetry else { return Vec::new() };
    let mut own: Vec<(String, String)> = innkeeper.board().update(|report| {
        let named = [("box.id", report.box_.id.clone()), ("box.name", report.box_.name.clone())];
        named.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    });
    for (key, name) in [("fly.app_name", "FLY_APP_NAME"), ("fly.machine_id", "FLY_MACHINE_ID")] {
        own.extend(innkeeper.given(name).map(|value| (key.to_owned(), value.to_owned())));
    }
    own.retain(|(_, value)| !value.is_empty());
    telemetry.variables(&config.secrets, &own)
}
