//! The promise of the network: an address is open because an allowlisted name was just resolved to it, for the ports of its
//! rule, and nothing else is. By the ids of the catalogue of threats and faults, each as the agent and as root; what got
//! out is read in the world. docs/threats.md says which id is tested where.

#[cfg(test)]
#[path = "support/rig.rs"]
mod rig;

#[cfg(test)]
#[path = "box_network/closed.rs"]
mod closed;
#[cfg(test)]
#[path = "box_network/common.rs"]
mod common;
#[cfg(test)]
#[path = "box_network/denials.rs"]
mod denials;
#[cfg(test)]
#[path = "box_network/dns.rs"]
mod dns;
#[cfg(test)]
#[path = "box_network/hosts.rs"]
mod hosts;
#[cfg(test)]
#[path = "box_network/policy.rs"]
mod policy;
#[cfg(test)]
#[path = "box_network/upstreams.rs"]
mod upstreams;
