//! Who serves the model: which credentials that takes, which names, and what Claude Code is told.  (pure)

use std::fmt::Write as _;

use super::repository::{RepoUrl, RepoUrlError};
use crate::allowlist::{DEFAULT_PORT, DomainName, NameError};
use crate::secrets::{Credential, Holder, Secret, Secrets, shape::Shape};

/// Who serves the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    Anthropic,
    Bedrock,
    Vertex,
    Gateway,
}

impl Provider {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::Bedrock => "bedrock",
            Self::Vertex => "vertex",
            Self::Gateway => "gateway",
        }
    }

    /// Sets of credentials, one of which must be complete. The first complete one is used.
    #[must_use]
    pub fn credentials(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Anthropic => &[&["CLAUDE_CODE_OAUTH_TOKEN"], &["ANTHROPIC_API_KEY"]],
            Self::Bedrock => {
                &[&["AWS_BEARER_TOKEN_BEDROCK"], &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]]
            }
            Self::Vertex => &[&["GOOGLE_APPLICATION_CREDENTIALS"]],
            Self::Gateway => &[&["ANTHROPIC_AUTH_TOKEN"]],
        }
    }

    /// The settings that it needs, and those of other providers that it has no use for.
    #[must_use]
    pub fn settings(self) -> &'static [&'static str] {
        match self {
            Self::Anthropic => &[],
            Self::Bedrock => &["model.aws_region"],
            Self::Vertex => &["model.vertex_region", "model.vertex_project"],
            Self::Gateway => &["model.base_url"],
        }
    }
}

/// Every setting that belongs to one provider alone.
pub const PROVIDER_SETTINGS: [&str; 4] =
    ["model.aws_region", "model.vertex_region", "model.vertex_project", "model.base_url"];

/// What is known of a credential before anybody gives it.
#[derive(Debug, Clone, Copy)]
pub struct SecretSpec {
    pub name: &'static str,
    /// Names that other tools use for the same.
    pub aliases: &'static [&'static str],
    pub shape: Shape,
    pub held_by: Holder,
    pub help: &'static str,
    /// How to come by one.
    pub obtain: &'static str,
    /// The variable `NAME` holds a path already, as its makers defined it.
    pub is_path: bool,
}

const fn spec(name: &'static str, shape: Shape, help: &'static str, obtain: &'static str) -> SecretSpec {
    SecretSpec { name, aliases: &[], shape, held_by: Holder::Agent, help, obtain, is_path: false }
}

/// The secret that `notices.webhook` is.
pub const WEBHOOK: &str = "NOTICES_WEBHOOK";

/// The secret that `network.proxy` is.
pub const PROXY: &str = "NETWORK_PROXY";

/// The secrets of telemetry.
pub const GRAFANA_TOKEN: &str = "GRAFANA_API_TOKEN";
pub const OTLP_HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";

