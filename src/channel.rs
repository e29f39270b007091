//! Frames on the socketpair between PID 1 and a worker, and the descriptors that go with the first of them: blocking,
//! bounded, usable from any thread.
//!
//! A frame is a length (u32, little endian) and so many octets of JSON. What a frame means is in the `protocol.rs` of
//! the worker's room; this knows bytes and limits only.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The most descriptors that come with a frame: UDP and TCP, IPv4 and IPv6, and room for a few more addresses.
pub const MAX_SOCKETS: usize = 16;
const HEADER: usize = 4;

/// Why a frame could not be sent or read. None of them can be continued from: the border between frames is lost.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("can't write a frame to the channel")]
    Write(#[source] io::Error),
    #[error("can't read a frame from the channel")]
    Read(#[source] io::Error),
    #[error("a frame of {length} octets is larger than the {limit} allowed")]
    TooLarge { length: usize, limit: usize },
    #[error("a frame is not understood")]
    Json(#[source] serde_json::Error),
    #[error("the channel closed before the setup came")]
    Closed,
    #[error("the first frame is not the setup")]
    NotSetup,
    #[error("{got} sockets came, {expected} were announced")]
    Sockets { got: usize, expected: usize },
}

/// A frame as it goes over the channel: its length and its JSON.
pub fn encode<T: Serialize>(frame: &T, limit: usize) -> Result<Vec<u8>, ChannelError> {
    let mut bytes = vec![0; HEADER];
    serde_json::to_writer(&mut bytes, frame).map_err(ChannelError::Json)?;
    let length = bytes.len() - HEADER;
    let too_large = ChannelError::TooLarge { length, limit };
    let Ok(prefix) = u32::try_from(length) else { return Err(too_large) };
    if length > limit {
        return Err(too_large);
    }
    for (place, octet) in bytes.iter_mut().zip(prefix.to_le_bytes()) {
        *place = octet;
    }
    Ok(bytes)
}

/// The length that a frame's header announces.
pub fn announced_length(header: [u8; HEADER], limit: usize) -> Result<usize, ChannelError> {
    let length = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
    if length > limit { Err(ChannelError::TooLarge { length, limit }) } else { Ok(length) }
}

/// Understands a frame's JSON.
pub fn decode<T: DeserializeOwned>(json: &[u8]) -> Result<T, ChannelError> {
    serde_json::from_slice(json).map_err(ChannelError::Json)
}

/// PID 1's first frame to a worker, with the descriptors that it is about.
pub fn send_with_sockets<T: Serialize>(
    stream: &UnixStream,
    frame: &T,
    sockets: &[BorrowedFd<'_>],
    limit: usize,
) -> Result<(), ChannelError> {
    if sockets.len() > MAX_SOCKETS {
        return Err(ChannelError::Sockets { got: sockets.len(), expected: MAX_SOCKETS });
    }
    let bytes = encode(frame, limit)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(ChannelError::Sockets { got: sockets.len(), expected: MAX_SOCKETS });
    }
    let sent = sendmsg(stream, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)
        .map_err(|e| ChannelError::Write(e.into()))?;
    let mut stream = stream;
    stream.write_all(bytes.get(sent..).unwrap_or_default()).map_err(ChannelError::Write)
}

/// The worker's side of [`send_with_sockets`]: waits for the first frame. How many descriptors belong to it is for
/// the caller to compare.
pub fn receive_with_sockets<T: DeserializeOwned>(
    stream: &UnixStream,
    limit: usize,
) -> Result<(T, Vec<OwnedFd>), ChannelError> {
    let mut header = [0; HEADER];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(stream, &mut [IoSliceMut::new(&mut header)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
            .map_err(|e| ChannelError::Read(e.into()))?;
    if received.bytes == 0 {
        return Err(ChannelError::Closed);
    }
    let mut sockets = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            sockets.extend(descriptors);
        }
    }
    let mut stream = stream;
    stream.read_exact(header.get_mut(received.bytes..).unwrap_or_default()).map_err(ChannelError::Read)?;
    Ok((decode(&read_body(&mut stream, header, limit)?)?, sockets))
}

/// Sends a frame. Give the stream a write time-out: who doesn't read is dead.
pub fn send<T: Serialize>(mut stream: &UnixStream, frame: &T, limit: usize) -> Result<(), ChannelError> {
    stream.write_all(&encode(frame, limit)?).map_err(ChannelError::Write)
}

/// The next frame; none when the other end has gone.
pub fn receive<T: DeserializeOwned>(
    mut stream: &UnixStream,
    limit: usize,
) -> Result<Option<T>, ChannelError> {
    let mut header = [0; HEADER];
    match stream.read_exact(&mut header) {
        Ok(()) => Ok(Some(decode(&read_body(&mut stream, header, limit)?)?)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(ChannelError::Read(error)),
    }
}

/// Grows with what really arrives, so that an announced length alone costs nothing.
fn read_body(stream: &mut &UnixStream, header: [u8; HEADER], limit: usize) -> Result<Vec<u8>, ChannelError> {
    let length = announced_length(header, limit)?;
    let mut body = Vec::new();
    let bound = u64::try_from(length).unwrap_or(u64::MAX);
    stream.take(bound).read_to_end(&mut body).map_err(ChannelError::Read)?;
    if body.len() == length { Ok(body) } else { Err(ChannelError::Read(io::ErrorKind::UnexpectedEof.into())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    const LIMIT: usize = 1 << 20;

    #[test]
    fn a_frame_arrives_with_its_sockets() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let sent = socket.local_addr().unwrap();
        let frame = vec!["ok.test".to_owned(); 20_000];
        let expected = frame.clone();
        let sender = std::thread::spawn(move || send_with_sockets(&ours, &frame, &[socket.as_fd()], LIMIT));
        let (received, sockets): (Vec<String>, _) = receive_with_sockets(&theirs, LIMIT).unwrap();
        sender.join().unwrap().unwrap();
        assert_eq!(received, expected);
        let socket = std::net::UdpSocket::from(sockets.into_iter().next().unwrap());
        assert_eq!(socket.local_addr().unwrap(), sent);
        assert!(rustix::io::fcntl_getfd(&socket).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn more_sockets_than_a_frame_holds_are_an_error() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let sockets = vec![ours.as_fd(); MAX_SOCKETS + 1];
        let refused = send_with_sockets(&ours, &1, &sockets, LIMIT);
        assert!(matches!(refused, Err(ChannelError::Sockets { .. })), "{refused:?}");
    }

    #[test]
    fn a_large_announcement_is_refused_before_it_is_read() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&ours).write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(matches!(receive::<String>(&theirs, LIMIT), Err(ChannelError::TooLarge { .. })));
    }

    #[test]
    fn every_cut_of_a_frame_is_an_end_or_an_error() {
        let bytes = encode(&"serving", LIMIT).unwrap();
        for cut in 0..bytes.len() {
            let (ours, theirs) = UnixStream::pair().unwrap();
            (&ours).write_all(&bytes[..cut]).unwrap();
            drop(ours);
            assert!(!matches!(receive::<String>(&theirs, LIMIT), Ok(Some(_))), "cut {cut}");
        }
    }
}
