//! The head of an HTTP/1 request: which name and port it is for, and where its body ends. (pure)
//!
//! The server behind the gate reads the same octets. Whatever the two could understand differently is refused, since a
//! request for another name could hide there (RFC 9112 §11.2): two Hosts, two lengths, folded lines, other protocols.

use super::body::Body;
use super::head::{Field, Scan, content_length, is_token, lines};
use super::refusal::{Manner, Refused};
use crate::allowlist::{DomainName, NameError};
use crate::report::harmless;

mod accept;
mod target;

use target::{Target, authority};

/// Characters of a method; the longest in use has 17.
const MAX_METHOD: usize = 32;
/// Characters of a path as it is told.
const SHOWN: usize = 80;

/// What the octets so far are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    Incomplete,
    Refused(Refused),
    Head(Box<Request>),
}

/// What comes after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Its answer.
    Plain,
    /// After a 101 the connection is a WebSocket.
    WebSocket,
    /// It asks a proxy for a tunnel (CONNECT): nothing of it goes on, and its port is said.
    Tunnel,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Octets of the head.
    pub length: usize,
    /// What goes to the server in place of the head, where a proxy may not pass it on as it is.
    pub rewritten: Option<Vec<u8>>,
    pub kind: Kind,
    pub host: DomainName,
    /// As it was written, if it was.
    pub port: Option<u16>,
    pub body: Body,
    /// The client may send another one.
    pub is_persistent: bool,
    /// Its body waits for a 100 (RFC 9110 §10.1.1).
    pub expects: bool,
    pub manner: Manner,
    /// Method, name and path in a few inert words; no query, which may hold secrets.
    pub what: String,
}

/// How a refusal of these octets is said: what the client wants is read even where the rest is not understood.
#[must_use]
pub fn manner(bytes: &[u8]) -> Manner {
    Manner { json: accept::prefers_json(lines(bytes)), headless: bytes.starts_with(b"HEAD ") }
}

/// How a connection came to the gate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Way {
    /// The firewall sent it: the client knows of no gate.
    #[default]
    Redirected,
    /// The client knows the gate as its proxy.
    Explicit,
}

/// Reads one head that comes in pieces.
#[derive(Debug, Default)]
pub struct Reader {
    scan: Scan,
    has_judged_line: bool,
    way: Way,
}

impl Reader {
    #[must_use]
    pub fn new(way: Way) -> Self {
        Self { way, ..Self::default() }
    }

    /// `bytes` begins with the request, and holds what an earlier call got.
    pub fn read(&mut self, bytes: &[u8]) -> Read {
        let scanned = self.scan.scan(bytes);
        // Who speaks something else hears it at the first line, and not when time is up.
        if self.scan.has_first_line() && !self.has_judged_line {
            self.has_judged_line = true;
            if let Err(refused) = request_line(lines(bytes).next().unwrap_or_default(), self.way) {
                return Read::Refused(refused);
            }
        }
        match scanned {
            Ok(None) => Read::Incomplete,
            Ok(Some(length)) => match request(bytes.get(..length).unwrap_or_default(), self.way) {
                Ok(request) => Read::Head(Box::new(Request { length, ..request })),
                Err(refused) => Read::Refused(refused),
            },
            Err(why) => Read::Refused(bad(why)),
        }
    }
}

/// Reads a head at once.
#[must_use]
pub fn parse(bytes: &[u8]) -> Read {
    Reader::default().read(bytes)
}

pub(super) fn bad(why: &str) -> Refused {
    Refused {
        status: 400,
        what: format!("the request is refused: {why}"),
        next: "send one plain HTTP/1.1 request (RFC 9112); the gate passes on nothing that could be read in two ways"
            .to_owned(),
    }
}

fn forbidden(what: &str, next: &str) -> Refused {
    Refused { status: 403, what: what.to_owned(), next: next.to_owned() }
}

#[derive(Debug)]
struct Line<'a> {
    method: &'a str,
    target: Target<'a>,
    is_1_1: bool,
}

