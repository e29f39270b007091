//! Heads of HTTP/1 messages: where they end, their lines and their fields, strictly (RFC 9112 §2, §5). (pure)
//!
//! What a lenient reader could read in another way is no head here: bare CR or LF, folded lines, white space before the
//! colon, control characters.

/// A head with its last empty line.
pub(super) const MAX_HEAD: usize = 64 * 1024;
/// Fields of one head.
pub(super) const MAX_FIELDS: usize = 256;
const TOO_LONG: &str = "its head is longer than 64 KiB";

/// Looks for the end of a head, every octet once, however small the pieces are that it comes in.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Everything before was looked at.
    at: usize,
    /// Where the line begins that is not complete yet.
    line: usize,
    /// Complete lines.
    lines: usize,
    /// Folded lines are not refused (RFC 9112 §5.2).
    folds: bool,
}

impl Scan {
    /// One that leaves folded lines to its caller.
    pub(super) fn with_folds() -> Self {
        Self { folds: true, ..Self::default() }
    }

    /// Whether the first line is complete.
    pub(super) const fn has_first_line(&self) -> bool {
        self.lines > 0
    }

    /// The length of the head in `bytes`, if it is all there. `bytes` begins where it began in the last call.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> Result<Option<usize>, &'static str> {
        loop {
            if self.at >= MAX_HEAD {
                return Err(TOO_LONG);
            }
            let (octet, next) = match bytes.get(self.at..) {
                Some([octet, next, ..]) => (*octet, Some(*next)),
                Some([octet]) => (*octet, None),
                Some([]) | None => return Ok(None),
            };
            match (octet, next) {
                (b'\r', None) => return Ok(None),
                (b'\r', Some(b'\n')) => {
                    let is_empty = self.at == self.line;
                    self.at += 2;
                    self.line = self.at;
                    if is_empty && self.lines == 0 {
                        return Err("an empty line stands before it");
                    }
                    if is_empty {
                        return if self.at > MAX_HEAD { Err(TOO_LONG) } else { Ok(Some(self.at)) };
                    }
                    self.lines += 1;
                    if self.lines > MAX_FIELDS + 1 {
                        return Err("it has more than 256 header fields");
                    }
                }
                (b'\r', Some(_)) => return Err("a carriage return stands alone"),
                (b'\n', _) => return Err("a line ends with a bare line feed"),
                (b' ' | b'\t', _) if self.at == self.line && !(self.folds && self.lines > 1) => {
                    return Err("a line begins with white space");
                }
                (b'\t' | b' '..=b'~' | 0x80.., _) => self.at += 1,
                (_, _) => return Err("it holds a control character"),
            }
        }
    }
}

/// The lines of a complete head, first line included, without their ends.
pub(super) fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    head.split(|octet| *octet == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .take_while(|line| !line.is_empty())
}

/// A header field.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field<'a> {
    name: &'a [u8],
    raw: &'a [u8],
}

impl<'a> Field<'a> {
    pub(super) fn parse(line: &'a [u8]) -> Result<Self, &'static str> {
        let colon = line.iter().position(|octet| *octet == b':');
        let Some((name, [_, raw @ ..])) = colon.and_then(|at| line.split_at_checked(at)) else {
            return Err("a header field has no colon");
        };
        if is_token(name) { Ok(Self { name, raw }) } else { Err("the name of a header field is not a token") }
    }

    pub(super) fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }

    pub(super) fn value(&self) -> &'a [u8] {
        trim(self.raw)
    }

    /// The value of a field that decides where a message goes or ends: nothing around it but the usual space, since
    /// readers differ in what they cut off.
    pub(super) fn exact(&self) -> Result<&'a [u8], &'static str> {
        let value = self.raw.strip_prefix(b" ").unwrap_or(self.raw);
        if value == trim(value) {
            Ok(value)
        } else {
            Err("there is odd white space around Host, Content-Length or Transfer-Encoding")
        }
    }

    /// The members of a value that is a list (RFC 9110 §5.6.1).
    pub(super) fn members(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.raw.split(|octet| *octet == b',').map(trim).filter(|member| !member.is_empty())
    }
}

