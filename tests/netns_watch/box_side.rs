//! PID 1 around the worker: the firewall's real thread, the real sockets, and the real words for what the worker tells.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use innkeeper::allowlist::{Allowlist, DomainName, Origin, parse_rules};
use innkeeper::attribution::Attributor;
use innkeeper::audit::Use;
use innkeeper::channel;
use innkeeper::dns::protocol::Learned;
use innkeeper::firewall::ruleset::FirewallPlan;
use innkeeper::firewall::{Firewall, Notices};
use innkeeper::status::Board;
use innkeeper::status::report::{BoxIdentity, Denial};
use innkeeper::watch::keeper::Queues;
use innkeeper::watch::protocol::{FromWorker, MAX_FROM_WORKER};
use innkeeper::watch::reporter::Reporter;

use crate::place::{AGENT, DNS, Place, ROOT, UPSTREAM4, World};

pub(crate) const REFUSED: u16 = 100;
pub(crate) const USED: u16 = 101;
/// Different places are told at 20 a second; nothing else takes long. It ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) fn plan() -> FirewallPlan {
    FirewallPlan {
        dns_uid: DNS,
        dns_v4: "127.0.0.53:53".parse().unwrap(),
        dns_v6: None,
        upstreams: vec![format!("{UPSTREAM4}:53").parse().unwrap()],
        engine_dns: None,
        inbound: vec![],
        ssh_from: vec![],
        closed_loopback: vec![],
        nflog_group: REFUSED,
        uses_group: USED,
        vm: false,
        closed: vec![],
        gate: None,
    }
}

#[derive(Default)]
struct Heard {
    frames: Mutex<Vec<FromWorker>>,
    changed: Condvar,
}

pub(crate) struct Watched<'a> {
    inside: &'a Place,
    queues: Queues,
    pub(crate) board: Arc<Board>,
    pub(crate) reporter: Arc<Reporter>,
    firewall: Firewall,
    heard: Arc<Heard>,
    worker: Option<Child>,
}

impl<'a> Watched<'a> {
    pub(crate) fn start(world: &'a World, rules: &str) -> Self {
        let inside = &world.inside;
        let (rules, problems) = parse_rules(rules, |line| Origin::File { path: "test".into(), line });
        assert!(problems.is_empty(), "{problems:?}");
        let queues = inside.run(ROOT, || Queues::open(REFUSED, USED).unwrap());
        let firewall = inside.run(ROOT, || {
            let notices = Notices { refused: Box::new(|_, _, _| ()), repaired: Box::new(|_| ()) };
            Firewall::start(notices).unwrap()
        });
        firewall.load(plan(), Allowlist::new(rules)).unwrap();
        let board = Arc::new(Board::new(BoxIdentity::default()));
        let reporter = Arc::new(Reporter::new(
            board.clone(),
            firewall.clone(),
            Attributor::new(AGENT, AGENT, |_| {}),
            Arc::new(|_, _| None),
        ));
        let heard = Arc::default();
        let mut watched = Self { inside, queues, board, reporter, firewall, heard, worker: None };
        watched.start_worker();
        watched
    }

