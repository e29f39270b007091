//! The policy in force, as PID 1 keeps it for the next worker and as it travels to one. (pure)

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::allowlist::{Allowlist, Origin, RuleError, parse_rule};

/// The policy in force.
#[derive(Debug, Clone)]
pub struct Standing {
    pub generation: u64,
    pub allowlist: Allowlist,
    /// Whether the agent can ask for what is refused.
    pub requests: bool,
}

impl Standing {
    /// As text, which lives no longer than it takes to tell it.
    pub(crate) fn for_worker(&self) -> Policy {
        let rules = self.allowlist.rules().iter().map(ToString::to_string).collect();
        Policy { generation: self.generation, rules, requests: self.requests }
    }
}

/// The rules, as text in the grammar of `network/domains.conf` without origins, and their generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub generation: u64,
    pub rules: Vec<String>,
    /// Whether the agent can ask for what is refused (`network.requests`).
    #[serde(default)]
    pub requests: bool,
}

impl Policy {
    /// The rules as they decide.
    pub fn allowlist(&self) -> Result<Allowlist, RuleError> {
        let name: Arc<str> = "policy".into();
        let origin = || Origin::Setting { name: name.clone() };
        let rules =
            self.rules.iter().map(|text| parse_rule(text, origin())).collect::<Result<Vec<_>, _>>()?;
        Ok(Allowlist::new(rules))
    }
}
