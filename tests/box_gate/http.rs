//! HTTP/1 through the gate: every request of a connection is judged, and what could be read in two ways is not sent on.

use crate::common::{boot, denial, hellos_outside, nothing_to, page, python, quiet, token};
use crate::rig::{AGENT, ROOT, Rig, RunningBox, host};

/// Sends each text after the one before was answered, on one connection; prints what came back.
const TALK: &str = r#"
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 8)
s.settimeout(8)
for text in sys.argv[3:]:
    s.sendall(text.encode().decode("unicode_escape").encode("latin-1"))
    heard = b""
    try:
        while b"\r\n\r\n" not in heard:
            more = s.recv(65536)
            if not more: break
            heard += more
        head, _, body = heard.partition(b"\r\n\r\n")
        length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
        while len(body) < length:
            more = s.recv(65536)
            if not more: break
            body += more
        heard = head + b"\r\n\r\n" + body
    except OSError as error:
        heard += error.__class__.__name__.encode()
    print(heard.decode(errors="replace") or "closed", flush=True)
"#;

fn talk(guest: &RunningBox, user: &str, address: &str, port: &str, texts: &[&str]) -> String {
    let done = guest.exec_program(user, &[&["python3", "-c", TALK, address, port], texts].concat());
    done.both()
}

fn arrived(rig: &Rig, sign: &str) -> bool {
    let log = rig.world.log("http");
    log.iter()
        .any(|line| line["head"].to_string().contains(sign) || line["target"].to_string().contains(sign))
        || rig.world.saw(sign)
}

#[test]
fn t55_no_proxy_is_reached_through_an_allowed_name() {
    let Some(rig) = Rig::new() else { return };
    let ok = host("ok");
    let attempts = [
        ("CONNECT evil.test:443 HTTP/1.1\\r\\nHost: evil.test:443\\r\\n\\r\\n", "CONNECT evil.test"),
        ("CONNECT evil.test:443 HTTP/1.1\\r\\nHost: ok.test\\r\\n\\r\\n", "CONNECT evil.test"),
        ("CONNECT ok.test:80 HTTP/1.1\\r\\nHost: ok.test\\r\\n\\r\\n", "CONNECT ok.test"),
        ("GET http://evil.test/absolute-1 HTTP/1.1\\r\\nHost: ok.test\\r\\n\\r\\n", "absolute-1"),
        ("GET http://evil.test/absolute-2 HTTP/1.1\\r\\nHost: evil.test\\r\\n\\r\\n", "absolute-2"),
        ("GET ftp://ok.test/absolute-3 HTTP/1.1\\r\\nHost: ok.test\\r\\n\\r\\n", "absolute-3"),
        ("GET /mismatch HTTP/1.1\\r\\nHost: evil.test\\r\\n\\r\\n", "/mismatch"),
        ("GET /two-hosts HTTP/1.1\\r\\nHost: ok.test\\r\\nHost: evil.test\\r\\n\\r\\n", "/two-hosts"),
        ("GET /no-host HTTP/1.1\\r\\n\\r\\n", "/no-host"),
        (
            "GET /upgrade HTTP/1.1\\r\\nHost: ok.test\\r\\nConnection: Upgrade, HTTP2-Settings\\r\\nUpgrade: h2c\\r\\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\\r\\n\\r\\n",
            "/upgrade",
        ),
        ("PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n", "PRI *"),
        ("\\x05\\x01\\x00", "\u{5}\u{1}\u{0}"),
    ];
    for (text, sign) in &attempts[..9] {
        hellos_outside(&rig, &ok, "80", &[&format!("raw:{}", text.replace("\\\\", "\\"))]);
        assert!(arrived(&rig, sign), "{sign} reaches the server where no gate is");
    }
    let guest = boot(&rig, "ok.test:443,80");
    page(&guest, "http://ok.test/", "ok", "ok.test");
    let absolute = talk(
        &guest,
        AGENT,
        &ok,
        "80",
        &["GET http://ok.test/its-own HTTP/1.1\\r\\nHost: ok.test\\r\\n\\r\\n"],
    );
    assert!(absolute.contains(&token("ok", "ok.test")), "its own absolute form is in order: {absolute}");

    let mark = quiet(&rig, &[&ok]);
    for user in [AGENT, ROOT] {
        for (text, sign) in &attempts {
            let told = talk(&guest, user, &ok, "80", &[text]);
            assert!(!told.contains("token-") && !told.contains("HTTP/1.1 2"), "{user} {sign}: {told}");
        }
    }
    nothing_to(&rig, mark, &ok);
    nothing_to(&rig, mark, &host("evil"));
    assert!(!rig.world.asked().contains(&"evil.test".to_owned()));
    denial(&guest, "evil.test");
    for uid in [0, 1000] {
        guest.await_status(&format!("refusal of {uid}"), |status| {
            let all = status["denials"].as_array().cloned().unwrap_or_default();
            all.iter().any(|one| one["layer"] == "gate" && one["uid"] == uid)
        });
    }
}

