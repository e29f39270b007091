//! Octets by name: what TCP connections of the box carried out and in, as the kernel counted them for each socket.
//!
//! The kernel tells the end of every socket of this network namespace (sock_diag(7), the groups behind `ss -E`), with
//! its last `tcp_info`. Living ones are listed every two seconds and when somebody asks: a socket that is reset by its
//! owner (SO_LINGER of zero, connect(2) to AF_UNSPEC) ends with its counters at zero, so what was seen of it last
//! counts. Who wants to carry something uncounted can do so within these two seconds: the numbers are for information,
//! what may go out is the policy's affair.
//!
//! The end of a socket is told without its owner's uid (`inet_diag_handler_get_info`), so everybody's connections
//! count that go where a name of the policy is open; those of the resolver to its upstreams go elsewhere and do not. Nor do
//! those that the gate carries, and counts itself by the name that was shown.
//! Nothing is decided here.

pub mod message;
pub mod socket;
pub mod table;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::report::event;
use crate::status::report::Traffic;
use message::Connection;
use socket::{Ends, SocketError};
use table::Table;

/// Where a connection goes.
pub type Pair = (IpAddr, u16);
/// The name for which each of these pairs is open, or was; none where there is none.
pub type Names = Arc<dyn Fn(&[Pair]) -> Vec<Option<String>> + Send + Sync>;

/// The ports whose connections are counted elsewhere: by the gate, which knows the name that was shown. There are two
/// sockets of each, the client's and the gate's own, and both would be seen here.
pub type Elsewhere = Arc<dyn Fn() -> Vec<u16> + Send + Sync>;

/// Ends are read in lots: a flood of short connections wakes us ten times a second, and waits in the socket.
const LOT: Duration = Duration::from_millis(100);
/// How often living connections are listed.
const INTERVAL: Duration = Duration::from_secs(2);
/// Ends that are read at a time.
const MAX_LOT: usize = 16_384;
/// Living connections that are listed.
const MAX_LIVING: usize = 16_384;
/// Who asks again so soon gets the last answer: listing very many connections takes milliseconds.
const FRESH: Duration = Duration::from_millis(500);
/// Pairs whose name is remembered: a rule that is taken back ends its connections, and then nobody claims them.
const MAX_REMEMBERED: usize = 4096;
/// What has no name: answers to who came in, or what root let out by rules of its own.
const NAMELESS: &str = "(no name)";

/// What was measured, and why it may not be everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Measured {
    pub traffic: Vec<Traffic>,
    pub note: Option<String>,
}

/// Counts for as long as the box lives.
#[derive(Clone)]
pub struct Meter {
    shared: Arc<Mutex<State>>,
}

/// A connection that lived when it was seen last.
struct Living {
    connection: Connection,
    name: String,
    /// The last list did not have it. Its end may be told yet.
    absent: bool,
}

struct State {
    ends: Ends,
    names: Names,
    elsewhere: Elsewhere,
    /// What has ended.
    table: Table,
    living: HashMap<u64, Living>,
    listed: Instant,
    remembered: HashMap<Pair, String>,
    /// How often ends were lost, since they came faster than they could be read.
    missed: u64,
    /// Why living connections could not be listed.
    trouble: Option<String>,
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meter").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Meter {
    /// Begins to count in this thread's network namespace. An error says that this kernel does not tell.
    pub fn start(names: Names, elsewhere: Elsewhere) -> Result<Self, SocketError> {
        let ends = Ends::open()?;
        // A kernel without `tcp_diag` lists nothing and tells no ends either.
        socket::living(1)?;
        let waiting = ends.waiting().map_err(SocketError::Open)?;
        let mut state = State {
            ends,
            names,
            elsewhere,
            table: Table::default(),
            living: HashMap::new(),
            listed: Instant::now(),
            remembered: HashMap::new(),
            missed: 0,
            trouble: None,
        };
        state.list();
        let shared = Arc::new(Mutex::new(state));
        let counting = Arc::clone(&shared);
        crate::supervisor::thread("traffic", move || {
            while waiting.wait(INTERVAL) {
                lock(&counting).look(INTERVAL);
                crate::supervisor::backoff::pause(LOT);
            }
            event(
                "traffic",
                "the kernel tells no more ends of connections: octets are not counted from here on",
            );
        })
        .map_err(SocketError::Open)?;
        Ok(Self { shared })
    }

