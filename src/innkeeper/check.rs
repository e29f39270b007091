//! `innkeeper check`, the lint and the proposal, for what is in force in this box.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Innkeeper, lock};
use crate::addresses::{AddressClass, class};
use crate::allowlist::{Allowlist, DomainName, Rule, Verdict, Wire};
use crate::audit::{self, What};
use crate::config::Requests;
use crate::control::protocol::{Asker, Response};
use crate::policy::check::{Checked, Ground, Target, Told, explain};
use crate::policy::lint::{Finding, Seen, lint, summary};
use crate::policy::suggest::{Circumstances, suggest};
use crate::policy::{InForce, hosts};
use crate::report;

impl crate::gate::keeper::RuleBook for Innkeeper {
    fn rule_for(&self, name: &str, port: u16) -> Option<String> {
        Self::rule_for(self, name, port)
    }
}

impl Innkeeper {
    /// The rule by which a name is allowed on a port, for the audit log.
    #[must_use]
    pub fn rule_for(&self, name: &str, port: u16) -> Option<String> {
        let name = DomainName::parse(name).ok()?;
        let list = lock(&self.allowlist);
        let Verdict::Allowed(allowed) = list.verdict(&name) else { return None };
        let rule = allowed.rules.iter().find(|rule| rule.ports.contains(&port))?;
        Some(format!("{rule} ({})", rule.origin))
    }

    pub(super) fn check(&self, asker: Asker, what: &str) -> Response {
        match Target::parse(what) {
            Err(reason) => Response::Invalid { reason },
            Ok(Target::Name(name, port, wire)) => {
                Response::Verdict(Box::new(self.check_name(asker, &name, port, wire)))
            }
            Ok(Target::Address(address, port)) => {
                Response::Verdict(Box::new(self.check_address(address, port)))
            }
        }
    }

    fn check_name(&self, asker: Asker, name: &DomainName, port: u16, wire: Option<Wire>) -> Checked {
        let (ceiling, taken_back) = {
            let policy = lock(&self.policy);
            (policy.ceiling().clone(), policy.taken_back().cloned().collect::<Vec<Arc<Rule>>>())
        };
        let queue = self.config.network.requests == Requests::Queue;
        let told = if asker == Asker::Operator { Told::Everything } else { Told::AsAgent };
        let ground = Ground { ceiling: &ceiling, taken_back: &taken_back, queue, told };
        explain(&self.allowlist(), &ground, name, port, wire)
    }

    /// An address is open while an allowlisted name answers with it, and never by itself.
    fn check_address(&self, address: IpAddr, port: u16) -> Checked {
        let shown = SocketAddr::new(address, port);
        let open = self.firewall.get().map(|firewall| firewall.names_at(address)).unwrap_or_default();
        let open = open.iter().filter(|(_, ports)| ports.contains(&port));
        let names: Vec<String> = open.map(|(name, _)| name.to_string()).collect();
        let explanation = match class(address) {
            _ if !names.is_empty() => format!("{shown} is open now, as an address of {}", names.join(", ")),
            AddressClass::Never(range) => format!("{shown} is closed: {range}; nothing opens it"),
            AddressClass::Private(range) => {
                format!("{shown} is closed: {range}; only a name whose rule says `private` could open it")
            }
            AddressClass::Global => format!(
                "{shown} is closed: no allowlisted name answered with it; rules take names: innkeeper allow NAME"
            ),
        };
        Checked::plain(!names.is_empty(), address.to_string(), port, explanation)
    }

    /// Everything that can be said of the policy now.
    pub(super) fn lint(&self) -> Response {
        let mut seen = Seen::default();
        for entry in audit::page(0, false, usize::MAX).entries {
            if let What::Used(used) = entry.what {
                let names = std::iter::once(&used.name).chain(&used.also);
                seen.used.extend(names.filter_map(|name| Some((DomainName::parse(name).ok()?, used.port))));
            }
        }
        self.board().update(|report| {
            let failing = report.dns.failing.iter();
            seen.dead = failing.map(|failing| (failing.name.clone(), failing.cause.clone())).collect();
        });
        Response::Lint { findings: self.findings(Some(&seen)) }
    }

    fn findings(&self, seen: Option<&Seen>) -> Vec<Finding> {
        let entries: Vec<InForce> = lock(&self.policy).entries().collect();
        lint(&entries, &hosts::known(), seen)
    }

    /// What the rules say by themselves, in a line for each kind.
    pub fn lint_again(&self) {
        let lines = summary(&self.findings(None));
        let mut known = lock(&self.lint);
        for line in lines.iter().filter(|line| !known.contains(line)) {
            report::event("policy", line);
        }
        *known = lines;
    }

    pub(super) fn suggest(&self) -> Response {
        let (entries, taken_back) = {
            let policy = lock(&self.policy);
            (policy.entries().collect::<Vec<InForce>>(), policy.taken_back().cloned().collect::<Vec<_>>())
        };
        let lasting = entries.iter().filter(|entry| entry.until.is_none());
        let lasting = Allowlist::new(lasting.map(|entry| Arc::clone(&entry.rule)));
        let allowlist = Allowlist::new(entries.into_iter().map(|entry| entry.rule));
        let circumstances = Circumstances {
            allowlist: &allowlist,
            lasting: &lasting,
            taken_back: &taken_back,
            agent: self.accounts.agent.uid,
            since: self.since.clone(),
            until: report::now(),
            forgotten: audit::forgotten(),
        };
        let entries = audit::page(0, false, usize::MAX).entries;
        Response::Suggestion { suggestion: suggest(&entries, &circumstances) }
    }
}
