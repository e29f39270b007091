//! The root of an embedded box: a fresh tmpfs into which only listed paths of the host are bound, read-only, nosuid and
//! nodev. Runs in the box's own mount namespace, still with the host's rights, before the user namespace exists; what is
//! mounted here can't be changed by anybody in the box, its root included (mount_namespaces(7), "locked").

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::files;
use super::plan::{AGENT, HOME, Plan};
use crate::dns::resolv_conf::{self, Upstreams};
use crate::filesystem::layout::{self, Owner};
use crate::filesystem::mountinfo::{MountTable, MountTableError};

#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("cannot make {path} in the box's root")]
    Make { path: PathBuf, source: io::Error },
    #[error("cannot mount {path} in the box's root")]
    Mount { path: PathBuf, source: nix::errno::Errno },
    #[error("cannot read the mount table")]
    Table(#[source] MountTableError),
    #[error("cannot change to the box's root")]
    Pivot(#[source] nix::errno::Errno),
}

/// Programs and what they need. Where the host has merged /usr the first ones are links and stay links.
const PROGRAMS: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
const BELOW_USR: &[&str] =
    &["bin", "sbin", "lib", "lib32", "lib64", "libx32", "libexec", "share", "include", "games"];
/// `bin` is the box's own directory, with links to the host's.
const BELOW_LOCAL: &[&str] = &["sbin", "lib", "lib64", "libexec", "share", "include"];
/// What programs read to start. No directory in which a host keeps keys: of `ssl` only the certificates.
const ETC: &[&str] = &[
    "alternatives",
    "bash.bashrc",
    "bash_completion.d",
    "ca-certificates",
    "ca-certificates.conf",
    "crypto-policies",
    "debian_version",
    "fonts",
    "host.conf",
    "inputrc",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "locale.conf",
    "localtime",
    "magic",
    "mime.types",
    "os-release",
    "pki/ca-trust/extracted",
    "pki/tls/cert.pem",
    "pki/tls/certs",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
];

/// The most that the root itself may hold: small text files, and our own binary where it must be copied.
const ROOT_SIZE: u64 = 128 << 20;
const RUN_SIZE: u64 = 8 << 20;
const SHM_SIZE: u64 = 64 << 20;

const PLAIN: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

fn at(path: &Path) -> impl FnOnce(io::Error) -> RootError + '_ {
    move |source| RootError::Make { path: path.to_owned(), source }
}

/// The root under construction.
#[derive(Debug)]
struct Stage<'a> {
    plan: &'a Plan,
    root: &'a Path,
}

/// Puts the root together and makes it this process's.
pub(super) fn enter(plan: &Plan) -> Result<(), RootError> {
    // Nothing of this may ever reach the host's own mount table.
    mount_at(Path::new("/"), None, None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, "")?;
    let stage = Stage { plan, root: &plan.stage };
    let root_options = stage.options(ROOT_SIZE, 0o755, layout::ROOT);
    mount_at(stage.root, Some("tmpfs"), Some("tmpfs"), PLAIN, &root_options)?;
    stage.directories()?;
    stage.programs()?;
    stage.settings()?;
    stage.own_programs()?;
    stage.devices()?;
    stage.places()?;
    remount(stage.root, PLAIN | MsFlags::MS_RDONLY)?;
    pivot(stage.root)
}

/// The old root goes, with all that is mounted in it (pivot_root(2), "pivot_root(".", ".")").
fn pivot(root: &Path) -> Result<(), RootError> {
    nix::unistd::chdir(root).map_err(RootError::Pivot)?;
    nix::unistd::pivot_root(".", ".").map_err(RootError::Pivot)?;
    umount2(".", MntFlags::MNT_DETACH).map_err(RootError::Pivot)?;
    nix::unistd::chdir("/").map_err(RootError::Pivot)
}

fn mount_at(
    path: &Path,
    source: Option<&str>,
    kind: Option<&str>,
    flags: MsFlags,
    options: &str,
) -> Result<(), RootError> {
    mount(source, path, kind, flags, Some(options))
        .map_err(|source| RootError::Mount { path: path.to_owned(), source })
}

fn remount(path: &Path, flags: MsFlags) -> Result<(), RootError> {
    mount_at(path, None, None, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, "")
}

