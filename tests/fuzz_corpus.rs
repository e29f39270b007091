//! The seeds of every fuzz target, each whole, cut after every octet and with every octet damaged: on the stable
//! compiler, in the normal run. `./scripts/fuzz` goes on from there.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::let_underscore_must_use,
    reason = "a boundary that does not hold fails the test"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

#[path = "../fuzz/boundaries.rs"]
mod boundaries;

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        found.push((path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap()));
    }
    assert!(found.len() > 1, "no seeds for {target}");
    found
}

/// What one octet becomes: nothing, everything, its neighbours, and another class of octet.
fn damages(octet: u8) -> [u8; 6] {
    [0, 0xff, octet ^ 1, octet ^ 0x20, octet ^ 0x80, octet ^ 0xc0]
}

fn replay(target: &str, boundary: fn(&[u8])) {
    let check = |what: &str, data: &[u8]| {
        let held = catch_unwind(AssertUnwindSafe(|| boundary(data)));
        assert!(held.is_ok(), "{target}: {what}: {}", data.escape_ascii());
    };
    for (name, seed) in seeds(target) {
        check(&name, &seed);
        for end in 0..seed.len() {
            check(&format!("{name} cut after {end}"), &seed[..end]);
        }
        let mut damaged = seed.clone();
        for at in 0..seed.len() {
            for octet in damages(seed[at]) {
                damaged[at] = octet;
                check(&format!("{name}, octet {at} is {octet:#04x}"), &damaged);
            }
            damaged[at] = seed[at];
        }
    }
}

/// Frames change with the code: a seed that is no longer understood would reach nothing behind the parser.
#[test]
fn seeds_of_frames_are_understood() {
    use innkeeper::channel::decode;
    use innkeeper::{dns, watch};
    let understood = [
        ("worker_frame", (|json| decode::<dns::protocol::FromWorker>(json).is_ok()) as fn(&[u8]) -> bool),
        ("setup_frame", |json| decode::<dns::protocol::ToWorker>(json).is_ok()),
        ("watch_frame", |json| decode::<watch::protocol::FromWorker>(json).is_ok()),
    ];
    for (target, decodes) in understood {
        for (name, seed) in seeds(target) {
            assert!(decodes(&seed[4..]), "{target}/{name}: mend fuzz/seeds.py and run it");
        }
    }
}

/// What a server of TLS refuses anyway would compare nothing.
#[test]
fn a_server_understands_the_seeds_of_hellos() {
    let mut understood = 0;
    for (_, seed) in seeds("client_hello") {
        let mut acceptor = rustls::server::Acceptor::default();
        acceptor.read_tls(&mut seed.as_slice()).unwrap();
        if let Ok(Some(accepted)) = acceptor.accept() {
            understood += usize::from(accepted.client_hello().server_name() == Some("ok.test"));
        }
    }
    assert!(understood >= 4, "only {understood} hellos for ok.test");
}

macro_rules! targets {
    ($($target:ident),+ $(,)?) => {
        $(
            #[test]
            fn $target() {
                replay(stringify!($target), boundaries::$target);
            }
        )+

        /// A target that is not replayed, or has no seeds, would be forgotten.
        #[test]
        fn every_target_is_replayed() {
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
            let mut there: Vec<String> = std::fs::read_dir(directory)
                .unwrap()
                .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
                .collect();
            there.sort();
            let mut replayed = vec![$(stringify!($target)),+];
            replayed.sort_unstable();
            assert_eq!(there, replayed);
        }
    };
}

targets!(
    client_message,
    upstream_message,
    worker_frame,
    watch_frame,
    logged_packet,
    kernel_answer,
    setup_frame,
    control_request,
    policy_text,
    live_policy,
    resolv_conf,
    socket_table,
    terminal,
    client_hello,
    http_request,
    http_response,
);

/// What sequences are made of.
const PARTS: &[&[u8]] = &[
    b"\x1b",
    b"\x1b[",
    b"\x1b]",
    b"\x1bP",
    b"\x1b\\",
    b"\x07",
    b"\x05",
    b"\x18",
    b"\x9b",
    b"\x9d",
    b"\x9c",
    b"\xc2",
    b"\xe4\xb8",
    b"8;;https://a/",
    b"52;c;",
    b"QUJD",
    b"10;",
    b"?",
    b";",
    b":",
    b"1",
    b"25",
    b"2031",
    b"$",
    b" ",
    b"!",
    b">",
    b"=",
    b"<",
    b"c",
    b"n",
    b"h",
    b"l",
    b"m",
    b"t",
    b"p",
    b"q",
    b"u",
    b"y",
    b"(",
    b"%",
    b"@",
    b"0",
    b"B",
    b"Z",
    b"k",
    b"\xc2\x9b",
    b"\xf0\x9f",
    b"\xa6\x80",
    b"\n",
    b"\0",
    b"\x7f",
    b"\xff",
    b"a",
];

/// Octets as sequences are made of, at random but the same in every run: what a seed does not come to by one damage.
#[test]
fn t91_no_mixture_of_octets_makes_a_terminal_answer() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below
    };
    for _ in 0..30_000 {
        let count = 1 + next(24);
        let data: Vec<u8> = (0..count).flat_map(|_| PARTS[next(PARTS.len())].to_vec()).collect();
        boundaries::terminal(&data);
    }
}
