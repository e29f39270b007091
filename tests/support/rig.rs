//! The rig of the box tests: the real image in a container, joined to a network that leads to the fake internet.
//!
//! ```ignore
//! #[path = "support/rig.rs"]
//! mod rig;                                     // in tests/box_NAME.rs
//! use rig::{BoxOptions, Rig};
//!
//! #[test]
//! fn t00_nothing_gets_out() {
//!     let Some(rig) = Rig::new() else { return };       // says SKIPPED; in CI it fails instead
//!     assert!(rig.outside(&["tcp", "45.33.32.66", "80"]).ok());   // gets through before there is a box
//!     let guest = rig.boot(&BoxOptions::new());         // ready, or the test fails with the box's log
//!     let mark = rig.world.sync();
//!     assert!(!guest.client(AGENT, &["tcp", "45.33.32.66", "80"]).ok());
//!     assert!(rig.world.packets_since(mark).iter().all(|p| p["dst"] != "45.33.32.66"));
//! }
//! ```
//!
//! - A [`Rig`] is a *pause* container, which holds the network namespace and the resolv.conf (upstream 9.9.9.53), and a
//!   [`World`] behind a veth: `world0` there, `eth0` here. Several rigs run side by side. Everything is removed on
//!   drop, also after a panic. `docker ps -a --filter label=innkeeper-test` shows what a killed test left.
//! - [`Rig::boot`] starts a box in the pause container's network and waits for *ready*; [`Rig::start`] doesn't wait.
//!   Several boxes one after the other in one rig are a second boot in the same network.
//! - [`BoxOptions::new`] gives the credentials, `ok.test` on 443 and 80, the test CA, and `/bin/sleep` as the session's
//!   program; [`BoxOptions::claude`] takes the real Claude Code.
//! - [`RunningBox::exec`] is `docker exec` (no seccomp filter, no no_new_privs); [`RunningBox::as_session`] runs a
//!   command with exactly the confinement of the session: it is typed into the lower pane.
//! - Waiting is by event: [`RunningBox::await_line`] follows the log (each call goes on after the line that the call
//!   before found), [`RunningBox::await_status`] asks until it is so, both with an end.
//! - Judge what leaked by `rig.world`: [`World::packets_since`], [`World::log`], [`World::saw`].
//! - `INNKEEPER_TEST_TAMPER` is a command of nft that takes a rule out of every box once it is ready: the tests of that rule
//!   must turn red (`nft insert rule inet innkeeper output accept`). Innkeeper repairs it after some seconds.
//! - `INNKEEPER_TEST_BACKEND` is `network.backend` of every box that does not say otherwise.
//! - `INNKEEPER_TEST_IMAGE` names the image (`innkeeper:test`); tests never build it.

#![allow(dead_code, reason = "every test file takes the part of the rig that it needs")]
#![allow(clippy::disallowed_methods, reason = "no reaper runs beside a test")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde_json::Value;

/// The users of the box, for `docker exec -u`.
pub(crate) const AGENT: &str = "1000";
pub(crate) const ROOT: &str = "0";

/// Shaped like real ones; nobody else has ever seen them, so that they are canaries too.
pub(crate) const OAUTH_TOKEN: &str = "sk-ant-oat01-canaryOAuthqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-abcdefghijklmnopqrstuvwxyz0123-AAAA";
pub(crate) const GH_TOKEN: &str = "ghp_canaryGitHubABCDEFGHIJKLMNOPQRST0123";

/// Nothing here takes so long, on two busy cores; it ends a test that would hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const CLIENT: &str = include_str!("client.py");
const TMUX_SOCKET: &str = "/run/user/1000/tmux.sock";

/// Types the script on standard input into the session's shell, and waits for its end at a pipe. Prints the exit status,
/// the length of its standard output, that, and its standard error.
const TYPE_AND_WAIT: &str = r#"
cat >"$0.sh" && mkfifo "$0.end" || exit
tmux -S "$1" send-keys -t claude:0.1 -l "/bin/bash $0.sh >$0.out 2>$0.err </dev/null; echo \$? >$0.end" &&
tmux -S "$1" send-keys -t claude:0.1 Enter || exit
timeout "$2" cat "$0.end" || exit
stat -c %s "$0.out"; cat "$0.out" "$0.err"; rm -f "$0".*
"#;