#[test]
fn t55_every_request_of_a_connection_is_judged_and_not_only_the_first() {
    let Some(rig) = Rig::new() else { return };
    let ok = host("ok");
    let guest = boot(&rig, "ok.test:80;two.test:80");
    let get = |path: &str, name: &str| format!("GET /{path} HTTP/1.1\\r\\nHost: {name}\\r\\n\\r\\n");
    let both = talk(&guest, AGENT, &ok, "80", &[&get("first-a", "ok.test"), &get("second-a", "ok.test")]);
    assert_eq!(both.matches(&token("ok", "ok.test")).count(), 4, "token as header and body, twice: {both}");

    for (second, name) in [("second-b", "evil.test"), ("second-c", "evil-cdn.test")] {
        let told = talk(&guest, AGENT, &ok, "80", &[&get("first", "ok.test"), &get(second, name)]);
        assert!(told.contains(&token("ok", "ok.test")) && !told.contains(&format!("-{name}")), "{told}");
        assert!(!arrived(&rig, second), "{second}");
    }
    // In one piece, behind a body, behind a body in chunks, and behind lengths that contradict each other.
    let hidden = get("smuggled", "evil.test");
    let length = "GET /smuggled HTTP/1.1\r\nHost: evil.test\r\n\r\n".len();
    for (number, text) in [
        format!("{}{hidden}", get("pipelined", "ok.test")),
        format!("POST /one HTTP/1.1\\r\\nHost: ok.test\\r\\nContent-Length: 0\\r\\n\\r\\n{hidden}"),
        format!("POST /two HTTP/1.1\\r\\nHost: ok.test\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n{hidden}"),
        format!("POST /three HTTP/1.1\\r\\nHost: ok.test\\r\\nContent-Length: {length}\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n{hidden}"),
        format!("POST /four HTTP/1.1\\r\\nHost: ok.test\\r\\nContent-Length: 0\\r\\nContent-Length: {length}\\r\\n\\r\\n{hidden}"),
        format!("GET /five HTTP/1.1\\r\\nHost: ok.test\\r\\nTransfer-Encoding: xchunked\\r\\n\\r\\n{hidden}"),
        format!("GET /six HTTP/1.1\\r\\nHost: ok.test\\r\\nX: a\\n\\n{hidden}"),
    ]
    .iter()
    .enumerate()
    {
        let told = talk(&guest, AGENT, &ok, "80", &[text]);
        assert!(!told.contains("-evil.test"), "{number}: {told}");
    }
    let log = rig.world.log("http");
    // A server that reads the first request of each finds nothing of the second, neither as a request nor as the rest.
    let as_request = log.iter().any(|line| line["host"] == "evil.test");
    assert!(!as_request, "a hidden request arrived: {log:?}");
    page(&guest, "http://two.test/", "ok", "two.test");
}

