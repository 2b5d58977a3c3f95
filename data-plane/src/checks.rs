//! The task that looks at servers: those that this proxy is told to, each when its turn comes, and at once where somebody
//! asks or calls begin to fail. It runs beside the admin port, so that no call waits for it.

mod look;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;
use waffles_core::health::Check;
use waffles_core::snapshot::ServerEntry;
use waffles_runtime::task;

use crate::health::{Assigned, Found, Monitor, Order};
use crate::shared::Means;

/// Checks under way at the most. Beyond it those that are due wait for one to end: they come late, and none is lost.
const MOST_AT_ONCE: usize = 64;
/// When so few are new, they are looked at at once; when more are, over an interval, so that a start is no storm.
const FEW: usize = 16;
/// The pause of the task where nothing is due.
const LONG: Duration = Duration::from_secs(60);
/// How often it is looked for servers of which nobody speaks any more.
const SWEEP: Duration = Duration::from_secs(10);

/// A check that is done.
struct Done {
    entry: Arc<ServerEntry>,
    found: Vec<Found>,
    order: Option<Uuid>,
    took: Duration,
}

/// When a server's turn comes.
#[derive(Debug)]
struct Turn {
    version: u64,
    due: Instant,
    running: bool,
    /// The newest order that waits for a check that begins after it.
    order: Option<Uuid>,
    hurried: bool,
}

/// Looks at servers until the drain.
pub async fn run(monitor: Arc<Monitor>, means: Means) {
    let Some((orders, nudges)) = monitor.work() else {
        tracing::error!("a second task would check servers; only the first does");
        return;
    };
    let drain = means.drain.clone();
    let (assigned, changes) = (monitor.assigned(), means.current.changes());
    let mut rounds = Rounds {
        monitor,
        means,
        turns: HashMap::new(),
        queue: BTreeSet::new(),
        running: FuturesUnordered::new(),
    };
    tokio::select! {
        () = drain.started() => {}
        () = rounds.go(assigned, changes, orders, nudges) => {}
    }
    // What is under way ends by itself and closes what it opened: its task lives on without anybody who waits for it.
}

struct Rounds {
    monitor: Arc<Monitor>,
    means: Means,
    turns: HashMap<Uuid, Turn>,
    /// The same in the order in which they are due.
    queue: BTreeSet<(Instant, Uuid)>,
    running: FuturesUnordered<JoinHandle<Done>>,
}

