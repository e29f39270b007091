//! What a request is for: its target, and an authority's name and port (RFC 9112 §3.2). (pure)

use super::{DomainName, NameError, Refused, Way, bad, forbidden, harmless};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target<'a> {
    /// `/path?query`
    Origin(&'a str),
    /// `http://authority/path?query`
    Absolute { authority: &'a [u8], path: &'a str },
    /// `*`
    Asterisk,
    /// `name:port`, of a CONNECT
    Authority(&'a [u8]),
}

impl<'a> Target<'a> {
    pub(super) fn parse(octets: &'a [u8], method: &str, way: Way) -> Result<Self, Refused> {
        let text = std::str::from_utf8(octets).ok().filter(|text| text.bytes().all(|o| o.is_ascii_graphic()));
        let Some(text) = text.filter(|text| !text.is_empty() && !text.contains('#')) else {
            return Err(bad("its target has characters that no target has"));
        };
        if text == "*" {
            return if method == "OPTIONS" {
                Ok(Self::Asterisk)
            } else {
                Err(bad("only OPTIONS has the target *"))
            };
        }
        if text.starts_with('/') {
            return Ok(Self::Origin(text));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(bad("its target is neither a path nor a URL"));
        };
        if !scheme.eq_ignore_ascii_case("http") {
            let next = match way {
                Way::Redirected => "connect to the name itself, with TLS for https: the gate is no proxy",
                Way::Explicit => "ask for a tunnel, and speak TLS in it: CONNECT NAME:443",
            };
            return Err(forbidden("a request for a URL that is not http is refused", next));
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end).unwrap_or((rest, ""));
        Ok(Self::Absolute { authority: authority.as_bytes(), path })
    }

    /// The path, without the query.
    pub(super) fn path(&self) -> &'a str {
        match self {
            Self::Origin(path) | Self::Absolute { path, .. } => path.split('?').next().unwrap_or_default(),
            Self::Asterisk | Self::Authority(_) => "",
        }
    }
}

/// `NAME[:PORT]`, and nothing else that an authority can be.
pub(super) fn authority(octets: &[u8]) -> Result<(DomainName, Option<u16>), Refused> {
    let text = std::str::from_utf8(octets).map_err(|_| bad("its host is not ASCII"))?;
    if text.contains(['/', '?', '@']) {
        return Err(bad("its host is more than a name and a port"));
    }
    let (host, port) = match text.rsplit_once(':') {
        // An IPv6 address, which the name's grammar explains.
        _ if text.starts_with('[') => (text, None),
        Some((host, port)) => (host, Some(port_of(port).ok_or_else(|| bad("its host has no valid port"))?)),
        None => (text, None),
    };
    // As in a TLS hello: servers disagree on whether it is the same name.
    if host.ends_with('.') {
        return Err(bad("its host ends with a dot"));
    }
    match DomainName::parse(host) {
        Ok(name) => Ok((name, port)),
        Err(NameError::Address) => Err(forbidden(
            &format!("a request to the address {} is refused: rules are about names", harmless(host, 60)),
            "use the name of the host",
        )),
        Err(why) => Err(bad(&format!("its host \"{}\" is no host name: {why}", harmless(host, 60)))),
    }
}

fn port_of(text: &str) -> Option<u16> {
    let is_plain = (1..=5).contains(&text.len()) && text.bytes().all(|octet| octet.is_ascii_digit());
    text.parse().ok().filter(|port| *port > 0 && is_plain && !text.starts_with('0'))
}
