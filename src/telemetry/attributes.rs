//! Resource attributes of OpenTelemetry, `KEY=VALUE` separated by commas. (pure)

/// Reads the operator's.
pub fn parse(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (key, value) = part.split_once('=').ok_or("a part has no \"=\"")?;
            let (key, value) = (key.trim(), value.trim());
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
            if key.is_empty() || !key.bytes().all(plain) {
                return Err("a key is not of letters, digits, \".\", \"_\", \"-\" and \"/\"");
            }
            // baggage-octet (W3C Baggage, which OTEL_RESOURCE_ATTRIBUTES follows).
            if value.bytes().any(|b| !(0x21..0x7f).contains(&b) || matches!(b, b'"' | b',' | b';' | b'\\')) {
                return Err("a value holds a character that must be written as %XX");
            }
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Ours, then the operator's, which replace ours of the same key.
#[must_use]
pub fn join(own: &[(String, String)], operators: &[(String, String)]) -> String {
    let ours = own.iter().filter(|(key, _)| operators.iter().all(|(other, _)| other != key));
    let ours = ours.map(|(key, value)| format!("{key}={}", plain(value)));
    let theirs = operators.iter().map(|(key, value)| format!("{key}={value}"));
    ours.chain(theirs).collect::<Vec<_>>().join(",")
}

/// A name of ours as a value that every reader reads alike.
fn plain(value: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' };
    value.chars().take(128).map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::{join, parse};

    #[test]
    fn pairs_are_read_and_others_refused() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(parse(" team=night , env=prod,").unwrap(), [pair("team", "night"), pair("env", "prod")]);
        assert_eq!(parse("a=b=c").unwrap(), [pair("a", "b=c")]);
        assert_eq!(parse("").unwrap(), []);
        for bad in ["team", "=x", "a b=c", "a=b c", "a=\"x\"", "k=\u{e4}"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_operators_win() {
        let own =
            [("box.id".to_owned(), "a,b=c d".to_owned()), ("fly.app_name".to_owned(), "app".to_owned())];
        assert_eq!(join(&own, &[]), "box.id=a_b_c_d,fly.app_name=app");
        assert_eq!(join(&own, &parse("fly.app_name=mine").unwrap()), "box.id=a_b_c_d,fly.app_name=mine");
    }
}
