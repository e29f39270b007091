//! What one embedded box is made of, decided before anything is changed: the keeper works it out, the first process of
//! the box carries it out. (pure)

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::filesystem::layout::{Owner, Sizes};

/// Ids of the box's users, as in the image: the box has a user namespace, so they are nobody else's.
pub const AGENT: Owner = Owner { uid: 1000, gid: 1000 };
/// Home of the agent.
pub const HOME: &str = "/home/claude";
/// How many ids a box has: 0 to 65535, as POSIX programs expect.
pub const IDS: u32 = 1 << 16;

/// The box's end of the link to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    pub host: Ipv4Addr,
    pub guest: Ipv4Addr,
    pub v6: Option<Link6>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link6 {
    pub host: Ipv6Addr,
    pub guest: Ipv6Addr,
}

/// Two addresses and the two that no host has (RFC 950).
pub const PREFIX4: u8 = 30;
pub const PREFIX6: u8 = 64;
/// What the box calls its end.
pub const INTERFACE: &str = "eth0";

/// Bytes of the agent's places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    pub workspace: u64,
    pub tmp: u64,
    pub home: u64,
}

impl From<Sizes> for Room {
    fn from(sizes: Sizes) -> Self {
        Self { workspace: sizes.workspace, tmp: sizes.tmp, home: sizes.home }
    }
}

impl From<Room> for Sizes {
    fn from(room: Room) -> Self {
        Self { workspace: room.workspace, tmp: room.tmp, home: room.home }
    }
}

/// A file of the box's that the operator gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    pub path: String,
    pub text: String,
}

/// The whole plan. It travels in memory only: it holds the credentials.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub name: String,
    /// Where the new root is put together, in a mount namespace that ends with the box.
    pub stage: PathBuf,
    /// The host's id of the box's uid 0.
    pub base: u32,
    pub link: Link,
    pub upstreams: Vec<IpAddr>,
    pub room: Room,
    /// A directory with a tmux of its own, or the host's `/usr/bin/tmux`.
    pub tmux: Option<PathBuf>,
    pub claude: Option<PathBuf>,
    pub files: Vec<Given>,
    pub environment: Vec<(String, String)>,
}

/// Names of variables only: any value may be a secret.
impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&String> = self.environment.iter().map(|(name, _)| name).collect();
        f.debug_struct("Plan").field("name", &self.name).field("environment", &names).finish_non_exhaustive()
    }
}
