//! Opens a tunnel through the proxy of `network.proxy`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::dial::{DialError, dial, dial_address};
use super::names::Names;
use super::upstream::{Answer, Host, MAX_ANSWER, Proxy, Unwilling};
use crate::allowlist::DomainName;

/// The proxy resolves and dials, which takes as long as ours may.
const LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum ThroughError {
    #[error("the proxy {proxy} can't be reached")]
    Dial { proxy: String, source: Box<DialError> },
    #[error("the proxy {proxy} ended or did not answer in time")]
    Talk { proxy: String, source: io::Error },
    #[error("the proxy {proxy} opens no tunnel to {name}:{port}")]
    Unwilling { proxy: String, name: DomainName, port: u16, source: Unwilling },
}

/// A tunnel to `name`, and the proxy's address.
pub async fn through(
    names: &Names,
    proxy: &Proxy,
    name: &DomainName,
    port: u16,
) -> Result<(TcpStream, IpAddr), ThroughError> {
    let shown = proxy.to_string();
    let dialled = match &proxy.host {
        Host::Name(host) => dial(names, host, proxy.port, None).await,
        Host::Address(address) => dial_address(SocketAddr::new(*address, proxy.port)).await,
    };
    let (mut stream, address) =
        dialled.map_err(|error| ThroughError::Dial { proxy: shown.clone(), source: Box::new(error) })?;
    let asked = timeout(LIMIT, ask(&mut stream, &proxy.request(name, port))).await;
    let asked = asked.unwrap_or_else(|elapsed| Err(elapsed.into()));
    match asked.map_err(|source| ThroughError::Talk { proxy: shown.clone(), source })? {
        Ok(()) => Ok((stream, address)),
        Err(source) => Err(ThroughError::Unwilling { proxy: shown, name: name.clone(), port, source }),
    }
}

/// Reads to the end of the answer and not an octet further: what follows is the server's.
async fn ask(stream: &mut TcpStream, request: &[u8]) -> io::Result<Result<(), Unwilling>> {
    stream.write_all(request).await?;
    let (mut octets, mut answer) = (Vec::new(), Answer::default());
    let mut seen = vec![0; 4096.min(MAX_ANSWER)];
    loop {
        let count = stream.peek(&mut seen).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let before = octets.len();
        octets.extend_from_slice(seen.get(..count).unwrap_or_default());
        let end = match answer.read(&octets) {
            Ok(end) => end,
            Err(unwilling) => return Ok(Err(unwilling)),
        };
        // As many of those that were only looked at as belong to it.
        let mine = end.unwrap_or(octets.len()).saturating_sub(before);
        stream.read_exact(seen.get_mut(..mine).unwrap_or_default()).await?;
        if end.is_some() {
            return Ok(Ok(()));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::{ThroughError, through};
    use crate::allowlist::DomainName;
    use crate::gate::names::Names;
    use crate::gate::upstream::{Proxy, Unwilling};

    /// What a proxy hears, and what comes of its answer, which is given octet by octet.
    async fn asked(answer: &'static [u8]) -> (String, Result<TcpStream, ThroughError>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::parse(&format!("http://u:canary@{}", listener.local_addr().unwrap())).unwrap();
        let played = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut heard = Vec::new();
            while !heard.ends_with(b"\r\n\r\n") {
                heard.push(stream.read_u8().await.unwrap());
            }
            for octet in answer {
                stream.write_all(&[*octet]).await.unwrap();
                tokio::task::yield_now().await;
            }
            String::from_utf8(heard).unwrap()
        });
        // Nobody asks it: the proxy is an address.
        let names = Names::new("127.0.0.1:9".parse().unwrap()).unwrap();
        let name = DomainName::parse("ok.test").unwrap();
        let tunnel = through(&names, &proxy, &name, 443).await.map(|(stream, _)| stream);
        (played.await.unwrap(), tunnel)
    }

    #[tokio::test]
    async fn a_tunnel_begins_after_the_proxys_answer() {
        let (heard, tunnel) = asked(b"HTTP/1.1 200 OK\r\nVia: x\r\n\r\nSSH-2.0-first").await;
        assert!(
            heard.starts_with(
                "CONNECT ok.test:443 HTTP/1.1\r\nHost: ok.test:443\r\nProxy-Authorization: Basic "
            )
        );
        let mut rest = String::new();
        tunnel.unwrap().read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "SSH-2.0-first", "not an octet of the server's is lost");
    }

    #[tokio::test]
    async fn a_proxy_that_is_unwilling_is_an_error_without_its_password() {
        for (answer, expected) in [
            (&b"HTTP/1.1 403 Forbidden\r\n\r\n"[..], Some(Unwilling::Status(403))),
            (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", Some(Unwilling::Authentication)),
            (b"HTTP/1.1 200 OK\r\n", None),
            (b"", None),
        ] {
            let error = asked(answer).await.1.unwrap_err();
            let said = crate::report::chain(&error);
            assert!(!said.contains("canary"), "{said}");
            match error {
                ThroughError::Unwilling { source, .. } => assert_eq!(Some(source), expected),
                ThroughError::Talk { .. } | ThroughError::Dial { .. } => assert_eq!(expected, None, "{said}"),
            }
        }
    }
}
