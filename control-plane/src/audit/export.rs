//! Writes the trail out as JSON Lines that anybody can verify: the actor's events that were asked for, and of everything
//! else in the chains the digests. It goes page by page, and no faster than it is read.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::mpsc;
use uuid::Uuid;
use waffles_core::audit::{Event, micros};
use waffles_core::policy::Permission;
use waffles_core::trail::{Bound, Chain, End, Header, Line, OWN_CHAIN, PublicKey, Recorded};
use waffles_runtime::task;

use super::{Audit, EventFilter, check};
use crate::authz::OpCtx;
use crate::error::Error;
use crate::store::{Db, trail as store};

/// Records a page.
const PAGE: u32 = 500;
/// Bytes of a part, as a rule.
const PART: usize = 48 << 10;
/// Parts that wait for a slow reader; behind them the trail itself is the queue.
const WAITING: usize = 4;
/// A reader that takes nothing for this long is cut off.
const PATIENCE: Duration = Duration::from_secs(30);
/// Clocks may differ so much: that far before `since` the chains begin.
const MARGIN: TimeDelta = TimeDelta::minutes(10);

/// The parts of an export: whole lines. Dropped, it ends.
pub type Parts = mpsc::Receiver<Result<Bytes, Error>>;

impl Audit {
    /// Exports the actor's trail. Payloads only for those who may see them.
    pub fn export(&self, ctx: &OpCtx, filter: EventFilter) -> Result<Parts, Error> {
        ctx.require(Permission::AuditRead)?;
        check(&filter)?;
        let (to, parts) = mpsc::channel(WAITING);
        let writer = Writer {
            db: self.db.clone(),
            tenant: ctx.tenant().to_owned(),
            filter,
            payloads: ctx.may(Permission::AuditPayloads),
            public_key: self.signer.public_key(),
            to,
            part: Vec::with_capacity(PART),
            end: End { records: 0, checkpoints: 0 },
        };
        task::spawn("audit-export", writer.run());
        Ok(parts)
    }
}

struct Writer {
    db: Db,
    tenant: String,
    filter: EventFilter,
    payloads: bool,
    public_key: PublicKey,
    to: mpsc::Sender<Result<Bytes, Error>>,
    part: Vec<u8>,
    end: End,
}

/// Why it ends early.
enum Cut {
    /// Nobody reads it.
    Gone,
    Failed(Error),
}

impl From<Error> for Cut {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<sqlx::Error> for Cut {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// A chain, and what of it is exported.
struct Stretch {
    chain: Chain,
    through: u64,
}

impl Writer {
    async fn run(mut self) {
        if let Err(Cut::Failed(error)) = self.write().await
            && tokio::time::timeout(PATIENCE, self.to.send(Err(error))).await.is_err()
        {
            tracing::debug!("the end of an export was not read");
        }
    }

