//! Who the agent is to git, gh, npm and Claude Code: generated settings, its environment, and its home.
//!
//! Root writes only below /run/innkeeper/etc, which the image's links point to; everything in the home is written by
//! a child that runs as the agent.

pub mod claude;
pub mod credential;
pub mod home;

use std::net::SocketAddrV4;
use std::path::Path;

use claude::ClaudePlan;

use crate::account::Account;
use crate::comforts::ASIDE_FILE;
use crate::comforts::sync::SNAPSHOT;
use crate::config::{Config, Repository};
use crate::filesystem::layout::{STATE_ETC, WORKSPACE, runtime_directory};
use crate::filesystem::{private_directory, write_root_file};

/// The system's bundle in the image.
pub(crate) const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Generated settings.
pub const GITCONFIG: &str = "/run/innkeeper/etc/gitconfig";
pub const CLAUDE_SETTINGS: &str = "/run/innkeeper/etc/claude-settings.json";
/// Where the operator's CLAUDE.md is put; the image's link leads Claude Code there (seen: /etc/claude-code/CLAUDE.md is
/// in every conversation, before the agent's own).
pub const INSTRUCTIONS: &str = "/run/innkeeper/etc/CLAUDE.md";
const INSTRUCTIONS_LINK: &str = "/etc/claude-code/CLAUDE.md";
pub const CA_BUNDLE: &str = "/run/innkeeper/etc/ca-bundle.pem";
pub const EXTRA_CA: &str = "/run/innkeeper/etc/ca-extra.pem";

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot write the generated settings")]
    Write(#[from] crate::filesystem::FilesystemError),
    #[error("cannot get random octets of the kernel")]
    Random(#[source] rustix::io::Errno),
    #[error("cannot read the certificates in {path}")]
    Certificates { path: String, source: std::io::Error },
    #[error("{path} holds no PEM certificate")]
    NoCertificate { path: String },
}

/// What is generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub name: String,
    pub email: String,
    /// PEM text joined to every tool's trust.
    pub extra_ca: Option<String>,
    /// Hosts whose git credential PID 1 holds.
    pub credential_hosts: Vec<String>,
    pub claude: ClaudePlan,
    /// Remotes as the operator configured them: directory and address.
    pub remotes: Vec<(String, String)>,
}

/// Reads the operator's certificates, at boot and as root: the file is the image's or a mount, never the agent's.
pub fn certificates(path: &str) -> Result<String, IdentityError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| IdentityError::Certificates { path: path.to_owned(), source })?;
    if text.contains("-----BEGIN CERTIFICATE-----") {
        Ok(text)
    } else {
        Err(IdentityError::NoCertificate { path: path.to_owned() })
    }
}

pub fn apply(plan: &Plan) -> Result<(), IdentityError> {
    private_directory(Path::new(STATE_ETC), 0o755)?;
    write_root_file(Path::new(GITCONFIG), gitconfig(plan).as_bytes(), 0o644)?;
    write_root_file(Path::new(CLAUDE_SETTINGS), claude::settings(&plan.claude).as_bytes(), 0o644)?;
    if let Some(instructions) = &plan.claude.instructions {
        write_root_file(Path::new(INSTRUCTIONS), instructions.as_bytes(), 0o444)?;
    }
    write_remotes(&plan.remotes)?;
    let mut octets = [0; 16];
    rustix::rand::getrandom(&mut octets, rustix::rand::GetRandomFlags::empty())
        .map_err(IdentityError::Random)?;
    write_root_file(Path::new(ASIDE_FILE), crate::report::hex(&octets).as_bytes(), 0o444)?;
    if let Some(extra) = &plan.extra_ca {
        let system = std::fs::read_to_string(SYSTEM_CA)
            .map_err(|source| IdentityError::Certificates { path: SYSTEM_CA.to_owned(), source })?;
        write_root_file(Path::new(CA_BUNDLE), format!("{system}\n{extra}\n").as_bytes(), 0o644)?;
        write_root_file(Path::new(EXTRA_CA), extra.as_bytes(), 0o644)?;
    }
    Ok(())
}

