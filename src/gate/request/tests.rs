use proptest::prelude::{any, prop};
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::{Body, Kind, Manner, Read, Reader, Refused, Request, Way, parse};

/// At once and octet by octet.
fn read(text: &[u8]) -> Read {
    let whole = parse(text);
    let mut slow = Reader::default();
    let mut pieces = (0..=text.len()).map(|end| slow.read(&text[..end]));
    assert_eq!(pieces.find(|read| *read != Read::Incomplete).unwrap_or(Read::Incomplete), whole);
    whole
}

fn accepted(text: &str) -> Request {
    match read(text.as_bytes()) {
        Read::Head(request) => *request,
        other => panic!("{text:?}: {other:?}"),
    }
}

fn refused(text: &str) -> Refused {
    match read(text.as_bytes()) {
        Read::Refused(refused) => refused,
        other => panic!("{text:?}: {other:?}"),
    }
}

fn get(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n")
}

#[test]
fn requests_of_real_clients_are_read() {
    let curl =
        "GET /a?token=canary HTTP/1.1\r\nHost: Ok.Test\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\n\r\n";
    let request = accepted(&format!("{curl}GET"));
    assert_eq!((request.host.as_str(), request.port, request.length), ("ok.test", None, curl.len()));
    assert_eq!(request.what, "GET http://ok.test/a");
    assert_eq!((request.body, request.is_persistent, request.manner), (Body::NONE, true, Manner::default()));
    let apt = accepted(
        "GET /debian/dists/stable/InRelease HTTP/1.1\r\nHost: deb.test:8080\r\nCache-Control: max-age=0\r\nAccept: text/*\r\nUser-Agent: Debian APT-HTTP/1.3 (3.0)\r\n\r\n",
    );
    assert_eq!(
        (apt.port, apt.what.as_str()),
        (Some(8080), "GET http://deb.test:8080/debian/dists/stable/InRelease")
    );
    let post =
        accepted("POST /x HTTP/1.1\r\nhost:ok.test\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n");
    assert_eq!((post.body, post.expects), (Body::Length(5), true));
    let chunked = accepted(
        "POST /x HTTP/1.1\r\nHost: ok.test\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
    );
    assert_eq!((chunked.body, chunked.is_persistent), (Body::Chunked, false));
    let old = accepted("GET / HTTP/1.0\r\nHost: ok.test\r\n\r\n");
    assert!(!old.is_persistent);
    assert!(accepted("GET / HTTP/1.0\r\nHost: ok.test\r\nConnection: Keep-Alive\r\n\r\n").is_persistent);
    let socket =
        get("Host: ok.test\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: x");
    assert!(accepted(&socket).kind == Kind::WebSocket);
    assert_eq!(accepted("OPTIONS * HTTP/1.1\r\nHost: ok.test\r\n\r\n").what, "OPTIONS http://ok.test");
    let absolute = accepted("GET http://OK.test:80/p?q HTTP/1.1\r\nHost: ok.test\r\n\r\n");
    assert_eq!(absolute.what, "GET http://ok.test/p");
    assert_eq!(accepted("GET http://ok.test HTTP/1.1\r\nHost: ok.test\r\n\r\n").host.as_str(), "ok.test");
}

#[test]
fn t55_tunnels_and_other_protocols_are_forbidden() {
    for text in [
        "CONNECT evil.test:443 HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        "connect evil.test:443 HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: ok.test\r\n\r\n",
        "GET https://ok.test/ HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        "GET ftp://ok.test/ HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        &get(
            "Host: ok.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
        ),
        &get("Host: ok.test\r\nConnection: Upgrade\r\nUpgrade: h2c"),
        &get("Host: ok.test\r\nConnection: Upgrade\r\nUpgrade: websocket, H2C"),
        &get("Host: ok.test\r\nHTTP2-Settings: AAMAAABk"),
        &get("Host: ok.test\r\nConnection: Upgrade\r\nUpgrade: tcp"),
        &get("Host: 192.0.2.1"),
        &get("Host: [2001:db8::1]:80"),
        &get("Host: 0x7f.1"),
        "GET http://192.0.2.1/ HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
    ] {
        assert_eq!(refused(text).status, 403, "{text:?}");
    }
}

fn by_proxy(text: &str) -> Read {
    let mut slow = Reader::new(Way::Explicit);
    let whole = Reader::new(Way::Explicit).read(text.as_bytes());
    let mut pieces = (0..=text.len()).map(|end| slow.read(&text.as_bytes()[..end]));
    assert_eq!(pieces.find(|read| *read != Read::Incomplete).unwrap_or(Read::Incomplete), whole);
    whole
}

