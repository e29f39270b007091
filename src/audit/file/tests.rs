use super::{LogFile, LogFileError};
use crate::audit::verify;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("innkeeper-audit-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("audit.jsonl")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

const ROOMY: u64 = 1 << 20;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn add(path: &Path, limit: u64, lines: std::ops::Range<u32>) -> LogFile {
    let mut log = LogFile::open(path, limit).unwrap();
    for seq in lines {
        log.add(&format!(r#"{{"schema":1,"seq":{seq}}}"#)).unwrap();
    }
    log
}

#[test]
fn a_later_box_goes_on_with_the_chain() {
    if !is_root() {
        return;
    }
    let directory = Directory::new("later");
    drop(add(&directory.file(), ROOMY, 0..5));
    let log = add(&directory.file(), ROOMY, 5..9);
    let head = log.chain.head().to_owned();
    let verified = verify::files(&[directory.file()], Some(&head)).unwrap();
    assert_eq!((verified.lines, verified.is_whole), (9, true));
    let mode = std::fs::metadata(directory.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "others than root have no business with it");
}

#[test]
fn a_full_file_is_turned_over_and_the_chain_goes_through_both() {
    if !is_root() {
        return;
    }
    let directory = Directory::new("full");
    let log = add(&directory.file(), 1500, 0..40);
    let former = directory.0.join("audit.jsonl.1");
    assert!(std::fs::metadata(&former).unwrap().len() <= 1500);
    assert!(std::fs::metadata(directory.file()).unwrap().len() <= 1500);
    let verified = verify::files(&[former, directory.file()], Some(log.chain.head())).unwrap();
    assert!(!verified.is_whole && verified.lines > 8, "{verified:?}");
}

#[test]
fn a_torn_line_is_kept_and_vouched_for() {
    if !is_root() {
        return;
    }
    let directory = Directory::new("torn");
    drop(add(&directory.file(), ROOMY, 0..3));
    let text = std::fs::read(directory.file()).unwrap();
    std::fs::write(directory.file(), &text[..text.len() - 9]).unwrap();
    drop(add(&directory.file(), ROOMY, 3..5));
    let verified = verify::files(&[directory.file()], None).unwrap();
    assert_eq!((verified.lines, verified.torn), (5, 1));
}

#[test]
fn t74_what_somebody_else_put_there_is_not_opened() {
    if !is_root() {
        return;
    }
    let directory = Directory::new("planted");
    let path = directory.file();
    let elsewhere = directory.0.join("elsewhere");
    std::fs::write(&elsewhere, "precious").unwrap();
    symlink(&elsewhere, &path).unwrap();
    assert!(matches!(LogFile::open(&path, ROOMY), Err(LogFileError::Open { .. })));
    std::fs::remove_file(&path).unwrap();
    symlink(directory.0.join("nowhere"), &path).unwrap();
    assert!(matches!(LogFile::open(&path, ROOMY), Err(LogFileError::Open { .. })), "nor made");
    std::fs::remove_file(&path).unwrap();
    std::fs::hard_link(&elsewhere, &path).unwrap();
    assert!(matches!(LogFile::open(&path, ROOMY), Err(LogFileError::Kind { .. })));
    std::fs::remove_file(&path).unwrap();
    // Without a reader, opening it to write would wait for ever.
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(LogFile::open(&path, ROOMY).is_err());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(matches!(LogFile::open(&path, ROOMY), Err(LogFileError::Kind { .. })));
    assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "precious");
    let linked = directory.0.join("linked");
    symlink(&directory.0, &linked).unwrap();
    let through = LogFile::open(&linked.join("audit.jsonl"), ROOMY);
    assert!(matches!(through, Err(LogFileError::Directory { .. })));
}

#[test]
fn two_boxes_do_not_share_a_file() {
    if !is_root() {
        return;
    }
    let directory = Directory::new("shared");
    let _first = add(&directory.file(), ROOMY, 0..1);
    assert!(matches!(LogFile::open(&directory.file(), ROOMY), Err(LogFileError::Shared { .. })));
}

/// The directory has no room for another name when the file is full; later it has.
#[test]
fn f17_a_turn_that_failed_half_way_is_made_up_for() {
    if !is_root() {
        return;
    }
    let directory = Directory::new("half");
    let mut log = add(&directory.file(), 1500, 0..10);
    let former = directory.0.join("audit.jsonl.1");
    std::fs::rename(directory.file(), &former).unwrap();
    for seq in 10..30 {
        log.add(&format!(r#"{{"schema":1,"seq":{seq}}}"#)).unwrap();
    }
    let verified = verify::files(&[former, directory.file()], Some(log.chain.head())).unwrap();
    assert!(verified.lines >= 10, "{verified:?}");
}