/// How a command ended and what it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Done {
    /// `None` after a signal.
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    pub(crate) fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Standard output of a command that must succeed.
    #[track_caller]
    pub(crate) fn expect(self, what: &str) -> String {
        assert!(self.ok(), "{what}: {self:?}");
        self.out
    }

    /// Standard output and standard error.
    pub(crate) fn both(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

/// Runs a program of the host.
pub(crate) fn run(program: &str, args: &[&str]) -> Done {
    Command::new(program).args(args).stdin(Stdio::null()).output().unwrap().into()
}

/// Runs a program of the host that must succeed.
#[track_caller]
pub(crate) fn must(program: &str, args: &[&str]) -> String {
    run(program, args).expect(&format!("{program} {}", args.join(" ")))
}

/// Runs a program of the host with this on its standard input.
pub(crate) fn run_with_input(program: &str, args: &[&str], input: &str) -> Done {
    let pipe = || Stdio::piped();
    let mut child =
        Command::new(program).args(args).stdin(pipe()).stdout(pipe()).stderr(pipe()).spawn().unwrap();
    // A program that ends early closes its end; what it said counts.
    drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
    child.wait_with_output().unwrap().into()
}

/// What Podman needs on a machine without systemd, with cgroups of both versions (which crun refuses) and without
/// `CAP_SYS_RESOURCE`, so that it can't raise limits.
const PODMAN: [&str; 6] = [
    "--pull=never",
    "--runtime=runc",
    "--ulimit=nofile=1024:1024",
    "--ulimit=nproc=1024:1024",
    "--log-driver=k8s-file",
    "--no-healthcheck",
];

/// Podman keeps its own images: copies Docker's, once for all tests; its id, which both share.
fn podman_image() -> String {
    let lock = File::create(std::env::temp_dir().join("innkeeper-test-podman.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let id = must("docker", &["image", "inspect", "-f", "{{.Id}}", &image()]);
    let id = id.trim().trim_start_matches("sha256:").to_owned();
    if !run("podman", &["image", "exists", &id]).ok() {
        // What an older image of the tests leaves takes a gigabyte each.
        run("podman", &["image", "prune", "--all", "--force"]);
        must("sh", &["-c", "docker save \"$0\" | podman load --quiet", &image()]);
        must("podman", &["image", "exists", &id]);
    }
    id
}

pub(crate) fn image() -> String {
    std::env::var("INNKEEPER_TEST_IMAGE").unwrap_or_else(|_| "innkeeper:test".to_owned())
}

/// Unique on this machine, also among what killed runs have left: numbers of processes come again within a run, hence the
/// time.
pub(crate) fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    static BEGUN: LazyLock<u128> = LazyLock::new(|| UNIX_EPOCH.elapsed().unwrap().as_millis());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{}-{:x}-{count}", std::process::id(), *BEGUN & 0xffff_ffff)
}

/// Why boxes can't be tested here.
fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    for program in ["docker", "ip", "nsenter", "python3", "openssl", "git"] {
        let found = std::env::var_os("PATH").is_some_and(|path| {
            std::env::split_paths(&path).any(|directory| directory.join(program).exists())
        });
        if !found {
            return Some(format!("needs {program}"));
        }
    }
    let inspected = run("docker", &["image", "inspect", &image()]);
    (!inspected.ok()).then(|| format!("needs the image {}: {}", image(), inspected.err.trim()))
}

/// The network that a box is put into, and the world at its other end.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) name: String,
    /// Files of this rig; `world/` in it is the world's own directory.
    pub(crate) dir: PathBuf,
    pub(crate) world: World,
    /// The pause container and its first process.
    pub(crate) pause: String,
    pub(crate) pause_pid: String,
    undo: Undo,
}

/// Commands that remove what was made, the last one first.
#[derive(Debug, Default)]
struct Undo(Mutex<Vec<Vec<String>>>);

impl Undo {
    fn push(&self, command: &[&str]) {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(command);
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let commands = std::mem::take(self.0.get_mut().unwrap_or_else(PoisonError::into_inner));
        for command in commands.iter().rev() {
            // Also while a test panics: everything is tried.
            drop(Command::new(&command[0]).args(&command[1..]).stdin(Stdio::null()).output());
        }
    }
}

impl Rig {
    /// `None`, and a word about it, where boxes can't be tested; in CI that is a failure.
    pub(crate) fn new() -> Option<Self> {
        Self::with_zone(|_| {})
    }

    /// A rig whose world has another zone from the start (see tests/world/README.md).
    pub(crate) fn with_zone(change: impl FnOnce(&mut Value)) -> Option<Self> {
        Self::with_resolver(change, &[])
    }

    /// A rig with further options for resolv.conf, such as `--dns-search`.
    pub(crate) fn with_resolver(change: impl FnOnce(&mut Value), resolver: &[&str]) -> Option<Self> {
        if let Some(missing) = missing() {
            assert!(std::env::var_os("CI").is_none(), "CI must run the box tests: {missing}");
            std::io::stderr().write_all(format!("SKIPPED: {missing}\n").as_bytes()).unwrap();
            return None;
        }
        let (name, undo) = (format!("iwt-{}", unique()), Undo::default());
        let dir = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(&dir).unwrap();
        undo.push(&["rm", "-rf", dir.to_str().unwrap()]);
        let pause = format!("{name}-pause");
        undo.push(&["docker", "rm", "-f", "-v", &pause]);
        let label = format!("innkeeper-test={}", std::process::id());
        let alive = ["--no-healthcheck", "--init", "--entrypoint", "/bin/sleep", &image(), "infinity"];
        let run =
            ["run", "-d", "--name", &pause, "--label", &label, "--network", "none", "--dns", "9.9.9.53"];
        must("docker", &[&run[..], resolver, &alive[..]].concat());
        let pause_pid = must("docker", &["inspect", "-f", "{{.State.Pid}}", &pause]).trim().to_owned();
        undo.push(&["ip", "netns", "del", &name]);
        connect(&name, &pause_pid);
        let world = World::start(&name, &dir.join("world"), change);
        route(&pause_pid);
        Some(Self { name, dir, world, pause, pause_pid, undo })
    }

