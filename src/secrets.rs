//! Credentials of the box: values that are never shown, where they came from, and who may have them.  (pure)
//!
//! Nothing here reads a file or a variable: `config::credentials` does, and hands the text over to be checked.

use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroizing;

pub mod shape;

/// A credential. It can be looked at only by [`Secret::expose`], is wiped when dropped and can't be copied, printed
/// or serialised by accident.
pub struct Secret(Zeroizing<String>);

impl Secret {
    #[must_use]
    pub fn new(value: String) -> Self {
        Self(Zeroizing::new(value))
    }

    /// The value itself. Every call is a place to ask where it goes.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// The name of a credential, which is the name of its variable: `[A-Z_][A-Z0-9_]*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretName(String);

/// Why a text is not the name of a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretNameError {
    #[error("the name of a secret is blank")]
    Blank,
    #[error("the name of a secret holds {0:?}; it is a variable of capitals, digits and \"_\"")]
    Character(char),
    #[error("the name of a secret begins with a digit")]
    Digit,
    #[error("the name of a secret is longer than 128 octets")]
    TooLong,
    #[error("\"{0}\" decides how programs are run and can't be the name of a secret")]
    Reserved(String),
}

/// A value of these would change what root's children execute or load, whoever named them.
const RESERVED: [&str; 9] =
    ["PATH", "HOME", "SHELL", "USER", "IFS", "ENV", "BASH_ENV", "NODE_OPTIONS", "TERM"];

impl SecretName {
    pub fn parse(text: &str) -> Result<Self, SecretNameError> {
        let first = text.chars().next().ok_or(SecretNameError::Blank)?;
        if text.len() > 128 {
            return Err(SecretNameError::TooLong);
        }
        let bad = |c: &char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '_');
        if let Some(bad) = text.chars().find(bad) {
            return Err(SecretNameError::Character(bad));
        }
        if first.is_ascii_digit() {
            return Err(SecretNameError::Digit);
        }
        if RESERVED.contains(&text) || text.starts_with("LD_") || text.starts_with("INNKEEPER_") {
            return Err(SecretNameError::Reserved(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a credential was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In the environment: `docker exec … env` shows it too.
    Env,
    File(PathBuf),
}

impl SecretSource {
    /// The word that `status` shows.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Env => "env",
            Self::File(_) => "file",
        }
    }
}

/// Who gets to see the value inside the box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// The agent's processes can read it.
    Agent,
    /// PID 1 keeps it and gives it to a helper of git and gh on request.
    Helper,
    /// Only the credential broker uses it.
    Broker,
}

impl Holder {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Helper => "helper",
            Self::Broker => "broker",
        }
    }
}

/// One credential with everything that may be said about it.
#[derive(Debug)]
pub struct Credential {
    pub name: SecretName,
    pub value: Secret,
    pub source: SecretSource,
    pub held_by: Holder,
}

/// The credentials that the box was given, by name.
#[derive(Debug, Default)]
pub struct Secrets {
    credentials: Vec<Credential>,
}

impl Secrets {
    /// The later of two credentials of one name replaces the earlier.
    pub fn insert(&mut self, credential: Credential) {
        self.credentials.retain(|other| other.name != credential.name);
        self.credentials.push(credential);
        self.credentials.sort_by(|a, b| a.name.cmp(&b.name));
    }

    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Secret> {
        self.credential(name).map(|credential| &credential.value)
    }

    #[must_use]
    pub fn credential(&self, name: &str) -> Option<&Credential> {
        self.credentials.iter().find(|credential| credential.name.as_str() == name)
    }

    /// All of them, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = &Credential> + Clone {
        self.credentials.iter()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.credentials.is_empty()
    }

    /// The text with every value of a secret replaced by `[NAME]`.
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        let pairs = self.iter().map(|one| (one.name.as_str(), one.value.expose()));
        // A document is seldom printed whole: its longer lines are secrets too.
        let lines = pairs.clone().flat_map(|(name, value)| {
            let lines = value.lines().map(str::trim).filter(|line| line.len() >= 16);
            lines.map(move |line| (name, line))
        });
        redact(text, pairs.chain(lines))
    }
}

