//! What was refused to the agent lately, in its own view: for the hint after a command.

use std::time::{Duration, SystemTime};

use super::Innkeeper;
use crate::config::Requests;
use crate::control::protocol::Response;
use crate::status::audience;
use crate::status::report::Denial;

/// No command of Claude's takes longer.
const LONGEST: Duration = Duration::from_secs(3600);
/// Of more refusals the first few say enough.
const MOST: usize = 8;

impl Innkeeper {
    pub(super) fn refusals(&self, last_ms: u64) -> Response {
        let since = SystemTime::now().checked_sub(Duration::from_millis(last_ms).min(LONGEST));
        let mut report = self.board.report(None);
        report.denials = latest(report.denials, since.unwrap_or(SystemTime::UNIX_EPOCH));
        if self.config.network.requests == Requests::Deny {
            audience::takes_no_requests(&mut report);
        }
        Response::Refusals { denials: audience::for_agent(report, self.accounts.agent.uid).denials }
    }
}

/// Those of since then, the newest first.
fn latest(denials: Vec<Denial>, since: SystemTime) -> Vec<Denial> {
    let lately = |denial: &Denial| humantime::parse_rfc3339(&denial.time).is_ok_and(|time| time >= since);
    denials.into_iter().filter(lately).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::{MOST, latest};
    use crate::status::audience::tests::denial;

    #[test]
    fn only_what_is_new_and_not_too_much() {
        let at = |time: &str| humantime::parse_rfc3339(time).unwrap();
        let old = denial("old.test", Some(1000));
        let mut new = denial("new.test", Some(1000));
        new.time = "2026-11-21T09:00:00.500Z".into();
        let mut odd = denial("odd.test", Some(1000));
        odd.time = "yesterday".into();
        let found = latest(vec![new.clone(), old, odd], at("2026-11-21T09:00:00Z"));
        assert_eq!(found.iter().map(|denial| denial.what.as_str()).collect::<Vec<_>>(), ["new.test"]);
        assert_eq!(latest(vec![new; 100], at("2026-11-21T09:00:00Z")).len(), MOST);
    }
}
