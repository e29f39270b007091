//! The work on the volume: when it is saved and restored, what is said of that, and what would be lost without it.
//!
//! PID 1 opens nothing below /persist, /workspace or the home: children that run as the agent do, after the seal, and
//! what they say is hearsay. They may fail or be ended by the agent; then that is said, and nothing else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::{Innkeeper, lock};
use crate::boot;
use crate::control::protocol::Response;
use crate::filesystem::layout::{Mount, WORKSPACE};
use crate::filesystem::{self, Sealed};
use crate::persist::VOLUME;
use crate::persist::manifest::Digest;
use crate::persist::said::{Came, MOST, Restored, RestoredRepository, Saved};
use crate::prerequisites::limits;
use crate::report::{chain, event, time};
use crate::resources::warnings::octets;
use crate::session::GoesOn;
use crate::status::milliseconds;
use crate::status::report::{AtRisk, Phase, Repository, RepositoryState, SessionState, StepState};
use crate::supervisor::backoff::pause;
use crate::supervisor::{Launch, thread};

/// A save that nobody waits for at the end.
const SAVE_LIMIT: Duration = Duration::from_secs(5 * 60);
/// The boot waits so long for what comes back.
const RESTORE_LIMIT: Duration = Duration::from_secs(5 * 60);
/// What a child that is out of time has to end its git and to say so.
const CHILDS_MARGIN: Duration = Duration::from_millis(300);
/// Less than this is no time for a save.
const SHORTEST: Duration = Duration::from_millis(200);
/// A look at what would be lost is as good as new for so long.
const LOOK_AGE: Duration = Duration::from_secs(60);
/// The timer looks whether the box still runs.
const NAP: Duration = Duration::from_secs(1);
const STEP: &str = "restore";

/// One save at a time, and one look.
#[derive(Debug, Default)]
pub(super) struct Saving {
    busy: Mutex<bool>,
    free: Condvar,
    looked: Mutex<Option<Instant>>,
    /// Whether Claude was at work when it was looked at last.
    working: AtomicBool,
    /// Somebody asked, and the last look is old.
    wanted: AtomicBool,
    /// What was last said to have gone wrong: it is not said every ten minutes.
    said: Mutex<Option<String>>,
    restored: Mutex<Back>,
}

/// What came back of what was saved. Nothing is saved before that is known: the next box restores the newest save only.
#[derive(Debug, Default)]
enum Back {
    #[default]
    NotYet,
    /// Nobody knows what should have come back: nothing may replace it.
    Unknown(String),
    Known(Keep),
}

/// What did not come back; each save has it again.
#[derive(Debug, Clone, Default)]
struct Keep {
    repositories: Vec<RestoredRepository>,
    conversation: bool,
}

impl Back {
    fn of(restored: &Restored) -> Self {
        match (&restored.trouble, restored.saved_at) {
            (Some(trouble), None) => Self::Unknown(trouble.clone()),
            (Some(_) | None, _) => {
                let failed = restored.repositories.iter().filter(|one| one.came == Came::Failed);
                let repositories = failed.cloned().collect();
                Self::Known(Keep { repositories, conversation: restored.lost > 0 })
            }
        }
    }

    fn keep(&self) -> Result<Keep, String> {
        match self {
            Self::Known(keep) => Ok(keep.clone()),
            Self::NotYet => Err("what the volume holds has not been restored yet".to_owned()),
            Self::Unknown(why) => {
                Err(format!("what the volume holds was not restored, and is not replaced ({why})"))
            }
        }
    }
}

impl Keep {
    fn args(&self) -> Vec<String> {
        let mut args = Vec::new();
        for repository in &self.repositories {
            let spare = repository.spare.as_ref().unwrap_or(&repository.path);
            args.push(format!("--keep={}", repository.path.as_str()));
            args.push(format!("--spare={}", spare.as_str()));
        }
        args.extend(self.conversation.then(|| "--keep-conversation".to_owned()));
        args
    }
}

/// Held by who saves.
struct Turn<'a>(&'a Saving);

impl Saving {
    fn take(&self, patience: Duration) -> Option<Turn<'_>> {
        let busy = lock(&self.busy);
        let waited = self.free.wait_timeout_while(busy, patience, |busy| *busy);
        let (mut busy, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() && *busy {
            return None;
        }
        *busy = true;
        Some(Turn(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.busy) = false;
        self.0.free.notify_one();
    }
}

/// Why it is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Timer,
    Operator,
    End,
}

/// Why there is no save.
enum Unsaved {
    NoVolume,
    Busy,
    /// What is on the volume would be lost by it.
    Early(String),
    Trouble(String),
}

