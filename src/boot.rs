//! The boot: from a namespace that nobody has touched to a box in which the agent may exist.
//!
//! Read this file as the product's table of contents. Steps 1 to 10 make the box *ready*; the task (repositories,
//! session) comes after. Every step looks at its outcome, and the proofs that later steps ask for can't be had
//! otherwise. What the host can't give stops the boot, unless the operator gave up that protection by its name.

pub(crate) mod comforts;
mod gate;
mod host;
mod network;
mod places;
mod protections;
pub mod step;
mod task;
pub(crate) mod undo;

use std::sync::Arc;
use std::time::Duration;

use gate::gate;
use network::{dns, firewall, lockdown};
use places::{furnish, identity, mounts, seal};
use step::{Failure, Step, Steps, Trouble, Verified};

use task::task;

use crate::audit::{self, file::LogFile};
use crate::filesystem::Sealed;
use crate::firewall::EgressLocked;
use crate::innkeeper::Innkeeper;
use crate::prerequisites::{self, together};
use crate::report::{chain, event};
use crate::status::milliseconds;
use crate::status::report::Phase;

const CONFIG: Step = Step { name: "config", limit: Duration::from_secs(5) };
const LOCKDOWN: Step = Step { name: "lockdown", limit: Duration::from_secs(10) };
const MOUNTS: Step = Step { name: "mounts", limit: Duration::from_secs(10) };
const HOME: Step = Step { name: "home", limit: Duration::from_secs(20) };
const DNS: Step = Step { name: "dns", limit: Duration::from_secs(10) };
/// Longer than `network.boot_timeout` can be, which is five minutes. Finding out about iptables takes a second or two.
const FIREWALL: Step = Step { name: "firewall", limit: Duration::from_secs(330) };
const GATE: Step = Step { name: "gate", limit: Duration::from_secs(10) };
const IDENTITY: Step = Step { name: "identity", limit: Duration::from_secs(20) };
const SEAL: Step = Step { name: "seal", limit: Duration::from_secs(20) };
const READINESS: Step = Step { name: "readiness", limit: Duration::from_secs(30) };
const STEPS: [Step; 10] = [CONFIG, LOCKDOWN, MOUNTS, HOME, DNS, FIREWALL, GATE, IDENTITY, SEAL, READINESS];

pub(crate) use places::agent_identity;
pub use protections::remedy;
pub(crate) use protections::show_secrets;
pub(crate) use task::{begin, clone_late};

/// Boots, then starts the task. Returns when both are under way.
pub fn run(innkeeper: &Arc<Innkeeper>) -> Result<(), Failure> {
    let steps = Steps::new(Arc::clone(innkeeper.board()), innkeeper.spawner.clone(), &STEPS);
    config(innkeeper, &steps)?;
    let network = lockdown(innkeeper, &steps)?;
    let places = mounts(innkeeper, &steps)?;
    if let Err(error) = innkeeper.watch_resources(&places) {
        innkeeper.board().warn(format!("nobody watches how full memory and places are: {error}"));
    }
    furnish(innkeeper, &steps)?;
    let resolver = dns(innkeeper, &steps, &network)?;
    attend(innkeeper);
    let (locked, doors) = firewall(innkeeper, &steps, resolver)?;
    gate(innkeeper, &steps, doors)?;
    identity(innkeeper, &steps)?;
    if network.initial && network.initial_pids {
        for wrong in crate::kernel::harden() {
            innkeeper.board().warn(format!("a setting of this machine's kernel: {wrong}"));
        }
    }
    let sealed = seal(innkeeper, &steps, &places)?;
    readiness(innkeeper, &steps, &sealed, &locked)?;
    ready(innkeeper);
    innkeeper.measure_traffic();
    task(innkeeper, locked, sealed);
    Ok(())
}

/// Looks after time and network from here on: a network that comes late must be noticed while the names wait for it.
fn attend(innkeeper: &Arc<Innkeeper>) {
    if let Err(error) = innkeeper.watch_time() {
        let what = "nobody watches the clock, and `allow --for` does not end by itself";
        innkeeper.board().warn(format!("{what}: {error}"));
    }
    if let Err(error) = innkeeper.watch_network() {
        innkeeper.board().warn(format!("nobody watches for changes of the network: {error}"));
    }
}

/// What this version does not close; shown for ever, since an operator who signs must know.
const ACCEPTED: [&str; 1] = [
    "not in this version: the credential broker (what an allowed name is used for, an upload say, is not checked)",
];

// --- 1: config ---

/// Everything was parsed before the first effect; here is what it came to.
fn config(innkeeper: &Innkeeper, steps: &Steps) -> Result<(), Failure> {
    let config = &innkeeper.config;
    let plan = || {
        together(&prerequisites::lacks(config, &innkeeper.accounts)).map_or(Ok(()), |lack| Err(lack.into()))
    };
    steps.run(
        CONFIG,
        plan,
        |()| keep_log(innkeeper),
        |()| {
            for warning in config.warnings.iter().map(String::as_str).chain(ACCEPTED) {
                innkeeper.board().warn(warning);
            }
            let telemetry = config.telemetry.as_ref().map(crate::telemetry::Telemetry::summary);
            innkeeper.board().update(|report| report.telemetry = telemetry);
            show_secrets(innkeeper);
            let rules = innkeeper.allowlist().rules().len();
            Ok(Verified::new((), format!("{rules} rules, {} secrets", config.secrets.iter().count())))
        },
    )
}

/// From here on the log is on its volume too, what was logged before included.
fn keep_log(innkeeper: &Innkeeper) -> Result<(), Trouble> {
    let log = &innkeeper.config.log;
    let Some(path) = &log.file else { return Ok(()) };
    let next = "see that root can write there, that no other box has the same log.file, and that the file is its own";
    // A share of the memory is no measure for a volume; what was said of it is taken all the same.
    let limit = log.file_size.resolve(prerequisites::limits::memory());
    let file = LogFile::open(path, limit).map_err(|error| Trouble::unfit(chain(&error), next))?;
    audit::keep(file).map_err(|error| Trouble::unfit(format!("cannot start the log's thread: {error}"), next))
}

// --- 10: readiness ---

fn readiness(
    innkeeper: &Arc<Innkeeper>,
    steps: &Steps,
    sealed: &Sealed,
    _: &EgressLocked,
) -> Result<(), Failure> {
    steps.run(
        READINESS,
        || Ok(protections::Attack::plan(innkeeper, sealed)),
        |_| Ok(()),
        |attack| {
            let attempts = attack.recent().map_err(Trouble::fault)?;
            protections::register(innkeeper, attack, sealed)?;
            Ok(Verified::new((), crate::readiness::summary(&attempts, None)))
        },
    )
}

fn ready(innkeeper: &Innkeeper) {
    let took = crate::init::since(innkeeper.began);
    innkeeper.board().update(|report| {
        if report.phase == Phase::Booting {
            report.phase = Phase::Ready;
        }
        report.boot.ready_ms = Some(milliseconds(took));
        report.session.detail = "the box is ready; the task begins".to_owned();
    });
    event("boot", &format!("ready after {:.0} ms", took.as_secs_f64() * 1e3));
}
