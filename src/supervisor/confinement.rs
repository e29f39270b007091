//! The agent's seccomp filter: what no build, test or editor needs and what attacks on a kernel begin with.
//!
//! It is a deny list on purpose: the agent runs arbitrary development tools, and an allow list of system calls
//! would break them at the next libc. Privilege is gone already (no capability, no_new_privs); this narrows the
//! kernel's surface and closes what no packet filter sees. i386 code is killed by the architecture check; the x32
//! numbers of the same calls are denied too, since they share the architecture of x86-64 (seccomp(2), NOTES).

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// What the operator gave back by `agent.allow`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Allowances {
    pub userns: bool,
    pub ptrace: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfinementError {
    #[error("the filter can't be compiled")]
    Compile(#[source] seccompiler::BackendError),
    #[error("the kernel refuses the filter")]
    Apply(#[source] seccompiler::Error),
    #[error("no filter for this architecture")]
    Architecture,
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Installs the filter for this process and all that it executes.
pub fn apply(allow: Allowances) -> Result<(), ConfinementError> {
    // clone3 hides its flags from seccomp; ENOSYS makes libc use clone, whose flags can be seen.
    if !allow.userns {
        let clone3 = Rules::from([(libc::SYS_clone3, Vec::new())]);
        install(clone3, libc::ENOSYS)?;
    }
    install(rules(allow)?, libc::EPERM)
}

fn install(rules: Rules, errno: i32) -> Result<(), ConfinementError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|_| ConfinementError::Architecture)?;
    let denied = SeccompAction::Errno(errno.unsigned_abs());
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, denied, arch).map_err(ConfinementError::Compile)?;
    let program: BpfProgram = filter.try_into().map_err(ConfinementError::Compile)?;
    seccompiler::apply_filter(&program).map_err(ConfinementError::Apply)
}

/// Denied with any arguments.
const ALWAYS: &[i64] = &[
    // Asynchronous system calls that no filter sees, and a rich source of kernel bugs.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // The kernel keyring is not namespaced.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Kernel programs, tracing, page-fault control: attack surface.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    // Files by handle, past every mount.
    libc::SYS_open_by_handle_at,
    // The machine's, not the box's.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
];

/// Needed by whoever builds sandboxes of its own, and useless without capabilities otherwise.
const NAMESPACES: &[i64] = &[
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
];

const TRACING: &[i64] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
];

const NEW_NAMESPACE: &[i32] = &[
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWCGROUP,
];

/// CLONE_NEWTIME shares its bit with clone's exit signal, so it can be checked in unshare only (clone(2)).
const CLONE_NEWTIME: u64 = 0x80;

fn rules(allow: Allowances) -> Result<Rules, ConfinementError> {
    let mut rules = Rules::new();
    for call in ALWAYS {
        rules.insert(*call, Vec::new());
    }
    rules.insert(libc::SYS_socket, socket_rules()?);
    rules.insert(libc::SYS_ioctl, terminal_rules()?);
    rules.insert(libc::SYS_setsockopt, multicast_rules()?);
    if !allow.userns {
        for call in NAMESPACES {
            rules.insert(*call, Vec::new());
        }
        let mut unshare = namespace_rules()?;
        unshare.push(rule(vec![masked(0, CLONE_NEWTIME)?])?);
        rules.insert(libc::SYS_unshare, unshare);
        rules.insert(libc::SYS_clone, namespace_rules()?);
    }
    if !allow.ptrace {
        for call in TRACING {
            rules.insert(*call, Vec::new());
        }
    }
    add_x32(&mut rules);
    Ok(rules)
}

/// Every family but the local, IP and routing ones: AF_VSOCK leaves the machine unseen by any packet filter, AF_ALG
/// and AF_PACKET are attack surface. Of netlink only routing and socket diagnosis: netfilter's is the firewall's.
fn socket_rules() -> Result<Vec<SeccompRule>, ConfinementError> {
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    let mut other_family = Vec::new();
    for family in families {
        other_family.push(differs(0, family)?);
    }
    let mut other_netlink = vec![equals(0, libc::AF_NETLINK)?];
    for protocol in [libc::NETLINK_ROUTE, libc::NETLINK_SOCK_DIAG] {
        other_netlink.push(differs(2, protocol)?);
    }
    Ok(vec![rule(other_family)?, rule(other_netlink)?])
}

/// Joining IPv6 multicast groups: the reports (MLD) that the kernel then sends must pass the firewall, and a group's
/// address has 112 bits to choose. IPv4's reports (IGMP) are refused there.
fn multicast_rules() -> Result<Vec<SeccompRule>, ConfinementError> {
    let mut rules = Vec::new();
    for option in [libc::IPV6_ADD_MEMBERSHIP, MCAST_JOIN_GROUP, MCAST_JOIN_SOURCE_GROUP] {
        rules.push(rule(vec![equals(1, libc::IPPROTO_IPV6)?, equals(2, option)?])?);
    }
    Ok(rules)
}

/// linux/in.h; also of IPv6 (RFC 3678).
const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_JOIN_SOURCE_GROUP: i32 = 46;

/// Typing into a terminal (TIOCSTI) and pasting on a console (TIOCLINUX): ioctl_tty(2).
fn terminal_rules() -> Result<Vec<SeccompRule>, ConfinementError> {
    let mut rules = Vec::new();
    for request in [TIOCSTI, TIOCLINUX] {
        rules.push(rule(vec![equals(1, request)?])?);
    }
    Ok(rules)
}

const TIOCSTI: i32 = 0x5412;
const TIOCLINUX: i32 = 0x541c;

fn namespace_rules() -> Result<Vec<SeccompRule>, ConfinementError> {
    NEW_NAMESPACE.iter().map(|flag| rule(vec![masked(0, u64::from(flag.unsigned_abs()))?])).collect()
}

#[cfg(target_arch = "x86_64")]
fn add_x32(rules: &mut Rules) {
    /// __X32_SYSCALL_BIT.
    const X32: i64 = 0x4000_0000;
    // The calls that have a number of their own in x32 (arch/x86/entry/syscalls/syscall_64.tbl).
    let renumbered = [
        (libc::SYS_ioctl, 514),
        (libc::SYS_ptrace, 521),
        (libc::SYS_setsockopt, 541),
        (libc::SYS_kexec_load, 528),
        (libc::SYS_process_vm_readv, 539),
        (libc::SYS_process_vm_writev, 540),
    ];
    let native: Vec<(i64, Vec<SeccompRule>)> = rules.iter().map(|(nr, rule)| (*nr, rule.clone())).collect();
    for (number, rule) in native {
        let special = renumbered.iter().find(|(call, _)| *call == number).map_or(number, |(_, x32)| *x32);
        rules.insert(X32 | special, rule);
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn add_x32(_rules: &mut Rules) {}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, ConfinementError> {
    SeccompRule::new(conditions).map_err(ConfinementError::Compile)
}

fn equals(argument: u8, value: i32) -> Result<SeccompCondition, ConfinementError> {
    condition(argument, SeccompCmpOp::Eq, u64::from(value.unsigned_abs()))
}

fn differs(argument: u8, value: i32) -> Result<SeccompCondition, ConfinementError> {
    condition(argument, SeccompCmpOp::Ne, u64::from(value.unsigned_abs()))
}

fn masked(argument: u8, bit: u64) -> Result<SeccompCondition, ConfinementError> {
    condition(argument, SeccompCmpOp::MaskedEq(bit), bit)
}

/// The kernel takes these arguments as 32 bits: the upper half may hold anything.
fn condition(argument: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompCondition, ConfinementError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, op, value).map_err(ConfinementError::Compile)
}
