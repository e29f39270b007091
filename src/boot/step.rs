//! Runs one boot step: plan, apply, verify; times it, records it, and bounds it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::prerequisites::Lack;
use crate::report::{self, exit};
use crate::status::Board;
use crate::status::report::StepState;
use crate::supervisor::{Ending, Spawner, Watch};

/// A step that could not be done: what, why, and what the operator does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub what: String,
    pub next: String,
    pub status: u8,
}

impl From<Lack> for Trouble {
    fn from(Lack { what, next }: Lack) -> Self {
        Self::unfit(what, next)
    }
}

impl Trouble {
    /// The host or the configuration is unfit (exit status 78).
    pub fn unfit(what: impl fmt::Display, next: impl Into<String>) -> Self {
        Self { what: what.to_string(), next: next.into(), status: exit::CONFIG }
    }

    /// A fault of ours (exit status 70).
    pub fn internal(error: &dyn std::error::Error) -> Self {
        Self::fault(report::chain(error))
    }

    /// The same, of which only the words are left.
    #[must_use]
    pub fn fault(what: String) -> Self {
        let next = "this is a fault of innkeeper: please report it with the boot log".to_owned();
        Self { what, next, status: exit::INTERNAL }
    }
}

/// A failed boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub step: &'static str,
    pub trouble: Trouble,
}

impl Failure {
    #[must_use]
    pub fn ending(&self) -> Ending {
        let Trouble { what, next, status } = &self.trouble;
        Ending { status: *status, reason: format!("boot: {}: {what}\nnext: {next}", self.step) }
    }
}

/// A step's name and how long it may take.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub name: &'static str,
    pub limit: Duration,
}

/// What a step's verification found: the proof that later steps ask for, and a line for the boot log.
#[derive(Debug)]
pub struct Verified<T> {
    pub proof: T,
    pub detail: String,
    /// Held, but something is not available: a dead upstream, a protection that was given up.
    pub degraded: bool,
}

impl<T> Verified<T> {
    pub fn new(proof: T, detail: impl Into<String>) -> Self {
        Self { proof, detail: detail.into(), degraded: false }
    }

    pub fn degraded(proof: T, detail: impl Into<String>) -> Self {
        Self { proof, detail: detail.into(), degraded: true }
    }
}

#[derive(Debug)]
pub struct Steps {
    board: Arc<Board>,
    spawner: Spawner,
}

impl Steps {
    #[must_use]
    pub fn new(board: Arc<Board>, spawner: Spawner, all: &[Step]) -> Self {
        for step in all {
            board.step(step.name, StepState::Pending, None, String::new());
        }
        Self { board, spawner }
    }

    /// Plans without effect, applies, then looks at the outcome with `verify`, which never trusts `apply`.
    pub fn run<P, T>(
        &self,
        step: Step,
        plan: impl FnOnce() -> Result<P, Trouble>,
        apply: impl FnOnce(&P) -> Result<(), Trouble>,
        verify: impl FnOnce(&P) -> Result<Verified<T>, Trouble>,
    ) -> Result<T, Failure> {
        let started = Instant::now();
        self.board.step(step.name, StepState::Running, None, String::new());
        self.spawner.watch(Some(overdue(step, started)));
        let outcome = plan().and_then(|plan| {
            apply(&plan)?;
            verify(&plan)
        });
        self.spawner.watch(None);
        let took = started.elapsed();
        match outcome {
            Ok(Verified { proof, detail, degraded }) => {
                let (word, state) =
                    if degraded { ("degraded", StepState::Degraded) } else { ("ok", StepState::Ok) };
                let line =
                    format!("{} {word} in {:.1} ms{}", step.name, took.as_secs_f64() * 1e3, suffix(&detail));
                report::event("boot", &line);
                self.board.step(step.name, state, Some(took), report::inert(&detail));
                Ok(proof)
            }
            Err(trouble) => {
                self.board.step(step.name, StepState::Failed, Some(took), report::inert(&trouble.what));
                Err(Failure { step: step.name, trouble })
            }
        }
    }
}

fn suffix(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

fn overdue(step: Step, started: Instant) -> Watch {
    let what = format!("not done within {} s", step.limit.as_secs());
    let next = "see the lines above for what it waited for; nothing was left open".to_owned();
    let trouble = Trouble { what, next, status: exit::CONFIG };
    Watch { until: started + step.limit, overdue: Failure { step: step.name, trouble }.ending() }
}
