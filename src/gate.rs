//! The egress gate: the name in a connection decides.

pub mod body;
mod head;
pub mod hello;
pub mod http;
mod octets;
pub mod refusal;
pub mod request;
pub mod response;