impl Innkeeper {
    /// Whether there is a volume that can be used.
    pub fn use_volume(&self, places: &[Mount]) {
        let volume = std::path::Path::new(VOLUME);
        if places.iter().any(|place| place.path == volume) {
            filesystem::forbid_execution(volume);
            self.board().update(|report| report.persist.path = Some(VOLUME.to_owned()));
        } else if let Err(why) = filesystem::volume(volume, self.accounts.agent.owner()) {
            self.board().update(|report| report.persist.trouble = Some(why.clone()));
            self.board().warn(format!("nothing is saved: {why}"));
        }
    }

    fn has_volume(&self) -> bool {
        self.board().update(|report| report.persist.path.is_some())
    }

    fn child(&self, what: &'static str, within: Duration) -> Launch {
        let limit = self.config.persist.size.resolve(limits::memory());
        let within = within.saturating_sub(CHILDS_MARGIN).as_millis();
        let args = [
            ("--volume", VOLUME.to_owned()),
            ("--workspace", WORKSPACE.to_owned()),
            ("--home", self.accounts.agent.home.clone()),
            ("--limit", limit.to_string()),
            ("--within", within.to_string()),
        ];
        let args = args.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        Launch::own(what, Some(boot::agent_identity(self, "/"))).args(args)
    }

    /// Brings back what was saved, as the agent and into a sealed box. Nothing of it stops the boot. Something where there is a
    /// conversation to go on with.
    pub fn restore_work(&self, _: &Sealed) -> Option<GoesOn> {
        if !self.has_volume() {
            return None;
        }
        let started = Instant::now();
        self.board().step(STEP, StepState::Running, None, String::new());
        let workdir = self.with_config(|config| {
            let first =
                config.repositories.first().map(|repository| format!("{WORKSPACE}/{}", repository.path));
            first.unwrap_or_else(|| WORKSPACE.to_owned())
        });
        let launch = self.child("persist-restore", RESTORE_LIMIT).args(["--workdir".to_owned(), workdir]);
        let said = self.spawner.listen(launch, RESTORE_LIMIT, MOST);
        let restored = match said {
            Err(error) => Err(chain(&error)),
            Ok(said) => {
                Restored::hear(&said.text).ok_or_else(|| format!("the child said nothing ({})", said.exit))
            }
        };
        let restored = restored.unwrap_or_else(|why| Restored { trouble: Some(why), ..Restored::default() });
        let back = Back::of(&restored);
        if let Back::Unknown(_) = back {
            self.board().update(|report| report.persist.trouble = back.keep().err());
        }
        *lock(&self.saving.restored) = back;
        let good = self.show_restored(&restored);
        let detail = self.board().update(|report| report.persist.restored.clone());
        let detail = detail.unwrap_or_else(|| "nothing was saved yet".to_owned());
        event("persist", &detail);
        let state = if good { StepState::Ok } else { StepState::Degraded };
        self.board().step(STEP, state, Some(started.elapsed()), detail);
        // Hearsay too: at worst a prompt is given twice, or Claude is told to go on with nothing.
        let worked = restored.prompt.as_ref().map(Digest::as_str) == self.prompt().as_deref();
        let goes_on = GoesOn { worked, interrupted: worked && restored.working };
        (restored.resume && self.config.session.command.is_empty()).then_some(goes_on)
    }

    /// The SHA-256 of the prompt.
    fn prompt(&self) -> Option<String> {
        self.with_config(|config| {
            config.session.prompt.as_ref().map(|prompt| crate::report::sha256(prompt.as_str()))
        })
    }

    /// Before the session is told to end: whether it was at work is known now and not after.
    pub(super) fn note_work(&self) {
        let working = self.board().update(|report| report.session.state) == SessionState::Running;
        self.saving.working.store(working, Ordering::Relaxed);
    }

    /// Whether all of it came back.
    fn show_restored(&self, restored: &Restored) -> bool {
        let board = self.board();
        let mut failed = 0_u64;
        let mut back = 0_u64;
        for repository in &restored.repositories {
            let path = format!("{WORKSPACE}/{}", crate::report::inert(repository.path.as_str()));
            match repository.came {
                Came::Restored => {
                    back += 1;
                    let (url, state, detail) =
                        (String::new(), RepositoryState::Cloned, repository.detail.clone());
                    board.repository(Repository { path, url, state, detail });
                }
                Came::Kept => event("persist", &format!("{path}: {}", repository.detail)),
                Came::Failed => {
                    failed += 1;
                    board.warn(format!("{path} was saved and did not come back: {}", repository.detail));
                }
            }
        }
        for left in &restored.left_out {
            event("persist", &format!("not restored: {left}"));
        }
        if let Some(trouble) = &restored.trouble {
            board.warn(format!("what was saved on the volume was not restored: {trouble}"));
        }
        if let Some(saved_at) = restored.saved_at {
            let at = time(SystemTime::UNIX_EPOCH + Duration::from_secs(saved_at.min(u64::from(u32::MAX))));
            let goes_on = if restored.resume { "; the conversation goes on" } else { "" };
            let lost = if failed > 0 { format!(", {failed} FAILED") } else { String::new() };
            let detail = format!(
                "saved {at}: {}{lost}, {}{goes_on}",
                count(back, "repository", "repositories"),
                count(restored.conversation, "file of Claude's", "files of Claude's")
            );
            board.update(|report| {
                report.persist.restored = Some(detail);
                report.persist.saved_at = Some(at);
            });
        }
        failed == 0 && restored.trouble.is_none()
    }

