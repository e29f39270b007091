//! What of the report the agent is told. (pure)
//!
//! It learns what it needs to work: what is allowed and refused, how to ask for more, how full its places are, how its
//! session and repositories stand. It does not learn who looks on and when, where the box's weak points are (warnings,
//! what the self-attack tried, where secrets come from), whom the box asks for names, where the log is kept, or what
//! others than itself were refused. None of these is a lock: the agent may find some of them out by itself. They are
//! left out because nothing that it has to do needs them.

use super::report::{Audience, Audit, Denial, Report, Step, StepState};
use crate::requests;

/// The command that a denial proposes to the operator.
const ALLOW: &str = "innkeeper allow ";

/// The agent's own view of the box; `uid` is the agent's.
#[must_use]
pub fn for_agent(mut report: Report, uid: u32) -> Report {
    report.audience = Audience::Agent;
    report.operators.clear();
    report.warnings.clear();
    report.audit = Audit::default();
    report.dns.upstreams.clear();
    report.telemetry = None;
    for failing in &mut report.dns.failing {
        // A cause names the upstream that gave it.
        failing.cause = String::new();
    }
    for protection in &mut report.protections {
        protection.detail = String::new();
        protection.how = String::new();
    }
    // When it was saved is the agent's to know; what is wrong with the operator's volume is not.
    report.persist.trouble = None;
    hide_details(&mut report.boot.steps);
    for secret in &mut report.secrets {
        secret.source = String::new();
    }
    for rule in &mut report.policy.rules {
        rule.origin = origin(&rule.origin);
        rule.reason = None;
    }
    for request in &mut report.requests {
        request.detail = crate::report::bounded(&request.detail, MAX_ANSWER);
    }
    // Whose it was is not always known; what is known to be another's is not the agent's affair.
    report.denials.retain(|denial| denial.uid.is_none_or(|owner| owner == uid));
    for denial in &mut report.denials {
        denial.allow = proposal(denial);
    }
    report
}

/// Steps of the boot for who is no operator, wherever they are told: that a step goes on is known, what came of it is not.
pub fn hide_details(steps: &mut [Step]) {
    for step in steps.iter_mut().filter(|step| step.state != StepState::Running) {
        step.detail = String::new();
    }
}

/// The operator's answer to a request is meant for the agent; more than a line is not.
const MAX_ANSWER: usize = 200;

/// By whom a rule is there, without the paths of the host and of the image.
pub(crate) fn origin(origin: &str) -> String {
    let word = origin.split([':', ' ']).next().unwrap_or_default();
    if word.contains('/') { "file".to_owned() } else { word.to_owned() }
}

/// For a box that takes no requests (`network.requests=deny`), before [`for_agent`]: nothing is proposed but to tell the
/// operator.
pub fn takes_no_requests(report: &mut Report) {
    for denial in &mut report.denials {
        if denial.allow.contains(ALLOW) {
            denial.allow = operators(&denial.allow);
        }
    }
}

const OPERATORS: &str = "operator: ";

fn operators(command: &str) -> String {
    format!("{OPERATORS}{command}")
}

/// What the agent can ask for it asks for; the rest stays the operator's, and is said to be.
fn proposal(denial: &Denial) -> String {
    let allow = &denial.allow;
    match allow.split_once(ALLOW) {
        None => allow.clone(),
        Some(_) if allow.starts_with(OPERATORS) => allow.clone(),
        Some((before, rule)) if is_for_a_name(rule) || requests::wanted(rule).is_ok() => {
            format!("{before}{}", requests::proposal(rule))
        }
        Some(_) => operators(allow),
    }
}