impl Rounds {
    async fn go(
        &mut self,
        mut assigned: watch::Receiver<Assigned>,
        mut changes: watch::Receiver<u64>,
        mut orders: mpsc::Receiver<Order>,
        mut nudges: mpsc::Receiver<Order>,
    ) {
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            let now_assigned = assigned.borrow_and_update().clone();
            changes.mark_unchanged();
            self.agree(&now_assigned);
            // Until who is to be checked changes.
            loop {
                self.start_due();
                let next = self.queue.first().map_or(Instant::now() + LONG, |(due, _)| *due);
                let room = self.running.len() < MOST_AT_ONCE;
                tokio::select! {
                    changed = assigned.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    changed = changes.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    Some(order) = orders.recv() => self.hurry(order),
                    Some(nudge) = nudges.recv() => self.hurry(nudge),
                    Some(done) = self.running.next(), if !self.running.is_empty() => self.finish(done),
                    () = tokio::time::sleep_until(next), if room => {}
                    _ = sweep.tick() => self.monitor.sweep(),
                }
            }
        }
    }

    /// Gives a turn to each server that is to be checked, and takes it from the others.
    fn agree(&mut self, assigned: &Assigned) {
        let snapshot = self.means.current.load();
        let wanted = |entry: &&Arc<ServerEntry>| {
            let server = &entry.server;
            server.enabled && server.spec.health.check != Check::Off && assigned.contains(&server.id)
        };
        let wanted: HashMap<Uuid, &Arc<ServerEntry>> =
            snapshot.servers().filter(wanted).map(|entry| (entry.server.id, entry)).collect();
        let over: Vec<Uuid> = self.turns.keys().filter(|id| !wanted.contains_key(id)).copied().collect();
        for id in over {
            if let Some(turn) = self.turns.remove(&id) {
                self.queue.remove(&(turn.due, id));
            }
            self.monitor.end(id);
        }
        let stale = |entry: &&Arc<ServerEntry>| {
            self.turns.get(&entry.server.id).is_none_or(|turn| turn.version != entry.server.version)
        };
        let stale: Vec<Arc<ServerEntry>> = wanted.into_values().filter(stale).cloned().collect();
        let few = stale.len() <= FEW;
        for entry in stale {
            let server = &entry.server;
            self.monitor.begin(server);
            let spread = if few { Duration::ZERO } else { server.spec.health.interval.mul_f64(dice()) };
            let due = Instant::now() + spread;
            match self.turns.get_mut(&server.id) {
                // What is under way looks at what the server was before.
                Some(turn) => (turn.version, turn.hurried) = (server.version, turn.running),
                None => {
                    let turn =
                        Turn { version: server.version, due, running: false, order: None, hurried: false };
                    self.turns.insert(server.id, turn);
                }
            }
            self.set_due(server.id, due);
        }
    }

    fn set_due(&mut self, id: Uuid, due: Instant) {
        let Some(turn) = self.turns.get_mut(&id) else { return };
        self.queue.remove(&(turn.due, id));
        turn.due = due;
        if !turn.running {
            self.queue.insert((due, id));
        }
    }

    fn hurry(&mut self, order: Order) {
        let Some(turn) = self.turns.get_mut(&order.server) else {
            self.check_once(order);
            return;
        };
        turn.order = order.id.or(turn.order);
        // What is under way may have begun before there was a reason to look.
        turn.hurried = true;
        self.set_due(order.server, Instant::now());
    }

    /// An order for a server that is not for here to check may have come a moment before or after the word that it is.
    fn check_once(&mut self, order: Order) {
        let snapshot = self.means.current.load();
        if let (Some(entry), true) = (snapshot.server_by_id(&order.server), order.id.is_some()) {
            self.start(Arc::clone(entry), order.id);
        }
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        while self.running.len() < MOST_AT_ONCE {
            let Some((due, id)) = self.queue.first().copied().filter(|(due, _)| *due <= now) else { return };
            self.queue.remove(&(due, id));
            let snapshot = self.means.current.load();
            let Some(turn) = self.turns.get_mut(&id) else { continue };
            let Some(entry) = snapshot.server_by_id(&id) else { continue };
            (turn.running, turn.hurried) = (true, false);
            let order = turn.order.take();
            self.start(Arc::clone(entry), order);
        }
    }

    fn start(&mut self, entry: Arc<ServerEntry>, order: Option<Uuid>) {
        let means = self.means.clone();
        let check = async move {
            let started = Instant::now();
            let found = look::look(&means, &entry).await;
            Done { entry, found, order, took: started.elapsed() }
        };
        self.running.push(task::spawn("health check", check));
    }

    fn finish(&mut self, done: Result<Done, tokio::task::JoinError>) {
        // A panic was reported where it happened; its server's turn is lost until it changes.
        let Ok(Done { entry, found, order, took }) = done else { return };
        let server = &entry.server;
        self.monitor.checked(server, found, order, took);
        let Some(turn) = self.turns.get_mut(&server.id) else { return };
        turn.running = false;
        let pause = if turn.hurried { Duration::ZERO } else { server.spec.health.pause(dice()) };
        self.set_due(server.id, Instant::now() + pause);
    }
}

/// From 0 to 1. Without random numbers checks are merely not spread.
fn dice() -> f64 {
    let mut random = [0; 4];
    match aws_lc_rs::rand::fill(&mut random) {
        Ok(()) => f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}