/// RFC 9112 §3: single spaces, nothing around them.
fn request_line(line: &[u8], way: Way) -> Result<Line<'_>, Refused> {
    let mut parts = line.splitn(3, |octet| *octet == b' ');
    let (method, target, version) = (parts.next(), parts.next(), parts.next());
    let (Some(method), Some(target), Some(version)) = (method, target, version) else {
        return Err(bad("it does not begin with METHOD TARGET VERSION"));
    };
    if version.starts_with(b"HTTP/2") || version.starts_with(b"HTTP/3") {
        let next = "use HTTP/1.1 here, or HTTP/2 over TLS, where the server name decides";
        return Err(forbidden("HTTP/2 without TLS is refused: its requests would pass unseen", next));
    }
    let is_1_1 = match version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => return Err(bad("its version is neither HTTP/1.1 nor HTTP/1.0")),
    };
    let method = std::str::from_utf8(method).ok().filter(|method| is_token(method.as_bytes()));
    let method =
        method.filter(|method| method.len() <= MAX_METHOD).ok_or_else(|| bad("its method is not a token"))?;
    if method == "CONNECT" && way == Way::Explicit {
        return Ok(Line { method, target: Target::Authority(target), is_1_1 });
    }
    if method.eq_ignore_ascii_case("CONNECT") {
        let next = match way {
            Way::Redirected => {
                "connect to the name itself: the gate is in the way already, no proxy is needed"
            }
            Way::Explicit => "write CONNECT in capitals: methods have a case (RFC 9110 §9.1)",
        };
        return Err(forbidden("CONNECT is refused: a tunnel through this host could lead anywhere", next));
    }
    let target = Target::parse(target, method, way)?;
    if way == Way::Explicit && !matches!(target, Target::Absolute { .. }) {
        let next = "ask a proxy for the whole URL, http://NAME/…, or for a tunnel by CONNECT";
        return Err(Refused { next: next.to_owned(), ..bad("this is a proxy, and its target is no URL") });
    }
    Ok(Line { method, target, is_1_1 })
}

/// What of the fields decides something.
#[expect(clippy::struct_excessive_bools, reason = "each is a field that is there or not, with any other")]
#[derive(Debug, Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    is_chunked: bool,
    closes: bool,
    stays: bool,
    upgrade: bool,
    nominates_upgrade: bool,
    expects: bool,
}

impl<'a> Fields<'a> {
    fn read(&mut self, field: &Field<'a>) -> Result<(), Refused> {
        if field.is("host") {
            if self.host.is_some() {
                return Err(bad("it has two Host fields"));
            }
            self.host = Some(field.exact().map_err(bad)?);
        } else if field.is("content-length") {
            if self.length.is_some() {
                return Err(bad("it has two Content-Length fields"));
            }
            let value = field.exact().map_err(bad)?;
            self.length =
                Some(content_length(value).ok_or_else(|| bad("its Content-Length is not a number"))?);
        } else if field.is("transfer-encoding") {
            // In lower case and alone: a server that misses it would read the body as the next request.
            if self.is_chunked || field.exact().map_err(bad)? != b"chunked" {
                return Err(bad("its Transfer-Encoding is not \"chunked\" alone"));
            }
            self.is_chunked = true;
        } else if field.is("connection") {
            self.connection(field)?;
        } else if field.is("upgrade") {
            self.upgrade(field)?;
        } else if field.is("http2-settings") {
            return Err(h2c());
        } else if field.is("expect") {
            if !field.value().eq_ignore_ascii_case(b"100-continue") {
                return Err(bad("it expects something else than 100-continue"));
            }
            self.expects = true;
        }
        Ok(())
    }

    fn connection(&mut self, field: &Field<'a>) -> Result<(), Refused> {
        for member in field.members() {
            let is = |name: &str| member.eq_ignore_ascii_case(name.as_bytes());
            self.closes |= is("close");
            self.stays |= is("keep-alive");
            self.nominates_upgrade |= is("upgrade");
            // A proxy at the server would take these off (RFC 9110 §7.6.1), and read another request.
            if is("host") || is("content-length") || is("transfer-encoding") {
                return Err(bad("its Connection field names Host, Content-Length or Transfer-Encoding"));
            }
        }
        Ok(())
    }

    fn upgrade(&mut self, field: &Field<'a>) -> Result<(), Refused> {
        if field.members().any(|member| member.to_ascii_lowercase().starts_with(b"h2")) {
            return Err(h2c());
        }
        if self.upgrade || !field.value().eq_ignore_ascii_case(b"websocket") {
            let next = "only a WebSocket may take over a connection; leave the Upgrade field out";
            return Err(forbidden(
                "an Upgrade to another protocol is refused: the gate can't follow it",
                next,
            ));
        }
        self.upgrade = true;
        Ok(())
    }

    fn body(&self, is_1_1: bool) -> Result<Body, Refused> {
        match (self.is_chunked, self.length) {
            (true, Some(_)) => Err(bad("it has both Transfer-Encoding and Content-Length")),
            (true, None) if !is_1_1 => Err(bad("it has a Transfer-Encoding in HTTP/1.0")),
            (true, None) => Ok(Body::Chunked),
            (false, length) => Ok(Body::Length(length.unwrap_or(0))),
        }
    }
}

