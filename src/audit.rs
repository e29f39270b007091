//! The audit log: every decision of the box, bounded in memory.

use serde::{Deserialize, Serialize};

/// Connections that the policy let out, to one address and port by one uid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// The allowlisted name through which the address is open.
    pub name: String,
    /// Others that share the address: which of them was meant is not known to a packet filter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    pub address: String,
    pub port: u16,
    pub uid: Option<u32>,
    /// RFC 3339.
    pub first: String,
    pub last: String,
    pub count: u64,
}
