//! The box's users, from the image's passwd: root's file, read before any agent exists.

use nix::unistd::User;

use crate::filesystem::layout::Owner;

/// The agent's user in the image.
pub const AGENT: &str = "claude";
/// The user of the worker `dns`.
pub const DNS: &str = "innkeeper-dns";
/// The user of the worker `gate`.
pub const GATE: &str = "innkeeper-gate";
/// The user of the worker `watch`.
pub const WATCH: &str = "innkeeper-watch";

/// The user that tells the operator of notices.
pub const NOTIFY: &str = "innkeeper-notify";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: String,
}

#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error("cannot read /etc/passwd")]
    Read(#[source] nix::errno::Errno),
    #[error("the image has no user {0}")]
    Missing(&'static str),
    #[error("the user {0} of the image is root")]
    Root(&'static str),
    #[error("the users {0} and {1} of the image share a uid")]
    Shared(&'static str, &'static str),
}

impl Account {
    fn find(name: &'static str) -> Result<Self, AccountError> {
        let user = User::from_name(name).map_err(AccountError::Read)?.ok_or(AccountError::Missing(name))?;
        if user.uid.is_root() || user.gid.as_raw() == 0 {
            return Err(AccountError::Root(name));
        }
        let home = user.dir.display().to_string();
        Ok(Self { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw(), home })
    }

    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner { uid: self.uid, gid: self.gid }
    }
}

/// Everybody who runs something in the box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accounts {
    pub agent: Account,
    pub dns: Account,
    pub gate: Account,
    pub watch: Account,
    /// Needed by `notices` alone: an image may lack it.
    pub notify: Option<Account>,
}

impl Accounts {
    /// Finds them, and that none of them is root or another one.
    pub fn find() -> Result<Self, AccountError> {
        let (agent, dns) = (Account::find(AGENT)?, Account::find(DNS)?);
        let (gate, watch) = (Account::find(GATE)?, Account::find(WATCH)?);
        let notify = match Account::find(NOTIFY) {
            Ok(account) => Some(account),
            Err(AccountError::Missing(_)) => None,
            Err(error) => return Err(error),
        };
        let mut all = vec![(AGENT, agent.uid), (DNS, dns.uid), (GATE, gate.uid), (WATCH, watch.uid)];
        all.extend(notify.as_ref().map(|account| (NOTIFY, account.uid)));
        while let Some((name, uid)) = all.pop() {
            if let Some((other, _)) = all.iter().find(|(_, taken)| *taken == uid) {
                return Err(AccountError::Shared(other, name));
            }
        }
        Ok(Self { agent, dns, gate, watch, notify })
    }

    /// Every uid that belongs to the box's inner life: what ends with it.
    #[must_use]
    pub fn uids(&self) -> Vec<u32> {
        let all =
            [Some(&self.agent), Some(&self.dns), Some(&self.gate), Some(&self.watch), self.notify.as_ref()];
        all.into_iter().flatten().map(|account| account.uid).collect()
    }
}
