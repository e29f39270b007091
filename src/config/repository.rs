//! What the box clones, as types that git can be given without a second thought.  (pure)
//!
//! git reads more than URLs in the place of one: transports that run programs (`ext::sh -c …`), options (`-u…`),
//! local paths. Only an `https` URL with a host name leaves this file.

use std::fmt;
use std::path::PathBuf;

use crate::allowlist::{DEFAULT_PORT, DomainName, NameError};

/// The address of a repository: `https`, a host name, a path, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RepoUrl {
    host: DomainName,
    port: u16,
    /// Begins with `/`.
    path: String,
}

/// Why a text is no address of a repository. No message repeats the text: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RepoUrlError {
    #[error("it is blank")]
    Blank,
    #[error("it holds white space or control characters")]
    Characters,
    #[error("it begins with a hyphen: git would read it as an option")]
    LeadingHyphen,
    #[error("it names a transport of git that runs a program (ext::, fd:: …)")]
    Transport,
    #[error("its scheme is \"{0}\"; only https is cloned")]
    Scheme(String),
    #[error("it holds a user or a password; credentials come from GH_TOKEN")]
    UserInfo,
    #[error("its host is not a host name: {0}")]
    Host(NameError),
    #[error("its port is not a port")]
    Port,
    #[error("it names no repository after the host")]
    NoPath,
    #[error("its path has an empty or a dotted part (\"//\", \".\", \"..\")")]
    PathPart,
    #[error("its path holds a character that the address of a repository has no use for: {0:?}")]
    PathCharacter(char),
    #[error("it is a path in the box, not an address")]
    LocalPath,
    #[error("it is longer than 2048 octets")]
    TooLong,
}

impl RepoUrl {
    /// Reads `https://HOST[:PORT]/PATH` or `git@HOST:PATH`, which means the same by way of `https`.
    pub fn parse(text: &str) -> Result<Self, RepoUrlError> {
        if text.trim().is_empty() {
            return Err(RepoUrlError::Blank);
        }
        if text.len() > 2048 {
            return Err(RepoUrlError::TooLong);
        }
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(RepoUrlError::Characters);
        }
        if text.starts_with('-') {
            return Err(RepoUrlError::LeadingHyphen);
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            return Self::from_scheme(scheme, rest);
        }
        if text.contains("::") {
            return Err(RepoUrlError::Transport);
        }
        // scp's form, as forges print it. Another user than git is somebody's name or a password.
        match text.split_once(':') {
            Some((authority, path)) if !authority.contains('/') => match authority.split_once('@') {
                Some(("git", host)) => Self::from_parts(host, DEFAULT_PORT, path),
                Some(_) => Err(RepoUrlError::UserInfo),
                None => Err(RepoUrlError::Scheme(shown_scheme(authority))),
            },
            Some(_) | None => Err(RepoUrlError::LocalPath),
        }
    }

    fn from_scheme(scheme: &str, rest: &str) -> Result<Self, RepoUrlError> {
        if scheme.contains("::") {
            return Err(RepoUrlError::Transport);
        }
        if !scheme.eq_ignore_ascii_case("https") {
            return Err(RepoUrlError::Scheme(shown_scheme(scheme)));
        }
        let (authority, path) = rest.split_once('/').ok_or(RepoUrlError::NoPath)?;
        if authority.contains('@') {
            return Err(RepoUrlError::UserInfo);
        }
        if authority.starts_with('[') {
            return Err(RepoUrlError::Host(NameError::Address));
        }
        let (host, port) = match authority.split_once(':') {
            None => (authority, DEFAULT_PORT),
            Some((host, port)) => (host, parse_port(port)?),
        };
        Self::from_parts(host, port, path)
    }

    fn from_parts(host: &str, port: u16, path: &str) -> Result<Self, RepoUrlError> {
        let host = DomainName::parse(host).map_err(RepoUrlError::Host)?;
        let path = path.trim_start_matches('/').trim_end_matches('/');
        if path.is_empty() {
            return Err(RepoUrlError::NoPath);
        }
        // RFC 3986's unreserved characters and those that forges use; no query, fragment, percent or backslash, so
        // that what is checked here, what git sends and what the gate sees are the same octets.
        let odd =
            |c: &char| !(c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | '~' | '+' | '@'));
        if let Some(bad) = path.chars().find(odd) {
            return Err(RepoUrlError::PathCharacter(bad));
        }
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(RepoUrlError::PathPart);
        }
        Ok(Self { host, port, path: format!("/{path}") })
    }

    #[must_use]
    pub fn host(&self) -> &DomainName {
        &self.host
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The path on the host; begins with `/`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// A scheme is shown only if it is one (RFC 3986 §3.1); else it could be the beginning of a password.
fn shown_scheme(text: &str) -> String {
    let is_scheme = text.len() <= 16
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
    if is_scheme { text.to_ascii_lowercase() } else { "…".to_owned() }
}

fn parse_port(text: &str) -> Result<u16, RepoUrlError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse::<u16>().ok().filter(|port| digits && *port != 0).ok_or(RepoUrlError::Port)
}

