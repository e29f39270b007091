//! The network namespace: whether it is ours alone, and what it offers.
//!
//! A lockdown in the host's own namespace would sever the operator's machine, so this is asked before anything is
//! touched.

pub mod changes;

use std::net::{Ipv6Addr, SocketAddr};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, PoisonError};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::{Handle, RouteMessageBuilder};

#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error("cannot ask the kernel for its interfaces and routes")]
    Netlink(#[source] rtnetlink::Error),
    #[error("cannot open a routing socket")]
    Socket(#[source] std::io::Error),
    #[error("the thread that looked at the network has ended")]
    Gone,
}

/// What was found, without having changed anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// The network namespace that the kernel booted with.
    pub initial: bool,
    /// The pid namespace that the kernel booted with.
    pub initial_pids: bool,
    /// Names of bridges: somebody routes for others here.
    pub bridges: Vec<String>,
    pub interfaces: Vec<String>,
    /// Whether a packet to the IPv6 internet has somewhere to go.
    pub ipv6_route: bool,
}

/// What was there before us: looked at on a thread of its own, while the configuration is read.
#[derive(Debug)]
pub struct Surroundings {
    network: Mutex<Receiver<Result<Network, NamespaceError>>>,
    listeners: Mutex<Option<Receiver<Listeners>>>,
    /// Held as long as the box lives: see [`Surroundings::take`].
    taken: Mutex<Option<UnixDatagram>>,
}

/// An abstract socket's name belongs to the network namespace, to no file system, and ends with its holder (unix(7)).
const NAME: &[u8] = b"innkeeper";

/// A socket that listened before Innkeeper opened its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    pub address: SocketAddr,
    pub udp: bool,
}

impl Surroundings {
    /// Begins to look.
    pub fn look() -> std::io::Result<Self> {
        let (tell_network, network) = mpsc::channel();
        crate::supervisor::thread("surroundings", move || {
            // Nobody listens where the boot has failed already.
            drop(tell_network.send(Network::inspect()));
        })?;
        Ok(Self { network: Mutex::new(network), listeners: Mutex::new(None), taken: Mutex::new(None) })
    }

    /// Takes the network for this box alone, before anything in it is changed: a second box would put its own rules in the
    /// place of the first one's.
    pub fn take(&self) -> std::io::Result<()> {
        let taken = UnixDatagram::bind_addr(&std::os::unix::net::SocketAddr::from_abstract_name(NAME)?)?;
        *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = Some(taken);
        Ok(())
    }

    /// Whether a box has taken this network. A datagram socket finds a name by connecting, which sends nothing.
    #[must_use]
    pub fn occupied() -> bool {
        let name = std::os::unix::net::SocketAddr::from_abstract_name(NAME);
        let asked = UnixDatagram::unbound().and_then(|socket| socket.connect_addr(&name?));
        asked.is_ok()
    }

    /// Begins to look who listens here: once the lockdown is in, which must not wait for it.
    pub fn look_for_listeners(&self) -> std::io::Result<()> {
        let (tell, listeners) = mpsc::channel();
        // Nobody waits for it where the boot has failed.
        crate::supervisor::thread("listeners", move || drop(tell.send(older_listeners())))?;
        *self.listeners.lock().unwrap_or_else(PoisonError::into_inner) = Some(listeners);
        Ok(())
    }

    /// The network namespace; asked once.
    pub fn network(&self) -> Result<Network, NamespaceError> {
        let receiver = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        receiver.recv().unwrap_or(Err(NamespaceError::Gone))
    }

    /// Who listens here beside us; asked once, and waited for before our own listeners are opened.
    pub fn listeners(&self) -> Listeners {
        let begun = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).take();
        // No thread was to be had: looked at here.
        begun.and_then(|listeners| listeners.recv().ok()).unwrap_or_else(older_listeners)
    }
}

/// Who listens, or why that can't be seen.
pub type Listeners = Result<Vec<Listener>, procfs::ProcError>;

/// A kernel without IPv6 has no such table.
fn table_of_ipv6<T>(table: procfs::ProcResult<Vec<T>>) -> procfs::ProcResult<Vec<T>> {
    match table {
        Err(procfs::ProcError::NotFound(_)) => Ok(Vec::new()),
        table => table,
    }
}

