//! Listening sockets that PID 1 holds for a worker. They outlive it: what arrives while no worker lives waits in their
//! queues for the next one.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct ListenError {
    pub address: SocketAddr,
    pub source: io::Error,
}

/// Sockets, and what each of them is to its worker.
#[derive(Debug)]
pub struct Held<K> {
    kinds: Vec<K>,
    fds: Vec<OwnedFd>,
}

impl<K> Default for Held<K> {
    fn default() -> Self {
        Self { kinds: Vec::new(), fds: Vec::new() }
    }
}

impl<K: Clone> Held<K> {
    pub fn push(&mut self, kind: K, socket: impl Into<OwnedFd>) {
        self.kinds.push(kind);
        self.fds.push(socket.into());
    }

    /// What each is, in the order of [`Held::fds`].
    #[must_use]
    pub fn kinds(&self) -> Vec<K> {
        self.kinds.clone()
    }

    #[must_use]
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.fds.iter().map(AsFd::as_fd).collect()
    }
}

/// Whether the host has the address on which somebody tried to listen; not every one has ::1.
pub fn if_there(listened: Result<(), ListenError>) -> Result<bool, ListenError> {
    match listened {
        Ok(()) => Ok(true),
        Err(ListenError { source, .. })
            if matches!(source.raw_os_error(), Some(nix::libc::EADDRNOTAVAIL | nix::libc::EAFNOSUPPORT)) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
