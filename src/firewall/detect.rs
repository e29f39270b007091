//! What the kernel of this network namespace gives the firewall: found by trying, and taken back at once.
//!
//! nf_tables gets the complete rule set in a batch that is sure to be undone. iptables gets rules of each kind in a chain
//! that nothing leads to. Making the legacy variant's tables is an effect of its own, so it is tried last, and not at all
//! where something better is found.

use super::ground::{Backend, Candidate, Offer, Storage};
use super::iptables::TrialSets;
use super::nftables::{Nftables, NftablesError};
use super::programs::{Answer, Job, Programs, Variant};
use super::ruleset::{EngineDns, Family, FirewallPlan, GateMode, GatePlan, Transport, skeleton};
use crate::config;
use crate::report::chain;

/// How far to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// In a namespace that is in use: no further than to the first that is complete.
    First(config::Backend),
    /// Everything: for namespaces that are thrown away afterwards.
    All,
}

/// The ways there are to hold the rules that the gate needs in this mode, the best first.
#[must_use]
pub fn candidates(programs: &dyn Programs, scope: Scope, mode: GateMode) -> Vec<Candidate> {
    let mut found = Vec::new();
    for backend in [Backend::Nftables, Backend::IptablesNft, Backend::IptablesLegacy] {
        if matches!(scope, Scope::First(wanted) if !asked_for(wanted, backend)) {
            continue;
        }
        let candidate = match backend {
            Backend::Nftables => nftables(mode),
            Backend::IptablesNft => iptables(programs, Variant::Nft, mode),
            Backend::IptablesLegacy => iptables(programs, Variant::Legacy, mode),
        };
        let enough = complete(&candidate) && matches!(scope, Scope::First(_));
        found.push(candidate);
        if enough {
            break;
        }
    }
    found
}

fn asked_for(wanted: config::Backend, backend: Backend) -> bool {
    match (wanted, backend) {
        (config::Backend::Auto, _)
        | (config::Backend::Nftables, Backend::Nftables)
        | (config::Backend::Iptables, Backend::IptablesNft | Backend::IptablesLegacy) => true,
        (config::Backend::Nftables, Backend::IptablesNft | Backend::IptablesLegacy)
        | (config::Backend::Iptables, Backend::Nftables) => false,
    }
}

/// Nothing is closed that another backend could open.
fn complete(candidate: &Candidate) -> bool {
    let whole = |offer: &Offer| offer.opens() || offer.absent();
    candidate.fit() && whole(&candidate.ipv4) && whole(&candidate.ipv6)
}

/// The first that is complete, else the first on which a box can be built; else why there is none.
pub fn choose(wanted: config::Backend, candidates: &[Candidate]) -> Result<Candidate, String> {
    let asked = || candidates.iter().filter(|candidate| asked_for(wanted, candidate.backend));
    let best = asked().find(|candidate| complete(candidate)).or_else(|| asked().find(|one| one.fit()));
    best.cloned().ok_or_else(|| {
        let reasons: Vec<String> = asked()
            .map(|candidate| {
                let lacks = [&candidate.ipv4, &candidate.ipv6].into_iter().filter_map(Offer::lack);
                let mut lacks: Vec<&str> = lacks.collect();
                lacks.dedup();
                format!("{}: {}", candidate.backend, lacks.join("; "))
            })
            .collect();
        reasons.join(" · ")
    })
}

/// What closes a box on a kernel without nf_tables before anything was tried: plain rules of the legacy variant.
#[must_use]
pub fn plainest() -> Candidate {
    Candidate {
        backend: Backend::IptablesLegacy,
        storage: Storage::Rules,
        ipv4: Offer::Whole,
        ipv6: no_ipv6().or_else(switched_off).map_or(Offer::Whole, Offer::Absent),
        no_log: None,
        comments: false,
    }
}

// --- nf_tables ---

/// A plan that needs everything that any box's may need.
fn everything(mode: GateMode) -> Option<FirewallPlan> {
    Some(FirewallPlan {
        dns_uid: 1,
        dns_v4: "127.0.0.53:53".parse().ok()?,
        dns_v6: Some("[::1]:53".parse().ok()?),
        upstreams: vec!["192.0.2.53:53".parse().ok()?, "[2001:db8::53]:53".parse().ok()?],
        engine_dns: Some(EngineDns { forwards_to: Vec::new() }),
        inbound: vec![(Transport::Tcp, 22)],
        ssh_from: vec!["fdaa::/16".parse().ok()?],
        closed_loopback: Vec::new(),
        nflog_group: 1,
        uses_group: 1,
        vm: true,
        closed: Vec::new(),
        gate: Some(GatePlan {
            mode,
            uid: 1,
            v4: "127.0.0.53:11443".parse().ok()?,
            v6: Some("[::1]:11443".parse().ok()?),
            ports: vec![443],
            proxy: Some("192.0.2.1:3128".parse().ok()?),
        }),
    })
}

