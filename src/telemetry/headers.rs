//! Headers of the exporter, `NAME=VALUE` separated by commas, and HTTP's Basic. (pure)

/// Why Claude Code would not understand the headers. It does not repeat them: they are secret.
pub fn check(text: &str) -> Result<(), &'static str> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    for part in text.trim().split(',') {
        let (name, value) = part.split_once('=').ok_or("a part has no \"=\"")?;
        let name = name.trim();
        if name.is_empty() || !name.bytes().all(token) {
            return Err("a name is none of a header");
        }
        if value.trim().is_empty() || value.bytes().any(|b| !(0x20..0x7f).contains(&b)) {
            return Err("a value is blank or no plain text");
        }
        // Seen: it is sent as it is.
        if value.contains("%20") {
            return Err("a value holds %20: Claude Code sends it as it is, so write the space itself");
        }
    }
    Ok(())
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
    use super::{base64, check};

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
    fn headers_are_understood_or_refused_without_repeating_them() {
        assert_eq!(check("Authorization=Basic abc==,X-Scope-OrgID=7"), Ok(()));
        for bad in ["", "Authorization", "A B=c", "=c", "A=", "A=x,B", "A=Basic%20x", "A=x\u{7}"] {
            let why = check(bad).unwrap_err();
            assert!(bad.is_empty() || !why.contains(bad), "{bad}");
        }
    }
}
