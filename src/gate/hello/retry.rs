//! A second hello on the same connection: TLS 1.3 lets a server ask for one (HelloRetryRequest, RFC 8446 §4.1.4), and some
//! servers follow the name in that one. (pure)
//!
//! A client can have itself asked (by a hello without a key share), and need not wait to be. So its records are
//! followed until the server's first message shows that it asked for nothing.

use super::{ClientHello, Hello, MAX_RECORD, Octets, RECORD_HEADER, Reader, harmless};
use crate::allowlist::DomainName;

/// The random of a ServerHello that is a HelloRetryRequest: SHA-256 of that word (RFC 8446 §4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2,
    0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];
const SERVER_HELLO: u8 = 2;
/// What a protected record may add (RFC 5246 §6.2.3).
const MAX_EXPANSION: usize = 2048;

/// What is to be done with octets of the client that did not go on yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// So many of them go on now; what is left is shown again, with more after it.
    Pass(usize),
    /// All of them, and everything after them: there will be no second hello, or it was the same.
    Over,
    /// None of them, and the connection ends.
    Refused(Differs),
}

/// Why a second hello is refused. Texts from outside are inert.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Differs {
    #[error("its second hello shows another name ({0}) than the first")]
    Name(String),
    #[error("its second hello shows no name, unlike the first")]
    NoName,
    #[error("its second hello holds an Encrypted ClientHello, unlike the first")]
    Ech,
    #[error("its second hello is damaged: {0}")]
    Damaged(&'static str),
}

/// Follows both directions of a connection whose first hello was let through.
#[derive(Debug)]
pub struct Watch {
    name: DomainName,
    ech: bool,
    /// Octets of the client's current record that still pass.
    left: usize,
    reader: Reader,
    /// The server's first octets, until they say what its first message is.
    server: Vec<u8>,
    asked: Option<bool>,
}

impl Watch {
    /// `name` and `ech` are those of the first hello.
    #[must_use]
    pub fn new(name: DomainName, ech: bool) -> Self {
        Self { name, ech, left: 0, reader: Reader::default(), server: Vec::new(), asked: None }
    }

    /// Octets of the server, in their order; they go to the client whatever they are. Whether the client's have to be
    /// watched on.
    pub fn server(&mut self, octets: &[u8]) -> bool {
        if self.asked.is_none() {
            self.server.extend_from_slice(octets.get(..octets.len().min(MAX_RECORD)).unwrap_or_default());
            self.asked = asks(&self.server);
            if self.asked.is_some() {
                self.server = Vec::new();
            }
        }
        self.asked != Some(false)
    }

    /// The client's octets after those that passed, beginning with the first after its first hello.
    pub fn client(&mut self, held: &[u8]) -> Step {
        let mut passed = 0;
        loop {
            if self.asked == Some(false) {
                return Step::Over;
            }
            let rest = held.get(passed..).unwrap_or_default();
            if self.left > 0 {
                let now = self.left.min(rest.len());
                self.left -= now;
                passed += now;
                if self.left > 0 {
                    return Step::Pass(passed);
                }
                continue;
            }
            let length = match rest {
                // A handshake message in the clear: of TLS 1.2, or the second hello.
                [22, ..] => return self.handshake(rest, passed),
                // Other records than these mean nothing to any server.
                [kind, ..] if !(20..=23).contains(kind) => {
                    return Step::Refused(Differs::Damaged("a record is of no kind that TLS has"));
                }
                [_, _, _, high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
                _ => return Step::Pass(passed),
            };
            if length > MAX_RECORD + MAX_EXPANSION {
                return Step::Refused(Differs::Damaged("a record is too long"));
            }
            self.left = RECORD_HEADER + length;
        }
    }

    /// `rest` begins with a handshake record, before which `passed` octets go on.
    fn handshake(&mut self, rest: &[u8], passed: usize) -> Step {
        // Before the server has said what it wants, and where it wants a second hello, no client sends another message in
        // the clear: what the reader does not take for a hello is damaged, an empty record too, which some servers skip. Shown
        // again from its beginning while it is not complete.
        match self.reader.read(rest) {
            Hello::Incomplete => Step::Pass(passed),
            Hello::NotTls => Step::Refused(Differs::Damaged("it is no hello")),
            Hello::Damaged(why) => Step::Refused(Differs::Damaged(why)),
            Hello::Client(ClientHello { ech: true, .. }) if !self.ech => Step::Refused(Differs::Ech),
            Hello::Client(ClientHello { name: Ok(name), .. }) if name == self.name => Step::Over,
            Hello::Client(ClientHello { name: Ok(name), .. }) => {
                Step::Refused(Differs::Name(harmless(name.as_str(), 80)))
            }
            Hello::Client(ClientHello { name: Err(_), .. }) => Step::Refused(Differs::NoName),
        }
    }
}

/// Whether these first octets of a server ask for another hello, as soon as they say. Their message may be spread over
/// records.
fn asks(octets: &[u8]) -> Option<bool> {
    let expected = |at: usize, octet: u8| match at {
        0 => octet == SERVER_HELLO,
        // Length and version.
        1..=5 => true,
        at => RETRY.get(at - 6) == Some(&octet),
    };
    let (mut octets, mut at) = (Octets::new(octets), 0);
    while at < 6 + RETRY.len() {
        if octets.u8()? != 22 {
            return Some(false);
        }
        octets.u16()?;
        let length = usize::from(octets.u16()?);
        if length == 0 {
            return Some(false);
        }
        for _ in 0..length {
            if at == 6 + RETRY.len() {
                break;
            }
            if !expected(at, octets.u8()?) {
                return Some(false);
            }
            at += 1;
        }
    }
    Some(true)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Differs, RETRY, Step, Watch};
    use crate::allowlist::DomainName;

