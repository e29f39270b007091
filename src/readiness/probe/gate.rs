//! What the gate must refuse: a name that no policy has, by TLS and by HTTP, and what shows no name at all.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::{
    DENIED_NAME, DENIED_V4, DENIED_V6, METADATA_V4, Outcome, PATIENCE, Result, Trial, refused, trial,
};

/// What the gate calls its refusals of these attempts, each as often as it is tried.
#[must_use]
pub(crate) fn refusals(proxy: Option<SocketAddr>) -> Vec<String> {
    let no_name = |address: IpAddr, port| SocketAddr::new(address, port).to_string();
    let name = |port: u16| format!("{DENIED_NAME}:{port}");
    if let Some(proxy) = proxy {
        // Nothing else gets there.
        return vec![name(443), proxy.to_string()];
    }
    vec![name(443), name(443), name(80), no_name(DENIED_V4.into(), 443), no_name(METADATA_V4.into(), 80)]
}

/// Where they go, each as often as it is tried.
pub(super) fn places(by_proxy: bool) -> impl Iterator<Item = SocketAddr> {
    let (v4, metadata) = (SocketAddr::from((DENIED_V4, 443)), SocketAddr::from((METADATA_V4, 80)));
    let usual = [v4, v4, SocketAddr::from((DENIED_V6, 443)), metadata, metadata];
    usual.into_iter().chain(by_proxy.then_some(v4))
}

pub(super) fn trials() -> Vec<Trial<'static>> {
    let (v4, v6) = (SocketAddr::from((DENIED_V4, 443)), SocketAddr::from((DENIED_V6, 443)));
    let metadata = SocketAddr::from((METADATA_V4, 80));
    vec![
        trial("denied-sni", "gate", move || show_name(v4)),
        // Where nothing filters IPv6, which the operator gave up, nothing leads it to the gate either.
        trial("denied-sni-ipv6", "egress-ipv6", move || show_name(v6)),
        trial("no-name", "gate", move || say(v4, b"SSH-2.0-innkeeper-readiness\r\n")),
        trial("denied-host", "gate", move || {
            say(metadata, format!("GET / HTTP/1.1\r\nHost: {DENIED_NAME}\r\n\r\n").as_bytes())
        }),
        trial("metadata-http", "gate", move || {
            say(metadata, format!("GET / HTTP/1.1\r\nHost: {METADATA_V4}\r\n\r\n").as_bytes())
        }),
    ]
}

/// Where the gate is a proxy: what it must refuse, and that there is no way around it.
pub(super) fn proxy_trials(proxy: SocketAddr) -> Vec<Trial<'static>> {
    let connect_to = |host: String| format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
    let name = connect_to(format!("{DENIED_NAME}:443"));
    let address = connect_to(format!("{DENIED_V4}:443"));
    vec![
        trial("proxy-denied-name", "gate", move || say(proxy, &name)),
        trial("proxy-address", "gate", move || say(proxy, &address)),
        trial("around-the-proxy", "gate", || super::connect(SocketAddr::from((DENIED_V4, 443)))),
    ]
}

/// A real hello for a name that is not allowed.
pub(crate) fn show_name(target: SocketAddr) -> Result {
    match hello(DENIED_NAME) {
        Some(hello) => say(target, &hello),
        None => (Outcome::Passed, "no hello could be made: nothing was tried".to_owned()),
    }
}

/// A hello that shows a name.
pub(crate) fn hello(name: &str) -> Option<Vec<u8>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).ok()?;
    let mut connection = ClientConnection::new(Arc::new(config), name).ok()?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).ok()?;
    Some(hello)
}

/// What comes back may be the gate's own word, and nothing else.
fn say(target: SocketAddr, what: &[u8]) -> Result {
    let mut stream = match TcpStream::connect_timeout(&target, PATIENCE) {
        Ok(stream) => stream,
        Err(error) => return refused(&error),
    };
    let mut answer = Vec::new();
    let heard = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| {
        stream.write_all(what)?;
        Read::by_ref(&mut stream).take(4096).read_to_end(&mut answer)
    });
    match (heard, answer.as_slice()) {
        // An alert is 21, then the version of TLS, a length of 2, and "fatal" (RFC 8446 §6).
        (_, [21, 3, _, 0, 2, 2, alert]) => (Outcome::Refused, format!("TLS alert {alert}")),
        (_, [b'H', b'T', b'T', b'P', ..]) if is_ours(&answer) => {
            let line = answer.split(|octet| *octet == b'\r').next().unwrap_or_default();
            (Outcome::Refused, String::from_utf8_lossy(line).into_owned())
        }
        (Err(error), []) => (Outcome::Refused, error.to_string()),
        (Ok(_), []) => (Outcome::Refused, "closed without a word".to_owned()),
        (_, answer) => (Outcome::Passed, format!("{target} answered {} octets", answer.len())),
    }
}

/// Only who refuses says so.
fn is_ours(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let status = text.get(9..12).unwrap_or_default();
    matches!(status, "400" | "403") && text.contains("innkeeper")
}
