//! Everything that was done to the host for a box is taken back: at its end, and by the next command where its keeper was
//! killed.

use std::fs;

use rustix::event::{PollFd, PollFlags, poll};

use super::EmbeddedError;
use super::state::{Desk, Process, Record};
use super::{legacy, network};
use crate::firewall::nftables::passage;
use crate::report;

const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

pub(super) fn forward(desk: &Desk) -> Result<(), EmbeddedError> {
    let failed = |source| EmbeddedError::Sysctl { path: IP_FORWARD, source };
    let former = fs::read_to_string(IP_FORWARD).map_err(failed)?;
    if former.trim() == "1" {
        return Ok(());
    }
    desk.remember_forwarding(former.trim())?;
    report::last_words("run", "net.ipv4.ip_forward is set to 1 for as long as boxes run");
    fs::write(IP_FORWARD, "1").map_err(failed)
}

/// Takes back all that was done for a box. Everything is tried; the first failure is told.
pub(in crate::engine) fn take_back(desk: &Desk, record: &Record) -> Result<(), EmbeddedError> {
    // The kernel removed it with the box's network namespace, or is about to.
    let link = network::remove(&record.interface).map_err(EmbeddedError::from);
    legacy::close(&record.interface, &record.table);
    let rules = passage::close(&record.table).map_err(EmbeddedError::from);
    let forgotten = link.and(rules).and_then(|()| desk.remove(&record.name).map_err(EmbeddedError::from));
    let last = desk.records()?.iter().all(|other| other.name == record.name);
    // The last box restores it.
    let restored = match last.then(|| desk.take_forwarding()).flatten() {
        Some(former) => {
            fs::write(IP_FORWARD, former).map_err(|source| EmbeddedError::Sysctl { path: IP_FORWARD, source })
        }
        None => Ok(()),
    };
    forgotten.and(restored)
}

/// Takes back what killed keepers left.
pub(in crate::engine) fn sweep(desk: &Desk) -> Result<(), EmbeddedError> {
    for record in desk.records()?.into_iter().filter(|record| !record.keeper.alive()) {
        if let Some(guest) = record.guest.filter(|guest| guest.alive()) {
            kill(guest);
        }
        take_back(desk, &record)?;
        report::last_words("run", &format!("removed what an earlier box named {} had left", record.name));
    }
    Ok(())
}

/// Asks a box to end, as its keeper would, and waits for its keeper to have taken everything back.
pub(in crate::engine) fn stop(record: &Record) -> Result<(), EmbeddedError> {
    let Some(pid) = rustix::process::Pid::from_raw(record.keeper.pid) else { return Ok(()) };
    let opened = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
    if let (Ok(keeper), true) = (opened, record.keeper.alive()) {
        // It passes this on, and the box has `session.stop_timeout` for its end.
        rustix::process::pidfd_send_signal(&keeper, rustix::process::Signal::TERM).ok();
        poll(&mut [PollFd::new(&keeper, PollFlags::IN)], Some(&STOP_LIMIT)).ok();
    }
    if let Some(guest) = record.guest.filter(|guest| guest.alive()) {
        kill(guest);
    }
    let desk = Desk::open()?;
    sweep(&desk)
}

/// Longer than a box may take.
const STOP_LIMIT: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };

/// The first process of a box, and all of it with it; returns when it is gone.
pub(in crate::engine) fn kill(process: Process) {
    let Some(pid) = rustix::process::Pid::from_raw(process.pid) else { return };
    let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { return };
    // The number may have been given anew since it was read.
    if process.alive() {
        rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).ok();
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None).ok();
    }
}
