//! The network namespace: whether it is the box's alone, and what of others in it must be known.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::Lack;
use crate::namespace::Network;

pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Why this namespace must be left alone; or, where the operator gave that up, what he then lives with.
pub fn shared(network: &Network, machine: bool, accepted: bool) -> Result<Option<String>, Lack> {
    match network.shared(std::process::id() == 1, machine) {
        Some(why) if !network.initial && accepted => Ok(Some(why)),
        Some(why) if network.initial => {
            Err(Lack::new(why, "give the box a network of its own: leave out --network host"))
        }
        Some(why) => Err(Lack::new(
            why,
            "give the box a network of its own: leave out --network; to give this up: \
             INNKEEPER_BOOT_ACCEPT=shared-network",
        )),
        None => Ok(None),
    }
}

/// Two boxes in one network would put their rules in each other's place.
#[must_use]
pub fn occupied(how: impl std::fmt::Display) -> Lack {
    let what = "another box runs in this network (two containers with one network, two boxes in a pod)";
    Lack::new(format!("{what}: {how}"), "give each box a network of its own")
}

/// Who listened before us is closed to the agent, so it must be seen.
#[must_use]
pub fn unseen_listeners(error: impl std::fmt::Display) -> Lack {
    Lack::new(
        format!("cannot see who else listens in this network: {error}"),
        "let the runtime show /proc/net: leave out what masks /proc",
    )
}

/// No backend can hold the firewall; every one's reason is in `why`.
#[must_use]
pub fn no_filter(why: &str) -> Lack {
    // iptables asks the kernel by a raw socket: in the legacy variant always, in the other for ipset.
    if why.contains("ermission denied") || why.contains("not permitted") {
        let next =
            "add the capabilities that iptables asks for: docker run --cap-add NET_ADMIN --cap-add NET_RAW …";
        return Lack::new(format!("nothing here can hold the firewall: {why}"), next);
    }
    Lack::new(
        format!("nothing here can hold the firewall: {why}"),
        "load the missing module on the host, put iptables and ip6tables into the image, or use a kernel that has what \
         is missing; `innkeeper doctor` shows every part",
    )
}

/// Whether the file can be opened for writing, never through a link.
pub fn writable(path: &Path) -> std::io::Result<()> {
    OpenOptions::new().write(true).custom_flags(nix::libc::O_NOFOLLOW).open(path).map(drop)
}
