//! Requests and answers over one netfilter netlink socket: batches, dumps, sequence numbers, lost answers.
//!
//! nfnetlink handles a request inside `sendmsg(2)`: when it returns, every answer is in the receive queue, or is
//! made while the queue is read (dumps). So nothing here ever waits.

use std::io;

use netlink_packet_core::{
    DoneBuffer, ErrorBuffer, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, getsockopt, setsockopt, sockopt};

use super::NftablesError;
use super::attribute::Entry;

/// `NFNL_SUBSYS_NFTABLES`, the subsystem that a batch is for.
const SUBSYSTEM: u16 = 10;
/// The kernel fills at most 32 KiB of a dump's datagram (`NLMSG_GOODSIZE` and `max_recvmsg_len` in af_netlink.c).
const RECEIVE: usize = 64 * 1024;
/// What the kernel may hold for us until it is read; it caps this at `net.core.rmem_max`.
const RECEIVE_QUEUE: i32 = 1024 * 1024;
/// A whole reload must go into one `sendmsg(2)`. The kernel takes what the send buffer could hold, which ends at
/// `net.core.wmem_max` (208 KiB by default) unless forced; forcing it allocates nothing.
const SEND_QUEUE: usize = 32 * 1024 * 1024;
/// How often a dump is started again, or a batch whose answers were lost is sent again. Rule sets change by our own
/// hand and seldom by others', so a second time is rare and a ninth is a fault.
const ATTEMPTS: u32 = 8;

/// The socket and what belongs to it.
#[derive(Debug)]
pub(in crate::firewall) struct Channel {
    socket: Socket,
    sequence: u32,
    received: Vec<u8>,
    room: usize,
}

/// Messages that the kernel applies all or not at all.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    first: u32,
    next: u32,
    last_header: usize,
}

impl Batch {
    /// Empties the batch, keeping its memory, and opens the transaction.
    pub(super) fn begin(&mut self, channel: &Channel) {
        self.bytes.clear();
        self.first = channel.sequence;
        self.next = channel.sequence;
        self.control(ControlMessage::BatchBegin);
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn push(&mut self, message: NfTablesMessage, flags: u16) {
        self.push_in(NetfilterProtoFamily::Inet, message, flags);
    }

    /// A message about a table of this family.
    pub(super) fn push_in(&mut self, family: NetfilterProtoFamily, message: NfTablesMessage, flags: u16) {
        let header = NetfilterHeader::new(family, 0, 0);
        self.last_header = self.bytes.len();
        self.append(NetfilterMessage::new(header, message), flags);
    }

    /// A message that the caller encodes itself, from the header on, with the sequence number it is given.
    pub(super) fn raw(&mut self, encode: impl FnOnce(&mut Vec<u8>, u32)) {
        self.last_header = self.bytes.len();
        encode(&mut self.bytes, self.next);
        self.next = self.next.wrapping_add(1);
    }

    /// Asks for an answer to the last message, which comes only when all others succeeded, and closes.
    fn end(&mut self) {
        // `nlmsg_flags` lie 6 bytes into a message (netlink(7)).
        let flags = self.last_header.saturating_add(6)..self.last_header.saturating_add(8);
        if let Some(slot) = self.bytes.get_mut(flags)
            && let Ok(flags) = <[u8; 2]>::try_from(&*slot)
        {
            slot.copy_from_slice(&(u16::from_ne_bytes(flags) | NLM_F_ACK).to_ne_bytes());
        }
        self.control(ControlMessage::BatchEnd);
    }

    fn control(&mut self, message: ControlMessage) {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM);
        self.append(NetfilterMessage::new(header, message), 0);
    }

    fn append(&mut self, message: NetfilterMessage, flags: u16) {
        append(&mut self.bytes, message, flags | NLM_F_REQUEST, self.next);
        self.next = self.next.wrapping_add(1);
    }

    /// The place of a message in the batch, counting from 0; the opening one has none.
    fn place(&self, sequence: u32) -> Option<usize> {
        usize::try_from(sequence.wrapping_sub(self.first).checked_sub(1)?).ok()
    }
}

