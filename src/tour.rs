//! `innkeeper tour`: what a box lets its agent do and what not, tried by the agent itself. `./scripts/run --demo` makes it
//! the session's program. It holds no right and no secret: the same attempts work from any shell of the box.

mod hunt;

use std::fmt;
use std::io::{self, IsTerminal, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::allowlist::{DomainPattern, Origin, parse_rules};
use crate::control::protocol::Request;
use crate::notices::post::open_tunnel;
use crate::readiness::{Outcome, probe};
use crate::report;

/// The names of Claude Code, of which the first is tried.
const ALLOWED: &str = "/etc/innkeeper/network/profiles/claude.conf";
/// RFC 2606 reserves it, so nobody's server is asked even by a box that is broken.
const DENIED_NAME: &str = "upload.attacker.example";
/// An allowed name may be far away.
const PATIENCE: Duration = Duration::from_secs(5);

/// What came of one stop of the tour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Allowed, and it worked.
    Open,
    /// Refused, as it should be.
    Refused,
    /// It got through although it should not.
    Leak,
    /// Could not be tried here.
    NotHere,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Open => "open",
            Self::Refused => "refused",
            Self::Leak => "LEAK",
            Self::NotHere => "not here",
        })
    }
}

/// One line of the tour.
struct Stop {
    what: String,
    /// Who gave the verdict.
    layer: &'static str,
    verdict: Verdict,
    said: String,
    took: Duration,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, layer, verdict, said, took } = self;
        let ms = took.as_secs_f64() * 1e3;
        writeln!(f, "  {verdict:<9}{ms:>8.1} ms  {layer:<14}{what}")?;
        write!(f, "                       {:<14}{}", "", report::inert(said))
    }
}

fn stop(what: impl Into<String>, layer: &'static str, deed: impl FnOnce() -> (Verdict, String)) -> Stop {
    let began = Instant::now();
    let (verdict, said) = deed();
    Stop { what: what.into(), layer, verdict, said, took: began.elapsed() }
}

/// Goes round, says what it met, and then becomes a shell where somebody sits at a terminal.
#[must_use]
pub fn run(shell: bool) -> u8 {
    let uid = nix::unistd::getuid();
    say(&format!(
        "\n  A tour of this box, by its agent: uid {uid}, the same rights as Claude Code has here\n\n"
    ));
    let mut leaks = 0_u32;
    for deed in stops() {
        let stop = deed();
        leaks = leaks.saturating_add(u32::from(stop.verdict == Verdict::Leak));
        say(&format!("{stop}\n"));
    }
    say(&match leaks {
        0 => "\n  Nothing got through that is not allowed.\n".to_owned(),
        _ => format!("\n  {leaks} of it got through: this box does not hold. Please report it.\n"),
    });
    say(
        "  The operator sees each refusal, and what would allow it: innkeeper status, innkeeper log --denied\n\n",
    );
    if shell && io::stdin().is_terminal() {
        say("  A shell, for attempts of your own; `exit` ends the demo.\n\n");
        // Returns only if there is no shell.
        let error = Command::new("/bin/bash").arg("-il").exec();
        report::last_words("tour", &format!("cannot start /bin/bash: {error}"));
    }
    u8::from(leaks > 0)
}

fn say(text: &str) {
    // Whoever listened may have gone.
    drop(io::stdout().lock().write_all(text.as_bytes()));
}

type Deed = Box<dyn FnOnce() -> Stop>;

