//! What PID 1's workers (`dns`, `gate`, `watch`) have in common: how one begins, how it is kept, and how it tells of
//! clients that it refused.
//!
//! A worker is a process of an own uid without capabilities and files; its sockets, and all that it must know, come over its
//! standard input from PID 1, and it ends when that closes. Its side begins here; PID 1's is [`keeper`]. What a worker is
//! for, what its frames mean and what PID 1 makes of them is the business of its own room.

pub mod denials;
pub mod keeper;
pub mod link;
pub mod meter;
pub mod policy;
pub mod protocol;
pub mod pulse;
pub mod sockets;
pub mod unreported;
pub mod who;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::channel::{self, ChannelError};
use protocol::Order;

/// Why a worker could not begin. PID 1 starts another one.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    #[error("{worker}: can't protect the process's memory (prctl PR_SET_DUMPABLE)")]
    Dumpable { worker: &'static str, source: io::Error },
    #[error("{worker}: can't take over the channel to PID 1 from standard input")]
    Channel { worker: &'static str, source: io::Error },
    #[error("{worker}: can't start the runtime")]
    Runtime { worker: &'static str, source: io::Error },
}

/// The channel to PID 1, for a process whose privileges were dropped.
pub fn take_over(worker: &'static str) -> Result<UnixStream, BeginError> {
    // The worker's uid has no other process, but a bug elsewhere should not make its memory readable either.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| BeginError::Dumpable { worker, source: error.into() })?;
    let stdin = io::stdin().as_fd().try_clone_to_owned();
    stdin.map(UnixStream::from).map_err(|source| BeginError::Channel { worker, source })
}

/// Waits for the first frame, and takes the sockets that it announces. From then on the channel does not block.
pub fn receive_setup<O: Order>(channel: &UnixStream) -> Result<(O::Setup, Vec<OwnedFd>), ChannelError> {
    let (first, sockets) = channel::receive_with_sockets::<O>(channel, O::LIMIT)?;
    let (setup, expected) = first.into_setup().ok_or(ChannelError::NotSetup)?;
    if sockets.len() != expected {
        return Err(ChannelError::Sockets { got: sockets.len(), expected });
    }
    channel.set_nonblocking(true).map_err(ChannelError::Read)?;
    Ok((setup, sockets))
}

/// What a worker with a runtime begins with.
#[derive(Debug)]
pub struct Begun<S> {
    pub setup: S,
    pub sockets: Vec<OwnedFd>,
    pub reader: OwnedReadHalf,
    pub writer: OwnedWriteHalf,
}

/// Runs `work`, in this thread, with what comes over the channel first.
pub fn serve<O: Order, E>(
    channel: UnixStream,
    work: impl AsyncFnOnce(Begun<O::Setup>) -> Result<(), E>,
) -> Result<(), E>
where
    E: From<BeginError> + From<ChannelError>,
{
    let worker = O::WORKER;
    let (setup, sockets) = receive_setup::<O>(&channel)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| BeginError::Runtime { worker, source })?;
    runtime.block_on(async {
        let channel = tokio::net::UnixStream::from_std(channel);
        let channel = channel.map_err(|source| BeginError::Channel { worker, source })?;
        let (reader, writer) = channel.into_split();
        work(Begun { setup, sockets, reader, writer }).await
    })
}

/// As many descriptors as the host lets the worker have, within reason; how many that are.
pub fn raise_descriptors(most: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(most, |hard| hard.min(most));
    let has = limit.current.unwrap_or(most);
    if has < wanted && setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit }).is_ok() {
        wanted
    } else {
        has
    }
}

/// What a thread that panicked has left is still the truth: nothing is changed by halves.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
