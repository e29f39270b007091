//! The worker `innkeeper dns`: an allowlisting DNS server that asks PID 1 before it answers.

pub mod protocol;