fn append(bytes: &mut Vec<u8>, message: NetfilterMessage, flags: u16, sequence: u32) {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len(), 0);
    if let Some(slot) = bytes.get_mut(start..) {
        message.serialize(slot);
    }
}

/// Which message of a batch the kernel refused, if it can be told, and why.
#[derive(Debug)]
pub(in crate::firewall) struct Refusal {
    pub(in crate::firewall) place: Option<usize>,
    pub(in crate::firewall) source: io::Error,
}

/// What came back for one batch or dump.
#[derive(Debug)]
enum Outcome {
    Done,
    Refused(Refusal),
    /// Answers were lost or a dump was disturbed: ask again.
    Again,
}

/// What one look into the receive queue found.
#[derive(Debug, PartialEq, Eq)]
enum Received {
    Datagram,
    Nothing,
    /// The queue overflowed (`ENOBUFS`).
    Lost,
}

impl Channel {
    pub(in crate::firewall) fn open() -> Result<Self, NftablesError> {
        let socket = Socket::new(NETLINK_NETFILTER).map_err(|source| {
            match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT) => NftablesError::NoNfTables { source },
                _ => NftablesError::Open { source },
            }
        })?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(|source| NftablesError::Open { source })?;
        // Answers need the header of the refused message only, not a copy of all of it.
        socket.set_cap_ack(true).map_err(|source| NftablesError::Open { source })?;
        socket.set_rx_buf_sz(RECEIVE_QUEUE).map_err(|source| NftablesError::Open { source })?;
        // Refused in a user namespace of the host's; then a large reload takes several batches.
        setsockopt(&socket, sockopt::SndBufForce, &SEND_QUEUE)
            .or_else(|_| setsockopt(&socket, sockopt::SndBuf, &SEND_QUEUE))
            .map_err(|error| NftablesError::Open { source: error.into() })?;
        let room = getsockopt(&socket, sockopt::SndBuf)
            .map_err(|error| NftablesError::Open { source: error.into() })?;
        Ok(Self { socket, sequence: 1, received: Vec::with_capacity(RECEIVE), room })
    }

    /// How long a batch may get (`netlink_sendmsg` in af_netlink.c), its end included.
    pub(super) fn room(&self) -> usize {
        self.room.saturating_sub(1024)
    }

    /// Applies a batch. It is sent again when its answers got lost, so it must be fit to be applied twice.
    pub(super) fn commit(&mut self, batch: &mut Batch) -> Result<Result<(), Refusal>, NftablesError> {
        batch.end();
        self.sequence = batch.next;
        for _ in 0..ATTEMPTS {
            self.send(&batch.bytes)?;
            match self.answer(batch)? {
                Outcome::Done => return Ok(Ok(())),
                Outcome::Refused(refusal) => return Ok(Err(refusal)),
                Outcome::Again => {}
            }
        }
        Err(NftablesError::Unanswered)
    }

    fn answer(&mut self, batch: &Batch) -> Result<Outcome, NftablesError> {
        // The closing message has the last number; the one before it is the one that asked for an answer.
        let last = batch.next.wrapping_sub(2);
        let mut refused: Option<Refusal> = None;
        let mut done = false;
        loop {
            match self.receive()? {
                Received::Datagram => {}
                Received::Nothing => break,
                Received::Lost => return self.drain(),
            }
            for message in messages(&self.received) {
                let message = message?;
                let sequence = message.sequence_number();
                let Some(code) = error_code(&message)? else { continue };
                if sequence.wrapping_sub(batch.first) >= batch.next.wrapping_sub(batch.first) {
                    continue;
                }
                match code {
                    0 => done |= sequence == last,
                    code => {
                        let place = batch.place(sequence);
                        refused.get_or_insert(Refusal { place, source: os_error(code) });
                    }
                }
            }
            // Errors come before the answer to the last message: had there been one, it would be here already.
            if done && refused.is_none() {
                return Ok(Outcome::Done);
            }
        }
        Ok(refused.map_or(Outcome::Again, Outcome::Refused))
    }

    /// Everything of one kind, as the kernel has it at one moment.
    pub(super) fn dump(&mut self, request: &NfTablesMessage) -> Result<Vec<Entry>, NftablesError> {
        self.dump_in(NetfilterProtoFamily::Inet, request)
    }

    /// The same for tables of another family.
    pub(super) fn dump_in(
        &mut self,
        family: NetfilterProtoFamily,
        request: &NfTablesMessage,
    ) -> Result<Vec<Entry>, NftablesError> {
        for _ in 0..ATTEMPTS {
            let mut found = Vec::new();
            match self.ask(family, request.clone(), NLM_F_DUMP, &mut found)? {
                Outcome::Done => return Ok(found),
                Outcome::Refused(refusal) => match refusal.source.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EBUSY | Errno::EINTR | Errno::EAGAIN) => {}
                    _ => return Err(NftablesError::Read { source: refusal.source }),
                },
                Outcome::Again => {}
            }
        }
        Err(NftablesError::Unanswered)
    }

    /// One question with a single answer.
    pub(super) fn probe(
        &mut self,
        request: NfTablesMessage,
    ) -> Result<Result<Vec<Entry>, Refusal>, NftablesError> {
        let mut found = Vec::new();
        match self.ask(NetfilterProtoFamily::Inet, request, NLM_F_ACK, &mut found)? {
            Outcome::Done => Ok(Ok(found)),
            Outcome::Refused(refusal) => Ok(Err(refusal)),
            Outcome::Again => Err(NftablesError::Unanswered),
        }
    }

    fn ask(
        &mut self,
        family: NetfilterProtoFamily,
        request: NfTablesMessage,
        flags: u16,
        found: &mut Vec<Entry>,
    ) -> Result<Outcome, NftablesError> {
        let sequence = self.number();
        let mut bytes = Vec::new();
        let header = NetfilterHeader::new(family, 0, 0);
        append(&mut bytes, NetfilterMessage::new(header, request), flags | NLM_F_REQUEST, sequence);
        self.hear(&bytes, sequence, found)
    }

    fn number(&mut self) -> u32 {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        sequence
    }

    /// Everything of one kind, in a subsystem that has no messages of its own here: `kind` is the subsystem and the
    /// command, `payload` what follows the netlink header.
    pub(in crate::firewall) fn dump_raw(
        &mut self,
        kind: u16,
        payload: &[u8],
    ) -> Result<Result<Vec<Entry>, Refusal>, NftablesError> {
        for _ in 0..ATTEMPTS {
            let (sequence, mut found, mut bytes) = (self.number(), Vec::new(), Vec::new());
            raw(&mut bytes, kind, NLM_F_REQUEST | NLM_F_ACK | NLM_F_DUMP, sequence, payload);
            match self.hear(&bytes, sequence, &mut found)? {
                Outcome::Done => return Ok(Ok(found)),
                Outcome::Refused(refusal) => return Ok(Err(refusal)),
                Outcome::Again => {}
            }
        }
        Err(NftablesError::Unanswered)
    }

    /// One request after the other, each with an answer of its own; the first that is refused is told, with its place.
    pub(in crate::firewall) fn each_raw(
        &mut self,
        requests: &[(u16, Vec<u8>)],
    ) -> Result<Result<(), Refusal>, NftablesError> {
        for (place, (kind, payload)) in requests.iter().enumerate() {
            let mut answered = false;
            for _ in 0..ATTEMPTS {
                let (sequence, mut bytes) = (self.number(), Vec::new());
                raw(&mut bytes, *kind, NLM_F_REQUEST | NLM_F_ACK, sequence, payload);
                match self.hear(&bytes, sequence, &mut Vec::new())? {
                    Outcome::Done => answered = true,
                    Outcome::Refused(refusal) => {
                        return Ok(Err(Refusal { place: Some(place), source: refusal.source }));
                    }
                    Outcome::Again => continue,
                }
                break;
            }
            if !answered {
                return Err(NftablesError::Unanswered);
            }
        }
        Ok(Ok(()))
    }

    /// Sends a batch that must not succeed, and says everything that was refused.
    pub(super) fn trial(&mut self, batch: &mut Batch) -> Result<Vec<Refusal>, NftablesError> {
        batch.end();
        self.sequence = batch.next;
        self.send(&batch.bytes)?;
        let mut refused = Vec::new();
        loop {
            match self.receive()? {
                Received::Datagram => {}
                Received::Nothing => return Ok(refused),
                Received::Lost => {
                    self.drain()?;
                    return Err(NftablesError::Unanswered);
                }
            }
            for message in messages(&self.received) {
                let message = message?;
                let place = batch.place(message.sequence_number());
                if let Some(code) = error_code(&message)?.filter(|code| *code != 0) {
                    refused.push(Refusal { place, source: os_error(code) });
                }
            }
        }
    }

    fn hear(
        &mut self,
        bytes: &[u8],
        sequence: u32,
        found: &mut Vec<Entry>,
    ) -> Result<Outcome, NftablesError> {
        self.send(bytes)?;
        let mut disturbed = false;
        loop {
            match self.receive()? {
                Received::Datagram => {}
                Received::Nothing => return Ok(Outcome::Again),
                Received::Lost => return self.drain(),
            }
            for message in messages(&self.received) {
                let message = message?;
                if message.sequence_number() != sequence {
                    continue;
                }
                disturbed |= message.flags() & NLM_F_DUMP_INTR != 0;
                match error_code(&message)? {
                    Some(0) if disturbed => return Ok(Outcome::Again),
                    Some(0) => return Ok(Outcome::Done),
                    Some(code) => {
                        return Ok(Outcome::Refused(Refusal { place: None, source: os_error(code) }));
                    }
                    None => found.push(Entry::of(message.payload())),
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NftablesError> {
        loop {
            match self.socket.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(source) if source.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(NftablesError::Send { source }),
            }
        }
    }

    fn receive(&mut self) -> Result<Received, NftablesError> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        loop {
            self.received.clear();
            let source = match self.socket.recv(&mut self.received, flags.bits()) {
                Ok(length) if length <= self.received.len() => return Ok(Received::Datagram),
                Ok(_) => io::Error::other("a datagram is larger than the buffer"),
                Err(error) => error,
            };
            match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EAGAIN) => return Ok(Received::Nothing),
                Some(Errno::ENOBUFS) => return Ok(Received::Lost),
                Some(Errno::EINTR) => {}
                _ => return Err(NftablesError::Receive { source }),
            }
        }
    }

    /// Throws away what is left of answers that were lost in part.
    fn drain(&mut self) -> Result<Outcome, NftablesError> {
        while self.receive()? != Received::Nothing {}
        Ok(Outcome::Again)
    }
}

