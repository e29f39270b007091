//! The small files that the image has beside Debian's, compiled in: an embedded box needs no image. (pure)

/// A path in the box, and what is there.
pub type File = (&'static str, &'static str);

/// Below `/opt/innkeeper/home`, the skeleton of the agent's home.
pub const HOME: &[File] = &[
    (".bashrc", include_str!("../../../image/home/.bashrc")),
    (".claude/settings.json", include_str!("../../../image/home/.claude/settings.json")),
    (".config/pip/pip.conf", include_str!("../../../image/home/.config/pip/pip.conf")),
    (".npmrc", include_str!("../../../image/home/.npmrc")),
    (".profile", include_str!("../../../image/home/.profile")),
];

/// Below `/root`.
pub const ROOT: &[File] = &[
    (".bashrc", include_str!("../../../image/root/.bashrc")),
    (".profile", include_str!("../../../image/root/.profile")),
];

pub const TMUX_CONF: &str = include_str!("../../../image/tmux.conf");

/// Below `/etc/innkeeper/network`, where the operator gives no directory of his own.
pub const NETWORK: &[File] = &[
    ("domains.conf", include_str!("../../../network/domains.conf")),
    ("profiles/bun.conf", include_str!("../../../network/profiles/bun.conf")),
    ("profiles/claude-telemetry.conf", include_str!("../../../network/profiles/claude-telemetry.conf")),
    ("profiles/claude.conf", include_str!("../../../network/profiles/claude.conf")),
    ("profiles/crates.conf", include_str!("../../../network/profiles/crates.conf")),
    ("profiles/debian.conf", include_str!("../../../network/profiles/debian.conf")),
    ("profiles/fly.conf", include_str!("../../../network/profiles/fly.conf")),
    ("profiles/gcs.conf", include_str!("../../../network/profiles/gcs.conf")),
    ("profiles/github-actions.conf", include_str!("../../../network/profiles/github-actions.conf")),
    ("profiles/github.conf", include_str!("../../../network/profiles/github.conf")),
    ("profiles/go.conf", include_str!("../../../network/profiles/go.conf")),
    ("profiles/npm.conf", include_str!("../../../network/profiles/npm.conf")),
    ("profiles/pypi.conf", include_str!("../../../network/profiles/pypi.conf")),
];

/// The users of the image; `nobody` is the kernel's overflow id.
pub const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash
claude:x:1000:1000::/home/claude:/bin/bash
innkeeper-dns:x:901:901::/nonexistent:/usr/sbin/nologin
innkeeper-gate:x:902:902::/nonexistent:/usr/sbin/nologin
innkeeper-watch:x:903:903::/nonexistent:/usr/sbin/nologin
innkeeper-build:x:904:904::/nonexistent:/usr/sbin/nologin
innkeeper-notify:x:905:905::/nonexistent:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
";

pub const GROUP: &str = "root:x:0:
tty:x:5:
claude:x:1000:
innkeeper-dns:x:901:
innkeeper-gate:x:902:
innkeeper-watch:x:903:
innkeeper-build:x:904:
innkeeper-notify:x:905:
nogroup:x:65534:
";

pub const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n";

pub const SHELLS: &str = "/bin/sh\n/bin/bash\n";

/// No directory that the agent can write is in root's PATH.
pub const PROFILE: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
if [ -n \"${BASH-}\" ] && [ -r ~/.bashrc ]; then . ~/.bashrc; fi
";

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    fn below(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            if entry.path().is_dir() { below(&entry.path(), found) } else { found.push(entry.path()) }
        }
    }

    /// A file that is added to the image is not to be missed here.
    #[test]
    fn every_file_of_the_image_is_there() {
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        for (directory, files) in
            [("image/home", super::HOME), ("image/root", super::ROOT), ("network", super::NETWORK)]
        {
            let (base, mut found) = (top.join(directory), Vec::new());
            below(&base, &mut found);
            // Knowledge of the program's own: no box reads these files.
            found.retain(|path| !["hosts.conf", "public-suffixes"].iter().any(|own| path.ends_with(own)));
            found.sort();
            let listed: Vec<PathBuf> = files.iter().map(|(name, _)| base.join(name)).collect();
            assert_eq!(listed, found);
        }
    }
}
