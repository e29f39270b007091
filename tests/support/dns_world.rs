//! A network namespace with only loopback, in it the real worker as the built binary, and the test as
//! PID 1 and as client.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_resolver::proto::rr::RecordType;
use hickory_resolver::proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use innkeeper::channel;
use innkeeper::dns::name_server::NameServer;
use innkeeper::dns::protocol::{
    Admitted, FromWorker, LastGood, Learned, MAX_FROM_WORKER, MAX_TO_WORKER, Setup, SocketKind, ToWorker,
};
use innkeeper::worker::policy::Policy;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

use crate::fake_upstream::{framed, name, read_framed};

pub(crate) const SERVER: &str = "127.0.0.53:53";
pub(crate) const UPSTREAM: &str = "203.0.113.53:53";
pub(crate) const SECOND: &str = "203.0.113.54:53";
/// Less than the shortest TTL, after which a name would be asked for again anyway.
const FORGETTING: Duration = Duration::from_secs(3);
/// Nothing here takes so long; it ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(20);

#[allow(clippy::print_stderr, reason = "a test that is left out says so")]
fn say_skipped() {
    eprintln!("SKIPPED: no right to unshare a network namespace");
}

/// Puts this thread, and what it starts, into a fresh network namespace. False where that isn't allowed.
pub(crate) fn enter_namespace() -> bool {
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI must be able to unshare a network namespace");
        say_skipped();
        return false;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (connection, netlink, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let up = rtnetlink::LinkUnspec::new_with_index(1).up().build();
        netlink.link().change(up).execute().await.unwrap();
        for (address, prefix) in [("203.0.113.53", 32), ("203.0.113.54", 32)] {
            netlink.address().add(1, address.parse().unwrap(), prefix).execute().await.unwrap();
        }
    });
    true
}

/// What PID 1 does with what was learned.
type Admission = Box<dyn FnMut(&Learned) -> Option<Vec<IpAddr>> + Send>;

#[derive(Default)]
struct Told {
    frames: Mutex<Vec<FromWorker>>,
    changed: Condvar,
}

/// PID 1, as far as the worker can see.
pub(crate) struct Warden {
    stream: UnixStream,
    told: Arc<Told>,
    admission: Arc<Mutex<Admission>>,
    looks: Arc<AtomicBool>,
    worker: Child,
    reaped: bool,
}

impl Warden {
    /// Proportional set size of the worker, in KiB.
    pub(crate) fn memory_kib(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.worker.id()
    }

    pub(crate) fn send(&self, frame: &ToWorker) {
        channel::send(&self.stream, frame, MAX_TO_WORKER).unwrap();
    }

    pub(crate) fn admit(&self, admission: impl FnMut(&Learned) -> Option<Vec<IpAddr>> + Send + 'static) {
        *self.admission.lock().unwrap() = Box::new(admission);
    }

    /// From now on the test says itself that PID 1 has looked who a refused client is.
    pub(crate) fn look_by_hand(&self) {
        self.looks.store(false, Ordering::SeqCst);
    }

    /// Asks until the name has other addresses.
    pub(crate) fn await_forgotten(&self, name: &str, old: &[IpAddr]) {
        let begin = std::time::Instant::now();
        while addresses(&ask(name, RecordType::A)) == old {
            assert!(begin.elapsed() < FORGETTING, "{name} still has its old addresses; pid {}", self.pid());
        }
    }

    /// Waits until the frames that came so far give `pick` what it wants.
    pub(crate) fn await_frames<T>(&self, what: &str, mut pick: impl FnMut(&[FromWorker]) -> Option<T>) -> T {
        let frames = self.told.frames.lock().unwrap();
        let mut found = None;
        let looking = |frames: &mut Vec<FromWorker>| {
            found = pick(frames);
            found.is_none()
        };
        let (frames, _) = self.told.changed.wait_timeout_while(frames, PATIENCE, looking).unwrap();
        found.unwrap_or_else(|| panic!("no frame: {what}; got {:?}", *frames))
    }

