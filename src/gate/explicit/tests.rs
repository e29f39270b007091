//! The worker as a whole, as a proxy: a resolver and servers are played on the loopback; what was let through is read at
//! the server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use crate::channel;
use crate::gate::protocol::{Door, FromWorker, MAX_FROM_WORKER, MAX_TO_WORKER, Setup, ToWorker};
use crate::gate::upstream::Proxy;
use crate::worker::policy::Policy;

/// Nothing here takes long; this ends a test that would wait for ever.
const PATIENCE: Duration = Duration::from_secs(20);

/// Says of every name that it is here.
fn resolver() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut packet = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            // A header, one name, type and class; what follows (EDNS) is left out.
            let name = packet[12..length].iter().position(|octet| *octet == 0).unwrap();
            let question = &packet[12..12 + name + 5];
            let is_a = question[name + 2] == 1;
            let counts = [0, 1, 0, u8::from(is_a), 0, 0, 0, 0];
            let mut answer = [&packet[..2], &[0x81, 0x80], &counts, question].concat();
            if is_a {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
            }
            socket.send_to(&answer, from).unwrap();
        }
    });
    address
}

struct World {
    gate: SocketAddr,
    /// Open as long as the worker is to live.
    channel: UnixStream,
}

fn world(rules: &[String], proxy: Option<Proxy>) -> World {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gate = listener.local_addr().unwrap();
    let setup = Setup {
        sockets: vec![Door::Explicit],
        resolver: resolver(),
        policy: Policy { generation: 1, rules: rules.to_vec(), requests: false, ceiling: None },
        agent_uid: 1000,
        proxy,
        idle_s: 60,
        lifetime_s: 60,
    };
    channel::send_with_sockets(&ours, &ToWorker::Setup(setup), &[listener.as_fd()], MAX_TO_WORKER).unwrap();
    std::thread::spawn(move || drop(crate::gate::serve(theirs)));
    World { gate, channel: ours }
}

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

impl World {
    fn client(&self, text: &str) -> TcpStream {
        let mut client = TcpStream::connect(self.gate).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(text.as_bytes()).unwrap();
        client
    }
}

fn head(stream: &mut impl Read) -> String {
    let mut octets = Vec::new();
    while !octets.ends_with(b"\r\n\r\n") {
        let mut octet = [0];
        stream.read_exact(&mut octet).unwrap();
        octets.push(octet[0]);
    }
    String::from_utf8(octets).unwrap()
}

fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut octets = Vec::new();
    // A reset is an end too.
    drop(stream.read_to_end(&mut octets));
    octets
}

fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut octets = Vec::new();
    let name = name.to_owned().try_into().unwrap();
    rustls::ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut octets).unwrap();
    octets
}

#[test]
fn the_worker_answers_pings() {
    let world = world(&[], None);
    world.channel.set_read_timeout(Some(PATIENCE)).unwrap();
    channel::send(&world.channel, &ToWorker::Ping, MAX_TO_WORKER).unwrap();
    let frames =
        std::iter::from_fn(|| channel::receive::<FromWorker>(&world.channel, MAX_FROM_WORKER).unwrap());
    assert!(frames.take(9).any(|frame| frame == FromWorker::Pong));
}

#[test]
fn a_tunnel_leads_to_the_name_that_both_say() {
    let (servers, port) = listen();
    let world = world(&[format!("ok.test:{port} tls"), format!("also.test:{port} tls")], None);
    let connect =
        |name: &str| world.client(&format!("CONNECT {name}:{port} HTTP/1.1\r\nHost: {name}:{port}\r\n\r\n"));
    let mut client = connect("ok.test");
    assert!(head(&mut client).starts_with("HTTP/1.1 200 "));
    client.write_all(&hello("ok.test")).unwrap();
    let mut server = servers.accept().unwrap().0;
    let mut arrived = vec![0; hello("ok.test").len()];
    server.read_exact(&mut arrived).unwrap();
    assert!(arrived.windows(7).any(|part| part == b"ok.test"));
    server.write_all(b"answer").unwrap();
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");

    servers.set_nonblocking(true).unwrap();
    // An allowed name too, but another one; then a name that is not allowed, no name, no TLS, no allowed name to begin with.
    for name in ["also.test", "evil.test", "192.0.2.1"] {
        let mut client = connect("ok.test");
        assert!(head(&mut client).starts_with("HTTP/1.1 200 "));
        client.write_all(&hello(name)).unwrap();
        let said = rest(&mut client);
        assert!(said.starts_with(&[21, 3, 3, 0, 2, 2]) && said.len() == 7, "{name}: {said:?}");
    }
    for request in [
        "GET / HTTP/1.1\r\nHost: ok.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        "SSH-2.0-x\r\n",
    ] {
        let mut client = connect("ok.test");
        head(&mut client);
        client.write_all(request.as_bytes()).unwrap();
        assert!(rest(&mut client).starts_with(b"HTTP/1.1 4"), "{request:?}");
    }
    let said = rest(&mut connect("evil.test"));
    assert!(said.starts_with(b"HTTP/1.1 403 "), "{}", said.escape_ascii());
    assert!(servers.accept().is_err(), "somebody came to the server");
}

