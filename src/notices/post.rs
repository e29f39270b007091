//! `innkeeper post`, a child with a uid of its own: one HTTPS POST, whose address it reads on its standard input.
//!
//! The smallest client that does it: through the box's resolver, firewall and gate like everybody, no redirect, and of the
//! answers the status line alone.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde::{Deserialize, Serialize};

/// What the child is told.
#[derive(Serialize, Deserialize)]
pub struct Letter {
    pub host: String,
    pub port: u16,
    /// With the query; the secret.
    pub path: String,
    pub body: String,
    /// A file of PEM certificates that the host is judged by.
    pub roots: String,
    /// The gate, where it is a proxy.
    pub proxy: Option<SocketAddr>,
}

impl std::fmt::Debug for Letter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Letter").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// A letter on standard input.
const MAX_LETTER: u64 = 64 << 10;
/// A status line is short.
const MAX_ANSWER: usize = 1024;
/// For each step of the way, and for all of them; PID 1 ends a child that takes longer.
const STEP: Duration = Duration::from_secs(4);
/// Addresses that are tried.
const ADDRESSES: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum PostError {
    #[error("cannot read the letter")]
    Letter(#[source] std::io::Error),
    #[error("the letter is not understood")]
    Form(#[source] serde_json::Error),
    #[error("cannot read the certificates in {path}")]
    Roots { path: String, source: std::io::Error },
    #[error("cannot set TLS up")]
    Tls(#[source] rustls::Error),
    #[error("{0} is no name that a certificate can have")]
    Name(String),
    #[error("cannot resolve {host}")]
    Resolve { host: String, source: std::io::Error },
    #[error("cannot reach {host}")]
    Reach { host: String, source: std::io::Error },
    #[error("cannot send to {host}")]
    Send { host: String, source: std::io::Error },
    #[error("the gate lets nothing through to {host}: it answered {status}")]
    Gate { host: String, status: u16 },
    #[error("{0} gave no answer of HTTP")]
    Answer(String),
    #[error("{host} answered {status}")]
    Status { host: String, status: u16 },
}

/// Sends the letter; an answer of 2xx is success.
pub fn run() -> Result<(), PostError> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(MAX_LETTER).read_to_end(&mut bytes).map_err(PostError::Letter)?;
    let letter: Letter = serde_json::from_slice(&bytes).map_err(PostError::Form)?;
    let status = send(&letter)?;
    if (200..300).contains(&status) { Ok(()) } else { Err(PostError::Status { host: letter.host, status }) }
}

fn send(letter: &Letter) -> Result<u16, PostError> {
    let roots = std::fs::read(&letter.roots)
        .map_err(|source| PostError::Roots { path: letter.roots.clone(), source })?;
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(CertificateDer::pem_slice_iter(&roots).filter_map(Result::ok));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(PostError::Tls)?
        .with_root_certificates(store)
        .with_no_client_auth();
    let name = ServerName::try_from(letter.host.clone()).map_err(|_| PostError::Name(letter.host.clone()))?;
    let session = ClientConnection::new(Arc::new(config), name).map_err(PostError::Tls)?;
    let mut stream = StreamOwned::new(session, connect(letter)?);
    let failed = |source| PostError::Send { host: letter.host.clone(), source };
    stream.write_all(request(letter).as_bytes()).and_then(|()| stream.flush()).map_err(failed)?;
    status(&mut stream).ok_or_else(|| PostError::Answer(letter.host.clone()))
}

fn connect(letter: &Letter) -> Result<TcpStream, PostError> {
    match letter.proxy {
        Some(proxy) => through(proxy, letter),
        None => direct(letter),
    }
}

fn through(proxy: SocketAddr, letter: &Letter) -> Result<TcpStream, PostError> {
    let host = || letter.host.clone();
    let authority = format!("{}:{}", letter.host, letter.port);
    let asked = reach(proxy).and_then(|mut stream| {
        let opened = open_tunnel(&mut stream, &authority)?;
        Ok((stream, opened))
    });
    match asked.map_err(|source| PostError::Reach { host: host(), source })? {
        (stream, Ok(())) => Ok(stream),
        (_, Err(None)) => Err(PostError::Answer("the gate".to_owned())),
        (_, Err(Some(status))) => Err(PostError::Gate { host: host(), status }),
    }
}

/// Asks a proxy for a tunnel (RFC 9110, section 9.3.6), whose answer ends with an empty line. The status of one that opens none;
/// none if it is no answer of HTTP.
pub(crate) fn open_tunnel(
    stream: &mut TcpStream,
    authority: &str,
) -> std::io::Result<Result<(), Option<u16>>> {
    stream.write_all(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes())?;
    Ok(match status(stream) {
        Some(200) if empty_line(stream) => Ok(()),
        status => Err(status),
    })
}

fn reach(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, STEP)?;
    stream.set_read_timeout(Some(STEP))?;
    stream.set_write_timeout(Some(STEP))?;
    Ok(stream)
}

fn direct(letter: &Letter) -> Result<TcpStream, PostError> {
    let host = || letter.host.clone();
    let addresses = (letter.host.as_str(), letter.port)
        .to_socket_addrs()
        .map_err(|source| PostError::Resolve { host: host(), source })?;
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for address in addresses.take(ADDRESSES) {
        match reach(address) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(PostError::Reach { host: host(), source: last })
}

fn request(letter: &Letter) -> String {
    let Letter { host, port, path, body, .. } = letter;
    let port = if *port == 443 { String::new() } else { format!(":{port}") };
    format!(
        "POST {path} HTTP/1.1\r\nHost: {host}{port}\r\nUser-Agent: innkeeper/{}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        env!("CARGO_PKG_VERSION"),
        body.len()
    )
}

/// The number of the status line, and nothing behind it.
fn status(stream: &mut impl Read) -> Option<u16> {
    parse_status(&line(stream)?)
}

/// Whether the gate's answer, which has a header or two at the most, is over.
fn empty_line(stream: &mut impl Read) -> bool {
    (0..4).map_while(|_| line(stream)).any(|line| line == b"\r")
}

/// One line, without its end.
fn line(stream: &mut impl Read) -> Option<Vec<u8>> {
    let (deadline, mut answer) = (Instant::now() + STEP, Vec::new());
    while answer.len() < MAX_ANSWER && Instant::now() < deadline {
        let mut octet = [0; 1];
        match stream.read(&mut octet) {
            Ok(1..) if octet == *b"\n" => return Some(answer),
            Ok(1..) => answer.extend(octet),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return None,
        }
    }
    None
}

/// `HTTP/1.1 200 OK` (RFC 9112, section 4).
fn parse_status(line: &[u8]) -> Option<u16> {
    let mut words = std::str::from_utf8(line).ok()?.trim_end().split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next().filter(|code| code.len() == 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Letter, parse_status, request, status};

    #[test]
    fn of_an_answer_only_the_status_line_is_read() {
        assert_eq!(parse_status(b"HTTP/1.1 204 No Content\r"), Some(204));
        for bad in
            [&b"HTTP/2 200"[..], b"200 OK", b"HTTP/1.1 2x0", b"HTTP/1.1", b"\xff\xff", b"HTTP/1.1 20000 OK"]
        {
            assert_eq!(parse_status(bad), None);
        }
        let mut answer = &b"HTTP/1.1 200 OK\r\nX: 1\r\n"[..];
        assert_eq!(status(&mut answer), Some(200));
        assert_eq!(answer, b"X: 1\r\n");
        assert_eq!(status(&mut std::io::repeat(b'a')), None);
        for (head, over) in [("\r\nTLS", true), ("A: b\r\n\r\nTLS", true), ("A: b\r\n", false), ("", false)] {
            assert_eq!(super::empty_line(&mut head.as_bytes()), over, "{head:?}");
        }
    }

    #[test]
    fn the_request_is_what_rfc_9112_says_and_debug_shows_no_secret() {
        let letter = Letter {
            host: "hooks.example.org".into(),
            port: 8443,
            path: "/canary".into(),
            body: "{}".into(),
            roots: String::new(),
            proxy: None,
        };
        let text = request(&letter);
        assert!(text.starts_with("POST /canary HTTP/1.1\r\nHost: hooks.example.org:8443\r\n"), "{text}");
        assert!(text.ends_with("Content-Length: 2\r\nConnection: close\r\n\r\n{}"), "{text}");
        assert!(!format!("{letter:?}").contains("canary"));
    }
}
