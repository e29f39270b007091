//! The environment that the box was started with, kept apart from the process's own.  (pure)
//!
//! PID 1 executes itself once more with an empty environment, so that `/proc/1/environ` holds nothing, and passes
//! what it was given on a descriptor: [`encode`] before, [`decode`] after. Values are wiped when dropped.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use zeroize::Zeroizing;

use crate::secrets::{SecretSource, Secrets};

const MAGIC: &[u8; 8] = b"IKENVI1\n";
/// More than execve(2) passes: arguments and environment together are at most 6 MiB (fs/exec.c, `bprm_stack_limits`).
pub const MAX_BYTES: usize = 8 << 20;
const MAX_VARIABLES: usize = 65_536;

/// Variables by name. Of two with one name the first counts, as in getenv(3).
#[derive(Default)]
pub struct Environment {
    variables: Vec<(OsString, Zeroizing<Vec<u8>>)>,
}

impl Environment {
    /// The value, whatever its octets are.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.iter().find(|(key, _)| *key == OsStr::new(name)).map(|(_, value)| value)
    }

    /// The value, if the variable exists and is UTF-8.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.to_str()
    }

    /// The same with the credentials themselves in place of the files that held them: after the seal those can't be
    /// read again, and a reload must not miss them.
    #[must_use]
    pub fn with_credentials(&self, secrets: &Secrets) -> Self {
        let is_file = |value: &OsStr| {
            secrets
                .iter()
                .any(|one| matches!(&one.source, SecretSource::File(path) if path.as_os_str() == value))
        };
        let named = secrets.iter().map(|one| (OsStr::new(one.name.as_str()), OsStr::new(one.value.expose())));
        let kept = self
            .iter()
            .filter(|(name, value)| !(name.as_bytes().ends_with(b"_FILE") && is_file(value)))
            .filter(|(name, _)| !secrets.iter().any(|one| OsStr::new(one.name.as_str()) == *name));
        named.chain(kept).collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.variables.iter().map(|(name, value)| (name.as_os_str(), OsStr::from_bytes(value)))
    }
}

impl<N: Into<OsString>, V: Into<OsString>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut variables: Vec<(OsString, Zeroizing<Vec<u8>>)> = Vec::new();
        for (name, value) in pairs {
            let name = name.into();
            let value = Zeroizing::new(value.into().into_vec());
            if variables.iter().all(|(known, _)| *known != name) {
                variables.push((name, value));
            }
        }
        Self { variables }
    }
}

/// Names only: any value may be a secret.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.variables.iter().map(|(name, _)| name)).finish()
    }
}

/// Why bytes are not an environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    #[error("the environment is larger than {MAX_BYTES} octets or {MAX_VARIABLES} variables")]
    TooLarge,
    #[error("the environment does not begin with the expected mark")]
    Mark,
    #[error("the environment is cut off")]
    CutOff,
    #[error("the environment holds a variable whose name is empty, holds \"=\" or occurs twice")]
    Name,
    #[error("the environment holds a NUL")]
    Nul,
    #[error("the environment goes on after its end")]
    Surplus,
}

/// The environment as bytes that [`decode`] reads.
#[must_use]
pub fn encode(environment: &Environment) -> Zeroizing<Vec<u8>> {
    let lengths = environment.iter().map(|(name, value)| name.len() + value.len() + 8);
    // Allocated once: a vector that grows leaves copies of the values behind in freed memory.
    let mut out = Zeroizing::new(Vec::with_capacity(MAGIC.len() + 4 + lengths.sum::<usize>()));
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&length(environment.variables.len()));
    for (name, value) in environment.iter() {
        push_field(&mut out, name.as_bytes());
        push_field(&mut out, value.as_bytes());
    }
    out
}

/// Reads what [`encode`] wrote, and nothing else.
pub fn decode(bytes: &[u8]) -> Result<Environment, EnvironmentError> {
    if bytes.len() > MAX_BYTES {
        return Err(EnvironmentError::TooLarge);
    }
    let mut reader = Reader::new(bytes.strip_prefix(MAGIC).ok_or(EnvironmentError::Mark)?);
    let count = reader.length().ok_or(EnvironmentError::CutOff)?;
    if count > MAX_VARIABLES {
        return Err(EnvironmentError::TooLarge);
    }
    let mut seen = std::collections::HashSet::new();
    let mut variables = Vec::new();
    for _ in 0..count {
        let name = reader.field().ok_or(EnvironmentError::CutOff)?;
        let value = reader.field().ok_or(EnvironmentError::CutOff)?;
        if name.contains(&0) || value.contains(&0) {
            return Err(EnvironmentError::Nul);
        }
        if name.is_empty() || name.contains(&b'=') || !seen.insert(name) {
            return Err(EnvironmentError::Name);
        }
        variables.push((OsString::from_vec(name.to_vec()), Zeroizing::new(value.to_vec())));
    }
    if reader.is_empty() { Ok(Environment { variables }) } else { Err(EnvironmentError::Surplus) }
}