/// The credentials that Innkeeper knows by name.
pub const SECRETS: &[SecretSpec] = &[
    spec(
        "CLAUDE_CODE_OAUTH_TOKEN",
        Shape::ClaudeOauth,
        "Claude with a subscription",
        "run `claude setup-token` on a machine with a browser",
    ),
    spec(
        "ANTHROPIC_API_KEY",
        Shape::AnthropicKey,
        "Claude by the Anthropic API",
        "create a key at https://platform.claude.com",
    ),
    SecretSpec {
        aliases: &["GH_PAT", "GITHUB_TOKEN"],
        held_by: Holder::Helper,
        ..spec(
            "GH_TOKEN",
            Shape::Github,
            "git and gh",
            "create a fine-grained token at https://github.com/settings/personal-access-tokens",
        )
    },
    spec(
        "AWS_BEARER_TOKEN_BEDROCK",
        Shape::Line,
        "Amazon Bedrock",
        "create an API key in the console of Bedrock",
    ),
    spec("AWS_ACCESS_KEY_ID", Shape::Line, "Amazon Bedrock", "create an access key in IAM"),
    spec("AWS_SECRET_ACCESS_KEY", Shape::Line, "Amazon Bedrock", "create an access key in IAM"),
    spec(
        "AWS_SESSION_TOKEN",
        Shape::Line,
        "Amazon Bedrock, with temporary keys",
        "it comes with temporary access keys",
    ),
    SecretSpec {
        is_path: true,
        ..spec(
            "GOOGLE_APPLICATION_CREDENTIALS",
            Shape::Json,
            "Google Vertex AI; the variable is the path of the JSON file",
            "create a key of a service account in IAM",
        )
    },
    spec("ANTHROPIC_AUTH_TOKEN", Shape::Line, "a gateway to the model", "ask whoever runs the gateway"),
    SecretSpec {
        held_by: Holder::Helper,
        ..spec(
            WEBHOOK,
            Shape::Line,
            "notices: the address that they are POSTed to",
            "create a webhook at the service that is to show them",
        )
    },
    SecretSpec {
        held_by: Holder::Helper,
        ..spec(
            PROXY,
            Shape::Line,
            "the proxy through which the world is reached",
            "ask whoever runs the network for http://USER:PASSWORD@HOST:PORT",
        )
    },
    // Claude's process needs them; its children do not get them (telemetry.rs).
    spec(
        GRAFANA_TOKEN,
        Shape::Line,
        "telemetry to Grafana Cloud",
        "create a token with the scope of OTLP in Grafana Cloud",
    ),
    spec(
        OTLP_HEADERS,
        Shape::Headers,
        "telemetry: NAME=VALUE of headers, separated by commas",
        "ask whoever runs the collector",
    ),
];

/// The table of credentials for `docs/configuration.md`.
#[must_use]
pub fn secrets_markdown() -> String {
    let mut out = String::from("| name | for | held by | also |\n| --- | --- | --- | --- |\n");
    for spec in SECRETS {
        let also = spec.aliases.iter().map(|alias| format!("`{alias}`")).collect::<Vec<_>>().join(", ");
        // Writing to a String can't fail.
        writeln!(out, "| `{}` | {} | {} | {also} |", spec.name, spec.help, spec.held_by.as_str())
            .unwrap_or_default();
    }
    out.push_str("\nRequired is one complete set of the provider's, and what `secrets.required` names:\n\n");
    for provider in [Provider::Anthropic, Provider::Bedrock, Provider::Vertex, Provider::Gateway] {
        let sets = provider.credentials().iter().map(|set| format!("`{}`", set.join("` and `")));
        let sets = sets.collect::<Vec<_>>().join(", or ");
        let settings = provider.settings().iter().map(|key| format!("`{key}`")).collect::<Vec<_>>();
        let needs = if settings.is_empty() { String::new() } else { format!("; {}", settings.join(", ")) };
        writeln!(out, "- `{}`: {sets}{needs}", provider.as_str()).unwrap_or_default();
    }
    out
}

/// The address of a gateway to the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayUrl {
    text: String,
    pub host: DomainName,
    pub port: u16,
}

/// Why a text is not the address of a gateway. No message repeats the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GatewayError {
    #[error("its scheme is not https: the token would travel in the clear")]
    Scheme,
    #[error("{0}")]
    Address(RepoUrlError),
}

impl GatewayUrl {
    pub fn parse(text: &str) -> Result<Self, GatewayError> {
        let text = text.trim().trim_end_matches('/');
        if !text.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("https://")) {
            return Err(GatewayError::Scheme);
        }
        // The same strictness as for repositories; a gateway may be a bare host, which those can't be.
        let url = RepoUrl::parse(&format!("{text}/x")).map_err(GatewayError::Address)?;
        let port = if url.port() == DEFAULT_PORT { String::new() } else { format!(":{}", url.port()) };
        let path = url.path().strip_suffix("/x").unwrap_or_default();
        let text = format!("https://{}{port}{path}", url.host());
        Ok(Self { text, host: url.host().clone(), port: url.port() })
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// The provider with what it needs to be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Model {
    Anthropic,
    Bedrock { region: String },
    Vertex { region: String, project: String },
    Gateway { url: GatewayUrl },
}

/// What a variable of the agent's environment is made of.
#[derive(Debug)]
pub enum AgentValue<'a> {
    Plain(String),
    Secret(&'a Secret),
    /// The value belongs in a file that only the agent reads; the variable is that file's path.
    SecretFile(&'a Secret),
}

/// A variable of the agent's environment.
#[derive(Debug)]
pub struct AgentVariable<'a> {
    pub name: &'a str,
    pub value: AgentValue<'a>,
}

