//! What an admission costs, and where it goes. Not a test: `cargo nextest run --run-ignored only measure --no-capture`.

use std::io::Write;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use innkeeper::allowlist::DomainName;
use innkeeper::dns::protocol::Learned;
use innkeeper::firewall::admission::Class;
use innkeeper::firewall::book::{Book, Open};
use innkeeper::firewall::nftables::{Edit, Element};

use super::place::{Guard, World};
use super::plan;

const ROUNDS: u32 = 5_000;

/// Median and 99th percentile in microseconds.
fn timed(what: &str, mut work: impl FnMut(u32)) {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|round| {
            let began = Instant::now();
            work(round);
            began.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let at = |part: usize| times[times.len() * part / 100];
    say(&format!("{what:48} p50 {:6.1} µs  p99 {:6.1} µs\n", at(50), at(99)));
}

fn say(text: &str) {
    std::io::stderr().write_all(text.as_bytes()).unwrap();
}

fn learned(name: u32, address: u32) -> Learned {
    Learned {
        id: 1,
        name: DomainName::parse(&format!("e{name}.w.test")).unwrap(),
        addresses: vec![Ipv4Addr::from(0x0c00_0000 + address).into()],
        ttl_s: 600,
        stale: false,
    }
}

#[test]
#[ignore = "prints figures"]
fn measure_admissions() {
    let Some(world) = World::new() else { return };
    for open in [10, 1_000, 10_000, 16_384] {
        let guard = Guard::start(&world.inside, plan(), "*.w.test");
        for i in 0..open {
            drop(guard.firewall.admit(learned(i, i)));
        }
        let renewed: Vec<Learned> = (0..ROUNDS).map(|i| learned(i % open, i % open)).collect();
        timed(&format!("admit, known address, {open} open"), |i| {
            drop(guard.firewall.admit(renewed[i as usize].clone()));
        });
        let fresh: Vec<Learned> = (0..ROUNDS).map(|i| learned(100_000 + i, 100_000 + i)).collect();
        timed(&format!("admit, new name and address, {open} open"), |i| {
            drop(guard.firewall.admit(fresh[i as usize].clone()));
        });
        timed(&format!("hop to the thread and back, {open} open"), |_| drop(guard.firewall.claims(vec![])));
        let mut kernel = world.nftables();
        timed(&format!("netlink renewal alone, {open} open"), |i| {
            let element = Element {
                address: Ipv4Addr::from(0x0c00_0000 + i % open).into(),
                port: 443,
                timeout: Duration::from_secs(660),
            };
            kernel.apply(&Edit { open: vec![element], ..Edit::default() }).unwrap();
        });
        let mut book = Book::default();
        let enter = |book: &mut Book, learned: &Learned| {
            let until = Instant::now() + Duration::from_secs(660);
            let open = Open { address: learned.addresses[0], ports: vec![443], until, stale: false };
            book.enter(&learned.name, Class::Pattern, vec![open]);
            drop(book.take_changes());
        };
        (0..open).for_each(|i| enter(&mut book, &learned(i, i)));
        timed(&format!("book alone, {open} open"), |i| enter(&mut book, &renewed[i as usize]));
        timed(&format!("generation (a look), {open} open"), |_| drop(kernel.generation()));
        let began = Instant::now();
        world.inside.nft("flush set inet innkeeper open4");
        let said = guard.firewall.again();
        say(&format!("repair of {open}: {:?} {said:?}\n", began.elapsed()));
    }
}