    /// Saves from now on by the timer; without a volume, looks what would be lost.
    pub fn keep_work(self: &Arc<Self>) {
        let innkeeper = Arc::clone(self);
        let interval = self.config.persist.interval;
        let saving = thread("persist", move || {
            let mut last = Instant::now();
            while innkeeper.board().phase() != Phase::Stopping {
                let due = !interval.is_zero() && last.elapsed() >= interval;
                if innkeeper.has_volume() && due {
                    // What came of it is shown and logged.
                    drop(innkeeper.save(Why::Timer, SAVE_LIMIT));
                } else if due || innkeeper.saving.wanted.swap(false, Ordering::Relaxed) {
                    innkeeper.look_at_risk();
                }
                if due {
                    last = Instant::now();
                }
                pause(NAP);
            }
        });
        if let Err(error) = saving {
            self.board().warn(format!("nothing is saved by the timer (persist.interval): {error}"));
        }
    }

    /// `innkeeper save`.
    pub(super) fn save_now(&self) -> Response {
        match self.save(Why::Operator, SAVE_LIMIT) {
            Ok(saved) => {
                let mut said = vec![wording(&saved)];
                said.extend(saved.left_out.iter().map(|left| format!("not saved: {left}")));
                Response::Done { said }
            }
            Err(Unsaved::NoVolume) => {
                let reason = format!("no volume is mounted at {VOLUME}: docker run -v VOLUME:{VOLUME} …");
                Response::Failed { reason }
            }
            Err(Unsaved::Busy) => Response::Later { reason: "another save is under way".to_owned() },
            Err(Unsaved::Early(reason)) => Response::Later { reason },
            Err(Unsaved::Trouble(why)) => {
                Response::Later { reason: format!("{why}; the save before it is whole") }
            }
        }
    }

    /// What there is time for, when the session has ended.
    pub(super) fn save_at_the_end(&self, left: Duration) {
        if !self.has_volume() {
            return;
        }
        match self.save(Why::End, left) {
            Err(Unsaved::Busy) => event("persist", "not saved at the end: another save took all the time"),
            Err(Unsaved::Early(reason)) => event("persist", &format!("not saved: {reason}")),
            // Shown and logged already.
            Ok(_) | Err(Unsaved::NoVolume | Unsaved::Trouble(_)) => {}
        }
    }

    fn save(&self, why: Why, limit: Duration) -> Result<Saved, Unsaved> {
        if !self.has_volume() {
            return Err(Unsaved::NoVolume);
        }
        let keep = lock(&self.saving.restored).keep().map_err(Unsaved::Early)?;
        let started = Instant::now();
        let patience = if why == Why::End { limit } else { Duration::ZERO };
        let Some(turn) = self.saving.take(patience) else { return Err(Unsaved::Busy) };
        let left = limit.saturating_sub(started.elapsed());
        let result = if left < SHORTEST + CHILDS_MARGIN {
            Err("there was no time left for a save".to_owned())
        } else {
            self.run_save(left, why == Why::End, &keep)
        };
        drop(turn);
        self.show_saved(why, started.elapsed(), &result);
        result.map_err(Unsaved::Trouble)
    }

    fn run_save(&self, limit: Duration, last: bool, keep: &Keep) -> Result<Saved, String> {
        let known = self.board().update(|report| {
            let paths = report.repositories.iter().map(|repository| repository.path.clone());
            paths.filter_map(|path| path.strip_prefix("/workspace/").map(str::to_owned)).collect::<Vec<_>>()
        });
        let known = known.into_iter().take(64).flat_map(|path| ["--repository".to_owned(), path]);
        if !last {
            self.note_work();
        }
        let working = self.saving.working.load(Ordering::Relaxed).then(|| "--working".to_owned());
        let prompt = self.prompt().into_iter().flat_map(|digest| ["--prompt".to_owned(), digest]);
        let launch = self
            .child("persist-save", limit)
            .args(known)
            .args(working)
            .args(prompt)
            .args(keep.args())
            .last(last);
        let said = self.spawner.listen(launch, limit, MOST).map_err(|error| chain(&error))?;
        let saved =
            Saved::hear(&said.text).ok_or_else(|| format!("the child said nothing ({})", said.exit))?;
        match &saved.trouble {
            Some(trouble) => Err(trouble.clone()),
            // It writes its line and ends well; one that somebody ended may not have saved what the line says.
            None if !said.exit.success() => Err(format!("the save was ended ({})", said.exit)),
            None => Ok(saved),
        }
    }

