//! The control socket: PID 1's one door for commands. Who knocks is decided anew for every request by SO_PEERCRED.

pub mod client;
pub mod protocol;
pub mod server;
