use std::sync::Arc;

use proptest::prelude::{any, prop};
use proptest::{prop_assert, proptest};

use super::{Alert, ClientHello, Hello, MAX_HELLO, NoName, Reader, alert, parse};
use crate::allowlist::{DomainName, NameError};

/// A hello made by hand; every part can be made wrong.
#[derive(Clone)]
struct Made {
    version: u16,
    session: Vec<u8>,
    ciphers: Vec<u8>,
    compression: Vec<u8>,
    /// None: not even their length.
    extensions: Option<Vec<(u16, Vec<u8>)>>,
    trailing: Vec<u8>,
}

fn short(octets: &[u8]) -> Vec<u8> {
    [&[u8::try_from(octets.len()).unwrap()], octets].concat()
}

fn long(octets: &[u8]) -> Vec<u8> {
    [&u16::try_from(octets.len()).unwrap().to_be_bytes(), octets].concat()
}

fn sni(names: &[&[u8]]) -> (u16, Vec<u8>) {
    let entries: Vec<u8> = names.iter().flat_map(|name| [&[0][..], &long(name)].concat()).collect();
    (0, long(&entries))
}

fn made(extensions: &[(u16, Vec<u8>)]) -> Made {
    Made {
        version: 0x0303,
        session: vec![7; 32],
        // GREASE, TLS_AES_128_GCM_SHA256
        ciphers: vec![0x1a, 0x1a, 0x13, 0x01],
        compression: vec![0],
        extensions: Some(extensions.to_vec()),
        trailing: Vec::new(),
    }
}

impl Made {
    fn handshake(&self) -> Vec<u8> {
        let list: Option<Vec<u8>> = self.extensions.as_ref().map(|all| {
            all.iter().flat_map(|(kind, data)| [&kind.to_be_bytes()[..], &long(data)].concat()).collect()
        });
        let body = [
            &self.version.to_be_bytes()[..],
            &[9; 32],
            &short(&self.session),
            &long(&self.ciphers),
            &short(&self.compression),
            &list.map_or(Vec::new(), |list| long(&list)),
            &self.trailing,
        ]
        .concat();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[1], &length[1..], &body].concat()
    }

    fn record(&self) -> Vec<u8> {
        records(&self.handshake(), 1 << 14)
    }
}

fn records(handshake: &[u8], size: usize) -> Vec<u8> {
    handshake.chunks(size).flat_map(|part| [&[22, 3, 1][..], &long(part)].concat()).collect()
}

fn named(name: &str) -> Hello {
    Hello::Client(ClientHello { name: Ok(DomainName::parse(name).unwrap()), ech: false })
}

fn nameless(why: NoName) -> Hello {
    Hello::Client(ClientHello { name: Err(why), ech: false })
}

/// Octet by octet with one reader, and at once: always the same, and a beginning is never more than one.
fn read_every_way(bytes: &[u8]) -> Hello {
    let last = parse(bytes);
    let mut reader = Reader::default();
    for end in 0..bytes.len() {
        let (resumed, fresh) = (reader.read(&bytes[..end]), parse(&bytes[..end]));
        assert_eq!(resumed, fresh, "after {end} octets");
        assert_eq!(fresh, Hello::Incomplete, "after {end} of {} octets", bytes.len());
    }
    assert_eq!(reader.read(bytes), last);
    last
}

fn rustls_hello(name: &str, versions: &[&'static rustls::SupportedProtocolVersion]) -> Vec<u8> {
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
    let name = name.to_owned().try_into().unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

#[test]
fn real_hellos_show_their_name() {
    for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12], rustls::ALL_VERSIONS] {
        let hello = rustls_hello("Api.Example.org", versions);
        assert_eq!(read_every_way(&hello), named("api.example.org"));
        // What follows belongs to the connection, not to the hello: early data, for one.
        let more = [&hello[..], &[20, 3, 3, 0, 1, 1, 23, 3, 3, 0, 2, 0, 0]].concat();
        assert_eq!(parse(&more), named("api.example.org"));
        assert_eq!(parse(&[&hello[..], b"anything"].concat()), named("api.example.org"));
    }
    assert_eq!(read_every_way(&rustls_hello("192.0.2.1", rustls::ALL_VERSIONS)), nameless(NoName::Absent));
}

