//! The two ends of `bench gate`. What the server does is in the name that the client asks for: `nN.list.test` is
//! answered and closed where N is a multiple of 3, sent octets without an end where it is one more, and answered and
//! held where it is two more. Nothing here speaks TLS beyond the hello: a gate doesn't either.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::Timespec;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

use crate::Result;
use crate::hello::{asked_number, client_hello};
use crate::names::list_address;

const ANSWERED: u32 = 0;
const ENDLESS: u32 = 1;
const HELD: u32 = 2;
/// Names of a kind, so that the ports of one address don't run out.
const NAMES: u32 = 7;
const PATIENCE: Duration = Duration::from_secs(5);
const CHUNK: usize = 256 << 10;

/// What proves that the server itself answered.
fn answer(number: u32) -> Vec<u8> {
    format!("token-n{number}.list.test\n").into_bytes()
}

/// Readiness of many sockets; the token is the descriptor's number.
struct Poll {
    epoll: rustix::fd::OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poll {
    fn new() -> Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, events: Vec::with_capacity(256) })
    }

    fn add(&self, socket: &(impl AsFd + AsRawFd), flags: EventFlags) -> Result<()> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(socket.as_raw_fd() as u64), flags)?)
    }

    fn change(&self, socket: &(impl AsFd + AsRawFd), flags: EventFlags) -> Result<()> {
        Ok(epoll::modify(&self.epoll, socket, EventData::new_u64(socket.as_raw_fd() as u64), flags)?)
    }

    /// The sockets that are ready, within the time.
    fn wait(&mut self, limit: Duration) -> Result<Vec<u64>> {
        self.events.clear();
        let limit = Timespec::try_from(limit)?;
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.events.iter().map(|event| event.data.u64()).collect())
    }
}

/// A connection of the server's.
enum Served {
    Asking(TcpStream, Vec<u8>),
    Sent(TcpStream),
    Held(TcpStream),
}

/// Serves at every address of the namespace, on one thread.
pub fn server(port: &str) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port.parse()?))?;
    rustix::net::listen(&listener, 4096)?;
    listener.set_nonblocking(true)?;
    let mut poll = Poll::new()?;
    poll.add(&listener, EventFlags::IN)?;
    let door = listener.as_raw_fd() as u64;
    let mut all: HashMap<u64, Served> = HashMap::new();
    let (chunk, mut buffer) = (vec![b'x'; CHUNK], vec![0; 16 << 10]);
    println!("ready");
    loop {
        for ready in poll.wait(Duration::from_secs(60))? {
            if ready == door {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    poll.add(&stream, EventFlags::IN)?;
                    all.insert(stream.as_raw_fd() as u64, Served::Asking(stream, Vec::new()));
                }
                continue;
            }
            // Dropping it closes it: the server's FIN comes first, so that whoever is in between keeps no TIME_WAIT.
            if let Some(served) = all.remove(&ready)
                && let Some(still) = serve(served, &poll, &chunk, &mut buffer)?
            {
                all.insert(ready, still);
            }
        }
    }
}

/// `None` where the connection is over.
fn serve(served: Served, poll: &Poll, chunk: &[u8], buffer: &mut [u8]) -> Result<Option<Served>> {
    Ok(match served {
        Served::Asking(mut stream, mut received) => {
            match stream.read(buffer) {
                Ok(0) => return Ok(None),
                Ok(length) => received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return Ok(None),
            }
            let Some(number) = asked_number(&received) else {
                return Ok(Some(Served::Asking(stream, received)));
            };
            stream.write_all(&answer(number)).ok();
            match number % 3 {
                ENDLESS => {
                    poll.change(&stream, EventFlags::OUT)?;
                    Some(Served::Sent(stream))
                }
                HELD => Some(Served::Held(stream)),
                _ => None,
            }
        }
        // One write a turn: the others' turns come in between.
        Served::Sent(mut stream) => match stream.write(chunk) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => None,
            _ => Some(Served::Sent(stream)),
        },
        Served::Held(mut stream) => match stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some(Served::Held(stream)),
            Ok(length) if length > 0 => Some(Served::Held(stream)),
            _ => None,
        },
    })
}

/// A connection that has been begun.
fn begin(number: u32, port: u16) -> Result<TcpStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    let target: (Ipv4Addr, u16) = (list_address(number), port);
    match rustix::net::connect(&socket, &SocketAddr::V4(SocketAddrV4::new(target.0, target.1))) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}

#[derive(Default)]
struct Count {
    good: u32,
    failed: u32,
    /// From the call of connect to the first octet of the answer.
    first_us: Vec<u32>,
    causes: Vec<String>,
}

impl Count {
    fn fail(&mut self, cause: String) {
        self.failed += 1;
        if self.causes.len() < 5 {
            self.causes.push(cause);
        }
    }

    fn report(mut self, took: Duration, more: &str) {
        self.first_us.sort_unstable();
        let at = |part: usize| self.first_us.get(self.first_us.len() * part / 100).copied().unwrap_or(0);
        println!(
            "{{\"good\": {}, \"failed\": {}, \"p50_us\": {}, \"p99_us\": {}, \"seconds\": {:.3}, {more}\"causes\": {:?}}}",
            self.good,
            self.failed,
            at(50),
            at(99),
            took.as_secs_f64(),
            self.causes
        );
    }
}

