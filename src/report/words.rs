//! What is said the same way inside a box and outside: exit statuses, chains of errors, inert text. (pure)

use std::error::Error;
use std::fmt::Write as _;

/// Exit statuses, the one table.
pub mod exit {
    pub const OK: u8 = 0;
    /// No box answers.
    pub const NO_BOX: u8 = 1;
    /// EX_USAGE.
    pub const USAGE: u8 = 64;
    /// EX_UNAVAILABLE: something that a headless run depends on is not there; a retry may help.
    pub const UNAVAILABLE: u8 = 69;
    /// EX_SOFTWARE: a fault of ours.
    pub const INTERNAL: u8 = 70;
    /// EX_TEMPFAIL: not now; the same may be tried again.
    pub const LATER: u8 = 75;
    /// EX_NOPERM: refused by the ceiling.
    pub const CEILING: u8 = 77;
    /// EX_CONFIG: the configuration or the host is unfit; trying again changes nothing.
    pub const CONFIG: u8 = 78;
}

/// An error and what caused it, in one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        write!(text, ": {cause}").ok();
        source = cause.source();
    }
    text
}

/// Text from outside as inert text: control characters, and the ones that reorder or hide text, are escaped.
#[must_use]
pub fn inert(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let hides = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if c.is_control() || hides {
            write!(out, "\\u{{{:x}}}", u32::from(c)).ok();
        } else {
            out.push(c);
        }
    }
    out
}
