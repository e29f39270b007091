//! Innkeeper: PID 1 of a box in which an untrusted coding agent works. One module per noun of the domain.

pub mod account;
pub mod addresses;
pub mod allowlist;
pub mod attribution;
pub mod audit;
pub mod boot;
pub mod channel;
pub mod cli;
pub mod config;
pub mod control;
pub mod dns;
pub mod filesystem;
pub mod firewall;
pub mod identity;
pub mod image_audit;
pub mod init;
pub mod innkeeper;
pub mod namespace;
pub mod readiness;
pub mod report;
pub mod secrets;
pub mod session;
pub mod socket_table;
pub mod status;
pub mod supervisor;
pub mod workspace;
