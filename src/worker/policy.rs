//! The policy in force, as PID 1 keeps it for the next worker and as it travels to one. (pure)

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::allowlist::{Allowlist, Ceiling, Origin, Rule, RuleError, parse_rule};
use crate::policy::remedy::Remedies;

/// The policy in force.
#[derive(Debug, Clone)]
pub struct Standing {
    pub generation: u64,
    pub allowlist: Allowlist,
    pub remedies: Remedies,
}

impl Standing {
    /// As text, which lives no longer than it takes to tell it.
    pub(crate) fn for_worker(&self) -> Policy {
        let rules = self.allowlist.rules().iter().map(ToString::to_string).collect();
        let Remedies { ceiling, requests } = &self.remedies;
        let bounds = || ceiling.rules().iter().map(ToString::to_string).collect();
        let ceiling = (!ceiling.is_unbounded()).then(bounds);
        Policy { generation: self.generation, rules, requests: *requests, ceiling }
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
    /// What no rule can go beyond, if the image bounds it. It decides nothing at a worker, but what a refused client is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceiling: Option<Vec<String>>,
}

impl Policy {
    /// The rules as they decide.
    pub fn allowlist(&self) -> Result<Allowlist, RuleError> {
        Ok(Allowlist::new(parsed(&self.rules)?))
    }

    /// What refused clients can do.
    pub fn remedies(&self) -> Result<Remedies, RuleError> {
        let bounds = self.ceiling.as_deref().map(parsed).transpose()?;
        let ceiling = bounds.map_or_else(Ceiling::unbounded, Ceiling::new);
        Ok(Remedies { ceiling, requests: self.requests })
    }
}

fn parsed(rules: &[String]) -> Result<Vec<Rule>, RuleError> {
    let name: Arc<str> = "policy".into();
    rules.iter().map(|text| parse_rule(text, Origin::Setting { name: name.clone() })).collect()
}
