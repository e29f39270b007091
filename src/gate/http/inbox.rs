//! Octets that were read from one end and not used yet.

use std::io::{self, ErrorKind};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;

/// One read of a head.
const HEAD_ROOM: usize = 4 * 1024;
/// One read of a body.
const BODY_ROOM: usize = 32 * 1024;

#[derive(Debug)]
pub(super) struct Inbox {
    octets: Vec<u8>,
    /// Everything before was used.
    from: usize,
}

impl Inbox {
    pub(super) const fn new(octets: Vec<u8>) -> Self {
        Self { octets, from: 0 }
    }

    pub(super) fn unread(&self) -> &[u8] {
        self.octets.get(self.from..).unwrap_or_default()
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.from = (self.from + count).min(self.octets.len());
        if self.from == self.octets.len() {
            self.octets.clear();
            self.from = 0;
        }
    }

    /// Gives the memory back, if nothing is in it.
    pub(super) fn release(&mut self) {
        if self.unread().is_empty() {
            *self = Self::new(Vec::new());
        }
    }

    pub(super) fn into_unread(mut self) -> Vec<u8> {
        self.make_room(0);
        self.octets
    }

    /// Reads some octets of a head; none is the end.
    pub(super) async fn fill<R: AsyncRead + Unpin>(&mut self, reader: &mut R) -> io::Result<usize> {
        self.make_room(HEAD_ROOM);
        reader.read_buf(&mut self.octets).await
    }

    /// Reads some octets of a body.
    pub(super) async fn fill_body<R: AsyncRead + Unpin>(&mut self, reader: &mut R) -> io::Result<usize> {
        self.make_room(BODY_ROOM);
        reader.read_buf(&mut self.octets).await
    }

    /// Waits for octets without holding room for them.
    pub(super) async fn receive(&mut self, stream: &TcpStream) -> io::Result<usize> {
        loop {
            stream.readable().await?;
            self.make_room(HEAD_ROOM);
            match stream.try_read_buf(&mut self.octets) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.release(),
                read => return read,
            }
        }
    }

    /// What was used makes room first, so that a long line of requests moves every octet once a read at most.
    fn make_room(&mut self, room: usize) {
        if self.from > 0 {
            self.octets.drain(..self.from);
            self.from = 0;
        }
        if self.octets.capacity() - self.octets.len() < room {
            self.octets.reserve(room);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Inbox;

    #[test]
    fn what_was_used_is_gone() {
        let mut inbox = Inbox::new(b"abcdef".to_vec());
        inbox.consume(2);
        assert_eq!(inbox.unread(), b"cdef");
        inbox.make_room(10);
        assert_eq!((inbox.unread(), inbox.from), (b"cdef".as_slice(), 0));
        inbox.release();
        assert_eq!(inbox.unread(), b"cdef");
        inbox.consume(9);
        inbox.release();
        assert_eq!((inbox.unread(), inbox.octets.capacity()), (b"".as_slice(), 0));
    }
}
