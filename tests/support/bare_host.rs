//! A host without any engine, for the tests of the embedded one: a network namespace with the fake internet behind it
//! and no uplink, and a mount namespace with a /run, /home and /root of its own. The machine's own network, mounts and
//! records stay as they are, so several of them run side by side.

#![allow(dead_code, reason = "every test file takes the part that it needs")]
#![allow(clippy::disallowed_methods, reason = "no reaper runs beside a test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::rig::{Done, GH_TOKEN, OAUTH_TOKEN, PATIENCE, World, addresses, must, run, unique};

const CLIENT: &str = include_str!("client.py");
pub(crate) const INNKEEPER: &str = env!("CARGO_BIN_EXE_innkeeper");

/// Everything of a former host is there, with a secret in each.
const CANARIES: &str = "
mount -t tmpfs tmpfs /root; mount -t tmpfs tmpfs /home; mount -t tmpfs tmpfs /mnt; mount -t tmpfs tmpfs /srv
mkdir -p /home/somebody/.ssh /run/secrets /root/.ssh /run/private
for file in /root/canary /root/.ssh/id_ed25519 /home/somebody/canary /home/somebody/.ssh/id_ed25519 /run/secrets/canary \
  /run/private/canary /mnt/canary /srv/canary; do echo canary-of-the-host > $file; done
echo 'root:canary-of-the-host:1::::::' > $0/shadow; mount --bind $0/shadow /etc/shadow
echo 'nameserver 9.9.9.53' > $0/resolv.conf; mount --bind $0/resolv.conf /etc/resolv.conf
";

/// The namespaces, held by one process.
#[derive(Debug)]
pub(crate) struct BareHost {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) world: World,
    holder: Child,
    namespaces: [String; 2],
}

/// Why it can't be played here.
fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    let programs = ["ip", "nft", "nsenter", "unshare", "python3", "openssl", "git", "tmux", "curl"];
    let paths: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    let lacks = |program: &&str| !paths.iter().any(|path| path.join(program).exists());
    programs.into_iter().find(lacks).map(|program| format!("needs {program}"))
}