    /// Starts a box and waits until it is ready.
    #[track_caller]
    pub(crate) fn boot(&self, options: &BoxOptions) -> RunningBox {
        let started = self.start(options);
        assert!(
            started.await_line("boot: ready after").is_some(),
            "the box did not get ready:\n{}",
            started.logs()
        );
        if let Ok(command) = std::env::var("INNKEEPER_TEST_TAMPER") {
            self.inside(&command).expect("the tampering");
        }
        started
    }

    /// Starts a box.
    #[track_caller]
    pub(crate) fn start(&self, options: &BoxOptions) -> RunningBox {
        let name = format!("{}-box-{}", self.name, unique());
        let engine = options.engine;
        self.undo.push(&[engine, "rm", "-f", "-v", &name]);
        let args = options.engine_run(self, &name);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        must(engine, &args);
        RunningBox { follower: Mutex::new(Follower::of(engine, &name)), engine, name }
    }

    /// A command line of the host's shell in the box's network, as the host's root and outside of every container.
    pub(crate) fn inside(&self, command: &str) -> Done {
        run("nsenter", &["-t", &self.pause_pid, "-n", "bash", "-c", command])
    }

    /// The client of tests/support/client.py in the box's network but outside of every container. Before a box boots,
    /// it shows what gets through.
    pub(crate) fn outside(&self, args: &[&str]) -> Done {
        let client = ["-t", &self.pause_pid, "-n", "python3", "-c", CLIENT];
        run("nsenter", &[&client[..], args].concat())
    }

    /// A command line in the pause container: the image's tools and resolv.conf before there is a box.
    pub(crate) fn in_pause(&self, command: &str) -> Done {
        run("docker", &["exec", &self.pause, "bash", "-c", command])
    }

    /// The client in the world, for what comes from outside: `["tcp", "172.31.77.2", "80"]`.
    pub(crate) fn world_client(&self, args: &[&str]) -> Done {
        let client = ["netns", "exec", &self.name, "python3", "-c", CLIENT];
        run("ip", &[&client[..], args].concat())
    }

    /// A command line of the host's shell in the world's namespace.
    pub(crate) fn in_world(&self, command: &str) -> Done {
        run("ip", &["netns", "exec", &self.name, "bash", "-c", command])
    }

    /// Gives the link to the world to a box that has a network of its own, while it runs.
    pub(crate) fn plug_into(&self, guest: &RunningBox) {
        let pid = guest.pid().to_string();
        self.inside(&format!("ip link set eth0 netns {pid}")).expect("the link into the box's own network");
        address(&pid);
        route(&pid);
    }

    /// A program that runs in the world with pipes of its own.
    pub(crate) fn spawn_in_world(&self, program: &[&str]) -> Talking {
        Talking::with("ip", &[&["netns", "exec", &self.name], program].concat())
    }

    /// Takes the interface out of the box's network, as if it had never been there.
    pub(crate) fn unplug(&self) {
        let out = format!(
            "ip link set eth0 netns {} && ip netns exec {} ip link set eth0 name parked",
            self.name, self.name
        );
        self.inside(&out).expect("unplugging");
    }

    /// Puts it in again, with its addresses and its routes.
    pub(crate) fn plug(&self) {
        let back = format!("ip link set parked name eth0 && ip link set eth0 netns {}", self.pause_pid);
        self.in_world(&back).expect("plugging in");
        address(&self.pause_pid);
        route(&self.pause_pid);
    }

    /// A router between the box and the world, with this MTU towards the world.
    pub(crate) fn put_router(&self, mtu: u32) {
        let router = format!("{}-r", self.name);
        make_namespace(&router);
        self.undo.push(&["ip", "netns", "del", &router]);
        let link = addresses()["link"].clone();
        let (v4, v6) = (link["box_v4"].as_str().unwrap(), link["box_v6"].as_str().unwrap());
        self.inside(&format!("ip link set eth0 name far netns {router}")).expect("the far side");
        must(
            "ip",
            &[
                "link",
                "add",
                "near",
                "netns",
                &router,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                &self.pause_pid,
            ],
        );
        // It answers for each side on the other's link. To the world every address is its own but those of the link, so
        // the router's must be one of these. A locked MTU is one that forwarding honours.
        let setup = format!(
            "for c in all default near far; do echo 1 > /proc/sys/net/ipv4/conf/$c/proxy_arp; echo 1 > /proc/sys/net/ipv6/conf/$c/forwarding; \
             echo 1 > /proc/sys/net/ipv6/conf/$c/proxy_ndp; echo 0 > /proc/sys/net/ipv4/conf/$c/rp_filter; echo 0 > /proc/sys/net/ipv6/conf/$c/accept_dad; done; \
             echo 1 > /proc/sys/net/ipv4/ip_forward; ip link set near up; ip link set far up; ip addr add 172.31.77.6/32 dev far; \
             ip -6 addr add fd77::6/128 dev far nodad; ip route add {v4}/32 dev near; ip -6 route add {v6}/128 dev near; \
             ip route add default dev far mtu lock {mtu}; ip -6 route add default dev far mtu lock {mtu}; \
             ip -6 neigh add proxy {v6} dev far; ip -6 neigh add proxy {} dev near",
            link["world_v6"].as_str().unwrap()
        );
        run("ip", &["netns", "exec", &router, "bash", "-ec", &setup]).expect("the router");
        address(&self.pause_pid);
        route(&self.pause_pid);
    }

