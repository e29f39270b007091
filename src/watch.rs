//! The worker `innkeeper watch`: reads what the firewall logs, refused packets and connections that were let out, and
//! tells PID 1 in numbers.
//!
//! It has no capabilities and no files: its two sockets come over its standard input, and it ends when that closes. Of
//! packets it believes nothing but what the kernel says beside them; what a refusal means is worded by PID 1.

pub mod expected;
pub mod keeper;
pub mod nflog;
pub mod packet;
pub mod protocol;
pub mod queue;
pub mod reporter;
pub mod tally;
pub mod wording;

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};

use crate::channel::{self, ChannelError};
use crate::socket_table::{Owner, Protocol, SocketTables};
use crate::time_share::TimeShare;
use crate::worker::protocol::Order as _;
use crate::worker::{self, BeginError};
use nflog::Logged;
use packet::Packet;
use protocol::{FromWorker, MAX_FROM_WORKER, MAX_TO_WORKER, Target, ToWorker};
use tally::{Begun, Sequence, Tally};

/// Packets that are read from one socket before the other has its turn.
const TURN: usize = 256;
/// What got lost is told at most this often.
const LOSS_INTERVAL: Duration = Duration::from_secs(1);
/// Looking a socket up reads tables of up to a megabyte: so much at once, and this share of the time.
const MOST_LOOKING: Duration = Duration::from_millis(200);
const SHARE_LOOKING: f64 = 0.1;

