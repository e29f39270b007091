//! An upstream DNS server as the operator writes it: `192.0.2.53`, `[2001:db8::53]:5353`, `tls://192.0.2.53#dns.example`.
//! (pure)

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::allowlist::DomainName;

/// RFC 1035 §4.2.
const PORT: u16 = 53;
/// RFC 7858 §3.1.
const TLS_PORT: u16 = 853;
const TLS: &str = "tls://";

/// Whom to ask, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameServer {
    pub address: SocketAddr,
    /// Ask by TLS alone, and only a server that can prove this name (RFC 7858). Never in the clear instead.
    pub tls: Option<DomainName>,
}

/// Why a text is not a DNS server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameServerError {
    #[error("it is not an IP address")]
    Address,
    #[error("no server can have this address")]
    Unusable,
    #[error("port 0 is not a port")]
    Port,
    #[error("tls:// needs the name that the server must prove: tls://ADDRESS#NAME")]
    NoName,
    #[error("what follows the # is not a host name")]
    Name,
    #[error("only tls:// takes a name after a #")]
    NameWithoutTls,
}

impl NameServer {
    /// Asked in the clear, as resolv.conf(5) means it.
    #[must_use]
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }

    pub fn parse(text: &str) -> Result<Self, NameServerError> {
        let (place, tls) = match (text.strip_prefix(TLS), text.split_once('#')) {
            (Some(_), None) => return Err(NameServerError::NoName),
            (None, Some(_)) => return Err(NameServerError::NameWithoutTls),
            (None, None) => (text, None),
            (Some(rest), Some((_, name))) => {
                let name = DomainName::parse(name).map_err(|_| NameServerError::Name)?;
                (rest.split('#').next().unwrap_or_default(), Some(name))
            }
        };
        let port = if tls.is_some() { TLS_PORT } else { PORT };
        let bare = place.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(place);
        let address = bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port));
        let address = address.or_else(|_| place.parse()).map_err(|_| NameServerError::Address)?;
        if address.ip().is_unspecified() || address.ip().is_multicast() {
            return Err(NameServerError::Unusable);
        }
        if address.port() == 0 { Err(NameServerError::Port) } else { Ok(Self { address, tls }) }
    }
}

impl fmt::Display for NameServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tls {
            Some(name) => write!(f, "{TLS}{}#{name}", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{NameServer, NameServerError};

    #[test]
    fn servers_are_read_and_shown() {
        for (text, shown) in [
            ("192.0.2.1", "192.0.2.1:53"),
            ("192.0.2.1:54", "192.0.2.1:54"),
            ("2001:db8::2", "[2001:db8::2]:53"),
            ("[2001:db8::1]:5353", "[2001:db8::1]:5353"),
            ("tls://192.0.2.1#dns.example", "tls://192.0.2.1:853#dns.example"),
            ("tls://[2001:db8::1]#Dns.Example", "tls://[2001:db8::1]:853#dns.example"),
            ("tls://[2001:db8::1]:8853#dns.example", "tls://[2001:db8::1]:8853#dns.example"),
        ] {
            let server = NameServer::parse(text).unwrap();
            assert_eq!(server.to_string(), shown);
            assert_eq!(NameServer::parse(shown), Ok(server));
        }
    }

    #[test]
    fn what_is_no_server_is_said() {
        use NameServerError::{Address, Name, NameWithoutTls, NoName, Port, Unusable};
        for (text, error) in [
            ("dns.example", Address),
            ("192.0.2.1:99999", Address),
            ("192.0.2.1/24", Address),
            ("", Address),
            ("https://192.0.2.1", Address),
            ("0.0.0.0", Unusable),
            ("::", Unusable),
            ("224.0.0.1", Unusable),
            ("192.0.2.1:0", Port),
            ("tls://192.0.2.1", NoName),
            ("tls://192.0.2.1#", Name),
            ("tls://192.0.2.1#192.0.2.1", Name),
            ("tls://192.0.2.1#a#b", Name),
            ("tls://dns.example#dns.example", Address),
            ("192.0.2.1#dns.example", NameWithoutTls),
        ] {
            assert_eq!(NameServer::parse(text), Err(error), "{text}");
        }
    }
}
