//! PID 1's side of a worker's life: starts it with its sockets, hears it, ends it when its channel breaks, and starts it
//! again. What it says means something in its own room only ([`Work`]).

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::lock;
use super::meter::Bound;
use super::protocol::{Frame, News, Order};
use super::pulse::{self, Beat, Pulse};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::channel::{self, ChannelError};
use crate::report::{chain, event};
use crate::status::Board;
use crate::supervisor::backoff::{Backoff, pause};
use crate::supervisor::run_as::Identity;
use crate::supervisor::{Child, Launch, Spawner, Stream, SupervisorError};

#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    #[error("cannot make the worker's channel")]
    Channel(#[source] std::io::Error),
    #[error("cannot start the worker's thread")]
    Thread(#[source] std::io::Error),
    #[error("cannot start the worker")]
    Spawn(#[source] SupervisorError),
    #[error("cannot hand the sockets to the worker")]
    Setup(#[source] ChannelError),
}

/// The first frame of a worker's life, with its sockets.
#[derive(Debug)]
pub struct First<'a, O> {
    pub frame: O,
    pub sockets: Vec<BorrowedFd<'a>>,
}

impl<O: Order> First<'_, O> {
    pub fn send(&self, channel: &UnixStream) -> Result<(), ChannelError> {
        channel::send_with_sockets(channel, &self.frame, &self.sockets, O::LIMIT)
    }
}

/// What is a worker's own, at PID 1.
pub trait Work: std::fmt::Debug + Send + Sync + Sized + 'static {
    type Order: Order;
    type News: News;
    /// What who started the worker waits for.
    type Ready: Send;
    /// What the log says behind the worker's end.
    const AFTER: &'static str = "; starting it again";

    /// The whole truth as it is now: a new life knows nothing of the one before.
    fn first(&self) -> First<'_, Self::Order>;

    fn hear(&self, news: Self::News, keeper: &Keeper<Self>, ready: &SyncSender<Self::Ready>);

    /// A life is over.
    fn ended(&self, _keeper: &Keeper<Self>) {}
}

/// With what a worker is started, and where it shows.
#[derive(Debug, Clone)]
pub struct Means {
    pub identity: Identity,
    pub spawner: Spawner,
    pub board: Arc<Board>,
}

/// A worker, kept alive.
#[derive(Debug)]
pub struct Keeper<W> {
    shared: Arc<Shared<W>>,
}

impl<W> Clone for Keeper<W> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

#[derive(Debug)]
struct Shared<W> {
    work: W,
    means: Means,
    /// The living worker's channel; none while it is away.
    link: Mutex<Option<UnixStream>>,
    serving: Mutex<Option<Instant>>,
}

/// PID 1 and the worker are on one machine: a worker that does not take its setup in this time is broken, and one that does
/// not end a frame which it began.
const FRAME_LIMIT: Duration = Duration::from_secs(5);
/// A worker that dies is back within a second; one that keeps dying is given up to half a minute.
const BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(100), Duration::from_secs(30), Duration::from_secs(10));
/// What is ready is looked for once; more than a few are told to nobody.
const READY: usize = 4;

/// A worker and its channel.
type Life = (Child, UnixStream);

impl<W: Work> Keeper<W> {
    /// Starts the worker, and keeps it from then on.
    pub fn start(work: W, means: Means) -> Result<(Self, Receiver<W::Ready>), KeeperError> {
        let keeper = Self::new(work, means);
        let first = keeper.begin()?;
        let (ready, receiver) = mpsc::sync_channel(READY);
        keeper.run(Some(first), ready)?;
        Ok((keeper, receiver))
    }

    /// The same for a worker without which the box can do: one that can't be started now is tried again.
    pub fn start_some_time(work: W, means: Means) -> Result<Self, KeeperError> {
        let keeper = Self::new(work, means);
        let first = keeper.begin().inspect_err(|error| event(Self::NAME, &chain(error))).ok();
        // Nobody waits for it.
        let (ready, _) = mpsc::sync_channel(READY);
        keeper.run(first, ready)?;
        Ok(keeper)
    }

    fn new(work: W, means: Means) -> Self {
        let (link, serving) = (Mutex::default(), Mutex::default());
        Self { shared: Arc::new(Shared { work, means, link, serving }) }
    }

    fn run(&self, first: Option<Life>, ready: SyncSender<W::Ready>) -> Result<(), KeeperError> {
        let keeper = self.clone();
        // The sender ends with the thread: who waits for a worker of a box that stops need not wait longer.
        let keep = move || keeper.keep(first, &ready);
        crate::supervisor::thread(format!("{}-keeper", Self::NAME), keep).map_err(KeeperError::Thread)
    }

    pub(super) const NAME: &'static str = W::Order::WORKER;

    #[must_use]
    pub fn work(&self) -> &W {
        &self.shared.work
    }

    #[must_use]
    pub fn board(&self) -> &Board {
        &self.shared.means.board
    }

    /// The worker has taken its sockets over and does its work.
    pub fn serves(&self) {
        *lock(&self.shared.serving) = Some(Instant::now());
    }

    /// Whether it does so now; `away` says what it means if not.
    pub fn verify(&self, away: &str) -> Result<String, String> {
        match *lock(&self.shared.serving) {
            Some(since) => Ok(format!("worker up for {} s", since.elapsed().as_secs())),
            None => Err(format!("the worker is away; {away}")),
        }
    }

