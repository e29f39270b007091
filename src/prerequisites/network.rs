//! The network namespace: whether it is the box's alone, and what of others in it must be known.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::Lack;
use crate::config::Backend;
use crate::firewall::detect;
use crate::firewall::ground::{Candidate, Offer};
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

/// How the kernel is to be programmed; with it, why IPv6 is left unfiltered, where nothing can filter it and the operator
/// gave that up.
pub fn filter(
    wanted: Backend,
    candidates: &[Candidate],
    ipv6_given_up: bool,
) -> Result<(Candidate, Option<String>), Lack> {
    let why = match detect::choose(wanted, candidates) {
        Ok(chosen) => return Ok((chosen, None)),
        Err(why) => why,
    };
    let without = |candidate: &Candidate| match &candidate.ipv6 {
        Offer::Unfit(why) => Candidate { ipv6: Offer::Absent(why.clone()), ..candidate.clone() },
        Offer::Whole | Offer::Closed(_) | Offer::Absent(_) => candidate.clone(),
    };
    let relaxed: Vec<Candidate> = candidates.iter().map(without).collect();
    let Lack { what, next } = no_filter(&why);
    match detect::choose(wanted, &relaxed) {
        Ok(chosen) if ipv6_given_up => {
            let lack = chosen.ipv6.lack().unwrap_or(&why).to_owned();
            Ok((chosen, Some(lack)))
        }
        Ok(_) => Err(Lack::new(
            what,
            format!(
                "{next}; or switch IPv6 off (--sysctl net.ipv6.conf.all.disable_ipv6=1); to give its filter up: \
                     INNKEEPER_BOOT_ACCEPT=egress-ipv6"
            ),
        )),
        Err(_) => Err(Lack::new(what, next)),
    }
}

/// No backend can hold the firewall; every one's reason is in `why`.
fn no_filter(why: &str) -> Lack {
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

/// Nothing redirects questions where the gate is a proxy, so programs must find the resolver themselves.
#[must_use]
pub fn resolver_unreachable() -> Lack {
    Lack::new(
        format!(
            "{RESOLV_CONF} does not name the box's resolver and can't be written, and where the gate is a proxy \
             (network.gate) nothing redirects questions there"
        ),
        "leave it writable, or start the box with --dns 127.0.0.53 and name upstreams (INNKEEPER_NETWORK_UPSTREAMS)",
    )
}

/// Whether the file can be opened for writing, never through a link.
pub fn writable(path: &Path) -> std::io::Result<()> {
    OpenOptions::new().write(true).custom_flags(nix::libc::O_NOFOLLOW).open(path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::filter;
    use crate::config::Backend;
    use crate::firewall::detect;
    use crate::firewall::ground::{Candidate, Offer};

    fn candidate(ipv4: Offer, ipv6: Offer) -> Candidate {
        Candidate { ipv4, ipv6, ..detect::plainest() }
    }

    #[test]
    fn f07_ipv6_is_unfiltered_only_where_nothing_can_filter_it_and_the_operator_gave_it_up() {
        let unfit = || Offer::Unfit("no ip6tables".to_owned());
        let half = [candidate(Offer::Whole, unfit())];
        let refused = filter(Backend::Auto, &half, false).unwrap_err();
        assert!(refused.what.contains("no ip6tables"), "{refused:?}");
        assert!(refused.next.contains("INNKEEPER_BOOT_ACCEPT=egress-ipv6"), "{refused:?}");
        let (chosen, why) = filter(Backend::Auto, &half, true).unwrap();
        assert_eq!(why.as_deref(), Some("no ip6tables"));
        assert!(chosen.ipv6.absent());
        // Where another way can, it is taken, whatever was given up.
        let other = [half[0].clone(), candidate(Offer::Whole, Offer::Closed("no NAT".to_owned()))];
        assert_eq!(filter(Backend::Auto, &other, true).unwrap(), (other[1].clone(), None));
        // IPv4 can't be given up.
        let nothing = [candidate(unfit(), Offer::Whole)];
        assert!(!filter(Backend::Auto, &nothing, true).unwrap_err().next.contains("BOOT_ACCEPT"));
    }
}
