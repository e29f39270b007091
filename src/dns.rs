//! The worker `innkeeper dns`: an allowlisting DNS server that asks PID 1 before it answers.
//!
//! It has no capabilities and no files: its sockets, upstreams and policy come over its standard input, and it ends
//! when that closes. It decides what may be asked; what may be *reached* is PID 1's decision.

pub mod answer;
pub mod cache;
pub mod connected;
pub mod denials;
pub mod keeper;
pub mod last_answers;
pub mod link;
pub mod lookup;
pub mod loop_mark;
pub mod name_server;
pub mod policy;
pub mod protocol;
pub mod refresh;
pub mod reply;
pub mod resolv_conf;
pub mod server;
pub mod tcp;
pub mod udp;
pub mod upstream;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::allowlist::RuleError;
use crate::channel::{self, ChannelError};
use crate::socket_table::SocketTables;
use link::{Link, Order, read_frames, write_frames};
use lookup::{Lookups, Rules};
use protocol::{FromWorker, Health, MAX_TO_WORKER, Setup, SocketKind, ToWorker};
use refresh::Fresh;
use server::Responder;
use upstream::Upstreams;

/// Health goes to PID 1 at most this often.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
/// More would only be more work at a time.
const DESCRIPTORS: u64 = 16_384;
/// Denials that could not leave are tried again after this.
const DENIAL_PAUSE: Duration = Duration::from_millis(50);

