//! Whether a client would rather read JSON than text (RFC 9110 §12.5.1). (pure)

use super::Field;
use crate::gate::head::trim;

/// Looks at the Accept fields of a head. Without one, and where both are wanted as much, text comes first unless JSON is
/// named first: people read text.
pub(super) fn prefers_json<'a>(lines: impl Iterator<Item = &'a [u8]>) -> bool {
    let (mut json, mut text) = (None, None);
    let fields = lines.skip(1).filter_map(|line| Field::parse(line).ok()).filter(|field| field.is("accept"));
    for (place, range) in fields.flat_map(|field| field.members()).enumerate() {
        let mut parts = range.split(|octet| *octet == b';').map(trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality = parts.find_map(quality).unwrap_or(1000);
        // The better one is the one wanted more, then the one named first.
        let wish = (quality, std::cmp::Reverse(place));
        let wanted = match kind.as_slice() {
            b"application/json" => &mut json,
            kind if kind.starts_with(b"application/") && kind.ends_with(b"+json") => &mut json,
            b"text/plain" | b"text/html" | b"text/*" | b"*/*" => &mut text,
            _ => continue,
        };
        *wanted = (*wanted).max(Some(wish)).filter(|(quality, _)| *quality > 0);
    }
    json > text
}

/// `q=0.5` in thousandths.
fn quality(parameter: &[u8]) -> Option<u32> {
    let value = std::str::from_utf8(parameter).ok()?;
    let value = value.strip_prefix("q=").or_else(|| value.strip_prefix("Q="))?;
    let (whole, part) = value.split_once('.').unwrap_or((value, ""));
    let part = format!("{part:0<3}");
    let thousandths = part.get(..3)?.parse::<u32>().ok()?;
    Some((whole.parse::<u32>().ok()?.min(1) * 1000 + thousandths).min(1000))
}
