//! An upstream DNS server that a test owns: it can delay, lie, truncate and die, and logs what reaches it.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

/// Nothing here takes so long; it ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the upstream says of a name.
#[derive(Clone)]
pub(crate) enum Say {
    Records(Vec<Record>),
    Code(ResponseCode),
    /// By UDP only a truncated reply, by TCP everything.
    Truncated(Vec<Record>),
    /// A format error to every question with an OPT record.
    WithoutEdns(Vec<Record>),
    /// Nothing before [`Upstream::release`], then these.
    Held(Vec<Record>),
    Nothing,
}

/// One question that reached an upstream.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) name: String,
    pub(crate) kind: RecordType,
    pub(crate) tcp: bool,
    pub(crate) bytes: Vec<u8>,
}

#[derive(Default)]
struct Shared {
    zone: Mutex<HashMap<String, Say>>,
    log: Mutex<Vec<Asked>>,
    released: Mutex<HashSet<String>>,
    changed: Condvar,
    stop: AtomicBool,
}

/// An upstream DNS server by UDP and TCP.
pub(crate) struct Upstream {
    address: String,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Upstream {
    pub(crate) fn start(address: &str) -> Self {
        Self::start_with(address, true)
    }

    pub(crate) fn start_with(address: &str, udp: bool) -> Self {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        if udp {
            let socket = UdpSocket::bind(address).unwrap();
            let shared = shared.clone();
            threads.push(thread::spawn(move || serve_udp(&socket, &shared)));
        }
        let listener = TcpListener::bind(address).unwrap();
        let of_tcp = shared.clone();
        threads.push(thread::spawn(move || serve_tcp(&listener, &of_tcp)));
        Self { address: address.to_owned(), shared, threads }
    }

    pub(crate) fn say(&self, name: &str, say: Say) {
        self.shared.zone.lock().unwrap().insert(format!("{name}."), say);
    }

    pub(crate) fn a(&self, name: &str, address: [u8; 4], ttl: u32) {
        self.say(name, Say::Records(vec![a(name, address, ttl)]));
    }

    pub(crate) fn release(&self, name: &str) {
        self.shared.released.lock().unwrap().insert(format!("{name}."));
        self.shared.changed.notify_all();
    }

    pub(crate) fn log(&self) -> Vec<Asked> {
        self.shared.log.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, name: &str, kind: RecordType) -> usize {
        self.log().iter().filter(|asked| asked.name == format!("{name}.") && asked.kind == kind).count()
    }

    /// Waits until a question for the name has arrived.
    pub(crate) fn await_question(&self, name: &str) {
        let log = self.shared.log.lock().unwrap();
        let name = format!("{name}.");
        let nothing = |log: &mut Vec<Asked>| !log.iter().any(|asked| asked.name == name);
        let (_log, waited) = self.shared.changed.wait_timeout_while(log, PATIENCE, nothing).unwrap();
        assert!(!waited.timed_out(), "{name} was never asked upstream");
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.changed.notify_all();
        // What wakes the threads from their waiting for questions.
        let local = if self.address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        UdpSocket::bind(local).and_then(|socket| socket.send_to(&[], &self.address)).unwrap();
        TcpStream::connect(&self.address).ok();
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

fn serve_udp(socket: &UdpSocket, shared: &Arc<Shared>) {
    let mut buffer = [0; 4096];
    while !shared.stop.load(Ordering::SeqCst) {
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        let (bytes, shared) = (buffer[..length].to_vec(), shared.clone());
        let socket = socket.try_clone().unwrap();
        thread::spawn(move || {
            if let Some(reply) = reply(&bytes, &shared, false) {
                socket.send_to(&reply, client).ok();
            }
        });
    }
}

fn serve_tcp(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stop.load(Ordering::SeqCst) {
        let Ok((mut stream, _)) = listener.accept() else { return };
        let shared = shared.clone();
        thread::spawn(move || {
            while let Some(message) = read_framed(&mut stream) {
                let Some(reply) = reply(&message, &shared, true) else { return };
                stream.write_all(&framed(&reply)).ok();
            }
        });
    }
}

pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(message);
    bytes
}

pub(crate) fn read_framed(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

fn reply(bytes: &[u8], shared: &Shared, tcp: bool) -> Option<Vec<u8>> {
    let request = Message::from_vec(bytes).ok()?;
    let query = request.queries[0].clone();
    let name = query.name().to_ascii();
    let asked = Asked { name: name.clone(), kind: query.query_type(), tcp, bytes: bytes.to_vec() };
    shared.log.lock().unwrap().push(asked);
    shared.changed.notify_all();
    let say = shared.zone.lock().unwrap().get(&name.to_ascii_lowercase()).cloned();
    let mut response = Message::response(request.id, OpCode::Query);
    response.add_query(query.clone());
    let mut add = |records: Vec<Record>| {
        let fits =
            |record: &Record| record.record_type() == query.query_type() || record.record_type().is_cname();
        response.add_answers(records.into_iter().filter(fits));
    };
    match say? {
        Say::Nothing => return None,
        Say::Records(records) => add(records),
        Say::Truncated(records) if tcp => add(records),
        Say::Truncated(_) => response.metadata.truncation = true,
        Say::WithoutEdns(_) if request.edns.is_some() => {
            response.metadata.response_code = ResponseCode::FormErr;
        }
        Say::WithoutEdns(records) => add(records),
        Say::Code(code) => response.metadata.response_code = code,
        Say::Held(records) => {
            let released = shared.released.lock().unwrap();
            let held = |released: &mut HashSet<String>| {
                !released.contains(&name) && !shared.stop.load(Ordering::SeqCst)
            };
            drop(shared.changed.wait_while(released, held).unwrap());
            add(records);
        }
    }
    Some(response.to_vec().unwrap())
}

pub(crate) fn name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap();
    name.set_fqdn(true);
    name
}

pub(crate) fn a(owner: &str, address: [u8; 4], ttl: u32) -> Record {
    Record::from_rdata(name(owner), ttl, RData::A(A(address.into())))
}

pub(crate) fn aaaa(owner: &str, address: &str, ttl: u32) -> Record {
    Record::from_rdata(name(owner), ttl, RData::AAAA(AAAA(address.parse().unwrap())))
}

pub(crate) fn cname(owner: &str, target: &str, ttl: u32) -> Record {
    Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
}
