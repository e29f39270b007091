//! Telemetry of Claude Code: which variables make it, and which of its settings nobody else may turn. (pure)
//!
//! Claude Code exports by itself, straight to the collector; Innkeeper sends nothing. The header with the credential
//! is in the environment of Claude's process alone: Claude takes every `OTEL_*` out of its children's (seen with
//! 2.1.329), and its own can't be read, since its program can't. Where it goes to is in the managed settings too,
//! because the settings in the agent's home would turn it elsewhere, header and all (seen).

pub mod attributes;
pub mod headers;

use crate::allowlist::DomainName;
use crate::config::provider::{GRAFANA_TOKEN, OTLP_HEADERS};
use crate::secrets::Secrets;

/// How the collector knows us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authorization {
    /// The instance's number and the secret token, as HTTP's Basic.
    Grafana { instance: String },
    /// The secret OTEL_EXPORTER_OTLP_HEADERS, if there is one.
    Headers,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telemetry {
    pub host: DomainName,
    /// An https address without user, query and final slash.
    pub endpoint: String,
    pub authorization: Authorization,
    /// The operator's, which win.
    pub attributes: Vec<(String, String)>,
    /// Whether content is in it: what Claude is told, and what its tools are given.
    pub prompts: bool,
    pub tools: bool,
}

/// What of the signals Claude Code has, and the last part of its address.
const SIGNALS: [(&str, &str); 3] = [("METRICS", "metrics"), ("LOGS", "logs"), ("TRACES", "traces")];

fn switch(on: bool) -> String {
    if on { "1" } else { "0" }.to_owned()
}

impl Telemetry {
    /// What nobody but the operator decides: for the managed settings, which win over every other. None is secret.
    #[must_use]
    pub fn pinned(&self) -> Vec<(String, String)> {
        let mut pinned = vec![
            ("CLAUDE_CODE_ENABLE_TELEMETRY".to_owned(), "1".to_owned()),
            // Without it there are no traces.
            ("CLAUDE_CODE_ENHANCED_TELEMETRY_BETA".to_owned(), "1".to_owned()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL".to_owned(), "http/protobuf".to_owned()),
            ("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), self.endpoint.clone()),
            ("OTEL_LOG_USER_PROMPTS".to_owned(), switch(self.prompts)),
            ("OTEL_LOG_ASSISTANT_RESPONSES".to_owned(), switch(self.prompts)),
            ("OTEL_LOG_TOOL_DETAILS".to_owned(), switch(self.tools)),
            ("OTEL_LOG_TOOL_CONTENT".to_owned(), switch(self.tools)),
            // Whole requests, system prompt and all: more than either switch says.
            ("OTEL_LOG_RAW_API_BODIES".to_owned(), switch(false)),
        ];
        for (signal, path) in SIGNALS {
            pinned.push((format!("OTEL_{signal}_EXPORTER"), "otlp".to_owned()));
            pinned.push((format!("OTEL_EXPORTER_OTLP_{signal}_PROTOCOL"), "http/protobuf".to_owned()));
            let endpoint = format!("{}/v1/{path}", self.endpoint);
            pinned.push((format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"), endpoint));
        }
        pinned
    }

    /// What Claude's process gets, the credential included; `own` are the box's attributes.
    #[must_use]
    pub fn variables(&self, secrets: &Secrets, own: &[(String, String)]) -> Vec<(String, String)> {
        let mut variables = self.pinned();
        let attributes = attributes::join(own, &self.attributes);
        variables.push(("OTEL_RESOURCE_ATTRIBUTES".to_owned(), attributes));
        if let Some(headers) = self.headers(secrets) {
            variables.push((OTLP_HEADERS.to_owned(), headers));
        }
        variables
    }

    fn headers(&self, secrets: &Secrets) -> Option<String> {
        match &self.authorization {
            Authorization::Grafana { instance } => {
                let token = secrets.get(GRAFANA_TOKEN)?.expose().trim();
                Some(format!("Authorization={}", headers::basic(instance, token)))
            }
            // That it can be read was found at boot.
            Authorization::Headers => headers::read(secrets.get(OTLP_HEADERS)?.expose()).ok(),
        }
    }

    /// For `status`.
    #[must_use]
    pub fn summary(&self) -> String {
        let content = match (self.prompts, self.tools) {
            (false, false) => "no content",
            (true, false) => "with prompts",
            (false, true) => "with the arguments of tools",
            (true, true) => "with prompts and the arguments of tools",
        };
        format!("{} ({content})", self.endpoint)
    }
}

/// Where there is none: the agent's own settings must not switch it on.
#[must_use]
pub fn pinned_off() -> Vec<(String, String)> {
    vec![("CLAUDE_CODE_ENABLE_TELEMETRY".to_owned(), "0".to_owned())]
}

#[cfg(test)]
mod tests {
    use super::{Authorization, Telemetry};
    use crate::allowlist::DomainName;
    use crate::secrets::{Credential, Holder, Secret, SecretName, SecretSource, Secrets};

    fn secrets(name: &str, value: &str) -> Secrets {
        let mut secrets = Secrets::default();
        secrets.insert(Credential {
            name: SecretName::parse(name).unwrap(),
            value: Secret::new(value.into()),
            source: SecretSource::Env,
            held_by: Holder::Agent,
        });
        secrets
    }

    fn telemetry(authorization: Authorization) -> Telemetry {
        Telemetry {
            host: DomainName::parse("otlp.example").unwrap(),
            endpoint: "https://otlp.example/otlp".into(),
            authorization,
            attributes: vec![("box.id".into(), "mine".into())],
            prompts: false,
            tools: true,
        }
    }

    fn of<'a>(variables: &'a [(String, String)], name: &str) -> Option<&'a str> {
        variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn the_header_is_grafanas_basic_and_only_in_claudes_environment() {
        let grafana = telemetry(Authorization::Grafana { instance: "1234".into() });
        let own = [("box.id".to_owned(), "abc".to_owned()), ("box.name".to_owned(), "n".to_owned())];
        let variables = grafana.variables(&secrets("GRAFANA_API_TOKEN", "glc_x"), &own);
        // printf %s 1234:glc_x | base64
        let header = of(&variables, "OTEL_EXPORTER_OTLP_HEADERS");
        assert_eq!(header, Some("Authorization=Basic MTIzNDpnbGNfeA=="));
        assert_eq!(of(&variables, "OTEL_RESOURCE_ATTRIBUTES"), Some("box.name=n,box.id=mine"));
        assert!(grafana.pinned().iter().all(|(name, _)| !name.contains("HEADERS")));
        assert_eq!(
            of(&variables, "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"),
            Some("https://otlp.example/otlp/v1/logs")
        );
    }

    #[test]
    fn content_is_off_unless_it_was_switched_on() {
        let pinned = telemetry(Authorization::Headers).pinned();
        assert_eq!(of(&pinned, "OTEL_LOG_USER_PROMPTS"), Some("0"));
        assert_eq!(of(&pinned, "OTEL_LOG_TOOL_DETAILS"), Some("1"));
        assert_eq!(of(&pinned, "OTEL_LOG_RAW_API_BODIES"), Some("0"));
    }
}