/// A pod's sidecar, the engine. The kernel takes milliseconds for these tables, however short they are.
pub fn older_listeners() -> Listeners {
    let tcp = procfs::net::tcp()?.into_iter().chain(table_of_ipv6(procfs::net::tcp6())?);
    let tcp = tcp
        .filter(|entry| entry.state == procfs::net::TcpState::Listen)
        .map(|entry| Listener { address: entry.local_address, udp: false });
    let udp = procfs::net::udp()?.into_iter().chain(table_of_ipv6(procfs::net::udp6())?);
    let udp = udp
        .filter(|entry| entry.remote_address.port() == 0)
        .map(|entry| Listener { address: entry.local_address, udp: true });
    Ok(tcp.chain(udp).collect())
}

/// A sysctl that is registered for the first network namespace only (net/core/sysctl_net_core.c).
const INITIAL_NET_ONLY: &str = "/proc/sys/net/core/netdev_budget";

impl Network {
    /// Looks around by rtnetlink.
    pub fn inspect() -> Result<Self, NamespaceError> {
        let mut network = asked(NamespaceError::Socket, ask)?;
        network.initial = Path::new(INITIAL_NET_ONLY).exists();
        network.initial_pids = crate::kernel::initial_pids();
        Ok(network)
    }

    /// Why Innkeeper must not touch this namespace, if so. `pid1`: whether we are the first process; `machine`:
    /// whether the environment says that this is a machine of its own (Fly) although we are not.
    #[must_use]
    pub fn shared(&self, pid1: bool, machine: bool) -> Option<String> {
        let own_kernel = self.initial && self.initial_pids && (pid1 || machine);
        if own_kernel {
            return None;
        }
        if self.initial {
            let reason = "this is the host's own network namespace (--network host): \
                          a firewall here would cut the host off";
            return Some(reason.to_owned());
        }
        (!self.bridges.is_empty()).then(|| {
            format!(
                "this network namespace has the bridge {}: others are routed here",
                self.bridges.join(", ")
            )
        })
    }
}

/// Speaks with the kernel by rtnetlink, on this thread and in its network namespace. `socket`: what it is called that there
/// is no way to.
pub(crate) fn asked<T, E, F>(
    socket: impl Fn(std::io::Error) -> E,
    ask: impl FnOnce(Handle) -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(&socket)?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(&socket)?;
        let connection = tokio::spawn(connection);
        let answer = ask(handle).await;
        connection.abort();
        answer
    })
}

/// Whether there is a default route of this family that is not the kernel's own "unreachable" on loopback.
async fn leads_out(handle: &Handle, question: RouteMessage) -> bool {
    let mut routes = handle.route().get(question).execute();
    let mut found = false;
    // An error ends it too: a kernel without the family has no such routes.
    while let Ok(Some(route)) = routes.try_next().await {
        let on_loopback = |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::Oif(LOOPBACK));
        found |= route.header.destination_prefix_length == 0 && !route.attributes.iter().any(on_loopback);
    }
    found
}

async fn ask(handle: Handle) -> Result<Network, NamespaceError> {
    let mut network = Network::default();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.map_err(NamespaceError::Netlink)? {
        let name = name(&link);
        if is_bridge(&link) {
            network.bridges.push(name.clone());
        }
        network.interfaces.push(name);
    }
    network.ipv6_route = leads_out(&handle, RouteMessageBuilder::<Ipv6Addr>::new().build()).await;
    Ok(network)
}

/// The loopback interface is the first of every network namespace.
const LOOPBACK: u32 = 1;

fn name(link: &LinkMessage) -> String {
    let named = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    named.unwrap_or_else(|| link.header.index.to_string())
}

fn is_bridge(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => {
            infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge)))
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::Network;

    fn network(initial: bool, initial_pids: bool, bridges: &[&str]) -> Network {
        let bridges = bridges.iter().map(|s| (*s).to_owned()).collect();
        Network { initial, initial_pids, bridges, ..Network::default() }
    }

    #[test]
    fn t205_the_hosts_network_is_refused_and_a_machine_of_our_own_is_not() {
        assert!(network(true, false, &["docker0"]).shared(true, false).is_some(), "--network host");
        assert!(network(true, true, &[]).shared(false, false).is_some(), "--network host --pid host");
        assert!(network(true, true, &[]).shared(true, false).is_none(), "pid 1 of a VM");
        assert!(network(true, true, &[]).shared(false, true).is_none(), "Fly Machine");
        assert!(network(false, false, &["br0"]).shared(true, false).is_some(), "somebody's router");
        assert!(network(false, false, &[]).shared(true, false).is_none(), "a container of its own");
    }
}