impl<'a> AgentVariable<'a> {
    pub(super) fn of_secret(credential: &'a Credential) -> Self {
        let name = credential.name.as_str();
        let is_path = SECRETS.iter().any(|spec| spec.name == name && spec.is_path);
        let secret = &credential.value;
        Self {
            name,
            value: if is_path { AgentValue::SecretFile(secret) } else { AgentValue::Secret(secret) },
        }
    }
}

impl Model {
    #[must_use]
    pub fn provider(&self) -> Provider {
        match self {
            Self::Anthropic => Provider::Anthropic,
            Self::Bedrock { .. } => Provider::Bedrock,
            Self::Vertex { .. } => Provider::Vertex,
            Self::Gateway { .. } => Provider::Gateway,
        }
    }

    /// The names and ports without which there is no model.
    pub fn names(&self) -> Result<Vec<(DomainName, u16)>, NameError> {
        let names: Vec<String> = match self {
            Self::Anthropic => vec!["api.anthropic.com".to_owned()],
            Self::Bedrock { region } => {
                vec![
                    format!("bedrock-runtime.{region}.amazonaws.com"),
                    format!("bedrock.{region}.amazonaws.com"),
                ]
            }
            Self::Vertex { region, .. } => vec![vertex_host(region), "oauth2.googleapis.com".to_owned()],
            Self::Gateway { url } => return Ok(vec![(url.host.clone(), url.port)]),
        };
        names.iter().map(|name| Ok((DomainName::parse(name)?, DEFAULT_PORT))).collect()
    }

    /// What Claude Code needs in its environment to use this provider.
    #[must_use]
    pub fn variables<'a>(&self, secrets: &'a Secrets) -> Vec<AgentVariable<'a>> {
        let mut variables = self.plain_variables();
        let complete = |set: &&&[&str]| set.iter().all(|name| secrets.get(name).is_some());
        let chosen = self.provider().credentials().iter().find(complete);
        // Temporary keys of AWS are three, not two.
        let session = ["AWS_SESSION_TOKEN"];
        let with_keys = chosen.is_some_and(|set| set.contains(&"AWS_ACCESS_KEY_ID"));
        let names = chosen.into_iter().flat_map(|set| set.iter());
        for name in names.chain(session.iter().filter(|_| with_keys)) {
            let Some(credential) = secrets.credential(name) else { continue };
            variables.push(AgentVariable::of_secret(credential));
        }
        variables
    }

    fn plain_variables<'a>(&self) -> Vec<AgentVariable<'a>> {
        let pairs: Vec<(&'static str, &str)> = match self {
            Self::Anthropic => Vec::new(),
            Self::Bedrock { region } => vec![("CLAUDE_CODE_USE_BEDROCK", "1"), ("AWS_REGION", region)],
            Self::Vertex { region, project } => vec![
                ("CLAUDE_CODE_USE_VERTEX", "1"),
                ("CLOUD_ML_REGION", region),
                ("ANTHROPIC_VERTEX_PROJECT_ID", project),
            ],
            Self::Gateway { url } => vec![("ANTHROPIC_BASE_URL", url.as_str())],
        };
        let plain = |(name, value): (&'static str, &str)| AgentVariable {
            name,
            value: AgentValue::Plain(value.to_owned()),
        };
        pairs.into_iter().map(plain).collect()
    }
}

fn vertex_host(region: &str) -> String {
    match region {
        "global" => "aiplatform.googleapis.com".to_owned(),
        "us" | "eu" => format!("aiplatform.{region}.rep.googleapis.com"),
        region => format!("{region}-aiplatform.googleapis.com"),
    }
}

/// The region or the project of a cloud: it becomes a label of a host name or a part of a path.
#[must_use]
pub fn check_cloud_name(text: &str) -> Option<&'static str> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let text = text.trim();
    (text.len() > 63 || text.starts_with('-') || text.ends_with('-') || !text.bytes().all(good))
        .then_some("it is not made of small letters, digits and \"-\"")
}

#[cfg(test)]
mod tests;
