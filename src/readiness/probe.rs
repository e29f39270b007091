//! The child of the self-attack, `innkeeper probe`: runs as the agent and tries the doors, side by side.

pub(crate) mod gate;

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::libc;

use super::{Attack, Attempt, Outcome};
use crate::control::protocol::{Request, SOCKET};
use crate::watch::packet::protocol;
use crate::watch::protocol::Target;

/// The firewall refuses at once; who waits this long was dropped, which is refused too.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) type Result = (Outcome, String);

/// One attempt: what it is called, which protection it tries, and the deed.
struct Trial<'a> {
    name: String,
    protection: &'static str,
    deed: Box<dyn FnOnce() -> Result + Send + 'a>,
}

/// Tries everything and returns what happened.
#[must_use]
pub fn run(attack: &Attack) -> Vec<Attempt> {
    let mut trials = network(attack);
    trials.extend(secrets(attack));
    trials.extend(filesystem(attack));
    trials.extend(privileges(attack));
    trials.extend(control());
    std::thread::scope(|scope| {
        let running: Vec<_> = trials.into_iter().map(|trial| scope.spawn(move || timed(trial))).collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).collect()
    })
}

fn timed(trial: Trial<'_>) -> Attempt {
    let started = Instant::now();
    let (outcome, detail) = (trial.deed)();
    let ms = crate::status::milliseconds(started.elapsed());
    Attempt { name: trial.name, protection: trial.protection.to_owned(), outcome, detail, ms }
}

fn trial<'a>(
    name: impl Into<String>,
    protection: &'static str,
    deed: impl FnOnce() -> Result + Send + 'a,
) -> Trial<'a> {
    Trial { name: name.into(), protection, deed: Box::new(deed) }
}

/// A name that can't be in any allowlist: RFC 2606 reserves `invalid`.
pub const DENIED_NAME: &str = "innkeeper-readiness.invalid";
/// Addresses that no rule can open: TEST-NET-3 (RFC 5737) and the documentation prefix (RFC 3849) are special purpose.
pub(crate) const DENIED_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(crate) const DENIED_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub(crate) const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// A public resolver that agents and tools hard-code.
pub(crate) const OUTSIDE_RESOLVER: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);

/// A port that hardly any policy gates.
pub(crate) const ANY_UNGATED: u16 = UNGATED.start;

/// More than a policy can gate ([`MAX_GATED`](crate::allowlist::MAX_GATED)): the first that this one does not is tried.
const UNGATED: std::ops::Range<u16> = 853..1000;

/// A packet that must be refused.
struct Forbidden {
    name: String,
    protection: &'static str,
    to: SocketAddr,
    udp: bool,
}

fn forbidden(attack: &Attack) -> Vec<Forbidden> {
    let place = |name: &str, protection, to, udp| Forbidden { name: name.to_owned(), protection, to, udp };
    let (v4, v6) = ("egress-ipv4", "egress-ipv6");
    // Gated ports and 53 lead to a worker: at others the address itself must be closed.
    let port = UNGATED.clone().find(|port| !attack.gated.contains(port)).unwrap_or_default();
    let mut places = vec![
        place("denied-address", v4, SocketAddr::from((DENIED_V4, port)), false),
        place("denied-udp", v4, SocketAddr::from((DENIED_V4, 443)), true),
        place("metadata-ipv4", v4, SocketAddr::from((METADATA_V4, port)), false),
        place("ipv6-literal", v6, SocketAddr::from((DENIED_V6, port)), false),
        place("metadata-ipv6", v6, SocketAddr::from((METADATA_V6, port)), false),
        place("gate-itself", "gate", SocketAddr::V4(crate::gate::keeper::LISTEN), false),
    ];
    for upstream in &attack.upstreams {
        let other = SocketAddr::new(upstream.ip(), port);
        let protection = if upstream.is_ipv4() { v4 } else { v6 };
        places.push(place(&format!("upstream-{}", upstream.ip()), protection, other, false));
    }
    places
}

/// Every packet that an attack gets refused: one to each place, since the refusal is at once. What is meant for the gate
/// is among them, should it not get there.
#[must_use]
pub fn refusals(attack: &Attack) -> Vec<Target> {
    let target = |Forbidden { to, udp, .. }| Target {
        address: Some(to.ip()),
        protocol: Some(if udp { protocol::UDP } else { protocol::TCP }),
        port: Some(to.port()),
        icmp: None,
    };
    let at_gate = gate::places(attack.proxy.is_some()).map(|to| Forbidden {
        name: String::new(),
        protection: "gate",
        to,
        udp: false,
    });
    forbidden(attack).into_iter().chain(at_gate).map(target).collect()
}

