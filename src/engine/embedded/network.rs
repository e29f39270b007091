//! The link of an embedded box: which addresses are free on this host, and the pair of interfaces (rtnetlink).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::plan::{INTERFACE, Link, Link6, PREFIX4, PREFIX6};
use crate::namespace::asked;

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("cannot open a routing socket")]
    Socket(#[source] std::io::Error),
    #[error("cannot read the host's routes and addresses")]
    Read(#[source] rtnetlink::Error),
    #[error("cannot make the interface {name}")]
    Make { name: String, source: rtnetlink::Error },
    #[error("cannot remove the interface {name}")]
    Remove { name: String, source: rtnetlink::Error },
    #[error("every network that a box could have is routed somewhere on this host already")]
    NoFree,
}

/// Where boxes may live: private networks that few sites use (RFC 1918), and at last the one for benchmarks (RFC 2544).
const POOLS: [(Ipv4Addr, u8); 3] = [
    (Ipv4Addr::new(10, 214, 0, 0), 20),
    (Ipv4Addr::new(172, 29, 240, 0), 20),
    (Ipv4Addr::new(198, 19, 240, 0), 20),
];

/// What the host routes, and whether it forwards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes {
    pub taken: Vec<IpNet>,
    pub ipv4_default: bool,
    pub ipv6_default: bool,
    pub addresses: Vec<IpAddr>,
}

impl Routes {
    /// The first free network: overlapping nothing that is routed here but the default route.
    pub fn free(&self, others: &[Ipv4Addr]) -> Result<(Ipv4Addr, Ipv4Addr), LinkError> {
        let nets = POOLS.iter().filter_map(|(base, length)| Ipv4Net::new(*base, *length).ok());
        let mut candidates = nets.filter_map(|pool| pool.subnets(PREFIX4).ok()).flatten();
        let clashes = |net: &Ipv4Net| {
            let routed = self.taken.iter().any(|taken| match taken {
                IpNet::V4(taken) => taken.contains(net) || net.contains(taken),
                IpNet::V6(_) => false,
            });
            routed || others.iter().any(|other| net.contains(other))
        };
        let net = candidates.find(|net| !clashes(net)).ok_or(LinkError::NoFree)?;
        let mut hosts = net.hosts();
        hosts.next().zip(hosts.next()).ok_or(LinkError::NoFree)
    }
}

/// A unique local network of 40 random bits (RFC 4193).
#[must_use]
pub fn unique_local() -> Link6 {
    let mut random = [0_u8; 5];
    // Never blocks in a running system; what clashes is refused by the kernel.
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).ok();
    let [a, b, c, d, e] = random;
    let octets = |last| Ipv6Addr::from([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    Link6 { host: octets(1), guest: octets(2) }
}

/// Looks what is routed here.
pub fn look() -> Result<Routes, LinkError> {
    asked(LinkError::Socket, |handle| async move {
        let mut found = Routes::default();
        let questions =
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
        for question in questions {
            let mut routes = handle.route().get(question).execute();
            // A kernel without the family has no such routes.
            while let Ok(Some(route)) = routes.try_next().await {
                note(&mut found, &route);
            }
        }
        let mut addresses = handle.address().get().execute();
        while let Some(address) = addresses.try_next().await.map_err(LinkError::Read)? {
            found.addresses.extend(address.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(ip) | AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            }));
        }
        Ok(found)
    })
}

fn note(found: &mut Routes, route: &RouteMessage) {
    let length = route.header.destination_prefix_length;
    let loopback = route.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Oif(1)));
    if length == 0 && !loopback {
        found.ipv4_default |= route.header.address_family == AddressFamily::Inet;
        found.ipv6_default |= route.header.address_family == AddressFamily::Inet6;
    }
    let to = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    });
    if let Some(net) = to.filter(|_| length > 0).and_then(|to| IpNet::new(to, length).ok()) {
        found.taken.push(net);
    }
}

