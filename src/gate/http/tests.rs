//! Both peers are played here; what was let through is read at the server.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{End, Limits, Porter, serve, serve_proxy};
use crate::allowlist::DomainName;
use crate::gate::refusal::Refused;

/// Nothing here takes long; this ends a test that would wait for ever.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct Door {
    server: SocketAddr,
    opened: Vec<String>,
    refused: Vec<Refused>,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Porter for Door {
    async fn open(&mut self, host: &DomainName, port: Option<u16>, what: &str) -> Result<TcpStream, Refused> {
        self.opened.push(format!("{host} {port:?} {what}"));
        if host.as_str() != "ok.test" {
            let what = format!("{host} is not in the allowlist");
            return Err(Refused { status: 403, what, next: format!("innkeeper request {host}") });
        }
        Ok(TcpStream::connect(self.server).await.unwrap())
    }

    fn refused(&mut self, refused: &mut Refused) -> impl Future<Output = ()> + Send {
        self.refused.push(refused.clone());
        async {}
    }

    fn sent(&self, octets: u64) {
        self.sent.fetch_add(octets, Ordering::Relaxed);
    }

    fn received(&self, octets: u64) {
        self.received.fetch_add(octets, Ordering::Relaxed);
    }
}

struct World {
    client: TcpStream,
    servers: TcpListener,
    driver: JoinHandle<(End, Door)>,
}

const LIMITS: Limits = Limits { head: PATIENCE, keep_alive: PATIENCE, idle: PATIENCE };

async fn world(limits: Limits) -> World {
    let servers = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gate = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(gate.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = gate.accept().await.unwrap();
    let mut door = Door {
        server: servers.local_addr().unwrap(),
        opened: Vec::new(),
        refused: Vec::new(),
        sent: AtomicU64::default(),
        received: AtomicU64::default(),
    };
    let driver = tokio::spawn(async move { (serve(accepted, Vec::new(), &mut door, limits).await, door) });
    World { client, servers, driver }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it takes too long")
}

/// Exactly this comes next.
async fn expect(stream: &mut TcpStream, text: &str) {
    let mut octets = vec![0; text.len()];
    within(stream.read_exact(&mut octets)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&octets), text);
}

/// Everything until the other end closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut octets = Vec::new();
    // A reset is an end too.
    drop(within(stream.read_to_end(&mut octets)).await);
    String::from_utf8_lossy(&octets).into_owned()
}

async fn accept(servers: &TcpListener) -> TcpStream {
    within(servers.accept()).await.unwrap().0
}

async fn say(stream: &mut TcpStream, text: &str) {
    within(stream.write_all(text.as_bytes())).await.unwrap();
}

/// A request that has arrived at its server.
async fn asked(request: &str) -> (World, TcpStream) {
    let mut world = world(LIMITS).await;
    say(&mut world.client, request).await;
    let mut server = accept(&world.servers).await;
    expect(&mut server, request).await;
    (world, server)
}

const GET: &str = "GET /a HTTP/1.1\r\nHost: ok.test\r\nX-Odd:  Kept \r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn requests_and_answers_pass_unchanged() {
    let mut world = world(LIMITS).await;
    say(&mut world.client, GET).await;
    let mut server = accept(&world.servers).await;
    for _ in 0..3 {
        expect(&mut server, GET).await;
        say(&mut server, OK).await;
        expect(&mut world.client, OK).await;
        say(&mut world.client, GET).await;
    }
    expect(&mut server, GET).await;
    say(&mut server, CHUNKED).await;
    expect(&mut world.client, CHUNKED).await;
    drop(world.client);
    let (end, door) = within(world.driver).await.unwrap();
    assert!(matches!(end, End::Closed));
    assert_eq!(door.opened, ["ok.test None GET http://ok.test/a"]);
    assert_eq!(door.sent.into_inner(), 4 * GET.len() as u64);
    assert_eq!(door.received.into_inner(), (3 * OK.len() + CHUNKED.len()) as u64);
    assert_eq!(rest(&mut server).await, "");
}

