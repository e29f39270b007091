//! Frames on the socketpair between PID 1 and the worker: blocking, bounded, usable from any thread.
//!
//! Both sides use it until the worker's runtime takes over. Bytes only: what a frame means is `protocol.rs`'s.

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

use super::protocol::{FromWorker, MAX_FROM_WORKER, MAX_TO_WORKER, Setup, ToWorker};

/// The most sockets that come with a setup: UDP and TCP, IPv4 and IPv6, and room for a few more addresses.
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

/// PID 1's first frame, with the listening sockets in the order of [`Setup::sockets`].
pub fn send_setup(
    stream: &UnixStream,
    setup: &Setup,
    sockets: &[BorrowedFd<'_>],
) -> Result<(), ChannelError> {
    let expected = setup.sockets.len();
    if sockets.len() != expected || expected > MAX_SOCKETS {
        return Err(ChannelError::Sockets { got: sockets.len(), expected });
    }
    let bytes = encode(&ToWorker::Setup(setup.clone()), MAX_TO_WORKER)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(ChannelError::Sockets { got: sockets.len(), expected });
    }
    let sent = sendmsg(stream, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)
        .map_err(|e| ChannelError::Write(e.into()))?;
    let mut stream = stream;
    stream.write_all(bytes.get(sent..).unwrap_or_default()).map_err(ChannelError::Write)
}

/// The worker's side of [`send_setup`]: waits for the first frame.
pub fn receive_setup(stream: &UnixStream) -> Result<(Setup, Vec<OwnedFd>), ChannelError> {
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
    match decode(&read_body(&mut stream, header, MAX_TO_WORKER)?)? {
        ToWorker::Setup(setup) if setup.sockets.len() == sockets.len() => Ok((setup, sockets)),
        ToWorker::Setup(setup) => {
            Err(ChannelError::Sockets { got: sockets.len(), expected: setup.sockets.len() })
        }
        ToWorker::Policy(_) | ToWorker::Admitted(_) => Err(ChannelError::NotSetup),
    }
}

/// PID 1 to the worker. Give the stream a write time-out: a worker that doesn't read is a dead worker.
pub fn send(mut stream: &UnixStream, frame: &ToWorker) -> Result<(), ChannelError> {
    stream.write_all(&encode(frame, MAX_TO_WORKER)?).map_err(ChannelError::Write)
}

/// The next frame from the worker; none when the worker has gone.
pub fn receive(mut stream: &UnixStream) -> Result<Option<FromWorker>, ChannelError> {
    let mut header = [0; HEADER];
    match stream.read_exact(&mut header) {
        Ok(()) => Ok(Some(decode(&read_body(&mut stream, header, MAX_FROM_WORKER)?)?)),
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
    use super::super::protocol::{Admitted, Policy, SocketKind};
    use super::*;
    use std::os::fd::AsFd;

    fn setup() -> Setup {
        let policy = Policy { generation: 1, rules: vec!["ok.test".into(); 20_000] };
        Setup { sockets: vec![SocketKind::Udp], upstreams: vec![], policy, refresh_s: 300, ipv6: false }
    }

    #[test]
    fn setup_arrives_with_its_sockets() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let sent = socket.local_addr().unwrap();
        let sender = std::thread::spawn(move || send_setup(&ours, &setup(), &[socket.as_fd()]));
        let (received, sockets) = receive_setup(&theirs).unwrap();
        sender.join().unwrap().unwrap();
        assert_eq!(received, setup());
        let socket = std::net::UdpSocket::from(sockets.into_iter().next().unwrap());
        assert_eq!(socket.local_addr().unwrap(), sent);
        assert!(rustix::io::fcntl_getfd(&socket).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn sockets_and_announcement_must_agree() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let refused = send_setup(&ours, &setup(), &[]);
        assert!(matches!(refused, Err(ChannelError::Sockets { got: 0, expected: 1 })), "{refused:?}");
    }

    #[test]
    fn a_large_announcement_is_refused_before_it_is_read() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&ours).write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(matches!(receive(&theirs), Err(ChannelError::TooLarge { .. })));
    }

    #[test]
    fn every_cut_of_a_frame_is_an_end_or_an_error() {
        let bytes = encode(&FromWorker::Serving, MAX_FROM_WORKER).unwrap();
        for cut in 0..bytes.len() {
            let (ours, theirs) = UnixStream::pair().unwrap();
            (&ours).write_all(&bytes[..cut]).unwrap();
            drop(ours);
            assert!(!matches!(receive(&theirs), Ok(Some(_))), "cut {cut}");
        }
    }

    #[test]
    fn the_first_frame_must_be_the_setup() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&ours, &ToWorker::Admitted(Admitted { id: 1, addresses: vec![] })).unwrap();
        assert!(matches!(receive_setup(&theirs), Err(ChannelError::NotSetup)));
    }
}