#[test]
fn a_proxy_is_asked_for_tunnels_and_urls() {
    let of = |text: &str| match by_proxy(text) {
        Read::Head(request) => *request,
        other => panic!("{text:?}: {other:?}"),
    };
    for host in ["Host: ok.test:443\r\n", "Host: OK.test\r\n", ""] {
        let tunnel =
            of(&format!("CONNECT ok.test:443 HTTP/1.1\r\n{host}Proxy-Connection: Keep-Alive\r\n\r\n"));
        assert!(tunnel.kind == Kind::Tunnel && tunnel.host.as_str() == "ok.test" && tunnel.port == Some(443));
    }
    assert_eq!(of("CONNECT ok.test:443 HTTP/1.0\r\n\r\n").kind, Kind::Tunnel);
    let get = of(
        "GET http://ok.test/a?b=http://c HTTP/1.1\r\nProxy-Authorization: Basic canary\r\nHost: ok.test\r\nX:  Kept \r\nproxy-connection: close\r\n\r\n",
    );
    let sent = String::from_utf8(get.rewritten.unwrap()).unwrap();
    assert_eq!(sent, "GET /a?b=http://c HTTP/1.1\r\nHost: ok.test\r\nX:  Kept \r\n\r\n");
    let first = |text: &str| {
        let sent = String::from_utf8(of(&format!("{text}\r\nHost: ok.test:8080\r\n\r\n")).rewritten.unwrap())
            .unwrap();
        sent.lines().next().unwrap().to_owned()
    };
    assert_eq!(first("GET http://ok.test:8080 HTTP/1.0"), "GET / HTTP/1.0");
    assert_eq!(first("GET http://ok.test:8080?q HTTP/1.1"), "GET /?q HTTP/1.1");
    assert_eq!(first("OPTIONS http://ok.test:8080 HTTP/1.1"), "OPTIONS * HTTP/1.1");
    for (bad, status) in [
        ("GET / HTTP/1.1\r\nHost: ok.test\r\n\r\n", 400),
        ("GET https://ok.test/ HTTP/1.1\r\nHost: ok.test\r\n\r\n", 403),
        ("GET http://ok.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n", 400),
        ("GET http://ok.test/ HTTP/1.0\r\n\r\n", 400),
        ("CONNECT ok.test HTTP/1.1\r\nHost: ok.test\r\n\r\n", 400),
        ("CONNECT ok.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n", 400),
        ("CONNECT ok.test:443 HTTP/1.1\r\nHost: ok.test:22\r\n\r\n", 400),
        ("CONNECT ok.test:443 HTTP/1.1\r\nHost: ok.test:443\r\nContent-Length: 5\r\n\r\n", 400),
        ("CONNECT ok.test:443\0.evil.test:443 HTTP/1.1\r\n\r\n", 400),
        ("CONNECT http://ok.test:443 HTTP/1.1\r\n\r\n", 400),
        ("CONNECT 192.0.2.1:443 HTTP/1.1\r\n\r\n", 403),
        ("CONNECT [2001:db8::1]:443 HTTP/1.1\r\n\r\n", 403),
        ("connect ok.test:443 HTTP/1.1\r\n\r\n", 403),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 403),
    ] {
        match by_proxy(bad) {
            Read::Refused(refused) => {
                assert_eq!(refused.status, status, "{bad:?}: {refused:?}");
                // There is no other way out.
                assert!(!refused.next.contains("no proxy"), "{bad:?}: {refused:?}");
            }
            other => panic!("{bad:?}: {other:?}"),
        }
    }
}

