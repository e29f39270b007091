//! Git's credential helper and the wrapper of gh: both ask PID 1, which decides by the peer's uid.

use std::io::BufRead;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::control::client;
use crate::control::protocol::{Request, Response};

/// The real gh; the wrapper shadows it in /usr/local/bin.
const GH: &str = "/usr/bin/gh";

#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("cannot ask the box for the credential")]
    Ask(#[from] client::ClientError),
    #[error("cannot read git's question")]
    Read(#[source] std::io::Error),
    #[error("cannot execute {GH}")]
    Exec(#[source] std::io::Error),
}

/// What git asks: `key=value` lines until an empty one (git-credential(1)).
fn question(input: impl BufRead) -> Result<(String, String), CredentialError> {
    let (mut protocol, mut host) = (String::new(), String::new());
    for line in input.lines() {
        let line = line.map_err(CredentialError::Read)?;
        match line.split_once('=') {
            Some(("protocol", value)) => value.clone_into(&mut protocol),
            Some(("host", value)) => value.clone_into(&mut host),
            Some(_) => {}
            None => break,
        }
    }
    Ok((protocol, host))
}

/// Answers `git credential get`; the other operations have nothing to do. No answer lets git go on anonymously.
pub fn helper(operation: &str, input: impl BufRead) -> Result<Option<String>, CredentialError> {
    if operation != "get" {
        return Ok(None);
    }
    let (protocol, host) = question(input)?;
    if protocol != "https" {
        return Ok(None);
    }
    match client::ask(&Request::Credential { host })? {
        Response::Credential { username, password } => {
            Ok(Some(format!("username={username}\npassword={password}\n")))
        }
        _ => Ok(None),
    }
}

/// Runs the real gh with the token in its environment, and in nobody else's.
pub fn gh(args: &[std::ffi::OsString]) -> CredentialError {
    let host = std::env::var("GH_HOST").unwrap_or_else(|_| "github.com".to_owned());
    let mut command = Command::new(GH);
    command.args(args);
    // A token of the caller's own wins, as in gh itself.
    let has_own = ["GH_TOKEN", "GITHUB_TOKEN"].iter().any(|name| std::env::var_os(name).is_some());
    if !has_own {
        // Without a box or a token gh says itself that it is not logged in.
        if let Ok(Response::Credential { password, .. }) = client::ask(&Request::Credential { host }) {
            command.env("GH_TOKEN", password);
        }
    }
    CredentialError::Exec(command.exec())
}

#[cfg(test)]
mod tests {
    use super::{helper, question};

    #[test]
    fn only_https_is_answered() {
        let asked = question("protocol=https\nhost=github.com\npath=a/b\n\nhost=evil\n".as_bytes()).unwrap();
        assert_eq!(asked, ("https".to_owned(), "github.com".to_owned()));
        assert!(helper("get", "protocol=http\nhost=github.com\n".as_bytes()).unwrap().is_none());
        assert!(helper("store", "protocol=https\nhost=github.com\n".as_bytes()).unwrap().is_none());
    }
}
