//! What the process was given: user, capabilities, its place among the processes.

use crate::prerequisites::Lack;
use crate::prerequisites::privileges::Privileges;

use super::finding::Finding;

const CAPGET: &str = "capget(2)";

/// Useful, and a boot does without: name, what for, and what happens otherwise.
const OPTIONAL: [(&str, &str); 2] = [
    ("SYS_ADMIN", "mounts must come from the runtime: --read-only and --tmpfs"),
    ("SYS_PTRACE", "refused packets of processes that hide from their own user have no process name"),
];

pub(super) fn findings(given: &Privileges) -> Vec<Finding> {
    let mut findings = vec![root(given)];
    if given.root {
        findings.extend(given.required().map(|(name, purpose)| capability(given, name, purpose)));
        findings.extend(OPTIONAL.map(|(name, otherwise)| optional(given, name, otherwise)));
    }
    findings.push(no_new_privs(given));
    findings.push(reaper());
    findings
}

fn root(given: &Privileges) -> Finding {
    match given.lack().filter(|_| !given.root) {
        None => Finding::ok("root", "uid 0", "geteuid(2)"),
        Some(lack) => Finding::missing("root", &lack, "geteuid(2)"),
    }
}

fn capability(given: &Privileges, name: &str, purpose: &str) -> Finding {
    let mechanism = format!("capability {name}");
    if given.has(name) {
        return Finding::ok(mechanism, purpose, CAPGET);
    }
    // The words of the boot, for this one alone.
    let lack = Lack::new(
        format!("missing capabilities: {name} ({purpose})"),
        format!("docker run --cap-add {name} …"),
    );
    Finding::missing(mechanism, &lack, CAPGET)
}

fn optional(given: &Privileges, name: &str, otherwise: &str) -> Finding {
    let mechanism = format!("capability {name}");
    if given.has(name) {
        Finding::ok(mechanism, "optional, and there", CAPGET)
    } else {
        let found = format!("optional: without it {otherwise}");
        Finding::not_applicable(mechanism, found, CAPGET).next(format!("--cap-add {name}"))
    }
}

fn no_new_privs(given: &Privileges) -> Finding {
    let mechanism = "no_new_privs";
    let tried = "set in a thread of its own";
    let set = std::thread::spawn(|| {
        rustix::thread::set_no_new_privs(true).is_ok() && rustix::thread::no_new_privs().unwrap_or(false)
    });
    match (given.no_new_privs, set.join().unwrap_or(false)) {
        (true, _) => Finding::ok(mechanism, "already set for the whole box", "prctl(2)"),
        (false, true) => Finding::ok(mechanism, "can be set for the agent", tried)
            .next("--security-opt no-new-privileges sets it for `docker exec` too"),
        (false, false) => {
            let lack = Lack::new("no_new_privs can't be set", "a kernel of Linux 3.5 or newer is needed");
            Finding::missing(mechanism, &lack, tried)
        }
    }
}

fn reaper() -> Finding {
    let mechanism = "reaper of orphans";
    if std::process::id() == 1 {
        return Finding::ok(mechanism, "pid 1", "getpid(2)");
    }
    match rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        Ok(()) => Finding::ok(mechanism, "not pid 1, but child subreaper", "prctl(2)"),
        Err(error) => {
            let lack = Lack::new(format!("cannot become the reaper of orphans: {error}"), "run it as pid 1");
            Finding::missing(mechanism, &lack, "prctl(2)")
        }
    }
}
