//! An upstream DNS server that a test owns: it can delay, lie, truncate and die, and logs what reaches it.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

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
    /// Another address every time, with a TTL of one second. Addresses of [`fresh`].
    Fresh,
    /// By UDP this first, with [`EVIL`] as the address, and then the true answer.
    After(Forgery, Vec<Record>),
    /// These, as the answer to another question.
    Astray(Vec<Record>),
    Nothing,
}

/// The address that a forged answer has.
pub(crate) const EVIL: [u8; 4] = [6, 6, 6, 6];

/// How a forged answer differs from a true one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Forgery {
    /// Not at all: what every other is to be compared with.
    Perfect,
    Id,
    Question,
    Letters,
    QuestionCount,
    Short,
    Garbage,
}

/// The n-th address of [`Say::Fresh`].
pub(crate) fn fresh(n: u32) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::from(0xc000_0000 + n)
}

/// One question that reached an upstream.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) name: String,
    pub(crate) kind: RecordType,
    pub(crate) tcp: bool,
    pub(crate) bytes: Vec<u8>,
    /// The name in the letters in which it came.
    pub(crate) wire: String,
    /// Where the question came from.
    pub(crate) port: u16,
}

#[derive(Default)]
struct Shared {
    zone: Mutex<HashMap<String, Say>>,
    log: Mutex<Vec<Asked>>,
    released: Mutex<HashSet<String>>,
    changed: Condvar,
    stop: AtomicBool,
    fresh: AtomicU32,
    /// Answers repeat the question in lower case, as some old forwarders do.
    lowers: AtomicBool,
    /// Every second question by UDP is lost.
    loses: AtomicBool,
    received: AtomicU32,
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
        Self::start_by(address, udp, true)
    }

    pub(crate) fn start_by(address: &str, udp: bool, tcp: bool) -> Self {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        if udp {
            let socket = UdpSocket::bind(address).unwrap();
            let shared = shared.clone();
            threads.push(thread::spawn(move || serve_udp(&socket, &shared)));
        }
        if tcp {
            let listener = TcpListener::bind(address).unwrap();
            let of_tcp = shared.clone();
            threads.push(thread::spawn(move || serve_tcp(&listener, &of_tcp)));
        }
        Self { address: address.to_owned(), shared, threads }
    }

    /// By TLS alone, as the server dns.test, which [`AUTHORITY`] vouches for.
    pub(crate) fn start_tls(address: &str) -> Self {
        let shared = Arc::new(Shared::default());
        let (listener, of_tls) = (TcpListener::bind(address).unwrap(), shared.clone());
        let threads = vec![thread::spawn(move || serve_tls(&listener, &of_tls))];
        Self { address: address.to_owned(), shared, threads }
    }

    pub(crate) fn say(&self, name: &str, say: Say) {
        self.shared.zone.lock().unwrap().insert(format!("{name}."), say);
    }

    pub(crate) fn a(&self, name: &str, address: [u8; 4], ttl: u32) {
        self.say(name, Say::Records(vec![a(name, address, ttl)]));
    }

    pub(crate) fn lower(&self) {
        self.shared.lowers.store(true, Ordering::SeqCst);
    }

    pub(crate) fn lose_every_second(&self) {
        self.shared.loses.store(true, Ordering::SeqCst);
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
        let number = shared.received.fetch_add(1, Ordering::SeqCst);
        if shared.loses.load(Ordering::SeqCst) && number.is_multiple_of(2) {
            continue;
        }
        let (bytes, shared) = (buffer[..length].to_vec(), shared.clone());
        let socket = socket.try_clone().unwrap();
        thread::spawn(move || {
            for reply in replies(&bytes, &shared, Some(client.port())) {
                socket.send_to(&reply, client).ok();
            }
        });
    }
}

/// The certificate of who vouches for dns.test; its key is gone.
pub(crate) const AUTHORITY: &str = include_str!("dns_tls/authority.pem");

