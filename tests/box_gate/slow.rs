//! Crowds at the gate.

use crate::common::{boot, page, python};
use crate::rig::{AGENT, PATIENCE, Rig, host};
use std::time::Instant;

/// 1,000 connections that send an octet of a sound hello every few seconds. Says how many stand, then waits for a line.
const CROWD: &str = r#"
import select, socket, sys, threading, time
address, kind = sys.argv[1], sys.argv[2]
payload = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" if kind == "tls" else b"GET / HTTP/1.1\r\nHost: ok"
port = 443 if kind == "tls" else 80
over = threading.Event()
standing = {}
def begin():
    s = socket.socket(); s.settimeout(5)
    s.connect((address, port)); s.sendall(payload[:1]); return s
def crowd():
    while not over.is_set():
        for i in range(1000):
            try:
                if i not in standing: standing[i] = [begin(), 1]
                else:
                    s, at = standing[i]
                    if select.select([s], [], [], 0)[0]: raise OSError
                    s.sendall(payload[at:at + 1]); standing[i][1] = min(at + 1, len(payload) - 1)
            except OSError:
                standing.pop(i, None)
        over.wait(5)
threading.Thread(target=crowd, daemon=True).start()
while len(standing) < 1000 - int(sys.argv[3]): time.sleep(0.05)
print("standing", flush=True)
for line in sys.stdin:
    print(len(standing), flush=True)
over.set()
"#;

#[test]
fn t58_a_thousand_slow_connections_do_not_keep_out_a_good_one() {
    let Some(rig) = Rig::new() else { return };
    let guest = boot(&rig, "ok.test:443,80,9999");
    for kind in ["tls", "http"] {
        let mut crowd = guest.spawn(AGENT, &["python3", "-c", CROWD, &host("ok"), kind, "50"]);
        assert_eq!(crowd.hear(), "standing", "{kind}: {}", guest.logs());
        for round in 0..10 {
            page(&guest, "https://ok.test/", "ok", "ok.test");
            page(&guest, "http://ok.test/", "ok", "ok.test");
            crowd.say("how many");
            let standing: u32 = crowd.hear().parse().unwrap();
            assert!(standing > 500, "{kind}, round {round}: only {standing} stand, so nothing is shown");
        }
        let asked = Instant::now();
        guest.status();
        assert!(asked.elapsed() < PATIENCE);
        crowd.end();
    }
    page(&guest, "https://ok.test/", "ok", "ok.test");
}

#[test]
fn t58_a_header_that_never_ends_is_given_up_and_a_long_one_refused() {
    let Some(rig) = Rig::new() else { return };
    let guest = boot(&rig, "ok.test:443,80");
    let mark = rig.world.sync();
    let program = r#"
import socket, sys
waiting = []
for port, first in ((443, b"\x16\x03\x01"), (80, b"GET / HT"), (443, b""), (80, b"")):
    s = socket.create_connection(("ADDRESS", port), 5)
    s.settimeout(50)
    s.sendall(first)
    waiting.append((port, first, s))
for port, first, s in waiting:
    try:
        print(port, len(first), "ended", s.recv(10) and "told", flush=True)
    except OSError as error:
        print(port, len(first), error.__class__.__name__, flush=True)
for line in (b"X" * 70000, b"a: b\r\n" * 20000):
    s = socket.create_connection(("ADDRESS", 80), 5)
    s.settimeout(10)
    try:
        s.sendall(b"GET / HTTP/1.1\r\nHost: ok.test\r\n" + line)
    except OSError: pass
    try: print("long", s.recv(12))
    except OSError as error: print("long", error.__class__.__name__)
"#;
    let done = python(&guest, AGENT, &program.replace("ADDRESS", &host("ok")));
    assert_eq!(done.out.matches("ended").count(), 4, "{done:?}");
    assert!(!done.out.contains("200"), "{done:?}");
    crate::common::nothing_to(&rig, mark, &host("ok"));
    page(&guest, "http://ok.test/", "ok", "ok.test");
}