impl Stage<'_> {
    /// Numbers as the host has them: the user namespace comes later.
    fn owner(&self, owner: Owner) -> Owner {
        Owner { uid: self.plan.base + owner.uid, gid: self.plan.base + owner.gid }
    }

    fn options(&self, size: u64, mode: u32, owner: Owner) -> String {
        let Owner { uid, gid } = self.owner(owner);
        format!("size={size},mode={mode:o},uid={uid},gid={gid}")
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn own(&self, path: &Path) -> Result<(), RootError> {
        let Owner { uid, gid } = self.owner(layout::ROOT);
        lchown(path, Some(uid), Some(gid)).map_err(at(path))
    }

    /// A directory of root's, and those above it.
    fn directory(&self, path: &str, mode: u32) -> Result<PathBuf, RootError> {
        let made = self.path(path);
        if let Some(parent) = Path::new(path).parent().and_then(Path::to_str).filter(|p| p.len() > 1)
            && !self.path(parent).exists()
        {
            self.directory(parent, 0o755)?;
        }
        match fs::create_dir(&made) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(&made)(error)),
            Ok(()) | Err(_) => {}
        }
        self.own(&made)?;
        fs::set_permissions(&made, Permissions::from_mode(mode)).map_err(at(&made))?;
        Ok(made)
    }

    fn file(&self, path: &str, text: &str, mode: u32) -> Result<PathBuf, RootError> {
        if let Some(parent) = Path::new(path).parent().and_then(Path::to_str)
            && !self.path(parent).exists()
        {
            self.directory(parent, 0o755)?;
        }
        let made = self.path(path);
        fs::write(&made, text).map_err(at(&made))?;
        self.own(&made)?;
        fs::set_permissions(&made, Permissions::from_mode(mode)).map_err(at(&made))?;
        Ok(made)
    }

    fn link(&self, path: &str, to: impl AsRef<Path>) -> Result<(), RootError> {
        let made = self.path(path);
        symlink(to, &made).map_err(at(&made))?;
        self.own(&made)
    }

    /// Binds one thing of the host's: itself and what is mounted in it, each read-only, nosuid, nodev.
    fn bind(&self, source: &Path, path: &str) -> Result<(), RootError> {
        let is_directory = fs::metadata(source).map_err(at(source))?.is_dir();
        let target = if is_directory { self.directory(path, 0o755)? } else { self.file(path, "", 0o644)? };
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(source), &target, None::<&str>, flags, None::<&str>)
            .map_err(|source| RootError::Mount { path: target.clone(), source })?;
        let table = MountTable::read().map_err(RootError::Table)?;
        for entry in table.visible().filter(|entry| entry.path.starts_with(&target)) {
            remount(&entry.path, entry.flags() | PLAIN | MsFlags::MS_RDONLY)?;
        }
        Ok(())
    }

    /// The same thing at the same place, if the host has it; a link stays a link, wherever it leads.
    fn carry(&self, path: &str) -> Result<(), RootError> {
        let source = Path::new("/").join(path);
        let Ok(metadata) = fs::symlink_metadata(&source) else { return Ok(()) };
        let place = format!("/{path}");
        if metadata.is_symlink() {
            if let Some(parent) = Path::new(&place).parent().and_then(Path::to_str) {
                self.directory(parent, 0o755)?;
            }
            let to = fs::read_link(&source).map_err(at(&source))?;
            return self.link(&place, to);
        }
        self.bind(&source, &place)
    }

    fn directories(&self) -> Result<(), RootError> {
        for path in [
            "/dev",
            "/etc",
            "/etc/ssl",
            "/home",
            HOME,
            "/mnt",
            "/opt",
            "/opt/innkeeper/layer",
            "/proc",
            "/run",
            "/sys",
            "/tmp",
            "/usr",
            "/usr/local",
            "/usr/local/bin",
            "/var",
            "/var/cache",
            "/var/lib",
            "/var/log",
            "/workspace",
        ] {
            self.directory(path, 0o755)?;
        }
        self.directory("/root", 0o700)?;
        self.link("/var/run", "/run")?;
        self.link("/var/tmp", "../tmp")
    }

    fn programs(&self) -> Result<(), RootError> {
        for name in PROGRAMS {
            self.carry(name)?;
        }
        for name in BELOW_USR {
            self.carry(&format!("usr/{name}"))?;
        }
        for name in BELOW_LOCAL {
            self.carry(&format!("usr/local/{name}"))?;
        }
        for name in ETC {
            self.carry(&format!("etc/{name}"))?;
        }
        Ok(())
    }

    fn settings(&self) -> Result<(), RootError> {
        let former = Upstreams {
            servers: self.plan.upstreams.iter().map(|ip| std::net::SocketAddr::new(*ip, 53)).collect(),
            engine: None,
        };
        // As Innkeeper writes it itself: the file can't be changed once the root is read-only.
        let resolv = resolv_conf::render(crate::dns::keeper::LISTEN_V4.into(), &former);
        let name = &self.plan.name;
        let hosts =
            format!("127.0.0.1\tlocalhost {name}\n::1\tlocalhost ip6-localhost ip6-loopback {name}\n");
        for (path, text) in [
            ("/etc/passwd", files::PASSWD),
            ("/etc/group", files::GROUP),
            ("/etc/nsswitch.conf", files::NSSWITCH),
            ("/etc/shells", files::SHELLS),
            ("/etc/profile", files::PROFILE),
            ("/etc/hostname", &format!("{name}\n")),
            ("/etc/hosts", &hosts),
            ("/etc/resolv.conf", &resolv),
            ("/opt/innkeeper/tmux.conf", files::TMUX_CONF),
        ] {
            self.file(path, text, 0o644)?;
        }
        for (top, files) in [("/opt/innkeeper/home", files::HOME), ("/root", files::ROOT)] {
            for (path, text) in files {
                self.file(&format!("{top}/{path}"), text, 0o644)?;
            }
        }
        for given in &self.plan.files {
            self.file(&given.path, &given.text, 0o644)?;
        }
        self.directory("/etc/claude-code", 0o755)?;
        self.link("/etc/claude-code/managed-settings.json", "/run/innkeeper/etc/claude-settings.json")?;
        self.link("/etc/claude-code/CLAUDE.md", "/run/innkeeper/etc/CLAUDE.md")?;
        self.link("/etc/gitconfig", "/run/innkeeper/etc/gitconfig")?;
        self.link("/etc/mtab", "/proc/self/mounts")
    }

    /// Innkeeper, Claude Code and tmux; and the host's own programs of /usr/local, by links behind them.
    fn own_programs(&self) -> Result<(), RootError> {
        self.own_binary()?;
        for name in ["gh", "status", "attach"] {
            self.link(&format!("/usr/local/bin/{name}"), "innkeeper")?;
        }
        if let Some(claude) = &self.plan.claude {
            self.bind(claude, "/opt/claude/claude")?;
            self.link("/usr/local/bin/claude", "/opt/claude/claude")?;
        }
        if let Some(tmux) = &self.plan.tmux {
            self.bind(tmux, "/opt/innkeeper/tmux")?;
            self.link("/usr/local/bin/tmux", "/opt/innkeeper/tmux/tmux")?;
        }
        let local = Path::new("/usr/local/bin");
        let Ok(entries) = fs::read_dir(local) else { return Ok(()) };
        self.bind(local, "/opt/innkeeper/local-bin")?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let path = Path::new("/usr/local/bin").join(&name);
            let taken = path.to_str().is_none_or(|path| self.path(path).symlink_metadata().is_ok());
            if let (false, Some(path)) = (taken, path.to_str()) {
                self.link(path, Path::new("/opt/innkeeper/local-bin").join(&name))?;
            }
        }
        Ok(())
    }

    /// This very binary: bound where it still has its path, else copied. (What /proc/self/exe leads to can't be bound: its
    /// mount is one of the namespace that was left.)
    fn own_binary(&self) -> Result<(), RootError> {
        let own = Path::new("/proc/self/exe");
        let same = |path: &Path| {
            let (one, other) = (fs::metadata(own).ok()?, fs::metadata(path).ok()?);
            (one.dev() == other.dev() && one.ino() == other.ino()).then_some(())
        };
        match fs::read_link(own).ok().filter(|path| same(path).is_some()) {
            Some(path) => self.bind(&path, "/usr/local/bin/innkeeper"),
            None => {
                let copy = self.file("/usr/local/bin/innkeeper", "", 0o755)?;
                fs::copy(own, &copy).map(drop).map_err(at(&copy))
            }
        }
    }

    fn devices(&self) -> Result<(), RootError> {
        let dev = self.path("/dev");
        mount_at(
            &dev,
            Some("tmpfs"),
            Some("tmpfs"),
            MsFlags::MS_NOSUID,
            &self.options(1 << 20, 0o755, layout::ROOT),
        )?;
        for (name, minor) in [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)] {
            self.device(name, makedev(1, minor))?;
        }
        self.device("tty", makedev(5, 0))?;
        for (name, to) in [
            ("ptmx", "pts/ptmx"),
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
        ] {
            self.link(&format!("/dev/{name}"), to)?;
        }
        let (pts, shm) = (self.directory("/dev/pts", 0o755)?, self.directory("/dev/shm", 0o1777)?);
        self.directory("/dev/mqueue", 0o1777)?;
        let tty = self.owner(Owner { uid: 0, gid: 5 });
        let options = format!("newinstance,ptmxmode=0666,mode=0620,gid={}", tty.gid);
        let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount_at(&pts, Some("devpts"), Some("devpts"), quiet, &options)?;
        mount_at(&shm, Some("tmpfs"), Some("tmpfs"), PLAIN, &self.options(SHM_SIZE, 0o1777, layout::ROOT))?;
        remount(&dev, MsFlags::MS_NOSUID | MsFlags::MS_RDONLY)?;
        // Of the pid namespace that this process is the first of.
        mount_at(&self.path("/proc"), Some("proc"), Some("proc"), quiet | PLAIN, "")
    }

    fn device(&self, name: &str, device: nix::libc::dev_t) -> Result<(), RootError> {
        let path = self.path(&format!("/dev/{name}"));
        let mode = Mode::from_bits_truncate(0o666);
        mknod(&path, SFlag::S_IFCHR, mode, device).map_err(|error| at(&path)(error.into()))?;
        self.own(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o666)).map_err(at(&path))
    }

    /// What Innkeeper would mount itself if it had SYS_ADMIN.
    fn places(&self) -> Result<(), RootError> {
        let run = self.path("/run");
        mount_at(&run, Some("tmpfs"), Some("tmpfs"), PLAIN, &self.options(RUN_SIZE, 0o755, layout::ROOT))?;
        for place in layout::plan(AGENT, HOME, self.plan.room.into()) {
            let Some(path) = place.path.to_str() else { continue };
            let target = self.directory(path, 0o755)?;
            let options = self.options(place.size, place.mode, place.owner);
            mount_at(&target, Some("tmpfs"), Some("tmpfs"), PLAIN, &options)?;
        }
        Ok(())
    }
}

