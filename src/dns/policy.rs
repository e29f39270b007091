//! What becomes of a question: answered here, resolved upstream, or refused and why. (pure)
//!
//! The decision sees the question's name, type, class and opcode and nothing else of the client's packet, and what
//! goes upstream is rebuilt from [`DomainName`], which is lower case.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_server::proto::op::{OpCode, ResponseCode};
use hickory_server::proto::rr::{DNSClass, Name, RecordType};

use super::answer::Family;
use crate::allowlist::{Allowlist, Denied, DomainName};
use crate::policy::remedy::Remedies;

/// RFC 8914: the operator's own policy.
pub const EDE_BLOCKED: u16 = 15;

/// A client's question, as it was parsed.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    pub opcode: OpCode,
    /// How many questions the message has.
    pub questions: usize,
    /// The first of them; none if there is none.
    pub question: Option<Question<'a>>,
}

#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    pub name: &'a Name,
    pub kind: RecordType,
    pub class: DNSClass,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision<'a> {
    Answer(Local),
    Resolve { name: DomainName, family: Family },
    Refuse(Why<'a>),
}

/// An answer that needs nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Local {
    /// RFC 6761 §6.3.
    Localhost(IpAddr),
    /// An address that leads to the gate: it is sent there on its way out, and nothing else leaves for it.
    Gate,
    /// The name may be used, but has no such record for the box.
    Empty,
}

/// Why a question is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why<'a> {
    /// RFC 1035: only QUERY is implemented.
    OpCode,
    /// RFC 9619: exactly one question.
    QuestionCount,
    /// Another class than IN.
    Class,
    /// The root, or a reverse look-up: no agent needs it, and programs ask without being told to. Not worth a denial.
    Unserved,
    /// The policy says no. `what` is the name in inert ASCII.
    Denied { what: Arc<str>, cause: Cause<'a> },
}

/// Why the policy says no. Text is made of it only for whom it is told to: a flood of refused names is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause<'a> {
    NotAHostName,
    Policy(Denied<'a>),
}

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAHostName => f.write_str("not a host name"),
            Self::Policy(denied) => denied.fmt(f),
        }
    }
}

/// A longer name is not said twice: the text would be too long to be told ([`super::reply`]).
const TWICE: usize = 64;

impl Why<'_> {
    #[must_use]
    pub fn response_code(&self) -> ResponseCode {
        match self {
            Self::OpCode => ResponseCode::NotImp,
            Self::QuestionCount => ResponseCode::FormErr,
            Self::Class => ResponseCode::Refused,
            Self::Unserved | Self::Denied { .. } => ResponseCode::NXDomain,
        }
    }

    /// The text of the Extended DNS Error (RFC 8914), where there is one to tell, and what can be done.
    #[must_use]
    pub fn explanation(&self, remedies: &Remedies) -> Option<String> {
        let Self::Denied { what, cause } = self else { return None };
        Some(match cause {
            Cause::Policy(Denied::NotListed) => {
                if !remedies.ceiling.is_unbounded() {
                    return Some(match remedies.open(what) {
                        Some(next) => format!("{what} is not in the allowlist; {next}"),
                        None => {
                            format!("{what} is not in the allowlist, and beyond the ceiling of this image")
                        }
                    });
                }
                // One text of a known size: nearly every refusal is this one.
                let named = if what.len() > TWICE { "NAME" } else { what };
                if remedies.requests {
                    let command = crate::requests::proposal(named);
                    return Some(format!("{what} is not in the allowlist; ask for it: {command}"));
                }
                let mut text = String::with_capacity(2 * what.len() + 64);
                let parts = [what, " is not in the allowlist; operator: innkeeper allow ", named];
                parts.iter().for_each(|part| text.push_str(part));
                text
            }
            Cause::Policy(Denied::DenyRule(rule)) => {
                format!("{what} is {cause}; operator: innkeeper revoke {rule}")
            }
            Cause::Policy(Denied::OtherSubject(_)) | Cause::NotAHostName => format!("{what} is {cause}"),
        })
    }
}

