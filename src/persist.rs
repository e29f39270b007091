//! What outlives the box: the repositories' state and Claude's conversations, saved on a volume and restored from it.
//!
//! All of it is written by the agent. PID 1 opens nothing of it: children that run as the agent, confined, do the work
//! (`persist-save`, `persist-restore`), and say in one short line how it went, which is hearsay.

pub mod beneath;
pub mod config;
pub mod conversation;
mod git;
pub mod manifest;
pub mod path;
mod repository;
pub mod restore;
pub mod said;
pub mod save;
pub mod store;
pub mod unfinished;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Where the volume is mounted.
pub const VOLUME: &str = "/persist";

#[derive(Debug, thiserror::Error)]
pub enum PersistError {
    #[error("cannot {what} {path}")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("git {what} failed{}{said}", if said.is_empty() { "" } else { ": " })]
    Git { what: String, said: String, source: Option<std::io::Error> },
    #[error("it would take more than {limit} octets (persist.size)")]
    TooLarge { limit: u64 },
    #[error("another save is under way on this volume")]
    Busy,
    #[error("the object {name} can't be opened")]
    Object { name: String, source: std::io::Error },
    #[error("{name} is not what its name says")]
    Damaged { name: String },
    #[error("a save is not believed")]
    Manifest(#[source] manifest::ManifestError),
    #[error("there are {0}")]
    Unfit(&'static str),
    #[error("there was no time left")]
    Late,
}

impl PersistError {
    /// Whether nothing more can be written, whatever it is.
    fn is_of_the_volume(&self) -> bool {
        match self {
            Self::TooLarge { .. } | Self::Late => true,
            Self::Io { source, .. } => matches!(
                source.kind(),
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::ReadOnlyFilesystem
            ),
            Self::Git { said, .. } => said.contains(NO_SPACE),
            Self::Busy | Self::Object { .. } | Self::Damaged { .. } | Self::Manifest(_) | Self::Unfit(_) => {
                false
            }
        }
    }

    /// Whether the save itself is not as it should be.
    fn is_of_the_save(&self) -> bool {
        match self {
            Self::Object { .. } | Self::Damaged { .. } | Self::Manifest(_) | Self::Unfit(_) => true,
            Self::Git { said, source, .. } => {
                source.is_none() && !said.contains(NO_SPACE) && said != git::KILLED
            }
            Self::Io { .. } | Self::TooLarge { .. } | Self::Busy | Self::Late => false,
        }
    }
}

/// As strerror(3) says it, by git too.
const NO_SPACE: &str = "No space left on device";

/// The operation and its object, for an error of the kernel's.
fn at(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> PersistError {
    let path = path.as_ref().to_owned();
    move |source| PersistError::Io { what, path, source }
}
