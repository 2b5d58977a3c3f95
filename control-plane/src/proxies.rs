//! The proxies: which are connected, what each acknowledged and refuses, how each says it is. Held in memory
//! while connected and written to the database by a task, so that a burst of messages is one write.

mod sightings;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;
use serde::Serialize;
use sqlx::types::Json;
use uuid::Uuid;
use waffles_core::audit::{clean, micros};
use waffles_core::policy::Permission;
use waffles_core::wire;
use waffles_proto::{audit::v1 as audit_pb, discovery::v1 as pb};
use waffles_runtime::task::{Driver, Poker, Task};

use crate::authz::{OpCtx, ProxyPeer};
use crate::discovery::{Discovery, Update};
use crate::error::Error;
use crate::page::{Page, Paged};
use crate::store::Db;
use crate::store::changes::{self, signed, unsigned};
use crate::store::enrolment;
use crate::store::eras::{self, EraRow};
use crate::store::proxies::{self as store, HealthDoc, NackDoc, ProxyRow, RejectionDoc};

const MOST_PER_PAGE: u32 = 500;
const LIST: &str = "proxies";
const MOST_NAME: usize = 128;
const MOST_REASON: usize = 500;
const MOST_REJECTIONS: usize = 100;
const WRITE_TIME: Duration = Duration::from_secs(10);
/// The eras that a server can be found to be of.
const ERAS: [&str; 3] = ["http_sse", "sessions", "stateless"];
const MOST_REVISION: usize = 32;
/// How long is remembered what a silent proxy found, so that it is not written again for nothing.
const REMEMBERED: TimeDelta = TimeDelta::hours(1);
/// How long a proxy that another replica said is connected counts as connected.
const FRESH: TimeDelta = TimeDelta::seconds(30);

/// A proxy, as operators see it.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// UUID.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Its group.
    pub group: String,
    /// The program's version.
    pub version: String,
    /// Whether it holds a configuration stream now.
    pub connected: bool,
    /// When it was first heard of.
    pub first_seen_at: DateTime<Utc>,
    /// When it was last heard of.
    pub last_seen_at: DateTime<Utc>,
    /// The revision that it acknowledged last.
    pub acknowledged_revision: u64,
    /// How many revisions it is behind.
    pub lag: u64,
    /// What it refuses; none when it refuses nothing.
    pub last_nack: Option<NackDoc>,
    /// How it says it is.
    pub health: HealthDoc,
    /// Audit records lost for want of space.
    pub lost_records: u64,
    /// When its certificate ends; none for one that never had any.
    pub certificate_ends_at: Option<DateTime<Utc>>,
    /// It is shut out.
    pub denied: bool,
}

/// Figures about the proxies that are connected here.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) connected: u64,
    pub(crate) refusing: u64,
    pub(crate) most_lag: u64,
}

/// The proxies.
#[derive(Debug, Clone)]
pub struct Proxies {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    db: Db,
    discovery: Discovery,
    live: Mutex<HashMap<Uuid, Live>>,
    /// What proxies said here that hold their configuration stream with another replica.
    elsewhere: Mutex<HashMap<Uuid, HealthDoc>>,
    /// What proxies said here that they found servers to speak.
    eras: Mutex<HashMap<Uuid, Eras>>,
    /// What proxies said here that servers offer.
    tools: sightings::Sightings,
    poker: OnceLock<Poker>,
}

/// A proxy that is connected here, or was until its last state is written.
#[derive(Debug)]
struct Live {
    row: ProxyRow,
    streams: usize,
    refused: BTreeMap<(String, String), RejectionDoc>,
    dirty: bool,
    /// The database knows it.
    stored: bool,
}

/// What a proxy found servers to speak, as it said last.
#[derive(Debug)]
struct Eras {
    found: Vec<EraRow>,
    heard: DateTime<Utc>,
    dirty: bool,
}

impl Proxies {
    /// None yet.
    pub fn new(db: Db, discovery: Discovery) -> Self {
        // Proxies serve every tenant.
        let db = db.everywhere();
        let (live, elsewhere, eras) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (tools, poker) = (sightings::Sightings::default(), OnceLock::new());
        let shared = Shared { db, discovery, live, elsewhere, eras, tools, poker };
        Self { shared: Arc::new(shared) }
    }

