//! The audit trail: takes in what proxies recorded, each record exactly once; notes our own acts in the
//! transaction of the act; searches and follows it within the actor's tenant.

mod checkpoint;
mod export;
mod marks;
pub mod retention;
mod tail;

use std::collections::HashSet;
use std::sync::Arc;

use chrono::{DateTime, Duration, Utc};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use serde_json::{Value, json};
use tokio::sync::watch;
use uuid::Uuid;
use waffles_core::DEFAULT_TENANT;
use waffles_core::audit::{Event, Outcome, micros};
use waffles_core::policy::Permission;
use waffles_core::trail::{Hash, Link, Signer, digest, link};
use waffles_core::wire;
use waffles_proto::audit::v1 as pb;

use crate::authz::{OpCtx, ProxyPeer};
use crate::error::Error;
use crate::page::{Page, Paged};
use crate::store::audit::{self as store, Advance, Place, Stored};
use crate::store::{Db, Tx};
use crate::usage::Usage;

pub use crate::store::audit::EventFilter;
pub use checkpoint::Checkpoints;
pub use export::Parts;
pub use tail::Tail;
pub use waffles_core::audit::clean;

/// Records a batch holds at the most.
pub const MOST_RECORDS: usize = 1000;
const MOST_PER_PAGE: u32 = 1000;
/// Bytes of a short text of an event, and of a payload.
const MOST_TEXT: usize = 2048;
const MOST_PAYLOAD: usize = 256 * 1024;
/// Longer than Postgres works on one statement.
const STORE_TIME: std::time::Duration = std::time::Duration::from_secs(20);
/// Names the list in cursors.
const LIST: &str = "audit";

/// Notes an administrative act in the transaction of the act: both happen, or neither. `resource` names what
/// was acted upon, such as `server/demo`; `detail` holds no secret.
pub async fn note(
    tx: &mut Tx,
    ctx: &OpCtx,
    action: &str,
    resource: &str,
    detail: Value,
) -> Result<(), Error> {
    let principal = ctx.principal();
    let event = Event {
        tenant: ctx.tenant().to_owned(),
        action: action.to_owned(),
        principal_id: (!principal.id.is_nil()).then_some(principal.id),
        principal_name: clean(&principal.name, MOST_TEXT),
        api_key_id: ctx.key().map(|key| key.id.clone()).unwrap_or_default(),
        client_ip: ctx.address().map(|address| address.to_string()).unwrap_or_default(),
        // So that a search for a server also finds what was done to it.
        server_name: resource.strip_prefix("server/").map(|name| clean(name, MOST_TEXT)).unwrap_or_default(),
        resource: clean(resource, MOST_TEXT),
        detail: detail.to_string(),
        ..Event::new(ctx.request_id(), Utc::now())
    };
    tx.note(event);
    Ok(())
}

/// The audit trail.
#[derive(Debug, Clone)]
pub struct Audit {
    db: Db,
    /// Tenants that were there when last looked. They are never removed.
    tenants: Arc<Mutex<HashSet<String>>>,
    /// Counts what this process stored, so that those who follow need not wait for their next look.
    stored: Arc<watch::Sender<u64>>,
    batches: Counter,
    records: Counter,
    breaks: Counter,
    usage: Usage,
    marks: marks::Marks,
    signer: Arc<Signer>,
}

/// A record as it came, and as it is stored.
struct Taken {
    sequence: u64,
    event: Event,
    /// Of the record as it came.
    received: Hash,
    /// What the proxy linked it with; none by one that does not.
    hash: Option<Hash>,
}

impl Audit {
    /// On a database. What proxies report tells when keys were last used.
    pub fn new(db: Db, usage: Usage, signer: Arc<Signer>) -> Self {
        Self {
            db,
            tenants: Arc::default(),
            stored: Arc::new(watch::Sender::new(0)),
            batches: Counter::default(),
            records: Counter::default(),
            breaks: Counter::default(),
            usage,
            marks: marks::Marks::default(),
            signer,
        }
    }

    /// Who signs for the trail.
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// Counts batches taken in.
    pub(crate) fn batches(&self) -> &Counter {
        &self.batches
    }

