//! /etc/resolv.conf: whom the box was told to ask, and what it says once Innkeeper answers. (pure)

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Docker's embedded DNS server, reached in the box's own network namespace.
pub const ENGINE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// The resolvers of the host's or engine's file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upstreams {
    pub servers: Vec<SocketAddr>,
    /// Present where Docker's server is among them.
    pub engine: Option<EngineForwarding>,
}

/// Where Docker's server sends what it can't answer itself, as far as its file tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineForwarding {
    /// `ExtServers` was printed: these are asked from a uid-0 socket inside the box's namespace. Those printed as
    /// `host(…)` are asked from the host's namespace and never pass our firewall.
    To(Vec<SocketAddr>),
    /// An engine that does not say.
    Unknown,
}

const OURS: &str = "# Written by innkeeper: the box's allowlisting DNS server.";
/// Remembers the former resolvers across a restart of the container, whose file then is ours.
const REMEMBERED: &str = "# innkeeper-upstream ";
const REMEMBERED_ENGINE: &str = "# innkeeper-engine ";

/// Reads a resolv.conf (resolv.conf(5)); search domains and options are not taken over: nothing of the box's is
/// to leak into questions.
#[must_use]
pub fn parse(text: &str) -> Upstreams {
    // Also where there was none to remember: our own server is not to be asked by ourselves.
    let remembered = text.lines().any(|line| line == OURS || line.starts_with(REMEMBERED));
    let prefix = if remembered { REMEMBERED } else { "nameserver " };
    let mut servers = Vec::new();
    for line in text.lines() {
        let line = line.trim().replace('\t', " ");
        if let Some(address) = line.strip_prefix(prefix).and_then(|rest| address(rest.trim()))
            && !servers.contains(&address)
        {
            servers.push(address);
        }
    }
    let engine = servers.iter().any(|server| server.ip() == IpAddr::V4(ENGINE)).then(|| forwarding(text));
    Upstreams { servers, engine }
}

fn address(text: &str) -> Option<SocketAddr> {
    // A zone (fe80::1%eth0) can't be kept across interfaces; the address alone would go nowhere.
    let ip: IpAddr = text.split('%').next()?.parse().ok()?;
    Some(SocketAddr::new(ip, 53))
}

fn forwarding(text: &str) -> EngineForwarding {
    let printed = text.lines().find_map(|line| {
        let engine = line.strip_prefix(REMEMBERED_ENGINE);
        engine.or_else(|| line.trim().strip_prefix("# ExtServers:"))
    });
    let Some(list) = printed else { return EngineForwarding::Unknown };
    let list = list.trim().trim_start_matches('[').trim_end_matches(']');
    EngineForwarding::To(list.split_whitespace().filter_map(address).collect())
}

/// The box's own file: our server, and what it replaced as comments.
#[must_use]
pub fn render(listening: IpAddr, former: &Upstreams) -> String {
    let mut text = format!("{OURS}\nnameserver {listening}\n");
    for server in &former.servers {
        text.push_str(&format!("{REMEMBERED}{}\n", server.ip()));
    }
    if let Some(EngineForwarding::To(servers)) = &former.engine {
        let list: Vec<String> = servers.iter().map(|server| server.ip().to_string()).collect();
        text.push_str(&format!("{REMEMBERED_ENGINE}[{}]\n", list.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{EngineForwarding, parse, render};

    fn ips(text: &str) -> Vec<String> {
        parse(text).servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn kubernetes_search_domains_are_not_taken_over() {
        let text = "search ns.svc.cluster.local corp\nnameserver 10.96.0.10\noptions ndots:5\n";
        assert_eq!(ips(text), ["10.96.0.10:53"]);
        let own = render("127.0.0.53".parse().unwrap(), &parse(text));
        assert!(!own.contains("search") && !own.contains("ndots"));
    }

    #[test]
    fn no_server_and_five_servers() {
        assert!(ips("").is_empty());
        let five: String = (1..6).map(|i| format!("nameserver 192.0.2.{i}\n")).collect();
        assert_eq!(ips(&five).len(), 5);
        assert_eq!(ips("nameserver 2001:db8::53\nnameserver fe80::1%eth0\nnameserver junk\n").len(), 2);
    }

    #[test]
    fn dockers_forwarding_is_narrowed_to_what_is_asked_inside_the_box() {
        let text = "nameserver 127.0.0.11\noptions edns0\n# ExtServers: [8.8.8.8 host(127.0.0.53)]\n";
        let EngineForwarding::To(servers) = parse(text).engine.unwrap() else { panic!("not narrowed") };
        assert_eq!(servers, ["8.8.8.8:53".parse().unwrap()]);
        assert_eq!(parse("nameserver 127.0.0.11\n").engine, Some(EngineForwarding::Unknown));
        assert_eq!(parse("nameserver 10.0.0.2\n").engine, None);
    }

    #[test]
    fn a_restart_finds_the_former_resolvers_in_our_own_file() {
        let former = parse("nameserver 127.0.0.11\n# ExtServers: [8.8.8.8]\n");
        let own = render("127.0.0.53".parse().unwrap(), &former);
        assert!(own.lines().any(|line| line == "nameserver 127.0.0.53"));
        assert_eq!(parse(&own), former);
    }
}
