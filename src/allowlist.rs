//! The network policy as values: names, patterns, ports and rules, and the one function that decides.
//!
//! Text of `network/*.conf`, of variables and of the operator comes in through [`parse_rules`]; everything that
//! asks "may this name be used?" goes through [`Allowlist::verdict`]. Nothing here reads files or the network.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::report::bounded;

mod ceiling;
mod public_suffix;

pub use ceiling::Ceiling;
#[cfg(test)]
pub(crate) use ceiling::tests::ceiling as ceiling_of;
pub use public_suffix::is_public_suffix;

/// A host name, shared by all its copies: lower case, no final dot, at least one label, every label 1–63 octets, 253 in all (RFC 1035 §2.3.4).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(Arc<str>);

/// Why a text is not a host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the name is empty")]
    Empty,
    #[error("the name is longer than 253 octets")]
    TooLong,
    #[error("the label \"{0}\" is empty or longer than 63 octets")]
    Label(String),
    #[error("the character {0:?} can't be in a host name")]
    Character(char),
    #[error("the label \"{0}\" begins or ends with a hyphen")]
    Hyphen(String),
    #[error("it is not ASCII: write the name in its xn-- form (RFC 5891)")]
    NotAscii,
    #[error("it is an IP address; rules take names, since an address can't be tied to who answers there")]
    Address,
}

impl DomainName {
    /// Parses a host name; one final dot is accepted and removed.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let bare = text.strip_suffix('.').unwrap_or(text);
        if bare.is_empty() {
            return Err(NameError::Empty);
        }
        if bare.len() > 253 {
            return Err(NameError::TooLong);
        }
        if !bare.is_ascii() {
            return Err(NameError::NotAscii);
        }
        if looks_like_address(bare) {
            return Err(NameError::Address);
        }
        for label in bare.split('.') {
            check_label(label)?;
        }
        let is_lower = !bare.bytes().any(|octet| octet.is_ascii_uppercase());
        Ok(Self(if is_lower { Arc::from(bare) } else { Arc::from(bare.to_ascii_lowercase()) }))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names above this one, nearest first: `a.b.c` gives `b.c`, `c`.
    pub fn parents(&self) -> impl Iterator<Item = &str> {
        let mut rest = self.as_str();
        std::iter::from_fn(move || {
            rest = rest.split_once('.')?.1;
            Some(rest)
        })
    }
}

fn check_label(label: &str) -> Result<(), NameError> {
    if label.is_empty() || label.len() > 63 {
        return Err(NameError::Label(label.chars().take(63).collect()));
    }
    if let Some(bad) = label.chars().find(|c| !(c.is_ascii_alphanumeric() || *c == '-' || *c == '_')) {
        return Err(NameError::Character(bad));
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Err(NameError::Hyphen(label.to_owned()));
    }
    Ok(())
}

/// Anything that `getaddrinfo` or a browser would read as an address: dotted quads, and the decimal, octal and
/// hexadecimal forms of `inet_aton(3)`. The last label of a real name is never all digits (RFC 3696 §2).
fn looks_like_address(text: &str) -> bool {
    let last = text.rsplit('.').next().unwrap_or(text);
    let number = |s: &str| {
        let hex = s.strip_prefix("0x").or_else(|| s.strip_prefix("0X"));
        hex.map_or_else(
            || !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()),
            |h| h.bytes().all(|b| b.is_ascii_hexdigit()),
        )
    };
    text.parse::<IpAddr>().is_ok() || text.contains(':') || text.starts_with('[') || number(last)
}

impl TryFrom<String> for DomainName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<DomainName> for String {
    fn from(name: DomainName) -> Self {
        name.as_str().to_owned()
    }
}

impl From<DomainName> for Arc<str> {
    fn from(name: DomainName) -> Self {
        name.0
    }
}

/// `Hash` and `Ord` are those of the text, so that a text can be looked up.
impl Borrow<str> for DomainName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which names a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DomainPattern {
    /// Exactly this name.
    Exact(DomainName),
    /// `*.NAME`: every name below it, at any depth, but not the name itself.
    Below(DomainName),
}

impl DomainPattern {
    #[must_use]
    pub fn matches(&self, name: &DomainName) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Below(apex) => name.parents().any(|parent| parent == apex.as_str()),
        }
    }

    /// Whether every name that `other` matches is matched by `self` too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) => a == b,
            (Self::Exact(_), Self::Below(_)) => false,
            (Self::Below(_), Self::Exact(name)) => self.matches(name),
            (Self::Below(apex), Self::Below(name)) => apex == name || self.matches(name),
        }
    }
}