/// The whole decision. `ipv6`: whether the box can reach IPv6 at all.
#[must_use]
pub fn decide<'a>(query: Query<'_>, allowlist: &'a Allowlist, ipv6: bool) -> Decision<'a> {
    if query.opcode != OpCode::Query {
        return Decision::Refuse(Why::OpCode);
    }
    let question = match query.question {
        Some(question) if query.questions == 1 => question,
        Some(_) | None => return Decision::Refuse(Why::QuestionCount),
    };
    if question.class != DNSClass::IN {
        return Decision::Refuse(Why::Class);
    }
    if is_unserved(question.name) {
        return Decision::Refuse(Why::Unserved);
    }
    let Some(name) = domain_name(question.name) else {
        let what = question.name.to_ascii().trim_end_matches('.').into();
        return Decision::Refuse(Why::Denied { what, cause: Cause::NotAHostName });
    };
    if name.as_str() == "localhost" || name.as_str().ends_with(".localhost") {
        return Decision::Answer(localhost(question.kind));
    }
    if let Some(denied) = allowlist.denial(&name) {
        return Decision::Refuse(Why::Denied { what: name.into(), cause: Cause::Policy(denied) });
    }
    match family_of(question.kind) {
        Some(Family::V6) if !ipv6 => Decision::Answer(Local::Empty),
        Some(family) => Decision::Resolve { name, family },
        None => Decision::Answer(Local::Empty),
    }
}

/// Only addresses go upstream. HTTPS and SVCB stay here too, so that no ECH key ever reaches the box.
fn family_of(kind: RecordType) -> Option<Family> {
    if kind == RecordType::A {
        Some(Family::V4)
    } else if kind == RecordType::AAAA {
        Some(Family::V6)
    } else {
        None
    }
}

fn localhost(kind: RecordType) -> Local {
    match family_of(kind) {
        Some(Family::V4) => Local::Localhost(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        Some(Family::V6) => Local::Localhost(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        None => Local::Empty,
    }
}

/// Label by label, since a label may hold any octet: a dot inside one must not become a border between two.
fn domain_name(name: &Name) -> Option<DomainName> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        if !label.iter().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_')) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|octet| char::from(octet.to_ascii_lowercase())));
    }
    DomainName::parse(&text).ok()
}

