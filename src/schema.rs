//! `innkeeper schema`: JSON Schemas (2020-12) of what people write for the box and of what it says to programs.
//!
//! The one of the configuration is made from the table of settings. Those of the reports are derived from their types by
//! the tests, which keep the files below `schema/` true and judge real reports by them.

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use crate::config::settings::{Kind, SETTINGS, Setting, TomlType, Word, sections};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Subject {
    /// /etc/innkeeper/innkeeper.toml
    Config,
    /// `innkeeper status --json`
    Status,
    /// `innkeeper report --json`
    Report,
    /// A line of `log --json`, of log.file and of standard error with log.format=json
    Events,
}

const STATUS: &str = include_str!("schema/status.json");
const REPORT: &str = include_str!("schema/report.json");
const EVENTS: &str = include_str!("schema/events.json");

/// The schema as text.
#[must_use]
pub fn text(subject: Subject) -> String {
    match subject {
        Subject::Config => pretty(&configuration()),
        Subject::Status => STATUS.to_owned(),
        Subject::Report => REPORT.to_owned(),
        Subject::Events => EVENTS.to_owned(),
    }
}

fn pretty(schema: &Value) -> String {
    serde_json::to_string_pretty(schema).unwrap_or_default() + "\n"
}

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

fn configuration() -> Value {
    let section = |name: &str| {
        let rows = SETTINGS.iter().filter(|setting| setting.section() == name);
        let keys: Map<String, Value> =
            rows.map(|setting| (setting.name().to_owned(), key(setting))).collect();
        let table = json!({ "type": "object", "properties": keys, "additionalProperties": false });
        // [[repository]]: a list of tables.
        if name == "repository" { json!({ "type": "array", "items": table }) } else { table }
    };
    let properties: Map<String, Value> = sections().map(|name| (name.to_owned(), section(name))).collect();
    json!({
        "$schema": DRAFT,
        "title": "innkeeper.toml",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    })
}

fn key(setting: &Setting) -> Value {
    let mut schema = match setting.kind {
        Kind::Choice(words) => json!({ "enum": known(words) }),
        Kind::Words(words) => json!({ "type": "array", "items": { "enum": known(words) } }),
        Kind::Number { max } => json!({ "type": "integer", "minimum": 0, "maximum": max }),
        Kind::Path => json!({ "type": "string", "pattern": "^(/.*)?$" }),
        // Nothing but "not set" is possible yet.
        kind @ (Kind::Line
        | Kind::Text
        | Kind::Duration { .. }
        | Kind::Size
        | Kind::Url
        | Kind::Names
        | Kind::Rules
        | Kind::Addresses
        | Kind::Ports
        | Kind::Arguments) => match kind.toml_type() {
            TomlType::Strings => json!({ "type": "array", "items": { "type": "string" } }),
            TomlType::String | TomlType::Integer => json!({ "type": "string" }),
        },
    };
    let described = format!("{}; {}", setting.help, setting.kind.expected());
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("description".to_owned(), described.into());
        if !setting.default.is_empty() {
            schema.insert("x-default".to_owned(), setting.default.into());
        }
    }
    schema
}

fn known(words: &[Word]) -> Vec<&'static str> {
    words.iter().map(|word| word.word).collect()
}

#[cfg(test)]
mod tests;
