//! What Kubernetes shows of a container that has ended: a line in `/dev/termination-log`, where that file is.
//!
//! The kubelet mounts the file over /dev, writable for everybody
//! (https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/). It is opened before the agent
//! exists, and closed to the agent.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::status::report::{Report, SCHEMA};
use crate::supervisor::Ending;

pub const PATH: &str = "/dev/termination-log";
/// What the kubelet reads of it.
const MAX: usize = 4096;

static FILE: OnceLock<File> = OnceLock::new();
static WRITTEN: AtomicBool = AtomicBool::new(false);

/// Opens the file, if there is one, for the end; from now on it is root's alone.
pub fn open() {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let Ok(file) = File::options().write(true).custom_flags(flags).open(PATH) else { return };
    let own = file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.uid() == 0);
    if own && file.set_permissions(std::fs::Permissions::from_mode(0o600)).is_ok() {
        drop(FILE.set(file));
    }
}

/// The file, where it is ours to write.
#[must_use]
pub fn held() -> Option<&'static Path> {
    FILE.get().map(|_| Path::new(PATH))
}

/// Says how the box ended; who knows more says it first.
pub fn write(ending: &Ending, report: Option<&Report>) {
    let Some(mut file) = FILE.get().filter(|_| !WRITTEN.swap(true, Ordering::Relaxed)) else { return };
    // Nobody is left to be told of a failure.
    drop(
        file.rewind()
            .and_then(|()| file.set_len(0))
            .and_then(|()| file.write_all(line(ending, report).as_bytes())),
    );
}

/// The line, within what is read of it.
fn line(ending: &Ending, report: Option<&Report>) -> String {
    let session = report.map(|report| &report.session);
    let mut characters = MAX;
    loop {
        let text = |text: &str| crate::report::bounded(text, characters);
        let line = json!({
            "schema": SCHEMA,
            "exit_status": ending.status,
            "reason": text(&ending.reason),
            "result": session.and_then(|session| session.result.as_deref()).map(text),
            "cost_usd": session.and_then(|session| session.cost_usd),
        });
        let line = format!("{line}\n");
        if line.len() <= MAX || characters == 0 {
            return line;
        }
        characters = characters * 3 / 4;
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX, line};
    use crate::status::Board;
    use crate::status::report::BoxIdentity;
    use crate::supervisor::Ending;

    #[test]
    fn a_long_result_fits() {
        let board = Board::new(BoxIdentity::default());
        board.update(|report| report.session.result = Some("\u{1f980}\n".repeat(2000)));
        let ending = Ending { status: 69, reason: "a reason ".repeat(400) };
        let line = line(&ending, Some(&board.report(None)));
        assert!(line.len() <= MAX, "{}", line.len());
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["exit_status"], 69);
        assert!(value["result"].as_str().unwrap().starts_with('\u{1f980}'));
    }
}
