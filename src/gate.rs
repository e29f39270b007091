//! The egress gate: the name in a connection decides.

pub mod hello;
pub mod http;
mod octets;
pub mod refusal;
