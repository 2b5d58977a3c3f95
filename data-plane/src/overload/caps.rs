//! How many connections of clients there may be: of all threads together, from one address, and from one address before
//! they have shown a good credential. The last is what one attacker can hold; whoever is known is not counted there.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

use super::memory::Stage;
use crate::metrics::Metrics;

/// When memory has run out, so many strangers may still come: among them may be who asks whether the proxy lives.
const STRANGERS_IN_NEED: usize = 64;
/// While places for strangers get scarce, one address may have so many of them.
const STRANGERS_WHEN_SCARCE: usize = 4;
/// What a stranger can make the process hold: the longest head that is read, and the connection itself.
const STRANGER_BYTES: u64 = 48 << 10;
/// Files that are no connection of a client: the spool, the control plane, the admin port.
const OTHER_FILES: u64 = 64;

/// The caps of the process.
pub struct Caps {
    total: usize,
    per_address: usize,
    strangers_per_address: usize,
    most_strangers: usize,
    open: AtomicUsize,
    strangers: AtomicUsize,
    by_address: Mutex<HashMap<IpAddr, Count>>,
    /// The process is about to end: who has its answer shall connect elsewhere.
    leaving: AtomicBool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    all: usize,
    strangers: usize,
}

impl Caps {
    /// Caps for the process, for each address, for the strangers of each address, and for all strangers.
    pub fn new(
        total: usize,
        per_address: usize,
        strangers_per_address: usize,
        most_strangers: usize,
    ) -> Self {
        Self {
            total,
            per_address,
            strangers_per_address,
            most_strangers,
            open: AtomicUsize::new(0),
            strangers: AtomicUsize::new(0),
            by_address: Mutex::default(),
            leaving: AtomicBool::new(false),
        }
    }

    /// How many connections a process that may open so many files can take: a quarter is left for connections to servers,
    /// without which those of clients are of no use.
    pub fn for_files(configured: usize, files: Option<u64>) -> usize {
        let room = files.map_or(u64::MAX, |files| files.saturating_sub(OTHER_FILES) / 4 * 3);
        configured.min(usize::try_from(room).unwrap_or(usize::MAX)).max(1)
    }

    /// How many strangers a process with so much memory has room for: they may hold a quarter of it.
    pub fn for_memory(limit: Option<u64>) -> usize {
        let room = limit.map_or(u64::MAX, |limit| limit / 4 / STRANGER_BYTES);
        usize::try_from(room).unwrap_or(usize::MAX).max(STRANGERS_IN_NEED)
    }

    /// From now on every answer says that its connection is the last one.
    pub fn leave(&self) {
        self.leaving.store(true, Relaxed);
    }

    /// Whether the process is about to end.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Relaxed)
    }

    /// Connections that are open now.
    pub fn open(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// A place for one more connection, or none.
    pub fn enter(self: &Arc<Self>, address: IpAddr, stage: Stage, metrics: &Metrics) -> Option<Guest> {
        let strangers = self.strangers.load(Relaxed);
        let full = self.open.load(Relaxed) >= self.total
            || strangers >= self.most_strangers
            || stage == Stage::Critical && strangers >= STRANGERS_IN_NEED;
        // Who holds many places does not keep out who wants one.
        let strangers_here = match strangers >= self.most_strangers / 2 {
            true => self.strangers_per_address.min(STRANGERS_WHEN_SCARCE),
            false => self.strangers_per_address,
        };
        let mut by_address = self.by_address.lock();
        let count = by_address.entry(address).or_default();
        if full || count.all >= self.per_address || count.strangers >= strangers_here {
            if count.all == 0 {
                by_address.remove(&address);
            }
            return None;
        }
        count.all += 1;
        count.strangers += 1;
        drop(by_address);
        self.open.fetch_add(1, Relaxed);
        self.strangers.fetch_add(1, Relaxed);
        metrics.connections.inc();
        let (caps, metrics) = (Arc::clone(self), metrics.clone());
        Some(Guest(Arc::new(Seat { caps, address, known: AtomicBool::new(false), metrics })))
    }
}