impl fmt::Display for DomainPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

/// Whom a rule serves. Names for the broker alone are not the agent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    Agent,
    Broker,
    Boot,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agent => "agent",
            Self::Broker => "broker",
            Self::Boot => "boot",
        })
    }
}

/// Where a rule was written; shown wherever the rule is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// A line of a file.
    File { path: Arc<str>, line: usize },
    /// A line of a profile.
    Profile { name: Arc<str>, line: usize },
    /// A variable or a key of `innkeeper.toml`.
    Setting { name: Arc<str> },
    /// The host of a repository that the box clones.
    Repository { url: Arc<str> },
    /// Where telemetry goes: the setting that says so.
    Telemetry { name: Arc<str> },
    /// The operator, in the living box.
    Operator,
    /// The operator too, who granted what the agent had asked for.
    Request { id: u64 },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{path}:{line}"),
            Self::Profile { name, line } => write!(f, "network/profiles/{name}.conf:{line}"),
            Self::Setting { name } => f.write_str(name),
            Self::Repository { url } => write!(f, "repository {url}"),
            Self::Telemetry { name } => write!(f, "telemetry {name}"),
            Self::Operator => f.write_str("operator"),
            Self::Request { id } => write!(f, "request {id}, operator"),
        }
    }
}

/// What the connections to a rule's ports must be, all of them: the egress gate reads the name in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    Tls,
    Http,
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls => "tls",
            Self::Http => "http",
        })
    }
}

/// What a rule says beside name and ports. Unknown words are errors, so that new ones can be added safely.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a word of the grammar, and any may stand with any"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RuleOptions {
    /// The name may resolve to private addresses.
    pub private: bool,
    pub by: Subject,
    /// Claude Code, or the ecosystem of the profile, does not work without it.
    pub required: bool,
    /// Only statistics go there: safe to remove.
    pub telemetry: bool,
    /// A wildcard on a public suffix is meant: it allows names of strangers.
    pub public_suffix: bool,
    /// What its ports speak; where it says nothing, the port decides (see [`Allowlist::gated_ports`]).
    pub wire: Option<Wire>,
    /// Its TLS connections may carry an Encrypted ClientHello, whose inner name nobody can read.
    pub ech: bool,
}

impl Default for RuleOptions {
    fn default() -> Self {
        Self {
            private: false,
            by: Subject::Agent,
            required: false,
            telemetry: false,
            public_suffix: false,
            wire: None,
            ech: false,
        }
    }
}

/// One line of policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// `!NAME`: denied, whatever else allows it.
    pub deny: bool,
    pub pattern: DomainPattern,
    /// TCP ports, sorted, without repetition, never empty.
    pub ports: Vec<u16>,
    pub options: RuleOptions,
    pub origin: Origin,
    /// What was said of it: the comment on its line, or the reason that was given.
    pub why: Option<Arc<str>>,
}

/// Characters that are kept of a comment.
const MAX_WHY: usize = 300;

impl Rule {
    /// Whether it allows names below a public suffix, which anybody can have, and does not say that this is meant.
    #[must_use]
    pub fn is_for_strangers(&self) -> bool {
        match &self.pattern {
            DomainPattern::Below(apex) => !self.deny && !self.options.public_suffix && is_public_suffix(apex),
            DomainPattern::Exact(_) => false,
        }
    }

    /// What connections to this port must be by this rule; none: TLS or HTTP where the port is gated, anything elsewhere.
    #[must_use]
    pub fn wire_on(&self, port: u16) -> Option<Wire> {
        self.options.wire.or(match port {
            443 => Some(Wire::Tls),
            80 => Some(Wire::Http),
            _ => None,
        })
    }

    /// Whether both say the same, whoever wrote them.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.deny == other.deny
            && self.pattern == other.pattern
            && self.ports == other.ports
            && self.options == other.options
    }
}

/// The port of a rule that names none.
pub const DEFAULT_PORT: u16 = 443;

