//! As much of RFC 1035 as the bench's own messages need.

use std::net::Ipv4Addr;

pub const A: u16 = 1;

pub fn question(id: u16, name: &str, kind: u16, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&1u16.to_be_bytes());
}

/// The name (lower case) and the type that are asked for, and where the question ends.
pub fn asked(message: &[u8]) -> Option<(String, u16, usize)> {
    let mut name = String::new();
    let mut at = 12;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(std::str::from_utf8(message.get(at..at + length)?).ok()?);
        at += length;
    }
    let kind = u16::from_be_bytes(*message.get(at..at + 2)?.first_chunk()?);
    name.make_ascii_lowercase();
    message.get(at + 4 - 1)?;
    Some((name, kind, at + 4))
}

/// The answer to `question`, which ends at `end`.
pub fn answer(question: &[u8], end: usize, code: u8, addresses: &[Ipv4Addr], ttl_s: u32) -> Vec<u8> {
    let mut out = question[..end].to_vec();
    out[2] = 0x81;
    out[3] = 0x80 | code;
    out[6..12].copy_from_slice(&[0, addresses.len() as u8, 0, 0, 0, 0]);
    for address in addresses {
        out.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
        out.extend_from_slice(&ttl_s.to_be_bytes());
        out.extend_from_slice(&[0, 4]);
        out.extend_from_slice(&address.octets());
    }
    out
}

pub struct Answer {
    pub id: u16,
    pub code: u8,
    pub addresses: Vec<Ipv4Addr>,
}

/// What came back; addresses of any owner name count, since resolvers under test are believed here.
pub fn parse(message: &[u8]) -> Option<Answer> {
    let (_, _, mut at) = asked(message)?;
    let mut addresses = Vec::new();
    for _ in 0..u16::from_be_bytes([message[6], message[7]]) {
        at = skip_name(message, at)?;
        let kind = u16::from_be_bytes(*message.get(at..at + 2)?.first_chunk()?);
        let length = usize::from(u16::from_be_bytes(*message.get(at + 8..at + 10)?.first_chunk()?));
        let data = message.get(at + 10..at + 10 + length)?;
        if kind == A {
            addresses.push(Ipv4Addr::from(*data.first_chunk::<4>()?));
        }
        at += 10 + length;
    }
    Some(Answer { id: u16::from_be_bytes([message[0], message[1]]), code: message[3] & 15, addresses })
}

fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            pointer if pointer >= 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}
