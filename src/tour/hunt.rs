//! The tour's hunt for secrets: every file that an agent would look into first.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::Verdict;

/// How credentials of this kind begin; the box's own placeholder does too.
const SHAPES: [&[u8]; 3] = [b"sk-ant-oat01-", b"ghp_", b"github_pat_"];
/// Directories that hold configuration and state; `/proc` is looked at by process.
const PLACES: [&str; 4] = ["/run", "/etc", "/opt/innkeeper", "/root"];
/// A secret lies in a small file.
const MOST: u64 = 256 << 10;
const MAX_FILES: usize = 4_000;
const MAX_DEPTH: usize = 6;

/// Environments, command lines and files of everybody.
pub(super) fn secrets() -> (Verdict, String) {
    let mut files = of_processes();
    for place in PLACES {
        walk(Path::new(place), 0, &mut files);
    }
    let (mut read, mut refused) = (0_usize, 0_usize);
    for path in files {
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(MOST).read_to_end(&mut bytes)) {
            Err(_) => refused += 1,
            Ok(_) if SHAPES.iter().any(|shape| has(&bytes, shape)) => {
                return (Verdict::Leak, format!("{} holds one", path.display()));
            }
            Ok(_) => read += 1,
        }
    }
    (Verdict::Refused, format!("none in {read} environments, command lines and files; {refused} are closed"))
}

fn has(bytes: &[u8], shape: &[u8]) -> bool {
    bytes.windows(shape.len()).any(|part| part == shape)
}

fn of_processes() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    let processes = entries.filter(|entry| entry.file_name().to_str().is_some_and(numbered));
    processes.flat_map(|entry| ["environ", "cmdline"].map(|file| entry.path().join(file))).collect()
}

fn walk(directory: &Path, depth: usize, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if files.len() >= MAX_FILES {
            return;
        }
        if kind.is_dir() && depth < MAX_DEPTH {
            walk(&entry.path(), depth + 1, files);
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
}
