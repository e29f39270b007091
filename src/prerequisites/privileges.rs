//! Root, capabilities, no_new_privs: what the process was given.

use caps::{CapSet, Capability};

use super::Lack;

/// What Innkeeper can't do without, and what for. All but the first are Docker's defaults.
pub const REQUIRED: &[(Capability, &str, &str)] = &[
    (Capability::CAP_NET_ADMIN, "NET_ADMIN", "to load the firewall"),
    (Capability::CAP_SETUID, "SETUID", "to start the agent and the workers as users of their own"),
    (Capability::CAP_SETGID, "SETGID", "to start the agent and the workers in groups of their own"),
    (Capability::CAP_SETPCAP, "SETPCAP", "to take every capability from the agent for good"),
    (Capability::CAP_KILL, "KILL", "to stop and to end the agent's processes"),
    (Capability::CAP_CHOWN, "CHOWN", "to give the agent its places"),
    (Capability::CAP_FOWNER, "FOWNER", "to set the modes of the agent's places"),
    (Capability::CAP_DAC_OVERRIDE, "DAC_OVERRIDE", "to look after places that belong to the agent"),
];

/// The resolver listens below the first port that everybody may have, where the namespace has such a border.
const BIND: (Capability, &str, &str) =
    (Capability::CAP_NET_BIND_SERVICE, "NET_BIND_SERVICE", "to listen on port 53 in this network");
const DNS_PORT: u32 = 53;
/// ip-sysctl: the first port that needs no capability.
const UNPRIVILEGED: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// What this process has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Privileges {
    pub root: bool,
    /// The names, without `CAP_`, of what is effective.
    pub effective: Vec<String>,
    /// The first port that needs no capability.
    pub unprivileged_port: u32,
    /// Set before us (`--security-opt no-new-privileges`): no file of the box gives anybody a right.
    pub no_new_privs: bool,
}

impl Privileges {
    #[must_use]
    pub fn look() -> Self {
        let effective = caps::read(None, CapSet::Effective).unwrap_or_default();
        let name = |capability: Capability| capability.to_string().trim_start_matches("CAP_").to_owned();
        let port = std::fs::read_to_string(UNPRIVILEGED).ok().and_then(|text| text.trim().parse().ok());
        Self {
            root: nix::unistd::geteuid().is_root(),
            effective: effective.into_iter().map(name).collect(),
            // The kernel's default.
            unprivileged_port: port.unwrap_or(1024),
            no_new_privs: rustix::thread::no_new_privs().unwrap_or(false),
        }
    }

    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.effective.iter().any(|have| have == name)
    }

    /// Whether mounts may be tried at all; AppArmor and seccomp may refuse them all the same.
    #[must_use]
    pub fn may_mount(&self) -> bool {
        self.has("SYS_ADMIN")
    }

    /// The capabilities that a boot needs here: name and what for.
    pub fn required(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let bind = (self.unprivileged_port > DNS_PORT).then_some(&BIND);
        REQUIRED.iter().chain(bind).map(|(_, name, purpose)| (*name, *purpose))
    }

    #[must_use]
    pub fn lack(&self) -> Option<Lack> {
        if !self.root {
            return Some(Lack::new(
                "innkeeper runs as another user than root, so it can protect nothing",
                "leave out --user (the agent is uid 1000 all the same)",
            ));
        }
        let missing: Vec<_> = self.required().filter(|(name, _)| !self.has(name)).collect();
        let list = |one: fn(&(&str, &str)) -> String, with: &str| {
            missing.iter().map(one).collect::<Vec<_>>().join(with)
        };
        let what = list(|(name, purpose)| format!("{name} ({purpose})"), ", ");
        let flags = list(|(name, _)| format!("--cap-add {name}"), " ");
        (!missing.is_empty())
            .then(|| Lack::new(format!("missing capabilities: {what}"), format!("docker run {flags} …")))
    }
}

#[cfg(test)]
mod tests {
    use super::{Privileges, REQUIRED};

    fn given(names: &[&str], port: u32) -> Privileges {
        let effective = names.iter().map(|name| (*name).to_owned()).collect();
        Privileges { root: true, effective, unprivileged_port: port, no_new_privs: false }
    }

    #[test]
    fn f08_each_missing_capability_is_named_with_its_purpose_and_its_flag() {
        let all: Vec<&str> = REQUIRED.iter().map(|(_, name, _)| *name).collect();
        assert_eq!(given(&all, 0).lack(), None);
        for (_, name, purpose) in REQUIRED {
            let rest: Vec<&str> = all.iter().copied().filter(|other| other != name).collect();
            let lack = given(&rest, 0).lack().unwrap();
            assert_eq!(lack.what, format!("missing capabilities: {name} ({purpose})"));
            assert_eq!(lack.next, format!("docker run --cap-add {name} …"));
        }
        let lack = given(&[], 0).lack().unwrap();
        assert!(REQUIRED.iter().all(|(_, name, _)| lack.next.contains(&format!("--cap-add {name} "))));
    }

    #[test]
    fn where_low_ports_need_a_capability_it_is_asked_for() {
        let all: Vec<&str> = REQUIRED.iter().map(|(_, name, _)| *name).collect();
        assert_eq!(given(&all, 53).lack(), None);
        assert!(given(&all, 1024).lack().unwrap().next.contains("--cap-add NET_BIND_SERVICE"));
    }

    #[test]
    fn another_user_than_root_is_told_to_leave_out_the_flag() {
        let nobody = Privileges { root: false, ..given(&[], 0) };
        assert!(nobody.lack().unwrap().next.contains("leave out --user"));
    }
}
