//! Where the agent could write and where it could not, and the doors of the host.

use std::path::Path;

use super::finding::Finding;
use super::trial::{self, Trial};
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
    findings.extend(doors());
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

fn doors() -> Vec<Finding> {
    let (mechanism, tried) = ("doors of the host", "mounted sockets, known paths");
    match surfaces::find() {
        Ok(doors) if doors.is_empty() => vec![Finding::not_applicable(mechanism, "none", tried)],
        Ok(doors) => {
            let list: Vec<String> = doors.iter().map(|door| door.display().to_string()).collect();
            vec![
                Finding::weaker(mechanism, format!("{}: to be covered", list.join(", ")), tried)
                    .next("leave its mount out (-v …)"),
            ]
        }
        Err(error) => {
            vec![Finding::missing(mechanism, &Lack::new(chain(&error), "let the runtime show /proc"), tried)]
        }
    }
}
