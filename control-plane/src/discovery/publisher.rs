//! The task that reads the revision log into memory, and the one that hears of other replicas' writes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::Utc;
use serde::Serialize;
use uuid::Uuid;
use waffles_core::snapshot::{Kind, ResourceKey, Settings};
use waffles_core::wire;
use waffles_proto::discovery::v1 as pb;
use waffles_runtime::admin::Gate;
use waffles_runtime::drain::Drain;
use waffles_runtime::task::{Driver, Task};
use waffles_runtime::telemetry;

use super::{Discovery, State};
use crate::secrets::{Secrets, keys};
use crate::store::changes::{self, Change, Head};
use crate::store::{Db, READ_TIME, Tx, grants, limits, namespaces, principals, rules, servers, sessions};

/// A read of the whole state may take longer than one of a row.
const MOST: Duration = Duration::from_secs(30);
/// More changes than this are cheaper to read as a whole.
const MOST_CHANGES: usize = 2000;
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
pub(super) enum PublishError {
    /// The database failed.
    #[error("the revision log cannot be read")]
    Read(#[from] sqlx::Error),
    /// The keys that proxies seal with are not to be had.
    #[error("the keys cannot be opened")]
    Keys(#[source] crate::error::Error),
    /// The database took too long.
    #[error("reading took too long")]
    Slow,
    /// The database has no lineage yet.
    #[error("the database is not set up")]
    Empty,
    /// Nothing is seen of anybody, not even the tenant that is always there.
    #[error(
        "the database shows no tenant: row-level security hides everything from this connection, or the tables were \
         emptied; nothing of that is taken for removed"
    )]
    Blind,
    /// What the revision log says is there is not.
    #[error(
        "{missing} of {known} resources of the kind {kind} stand in the revision log and not in their table; what nobody \
         removed is not taken for removed: restore the table"
    )]
    Vanished {
        /// Which kind.
        kind: &'static str,
        /// How many are missing.
        missing: usize,
        /// How many the log knows.
        known: usize,
    },
    /// Revisions went back within one lineage.
    #[error(
        "the database is at revision {found} but was at {known}: it was restored from an older state; \
         run `waffles-control-plane new-lineage` on it, so that proxies take its state as another one"
    )]
    Restored {
        /// What the database says.
        found: u64,
        /// What it said before.
        known: u64,
    },
}

/// Reads the revision log into memory.
#[derive(Debug)]
pub struct Publisher {
    db: Db,
    secrets: Secrets,
    settings: Arc<Settings>,
    discovery: Discovery,
    gate: Gate,
    /// More API keys than this are not sent to proxies.
    most_keys: u64,
    failing: bool,
}

/// What one run of the publisher did.
#[derive(Debug, Serialize)]
pub struct Report {
    revision: u64,
    changes: usize,
    whole: bool,
    error: Option<String>,
}

impl Publisher {
    /// How often the log is read without a poke: the most that a write of another replica is missed for.
    pub const PERIOD: Duration = Duration::from_secs(5);

    /// The gate opens with the first state.
    pub fn new(
        db: Db,
        secrets: Secrets,
        settings: Settings,
        discovery: Discovery,
        gate: Gate,
        most_keys: u64,
    ) -> Self {
        let db = db.everywhere();
        Self { db, secrets, settings: Arc::new(settings), discovery, gate, most_keys, failing: false }
    }

    /// Its driver, which [`Discovery::poke`] wakes from now on.
    pub fn driver(self) -> Driver<Self> {
        let shared = Arc::clone(&self.discovery.shared);
        let driver = Driver::new(self, Self::PERIOD);
        if shared.poker.set(driver.poker()).is_err() {
            tracing::warn!("a second publisher was made; only the first is woken");
        }
        driver
    }