#[test]
fn what_could_be_read_in_two_ways_is_bad() {
    for text in [
        // Two hosts.
        &get("Host: ok.test\r\nHost: evil.test"),
        &get("Host: ok.test\r\nhost: ok.test"),
        &get("Host: ok.test, evil.test"),
        &get("Host: ok.test@evil.test"),
        &get("Host: user@ok.test"),
        &get("Host: ok.test/"),
        &get("Host: ok.test\t"),
        &get("Host:  ok.test"),
        &get("Host: ok.test "),
        &get("Host: ok.test."),
        &get("Host: ok.test:"),
        &get("Host: ok.test:080"),
        &get("Host: ok.test:99999"),
        &get("Host: ok.test:+80"),
        &get("Host:"),
        &get("Host: b\u{fc}cher.test"),
        &get("Accept: */*"),
        "GET / HTTP/1.0\r\n\r\n",
        "GET http://evil.test/ HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        "GET http://ok.test:8080/ HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        "GET http://ok.test@evil.test/ HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        "GET http://evil.test?ok.test/ HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        "GET http:ok.test/ HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        // Two lengths.
        &get("Host: ok.test\r\nContent-Length: 5\r\nContent-Length: 5"),
        &get("Host: ok.test\r\nContent-Length: 5, 5"),
        &get("Host: ok.test\r\nContent-Length: +5"),
        &get("Host: ok.test\r\nContent-Length: 5 "),
        &get("Host: ok.test\r\nContent-Length: 0x5"),
        &get("Host: ok.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked"),
        &get("Host: ok.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 5"),
        &get("Host: ok.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
        &get("Host: ok.test\r\nTransfer-Encoding: gzip, chunked"),
        &get("Host: ok.test\r\nTransfer-Encoding: xchunked"),
        &get("Host: ok.test\r\nTransfer-Encoding: Chunked"),
        &get("Host: ok.test\r\nTransfer-Encoding:\tchunked"),
        &get("Host: ok.test\r\nTransfer-Encoding: chunked "),
        &get("Host: ok.test\r\nTransfer-Encoding : chunked"),
        &get("Host: ok.test\r\n Transfer-Encoding: chunked"),
        &get("Host: ok.test\r\nX: y\r\n\tTransfer-Encoding: chunked"),
        &get("Host: ok.test\r\nConnection: close, Content-Length\r\nContent-Length: 5"),
        &get("Host: ok.test\r\nConnection: Host"),
        "POST / HTTP/1.0\r\nHost: ok.test\r\nTransfer-Encoding: chunked\r\n\r\n",
        // Other ends of lines.
        "GET / HTTP/1.1\nHost: ok.test\n\n",
        &get("Host: ok.test\nX: y"),
        &get("Host: ok.test\rX: y"),
        &get("Host: ok.test\0evil.test"),
        "\r\nGET / HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        // Other lines.
        "GET  / HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        " GET / HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: ok.test\r\n\r\n",
        "GET\t/ HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        "GET /\r\n",
        "GET / HTTP/1.2\r\nHost: ok.test\r\n\r\n",
        "GET / HTTP/0.9\r\nHost: ok.test\r\n\r\n",
        "GET / http/1.1\r\nHost: ok.test\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        "GET evil.test:80 HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        "GET /#a HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        "G(T / HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        &format!("{} / HTTP/1.1\r\nHost: ok.test\r\n\r\n", "A".repeat(33)),
        &get("Host: ok.test\r\nno colon"),
        &get("Host: ok.test\r\n: empty"),
        // Promises that the gate could not keep.
        &get("Host: ok.test\r\nExpect: 200-ok"),
        &get("Host: ok.test\r\nUpgrade: websocket"),
        &get("Host: ok.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5"),
        "GET / HTTP/1.0\r\nHost: ok.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    ] {
        assert_eq!(refused(text).status, 400, "{text:?}");
    }
}

#[test]
fn t62_what_is_not_http_is_refused_at_its_first_line() {
    for text in [
        "SSH-2.0-OpenSSH_10.0\r\n",
        "EHLO ok.test\r\n",
        "\x05\x01\0",
        "{\"jsonrpc\": 1}\r\n",
        "*1\r\n$4\r\nPING\r\n",
    ] {
        assert_eq!(refused(text).status, 400, "{text:?}");
    }
}

#[test]
fn a_refusal_is_said_as_the_client_wants() {
    let json = |accept: &str| {
        let text = format!("HEAD / HTTP/1.1\r\nHost: a..b\r\nAccept: {accept}\r\n\r\n");
        let manner = super::manner(text.as_bytes());
        assert!(manner.headless);
        manner.json
    };
    for (accept, wanted) in [
        ("application/json", true),
        ("application/json, text/plain, */*", true),
        ("application/vnd.github+json", true),
        ("text/html;q=0.5, application/json;q=0.9", true),
        ("*/*", false),
        ("text/plain, application/json", false),
        ("application/json;q=0.3, */*;q=0.8", false),
        ("application/json;q=0", false),
        ("image/png", false),
        ("application/json;q=nonsense;;", true),
    ] {
        assert_eq!(json(accept), wanted, "{accept}");
    }
    assert!(!super::manner(b"GET / HTTP/1.1\r\n").json);
}

#[test]
fn refusals_repeat_nothing_live() {
    let refused = refused(&get("Host: a\u{202e}b\u{85}"));
    assert!(!refused.what.contains(['\u{202e}', '\u{85}']), "{refused:?}");
    let long = accepted(&format!("GET /{} HTTP/1.1\r\nHost: ok.test\r\n\r\n", "a".repeat(5000)));
    assert!(long.what.len() < 200);
}

proptest! {
    #[test]
    fn octets_at_random_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let framed = [b"GET / HTTP/1.1\r\nHost: ok.test\r\n", bytes.as_slice(), b"\r\n\r\n"].concat();
        for bytes in [&bytes, &framed] {
            if let Read::Head(request) = parse(bytes) {
                prop_assert!(request.length <= bytes.len() && bytes[..request.length].ends_with(b"\r\n\r\n"));
            }
        }
    }

    #[test]
    fn heads_are_read_the_same_in_pieces(text in "(GET|HEAD|CONNECT|P) (/|\\*|http://ok.test/) HTTP/1.[012](\r\n|\n)(Host: (ok|evil).test(\r\n|\r|\n)){0,2}(Content-Length: [0-9]{1,2}\r\n)?(Transfer-Encoding: (chunked|x)\r\n)?( x\r\n)?\r\n") {
        let whole = parse(text.as_bytes());
        let mut slow = Reader::default();
        let first = (0..=text.len()).map(|end| slow.read(&text.as_bytes()[..end])).find(|read| *read != Read::Incomplete);
        prop_assert_eq!(first.unwrap_or(Read::Incomplete), whole);
    }
}
