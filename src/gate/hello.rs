//! The name that a TLS client shows, out of the octets of its first flight. (pure)
//!
//! Strict: what two readers could understand in two ways is refused, since the server would be the other reader. Nothing
//! is rewritten: whoever calls passes the octets on as they came.

use std::borrow::Cow;

use super::octets::Octets;
use crate::allowlist::{DomainName, NameError};
use crate::report::harmless;

pub mod retry;

/// The first flight up to the end of the hello, headers of records included.
pub const MAX_HELLO: usize = 64 * 1024;
/// RFC 8446 §5.1.
const MAX_RECORD: usize = 1 << 14;
const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// Characters of a name that can't be used, as they are shown.
const SHOWN: usize = 80;

const SERVER_NAME: u16 = 0;
const PRE_SHARED_KEY: u16 = 41;
/// RFC 9849: the extension, and the one that only an encrypted hello may hold.
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
const ECH_OUTER_EXTENSIONS: u16 = 0xfd00;
/// What hid the name before RFC 9849: encrypted_server_name of its first drafts, draft 7, and drafts 8 to 12.
const EARLIER_DRAFTS: &[u16] = &[0xffce, 0xff02, 0xfe08, 0xfe09, 0xfe0a, 0xfe0b, 0xfe0c];

/// What the octets so far are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// A beginning: more can make it a hello.
    Incomplete,
    /// It does not begin as TLS does. The hello of SSL 2 is among these: it has no name (RFC 6176 forbids it).
    NotTls,
    /// It begins as TLS and is none; why.
    Damaged(&'static str),
    Client(ClientHello),
}

/// A well-formed hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    pub name: Result<DomainName, NoName>,
    /// It holds an Encrypted ClientHello, real or GREASE, or one of its forerunners: the name may not be the one meant.
    pub ech: bool,
}

/// Why a hello has no name. Texts from outside are inert.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoName {
    #[error("the connection shows no server name (SNI)")]
    Absent,
    #[error("its server name is the address {0}")]
    Address(String),
    #[error("its server name is empty")]
    Empty,
    #[error("its server name \"{shown}\" is not a host name: {why}")]
    NotAName { shown: String, why: NameError },
    #[error("it shows more than one server name")]
    Repeated,
}

/// The alerts that the gate sends (RFC 8446 §6.2, RFC 6066 §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alert {
    /// The policy says no.
    AccessDenied,
    /// The hello is damaged.
    DecodeError,
    /// Nothing could be dialled.
    InternalError,
    /// No name, or none that can be used.
    UnrecognizedName,
}

/// A fatal alert as a record: what a client prints instead of "connection reset".
#[must_use]
pub const fn alert(alert: Alert) -> [u8; 7] {
    let description = match alert {
        Alert::AccessDenied => 49,
        Alert::DecodeError => 50,
        Alert::InternalError => 80,
        Alert::UnrecognizedName => 112,
    };
    [21, 3, 3, 0, 2, 2, description]
}

/// Reads a hello that is not all there at once.
#[must_use]
pub fn parse(bytes: &[u8]) -> Hello {
    Reader::default().read(bytes)
}

/// Reads a hello that comes in pieces: however small they are, every octet is looked at a bounded number of times.
#[derive(Debug, Default)]
pub struct Reader {
    /// Where the record begins that is not complete yet.
    at: usize,
    /// Octets of the handshake in the records before it.
    seen: usize,
    /// The handshake's header, which may be spread over four records.
    header: [u8; HANDSHAKE_HEADER],
}

