//! Questions, as many as come back or at a fixed rate; what came back and how late.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::Result;
use crate::message::{A, parse, question};

/// A question that is not answered by then is lost, and its place in the window is free again.
const LOST: Duration = Duration::from_secs(2);
const WARM: usize = 1000;

struct Flood {
    socket: UdpSocket,
    kind: String,
    seed: String,
    /// By message id: when it was due to be sent.
    waiting: Vec<Option<Instant>>,
    open: usize,
    sent: u64,
    good: u64,
    wrong: u64,
    lost: u64,
    late_ns: Vec<u32>,
    buffer: Vec<u8>,
}

pub fn run(server: &str, kind: &str, window: &str, seconds: &str, rate: &str, seed: &str) -> Result<()> {
    let (window, rate) = (window.parse::<usize>()?.min(60_000), rate.parse::<f64>()?);
    let duration = Duration::from_secs_f64(seconds.parse()?);
    let (kind, limit) = kind.split_once(':').map_or((kind, None), |(kind, limit)| (kind, Some(limit)));
    let socket = UdpSocket::bind(if server.contains(':') { "[::]:0" } else { "0.0.0.0:0" })?;
    socket.connect((server.parse::<IpAddr>()?, 53))?;
    socket.set_nonblocking(true)?;
    let mut flood = Flood {
        socket,
        kind: kind.to_owned(),
        seed: seed.to_owned(),
        waiting: vec![None; 65_536],
        open: 0,
        sent: 0,
        good: 0,
        wrong: 0,
        lost: 0,
        late_ns: Vec::with_capacity(1 << 20),
        buffer: Vec::with_capacity(512),
    };
    if kind == "cached" {
        flood.send_until(window.min(100), 0.0, |flood| flood.sent >= WARM as u64)?;
        (flood.sent, flood.good, flood.wrong, flood.lost) = (0, 0, 0, 0);
        flood.late_ns.clear();
    }
    let limit = limit.map_or(Ok(u64::MAX), str::parse)?;
    let begin = Instant::now();
    flood.send_until(window, rate, |flood| flood.sent >= limit || begin.elapsed() >= duration)?;
    flood.report(begin.elapsed());
    Ok(())
}

impl Flood {
    fn name(&self) -> String {
        match self.kind.as_str() {
            "cached" => format!("c{}.pool.test", self.sent % WARM as u64),
            "fresh" => format!("f{}-{}.pool.test", self.seed, self.sent),
            "own" => format!("o{}-{}.own.test", self.seed, self.sent),
            "none" => format!("f{}-{}.none.test", self.seed, self.sent),
            _ => format!("d{}-{}.evil.test", self.seed, self.sent),
        }
    }

    fn send_until(&mut self, window: usize, rate: f64, enough: impl Fn(&Self) -> bool) -> Result<()> {
        let begin = Instant::now();
        let (first, mut swept) = (self.sent, begin);
        while !enough(self) {
            let mut wait = Duration::from_millis(100);
            // Begun at once, a thousand questions would come back as a thousand at once, for ever.
            let grown = 20 + usize::try_from(begin.elapsed().as_millis())? * 4;
            if grown < window {
                wait = Duration::from_millis(1);
            }
            while self.open < window.min(grown) && !enough(self) {
                let mut due = Instant::now();
                if rate > 0.0 {
                    // Late by the plan, not by when it could be sent: a server that stalls is not let off.
                    let planned = begin + Duration::from_secs_f64((self.sent - first) as f64 / rate);
                    if planned > due {
                        wait = wait.min(planned - due);
                        break;
                    }
                    due = planned;
                }
                self.send(due)?;
            }
            self.receive(wait)?;
            if swept.elapsed() > LOST / 2 {
                swept = Instant::now();
                self.sweep();
            }
        }
        let end = Instant::now() + LOST;
        while self.open > 0 && Instant::now() < end {
            self.receive(Duration::from_millis(10))?;
        }
        self.lost += self.open as u64;
        self.open = 0;
        self.waiting.fill(None);
        Ok(())
    }

    fn send(&mut self, due: Instant) -> Result<()> {
        let id = (self.sent % 65_536) as u16;
        let mut buffer = std::mem::take(&mut self.buffer);
        question(id, &self.name(), A, &mut buffer);
        match self.socket.send(&buffer) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        self.buffer = buffer;
        if self.waiting[usize::from(id)].replace(due).is_none() {
            self.open += 1;
        }
        self.sent += 1;
        Ok(())
    }

    fn receive(&mut self, wait: Duration) -> Result<()> {
        let mut buffer = [0; 4096];
        let mut waited = false;
        loop {
            let length = match self.socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && !waited => {
                    waited = true;
                    let wait = Timespec::try_from(wait)?;
                    poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&wait))?;
                    continue;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            waited = true;
            let now = Instant::now();
            let Some(answer) = parse(&buffer[..length]) else { continue };
            let Some(sent) = self.waiting[usize::from(answer.id)].take() else { continue };
            self.open -= 1;
            self.late_ns.push(u32::try_from((now - sent).as_nanos()).unwrap_or(u32::MAX));
            let good = match self.kind.as_str() {
                "denied" => answer.code == 3,
                "none" => answer.code == 0 && answer.addresses.is_empty(),
                _ => answer.code == 0 && !answer.addresses.is_empty(),
            };
            if good { self.good += 1 } else { self.wrong += 1 }
        }
    }

    fn sweep(&mut self) {
        for place in &mut self.waiting {
            if place.is_some_and(|sent| sent.elapsed() > LOST) {
                *place = None;
                self.open -= 1;
                self.lost += 1;
            }
        }
    }

    fn report(&mut self, took: Duration) {
        self.late_ns.sort_unstable();
        let at = |share: f64| {
            let index = (self.late_ns.len() as f64 * share) as usize;
            f64::from(self.late_ns.get(index).copied().unwrap_or(0)) / 1e3
        };
        println!(
            "{{\"good\": {}, \"wrong\": {}, \"lost\": {}, \"seconds\": {:.4}, \"p50_us\": {:.1}, \"p99_us\": {:.1}}}",
            self.good,
            self.wrong,
            self.lost,
            took.as_secs_f64(),
            at(0.5),
            at(0.99)
        );
    }
}