#[tokio::test]
async fn requests_in_a_line_are_answered_in_their_order() {
    let mut world = world(LIMITS).await;
    let post = "POST /b HTTP/1.1\r\nHost: ok.test:80\r\nContent-Length: 3\r\n\r\nabc";
    let evil = "GET /c HTTP/1.1\r\nHost: evil.test\r\n\r\n";
    say(&mut world.client, &format!("{GET}{post}{evil}{GET}")).await;
    let mut server = accept(&world.servers).await;
    expect(&mut server, GET).await;
    say(&mut server, "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n").await;
    say(&mut server, OK).await;
    expect(&mut server, post).await;
    say(&mut server, OK).await;
    let answers = rest(&mut world.client).await;
    let expected = format!("HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n{OK}{OK}HTTP/1.1 421 Misdirected");
    assert!(answers.starts_with(&expected), "{answers}");
    assert!(answers.contains("a request for evil.test:80 is refused"), "{answers}");
    assert_eq!(rest(&mut server).await, "", "nothing of the third arrived");
    let (_, door) = within(world.driver).await.unwrap();
    assert_eq!((door.opened.len(), door.refused.len()), (1, 1));
}

/// What the client got and what the server got when `attack` was sent, after a request that passed if `after`.
async fn attack(attack: &str, after: bool) -> (String, String) {
    let mut world = world(LIMITS).await;
    let mut server = None;
    if after {
        say(&mut world.client, GET).await;
        let stream = server.insert(accept(&world.servers).await);
        expect(stream, GET).await;
        say(stream, OK).await;
        expect(&mut world.client, OK).await;
    }
    say(&mut world.client, attack).await;
    let got = rest(&mut world.client).await;
    drop(world.client);
    let (end, _) = within(world.driver).await.unwrap();
    assert!(matches!(end, End::Closed));
    let arrived = match &mut server {
        Some(server) => rest(server).await,
        // Nobody came: nothing arrived.
        None => match timeout(Duration::ZERO, world.servers.accept()).await {
            Ok(accepted) => rest(&mut accepted.unwrap().0).await,
            Err(_) => String::new(),
        },
    };
    (got, arrived)
}

#[tokio::test]
async fn t55_nothing_is_smuggled() {
    let evil = "GET /evil HTTP/1.1\r\nHost: evil.test\r\n\r\n";
    for head in [
        "CONNECT evil.test:443 HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET http://evil.test/ HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: ok.test\r\nHost: evil.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: ok.test\r\n X: evil\r\n\r\n",
        "GET / HTTP/1.1\nHost: ok.test\n\n",
        "GET / HTTP/1.1\r\nHost: ok.test\r\nX: a\rb\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: ok.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: ok.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: ok.test\r\nTransfer-Encoding: x, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: ok.test\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 0\r\nContent-Length: 40\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        evil,
    ] {
        for after in [false, true] {
            let (got, arrived) = attack(&format!("{head}{evil}"), after).await;
            let refused =
                ["400", "403", "421"].iter().any(|code| got.starts_with(&format!("HTTP/1.1 {code} ")));
            assert!(refused, "{head:?}: {got}");
            assert_eq!(got.matches("Server: innkeeper").count(), 1, "one answer: {got}");
            assert_eq!(arrived, "", "{head:?} arrived");
        }
    }
}

#[tokio::test]
async fn a_request_in_a_body_is_a_body() {
    let evil = "GET /evil HTTP/1.1\r\nHost: evil.test\r\n\r\n";
    let length = evil.len();
    for body in [
        format!("POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: {length}\r\n\r\n{evil}"),
        format!(
            "POST / HTTP/1.1\r\nHost: ok.test\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{evil}\r\n0\r\n\r\n"
        ),
    ] {
        let mut world = world(LIMITS).await;
        say(&mut world.client, &format!("{body}{evil}")).await;
        let mut server = accept(&world.servers).await;
        expect(&mut server, &body).await;
        say(&mut server, OK).await;
        expect(&mut world.client, OK).await;
        assert!(rest(&mut world.client).await.starts_with("HTTP/1.1 421 "));
        assert_eq!(rest(&mut server).await, "");
    }
}