    /// The first frame, sent already or to come, of which `pick` makes something.
    pub(crate) fn await_frame<T>(&self, what: &str, mut pick: impl FnMut(&FromWorker) -> Option<T>) -> T {
        self.await_frames(what, |frames| frames.iter().find_map(&mut pick))
    }

    pub(crate) fn await_primed(&self, wanted: u64) {
        self.await_frame("primed", |frame| {
            matches!(frame, FromWorker::Primed { generation } if *generation == wanted).then_some(())
        });
    }

    pub(crate) fn frames(&self) -> Vec<FromWorker> {
        self.told.frames.lock().unwrap().clone()
    }

    pub(crate) fn learned(&self, wanted: &str) -> Vec<Learned> {
        let learned = |frame| match frame {
            FromWorker::Learned(learned) if learned.name.as_str() == wanted => Some(learned),
            _ => None,
        };
        self.frames().into_iter().filter_map(learned).collect()
    }

    pub(crate) fn kill(&mut self) {
        if !self.reaped {
            rustix::process::kill_process(self.process(), rustix::process::Signal::KILL).ok();
            self.reap();
        }
    }

    /// Closes the channel, as PID 1's death would, and waits for the worker to end; its exit status.
    pub(crate) fn abandon(self) -> Option<i32> {
        self.stream.shutdown(std::net::Shutdown::Both).unwrap();
        self.wait()
    }

    /// The exit status of the worker, which ends by itself.
    pub(crate) fn wait(mut self) -> Option<i32> {
        self.reap()
    }

    fn reap(&mut self) -> Option<i32> {
        self.reaped = true;
        let ended = rustix::process::waitpid(Some(self.process()), rustix::process::WaitOptions::empty());
        ended.ok()??.1.exit_status()
    }