/// Ports whose connections go through the egress gate, whatever the rules say: what is spoken there is known.
pub const ALWAYS_GATED: [u16; 2] = [80, 443];
/// Ports that the gate can have, in all: each costs rules of the firewall.
pub const MAX_GATED: usize = 64;

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.deny {
            f.write_str("!")?;
        }
        write!(f, "{}", self.pattern)?;
        if self.ports != [DEFAULT_PORT] {
            let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
            write!(f, ":{}", ports.join(","))?;
        }
        if self.options.private {
            f.write_str(" private")?;
        }
        if self.options.public_suffix {
            f.write_str(" public-suffix")?;
        }
        if let Some(wire) = self.options.wire {
            write!(f, " {wire}")?;
        }
        if self.options.ech {
            f.write_str(" ech")?;
        }
        if self.options.by != Subject::Agent {
            write!(f, " by={}", self.options.by)?;
        }
        Ok(())
    }
}

/// Why a rule can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    #[error("\"{name}\" is not a host name: {why}")]
    Name { name: String, why: NameError },
    #[error("\"{0}\" would allow every name; write the names, or *.DOMAIN")]
    Everything(String),
    #[error("\"{0}\": a * can only be the whole first label, as in *.example.org")]
    Wildcard(String),
    #[error("\"{0}\" is not a port (1 to 65535)")]
    Port(String),
    #[error(
        "unknown option \"{0}\"; there are private, tls, http, ech, by=agent|broker|boot, required, telemetry, public-suffix"
    )]
    Option(String),
    #[error("a rule can't say both tls and http: write one rule for the ports of each")]
    BothWires,
    #[error("a rule can't say both http and ech: an Encrypted ClientHello is part of TLS")]
    EchWithoutTls,
    #[error(
        "port 53 can't be opened: every question about a name is the box's own resolver's (network.upstreams)"
    )]
    Resolver,
    #[error("a deny rule takes no ports and no options: it denies the name as a whole")]
    DenyWithDetails,
    #[error("\"{0}\" is a URL; a rule is a NAME[:PORT[,PORT…]]")]
    Url(String),
}

/// One unreadable rule of a text, and the line that it is on (from 1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleProblem {
    pub line: usize,
    pub error: RuleError,
}

/// Reads rules, one a line or several separated by `;`. A `#` begins a comment; CRLF and a byte order mark are
/// tolerated. Every unreadable rule is reported, not only the first. `origin` is called with the line number.
pub fn parse_rules(text: &str, origin: impl Fn(usize) -> Origin) -> (Vec<Rule>, Vec<RuleProblem>) {
    let mut rules = Vec::new();
    let mut problems = Vec::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let (content, comment) = line.split_once('#').unwrap_or((line, ""));
        let why: Option<Arc<str>> =
            Some(comment.trim()).filter(|text| !text.is_empty()).map(|text| bounded(text, MAX_WHY).into());
        for part in content.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            match parse_rule(part, origin(number)) {
                Ok(rule) => rules.push(Rule { why: why.clone(), ..rule }),
                Err(error) => problems.push(RuleProblem { line: number, error }),
            }
        }
    }
    (rules, problems)
}

/// Reads one rule.
pub fn parse_rule(text: &str, origin: Origin) -> Result<Rule, RuleError> {
    let mut words = text.split_whitespace();
    let subject = words.next().unwrap_or_default();
    let (deny, subject) = subject.strip_prefix('!').map_or((false, subject), |rest| (true, rest));
    if let Some((before, _)) = subject.split_once('/') {
        // "192.0.2.0/24" is no URL, and who writes it is to hear why there are no such rules.
        return Err(match before.parse::<IpAddr>() {
            Ok(_) => RuleError::Name { name: subject.to_owned(), why: NameError::Address },
            Err(_) => RuleError::Url(subject.to_owned()),
        });
    }
    let (name, ports) = split_ports(subject)?;
    let pattern = parse_pattern(name)?;
    let mut options = RuleOptions::default();
    let mut has_options = false;
    for word in words {
        has_options = true;
        apply_option(&mut options, word)?;
    }
    if deny && (has_options || ports.is_some()) {
        return Err(RuleError::DenyWithDetails);
    }
    if options.ech && options.wire == Some(Wire::Http) {
        return Err(RuleError::EchWithoutTls);
    }
    Ok(Rule { deny, pattern, ports: ports.unwrap_or_else(|| vec![DEFAULT_PORT]), options, origin, why: None })
}

