//! What a client hears that speaks HTTP and is refused: two lines, what was refused and what to do. (pure)

use crate::report::harmless;

/// Characters of each of the two lines.
const MAX_LINE: usize = 400;

/// A request that goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub status: u16,
    /// What was refused, in one sentence.
    pub what: String,
    /// What to do.
    pub next: String,
}

/// How the refusal is said, which the request decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Manner {
    pub json: bool,
    /// To a HEAD: everything but the body.
    pub headless: bool,
}

impl Refused {
    /// The whole response. What came from outside is inert: no text can end the line that it is in.
    #[must_use]
    pub fn render(&self, manner: Manner) -> Vec<u8> {
        let (what, next) = (harmless(&self.what, MAX_LINE), harmless(&self.next, MAX_LINE));
        let (kind, body) = if manner.json {
            let body = serde_json::json!({ "status": self.status, "refused": what, "next": next });
            ("application/json", format!("{body}\n"))
        } else {
            ("text/plain; charset=utf-8", format!("innkeeper: {what}\nnext: {next}\n"))
        };
        let head = format!(
            "HTTP/1.1 {} {}\r\nServer: innkeeper\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
             X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
            self.status,
            reason(self.status),
            body.len()
        );
        let body = if manner.headless { "" } else { &body };
        [head.as_bytes(), body.as_bytes()].concat()
    }
}

/// RFC 9110 §15.
const fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        408 => "Request Timeout",
        421 => "Misdirected Request",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Refused",
    }
}

#[cfg(test)]
mod tests {
    use super::{Manner, Refused};

    fn refused() -> Refused {
        let what = "evil.test\r\nX-Injected: 1\u{202e} is not in the allowlist".to_owned();
        Refused { status: 403, what, next: "ask for it: innkeeper request evil.test".to_owned() }
    }

    #[test]
    fn a_refusal_is_two_inert_lines() {
        let text = String::from_utf8(refused().render(Manner::default())).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{head}");
        assert!(
            head.contains(&format!("Content-Length: {}", body.len())) && head.contains("Connection: close")
        );
        assert!(!head.contains("Injected"));
        assert_eq!(body.lines().count(), 2, "{body:?}");
        assert!(
            body.starts_with("innkeeper: evil.test\\u{d}\\u{a}X-Injected: 1\\u{202e} is not"),
            "{body:?}"
        );
        let head_only = String::from_utf8(refused().render(Manner { headless: true, json: false })).unwrap();
        assert_eq!(head_only, format!("{head}\r\n\r\n"));
    }

    #[test]
    fn a_refusal_can_be_json() {
        let text = String::from_utf8(refused().render(Manner { json: true, headless: false })).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("Content-Type: application/json\r\n"));
        let said: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(said["status"], 403);
        assert_eq!(said["next"], "ask for it: innkeeper request evil.test");
    }
}
