//! Where the body of an HTTP/1 message ends (RFC 9112 §6, §7). (pure)

use super::head::is_token_octet;

/// A chunk's size with its extensions.
const MAX_CHUNK_LINE: usize = 256;
/// The fields after the last chunk.
const MAX_TRAILERS: usize = 16 * 1024;
const MAX_TRAILER_NAME: usize = 128;
/// Hexadecimal digits of a size that every reader's integer has room for.
const MAX_SIZE_DIGITS: u8 = 15;

/// How a body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    Length(u64),
    Chunked,
    /// It ends with the connection; responses only.
    UntilClose,
}

impl Body {
    pub const NONE: Self = Self::Length(0);
}

/// Follows a body to its end.
#[derive(Debug)]
pub struct Measure(State);

/// What of some octets belongs to the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    pub octets: usize,
    /// The body ends with them.
    pub is_over: bool,
}

#[derive(Debug)]
enum State {
    Length(u64),
    Chunked(Chunks),
    UntilClose,
}

impl Measure {
    #[must_use]
    pub const fn new(body: Body) -> Self {
        Self(match body {
            Body::Length(length) => State::Length(length),
            Body::Chunked => State::Chunked(Chunks::new()),
            Body::UntilClose => State::UntilClose,
        })
    }

    /// Counts off what belongs to the body at the beginning of `octets`, which follow those of the last call. After an
    /// error nothing of them may be forwarded.
    pub fn take(&mut self, octets: &[u8]) -> Result<Taken, &'static str> {
        match &mut self.0 {
            State::Length(left) => {
                let available = u64::try_from(octets.len()).unwrap_or(u64::MAX).min(*left);
                *left -= available;
                let octets = usize::try_from(available).unwrap_or(octets.len());
                Ok(Taken { octets, is_over: *left == 0 })
            }
            State::Chunked(chunks) => chunks.take(octets),
            State::UntilClose => Ok(Taken { octets: octets.len(), is_over: false }),
        }
    }
}

#[derive(Debug)]
struct Chunks {
    at: At,
    /// Octets of the line, or of all trailers.
    line: usize,
    name: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Size {
        digits: u8,
        size: u64,
    },
    Extension {
        size: u64,
    },
    SizeEnd {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// The first octet of a line after the last chunk.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerLf,
    LastLf,
    Over,
}

impl Chunks {
    const fn new() -> Self {
        Self { at: At::Size { digits: 0, size: 0 }, line: 0, name: Vec::new() }
    }

    fn take(&mut self, octets: &[u8]) -> Result<Taken, &'static str> {
        let mut rest = octets;
        while self.at != At::Over {
            if let At::Data { left } = self.at {
                let skipped = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                rest = rest.get(skipped..).unwrap_or_default();
                let left = left - u64::try_from(skipped).unwrap_or(left);
                self.at = if left == 0 { At::DataCr } else { At::Data { left } };
            }
            let Some((octet, after)) = rest.split_first() else { break };
            if !matches!(self.at, At::Data { .. }) {
                self.step(*octet)?;
                rest = after;
            }
        }
        Ok(Taken { octets: octets.len() - rest.len(), is_over: self.at == At::Over })
    }

    fn step(&mut self, octet: u8) -> Result<(), &'static str> {
        self.line += 1;
        self.at = match self.at {
            At::Size { digits, size } => self.size(digits, size, octet)?,
            // A chunk's extensions mean nothing to anybody, but what ends a line for some reader may not be in them.
            At::Extension { size } if octet == b'\r' => At::SizeEnd { size },
            At::Extension { size } if self.line <= MAX_CHUNK_LINE && is_text(octet) => At::Extension { size },
            At::Extension { .. } => return Err("a chunk's extension is too long or no text"),
            At::SizeEnd { size: 0 } if octet == b'\n' => self.new_line(At::Trailer),
            At::SizeEnd { size } if octet == b'\n' => At::Data { left: size },
            At::DataCr if octet == b'\r' => At::DataLf,
            At::DataLf if octet == b'\n' => self.new_line(At::Size { digits: 0, size: 0 }),
            At::SizeEnd { .. } | At::DataCr | At::DataLf => return Err("a chunk does not end with CR LF"),
            At::Trailer | At::TrailerName | At::TrailerValue | At::TrailerLf | At::LastLf => {
                self.trailer(octet)?
            }
            At::Data { .. } | At::Over => self.at,
        };
        Ok(())
    }

    fn new_line(&mut self, at: At) -> At {
        self.line = 0;
        at
    }

    fn size(&self, digits: u8, size: u64, octet: u8) -> Result<At, &'static str> {
        const BAD: &str = "a chunk has no size of hexadecimal digits";
        if let Some(digit) = char::from(octet).to_digit(16) {
            if digits == MAX_SIZE_DIGITS {
                return Err("a chunk's size is too large");
            }
            return Ok(At::Size { digits: digits + 1, size: size * 16 + u64::from(digit) });
        }
        match octet {
            _ if digits == 0 => Err(BAD),
            b'\r' => Ok(At::SizeEnd { size }),
            b';' => Ok(At::Extension { size }),
            _ => Err(BAD),
        }
    }

    fn trailer(&mut self, octet: u8) -> Result<At, &'static str> {
        if self.line > MAX_TRAILERS {
            return Err("the trailers are longer than 16 KiB");
        }
        match (self.at, octet) {
            (At::Trailer, b'\r') => Ok(At::LastLf),
            (At::Trailer | At::TrailerName, octet) if is_token_octet(octet) => {
                if self.name.len() == MAX_TRAILER_NAME {
                    return Err("the name of a trailer is too long");
                }
                self.name.push(octet);
                Ok(At::TrailerName)
            }
            (At::TrailerName, b':') => {
                // RFC 9110 §6.5.1: not what decides where a message goes or ends.
                let forbidden = ["host", "content-length", "transfer-encoding", "connection", "upgrade"];
                if forbidden.iter().any(|name| self.name.eq_ignore_ascii_case(name.as_bytes())) {
                    return Err("a trailer would change where the message goes or ends");
                }
                self.name.clear();
                Ok(At::TrailerValue)
            }
            (At::TrailerValue, b'\r') => Ok(At::TrailerLf),
            (At::TrailerValue, octet) if is_text(octet) => Ok(At::TrailerValue),
            (At::TrailerLf, b'\n') => Ok(At::Trailer),
            (At::LastLf, b'\n') => Ok(At::Over),
            (_, _) => Err("a trailer is not a header field"),
        }
    }
}