/// Optional white space off (RFC 9110 §5.6.3).
pub(super) fn trim(mut octets: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = octets {
        octets = rest;
    }
    octets
}

/// RFC 9110 §5.6.2.
pub(super) fn is_token(octets: &[u8]) -> bool {
    !octets.is_empty() && octets.iter().all(|octet| is_token_octet(*octet))
}

pub(super) const fn is_token_octet(octet: u8) -> bool {
    octet.is_ascii_alphanumeric()
        || matches!(
            octet,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// Digits and nothing else (RFC 9110 §8.6): no sign, no list, no number that another reader's integer has no room for.
pub(super) fn content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Field, MAX_FIELDS, MAX_HEAD, Scan, content_length, lines};

    fn scan(bytes: &[u8]) -> Result<Option<usize>, &'static str> {
        let whole = Scan::default().scan(bytes);
        let mut slow = Scan::default();
        let pieces = (0..=bytes.len()).map(|end| slow.scan(&bytes[..end])).find(|found| *found != Ok(None));
        assert_eq!(pieces.unwrap_or(Ok(None)), whole, "{}", bytes.escape_ascii());
        whole
    }

    #[test]
    fn a_head_ends_with_an_empty_line() {
        assert_eq!(scan(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody"), Ok(Some(27)));
        assert_eq!(scan(b"GET / HTTP/1.1\r\nHost: a\r\n\r"), Ok(None));
        assert_eq!(scan(b""), Ok(None));
        let found: Vec<&[u8]> = lines(b"a\r\nb: c\r\n\r\nbody").collect();
        assert_eq!(found, [b"a".as_slice(), b"b: c"]);
    }

    #[test]
    fn what_ends_lines_in_other_ways_is_refused() {
        let bad: [&[u8]; 10] = [
            b"\r\nGET",
            b"a\n",
            b"a\rb",
            b"a\r\r\n",
            b"a\r\nb: c\n\r\n",
            b"a\r\nb: c\r\n d\r\n\r\n",
            b"a\r\n\tb",
            b" a",
            b"a\0",
            b"a\x0b",
        ];
        for head in bad {
            assert!(scan(head).is_err(), "{}", head.escape_ascii());
        }
    }

    #[test]
    fn a_head_is_bounded() {
        let head = |fields: usize| format!("a\r\n{}\r\n", "b: c\r\n".repeat(fields));
        assert!(scan(head(MAX_FIELDS).as_bytes()).is_ok_and(|end| end.is_some()));
        assert!(scan(head(MAX_FIELDS + 1).as_bytes()).is_err());
        let long = |octets: usize| format!("{}\r\n\r\n", "a".repeat(octets - 4));
        assert_eq!(Scan::default().scan(long(MAX_HEAD).as_bytes()), Ok(Some(MAX_HEAD)));
        assert!(Scan::default().scan(long(MAX_HEAD + 1).as_bytes()).is_err());
    }

    #[test]
    fn fields_are_tokens_and_values() {
        let field = Field::parse(b"Content-Length:  5\t").unwrap();
        assert!(field.is("content-length") && field.value() == b"5" && field.exact().is_err());
        assert_eq!(Field::parse(b"Host:a").unwrap().exact(), Ok(b"a".as_slice()));
        let field = Field::parse(b"Connection: close ,, TE").unwrap();
        assert_eq!(field.members().collect::<Vec<_>>(), [b"close".as_slice(), b"TE"]);
        for bad in [&b"Host : a"[..], b": a", b"Host", b"H\xc3\xb6st: a", b"a b: c"] {
            assert!(Field::parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn a_length_is_digits() {
        assert_eq!(content_length(b"0"), Some(0));
        assert_eq!(content_length(b"999999999999999999"), Some(999_999_999_999_999_999));
        for bad in
            [&b""[..], b"+5", b"-5", b"5,5", b"0x5", b"5 ", b"1e3", b"1000000000000000000", b"\xd9\xa1"]
        {
            assert_eq!(content_length(bad), None, "{}", bad.escape_ascii());
        }
    }
}
