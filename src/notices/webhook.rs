//! The address of a webhook. Whoever knows it can write to it, so it is kept like a password.  (pure)

use std::fmt;

use crate::allowlist::{DEFAULT_PORT, DomainName, NameError};

/// `https://HOST[:PORT]/PATH`.
#[derive(Clone, PartialEq, Eq)]
pub struct Webhook {
    pub host: DomainName,
    pub port: u16,
    /// Path and query: the secret part.
    path: String,
}

/// Why a text is not the address of a webhook. No message repeats the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    #[error("its scheme is not https: the notice would travel in the clear")]
    Scheme,
    #[error("it holds a user or a password before the host")]
    UserInfo,
    #[error("its host is not a host name: {0}")]
    Host(NameError),
    #[error("its port is not a port")]
    Port,
    #[error("it holds a character that no address has")]
    Character,
    #[error("it is longer than 2048 octets")]
    TooLong,
}

impl Webhook {
    pub fn parse(text: &str) -> Result<Self, WebhookError> {
        let text = text.trim();
        if text.len() > 2048 {
            return Err(WebhookError::TooLong);
        }
        // Not one that could end the line of the request that it is written into.
        if !text.bytes().all(|octet| octet.is_ascii_graphic())
            || text.contains(['"', '<', '>', '\\', '^', '`', '{', '|', '}'])
        {
            return Err(WebhookError::Character);
        }
        let Some(rest) =
            text.get(..8).filter(|start| start.eq_ignore_ascii_case("https://")).and(text.get(8..))
        else {
            return Err(WebhookError::Scheme);
        };
        let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end).unwrap_or((rest, ""));
        if authority.contains('@') {
            return Err(WebhookError::UserInfo);
        }
        let (host, port) = match authority.split_once(':') {
            None => (authority, DEFAULT_PORT),
            Some((host, port)) => {
                let port = port.parse::<u16>().ok().filter(|port| *port > 0).ok_or(WebhookError::Port)?;
                (host, port)
            }
        };
        let host = DomainName::parse(host).map_err(WebhookError::Host)?;
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { host, port, path })
    }

    /// Where it goes to: the caller is asked who may read it there.
    #[must_use]
    pub fn expose_path(&self) -> &str {
        &self.path
    }
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Webhook({}:{}, path redacted)", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::Webhook;

    #[test]
    fn addresses_are_read_strictly_and_never_shown() {
        let hook = Webhook::parse(" https://Hooks.example.org/services/T0/canary?x=1#f ").unwrap();
        assert_eq!(
            (hook.host.as_str(), hook.port, hook.expose_path()),
            ("hooks.example.org", 443, "/services/T0/canary?x=1")
        );
        assert!(!format!("{hook:?}").contains("canary"));
        assert_eq!(Webhook::parse("https://a.example:8443").unwrap().port, 8443);
        assert_eq!(Webhook::parse("https://a.example?canary").unwrap().expose_path(), "/?canary");
        for bad in [
            "",
            "http://a.example/canary",
            "https://",
            "https:///canary",
            "https://u:canary@a.example/",
            "https://10.0.0.1/canary",
            "https://[::1]/canary",
            "https://a.example:0/canary",
            "https://a.example:x/canary",
            "https://a.example/can ary",
            "https://a.example/canary\r\nHost: x",
            "https://a.example/canäry",
            "https://localhost:99999/",
        ] {
            let error = Webhook::parse(bad).unwrap_err().to_string();
            assert!(!error.contains("canary"), "{error}");
        }
    }
}
