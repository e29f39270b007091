//! What the OUTPUT hook costs a packet: SYNs by a raw socket, to destinations that are open, into a device that
//! drops them. The same packet each round, so that from the second on its connection is known and still new. And
//! what it costs a packet of an established connection.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::process::Command;
use std::time::Instant;

use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};

use crate::Result;
use crate::names::own_address;

const SOURCE: Ipv4Addr = Ipv4Addr::new(172, 31, 77, 2);
const PORT: u16 = 7999;
const BATCH: u32 = 1000;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const INTO_THE_VOID: [&str; 8] =
    ["route", "replace", "104.32.0.0/11", "via", "172.31.77.6", "dev", "void0", "onlink"];

pub fn run(count: &str, rounds: &str) -> Result<()> {
    let (count, rounds) = (count.parse::<u32>()?, rounds.parse::<u32>()?);
    // IPPROTO_RAW: the packet brings its own IP header (raw(7)).
    let out = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW))?;
    let packets: Vec<(SocketAddrV4, Vec<u8>)> = (0..count)
        .map(|number| {
            let address = own_address(number);
            let source = SocketAddrV4::new(SOURCE, 40_000);
            (SocketAddrV4::new(address, 0), packet(source, SocketAddrV4::new(address, PORT), SYN))
        })
        .collect();
    let mut refused = 0u64;
    let mut times = Vec::new();
    let (mut begin, mut batch) = (Instant::now(), 0);
    // The first round makes the kernel's entries and is not counted.
    for turn in 0..=rounds {
        for (target, packet) in &packets {
            if sendto(&out, packet, SendFlags::empty(), target).is_err() {
                refused += 1;
            }
            batch += 1;
            if batch == BATCH {
                if turn > 0 {
                    times.push(begin.elapsed().as_nanos() as f64 / f64::from(BATCH));
                }
                (begin, batch) = (Instant::now(), 0);
            }
        }
    }
    report(times, count * rounds, refused)
}

fn report(mut times: Vec<f64>, packets: u32, refused: u64) -> Result<()> {
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
    println!("{{\"ns\": {median:.0}, \"packets\": {packets}, \"refused\": {refused}}}");
    Ok(())
}

/// COUNT acknowledgements on a connection that is established, in a way that the connection itself can't send them: by
/// the raw socket, into the device that drops them, once the connection is there.
pub fn established(port: &str, count: &str) -> Result<()> {
    let count = count.parse::<u32>()?;
    let connection = TcpStream::connect((own_address(7), port.parse::<u16>()?))?;
    let (SocketAddr::V4(here), SocketAddr::V4(there)) = (connection.local_addr()?, connection.peer_addr()?)
    else {
        return Err("no IPv4 connection".into());
    };
    let done = Command::new("ip").args(INTO_THE_VOID).status()?;
    if !done.success() {
        return Err("the route could not be changed".into());
    }
    let out = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW))?;
    let packet = packet(here, there, ACK);
    let target = SocketAddrV4::new(*there.ip(), 0);
    let (mut times, mut refused) = (Vec::new(), 0);
    for _ in 0..count / BATCH {
        let begin = Instant::now();
        for _ in 0..BATCH {
            if sendto(&out, &packet, SendFlags::empty(), &target).is_err() {
                refused += 1;
            }
        }
        times.push(begin.elapsed().as_nanos() as f64 / f64::from(BATCH));
    }
    report(times, count, refused)
}

fn packet(source: SocketAddrV4, target: SocketAddrV4, flags: u8) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    ip.extend(source.ip().octets());
    ip.extend(target.ip().octets());
    let mut tcp = Vec::new();
    tcp.extend(source.port().to_be_bytes());
    tcp.extend(target.port().to_be_bytes());
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let mut pseudo = ip[12..20].to_vec();
    pseudo.extend([0, 6, 0, 20]);
    pseudo.extend(&tcp);
    let sum = checksum(&pseudo);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    ip.extend(tcp);
    ip
}

fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
