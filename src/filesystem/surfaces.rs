//! Doors of the host inside the box: control sockets, service-account tokens. They are covered, and the readiness
//! attack shows from the agent's side whether that held.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::mountinfo::{self, MountTable};

#[derive(Debug, thiserror::Error)]
pub enum SurfaceError {
    #[error("cannot read the mount table")]
    Table(#[source] mountinfo::MountTableError),
    #[error("cannot cover {path}")]
    Cover { path: PathBuf, source: nix::errno::Errno },
    #[error("cannot prepare the covers")]
    Prepare(#[source] super::FilesystemError),
}

/// Well-known doors. Reaching one of them is reaching the host, the cluster or the machine's platform.
pub const KNOWN: &[&str] = &[
    "/.fly/api",
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
    "/run/buildkit/buildkitd.sock",
    "/var/run/secrets/kubernetes.io/serviceaccount",
    "/var/run/secrets/eks.amazonaws.com/serviceaccount",
    "/var/run/secrets/azure/tokens",
];

/// Credentials that the runtime mounts for us. Covered like a door; where that can't be, their own modes decide, and
/// what the agent can read of them is said with the secrets.
pub const SECRETS: &str = "/run/secrets";

/// The doors of this box: the known ones that exist, and every socket that was mounted into it.
pub fn found(table: &MountTable) -> Vec<PathBuf> {
    let mut doors: Vec<PathBuf> = Vec::new();
    let known = KNOWN.iter().map(PathBuf::from).filter(|path| path.exists());
    let mounted = table.visible().filter(|entry| is_socket(&entry.path)).map(|entry| entry.path.clone());
    for door in known.chain(mounted) {
        // /var/run is a link to /run: one cover each.
        let real = std::fs::canonicalize(&door).unwrap_or(door);
        if !doors.contains(&real) {
            doors.push(real);
        }
    }
    doors
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// Covers every door with something empty that the agent can't open. PID 1 has read the secrets before. What could not be
/// covered is returned: there its own modes decide.
pub fn cover(doors: &[PathBuf]) -> Result<Vec<SurfaceError>, SurfaceError> {
    let secrets = Some(PathBuf::from(SECRETS)).filter(|path| path.is_dir());
    let directory = Path::new(super::layout::STATE_PRIVATE).join("cover");
    super::private_directory(&directory, 0o000).map_err(SurfaceError::Prepare)?;
    let file = Path::new(super::layout::STATE_PRIVATE).join("cover-file");
    super::write_root_file(&file, b"", 0o000).map_err(SurfaceError::Prepare)?;
    let mut failed = Vec::new();
    for door in doors.iter().chain(&secrets) {
        let cover = if door.is_dir() { &directory } else { &file };
        let bound = mount(Some(cover), door, None::<&str>, MsFlags::MS_BIND, None::<&str>);
        if let Err(source) = bound {
            failed.push(SurfaceError::Cover { path: door.clone(), source });
        }
    }
    Ok(failed)
}

/// The mounted secrets that this uid could read if nothing covers them: their own modes decide.
#[must_use]
pub fn readable_secrets(reader: super::layout::Owner) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(SECRETS).into_iter().flatten().flatten();
    // By their links, as a kubelet makes them; the directory is the runtime's.
    let may_read = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|metadata| readable(&metadata, reader));
    entries.map(|entry| entry.path()).filter(may_read).collect()
}

fn readable(metadata: &std::fs::Metadata, reader: super::layout::Owner) -> bool {
    let mode = metadata.mode();
    metadata.is_file()
        && (mode & 0o004 != 0
            || metadata.uid() == reader.uid && mode & 0o400 != 0
            || metadata.gid() == reader.gid && mode & 0o040 != 0)
}

/// Whether something can be bound over this door; in a mount namespace that is thrown away.
pub fn rehearse(door: &Path) -> Result<(), SurfaceError> {
    let bound = mount(Some(door), door, None::<&str>, MsFlags::MS_BIND, None::<&str>);
    bound.map_err(|source| SurfaceError::Cover { path: door.to_owned(), source })
}

/// Reads the mount table and finds the doors.
pub fn find() -> Result<Vec<PathBuf>, SurfaceError> {
    Ok(found(&MountTable::read().map_err(SurfaceError::Table)?))
}
