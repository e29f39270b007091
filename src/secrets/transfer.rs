//! Credentials as bytes, for the descriptor by which PID 1 hands them to its re-executed self.  (pure)
//!
//! The reader trusts nobody: every length is bounded, nothing may be left over.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use zeroize::Zeroizing;

use super::{Credential, Holder, Secret, SecretName, SecretSource, Secrets};
use crate::config::environment::{Reader, push_field};

const MAGIC: &[u8; 8] = b"IKSECR1\n";

/// Why bytes are not credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    #[error("the credentials do not begin with the expected mark")]
    Mark,
    #[error("the credentials are cut off or hold more than they say")]
    Length,
    #[error("the credentials hold something that is not a credential")]
    Content,
}

impl Secrets {
    /// The credentials as bytes that [`Secrets::from_bytes`] reads; wiped when dropped.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        // Allocated once: a vector that grows leaves copies of the values behind in freed memory.
        let lengths = self.iter().map(|one| one.name.as_str().len() + one.value.expose().len() + 4096);
        let mut out = Zeroizing::new(Vec::with_capacity(MAGIC.len() + lengths.sum::<usize>()));
        out.extend_from_slice(MAGIC);
        for credential in self.iter() {
            push_field(&mut out, credential.name.as_str().as_bytes());
            match &credential.source {
                SecretSource::Env => push_field(&mut out, b""),
                SecretSource::File(path) => push_field(&mut out, path.as_os_str().as_bytes()),
            }
            push_field(&mut out, credential.held_by.as_str().as_bytes());
            push_field(&mut out, credential.value.expose().as_bytes());
        }
        out
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TransferError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(TransferError::Mark)?;
        let mut reader = Reader::new(rest);
        let mut secrets = Self::default();
        while !reader.is_empty() {
            let credential = read_credential(&mut reader)?;
            if secrets.get(credential.name.as_str()).is_some() {
                return Err(TransferError::Content);
            }
            secrets.insert(credential);
        }
        Ok(secrets)
    }
}

fn read_credential(reader: &mut Reader<'_>) -> Result<Credential, TransferError> {
    let mut field = || reader.field().ok_or(TransferError::Length);
    let (name, source, holder, value) = (field()?, field()?, field()?, field()?);
    let text = |bytes| std::str::from_utf8(bytes).map_err(|_| TransferError::Content);
    let held_by = match holder {
        b"agent" => Holder::Agent,
        b"helper" => Holder::Helper,
        b"broker" => Holder::Broker,
        _ => return Err(TransferError::Content),
    };
    let source = match source {
        b"" => SecretSource::Env,
        path => SecretSource::File(OsString::from_vec(path.to_vec()).into()),
    };
    Ok(Credential {
        name: SecretName::parse(text(name)?).map_err(|_| TransferError::Content)?,
        value: Secret::new(text(value)?.to_owned()),
        source,
        held_by,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Secrets {
        let mut secrets = Secrets::default();
        for (name, source, held_by) in [
            ("A", SecretSource::Env, Holder::Agent),
            ("B", SecretSource::File("/run/secrets/B".into()), Holder::Helper),
            ("C", SecretSource::Env, Holder::Broker),
        ] {
            let name = SecretName::parse(name).unwrap();
            secrets.insert(Credential { name, value: Secret::new("välue\nx".to_owned()), source, held_by });
        }
        secrets
    }

    #[test]
    fn what_is_written_is_read() {
        let read = Secrets::from_bytes(&sample().to_bytes()).unwrap();
        assert_eq!(format!("{read:?}"), format!("{:?}", sample()));
        assert!(read.iter().all(|credential| credential.value.expose() == "välue\nx"));
        assert!(Secrets::from_bytes(&Secrets::default().to_bytes()).unwrap().is_empty());
    }

    #[test]
    fn every_cut_and_every_flipped_octet_is_an_error_or_another_value_but_never_a_panic() {
        let bytes = sample().to_bytes();
        let whole = Secrets::from_bytes(&bytes).unwrap().iter().count();
        for end in 0..bytes.len() {
            // A cut between two credentials reads as fewer; any other is an error.
            if let Ok(secrets) = Secrets::from_bytes(&bytes[..end]) {
                assert!(secrets.iter().count() < whole);
            }
            let mut flipped = bytes.to_vec();
            flipped[end] ^= 0xff;
            drop(Secrets::from_bytes(&flipped));
        }
    }

    #[test]
    fn the_reader_is_strict() {
        assert_eq!(Secrets::from_bytes(b"").unwrap_err(), TransferError::Mark);
        assert_eq!(Secrets::from_bytes(b"something else").unwrap_err(), TransferError::Mark);
        let mut twice = sample().to_bytes().to_vec();
        twice.extend_from_slice(&sample().to_bytes()[MAGIC.len()..]);
        assert_eq!(Secrets::from_bytes(&twice).unwrap_err(), TransferError::Content);
        let mut more = sample().to_bytes().to_vec();
        more.push(0);
        assert_eq!(Secrets::from_bytes(&more).unwrap_err(), TransferError::Length);
        for error in [TransferError::Mark, TransferError::Length, TransferError::Content] {
            assert!(error.to_string().starts_with("the credentials"), "{error}");
        }
    }
}
