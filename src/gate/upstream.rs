//! The proxy through which a box reaches the world where there is no other way (`network.proxy`): its address, what it is
//! asked for, and its answer. (pure)
//!
//! The name goes to the proxy, which resolves it: what it judges by is what the gate judged.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::response::{Read, Reader};
use crate::allowlist::{DomainName, NameError};
use crate::telemetry::headers::basic;

/// A proxy's answer to CONNECT, which nobody else sees.
pub const MAX_ANSWER: usize = 16 * 1024;

/// Where the proxy is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Host {
    Name(DomainName),
    Address(IpAddr),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
        }
    }
}

/// `http://[USER:PASSWORD@]HOST:PORT`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    pub host: Host,
    pub port: u16,
    /// The value of Proxy-Authorization, which holds the password.
    authorization: Option<String>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

impl Proxy {
    /// Whether this is the proxy itself.
    #[must_use]
    pub fn is_at(&self, name: &DomainName, port: u16) -> bool {
        self.port == port && matches!(&self.host, Host::Name(host) if host == name)
    }

    /// Where it is, if it was given by its address.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Address(address) => Some(SocketAddr::new(address, self.port)),
            Host::Name(_) => None,
        }
    }
}

/// Without the password.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = if self.authorization.is_some() { "…@" } else { "" };
        write!(f, "http://{user}{}:{}", self.host, self.port)
    }
}

/// Why a text is not a proxy's address. No message repeats the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error("its scheme is not http: the gate speaks to a proxy in the clear")]
    Scheme,
    #[error("its host is not a host name: {0}")]
    Host(NameError),
    #[error("its port is missing or not a port")]
    Port,
    #[error("its user and password are not USER:PASSWORD, with % before what an address can't hold")]
    User,
    #[error("it holds a character that no address has")]
    Character,
    #[error("it has a path: a proxy has none")]
    Path,
    #[error("it is longer than 1024 octets")]
    TooLong,
}

/// Why a proxy did not open a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unwilling {
    #[error("it wants a user and a password, or others (407)")]
    Authentication,
    #[error("it answered {0}")]
    Status(u16),
    #[error("it does not answer as a proxy does: {0}")]
    Odd(&'static str),
    #[error("its answer is longer than 16 KiB")]
    TooLong,
}

impl Proxy {
    pub fn parse(text: &str) -> Result<Self, ProxyError> {
        let text = text.trim();
        if text.len() > 1024 {
            return Err(ProxyError::TooLong);
        }
        if !text.bytes().all(|octet| octet.is_ascii_graphic()) {
            return Err(ProxyError::Character);
        }
        let start = text.get(..7).filter(|start| start.eq_ignore_ascii_case("http://"));
        let rest = start.and(text.get(7..)).ok_or(ProxyError::Scheme)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(ProxyError::Path);
        }
        let (user, authority) = rest.rsplit_once('@').map_or((None, rest), |(user, host)| (Some(user), host));
        let (host, port) = authority.rsplit_once(':').ok_or(ProxyError::Port)?;
        let is_number = !port.is_empty() && port.bytes().all(|octet| octet.is_ascii_digit());
        let port = port.parse().ok().filter(|port| *port > 0 && is_number).ok_or(ProxyError::Port)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let host = match bare.parse::<IpAddr>() {
            Ok(address) if address.is_ipv4() == (bare == host) => Host::Address(address),
            Ok(_) | Err(_) => Host::Name(DomainName::parse(host).map_err(ProxyError::Host)?),
        };
        let authorization = user.map(authorization).transpose()?;
        Ok(Self { host, port, authorization })
    }

    /// The request for a tunnel.
    #[must_use]
    pub fn request(&self, name: &DomainName, port: u16) -> Vec<u8> {
        let mut request = format!("CONNECT {name}:{port} HTTP/1.1\r\nHost: {name}:{port}\r\n");
        if let Some(authorization) = &self.authorization {
            request.push_str("Proxy-Authorization: ");
            request.push_str(authorization);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        request.into_bytes()
    }
}

/// RFC 7617, from the percent-encoded parts of a URL.
fn authorization(user: &str) -> Result<String, ProxyError> {
    let (user, password) = user.split_once(':').ok_or(ProxyError::User)?;
    let (user, password) = (decoded(user)?, decoded(password)?);
    // RFC 7617 §2: the first colon ends the user.
    if user.is_empty() || user.contains(':') {
        return Err(ProxyError::User);
    }
    Ok(basic(&user, &password))
}

fn decoded(text: &str) -> Result<String, ProxyError> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            octets.push(*first);
            continue;
        }
        let (digits, after) = rest.split_first_chunk::<2>().ok_or(ProxyError::User)?;
        let digit = |octet: u8| char::from(octet).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let (high, low) = (digit(digits[0]), digit(digits[1]));
        let (Some(high), Some(low)) = (high, low) else { return Err(ProxyError::User) };
        octets.push(high * 16 + low);
        rest = after;
    }
    let text = String::from_utf8(octets).map_err(|_| ProxyError::User)?;
    if text.chars().any(char::is_control) { Err(ProxyError::User) } else { Ok(text) }
}

