//! What kernel and cgroup do for the agent's confinement.

use std::fs::OpenOptions;
use std::path::Path;

use super::finding::Finding;
use super::trial::{self, Trial};
use crate::account::Accounts;
use crate::prerequisites::{Lack, limits};
use crate::supervisor::confinement::{self, Allowances};

pub(super) fn findings(accounts: Option<&Accounts>, wants_userns: bool) -> Vec<Finding> {
    vec![
        seccomp(),
        user_namespaces(accounts, wants_userns),
        memory(),
        processes(),
        badness(),
        sysctls(),
        apparmor(),
        cpu(),
    ]
}

/// A filter holds for the thread that installs it (seccomp(2)).
fn seccomp() -> Finding {
    let (mechanism, tried) = ("seccomp filter", "installed in a thread of its own");
    let installed = std::thread::spawn(|| {
        confinement::apply(Allowances::default()).map_err(|error| crate::report::chain(&error))
    });
    match installed.join() {
        Ok(Ok(())) => Finding::ok(mechanism, "the agent's filter can be installed", tried),
        Ok(Err(error)) => {
            let next = "run on a kernel with CONFIG_SECCOMP_FILTER that lets a process install one";
            Finding::missing(
                mechanism,
                &Lack::new(format!("cannot install the seccomp filter: {error}"), next),
                tried,
            )
        }
        Err(_) => Finding::weaker(mechanism, "the try itself failed", tried),
    }
}

/// Only for who asks for them by `agent.allow`.
fn user_namespaces(accounts: Option<&Accounts>, wanted: bool) -> Finding {
    let (mechanism, tried) = ("user namespaces", "unshare(2) as the agent, in a child");
    let made =
        accounts.map(|accounts| trial::run_as_agent(&accounts.agent, Trial::UserNamespace, Path::new("/")));
    match (made, wanted) {
        (Some(Ok(())), true) => Finding::ok(mechanism, "the agent can make them, as agent.allow says", tried),
        (Some(Ok(())), false) => {
            Finding::ok(mechanism, "there, and closed to the agent by its filter", tried)
                .next("INNKEEPER_AGENT_ALLOW=userns opens them to the agent")
        }
        (Some(Err(error)), true) => {
            Finding::weaker(mechanism, format!("agent.allow has no effect: {error}"), tried)
                .next("a seccomp profile and AppArmor that allow them")
        }
        (Some(Err(error)), false) => Finding::not_applicable(mechanism, error, tried),
        (None, _) => Finding::not_applicable(mechanism, "there is no agent to try it as", tried),
    }
}

fn memory() -> Finding {
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    match limits::memory_limit() {
        Some(limit) => Finding::ok("memory limit", mib(limit), "cgroup"),
        None => {
            let found = format!("none: the box may use the machine's {}", mib(limits::machine_memory()));
            Finding::weaker("memory limit", found, "cgroup").next("--memory 8g")
        }
    }
}

fn processes() -> Finding {
    let mechanism = "process limit";
    match limits::process_limit() {
        Some(limit) => Finding::ok(mechanism, format!("{limit} in this cgroup"), "pids.max"),
        None => {
            let found = format!(
                "none in this cgroup: the agent gets {} of the machine's {}",
                limits::processes(),
                limits::threads_max()
            );
            Finding::weaker(mechanism, found, "pids.max, threads-max").next("--pids-limit 4096")
        }
    }
}

/// Written as it is: that changes nothing, and shows whether it could be raised.
fn badness() -> Finding {
    let (mechanism, path) = ("oom_score_adj", "/proc/self/oom_score_adj");
    let written = std::fs::read_to_string(path)
        .and_then(|score| std::fs::write(path, &score).map(|()| score.trim().to_owned()));
    match written {
        Ok(score) => Finding::ok(mechanism, format!("{score} here, more for the agent"), "written as it is"),
        Err(error) => {
            let lack = Lack::new(
                format!("cannot raise oom_score_adj: {error}"),
                "the agent could not be started: let the runtime show a writable /proc/self",
            );
            Finding::missing(mechanism, &lack, "written as it is")
        }
    }
}

/// Opening for writing writes nothing.
fn sysctls() -> Finding {
    let (mechanism, tried) = ("/proc/sys", "opened for writing");
    match OpenOptions::new().write(true).open("/proc/sys/kernel/core_pattern") {
        Err(error) => Finding::ok(mechanism, format!("closed: {error}"), tried),
        Ok(_) => Finding::ok(mechanism, "root's alone; the boot attacks it as the agent", tried),
    }
}

/// The profile of this process (apparmor(7)); another security module may write something else there.
fn apparmor() -> Finding {
    let (mechanism, path) = ("AppArmor", "/proc/self/attr/current");
    let profile = std::fs::read_to_string(path).unwrap_or_default();
    let profile = profile.trim_matches(['\0', '\n', ' ']);
    if profile.is_empty() || profile == "unconfined" {
        return Finding::not_applicable(mechanism, "no profile", path);
    }
    Finding::ok(mechanism, format!("{profile}; what it refuses shows above"), path)
}

fn cpu() -> Finding {
    let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Finding::ok("processors", count.to_string(), "sched_getaffinity(2)")
}