impl fmt::Display for RepoUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.port == DEFAULT_PORT {
            write!(f, "https://{}{}", self.host, self.path)
        } else {
            write!(f, "https://{}:{}{}", self.host, self.port, self.path)
        }
    }
}

/// One repository that the box clones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    pub source: Source,
    /// Its directory below `/workspace`.
    pub path: DirectoryName,
    /// The branch to check out; the remote's own choice if none.
    pub branch: Option<Branch>,
    /// Commits to fetch; 0 means all.
    pub depth: u32,
}

/// Where a repository comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Url(RepoUrl),
    /// A file of git-bundle(1) in the box; `url` becomes its origin.
    Bundle {
        file: PathBuf,
        url: Option<RepoUrl>,
    },
}

impl Repository {
    /// The forge's address.
    #[must_use]
    pub fn url(&self) -> Option<&RepoUrl> {
        match &self.source {
            Source::Url(url) => Some(url),
            Source::Bundle { url, .. } => url.as_ref(),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) | Self::Bundle { url: Some(url), .. } => url.fmt(f),
            Self::Bundle { file, url: None } => file.display().fmt(f),
        }
    }
}

impl RepoUrl {
    /// What the forge calls the repository: the directory that git would choose.
    #[must_use]
    pub fn name(&self) -> Option<DirectoryName> {
        named(self.path.rsplit('/').next().unwrap_or_default(), ".git")
    }
}

impl Source {
    /// The directory that it gets where several are cloned and nobody named one.
    #[must_use]
    pub fn name(&self) -> Option<DirectoryName> {
        match self {
            Self::Url(url) | Self::Bundle { url: Some(url), .. } => url.name(),
            Self::Bundle { file, url: None } => {
                named(&file.file_name().unwrap_or_default().to_string_lossy(), ".bundle")
            }
        }
    }
}

fn named(text: &str, suffix: &str) -> Option<DirectoryName> {
    DirectoryName::parse(text.strip_suffix(suffix).unwrap_or(text)).ok()
}

/// The directory of the only repository.
pub const ONLY: &str = "repo";

/// The name of one directory, not a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DirectoryName(String);

/// Why a text is not the name of a directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    #[error("it is blank")]
    Blank,
    #[error("it is a path; only one directory below /workspace can be named")]
    Path,
    #[error("it begins with \"{0}\"")]
    Start(char),
    #[error("it holds {0:?}; letters, digits, \".\", \"-\" and \"_\" are possible")]
    Character(char),
    #[error("it is longer than 100 octets")]
    TooLong,
}

impl DirectoryName {
    pub fn parse(text: &str) -> Result<Self, DirectoryError> {
        let first = text.chars().next().ok_or(DirectoryError::Blank)?;
        if text.contains('/') || matches!(text, "." | "..") {
            return Err(DirectoryError::Path);
        }
        // Not an option of a program, not hidden, and never ".git".
        if matches!(first, '-' | '.') {
            return Err(DirectoryError::Start(first));
        }
        if text.len() > 100 {
            return Err(DirectoryError::TooLong);
        }
        match text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))) {
            Some(bad) => Err(DirectoryError::Character(bad)),
            None => Ok(Self(text.to_owned())),
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DirectoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A branch that `git check-ref-format --branch` accepts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Branch(String);

/// Why a text is not a branch (git-check-ref-format(1)).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BranchError {
    #[error("it is blank")]
    Blank,
    #[error("it begins with a hyphen: git would read it as an option")]
    LeadingHyphen,
    #[error("it holds {0:?}")]
    Character(char),
    #[error("it holds \"{0}\"")]
    Sequence(&'static str),
    #[error("a part of it begins with a dot or ends in \".lock\"")]
    Part,
    #[error("it begins or ends with \"/\", ends with \".\" or has an empty part")]
    Border,
    #[error("it is a name that git keeps for itself")]
    Reserved,
    #[error("it is longer than 244 octets")]
    TooLong,
}

impl Branch {
    pub fn parse(text: &str) -> Result<Self, BranchError> {
        if text.trim().is_empty() {
            return Err(BranchError::Blank);
        }
        if text.starts_with('-') {
            return Err(BranchError::LeadingHyphen);
        }
        if text.len() > 244 {
            return Err(BranchError::TooLong);
        }
        let bad = |c: &char| {
            c.is_control() || c.is_whitespace() || matches!(c, '~' | '^' | ':' | '?' | '*' | '[' | '\\')
        };
        if let Some(bad) = text.chars().find(bad) {
            return Err(BranchError::Character(bad));
        }
        if let Some(sequence) = ["..", "@{"].into_iter().find(|sequence| text.contains(sequence)) {
            return Err(BranchError::Sequence(sequence));
        }
        if text.ends_with('.') || text.split('/').any(str::is_empty) {
            return Err(BranchError::Border);
        }
        let lock = |part: &str| part.len() >= 5 && part.get(part.len() - 5..) == Some(".lock");
        if text.split('/').any(|part| part.starts_with('.') || lock(part)) {
            return Err(BranchError::Part);
        }
        if matches!(text, "@" | "HEAD") {
            return Err(BranchError::Reserved);
        }
        Ok(Self(text.to_owned()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests;