    async fn refresh(&self) -> Result<(usize, bool), PublishError> {
        let look = async {
            let mut tx = self.db.begin_read().await?;
            let head = changes::head(&mut tx).await?;
            Ok::<_, PublishError>((tx, head))
        };
        // A connection to a server that went away without a word is given up quickly, and the next run has another.
        let (mut tx, head) =
            tokio::time::timeout(READ_TIME, look).await.unwrap_or(Err(PublishError::Slow))?;
        if head.lineage.is_empty() {
            return Err(PublishError::Empty);
        }
        let (lineage, known) = (self.discovery.lineage(), self.discovery.revision());
        if head.lineage != lineage || head.revision != known {
            // A read that finds nothing must not become removals.
            if !changes::sees_tenants(&mut tx).await? {
                return Err(PublishError::Blind);
            }
        }
        if head.lineage != lineage || known < head.floor {
            return self.load(&mut tx, head).await.map(|count| (count, true));
        }
        if head.revision < known {
            return Err(PublishError::Restored { found: head.revision, known });
        }
        if head.revision == known {
            return Ok((0, false));
        }
        let changed = changes::since(&mut tx, known).await?;
        if changed.len() > MOST_CHANGES {
            return self.load(&mut tx, head).await.map(|count| (count, true));
        }
        self.follow(&mut tx, &head, changed).await.map(|count| (count, false))
    }

    /// Reads everything, from one moment.
    async fn load(&self, tx: &mut Tx, head: Head) -> Result<usize, PublishError> {
        let now = Utc::now();
        let on_demand =
            head.keys_on_demand || principals::count_all_live_keys(tx, now).await? > self.most_keys;
        let log = changes::since(tx, 0).await?;
        let revisions: HashMap<&ResourceKey, u64> =
            log.iter().map(|change| (&change.key, change.revision)).collect();
        let mut state = State::new(head.lineage, head.floor);
        let mut put = |key: ResourceKey, resource: pb::Resource| {
            let revision = revisions.get(&key).copied();
            state.put(key, revision, resource);
        };
        keys::refresh(tx, &self.secrets).await.map_err(PublishError::Keys)?;
        put(settings_key(), self.settings(on_demand));
        for key in principals::token_keys(tx).await? {
            put(ResourceKey::new(Kind::TokenKey, &key.kid), wire::token_key_resource(&key));
        }
        for role in grants::load_roles(tx, None).await? {
            put(ResourceKey::new(Kind::Role, role.id.to_string()), wire::role_resource(&role));
        }
        for session in sessions::announced(tx).await? {
            put(ResourceKey::new(Kind::Session, session.to_string()), wire::session_resource(session));
        }
        for principal in principals::principals(tx, None).await? {
            put(
                ResourceKey::new(Kind::Principal, principal.id.to_string()),
                wire::principal_resource(&principal),
            );
        }
        let keys = if on_demand { Vec::new() } else { principals::live_keys(tx, now).await? };
        for (key, hash) in keys {
            put(ResourceKey::new(Kind::ApiKey, &key.id), wire::key_resource(&key, &hash));
        }
        let mut unreadable = HashSet::new();
        for row in servers::load(tx, None).await? {
            let key = ResourceKey::new(Kind::Server, row.id().to_string());
            match self.server(row) {
                Some((key, resource)) => put(key, resource),
                None => {
                    unreadable.insert(key);
                }
            }
        }
        for namespace in namespaces::load(tx, None).await? {
            let key = ResourceKey::new(Kind::Namespace, namespace.id.to_string());
            put(key, wire::namespace_resource(&namespace));
        }
        for rule in rules::load(tx, None).await? {
            put(ResourceKey::new(Kind::Rule, rule.id.to_string()), wire::rule_resource(&rule));
        }
        for limit in limits::load(tx, None).await? {
            put(ResourceKey::new(Kind::Limit, limit.id.to_string()), wire::limit_resource(&limit));
        }
        for kind in [Kind::Server, Kind::Namespace, Kind::Principal, Kind::Role, Kind::Rule, Kind::Limit] {
            let known = || log.iter().filter(|change| change.key.kind == kind && !change.removed);
            let missing = known().filter(|c| !state.holds(&c.key) && !unreadable.contains(&c.key)).count();
            let known = known().count();
            // That one row is gone may be a hand in the database; that most are is an accident.
            if missing > 1 && missing * 2 > known || missing == 1 && known == 1 && kind == Kind::Principal {
                return Err(PublishError::Vanished { kind: kind.as_str(), missing, known });
            }
        }
        for change in &log {
            if !state.holds(&change.key) && (change.removed || is_right(change.key.kind)) {
                state.remove(change.key.clone(), change.revision);
            }
        }
        state.advance(head.revision);
        self.discovery.shared.keys_pending.store(on_demand && !head.keys_on_demand, Ordering::Relaxed);
        let count = log.len();
        self.discovery.publish(|published| {
            state.succeed(published);
            *published = state;
        });
        Ok(count)
    }