/// Remotes as the operator configured them, which is never what a repository says of them.
#[must_use]
pub fn remotes(config: &Config) -> Vec<(String, String)> {
    let remote = |repository: &Repository| {
        let url = repository.url()?.to_string();
        Some((format!("{WORKSPACE}/{}", repository.path), url))
    };
    config.repositories.iter().filter_map(remote).collect()
}

/// The list that is synced by; written again when the operator brings a repository.
pub fn write_remotes(remotes: &[(String, String)]) -> Result<(), IdentityError> {
    let text: String = remotes.iter().map(|(directory, url)| format!("{directory}\t{url}\n")).collect();
    Ok(write_root_file(Path::new(SNAPSHOT), text.as_bytes(), 0o444)?)
}

/// Looks that git and Claude will read what was written.
pub fn verify(plan: &Plan) -> Result<String, String> {
    let written = std::fs::read_to_string(GITCONFIG).map_err(|error| format!("{GITCONFIG}: {error}"))?;
    if written != gitconfig(plan) {
        return Err(format!("{GITCONFIG} is not what was written"));
    }
    if let Some(instructions) = &plan.claude.instructions
        && std::fs::read_to_string(INSTRUCTIONS_LINK).unwrap_or_default() != *instructions
    {
        return Err(format!("{INSTRUCTIONS_LINK} does not lead to {INSTRUCTIONS}: the image lacks the link"));
    }
    let system = std::fs::read_to_string("/etc/gitconfig").unwrap_or_default();
    if system == written {
        Ok(format!("git as {} <{}>", plan.name, plan.email))
    } else {
        Err(format!("/etc/gitconfig does not lead to {GITCONFIG}: the image lacks the link"))
    }
}

/// The system's gitconfig. Values are quoted, so that a name can't end its line and begin another key.
fn gitconfig(plan: &Plan) -> String {
    let mut text = String::from("# Written by innkeeper at boot.\n");
    text.push_str(&format!("[user]\n\tname = {}\n\temail = {}\n", quoted(&plan.name), quoted(&plan.email)));
    text.push_str("[url \"https://github.com/\"]\n\tinsteadOf = git@github.com:\n");
    text.push_str("\tinsteadOf = ssh://git@github.com/\n");
    text.push_str("[init]\n\tdefaultBranch = main\n[advice]\n\tdetachedHead = false\n");
    for host in &plan.credential_hosts {
        // The empty value forgets helpers of other files; ours asks PID 1 over the control socket.
        text.push_str(&format!("[credential \"https://{host}\"]\n\thelper =\n"));
        text.push_str("\thelper = /usr/local/bin/innkeeper credential\n");
    }
    if plan.extra_ca.is_some() {
        text.push_str(&format!("[http]\n\tsslCAInfo = {CA_BUNDLE}\n"));
    }
    text
}

