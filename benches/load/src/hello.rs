//! The ClientHello that the clients of `bench gate` send: of the shape and the length of a browser's, with nothing in it
//! that a server would have to compute.

/// A whole record of TLS 1.3 in which the client asks for `name`.
pub fn client_hello(name: &str) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend((0..32u8).map(|each| each.wrapping_mul(37) ^ 0x5a));
    body.push(32);
    body.extend((0..32u8).map(|each| each.wrapping_mul(91) ^ 0xc3));
    let suites: [u16; 9] = [0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8];
    body.extend(counted(suites.iter().flat_map(|each| each.to_be_bytes()).collect()));
    body.extend([1, 0]);
    let extensions = extensions(name);
    body.extend(counted(extensions));
    let mut hello = vec![1, 0];
    hello.extend(counted(body));
    let mut record = vec![0x16, 3, 1];
    record.extend(counted(hello));
    record
}

fn extensions(name: &str) -> Vec<u8> {
    let mut host = vec![0];
    host.extend(counted(name.as_bytes().to_vec()));
    let key: Vec<u8> = (0..32u8).map(|each| each.wrapping_mul(53) ^ 0x11).collect();
    let mut share = vec![0, 0x1d];
    share.extend(counted(key));
    let mut all = Vec::new();
    for (number, value) in [
        (0, counted(host)),
        (23, vec![]),
        (0xff01, vec![0]),
        (10, counted(vec![0, 0x1d, 0, 0x17, 0, 0x18])),
        (11, vec![1, 0]),
        (35, vec![]),
        (16, counted(b"\x02h2\x08http/1.1".to_vec())),
        (5, vec![1, 0, 0, 0, 0]),
        (13, counted(vec![4, 3, 8, 4, 4, 1, 5, 3, 8, 5, 5, 1, 8, 6, 6, 1])),
        (51, counted(share)),
        (45, vec![1, 1]),
        (43, vec![4, 3, 4, 3, 3]),
    ] {
        all.extend(u16::to_be_bytes(number));
        all.extend(counted(value));
    }
    // RFC 7685: to the 512 octets that browsers fill up to.
    let padding = 390usize.saturating_sub(all.len());
    all.extend(u16::to_be_bytes(21));
    all.extend(counted(vec![0; padding]));
    all
}

/// With its length before it, in two octets.
fn counted(value: Vec<u8>) -> Vec<u8> {
    let mut counted = u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
    counted.extend(value);
    counted
}

/// The number of the bench's name `nNUMBER.list.test` in a whole hello; `None` while more has to come.
pub fn asked_number(received: &[u8]) -> Option<u32> {
    let length = usize::from(u16::from_be_bytes([*received.get(3)?, *received.get(4)?]));
    let record = received.get(..5 + length)?;
    let zone = b".list.test";
    let at = record.windows(zone.len()).position(|window| window == zone).unwrap_or(0);
    let digits = record[..at].iter().rev().take_while(|octet| octet.is_ascii_digit()).count();
    Some(std::str::from_utf8(&record[at - digits..at]).ok().and_then(|text| text.parse().ok()).unwrap_or(0))
}