/// One client's connection, from its begin to the server's FIN.
struct Opened {
    stream: TcpStream,
    number: u32,
    began: Instant,
    asked: bool,
    heard: Vec<u8>,
}

/// CLIENTS at a time, for SECONDS: connect, hello, answer, end.
pub fn opens(port: &str, clients: &str, seconds: &str) -> Result<()> {
    let length = Duration::from_secs_f64(seconds.parse()?);
    let begin = Instant::now();
    let mut count = Count::default();
    open_for(port.parse()?, clients.parse()?, || begin.elapsed() < length, &mut count)?;
    count.report(begin.elapsed(), "");
    Ok(())
}

fn open_for(port: u16, clients: u32, go_on: impl Fn() -> bool, count: &mut Count) -> Result<()> {
    let hellos: Vec<Vec<u8>> =
        (0..NAMES).map(|each| client_hello(&format!("n{}.list.test", 3 * each + ANSWERED))).collect();
    let mut poll = Poll::new()?;
    let mut all: HashMap<u64, Opened> = HashMap::new();
    let mut turn = 0;
    let mut start = |all: &mut HashMap<u64, Opened>, poll: &Poll| -> Result<()> {
        turn = (turn + 1) % NAMES;
        let number = 3 * turn + ANSWERED;
        let began = Instant::now();
        let stream = begin(number, port)?;
        poll.add(&stream, EventFlags::OUT)?;
        all.insert(stream.as_raw_fd() as u64, Opened { stream, number, began, asked: false, heard: Vec::new() });
        Ok(())
    };
    for _ in 0..clients {
        start(&mut all, &poll)?;
    }
    while go_on() {
        let ready = poll.wait(PATIENCE)?;
        if ready.is_empty() {
            count.fail(format!("nothing happened on {} connections", all.len()));
            return Ok(());
        }
        for each in ready {
            let Some(opened) = all.get_mut(&each) else { continue };
            match step(opened, &hellos, &poll) {
                Ok(false) => continue,
                Ok(true) => {
                    count.good += 1;
                    let took = opened.began.elapsed().as_micros();
                    count.first_us.push(u32::try_from(took).unwrap_or(u32::MAX));
                }
                Err(error) => count.fail(error.to_string()),
            }
            all.remove(&each);
            start(&mut all, &poll)?;
        }
    }
    Ok(())
}