    /// The driver of the task that writes.
    pub fn driver(&self) -> Driver<Roster> {
        let driver = Driver::new(Roster { proxies: self.clone(), many: false }, Roster::PERIOD);
        if self.shared.poker.set(driver.poker()).is_err() {
            tracing::warn!("a second roster was made; only the first is woken");
        }
        driver
    }

    /// A proxy opens its configuration stream. It counts as connected while the value lives.
    pub fn connect(&self, peer: &ProxyPeer, hello: &pb::Hello) -> Connected {
        let (id, now) = (peer.id(), micros(Utc::now()));
        let is_ours = hello.lineage == self.shared.discovery.lineage_for(peer.group());
        let held = if is_ours { hello.revision } else { 0 };
        let mut live = self.shared.live.lock();
        let entry = live.entry(id).or_insert_with(|| Live::new(id, now));
        entry.streams += 1;
        entry.dirty = true;
        entry.row.name = clean(&hello.name, MOST_NAME);
        entry.row.proxy_group = peer.group().to_owned();
        entry.row.version = clean(&hello.version, MOST_NAME);
        entry.row.connected = true;
        entry.row.last_seen = now;
        entry.row.acknowledged_revision = signed(held);
        entry.refused.clear();
        for reference in hello.refused.iter().take(MOST_REJECTIONS) {
            let rejection =
                pb::Rejection { resource: Some(reference.clone()), reason: "refused before".into() };
            entry.refuse(self.rejection(&rejection));
        }
        entry.note_refusals(hello.revision, now);
        drop(live);
        self.poke();
        Connected { proxies: self.clone(), id }
    }

    /// A proxy says how it is.
    pub fn health(&self, peer: &ProxyPeer, health: &audit_pb::Health) {
        let (id, now) = (peer.id(), micros(Utc::now()));
        self.found(id, found(&health.servers), now);
        if self.shared.tools.hear(&health.tools) {
            self.poke();
        }
        let health = HealthDoc {
            revision: health.revision,
            open_streams: health.open_streams,
            spool_depth: health.spool_depth,
            uptime_seconds: health.uptime_seconds,
            exchanges: health.exchanges,
            checks: health.health.is_some(),
        };
        if let Some(entry) = self.shared.live.lock().get_mut(&id) {
            entry.row.last_seen = now;
            entry.row.health = Some(Json(health));
            entry.dirty = true;
        } else {
            self.shared.elsewhere.lock().insert(id, health);
        }
    }

    /// A proxy says what it found servers to speak. The first word of it is written even if it is nothing: it may have
    /// found something in another life.
    fn found(&self, id: Uuid, found: Vec<EraRow>, now: DateTime<Utc>) {
        let mut eras = self.shared.eras.lock();
        let known = eras.get(&id);
        let same = known.is_some_and(|eras| eras.found == found);
        let dirty = !same || known.is_some_and(|eras| eras.dirty);
        eras.insert(id, Eras { found, heard: now, dirty });
        drop(eras);
        if !same {
            self.poke();
        }
    }

    /// Writes what changed of what proxies found, and forgets proxies that say nothing any more.
    async fn write_eras(&self) -> sqlx::Result<()> {
        let now = Utc::now();
        let changed: Vec<(Uuid, Vec<EraRow>)> = {
            let mut eras = self.shared.eras.lock();
            eras.retain(|_, eras| eras.dirty || eras.heard + REMEMBERED > now);
            let changed = |(id, eras): (&Uuid, &mut Eras)| {
                std::mem::take(&mut eras.dirty).then(|| (*id, eras.found.clone()))
            };
            eras.iter_mut().filter_map(changed).collect()
        };
        if changed.is_empty() {
            return Ok(());
        }
        if let Err(error) = eras::put(&self.shared.db, &changed).await {
            let mut eras = self.shared.eras.lock();
            for (id, _) in changed {
                if let Some(eras) = eras.get_mut(&id) {
                    eras.dirty = true;
                }
            }
            return Err(error);
        }
        Ok(())
    }