impl BareHost {
    /// `None`, and a word about it, where it can't be played; in CI that is a failure.
    pub(crate) fn new() -> Option<Self> {
        if let Some(missing) = missing() {
            assert!(std::env::var_os("CI").is_none(), "CI must run the host tests: {missing}");
            Write::write_all(&mut std::io::stderr(), format!("SKIPPED: {missing}\n").as_bytes()).unwrap();
            return None;
        }
        let name = format!("ikh-{}", unique());
        let dir = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(&dir).unwrap();
        let namespaces = [format!("{name}-h"), format!("{name}-w")];
        let [host, far] = &namespaces;
        for namespace in &namespaces {
            must("ip", &["netns", "add", namespace]);
        }
        must(
            "ip",
            &["link", "add", "world0", "netns", far, "type", "veth", "peer", "name", "up0", "netns", host],
        );
        let link = &addresses()["link"];
        let text = |key: &str| link[key].as_str().unwrap().to_owned();
        let up = format!(
            "ip link set lo up; ip addr add {}/{} dev up0; ip link set up0 up",
            text("box_v4"),
            link["prefix_v4"]
        );
        must("ip", &["netns", "exec", host, "sh", "-ec", &up]);
        let world = World::start(far, &dir.join("world"), |_| {});
        must("ip", &["-n", host, "route", "add", "default", "via", &text("world_v4")]);
        let script =
            format!("mount --make-rprivate /; mount -t tmpfs tmpfs /run; {CANARIES} echo up; exec cat");
        let mut holder = Command::new("ip")
            .args(["netns", "exec", host, "unshare", "-m", "sh", "-ec", &script])
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "up\n", "the host did not come up");
        Some(Self { name, dir, world, holder, namespaces })
    }

    fn enter(&self) -> Vec<String> {
        let pid = self.holder.id().to_string();
        ["-t", &pid, "-n", "-m", "--"].map(str::to_owned).to_vec()
    }

    /// A command line of the host's root.
    pub(crate) fn shell(&self, script: &str) -> Done {
        self.run("bash", &["-c", script])
    }

    pub(crate) fn run(&self, program: &str, args: &[&str]) -> Done {
        let enter = self.enter();
        let words: Vec<&str> = enter.iter().map(String::as_str).chain([program]).collect();
        run("nsenter", &[&words[..], args].concat())
    }

    /// The client of tests/support/client.py on the host.
    pub(crate) fn client(&self, args: &[&str]) -> Done {
        self.run("/usr/bin/python3", &[&["-c", CLIENT], args].concat())
    }

    /// The operator's `innkeeper …`.
    pub(crate) fn innkeeper(&self, args: &[&str]) -> Done {
        self.run(INNKEEPER, args)
    }

    /// All that a box could leave behind. Handles and counters are not of it.
    pub(crate) fn snapshot(&self) -> String {
        let look = "ip -o addr | grep -v fe80 | sed 's/ valid_lft.*//'; ip -o link | cut -d: -f2; ip -4 route; ip -6 route | grep -v '^fe80'; \
             nft -s list ruleset; cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding; \
             cut -d' ' -f5- /proc/self/mountinfo | grep -v -e netns -e /var/lib/containers -e /var/lib/docker; ls -A /run/innkeeper-engine 2>/dev/null | grep -v '^.lock$'; cat /etc/passwd";
        self.shell(look).out
    }

    /// Starts a box: the session is a program that sleeps.
    pub(crate) fn start(&self, name: &str, options: &Options) -> HostBox<'_> {
        let mut command = Command::new("nsenter");
        command.args(self.enter()).arg(INNKEEPER).args(["run", "--engine", "embedded", "--name", name]);
        command.args(&options.args).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.envs(options.env.iter().map(|(name, value)| (name, value)));
        let mut keeper =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let reader = BufReader::new(keeper.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        let reading = Arc::new(Mutex::new(()));
        let may_read = Arc::clone(&reading);
        std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                drop(may_read.lock());
                if sender.send(line.trim_end().to_owned()).is_err() {
                    return;
                }
            }
        });
        HostBox { host: self, name: name.to_owned(), keeper, lines, reading, said: String::new() }
    }

    /// Starts a box on a terminal of the operator's, which script(1) makes: what is shown there can be read.
    pub(crate) fn start_on_terminal(&self, name: &str, options: &Options) -> Service {
        let mut words = vec!["exec nsenter".to_owned()];
        words.extend(self.enter());
        words.push(format!("{INNKEEPER} run --engine embedded --name {name}"));
        let mut command = Command::new("script");
        command
            .args(["-qfec", &words.join(" "), "/dev/null"])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap());
        command.env("TERM", "xterm-256color").envs(options.env.iter().map(|(name, value)| (name, value)));
        Service::start(&mut command)
    }

    /// Starts a box and waits until it is ready.
    #[track_caller]
    pub(crate) fn boot(&self, name: &str, options: &Options) -> HostBox<'_> {
        let began = Instant::now();
        let mut started = self.start(name, options);
        let ready = started.await_line("boot: ready after");
        assert!(ready.is_some(), "not ready:\n{}", started.said);
        let took = began.elapsed().as_millis();
        Write::write_all(&mut std::io::stderr(), format!("{name}: ready {took} ms after run\n").as_bytes())
            .unwrap();
        started
    }

    /// A program of the host's that stays: ended when dropped.
    pub(crate) fn spawn(&self, program: &str, args: &[&str]) -> Service {
        let mut command = Command::new("nsenter");
        command.args(self.enter()).arg(program).args(args);
        Service::start(&mut command)
    }

    /// Whether such a process of the host's lives.
    pub(crate) fn lives(&self, pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !stat.is_empty() && !stat.contains(") Z ")
    }
}

impl Drop for BareHost {
    fn drop(&mut self) {
        drop(self.holder.kill());
        drop(self.holder.wait());
        for namespace in &self.namespaces {
            drop(run("ip", &["netns", "del", namespace]));
        }
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

/// A program that serves something.
#[derive(Debug)]
pub(crate) struct Service(Child);

impl Service {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Reads until this was shown.
    #[track_caller]
    pub(crate) fn await_text(&mut self, wanted: &str) {
        let (mut shown, mut byte) = (Vec::new(), [0]);
        while !String::from_utf8_lossy(&shown).contains(wanted) {
            let read = self.0.stdout.as_mut().unwrap().read(&mut byte).unwrap();
            assert_eq!(read, 1, "it ended after: {}", String::from_utf8_lossy(&shown));
            shown.extend(byte);
        }
    }

    pub(crate) fn say(&mut self, text: &str) {
        let input = self.0.stdin.as_mut().unwrap();
        input.write_all(text.as_bytes()).and_then(|()| input.flush()).unwrap();
    }

    /// The exit status, once it has ended by itself.
    pub(crate) fn status(mut self) -> Option<i32> {
        drop(self.0.stdin.take());
        self.0.wait().unwrap().code()
    }

    #[track_caller]
    pub(crate) fn await_line(&mut self, wanted: &str) {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), wanted);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// How a box is started.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    env: Vec<(String, String)>,
    args: Vec<String>,
}

impl Options {
    pub(crate) fn new() -> Self {
        Self { env: Vec::new(), args: Vec::new() }
            .env("CLAUDE_CODE_OAUTH_TOKEN", OAUTH_TOKEN)
            .env("GH_TOKEN", GH_TOKEN)
            .env("INNKEEPER_NETWORK_ALLOW", "ok.test:443,80")
            .env("INNKEEPER_SESSION_COMMAND", "/bin/sleep\ninfinity")
            // Where there is none: the host's own tmux has to do.
            .env("INNKEEPER_PROGRAMS", "/nonexistent")
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self = self.without(name);
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.env.retain(|(known, _)| known != name);
        self
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|&arg| arg.to_owned()));
        self
    }
}