    fn watch() -> Watch {
        Watch::new(DomainName::parse("ok.test").unwrap(), false)
    }

    fn record(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind, 3, 3][..], &u16::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
    }

    /// A hello of rustls, in one record.
    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = name.to_owned().try_into().unwrap();
        let mut octets = Vec::new();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        client.write_tls(&mut octets).unwrap();
        octets
    }

    fn server_hello(random: [u8; 32]) -> Vec<u8> {
        record(22, &[&[2, 0, 0, 40, 3, 3][..], &random, &[0, 0x13, 1, 0, 0, 0]].concat())
    }

    /// The client's octets in pieces of one size, as the worker would show them: what passed, and how it ended.
    fn follow(watch: &mut Watch, octets: &[u8], size: usize) -> (usize, Step) {
        let (mut passed, mut last) = (0, Step::Pass(0));
        for end in (0..=octets.len()).step_by(size).chain([octets.len()]) {
            last = watch.client(&octets[passed..end]);
            match last {
                Step::Pass(more) => passed += more,
                Step::Over | Step::Refused(_) => break,
            }
        }
        (passed, last)
    }

    #[test]
    fn t47_a_second_hello_must_show_the_same_name() {
        let change = record(20, &[1]);
        let early = record(23, &[7; 300]);
        for before in [vec![], change.clone(), early.clone(), [early, change].concat()] {
            for size in [1, 3, 100, 10_000] {
                for asked_first in [true, false] {
                    let outcome = |name: &str| {
                        let mut watch = watch();
                        if asked_first {
                            assert!(watch.server(&server_hello(RETRY)));
                        }
                        follow(&mut watch, &[&before[..], &hello(name)].concat(), size)
                    };
                    let (passed, last) = outcome("ok.test");
                    assert_eq!(last, Step::Over);
                    assert!(passed <= before.len());
                    let (passed, last) = outcome("evil.test");
                    assert_eq!(last, Step::Refused(Differs::Name("evil.test".to_owned())));
                    assert!(passed <= before.len(), "nothing of the second hello may pass");
                    assert_eq!(outcome("192.0.2.1").1, Step::Refused(Differs::NoName));
                }
            }
        }
    }

    #[test]
    fn a_server_that_asks_for_nothing_ends_the_watch() {
        let plain = server_hello([5; 32]);
        for size in [1, 10, plain.len()] {
            let mut watch = watch();
            let watched: Vec<bool> = plain.chunks(size).map(|part| watch.server(part)).collect();
            assert_eq!(watched.last(), Some(&false));
            assert_eq!(watch.client(&hello("evil.test")), Step::Over);
        }
        let mut asked = watch();
        let retry = server_hello(RETRY);
        assert!(retry.iter().all(|octet| asked.server(&[*octet])), "octet by octet");
        // One octet a record is a HelloRetryRequest too; an alert is none.
        let parted: Vec<u8> = retry[5..].iter().flat_map(|octet| record(22, &[*octet])).collect();
        assert!(watch().server(&parted));
        assert!(!watch().server(&record(21, &[2, 40])));
        assert!(!watch().server(b"HTTP/1.1 400 Bad Request\r\n"));
    }

    #[test]
    fn t47_no_message_hides_a_second_hello() {
        // Some servers skip empty records; no client sends another message before the server's first.
        for before in
            [record(22, &[]), record(22, &[16]), record(22, &[0, 0, 0, 0]), record(22, &[16, 0, 0, 0])]
        {
            for asked in [false, true] {
                let mut watch = watch();
                assert!(!asked || watch.server(&server_hello(RETRY)));
                let octets = [before.clone(), hello("evil.test")].concat();
                let step = watch.client(&octets);
                assert!(matches!(step, Step::Refused(Differs::Damaged(_))), "{before:?}: {step:?}");
            }
        }
    }

    #[test]
    fn other_records_pass() {
        let mut twelve = watch();
        assert!(!twelve.server(&server_hello([7; 32])));
        assert_eq!(twelve.client(&record(22, &[16, 0, 0, 1, 9])), Step::Over, "ClientKeyExchange");
        let mut early = watch();
        let data = record(23, &[7; 1000]);
        assert_eq!(early.client(&data[..600]), Step::Pass(600));
        assert_eq!(early.client(&data[600..]), Step::Pass(data.len() - 600));
        assert_eq!(early.client(&[]), Step::Pass(0));
        assert!(matches!(watch().client(b"\x18\x03\x03\0\x01x"), Step::Refused(Differs::Damaged(_))));
        assert!(matches!(watch().client(b"\x17\x03\x03\xff\xff"), Step::Refused(Differs::Damaged(_))));
    }
}