    /// Proxies by name.
    pub async fn list(&self, ctx: &OpCtx, page: &Page) -> Result<Paged<Proxy>, Error> {
        ctx.require(Permission::ProxiesRead)?;
        let limit = page.limit(MOST_PER_PAGE)?;
        let after: Option<(String, Uuid)> = page.after(LIST)?;
        self.introduce().await?;
        let rows = store::list(&self.shared.db, after.as_ref(), limit + 1).await?;
        let proxies = self.show(rows).await?;
        Ok(Paged::cut(proxies, limit, LIST, |proxy| (proxy.name.clone(), proxy.id)))
    }

    /// One proxy by its id or name.
    pub async fn get(&self, ctx: &OpCtx, id_or_name: &str) -> Result<Proxy, Error> {
        ctx.require(Permission::ProxiesRead)?;
        let missing = || Error::NotFound(format!("proxy {}", clean(id_or_name, MOST_NAME)));
        self.introduce().await?;
        let row = match id_or_name.parse() {
            Ok(id) => store::by_id(&self.shared.db, id).await?,
            Err(_) if id_or_name.contains('\0') => None,
            Err(_) => store::by_name(&self.shared.db, id_or_name).await?,
        };
        let shown = self.show(vec![row.ok_or_else(missing)?]).await?;
        shown.into_iter().next().ok_or_else(missing)
    }

    /// Figures about the proxies that are connected here.
    pub(crate) fn summary(&self) -> Summary {
        let revision = self.shared.discovery.revision();
        let mut summary = Summary::default();
        for entry in self.shared.live.lock().values().filter(|entry| entry.streams > 0) {
            summary.connected += 1;
            summary.refusing += u64::from(entry.row.nack.is_some());
            let lag = revision.saturating_sub(unsigned(entry.row.acknowledged_revision));
            summary.most_lag = summary.most_lag.max(lag);
        }
        summary
    }

    /// The current revision, to compare with: the database's, since a change counts from its commit and not from when
    /// this replica has read it.
    pub async fn revision(&self) -> Result<u64, Error> {
        Ok(changes::latest(&self.shared.db).await?)
    }

    /// How many proxies are connected, to any replica.
    pub async fn count_connected(&self, ctx: &OpCtx) -> Result<u64, Error> {
        ctx.require(Permission::StatusRead)?;
        Ok(store::count_since(&self.shared.db, micros(Utc::now()) - FRESH).await?)
    }

    async fn show(&self, rows: Vec<ProxyRow>) -> Result<Vec<Proxy>, Error> {
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        let lost: HashMap<Uuid, u64> =
            store::lost_records(&self.shared.db, &ids).await?.into_iter().collect();
        let ends: HashMap<Uuid, DateTime<Utc>> =
            enrolment::ends(&self.shared.db, &ids).await?.into_iter().collect();
        let denials: HashMap<Uuid, Option<DateTime<Utc>>> =
            enrolment::denials(&self.shared.db).await?.into_iter().collect();
        let revision = self.revision().await?;
        let live = self.shared.live.lock();
        let show = |mut row: ProxyRow| {
            let connected = match live.get(&row.id) {
                Some(entry) if entry.row.last_seen >= row.last_seen => {
                    row = ProxyRow { first_seen: row.first_seen, ..entry.row.clone() };
                    entry.streams > 0
                }
                _ => row.connected && row.last_seen >= Utc::now() - FRESH,
            };
            let acknowledged = unsigned(row.acknowledged_revision);
            Proxy {
                id: row.id,
                name: row.name,
                group: row.proxy_group,
                version: row.version,
                connected,
                first_seen_at: row.first_seen,
                last_seen_at: row.last_seen,
                acknowledged_revision: acknowledged,
                lag: revision.saturating_sub(acknowledged),
                last_nack: row.nack.map(|nack| nack.0),
                health: row.health.map(|health| health.0).unwrap_or_default(),
                lost_records: lost.get(&row.id).copied().unwrap_or(0),
                certificate_ends_at: ends.get(&row.id).copied(),
                denied: denials.get(&row.id).is_some_and(Option::is_none),
            }
        };
        Ok(rows.into_iter().map(show).collect())
    }

