//! Octets by name, as the kernel of a real network namespace counts them: known amounts are carried and compared.
//!
//! Needs root and `nft` (for the place that it shares with the tests of the firewall; no rule is loaded here).

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends by panicking; clippy.toml exempts test functions but not what they share"
)]

#[path = "netns_firewall/place.rs"]
#[expect(dead_code, reason = "shared with the tests of the firewall, which use all of it")]
mod place;

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use innkeeper::status::report::Traffic;
use innkeeper::traffic::{Measured, Meter};

use place::{AGENT, FIRST4, FIRST6, PATIENCE, ROOT, SECOND4, World};

/// The names of the world's addresses.
fn names(pairs: &[(IpAddr, u16)]) -> Vec<Option<String>> {
    let name = |(address, _): &(IpAddr, u16)| match address.to_string().as_str() {
        FIRST4 => Some("first.test".to_owned()),
        SECOND4 => Some("second.test".to_owned()),
        FIRST6 => Some("six.test".to_owned()),
        _ => None,
    };
    pairs.iter().map(name).collect()
}

fn meter(world: &World) -> Meter {
    world.inside.run(ROOT, || Meter::start(Arc::new(names), Arc::new(Vec::new)).unwrap())
}

fn report(world: &World, meter: &Meter) -> Measured {
    world.inside.run(ROOT, || meter.report())
}

/// Asks until it is so.
#[track_caller]
fn until(world: &World, meter: &Meter, is_so: impl Fn(&[Traffic]) -> bool) -> Vec<Traffic> {
    let end = Instant::now() + PATIENCE;
    loop {
        let measured = report(world, meter);
        if is_so(&measured.traffic) {
            return measured.traffic;
        }
        assert!(Instant::now() < end, "{measured:#?}");
    }
}

fn row<'a>(rows: &'a [Traffic], name: &str, port: u16) -> Option<&'a Traffic> {
    rows.iter().find(|row| row.name == name && row.port == port)
}

fn is(rows: &[Traffic], name: &str, port: u16, expected: (u64, u64, u64)) -> bool {
    row(rows, name, port).map(|row| (row.connections, row.bytes_out, row.bytes_in)) == Some(expected)
}

/// Both ends of one connection.
fn connect(world: &World, to: &str, port: u16) -> (TcpStream, TcpStream) {
    let address = if to.contains(':') { format!("[{to}]:{port}") } else { format!("{to}:{port}") };
    let listener: TcpListener = world.outside.listen(&address);
    let ours = world.inside.connect(AGENT, &address).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    (ours, theirs)
}

/// Carries so much out and in, and reads it at the other end.
fn carry((ours, theirs): (&mut TcpStream, &mut TcpStream), out: usize, back: usize) {
    let send = |from: &mut TcpStream, to: &mut TcpStream, octets: usize| {
        std::thread::scope(|scope| {
            scope.spawn(|| from.write_all(&vec![b'x'; octets]).unwrap());
            let mut heard = vec![0; octets];
            to.read_exact(&mut heard).unwrap();
        });
    };
    send(ours, theirs, out);
    send(theirs, ours, back);
}

/// Our end first, so that it waits in FIN_WAIT2 or TIME_WAIT as most clients' do.
fn close(ours: TcpStream, theirs: TcpStream) {
    drop(ours);
    drop(theirs);
}

#[test]
fn what_is_carried_is_counted_to_the_octet() {
    let Some(world) = World::new() else { return };
    let meter = meter(&world);
    assert_eq!(report(&world, &meter), Measured::default());
    // One that lives, and grows.
    let (mut ours, mut theirs) = connect(&world, FIRST4, 443);
    carry((&mut ours, &mut theirs), 70_000, 1_000_000);
    until(&world, &meter, |rows| is(rows, "first.test", 443, (1, 70_000, 1_000_000)));
    carry((&mut ours, &mut theirs), 1, 2);
    until(&world, &meter, |rows| is(rows, "first.test", 443, (1, 70_001, 1_000_002)));
    // Short ones, on several names, ports and families.
    for (to, port, out, back) in
        [(SECOND4, 443, 10, 20), (SECOND4, 443, 100, 200), (SECOND4, 22, 5, 0), (FIRST6, 443, 300_000, 7)]
    {
        let (mut ours, mut theirs) = connect(&world, to, port);
        carry((&mut ours, &mut theirs), out, back);
        close(ours, theirs);
    }
    close(ours, theirs);
    let rows = until(&world, &meter, |rows| row(rows, "six.test", 443).is_some());
    // Whatever FIN and SYN count for in the kernel, here they count nothing beyond an octet.
    for (name, port, connections, out, back) in [
        ("second.test", 443, 2, 110, 220),
        ("second.test", 22, 1, 5, 0),
        ("six.test", 443, 1, 300_000, 7),
        ("first.test", 443, 1, 70_001, 1_000_002),
    ] {
        let seen = row(&rows, name, port).unwrap_or_else(|| panic!("{name}: {rows:#?}"));
        assert_eq!((seen.connections, seen.bytes_out), (connections, out), "{name}");
        assert!((back..=back + connections).contains(&seen.bytes_in), "{name}: {seen:?}");
    }
}

