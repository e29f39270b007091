//! Standard error where no box can run (macOS): lines as a box writes them, without its queue and its audit log.

#[path = "words.rs"]
mod words;

use std::io::Write;

pub use words::{chain, exit, inert};

/// A line for the operator.
pub fn last_words(source: &str, message: &str) {
    let lines: String =
        message.lines().map(|line| format!("innkeeper: {source}: {}\n", inert(line))).collect();
    // Nobody is left to tell where standard error is closed.
    drop(std::io::stderr().lock().write_all(lines.as_bytes()));
}
