//! Network namespaces of a test's own, and what happens in them: a box, and everything outside it behind one veth.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use innkeeper::allowlist::{Allowlist, DomainName, Origin, parse_rules};
use innkeeper::dns::protocol::Learned;
use innkeeper::firewall::backend::{BackendError, Edit, Element, Fingerprint, Kernel};
use innkeeper::firewall::book::Pair;
use innkeeper::firewall::ground::{Backend, Candidate, Offer, Storage};
use innkeeper::firewall::iptables::Iptables;
use innkeeper::firewall::nftables::Nftables;
use innkeeper::firewall::programs::{Direct, Programs};
use innkeeper::firewall::ruleset::{FirewallPlan, Ruleset};
use innkeeper::firewall::{Firewall, Notices};
use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Protocol, Socket, Type};

pub(crate) const AGENT: u32 = 1000;
pub(crate) const DNS: u32 = 901;
pub(crate) const ROOT: u32 = 0;

pub(crate) const BOX4: &str = "203.0.113.2";
pub(crate) const BOX6: &str = "2001:db8:1::2";
pub(crate) const OUTSIDE4: &str = "203.0.113.1";
pub(crate) const OUTSIDE6: &str = "2001:db8:1::1";
pub(crate) const RESOLVER4: &str = "8.8.8.8";
pub(crate) const RESOLVER6: &str = "2001:db8:8::8";
pub(crate) const UPSTREAM4: &str = "9.9.9.9";
/// Addresses that names may resolve to.
pub(crate) const FIRST4: &str = "93.184.215.14";
pub(crate) const SECOND4: &str = "93.184.215.15";
pub(crate) const FIRST6: &str = "2606:4700::14";
pub(crate) const PRIVATE4: &str = "10.9.9.9";

/// Long enough for any answer inside one machine, however busy; only a failing test waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The ways to program the kernel, each of which every test of behaviour runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Nftables,
    NftIpset,
    NftRules,
    LegacyIpset,
    LegacyRules,
}

impl Kind {
    pub(crate) fn candidate(self) -> Candidate {
        let (backend, storage) = match self {
            Self::Nftables => (Backend::Nftables, Storage::Sets),
            Self::NftIpset => (Backend::IptablesNft, Storage::Ipset),
            Self::NftRules => (Backend::IptablesNft, Storage::Rules),
            Self::LegacyIpset => (Backend::IptablesLegacy, Storage::Ipset),
            Self::LegacyRules => (Backend::IptablesLegacy, Storage::Rules),
        };
        let (ipv4, ipv6) = (Offer::Whole, Offer::Whole);
        Candidate { backend, storage, ipv4, ipv6, no_log: None, comments: true }
    }

    pub(crate) fn storage(self) -> Storage {
        self.candidate().storage
    }

    /// The program, or `None` where `nft` is the one.
    pub(crate) fn program(self) -> Option<&'static str> {
        match self {
            Self::Nftables => None,
            Self::NftIpset | Self::NftRules => Some("iptables-nft"),
            Self::LegacyIpset | Self::LegacyRules => Some("iptables-legacy"),
        }
    }
}

/// Makes of every function a test for each backend and variant.
#[allow(unused_macros, reason = "not every test that has a place has a backend to choose")]
macro_rules! on_every_backend {
    ($($name:ident,)*) => {$(
        mod $name {
            use $crate::place::Kind;
            #[test]
            fn nftables() {
                super::$name(Kind::Nftables);
            }
            #[test]
            fn iptables_nft_ipset() {
                super::$name(Kind::NftIpset);
            }
            #[test]
            fn iptables_nft_rules() {
                super::$name(Kind::NftRules);
            }
            #[test]
            fn iptables_legacy_ipset() {
                super::$name(Kind::LegacyIpset);
            }
            #[test]
            fn iptables_legacy_rules() {
                super::$name(Kind::LegacyRules);
            }
        }
    )*};
}

/// One network namespace; it lives as long as this value.
pub(crate) struct Place {
    namespace: File,
}