/// One message that is encoded already from the header on.
fn raw(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len().saturating_add(16)).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
}

fn os_error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code.saturating_neg())
}

/// Zero for success, a negative errno for a failure, `None` for a message that carries content.
fn error_code(message: &NetlinkBuffer<&[u8]>) -> Result<Option<i32>, NftablesError> {
    match message.message_type() {
        NLMSG_ERROR => {
            let answer = ErrorBuffer::new_checked(message.payload()).map_err(NftablesError::decode)?;
            Ok(Some(answer.code().map_or(0, i32::from)))
        }
        NLMSG_DONE if message.payload().is_empty() => Ok(Some(0)),
        NLMSG_DONE => {
            Ok(Some(DoneBuffer::new_checked(message.payload()).map_err(NftablesError::decode)?.code()))
        }
        _ => Ok(None),
    }
}

/// What the messages of one datagram of a dump say.
pub(super) fn entries(datagram: &[u8]) -> Result<Vec<Entry>, NftablesError> {
    let mut found = Vec::new();
    for message in messages(datagram) {
        let message = message?;
        if error_code(&message)?.is_none() {
            found.push(Entry::of(message.payload()));
        }
    }
    Ok(found)
}

/// The messages of one datagram.
fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<NetlinkBuffer<&[u8]>, NftablesError>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = match NetlinkBuffer::new_checked(rest) {
            Ok(message) => message,
            Err(error) => {
                rest = &[];
                return Some(Err(NftablesError::decode(error)));
            }
        };
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
        rest = length.checked_next_multiple_of(4).and_then(|end| rest.get(end..)).unwrap_or_default();
        Some(Ok(message))
    })
}