fn split_ports(subject: &str) -> Result<(&str, Option<Vec<u16>>), RuleError> {
    // "fd00::1" and "[::1]:443" are addresses, not a name with a port.
    if subject.starts_with('[') || subject.matches(':').count() > 1 {
        let name = subject.to_owned();
        return Err(RuleError::Name { name, why: NameError::Address });
    }
    let Some((name, list)) = subject.split_once(':') else { return Ok((subject, None)) };
    let mut ports = Vec::new();
    for text in list.split(',') {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match text.parse::<u16>() {
            // Such a rule could not work: these packets are redirected before any rule about a name.
            Ok(53) if digits => return Err(RuleError::Resolver),
            Ok(port) if digits && port != 0 => ports.push(port),
            Ok(_) | Err(_) => return Err(RuleError::Port(text.to_owned())),
        }
    }
    ports.sort_unstable();
    ports.dedup();
    Ok((name, Some(ports)))
}

fn parse_pattern(name: &str) -> Result<DomainPattern, RuleError> {
    if name.trim_matches(['*', '.']).is_empty() && !name.is_empty() {
        return Err(RuleError::Everything(name.to_owned()));
    }
    let parsed =
        |text: &str| DomainName::parse(text).map_err(|why| RuleError::Name { name: name.to_owned(), why });
    match name.strip_prefix("*.") {
        Some(rest) if rest.contains('*') => Err(RuleError::Wildcard(name.to_owned())),
        Some(rest) => Ok(DomainPattern::Below(parsed(rest)?)),
        None if name.contains('*') => Err(RuleError::Wildcard(name.to_owned())),
        None => Ok(DomainPattern::Exact(parsed(name)?)),
    }
}

fn apply_option(options: &mut RuleOptions, word: &str) -> Result<(), RuleError> {
    match word {
        "private" => options.private = true,
        "required" => options.required = true,
        "telemetry" => options.telemetry = true,
        "public-suffix" => options.public_suffix = true,
        "tls" => set_wire(options, Wire::Tls)?,
        "http" => set_wire(options, Wire::Http)?,
        "ech" => options.ech = true,
        "by=agent" => options.by = Subject::Agent,
        "by=broker" => options.by = Subject::Broker,
        "by=boot" => options.by = Subject::Boot,
        other => return Err(RuleError::Option(other.to_owned())),
    }
    Ok(())
}

fn set_wire(options: &mut RuleOptions, wire: Wire) -> Result<(), RuleError> {
    if options.wire.is_some_and(|known| known != wire) {
        return Err(RuleError::BothWires);
    }
    options.wire = Some(wire);
    Ok(())
}

/// What the policy says of a name. Never a bool: the reason travels with the decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// Allowed, by at least one rule.
    Allowed(Allowed<'a>),
    /// Denied, and why.
    Denied(Denied<'a>),
}

/// The rules that allow a name, together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed<'a> {
    pub rules: Vec<&'a Rule>,
    /// All their ports, sorted.
    pub ports: Vec<u16>,
    /// Whether one of them lets the name resolve to private addresses.
    pub private: bool,
}

/// Why a name is denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied<'a> {
    /// No rule matches.
    NotListed,
    /// A deny rule matches; it wins over every other.
    DenyRule(&'a Rule),
    /// Rules match, but for somebody else than the agent.
    OtherSubject(&'a Rule),
}

impl fmt::Display for Denied<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotListed => f.write_str("not in the allowlist"),
            Self::DenyRule(rule) => write!(f, "denied by the rule {rule} ({})", rule.origin),
            Self::OtherSubject(rule) => write!(f, "only for {} ({})", rule.options.by, rule.origin),
        }
    }
}

/// The effective policy: every rule, indexed so that a verdict costs one look-up per label. Its copies share it.
#[derive(Debug, Clone, Default)]
pub struct Allowlist {
    shared: Arc<Indexed>,
}

#[derive(Debug, Default)]
struct Indexed {
    rules: Vec<Arc<Rule>>,
    exact: HashMap<DomainName, Places>,
    below: HashMap<DomainName, Places>,
}

/// Where the rules about a name are; nearly always one.
#[derive(Debug)]
enum Places {
    One(usize),
    Many(Vec<usize>),
}

impl Places {
    fn add(&mut self, index: usize) {
        match self {
            Self::One(first) => *self = Self::Many(vec![*first, index]),
            Self::Many(all) => all.push(index),
        }
    }

    fn iter(&self) -> std::slice::Iter<'_, usize> {
        match self {
            Self::One(index) => std::slice::from_ref(index).iter(),
            Self::Many(all) => all.iter(),
        }
    }
}