/// What a proxy has answered so far: how many octets its answer took, once the tunnel is open. What follows them is the
/// server's.
#[derive(Debug, Default)]
pub struct Answer(Reader);

impl Answer {
    /// `octets` is everything read so far.
    pub fn read(&mut self, octets: &[u8]) -> Result<Option<usize>, Unwilling> {
        // RFC 9110 §9.3.6: the answer to a CONNECT has no body, whatever its fields say; as one to a HEAD.
        match self.0.read(octets, true) {
            Read::Incomplete if octets.len() > MAX_ANSWER => Err(Unwilling::TooLong),
            Read::Incomplete => Ok(None),
            Read::Odd(why) => Err(Unwilling::Odd(why)),
            Read::Head(response) => match response.status {
                200..=299 => Ok(Some(response.length)),
                407 => Err(Unwilling::Authentication),
                status => Err(Unwilling::Status(status)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Answer, DomainName, Host, MAX_ANSWER, Proxy, Unwilling};

    #[test]
    fn a_proxy_is_read_strictly_and_its_password_never_shown() {
        let proxy = Proxy::parse(" http://user:ca%3Anary%40@Proxy.corp.example:3128/ ").unwrap();
        assert_eq!(proxy.host, Host::Name(DomainName::parse("proxy.corp.example").unwrap()));
        assert_eq!(
            format!("{proxy} {proxy:?}"),
            "http://…@proxy.corp.example:3128 Proxy(http://…@proxy.corp.example:3128)"
        );
        let request = String::from_utf8(proxy.request(&DomainName::parse("ok.test").unwrap(), 443)).unwrap();
        // printf %s 'user:ca:nary@' | base64
        let expected = "CONNECT ok.test:443 HTTP/1.1\r\nHost: ok.test:443\r\nProxy-Authorization: Basic dXNlcjpjYTpuYXJ5QA==\r\n\r\n";
        assert_eq!(request, expected);
        let plain = Proxy::parse("HTTP://192.0.2.1:8080").unwrap();
        assert_eq!(plain.host, Host::Address([192, 0, 2, 1].into()));
        assert!(
            !String::from_utf8(plain.request(&DomainName::parse("ok.test").unwrap(), 22))
                .unwrap()
                .contains("Auth")
        );
        assert_eq!(
            Proxy::parse("http://[2001:db8::1]:3128").unwrap().to_string(),
            "http://[2001:db8::1]:3128"
        );
        let again: Proxy = serde_json::from_str(&serde_json::to_string(&proxy).unwrap()).unwrap();
        assert_eq!(again, proxy, "it goes to the worker");
        for bad in [
            "",
            "canary",
            "https://canary:3128",
            "socks5://canary:1080",
            "http://canary",
            "http://canary:0",
            "http://canary:+80",
            "http://canary:99999",
            "http://canary:3128/path",
            "http://canary:3128?x",
            "http://canary@proxy.example:3128",
            "http://:canary@proxy.example:3128",
            "http://u:can%zzary@proxy.example:3128",
            "http://u:canary%0d%0aX@proxy.example:3128",
            "http://u:canary%4@proxy.example:3128",
            "http://ca nary:3128",
            "http://2001:db8::1:3128",
            "http://[192.0.2.1]:3128",
            "http://[canary]:3128",
        ] {
            let error = Proxy::parse(bad).unwrap_err().to_string();
            assert!(!error.contains("canary"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_tunnel_is_open_after_a_2xx() {
        let read = |text: &str| {
            let mut slow = Answer::default();
            let pieces =
                (0..=text.len()).map(|end| slow.read(&text.as_bytes()[..end])).find(|read| *read != Ok(None));
            let whole = Answer::default().read(text.as_bytes());
            assert_eq!(pieces.unwrap_or(Ok(None)), whole);
            whole
        };
        assert_eq!(read("HTTP/1.1 200 Connection established\r\n\r\nSSH-2.0"), Ok(Some(39)));
        assert_eq!(read("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n"), Ok(Some(38)));
        assert_eq!(read("HTTP/1.1 200 OK\r\n"), Ok(None));
        assert_eq!(
            read("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"),
            Err(Unwilling::Authentication)
        );
        assert_eq!(read("HTTP/1.1 403 Forbidden\r\n\r\n"), Err(Unwilling::Status(403)));
        assert_eq!(read("HTTP/1.1 101 Switching Protocols\r\n\r\n"), Err(Unwilling::Status(101)));
        assert!(matches!(read("SSH-2.0-x\r\n\r\n"), Err(Unwilling::Odd(_))));
        assert!(matches!(read("HTTP/1.1 200 OK\n\n"), Err(Unwilling::Odd(_))));
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(MAX_ANSWER));
        assert_eq!(Answer::default().read(long.as_bytes()), Err(Unwilling::TooLong));
    }
}