fn network(attack: &Attack) -> Vec<Trial<'static>> {
    let resolver = SocketAddr::new(attack.resolver, 53);
    let outside = SocketAddr::from((OUTSIDE_RESOLVER, 53));
    let mut trials = vec![
        trial("denied-name", "dns", move || ask_name(resolver)),
        trial("outside-resolver", "dns", move || ask_name(outside)),
    ];
    let places = forbidden(attack).into_iter().map(|Forbidden { name, protection, to, udp }| {
        trial(name, protection, move || if udp { send_udp(to) } else { connect(to) })
    });
    trials.extend(places);
    trials.extend(gate::trials());
    trials.extend(attack.proxy.into_iter().flat_map(gate::proxy_trials));
    trials
}

/// Judged by bytes that come back, not by the connect.
pub(crate) fn connect(target: SocketAddr) -> Result {
    let mut stream = match TcpStream::connect_timeout(&target, PATIENCE) {
        Ok(stream) => stream,
        Err(error) => return refused(&error),
    };
    drop(stream.set_read_timeout(Some(PATIENCE)));
    drop(stream.write_all(b"GET / HTTP/1.0\r\n\r\n"));
    let mut byte = [0; 1];
    match stream.read(&mut byte) {
        Ok(1..) => (Outcome::Passed, format!("{target} answered")),
        Ok(_) => (Outcome::Passed, format!("{target} accepted the connection")),
        Err(error) => (Outcome::Passed, format!("{target} accepted the connection, then {error}")),
    }
}

fn send_udp(target: SocketAddr) -> Result {
    let attempt = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.connect(target)?;
        socket.send(b"innkeeper")?;
        socket.recv(&mut [0; 64])
    });
    match attempt {
        Ok(_) => (Outcome::Passed, format!("{target} answered")),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            (Outcome::Passed, format!("a datagram to {target} was not refused"))
        }
        Err(error) => refused(&error),
    }
}

/// No route is no proof: the attempt could not be made here.
fn refused(error: &std::io::Error) -> Result {
    let no_way = [libc::EADDRNOTAVAIL, libc::EAFNOSUPPORT, libc::ENETUNREACH];
    let outcome = match error.raw_os_error() {
        Some(code) if no_way.contains(&code) => Outcome::Impossible,
        _ => Outcome::Refused,
    };
    (outcome, error.to_string())
}

/// Asks for a name that is not allowed; the answer must be NXDOMAIN, and it must be ours.
pub(crate) fn ask_name(server: SocketAddr) -> Result {
    let answer = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(server)?;
        socket.send(&question(DENIED_NAME))?;
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer)?;
        Ok(buffer.get(..length).unwrap_or_default().to_vec())
    });
    match answer {
        Err(error) => refused(&error),
        Ok(answer) => {
            let code = answer.get(3).map(|byte| byte & 0x0f);
            let answers = answer.get(6..8).is_some_and(|count| count != [0, 0]);
            match (code, answers) {
                // NXDOMAIN (RFC 1035 §4.1.1); a root server would say so too, hence the next check at the sink in
                // the tests: no packet of this question ever leaves the box.
                (Some(3), false) => (Outcome::Refused, "NXDOMAIN".to_owned()),
                (code, _) => (Outcome::Passed, format!("{server} answered with code {code:?}")),
            }
        }
    }
}

/// A question for an A record (RFC 1035 §4.1).
fn question(name: &str) -> Vec<u8> {
    let mut packet = vec![0x49, 0x4b, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        packet.extend(u8::try_from(label.len()));
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet
}

fn secrets(attack: &Attack) -> Vec<Trial<'static>> {
    let supervisor = attack.supervisor;
    ["environ", "mem", "maps", "root/etc/hostname", "cwd/", "fd/"]
        .into_iter()
        .map(move |file| {
            let path = format!("/proc/{supervisor}/{file}");
            trial(format!("innkeeper-{}", file.trim_end_matches('/')), "agent", move || {
                read(Path::new(&path))
            })
        })
        .chain(std::iter::once(trial("private-state", "agent", || {
            read(Path::new(crate::filesystem::layout::STATE_PRIVATE))
        })))
        .collect()
}

fn read(path: &Path) -> Result {
    let opened = if path.is_dir() || path.to_string_lossy().ends_with('/') {
        std::fs::read_dir(path).map(|_| ())
    } else {
        std::fs::File::open(path).map(|_| ())
    };
    match opened {
        Ok(()) => (Outcome::Passed, format!("{} can be opened", path.display())),
        Err(error) => (Outcome::Refused, error.to_string()),
    }
}

fn filesystem(attack: &Attack) -> Vec<Trial<'_>> {
    let mut trials = Vec::new();
    for directory in &attack.sealed {
        let name = format!("write-{}", directory.display());
        trials.push(trial(name, "rootfs", move || create_in(directory)));
    }
    for door in &attack.doors {
        let name = format!("door-{}", door.display());
        trials.push(trial(name, "host-doors", move || open_door(door)));
    }
    for file in ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe"] {
        trials.push(trial(format!("write-{file}"), "rootfs", move || open_for_writing(Path::new(file))));
    }
    trials
}

