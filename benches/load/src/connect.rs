//! Resolve, connect at once, read the server's token: what an agent's programs do.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::Result;
use crate::message::{A, parse, question};
use crate::names::evil_address;

/// Clients at a time.
const CLIENTS: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Default)]
struct Count {
    reached: u32,
    /// Allowed, and resolved, but the connection did not come about or brought no token.
    failed: u32,
    unresolved: u32,
    refused: u32,
    /// Denied, and something else than a prompt refusal.
    not_refused: u32,
    causes: Vec<String>,
    refusal_us: Vec<u32>,
}

/// COUNT names that nobody has asked for before, and as many denied ones between them: each is asked for, and its
/// address connected to whatever the resolver says.
pub fn fresh(server: &str, port: &str, count: &str) -> Result<()> {
    let (server, port, count) = (server.parse::<IpAddr>()?, port.parse::<u16>()?, count.parse::<u32>()?);
    let next = AtomicU32::new(0);
    let begin = Instant::now();
    let total = in_parallel(|total| {
        let resolver = Resolver::new(server)?;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            allowed(&resolver, &format!("n{number}.turn.test"), port, total)?;
            let found = resolver.ask(&format!("n{number}.evil.test"))?;
            let address = evil_address(number);
            let started = Instant::now();
            let outcome = token(address, port);
            let mut total = total.lock().map_err(|_| "poisoned")?;
            match outcome {
                Err(error) if is_refusal(&error) && found.is_empty() => {
                    total.refused += 1;
                    total.refusal_us.push(u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX));
                }
                Err(error) => total.odd(format!("{address}: {error}; resolved to {found:?}")),
                Ok(()) => total.odd(format!("{address} was reached")),
            }
        }
    })?;
    total.report(begin.elapsed());
    Ok(())
}

/// Names whose addresses change every second, for SECONDS.
pub fn rotating(server: &str, port: &str, names: &str, seconds: &str) -> Result<()> {
    let (server, port, names) = (server.parse::<IpAddr>()?, port.parse::<u16>()?, names.parse::<u32>()?);
    let duration = Duration::from_secs_f64(seconds.parse()?);
    let next = AtomicU32::new(0);
    let begin = Instant::now();
    let total = in_parallel(|total| {
        let resolver = Resolver::new(server)?;
        while begin.elapsed() < duration {
            let number = next.fetch_add(1, Ordering::Relaxed) % names;
            allowed(&resolver, &format!("n{number}.slot.test"), port, total)?;
            std::thread::sleep(Duration::from_millis(8));
        }
        Ok(())
    })?;
    total.report(begin.elapsed());
    Ok(())
}

/// Before a box closes the door: the denied addresses do answer.
pub fn reach(port: &str, count: &str) -> Result<()> {
    let (port, count) = (port.parse::<u16>()?, count.parse::<u32>()?);
    let mut total = Count::default();
    for number in 0..count {
        match token(evil_address(number), port) {
            Ok(()) => total.reached += 1,
            Err(_) => total.failed += 1,
        }
    }
    total.report(Duration::ZERO);
    Ok(())
}

fn in_parallel(work: impl Fn(&Mutex<Count>) -> Result<()> + Sync) -> Result<Count> {
    let total = Mutex::new(Count::default());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| work(&total))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a client panicked")?)
    })?;
    Ok(total.into_inner().map_err(|_| "poisoned")?)
}

fn allowed(resolver: &Resolver, name: &str, port: u16, total: &Mutex<Count>) -> Result<()> {
    let found = resolver.ask(name)?;
    let outcome = found.first().map(|address| (address, token(*address, port)));
    let mut total = total.lock().map_err(|_| "poisoned")?;
    match outcome {
        None => total.unresolved += 1,
        Some((_, Ok(()))) => total.reached += 1,
        Some((address, Err(error))) => {
            total.failed += 1;
            total.cause(format!("{name} at {address}: {error}"));
        }
    }
    Ok(())
}

/// Success is what only the right server says.
fn token(address: Ipv4Addr, port: u16) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address.into(), port), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    if said == format!("token-{address}\n") { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}

fn is_refusal(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied)
        || matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable)
}

struct Resolver(UdpSocket);

impl Resolver {
    fn new(server: IpAddr) -> Result<Self> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((server, 53))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// No answer in time is no address.
    fn ask(&self, name: &str) -> Result<Vec<Ipv4Addr>> {
        let id = (Instant::now().elapsed().as_nanos() as u16) ^ (name.len() as u16) ^ 0x5a5a;
        let mut message = Vec::new();
        question(id, name, A, &mut message);
        self.0.send(&message)?;
        let mut buffer = [0; 4096];
        loop {
            let Ok(length) = self.0.recv(&mut buffer) else { return Ok(Vec::new()) };
            let same = crate::message::asked(&buffer[..length]).is_some_and(|(asked, ..)| asked == name);
            if let Some(answer) = parse(&buffer[..length]).filter(|_| same) {
                return Ok(answer.addresses);
            }
        }
    }
}

impl Count {
    fn odd(&mut self, cause: String) {
        self.not_refused += 1;
        self.cause(cause);
    }

    fn cause(&mut self, cause: String) {
        if self.causes.len() < 5 {
            self.causes.push(cause);
        }
    }

    fn report(mut self, took: Duration) {
        self.refusal_us.sort_unstable();
        let middle = self.refusal_us.get(self.refusal_us.len() / 2).copied().unwrap_or(0);
        println!(
            "{{\"reached\": {}, \"failed\": {}, \"unresolved\": {}, \"refused\": {}, \"not_refused\": {}, \
             \"refusal_us\": {middle}, \"seconds\": {:.2}, \"causes\": {:?}}}",
            self.reached,
            self.failed,
            self.unresolved,
            self.refused,
            self.not_refused,
            took.as_secs_f64(),
            self.causes
        );
    }
}