/// One connection's place under the caps, given back when the last clone is dropped.
#[derive(Clone)]
pub struct Guest(Arc<Seat>);

struct Seat {
    caps: Arc<Caps>,
    address: IpAddr,
    known: AtomicBool,
    metrics: Metrics,
}

impl Guest {
    /// It has shown a good credential.
    pub fn is_known_now(&self) {
        if !self.0.known.swap(true, Relaxed) {
            self.0.caps.strangers.fetch_sub(1, Relaxed);
            if let Some(count) = self.0.caps.by_address.lock().get_mut(&self.0.address) {
                count.strangers -= 1;
            }
        }
    }

    /// Whether it has ever shown a good credential.
    pub fn is_known(&self) -> bool {
        self.0.known.load(Relaxed)
    }

    /// Whether its process is about to end.
    pub fn is_to_leave(&self) -> bool {
        self.0.caps.is_leaving()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let stranger = !*self.known.get_mut();
        self.caps.open.fetch_sub(1, Relaxed);
        self.caps.strangers.fetch_sub(usize::from(stranger), Relaxed);
        let mut by_address = self.caps.by_address.lock();
        if let Some(count) = by_address.get_mut(&self.address) {
            count.all -= 1;
            count.strangers -= usize::from(stranger);
            if count.all == 0 {
                by_address.remove(&self.address);
            }
        }
        drop(by_address);
        self.metrics.connections.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use waffles_runtime::telemetry;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn strangers_fill_only_their_own_places() {
        let caps = Arc::new(Caps::new(10, 5, 2, 100));
        let metrics = Metrics::new(&telemetry::Metrics::new());
        let enter = |address| caps.enter(address, Stage::Calm, &metrics);
        let (first, second) = (enter(HERE).unwrap(), enter(HERE).unwrap());
        assert!(enter(HERE).is_none(), "two strangers of one address are enough");
        let elsewhere = enter(THERE).unwrap();
        first.is_known_now();
        first.is_known_now();
        let third = enter(HERE).unwrap();
        assert!(enter(HERE).is_none());
        third.is_known_now();
        second.is_known_now();
        let more: Vec<Guest> = std::iter::from_fn(|| enter(HERE).inspect(Guest::is_known_now)).collect();
        assert_eq!(more.len(), 2, "of one address five");
        assert_eq!(metrics.connections.get(), 6);
        drop((first, second, third, elsewhere, more));
        assert_eq!(metrics.connections.get(), 0);
        assert!(caps.by_address.lock().is_empty());
        assert_eq!((caps.open.load(Relaxed), caps.strangers.load(Relaxed)), (0, 0));
    }

    #[test]
    fn when_places_get_scarce_those_who_hold_many_get_no_more() {
        let caps = Arc::new(Caps::new(1000, 1000, 1000, 40));
        let metrics = Metrics::new(&telemetry::Metrics::new());
        let enter = |address| caps.enter(address, Stage::Calm, &metrics);
        let many: Vec<Guest> = std::iter::from_fn(|| enter(HERE)).collect();
        assert_eq!(many.len(), 20, "half of the places");
        let others: Vec<Guest> = std::iter::from_fn(|| enter(THERE)).collect();
        assert_eq!(others.len(), STRANGERS_WHEN_SCARCE);
        many[0].is_known_now();
        assert!(enter(HERE).is_none(), "nineteen are still many");
        assert_eq!(Caps::for_memory(Some(256 << 20)), 1365);
        assert_eq!(Caps::for_memory(Some(1 << 20)), STRANGERS_IN_NEED);
        assert_eq!(Caps::for_memory(None), usize::MAX);
    }

    #[test]
    fn a_quarter_of_the_files_is_for_servers() {
        assert_eq!(Caps::for_files(20_000, None), 20_000);
        assert_eq!(Caps::for_files(20_000, Some(1 << 20)), 20_000);
        assert_eq!(Caps::for_files(20_000, Some(1024)), 720);
        assert_eq!(Caps::for_files(20_000, Some(10)), 1, "it says so at once when it is used");
    }
}
