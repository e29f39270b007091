//! The self-attack before the box is called ready: a child with the agent's very identity tries what an attacker
//! would, and no attempt may bring back a byte of its target.

pub mod probe;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::supervisor::run_as::Identity;
use crate::supervisor::{Launch, Spawner};

#[derive(Debug, thiserror::Error)]
pub enum ReadinessError {
    #[error("cannot run the self-attack")]
    Run(#[source] crate::supervisor::SupervisorError),
    #[error("the self-attack ended with {0}")]
    Ended(String),
    #[error("the self-attack's result can't be read")]
    Result(#[source] serde_json::Error),
}

/// What the child is to try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attack {
    /// Innkeeper's own process.
    pub supervisor: u32,
    /// The box's own resolver.
    pub resolver: IpAddr,
    pub upstreams: Vec<SocketAddr>,
    /// Ports that lead to the gate.
    pub gated: Vec<u16>,
    /// Where the gate is asked, in a box in which nothing leads to it.
    pub proxy: Option<SocketAddr>,
    /// Places where no file may be made.
    pub sealed: Vec<PathBuf>,
    /// Host doors that were covered.
    pub doors: Vec<PathBuf>,
    pub userns: bool,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Refused, and nothing came back.
    Refused,
    /// It got through.
    Passed,
    /// This host can't even make the attempt (no IPv6 route): no proof either way.
    Impossible,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    pub name: String,
    /// The protection that this attempt tries.
    pub protection: String,
    pub outcome: Outcome,
    pub detail: String,
    pub ms: f64,
}

/// Every attempt has its own time-out of a second; they run side by side.
const LIMIT: Duration = Duration::from_secs(4);
/// A result is a few lines for each attempt.
const MAX_RESULT: u64 = 64 << 10;

/// Runs the self-attack as `identity`, which must be exactly the session's.
pub fn attack(
    spawner: &Spawner,
    identity: &Identity,
    attack: &Attack,
) -> Result<Vec<Attempt>, ReadinessError> {
    // Root at first: it takes the identity on in its own process, where the agent's others can't stop it.
    let attack = serde_json::to_string(attack).map_err(ReadinessError::Result)?;
    let mut args = vec!["--attack".into(), attack.into()];
    args.extend(identity.to_args());
    let launch = Launch::own("probe", None).args(args);
    let said = spawner.listen(launch, LIMIT, MAX_RESULT).map_err(ReadinessError::Run)?;
    if !said.exit.success() {
        return Err(ReadinessError::Ended(said.exit.to_string()));
    }
    serde_json::from_str(&said.text).map_err(ReadinessError::Result)
}

/// The attempts that got through, for a message.
#[must_use]
pub fn passed(attempts: &[Attempt], protection: Option<&str>) -> Vec<String> {
    attempts
        .iter()
        .filter(|a| a.outcome == Outcome::Passed && protection.is_none_or(|wanted| wanted == a.protection))
        .map(|a| format!("{}: {}", a.name, a.detail))
        .collect()
}

/// "12 refused, 1 not possible here (ipv6-literal)".
#[must_use]
pub fn summary(attempts: &[Attempt], protection: Option<&str>) -> String {
    let of = |outcome: Outcome| -> Vec<&str> {
        let mine = attempts.iter().filter(|a| protection.is_none_or(|wanted| wanted == a.protection));
        mine.filter(|a| a.outcome == outcome).map(|a| a.name.as_str()).collect()
    };
    let (refused, impossible) = (of(Outcome::Refused), of(Outcome::Impossible));
    let attempts = if refused.len() == 1 { "attempt" } else { "attempts" };
    let mut text = format!("{} {attempts} refused", refused.len());
    if refused.is_empty() && impossible.is_empty() {
        return "nothing to attack".to_owned();
    }
    if !impossible.is_empty() {
        text.push_str(&format!(", {} n/a here ({})", impossible.len(), impossible.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Attempt, Outcome, passed, summary};

    fn attempt(name: &str, outcome: Outcome) -> Attempt {
        Attempt {
            name: name.into(),
            protection: "egress-ipv4".into(),
            outcome,
            detail: "why".into(),
            ms: 0.1,
        }
    }

    #[test]
    fn an_attempt_that_can_not_be_made_is_never_counted_as_refused() {
        let attempts = [attempt("a", Outcome::Refused), attempt("b", Outcome::Impossible)];
        assert_eq!(summary(&attempts, None), "1 attempt refused, 1 n/a here (b)");
        assert!(passed(&attempts, None).is_empty());
        assert_eq!(passed(&[attempt("c", Outcome::Passed)], Some("egress-ipv4")), ["c: why"]);
        assert!(passed(&[attempt("c", Outcome::Passed)], Some("rootfs")).is_empty());
    }
}