fn nftables(mode: GateMode) -> Candidate {
    let tried = Nftables::open().and_then(|mut kernel| match everything(mode) {
        Some(plan) => kernel.attempt(&skeleton(&plan)),
        None => Err(NftablesError::Unanswered),
    });
    let refused = match tried {
        Ok(refused) => refused.into_iter().map(|(object, error)| (object, error.to_string())).collect(),
        Err(error) => vec![("nf_tables".to_owned(), chain(&error))],
    };
    judge(&refused, no_ipv6())
}

/// What each refused object costs. (pure)
fn judge(refused: &[(String, String)], absent: Option<String>) -> Candidate {
    let mut candidate = Candidate {
        backend: Backend::Nftables,
        storage: Storage::Sets,
        ipv4: Offer::Whole,
        ipv6: absent.map_or(Offer::Whole, Offer::Absent),
        no_log: None,
        comments: true,
    };
    for (object, error) in refused {
        let why = |option: &str| format!("the kernel refused {object} ({error}): {option} is needed");
        let log = object.contains("log group");
        if log {
            candidate.no_log.get_or_insert(why("CONFIG_NFT_LOG with CONFIG_NETFILTER_NETLINK_LOG"));
        } else if object.contains("chain resolver") {
            let v4 = !object.contains("dnat ip6") && !object.contains("nfproto ipv6");
            let v6 = !object.contains("dnat ip to") && !object.contains("nfproto ipv4");
            for (hit, offer) in [(v4, &mut candidate.ipv4), (v6, &mut candidate.ipv6)] {
                if hit && offer.opens() {
                    *offer = Offer::Closed(why("CONFIG_NFT_NAT"));
                }
            }
        } else {
            let option = if object.contains("ct ") {
                "CONFIG_NFT_CT"
            } else if object.contains("reject") {
                "CONFIG_NFT_REJECT_INET"
            } else {
                "CONFIG_NF_TABLES with CONFIG_NF_TABLES_INET"
            };
            for offer in [&mut candidate.ipv4, &mut candidate.ipv6] {
                if offer.fit() && !offer.absent() {
                    *offer = Offer::Unfit(why(option));
                }
            }
        }
    }
    candidate
}

/// Why nothing of IPv6 can be here, if so.
fn no_ipv6() -> Option<String> {
    let exists = std::path::Path::new("/proc/thread-self/net/if_inet6").exists();
    (!exists).then(|| "the kernel has no IPv6".to_owned())
}

/// Whether IPv6 is there and switched off, so that nothing can be sent or received by it; root alone can turn it on.
fn switched_off() -> Option<String> {
    let addresses = std::fs::read_to_string("/proc/thread-self/net/if_inet6").ok()?;
    let off = |which: &str| {
        let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
        std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "1")
    };
    (addresses.trim().is_empty() && off("all") && off("default")).then(|| {
        "IPv6 is switched off here (net.ipv6.conf.all.disable_ipv6), and no address has it".to_owned()
    })
}

// --- iptables ---

/// What a part of the kernel that is missing costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cost {
    Unfit,
    Closed,
    Log,
    Comments,
    Sets,
}

/// One thing that our rules use: table, rule, kernel option.
#[derive(Debug, Clone)]
struct Feature {
    table: &'static str,
    rule: String,
    option: &'static str,
    cost: Cost,
}