    /// A program of the host in the box's network but outside of every container, talked to by lines.
    pub(crate) fn spawn_inside(&self, program: &[&str]) -> Talking {
        let enter = ["-t", &self.pause_pid, "-n"];
        Talking::with("nsenter", &[&enter[..], program].concat())
    }

    /// A fresh volume.
    pub(crate) fn volume(&self) -> String {
        let name = format!("{}-volume-{}", self.name, unique());
        must("docker", &["volume", "create", &name]);
        // Removed after the boxes that use it, which come later.
        self.undo.push(&["docker", "volume", "rm", "-f", &name]);
        name
    }

    /// A file of this rig on the host, to be mounted into a box.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Runs this on drop, before what was made earlier is removed.
    pub(crate) fn at_end(&self, command: &[&str]) {
        self.undo.push(command);
    }
}

/// A network namespace. One of that name is what a killed run has left.
pub(crate) fn make_namespace(name: &str) {
    run("ip", &["netns", "del", name]);
    must("ip", &["netns", "add", name]);
}

/// One veth from the world's namespace to the pause container's.
fn connect(namespace: &str, pid: &str) {
    make_namespace(namespace);
    let peer = ["type", "veth", "peer", "name", "eth0", "netns", pid];
    must("ip", &[&["link", "add", "world0", "netns", namespace][..], &peer[..]].concat());
    address(pid);
}

/// The box's addresses on its end.
fn address(pid: &str) {
    let addresses = addresses();
    let link = |key: &str| match &addresses["link"][key] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let (v4, v6) = (link("box_v4") + "/" + &link("prefix_v4"), link("box_v6") + "/" + &link("prefix_v6"));
    let setup = format!(
        "for c in all default lo eth0; do echo 0 > /proc/sys/net/ipv6/conf/$c/disable_ipv6; \
         echo 0 > /proc/sys/net/ipv6/conf/$c/accept_dad; done; ip link set lo up; ip link set eth0 up; \
         ip addr add {v4} dev eth0; ip -6 addr add {v6} dev eth0 nodad"
    );
    must("nsenter", &["-t", pid, "-n", "sh", "-ec", &setup]);
}

/// The way out leads to the world, once it has its addresses.
fn route(pid: &str) {
    let link = &addresses()["link"];
    let via = |key: &str| link[key].as_str().unwrap().to_owned();
    for (family, gateway) in [("-4", via("world_v4")), ("-6", via("world_v6"))] {
        must("nsenter", &["-t", pid, "-n", "ip", family, "route", "add", "default", "via", &gateway]);
    }
}

fn world_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/world").join(name)
}

/// Who lives where (tests/world/addresses.json).
pub(crate) fn addresses() -> Value {
    serde_json::from_str(&std::fs::read_to_string(world_file("addresses.json")).unwrap()).unwrap()
}

/// The address of a host of the world.
pub(crate) fn host(name: &str) -> String {
    let address = addresses()["hosts"][name].as_str().map(str::to_owned);
    address.unwrap_or_else(|| panic!("the world has no host {name}"))
}

/// The fake internet.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) dir: PathBuf,
    process: Child,
    lines: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

/// A point in the world's packet log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark(usize);

impl World {
    /// Starts it in a namespace that has a `world0`.
    pub(crate) fn start(namespace: &str, dir: &Path, change: impl FnOnce(&mut Value)) -> Self {
        Self::start_at(namespace, dir, &world_file("addresses.json"), change)
    }

