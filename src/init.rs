//! `innkeeper init`: PID 1 from its first instruction to the last. Takes the environment off its own process,
//! reads the configuration, starts the boot, supervises, and ends with the documented status.

use std::ffi::OsString;
use std::io::{IsTerminal, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use rustix::process::DumpableBehavior;
use zeroize::Zeroizing;

use crate::account::Accounts;
use crate::boot;
use crate::config::{self, Environment, Problems, Sources};
use crate::control::client;
use crate::control::protocol::Request;
use crate::headless::termination;
use crate::innkeeper::Innkeeper;
use crate::namespace::Surroundings;
use crate::report::{self, exit};
use crate::status::Board;
use crate::status::report::{BoxIdentity, Phase};
use crate::supervisor::{Conduct, Ending, Launch, Spawner, Stream, Supervisor};

#[derive(Debug, Clone, Default, clap::Args)]
pub struct Init {
    /// Where the first run of this process left its environment.
    #[arg(long, hide = true)]
    pub environment_fd: Option<i32>,
    /// When the first run began: CLOCK_MONOTONIC in nanoseconds.
    #[arg(long, hide = true)]
    pub began: Option<u64>,
}

impl Init {
    /// Reads the two forms in which PID 1 is started: `init` (or nothing, as PID 1), and what the first run executes.
    #[must_use]
    pub fn at_once(args: &[OsString]) -> Option<Self> {
        let words: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
        match words.as_slice() {
            [] if args.is_empty() && std::process::id() == 1 => Some(Self::default()),
            ["init"] => Some(Self::default()),
            ["init", "--environment-fd", fd, "--began", began] => {
                Some(Self { environment_fd: Some(fd.parse().ok()?), began: Some(began.parse().ok()?) })
            }
            _ => None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("cannot hand the environment to the second run")]
    HandOver(#[source] std::io::Error),
    #[error("cannot read the environment of the first run")]
    TakeOver(#[source] std::io::Error),
    #[error("the environment of the first run is damaged")]
    Damaged(#[from] config::environment::EnvironmentError),
    #[error("cannot become unreadable to others")]
    Dumpable(#[source] rustix::io::Errno),
    #[error("cannot forbid core dumps")]
    Core(#[source] std::io::Error),
    #[error("cannot become the reaper of orphans")]
    Subreaper(#[source] rustix::io::Errno),
    #[error("cannot look at the network")]
    Look(#[source] std::io::Error),
    #[error("cannot start the supervisor")]
    Supervisor(#[source] crate::supervisor::SupervisorError),
}

/// Runs the box; returns its exit status.
pub fn run(init: &Init) -> u8 {
    let outcome = match init.environment_fd {
        None => Err(first_run(monotonic())),
        Some(fd) => second_run(fd, init.began.unwrap_or_else(monotonic)),
    };
    let status = match outcome {
        Ok(ending) => {
            termination::write(&ending, None);
            report::end(|| say_why(&ending));
            ending.status
        }
        Err(error) => {
            report::last_words("init", &report::chain(&error));
            exit::INTERNAL
        }
    };
    crate::kernel::power_off();
    status
}

/// The whole reason, where it has several lines, and then the last line: the reason in one, and the exit status.
fn say_why(ending: &Ending) {
    let mut lines = ending.reason.lines();
    let first = lines.next().unwrap_or_default();
    if lines.next().is_some() {
        report::last_words("boot", ending.reason.strip_prefix("boot: ").unwrap_or(&ending.reason));
    }
    let first = first.trim_end_matches(':');
    report::last_words("exit", &format!("{first} (exit status {})", ending.status));
}

/// CLOCK_MONOTONIC, which both runs share.
fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or_default())
}

/// Executes this binary again without any environment: /proc/1/environ shows what execve was given, for ever.
fn first_run(began: u64) -> InitError {
    let environment: Environment = std::env::vars_os().collect();
    let bytes = config::environment::encode(&environment);
    match keep(&bytes) {
        Err(error) => InitError::HandOver(error),
        Ok(file) => {
            let args: [OsString; 5] = [
                "init".into(),
                "--environment-fd".into(),
                file.as_raw_fd().to_string().into(),
                "--began".into(),
                began.to_string().into(),
            ];
            InitError::HandOver(
                Command::new("/proc/self/exe").arg0("innkeeper").args(args).env_clear().exec(),
            )
        }
    }
}

/// A file in memory that has no name and survives the exec.
fn keep(bytes: &[u8]) -> std::io::Result<std::fs::File> {
    let fd = rustix::fs::memfd_create("environment", rustix::fs::MemfdFlags::empty())?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

fn second_run(fd: i32, began: u64) -> Result<Ending, InitError> {
    // Before the secrets are in memory: from now on nobody without CAP_SYS_PTRACE reads /proc/1/{mem,environ,fd}.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(InitError::Dumpable)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|error| InitError::Core(error.into()))?;
    let environment = take(fd)?;
    termination::open();
    become_reaper()?;
    if client::ask(&Request::Progress).is_ok() {
        let reason = "a box runs here already (its control socket answers); enter it with: innkeeper attach";
        return Ok(Ending { status: exit::USAGE, reason: reason.to_owned() });
    }
    let identity = identity();
    crate::audit::identify(&identity.id);
    // Side by side with the configuration: the lockdown waits for both.
    let surroundings = Surroundings::look().map_err(InitError::Look)?;
    let sources = Sources { env: environment, ..Sources::default() };
    let config = match config::load(&sources) {
        Ok(config) => config,
        Err(problems) => return Ok(refused(&problems)),
    };
    report::begin(match config.log.format {
        config::LogFormat::Text => report::Format::Text,
        config::LogFormat::Json => report::Format::Json,
    });
    let accounts = match Accounts::find() {
        Ok(accounts) => accounts,
        Err(error) => return Ok(unfit_image(&error)),
    };
    if config.notices.are_sent() && accounts.notify.is_none() {
        return Ok(unfit_image(&crate::account::AccountError::Missing(crate::account::NOTIFY)));
    }
    let supervisor = Supervisor::new(config.session.stop_timeout).map_err(InitError::Supervisor)?;
    let board = Arc::new(Board::new(identity));
    let headless = config.session.mode == config::Mode::Headless;
    board.session(|session| session.headless = headless);
    let uids = accounts.uids();
    let terminal = sources.env.text("TERM").map(str::to_owned);
    let innkeeper = Arc::new(Innkeeper::new(
        config,
        sources,
        accounts,
        surroundings,
        Arc::clone(&board),
        supervisor.spawner(),
        began,
    ));
    // Headless, standard output is the run's.
    let console = (std::io::stdin().is_terminal() && !headless)
        .then(|| attach_console(&supervisor.spawner(), terminal));
    start_boot(&innkeeper, supervisor.spawner());
    let conduct: Arc<dyn Conduct> = Arc::<Innkeeper>::clone(&innkeeper);
    let ending = supervisor.run(&conduct);
    board.update(|report| {
        if report.phase != Phase::Failed {
            report.phase = Phase::Stopping;
        }
    });
    end_everything(&uids);
    termination::write(&ending, Some(&board.report(None)));
    boot::undo::undo(&innkeeper);
    if console.is_some() {
        restore_console();
    }
    Ok(ending)
}

/// Orphans come to us also where we are not pid 1: Fly Machines, `docker run --init`, shared pid namespaces.
fn become_reaper() -> Result<(), InitError> {
    if std::process::id() == 1 {
        return Ok(());
    }
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(InitError::Subreaper)
}

/// Reads what the first run left, and closes it.
fn take(fd: i32) -> Result<Environment, InitError> {
    let mut bytes = Zeroizing::new(Vec::new());
    // Opened anew by its name in /proc: a number alone can't be owned without unsafe code.
    let file = std::fs::File::open(format!("/proc/self/fd/{fd}")).map_err(InitError::TakeOver)?;
    let limit = u64::try_from(config::environment::MAX_BYTES).unwrap_or(u64::MAX);
    file.take(limit).read_to_end(&mut bytes).map_err(InitError::TakeOver)?;
    nix::unistd::close(fd).map_err(|error| InitError::TakeOver(error.into()))?;
    Ok(config::environment::decode(&bytes)?)
}

fn refused(problems: &Problems) -> Ending {
    Ending { status: problems.exit_code(), reason: format!("boot: config: {problems}") }
}

fn unfit_image(error: &crate::account::AccountError) -> Ending {
    let reason = format!(
        "boot: config: {}\nnext: build the image from innkeeper's Dockerfile, which makes these users",
        report::chain(error)
    );
    Ending { status: exit::CONFIG, reason }
}

fn identity() -> BoxIdentity {
    let mut random = [0_u8; 8];
    // Never blocks in a running system; an id of zeros would still be an id.
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).ok();
    let id = report::hex(&random);
    let name = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    BoxIdentity { id, name, image_digest: None, policy_sha256: String::new() }
}

fn start_boot(innkeeper: &Arc<Innkeeper>, spawner: Spawner) {
    let innkeeper = Arc::clone(innkeeper);
    let last = spawner.clone();
    let run = move || {
        if let Err(failure) = boot::run(&innkeeper) {
            innkeeper.board().update(|report| report.phase = Phase::Failed);
            spawner.finish(failure.ending());
        }
    };
    let started = std::thread::Builder::new().name("boot".into()).spawn(run);
    if let Err(error) = started {
        last.finish(Ending { status: exit::INTERNAL, reason: format!("cannot start the boot: {error}") });
    }
}

/// `docker run -it`: the terminal shows the boot and then the session. Our own lines would tear its screen.
fn attach_console(spawner: &Spawner, terminal: Option<String>) {
    report::quiet(true);
    let mut launch = Launch::own("attach", None).args(["--console"]);
    launch.env = vec![("TERM".to_owned(), terminal.unwrap_or_else(|| "xterm-256color".to_owned()))];
    (launch.stdin, launch.stdout, launch.stderr) = (Stream::Inherit, Stream::Inherit, Stream::Inherit);
    let spawner = spawner.clone();
    // The supervisor is not running yet: asking it here would wait for ourselves.
    let watching = crate::supervisor::thread("console", move || {
        let end = spawner.spawn(launch).map(|mut child| child.wait());
        report::quiet(false);
        match end {
            Ok(exit) => {
                report::event("console", &format!("no longer attached ({exit}); the box keeps running"));
            }
            Err(error) => report::event("console", &report::chain(&error)),
        }
    });
    if let Err(error) = watching {
        report::quiet(false);
        report::event("console", &format!("cannot attach: {error}"));
    }
}

/// The relay may have been killed with the box: give the operator a sane screen back.
fn restore_console() {
    let mut out = std::io::stdout().lock();
    drop(out.write_all(crate::session::terminal::RESET.as_bytes()));
    drop(out.flush());
}

/// In a pid namespace of ours the kernel ends everybody with us; elsewhere it is up to us.
fn end_everything(uids: &[u32]) {
    if std::process::id() != 1 {
        crate::supervisor::everybody::kill_all(uids, nix::sys::signal::Signal::SIGKILL);
    }
}

/// How long ago the first run began.
#[must_use]
pub fn since(began: u64) -> Duration {
    Duration::from_nanos(monotonic().saturating_sub(began))
}
