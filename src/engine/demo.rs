//! `innkeeper run --demo`: a box whose session is the tour. On a terminal the operator is in it; without one its text is
//! printed, and the box is taken away again.

use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::{Engine, Run, status_of};
use crate::report::{self, exit};

/// Of the right shape, and nobody's.
const PLACEHOLDER: &str = "sk-ant-oat01-placeholderPLACEHOLDERplaceholderPLACEHOLDERplaceholderPLACEHOLDERplaceholderPLACEHOLDERplaceho-AAAA";
const SETTINGS: [(&str, &str); 3] = [
    ("CLAUDE_CODE_OAUTH_TOKEN", PLACEHOLDER),
    ("INNKEEPER_SESSION_COMMAND", "/usr/local/bin/innkeeper\ntour\n--shell"),
    ("INNKEEPER_SESSION_ON_EXIT", "stop"),
];
/// The tour's last words.
const END: &str = "The operator sees each refusal";
/// The tour as the agent's terminal shows it; read as the agent, since root is never a client of its server.
const SCREEN: &str = "innkeeper run-as --uid 1000 --gid 1000 -- \
     $(command -v tmux) -S /run/user/1000/tmux.sock capture-pane -p -S - -t claude:0.0";
/// A box is ready in a second, and no stop of the tour takes longer than some seconds.
const LIMIT: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(300);

/// Starts this program again for the box itself, with the tour's settings; returns an exit status.
pub(super) fn run(options: &Run) -> u8 {
    let Some(own) = own() else {
        report::last_words("run", "cannot find this program's own file");
        return exit::INTERNAL;
    };
    let mut command = Command::new(&own);
    command.args(words(options));
    for name in [
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "GH_TOKEN",
        "GH_PAT",
        "GITHUB_TOKEN",
        "REPO_URL",
        "CLAUDE_PROMPT",
    ] {
        // A tour needs no secret: it hunts for them.
        command.env_remove(name);
    }
    command.envs(SETTINGS);
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        let error = command.exec();
        report::last_words("run", &format!("cannot start the box: {error}"));
        return exit::INTERNAL;
    }
    let mut keeper = match command.stdin(Stdio::null()).stdout(Stdio::null()).spawn() {
        Ok(keeper) => keeper,
        Err(error) => {
            report::last_words("run", &format!("cannot start the box: {error}"));
            return exit::INTERNAL;
        }
    };
    let shown = show(&own, options, &mut keeper);
    let removed = said(&own, &["rm", &options.name]);
    // Docker's own command has ended long ago.
    let ended = keeper.wait();
    match shown {
        Some(text) => {
            crate::cli::print(&text);
            if removed.is_some() { exit::OK } else { exit::INTERNAL }
        }
        None => ended.map_or(exit::INTERNAL, failed),
    }
}

fn failed(status: ExitStatus) -> u8 {
    report::last_words("run", "the tour did not come to its end");
    u8::try_from(status_of(status)).ok().filter(|status| *status != 0).unwrap_or(exit::INTERNAL)
}

fn own() -> Option<PathBuf> {
    std::env::current_exe().ok()
}

fn words(options: &Run) -> Vec<String> {
    let mut words = vec!["run".to_owned(), "--name".to_owned(), options.name.clone()];
    if let Some(engine) = options.engine {
        let name = match engine {
            Engine::Docker => "docker",
            Engine::Podman => "podman",
            Engine::Embedded => "embedded",
        };
        words.extend(["--engine".to_owned(), name.to_owned()]);
    }
    words.extend(options.image.iter().flat_map(|image| ["--image".to_owned(), image.clone()]));
    for (flag, path) in
        [("--programs", &options.programs), ("--network", &options.network), ("--config", &options.config)]
    {
        words.extend(path.iter().flat_map(|path| [flag.to_owned(), path.display().to_string()]));
    }
    words.push("--".to_owned());
    words.extend(options.options.iter().cloned());
    words
}

/// What a command of ours prints, if it succeeds.
fn said(own: &PathBuf, arguments: &[&str]) -> Option<String> {
    let done = Command::new(own).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).into_owned())
}

/// The tour's text, once it is whole.
fn show(own: &PathBuf, options: &Run, keeper: &mut Child) -> Option<String> {
    let began = Instant::now();
    while began.elapsed() < LIMIT {
        let screen = said(own, &["in", &options.name, "bash", "-c", SCREEN]);
        if let Some(screen) = screen.filter(|screen| screen.contains(END)) {
            return Some(format!("{}\n", screen.trim_end()));
        }
        if keeper.try_wait().ok().flatten().is_some_and(|status| !status.success()) {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
    None
}