#[tokio::test]
async fn a_damaged_body_ends_both_connections() {
    for chunk in [
        "5\nhello\n0\n\n",
        "2\r\nokGET /evil HTTP/1.1\r\n",
        "0\r\nHost: evil.test\r\n\r\n",
        "zz\r\n",
        "5 \r\n",
    ] {
        let head = "POST / HTTP/1.1\r\nHost: ok.test\r\nTransfer-Encoding: chunked\r\n\r\n";
        let (mut world, mut server) = asked(head).await;
        say(&mut world.client, chunk).await;
        let got = rest(&mut world.client).await;
        assert!(got.starts_with("HTTP/1.1 400 "), "{chunk:?}: {got}");
        assert_eq!(rest(&mut server).await, "", "{chunk:?}");
    }
}

#[tokio::test]
async fn t56_a_websocket_is_a_tunnel_by_name() {
    let ask = "GET /ws HTTP/1.1\r\nHost: ok.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let agreed =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x01first";
    let mut world = world(LIMITS).await;
    say(&mut world.client, &format!("{ask}early")).await;
    let mut server = accept(&world.servers).await;
    expect(&mut server, ask).await;
    say(&mut server, agreed).await;
    expect(&mut world.client, agreed).await;
    let (end, _) = within(world.driver).await.unwrap();
    let End::Tunnel { mut client, server: mut relayed, unsent } = end else { panic!("{end:?}") };
    assert_eq!(unsent, b"early");
    say(&mut relayed, "to the server").await;
    expect(&mut server, "to the server").await;
    say(&mut client, "to the client").await;
    expect(&mut world.client, "to the client").await;
}

#[tokio::test]
async fn a_websocket_that_is_refused_is_a_request_like_any_other() {
    let ask = "GET /ws HTTP/1.1\r\nHost: ok.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut world = world(LIMITS).await;
    say(&mut world.client, &format!("{ask}GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n")).await;
    let mut server = accept(&world.servers).await;
    expect(&mut server, ask).await;
    say(&mut server, OK).await;
    expect(&mut world.client, OK).await;
    assert!(rest(&mut world.client).await.starts_with("HTTP/1.1 421 "));
    assert_eq!(rest(&mut server).await, "");
}

#[tokio::test]
async fn a_tunnel_that_nobody_asked_for_is_none() {
    let (mut world, mut server) = asked(GET).await;
    say(&mut server, "HTTP/1.1 101 Switching Protocols\r\n\r\n").await;
    say(&mut world.client, "GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n").await;
    assert!(rest(&mut world.client).await.starts_with("HTTP/1.1 502 "));
    assert_eq!(rest(&mut server).await, "");
}

const EXPECTS: &str =
    "POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 39\r\nExpect: 100-continue\r\n\r\n";

#[tokio::test]
async fn a_body_that_waits_comes_after_the_100() {
    let (mut world, mut server) = asked(EXPECTS).await;
    say(&mut server, "HTTP/1.1 100 Continue\r\n\r\n").await;
    expect(&mut world.client, "HTTP/1.1 100 Continue\r\n\r\n").await;
    say(&mut world.client, &"x".repeat(39)).await;
    expect(&mut server, &"x".repeat(39)).await;
    say(&mut server, OK).await;
    expect(&mut world.client, OK).await;
    say(&mut world.client, GET).await;
    expect(&mut server, GET).await;
}

/// The server answered without the body: what the client sends as one would be a request to it.
#[tokio::test]
async fn a_body_that_nobody_waits_for_never_arrives() {
    let evil = "GET /evil HTTP/1.1\r\nHost: evil.test\r\n\r\n";
    let mut world = world(LIMITS).await;
    say(&mut world.client, &format!("{EXPECTS}{evil}")).await;
    let mut server = accept(&world.servers).await;
    expect(&mut server, EXPECTS).await;
    say(&mut server, OK).await;
    assert_eq!(rest(&mut world.client).await, OK);
    assert_eq!(rest(&mut server).await, "");
}

