//! Lines that hang together: each holds the SHA-256 of the line before it, so that whoever knows the last line's hash
//! notices a line that was changed, put in or taken out anywhere before it. (pure)
//!
//! The hash is of the line's octets as they stand in the stream, without the line feed: `sha256sum` can check it.

use sha2::{Digest, Sha256};

use crate::report::hex;

/// What the first line of a stream has for a predecessor.
pub const BEGINNING: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The end of a stream that lines are added to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    head: String,
}

impl Default for Chain {
    fn default() -> Self {
        Self { head: BEGINNING.to_owned() }
    }
}

/// A line's hash.
#[must_use]
pub fn hash(line: &[u8]) -> String {
    hex(&Sha256::digest(line))
}

impl Chain {
    /// Goes on after this line.
    #[must_use]
    pub fn after(line: &[u8]) -> Self {
        Self { head: hash(line) }
    }

    /// The last line's hash.
    #[must_use]
    pub fn head(&self) -> &str {
        &self.head
    }

    /// The line for an object, with the box's id and the predecessor's hash in it, without a line feed.
    #[must_use]
    pub fn link(&self, object: &str, box_id: &str) -> String {
        let open = object.strip_suffix('}').unwrap_or(object);
        // An id is hexadecimal digits.
        format!("{open},\"box\":\"{box_id}\",\"prev\":\"{}\"}}", self.head)
    }

    /// The line was written.
    pub fn advance(&mut self, line: &str) {
        self.head = hash(line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::{BEGINNING, Chain};

    #[test]
    fn a_line_names_its_predecessor() {
        let mut chain = Chain::default();
        let first = chain.link(r#"{"seq":1}"#, "ab");
        assert_eq!(first, format!(r#"{{"seq":1,"box":"ab","prev":"{BEGINNING}"}}"#));
        chain.advance(&first);
        // printf '%s' '{"seq":1,"box":"ab","prev":"0000…"}' | sha256sum
        assert_eq!(chain.head(), super::hash(first.as_bytes()));
        let second = chain.link(r#"{"seq":2}"#, "ab");
        assert!(second.contains(chain.head()), "{second}");
        assert_eq!(Chain::after(first.as_bytes()), chain);
        assert!(serde_json::from_str::<serde_json::Value>(&second).is_ok());
    }
}