impl Allowlist {
    #[must_use]
    pub fn new<R: Into<Arc<Rule>>>(rules: impl IntoIterator<Item = R>) -> Self {
        let mut indexed =
            Indexed { rules: rules.into_iter().map(Into::into).collect(), ..Indexed::default() };
        for (index, rule) in indexed.rules.iter().enumerate() {
            let (map, name) = match &rule.pattern {
                DomainPattern::Exact(name) => (&mut indexed.exact, name),
                DomainPattern::Below(name) => (&mut indexed.below, name),
            };
            let place = map.entry(name.clone());
            place.and_modify(|places| places.add(index)).or_insert(Places::One(index));
        }
        Self { shared: Arc::new(indexed) }
    }

    #[must_use]
    pub fn rules(&self) -> &[Arc<Rule>] {
        &self.shared.rules
    }

    /// Whether the agent may use this name, and by which rules.
    #[must_use]
    pub fn verdict(&self, name: &DomainName) -> Verdict<'_> {
        if let Some(denied) = self.denial(name) {
            return Verdict::Denied(denied);
        }
        let allowed: Vec<&Rule> =
            self.matching(name).filter(|rule| rule.options.by == Subject::Agent).collect();
        let mut ports: Vec<u16> = allowed.iter().flat_map(|rule| rule.ports.iter().copied()).collect();
        ports.sort_unstable();
        ports.dedup();
        let private = allowed.iter().any(|rule| rule.options.private);
        Verdict::Allowed(Allowed { rules: allowed, ports, private })
    }

    /// Why the agent may not use this name; none if it may. For who asks very often: it allocates nothing.
    #[must_use]
    pub fn denial(&self, name: &DomainName) -> Option<Denied<'_>> {
        let (mut allowed, mut other) = (false, None);
        for rule in self.matching(name) {
            if rule.deny {
                return Some(Denied::DenyRule(rule));
            }
            match rule.options.by {
                Subject::Agent => allowed = true,
                Subject::Broker | Subject::Boot => other = other.or(Some(rule)),
            }
        }
        if allowed { None } else { Some(other.map_or(Denied::NotListed, Denied::OtherSubject)) }
    }

    fn matching<'a, 'n>(&'a self, name: &'n DomainName) -> impl Iterator<Item = &'a Rule> + use<'a, 'n> {
        let Indexed { rules, exact, below } = &*self.shared;
        let exact = exact.get(name).into_iter();
        let below = name.parents().filter_map(|parent| below.get(parent));
        exact.chain(below).flat_map(Places::iter).filter_map(|index| rules.get(*index)).map(|rule| &**rule)
    }

    /// The ports whose connections go through the egress gate, whoever they are for: sorted, always with
    /// [`ALWAYS_GATED`]. Never longer than [`MAX_GATED`] where [`check_gated`] was asked before.
    #[must_use]
    pub fn gated_ports(&self) -> Vec<u16> {
        gated_ports(self.rules().iter().map(|rule| &**rule))
    }

    /// The names that are known without a question: resolved at boot and kept fresh.
    #[must_use]
    pub fn exact_names(&self) -> Vec<DomainName> {
        let mut names: BTreeMap<&DomainName, ()> = BTreeMap::new();
        for rule in self.rules().iter().filter(|rule| !rule.deny) {
            if let DomainPattern::Exact(name) = &rule.pattern
                && matches!(self.verdict(name), Verdict::Allowed(_))
            {
                names.insert(name, ());
            }
        }
        names.into_keys().cloned().collect()
    }
}

/// See [`Allowlist::gated_ports`]. Rules that deny, and those for somebody else than the agent, gate nothing.
fn gated_ports<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Vec<u16> {
    let marked =
        |rule: &&Rule| !rule.deny && rule.options.by == Subject::Agent && rule.options.wire.is_some();
    let marked = rules.into_iter().filter(marked).flat_map(|rule| rule.ports.iter().copied());
    let ports: BTreeSet<u16> = ALWAYS_GATED.into_iter().chain(marked).collect();
    ports.into_iter().collect()
}

/// More ports are marked than the gate can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} ports are the egress gate's (80, 443 and those of rules that say tls or http), and it can have {MAX_GATED}: \
     mark fewer"
)]
pub struct TooManyGated(pub usize);

/// Whether the gate can have all the ports that these rules mark.
pub fn check_gated<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Result<(), TooManyGated> {
    let count = gated_ports(rules).len();
    if count > MAX_GATED { Err(TooManyGated(count)) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
