//! The connections that live: how many there may be, which of them is over, and what each name carried.
//!
//! Nothing here waits. A sweep looks at all of them once a second, so that no connection needs timers of its own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

use super::protocol::{Totals, Used};
use crate::allowlist::{DomainName, Wire};

/// A client that has shown no name is given up after this: later than its own limits for the first octet and for the whole
/// name, which are told.
const SILENCE: Duration = Duration::from_secs(40);
/// One that has shown a name, and waits until it is reached, after this.
pub const OPENING: Duration = Duration::from_secs(75);
/// A client that says nothing gives its place up after this, if it is needed.
const PATIENCE: Duration = Duration::from_secs(1);
/// The last places are for others than the agent.
const RESERVED: usize = 16;

/// What a use is counted by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub name: DomainName,
    pub address: IpAddr,
    pub port: u16,
    pub uid: Option<u32>,
}

/// A connection that was let through.
#[derive(Debug)]
pub struct Passage {
    pub key: Key,
    pub wire: Wire,
    pub ech: bool,
    sent: AtomicU64,
    received: AtomicU64,
    /// When something moved last, in seconds since the worker began.
    moved: AtomicU32,
    clock: Arc<AtomicU32>,
}

impl Passage {
    /// Octets went out.
    pub fn sent(&self, octets: usize) {
        self.count(&self.sent, octets);
    }

    /// Octets came in.
    pub fn received(&self, octets: usize) {
        self.count(&self.received, octets);
    }