    /// Starts it with another list of who lives where.
    pub(crate) fn start_at(
        namespace: &str,
        dir: &Path,
        addresses: &Path,
        change: impl FnOnce(&mut Value),
    ) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("github-token"), GH_TOKEN).unwrap();
        let mut process = Command::new("ip")
            .args(["netns", "exec", namespace, "python3"])
            .arg(world_file("world.py"))
            .arg("--dir")
            .arg(dir)
            .arg("--addresses")
            .arg(addresses)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let world = Self { dir: dir.to_owned(), process, lines: Mutex::new((stdin, stdout)) };
        assert_eq!(line, "ready\n", "the world did not get ready");
        world.zone(change);
        world
    }

    /// Returns once every packet that has arrived is in the log: the mark of now.
    pub(crate) fn sync(&self) -> Mark {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.0.write_all(b"mark\n").unwrap();
        lines.0.flush().unwrap();
        let mut line = String::new();
        lines.1.read_line(&mut line).unwrap();
        assert_eq!(line, "mark\n", "the world has ended");
        Mark(self.read_packets().len())
    }

    fn read_packets(&self) -> Vec<Value> {
        json_lines(&self.dir.join("packets.jsonl"))
    }

    /// Every packet that has arrived: `proto`, `src`, `dst`, `sport`, `dport`, `payload` …
    pub(crate) fn packets(&self) -> Vec<Value> {
        self.sync();
        let packets = self.read_packets();
        assert!(packets.iter().all(|packet| packet["proto"] != "lost"), "the kernel dropped packets");
        packets
    }

    /// The packets that have arrived since then.
    pub(crate) fn packets_since(&self, mark: Mark) -> Vec<Value> {
        self.packets().split_off(mark.0)
    }

    /// The lines of net.log of one kind (`dns`, `tcp`, `tls`, `http`, `git`, `api`, `udp`).
    pub(crate) fn log(&self, kind: &str) -> Vec<Value> {
        self.sync();
        let lines = json_lines(&self.dir.join("net.log"));
        lines.into_iter().filter(|line| line["kind"] == kind).collect()
    }

    /// Whether this text, of at most 64 bytes, has arrived in a packet (from its beginning) or was logged.
    pub(crate) fn saw(&self, text: &str) -> bool {
        let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.packets().iter().any(|packet| packet["payload"].as_str().is_some_and(|p| p.contains(&hex)))
            || std::fs::read_to_string(self.dir.join("net.log")).unwrap_or_default().contains(text)
    }

    /// The DNS names that were asked of the world so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        let log = self.log("dns");
        log.iter().filter_map(|line| line["name"].as_str().map(str::to_ascii_lowercase)).collect()
    }

    /// Changes the live zone.
    pub(crate) fn zone(&self, change: impl FnOnce(&mut Value)) {
        let path = self.dir.join("zone.json");
        let mut zone = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut zone);
        replace(&path, &zone);
    }

    /// What Claude does (see tests/world/README.md).
    pub(crate) fn script(&self, script: &Value) {
        replace(&self.dir.join("script.json"), script);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The world reads it again at every use: by rename, so that it never sees half of it.
fn replace(path: &Path, value: &Value) {
    let new = path.with_extension("new");
    std::fs::write(&new, value.to_string()).unwrap();
    std::fs::rename(new, path).unwrap();
}

fn json_lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // A line that is being written is not there yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The capabilities of README.md's least-privilege line, all others dropped.
pub(crate) const CAPABILITIES: [&str; 8] =
    ["NET_ADMIN", "SETUID", "SETGID", "SETPCAP", "KILL", "CHOWN", "FOWNER", "DAC_OVERRIDE"];

/// What the runtime mounts where innkeeper can't.
pub(crate) const PLACES: [&str; 4] = ["/run", "/tmp:exec,mode=1777", "/workspace:exec", "/home/claude:exec"];

/// How a box is started.
#[derive(Debug, Clone)]
pub(crate) struct BoxOptions {
    env: Vec<(String, String)>,
    caps: Vec<String>,
    docker: Vec<String>,
    args: Vec<String>,
    network: Option<String>,
    image: String,
    ca: bool,
    engine: &'static str,
}

impl BoxOptions {
    pub(crate) fn new() -> Self {
        let caps = ["NET_ADMIN", "SYS_ADMIN"].map(str::to_owned).to_vec();
        let (docker, args) = (Vec::new(), Vec::new());
        let bare = Self {
            env: Vec::new(),
            caps,
            docker,
            args,
            network: None,
            image: image(),
            ca: true,
            engine: "docker",
        };
        bare.env("CLAUDE_CODE_OAUTH_TOKEN", OAUTH_TOKEN)
            .env("GH_TOKEN", GH_TOKEN)
            .env("INNKEEPER_NETWORK_ALLOW", "ok.test:443,80")
            .env("INNKEEPER_SESSION_COMMAND", "/bin/sleep\ninfinity")
    }

    /// Claude Code itself instead of a program that sleeps.
    pub(crate) fn claude(self) -> Self {
        self.without_env("INNKEEPER_SESSION_COMMAND")
    }

    /// Sets a variable; a later one of the same name wins.
    pub(crate) fn env(self, name: &str, value: &str) -> Self {
        let mut without = self.without_env(name);
        without.env.push((name.to_owned(), value.to_owned()));
        without
    }

    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.env.retain(|(known, _)| known != name);
        self
    }

    /// The allowlist beside the profiles, rules separated by `;`.
    pub(crate) fn allow(self, rules: &str) -> Self {
        self.env("INNKEEPER_NETWORK_ALLOW", rules)
    }

    pub(crate) fn cap(mut self, capability: &str) -> Self {
        self.caps.push(capability.to_owned());
        self
    }

    pub(crate) fn without_cap(mut self, capability: &str) -> Self {
        self.caps.retain(|known| known != capability);
        self
    }

    /// `-v`: `VOLUME:/path` or `/host/path:/path:ro`.
    pub(crate) fn volume(self, volume: &str) -> Self {
        self.docker(&["-v", volume])
    }

    /// Further options of `docker run`.
    pub(crate) fn docker(mut self, options: &[&str]) -> Self {
        self.docker.extend(options.iter().map(|&option| option.to_owned()));
        self
    }

    /// Only the listed capabilities, all others dropped.
    pub(crate) fn listed(self) -> Self {
        let dropped = self.without_cap("SYS_ADMIN").docker(&["--cap-drop", "ALL"]);
        CAPABILITIES.iter().fold(dropped, |options, name| options.docker(&["--cap-add", name]))
    }

    pub(crate) fn tmpfs(self, places: &[&str]) -> Self {
        places.iter().fold(self, |options, place| options.docker(&["--tmpfs", place]))
    }

    /// README.md's least-privilege line.
    pub(crate) fn least(self) -> Self {
        self.listed().tmpfs(&PLACES).docker(&["--read-only", "--security-opt", "no-new-privileges"])
    }

    /// A terminal, as `docker run -it` gives.
    pub(crate) fn tty(self) -> Self {
        self.docker(&["-i", "-t"])
    }

    /// Arguments of `innkeeper`.
    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }

    /// Another network than the pause container's.
    pub(crate) fn network(mut self, network: &str) -> Self {
        self.network = Some(network.to_owned());
        self
    }

    pub(crate) fn image(mut self, image: &str) -> Self {
        image.clone_into(&mut self.image);
        self
    }

    /// Without what the other methods gave: only this, and the capabilities.
    pub(crate) fn bare() -> Self {
        let mut bare = Self::new();
        bare.env.clear();
        bare
    }

    /// Without the test CA.
    pub(crate) fn without_ca(mut self) -> Self {
        self.ca = false;
        self
    }

    /// Podman instead of Docker, in the same network; the image is copied to it once.
    pub(crate) fn podman(mut self) -> Self {
        self.image = podman_image();
        self.engine = "podman";
        self
    }

    fn engine_run(&self, rig: &Rig, name: &str) -> Vec<String> {
        let network = self.network.clone().unwrap_or_else(|| match self.engine {
            "podman" => format!("ns:/proc/{}/ns/net", rig.pause_pid),
            _ => format!("container:{}", rig.pause),
        });
        let label = format!("innkeeper-test={}", std::process::id());
        let mut args: Vec<String> = ["run", "-d", "--name", name, "--label", &label, "--network", &network]
            .map(str::to_owned)
            .to_vec();
        if self.engine == "podman" {
            args.extend(PODMAN.map(str::to_owned));
            let resolver = rig.file("resolv.conf", "nameserver 9.9.9.53\n");
            args.extend(["-v".to_owned(), format!("{}:/etc/resolv.conf", resolver.display())]);
        }
        for cap in &self.caps {
            args.extend(["--cap-add".to_owned(), cap.clone()]);
        }
        if self.ca {
            let pem = rig.world.dir.join("ca.pem");
            args.extend(["-v".to_owned(), format!("{}:/etc/innkeeper/ca.pem:ro", pem.display())]);
            args.extend(["-e".to_owned(), "INNKEEPER_TLS_CA_CERTS=/etc/innkeeper/ca.pem".to_owned()]);
        }
        if let Ok(backend) = std::env::var("INNKEEPER_TEST_BACKEND") {
            args.extend(["-e".to_owned(), format!("INNKEEPER_NETWORK_BACKEND={backend}")]);
        }
        for (variable, value) in &self.env {
            args.extend(["-e".to_owned(), format!("{variable}={value}")]);
        }
        args.extend(self.docker.iter().cloned());
        args.push(self.image.clone());
        args.extend(self.args.iter().cloned());
        args
    }
}

