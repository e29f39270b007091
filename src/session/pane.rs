//! `innkeeper pane`, in tmux as the agent: shows the terminal of Claude Code, whose master PID 1 hands it.
//!
//! It holds nothing that the agent may not have, and nothing depends on it: when it or the whole tmux server ends, Claude
//! lives on, and the next pane shows it again.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, QueueSelector, Winsize, tcflush, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH};

use crate::channel::{self, ChannelError};
use crate::control::client;
use crate::control::protocol::{PaneNews, PaneOrder, Request};
use crate::supervisor::backoff::pause;

#[derive(Debug, thiserror::Error)]
pub enum PaneError {
    #[error("cannot join the box")]
    Join(#[from] client::ClientError),
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
    #[error("the box gave an order that this pane does not understand")]
    Order(#[from] ChannelError),
    #[error("the box does not answer any more")]
    Channel(#[source] std::io::Error),
    #[error("cannot use this terminal")]
    Terminal(#[source] std::io::Error),
    #[error("cannot become a shell")]
    Shell(#[source] std::io::Error),
}

/// An order is a word or a line.
pub(super) const MAX_ORDER: usize = 8192;
/// Keys that wait for Claude; no more are taken meanwhile.
const KEYS: usize = 64 << 10;
/// What Claude wrote last is shown: so much of it, and so long is waited for more.
const LAST_OUTPUT: usize = 256 << 10;
const LAST_MOMENT: Duration = Duration::from_millis(50);
/// Between two changes of size; of two that come together Claude would see the last only.
const BETWEEN_SIZES: Duration = Duration::from_millis(150);

struct Pane {
    orders: UnixStream,
    /// Claude's terminal.
    master: Option<OwnedFd>,
    /// Keys on their way to it.
    keys: Vec<u8>,
    changed: UnixStream,
    told: UnixStream,
    /// The size is to be put right at this time, so that Claude draws anew.
    again: Option<Instant>,
}

/// Runs until the terminal or PID 1 is gone.
pub fn run() -> Result<(), PaneError> {
    let (changed, told) = (hear(&[SIGWINCH])?, hear(&[SIGTERM, SIGHUP])?);
    // The keyboard's signals are nobody's while no Claude is shown; a handler is not inherited across exec.
    let _ignored = hear(&[SIGINT, SIGQUIT, SIGTSTP])?;
    let mut orders = client::connect()?;
    client::send(&mut orders, &Request::Pane)?;
    orders.set_read_timeout(None).map_err(PaneError::Channel)?;
    let mut pane = Pane { orders, master: None, keys: Vec::new(), changed, told, again: None };
    let end = pane.live();
    pane.take_back();
    end
}

fn hear(signals: &[i32]) -> Result<UnixStream, PaneError> {
    let (reader, writer) = UnixStream::pair().map_err(PaneError::Signals)?;
    reader.set_nonblocking(true).map_err(PaneError::Signals)?;
    for signal in signals {
        let writer = writer.try_clone().map_err(PaneError::Signals)?;
        signal_hook::low_level::pipe::register(*signal, writer).map_err(PaneError::Signals)?;
    }
    Ok(reader)
}

/// What there is to do.
#[expect(clippy::struct_excessive_bools, reason = "one for each descriptor that is waited for")]
#[derive(Debug, Clone, Copy, Default)]
struct Ready {
    order: bool,
    told: bool,
    changed: bool,
    keys: bool,
    output: bool,
    room: bool,
}

impl Pane {
    fn live(&mut self) -> Result<(), PaneError> {
        loop {
            let ready = self.wait()?;
            if ready.told {
                return Ok(());
            }
            if ready.changed {
                drain(&mut self.changed);
                self.fit();
            }
            if self.again.is_some_and(|at| at <= Instant::now()) {
                self.fit();
            }
            if ready.output {
                self.show();
            }
            if ready.keys && !self.take_keys() {
                // The terminal is gone, and with it who looked at it.
                return Ok(());
            }
            if ready.room || ready.keys {
                self.give_keys();
            }
            if ready.order && !self.obey()? {
                return Ok(());
            }
        }
    }

    fn wait(&self) -> Result<Ready, PaneError> {
        let stdin = rustix::stdio::stdin();
        let mut fds = vec![
            PollFd::new(&self.orders, PollFlags::IN),
            PollFd::new(&self.told, PollFlags::IN),
            PollFd::new(&self.changed, PollFlags::IN),
        ];
        if let Some(master) = &self.master {
            let room = if self.keys.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            fds.push(PollFd::new(master, PollFlags::IN | room));
            if self.keys.len() < KEYS {
                fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
            }
        }
        let left = self.again.map(|at| at.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left + Duration::from_millis(1)).ok());
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(PaneError::Channel(error.into())),
        }
        let seen = |at: usize| fds.get(at).map_or(PollFlags::empty(), PollFd::revents);
        let any = |at: usize| !seen(at).is_empty();
        Ok(Ready {
            order: any(0),
            told: any(1),
            changed: any(2),
            output: seen(3).intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR),
            room: seen(3).contains(PollFlags::OUT),
            keys: any(4),
        })
    }

    /// Whether to go on.
    fn obey(&mut self) -> Result<bool, PaneError> {
        let (order, descriptors) = match channel::receive_with_sockets(&self.orders, MAX_ORDER) {
            Ok(received) => received,
            // PID 1 is gone or has replaced us.
            Err(ChannelError::Closed) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        match order {
            PaneOrder::Join => {
                let size = tcgetwinsize(rustix::stdio::stdin()).unwrap_or(super::pty::SIZE);
                self.tell(&PaneNews::Joined { rows: size.ws_row, columns: size.ws_col });
            }
            PaneOrder::Show { again } => {
                self.master = descriptors.into_iter().next();
                self.keys.clear();
                raw()?;
                self.fit();
                if again {
                    self.draw_again();
                }
            }
            PaneOrder::Ended => {
                self.show_the_rest();
                self.tell(&PaneNews::Drained);
            }
            PaneOrder::Say { text } => {
                self.take_back();
                say(&text);
            }
            PaneOrder::Shell => {
                self.take_back();
                return Err(become_shell());
            }
        }
        Ok(true)
    }

    fn tell(&self, news: &PaneNews) {
        let mut line = serde_json::to_vec(news).unwrap_or_default();
        line.push(b'\n');
        // If PID 1 is gone, the next read says so.
        drop((&self.orders).write_all(&line));
    }

    /// Claude's terminal is as large as ours.
    fn fit(&mut self) {
        self.again = None;
        if let (Some(master), Ok(size)) = (&self.master, tcgetwinsize(rustix::stdio::stdin())) {
            // Claude may be gone meanwhile.
            rustix::termios::tcsetwinsize(master, size).ok();
        }
    }

    /// One line less for a moment: a change is what makes a program draw everything.
    fn draw_again(&mut self) {
        let (Some(master), Ok(size)) = (&self.master, tcgetwinsize(rustix::stdio::stdin())) else { return };
        let less = Winsize { ws_row: size.ws_row.saturating_sub(1).max(1), ..size };
        rustix::termios::tcsetwinsize(master, less).ok();
        self.again = Some(Instant::now() + BETWEEN_SIZES);
    }

    /// Shows what Claude wrote, and waits for tmux meanwhile: Claude then has to wait too. Says how much there was.
    fn show(&mut self) -> usize {
        let Some(master) = &self.master else { return 0 };
        let mut buffer = [0; 16 << 10];
        match rustix::io::read(master, &mut buffer) {
            Ok(count @ 1..) => {
                write_out(buffer.get(..count).unwrap_or_default());
                count
            }
            Err(Errno::AGAIN | Errno::INTR) => 0,
            // EIO: nobody has the slave open any more. The modes stay until PID 1 says what is next.
            Ok(0) | Err(_) => {
                self.master = None;
                self.keys.clear();
                0
            }
        }
    }

    fn show_the_rest(&mut self) {
        let mut shown = 0;
        while shown < LAST_OUTPUT {
            let Some(master) = &self.master else { break };
            let limit = Timespec::try_from(LAST_MOMENT).ok();
            if !matches!(poll(&mut [PollFd::new(master, PollFlags::IN)], limit.as_ref()), Ok(1..)) {
                break;
            }
            shown += self.show();
        }
        self.master = None;
        self.keys.clear();
    }

    /// False when the terminal is gone.
    fn take_keys(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.keys.extend_from_slice(buffer.get(..count).unwrap_or_default());
                true
            }
            Err(error) => matches!(error, Errno::AGAIN | Errno::INTR),
        }
    }

    fn give_keys(&mut self) {
        let Some(master) = &self.master else { return };
        if let Ok(count) = rustix::io::write(master, &self.keys) {
            self.keys.drain(..count.min(self.keys.len()));
        }
    }

    /// What a program leaves behind: alternate screen, hidden cursor, mouse reports, bracketed paste; and our raw mode.
    fn take_back(&mut self) {
        self.master = None;
        self.keys.clear();
        let stdin = rustix::stdio::stdin();
        if let Ok(mut mode) = tcgetattr(stdin) {
            use rustix::termios::{InputModes, LocalModes, OutputModes};
            mode.input_modes |= InputModes::ICRNL;
            mode.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
            mode.local_modes |= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN;
            tcsetattr(stdin, OptionalActions::Now, &mode).ok();
        }
        write_out(super::terminal::RESET.as_bytes());
    }
}

fn raw() -> Result<(), PaneError> {
    let stdin = rustix::stdio::stdin();
    let failed = |error: Errno| PaneError::Terminal(error.into());
    let mut mode = tcgetattr(stdin).map_err(failed)?;
    mode.make_raw();
    tcsetattr(stdin, OptionalActions::Now, &mode).map_err(failed)?;
    // What was typed before it was there was not meant for it.
    tcflush(stdin, QueueSelector::IFlush).map_err(failed)
}

fn drain(stream: &mut UnixStream) {
    let mut buffer = [0; 64];
    while stream.read(&mut buffer).is_ok_and(|read| read > 0) {}
}

fn say(text: &str) {
    write_out(format!("\r\n{}\r\n", crate::report::inert(text)).as_bytes());
}

/// All of it, however long tmux takes; nobody is looking when the terminal is gone.
fn write_out(mut bytes: &[u8]) {
    let out = rustix::stdio::stdout();
    while !bytes.is_empty() {
        match rustix::io::write(out, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => pause(Duration::from_millis(5)),
            Err(_) => return,
        }
    }
}

fn become_shell() -> PaneError {
    say("innkeeper: Claude Code has ended; this is a shell (session.on_exit = \"shell\").");
    PaneError::Shell(Command::new("/bin/bash").args(["--login", "-i"]).exec())
}