    fn process(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap()
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The listening sockets, which outlive every worker.
pub(crate) struct Sockets {
    udp: OwnedFd,
    tcp: OwnedFd,
}

impl Sockets {
    pub(crate) fn open() -> Self {
        let udp: OwnedFd = UdpSocket::bind(SERVER).unwrap().into();
        // As PID 1 does: hundreds of questions at once are to wait, not to be lost.
        setsockopt(&udp, RcvBufForce, &(2 << 20)).unwrap();
        Self { udp, tcp: TcpListener::bind(SERVER).unwrap().into() }
    }

    /// Starts the built binary with these sockets. It admits everything until told otherwise.
    pub(crate) fn start_worker(&self, rules: &[&str], upstreams: &[&str], ipv6: bool) -> Warden {
        self.start_worker_with(rules, upstreams, ipv6, &[], None)
    }

    /// The same, with what a former worker knew and the authorities by which upstreams are judged.
    pub(crate) fn start_worker_with(
        &self,
        rules: &[&str],
        upstreams: &[&str],
        ipv6: bool,
        known: &[LastGood],
        roots: Option<&str>,
    ) -> Warden {
        let (stream, theirs) = UnixStream::pair().unwrap();
        let worker = Command::new(env!("CARGO_BIN_EXE_innkeeper"))
            .arg("dns")
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .unwrap();
        let setup = Setup {
            sockets: vec![SocketKind::Udp, SocketKind::Tcp],
            upstreams: upstreams.iter().map(|text| NameServer::parse(text).unwrap()).collect(),
            roots: roots.map(str::to_owned),
            policy: policy(1, rules),
            refresh_s: 300,
            ipv4: true,
            ipv6,
            proxied: false,
            known: known.to_vec(),
        };
        channel::send_with_sockets(
            &stream,
            &ToWorker::Setup(setup),
            &[self.udp.as_fd(), self.tcp.as_fd()],
            MAX_TO_WORKER,
        )
        .unwrap();
        let told = Arc::new(Told::default());
        let all: Admission = Box::new(|learned| Some(learned.addresses.clone()));
        let admission = Arc::new(Mutex::new(all));
        let looks = Arc::new(AtomicBool::new(true));
        let (reader, of_told, of_admission) = (stream.try_clone().unwrap(), told.clone(), admission.clone());
        let of_looks = looks.clone();
        thread::spawn(move || be_pid_1(&reader, &of_told, &of_admission, &of_looks));
        Warden { stream, told, admission, looks, worker, reaped: false }
    }
}

pub(crate) fn policy(generation: u64, rules: &[&str]) -> Policy {
    Policy {
        generation,
        rules: rules.iter().map(ToString::to_string).collect(),
        requests: false,
        ceiling: None,
    }
}

fn be_pid_1(stream: &UnixStream, told: &Told, admission: &Mutex<Admission>, looks: &AtomicBool) {
    while let Ok(Some(frame)) = channel::receive(stream, MAX_FROM_WORKER) {
        let answer = match &frame {
            FromWorker::Learned(learned) => {
                let addresses = (admission.lock().unwrap())(learned);
                addresses.map(|addresses| ToWorker::Admitted(Admitted { id: learned.id, addresses }))
            }
            FromWorker::Denied(denial) if looks.load(Ordering::SeqCst) => {
                denial.id.map(|id| ToWorker::Attributed { id })
            }
            _ => None,
        };
        told.frames.lock().unwrap().push(frame);
        told.changed.notify_all();
        if let Some(answer) = answer {
            channel::send(stream, &answer, MAX_TO_WORKER).ok();
        }
    }
}

/// A question as a stub resolver sends it, with EDNS.
pub(crate) fn question(text: &str, kind: RecordType) -> Message {
    let mut message = Message::new(rand_id(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message
}

fn rand_id() -> u16 {
    use std::hash::{BuildHasher, RandomState};
    u16::from_le_bytes(RandomState::new().hash_one(0).to_le_bytes()[..2].try_into().unwrap())
}

/// Sends by UDP; the reply comes from [`Waiting::reply`].
pub(crate) struct Waiting {
    socket: UdpSocket,
    id: u16,
}

pub(crate) fn send(message: &Message) -> Waiting {
    let waiting = send_bytes(&message.to_vec().unwrap());
    Waiting { id: message.id, ..waiting }
}

pub(crate) fn send_bytes(bytes: &[u8]) -> Waiting {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(SERVER.parse::<SocketAddr>().unwrap()).unwrap();
    socket.send(bytes).unwrap();
    Waiting { socket, id: 0 }
}

impl Waiting {
    pub(crate) fn reply(&self) -> Message {
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).expect("no reply");
        let message = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(message.id, self.id);
        message
    }

    pub(crate) fn has_no_reply_yet(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 4096];
        let nothing = self.socket.recv(&mut buffer).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        self.socket.set_nonblocking(false).unwrap();
        nothing
    }
}

pub(crate) fn ask(text: &str, kind: RecordType) -> Message {
    send(&question(text, kind)).reply()
}

pub(crate) fn ask_tcp(message: &Message) -> Message {
    let mut stream = TcpStream::connect(SERVER).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&framed(&message.to_vec().unwrap())).unwrap();
    Message::from_vec(&read_framed(&mut stream).expect("no reply")).unwrap()
}

pub(crate) fn addresses(message: &Message) -> Vec<IpAddr> {
    message.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}

/// What a client does that keeps answers for their TTL.
pub(crate) fn let_expire(message: &Message) {
    let ttl = message.answers.iter().map(|record| record.ttl).max().unwrap_or(0);
    drop(rustix::thread::nanosleep(&rustix::time::Timespec { tv_sec: i64::from(ttl) + 1, tv_nsec: 0 }));
}

/// Code and text of the Extended DNS Error (RFC 8914).
pub(crate) fn extended_error(message: &Message) -> Option<(u16, String)> {
    match message.edns.as_ref()?.option(EdnsCode::Unknown(15))? {
        EdnsOption::Unknown(15, data) => {
            let (code, text) = data.split_at(2);
            Some((u16::from_be_bytes([code[0], code[1]]), String::from_utf8(text.to_vec()).unwrap()))
        }
        _ => None,
    }
}