impl Place {
    fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run("ip", "link set lo up");
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        Self { namespace: std::thread::spawn(make).join().unwrap() }
    }

    /// Runs in this namespace as a user: sockets belong to whoever creates them.
    pub(crate) fn run<T: Send>(&self, uid: u32, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.namespace, CloneFlags::CLONE_NEWNET).unwrap();
                if uid != ROOT {
                    let uid = rustix::process::Uid::from_raw(uid);
                    rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
                }
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub(crate) fn nft(&self, line: &str) -> String {
        self.run(ROOT, || run("nft", line))
    }

    /// Feeds a rule set text to `nft -f`.
    pub(crate) fn nft_load(&self, text: &str) {
        let path = scratch("nft", text);
        self.nft(&format!("-f {}", path.display()));
        std::fs::remove_file(path).unwrap();
    }

    /// Runs a program as root; its line is split at blanks.
    pub(crate) fn program(&self, program: &str, line: &str) -> String {
        self.run(ROOT, || run(program, line))
    }

    pub(crate) fn udp(&self, uid: u32, address: &str) -> UdpSocket {
        let socket = self.run(uid, || UdpSocket::bind(address)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    pub(crate) fn listen(&self, address: &str) -> TcpListener {
        self.run(ROOT, || TcpListener::bind(address)).unwrap()
    }

    pub(crate) fn connect(&self, uid: u32, to: &str) -> io::Result<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(uid, || TcpStream::connect_timeout(&to, PATIENCE))
    }

    /// Sends one datagram from a fresh socket.
    pub(crate) fn send(&self, uid: u32, to: &str, token: &str) -> io::Result<usize> {
        let to: SocketAddr = to.parse().unwrap();
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        self.udp(uid, any).send_to(token.as_bytes(), to)
    }
}

/// A box and its outside, which holds every address that isn't the box's.
pub(crate) struct World {
    pub(crate) inside: Place,
    pub(crate) outside: Place,
    pub(crate) wire: Wire,
    pub(crate) kind: Kind,
}

impl World {
    /// `None`, and a word about it, where namespaces can't be made or `nft` is missing; in CI that is a failure.
    pub(crate) fn new() -> Option<Self> {
        Self::on(Kind::Nftables)
    }

    pub(crate) fn on(kind: Kind) -> Option<Self> {
        if !nix::unistd::geteuid().is_root()
            || !["/usr/sbin/nft", "/sbin/nft"].iter().any(|p| File::open(p).is_ok())
        {
            assert!(
                std::env::var_os("CI").is_none(),
                "CI must run the namespace tests: root and nft are needed"
            );
            io::stderr().write_all(b"SKIPPED: needs root and nft\n").unwrap();
            return None;
        }
        let (inside, outside) = (Place::new(), Place::new());
        let there = format!("/proc/{}/fd/{}", std::process::id(), outside.namespace.as_raw_fd());
        inside.run(ROOT, || {
            run("ip", &format!("link add eth0 type veth peer name peer0 netns {there}"));
            run("ip", &format!("addr add {BOX4}/24 dev eth0"));
            run("ip", &format!("addr add {BOX6}/64 dev eth0 nodad"));
            run("ip", "link set eth0 up");
        });
        outside.run(ROOT, || {
            run("ip", &format!("addr add {OUTSIDE4}/24 dev peer0"));
            run("ip", &format!("addr add {OUTSIDE6}/64 dev peer0 nodad"));
            run("ip", "link set peer0 up");
            for address in [RESOLVER4, UPSTREAM4, FIRST4, SECOND4, PRIVATE4] {
                run("ip", &format!("addr add {address}/32 dev lo"));
            }
            for address in [RESOLVER6, FIRST6] {
                run("ip", &format!("addr add {address}/128 dev lo nodad"));
            }
        });
        inside.run(ROOT, || {
            run("ip", &format!("route add default via {OUTSIDE4}"));
            run("ip", &format!("-6 route add default via {OUTSIDE6}"));
        });
        let wire = outside.run(ROOT, Wire::tap);
        Some(Self { inside, outside, wire, kind })
    }

    pub(crate) fn nftables(&self) -> Nftables {
        self.inside.run(ROOT, || Nftables::open().unwrap())
    }