    /// Takes in what changed since the last time.
    async fn follow(&self, tx: &mut Tx, head: &Head, changed: Vec<Change>) -> Result<usize, PublishError> {
        let ids = |kind: Kind| -> Vec<Uuid> {
            let of_kind = changed.iter().filter(|change| change.key.kind == kind && !change.removed);
            of_kind.filter_map(|change| change.key.id.parse().ok()).collect()
        };
        let mut found: HashMap<ResourceKey, pb::Resource> = HashMap::new();
        let (servers, namespaces, rules) = (ids(Kind::Server), ids(Kind::Namespace), ids(Kind::Rule));
        let (people, roles, bounds) = (ids(Kind::Principal), ids(Kind::Role), ids(Kind::Limit));
        if !roles.is_empty() {
            let key = |id: Uuid| ResourceKey::new(Kind::Role, id.to_string());
            let loaded = grants::load_roles(tx, Some(&roles)).await?;
            found.extend(loaded.iter().map(|role| (key(role.id), wire::role_resource(role))));
        }
        if !people.is_empty() {
            let key = |id: Uuid| ResourceKey::new(Kind::Principal, id.to_string());
            let loaded = principals::principals(tx, Some(&people)).await?;
            found.extend(loaded.iter().map(|who| (key(who.id), wire::principal_resource(who))));
        }
        if !servers.is_empty() {
            let rows = servers::load(tx, Some(&servers)).await?;
            found.extend(rows.into_iter().filter_map(|row| self.server(row)));
        }
        if !namespaces.is_empty() {
            let key = |id: Uuid| ResourceKey::new(Kind::Namespace, id.to_string());
            let loaded = namespaces::load(tx, Some(&namespaces)).await?;
            found.extend(loaded.into_iter().map(|n| (key(n.id), wire::namespace_resource(&n))));
        }
        if !rules.is_empty() {
            let key = |id: Uuid| ResourceKey::new(Kind::Rule, id.to_string());
            let loaded = rules::load(tx, Some(&rules)).await?;
            found.extend(loaded.into_iter().map(|rule| (key(rule.id), wire::rule_resource(&rule))));
        }
        if !bounds.is_empty() {
            let key = |id: Uuid| ResourceKey::new(Kind::Limit, id.to_string());
            let loaded = limits::load(tx, Some(&bounds)).await?;
            found.extend(loaded.into_iter().map(|limit| (key(limit.id), wire::limit_resource(&limit))));
        }
        let keys = changed.iter().filter(|change| change.key.kind == Kind::ApiKey && !change.removed);
        let keys: Vec<&str> = keys.map(|change| change.key.id.as_str()).collect();
        if !head.keys_on_demand {
            for (key, hash) in principals::keys_by_id(tx, &keys).await? {
                found.insert(ResourceKey::new(Kind::ApiKey, &key.id), wire::key_resource(&key, &hash));
            }
        }
        for change in changed.iter().filter(|change| !change.removed) {
            let key = &change.key;
            let resource = match key.kind {
                Kind::Server
                | Kind::Namespace
                | Kind::Principal
                | Kind::Role
                | Kind::Rule
                | Kind::Limit
                | Kind::ApiKey => None,
                // It stands in no log.
                Kind::Checks => None,
                Kind::Session => key.id.parse().ok().map(wire::session_resource),
                // Another replica may have rotated the keys a moment ago.
                Kind::Settings => {
                    keys::refresh(tx, &self.secrets).await.map_err(PublishError::Keys)?;
                    Some(self.settings(head.keys_on_demand))
                }
                Kind::TokenKey => {
                    principals::token_key(tx, &key.id).await?.as_ref().map(wire::token_key_resource)
                }
            };
            found.extend(resource.map(|resource| (key.clone(), resource)));
        }
        let count = changed.len();
        self.discovery.publish(|state| {
            if head.keys_on_demand {
                state.unship_keys();
            }
            for Change { revision, key, removed } in changed {
                match found.remove(&key) {
                    Some(resource) => state.change(key, revision, resource),
                    None if removed || is_right(key.kind) => state.remove(key, revision),
                    // Not in the log as removed, so proxies keep the form that they have.
                    None => tracing::error!(
                        resource.kind = key.kind.as_str(),
                        resource.id = key.id,
                        "a changed resource cannot be read; proxies keep its last form"
                    ),
                }
            }
            state.advance(head.revision);
        });
        Ok(count)
    }