/// A box that was started; it may have ended since. Removed with its rig.
#[derive(Debug)]
pub(crate) struct RunningBox {
    pub(crate) name: String,
    /// `docker` or `podman`, which take the same words.
    engine: &'static str,
    follower: Mutex<Follower>,
}

/// The lines of a box's log as they come.
#[derive(Debug)]
struct Follower {
    logs: Child,
    lines: Receiver<String>,
}

impl Follower {
    fn of(engine: &str, name: &str) -> Self {
        let script = "exec \"$0\" logs --follow \"$1\" 2>&1";
        let mut child = Command::new("sh")
            .args(["-c", script, engine, name])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let reader = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let text = reader.split(b'\n').map_while(Result::ok);
            for line in text.map(|line| String::from_utf8_lossy(&line).trim_end().to_owned()) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { logs: child, lines }
    }

    fn await_line(&self, what: &str, logs: impl Fn() -> String) -> Option<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(what) => return Some(line),
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no line with {what:?} in the log:\n{}", logs())
                }
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.logs.kill());
        drop(self.logs.wait());
    }
}

impl RunningBox {
    /// The next line of the log with this in it; `None` if the box ends without one.
    #[track_caller]
    pub(crate) fn await_line(&self, what: &str) -> Option<String> {
        self.follower.lock().unwrap_or_else(PoisonError::into_inner).await_line(what, || self.logs())
    }

    /// Everything that the box has said, standard output before standard error.
    pub(crate) fn logs(&self) -> String {
        run(self.engine, &["logs", &self.name]).both()
    }

    /// What the box has said on standard output, and nowhere else.
    pub(crate) fn stdout(&self) -> String {
        run(self.engine, &["logs", &self.name]).out
    }

