//! Notices when the network comes, goes or changes: an interface that appears after the box, a new address, IPv6 that
//! was not there at the start.
//!
//! No rule of ours names an interface, so nothing has to be changed in the firewall; but names that could not be
//! asked for are asked for at once, instead of at the end of their back-off.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use futures_util::TryStreamExt;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::{Handle, RouteMessageBuilder};

use super::{NamespaceError, asked, leads_out};

/// What the box can send from and to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    pub addresses: BTreeSet<IpAddr>,
    /// Whether there is a way to the IPv4 internet.
    pub ipv4: bool,
    pub ipv6: bool,
}

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_IFADDR`, `RTMGRP_IPV6_ROUTE` (rtnetlink(7)).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// A network that comes brings a dozen messages; and router advertisements repeat themselves.
const SETTLE: Duration = Duration::from_millis(200);

/// Looks for ever, on a thread of its own. `changed` hears what is there now, each time it is something else.
pub fn watch(changed: impl Fn(&Reach) + Send + 'static) -> std::io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, GROUPS))?;
    crate::supervisor::thread("network", move || {
        let mut known = Reach::look().unwrap_or_default();
        // What the messages say is not read: the state is. A lost one (ENOBUFS) is as good a reason to look.
        let mut room = [0_u8; 4096];
        loop {
            drop(socket.recv(&mut room.as_mut_slice(), 0));
            crate::supervisor::backoff::pause(SETTLE);
            if let Ok(now) = Reach::look()
                && now != known
            {
                known = now;
                changed(&known);
            }
        }
    })
}

impl Reach {
    /// Asks the kernel.
    pub fn look() -> Result<Self, NamespaceError> {
        asked(NamespaceError::Socket, ask)
    }
}

async fn ask(handle: Handle) -> Result<Reach, NamespaceError> {
    let mut reach = Reach::default();
    let mut addresses = handle.address().get().execute();
    while let Some(found) = addresses.try_next().await.map_err(NamespaceError::Netlink)? {
        reach.addresses.extend(found.attributes.iter().filter_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        }));
    }
    reach.ipv4 = leads_out(&handle, RouteMessageBuilder::<Ipv4Addr>::new().build()).await;
    reach.ipv6 = leads_out(&handle, RouteMessageBuilder::<Ipv6Addr>::new().build()).await;
    Ok(reach)
}
