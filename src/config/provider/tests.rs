//! Credentials, names and variables of every provider.

use super::*;
use crate::secrets::{SecretName, SecretSource};

fn secrets(names: &[&str]) -> Secrets {
    let mut secrets = Secrets::default();
    for name in names {
        secrets.insert(Credential {
            name: SecretName::parse(name).unwrap(),
            value: Secret::new(format!("value of {name}")),
            source: SecretSource::Env,
            held_by: Holder::Agent,
        });
    }
    secrets
}

fn shown(model: &Model, names: &[&str]) -> Vec<String> {
    let secrets = secrets(names);
    let variables = model.variables(&secrets);
    let show = |variable: &AgentVariable<'_>| match &variable.value {
        AgentValue::Plain(value) => format!("{}={value}", variable.name),
        AgentValue::Secret(secret) => format!("{}=[{}]", variable.name, secret.expose()),
        AgentValue::SecretFile(secret) => format!("{}=file with {}", variable.name, secret.expose()),
    };
    variables.iter().map(show).collect()
}

fn bedrock() -> Model {
    Model::Bedrock { region: "eu-central-1".to_owned() }
}

fn vertex(region: &str) -> Model {
    Model::Vertex { region: region.to_owned(), project: "p-1".to_owned() }
}

fn gateway(text: &str) -> Model {
    Model::Gateway { url: GatewayUrl::parse(text).unwrap() }
}

#[test]
fn only_the_first_complete_set_of_credentials_is_handed_over() {
    let both = ["ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "GH_TOKEN"];
    assert_eq!(
        shown(&Model::Anthropic, &both),
        ["CLAUDE_CODE_OAUTH_TOKEN=[value of CLAUDE_CODE_OAUTH_TOKEN]"]
    );
    assert_eq!(shown(&Model::Anthropic, &both[..1]), ["ANTHROPIC_API_KEY=[value of ANTHROPIC_API_KEY]"]);
    assert_eq!(shown(&Model::Anthropic, &[]), [] as [String; 0]);
}

#[test]
fn clouds_get_their_switch_region_and_keys() {
    assert_eq!(
        shown(&bedrock(), &["AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]),
        [
            "CLAUDE_CODE_USE_BEDROCK=1",
            "AWS_REGION=eu-central-1",
            "AWS_ACCESS_KEY_ID=[value of AWS_ACCESS_KEY_ID]",
            "AWS_SECRET_ACCESS_KEY=[value of AWS_SECRET_ACCESS_KEY]",
            "AWS_SESSION_TOKEN=[value of AWS_SESSION_TOKEN]",
        ]
    );
    let bearer = shown(&bedrock(), &["AWS_BEARER_TOKEN_BEDROCK", "AWS_SESSION_TOKEN"]);
    assert_eq!(bearer[2..], ["AWS_BEARER_TOKEN_BEDROCK=[value of AWS_BEARER_TOKEN_BEDROCK]"]);
    assert_eq!(
        shown(&vertex("europe-west1"), &["GOOGLE_APPLICATION_CREDENTIALS"]),
        [
            "CLAUDE_CODE_USE_VERTEX=1",
            "CLOUD_ML_REGION=europe-west1",
            "ANTHROPIC_VERTEX_PROJECT_ID=p-1",
            "GOOGLE_APPLICATION_CREDENTIALS=file with value of GOOGLE_APPLICATION_CREDENTIALS",
        ]
    );
    assert_eq!(
        shown(&gateway("https://gw.example.org/anthropic/"), &["ANTHROPIC_AUTH_TOKEN"]),
        [
            "ANTHROPIC_BASE_URL=https://gw.example.org/anthropic",
            "ANTHROPIC_AUTH_TOKEN=[value of ANTHROPIC_AUTH_TOKEN]"
        ]
    );
}

#[test]
fn names_follow_the_provider_and_its_region() {
    for (model, expected) in [
        (Model::Anthropic, "api.anthropic.com:443"),
        (bedrock(), "bedrock-runtime.eu-central-1.amazonaws.com:443 bedrock.eu-central-1.amazonaws.com:443"),
        (vertex("europe-west1"), "europe-west1-aiplatform.googleapis.com:443 oauth2.googleapis.com:443"),
        (vertex("global"), "aiplatform.googleapis.com:443 oauth2.googleapis.com:443"),
        (vertex("eu"), "aiplatform.eu.rep.googleapis.com:443 oauth2.googleapis.com:443"),
        (gateway("https://gw.example.org:8443"), "gw.example.org:8443"),
    ] {
        let names: Vec<String> =
            model.names().unwrap().iter().map(|(name, port)| format!("{name}:{port}")).collect();
        assert_eq!(names.join(" "), expected);
    }
}

#[test]
fn gateways_are_https_and_nothing_is_hidden_in_them() {
    for (text, expected) in [
        ("https://GW.example.org", "https://gw.example.org"),
        ("https://gw.example.org:443/", "https://gw.example.org"),
        (" https://gw.example.org:8443/a/b/ ", "https://gw.example.org:8443/a/b"),
        ("https://litellm", "https://litellm"),
        ("https://gw.example.org/x", "https://gw.example.org/x"),
    ] {
        assert_eq!(GatewayUrl::parse(text).unwrap().as_str(), expected);
    }
    for (text, error) in [
        ("http://gw.example.org", GatewayError::Scheme),
        ("gw.example.org", GatewayError::Scheme),
        ("", GatewayError::Scheme),
        ("https://user:canary@gw.example.org", GatewayError::Address(RepoUrlError::UserInfo)),
        ("https://192.0.2.1", GatewayError::Address(RepoUrlError::Host(NameError::Address))),
        ("https://gw.example.org/../x", GatewayError::Address(RepoUrlError::PathPart)),
        ("https://gw.example.org?x=y", GatewayError::Address(RepoUrlError::Host(NameError::Character('?')))),
    ] {
        assert_eq!(GatewayUrl::parse(text), Err(error.clone()), "{text}");
        assert!(error.to_string().starts_with("it"), "{error}");
        assert!(!error.to_string().contains("canary"));
    }
}

#[test]
fn every_credential_of_a_provider_is_in_the_table() {
    for provider in [Provider::Anthropic, Provider::Bedrock, Provider::Vertex, Provider::Gateway] {
        for name in provider.credentials().iter().flat_map(|set| set.iter()) {
            assert!(SECRETS.iter().any(|spec| spec.name == *name), "{name}");
        }
        for key in provider.settings() {
            assert!(PROVIDER_SETTINGS.contains(key), "{key}");
            assert!(crate::config::settings::setting(key).is_some(), "{key}");
        }
    }
    for spec in SECRETS {
        assert!(SecretName::parse(spec.name).is_ok());
        assert!(secrets_markdown().contains(spec.name));
    }
}

#[test]
fn names_of_clouds_can_be_labels() {
    for good in ["eu-central-1", "global", "my-project-1"] {
        assert_eq!(check_cloud_name(good), None);
    }
    for bad in ["EU", "a.b", "a/b", "-a", "a-", "x@y", &"a".repeat(64)] {
        assert!(check_cloud_name(bad).is_some(), "{bad}");
    }
}