    /// Writes proxies that the database does not know yet: who asks shall see every proxy that is connected.
    async fn introduce(&self) -> Result<(), Error> {
        let rows: Vec<ProxyRow> = {
            let live = self.shared.live.lock();
            live.values().filter(|entry| !entry.stored).map(|entry| entry.row.clone()).collect()
        };
        if rows.is_empty() {
            return Ok(());
        }
        store::put(&self.shared.db, &rows).await?;
        self.mark_stored(&rows);
        Ok(())
    }

    fn mark_stored(&self, rows: &[ProxyRow]) {
        let mut live = self.shared.live.lock();
        for row in rows {
            if let Some(entry) = live.get_mut(&row.id) {
                entry.stored = true;
            }
        }
    }

    /// Writes what changed. Also the last thing before the end, since streams end after the task.
    pub async fn write(&self) -> RosterReport {
        let elsewhere = std::mem::take(&mut *self.shared.elsewhere.lock());
        let now = micros(Utc::now());
        let beat = now - TimeDelta::from_std(Roster::PERIOD).unwrap_or(FRESH);
        let (mut rows, mut connected) = (Vec::new(), 0);
        for entry in self.shared.live.lock().values_mut() {
            if entry.streams > 0 {
                connected += 1;
                if entry.row.last_seen < beat {
                    entry.row.last_seen = now;
                    entry.dirty = true;
                }
            }
            if std::mem::take(&mut entry.dirty) {
                rows.push(entry.row.clone());
            }
        }
        let write = async {
            store::put(&self.shared.db, &rows).await?;
            for (id, health) in elsewhere {
                store::put_health(&self.shared.db, id, health).await?;
            }
            self.write_eras().await?;
            self.shared.tools.write(&self.shared.db).await
        };
        let result = tokio::time::timeout(WRITE_TIME, write).await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        if result.is_ok() {
            self.mark_stored(&rows);
        }
        let mut live = self.shared.live.lock();
        match &result {
            Ok(()) => live.retain(|_, entry| entry.streams > 0 || entry.dirty),
            Err(error) => {
                tracing::warn!(%error, "how proxies are cannot be written at the moment");
                for row in &rows {
                    if let Some(entry) = live.get_mut(&row.id) {
                        entry.dirty = true;
                    }
                }
            }
        }
        RosterReport { written: rows.len(), connected, error: result.err().map(|error| error.to_string()) }
    }

    fn rejection(&self, rejection: &pb::Rejection) -> RejectionDoc {
        let reference = rejection.resource.clone().unwrap_or_default();
        let (kind, name) = match wire::resource_key(&reference) {
            Some(key) => (key.kind.as_str().to_owned(), self.shared.discovery.name_of(&key)),
            None => ("unknown".to_owned(), reference.id.clone()),
        };
        let (id, name) = (clean(&reference.id, MOST_NAME), clean(&name, MOST_NAME));
        RejectionDoc { kind, id, name, reason: clean(&rejection.reason, MOST_REASON) }
    }

    fn poke(&self) {
        if let Some(poker) = self.shared.poker.get() {
            poker.poke();
        }
    }
}

/// What can be believed of what a proxy says that it found, in one order.
fn found(servers: &[audit_pb::SeenServer]) -> Vec<EraRow> {
    let known = |seen: &audit_pb::SeenServer| {
        let era = ERAS.into_iter().find(|era| *era == seen.era)?;
        let (server, endpoint) = (seen.server_id.parse().ok()?, i64::from(seen.endpoint));
        let found_at = micros(wire::time(seen.found_at)?);
        let revision = clean(&seen.revision, MOST_REVISION);
        Some(((server, endpoint), EraRow { server, endpoint, era, revision, found_at }))
    };
    let by_place: BTreeMap<_, _> = servers.iter().filter_map(known).collect();
    by_place.into_values().collect()
}

impl Live {
    fn new(id: Uuid, now: DateTime<Utc>) -> Self {
        let row = ProxyRow {
            id,
            name: String::new(),
            proxy_group: String::new(),
            version: String::new(),
            connected: true,
            first_seen: now,
            last_seen: now,
            acknowledged_revision: 0,
            nack: None,
            health: None,
        };
        Self { row, streams: 0, refused: BTreeMap::new(), dirty: true, stored: false }
    }