/// Replaces every value that occurs in the text by `[NAME]`: the longest where several begin at one place, and never
/// inside a name that was just put in.
pub fn redact<'a>(text: &str, values: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut needles: Vec<(&str, &str)> = values.filter(|(_, value)| !value.is_empty()).collect();
    needles.sort_by_key(|(_, value)| std::cmp::Reverse(value.len()));
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let found = needles.iter().find_map(|(name, value)| Some((name, rest.strip_prefix(value)?)));
        if let Some((name, after)) = found {
            out.push('[');
            out.push_str(name);
            out.push(']');
            rest = after;
        } else {
            out.push(next);
            rest = rest.get(next.len_utf8()..).unwrap_or_default();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(name: &str, value: &str) -> Credential {
        Credential {
            name: SecretName::parse(name).unwrap(),
            value: Secret::new(value.to_owned()),
            source: SecretSource::Env,
            held_by: Holder::Agent,
        }
    }

    fn secrets(pairs: &[(&str, &str)]) -> Secrets {
        let mut secrets = Secrets::default();
        for (name, value) in pairs {
            secrets.insert(credential(name, value));
        }
        secrets
    }

    #[test]
    fn debug_shows_no_value() {
        let secrets = secrets(&[("GH_TOKEN", "canary-one"), ("OTHER", "canary-two")]);
        let text = format!("{secrets:?} {:#?} {:?}", secrets, secrets.get("GH_TOKEN"));
        assert!(!text.contains("canary"), "{text}");
        assert!(text.contains("GH_TOKEN") && text.contains("redacted"));
    }

    #[test]
    fn values_are_found_by_name_and_replaced() {
        let mut secrets = secrets(&[("B", "two"), ("A", "one")]);
        assert_eq!(secrets.get("A").map(Secret::expose), Some("one"));
        assert!(secrets.get("C").is_none());
        secrets.insert(credential("A", "three"));
        let names: Vec<_> = secrets.iter().map(|credential| credential.name.to_string()).collect();
        assert_eq!(names, ["A", "B"]);
        assert_eq!(secrets.get("A").map(Secret::expose), Some("three"));
        assert!(!secrets.is_empty());
    }

    #[test]
    fn redaction_replaces_every_occurrence_longest_first() {
        let secrets = secrets(&[("SHORT", "abc"), ("LONG", "abcdef"), ("UMLAUT", "pässword")]);
        for (text, expected) in [
            ("nothing here", "nothing here"),
            ("abc", "[SHORT]"),
            ("abcdef", "[LONG]"),
            ("xabcdefabcx", "x[LONG][SHORT]x"),
            ("https://x:pässword@h/", "https://x:[UMLAUT]@h/"),
            ("ab", "ab"),
            ("", ""),
        ] {
            assert_eq!(secrets.redact(text), expected);
        }
    }

    #[test]
    fn the_lines_of_a_document_are_redacted_too() {
        let secrets = secrets(&[("KEY", "{\n  \"private_key\": \"abcdefghijkl\",\n}")]);
        assert_eq!(secrets.redact("log: \"private_key\": \"abcdefghijkl\", }"), "log: [KEY] }");
    }

    #[test]
    fn redaction_leaves_the_names_it_put_in_alone() {
        let secrets = secrets(&[("AB", "secret"), ("X", "A")]);
        assert_eq!(secrets.redact("secret A"), "[AB] [X]");
    }

    #[test]
    fn names_are_variables_and_never_those_that_steer_programs() {
        for name in ["GH_TOKEN", "_X", "A1"] {
            assert_eq!(SecretName::parse(name).unwrap().as_str(), name);
        }
        for (name, error) in [
            ("", SecretNameError::Blank),
            ("gh_token", SecretNameError::Character('g')),
            ("A=B", SecretNameError::Character('=')),
            ("A/../B", SecretNameError::Character('/')),
            ("1A", SecretNameError::Digit),
            ("PATH", SecretNameError::Reserved("PATH".to_owned())),
            ("LD_PRELOAD", SecretNameError::Reserved("LD_PRELOAD".to_owned())),
            ("INNKEEPER_X", SecretNameError::Reserved("INNKEEPER_X".to_owned())),
        ] {
            assert_eq!(SecretName::parse(name), Err(error.clone()), "{name}");
            assert!(!error.to_string().is_empty());
        }
        let error = SecretName::parse(&"A".repeat(129)).unwrap_err();
        assert_eq!(error, SecretNameError::TooLong);
        assert!(error.to_string().contains("128"));
    }

    #[test]
    fn words_of_status() {
        assert_eq!(SecretSource::Env.as_str(), "env");
        assert_eq!(SecretSource::File(PathBuf::from("/run/secrets/X")).as_str(), "file");
        assert_eq!(
            [Holder::Agent, Holder::Helper, Holder::Broker].map(Holder::as_str),
            ["agent", "helper", "broker"]
        );
    }
}