/// Closes what /proc has for a root: read-only, or covered. With the box's rights, since `/proc/sys/net` had to be
/// written before; what the engines do too (runc's default `readonlyPaths` and `maskedPaths`).
pub(super) fn close_proc() -> Result<(), RootError> {
    for name in ["bus", "fs", "irq", "sys", "sysrq-trigger"] {
        let path = PathBuf::from("/proc").join(name);
        if path.exists() {
            bind_over(&path, &path)?;
            remount(&path, PLAIN | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY)?;
        }
    }
    for name in [
        "acpi",
        "asound",
        "interrupts",
        "kcore",
        "keys",
        "latency_stats",
        "sched_debug",
        "scsi",
        "timer_list",
    ] {
        let path = PathBuf::from("/proc").join(name);
        let cover = if path.is_dir() { "/mnt" } else { "/dev/null" };
        if path.exists() {
            bind_over(Path::new(cover), &path)?;
            remount(&path, PLAIN | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY)?;
        }
    }
    let quiet = PLAIN | MsFlags::MS_NOEXEC;
    mount_at(Path::new("/dev/mqueue"), Some("mqueue"), Some("mqueue"), quiet, "")
}

fn bind_over(source: &Path, path: &Path) -> Result<(), RootError> {
    mount(Some(source), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|source| RootError::Mount { path: path.to_owned(), source })
}
