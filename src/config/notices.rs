//! `[notices]`: a program that is root's, and a webhook that the policy lets through.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use zeroize::Zeroizing;

use super::Notices;
use super::credentials::Seen;
use super::problems::Problem;
use super::provider::WEBHOOK;
use super::raw::Place;
use super::values::Values;
use crate::allowlist::{Allowlist, DEFAULT_PORT, Rule, Verdict};
use crate::notices::Kind;
use crate::notices::webhook::Webhook;
use crate::secrets::{Credential, Holder, Secret, SecretName, SecretSource, Secrets};

/// What the agent can write: a program there would be the agent's.
pub(super) const AGENTS: [&str; 6] = ["/workspace", "/tmp", "/var/tmp", "/home", "/dev/shm", "/run"];

pub(super) fn notices(
    values: &mut Values,
    secrets: &mut Secrets,
    seen: &mut Seen,
    rules: &[Rule],
) -> Notices {
    let words = values.words("notices.on");
    let on = Kind::ALL.into_iter().filter(|kind| words.iter().any(|word| word == kind.as_str())).collect();
    Notices { command: command(values), webhook: webhook(values, secrets, seen, rules), on }
}

fn command(values: &mut Values) -> Vec<String> {
    let command = values.arguments("notices.command");
    let Some(program) = command.first() else { return command };
    let path = Path::new(program);
    let why = if !path.is_absolute() || program.contains("..") {
        Some("is not an absolute path")
    } else if AGENTS.iter().any(|place| path.starts_with(place)) {
        Some("is where the agent can write")
    } else {
        match std::fs::metadata(path) {
            Ok(found) if found.is_file() && found.permissions().mode() & 0o001 != 0 => None,
            Ok(_) => Some("is no program that everybody may execute"),
            Err(_) => Some("is not there"),
        }
    };
    if let Some(why) = why {
        let message = format!("notices.command: its program {why}");
        let next = "name a program of the image's or of a read-only mount, such as /opt/notices/send";
        values.problems.push(Problem::new(values.place("notices.command").to_string(), message, next));
    }
    command
}

fn webhook(values: &mut Values, secrets: &mut Secrets, seen: &mut Seen, rules: &[Rule]) -> Option<Webhook> {
    if let Some(found) = values.one("notices.webhook").filter(|found| !found.text.trim().is_empty()) {
        let text = found.text.trim();
        seen.push((WEBHOOK.to_owned(), Zeroizing::new(text.to_owned())));
        if secrets.get(WEBHOOK).is_some_and(|other| other.expose().trim() != text) {
            let message = format!("{WEBHOOK} and notices.webhook hold two different values");
            values.problems.push(Problem::new(found.place.to_string(), message, "remove one of them"));
        }
        let source = match &found.place {
            Place::File { path, .. } => SecretSource::File(path.into()),
            Place::Variable(_) | Place::Default => SecretSource::Env,
        };
        let name = SecretName::parse(WEBHOOK).ok()?;
        let value = Secret::new(text.to_owned());
        secrets.insert(Credential { name, value, source, held_by: Holder::Helper });
    }
    match Webhook::parse(secrets.get(WEBHOOK)?.expose()) {
        Ok(webhook) => {
            values.problems.extend(not_allowed(&webhook, rules));
            Some(webhook)
        }
        Err(error) => {
            let next = "give the address as the service shows it, such as https://hooks.example.org/path";
            values.problems.push(Problem::new(WEBHOOK, format!("is not usable: {error}"), next));
            None
        }
    }
}

/// The line that is missing.
fn not_allowed(webhook: &Webhook, rules: &[Rule]) -> Option<Problem> {
    let Webhook { host, port, .. } = webhook;
    let allowlist = Allowlist::new(rules.iter().cloned());
    let why = match allowlist.verdict(host) {
        Verdict::Allowed(allowed) if allowed.ports.contains(port) => return None,
        Verdict::Allowed(_) => format!("not on port {port}"),
        Verdict::Denied(denied) => denied.to_string(),
    };
    let rule = if *port == DEFAULT_PORT { host.to_string() } else { format!("{host}:{port}") };
    let message = format!("the webhook's host {host} is not allowed: {why}");
    let next = format!("add the line {rule} to network/domains.conf, or {rule} to network.allow");
    Some(Problem::new("notices.webhook", message, next))
}
