//! What the box needs of its host: looked at without changing anything. The boot refuses by it before it touches
//! anything, and `doctor` shows it, in the same words.

pub mod limits;
pub mod log_file;
pub mod network;
pub mod places;
pub mod privileges;
pub mod programs;
pub mod runtime;

use serde::{Deserialize, Serialize};

use crate::account::Accounts;
use crate::config::Config;
use crate::filesystem::seal::Writable;
use privileges::Privileges;

/// All that a boot of this configuration lacks here, as far as it can be seen before anything is touched.
#[must_use]
pub fn lacks(config: &Config, accounts: &Accounts) -> Vec<Lack> {
    let given = Privileges::look();
    let mut lacks: Vec<Lack> = given.lack().into_iter().collect();
    if !given.root {
        // Nothing else can be judged.
        return lacks;
    }
    lacks.extend(programs::lacks(config, &accounts.agent.home));
    let layout = places::layout(config, &accounts.agent);
    let log = config.log.file.as_deref();
    let writable = Writable::new(&layout, accounts.agent.owner()).keeping(log);
    lacks.extend(log.and_then(|path| log_file::lack(path, &layout, accounts.agent.owner())));
    lacks.extend(places::foreseen(&layout, &writable, !config.boot.accepts("rootfs"), &given));
    lacks
}

/// Something that a boot can't do without and does not find, and what the operator does about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    pub what: String,
    pub next: String,
}

impl Lack {
    pub fn new(what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { what: what.into(), next: next.into() }
    }
}

/// All that is missing as one, so that the operator mends everything in one go; `None` if nothing is.
#[must_use]
pub fn together(lacks: &[Lack]) -> Option<Lack> {
    let join = |of: fn(&Lack) -> &String, with: &str| {
        let mut parts: Vec<&str> = Vec::new();
        for lack in lacks {
            // The same remedy for several: said once.
            if !parts.contains(&of(lack).as_str()) {
                parts.push(of(lack));
            }
        }
        parts.join(with)
    };
    (!lacks.is_empty()).then(|| Lack::new(join(|lack| &lack.what, "; "), join(|lack| &lack.next, "; and ")))
}

#[cfg(test)]
mod tests {
    use super::{Lack, together};

    #[test]
    fn everything_that_is_missing_is_said_at_once_and_each_remedy_once() {
        assert_eq!(together(&[]), None);
        let lacks = [Lack::new("a", "x"), Lack::new("b", "x"), Lack::new("c", "y")];
        assert_eq!(together(&lacks), Some(Lack::new("a; b; c", "x; and y")));
    }
}