#[test]
fn a_port_that_carries_neither_is_open_by_its_name_alone() {
    let (servers, port) = listen();
    let world = world(&[format!("ok.test:{port}")], None);
    let mut client = world.client(&format!("CONNECT ok.test:{port} HTTP/1.1\r\n\r\nearly"));
    let mut server = servers.accept().unwrap().0;
    assert!(head(&mut client).starts_with("HTTP/1.1 200 "));
    server.write_all(b"SSH-2.0-server\r\n\r\n").unwrap();
    assert_eq!(head(&mut client), "SSH-2.0-server\r\n\r\n");
    let mut early = [0; 5];
    server.read_exact(&mut early).unwrap();
    assert_eq!(&early, b"early");
    let said = rest(&mut world.client("CONNECT ok.test:9 HTTP/1.1\r\n\r\n"));
    assert!(said.starts_with(b"HTTP/1.1 403 ") && said.escape_ascii().to_string().contains("allowed on"));
}

#[test]
fn a_url_is_asked_for_as_a_path() {
    let (servers, port) = listen();
    let world = world(&[format!("ok.test:{port} http")], None);
    let mut client =
        world.client(&format!("GET http://ok.test:{port}/a HTTP/1.1\r\nHost: ok.test:{port}\r\n\r\n"));
    let mut server = servers.accept().unwrap().0;
    assert_eq!(head(&mut server), format!("GET /a HTTP/1.1\r\nHost: ok.test:{port}\r\n\r\n"));
    server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    assert_eq!(head(&mut client), "HTTP/1.1 204 No Content\r\n\r\n");
    client.write_all(b"GET http://evil.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n").unwrap();
    assert!(rest(&mut client).starts_with(b"HTTP/1.1 403 "));
}

#[test]
fn names_that_are_not_private_go_through_the_proxy() {
    let (proxies, port) = listen();
    let (servers, inside) = listen();
    let proxy = Proxy::parse(&format!("http://u:canary@127.0.0.1:{port}")).unwrap();
    let world = world(&["ok.test".to_owned(), format!("in.test:{inside} private http")], Some(proxy));
    let mut client = world.client("CONNECT ok.test:443 HTTP/1.1\r\n\r\n");
    assert!(head(&mut client).starts_with("HTTP/1.1 200 "));
    client.write_all(&hello("ok.test")).unwrap();
    let mut upstream = proxies.accept().unwrap().0;
    let asked = head(&mut upstream);
    assert!(
        asked.starts_with("CONNECT ok.test:443 HTTP/1.1\r\nHost: ok.test:443\r\nProxy-Authorization: Basic ")
    );
    upstream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    let mut arrived = vec![0; hello("ok.test").len()];
    upstream.read_exact(&mut arrived).unwrap();
    assert!(arrived.starts_with(&[22, 3, 1]));

    // What is private is near; the password stays between the gate and the proxy.
    let near = format!(
        "GET http://in.test:{inside}/ HTTP/1.1\r\nHost: in.test:{inside}\r\nProxy-Authorization: Basic x\r\n\r\n"
    );
    let _client = world.client(&near);
    let mut server = servers.accept().unwrap().0;
    assert_eq!(head(&mut server), format!("GET / HTTP/1.1\r\nHost: in.test:{inside}\r\n\r\n"));
    // What is denied is not asked for.
    proxies.set_nonblocking(true).unwrap();
    assert!(rest(&mut world.client("CONNECT evil.test:443 HTTP/1.1\r\n\r\n")).starts_with(b"HTTP/1.1 403 "));
    assert!(proxies.accept().is_err());
}
