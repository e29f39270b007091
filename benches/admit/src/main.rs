//! How long PID 1's firewall takes to open an address and have the kernel's acknowledgement, in a network namespace of
//! its own: through its thread, as the worker's answers come. One JSON object on stdout, microseconds.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use innkeeper::allowlist::{Allowlist, DomainName, Origin, parse_rules};
use innkeeper::dns::protocol::Learned;
use innkeeper::firewall::ruleset::FirewallPlan;
use innkeeper::firewall::{Firewall, Notices};
use nix::sched::{CloneFlags, unshare};

const ADDRESSES: u32 = 10_000;
const SPACED: u32 = 500;

fn main() -> Result<(), Box<dyn Error>> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let (rules, problems) = parse_rules("*.own.test:443", |_| Origin::Operator);
    assert!(problems.is_empty());
    let firewall = Firewall::start(Notices {
        refused: Box::new(|name, address, why| panic!("{name} {address}: {why}")),
        repaired: Box::new(|what| panic!("{what}")),
    })?;
    firewall.lockdown()?;
    let plan = FirewallPlan {
        dns_uid: 901,
        dns_v4: "127.0.0.53:53".parse()?,
        dns_v6: None,
        upstreams: vec!["9.9.9.53:53".parse()?],
        engine_dns: None,
        inbound: Vec::new(),
        ssh_from: Vec::new(),
        closed_loopback: Vec::new(),
        nflog_group: 0,
        uses_group: 0,
        vm: false,
        closed: vec![],
        gate: None,
    };
    firewall.load(plan, Allowlist::new(rules))?;
    let new = admit(&firewall, 0..ADDRESSES, Duration::ZERO)?;
    let again = admit(&firewall, 0..ADDRESSES, Duration::ZERO)?;
    let spaced = admit(&firewall, ADDRESSES..ADDRESSES + SPACED, Duration::from_millis(2))?;
    println!("{{\"new\": {}, \"again\": {}, \"spaced\": {}}}", shown(new), shown(again), shown(spaced));
    Ok(())
}

fn admit(
    firewall: &Firewall,
    numbers: std::ops::Range<u32>,
    pause: Duration,
) -> Result<Vec<f64>, Box<dyn Error>> {
    let mut times = Vec::new();
    for number in numbers {
        let learned = Learned {
            id: u64::from(number),
            name: DomainName::parse(&format!("n{number}.own.test"))?,
            addresses: vec![IpAddr::V4(Ipv4Addr::from(0x6820_0000 + number))],
            ttl_s: 300,
            stale: false,
        };
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        let begin = Instant::now();
        let admitted = firewall.admit(learned);
        times.push(begin.elapsed().as_secs_f64() * 1e6);
        assert_eq!(admitted.open.len(), 1);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

fn shown(times: Vec<f64>) -> String {
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    format!("{{\"p50\": {:.2}, \"p99\": {:.2}}}", at(0.5), at(0.99))
}