    /// The backend under test.
    pub(crate) fn kernel(&self) -> Confined<'_> {
        let kernel = self.inside.run(ROOT, || match self.kind {
            Kind::Nftables => Kernel::Nftables(Box::new(Nftables::open().unwrap())),
            Kind::NftIpset | Kind::NftRules | Kind::LegacyIpset | Kind::LegacyRules => {
                let programs = Arc::new(Direct);
                Kernel::Iptables(Box::new(Iptables::open(programs, &self.kind.candidate()).unwrap()))
            }
        });
        Confined { kernel, place: &self.inside }
    }

    /// Somebody takes all our rules away: each family's at once, since whoever looks after them may do so meanwhile.
    pub(crate) fn tear_down(&self) {
        match self.kind.program() {
            None => drop(self.inside.nft("delete table inet innkeeper")),
            Some(program) => {
                let empty = scratch("rules", "*filter\nCOMMIT\n*nat\nCOMMIT\n*mangle\nCOMMIT\n");
                for program in [program.to_owned(), program.replacen("ip", "ip6", 1)] {
                    self.inside.program(&format!("{program}-restore"), &empty.display().to_string());
                }
                std::fs::remove_file(empty).unwrap();
            }
        }
    }

    /// Somebody empties one of our chains.
    pub(crate) fn empty(&self, chain: &str) {
        match self.kind.program() {
            None => drop(self.inside.nft(&format!("flush chain inet innkeeper {chain}"))),
            Some(program) => {
                let table = if chain == "postrouting" { "mangle" } else { "filter" };
                self.inside.program(program, &format!("-t {table} -F INNKEEPER-{}", chain.to_uppercase()));
            }
        }
    }

    /// Our rules and what is in our sets, without what changes by itself.
    pub(crate) fn listing(&self) -> Vec<String> {
        let mut text = String::new();
        match self.kind.program() {
            None => text.push_str(&self.inside.nft("-s list table inet innkeeper")),
            Some(program) => {
                for program in [program.to_owned(), program.replacen("ip", "ip6", 1)] {
                    for table in ["filter", "nat", "mangle"] {
                        text.push_str(&self.inside.program(&program, &format!("-t {table} -S")));
                    }
                }
                if self.kind.storage() == Storage::Ipset {
                    text.push_str(&self.inside.program("ipset", "save"));
                }
            }
        }
        let named = |word: &str| match word.strip_prefix("innkeeper.").and_then(|rest| rest.split_once('.')) {
            Some((_, set)) => set.to_owned(),
            None => word.to_owned(),
        };
        if self.kind != Kind::Nftables {
            let ours = |line: &&str| line.contains("INNKEEPER") || line.starts_with("add ");
            text = text.lines().filter(ours).collect::<Vec<_>>().join("\n");
        }
        // Elements with a lifetime differ in it, and pairs in their order.
        let stable = text.lines().filter(|line| !line.contains(" timeout ") && !line.starts_with("create "));
        let mut lines: Vec<String> =
            stable.map(|line| line.split(' ').map(named).collect::<Vec<_>>().join(" ")).collect();
        if self.kind != Kind::Nftables {
            lines.sort();
        }
        lines
    }

    /// Runs what somebody does to our rules: program and line. `iptables` is this kind's, `SET-` any number.
    pub(crate) fn tamper(&self, line: &str) {
        let (program, line) = line.split_once(' ').unwrap();
        let program = if program == "iptables" { self.kind.program().unwrap() } else { program };
        let words = line.split(' ').map(|word| match word.strip_prefix("SET-") {
            Some(set) => self.set(set),
            None => word.to_owned(),
        });
        let line = words.collect::<Vec<_>>().join(" ");
        self.inside.program(program, &line);
    }

    /// What an earlier life may have left beside its lockdown: other chains, a set, an element.
    pub(crate) fn leave_behind(&self) {
        match self.kind.program() {
            None => {
                self.inside.nft("add set inet innkeeper open4 { type ipv4_addr ; }");
                self.inside.nft(&format!("add element inet innkeeper open4 {{ {OUTSIDE4} }}"));
            }
            Some(program) => {
                self.inside.program(program, "-N INNKEEPER-OLD");
                self.inside.program(program, &format!("-A INNKEEPER-OLD -d {OUTSIDE4} -j ACCEPT"));
                self.inside.program("ipset", "create innkeeper.7.open4 hash:ip");
                self.inside.program("ipset", &format!("add innkeeper.7.open4 {OUTSIDE4}"));
            }
        }
    }

    /// What a set of ours is called now.
    pub(crate) fn set(&self, name: &str) -> String {
        let names = self.inside.program("ipset", "list -n");
        names.lines().find(|line| line.ends_with(&format!(".{name}"))).unwrap().to_owned()
    }

    /// Whether these bytes have come out of the box so far. A connection to a fresh open port follows them on the
    /// wire: once it is seen, nothing sent before can still be under way.
    pub(crate) fn leaked(&self, kernel: &mut Confined<'_>, token: &[u8]) -> bool {
        let port = next_port();
        kernel.admit(&[open(OUTSIDE4, port)]).unwrap();
        let _listener = self.outside.listen(&format!("{OUTSIDE4}:{port}"));
        self.inside.connect(AGENT, &format!("{OUTSIDE4}:{port}")).unwrap();
        kernel.withdraw(&[(OUTSIDE4.parse().unwrap(), port)]).unwrap();
        self.wire.seen_before(token, &port.to_be_bytes())
    }
}