    /// Counts records taken in.
    pub(crate) fn records(&self) -> &Counter {
        &self.records
    }

    /// Counts records that did not follow from the one before.
    pub(crate) fn breaks(&self) -> &Counter {
        &self.breaks
    }

    /// How far a proxy's spool is stored.
    pub async fn stored_through(&self, peer: &ProxyPeer, spool: Uuid) -> Result<u64, Error> {
        Ok(self.marks.stored_through(&self.db.everywhere(), peer.id(), spool).await?)
    }

    /// Takes in a batch and says how far the spool is stored now. A record that cannot be read, or that the
    /// database will not have, is stored as one that says so: it must not hold up those behind it for ever.
    pub async fn ingest(&self, peer: &ProxyPeer, spool: Uuid, batch: pb::Batch) -> Result<u64, Error> {
        let proxy = peer.id();
        if batch.events.len() > MOST_RECORDS {
            return Err(Error::invalid("events", format!("must be at most {MOST_RECORDS}")));
        }
        let now = micros(Utc::now());
        let count = u64::try_from(batch.events.len()).unwrap_or(u64::MAX);
        let mut records = Vec::with_capacity(batch.events.len());
        for record in batch.events {
            let pb::SequencedEvent { sequence, event, hash } = record;
            let received = digest(&event.as_ref().map(prost::Message::encode_to_vec).unwrap_or_default());
            let event = event.ok_or_else(|| "event: is missing".to_owned()).and_then(wire::event_from_proto);
            let event = match event {
                Ok(event) => self.admit(event, proxy, now).await?,
                Err(problem) => malformed(proxy, now, sequence, &problem),
            };
            records.push(Taken { sequence, event, received, hash: Hash::read(&hash) });
        }
        for Taken { event, .. } in &records {
            // A key that nobody was let in with was not used.
            if event.principal_id.is_some() && !event.api_key_id.is_empty() {
                self.usage.note(&event.tenant, &event.api_key_id, event.occurred_at.min(now));
            }
        }
        let through = match self.store_in_time(proxy, spool, &records, batch.lost).await {
            Err(Error::Internal(cause)) if !records.is_empty() => {
                tracing::error!(proxy.id = %proxy, error = %cause, "a batch cannot be stored whole; storing its records one by one");
                self.store_each(proxy, spool, records, batch.lost).await?
            }
            result => result?,
        };
        self.stored.send_modify(|stored| *stored += 1);
        self.batches.inc();
        self.records.inc_by(count);
        Ok(through)
    }