/// The interfaces that are there.
pub fn names() -> Result<Vec<String>, LinkError> {
    asked(LinkError::Socket, |handle| async move {
        let mut links = handle.link().get().execute();
        let mut names = Vec::new();
        while let Some(link) = links.try_next().await.map_err(LinkError::Read)? {
            names.extend(link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            }));
        }
        Ok(names)
    })
}

/// Makes the pair: one end here, the other in the network namespace of this process.
pub fn make(name: &str, link: &Link, pid: u32) -> Result<(), LinkError> {
    let failed = |source| LinkError::Make { name: name.to_owned(), source };
    asked(LinkError::Socket, |handle| async move {
        let peer = LinkMessageBuilder::<LinkUnspec>::new().name(INTERFACE).setns_by_pid(pid).build();
        let pair = LinkVeth::new(name, INTERFACE).set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build();
        handle.link().add(pair).execute().await.map_err(failed)?;
        let Some(index) = index(&handle, name).await.map_err(failed)? else {
            return Err(failed(rtnetlink::Error::RequestFailed));
        };
        add_address(&handle, index, IpAddr::V4(link.host), PREFIX4).await.map_err(failed)?;
        if let Some(v6) = link.v6 {
            add_address(&handle, index, IpAddr::V6(v6.host), PREFIX6).await.map_err(failed)?;
        }
        let up = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
        handle.link().set(up).execute().await.map_err(failed)
    })
}

/// Removes the host's end, and the other with it; one that is gone is no error.
pub fn remove(name: &str) -> Result<(), LinkError> {
    let failed = |source| LinkError::Remove { name: name.to_owned(), source };
    asked(LinkError::Socket, |handle| async move {
        let Some(number) = index(&handle, name).await.map_err(failed)? else { return Ok(()) };
        match handle.link().del(number).execute().await {
            // The kernel takes it too, with the box's network namespace, whenever it gets to it.
            Err(_) if index(&handle, name).await.map_err(failed)?.is_none() => Ok(()),
            done => done.map_err(failed),
        }
    })
}

/// The interface's number, if there is such a one.
pub(super) async fn index(handle: &Handle, name: &str) -> Result<Option<u32>, rtnetlink::Error> {
    let mut links = handle.link().get().execute();
    let mut found = None;
    while let Some(link) = links.try_next().await? {
        if is_named(&link, name) {
            found = Some(link.header.index);
        }
    }
    Ok(found)
}

fn is_named(link: &LinkMessage, wanted: &str) -> bool {
    link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::IfName(name) if name == wanted))
}

/// Without duplicate address detection: nobody else is on the link, and nobody is to wait for it.
pub(super) async fn add_address(
    handle: &Handle,
    index: u32,
    address: IpAddr,
    length: u8,
) -> Result<(), rtnetlink::Error> {
    let mut request = handle.address().add(index, address, length);
    if address.is_ipv6() {
        request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    request.execute().await
}

#[cfg(test)]
mod tests {
    use super::Routes;

    fn routes(taken: &[&str]) -> Routes {
        Routes { taken: taken.iter().map(|net| net.parse().unwrap()).collect(), ..Routes::default() }
    }

    #[test]
    fn a_box_gets_a_network_that_nobody_routes() {
        let pair = |taken: &[&str], others: &[&str]| {
            let others: Vec<_> = others.iter().map(|other| other.parse().unwrap()).collect();
            routes(taken).free(&others).map(|(host, guest)| format!("{host} {guest}")).ok()
        };
        assert_eq!(pair(&[], &[]).unwrap(), "10.214.0.1 10.214.0.2");
        assert_eq!(pair(&["10.214.0.0/30"], &["10.214.0.5"]).unwrap(), "10.214.0.9 10.214.0.10");
        assert_eq!(pair(&["10.0.0.0/8", "fd00::/8"], &[]).unwrap(), "172.29.240.1 172.29.240.2");
        assert_eq!(
            pair(&["10.0.0.0/8", "172.16.0.0/12", "198.19.255.1/32"], &[]).unwrap(),
            "198.19.240.1 198.19.240.2"
        );
        assert_eq!(pair(&["10.0.0.0/8", "172.16.0.0/12", "198.18.0.0/15"], &[]), None);
    }
}
