//! The head of an HTTP/1 response, and where its body ends. (pure)
//!
//! The server is one that may be reached, so an odd response is no danger: it is passed on, and no further request is. Only
//! one whose end is certain lets another request follow. What is odd where it does not matter for the end (folded lines, names
//! that are no tokens) makes it the last one; where it does, nobody knows the end before the connection's.

use super::body::Body;
use super::head::{Field, Scan, content_length, lines, trim};

/// What the octets so far are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    Incomplete,
    /// Not a head whose body's end could be known for certain.
    Odd(&'static str),
    Head(Response),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// Octets of the head.
    pub length: usize,
    pub status: u16,
    pub body: Body,
    /// The server lets another request follow.
    pub is_persistent: bool,
}

impl Response {
    /// Another head follows: it is not the answer yet.
    #[must_use]
    pub const fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }
}

/// Reads one head that comes in pieces.
#[derive(Debug)]
pub struct Reader(Scan);

impl Default for Reader {
    fn default() -> Self {
        Self(Scan::with_folds())
    }
}

impl Reader {
    /// `bytes` begins with the response, and holds what an earlier call got. `to_head`: it answers a HEAD.
    pub fn read(&mut self, bytes: &[u8], to_head: bool) -> Read {
        let length = match self.0.scan(bytes) {
            Ok(None) => return Read::Incomplete,
            Ok(Some(length)) => length,
            Err(why) => return Read::Odd(why),
        };
        match response(bytes.get(..length).unwrap_or_default(), to_head) {
            Ok(response) => Read::Head(Response { length, ..response }),
            Err(why) => Read::Odd(why),
        }
    }
}

fn response(head: &[u8], to_head: bool) -> Result<Response, &'static str> {
    let mut lines = lines(head);
    let (is_1_1, status) = status_line(lines.next().unwrap_or_default())?;
    let (mut length, mut coding, mut closes, mut stays) = (None, None, false, false);
    let mut lines = lines.peekable();
    while let Some(line) = lines.next() {
        let is_folded = lines.peek().is_some_and(|next| matches!(next, [b' ' | b'\t', ..]));
        if is_folded || matches!(line, [b' ' | b'\t', ..]) {
            if matters(line) {
                return Err("a field that says where it ends is folded");
            }
            closes = true;
            continue;
        }
        let field = match Field::parse(line) {
            Ok(field) => field,
            Err(why) if matters(line) => return Err(why),
            Err(_) => {
                closes = true;
                continue;
            }
        };
        if field.is("content-length") {
            for member in field.value().split(|octet| *octet == b',') {
                let value = content_length(trim(member)).ok_or("its Content-Length is not a number")?;
                if length.is_some_and(|other| other != value) {
                    return Err("it has two lengths");
                }
                length = Some(value);
            }
        } else if field.is("transfer-encoding") {
            if coding.is_some() || !field.value().eq_ignore_ascii_case(b"chunked") {
                return Err("its Transfer-Encoding is not \"chunked\" alone");
            }
            coding = Some(Body::Chunked);
        } else if field.is("connection") {
            closes |= field.members().any(|member| member.eq_ignore_ascii_case(b"close"));
            stays |= field.members().any(|member| member.eq_ignore_ascii_case(b"keep-alive"));
        }
    }
    if coding.is_some() && (length.is_some() || !is_1_1) {
        return Err("it has a Transfer-Encoding beside a Content-Length, or in HTTP/1.0");
    }
    let body = if to_head || status < 200 || matches!(status, 204 | 304) {
        Body::NONE
    } else {
        coding.or(length.map(Body::Length)).unwrap_or(Body::UntilClose)
    };
    let is_persistent = body != Body::UntilClose && !closes && (is_1_1 || stays);
    Ok(Response { length: 0, status, body, is_persistent })
}

/// Whether a line may say where the message ends, by whatever reading of it.
fn matters(line: &[u8]) -> bool {
    let line = line.to_ascii_lowercase();
    let says = |name: &[u8]| line.windows(name.len()).any(|part| part == name);
    says(b"content-length") || says(b"transfer-encoding") || says(b"connection")
}