    /// `docker exec` of a command line of bash.
    pub(crate) fn exec(&self, user: &str, command: &str) -> Done {
        run(self.engine, &["exec", "-u", user, &self.name, "bash", "-c", command])
    }

    /// As uid 1000, but without the session's seccomp filter and no_new_privs.
    pub(crate) fn exec_agent(&self, command: &str) -> Done {
        self.exec(AGENT, command)
    }

    pub(crate) fn exec_root(&self, command: &str) -> Done {
        self.exec(ROOT, command)
    }

    /// `docker exec` of a program, without any shell.
    pub(crate) fn exec_program(&self, user: &str, program: &[&str]) -> Done {
        run(self.engine, &[&["exec", "-u", user, &self.name], program].concat())
    }

    /// An operator's `innkeeper …`.
    pub(crate) fn innkeeper(&self, args: &[&str]) -> Done {
        self.exec_program(ROOT, &[&["innkeeper"], args].concat())
    }

    /// The client of tests/support/client.py in the box.
    pub(crate) fn client(&self, user: &str, args: &[&str]) -> Done {
        self.exec_program(user, &[&["python3", "-c", CLIENT], args].concat())
    }

    /// Puts a file of the agent's into the box.
    pub(crate) fn write_as_agent(&self, path: &str, text: &str) {
        let args = ["exec", "-i", "-u", AGENT, &self.name, "sh", "-c", "cat > \"$0\"", path];
        run_with_input(self.engine, &args, text).expect("a file of the agent's");
    }

    /// A command line of bash with exactly the session's confinement: typed into the session's lower pane.
    #[track_caller]
    pub(crate) fn as_session(&self, command: &str) -> Done {
        self.await_session();
        let base = format!("/tmp/.session-{}", unique());
        let limit = PATIENCE.as_secs().to_string();
        let args =
            ["exec", "-i", "-u", AGENT, &self.name, "bash", "-c", TYPE_AND_WAIT, &base, TMUX_SOCKET, &limit];
        let typed = run_with_input(self.engine, &args, command);
        let screen = || self.tmux(&["capture-pane", "-p", "-t", "claude:0.1"]).both();
        let mut parts = typed.out.splitn(3, '\n');
        let mut number = || parts.next().and_then(|line| line.trim().parse::<usize>().ok());
        let (code, length) = (number(), number());
        let (Some(code), Some(length)) = (code, length) else {
            panic!("the pane did not run {command:?}: {typed:?}\n{}", screen());
        };
        let (out, err) = parts.next().unwrap().split_at(length);
        Done { code: i32::try_from(code).ok(), out: out.to_owned(), err: err.to_owned() }
    }

    /// The client of tests/support/client.py with the session's confinement.
    #[track_caller]
    pub(crate) fn client_as_session(&self, args: &[&str]) -> Done {
        let path = format!("/tmp/.client-{}.py", unique());
        self.write_as_agent(&path, CLIENT);
        let words: Vec<String> = args.iter().map(|arg| format!("'{arg}'")).collect();
        self.as_session(&format!("python3 {path} {}", words.join(" ")))
    }

    /// Several attempts of the client at once; `None` stands for the session.
    #[track_caller]
    pub(crate) fn clients(&self, user: Option<&str>, attempts: &[Vec<String>]) -> Vec<Done> {
        let list = serde_json::to_string(attempts).unwrap();
        let done = match user {
            Some(user) => self.client(user, &["each", &list]),
            None => self.client_as_session(&["each", &list]),
        };
        let lines = done.clone().expect("several attempts");
        let results = lines.lines().map(|line| {
            let (code, text): (i32, String) = serde_json::from_str(line).unwrap();
            let (out, err) = if code == 0 { (text, String::new()) } else { (String::new(), text) };
            Done { code: Some(code), out, err }
        });
        let results: Vec<Done> = results.collect();
        assert_eq!(results.len(), attempts.len(), "{done:?}");
        results
    }

    /// Types a line and Enter into a pane of the session, once the session is there. 0: Claude, 1: the shell.
    #[track_caller]
    pub(crate) fn type_into_pane(&self, pane: &str, line: &str) {
        self.await_session();
        let target = format!("claude:0.{pane}");
        self.tmux(&["send-keys", "-t", &target, "-l", line]).expect("typing");
        self.tmux(&["send-keys", "-t", &target, "Enter"]).expect("typing");
    }

    /// A tmux client as the agent, never as root.
    pub(crate) fn tmux(&self, args: &[&str]) -> Done {
        self.exec_program(AGENT, &[&["tmux", "-S", TMUX_SOCKET], args].concat())
    }