/// Why the worker ended. PID 1 starts another one.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Begin(#[from] BeginError),
    #[error("watch: the channel to PID 1 failed")]
    Frame(#[from] ChannelError),
    #[error("watch: can't wait for packets")]
    Wait(#[source] io::Error),
    #[error("watch: can't read packets")]
    Receive(#[source] io::Error),
}

/// The command `innkeeper watch`, after privileges were dropped. Returns when PID 1 closes the channel.
pub fn run() -> Result<(), WorkerError> {
    serve(worker::take_over(ToWorker::WORKER)?)
}

/// Reads what comes over the sockets until PID 1 closes `channel`.
pub fn serve(channel: UnixStream) -> Result<(), WorkerError> {
    let (setup, sockets) = worker::receive_setup::<ToWorker>(&channel)?;
    let sockets: [OwnedFd; 2] = sockets
        .try_into()
        .map_err(|got: Vec<OwnedFd>| ChannelError::Sockets { got: got.len(), expected: 2 })?;
    let now = Instant::now();
    let [refused, used] = sockets;
    let mut worker = Worker {
        refused: Source::new(refused, setup.refused, now),
        used: Source::new(used, setup.used, now),
        finder: Finder {
            tables: SocketTables::new("/proc/net"),
            share: TimeShare::new(MOST_LOOKING, SHARE_LOOKING, now),
        },
        inbox: Inbox::default(),
        outbox: Outbox::new(channel),
        asked: false,
        buffer: vec![0; queue::DATAGRAM],
        told_loss: now,
    };
    worker.outbox.put(&FromWorker::Serving)?;
    worker.run()
}

/// One of the two sockets, and what was read from it.
struct Source {
    socket: OwnedFd,
    tally: Tally,
    sequence: Sequence,
    lost: u64,
    begun: Begun,
}

impl Source {
    fn new(socket: OwnedFd, next: u32, now: Instant) -> Self {
        let (tally, sequence) = (Tally::new(now), Sequence::new(next));
        Self { socket, tally, sequence, lost: 0, begun: Begun::default() }
    }

    /// Reads what waits, up to a turn's length.
    fn read(&mut self, mut finder: Option<&mut Finder>, buffer: &mut [u8]) -> Result<(), WorkerError> {
        for _ in 0..TURN {
            let received = recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT);
            let length = match received.map_err(|error| Errno::from_raw(error.raw_os_error())) {
                Ok((_, length)) => length,
                Err(Errno::EAGAIN) => return Ok(()),
                // The queue was full: how many packets found no room, the gap in their numbers tells.
                Err(Errno::ENOBUFS | Errno::EINTR) => continue,
                Err(error) => return Err(WorkerError::Receive(error.into())),
            };
            for logged in nflog::packets(buffer.get(..length).unwrap_or_default()) {
                self.count(logged, finder.as_deref_mut());
            }
        }
        Ok(())
    }

    fn count(&mut self, logged: Logged<'_>, finder: Option<&mut Finder>) {
        if let Some(number) = logged.sequence {
            self.lost = self.lost.saturating_add(self.sequence.lost(number).into());
        }
        let packet = packet::parse(logged.payload);
        let target = Target {
            address: packet.destination,
            protocol: packet.protocol,
            port: packet.destination_port,
            icmp: packet.icmp,
        };
        // Of refused packets each counts, as with the kernel; of those that begin a connection the first.
        let again = finder.is_none() && self.again(&packet);
        let finder = finder.filter(|_| !self.tally.knows(target, logged.uid));
        let owner = finder.and_then(|finder| finder.owner(&packet));
        // The kernel's word about the packet is worth more than the table's about a port.
        let owner = owner.filter(|owner| logged.uid.is_none_or(|uid| uid == owner.uid));
        let uid = logged.uid.or(owner.map(|owner| owner.uid));
        self.tally.add(target, uid, owner.map(|owner| owner.inode), milliseconds(), again);
    }

    fn again(&mut self, packet: &Packet) -> bool {
        let address = |ip: Option<IpAddr>, port: Option<u16>| Some(SocketAddr::new(ip?, port?));
        let from = address(packet.source, packet.source_port);
        let to = address(packet.destination, packet.destination_port);
        let (Some(from), Some(to), Some(sequence)) = (from, to, packet.sequence) else { return false };
        self.begun.again(from, to, sequence)
    }
}

/// Finds the sockets that packets came from, while they are there.
struct Finder {
    tables: SocketTables,
    share: TimeShare,
}

impl Finder {
    fn owner(&mut self, packet: &Packet) -> Option<Owner> {
        use packet::protocol::{ICMP, ICMP6, TCP, UDP, UDP_LITE};
        let protocol = match packet.protocol? {
            TCP => Protocol::Tcp,
            UDP => Protocol::Udp,
            UDP_LITE => Protocol::UdpLite,
            ICMP | ICMP6 => Protocol::Icmp,
            _ => return None,
        };
        let local = SocketAddr::new(packet.source?, packet.source_port.or(packet.echo)?);
        let remote = SocketAddr::new(packet.destination?, packet.destination_port.unwrap_or(0));
        let began = Instant::now();
        if !self.share.may(began) {
            return None;
        }
        let owner = self.tables.sender(local, remote, protocol);
        self.share.spent(began.elapsed());
        owner
    }
}

/// Frames on their way into the channel, which never makes the reading wait: while PID 1 is slow, things are counted.
struct Outbox {
    channel: UnixStream,
    bytes: Vec<u8>,
    written: usize,
}

impl Outbox {
    fn new(channel: UnixStream) -> Self {
        Self { channel, bytes: Vec::new(), written: 0 }
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Only into an empty outbox.
    fn put(&mut self, frame: &FromWorker) -> Result<(), WorkerError> {
        self.bytes = channel::encode(frame, MAX_FROM_WORKER)?;
        self.written = 0;
        Ok(())
    }

    /// Writes what the channel takes now.
    fn write(&mut self) -> Result<(), WorkerError> {
        while let Some(rest) = self.bytes.get(self.written..).filter(|rest| !rest.is_empty()) {
            match self.channel.write(rest) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ChannelError::Write(error).into()),
            }
        }
        self.bytes.clear();
        Ok(())
    }
}

/// What of PID 1's frames has come.
#[derive(Default)]
struct Inbox {
    bytes: Vec<u8>,
}

impl Inbox {
    /// The next whole frame.
    fn next(&mut self) -> Result<Option<ToWorker>, ChannelError> {
        let Some((header, body)) = self.bytes.split_first_chunk::<4>() else { return Ok(None) };
        let length = channel::announced_length(*header, MAX_TO_WORKER)?;
        let Some(body) = body.get(..length) else { return Ok(None) };
        let frame = channel::decode(body)?;
        self.bytes.drain(..4 + length);
        Ok(Some(frame))
    }
}

struct Worker {
    refused: Source,
    used: Source,
    finder: Finder,
    inbox: Inbox,
    outbox: Outbox,
    /// PID 1 wants to know whether this worker does its work.
    asked: bool,
    buffer: Vec<u8>,
    told_loss: Instant,
}

impl Worker {
    fn run(&mut self) -> Result<(), WorkerError> {
        loop {
            self.tell()?;
            if self.wait()? {
                return Ok(());
            }
            self.refused.read(Some(&mut self.finder), &mut self.buffer)?;
            // Of a connection the uid is enough, which the kernel says.
            self.used.read(None, &mut self.buffer)?;
        }
    }