#[test]
fn a_hello_may_come_in_many_records() {
    let hello = made(&[sni(&[b"ok.test"]), (0x2a2a, vec![]), (43, vec![4, 0x3a, 0x3a, 3, 4]), (41, vec![1])]);
    let handshake = hello.handshake();
    for size in [1, 2, 3, 4, 5, 50, handshake.len() - 1, handshake.len()] {
        assert_eq!(read_every_way(&records(&handshake, size)), named("ok.test"), "{size} octets a record");
    }
    for hole in [&[23, 3, 3, 0, 1, 0][..], &[20, 3, 3, 0, 1, 1], &[21, 3, 3, 0, 2, 1, 0], &[22, 3, 3, 0, 0]] {
        let parted =
            [&records(&handshake[..9], 9)[..], hole, &records(&handshake[9..], handshake.len())].concat();
        assert!(matches!(parse(&parted), Hello::Damaged(_)), "{hole:?} in the middle: {:?}", parse(&parted));
    }
}

#[test]
fn t49_a_hello_without_one_valid_name_has_none() {
    let name_of = |extensions: &[(u16, Vec<u8>)]| match read_every_way(&made(extensions).record()) {
        Hello::Client(client) => client.name,
        other => panic!("{other:?}"),
    };
    assert_eq!(name_of(&[sni(&[b"ok.test"])]), Ok(DomainName::parse("ok.test").unwrap()));
    assert_eq!(name_of(&[(16, vec![])]), Err(NoName::Absent));
    assert_eq!(name_of(&[]), Err(NoName::Absent));
    assert_eq!(name_of(&[sni(&[b""])]), Err(NoName::Empty));
    assert_eq!(name_of(&[sni(&[])]), Err(NoName::Empty));
    assert_eq!(name_of(&[(0, vec![])]), Err(NoName::Empty));
    assert_eq!(name_of(&[sni(&[b"ok.test", b"evil.test"])]), Err(NoName::Repeated));
    assert_eq!(name_of(&[sni(&[b"ok.test"]), sni(&[b"ok.test"])]), Err(NoName::Repeated));
    assert_eq!(name_of(&[sni(&[b"ok.test"]), (0, vec![])]), Err(NoName::Repeated));
    for address in ["192.0.2.1", "2001:db8::1", "[2001:db8::1]", "0x7f.1", "3232235521", "1.2.3.4."] {
        let why = name_of(&[sni(&[address.as_bytes()])]).unwrap_err();
        assert!(matches!(&why, NoName::Address(_) | NoName::NotAName { .. }), "{address}: {why:?}");
    }
    let long = "a".repeat(60) + &".b".repeat(120);
    for (bad, expected) in [
        (long.as_bytes(), NameError::TooLong),
        (b"ok.test.", NameError::Label(String::new())),
        (b".ok.test", NameError::Label(String::new())),
        (b"ok..test", NameError::Label(String::new())),
        (b"ok.test\0.evil.test", NameError::Character('\0')),
        (b"ok.test ", NameError::Character(' ')),
        (b"*.ok.test", NameError::Character('*')),
        (b"ok.test:443", NameError::Address),
        (b"\xff\xfe", NameError::NotAscii),
        ("b\u{fc}cher.test".as_bytes(), NameError::NotAscii),
    ] {
        match name_of(&[sni(&[bad])]).unwrap_err() {
            NoName::NotAName { shown, why } => {
                assert_eq!(why, expected);
                assert!(!shown.chars().any(char::is_control) && shown.chars().count() <= 90, "{shown}");
            }
            NoName::Address(_) => assert_eq!(expected, NameError::Address),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn t50_an_encrypted_hello_is_seen() {
    let outer = [&[0, 0, 1, 0, 1, 9][..], &long(&[5; 32]), &long(&[6; 100])].concat();
    let retried = [&[0, 0, 1, 0, 1, 9][..], &long(&[]), &long(&[6; 100])].concat();
    for (kind, data) in
        [(0xfe0d, outer.clone()), (0xfe0d, retried), (0xffce, vec![1]), (0xff02, vec![]), (0xfe09, vec![2])]
    {
        let hello = made(&[sni(&[b"public.test"]), (kind, data)]).record();
        let name = Ok(DomainName::parse("public.test").unwrap());
        assert_eq!(read_every_way(&hello), Hello::Client(ClientHello { name, ech: true }), "{kind:#x}");
    }
    let cut = outer[..outer.len() - 1].to_vec();
    let longer = [&outer[..], &[0]].concat();
    for (kind, data) in
        [(0xfe0d, vec![1]), (0xfe0d, vec![]), (0xfe0d, cut), (0xfe0d, longer), (0xfd00, vec![2, 0, 0])]
    {
        let hello = made(&[sni(&[b"public.test"]), (kind, data)]).record();
        assert!(matches!(parse(&hello), Hello::Damaged(_)), "{kind:#x}");
    }
}

#[test]
fn what_is_not_tls_is_said_at_the_first_octet() {
    for other in
        [&b"G"[..], b"SSH-2.0-x\r\n", b"\x80\x2e\x01\x03\x01", b"\x15\x03\x01\0\x02\x01\0", b"\x17", b"\0"]
    {
        assert_eq!(parse(other), Hello::NotTls, "{other:?}");
    }
    assert_eq!(parse(b""), Hello::Incomplete);
}

#[test]
fn a_damaged_hello_is_refused() {
    let good = made(&[sni(&[b"ok.test"])]);
    assert_eq!(read_every_way(&good.record()), named("ok.test"));
    let bare = Made { extensions: None, ..good.clone() };
    assert_eq!(read_every_way(&bare.record()), nameless(NoName::Absent));
    let wrong = [
        Made { version: 0x0200, ..good.clone() },
        Made { version: 0x0305, ..good.clone() },
        Made { session: vec![0; 33], ..good.clone() },
        Made { ciphers: vec![], ..good.clone() },
        Made { ciphers: vec![1, 2, 3], ..good.clone() },
        Made { compression: vec![], ..good.clone() },
        Made { trailing: vec![0], ..good.clone() },
        Made { trailing: vec![0], ..bare },
        made(&[sni(&[b"ok.test"]), (10, vec![]), (10, vec![])]),
        made(&[sni(&[b"ok.test"]), (0x2a2a, vec![]), (11, vec![]), (0x2a2a, vec![])]),
        made(&[(41, vec![]), sni(&[b"ok.test"])]),
        // A name of another kind; lengths that don't fit.
        made(&[(0, long(&[&[1][..], &long(b"ok.test")].concat()))]),
        made(&[(0, [&long(&[&[0][..], &long(b"ok.test")].concat())[..], &[0]].concat())]),
        made(&[(0, long(&[0, 0, 9, b'a']))]),
        made(&[(0, vec![0])]),
    ];
    for (index, hello) in wrong.iter().enumerate() {
        assert!(matches!(parse(&hello.record()), Hello::Damaged(_)), "{index}: {:?}", parse(&hello.record()));
    }
    let two = [good.handshake(), good.handshake()].concat();
    assert!(matches!(parse(&records(&two, 1 << 14)), Hello::Damaged(_)), "two in one record");
    let server_hello = [&[2][..], &good.handshake()[1..]].concat();
    assert!(matches!(parse(&records(&server_hello, 99)), Hello::Damaged(_)));
    // The announced length is more, or less, than what its parts come to.
    for change in [-1_i32, 1] {
        let mut handshake = good.handshake();
        let length = i32::from(handshake[3]) + change;
        handshake[3] = u8::try_from(length).unwrap();
        if change > 0 {
            handshake.push(0);
        } else {
            handshake.pop();
        }
        assert!(matches!(parse(&records(&handshake, 1 << 14)), Hello::Damaged(_)), "{change}");
    }
    for header in [&[22, 2][..], &[22, 3, 5], &[22, 3, 1, 0, 0], &[22, 3, 1, 0x40, 1], &[22, 3, 1, 0, 9, 2]] {
        assert!(matches!(parse(header), Hello::Damaged(_)), "{header:?}");
    }
}

#[test]
fn a_hello_is_bounded() {
    let filled = |octets: usize| made(&[sni(&[b"ok.test"]), (21, vec![0; octets])]);
    let largest = filled(65_000);
    assert_eq!(parse(&largest.record()), named("ok.test"));
    assert!(largest.record().len() < MAX_HELLO);
    // The length that it announces is enough to refuse it; so is what its records' headers add.
    assert!(matches!(parse(&[22, 3, 1, 0, 4, 1, 1, 0, 0]), Hello::Damaged(_)));
    let handshake = largest.handshake();
    let mut reader = Reader::default();
    let many = records(&handshake, 50);
    let refused = (0..many.len()).find(|end| matches!(reader.read(&many[..*end]), Hello::Damaged(_)));
    assert!(refused.is_some_and(|end| end <= MAX_HELLO), "{refused:?}");
}

/// Octet by octet, 64 KiB would be two thousand million steps if every read began anew.
#[test]
fn octets_one_by_one_cost_one_step_each() {
    let hello = made(&[sni(&[b"ok.test"]), (21, vec![0; 60_000])]).record();
    let mut reader = Reader::default();
    let (mut records_looked_at, mut last) = (0, 0);
    for end in 0..hello.len() {
        assert_eq!(reader.read(&hello[..end]), Hello::Incomplete);
        records_looked_at += usize::from(reader.at != last);
        last = reader.at;
    }
    assert_eq!(records_looked_at, 3, "only complete records move the reader");
    assert_eq!(reader.read(&hello), named("ok.test"));
}

/// Octets of the name that are in the hello, whatever was changed.
fn is_in(hello: &[u8], name: &DomainName) -> bool {
    hello.to_ascii_lowercase().windows(name.as_str().len()).any(|part| part == name.as_str().as_bytes())
}

#[test]
fn one_wrong_octet_shows_no_other_name() {
    let outer = [&[0, 0, 1, 0, 1, 9][..], &long(&[5; 32]), &long(&[6; 20])].concat();
    let by_hand = made(&[sni(&[b"ok.test"]), (0xfe0d, outer), (16, long(&short(b"h2")))]).record();
    for hello in [by_hand, rustls_hello("api.example.org", rustls::ALL_VERSIONS)] {
        for at in 0..hello.len() {
            for octet in 0..=255 {
                let mut damaged = hello.clone();
                damaged[at] = octet;
                if let Hello::Client(ClientHello { name: Ok(name), .. }) = parse(&damaged) {
                    assert!(is_in(&damaged, &name), "{name} at {at}");
                }
            }
        }
    }
}

#[test]
fn alerts_are_records_that_a_client_can_print() {
    for (kind, code) in [
        (Alert::AccessDenied, 49),
        (Alert::DecodeError, 50),
        (Alert::InternalError, 80),
        (Alert::UnrecognizedName, 112),
    ] {
        assert_eq!(alert(kind), [21, 3, 3, 0, 2, 2, code]);
    }
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
    let mut client = rustls::ClientConnection::new(Arc::new(config), "ok.test".try_into().unwrap()).unwrap();
    client.read_tls(&mut &alert(Alert::AccessDenied)[..]).unwrap();
    let error = client.process_new_packets().unwrap_err();
    assert_eq!(error, rustls::Error::AlertReceived(rustls::AlertDescription::AccessDenied));
}

proptest! {
    #[test]
    fn octets_at_random_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let framed = records(&[&[1, 0, 1, 0x90][..], &bytes].concat(), 300);
        for bytes in [&bytes, &framed] {
            if let Hello::Client(ClientHello { name: Ok(name), .. }) = parse(bytes) {
                prop_assert!(is_in(bytes, &name));
            }
        }
    }

    #[test]
    fn every_valid_name_is_read(name in "[a-z0-9_]{1,20}(\\.[a-z]([a-z0-9-]{0,20}[a-z0-9])?){1,4}", size in 1_usize..300) {
        let hello = made(&[(0x5a5a, vec![0]), sni(&[name.as_bytes()])]);
        prop_assert!(parse(&records(&hello.handshake(), size)) == named(&name));
    }
}
