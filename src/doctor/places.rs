//! Where the agent could write and where it could not, and the doors of the host.

use std::path::Path;

use super::finding::Finding;
use super::trial::{self, Trial};
use crate::account::Account;
use crate::filesystem::layout::Mount;
use crate::filesystem::mountinfo::{MountEntry, MountTable};
use crate::filesystem::seal::Writable;
use crate::filesystem::surfaces;
use crate::prerequisites::Lack;
use crate::prerequisites::places as needs;
use crate::prerequisites::privileges::Privileges;
use crate::report::chain;

const MOUNTINFO: &str = "/proc/self/mountinfo";

pub(super) fn findings(
    layout: &[Mount],
    writable: &Writable,
    rootfs: bool,
    given: &Privileges,
) -> Vec<Finding> {
    let table = match MountTable::read() {
        Ok(table) => table,
        Err(error) => {
            let lack = Lack::new(chain(&error), "let the runtime show /proc");
            return vec![Finding::missing("mounts", &lack, MOUNTINFO)];
        }
    };
    let mut findings: Vec<Finding> = layout.iter().map(|place| of_place(place, &table, given)).collect();
    findings.push(root(&table, given));
    let (lacks, tried) = if given.may_mount() {
        (trial::run(Trial::Mounts), "the boot's mounts in a mount namespace of its own")
    } else {
        (
            Ok(needs::foreseen(layout, writable, rootfs, given)),
            "foreseen: without SYS_ADMIN nothing can be mounted",
        )
    };
    match lacks {
        Ok(lacks) if lacks.is_empty() => {
            findings.push(Finding::ok("mounts and seal", "as the boot needs them", tried));
        }
        Ok(lacks) => {
            findings.extend(lacks.iter().map(|lack| Finding::missing("mounts and seal", lack, tried)));
        }
        Err(error) => {
            let found = format!("could not be tried without effect: {error}");
            findings.push(Finding::weaker("mounts and seal", found, tried));
        }
    }
    findings
}

fn root(table: &MountTable, given: &Privileges) -> Finding {
    let mechanism = "root file system";
    let read_only = table.at(Path::new("/")).is_some_and(MountEntry::read_only);
    match (read_only, given.may_mount()) {
        (true, _) => Finding::ok(mechanism, "read-only by the runtime", MOUNTINFO),
        (false, true) => Finding::ok(mechanism, "writable: the boot remounts it", MOUNTINFO),
        (false, false) => {
            Finding::weaker(mechanism, "writable for root, file modes keep the agent out", MOUNTINFO)
                .next("--read-only")
        }
    }
}

/// What is there now; whether it will do is the trial's to say.
fn of_place(place: &Mount, table: &MountTable, given: &Privileges) -> Finding {
    let mechanism = place.path.display().to_string();
    let Some(entry) = table.at(&place.path) else {
        let by_us =
            if given.may_mount() { "to be mounted by the boot" } else { "not a file system of its own" };
        return Finding::not_applicable(mechanism, by_us, MOUNTINFO);
    };
    let without: Vec<&str> = ["nosuid", "nodev"].into_iter().filter(|flag| !entry.has(flag)).collect();
    let noexec = if entry.has("noexec") && place.exec { ", noexec" } else { "" };
    let found = format!("{} of the runtime's, kept{noexec}", entry.fs_type);
    if without.is_empty() || given.may_mount() {
        return Finding::ok(mechanism, found, MOUNTINFO);
    }
    let found = format!("{found}, without {}", without.join(" and "));
    Finding::weaker(mechanism, found, MOUNTINFO).next("--cap-add SYS_ADMIN lets innkeeper remount it")
}

/// Sockets and tokens of the host: covered where the boot can, else their modes must keep the agent out.
pub(super) fn doors(agent: Option<&Account>, accepted: bool, given: &Privileges) -> Vec<Finding> {
    let tried =
        if given.may_mount() { "mounted sockets, known paths" } else { "access(2) as the agent, in a child" };
    match (surfaces::find(), agent) {
        (Ok(doors), _) if doors.is_empty() => {
            vec![Finding::not_applicable("doors of the host", "none", "mounted sockets, known paths")]
        }
        (Ok(doors), Some(agent)) => {
            doors.iter().map(|path| door(path, agent, accepted, given, tried)).collect()
        }
        (Ok(_), None) => Vec::new(),
        (Err(error), _) => {
            let lack = Lack::new(chain(&error), "let the runtime show /proc");
            vec![Finding::missing("doors of the host", &lack, tried)]
        }
    }
}

fn door(path: &Path, agent: &Account, accepted: bool, given: &Privileges, tried: &str) -> Finding {
    let mechanism = format!("door {}", path.display());
    if given.may_mount() {
        return Finding::ok(mechanism, "to be covered", tried).next("leave its mount out (-v …)");
    }
    match (trial::run_as_agent(agent, Trial::Door, path), accepted) {
        (Err(error), _) => Finding::ok(mechanism, format!("its modes keep the agent out: {error}"), tried),
        (Ok(()), true) => {
            Finding::weaker(mechanism, "open to the agent: given up by boot.accept=host-doors", tried)
                .next("leave its mount out (-v …)")
        }
        (Ok(()), false) => {
            let what = format!("host-doors: the self-attack got through: door-{}", path.display());
            Finding::missing(mechanism, &Lack::new(what, crate::boot::remedy("host-doors")), tried)
        }
    }
}