    fn settings(&self, keys_on_demand: bool) -> pb::Resource {
        let mut resource = wire::settings_resource(&self.settings);
        if let Some(pb::resource::Kind::Settings(settings)) = &mut resource.kind {
            settings.keys_on_demand = keys_on_demand;
        }
        resource
    }

    /// Takes note that there are too many keys to send, for good. Whoever writes it, all replicas hear of it.
    async fn count_keys(&self) -> Result<(), PublishError> {
        let known = self.discovery.shared.state.read().count(Kind::ApiKey);
        let known = u64::try_from(known).unwrap_or(u64::MAX);
        let pending = &self.discovery.shared.keys_pending;
        if known <= self.most_keys && !pending.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut tx = self.db.begin().await?;
        changes::set_keys_on_demand(&mut tx).await?;
        tx.commit().await?;
        pending.store(false, Ordering::Relaxed);
        tracing::warn!(
            most = self.most_keys,
            "there are too many API keys to send them to proxies; from now on proxies ask for those that they meet"
        );
        self.discovery.poke();
        Ok(())
    }

    fn server(&self, row: servers::ServerRow) -> Option<(ResourceKey, pb::Resource)> {
        let key = ResourceKey::new(Kind::Server, row.id().to_string());
        match row.open(&self.secrets.seal) {
            Ok(server) => Some((key, wire::server_resource(&server))),
            Err(broken) => {
                tracing::error!(server.name = broken.name, error = %broken, "a server is not published");
                None
            }
        }
    }
}

/// Whether a resource gives rights. One that is said to have changed and cannot be read then counts as gone,
/// since a right that cannot be read is no right; that also covers a key that has ended.
fn is_right(kind: Kind) -> bool {
    matches!(kind, Kind::Principal | Kind::ApiKey | Kind::TokenKey | Kind::Namespace | Kind::Role)
}

fn settings_key() -> ResourceKey {
    ResourceKey::new(Kind::Settings, "settings")
}

impl Task for Publisher {
    const NAME: &'static str = "discovery";
    type Report = Report;

    async fn activate(&mut self) -> Report {
        let refresh = async {
            let done = self.refresh().await?;
            if let Err(error) = self.count_keys().await {
                // What is published stands; the next run tries again.
                tracing::debug!(error = %telemetry::chain(&error), "the number of API keys cannot be noted");
            }
            Ok(done)
        };
        let result = tokio::time::timeout(MOST, refresh).await.unwrap_or(Err(PublishError::Slow));
        let revision = self.discovery.revision();
        match result {
            Ok((changes, whole)) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!(revision, "the revision log is read again");
                }
                if changes > 0 {
                    tracing::info!(revision, changes, whole, "published a new configuration");
                }
                self.gate.open();
                Report { revision, changes, whole, error: None }
            }
            Err(error) => {
                let error = telemetry::chain(&error).to_string();
                // Once for each outage, not once for each period.
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(revision, error, "nothing new is published; proxies keep what they have");
                }
                Report { revision, changes: 0, whole: false, error: Some(error) }
            }
        }
    }
}

/// Hears, on Postgres, of what other replicas wrote. The publisher's period covers for it while it is away.
#[derive(Debug)]
pub struct Listener {
    db: Db,
    discovery: Discovery,
}

impl Listener {
    /// On a database, of whose connections it takes one.
    pub fn new(db: Db, discovery: Discovery) -> Self {
        Self { db, discovery }
    }

    /// Listens until the drain.
    pub async fn run(self, drain: Drain) {
        tokio::select! {
            () = drain.started() => {}
            () = self.listen() => {}
        }
    }

    async fn listen(&self) {
        loop {
            if let Err(error) = self.hear().await {
                tracing::debug!(%error, "not listening for other replicas' writes at the moment");
            }
            tokio::time::sleep(LISTEN_AGAIN).await;
        }
    }

    async fn hear(&self) -> sqlx::Result<()> {
        // On SQLite there is nobody to hear of.
        let Some(mut listener) = self.db.listener().await? else { return std::future::pending().await };
        listener.ignore_pool_close_event(true);
        listener.listen(changes::CHANNEL).await?;
        loop {
            // What was written between two connections was not heard, hence the poke on each.
            self.discovery.poke();
            while listener.try_recv().await?.is_some() {
                self.discovery.poke();
            }
        }
    }
}