/// Why the worker ended. PID 1 starts another one.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error("dns: can't protect the process's memory (prctl PR_SET_DUMPABLE)")]
    Dumpable(#[source] io::Error),
    #[error("dns: can't take over the channel to PID 1 from standard input")]
    Channel(#[source] io::Error),
    #[error("dns: the channel to PID 1 failed")]
    Frame(#[from] ChannelError),
    #[error("dns: can't start the runtime")]
    Runtime(#[source] io::Error),
    #[error("dns: can't use a listening socket")]
    Socket(#[source] io::Error),
    #[error("dns: can't use the upstreams")]
    Upstreams(#[source] hickory_resolver::net::NetError),
    #[error("dns: a rule of the policy is not understood")]
    Policy(#[from] RuleError),
    #[error("dns: a part of the worker stopped")]
    Stopped,
}

/// The command `innkeeper dns`, after privileges were dropped. Returns when PID 1 closes the channel.
pub fn run() -> Result<(), WorkerError> {
    // The worker's uid has no other process, but a bug elsewhere should not make its memory readable either.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|e| WorkerError::Dumpable(e.into()))?;
    let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(WorkerError::Channel)?;
    serve(UnixStream::from(stdin))
}

/// Serves what comes over `channel` until PID 1 closes it.
pub fn serve(channel: UnixStream) -> Result<(), WorkerError> {
    let (setup, sockets) = match channel::receive_with_sockets(&channel, MAX_TO_WORKER)? {
        (ToWorker::Setup(setup), sockets) if setup.sockets.len() == sockets.len() => (setup, sockets),
        (ToWorker::Setup(setup), sockets) => {
            let (got, expected) = (sockets.len(), setup.sockets.len());
            return Err(ChannelError::Sockets { got, expected }.into());
        }
        (ToWorker::Policy(_) | ToWorker::Admitted(_) | ToWorker::Forget { .. }, _)
        | (ToWorker::Attributed { .. } | ToWorker::Refresh { .. }, _) => {
            return Err(ChannelError::NotSetup.into());
        }
    };
    channel.set_nonblocking(true).map_err(WorkerError::Channel)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(WorkerError::Runtime)?;
    runtime.block_on(work(channel, setup, sockets))
}

async fn work(channel: UnixStream, setup: Setup, sockets: Vec<OwnedFd>) -> Result<(), WorkerError> {
    let (reader, writer) =
        tokio::net::UnixStream::from_std(channel).map_err(WorkerError::Channel)?.into_split();
    let (link, outbox) = Link::new();
    let link = Arc::new(link);
    let Setup { sockets: kinds, upstreams, roots, policy, refresh_s, ipv4, ipv6, proxied, known } = setup;
    let rules = Rules::new(&policy)?;
    // Long texts, which nobody needs any more.
    drop(policy);
    let (announce, policies) = watch::channel(rules.generation);
    let upstreams = Upstreams::new(&upstreams, roots.as_deref()).map_err(WorkerError::Upstreams)?;
    let lookups = Arc::new(Lookups::new(rules, upstreams, link.clone()));
    drop(roots);
    lookups.restore(known);
    let ipv6 = Arc::new(AtomicBool::new(ipv6));
    let tables = SocketTables::new("/proc/net");
    let responder = Responder::new(lookups.clone(), link.clone(), tables, ipv4, ipv6.clone());
    let responder = Arc::new(responder.proxied(proxied));

    let mut tasks = JoinSet::new();
    listen(&kinds, sockets, &responder, &mut tasks)?;
    tasks.spawn(report_denials(responder.clone(), link.clone()));
    tasks.spawn(report_health(responder, lookups.clone(), link.clone()));
    let longest = Duration::from_secs(refresh_s.max(1));
    let all_due = Arc::new(Notify::new());
    let fresh = Fresh {
        lookups: lookups.clone(),
        link: link.clone(),
        longest,
        ipv4,
        ipv6: ipv6.clone(),
        at_once: refresh::at_once(raise_descriptors(DESCRIPTORS)),
    };
    tasks.spawn(fresh.keep(policies, all_due.clone()));
    link.tell(FromWorker::Serving).await;

    let (bad_rule, mut bad_rules) = tokio::sync::mpsc::channel(1);
    let on_order = |order: Order| match order {
        Order::Policy(policy) => match Rules::new(&policy) {
            Ok(rules) => {
                let generation = rules.generation;
                lookups.replace_rules(rules);
                announce.send_replace(generation);
            }
            // Full means that one is on its way already.
            Err(error) => drop(bad_rule.try_send(error)),
        },
        Order::Forget(names) => lookups.forget(&names),
        Order::Refresh { ipv6: has } => {
            ipv6.store(has, Ordering::Relaxed);
            lookups.expire_all();
            all_due.notify_one();
        }
    };
    tokio::select! {
        read = read_frames(reader, &link, on_order) => Ok(read?),
        written = write_frames(writer, outbox) => Ok(written?),
        Some(error) = bad_rules.recv() => Err(error.into()),
        Some(_) = tasks.join_next() => Err(WorkerError::Stopped),
    }
}

/// As many descriptors as the host lets the worker have, within reason; how many that are.
pub(crate) fn raise_descriptors(most: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(most, |hard| hard.min(most));
    let has = limit.current.unwrap_or(most);
    if has < wanted && setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit }).is_ok() {
        wanted
    } else {
        has
    }
}

fn listen(
    kinds: &[SocketKind],
    sockets: Vec<OwnedFd>,
    responder: &Arc<Responder>,
    tasks: &mut JoinSet<()>,
) -> Result<(), WorkerError> {
    for (kind, socket) in kinds.iter().zip(sockets) {
        match kind {
            SocketKind::Udp => {
                let socket = std::net::UdpSocket::from(socket);
                socket.set_nonblocking(true).map_err(WorkerError::Socket)?;
                let socket = tokio::net::UdpSocket::from_std(socket).map_err(WorkerError::Socket)?;
                tasks.spawn(udp::serve(socket, responder.clone()));
            }
            SocketKind::Tcp => {
                let listener = std::net::TcpListener::from(socket);
                listener.set_nonblocking(true).map_err(WorkerError::Socket)?;
                let listener = tokio::net::TcpListener::from_std(listener).map_err(WorkerError::Socket)?;
                tasks.spawn(tcp::serve(listener, responder.clone()));
            }
        }
    }
    Ok(())
}

/// Denials wait in the responder, counted, until there is room and time to tell them.
async fn report_denials(responder: Arc<Responder>, link: Arc<Link>) {
    loop {
        responder.denied.notified().await;
        while !tell_denials(&responder, &link) {
            sleep(DENIAL_PAUSE).await;
        }
    }
}

/// Whether none is left.
fn tell_denials(responder: &Responder, link: &Link) -> bool {
    let mut denials = responder.denials.lock().unwrap_or_else(PoisonError::into_inner);
    while let Some(denial) = denials.take(Instant::now()) {
        if !link.try_report(FromWorker::Denied(denial.clone())) {
            denials.put_back(denial);
            return false;
        }
    }
    denials.is_empty()
}

async fn report_health(responder: Arc<Responder>, lookups: Arc<Lookups>, link: Arc<Link>) {
    let mut last = Health::default();
    let mut ticks = interval(HEALTH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let health = Health {
            queries: responder.counters.queries.load(Ordering::Relaxed),
            allowed: responder.counters.allowed.load(Ordering::Relaxed),
            denied: responder.counters.denied.load(Ordering::Relaxed),
            upstreams: lookups.upstreams().health(),
        };
        if health != last && link.try_report(FromWorker::Health(health.clone())) {
            last = health;
        }
    }
}