    /// `status --json` as the operator.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        let text = self.innkeeper(&["status", "--json"]).expect("status --json");
        serde_json::from_str(&text).unwrap()
    }

    /// Waits until the session's program is there, at work or waiting for a person.
    #[track_caller]
    pub(crate) fn await_session(&self) -> Value {
        self.await_status("a session", |status| {
            ["running", "waiting"].iter().any(|state| status["session"]["state"] == *state)
        })
    }

    /// Asks for the status until it is so.
    #[track_caller]
    pub(crate) fn await_status(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let asked = self.innkeeper(&["status", "--json"]);
            let status: Value = serde_json::from_str(&asked.out).unwrap_or(Value::Null);
            if is_so(&status) {
                return status;
            }
            let (running, late) = (self.running(), Instant::now() > until);
            assert!(running && !late, "no {what}; {}\n{asked:?}\n{}", ended(running), self.logs());
        }
    }

    fn inspect(&self, format: &str) -> String {
        must(self.engine, &["inspect", "-f", format, &self.name]).trim().to_owned()
    }

    pub(crate) fn running(&self) -> bool {
        self.inspect("{{.State.Running}}") == "true"
    }

    /// PID 1 of the box, as the host numbers it.
    pub(crate) fn pid(&self) -> i32 {
        self.inspect("{{.State.Pid}}").parse().unwrap()
    }

    /// Every process of the box, as the host numbers them.
    pub(crate) fn host_pids(&self) -> Vec<i32> {
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let Some(own) = namespace(&self.pid().to_string()) else { return Vec::new() };
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter(|name| namespace(name).as_ref() == Some(&own))
            .filter_map(|name| name.parse().ok())
            .collect()
    }

    /// `docker restart`, until the box is ready again.
    #[track_caller]
    pub(crate) fn restart(&self) {
        let ready = "boot: ready after";
        let before = self.logs().lines().filter(|line| line.contains(ready)).count();
        must(self.engine, &["restart", "-t", "30", &self.name]);
        // The log goes on, but who followed it has heard its end.
        *self.follower.lock().unwrap_or_else(PoisonError::into_inner) = Follower::of(self.engine, &self.name);
        for _ in 0..=before {
            assert!(self.await_line(ready).is_some(), "not ready after the restart:\n{}", self.logs());
        }
    }

    /// Waits for the end of the box: its exit status.
    #[track_caller]
    pub(crate) fn exit_code(&self) -> i32 {
        let limit = PATIENCE.as_secs().to_string();
        let waited = run("timeout", &[&limit, self.engine, "wait", &self.name]);
        let code = waited.out.trim().parse();
        code.unwrap_or_else(|_| panic!("the box did not end: {waited:?}\n{}", self.logs()))
    }

    /// `docker stop`, with more time than the box takes; its exit status.
    pub(crate) fn stop(&self) -> i32 {
        must(self.engine, &["stop", "-t", "30", &self.name]);
        self.inspect("{{.State.ExitCode}}").parse().unwrap()
    }

    /// `docker kill -s SIGNAL`
    pub(crate) fn signal(&self, signal: &str) {
        must(self.engine, &["kill", "-s", signal, &self.name]);
    }

    /// A child that runs in the box with pipes of its own, such as a connection that stays open.
    pub(crate) fn spawn(&self, user: &str, program: &[&str]) -> Talking {
        Talking::with(self.engine, &[&["exec", "-i", "-u", user, &self.name], program].concat())
    }

    /// An operator's `innkeeper attach` on a terminal, started in `from`. Ends with the value.
    pub(crate) fn attach(&self, from: &str) -> Talking {
        let attach = format!("{} exec -it -w {from} {} innkeeper attach", self.engine, self.name);
        // script(1) makes the terminal.
        Talking::with("script", &["-qfec", &attach, "/dev/null"])
    }

    /// Attaches, and leaves once the session's server knows the client.
    #[track_caller]
    pub(crate) fn attach_and_leave(&self, from: &str) {
        self.await_session();
        let attached = self.attach(from);
        let until = Instant::now() + PATIENCE;
        while self.tmux(&["list-clients"]).out.is_empty() {
            assert!(Instant::now() < until, "nobody attached: {}", self.logs());
        }
        self.tmux(&["detach-client", "-s", "claude"]).expect("detaching");
        attached.end();
    }

    /// Runs a command line until its output holds the text; returns that output.
    #[track_caller]
    pub(crate) fn await_answer(&self, command: &str, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let done = self.exec_agent(command);
            if done.out.contains(text) {
                return done.out;
            }
            assert!(Instant::now() < until, "{command} never gave {text:?}: {done:?}");
        }
    }

    /// A connection that stays open: it begins with the line `connected`, then every line brings back one answer.
    pub(crate) fn flow(&self, user: &str, address: &str, port: &str) -> Talking {
        self.spawn(user, &["python3", "-c", CLIENT, "flow", address, port])
    }
}

fn ended(running: bool) -> &'static str {
    if running { "the box runs" } else { "the box has ended" }
}

/// A program in the box that is talked to by lines.
#[derive(Debug)]
pub(crate) struct Talking {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Talking {
    fn with(program: &str, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        let mut child = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    pub(crate) fn say(&mut self, line: &str) {
        // A program that has ended shows by its answer, which is empty.
        drop(self.input.write_all(format!("{line}\n").as_bytes()).and_then(|()| self.input.flush()));
    }

    /// The next line; empty at the end.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Closes its standard input and reads the rest.
    pub(crate) fn end(mut self) -> String {
        drop(self.input);
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        self.child.wait().unwrap();
        rest
    }
}
