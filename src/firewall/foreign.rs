//! Rules of others in this namespace: Docker's, a service mesh's, an administrator's. They are never touched; what
//! could break allowed work or take packets away from us is reported.
//!
//! Runs in a child of its own (`innkeeper foreign-rules`), since the crate `iptables` waits for the programs that it
//! starts, which nobody in PID 1 may do beside the reaper.

use serde::{Deserialize, Serialize};

use super::iptables::PREFIX;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    /// `nf_tables` or `legacy`: what the image's iptables speaks.
    pub variant: Option<String>,
    /// Rules on the way out that refuse, drop or redirect.
    pub conflicts: Vec<String>,
}

/// Chains on the way of a packet of the box, by table.
const CHAINS: &[(&str, &str)] =
    &[("filter", "OUTPUT"), ("filter", "INPUT"), ("nat", "OUTPUT"), ("mangle", "OUTPUT")];
/// Enough to see what it is about.
const MAX_CONFLICTS: usize = 8;

/// Looks by the image's iptables, IPv4 and IPv6. A kernel or image without it has no such rules to see.
#[must_use]
pub fn look() -> Foreign {
    let mut foreign = Foreign::default();
    for (ipv6, family) in [(false, "iptables"), (true, "ip6tables")] {
        let Ok(tables) = iptables::new(ipv6) else { continue };
        foreign.variant = Some(if legacy() { "legacy" } else { "nf_tables" }.to_owned());
        for (table, chain) in CHAINS {
            for rule in tables.list(table, chain).unwrap_or_default() {
                if conflicts(&rule) && foreign.conflicts.len() < MAX_CONFLICTS {
                    foreign.conflicts.push(format!("{family} -t {table} {rule}"));
                }
            }
        }
    }
    foreign
}

/// The legacy variant lists its tables here once it was used in this namespace.
fn legacy() -> bool {
    std::fs::read_to_string("/proc/net/ip_tables_names").is_ok_and(|names| !names.trim().is_empty())
}

/// Whether a rule, or a chain's policy, may stop or redirect what our own rules allow. Docker's jump to its resolver
/// is expected: we run before it.
fn conflicts(rule: &str) -> bool {
    let words: Vec<&str> = rule.split_whitespace().collect();
    let target = words.iter().position(|word| *word == "-j").and_then(|at| words.get(at + 1));
    match (words.first(), target) {
        (Some(&"-P"), _) => words.last() == Some(&"DROP"),
        (_, Some(&("DROP" | "REJECT" | "REDIRECT" | "DNAT" | "TPROXY"))) => true,
        (_, Some(other)) => {
            !other.starts_with(PREFIX)
                && !matches!(*other, "ACCEPT" | "RETURN" | "LOG" | "NFLOG" | "MARK" | "DOCKER_OUTPUT")
        }
        (_, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::conflicts;

    #[test]
    fn f27_what_may_break_allowed_work_is_reported_and_dockers_resolver_is_not() {
        assert!(!conflicts("-P OUTPUT ACCEPT"));
        assert!(conflicts("-P OUTPUT DROP"));
        assert!(!conflicts("-A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT"));
        assert!(conflicts("-A OUTPUT -p tcp -j REDIRECT --to-ports 15001"));
        assert!(conflicts("-A OUTPUT -j ISTIO_OUTPUT"));
        assert!(!conflicts("-A OUTPUT -j ACCEPT"));
        assert!(!conflicts("-A OUTPUT -j INNKEEPER-OUTPUT"), "our own");
    }
}