#[test]
fn resets_half_closed_and_abandoned_connections_are_counted() {
    let Some(world) = World::new() else { return };
    let meter = meter(&world);
    // Reset by them, with data on the way.
    let (mut ours, theirs) = connect(&world, FIRST4, 443);
    ours.write_all(&[b'x'; 5000]).unwrap();
    let mut theirs = theirs;
    theirs.read_exact(&mut [0; 100]).unwrap();
    // Unread data at the close makes it a reset (RFC 1122, 4.2.2.13).
    drop(theirs);
    ours.read(&mut [0; 1]).unwrap_err();
    drop(ours);
    until(&world, &meter, |rows| is(rows, "first.test", 443, (1, 5000, 0)));
    // Reset by us, which sets the kernel's counters of the socket to zero: what was seen last counts, and only once.
    let (mut ours, mut theirs) = connect(&world, SECOND4, 443);
    carry((&mut ours, &mut theirs), 3000, 4000);
    until(&world, &meter, |rows| is(rows, "second.test", 443, (1, 3000, 4000)));
    socket2::SockRef::from(&ours).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(ours);
    theirs.read(&mut [0; 1]).unwrap_err();
    for _ in 0..3 {
        // Three lists, each when the one before is old enough.
        std::thread::park_timeout(std::time::Duration::from_millis(600));
        assert!(is(&report(&world, &meter).traffic, "second.test", 443, (1, 3000, 4000)));
    }
    // Half closed: we are done, they go on.
    let (mut ours, mut theirs) = connect(&world, SECOND4, 22);
    carry((&mut ours, &mut theirs), 9, 0);
    ours.shutdown(Shutdown::Write).unwrap();
    let mut end = Vec::new();
    theirs.set_nonblocking(false).unwrap();
    theirs.read_to_end(&mut end).unwrap();
    theirs.write_all(&[b'y'; 12_345]).unwrap();
    ours.read_exact(&mut [0; 12_345]).unwrap();
    until(&world, &meter, |rows| is(rows, "second.test", 22, (1, 9, 12_345)));
}

#[test]
fn what_stays_inside_and_what_is_refused_is_not_counted() {
    let Some(world) = World::new() else { return };
    let meter = meter(&world);
    for inside in ["127.0.0.1:443", "[::1]:443", place::BOX4, place::BOX6] {
        let address = match inside {
            place::BOX4 => format!("{inside}:443"),
            place::BOX6 => format!("[{inside}]:443"),
            _ => inside.to_owned(),
        };
        let listener = world.inside.listen(&address);
        let mut ours = world.inside.connect(AGENT, &address).unwrap();
        let (mut theirs, _) = listener.accept().unwrap();
        carry((&mut ours, &mut theirs), 1000, 1000);
        close(ours, theirs);
    }
    // Nobody listens.
    world.inside.connect(AGENT, &format!("{FIRST4}:443")).unwrap_err();
    let (mut ours, mut theirs) = connect(&world, SECOND4, 443);
    carry((&mut ours, &mut theirs), 1, 1);
    close(ours, theirs);
    let rows = until(&world, &meter, |rows| row(rows, "second.test", 443).is_some());
    assert_eq!(rows.len(), 1, "{rows:#?}");
}

#[test]
fn what_nobody_claims_has_no_name_and_a_name_once_known_is_kept() {
    let Some(world) = World::new() else { return };
    let claimed = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let asked = Arc::clone(&claimed);
    let meter = world.inside.run(ROOT, || {
        Meter::start(
            Arc::new(move |pairs: &[(IpAddr, u16)]| {
                let claimed = asked.load(std::sync::atomic::Ordering::Relaxed);
                if claimed { names(pairs) } else { vec![None; pairs.len()] }
            }),
            Arc::new(Vec::new),
        )
        .unwrap()
    });
    let (mut ours, mut theirs) = connect(&world, FIRST4, 443);
    carry((&mut ours, &mut theirs), 10, 10);
    until(&world, &meter, |rows| is(rows, "first.test", 443, (1, 10, 10)));
    // The operator takes the rule back: nobody claims the pair any more when the connection ends.
    claimed.store(false, std::sync::atomic::Ordering::Relaxed);
    carry((&mut ours, &mut theirs), 5, 5);
    close(ours, theirs);
    until(&world, &meter, |rows| row(rows, "first.test", 443).is_some_and(|row| row.bytes_out == 15));
    let (mut ours, mut theirs) = connect(&world, place::RESOLVER4, 443);
    carry((&mut ours, &mut theirs), 7, 7);
    until(&world, &meter, |rows| is(rows, "(no name)", 443, (1, 7, 7)));
    close(ours, theirs);
}

#[test]
fn a_flood_of_short_connections_is_counted_or_said_to_be_lost() {
    const FLOOD: u64 = 3_000;
    let Some(world) = World::new() else { return };
    let meter = meter(&world);
    let address = format!("{FIRST4}:443");
    let listener = world.outside.listen(&address);
    let server = std::thread::spawn(move || {
        for _ in 0..FLOOD {
            let (mut theirs, _) = listener.accept().unwrap();
            let mut heard = [0; 11];
            theirs.read_exact(&mut heard).unwrap();
            // Reset, so that no port is kept in TIME_WAIT.
            socket2::SockRef::from(&theirs).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        }
    });
    world.inside.run(AGENT, || {
        for _ in 0..FLOOD {
            let mut ours = TcpStream::connect(&address).unwrap();
            ours.write_all(b"eleven-long").unwrap();
            assert!(matches!(ours.read(&mut [0; 1]), Err(_) | Ok(0)));
        }
    });
    server.join().unwrap();
    let rows = until(&world, &meter, |rows| {
        row(rows, "first.test", 443).is_some_and(|row| row.connections == FLOOD)
    });
    assert_eq!(row(&rows, "first.test", 443).unwrap().bytes_out, FLOOD * 11);
    assert_eq!(report(&world, &meter).note, None);
}