fn serve_tls(listener: &TcpListener, shared: &Arc<Shared>) {
    let certificate = CertificateDer::from_pem_slice(include_bytes!("dns_tls/server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("dns_tls/server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    while !shared.stop.load(Ordering::SeqCst) {
        let Ok((stream, _)) = listener.accept() else { return };
        let (shared, config) = (shared.clone(), config.clone());
        thread::spawn(move || {
            let session = rustls::ServerConnection::new(config).unwrap();
            let mut stream = rustls::StreamOwned::new(session, stream);
            while let Some(message) = read_framed(&mut stream) {
                let replies = replies(&message, &shared, None);
                let Some(reply) = replies.last() else { return };
                stream.write_all(&framed(reply)).ok();
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
                let replies = replies(&message, &shared, None);
                let Some(reply) = replies.last() else { return };
                stream.write_all(&framed(reply)).ok();
            }
        });
    }
}

pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(message);
    bytes
}

pub(crate) fn read_framed(stream: &mut impl Read) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

/// `port`: where a question by UDP came from.
fn replies(bytes: &[u8], shared: &Shared, port: Option<u16>) -> Vec<Vec<u8>> {
    let Ok(request) = Message::from_vec(bytes) else { return Vec::new() };
    let query = request.queries[0].clone();
    let wire = query.name().to_ascii();
    let name = wire.to_ascii_lowercase();
    let tcp = port.is_none();
    let (kind, bytes) = (query.query_type(), bytes.to_vec());
    let asked = Asked { name: name.clone(), kind, tcp, bytes, wire, port: port.unwrap_or(0) };
    shared.log.lock().unwrap().push(asked);
    shared.changed.notify_all();
    let say = {
        let zone = shared.zone.lock().unwrap();
        zone.get(&name).or_else(|| zone.get("*.")).cloned()
    };
    let mut response = Message::response(request.id, OpCode::Query);
    let mut repeated = query.clone();
    if shared.lowers.load(Ordering::SeqCst) {
        repeated.set_name(query.name().to_lowercase());
    }
    response.add_query(repeated);
    let mut before = None;
    let records = match say {
        None | Some(Say::Nothing) => return Vec::new(),
        Some(Say::Records(records)) => records,
        Some(Say::Truncated(records)) if tcp => records,
        Some(Say::Truncated(_)) => {
            response.metadata.truncation = true;
            Vec::new()
        }
        Some(Say::WithoutEdns(_)) if request.edns.is_some() => {
            response.metadata.response_code = ResponseCode::FormErr;
            Vec::new()
        }
        Some(Say::WithoutEdns(records)) => records,
        Some(Say::Code(code)) => {
            response.metadata.response_code = code;
            Vec::new()
        }
        Some(Say::Astray(records)) => {
            response.queries[0].set_name(self::name("other.test"));
            records
        }
        Some(Say::Held(records)) => {
            hold(shared, &name);
            records
        }
        Some(Say::Fresh) => {
            let address = A(fresh(shared.fresh.fetch_add(1, Ordering::SeqCst)));
            vec![Record::from_rdata(query.name().clone(), 1, RData::A(address))]
        }
        Some(Say::After(forgery, records)) => {
            before = (!tcp).then(|| forged(forgery, &response, query.name()));
            records
        }
    };
    let fits = |record: &Record| record.record_type() == kind || record.record_type().is_cname();
    response.add_answers(records.into_iter().filter(fits));
    before.into_iter().chain([response.to_vec().unwrap()]).collect()
}

fn hold(shared: &Shared, name: &str) {
    let released = shared.released.lock().unwrap();
    let held =
        |released: &mut HashSet<String>| !released.contains(name) && !shared.stop.load(Ordering::SeqCst);
    drop(shared.changed.wait_while(released, held).unwrap());
}

fn forged(forgery: Forgery, response: &Message, asked: &Name) -> Vec<u8> {
    let mut forged = response.clone();
    forged.add_answer(Record::from_rdata(asked.clone(), 60, RData::A(A(EVIL.into()))));
    match forgery {
        Forgery::Perfect => {}
        Forgery::Id => forged.metadata.id ^= 1,
        Forgery::Question => {
            forged.queries[0].set_name(name("evil.test"));
        }
        Forgery::Letters => {
            let asked = asked.to_ascii();
            let turned = asked.chars().map(|c| {
                if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() }
            });
            forged.queries[0].set_name(name(&turned.collect::<String>()));
        }
        Forgery::QuestionCount => forged.queries.clear(),
        Forgery::Short => return forged.to_vec().unwrap()[..1].to_vec(),
        Forgery::Garbage => return vec![0xff; 300],
    }
    forged.to_vec().unwrap()
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