/// A value of gitconfig in quotes (git-config(1), SYNTAX).
fn quoted(value: &str) -> String {
    let mut text = String::from("\"");
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' | '\r' | '\0' => text.push(' '),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

/// Variables of the operator's that reach the agent unchanged. None of them is a secret.
pub const PASSED_ON: &[&str] = &[
    "TZ",
    "LANG",
    "LC_ALL",
    "ANTHROPIC_MODEL",
    "ANTHROPIC_SMALL_FAST_MODEL",
    "ANTHROPIC_DEFAULT_OPUS_MODEL",
    "ANTHROPIC_DEFAULT_SONNET_MODEL",
    "ANTHROPIC_DEFAULT_HAIKU_MODEL",
    "BASH_DEFAULT_TIMEOUT_MS",
    "BASH_MAX_TIMEOUT_MS",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    "CLAUDE_CODE_MAX_OUTPUT_TOKENS",
    "CLAUDE_CODE_MAX_RETRIES",
    "DISABLE_ERROR_REPORTING",
    "DISABLE_TELEMETRY",
    "MAX_THINKING_TOKENS",
    "GOPROXY",
    "GOFLAGS",
    "GONOSUMDB",
    "GOTELEMETRY",
    "FLY_APP_NAME",
    "FLY_MACHINE_ID",
    "FLY_REGION",
];

/// What tells programs of the gate where it is a proxy. curl reads `http_proxy` in small letters alone; Node's own
/// clients read them where they are told to.
pub fn proxied(proxy: SocketAddrV4) -> impl Iterator<Item = (String, String)> {
    let at = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"]
        .map(|name| (name, format!("http://{proxy}")));
    let beside = ["NO_PROXY", "no_proxy"].map(|name| (name, "localhost,127.0.0.1,::1".to_owned()));
    let node = [("NODE_USE_ENV_PROXY", "1".to_owned())];
    at.into_iter().chain(beside).chain(node).map(|(name, value)| (name.to_owned(), value))
}

/// The agent's whole environment, from a list: what is not here does not exist for it.
#[must_use]
pub fn environment<'a>(
    account: &Account,
    extra_ca: bool,
    proxy: Option<SocketAddrV4>,
    given: impl Fn(&str) -> Option<&'a str>,
) -> Vec<(String, String)> {
    let home = &account.home;
    let mut env: Vec<(String, String)> = [
        ("HOME", home.clone()),
        ("USER", account.name.clone()),
        ("LOGNAME", account.name.clone()),
        ("SHELL", "/bin/bash".to_owned()),
        ("PATH", format!("{home}/.local/bin:/usr/local/bin:/usr/bin:/bin")),
        ("LANG", "C.UTF-8".to_owned()),
        ("COLORTERM", "truecolor".to_owned()),
        ("TERM", "tmux-256color".to_owned()),
        ("XDG_RUNTIME_DIR", runtime_directory(account.uid)),
        ("INNKEEPER", env!("CARGO_PKG_VERSION").to_owned()),
        // The binary is on a read-only file system; an update is a new image.
        ("DISABLE_AUTOUPDATER", "1".to_owned()),
        // Statistics, surveys and release notes: names that the allowlist would refuse at every start.
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    if extra_ca {
        for name in [
            "SSL_CERT_FILE",
            "GIT_SSL_CAINFO",
            "CURL_CA_BUNDLE",
            "PIP_CERT",
            "REQUESTS_CA_BUNDLE",
            "CARGO_HTTP_CAINFO",
        ] {
            env.push((name.to_owned(), CA_BUNDLE.to_owned()));
        }
        // Node adds this file to its own list instead of replacing it.
        env.push(("NODE_EXTRA_CA_CERTS".to_owned(), EXTRA_CA.to_owned()));
    }
    env.extend(proxy.into_iter().flat_map(proxied));
    for name in PASSED_ON {
        if let Some(value) = given(name) {
            env.retain(|(known, _)| known != name);
            env.push(((*name).to_owned(), value.to_owned()));
        }
    }
    env
}

#[cfg(test)]
mod tests {
    use super::{Plan, environment, gitconfig};
    use crate::account::Account;

    fn plan(name: &str) -> Plan {
        Plan {
            name: name.into(),
            email: "a@b.example".into(),
            extra_ca: None,
            credential_hosts: vec!["github.com".into()],
            claude: super::claude::ClaudePlan::default(),
            remotes: Vec::new(),
        }
    }

    #[test]
    fn a_name_can_not_write_another_key() {
        let text = gitconfig(&plan("x\"\n[core]\n\tfsmonitor = /tmp/evil\n#\\"));
        let keys: Vec<&str> = text.lines().filter(|line| line.starts_with('[')).collect();
        assert!(!keys.contains(&"[core]"), "{text}");
        assert!(text.contains("name = \"x\\\" [core]"), "{text}");
    }

    #[test]
    fn the_agents_environment_is_a_list_and_holds_no_stranger() {
        let account = Account { name: "claude".into(), uid: 1000, gid: 1000, home: "/home/claude".into() };
        let given = |name: &str| match name {
            "TZ" => Some("Europe/Vienna"),
            _ => Some("canary").filter(|_| name == "GH_TOKEN" || name == "LD_PRELOAD"),
        };
        let env = environment(&account, false, None, given);
        assert!(env.iter().all(|(_, value)| value != "canary"));
        assert!(env.contains(&("TZ".into(), "Europe/Vienna".into())));
        let mut names: Vec<&String> = env.iter().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), env.len(), "no name twice");
    }
}
