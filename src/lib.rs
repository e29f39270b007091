//! Innkeeper: PID 1 of a box in which an untrusted coding agent works. One module per noun of the domain.

pub mod allowlist;
pub mod dns;