#[tokio::test]
async fn large_bodies_flow_both_ways_at_once() {
    const SIZE: usize = 6 << 20;
    let mut world = world(LIMITS).await;
    let head = format!("POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: {SIZE}\r\n\r\n");
    let echo = tokio::spawn(async move {
        let mut server = accept(&world.servers).await;
        let request = format!("POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: {SIZE}\r\n\r\n");
        expect(&mut server, &request).await;
        say(&mut server, &format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n")).await;
        let (mut read, mut write) = server.split();
        within(tokio::io::copy(&mut (&mut read).take(SIZE as u64), &mut write)).await.unwrap();
        server
    });
    let pattern: Vec<u8> = (0..=250).cycle().take(SIZE).collect();
    let (mut read, mut write) = world.client.split();
    let send = async {
        write.write_all(head.as_bytes()).await.unwrap();
        write.write_all(&pattern).await.unwrap();
    };
    let receive = async {
        let mut octets = vec![0; SIZE + head.len()];
        let length = SIZE + format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").len();
        octets.truncate(length);
        read.read_exact(&mut octets).await.unwrap();
        octets
    };
    let ((), got) = within(async { tokio::join!(send, receive) }).await;
    assert!(got.ends_with(&pattern), "the body is another one");
    // And another request may follow.
    say(&mut world.client, GET).await;
    let mut server = within(echo).await.unwrap();
    expect(&mut server, GET).await;
}

#[tokio::test]
async fn an_early_answer_arrives_and_ends_the_connection() {
    let mut world = world(LIMITS).await;
    say(&mut world.client, "POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 1000\r\n\r\nbegin").await;
    let mut server = accept(&world.servers).await;
    expect(&mut server, "POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 1000\r\n\r\nbegin").await;
    let refusal = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n";
    say(&mut server, refusal).await;
    expect(&mut world.client, refusal).await;
    // A server that goes on may take the rest of the body for its next request: it gets none of it.
    say(&mut world.client, &format!("GET /x HTTP/1.1\r\nHost: evil.test\r\n\r\n{:953}", "")).await;
    assert_eq!(rest(&mut world.client).await, "");
    assert_eq!(rest(&mut server).await, "");
}

/// Many a client sends all of its body before it reads: one that could not send it would not hear the answer.
#[tokio::test]
async fn a_large_upload_that_is_answered_early_can_be_sent_to_its_end_and_arrives_nowhere() {
    const SIZE: usize = 8 << 20;
    let answer = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n";
    for field in ["", "Expect: 100-continue\r\n"] {
        let head = format!("POST / HTTP/1.1\r\nHost: ok.test\r\n{field}Content-Length: {SIZE}\r\n\r\n");
        let (mut world, mut server) = asked(&head).await;
        say(&mut server, answer).await;
        assert_eq!(rest(&mut server).await, "", "it goes on, and would take a body for a request");
        within(world.client.write_all(&vec![b'x'; SIZE])).await.unwrap();
        assert_eq!(rest(&mut world.client).await, answer);
    }
}

#[tokio::test]
async fn a_large_upload_that_is_refused_hears_why() {
    const SIZE: usize = 8 << 20;
    let mut world = world(LIMITS).await;
    say(&mut world.client, &format!("POST / HTTP/1.1\r\nHost: evil.test\r\nContent-Length: {SIZE}\r\n\r\n"))
        .await;
    within(world.client.write_all(&vec![b'x'; SIZE])).await.unwrap();
    assert!(rest(&mut world.client).await.contains("innkeeper request evil.test"));
    drop(world.client);
    assert_eq!(within(world.driver).await.unwrap().1.opened, ["evil.test None POST http://evil.test/"]);
}

#[tokio::test]
async fn a_large_upload_to_a_server_that_answers_and_goes_hears_the_answer() {
    const SIZE: usize = 8 << 20;
    let answer = "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let head = format!("POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: {SIZE}\r\n\r\n");
    let (mut world, mut server) = asked(&head).await;
    say(&mut world.client, "some of it").await;
    // It has not read that: this is a reset.
    within(server.readable()).await.unwrap();
    say(&mut server, answer).await;
    drop(server);
    within(world.client.write_all(&vec![b'x'; SIZE - 10])).await.unwrap();
    assert_eq!(rest(&mut world.client).await, answer);
}

#[tokio::test]
async fn an_early_answer_without_a_length_is_over_at_once() {
    let head = "POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 9\r\n\r\n";
    let (mut world, mut server) = asked(head).await;
    let answer = "HTTP/1.0 400 Bad Request\r\n\r\nno";
    say(&mut server, answer).await;
    server.shutdown().await.unwrap();
    let mut heard = String::new();
    within(world.client.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard, answer);
}

/// An answer without a length is over when its connection is.
#[tokio::test]
async fn an_answer_that_is_cut_does_not_look_whole() {
    let answer = "HTTP/1.0 200 OK\r\n\r\nthe first half";
    for is_whole in [true, false] {
        let (mut world, mut server) = asked(GET).await;
        say(&mut server, answer).await;
        expect(&mut world.client, answer).await;
        if is_whole {
            drop(server);
            assert_eq!(within(world.client.read(&mut [0; 8])).await.unwrap(), 0);
            assert!(matches!(within(world.driver).await.unwrap().0, End::Closed));
            let error = world.client.take_error().unwrap();
            assert!(error.is_none(), "and nothing comes after it: {error:?}");
        } else {
            // A rule is revoked, or the worker dies.
            world.driver.abort();
            let error = within(world.client.read(&mut [0; 8])).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    }
}

#[tokio::test]
async fn a_server_that_ends_early_has_answered() {
    let mut world = world(LIMITS).await;
    say(&mut world.client, "POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 99999999\r\n\r\n").await;
    let mut server = accept(&world.servers).await;
    say(&mut server, "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n\r\n").await;
    server.shutdown().await.unwrap();
    expect(&mut world.client, "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n\r\n").await;
    drop(server);
    // However much it still sends: the end comes, and not as a wait for all of the body.
    let more = vec![b'x'; 1 << 16];
    while within(world.client.write_all(&more)).await.is_ok() {}
}

#[tokio::test]
async fn a_server_without_an_answer_is_said_once() {
    let mut world = world(LIMITS).await;
    say(&mut world.client, GET).await;
    drop(accept(&world.servers).await);
    let got = rest(&mut world.client).await;
    assert!(
        got.starts_with("HTTP/1.1 502 Bad Gateway\r\n") && got.contains("ok.test may be reached, but"),
        "{got}"
    );

    // On a connection that was used the client tries again by itself, if nothing is said.
    let (mut world, mut server) = asked(GET).await;
    say(&mut server, OK).await;
    expect(&mut world.client, OK).await;
    say(&mut world.client, GET).await;
    expect(&mut server, GET).await;
    drop(server);
    assert_eq!(rest(&mut world.client).await, "");
}

#[tokio::test]
async fn a_server_that_ends_between_requests_ends_it_for_the_client() {
    for last_words in ["", "HTTP/1.1 408 Request Timeout\r\n\r\n"] {
        let (mut world, mut server) = asked(GET).await;
        say(&mut server, OK).await;
        expect(&mut world.client, OK).await;
        say(&mut server, last_words).await;
        drop(server);
        assert_eq!(rest(&mut world.client).await, "");
    }
}

#[tokio::test]
async fn odd_answers_pass_and_are_the_last() {
    for answer in [
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok",
        "HTTP/1.0 200 OK\r\n\r\nuntil the end",
        "220 mail.ok.test ESMTP\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\ncut",
    ] {
        let mut world = world(LIMITS).await;
        say(&mut world.client, &format!("{GET}{GET}")).await;
        let mut server = accept(&world.servers).await;
        expect(&mut server, GET).await;
        say(&mut server, answer).await;
        server.shutdown().await.unwrap();
        assert_eq!(rest(&mut world.client).await, answer);
        assert_eq!(rest(&mut server).await, "", "the second request after {answer:?}");
    }
}

/// A client whose request waits behind such an answer is not left to wait for the server's time to be up.
#[tokio::test]
async fn behind_an_odd_answer_of_a_server_that_stays_no_request_is_stuck() {
    for answer in [
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX-Folded: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
    ] {
        for at_once in [true, false] {
            let mut world = world(LIMITS).await;
            say(&mut world.client, &GET.repeat(if at_once { 2 } else { 1 })).await;
            let mut server = accept(&world.servers).await;
            expect(&mut server, GET).await;
            say(&mut server, answer).await;
            expect(&mut world.client, answer).await;
            if !at_once {
                world.client.write_all(GET.as_bytes()).await.ok();
            }
            assert_eq!(rest(&mut world.client).await, "", "{answer:?}");
            assert_eq!(rest(&mut server).await, "", "the second request after {answer:?}");
        }
    }
}

#[tokio::test]
async fn requests_that_were_sent_before_a_half_close_are_all_answered() {
    let mut world = world(LIMITS).await;
    say(&mut world.client, &GET.repeat(3)).await;
    world.client.shutdown().await.unwrap();
    let mut server = accept(&world.servers).await;
    for _ in 0..3 {
        expect(&mut server, GET).await;
        say(&mut server, OK).await;
    }
    assert_eq!(rest(&mut world.client).await, OK.repeat(3));
    assert_eq!(rest(&mut server).await, "");
}

#[tokio::test]
async fn an_answer_to_a_head_has_no_body() {
    let head = "HEAD / HTTP/1.1\r\nHost: ok.test\r\n\r\n";
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n";
    let mut world = world(LIMITS).await;
    say(&mut world.client, &format!("{head}{head}HEAD / HTTP/1.1\r\nHost: evil.test\r\n\r\n")).await;
    let mut server = accept(&world.servers).await;
    for _ in 0..2 {
        expect(&mut server, head).await;
        say(&mut server, answer).await;
        expect(&mut world.client, answer).await;
    }
    let got = rest(&mut world.client).await;
    assert!(got.starts_with("HTTP/1.1 421 ") && got.ends_with("\r\n\r\n"), "{got:?}");
}

#[tokio::test]
async fn the_porter_refuses_by_name() {
    let mut world = world(LIMITS).await;
    say(
        &mut world.client,
        "GET /?token=canary HTTP/1.1\r\nHost: evil.test\r\nAccept: application/json\r\n\r\n",
    )
    .await;
    let got = rest(&mut world.client).await;
    let body = got.split_once("\r\n\r\n").unwrap().1;
    let said: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(
        (said["status"].as_u64(), said["next"].as_str()),
        (Some(403), Some("innkeeper request evil.test"))
    );
    let (_, door) = within(world.driver).await.unwrap();
    assert_eq!(door.opened, ["evil.test None GET http://evil.test/"]);
    assert_eq!(door.refused, [], "it was the porter's own");
}

#[tokio::test]
async fn t58_a_slow_head_is_cut_off() {
    let limits = Limits { head: Duration::from_millis(50), ..LIMITS };
    let mut world = world(limits).await;
    say(&mut world.client, "GET / HTTP/1.1\r\nHos").await;
    assert!(rest(&mut world.client).await.starts_with("HTTP/1.1 408 Request Timeout\r\n"));
}

#[tokio::test]
async fn t58_idle_connections_end() {
    let limits = Limits { keep_alive: Duration::from_millis(50), ..LIMITS };
    let mut idle = world(limits).await;
    say(&mut idle.client, GET).await;
    let mut server = accept(&idle.servers).await;
    expect(&mut server, GET).await;
    say(&mut server, OK).await;
    assert_eq!(rest(&mut idle.client).await, OK, "quietly");

    let limits = Limits { idle: Duration::from_millis(50), ..LIMITS };
    let mut silent = world(limits).await;
    say(&mut silent.client, GET).await;
    let mut server = accept(&silent.servers).await;
    expect(&mut server, GET).await;
    assert!(rest(&mut silent.client).await.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"));
    assert_eq!(rest(&mut server).await, "");
}

#[tokio::test]
async fn a_client_that_ends_its_side_still_gets_its_answer() {
    let mut world = world(LIMITS).await;
    say(&mut world.client, GET).await;
    world.client.shutdown().await.unwrap();
    let mut server = accept(&world.servers).await;
    assert_eq!(rest(&mut server).await, GET, "the server sees the end too");
    say(&mut server, OK).await;
    assert_eq!(rest(&mut world.client).await, OK);
}

#[tokio::test]
async fn a_client_that_goes_away_takes_the_server_connection_along() {
    let mut world = world(LIMITS).await;
    say(&mut world.client, "POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 100\r\n\r\nbegin").await;
    let mut server = accept(&world.servers).await;
    drop(world.client);
    assert!(rest(&mut server).await.ends_with("begin"));
    assert!(matches!(within(world.driver).await.unwrap().0, End::Closed));
}

#[tokio::test]
async fn what_was_read_before_is_a_part_of_the_request() {
    let servers = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gate = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(gate.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = gate.accept().await.unwrap();
    let (server, zero) = (servers.local_addr().unwrap(), AtomicU64::default);
    let mut door = Door { server, opened: Vec::new(), refused: Vec::new(), sent: zero(), received: zero() };
    let (sniffed, later) = GET.split_at(7);
    let sniffed = sniffed.as_bytes().to_vec();
    let driver = tokio::spawn(async move { drop(serve(accepted, sniffed, &mut door, LIMITS).await) });
    say(&mut client, later).await;
    expect(&mut accept(&servers).await, GET).await;
    drop(client);
    within(driver).await.unwrap();
}

/// Thousands of connections wait: what each of them holds then is what the gate's memory is.
#[tokio::test]
async fn a_waiting_connection_is_small() {
    let world = world(LIMITS).await;
    world.driver.abort();
    let server = world.servers.local_addr().unwrap();
    let zero = AtomicU64::default;
    let mut door = Door { server, opened: Vec::new(), refused: Vec::new(), sent: zero(), received: zero() };
    let size = size_of_val(&serve(world.client, Vec::new(), &mut door, LIMITS));
    assert!(size < 2048, "{size} octets");
}

async fn proxy() -> World {
    let mut world = world(LIMITS).await;
    world.driver.abort();
    let gate = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.client = TcpStream::connect(gate.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = gate.accept().await.unwrap();
    let (server, zero) = (world.servers.local_addr().unwrap(), AtomicU64::default);
    let mut door = Door { server, opened: Vec::new(), refused: Vec::new(), sent: zero(), received: zero() };
    world.driver = tokio::spawn(async move { (serve_proxy(accepted, &mut door, LIMITS).await, door) });
    world
}

#[tokio::test]
async fn a_proxy_sends_paths_and_follows_each_host() {
    let mut world = proxy().await;
    say(&mut world.client, "GET http://ok.test/a HTTP/1.1\r\nHost: ok.test\r\nProxy-Connection: x\r\n\r\n")
        .await;
    let mut server = accept(&world.servers).await;
    expect(&mut server, "GET /a HTTP/1.1\r\nHost: ok.test\r\n\r\n").await;
    say(&mut server, OK).await;
    expect(&mut world.client, OK).await;
    say(&mut world.client, "GET http://ok.test:8080/b HTTP/1.1\r\nHost: ok.test:8080\r\n\r\n").await;
    let mut other = accept(&world.servers).await;
    expect(&mut other, "GET /b HTTP/1.1\r\nHost: ok.test:8080\r\n\r\n").await;
    assert_eq!(rest(&mut server).await, "", "the connection to the first was closed");
    say(&mut other, OK).await;
    expect(&mut world.client, OK).await;
    say(&mut world.client, "GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n").await;
    assert!(rest(&mut world.client).await.starts_with("HTTP/1.1 403 "));
    assert_eq!(rest(&mut other).await, "");
}

#[tokio::test]
async fn a_proxy_hands_tunnels_back_unanswered() {
    let mut world = proxy().await;
    say(&mut world.client, "CONNECT ok.test:443 HTTP/1.1\r\nHost: ok.test:443\r\n\r\n\x16\x03\x01").await;
    let (end, door) = within(world.driver).await.unwrap();
    let End::Connect { client, asked, unsent } = end else { panic!("{end:?}") };
    assert_eq!(
        (asked.host.as_str(), asked.port, unsent.as_slice()),
        ("ok.test", Some(443), &b"\x16\x03\x01"[..])
    );
    assert_eq!(door.opened.len(), 0);
    drop(client);
    assert_eq!(rest(&mut world.client).await, "");
}