/// Whether it is over, and well.
fn step(opened: &mut Opened, hellos: &[Vec<u8>], poll: &Poll) -> Result<bool> {
    if !opened.asked {
        opened.stream.write_all(&hellos[(opened.number / 3) as usize])?;
        opened.asked = true;
        poll.change(&opened.stream, EventFlags::IN)?;
        return Ok(false);
    }
    let mut buffer = [0; 4096];
    loop {
        match opened.stream.read(&mut buffer) {
            Ok(0) if opened.heard == answer(opened.number) => return Ok(true),
            Ok(0) => return Err(format!("n{} answered {:?}", opened.number, opened.heard).into()),
            Ok(length) => opened.heard.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

/// One client, one connection after the other: microseconds from the call of connect to the answer's first octet.
pub fn first(port: &str, count: &str, stranger: bool) -> Result<()> {
    let (port, number) = (port.parse()?, count.parse::<u32>()?);
    let (mut count, begin) = (Count::default(), Instant::now());
    for turn in 0..number {
        let number = 3 * (turn % NAMES) + ANSWERED;
        let name = format!("n{number}.{}.test", if stranger { "stranger" } else { "list" });
        first_octet(port, number, &name, &mut count);
    }
    count.report(begin.elapsed(), "");
    Ok(())
}

fn first_octet(port: u16, number: u32, name: &str, count: &mut Count) {
    let hello = client_hello(name);
    let began = Instant::now();
    let heard = || -> std::io::Result<(Duration, Vec<u8>)> {
        let mut stream = TcpStream::connect((list_address(number), port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&hello)?;
        let mut heard = vec![0];
        stream.read_exact(&mut heard)?;
        let took = began.elapsed();
        stream.read_to_end(&mut heard)?;
        Ok((took, heard))
    };
    match heard() {
        Ok((took, heard)) if heard == answer(number) => {
            count.good += 1;
            count.first_us.push(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
        }
        Ok((_, heard)) => count.fail(format!("n{number} answered {heard:?}")),
        Err(error) => count.fail(error.to_string()),
    }
}

/// Connected, asked, and answered.
fn greeted(port: u16, kind: u32, turn: u32) -> Result<TcpStream> {
    let number = 3 * (turn % NAMES) + kind;
    let mut stream = TcpStream::connect((list_address(number), port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&client_hello(&format!("n{number}.list.test")))?;
    let expected = answer(number);
    let mut heard = vec![0; expected.len()];
    stream.read_exact(&mut heard)?;
    if heard == expected { Ok(stream) } else { Err(format!("n{number} answered {heard:?}").into()) }
}

/// Octets a second over CONNECTIONS, from the server, for SECONDS.
pub fn bulk(port: &str, connections: &str, seconds: &str) -> Result<()> {
    let (port, length) = (port.parse()?, Duration::from_secs_f64(seconds.parse()?));
    let mut poll = Poll::new()?;
    let mut all = HashMap::new();
    for turn in 0..connections.parse::<u32>()? {
        let stream = greeted(port, ENDLESS, turn)?;
        stream.set_nonblocking(true)?;
        poll.add(&stream, EventFlags::IN)?;
        all.insert(stream.as_raw_fd() as u64, stream);
    }
    let (mut buffer, mut octets) = (vec![0; CHUNK], 0);
    // What the buffers on the way held already is not counted.
    let (warm, mut begin) = (Instant::now() + Duration::from_millis(300), None);
    while begin.is_none_or(|begin: Instant| begin.elapsed() < length) {
        if begin.is_none() && Instant::now() >= warm {
            (begin, octets) = (Some(Instant::now()), 0u64);
        }
        for ready in poll.wait(PATIENCE)? {
            match all.get_mut(&ready).map(|stream| stream.read(&mut buffer)) {
                Some(Ok(0)) => return Err("a connection was cut".into()),
                Some(Ok(read)) => octets += read as u64,
                Some(Err(error)) if error.kind() != ErrorKind::WouldBlock => return Err(error.into()),
                _ => {}
            }
        }
    }
    let seconds = begin.map_or(0.0, |begin| begin.elapsed().as_secs_f64());
    println!("{{\"octets\": {octets}, \"seconds\": {seconds:.3}}}");
    Ok(())
}

/// COUNT connections that are answered and then say nothing, until standard input ends.
pub fn hold(port: &str, count: &str) -> Result<()> {
    let (port, count) = (port.parse()?, count.parse::<u32>()?);
    let held: Vec<TcpStream> = (0..count).map(|turn| greeted(port, HELD, turn)).collect::<Result<_>>()?;
    println!("{{\"open\": {}}}", held.len());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    // Octets that are not there are the answer of a living connection.
    let alive = held.iter().filter(|stream| {
        stream.set_nonblocking(true).is_ok()
            && stream.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    });
    println!("{{\"open\": {}}}", alive.count());
    Ok(())
}

/// COUNT connections that send an octet of their hello every five seconds, and one good client among them.
pub fn slow(port: &str, count: &str, seconds: &str) -> Result<()> {
    let (port, wanted) = (port.parse()?, count.parse::<u32>()?);
    let length = Duration::from_secs_f64(seconds.parse()?);
    let (standing, cut, refused) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let crowd = scope.spawn(|| crowd(port, wanted, [&standing, &cut, &refused], &over));
        while standing.load(Ordering::Relaxed) + refused.load(Ordering::Relaxed) < wanted && !crowd.is_finished() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let stood = standing.load(Ordering::Relaxed);
        let (mut count, begin) = (Count::default(), Instant::now());
        while begin.elapsed() < length {
            let number = 3 * (count.good % NAMES) + ANSWERED;
            first_octet(port, number, &format!("n{number}.list.test"), &mut count);
            std::thread::sleep(Duration::from_millis(2));
        }
        over.store(true, Ordering::Relaxed);
        let left = standing.load(Ordering::Relaxed);
        let (cut, refused) = (cut.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
        count.report(
            begin.elapsed(),
            &format!("\"slow_before\": {stood}, \"slow_after\": {left}, \"cut\": {cut}, \"refused\": {refused}, "),
        );
        crowd.join().map_err(|_| "the crowd panicked")?
    })
}

/// Whom the gate cuts comes again.
fn crowd(port: u16, wanted: u32, counters: [&AtomicU32; 3], over: &AtomicBool) -> Result<()> {
    let [standing, cut, refused] = counters;
    let mut all: Vec<Option<(TcpStream, usize)>> = (0..wanted).map(|_| None).collect();
    while !over.load(Ordering::Relaxed) {
        let round = Instant::now();
        for (turn, slot) in all.iter_mut().enumerate() {
            let number = 3 * (turn as u32 % NAMES) + ANSWERED;
            let hello = client_hello(&format!("n{number}.list.test"));
            let (mut stream, sent) = match slot.take() {
                Some(known) => known,
                None => match TcpStream::connect((list_address(number), port)) {
                    Ok(stream) => (stream, 0),
                    Err(_) => {
                        refused.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                },
            };
            stream.set_nonblocking(true)?;
            let quiet = stream.read(&mut [0; 64]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
            if quiet && stream.write(&hello[sent..=sent]).is_ok() {
                if sent == 0 {
                    standing.fetch_add(1, Ordering::Relaxed);
                }
                *slot = Some((stream, (sent + 1).min(hello.len() - 2)));
            } else {
                if sent > 0 {
                    standing.fetch_sub(1, Ordering::Relaxed);
                }
                cut.fetch_add(1, Ordering::Relaxed);
            }
        }
        while round.elapsed() < Duration::from_secs(5) && !over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}