fn h2c() -> Refused {
    forbidden(
        "an Upgrade to HTTP/2 is refused: its requests would pass unseen",
        "use HTTP/1.1 without Upgrade (curl: --http1.1, Java: version(HTTP_1_1)), or HTTP/2 over TLS",
    )
}

fn request(head: &[u8], way: Way) -> Result<Request, Refused> {
    let mut all = lines(head);
    let line = request_line(all.next().unwrap_or_default(), way)?;
    let mut fields = Fields::default();
    for text in all {
        fields.read(&Field::parse(text).map_err(bad)?)?;
    }
    if let Target::Authority(target) = line.target {
        return tunnel(head, target, &fields);
    }
    let Some(host) = fields.host else {
        let next = "name the host in a Host field, as HTTP/1.1 wants it";
        return Err(Refused { next: next.to_owned(), ..bad("it has no Host field: no name, no passage") });
    };
    let (host, port) = authority(host)?;
    if let Target::Absolute { authority: other, .. } = line.target {
        let (named, at) = authority(other)?;
        if named != host || at.unwrap_or(80) != port.unwrap_or(80) {
            return Err(bad("its target and its Host field name two different hosts"));
        }
    }
    let body = fields.body(line.is_1_1)?;
    if fields.upgrade && (!fields.nominates_upgrade || body != Body::NONE || !line.is_1_1) {
        return Err(bad("its Upgrade has no \"Connection: Upgrade\", or a body, or is in HTTP/1.0"));
    }
    let shown_port = port.map_or_else(String::new, |port| format!(":{port}"));
    let path = harmless(line.target.path(), SHOWN);
    Ok(Request {
        length: 0,
        rewritten: (way == Way::Explicit).then(|| rewritten(head, &line)),
        kind: if fields.upgrade { Kind::WebSocket } else { Kind::Plain },
        what: format!("{} http://{host}{shown_port}{path}", line.method),
        host,
        port,
        body,
        is_persistent: !fields.closes && (line.is_1_1 || fields.stays),
        // RFC 9110 §10.1.1: in HTTP/1.0 it means nothing.
        expects: fields.expects && line.is_1_1 && body != Body::NONE,
        manner: manner(head),
    })
}

/// RFC 9110 §9.3.6. A Host is often left out, or without the port; another name in it would be one too many.
fn tunnel(head: &[u8], target: &[u8], fields: &Fields<'_>) -> Result<Request, Refused> {
    let (host, port) = authority(target)?;
    let port = port.ok_or_else(|| bad("its target has no port"))?;
    if let Some(other) = fields.host {
        let (named, at) = authority(other)?;
        if named != host || at.is_some_and(|at| at != port) {
            return Err(bad("its target and its Host field name two different hosts"));
        }
    }
    if fields.is_chunked || fields.length.is_some_and(|length| length > 0) || fields.upgrade {
        return Err(bad("a CONNECT has neither a body nor an Upgrade"));
    }
    Ok(Request {
        length: 0,
        rewritten: None,
        kind: Kind::Tunnel,
        what: format!("CONNECT {host}:{port}"),
        host,
        port: Some(port),
        body: Body::NONE,
        is_persistent: false,
        expects: false,
        manner: manner(head),
    })
}

/// What a proxy sends on: the path for the URL (not every server takes a URL, RFC 9112 §3.2.1), and nothing that was meant
/// for the proxy alone. Every other octet stays.
fn rewritten(head: &[u8], line: &Line<'_>) -> Vec<u8> {
    let Line { method, target, is_1_1 } = line;
    let target = match target {
        Target::Absolute { path: "", .. } if *method == "OPTIONS" => "*".to_owned(),
        Target::Absolute { path, .. } if path.starts_with('/') => (*path).to_owned(),
        Target::Absolute { path, .. } => format!("/{path}"),
        Target::Origin(path) => (*path).to_owned(),
        Target::Asterisk | Target::Authority(_) => "*".to_owned(),
    };
    let version = if *is_1_1 { "HTTP/1.1" } else { "HTTP/1.0" };
    let mut out = format!("{method} {target} {version}\r\n").into_bytes();
    for field in lines(head).skip(1) {
        if !field.get(..6).is_some_and(|start| start.eq_ignore_ascii_case(b"proxy-")) {
            out.extend_from_slice(field);
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
    out
}

#[cfg(test)]
mod tests;