/// The backend in the box's namespace: its programs must run there too.
pub(crate) struct Confined<'a> {
    kernel: Kernel,
    place: &'a Place,
}

type Done<T> = Result<T, BackendError>;

impl Confined<'_> {
    fn inside<T: Send>(&mut self, work: impl FnOnce(&mut Kernel) -> T + Send) -> T {
        let Self { kernel, place } = self;
        place.run(ROOT, || work(kernel))
    }

    pub(crate) fn load(&mut self, ruleset: &Ruleset, content: &Edit) -> Done<()> {
        self.inside(|kernel| kernel.load(ruleset, content))
    }

    pub(crate) fn admit(&mut self, elements: &[Element]) -> Done<()> {
        self.inside(|kernel| kernel.admit(elements))
    }

    pub(crate) fn withdraw(&mut self, pairs: &[Pair]) -> Done<()> {
        self.inside(|kernel| kernel.withdraw(pairs))
    }

    pub(crate) fn cut(&mut self, pairs: &[Pair]) -> Done<()> {
        self.inside(|kernel| kernel.cut(pairs))
    }

    /// As the owner's look does it, before what is open is asked.
    pub(crate) fn elements(&mut self) -> Done<Vec<Element>> {
        self.inside(|kernel| {
            kernel.expire(Instant::now())?;
            kernel.elements()
        })
    }

    pub(crate) fn denied(&mut self) -> Done<u64> {
        self.inside(Kernel::denied)
    }

    pub(crate) fn fingerprint(&mut self) -> Done<Fingerprint> {
        self.inside(Kernel::fingerprint)
    }
}

/// Every frame that comes out of the box.
pub(crate) struct Wire {
    socket: Socket,
}