    /// A connection to a server that went away without a word would be waited for as long as TCP is patient. To
    /// store again what was stored after all does no harm.
    async fn store_in_time(
        &self,
        proxy: Uuid,
        spool: Uuid,
        records: &[Taken],
        lost: u64,
    ) -> Result<u64, Error> {
        let stored = tokio::time::timeout(STORE_TIME, self.store(proxy, spool, records, lost)).await;
        stored.unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut.into()))
    }

    /// One transaction. The row of the spool is locked from the look at what is stored to the commit, so that of
    /// two streams of one proxy, or of one batch sent twice, each record is stored once.
    async fn store(&self, proxy: Uuid, spool: Uuid, records: &[Taken], lost: u64) -> Result<u64, Error> {
        let mut tx = self.db.everywhere().begin().await?;
        let Stored { mut through, head } = store::lock_spool(&mut tx, proxy, spool).await?;
        let mut last = head.unwrap_or(Hash::START);
        let mut advance = Advance { lost, ..Advance::default() };
        let mut new = Vec::with_capacity(records.len());
        for record in records {
            let sequence = record.sequence;
            // In the order of the spool a record is new exactly when its number is above all that came before it.
            if sequence <= through {
                continue;
            }
            let link = self.linked(spool, &last, record);
            let breaks = link.attest.is_some() && !record.is_linked(spool, &last);
            if breaks {
                let event = broken(proxy, spool, sequence, through);
                tracing::error!(
                    proxy.id = %proxy, chain = %spool, sequence,
                    "an audit record does not follow from the one before it"
                );
                tx.note(event);
            }
            advance.gaps += sequence - through - 1;
            advance.breaks += u64::from(breaks);
            (through, last) = (sequence, link.hash);
            new.push((&record.event, Place { chain: spool, sequence, link }));
        }
        let added = store::insert(&mut tx, &new).await?;
        if added < u64::try_from(new.len()).unwrap_or(u64::MAX) {
            return Err(Error::internal("there is an event with the same id and time"));
        }
        let to = Stored { through, head: if new.is_empty() { head } else { Some(last) } };
        store::advance_spool(&mut tx, proxy, spool, to, advance).await?;
        tx.commit().await?;
        self.breaks.inc_by(advance.breaks);
        Ok(through)
    }

    /// The proxy's link, where there is one; with our word for it where it does not hold for what is stored.
    fn linked(&self, spool: Uuid, previous: &Hash, record: &Taken) -> Link {
        let Taken { sequence, event, hash, .. } = record;
        match hash {
            Some(hash) => Link::given(&self.signer, (spool, *sequence), previous, event, *hash),
            None => Link::new(spool, *sequence, previous, event),
        }
    }

    async fn store_each(
        &self,
        proxy: Uuid,
        spool: Uuid,
        records: Vec<Taken>,
        lost: u64,
    ) -> Result<u64, Error> {
        let mut through = 0;
        for record in records {
            let (time, sequence, received, hash) =
                (record.event.occurred_at, record.sequence, record.received, record.hash);
            through = match self.store_in_time(proxy, spool, &[record], lost).await {
                Err(Error::Internal(cause)) => {
                    let event = malformed(proxy, time, sequence, &cause.to_string());
                    let record = Taken { sequence, event, received, hash };
                    self.store_in_time(proxy, spool, &[record], lost).await?
                }
                result => result?,
            };
        }
        Ok(through)
    }

    /// Events of the actor's tenant, newest first. Payloads only for those who may see them.
    pub async fn search(
        &self,
        ctx: &OpCtx,
        filter: &EventFilter,
        page: &Page,
    ) -> Result<Paged<Event>, Error> {
        ctx.require(Permission::AuditRead)?;
        check(filter)?;
        let limit = page.limit(MOST_PER_PAGE)?;
        let before: Option<(i64, Uuid)> = page.after(LIST)?;
        let before = before.map(|(time, id)| Ok::<_, Error>((time_of(time)?, id))).transpose()?;
        let mut events =
            store::search(&self.db.of(ctx.tenant()), ctx.tenant(), filter, before, limit + 1).await?;
        hide_payloads(ctx, &mut events);
        Ok(Paged::cut(events, limit, LIST, |event| (event.occurred_at.timestamp_micros(), event.id)))
    }

    /// Follows the trail of the actor's tenant from now on.
    pub async fn tail(&self, ctx: &OpCtx, filter: EventFilter) -> Result<Tail, Error> {
        ctx.require(Permission::AuditRead)?;
        check(&filter)?;
        Tail::begin(self.db.clone(), ctx.clone(), filter, self.stored.subscribe()).await
    }

    /// Makes a proxy's event fit for the trail: texts that cannot forge lines, a time that can be true, a tenant
    /// that exists. What does not exist is kept under the default tenant, whose operators run the proxies, and
    /// says whose it claimed to be.
    async fn admit(&self, mut event: Event, proxy: Uuid, now: DateTime<Utc>) -> Result<Event, Error> {
        event.proxy_id = Some(proxy);
        for text in [
            &mut event.action,
            &mut event.principal_name,
            &mut event.api_key_id,
            &mut event.client_ip,
            &mut event.client_name,
            &mut event.protocol_version,
            &mut event.server_name,
            &mut event.target,
            &mut event.rule,
            &mut event.reason,
            &mut event.resource,
        ] {
            *text = clean(text, MOST_TEXT);
        }
        // As they are stored, so that what is read back is what was linked.
        for number in [
            &mut event.duration_us,
            &mut event.upstream_us,
            &mut event.request_bytes,
            &mut event.response_bytes,
            &mut event.revision,
        ] {
            *number = (*number).min(i64::MAX.unsigned_abs());
        }
        for payload in [&mut event.request_payload, &mut event.response_payload, &mut event.detail] {
            *payload = clean(payload, MOST_PAYLOAD);
        }
        let mut claimed = serde_json::Map::new();
        if event.occurred_at > now + Duration::days(1) || event.occurred_at.timestamp() < 0 {
            claimed.insert("claimed_time".into(), event.occurred_at.to_rfc3339().into());
            event.occurred_at = now;
        }
        if event.tenant.is_empty() {
            // Nobody was authenticated: what the default tenant's operators look after.
            event.tenant = DEFAULT_TENANT.to_owned();
        } else if !self.is_tenant(&event.tenant).await? {
            claimed.insert("claimed_tenant".into(), clean(&event.tenant, 64).into());
            event.tenant = DEFAULT_TENANT.to_owned();
        }
        if !claimed.is_empty() {
            if !event.detail.is_empty() {
                claimed.insert("detail".into(), event.detail.into());
            }
            event.detail = Value::Object(claimed).to_string();
        }
        Ok(event)
    }

    async fn is_tenant(&self, tenant: &str) -> Result<bool, Error> {
        if self.tenants.lock().contains(tenant) {
            return Ok(true);
        }
        if !waffles_core::is_dns_label(tenant) {
            return Ok(false);
        }
        let tenants: HashSet<String> = store::tenants(&self.db.everywhere()).await?.into_iter().collect();
        let found = tenants.contains(tenant);
        *self.tenants.lock() = tenants;
        Ok(found)
    }
}