fn is_unserved(name: &Name) -> bool {
    let mut labels = name.iter().rev();
    match labels.next() {
        None => true,
        Some(top) if top.eq_ignore_ascii_case(b"arpa") => {
            let reverse: [&[u8]; 3] = [b"in-addr", b"ip6", b"resolver"];
            labels.next().is_some_and(|label| reverse.iter().any(|known| label.eq_ignore_ascii_case(known)))
        }
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allowlist::Ceiling;
    use crate::allowlist::{Origin, parse_rules};

    fn allowlist() -> Allowlist {
        let text = "ok.test\n*.wild.test\n!bad.wild.test\nkeys.test by=broker";
        let (rules, problems) =
            parse_rules(text, |line| Origin::Setting { name: format!("test:{line}").into() });
        assert!(problems.is_empty());
        Allowlist::new(rules)
    }

    fn ask(name: &Name, kind: RecordType) -> Decision<'static> {
        let question = Question { name, kind, class: DNSClass::IN };
        let query = Query { opcode: OpCode::Query, questions: 1, question: Some(question) };
        decide(query, Box::leak(Box::new(allowlist())), true)
    }

    fn ask_a(name: &str) -> Decision<'static> {
        ask(&Name::from_ascii(name).unwrap(), RecordType::A)
    }

    fn resolves(name: &str) -> Decision<'static> {
        Decision::Resolve { name: DomainName::parse(name).unwrap(), family: Family::V4 }
    }

    fn is_denied(decision: &Decision<'_>) -> bool {
        matches!(decision, Decision::Refuse(Why::Denied { .. }))
    }

    #[test]
    fn listed_names_resolve_in_any_case() {
        assert_eq!(ask_a("ok.test."), resolves("ok.test"));
        assert_eq!(ask_a("oK.TEsT."), resolves("ok.test"));
        assert_eq!(ask_a("a.b.wild.test."), resolves("a.b.wild.test"));
    }

    #[test]
    fn neighbours_are_denied() {
        for name in
            ["notok.test.", "ok.test.evil.test.", "x.ok.test.", "wild.test.", "test.", "bad.wild.test."]
        {
            assert!(is_denied(&ask_a(name)), "{name}");
        }
        assert!(is_denied(&ask_a("keys.test.")));
        assert!(is_denied(&ask_a("10.0.0.1.")));
    }

    #[test]
    fn a_dot_inside_a_label_is_no_border() {
        let hidden = Name::from_labels([b"ok.test".as_slice()]).unwrap();
        assert!(is_denied(&ask(&hidden, RecordType::A)));
        let below = Name::from_labels([b"x.wild".as_slice(), b"test"]).unwrap();
        assert!(is_denied(&ask(&below, RecordType::A)));
        let binary = Name::from_labels([b"\0\x1b[2J".as_slice(), b"wild", b"test"]).unwrap();
        let Decision::Refuse(Why::Denied { what, .. }) = ask(&binary, RecordType::A) else {
            panic!("not denied")
        };
        assert!(what.chars().all(|c| c.is_ascii_graphic()), "{what}");
    }

    #[test]
    fn only_addresses_go_upstream() {
        let name = Name::from_ascii("ok.test.").unwrap();
        for kind in [16, 10, 255, 2, 15, 33, 5, 64, 65, 65280, 252, 251, 0] {
            assert_eq!(ask(&name, RecordType::from(kind)), Decision::Answer(Local::Empty), "type {kind}");
        }
        let evil = Name::from_ascii("evil.test.").unwrap();
        assert!(is_denied(&ask(&evil, RecordType::TXT)));
    }

    #[test]
    fn aaaa_is_empty_without_ipv6() {
        let name = Name::from_ascii("ok.test.").unwrap();
        let question = Question { name: &name, kind: RecordType::AAAA, class: DNSClass::IN };
        let query = Query { opcode: OpCode::Query, questions: 1, question: Some(question) };
        let allowlist = allowlist();
        assert_eq!(decide(query, &allowlist, false), Decision::Answer(Local::Empty));
        assert!(matches!(decide(query, &allowlist, true), Decision::Resolve { family: Family::V6, .. }));
    }

    #[test]
    fn other_opcodes_classes_and_counts_are_refused() {
        let name = Name::from_ascii("ok.test.").unwrap();
        let question = Question { name: &name, kind: RecordType::A, class: DNSClass::IN };
        let allowlist = allowlist();
        let decided =
            |opcode, questions, question| decide(Query { opcode, questions, question }, &allowlist, true);
        for opcode in [OpCode::Status, OpCode::Notify, OpCode::Update] {
            assert_eq!(decided(opcode, 1, Some(question)), Decision::Refuse(Why::OpCode));
        }
        assert_eq!(decided(OpCode::Query, 0, None), Decision::Refuse(Why::QuestionCount));
        assert_eq!(decided(OpCode::Query, 2, Some(question)), Decision::Refuse(Why::QuestionCount));
        let chaos = Question { class: DNSClass::CH, ..question };
        assert_eq!(decided(OpCode::Query, 1, Some(chaos)), Decision::Refuse(Why::Class));
    }

    #[test]
    fn localhost_and_reverse_lookups_stay_here() {
        assert_eq!(ask_a("LOCALHOST."), Decision::Answer(Local::Localhost(IpAddr::V4(Ipv4Addr::LOCALHOST))));
        assert!(matches!(ask_a("x.localhost."), Decision::Answer(Local::Localhost(_))));
        for name in ["1.0.0.127.in-addr.arpa.", "1.ip6.ARPA.", "_dns.resolver.arpa.", "."] {
            assert_eq!(ask_a(name), Decision::Refuse(Why::Unserved), "{name}");
        }
        assert!(is_denied(&ask_a("evil.arpa.")));
    }

    #[test]
    fn a_denial_says_what_would_change_it() {
        let Decision::Refuse(why) = ask_a("Evil.example.") else { panic!("not refused") };
        let text = "evil.example is not in the allowlist; operator: innkeeper allow evil.example";
        let told = Remedies::default();
        assert_eq!(why.explanation(&told).as_deref(), Some(text));
        let text =
            "evil.example is not in the allowlist; ask for it: innkeeper request evil.example --reason WHY";
        let asks = Remedies { requests: true, ..Remedies::default() };
        assert_eq!(why.explanation(&asks).as_deref(), Some(text));
        let bounded = Remedies { ceiling: Ceiling::new(Vec::new()), ..asks.clone() };
        let text = "evil.example is not in the allowlist, and beyond the ceiling of this image";
        assert_eq!(why.explanation(&bounded).as_deref(), Some(text));
        for length in [TWICE, 120] {
            let what = Arc::from("x".repeat(length));
            let why = Why::Denied { what, cause: Cause::Policy(Denied::NotListed) };
            let text = why.explanation(&asks).unwrap();
            assert!(text.len() <= crate::dns::reply::MAX_EXPLANATION, "{text}");
            assert!(text.ends_with(" --reason WHY"), "{text}");
        }
        assert_eq!(why.response_code(), ResponseCode::NXDomain);
    }
}
