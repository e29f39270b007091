//! The embedded engine on a host without any other: boxes of namespaces and read-only binds, their way out, what of the
//! host can't be reached from them, and that nothing is left of them.

#[cfg(test)]
#[path = "support/bare_host.rs"]
mod bare_host;
#[cfg(test)]
#[path = "support/rig.rs"]
mod rig;

#[cfg(test)]
#[path = "host_engine/isolation.rs"]
mod isolation;
#[cfg(test)]
#[path = "host_engine/life.rs"]
mod life;
#[cfg(test)]
#[path = "host_engine/unfit.rs"]
mod unfit;
