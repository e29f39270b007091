//! What a run that is over means for the box: its exit status and the reason. (pure)

use super::stream::RunResult;
use crate::report::exit;
use crate::supervisor::{Ending, Exit};

/// A run that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The box ends.
    End(Ending),
    /// A usage limit was reached: the run goes on after it.
    Limited,
}

/// What came of it. `limited` is what was said of a limit; `told` the last result, none where Claude said none.
#[must_use]
pub fn judge(end: Exit, told: Option<&RunResult>, limited: bool) -> Outcome {
    let failed = !end.success() || told.is_some_and(|result| result.is_error);
    // Its own bound ends a run, whatever else was said before.
    let at_bound = told.is_some_and(|result| result.subtype.starts_with("error_max_"));
    if limited && failed && !at_bound {
        return Outcome::Limited;
    }
    let Some(result) = told else {
        let reason = format!("the run ended ({end}) and told no result");
        return Outcome::End(Ending { status: status(end, failed), reason });
    };
    let account = account(result);
    let (status, reason) = match (failed, result.subtype.as_str(), result.api_status) {
        (false, _, _) => (exit::OK, format!("the run ended well ({account})")),
        (true, "error_max_budget_usd", _) => {
            (exit::LATER, format!("the run reached session.max_cost ({account}); it can be continued"))
        }
        (true, "error_max_turns", _) => {
            (exit::LATER, format!("the run reached its number of turns ({account}); it can be continued"))
        }
        (true, _, Some(refused @ (401 | 403))) => {
            (exit::CONFIG, format!("the model's API refused the credentials ({refused}, {account})"))
        }
        (true, _, Some(refused @ (408 | 409 | 429 | 500..=599))) => {
            (exit::UNAVAILABLE, format!("the model's API did not serve the run ({refused}, {account})"))
        }
        (true, _, _) if is_of_the_network(&result.text) => {
            (exit::UNAVAILABLE, format!("the model's API could not be reached ({account})"))
        }
        (true, _, _) => (status(end, true), format!("the run ended with an error ({end}, {account})")),
    };
    Outcome::End(Ending { status, reason })
}

/// The session's own status; an error that exited with 0 is an error all the same.
fn status(end: Exit, failed: bool) -> u8 {
    match u8::try_from(end.status() & 0xff).unwrap_or(1) {
        0 if failed => 1,
        own => own,
    }
}

fn account(result: &RunResult) -> String {
    let turns = if result.turns == 1 { "1 turn".to_owned() } else { format!("{} turns", result.turns) };
    format!("{turns}, {}", result.cost_microusd)
}

/// Claude's words where no status came back.
fn is_of_the_network(text: &str) -> bool {
    ["Connection error", "Unable to connect", "fetch failed", "timed out", "Request timed out"]
        .iter()
        .any(|words| text.contains(words))
}

#[cfg(test)]
mod tests {
    use super::{Outcome, judge};
    use crate::headless::stream::RunResult;
    use crate::supervisor::Exit;

    fn told(is_error: bool, subtype: &str, api_status: Option<u16>, text: &str) -> RunResult {
        let (subtype, text) = (subtype.to_owned(), text.to_owned());
        RunResult {
            is_error,
            subtype,
            text,
            api_status,
            turns: 2,
            cost_microusd: crate::money::Microusd(1_234_567),
        }
    }

    fn status(end: Exit, result: Option<&RunResult>) -> u8 {
        match judge(end, result, false) {
            Outcome::End(ending) => ending.status,
            Outcome::Limited => panic!("no limit was reached"),
        }
    }

    #[test]
    fn the_status_says_whether_a_retry_helps() {
        let one = Exit::Code(1);
        for (end, result, expected) in [
            (Exit::Code(0), told(false, "success", None, "All done."), 0),
            (Exit::Code(0), told(true, "success", None, "?"), 1),
            (one, told(true, "error_during_execution", None, "?"), 1),
            (one, told(true, "success", Some(401), "API Error: 401"), 78),
            (one, told(true, "success", Some(529), "API Error: 529"), 69),
            (one, told(true, "success", Some(429), "API Error: 429"), 69),
            (one, told(true, "success", Some(400), "API Error: 400"), 1),
            (one, told(true, "success", None, "API Error: Connection error."), 69),
            (one, told(true, "error_max_budget_usd", None, ""), 75),
            (one, told(true, "error_max_turns", None, ""), 75),
            (Exit::Signal(9), told(false, "success", None, ""), 137),
        ] {
            assert_eq!(status(end, Some(&result)), expected, "{end} {result:?}");
        }
        assert_eq!(status(Exit::Signal(9), None), 137);
        assert_eq!(status(Exit::Code(3), None), 3);
    }

    #[test]
    fn a_limit_is_no_end_unless_the_run_came_through() {
        let failed = told(true, "success", Some(429), "");
        assert_eq!(judge(Exit::Code(1), Some(&failed), true), Outcome::Limited);
        assert_eq!(judge(Exit::Code(1), None, true), Outcome::Limited);
        let bound = told(true, "error_max_budget_usd", None, "");
        assert!(
            matches!(judge(Exit::Code(1), Some(&bound), true), Outcome::End(ending) if ending.status == 75)
        );
        let well = told(false, "success", None, "");
        assert!(
            matches!(judge(Exit::Code(0), Some(&well), true), Outcome::End(ending) if ending.status == 0)
        );
    }

    #[test]
    fn the_reason_holds_turns_and_cost() {
        let Outcome::End(ending) = judge(Exit::Code(0), Some(&told(false, "success", None, "")), false)
        else {
            panic!()
        };
        assert_eq!(ending.reason, "the run ended well (2 turns, $1.24)");
    }
}
