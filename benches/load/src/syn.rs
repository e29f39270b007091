//! What the OUTPUT hook costs a packet: SYNs by a raw socket, to destinations that are open, into a device that
//! drops them. The same packet each round, so that from the second on its connection is known and still new.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};

use crate::Result;
use crate::names::own_address;

const SOURCE: Ipv4Addr = Ipv4Addr::new(172, 31, 77, 2);
const PORT: u16 = 7999;
const BATCH: u32 = 1000;

pub fn run(count: &str, rounds: &str) -> Result<()> {
    let (count, rounds) = (count.parse::<u32>()?, rounds.parse::<u32>()?);
    // IPPROTO_RAW: the packet brings its own IP header (raw(7)).
    let out = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW))?;
    let packets: Vec<(SocketAddrV4, Vec<u8>)> = (0..count)
        .map(|number| {
            let address = own_address(number);
            (SocketAddrV4::new(address, 0), packet(address))
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
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
    let least = times.first().copied().unwrap_or(f64::NAN);
    println!(
        "{{\"ns\": {median:.0}, \"least_ns\": {least:.0}, \"packets\": {}, \"refused\": {refused}}}",
        count * rounds
    );
    Ok(())
}

fn packet(target: Ipv4Addr) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
    ip.extend(SOURCE.octets());
    ip.extend(target.octets());
    let mut tcp = Vec::new();
    tcp.extend(40_000u16.to_be_bytes());
    tcp.extend(PORT.to_be_bytes());
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
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
