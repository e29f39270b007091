//! Terminal output through the filter of `innkeeper attach`: octets a second, by what they consist of.

// Pure, and without dependencies: the file itself, as the product has it.
#[path = "../../../src/session/terminal.rs"]
#[allow(dead_code, reason = "the bench only lets octets pass")]
mod terminal;

use std::time::{Duration, Instant};

/// As much as a pseudo-terminal hands over at a time.
const BLOCK: usize = 4096;
const LONG: Duration = Duration::from_secs(1);

fn main() {
    let frame = "\x1b[?2026h\x1b[38;2;215;119;87m\u{25cf}\x1b[39m Update(\x1b[1msrc/main.rs\x1b[22m)\x1b[K\r\n\x1b[2m  \u{2500}\u{2500}\u{2500}\u{2500}\
                 \x1b[0m fn main() { println!(\"hello\"); }\x1b[K\r\n\x1b[48;2;1;2;3m  12 +\x1b[38;2;200;200;200m let x = compute(a, b, c);\
                 \x1b[49m\x1b[K\r\n\x1b[?2026l";
    let parts = [
        ("claude's screen", frame),
        ("plain text", "the quick brown fox jumps over the lazy dog and goes on for a line like a build log\r\n"),
        ("box drawing", "\u{4e1c}\u{897f}\u{5357}\u{5317}\u{2502}\u{2500}\u{256d} "),
        ("a colour a letter", "\x1b[31ma\x1b[32mb\x1b[33mc"),
    ];
    for (name, part) in parts {
        let block: Vec<u8> = part.bytes().cycle().take(BLOCK).collect();
        let (mut filter, mut out) = (terminal::Filter::default(), Vec::with_capacity(2 * BLOCK));
        let (start, mut octets) = (Instant::now(), 0.0);
        while start.elapsed() < LONG {
            for _ in 0..100 {
                out.clear();
                filter.pass(std::hint::black_box(&block), &mut out);
                std::hint::black_box(&out);
            }
            octets += 100.0 * 4096.0;
        }
        println!("{name}\t{:.0}", octets / 1e6 / start.elapsed().as_secs_f64());
    }
}
