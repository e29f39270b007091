//! The two programs that a host seldom has as the box needs them: a tmux that is new enough, and Claude Code.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Filled by `scripts/programs`.
pub const DIRECTORY: &str = "/var/lib/innkeeper/programs";
/// The first version that draws Claude Code without flicker.
const TMUX: (u32, u32) = (3, 6);
const HOST_TMUX: &str = "/usr/bin/tmux";

#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("tmux is missing: this host has no /usr/bin/tmux, and {0} has none either")]
    NoTmux(PathBuf),
    #[error("Claude Code is missing: there is no {0}")]
    NoClaude(PathBuf),
    #[error("{path} is not root's alone: whoever can change it would be executed in every box")]
    Foreign { path: PathBuf },
    #[error("cannot make {path} unreadable for the agent")]
    Mode { path: PathBuf, source: io::Error },
    #[error("cannot look at {path}")]
    Look { path: PathBuf, source: io::Error },
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// A directory with `tmux` in it; `None`: the host's own.
    pub tmux: Option<PathBuf>,
    pub claude: Option<PathBuf>,
    /// What the operator should know.
    pub warning: Option<String>,
}

/// Looks for both; Claude Code may be missing where the session is another program.
pub fn find(directory: &Path, need_claude: bool) -> Result<Programs, ProgramError> {
    let (tmux, warning) = tmux(directory)?;
    let claude = directory.join("claude/claude");
    let claude = match fs::symlink_metadata(&claude) {
        Ok(_) => Some(closed(claude)?),
        Err(_) if need_claude => return Err(ProgramError::NoClaude(claude)),
        Err(_) => None,
    };
    Ok(Programs { tmux, claude, warning })
}

fn tmux(directory: &Path) -> Result<(Option<PathBuf>, Option<String>), ProgramError> {
    let own = directory.join("tmux");
    if let Some(version) = version(&own.join("tmux")).filter(|version| *version >= TMUX) {
        owned(&own)?;
        let _: (u32, u32) = version;
        return Ok((Some(own), None));
    }
    match version(Path::new(HOST_TMUX)) {
        Some(version) if version >= TMUX => Ok((None, None)),
        Some((major, minor)) => {
            let warning = format!(
                "this host's tmux is {major}.{minor}: Claude Code flickers before {}.{} (./scripts/programs fetches one)",
                TMUX.0, TMUX.1
            );
            Ok((None, Some(warning)))
        }
        None => Err(ProgramError::NoTmux(own)),
    }
}

/// `tmux 3.6a` → (3, 6)
fn version(program: &Path) -> Option<(u32, u32)> {
    let said = Command::new(program).arg("-V").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    parse(&String::from_utf8_lossy(&said.stdout))
}

fn parse(said: &str) -> Option<(u32, u32)> {
    let number = said.trim().strip_prefix("tmux ")?.trim_start_matches("next-");
    let (major, minor) = number.split_once('.')?;
    let minor: String = minor.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn owned(path: &Path) -> Result<fs::Metadata, ProgramError> {
    let metadata =
        fs::symlink_metadata(path).map_err(|source| ProgramError::Look { path: path.to_owned(), source })?;
    if metadata.uid() != 0 || metadata.mode() & 0o022 != 0 || metadata.is_symlink() {
        return Err(ProgramError::Foreign { path: path.to_owned() });
    }
    Ok(metadata)
}

/// Executable but not readable for the agent: the kernel then makes the process non-dumpable, so that the agent's other
/// processes can't read the token out of its memory (ptrace(2), `PTRACE_MODE_ATTACH_FSCREDS`).
fn closed(path: PathBuf) -> Result<PathBuf, ProgramError> {
    let metadata = owned(&path)?;
    if metadata.mode() & 0o777 != 0o711 {
        fs::set_permissions(&path, Permissions::from_mode(0o711))
            .map_err(|source| ProgramError::Mode { path: path.clone(), source })?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    #[test]
    fn versions_of_tmux() {
        for (said, version) in [
            ("tmux 3.3a\n", Some((3, 3))),
            ("tmux 3.6\n", Some((3, 6))),
            ("tmux next-3.7\n", Some((3, 7))),
            ("tmux openbsd-7.5\n", None),
            ("", None),
        ] {
            assert_eq!(super::parse(said), version, "{said}");
        }
    }
}