type Row = (&'static str, &'static str, &'static str, Cost);

const BOTH: &[Row] = &[
    ("filter", "-j DROP", "CONFIG_IP_NF_FILTER, CONFIG_IP6_NF_FILTER", Cost::Unfit),
    ("filter", "-p tcp -j REJECT --reject-with tcp-reset", "CONFIG_IP_NF_TARGET_REJECT", Cost::Unfit),
    ("filter", "-m conntrack --ctstate ESTABLISHED -j RETURN", CONNTRACK, Cost::Closed),
    ("filter", "-m conntrack --ctdir REPLY -j RETURN", CONNTRACK, Cost::Closed),
    ("filter", "-m conntrack --ctstate DNAT -j RETURN", CONNTRACK, Cost::Closed),
    ("filter", "-m owner --uid-owner 1 -j RETURN", "CONFIG_NETFILTER_XT_MATCH_OWNER", Cost::Unfit),
    ("filter", "-m connmark --mark 0x1 -j RETURN", "CONFIG_NETFILTER_XT_CONNMARK", Cost::Closed),
    ("filter", "-j CONNMARK --set-xmark 0x1/0xffffffff", "CONFIG_NETFILTER_XT_CONNMARK", Cost::Closed),
    ("mangle", "! -o lo -j DROP", "CONFIG_IP_NF_MANGLE, CONFIG_IP6_NF_MANGLE", Cost::Closed),
    ("filter", "-j NFLOG --nflog-group 1 --nflog-size 128 --nflog-threshold 1", NFLOG, Cost::Log),
    ("filter", "-m comment --comment \"a try\" -j RETURN", COMMENT, Cost::Comments),
];
const ONLY4: &[Row] = &[
    ("filter", "-j REJECT --reject-with icmp-admin-prohibited", "CONFIG_IP_NF_TARGET_REJECT", Cost::Unfit),
    (
        "filter",
        "-m u32 --u32 \"0x0>>0x18&0xf=0x6:0xf\" -j DROP",
        "CONFIG_NETFILTER_XT_MATCH_U32",
        Cost::Unfit,
    ),
    (
        "nat",
        "-p udp -m udp --dport 53 -j DNAT --to-destination 127.0.0.53:53",
        "CONFIG_IP_NF_NAT",
        Cost::Closed,
    ),
];
const ONLY6: &[Row] = &[
    ("filter", "-j REJECT --reject-with icmp6-adm-prohibited", "CONFIG_IP6_NF_TARGET_REJECT", Cost::Unfit),
    ("filter", "-m rt -j DROP", "CONFIG_IP6_NF_MATCH_RT", Cost::Unfit),
    ("filter", "-p ipv6-icmp -m hl --hl-eq 255 -m icmp6 --icmpv6-type 135 -j RETURN", HOP_LIMIT, Cost::Unfit),
    ("nat", "-p udp -m udp --dport 53 -j DNAT --to-destination [::1]:53", "CONFIG_IP6_NF_NAT", Cost::Closed),
];
const CONNTRACK: &str = "CONFIG_NETFILTER_XT_MATCH_CONNTRACK";
const NFLOG: &str = "CONFIG_NETFILTER_XT_TARGET_NFLOG";
const COMMENT: &str = "CONFIG_NETFILTER_XT_MATCH_COMMENT";
const HOP_LIMIT: &str = "CONFIG_NETFILTER_XT_MATCH_HL";

fn features(family: Family, set: Option<&str>, mode: GateMode) -> Vec<Feature> {
    let own = match family {
        Family::V4 => ONLY4,
        Family::V6 => ONLY6,
    };
    let rows = BOTH.iter().chain(own).filter(|(_, _, _, cost)| match mode {
        GateMode::Redirect => true,
        // What only tracked or redirected connections need is not asked for.
        GateMode::Proxy => *cost != Cost::Closed,
    });
    let mut all: Vec<Feature> = rows
        .map(|(table, rule, option, cost)| Feature { table, rule: (*rule).to_owned(), option, cost: *cost })
        .collect();
    all.extend(set.map(|name| Feature {
        table: "filter",
        rule: format!("-p tcp -m set --match-set {name} dst,dst -j RETURN"),
        option: "CONFIG_NETFILTER_XT_SET",
        cost: Cost::Sets,
    }));
    all
}

/// A chain of a name that no rule set uses, made and taken away; a jump to it there is none.
const TRY: &str = "INNKEEPER-TRY";

fn text(features: &[Feature]) -> String {
    let mut text = String::new();
    for table in ["filter", "mangle", "nat"] {
        let rules: Vec<String> = features
            .iter()
            .filter(|one| one.table == table)
            .map(|one| format!("-A {TRY} {}\n", one.rule))
            .collect();
        if !rules.is_empty() {
            let (make, rules) = (format!("*{table}\n:{TRY} - [0:0]\n"), rules.concat());
            text.push_str(&format!("{make}{rules}COMMIT\n{make}-X {TRY}\nCOMMIT\n"));
        }
    }
    text
}

fn iptables(programs: &dyn Programs, variant: Variant, mode: GateMode) -> Candidate {
    let (sets, mut no_sets) = match TrialSets::make() {
        Ok(sets) => (Some(sets), None),
        Err(error) => (None, Some(chain(&error))),
    };
    let mut candidate = Candidate {
        backend: match variant {
            Variant::Nft => Backend::IptablesNft,
            Variant::Legacy => Backend::IptablesLegacy,
        },
        storage: Storage::Rules,
        ipv4: Offer::Whole,
        ipv6: no_ipv6().map_or(Offer::Whole, Offer::Absent),
        no_log: None,
        comments: true,
    };
    for family in [Family::V4, Family::V6] {
        let offered = if family == Family::V4 { &candidate.ipv4 } else { &candidate.ipv6 };
        if offered.absent() {
            continue;
        }
        let mut offer = Offer::Whole;
        let set = sets.as_ref().map(|sets| sets.name(family));
        for (feature, why) in tried(programs, variant, family, &features(family, set, mode)) {
            let why = format!("{why}: {} is needed", feature.option);
            match feature.cost {
                // The first is the least that is asked for.
                Cost::Unfit if offer.fit() => offer = Offer::Unfit(why),
                Cost::Unfit => {}
                Cost::Closed if offer.opens() => offer = Offer::Closed(why),
                Cost::Closed => {}
                Cost::Log => candidate.no_log = Some(why),
                Cost::Comments => candidate.comments = false,
                Cost::Sets => no_sets = Some(why),
            }
        }
        if let (Family::V6, Offer::Unfit(_), Some(off)) = (family, &offer, switched_off()) {
            offer = Offer::Absent(off);
        }
        match family {
            Family::V4 => candidate.ipv4 = offer,
            Family::V6 => candidate.ipv6 = offer,
        }
    }
    if no_sets.is_none() {
        candidate.storage = Storage::Ipset;
    }
    drop(sets);
    candidate
}

/// What of all this fails. Mostly nothing does, so all of it is tried in one go first.
fn tried(
    programs: &dyn Programs,
    variant: Variant,
    family: Family,
    features: &[Feature],
) -> Vec<(Feature, String)> {
    let all = |why: &str| {
        let unfit = |one: &Feature| Feature { option: "iptables", cost: Cost::Unfit, ..one.clone() };
        features.first().map(|one| (unfit(one), why.to_owned())).into_iter().collect()
    };
    let attempt = |texts: Vec<String>| {
        programs.perform(&Job::Restore(variant, texts.into_iter().map(|text| (family, text)).collect()))
    };
    let failure = |answer: &Answer| answer.failure.clone();
    match attempt(vec![text(features)]) {
        Err(error) => return all(&chain(&error)),
        Ok(answers) => match answers.first().map(failure) {
            None => return all("no answer"),
            Some(None) => return Vec::new(),
            Some(Some(failure)) if failure.missing => return all(&failure.said),
            Some(Some(_)) => {}
        },
    }
    match attempt(features.iter().map(|one| text(std::slice::from_ref(one))).collect()) {
        Err(error) => all(&chain(&error)),
        Ok(answers) => {
            let said = answers.iter().map(failure);
            features.iter().zip(said).filter_map(|(one, why)| Some((one.clone(), why?.said))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{choose, judge};
    use crate::config;
    use crate::firewall::ground::Offer;

    fn refused(objects: &[&str]) -> Vec<(String, String)> {
        objects.iter().map(|object| ((*object).to_owned(), "not found".to_owned())).collect()
    }

    #[test]
    fn f07_what_the_kernel_lacks_costs_what_needs_it() {
        assert_eq!(judge(&[], None).ipv4, Offer::Whole);
        let six = judge(
            &refused(&["rule \"meta nfproto ipv6 udp dport 53 dnat ip6 to [::1]:53\" of chain resolver"]),
            None,
        );
        assert!(six.ipv4.opens() && six.fit() && matches!(six.ipv6, Offer::Closed(_)), "{six:?}");
        let none = judge(&refused(&["chain resolver"]), None);
        assert!(!none.fit() && none.ipv4.fit(), "closed, and nothing to open: {none:?}");
        let log = judge(&refused(&["rule \"log group 5\" of chain deny"]), None);
        assert!(log.fit() && log.no_log.is_some());
        let ct = judge(&refused(&["rule \"ct state established accept\" of chain output"]), None);
        let why = choose(config::Backend::Auto, &[ct]).unwrap_err();
        assert!(why.contains("CONFIG_NFT_CT") && why.starts_with("nftables: "), "{why}");
        let absent = judge(&[], Some("no IPv6".into()));
        assert!(absent.fit() && absent.ipv6.absent());
        assert!(choose(config::Backend::Iptables, &[absent]).is_err(), "asked for another");
    }
}