    /// Tells the worker; one that is away learns it when it comes back.
    pub fn send(&self, order: &W::Order) {
        let mut link = lock(&self.shared.link);
        if let Some(stream) = link.as_mut()
            && let Err(error) = channel::send(stream, order, W::Order::LIMIT)
        {
            // It can't be told what is true now, so it must not go on: a new one begins with the whole truth.
            event(Self::NAME, &chain(&error));
            drop(stream.shutdown(std::net::Shutdown::Both));
            *link = None;
        }
    }

    fn begin(&self) -> Result<Life, KeeperError> {
        let Means { identity, spawner, board } = &self.shared.means;
        let (ours, theirs) = UnixStream::pair().map_err(KeeperError::Channel)?;
        let mut launch = Launch::own(Self::NAME, Some(identity.clone()));
        launch.stdin = Stream::Fd(OwnedFd::from(theirs));
        launch.stderr = Stream::events(Self::NAME).map_err(KeeperError::Channel)?;
        let child = spawner.spawn(launch).map_err(KeeperError::Spawn)?;
        ours.set_write_timeout(Some(FRAME_LIMIT)).map_err(KeeperError::Channel)?;
        ours.set_read_timeout(Some(FRAME_LIMIT)).map_err(KeeperError::Channel)?;
        // Held until the link is there: what is to be told meanwhile waits, and is sent after the setup.
        let mut link = lock(&self.shared.link);
        self.work().first().send(&ours).map_err(KeeperError::Setup)?;
        *link = Some(ours.try_clone().map_err(KeeperError::Channel)?);
        drop(link);
        let pid = child.pid();
        board.worker(Self::NAME, |worker| worker.pid = Some(pid));
        Ok((child, ours))
    }

    fn keep(&self, mut first: Option<Life>, ready: &SyncSender<W::Ready>) {
        let mut backoff = BACKOFF;
        loop {
            let started = Instant::now();
            match first.take().map_or_else(|| self.begin(), Ok) {
                Ok(life) => self.live(life, ready),
                Err(KeeperError::Spawn(SupervisorError::Stopping)) => return,
                Err(error) => event(Self::NAME, &chain(&error)),
            }
            self.board().worker(Self::NAME, |worker| {
                worker.pid = None;
                worker.restarts += 1;
            });
            pause(backoff.after(started.elapsed()));
        }
    }

    /// One life of the worker.
    fn live(&self, (mut child, stream): Life, ready: &SyncSender<W::Ready>) {
        let mut bound = Bound::new(Instant::now());
        let end = self.converse(&stream, ready, &mut bound).unwrap_or_else(|error| {
            event(Self::NAME, &chain(&error));
            End::Closed
        });
        if bound.unsaid() > 0 {
            say_dropped::<W>(bound.unsaid());
        }
        *lock(&self.shared.link) = None;
        *lock(&self.shared.serving) = None;
        self.work().ended(self);
        // Its channel is closed or broken: nobody hears it any more, and two must not read the same sockets.
        child.signal(nix::sys::signal::Signal::SIGKILL);
        let exit = child.wait_for(FRAME_LIMIT);
        let how = exit.map_or_else(|| "did not end".to_owned(), |exit| exit.to_string());
        let what = match end {
            End::Closed => "the worker ended".to_owned(),
            End::Hung => {
                format!("the worker has answered nothing for {} s and was ended", pulse::LIMIT.as_secs())
            }
        };
        event(Self::NAME, &format!("{what} ({how}){}", W::AFTER));
    }

    /// Hears one life; returns when its channel closes, it says something impossible, or nothing any more.
    fn converse(
        &self,
        stream: &UnixStream,
        ready: &SyncSender<W::Ready>,
        bound: &mut Bound,
    ) -> Result<End, ChannelError> {
        let mut pulse = Pulse::new(Instant::now());
        loop {
            if !self.wait(stream, &mut pulse)? {
                return Ok(End::Hung);
            }
            let Some(news) = channel::receive::<W::News>(stream, W::News::LIMIT)? else {
                return Ok(End::Closed);
            };
            let now = Instant::now();
            if !news.is_metered() || bound.hears(now) {
                self.work().hear(news, self, ready);
            }
            if let Some(count) = bound.to_say(now) {
                say_dropped::<W>(count);
            }
        }
    }

    /// Waits for the worker's next word, and asks for one meanwhile. False if it hangs.
    fn wait(&self, stream: &UnixStream, pulse: &mut Pulse) -> Result<bool, ChannelError> {
        let mut time = pulse.left(Instant::now());
        loop {
            if has_news(stream, time)? {
                pulse.heard();
                return Ok(true);
            }
            time = match pulse.beat(Instant::now()) {
                Beat::Wait(time) => time,
                Beat::Ping => {
                    self.send(&W::Order::ping());
                    Duration::ZERO
                }
                Beat::Hangs => return Ok(false),
            };
        }
    }
}

fn say_dropped<W: Work>(count: u64) {
    event(Keeper::<W>::NAME, &format!("{count} messages of the worker were not heard: they came too fast"));
}

/// How a life ends.
enum End {
    Closed,
    Hung,
}

/// Whether there is something to read, its end included, within this time.
fn has_news(stream: &UnixStream, time: Duration) -> Result<bool, ChannelError> {
    let time =
        Timespec::try_from(time).map_err(|_| ChannelError::Read(std::io::ErrorKind::InvalidInput.into()))?;
    match poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&time)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(ChannelError::Read(error.into())),
    }
}
