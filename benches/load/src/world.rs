//! The internet of one box: a DNS server that is some way off, and a server at every address.

use std::collections::VecDeque;
use std::io::{BufRead, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::Result;
use crate::message::{A, answer, asked};
use crate::names::{Known, is_evil, resolve};

static QUESTIONS: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds since the start of the first and the last question.
static FIRST: AtomicU64 = AtomicU64::new(u64::MAX);
static LAST: AtomicU64 = AtomicU64::new(0);
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
static EVIL: AtomicU64 = AtomicU64::new(0);
static TURN: AtomicU32 = AtomicU32::new(0);

pub fn run(address: &str, delay_ms: &str, port: &str) -> Result<()> {
    let socket = UdpSocket::bind((address.parse::<IpAddr>()?, 53))?;
    // The kernel's default holds fewer than 300 questions.
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20)?;
    let delay = Duration::from_millis(delay_ms.parse()?);
    let port = port.parse::<u16>()?;
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    let reader = TcpListener::bind(("0.0.0.0", port + 1))?;
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        for mut stream in reader.incoming().flatten() {
            while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
        }
    });
    let begin = Instant::now();
    std::thread::spawn(move || tokens(&listener));
    std::thread::spawn(move || {
        if let Err(error) = serve(&socket, delay, begin) {
            eprintln!("load: {error}");
            std::process::exit(1);
        }
    });
    println!("ready");
    let mut line = String::new();
    while std::io::stdin().lock().read_line(&mut line)? > 0 {
        let (first, last) = (FIRST.swap(u64::MAX, Ordering::Relaxed), LAST.swap(0, Ordering::Relaxed));
        println!(
            "{{\"questions\": {}, \"span_ms\": {:.3}, \"connections\": {}, \"evil\": {}}}",
            QUESTIONS.swap(0, Ordering::Relaxed),
            last.saturating_sub(first) as f64 / 1e6,
            CONNECTIONS.swap(0, Ordering::Relaxed),
            EVIL.swap(0, Ordering::Relaxed),
        );
    }
    Ok(())
}

/// One thread, so that it can share a core with the clients. Answers wait in the order of their questions.
fn serve(socket: &UdpSocket, delay: Duration, begin: Instant) -> Result<()> {
    let mut late: VecDeque<(Instant, Vec<u8>, SocketAddr)> = VecDeque::new();
    let mut buffer = [0; 4096];
    socket.set_nonblocking(true)?;
    loop {
        let wait = late.front().map(|(due, ..)| due.saturating_duration_since(Instant::now()));
        let wait = wait.map(Timespec::try_from).transpose()?;
        poll(&mut [PollFd::new(socket, PollFlags::IN)], wait.as_ref())?;
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let now = Instant::now();
            let since = u64::try_from((now - begin).as_nanos())?;
            FIRST.fetch_min(since, Ordering::Relaxed);
            LAST.fetch_max(since, Ordering::Relaxed);
            QUESTIONS.fetch_add(1, Ordering::Relaxed);
            let Some(reply) = reply(&buffer[..length]) else { continue };
            if delay.is_zero() {
                socket.send_to(&reply, client).ok();
            } else {
                late.push_back((now + delay, reply, client));
            }
        }
        let now = Instant::now();
        while late.front().is_some_and(|(due, ..)| *due <= now) {
            let Some((_, reply, client)) = late.pop_front() else { break };
            socket.send_to(&reply, client).ok();
        }
    }
}

fn reply(message: &[u8]) -> Option<Vec<u8>> {
    let (name, kind, end) = asked(message)?;
    let second = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs() as u32;
    Some(match resolve(&name, TURN.fetch_add(1, Ordering::Relaxed), second) {
        Known::Addresses { addresses, ttl_s } if kind == A => answer(message, end, 0, &addresses, ttl_s),
        Known::Addresses { .. } | Known::Empty => answer(message, end, 0, &[], 0),
        Known::Unknown => answer(message, end, 3, &[], 0),
    })
}

fn tokens(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let Ok(SocketAddr::V4(here)) = stream.local_addr() else { continue };
        CONNECTIONS.fetch_add(1, Ordering::Relaxed);
        if is_evil(*here.ip()) {
            EVIL.fetch_add(1, Ordering::Relaxed);
        }
        stream.write_all(format!("token-{}\n", here.ip()).as_bytes()).ok();
    }
}

pub fn echo(address: &str) -> Result<()> {
    let socket = UdpSocket::bind((address.parse::<IpAddr>()?, 53))?;
    println!("ready");
    let mut buffer = [0; 4096];
    loop {
        let (length, client) = socket.recv_from(&mut buffer)?;
        let Some((_, _, end)) = asked(&buffer[..length]) else { continue };
        socket.send_to(&answer(&buffer[..length], end, 0, &[[192, 0, 2, 1].into()], 60), client)?;
    }
}
