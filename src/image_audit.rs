//! A look at the image, once the box is ready: what a base image or a build step left that an attacker would like.
//!
//! The seal makes setuid files and file capabilities ineffective (nosuid) and everything read-only; this says what is
//! there all the same, since it is a sign of an image that somebody should look at.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::filesystem::mountinfo::MountTable;
use crate::innkeeper::Innkeeper;

/// Files looked at; an image of this product has some 60,000.
const MAX_FILES: usize = 1_000_000;
/// Findings named in full; the rest is counted.
const NAMED: usize = 5;
/// Where root looks for programs (the image's PATH).
const ROOT_PATH: &[&str] = &["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// What was found, by kind.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    pub setuid: Vec<PathBuf>,
    pub capabilities: Vec<PathBuf>,
    /// Files and directories in root's PATH, or on the way to it, that others than root may write.
    pub writable: Vec<PathBuf>,
    pub roots: Vec<String>,
    pub preload: bool,
}

/// Looks at the image below `/` and warns.
pub fn run(innkeeper: &Innkeeper) {
    let table = MountTable::read().ok();
    let nosuid = table.is_some_and(|table| table.at(Path::new("/")).is_some_and(|root| root.has("nosuid")));
    for warning in warnings(&look(Path::new("/")), nosuid) {
        innkeeper.board().warn(warning);
    }
}

/// Walks one file system, follows no link, and never leaves it: the agent's places are others.
#[must_use]
pub fn look(root: &Path) -> Findings {
    let mut findings = Findings::default();
    let Ok(device) = std::fs::symlink_metadata(root).map(|metadata| metadata.dev()) else { return findings };
    let mut pending = vec![root.to_owned()];
    let mut seen = 0;
    while let Some(directory) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            seen += 1;
            let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
            if metadata.dev() != device || seen > MAX_FILES {
                continue;
            }
            if metadata.is_dir() {
                pending.push(path);
            } else if metadata.is_file() {
                judge_file(&path, metadata.mode(), &mut findings);
            }
        }
    }
    for directory in ROOT_PATH {
        judge_path(root, directory, &mut findings);
    }
    findings.roots = roots(&std::fs::read_to_string(root.join("etc/passwd")).unwrap_or_default());
    findings.preload = root.join("etc/ld.so.preload").exists();
    findings
}

const SETUID_SETGID: u32 = 0o6000;

fn judge_file(path: &Path, mode: u32, findings: &mut Findings) {
    if mode & SETUID_SETGID != 0 {
        findings.setuid.push(path.to_owned());
    }
    // ENODATA is the usual answer; only executables can have an effect.
    if mode & 0o111 != 0
        && rustix::fs::lgetxattr(path, "security.capability", &mut [0_u8; 64]).is_ok_and(|n| n > 0)
    {
        findings.capabilities.push(path.to_owned());
    }
}

fn judge_path(root: &Path, directory: &str, findings: &mut Findings) {
    let directory = root.join(directory.trim_start_matches('/'));
    let entries = std::fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let own = directory.ancestors().take_while(|path| path.starts_with(root)).map(Path::to_owned);
    for path in own.chain(entries) {
        // What a link leads to decides, and the image's links are root's.
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        let others_write =
            metadata.mode() & 0o022 != 0 && metadata.gid() != 0 || metadata.mode() & 0o002 != 0;
        if (others_write || !roots_own(metadata.uid())) && !findings.writable.contains(&path) {
            findings.writable.push(path);
        }
    }
}

/// Root's, or in a user namespace (the embedded engine) the host's: an id that has no number here is shown as the overflow
/// id, and nobody in the box has it (user_namespaces(7)).
fn roots_own(uid: u32) -> bool {
    uid == 0 || uid == OVERFLOW && in_user_namespace()
}

const OVERFLOW: u32 = 65_534;

/// Outside of every user namespace all ids are mapped to themselves.
fn in_user_namespace() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]
}

/// Accounts with uid 0 beside root.
fn roots(passwd: &str) -> Vec<String> {
    let account = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        (fields.nth(1)? == "0" && name != "root").then_some(name)
    };
    passwd.lines().filter_map(account).collect()
}

/// The findings as sentences.
#[must_use]
pub fn warnings(findings: &Findings, nosuid: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let effect = if nosuid {
        "without effect here: the file system is nosuid"
    } else {
        "without effect for the session, which has no_new_privs; not so for docker exec -u"
    };
    for (paths, what) in [
        (&findings.setuid, format!("setuid or setgid files ({effect})")),
        (&findings.capabilities, format!("files with capabilities ({effect})")),
        (
            &findings.writable,
            "places in root's PATH that others than root may write (read-only here)".to_owned(),
        ),
    ] {
        if !paths.is_empty() {
            warnings.push(format!("the image has {} {what}: {}", paths.len(), named(paths)));
        }
    }
    if !findings.roots.is_empty() {
        warnings
            .push(format!("the image has more accounts with uid 0 than root: {}", findings.roots.join(", ")));
    }
    if findings.preload {
        let line = "the image has /etc/ld.so.preload: a library is put into every dynamic program (not into innkeeper)";
        warnings.push(line.to_owned());
    }
    warnings
}

fn named(paths: &[PathBuf]) -> String {
    let mut text: Vec<String> =
        paths.iter().take(NAMED).map(|path| crate::report::inert(&path.display().to_string())).collect();
    if paths.len() > NAMED {
        text.push(format!("and {} more", paths.len() - NAMED));
    }
    text.join(", ")
}

#[cfg(test)]
mod tests {
    use super::{look, roots, warnings};
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn t98_what_a_build_step_left_is_found() {
        let root = std::env::temp_dir().join(format!("innkeeper-audit-{}", std::process::id()));
        fs::create_dir_all(root.join("usr/local/bin")).unwrap();
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("usr/local/bin/tool"), "x").unwrap();
        fs::set_permissions(root.join("usr/local/bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::set_permissions(root.join("usr/local/bin"), fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(root.join("etc/ld.so.preload"), "/evil.so").unwrap();
        fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\ntoor:x:0:0::/:/bin/sh\n").unwrap();
        let findings = look(&root);
        assert_eq!(findings.setuid, [root.join("usr/local/bin/tool")]);
        assert!(findings.writable.contains(&root.join("usr/local/bin")));
        assert!(findings.preload);
        assert_eq!(findings.roots, ["toor"]);
        assert_eq!(warnings(&findings, true).len(), 4);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_clean_passwd_has_one_root() {
        assert!(roots("root:x:0:0::/root:/bin/sh\nclaude:x:1000:1000::/home/claude:/bin/bash\n").is_empty());
    }
}