pub(crate) fn create_in(directory: &Path) -> Result {
    let path = directory.join(format!(".innkeeper-readiness-{}", std::process::id()));
    match OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(_) => {
            drop(std::fs::remove_file(&path));
            (Outcome::Passed, format!("a file could be made in {}", directory.display()))
        }
        Err(error) => (Outcome::Refused, error.to_string()),
    }
}

fn open_for_writing(path: &Path) -> Result {
    match OpenOptions::new().write(true).open(path) {
        Ok(_) => (Outcome::Passed, format!("{} can be opened for writing", path.display())),
        Err(error) => (Outcome::Refused, error.to_string()),
    }
}

fn open_door(door: &Path) -> Result {
    if UnixStream::connect(door).is_ok() {
        return (Outcome::Passed, format!("{} accepts connections", door.display()));
    }
    read(door)
}

fn privileges(attack: &Attack) -> Vec<Trial<'static>> {
    let mut trials = vec![
        trial("raw-socket", "agent", raw_socket),
        trial("packet-socket", "agent", || socket(libc::AF_PACKET, libc::SOCK_RAW, 0)),
        trial("vsock", "agent", || socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
        trial("netfilter", "agent", || socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)),
        trial("signal-innkeeper", "agent", signal_supervisor(attack.supervisor)),
        trial("leftover-privilege", "agent", leftover),
    ];
    if !attack.userns {
        trials.push(trial("user-namespace", "agent", || {
            denied(
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER),
                "a user namespace could be made",
            )
        }));
    }
    trials
}

pub(crate) fn raw_socket() -> Result {
    socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)
}

fn socket(family: i32, kind: i32, protocol: i32) -> Result {
    let made = socket2::Socket::new(
        socket2::Domain::from(family),
        socket2::Type::from(kind),
        Some(socket2::Protocol::from(protocol)),
    );
    match made {
        Ok(_) => (Outcome::Passed, "the socket could be made".to_owned()),
        Err(error) => (Outcome::Refused, error.to_string()),
    }
}

fn denied(result: nix::Result<()>, passed: &str) -> Result {
    match result {
        Ok(()) => (Outcome::Passed, passed.to_owned()),
        Err(error) => (Outcome::Refused, error.to_string()),
    }
}

fn signal_supervisor(supervisor: u32) -> impl FnOnce() -> Result + Send {
    move || {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(supervisor).unwrap_or(1));
        denied(nix::sys::signal::kill(pid, None), "innkeeper itself can be signalled")
    }
}

/// /proc/self/status must show no capability, no_new_privs, a seccomp filter, and no foreign group.
fn leftover() -> Result {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| -> String {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or(":?");
        line.trim_start_matches(':').trim().to_owned()
    };
    let caps = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
    for cap in caps {
        if field(cap).chars().any(|digit| digit != '0') {
            return (Outcome::Passed, format!("{cap} is {}", field(cap)));
        }
    }
    if field("NoNewPrivs") != "1" || field("Seccomp") != "2" {
        return (Outcome::Passed, "no_new_privs or the seccomp filter is missing".to_owned());
    }
    let gid = nix::unistd::getgid().to_string();
    if field("Groups").split_whitespace().any(|group| group != gid) {
        return (Outcome::Passed, format!("supplementary groups {}", field("Groups")));
    }
    (Outcome::Refused, "nothing is left".to_owned())
}

/// Every operator request must be refused to the agent.
fn control() -> Vec<Trial<'static>> {
    // A name that exists nowhere (RFC 6761), should the request be granted.
    let rules = vec!["innkeeper-readiness.invalid".to_owned()];
    let requests = [
        ("reload", Request::Reload),
        ("rules", Request::Rules),
        ("allow", Request::Allow { rules: rules.clone(), for_s: Some(1), reason: None }),
        ("revoke", Request::Revoke { rules }),
        ("grant", Request::Grant { id: 0, for_s: Some(1) }),
        ("refuse", Request::Refuse { id: 0, reason: None }),
        ("lint", Request::Lint),
        ("suggest", Request::Suggest),
        ("log", Request::Log { after: 0, denied: false }),
    ];
    requests
        .into_iter()
        .map(|(name, request)| trial(format!("control-{name}"), "control", move || knock(&request)))
        .collect()
}

pub(crate) fn knock(request: &Request) -> Result {
    use crate::control::protocol::Response;
    if !Path::new(SOCKET).exists() {
        return (Outcome::Passed, "the control socket is missing: nobody decides there".to_owned());
    }
    match crate::control::client::ask(request) {
        Ok(Response::Refused { reason }) => (Outcome::Refused, reason),
        // It was not read: nothing was decided.
        Ok(Response::Later { reason }) => (Outcome::Impossible, reason),
        Ok(_) => (Outcome::Passed, "PID 1 did it".to_owned()),
        Err(error) => (Outcome::Passed, crate::report::chain(&error)),
    }
}

/// The resolver's own address, for the attack's plan.
#[must_use]
pub fn resolver() -> IpAddr {
    IpAddr::V4(crate::dns::keeper::LISTEN_V4)
}