impl Reader {
    /// How many octets a complete hello took, headers of records included.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.at
    }

    /// `bytes` is everything read so far, from the connection's first octet: what an earlier call got, and more.
    pub fn read(&mut self, bytes: &[u8]) -> Hello {
        if bytes.first().is_some_and(|first| *first != HANDSHAKE) {
            return Hello::NotTls;
        }
        loop {
            match self.record(bytes) {
                Ok(None) => return Hello::Incomplete,
                Ok(Some(false)) => {}
                Ok(Some(true)) => return whole(bytes),
                Err(why) => return Hello::Damaged(why),
            }
        }
    }

    /// Looks at one record: none as long as it is not all there, then whether the hello ends with it.
    fn record(&mut self, bytes: &[u8]) -> Result<Option<bool>, &'static str> {
        let rest = bytes.get(self.at..).unwrap_or_default();
        let Some(length) = record_length(rest)? else { return Ok(None) };
        let end = self.at + RECORD_HEADER + length;
        if end > MAX_HELLO {
            return Err(TOO_LONG);
        }
        let fragment = rest.get(RECORD_HEADER..).unwrap_or_default();
        let fragment = fragment.get(..length).unwrap_or(fragment);
        for (place, octet) in self.header.iter_mut().skip(self.seen).zip(fragment) {
            *place = *octet;
        }
        let known = self.seen + fragment.len();
        let [kind, high, middle, low] = self.header;
        if known > 0 && kind != CLIENT_HELLO {
            return Err("the first handshake message is no ClientHello");
        }
        let announced = if known >= HANDSHAKE_HEADER {
            let body = u32::from_be_bytes([0, high, middle, low]);
            Some(usize::try_from(body).map_err(|_| TOO_LONG)? + HANDSHAKE_HEADER)
        } else {
            None
        };
        if announced.is_some_and(|announced| announced > MAX_HELLO) {
            return Err(TOO_LONG);
        }
        // RFC 8446 §5.1: nothing of the client's follows the hello before an answer or a change of keys.
        if announced.is_some_and(|announced| self.seen + length > announced) {
            return Err("something follows the hello in its record");
        }
        if bytes.len() < end {
            return Ok(None);
        }
        self.seen += length;
        self.at = end;
        Ok(Some(announced == Some(self.seen)))
    }
}

const TOO_LONG: &str = "the hello is longer than 64 KiB";

/// The length in a record's header, if it is there; what there is of it must be right.
fn record_length(header: &[u8]) -> Result<Option<usize>, &'static str> {
    if header.first().is_some_and(|kind| *kind != HANDSHAKE) {
        return Err("another record stands in the middle of the hello");
    }
    if header.get(1).is_some_and(|major| *major != 3) || header.get(2).is_some_and(|minor| *minor > 4) {
        return Err("a record has no version of TLS");
    }
    let (Some(high), Some(low)) = (header.get(3), header.get(4)) else { return Ok(None) };
    match usize::from(u16::from_be_bytes([*high, *low])) {
        0 => Err("a record is empty"),
        length if length > MAX_RECORD => Err("a record is longer than 16 KiB"),
        length => Ok(Some(length)),
    }
}

/// Records that hold a whole hello.
fn whole(bytes: &[u8]) -> Hello {
    let Some(handshake) = defragment(bytes) else { return Hello::Damaged("the records don't hold a hello") };
    match client_hello(handshake.get(HANDSHAKE_HEADER..).unwrap_or_default()) {
        Ok(client) => Hello::Client(client),
        Err(why) => Hello::Damaged(why),
    }
}

/// The handshake out of its records: almost always there is one, which is not copied.
fn defragment(bytes: &[u8]) -> Option<Cow<'_, [u8]>> {
    let mut rest = bytes;
    let mut found: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    loop {
        let length = record_length(rest).ok()??;
        let fragment = rest.get(RECORD_HEADER..RECORD_HEADER + length)?;
        rest = rest.get(RECORD_HEADER + length..)?;
        if found.is_empty() {
            found = Cow::Borrowed(fragment);
        } else {
            found.to_mut().extend_from_slice(fragment);
        }
        if let [_, high, middle, low, body @ ..] = &*found {
            let announced = usize::try_from(u32::from_be_bytes([0, *high, *middle, *low])).ok()?;
            if body.len() >= announced {
                return Some(found);
            }
        }
    }
}

/// RFC 8446 §4.1.2; the extensions may be missing (RFC 5246 §7.4.1.2).
fn client_hello(body: &[u8]) -> Result<ClientHello, &'static str> {
    const CUT: &str = "the hello's lengths don't add up";
    let mut body = Octets::new(body);
    let version = body.u16().ok_or(CUT)?;
    if !(0x0300..=0x0304).contains(&version) {
        return Err("the hello has no version of TLS");
    }
    body.take(32).ok_or(CUT)?;
    if body.short().ok_or(CUT)?.len() > 32 {
        return Err("the session id is longer than 32 octets");
    }
    let ciphers = body.long().ok_or(CUT)?;
    if ciphers.is_empty() || ciphers.len() % 2 == 1 {
        return Err("the list of cipher suites is empty or cut");
    }
    if body.short().ok_or(CUT)?.is_empty() {
        return Err("the list of compression methods is empty");
    }
    if body.is_empty() {
        return Ok(ClientHello { name: Err(NoName::Absent), ech: false });
    }
    let list = body.long().ok_or(CUT)?;
    if !body.is_empty() {
        return Err("something follows the extensions");
    }
    extensions(Octets::new(list))
}