fn length(length: usize) -> [u8; 4] {
    // No field comes near 4 GiB: execve(2) refuses a string of more than 128 KiB, and files are bounded.
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

/// Appends a field: its length in four octets, then its octets.
pub(crate) fn push_field(out: &mut Vec<u8>, field: &[u8]) {
    out.extend_from_slice(&length(field.len()));
    out.extend_from_slice(field);
}

/// Reads the fields of a text made by [`push_field`]; never beyond its end.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn length(&mut self) -> Option<usize> {
        let (head, rest) = self.rest.split_first_chunk::<4>()?;
        self.rest = rest;
        usize::try_from(u32::from_be_bytes(*head)).ok()
    }

    pub(crate) fn field(&mut self) -> Option<&'a [u8]> {
        let length = self.length()?;
        let (field, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Environment {
        let odd = OsString::from_vec(vec![0xff, b'x']);
        Environment::from_iter([
            (OsString::from("A"), OsString::from("1")),
            (OsString::from("EMPTY"), OsString::new()),
            (OsString::from("LINES"), OsString::from("a\nb=c")),
            (OsString::from("ODD"), odd),
            (OsString::from("A"), OsString::from("2")),
        ])
    }

    #[test]
    fn what_is_encoded_is_decoded_and_the_first_of_two_counts() {
        let read = decode(&encode(&sample())).unwrap();
        assert_eq!(read.text("A"), Some("1"));
        assert_eq!(read.text("EMPTY"), Some(""));
        assert_eq!(read.text("LINES"), Some("a\nb=c"));
        assert_eq!(read.text("ODD"), None);
        assert_eq!(read.get("ODD").unwrap().as_bytes(), [0xff, b'x']);
        assert_eq!(read.get("B"), None);
        assert_eq!(read.iter().count(), 4);
        assert_eq!(decode(&encode(&Environment::default())).unwrap().iter().count(), 0);
    }

    #[test]
    fn debug_shows_names_only() {
        let text = format!("{:?}", Environment::from_iter([("GH_TOKEN", "canary")]));
        assert_eq!(text, "[\"GH_TOKEN\"]");
    }

    #[test]
    fn every_cut_is_an_error_and_no_flipped_octet_panics() {
        let bytes = encode(&sample());
        for end in 0..bytes.len() {
            let cut = decode(&bytes[..end]).unwrap_err();
            assert!(matches!(cut, EnvironmentError::Mark | EnvironmentError::CutOff), "{end}: {cut}");
            let mut flipped = bytes.to_vec();
            flipped[end] ^= 0xff;
            drop(decode(&flipped));
        }
    }

    #[test]
    fn the_decoder_is_strict() {
        let one = |name: &[u8], value: &[u8]| {
            let mut out = [MAGIC.as_slice(), &1u32.to_be_bytes()].concat();
            push_field(&mut out, name);
            push_field(&mut out, value);
            out
        };
        let mut surplus = one(b"A", b"1");
        surplus.push(0);
        let mut twice = [MAGIC.as_slice(), &2u32.to_be_bytes()].concat();
        for field in [b"A", b"1", b"A", b"2"] {
            push_field(&mut twice, field);
        }
        for (bytes, error) in [
            (vec![], EnvironmentError::Mark),
            (b"PATH=/bin".to_vec(), EnvironmentError::Mark),
            (one(b"", b"x"), EnvironmentError::Name),
            (one(b"A=B", b"x"), EnvironmentError::Name),
            (twice, EnvironmentError::Name),
            (one(b"A", b"x\0y"), EnvironmentError::Nul),
            (one(b"A\0", b"x"), EnvironmentError::Nul),
            (surplus, EnvironmentError::Surplus),
            ([MAGIC.as_slice(), &u32::MAX.to_be_bytes()].concat(), EnvironmentError::TooLarge),
            (
                [MAGIC.as_slice(), &1u32.to_be_bytes(), &u32::MAX.to_be_bytes()].concat(),
                EnvironmentError::CutOff,
            ),
            (vec![b'x'; MAX_BYTES + 1], EnvironmentError::TooLarge),
        ] {
            assert_eq!(decode(&bytes).unwrap_err(), error);
            assert!(error.to_string().starts_with("the environment"), "{error}");
        }
    }
}