#[test]
fn t56_a_websocket_and_a_long_answer_pass_by_name_and_their_octets_are_counted() {
    let Some(rig) = Rig::new() else { return };
    let guest = boot(&rig, "ok.test:443,80");
    let counted = |port: u64| {
        let status = guest.status();
        let row = status["traffic"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|row| row["name"] == "ok.test" && row["port"] == port)
            .cloned();
        row.map_or((0, 0), |row| {
            (row["bytes_out"].as_u64().unwrap_or(0), row["bytes_in"].as_u64().unwrap_or(0))
        })
    };
    let client = r#"
import socket, ssl, sys
s = socket.create_connection(("ok.test", int(sys.argv[1])), 8)
if sys.argv[1] == "443":
    s = ssl.create_default_context().wrap_socket(s, server_hostname="ok.test")
s.sendall(b"GET /chat HTTP/1.1\r\nHost: ok.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
          b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
heard = b""
while b"ok.test" not in heard.partition(b"\r\n\r\n")[2]:
    heard += s.recv(4096)
for i in range(100):
    s.sendall(b"\x81\xfe" + (1000).to_bytes(2, "big") + bytes(4) + b"w" * 1000)
    got = b""
    while len(got) < 1004:
        got += s.recv(4096)
s.sendall(b"\x88\x80" + bytes(4))
print(heard.split(b"\r\n")[0].decode(), s.recv(10))
"#;
    for port in [80, 443] {
        let before = counted(port);
        let done = guest.exec_program(AGENT, &["python3", "-c", client, &port.to_string()]);
        assert!(done.out.contains("HTTP/1.1 101"), "{port}: {done:?}\n{}", guest.logs());
        guest.await_status("the octets of the websocket", |status| {
            let all = status["traffic"].as_array().cloned().unwrap_or_default();
            all.iter().any(|row| {
                row["name"] == "ok.test"
                    && row["port"] == port
                    && row["bytes_out"].as_u64() >= Some(before.0 + 100_000)
                    && row["bytes_in"].as_u64() >= Some(before.1 + 100_000)
            })
        });
    }
    let long = guest.exec(AGENT, "curl -sS -m 20 https://ok.test/slow/3 | tail -1");
    assert!(long.out.contains("29"), "thirty lines over three seconds: {long:?}");
    // The audit log has the octets of each use.
    let log = guest.innkeeper(&["log", "--json"]).expect("log");
    let uses: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for port in [80, 443] {
        let of_ours = |one: &&serde_json::Value| {
            one["event"] == "used" && one["name"] == "ok.test" && one["port"] == port && one["uid"] == 1000
        };
        for way in ["bytes_out", "bytes_in"] {
            let octets: u64 = uses.iter().filter(of_ours).filter_map(|one| one[way].as_u64()).sum();
            assert!(octets >= 100_000, "{port} {way}: {octets} in {log}");
        }
    }
}

#[test]
fn a_request_body_of_a_megabyte_and_an_answer_of_ten_arrive_whole() {
    let Some(rig) = Rig::new() else { return };
    let guest = boot(&rig, "ok.test:443,80");
    for scheme in ["http", "https"] {
        let body = format!(
            "head -c 1000000 /dev/urandom > /tmp/body && curl -sS -m 30 --data-binary @/tmp/body {scheme}://ok.test/echo | cmp - /tmp/body && echo same"
        );
        assert_eq!(guest.exec(AGENT, &body).out, "same\n", "{scheme}");
        let chunked =
            format!("curl -sS -m 30 -T - {scheme}://ok.test/echo < /tmp/body | cmp - /tmp/body && echo same");
        assert_eq!(guest.exec(AGENT, &chunked).out, "same\n", "{scheme} in chunks");
        let download = format!("curl -sS -m 30 {scheme}://ok.test/bytes/10000000 | wc -c");
        assert_eq!(guest.exec(AGENT, &download).out.trim(), "10000000", "{scheme}");
    }
    let several = python(
        &guest,
        AGENT,
        "import http.client\nc = http.client.HTTPConnection('ok.test', 80, 10)\nfor i in range(20):\n  c.request('GET', f'/n{i}')\n  print(c.getresponse().read().decode(), end='')",
    );
    assert_eq!(several.out.matches("token-").count(), 20, "{several:?}");
}
