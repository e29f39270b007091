//! Headers of the exporter, `NAME=VALUE` separated by commas, and HTTP's Basic. (pure)

/// The headers as Claude Code wants them. OpenTelemetry has values percent-encoded, and others hand them out so; Claude
/// Code sends what it gets (seen with 2.1.329), so they are decoded here. No error repeats any of them: they are secret.
pub fn read(text: &str) -> Result<String, &'static str> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let mut headers = Vec::new();
    for part in text.trim().split(',') {
        let (name, value) = part.split_once('=').ok_or("a part has no \"=\"")?;
        let (name, value) = (name.trim(), decoded(value.trim())?);
        if name.is_empty() || !name.bytes().all(token) {
            return Err("a name is none of a header");
        }
        if value.is_empty() || value.bytes().any(|b| !(0x20..0x7f).contains(&b)) {
            return Err("a value is blank or no plain text");
        }
        // Claude Code parts the headers at every comma.
        if value.contains(',') {
            return Err("a value holds a comma");
        }
        headers.push(format!("{name}={value}"));
    }
    Ok(headers.join(","))
}

/// RFC 3986, section 2.1.
fn decoded(value: &str) -> Result<String, &'static str> {
    let wrong = "a value holds a \"%\" that is not followed by two hexadecimal digits";
    let mut parts = value.split('%');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).ok_or(wrong)?;
        let octet = u8::from_str_radix(digits, 16).map_err(|_| wrong)?;
        if !octet.is_ascii() || digits.starts_with('+') {
            return Err(wrong);
        }
        text.push(char::from(octet));
        text.push_str(rest);
    }
    Ok(text)
}

/// `Basic …` of RFC 7617.
#[must_use]
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648, section 4.
fn base64(octets: &[u8]) -> String {
    let mut text = String::with_capacity(octets.len().div_ceil(3) * 4);
    for chunk in octets.chunks(3) {
        let word = [0, 1, 2].map(|at| u32::from(chunk.get(at).copied().unwrap_or_default()));
        let [a, b, c] = word;
        let word = a << 16 | b << 8 | c;
        for at in 0..4_u8 {
            let index = usize::try_from(word >> (18 - 6 * u32::from(at)) & 63).unwrap_or_default();
            let digit = ALPHABET.get(index).copied().unwrap_or(b'A');
            text.push(if usize::from(at) <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{base64, read};

    #[test]
    fn the_vectors_of_rfc_4648() {
        for (text, wanted) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text.as_bytes()), wanted);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }

    #[test]
    fn headers_are_decoded_or_refused_without_repeating_them() {
        let same = "Authorization=Basic abc==,X-Scope-OrgID=7";
        assert_eq!(read(same).as_deref(), Ok(same));
        assert_eq!(
            read(" Authorization=Basic%20abc%3D%3d , B=x ").as_deref(),
            Ok("Authorization=Basic abc==,B=x")
        );
        for bad in [
            "",
            "Authorization",
            "A B=c",
            "=c",
            "A=",
            "A=x,B",
            "A=x\u{7}",
            "A=%",
            "A=%zz",
            "A=%0a",
            "A=a%2Cb",
            "A=%+1",
            "A=%\u{e4}",
        ] {
            let why = read(bad).unwrap_err();
            assert!(bad.is_empty() || !why.contains(bad), "{bad}");
        }
    }
}
