//! What the configuration makes of Claude's comforts and telemetry: its managed settings, arguments and variables.

use crate::config::{Comfort, Config, Model, Requests};
use crate::identity::claude::{ClaudePlan, comfort};
use crate::innkeeper::Innkeeper;
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
pub(super) fn telemetry_variables(innkeeper: &Innkeeper) -> Vec<(String, String)> {
    let config = &innkeeper.config;
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
