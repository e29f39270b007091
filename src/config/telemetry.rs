//! `[telemetry]`: on when everything that it needs is given, and else off and silent.

use std::sync::Arc;

use super::Network;
use super::policy;
use super::problems::Problem;
use super::provider::{GRAFANA_TOKEN, GatewayUrl, OTLP_HEADERS};
use super::values::{Found, Values};
use crate::secrets::Secrets;
use crate::telemetry::{Authorization, Telemetry, attributes, headers};

const ENDPOINT: &str = "telemetry.endpoint";
const GRAFANA: &str = "telemetry.grafana_endpoint";
const INSTANCE: &str = "telemetry.grafana_instance";
/// Resource attributes are a few words.
const MAX_ATTRIBUTES: usize = 4096;

/// Decides whether there is telemetry, and lets the policy know its host.
pub(super) fn telemetry(
    values: &mut Values,
    secrets: &Secrets,
    network: &mut Network,
    warnings: &mut Vec<String>,
) -> Option<Telemetry> {
    // All are read, so that all that is wrong is said at once.
    let attributes = read_attributes(values);
    let content = [("off", false), ("on", true), ("0", false), ("1", true)];
    let prompts = values.choice("telemetry.log_prompts", false, &content);
    let tools = values.choice("telemetry.log_tools", false, &content);
    let instance = values.line(INSTANCE, |text| {
        (!text.trim().bytes().all(|byte| byte.is_ascii_alphanumeric())).then_some("it is not an instance id")
    });
    let grafana = endpoint(values, GRAFANA);
    let other = endpoint(values, ENDPOINT);
    let given = [values.is_set(INSTANCE), secrets.get(GRAFANA_TOKEN).is_some(), values.is_set(GRAFANA)];
    let (found, url, authorization) = if given.contains(&true) {
        let names = ["GRAFANA_INSTANCE_ID", GRAFANA_TOKEN, "GRAFANA_OTLP_ENDPOINT"];
        let missing: Vec<&str> =
            names.into_iter().zip(given).filter(|(_, given)| !given).map(|(name, _)| name).collect();
        if !missing.is_empty() {
            warnings.push(format!("telemetry is off: {} missing", is_are(&missing)));
            return None;
        }
        if values.is_set(ENDPOINT) {
            let place = values.place(ENDPOINT);
            warnings.push(format!("{place} is not used: telemetry goes to Grafana"));
        }
        let (found, url) = grafana?;
        (found, url, Authorization::Grafana { instance: instance?.trim().to_owned() })
    } else {
        let Some((found, url)) = other else {
            if secrets.get(OTLP_HEADERS).is_some() && !values.is_set(ENDPOINT) {
                warnings.push("telemetry is off: OTEL_EXPORTER_OTLP_ENDPOINT is missing".to_owned());
            }
            return None;
        };
        (found, url, Authorization::Headers)
    };
    check_headers(values, secrets, &authorization)?;
    let origin: Arc<str> = found.place.to_string().into();
    policy::allow_telemetry(values, network, &url, origin, warnings);
    Some(Telemetry {
        host: url.host.clone(),
        endpoint: url.as_str().to_owned(),
        authorization,
        attributes,
        prompts,
        tools,
    })
}

fn is_are(missing: &[&str]) -> String {
    let verb = if missing.len() == 1 { "is" } else { "are" };
    format!("{} {verb}", missing.join(" and "))
}

fn endpoint(values: &mut Values, key: &str) -> Option<(Found, GatewayUrl)> {
    let found = values.one(key).filter(|found| !found.text.trim().is_empty())?;
    // An address may hold a password by mistake: it is not shown.
    match GatewayUrl::parse(&found.text) {
        Ok(url) => Some((found, url)),
        Err(error) => {
            values.refuse_unseen(&found, error);
            None
        }
    }
}

fn read_attributes(values: &mut Values) -> Vec<(String, String)> {
    let Some(found) = values.one("telemetry.attributes") else { return Vec::new() };
    if found.text.len() > MAX_ATTRIBUTES || found.text.chars().any(char::is_control) {
        values.refuse(&found, "it is longer than 4096 octets, or holds a control character");
        return Vec::new();
    }
    attributes::parse(&found.text).unwrap_or_else(|why| {
        values.refuse(&found, why);
        Vec::new()
    })
}

/// Claude Code reads them so; a header that it would not understand is found at boot and not by missing numbers.
fn check_headers(values: &mut Values, secrets: &Secrets, authorization: &Authorization) -> Option<()> {
    let Some(secret) = secrets.get(OTLP_HEADERS).filter(|_| *authorization == Authorization::Headers) else {
        return Some(());
    };
    if let Err(why) = headers::read(secret.expose()) {
        let next = "give NAME=VALUE, several separated by commas, such as Authorization=Bearer TOKEN";
        values.problems.push(Problem::new(OTLP_HEADERS, format!("is not usable: {why}"), next));
        return None;
    }
    Some(())
}