    async fn write(&mut self) -> Result<(), Cut> {
        let header = Header {
            version: 1,
            tenant: self.tenant.clone(),
            exported_at: micros(Utc::now()),
            since: self.filter.since,
            payloads: self.payloads,
            public_key: self.public_key,
        };
        self.line(&Line::Export(header)).await?;
        let db = self.db.everywhere();
        let (checkpoints, stretches) = self.bounds(&db).await?;
        self.checkpoints(&db, checkpoints).await?;
        for stretch in stretches {
            self.line(&Line::Chain(stretch.chain.clone())).await?;
            self.records(&db, &stretch).await?;
        }
        self.unchained().await?;
        // Told last: what was dropped while the export went on is in it as well.
        let mut after = None;
        loop {
            let page = store::forgotten(&db, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some((last.chain, last.first));
            for forgotten in page {
                self.line(&Line::Forgotten(forgotten)).await?;
            }
        }
        self.line(&Line::End(self.end)).await?;
        self.flush().await
    }

    /// Which checkpoints there are, and how far each chain goes, all from one moment.
    async fn bounds(&self, db: &Db) -> Result<((u64, u64), Vec<Stretch>), Cut> {
        let mut tx = db.begin_read().await?;
        let last = store::last_checkpoint(&mut tx).await?.map_or(0, |(number, _)| number);
        let first = match self.filter.since {
            Some(since) => store::checkpoint_before(&mut tx, since - MARGIN).await?.unwrap_or(0),
            None => 0,
        };
        let mut known: BTreeMap<Uuid, (Option<Uuid>, Option<Bound>)> = BTreeMap::new();
        for end in store::chain_ends(&mut tx).await? {
            let proxy = (end.chain != OWN_CHAIN).then_some(end.proxy);
            known.insert(end.chain, (proxy, end.end));
        }
        // Also those that only events name, which is how forged ones come to light.
        let mut last_of = HashMap::new();
        let mut chain = None;
        while let Some((next, sequence)) = store::next_chain(&mut tx, chain).await? {
            last_of.insert(next, sequence);
            known.entry(next).or_default();
            chain = Some(next);
        }
        let mut stretches = Vec::with_capacity(known.len());
        for (chain, (proxy, end)) in known {
            let after = match first {
                0 => None,
                first => store::head_by(&mut tx, chain, first).await?,
            };
            let through = last_of.get(&chain).copied().unwrap_or(0);
            if end.is_none() && through == 0 {
                continue;
            }
            let chain = Chain { chain, proxy, after, through: end };
            stretches.push(Stretch { chain, through });
        }
        Ok(((first, last), stretches))
    }

    async fn checkpoints(&mut self, db: &Db, (first, last): (u64, u64)) -> Result<(), Cut> {
        // The first one of all says whether there was a trail before there were chains.
        let begins = if first > 1 { vec![(0, 1), (first - 1, last)] } else { vec![(0, last)] };
        for (mut after, through) in begins {
            loop {
                let page = store::checkpoints(db, after, through, PAGE).await?;
                let Some(number) = page.last().map(|checkpoint| checkpoint.number) else { break };
                after = number;
                for checkpoint in page {
                    self.end.checkpoints += 1;
                    self.line(&Line::Checkpoint(checkpoint)).await?;
                }
            }
        }
        Ok(())
    }

    async fn records(&mut self, db: &Db, stretch: &Stretch) -> Result<(), Cut> {
        let chain = stretch.chain.chain;
        let own = self.db.of(&self.tenant);
        let mut after = (stretch.chain.after.map_or(0, |after| after.sequence), Uuid::max());
        loop {
            let page = store::links(db, chain, after, stretch.through, PAGE).await?;
            let (Some(first), Some(last)) = (page.first(), page.last()) else { return Ok(()) };
            after = (last.sequence, last.id);
            let numbers = (first.sequence, last.sequence);
            let events = store::events_in(&own, &self.tenant, &self.filter, chain, numbers).await?;
            let mut events: HashMap<Uuid, Event> =
                events.into_iter().map(|event| (event.id, event)).collect();
            for placed in page {
                let place = Some((chain, placed.sequence, placed.link));
                let record = match events.remove(&placed.id) {
                    Some(event) => {
                        let (event, redacted) = self.shown(event);
                        Recorded::own(place, event, redacted)
                    }
                    None => Recorded::foreign(place),
                };
                self.record(record).await?;
            }
        }
    }

    async fn unchained(&mut self) -> Result<(), Cut> {
        let own = self.db.of(&self.tenant);
        let mut after: Option<(DateTime<Utc>, Uuid)> = None;
        loop {
            let page = store::unchained(&own, &self.tenant, &self.filter, after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some((last.occurred_at, last.id));
            for event in page {
                let (event, _) = self.shown(event);
                self.record(Recorded::own(None, event, false)).await?;
            }
        }
    }

    /// The event as the actor may see it, and whether something was taken out.
    fn shown(&self, mut event: Event) -> (Event, bool) {
        let has_payloads = !event.request_payload.is_empty() || !event.response_payload.is_empty();
        if self.payloads || !has_payloads {
            return (event, false);
        }
        event.request_payload.clear();
        event.response_payload.clear();
        (event, true)
    }

    async fn record(&mut self, record: Recorded) -> Result<(), Cut> {
        self.end.records += 1;
        self.line(&Line::Record(Box::new(record))).await
    }

    async fn line(&mut self, line: &Line) -> Result<(), Cut> {
        serde_json::to_writer(&mut self.part, line).map_err(|error| Error::internal(error.to_string()))?;
        self.part.push(b'\n');
        if self.part.len() >= PART { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), Cut> {
        let part = std::mem::replace(&mut self.part, Vec::with_capacity(PART));
        match tokio::time::timeout(PATIENCE, self.to.send(Ok(part.into()))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Cut::Gone),
            Err(_) => Err(Error::internal("the export was not read in time").into()),
        }
    }
}