    fn refuse(&mut self, rejection: RejectionDoc) {
        if self.refused.len() < MOST_REJECTIONS {
            self.refused.insert((rejection.kind.clone(), rejection.id.clone()), rejection);
        }
    }

    fn note_refusals(&mut self, revision: u64, now: DateTime<Utc>) {
        let rejections: Vec<_> = self.refused.values().cloned().collect();
        self.row.nack = match (&self.row.nack, rejections.is_empty()) {
            (_, true) => None,
            (Some(nack), false) if nack.rejections == rejections => return,
            (_, false) => Some(Json(NackDoc { revision, at: now, rejections })),
        };
    }
}

/// A proxy that holds a configuration stream.
#[derive(Debug)]
pub struct Connected {
    proxies: Proxies,
    id: Uuid,
}

impl Connected {
    /// The proxy answered an update: it is applied, but for what it refused. What it refused of earlier updates
    /// it refuses still, unless this one held it again.
    pub fn answered(&self, update: &Update, rejections: &[pb::Rejection]) {
        let now = micros(Utc::now());
        let refused: Vec<_> = rejections.iter().map(|rejection| self.proxies.rejection(rejection)).collect();
        for rejection in refused.iter().take(MOST_REJECTIONS) {
            tracing::error!(
                proxy.id = %self.id, revision = update.revision, resource.kind = rejection.kind,
                resource.name = rejection.name, reason = rejection.reason, "a proxy refused a resource"
            );
        }
        self.change(|entry| {
            entry.row.acknowledged_revision = signed(update.revision);
            entry.row.last_seen = now;
            if update.full {
                entry.refused.clear();
            }
            for key in update.resources.iter().map(|(key, _)| key).chain(&update.removed) {
                entry.refused.remove(&(key.kind.as_str().to_owned(), key.id.clone()));
            }
            for rejection in refused {
                entry.refuse(rejection);
            }
            entry.note_refusals(update.revision, now);
        });
    }

    /// The proxy holds a revision that this database never had.
    pub fn is_ahead(&self, theirs: u64, ours: u64) {
        let now = micros(Utc::now());
        tracing::error!(
            proxy.id = %self.id, revision = theirs, ours,
            "a proxy is ahead of the database, which was restored from an older state; nothing is sent to it; \
             run `waffles-control-plane new-lineage`"
        );
        self.change(|entry| {
            entry.refuse(RejectionDoc {
                kind: "revision".into(),
                id: theirs.to_string(),
                name: theirs.to_string(),
                reason: format!(
                    "the proxy is ahead of the database ({ours}), which was restored from an older state; run `waffles-control-plane new-lineage`"
                ),
            });
            entry.row.acknowledged_revision = signed(theirs);
            entry.note_refusals(theirs, now);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Live)) {
        if let Some(entry) = self.proxies.shared.live.lock().get_mut(&self.id) {
            change(entry);
            entry.dirty = true;
        }
        self.proxies.poke();
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let now = micros(Utc::now());
        self.change(|entry| {
            entry.streams = entry.streams.saturating_sub(1);
            entry.row.connected = entry.streams > 0;
            entry.row.last_seen = now;
        });
    }
}

/// Writes how proxies are.
#[derive(Debug)]
pub struct Roster {
    proxies: Proxies,
    many: bool,
}

/// What one run wrote.
#[derive(Debug, Serialize)]
pub struct RosterReport {
    written: usize,
    connected: usize,
    error: Option<String>,
}

impl Roster {
    /// How often connected proxies are written although nothing changed, so that other replicas see them.
    pub const PERIOD: Duration = Duration::from_secs(10);
    /// Pokes within this time are one write.
    const GATHER: Duration = Duration::from_millis(250);
    /// The same after a write of many proxies: a herd comes back over many seconds.
    const GATHER_MANY: Duration = Duration::from_secs(3);
    const MANY: usize = 5;
}

impl Task for Roster {
    const NAME: &'static str = "proxy-roster";
    type Report = RosterReport;

    async fn activate(&mut self) -> RosterReport {
        tokio::time::sleep(if self.many { Self::GATHER_MANY } else { Self::GATHER }).await;
        let report = self.proxies.write().await;
        self.many = report.written > Self::MANY;
        report
    }
}