    fn count(&self, sum: &AtomicU64, octets: usize) {
        sum.fetch_add(u64::try_from(octets).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.moved.store(self.clock.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Living {
    began: Instant,
    /// Whose it is, once that is known.
    uid: Option<u32>,
    /// It has shown a name that is allowed.
    showed: bool,
    task: Option<AbortHandle>,
    passages: Vec<Arc<Passage>>,
    /// Octets of the passages that were told already.
    told: Vec<(u64, u64)>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    count: u64,
    sent: u64,
    received: u64,
}

#[derive(Debug, Default)]
struct State {
    living: HashMap<u64, Living>,
    next: u64,
    /// Not told yet.
    pending: HashMap<Key, Sum>,
    totals: Totals,
}

/// All of them.
#[derive(Debug)]
pub struct Roll {
    state: Mutex<State>,
    /// Seconds since the worker began, for who counts.
    clock: Arc<AtomicU32>,
    began: Instant,
    most: usize,
}

/// A connection's place; it is free again when this goes.
#[derive(Debug)]
pub struct Place {
    roll: Arc<Roll>,
    id: u64,
}

/// Whether there is a place for one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Yes,
    /// For others than the agent.
    Little,
    No,
}

impl Roll {
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { state: Mutex::default(), clock: Arc::default(), began: Instant::now(), most }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more may come. Where it is full, who has shown nothing for longest makes room, but nobody else than
    /// the agent for whoever that is.
    #[must_use]
    pub fn room(&self, agent: u32) -> Room {
        let mut state = self.state();
        let free = self.most.saturating_sub(state.living.len());
        if free > RESERVED {
            return Room::Yes;
        }
        let waits = |living: &Living| {
            living.passages.is_empty() && !living.showed && living.uid.is_none_or(|uid| uid == agent)
        };
        let silent = state.living.iter().filter(|(_, living)| waits(living));
        let eldest = silent.min_by_key(|(_, living)| living.began).map(|(id, living)| (*id, living.began));
        if let Some((id, began)) = eldest
            && began.elapsed() >= PATIENCE
            && let Some(living) = state.living.remove(&id)
        {
            living.end();
            return Room::Yes;
        }
        if free > 0 { Room::Little } else { Room::No }
    }

    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Place {
        let mut state = self.state();
        state.next += 1;
        let id = state.next;
        let living = Living {
            began: Instant::now(),
            uid: None,
            showed: false,
            task: None,
            passages: Vec::new(),
            told: Vec::new(),
        };
        state.living.insert(id, living);
        Place { roll: Arc::clone(self), id }
    }

    /// Who carries a connection.
    pub fn carry(&self, id: u64, task: AbortHandle) {
        if let Some(living) = self.state().living.get_mut(&id) {
            living.task = Some(task);
        } else {
            // It is over, or had to make room.
            task.abort();
        }
    }

    pub fn count_denial(&self) {
        self.state().totals.denied += 1;
    }

    pub fn count_failure(&self) {
        self.state().totals.failed += 1;
    }

    /// Ends what is over: where nothing moves, what is too old, who takes too long to begin.
    pub fn sweep(&self, idle: Duration, lifetime: Duration) {
        let now = u32::try_from(self.began.elapsed().as_secs()).unwrap_or(u32::MAX);
        self.clock.store(now, Ordering::Relaxed);
        let still = |passage: &Arc<Passage>| {
            let moved = passage.moved.load(Ordering::Relaxed);
            Duration::from_secs(now.saturating_sub(moved).into()) >= idle
        };
        let over = |living: &Living| {
            let age = living.began.elapsed();
            match living.passages.last() {
                None if living.showed => age >= OPENING,
                None => age >= SILENCE,
                Some(last) => age >= lifetime || still(last),
            }
        };
        self.state().end(over);
    }

    /// Ends what another policy does not let pass.
    pub fn cut(&self, passes: impl Fn(&Passage) -> bool) {
        self.state().end(|living| living.passages.iter().any(|passage| !passes(passage)));
    }

    /// What came on top since the last time, at most so much.
    #[must_use]
    pub fn take_uses(&self, most: usize) -> Vec<Used> {
        let mut state = self.state();
        state.collect();
        let keys: Vec<Key> = state.pending.keys().take(most).cloned().collect();
        let taken = keys.into_iter().filter_map(|key| state.pending.remove_entry(&key));
        taken.map(|(key, sum)| used(key, sum)).collect()
    }

    /// What could not be told goes back.
    pub fn put_back(&self, uses: Vec<Used>) {
        let mut state = self.state();
        for used in uses {
            let Used { name, address, port, uid, count, bytes_out, bytes_in } = used;
            let sum = Sum { count, sent: bytes_out, received: bytes_in };
            state.add(Key { name, address, port, uid }, sum);
        }
    }

    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut state = self.state();
        state.collect();
        let open = u64::try_from(state.living.len()).unwrap_or(u64::MAX);
        Totals { open, ..state.totals }
    }
}

fn used(key: Key, sum: Sum) -> Used {
    let Key { name, address, port, uid } = key;
    Used { name, address, port, uid, count: sum.count, bytes_out: sum.sent, bytes_in: sum.received }
}

/// Different uses that wait to be told. Beyond, what a use carried is in the totals alone.
const MOST_PENDING: usize = 8192;

impl State {
    fn add(&mut self, key: Key, sum: Sum) {
        if self.pending.len() >= MOST_PENDING && !self.pending.contains_key(&key) {
            return;
        }
        let known = self.pending.entry(key).or_default();
        known.count += sum.count;
        known.sent = known.sent.saturating_add(sum.sent);
        known.received = known.received.saturating_add(sum.received);
    }

    /// Notes what living connections carried since the last look.
    fn collect(&mut self) {
        let mut living = std::mem::take(&mut self.living);
        for one in living.values_mut() {
            self.note(one);
        }
        self.living = living;
    }

    fn note(&mut self, living: &mut Living) {
        for (passage, told) in living.passages.iter().zip(&mut living.told) {
            let now = (passage.sent.load(Ordering::Relaxed), passage.received.load(Ordering::Relaxed));
            if now == *told {
                continue;
            }
            let (sent, received) = (now.0.saturating_sub(told.0), now.1.saturating_sub(told.1));
            *told = now;
            self.totals.bytes_out = self.totals.bytes_out.saturating_add(sent);
            self.totals.bytes_in = self.totals.bytes_in.saturating_add(received);
            self.add(passage.key.clone(), Sum { count: 0, sent, received });
        }
    }

    fn end(&mut self, over: impl Fn(&Living) -> bool) {
        let ids: Vec<u64> =
            self.living.iter().filter(|(_, living)| over(living)).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(mut living) = self.living.remove(&id) {
                self.note(&mut living);
                living.end();
            }
        }
    }
}

impl Living {
    fn end(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Place {
    /// Whose it is.
    pub fn belongs(&self, uid: Option<u32>) {
        if let Some(living) = self.roll.state().living.get_mut(&self.id) {
            living.uid = uid;
        }
    }

    /// It has shown a name that is allowed.
    pub fn showed(&self) {
        if let Some(living) = self.roll.state().living.get_mut(&self.id) {
            living.showed = true;
        }
    }

    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// It was let through.
    #[must_use]
    pub fn pass(&self, key: Key, wire: Wire, ech: bool) -> Arc<Passage> {
        let clock = Arc::clone(&self.roll.clock);
        let moved = AtomicU32::new(clock.load(Ordering::Relaxed));
        let (sent, received) = (AtomicU64::new(0), AtomicU64::new(0));
        let passage = Arc::new(Passage { key: key.clone(), wire, ech, sent, received, moved, clock });
        let mut state = self.roll.state();
        state.totals.connections += 1;
        state.add(key, Sum { count: 1, ..Sum::default() });
        if let Some(mut living) = state.living.remove(&self.id) {
            // A client of the proxy that goes on to another host has left the one before.
            state.note(&mut living);
            (living.passages, living.told) = (vec![Arc::clone(&passage)], vec![(0, 0)]);
            state.living.insert(self.id, living);
        }
        passage
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.roll.state();
        if let Some(mut living) = state.living.remove(&self.id) {
            state.note(&mut living);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        let name = DomainName::parse(name).unwrap();
        Key { name, address: "192.0.2.1".parse().unwrap(), port: 443, uid: Some(1000) }
    }

    /// A task that lives until it is ended.
    fn forever() -> tokio::task::JoinHandle<()> {
        tokio::spawn(std::future::pending())
    }

    async fn is_ended(task: tokio::task::JoinHandle<()>) -> bool {
        tokio::task::yield_now().await;
        task.is_finished()
    }

    #[tokio::test]
    async fn octets_are_told_once_and_lost_by_nobody() {
        let roll = Arc::new(Roll::new(64));
        let place = roll.enter();
        let passage = place.pass(key("a.test"), Wire::Tls, false);
        passage.sent(10);
        passage.received(4);
        let told = roll.take_uses(9);
        assert_eq!((told[0].count, told[0].bytes_out, told[0].bytes_in), (1, 10, 4));
        assert!(roll.take_uses(9).is_empty());
        passage.sent(5);
        drop(place);
        let told = roll.take_uses(9);
        assert_eq!((told[0].count, told[0].bytes_out), (0, 5), "what came after the last look");
        roll.put_back(told);
        assert_eq!(roll.take_uses(9)[0].bytes_out, 5);
        let totals = roll.totals();
        assert_eq!((totals.connections, totals.bytes_out, totals.bytes_in, totals.open), (1, 15, 4, 0));
    }

    #[tokio::test]
    async fn t56_what_does_not_move_or_is_too_old_ends() {
        let roll = Arc::new(Roll::new(64));
        let (task, place) = (forever(), roll.enter());
        let passage = place.pass(key("a.test"), Wire::Tls, false);
        roll.carry(place.id(), task.abort_handle());
        roll.sweep(Duration::from_secs(5), Duration::from_secs(60));
        assert_eq!(roll.totals().open, 1);
        passage.sent(1);
        roll.sweep(Duration::ZERO, Duration::from_secs(60));
        assert!(is_ended(task).await);
        let (task, place) = (forever(), roll.enter());
        drop(place.pass(key("a.test"), Wire::Tls, false));
        roll.carry(place.id(), task.abort_handle());
        roll.sweep(Duration::from_secs(60), Duration::ZERO);
        assert!(is_ended(task).await);
        assert_eq!(roll.totals().open, 0);
    }

    #[tokio::test]
    async fn what_another_policy_forbids_is_cut_and_the_rest_is_not() {
        let roll = Arc::new(Roll::new(64));
        let living: Vec<_> = ["kept.test", "cut.test"]
            .into_iter()
            .map(|name| {
                let (task, place) = (forever(), roll.enter());
                drop(place.pass(key(name), Wire::Tls, false));
                roll.carry(place.id(), task.abort_handle());
                (task, place)
            })
            .collect();
        roll.cut(|passage| passage.key.name.as_str() == "kept.test");
        let mut ended = Vec::new();
        for (task, place) in living {
            ended.push(is_ended(task).await);
            drop(place);
        }
        assert_eq!(ended, [false, true]);
    }

    #[tokio::test]
    async fn t58_where_it_is_full_the_silent_make_room_and_the_last_places_are_not_the_agents() {
        let most = RESERVED + 2;
        let roll = Arc::new(Roll::new(most));
        let mut places: Vec<_> = (0..2)
            .map(|_| {
                let place = roll.enter();
                drop(place.pass(key("a.test"), Wire::Tls, false));
                place
            })
            .collect();
        assert_eq!(roll.room(1000), Room::Little);
        places.extend((0..RESERVED).map(|_| roll.enter()));
        assert_eq!(roll.room(1000), Room::No, "nobody has been silent for long");
        let task = forever();
        roll.carry(places[2].id(), task.abort_handle());
        for living in roll.state().living.values_mut().filter(|living| living.passages.is_empty()) {
            living.began = living.began.checked_sub(PATIENCE).unwrap();
        }
        let eldest = roll.state().living.get(&places[2].id()).unwrap().began;
        roll.state().living.get_mut(&places[2].id()).unwrap().began =
            eldest.checked_sub(Duration::from_secs(1)).unwrap();
        assert_eq!(roll.room(1000), Room::Yes);
        assert!(is_ended(task).await);
        for place in places.iter().skip(3) {
            place.belongs(Some(0));
        }
        for living in roll.state().living.values_mut() {
            living.began = living.began.checked_sub(PATIENCE).unwrap();
        }
        assert_eq!(roll.room(1000), Room::Little, "nobody else gives way to the agent");
        drop(places);
        assert_eq!(roll.room(1000), Room::Yes);
    }
}
