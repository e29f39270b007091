//! Whether the audit log's file has a place that is root's alone and outlives the box: looked at without making anything.

use std::path::Path;

use super::Lack;
use crate::filesystem::layout::{Mount, Owner};
use crate::filesystem::mountinfo::MountTable;
use crate::filesystem::seal::may_write;

const NEXT: &str = "mount a volume for it alone, which root owns (docker run -v innkeeper-audit:/audit), and set \
                    log.file = \"/audit/innkeeper.jsonl\"";

/// What is wrong with the place of `log.file`.
#[must_use]
pub fn lack(path: &Path, layout: &[Mount], agent: Owner) -> Option<Lack> {
    let table = match MountTable::read() {
        Ok(table) => table,
        Err(error) => return Some(Lack::new(crate::report::chain(&error), NEXT)),
    };
    let found = place(path, &table, layout).err().or_else(|| directories(path, agent).err())?;
    Some(Lack::new(format!("log.file {}: {found}", path.display()), NEXT))
}

fn place(path: &Path, table: &MountTable, layout: &[Mount]) -> Result<(), String> {
    let Some(mount) = table.covering(path) else { return Err("it is on no file system".to_owned()) };
    if mount.path == Path::new("/") {
        return Err("it is on the root file system, which is sealed and ends with the container".to_owned());
    }
    if mount.path == *path {
        // Turned over, the file gets another name: a file that is a mount can't.
        return Err("it is a mount itself; mount the directory instead".to_owned());
    }
    if let Some(place) = layout.iter().find(|place| path.starts_with(&place.path)) {
        return Err(format!("{} is not for it", place.path.display()));
    }
    if mount.read_only() {
        return Err(format!("{} is mounted read-only", mount.path.display()));
    }
    Ok(())
}

/// Whoever can write a directory of the path can put another file there.
fn directories(path: &Path, agent: Owner) -> Result<(), String> {
    for directory in path.ancestors().skip(1) {
        let shown = directory.display();
        let metadata = std::fs::symlink_metadata(directory).map_err(|error| format!("{shown}: {error}"))?;
        if !metadata.is_dir() {
            return Err(format!("{shown} is no directory (links are not followed)"));
        }
        if may_write(&metadata, agent) {
            return Err(format!("the agent can write {shown}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{directories, place};
    use crate::filesystem::layout::{Owner, Sizes, plan};
    use crate::filesystem::mountinfo::{MountEntry, MountTable};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    const AGENT: Owner = Owner { uid: 1000, gid: 1000 };

    #[test]
    fn only_a_volume_of_its_own_will_do() {
        let mount = |path: &str, option: &str| MountEntry {
            path: path.into(),
            fs_type: "ext4".into(),
            options: vec![option.to_owned()],
            super_options: Vec::new(),
        };
        let table = MountTable::new(vec![
            mount("/", "rw"),
            mount("/workspace", "rw"),
            mount("/audit", "rw"),
            mount("/ro", "ro"),
            mount("/file.jsonl", "rw"),
        ]);
        let layout = plan(AGENT, "/home/claude", Sizes { workspace: 1, tmp: 1, home: 1 });
        let judge = |path: &str| place(Path::new(path), &table, &layout);
        assert_eq!(judge("/audit/box.jsonl"), Ok(()));
        assert!(judge("/var/log/box.jsonl").unwrap_err().contains("root file system"));
        assert!(judge("/workspace/box.jsonl").unwrap_err().contains("not for it"));
        assert!(judge("/run/innkeeper/box.jsonl").is_err());
        assert!(judge("/ro/box.jsonl").unwrap_err().contains("read-only"));
        assert!(judge("/file.jsonl").unwrap_err().contains("directory"));
    }

    #[test]
    fn t74_no_directory_on_the_way_may_be_the_agents_or_a_link() {
        let top = std::env::temp_dir().join(format!("innkeeper-log-place-{}", std::process::id()));
        std::fs::create_dir_all(top.join("a")).unwrap();
        let mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(&top.join("a"), 0o777);
        assert!(directories(&top.join("a/log"), AGENT).unwrap_err().contains("can write"));
        std::os::unix::fs::symlink(top.join("a"), top.join("b")).unwrap();
        assert!(directories(&top.join("b/log"), AGENT).unwrap_err().contains("links"));
        assert!(directories(&top.join("c/log"), AGENT).unwrap_err().contains("No such file"));
        std::fs::remove_dir_all(top).unwrap();
    }
}
