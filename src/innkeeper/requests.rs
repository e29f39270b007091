//! The agent's requests at the desk: taken, granted by the same way as `allow`, refused, and ended with the policy.

use std::time::SystemTime;

use super::policy_changes::{granted_for, with_end};
use super::{Innkeeper, lock};
use crate::allowlist::{DomainPattern, Origin, Rule};
use crate::audit::{self, RequestChange};
use crate::clock::boottime;
use crate::config::Requests;
use crate::control::protocol::{Asker, Response};
use crate::policy::Terms;
use crate::policy::check::Checked;
use crate::requests::{Found, judge, nothing_like, reason, remark, wanted};
use crate::status::report::AccessRequest;

fn tell(changes: Vec<RequestChange>) {
    changes.into_iter().for_each(audit::request);
}

impl Innkeeper {
    /// A wish. Nothing of it is resolved or opened; what can't be granted is answered at once.
    pub(super) fn ask(&self, asker: Asker, text: &str, why: &str) -> Response {
        let wish = wanted(text).and_then(|rule| Ok((rule, reason(why)?)));
        let (rule, why) = match wish {
            Ok(wish) => wish,
            Err(unfit) => return Response::Invalid { reason: unfit.to_string() },
        };
        let permitted = lock(&self.policy).ceiling().permits(&rule);
        // Held until the wish is in the book: a policy that changes after this looks into the book.
        let allowlist = lock(&self.allowlist);
        match judge(&rule, &allowlist) {
            Found::Allowed(by) => return already(&rule, &by),
            Found::Denied(by) => {
                let reason = format!("{rule} is {by}, which wins; only the operator can revoke that");
                return Response::Refused { reason };
            }
            Found::Missing => {}
        }
        if !permitted {
            let reason =
                format!("{rule} is beyond the ceiling of this image: nobody can grant it in this box");
            return Response::Refused { reason };
        }
        if self.config.network.requests == Requests::Deny {
            let reason = format!(
                "this box takes no requests (network.requests=deny); ask the operator in words, who can run: innkeeper allow {rule}"
            );
            return Response::Refused { reason };
        }
        let by = if asker == Asker::Operator { "operator" } else { "agent" };
        let asked = lock(&self.requests).ask(rule, why, by, boottime());
        drop(allowlist);
        match asked {
            Ok(asked) => {
                tell(asked.change.into_iter().collect());
                self.wish(asked.id)
            }
            Err(busy) => Response::Later { reason: busy.to_string() },
        }
    }

    pub(super) fn wish(&self, id: u64) -> Response {
        match lock(&self.requests).one(id, boottime(), SystemTime::now()) {
            Some(request) => Response::Request { request },
            None => Response::Invalid { reason: nothing_like(id) },
        }
    }

    pub(super) fn all_requests(&self) -> Vec<AccessRequest> {
        lock(&self.requests).shown(boottime(), SystemTime::now())
    }

    /// The operator's yes: the rule that was asked for and no other, as if the operator had typed it.
    pub(super) fn grant(&self, id: u64, for_s: Option<u64>) -> Response {
        let period = match granted_for(for_s) {
            Ok(period) => period,
            Err(reason) => return Response::Invalid { reason },
        };
        let Some((rule, why)) = lock(&self.requests).wish(id) else {
            return Response::Invalid { reason: nothing_like(id) };
        };
        let since = boottime();
        let why = Some(format!("the agent: {why}").into());
        let terms =
            Terms { origin: Origin::Request { id }, since, why, until: period.map(|period| since + period) };
        self.changed("operator", |policy| {
            policy.allow(&[rule.to_string()], terms).map(|said| with_end(said, period))
        })
    }

    pub(super) fn refuse(&self, id: u64, why: Option<&str>) -> Response {
        let refused = lock(&self.requests).refuse(id, &remark(why.unwrap_or_default()), boottime());
        match refused {
            Ok(change) => {
                tell(vec![change]);
                self.wish(id)
            }
            Err(reason) => Response::Invalid { reason },
        }
    }

    /// The policy is another: who waits for it may have an answer.
    pub(super) fn settle_requests(&self, by: &str) {
        let (policy, allowlist) = (lock(&self.policy).clone(), self.allowlist());
        let changes = lock(&self.requests).settle(&policy, &allowlist, by, boottime());
        tell(changes);
    }

    pub(super) fn expire_requests(&self) {
        let changes = lock(&self.requests).expire(boottime());
        tell(changes);
    }
}

fn already(rule: &Rule, by: &str) -> Response {
    let name = match &rule.pattern {
        DomainPattern::Exact(name) | DomainPattern::Below(name) => name.to_string(),
    };
    let port = rule.ports.first().copied().unwrap_or(crate::allowlist::DEFAULT_PORT);
    Response::Verdict(Box::new(Checked::plain(true, name, port, format!("{rule} is {by} already"))))
}
