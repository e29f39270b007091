//! Git as we call it in a repository that somebody else has made: nothing of the repository's configuration, the agent's or
//! the system's executes something, nothing goes over a network, nobody is asked.

use std::process::Command;

const PROGRAM: &str = "/usr/bin/git";

/// What configuration could make git execute or wait for. The command line wins over every file (git-config(1)).
const SETTINGS: &[&str] = &[
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "core.pager=cat",
    "core.attributesFile=/dev/null",
    "core.sshCommand=false",
    "core.untrackedCache=false",
    "credential.helper=",
    "diff.external=",
    "gc.auto=0",
    "log.showSignature=false",
    "maintenance.auto=false",
    "protocol.allow=never",
];

/// The whole environment.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("PATH", "/usr/bin:/bin"),
    ("HOME", "/nonexistent"),
    ("LC_ALL", "C"),
    ("GIT_CONFIG_NOSYSTEM", "1"),
    ("GIT_CONFIG_GLOBAL", "/dev/null"),
    ("GIT_ATTR_NOSYSTEM", "1"),
    ("GIT_TERMINAL_PROMPT", "0"),
    ("GIT_NO_LAZY_FETCH", "1"),
];

/// Git, with further settings of the caller's; what it is to do comes after.
pub(crate) fn command(further: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(["--no-pager", "--no-optional-locks"]);
    for setting in SETTINGS.iter().chain(further) {
        command.args(["-c", setting]);
    }
    command.env_clear().envs(ENVIRONMENT.iter().copied());
    command
}
