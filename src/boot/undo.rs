//! What a boot that failed puts back: no agent existed yet, so the network is left as it was found.
//!
//! In a network namespace that outlives the box (a pod, `--network container:…`) a lockdown that stays would cut off the
//! others there, and protect nobody. Once the box was ready it is the other way round: what it leaves behind is closed.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::filesystem::seal;
use crate::innkeeper::Innkeeper;
use crate::prerequisites::network::RESOLV_CONF;
use crate::report::{chain, event};
use crate::supervisor::backoff::pause;
use crate::supervisor::everybody::kill_all;

/// Killed processes are gone in a moment; one that is not could still send.
const PATIENCE: Duration = Duration::from_secs(1);

/// The last act of a box that never was ready. Nothing is spawned any more: the supervisor has ended.
pub(crate) fn undo(innkeeper: &Innkeeper) {
    if innkeeper.board().update(|report| report.boot.ready_ms.is_some()) {
        return;
    }
    if let Some(former) = innkeeper.resolv_conf.get() {
        let path = Path::new(RESOLV_CONF);
        // The seal may have come after; what it can't undo the writing says.
        drop(seal::open(path));
        if let Err(error) = super::host::overwrite(path, former) {
            event("boot", &format!("{RESOLV_CONF} can't be put back: {error}"));
        }
    }
    let Some(firewall) = innkeeper.firewall.get() else { return };
    if !all_ended(&innkeeper.accounts.uids()) {
        return event("boot", "the rules stay: a process of the box does not end");
    }
    match firewall.withdraw() {
        Ok(true) => {
            event("boot", "no agent existed: the rules were taken back, as if there had been no boot");
        }
        // There were none, or those of an earlier life, which stay.
        Ok(false) => {}
        Err(error) => event("boot", &format!("the rules stay: {}", chain(&error))),
    }
}

fn all_ended(uids: &[u32]) -> bool {
    let until = Instant::now() + PATIENCE;
    while kill_all(uids, Signal::SIGKILL) > 0 {
        if Instant::now() > until {
            return false;
        }
        pause(Duration::from_millis(5));
    }
    true
}