    /// The built binary with these sockets, as the uid that it has in a box.
    pub(crate) fn start_worker(&mut self) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let worker = self.inside.run(ROOT, || {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=903", "--regid=903", "--clear-groups", "--bounding-set=-all"]);
            command.args(["--inh-caps=-all", "--no-new-privs", env!("CARGO_BIN_EXE_innkeeper"), "watch"]);
            command.stdin(OwnedFd::from(theirs)).spawn().unwrap()
        });
        self.queues.first(self.reporter.heard()).send(&ours).unwrap();
        self.worker = Some(worker);
        let (heard, reporter) = (self.heard.clone(), self.reporter.clone());
        std::thread::spawn(move || {
            while let Ok(Some(frame)) = channel::receive::<FromWorker>(&ours, MAX_FROM_WORKER) {
                reporter.hear(&frame);
                heard.frames.lock().unwrap().push(frame);
                heard.changed.notify_all();
            }
            heard.changed.notify_all();
        });
    }

    fn worker_pid(&self) -> rustix::process::Pid {
        let id = i32::try_from(self.worker.as_ref().unwrap().id()).unwrap();
        rustix::process::Pid::from_raw(id).unwrap()
    }

    pub(crate) fn kill_worker(&mut self) {
        rustix::process::kill_process(self.worker_pid(), rustix::process::Signal::KILL).unwrap();
        rustix::process::waitpid(Some(self.worker_pid()), rustix::process::WaitOptions::empty()).unwrap();
        self.worker = None;
    }

    pub(crate) fn worker_lives(&self) -> bool {
        rustix::process::test_kill_process(self.worker_pid()).is_ok()
            && std::fs::read_link(format!("/proc/{}/exe", self.worker_pid())).is_ok()
    }

    pub(crate) fn worker_memory_kib(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.worker_pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Reads so many packets as a worker would, and dies over them.
    pub(crate) fn read_and_forget(&self, count: usize) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.queues.first(self.reporter.heard()).send(&ours).unwrap();
        let (_, sockets): (innkeeper::watch::protocol::ToWorker, _) =
            channel::receive_with_sockets(&theirs, 4096).unwrap();
        for _ in 0..count {
            rustix::net::recv(&sockets[0], &mut [0; 4096][..], rustix::net::RecvFlags::empty()).unwrap();
        }
    }

    pub(crate) fn admit(&self, name: &str, address: &str) {
        let addresses = vec![address.parse().unwrap()];
        let name = DomainName::parse(name).unwrap();
        let learned = Learned { id: 1, name, addresses: addresses.clone(), ttl_s: 60, stale: false };
        assert_eq!(self.firewall.admit(learned).open, addresses);
    }

    pub(crate) fn kernel_denied(&self) -> u64 {
        self.firewall.report().denied
    }

    /// Waits until what came so far gives `pick` what it wants.
    fn wait<T>(&self, what: &str, mut pick: impl FnMut(&[FromWorker]) -> Option<T>) -> T {
        let frames = self.heard.frames.lock().unwrap();
        let mut found = None;
        let looking = |frames: &mut Vec<FromWorker>| {
            found = pick(frames);
            found.is_none()
        };
        let (frames, _) = self.heard.changed.wait_timeout_while(frames, PATIENCE, looking).unwrap();
        let denials = self.board.report(None).denials;
        found.unwrap_or_else(|| panic!("{what}; {} frames, on the board: {denials:#?}", frames.len()))
    }

    /// Waits until the board says this, so often, in such words.
    pub(crate) fn denial(&self, what: &str, uid: u32, count: u64, reason: &str, allow: &str) -> Denial {
        let denial = self.wait(&format!("no {what} of {uid}, {count} times"), |_| {
            let denials = self.board.report(None).denials;
            denials.into_iter().find(|d| d.what == what && d.uid == Some(uid) && d.count >= count)
        });
        assert_eq!((denial.layer.as_str(), denial.count), ("firewall", count), "{denial:?}");
        assert!(denial.reason.contains(reason), "{denial:?}");
        assert!(denial.allow.contains(allow), "{denial:?}");
        denial
    }

    /// Waits until so many connections of this uid were told; the words for the last of them.
    pub(crate) fn used(&self, address: &str, port: u16, uid: u32, count: u64) -> Use {
        let used = self.wait(&format!("no use of {address}:{port} by {uid}, {count} times"), |frames| {
            let flows = frames.iter().filter_map(|frame| match frame {
                FromWorker::Used(flow) => Some(flow),
                _ => None,
            });
            let wanted = |used: &Use| used.address == address && used.port == port && used.uid == Some(uid);
            let uses: Vec<Use> = flows.map(|flow| self.reporter.describe(flow)).filter(wanted).collect();
            (uses.iter().map(|used| used.count).sum::<u64>() >= count).then_some(uses)
        });
        assert_eq!(used.iter().map(|used| used.count).sum::<u64>(), count);
        used.into_iter().next_back().unwrap()
    }

    /// Waits until so many first packets were read, sent again or not.
    pub(crate) fn await_used_packets(&self, count: u64) {
        self.wait("not so many packets", |frames| {
            let packets = frames.iter().map(|frame| match frame {
                FromWorker::Used(flow) => flow.packets,
                _ => 0,
            });
            (packets.sum::<u64>() >= count).then_some(())
        });
    }

    /// Waits until what was told and what was lost make so many refused packets.
    pub(crate) fn await_accounted(&self, count: u64) {
        self.wait("not all is accounted for", |frames| {
            let counted = frames.iter().map(|frame| match frame {
                FromWorker::Refused(flow) => flow.packets,
                FromWorker::Lost { refused, .. } => *refused,
                FromWorker::Serving | FromWorker::Pong | FromWorker::Used(_) => 0,
            });
            let sum = counted.sum::<u64>();
            assert!(sum <= count, "{sum} of {count}");
            (sum == count).then_some(())
        });
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if self.worker.is_some() {
            self.kill_worker();
        }
    }
}

/// Starts a process of this thread's uid that calls itself something, opens a socket and holds it; and the socket's
/// inode. `udp ADDRESS PORT`: it was refused; `bound COUNT`: and so many other descriptors, as far as the
/// limit goes.
pub(crate) fn holder(what: &str) -> (Child, u64) {
    const SCRIPT: &str = r"
import os, socket, sys
open('/proc/self/comm', 'w').write('\x1b]0;init\x07')
held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
words = sys.argv[1].split()
if words[0] == 'bound':
    held.bind(('127.0.0.1', 0))
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1:] * 2)
    try:
        for _ in range(int(words[1])):
            os.dup(sys.stdin.fileno())
    except OSError:
        pass
else:
    try:
        held.sendto(b'x', (words[1], int(words[2])))
        raise SystemExit('it got out')
    except OSError:
        pass
print(os.fstat(held.fileno()).st_ino, flush=True)
sys.stdin.read()
";
    let mut command = Command::new("python3");
    command.args(["-c", SCRIPT, what]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line.trim().parse().unwrap())
}

/// As [`holder`], with the agent's uid and gid.
pub(crate) fn agents_holder(what: &str) -> (Child, u64) {
    let become_agent = || {
        let (uid, gid) = (rustix::process::Uid::from_raw(AGENT), rustix::process::Gid::from_raw(AGENT));
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        holder(what)
    };
    std::thread::scope(|scope| scope.spawn(become_agent).join().unwrap())
}

pub(crate) fn inode(socket: &impl AsRawFd) -> u64 {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
    link.to_str().unwrap().trim_start_matches("socket:[").trim_end_matches(']').parse().unwrap()
}