/// A box that was started; ended when dropped.
#[derive(Debug)]
pub(crate) struct HostBox<'a> {
    host: &'a BareHost,
    pub(crate) name: String,
    keeper: Child,
    lines: Receiver<String>,
    /// While somebody holds it, nobody reads the box's standard error.
    pub(crate) reading: Arc<Mutex<()>>,
    pub(crate) said: String,
}

impl HostBox<'_> {
    /// Its end, whether or not anybody reads what it says.
    #[track_caller]
    pub(crate) fn end_unheard(&mut self) -> Option<i32> {
        self.keeper.wait().unwrap().code()
    }

    /// The next line with this in it; `None` if the box ends without one.
    #[track_caller]
    pub(crate) fn await_line(&mut self, what: &str) -> Option<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.said.push_str(&format!("{line}\n"));
                    if line.contains(what) {
                        return Some(line);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => panic!("no line with {what:?}:\n{}", self.said),
            }
        }
    }

    /// Waits for the end: the keeper's exit status, and all that was said.
    #[track_caller]
    pub(crate) fn end(&mut self) -> (Option<i32>, String) {
        while self.await_line("\u{0}").is_some() {}
        (self.keeper.wait().unwrap().code(), self.said.clone())
    }

    pub(crate) fn keeper(&self) -> u32 {
        self.keeper.id()
    }

    pub(crate) fn signal_keeper(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.keeper.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// The number of the box's first process on the host.
    #[track_caller]
    pub(crate) fn pid(&self) -> String {
        let listed = self.host.innkeeper(&["ls"]).expect("innkeeper ls");
        let line = listed.lines().find(|line| line.split_whitespace().next() == Some(&self.name));
        line.unwrap_or_else(|| panic!("{listed}")).split_whitespace().nth(2).unwrap().to_owned()
    }

    /// A command line of bash as the box's root.
    pub(crate) fn root(&self, script: &str) -> Done {
        self.host.innkeeper(&["in", &self.name, "bash", "-c", script])
    }

    /// The same as the agent, with its seccomp filter.
    pub(crate) fn agent(&self, script: &str) -> Done {
        let run_as =
            ["in", &self.name, "innkeeper", "run-as", "--uid", "1000", "--gid", "1000", "--confine", "--"];
        self.host.innkeeper(&[&run_as[..], &["bash", "-c", script]].concat())
    }

    /// Both, by name.
    pub(crate) fn everybody(&self, script: &str) -> [(&'static str, Done); 2] {
        [("agent", self.agent(script)), ("root", self.root(script))]
    }

    /// A command line of the host's root in the box's network, past the box's own firewall if the script flushes it.
    pub(crate) fn in_its_network(&self, script: &str) -> Done {
        run("nsenter", &["-t", &self.pid(), "-n", "bash", "-c", script])
    }

    /// The client as a shell word.
    pub(crate) fn client(words: &str) -> String {
        format!("/usr/bin/python3 - {words} <<'END-OF-CLIENT'\n{CLIENT}\nEND-OF-CLIENT")
    }
}

impl Drop for HostBox<'_> {
    fn drop(&mut self) {
        // Its first process ends with it.
        drop(self.keeper.kill());
        drop(self.keeper.wait());
    }
}

/// Waits for something that comes by itself.
#[track_caller]
pub(crate) fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < until, "never: {what}");
        let pause = rustix::time::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        drop(rustix::thread::nanosleep(&pause));
    }
}