/// Of an address nobody knows the name: whoever asks fills it in.
fn is_for_a_name(rule: &str) -> bool {
    rule.strip_prefix("NAME")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(':') && !rest.contains(' '))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{for_agent, takes_no_requests};
    use crate::status::Board;
    use crate::status::report::{
        AccessRequest, Audience, Audit, BoxIdentity, Denial, FailingName, Operator, PolicyRule, Protection,
        Report, RequestState, SecretHeld, Step, StepState, Upstream,
    };

    pub(crate) fn denial(what: &str, uid: Option<u32>) -> Denial {
        Denial {
            time: "2026-11-21T08:00:00.000Z".into(),
            layer: "dns".into(),
            what: what.into(),
            uid,
            process: Some("curl".into()),
            reason: "not in the allowlist".into(),
            count: 1,
            allow: format!("innkeeper allow {what}"),
        }
    }

    fn steps() -> Vec<Step> {
        let step = |name: &str, state, detail: &str| Step {
            name: name.into(),
            state,
            ms: Some(1.0),
            detail: detail.into(),
        };
        vec![
            step("upstreams", StepState::Ok, "hidden-resolvers"),
            step("self-attack", StepState::Degraded, "hidden-attempts"),
            step("clone", StepState::Failed, "hidden-cause-of-failure"),
        ]
    }

    /// A report with something of everything in it.
    pub(crate) fn full() -> Report {
        let board = Board::new(BoxIdentity { name: "box".into(), ..BoxIdentity::default() });
        let mut report = board.report(None);
        report.warnings = vec!["the agent can read the mounted secret hidden-secret".into()];
        report.protections = vec![Protection {
            name: "dns".into(),
            held: true,
            how: "hidden-how".into(),
            verified_at: crate::report::now(),
            detail: "hidden-detail".into(),
        }];
        report.boot.steps = steps();
        report.telemetry = Some("hidden-telemetry".into());
        report.operators = vec![Operator {
            id: 1,
            since: "2026-11-21T08:00:00.000Z".into(),
            place: "hidden-place".into(),
            read_only: false,
        }];
        report.dns.upstreams =
            vec![Upstream { address: "hidden-upstream".into(), healthy: true, note: None }];
        report.dns.failing = vec![FailingName { name: "shown.test".into(), cause: "hidden-cause".into() }];
        report.audit =
            Audit { file: Some("hidden-file".into()), head: Some("hidden-head".into()), ..Audit::default() };
        report.secrets = vec![SecretHeld {
            name: "GH_TOKEN".into(),
            source: "hidden-source".into(),
            held_by: "helper".into(),
            agent_can_read: true,
        }];
        let rule = |rule: &str, origin: &str| PolicyRule {
            judged_by: Vec::new(),
            rule: rule.into(),
            by: "agent".into(),
            origin: origin.into(),
            since: "2026-11-21T08:00:00.000Z".into(),
            reason: Some("hidden-reason".into()),
            expires_at: None,
        };
        report.policy.rules =
            vec![rule("shown.test", "/hidden/path/domains.conf:12"), rule("b.test", "operator")];
        report.denials = vec![
            denial("shown-denied.test", Some(1000)),
            denial("shown-unknown.test", None),
            denial("hidden-roots.test", Some(0)),
        ];
        report.requests = vec![AccessRequest {
            id: 3,
            rule: "shown-request.test".into(),
            reason: "wheels".into(),
            state: RequestState::Pending,
            time: "2026-11-21T08:00:00.000Z".into(),
            decided_at: None,
            until: None,
            detail: String::new(),
            count: 1,
        }];
        report
    }

    #[test]
    fn the_agent_is_told_what_it_needs_and_no_more() {
        let told = for_agent(full(), 1000);
        let text = serde_json::to_string(&told).unwrap();
        assert!(!text.contains("hidden"), "{text}");
        for shown in ["shown.test", "shown-denied.test", "shown-unknown.test", "shown-request.test"] {
            assert!(text.contains(shown), "{shown}: {text}");
        }
        assert_eq!(told.audience, Audience::Agent);
        assert_eq!(told.denials[0].allow, "innkeeper request shown-denied.test --reason WHY");
        assert!(!text.contains("innkeeper allow"), "{text}");
        let origins: Vec<&str> = told.policy.rules.iter().map(|rule| rule.origin.as_str()).collect();
        assert_eq!(origins, ["file", "operator"]);
    }

    #[test]
    fn the_agent_is_proposed_what_works_as_it_is_printed() {
        let told = |allow: &str, queue: bool| {
            let mut report = full();
            report.denials = vec![Denial { allow: allow.into(), ..denial("a.test", Some(1000)) }];
            if !queue {
                takes_no_requests(&mut report);
            }
            for_agent(report, 1000).denials.remove(0).allow
        };
        for (allow, proposed) in [
            ("innkeeper allow a.test:22", "innkeeper request a.test:22 --reason WHY"),
            (
                "allow a name, not an address: innkeeper allow NAME:22",
                "allow a name, not an address: innkeeper request NAME:22 --reason WHY",
            ),
            ("innkeeper allow 'a.test private'", "operator: innkeeper allow 'a.test private'"),
            (
                "innkeeper allow 'NAME private', for a name that has this address",
                "operator: innkeeper allow 'NAME private', for a name that has this address",
            ),
            ("innkeeper allow github.io", "operator: innkeeper allow github.io"),
            ("nothing opens this address", "nothing opens this address"),
            ("", ""),
        ] {
            assert_eq!(told(allow, true), proposed);
            assert!(!told(allow, false).contains("innkeeper request"), "{allow}");
        }
        assert_eq!(told("innkeeper allow a.test", false), "operator: innkeeper allow a.test");
        assert_eq!(told("use TCP", false), "use TCP");
    }

    /// A field that is added later is looked at by whoever adds it: here it is decided who is told.
    #[test]
    fn every_field_is_decided() {
        let known = "schema version phase box boot protections policy dns firewall gate denials workers session secrets \
                     repositories warnings requests operators resources traffic traffic_note audit audience persist telemetry";
        let serde_json::Value::Object(fields) = serde_json::to_value(full()).unwrap() else { panic!() };
        let mut found: Vec<&str> = fields.keys().map(String::as_str).collect();
        let mut known: Vec<&str> = known.split_whitespace().collect();
        found.sort_unstable();
        known.sort_unstable();
        assert_eq!(found, known, "decide in for_agent what the agent is told of a new field");
    }
}