impl Taken {
    /// Whether the proxy linked what came to what came before it.
    fn is_linked(&self, spool: Uuid, previous: &Hash) -> bool {
        self.hash == Some(link(spool, self.sequence, previous, &self.received))
    }
}

/// Tells operators of a chain that was broken before it came here.
fn broken(proxy: Uuid, spool: Uuid, sequence: u64, after: u64) -> Event {
    Event {
        tenant: DEFAULT_TENANT.to_owned(),
        action: "audit.chain_broken".to_owned(),
        outcome: Outcome::Error,
        reason: "chain_broken".to_owned(),
        resource: format!("proxy/{proxy}"),
        detail: json!({ "chain": spool, "sequence": sequence, "after": after }).to_string(),
        ..Event::new(Uuid::now_v7(), Utc::now())
    }
}

/// What stands in place of a record that cannot be read. It keeps its place, so that the gap is no loss.
fn malformed(proxy: Uuid, now: DateTime<Utc>, sequence: u64, problem: &str) -> Event {
    Event {
        tenant: DEFAULT_TENANT.to_owned(),
        action: "audit.malformed".to_owned(),
        outcome: Outcome::Internal,
        reason: "malformed_record".to_owned(),
        proxy_id: Some(proxy),
        detail: json!({ "sequence": sequence, "problem": clean(problem, 200) }).to_string(),
        ..Event::new(Uuid::now_v7(), now)
    }
}

fn check(filter: &EventFilter) -> Result<(), Error> {
    for (field, text) in [
        ("principal", &filter.principal),
        ("server", &filter.server),
        ("target", &filter.target),
        ("action", &filter.action),
    ] {
        if text.len() > MOST_TEXT || text.contains('\0') {
            return Err(Error::invalid(field, format!("must have at most {MOST_TEXT} bytes and no NUL")));
        }
    }
    if let (Some(since), Some(until)) = (filter.since, filter.until)
        && since >= until
    {
        return Err(Error::invalid("until", "must be after `since`"));
    }
    Ok(())
}

fn time_of(micros: i64) -> Result<DateTime<Utc>, Error> {
    DateTime::from_timestamp_micros(micros)
        .ok_or_else(|| Error::invalid("cursor", "is not a cursor of this list"))
}

fn hide_payloads(ctx: &OpCtx, events: &mut [Event]) {
    if !ctx.may(Permission::AuditPayloads) {
        for event in events {
            event.request_payload.clear();
            event.response_payload.clear();
        }
    }
}
