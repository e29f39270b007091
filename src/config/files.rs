//! Reads small files whole, and never more than that: no devices, no pipes that would wait for ever.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use zeroize::Zeroizing;

/// Files of configuration are written by hand.
pub(super) const CONFIG_LIMIT: u64 = 1 << 20;
/// No credential is larger.
pub(super) const SECRET_LIMIT: u64 = 64 << 10;

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("it can't be read")]
    Read(#[source] io::Error),
    #[error("it is a link that leads nowhere")]
    Dangling,
    #[error("it is not a regular file")]
    NotRegular,
    #[error("it is larger than {} KiB", .0 / 1024)]
    TooLarge(u64),
    #[error("it is not UTF-8 (line {0})")]
    NotUtf8(usize),
}

impl FileError {
    /// The error with its cause, for a line of a report.
    #[must_use]
    pub(super) fn sentence(&self) -> String {
        match self {
            Self::Read(source) => format!("{self}: {source}"),
            Self::Dangling | Self::NotRegular | Self::TooLarge(_) | Self::NotUtf8(_) => self.to_string(),
        }
    }
}

/// The text of a file; `None` if there is none at this path. Links are followed: Kubernetes mounts secrets as links.
pub(super) fn read_text(path: &Path, limit: u64) -> Result<Option<Zeroizing<String>>, FileError> {
    // Looked at before it is opened, since opening a FIFO waits for its writer.
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A link into nothing is somebody's file that is not there, not the absence of one.
            return if path.symlink_metadata().is_ok() { Err(FileError::Dangling) } else { Ok(None) };
        }
        Err(error) => return Err(FileError::Read(error)),
    };
    if !metadata.is_file() {
        return Err(FileError::NotRegular);
    }
    let file = File::open(path).map_err(FileError::Read)?;
    if !file.metadata().map_err(FileError::Read)?.is_file() {
        return Err(FileError::NotRegular);
    }
    if metadata.len() > limit {
        return Err(FileError::TooLarge(limit));
    }
    // Room for all of it from the start, so that no copy of a secret is left behind by growing.
    let room = usize::try_from(metadata.len()).unwrap_or_default().saturating_add(64);
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(limit + 1).read_to_end(&mut bytes).map_err(FileError::Read)?;
    // Again, since its length was another's word: a file of /proc says 0, and a file may grow.
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        return Err(FileError::TooLarge(limit));
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Some(Zeroizing::new(text.to_owned()))),
        Err(error) => {
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            Err(FileError::NotUtf8(1 + before.iter().filter(|byte| **byte == b'\n').count()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::super::tests::Scratch;
    use super::*;

    #[test]
    fn regular_files_and_links_to_them_are_read() {
        let scratch = Scratch::new("files");
        let path = scratch.write("a", "text\n");
        std::os::unix::fs::symlink(&path, scratch.path("link")).unwrap();
        for path in [path, scratch.path("link")] {
            assert_eq!(read_text(&path, 5).unwrap().unwrap().as_str(), "text\n");
        }
        assert!(read_text(&scratch.path("none"), 5).unwrap().is_none());
        assert_eq!(read_text(&scratch.write("empty", ""), 5).unwrap().unwrap().as_str(), "");
    }

    #[test]
    fn everything_else_is_an_error_that_says_which() {
        let scratch = Scratch::new("files");
        let error = |path: &Path| read_text(path, 4).unwrap_err().sentence();
        assert_eq!(error(&scratch.path("")), "it is not a regular file");
        assert_eq!(error(Path::new("/dev/zero")), "it is not a regular file");
        // Opening it would wait for a writer, for ever.
        nix::unistd::mkfifo(&scratch.path("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(error(&scratch.path("fifo")), "it is not a regular file");
        assert_eq!(error(&scratch.write("long", "12345")), "it is larger than 0 KiB");
        std::fs::write(scratch.path("odd"), b"a\n\xff").unwrap();
        assert_eq!(error(&scratch.path("odd")), "it is not UTF-8 (line 2)");
        std::os::unix::fs::symlink("/nowhere/at/all", scratch.path("dangling")).unwrap();
        assert_eq!(error(&scratch.path("dangling")), "it is a link that leads nowhere");
        let below = scratch.write("file", "x").join("below");
        assert!(error(&below).starts_with("it can't be read: Not a directory"), "{}", error(&below));
        assert!(read_text(&below, 4).unwrap_err().source().is_some());
    }
}