fn stops() -> Vec<Deed> {
    let refused = |what: String, layer, attempt: fn() -> (Outcome, String)| -> Deed {
        Box::new(move || stop(what, layer, || judged(attempt())))
    };
    vec![
        Box::new(allowed),
        refused(format!("the name {DENIED_NAME}"), "dns", look_up_denied),
        refused(format!("{} by its address", probe::DENIED_V4), "firewall", || {
            probe::connect(SocketAddr::from((probe::DENIED_V4, probe::ANY_UNGATED)))
        }),
        refused(format!("[{}], an IPv6 literal", probe::DENIED_V6), "firewall", || {
            probe::connect(SocketAddr::from((probe::DENIED_V6, probe::ANY_UNGATED)))
        }),
        refused(format!("{DENIED_NAME} by TLS, at an address of its choice"), "gate", || {
            probe::gate::show_name(SocketAddr::from((probe::DENIED_V4, 443)))
        }),
        refused(format!("another resolver, {}", probe::OUTSIDE_RESOLVER), "dns", || {
            probe::ask_name(SocketAddr::from((probe::OUTSIDE_RESOLVER, 53)))
        }),
        refused(format!("the cloud's metadata, {}", probe::METADATA_V4), "firewall", || {
            probe::connect(SocketAddr::from((probe::METADATA_V4, probe::ANY_UNGATED)))
        }),
        refused("a file in /usr/local/bin".to_owned(), "read-only", || {
            probe::create_in(std::path::Path::new("/usr/local/bin"))
        }),
        refused("a raw socket".to_owned(), "privileges", probe::raw_socket),
        refused("innkeeper allow *.example, as the agent".to_owned(), "control", || {
            probe::knock(&Request::Allow {
                rules: vec![format!("*.{DENIED_NAME}")],
                for_s: Some(1),
                reason: None,
            })
        }),
        Box::new(|| stop("the secrets of the box, wherever they may lie", "uids, modes", hunt::secrets)),
    ]
}

fn judged((outcome, said): (Outcome, String)) -> (Verdict, String) {
    let verdict = match outcome {
        Outcome::Refused => Verdict::Refused,
        Outcome::Passed => Verdict::Leak,
        Outcome::Impossible => Verdict::NotHere,
    };
    (verdict, said)
}

fn look_up_denied() -> (Outcome, String) {
    match (DENIED_NAME, 443).to_socket_addrs() {
        Ok(_) => (Outcome::Passed, "it has an address".to_owned()),
        Err(error) => (Outcome::Refused, error.to_string()),
    }
}

/// What the box is for: without a network it can't be shown, and that is no fault of the box's.
fn allowed() -> Stop {
    let Some(name) = first_allowed() else {
        let nothing = || (Verdict::NotHere, format!("{ALLOWED} names nobody"));
        return stop("an allowed name", "dns", nothing);
    };
    stop(format!("{name}, which is allowed"), "dns+gate", || {
        let offline = |why: String| {
            (Verdict::NotHere, format!("{why}; is this machine offline? The rest needs no network"))
        };
        match (name.as_str(), 443).to_socket_addrs() {
            Err(error) => offline(error.to_string()),
            Ok(addresses) => {
                let mut last = "it has no address".to_owned();
                for address in addresses {
                    match greet(address, &name) {
                        Ok(()) => return (Verdict::Open, format!("{address} answers as a TLS server")),
                        Err(why) => last = format!("{address}: {why}"),
                    }
                }
                offline(last)
            }
        }
    })
}

/// A connection alone means nothing: whoever answers must speak TLS. A handshake's record is 22, an alert's 21
/// (RFC 8446 §5.1).
fn greet(address: SocketAddr, name: &str) -> Result<(), String> {
    let hello = probe::gate::hello(name).ok_or("no hello could be made")?;
    let mut first = [0; 1];
    let proxy = proxy();
    let heard = TcpStream::connect_timeout(&proxy.unwrap_or(address), PATIENCE).and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        if proxy.is_some() {
            open_tunnel(&mut stream, &format!("{name}:443"))?.map_err(|status| {
                let status = status.map_or_else(|| "nothing".to_owned(), |status| status.to_string());
                io::Error::other(format!("the proxy answered {status}"))
            })?;
        }
        stream.write_all(&hello)?;
        stream.read_exact(&mut first)
    });
    match (heard, first) {
        (Ok(()), [22]) => Ok(()),
        (Ok(()), [octet]) => Err(format!("it answered with {octet}, which is no TLS handshake")),
        (Err(error), _) => Err(error.to_string()),
    }
}

/// The only way out of a box whose kernel can't redirect.
fn proxy() -> Option<SocketAddr> {
    std::env::var("HTTPS_PROXY").ok()?.strip_prefix("http://")?.trim_end_matches('/').parse().ok()
}

fn first_allowed() -> Option<String> {
    let text = std::fs::read_to_string(ALLOWED).ok()?;
    let (rules, _) = parse_rules(&text, |line| Origin::File { path: ALLOWED.into(), line });
    rules.into_iter().filter(|rule| !rule.deny).find_map(|rule| match rule.pattern {
        DomainPattern::Exact(name) => Some(name.to_string()),
        DomainPattern::Below(_) => None,
    })
}
