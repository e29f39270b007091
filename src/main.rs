//! argv → command → exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(innkeeper::cli::run(std::env::args_os().collect()))
}