fn extensions(mut list: Octets<'_>) -> Result<ClientHello, &'static str> {
    const CUT: &str = "the extensions' lengths don't add up";
    let (mut kinds, mut names, mut ech) = (Vec::new(), Vec::new(), false);
    while !list.is_empty() {
        let (kind, data) = (list.u16().ok_or(CUT)?, list.long().ok_or(CUT)?);
        if kinds.last() == Some(&PRE_SHARED_KEY) {
            // RFC 8446 §4.2.11
            return Err("an extension follows pre_shared_key");
        }
        kinds.push(kind);
        match kind {
            SERVER_NAME => server_names(data, &mut names)?,
            ENCRYPTED_CLIENT_HELLO => {
                outer_hello(data)?;
                ech = true;
            }
            ECH_OUTER_EXTENSIONS => return Err("it holds what only an encrypted hello may hold"),
            draft if EARLIER_DRAFTS.contains(&draft) => ech = true,
            // Everything else is the server's affair, unknown and GREASE values (RFC 8701) included.
            _ => {}
        }
    }
    let shows_name = kinds.iter().filter(|kind| **kind == SERVER_NAME).count();
    kinds.sort_unstable();
    // RFC 8446 §4.2. A repeated name has a word of its own.
    let repeated = |pair: &[u16]| matches!(pair, [one, other] if one == other && *one != SERVER_NAME);
    if kinds.windows(2).any(repeated) {
        return Err("an extension is repeated");
    }
    let name = match (shows_name, names.as_slice()) {
        (0, _) => Err(NoName::Absent),
        (1, []) => Err(NoName::Empty),
        (1, [name]) => host_name(name),
        (_, _) => Err(NoName::Repeated),
    };
    Ok(ClientHello { name, ech })
}

/// RFC 6066 §3. There is one kind of name; another one would have no known form.
fn server_names<'a>(data: &'a [u8], names: &mut Vec<&'a [u8]>) -> Result<(), &'static str> {
    const CUT: &str = "the server name's lengths don't add up";
    let mut data = Octets::new(data);
    // No list at all is what a server answers with.
    if data.is_empty() {
        return Ok(());
    }
    let mut list = Octets::new(data.long().ok_or(CUT)?);
    if !data.is_empty() {
        return Err(CUT);
    }
    while !list.is_empty() {
        if list.u8() != Some(0) {
            return Err("a server name is of an unknown kind");
        }
        names.push(list.long().ok_or(CUT)?);
    }
    Ok(())
}

fn host_name(octets: &[u8]) -> Result<DomainName, NoName> {
    if octets.is_empty() {
        return Err(NoName::Empty);
    }
    let shown = || harmless(&String::from_utf8_lossy(octets), SHOWN);
    let refused = |why: NameError| {
        if why == NameError::Address {
            NoName::Address(shown())
        } else {
            NoName::NotAName { shown: shown(), why }
        }
    };
    let text = std::str::from_utf8(octets).map_err(|_| refused(NameError::NotAscii))?;
    // RFC 6066 §3: without a trailing dot. Servers disagree on whether it is the same name; clients take it off.
    if text.ends_with('.') {
        return Err(refused(NameError::Label(String::new())));
    }
    DomainName::parse(text).map_err(refused)
}

/// RFC 9849 §5. An inner hello is never on the wire: whoever sends one unencrypted means something else.
fn outer_hello(data: &[u8]) -> Result<(), &'static str> {
    const BAD: &str = "the Encrypted ClientHello is not of the form of an outer hello";
    let mut data = Octets::new(data);
    if data.u8() != Some(0) {
        return Err(BAD);
    }
    // Cipher suite and configuration.
    data.take(5).ok_or(BAD)?;
    data.long().ok_or(BAD)?;
    let payload = data.long().ok_or(BAD)?;
    if payload.is_empty() || !data.is_empty() { Err(BAD) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
