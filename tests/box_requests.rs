//! The agent asks, the operator answers: requests from the question to the end of the grant, as hostile as an agent may
//! make them; and what is learned from a box. What got out is read in the world.

#[cfg(test)]
#[path = "support/rig.rs"]
mod rig;

#[cfg(test)]
#[path = "box_requests/hostile.rs"]
mod hostile;
#[cfg(test)]
#[path = "box_requests/learning.rs"]
mod learning;
#[cfg(test)]
#[path = "box_requests/life.rs"]
mod life;

#[cfg(test)]
mod common {
    use std::time::Instant;

    use serde_json::Value;

    use super::rig::{BoxOptions, PATIENCE, Rig, RunningBox};

    pub(crate) fn queueing(rig: &Rig) -> RunningBox {
        rig.boot(&BoxOptions::new().env("INNKEEPER_NETWORK_REQUESTS", "queue"))
    }

    /// The requests as the operator sees them.
    pub(crate) fn requests(guest: &RunningBox) -> Vec<Value> {
        let text = guest.innkeeper(&["requests", "--json"]).expect("requests");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[track_caller]
    pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < end, "never: {what}");
        }
    }

    /// No character that a terminal would act upon.
    #[track_caller]
    pub(crate) fn inert(text: &str) {
        let bad: Vec<char> = text
            .chars()
            .filter(|c| (c.is_control() && !matches!(c, '\n' | '\r')) || matches!(c, '\u{202a}'..='\u{202e}'))
            .collect();
        assert!(bad.is_empty(), "{bad:?} in {text:?}");
    }
}
