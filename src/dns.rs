//! The worker `innkeeper dns`: an allowlisting DNS server that asks PID 1 before it answers.
//!
//! It has no capabilities and no files: its sockets, upstreams and policy come over its standard input, and it ends
//! when that closes. It decides what may be asked; what may be *reached* is PID 1's decision.

pub mod answer;
pub mod cache;
pub mod connected;
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
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::allowlist::RuleError;
use crate::channel::ChannelError;
use crate::socket_table::SocketTables;
use crate::worker::protocol::{ClientDenial, Order as _};
use crate::worker::{self, BeginError, Begun};
use link::{Link, Order, read_frames, write_frames};
use lookup::{Lookups, Rules};
use protocol::{FromWorker, Health, Setup, SocketKind, ToWorker};
use refresh::Fresh;
use server::Responder;
use upstream::Upstreams;

/// Health goes to PID 1 at most this often.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);
/// More would only be more work at a time.
const DESCRIPTORS: u64 = 16_384;

/// Why the worker ended. PID 1 starts another one.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Begin(#[from] BeginError),
    #[error("dns: the channel to PID 1 failed")]
    Frame(#[from] ChannelError),
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
    serve(worker::take_over(ToWorker::WORKER)?)
}

/// Serves what comes over `channel` until PID 1 closes it.
pub fn serve(channel: UnixStream) -> Result<(), WorkerError> {
    worker::serve::<ToWorker, _>(channel, work)
}

async fn work(begun: Begun<Setup>) -> Result<(), WorkerError> {
    let Begun { setup, sockets, reader, writer } = begun;
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
        at_once: refresh::at_once(worker::raise_descriptors(DESCRIPTORS)),
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

async fn report_denials(responder: Arc<Responder>, link: Arc<Link>) {
    let tell = |denial: ClientDenial| link.try_report(FromWorker::Denied(denial));
    responder.unreported.report(tell).await;
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