    /// Sends what may be sent now.
    fn tell(&mut self) -> Result<(), WorkerError> {
        loop {
            self.outbox.write()?;
            if !self.outbox.is_empty() {
                return Ok(());
            }
            match self.next_frame() {
                Some(frame) => self.outbox.put(&frame)?,
                None => return Ok(()),
            }
        }
    }

    fn next_frame(&mut self) -> Option<FromWorker> {
        if std::mem::take(&mut self.asked) {
            return Some(FromWorker::Pong);
        }
        let now = Instant::now();
        let flow = self.used.tally.take(now).map(FromWorker::Used);
        let flow = flow.or_else(|| self.refused.tally.take(now).map(FromWorker::Refused));
        flow.or_else(|| {
            if !self.has_lost() || now.saturating_duration_since(self.told_loss) < LOSS_INTERVAL {
                return None;
            }
            self.told_loss = now;
            let (refused, used) = (self.refused.lost, self.used.lost);
            (self.refused.lost, self.used.lost) = (0, 0);
            Some(FromWorker::Lost { refused, used })
        })
    }

    fn has_lost(&self) -> bool {
        self.refused.lost > 0 || self.used.lost > 0
    }

    /// Waits for packets, for room in the channel, or for the next frame's time. Whether PID 1 has gone.
    fn wait(&mut self) -> Result<bool, WorkerError> {
        let waits = !self.refused.tally.is_empty() || !self.used.tally.is_empty() || self.has_lost();
        let timeout = waits.then(|| Timespec::try_from(tally::INTERVAL).ok()).flatten();
        let channel = if self.outbox.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut fds = [
            PollFd::new(&self.outbox.channel, channel),
            PollFd::new(&self.refused.socket, PollFlags::IN),
            PollFd::new(&self.used.socket, PollFlags::IN),
        ];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(false),
            Err(error) => return Err(WorkerError::Wait(error.into())),
        }
        let [channel, ..] = fds;
        if !channel.revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            return Ok(false);
        }
        self.listen()
    }

    /// Takes what PID 1 says. Whether it has gone.
    fn listen(&mut self) -> Result<bool, WorkerError> {
        let mut chunk = [0; 256];
        match self.outbox.channel.read(&mut chunk) {
            Ok(0) => return Ok(true),
            Ok(length) => self.inbox.bytes.extend(chunk.iter().take(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(ChannelError::Read(error).into()),
        }
        while let Some(frame) = self.inbox.next()? {
            match frame {
                ToWorker::Ping => self.asked = true,
                // A second setup would bring sockets that nobody takes.
                ToWorker::Setup(_) => return Err(ChannelError::NotSetup.into()),
            }
        }
        Ok(false)
    }
}

fn milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Setup;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    /// The worker in a thread, with sockets on which nothing comes.
    fn begin() -> (UnixStream, UnixDatagram, std::thread::JoinHandle<Result<(), WorkerError>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (quiet, other) = UnixDatagram::pair().unwrap();
        let setup = ToWorker::Setup(Setup::default());
        let sockets = [other.as_fd(), other.as_fd()];
        channel::send_with_sockets(&ours, &setup, &sockets, MAX_TO_WORKER).unwrap();
        let worker = std::thread::spawn(move || serve(theirs));
        assert_eq!(channel::receive(&ours, MAX_FROM_WORKER).unwrap(), Some(FromWorker::Serving));
        (ours, quiet, worker)
    }

    #[test]
    fn pings_are_answered_however_they_arrive() {
        let (mut ours, _quiet, worker) = begin();
        let ping = channel::encode(&ToWorker::Ping, MAX_TO_WORKER).unwrap();
        let (first, rest) = ping.split_at(3);
        ours.write_all(first).unwrap();
        ours.write_all(rest).unwrap();
        assert_eq!(channel::receive(&ours, MAX_FROM_WORKER).unwrap(), Some(FromWorker::Pong));
        // As many as come at once are one question.
        ours.write_all(&ping.repeat(5)).unwrap();
        assert_eq!(channel::receive(&ours, MAX_FROM_WORKER).unwrap(), Some(FromWorker::Pong));
        drop(ours);
        worker.join().unwrap().unwrap();
    }

    #[test]
    fn what_is_no_ping_ends_the_worker() {
        for odd in [channel::encode(&ToWorker::Setup(Setup::default()), 999).unwrap(), vec![0xff; 8]] {
            let (mut ours, _quiet, worker) = begin();
            ours.write_all(&odd).unwrap();
            assert!(matches!(worker.join().unwrap(), Err(WorkerError::Frame(_))));
        }
    }
}