/// RFC 9112 §4; the reason may be missing with its space. Statuses beyond 599 are in use, whatever RFC 9110 §15 says.
fn status_line(line: &[u8]) -> Result<(bool, u16), &'static str> {
    const BAD: &str = "it has no status line of HTTP/1";
    let (version, rest) = line.split_first_chunk::<9>().ok_or(BAD)?;
    let is_1_1 = match version {
        b"HTTP/1.1 " => true,
        b"HTTP/1.0 " => false,
        _ => return Err(BAD),
    };
    let (digits, reason) = rest.split_first_chunk::<3>().ok_or(BAD)?;
    if !digits.iter().all(u8::is_ascii_digit) || !(reason.is_empty() || reason.starts_with(b" ")) {
        return Err(BAD);
    }
    let status = digits.iter().fold(0_u16, |status, digit| status * 10 + u16::from(digit - b'0'));
    if (100..1000).contains(&status) { Ok((is_1_1, status)) } else { Err(BAD) }
}

#[cfg(test)]
mod tests {
    use super::{Body, Read, Reader, Response};

    fn read(text: &str, to_head: bool) -> Read {
        let whole = Reader::default().read(text.as_bytes(), to_head);
        let mut slow = Reader::default();
        let mut pieces = (0..=text.len()).map(|end| slow.read(&text.as_bytes()[..end], to_head));
        assert_eq!(
            pieces.find(|read| *read != Read::Incomplete).unwrap_or(Read::Incomplete),
            whole,
            "{text:?}"
        );
        whole
    }

    fn head(text: &str) -> (u16, Body, bool) {
        match read(&format!("{text}\r\n\r\nrest"), false) {
            Read::Head(Response { length, status, body, is_persistent }) => {
                assert_eq!(length, text.len() + 4);
                (status, body, is_persistent)
            }
            other => panic!("{text:?}: {other:?}"),
        }
    }

    #[test]
    fn the_end_of_a_response_is_known() {
        assert_eq!(head("HTTP/1.1 200 OK\r\nContent-Length: 5"), (200, Body::Length(5), true));
        assert_eq!(head("HTTP/1.1 200\r\nTransfer-Encoding: Chunked"), (200, Body::Chunked, true));
        assert_eq!(head("HTTP/1.1 200 OK"), (200, Body::UntilClose, false));
        assert_eq!(
            head("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: x, Close"),
            (200, Body::Length(5), false)
        );
        assert_eq!(head("HTTP/1.0 200 OK\r\nContent-Length: 5"), (200, Body::Length(5), false));
        assert_eq!(
            head("HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive"),
            (200, Body::Length(5), true)
        );
        assert_eq!(head("HTTP/1.1 204 No Content\r\nContent-Length: 5"), (204, Body::NONE, true));
        assert_eq!(head("HTTP/1.1 304 Not Modified\r\nContent-Length: 5"), (304, Body::NONE, true));
        assert_eq!(head("HTTP/1.1 100 Continue"), (100, Body::NONE, true));
        assert_eq!(head("HTTP/1.1 101 Switching Protocols"), (101, Body::NONE, true));
        let Read::Head(to_head) = read("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true) else {
            panic!()
        };
        assert_eq!(to_head.body, Body::NONE);
    }

    #[test]
    fn a_response_that_is_odd_elsewhere_is_the_last_one() {
        for odd in ["X: a\r\n b\r\n\tc", "X Foo: 1", "no colon", "X\u{e4}: 1"] {
            let text = format!("HTTP/1.1 200 OK\r\n{odd}\r\nContent-Length: 5");
            assert_eq!(head(&text), (200, Body::Length(5), false), "{odd:?}");
        }
        assert_eq!(head("HTTP/1.1 200 OK\r\nContent-Length: 5, 5"), (200, Body::Length(5), true));
        assert_eq!(head("HTTP/1.1 999 Denied\r\nContent-Length: 5"), (999, Body::Length(5), true));
    }

    #[test]
    fn a_response_whose_end_is_uncertain_is_odd() {
        for odd in [
            "HTTP/1.1 200 OK\nContent-Length: 5\n\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\r\n Content-Length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nTransfer-Encoding\r\n\r\n",
            "HTTP/1.1 200 OK\r\n X: a\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.1 99 Low\r\n\r\n",
            "HTTP/1.1 2000 High\r\n\r\n",
            "SSH-2.0-x\r\n\r\n",
        ] {
            assert!(matches!(read(odd, false), Read::Odd(_)), "{odd:?}");
        }
    }
}