const fn is_text(octet: u8) -> bool {
    matches!(octet, b'\t' | b' '..=b'~' | 0x80..)
}

#[cfg(test)]
mod tests {
    use super::{Body, Measure, Taken};

    /// At once and octet by octet.
    fn chunked(octets: &[u8]) -> Result<Taken, &'static str> {
        let whole = Measure::new(Body::Chunked).take(octets);
        let (mut slow, mut taken) = (Measure::new(Body::Chunked), Taken { octets: 0, is_over: false });
        let mut error = None;
        for octet in octets {
            match slow.take(&[*octet]) {
                Ok(more) => {
                    taken.octets += more.octets;
                    taken.is_over = more.is_over;
                }
                Err(why) => error = error.or(Some(why)),
            }
            if taken.is_over || error.is_some() {
                break;
            }
        }
        assert_eq!(error.map_or(Ok(taken), Err), whole, "{}", octets.escape_ascii());
        whole
    }

    #[test]
    fn a_length_is_counted() {
        let mut measure = Measure::new(Body::Length(5));
        assert_eq!(measure.take(b"abc"), Ok(Taken { octets: 3, is_over: false }));
        assert_eq!(measure.take(b"deGET"), Ok(Taken { octets: 2, is_over: true }));
        assert_eq!(Measure::new(Body::NONE).take(b"GET"), Ok(Taken { octets: 0, is_over: true }));
        assert_eq!(Measure::new(Body::UntilClose).take(b"abc"), Ok(Taken { octets: 3, is_over: false }));
    }

    #[test]
    fn chunks_are_followed_to_their_end() {
        for (text, length) in [
            ("0\r\n\r\n", 5),
            ("5\r\nhello\r\n0\r\n\r\n", 15),
            ("A;name=value\r\n0\r\n\r\n12345\r\n0\r\n\r\n", 31),
            ("000\r\nX-Sum: abc\r\nY: \r\n\r\n", 24),
            ("5;a=\"b c\"\r\nhello\r\n0;x\r\n\r\n", 25),
        ] {
            let expected = Ok(Taken { octets: length, is_over: true });
            assert_eq!(chunked(format!("{text}GET / HTTP/1.1\r\n").as_bytes()), expected, "{text:?}");
            for end in 0..length {
                let cut = &text.as_bytes()[..end];
                assert_eq!(
                    chunked(cut),
                    Ok(Taken { octets: end, is_over: false }),
                    "{text:?} cut after {end}"
                );
            }
        }
    }

    #[test]
    fn chunks_that_readers_differ_on_are_refused() {
        for bad in [
            "\r\n",
            "x\r\n",
            "0x5\r\nhello",
            "+5\r\n",
            "-1\r\n",
            " 5\r\n",
            "5 \r\nhello",
            "5\nhello",
            "5\r\nhello0\r\n",
            "5\r\nhello\n0",
            "5;a\n",
            "5;a\0\r\n",
            "5;a\rb\r\n",
            "1000000000000000\r\n",
            "0\r\nHost: evil.test\r\n\r\n",
            "0\r\ncontent-LENGTH: 5\r\n\r\n",
            "0\r\n folded\r\n\r\n",
            "0\r\nX : y\r\n\r\n",
            "0\r\nX\r\n\r\n",
            "0\r\n\n",
            "0\r\n:\r\n",
        ] {
            assert!(chunked(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(chunked(format!("5;{}\r\n", "x".repeat(300)).as_bytes()).is_err());
        assert!(chunked(format!("0\r\n{}\r\n", "X-A: b\r\n".repeat(3000)).as_bytes()).is_err());
    }
}