    /// What was carried so far, by name and port, the most first; living connections with what they carried until now.
    #[must_use]
    pub fn report(&self) -> Measured {
        let mut state = lock(&self.shared);
        state.look(FRESH);
        state.measured()
    }
}

impl State {
    /// Reads what has ended; lists what lives, if the last list is as old as this.
    fn look(&mut self, age: Duration) {
        // In this order a connection that ends between the two is absent from the list, and its end is read before the
        // next one.
        self.read();
        if self.listed.elapsed() >= age {
            self.list();
        }
    }

    fn read(&mut self) {
        let (ended, missed) = self.ends.read(MAX_LOT);
        self.missed = self.missed.saturating_add(missed);
        let ended: Vec<Connection> = self.ours(ended);
        for (connection, name) in self.named(ended) {
            self.living.remove(&connection.cookie);
            self.table.add(&name, connection.remote.1, &connection);
        }
    }

    /// What is counted here.
    fn ours(&self, mut connections: Vec<Connection>) -> Vec<Connection> {
        let elsewhere = (self.elsewhere)();
        connections.retain(|one| one.leaves() && !elsewhere.contains(&one.remote.1));
        connections
    }

    fn list(&mut self) {
        self.listed = Instant::now();
        let living = match socket::living(MAX_LIVING) {
            Ok(living) => self.ours(living),
            Err(error) => return self.trouble = Some(crate::report::chain(&error)),
        };
        self.trouble = None;
        let mut before = std::mem::take(&mut self.living);
        for (connection, name) in self.named(living) {
            // Connected anew: what the socket carried before is another connection's.
            if let Some(former) = before.remove(&connection.cookie)
                && (former.connection.remote != connection.remote || former.connection.sent > connection.sent)
            {
                self.end(&former);
            }
            self.living.insert(connection.cookie, Living { connection, name, absent: false });
        }
        for (cookie, gone) in before {
            if gone.absent {
                self.end(&gone);
            } else {
                self.living.insert(cookie, Living { absent: true, ..gone });
            }
        }
    }

    fn end(&mut self, gone: &Living) {
        self.table.add(&gone.name, gone.connection.remote.1, &gone.connection);
    }

    fn measured(&self) -> Measured {
        let mut table = self.table.clone();
        for living in self.living.values() {
            table.add(&living.name, living.connection.remote.1, &living.connection);
        }
        let missed = (self.missed > 0)
            .then(|| format!("not everything: connections ended too fast to be read, {} times", self.missed));
        let trouble = self.trouble.as_ref().map(|why| format!("living connections are not in it: {why}"));
        Measured { traffic: table.rows(), note: missed.or(trouble) }
    }

    /// Each with the name that it goes to, asked once for all.
    fn named(&mut self, connections: Vec<Connection>) -> Vec<(Connection, String)> {
        let mut pairs: Vec<Pair> = connections.iter().map(|connection| connection.remote).collect();
        pairs.sort_unstable();
        pairs.dedup();
        if pairs.is_empty() {
            return Vec::new();
        }
        let names = (self.names)(&pairs);
        if self.remembered.len().saturating_add(pairs.len()) > MAX_REMEMBERED {
            self.remembered.clear();
        }
        for (pair, name) in pairs.into_iter().zip(names) {
            if let Some(name) = name {
                self.remembered.insert(pair, name);
            }
        }
        let name = |pair: &Pair| self.remembered.get(pair).cloned().unwrap_or_else(|| NAMELESS.to_owned());
        connections.into_iter().map(|connection| (connection, name(&connection.remote))).collect()
    }
}