impl Wire {
    fn tap() -> Self {
        /// `ETH_P_ALL`
        const EVERYTHING: u16 = 3;
        let protocol = Protocol::from(i32::from(EVERYTHING.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_recv_buffer_size(8 * 1024 * 1024).unwrap();
        Self { socket }
    }

    /// Reads frames until the TCP segment to `port`, and says whether one before it held the token.
    fn seen_before(&self, token: &[u8], port: &[u8]) -> bool {
        let mut found = false;
        loop {
            let frame = self.frame();
            found |= frame.windows(token.len()).any(|part| part == token);
            // Ethernet, IPv4 without options, TCP.
            if frame.get(12..14) == Some(&[8, 0])
                && frame.get(23) == Some(&6)
                && frame.get(36..38) == Some(port)
            {
                return found;
            }
        }
    }

    /// Reads frames until one with `last` in it, and says whether one before it held the token.
    pub(crate) fn seen_until(&self, token: &[u8], last: &[u8]) -> bool {
        let mut found = false;
        loop {
            let frame = self.frame();
            found |= frame.windows(token.len()).any(|part| part == token);
            if frame.windows(last.len()).any(|part| part == last) {
                return found;
            }
        }
    }

    /// Waits until these bytes have come out.
    pub(crate) fn wait_for(&self, token: &[u8]) {
        while !self.frame().windows(token.len()).any(|part| part == token) {}
    }

    fn frame(&self) -> Vec<u8> {
        let mut frame = vec![0; 4096];
        let length = (&self.socket).read(&mut frame).expect("something more comes out of the box");
        frame.truncate(length);
        frame
    }
}

/// The firewall as PID 1 has it, in a namespace, and what it says by itself.
pub(crate) struct Guard {
    pub(crate) firewall: Firewall,
    pub(crate) said: Receiver<String>,
}

impl Guard {
    pub(crate) fn start(world: &World, plan: FirewallPlan, policy: &str) -> Self {
        let guard = Self::unloaded(world);
        let programs: Arc<dyn Programs> = Arc::new(Direct);
        guard.firewall.choose(programs, world.kind.candidate()).unwrap();
        guard.load(plan, policy);
        guard
    }

    /// As in the first moment of a boot.
    pub(crate) fn closed(world: &World) -> Self {
        let guard = Self::unloaded(world);
        guard.firewall.lockdown().unwrap();
        guard
    }

    pub(crate) fn unloaded(world: &World) -> Self {
        let (says, said) = mpsc::channel();
        let repaired = move |what: &str| drop(says.send(what.to_owned()));
        let notices = Notices { refused: Box::new(|_, _, _| {}), repaired: Box::new(repaired) };
        // Its thread inherits the namespace of whoever starts it.
        let firewall = world.inside.run(ROOT, || Firewall::start(notices).unwrap());
        Self { firewall, said }
    }

    /// Returns once nobody looks after the rules any more: a look may be under way, and would repair them.
    pub(crate) fn end(self) {
        let Self { firewall, said } = self;
        drop(firewall);
        // What it was going to say it says with its last breath.
        while said.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Disconnected) {}
    }

    pub(crate) fn load(&self, plan: FirewallPlan, policy: &str) {
        self.firewall.load(plan, allowlist(policy)).unwrap();
    }

    pub(crate) fn policy(&self, text: &str) {
        self.firewall.policy(allowlist(text)).unwrap();
    }

    /// What `dns` says when a name was answered. All of it must be open then.
    pub(crate) fn admit(&self, name: &str, addresses: &[&str]) {
        let wanted: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        assert_eq!(self.learn(name, addresses), wanted);
    }

    /// The same, and what of it is open.
    pub(crate) fn learn(&self, name: &str, addresses: &[&str]) -> Vec<IpAddr> {
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let name = DomainName::parse(name).unwrap();
        self.firewall.admit(Learned { id: 1, name, addresses, ttl_s: 60, stale: false }).open
    }
}

fn allowlist(text: &str) -> Allowlist {
    let (rules, problems) = parse_rules(text, |line| Origin::File { path: "t".into(), line });
    assert!(problems.is_empty(), "{problems:?}");
    Allowlist::new(rules)
}

/// One connection, seen from both ends.
pub(crate) struct Flow {
    pub(crate) agent: TcpStream,
    pub(crate) far: TcpStream,
}

impl Flow {
    /// Opens a connection out of the box and shows that it works.
    pub(crate) fn open(world: &World, to: &str) -> Self {
        let listener = world.outside.listen(to);
        let agent = world.inside.connect(AGENT, to).unwrap();
        let (far, _) = listener.accept().unwrap();
        for stream in [&agent, &far] {
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let mut flow = Self { agent, far };
        flow.works();
        flow
    }

    /// Bytes go both ways, and none came before.
    pub(crate) fn works(&mut self) {
        self.agent.write_all(b"there").unwrap();
        self.far.write_all(b"back!").unwrap();
        for (stream, expected) in [(&mut self.far, b"there"), (&mut self.agent, b"back!")] {
            let mut bytes = [0; 5];
            stream.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, expected);
        }
    }

    /// The agent's next byte ends the connection on its side, and the far side gets nothing.
    pub(crate) fn is_cut(&mut self) {
        // The kernel takes it and may learn of the refusal at once.
        drop(self.agent.write_all(b"must not arrive"));
        let error = self.agent.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        nothing_came(&mut self.far);
    }
}

/// What was sent before may still be under way; the caller waits for something that was sent after.
pub(crate) fn nothing_came(stream: &mut TcpStream) {
    stream.set_nonblocking(true).unwrap();
    let error = stream.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    stream.set_nonblocking(false).unwrap();
}

pub(crate) fn open(address: &str, port: u16) -> Element {
    Element { address: address.parse::<IpAddr>().unwrap(), port, timeout: Duration::from_secs(60) }
}

/// A file for a program that reads no pipe; whoever made it removes it.
fn scratch(kind: &str, text: &str) -> PathBuf {
    let name = format!("innkeeper-{}-{}.{kind}", std::process::id(), next_port());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// A port that no other test step uses, below the ephemeral range.
pub(crate) fn next_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Lets everybody open an ICMP echo socket, as Docker does.
pub(crate) fn allow_ping() {
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
}

/// One echo request with this payload, from an unprivileged ICMP socket.
pub(crate) fn ping(to: &str, token: &str) -> io::Result<usize> {
    let to = SocketAddr::new(to.parse().unwrap(), 0);
    let (domain, protocol, kind) = match to {
        SocketAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8),
        SocketAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    let packet = [&[kind, 0, 0, 0, 0, 0, 0, 1], token.as_bytes()].concat();
    socket.send_to(&packet, &to.into())
}

#[expect(clippy::disallowed_methods, reason = "no reaper runs beside a test")]
fn run(program: &str, line: &str) -> String {
    let output = Command::new(program).args(line.split(' ')).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {line}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}