    fn show_saved(&self, why: Why, took: Duration, result: &Result<Saved, String>) {
        let now = crate::report::now();
        self.board().update(|report| match result {
            Ok(saved) => {
                let persist = &mut report.persist;
                (persist.saved_at, persist.trouble) = (Some(now), None);
                (persist.bytes, persist.took_ms) = (saved.bytes, milliseconds(took));
                persist.left_out.clone_from(&saved.left_out);
            }
            Err(trouble) => report.persist.trouble = Some(trouble.clone()),
        });
        let line = match result {
            // A timer that finds nothing new has nothing to say.
            Ok(saved) if why == Why::Timer && !saved.changed => None,
            Ok(saved) => Some(format!("{} in {:.0} ms", wording(saved), took.as_secs_f64() * 1e3)),
            Err(trouble) => Some(format!("not saved: {trouble}; the save before it is whole")),
        };
        let trouble = result.as_ref().err().cloned();
        let mut said = lock(&self.saving.said);
        let again = why == Why::Timer && trouble.is_some() && *said == trouble;
        *said = trouble;
        drop(said);
        if let Some(line) = line.filter(|_| !again) {
            event("persist", &line);
        }
    }

    /// Has it looked at again, if the last look is old: an answer does not wait for it.
    pub(super) fn look_at_risk_again(&self) {
        let old = lock(&self.saving.looked).is_none_or(|looked| looked.elapsed() >= LOOK_AGE);
        if old && !self.has_volume() {
            self.saving.wanted.store(true, Ordering::Relaxed);
        }
    }

    /// What would be lost with the box.
    fn look_at_risk(&self) {
        *lock(&self.saving.looked) = Some(Instant::now());
        let Response::Work { repositories } = self.work(None) else { return };
        let at_risk = repositories.into_iter().map(|work| AtRisk {
            commits: work.unpushed.unwrap_or_default(),
            files: work.changed.saturating_add(work.untracked),
            path: work.path,
        });
        let at_risk: Vec<AtRisk> = at_risk.filter(|risk| risk.commits > 0 || risk.files > 0).collect();
        let now = crate::report::now();
        self.board().update(|report| {
            report.persist.at_risk = at_risk;
            report.persist.looked_at = Some(now);
        });
    }
}

fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A line for the log and for who asked.
fn wording(saved: &Saved) -> String {
    if !saved.changed {
        return "nothing has changed since the last save".to_owned();
    }
    let left = match saved.left_out.len() {
        0 => String::new(),
        number => format!("; {number} left out"),
    };
    format!(
        "saved {}, {} in no commit, {}: {}, {} of it new{left}",
        count(saved.repositories, "repository", "repositories"),
        count(saved.files, "file", "files"),
        count(saved.conversation, "file of Claude's", "files of Claude's"),
        octets(saved.bytes),
        octets(saved.written)
    )
}

#[cfg(test)]
mod tests {
    use super::{Back, Saving};
    use crate::persist::said::Restored;
    use std::time::Duration;

    #[test]
    fn nothing_is_saved_over_what_did_not_come_back() {
        assert!(Back::default().keep().unwrap_err().contains("not been restored yet"));
        let trouble =
            |saved_at| Restored { trouble: Some("killed".to_owned()), saved_at, ..Restored::default() };
        assert!(Back::of(&trouble(None)).keep().unwrap_err().contains("is not replaced (killed)"));
        assert!(Back::of(&trouble(Some(1))).keep().is_ok(), "which ones is known");
        assert!(Back::of(&Restored::default()).keep().unwrap().args().is_empty());
        let said = r#"{"saved_at":1,"conversation":0,"lost":2,"resume":false,"left_out":[],"repositories":[
            {"path":"a","came":"failed","detail":"","spare":"a.unrestored"},{"path":"b","came":"restored","detail":""},
            {"path":"-c","came":"failed","detail":""}]}"#;
        let kept = Back::of(&Restored::hear(said).unwrap()).keep().unwrap().args();
        let wanted = ["--keep=a", "--spare=a.unrestored", "--keep=-c", "--spare=-c", "--keep-conversation"];
        assert_eq!(kept, wanted);
    }

    #[test]
    fn one_save_at_a_time() {
        let saving = Saving::default();
        let turn = saving.take(Duration::ZERO).unwrap();
        assert!(saving.take(Duration::ZERO).is_none());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| saving.take(Duration::from_secs(60)).is_some());
            drop(turn);
            assert!(waiting.join().unwrap(), "the end waits for the one before it");
        });
    }
}
