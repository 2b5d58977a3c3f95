//! Follows the audit trail. Positions are given out before a transaction commits, so a later one may be seen
//! before an earlier one: a window behind the newest is looked at again until it is surely complete.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use waffles_core::audit::Event;

use super::{EventFilter, hide_payloads};
use crate::authz::OpCtx;
use crate::error::Error;
use crate::store::{Db, audit as store};

/// A transaction that stores events takes no longer than this from its first statement to its commit.
const WINDOW: Duration = Duration::from_secs(12);
/// The pause between looks; this process's own events cut it short, but not below the second.
const PERIOD: Duration = Duration::from_secs(1);
const SHORTEST: Duration = Duration::from_millis(200);
const MOST_AT_ONCE: usize = 200;
/// Positions that a look takes in. A trail that grows faster is followed late, not in part.
const LOOK: u32 = 5000;

/// One who follows.
#[derive(Debug)]
pub struct Tail {
    db: Db,
    ctx: OpCtx,
    filter: EventFilter,
    stored: watch::Receiver<u64>,
    /// Everything up to here was given out or can no longer appear.
    complete: i64,
    /// What was given out beyond that, and when it was seen.
    seen: BTreeMap<i64, Instant>,
    /// Seen, but not given out yet.
    waiting: Vec<i64>,
    next_look: Instant,
}

impl Tail {
    pub(super) async fn begin(
        db: Db,
        ctx: OpCtx,
        filter: EventFilter,
        stored: watch::Receiver<u64>,
    ) -> Result<Self, Error> {
        // A place, not an event: among all of them it is at hand, among those of a tenant it would have to be searched.
        let complete = store::last_position(&db.everywhere()).await?;
        let db = db.of(ctx.tenant());
        let (seen, waiting) = (BTreeMap::new(), Vec::new());
        Ok(Self { db, ctx, filter, stored, complete, seen, waiting, next_look: Instant::now() })
    }

    /// Waits for events that were not given out before; never none. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Vec<Event>, Error> {
        loop {
            if self.waiting.is_empty() {
                self.pause().await;
                self.look().await?;
            }
            let count = self.waiting.len().min(MOST_AT_ONCE);
            let some = self.waiting.get(..count).unwrap_or_default();
            if !some.is_empty() {
                let mut events = store::at_positions(&self.db, self.ctx.tenant(), some).await?;
                self.waiting.drain(..count);
                hide_payloads(&self.ctx, &mut events);
                if !events.is_empty() {
                    return Ok(events);
                }
            }
        }
    }

    async fn pause(&mut self) {
        tokio::time::sleep_until(self.next_look).await;
        // The sender lives as long as the service; without it only the period is left.
        if let Ok(Err(_)) = tokio::time::timeout(PERIOD, self.stored.changed()).await {
            tokio::time::sleep(PERIOD).await;
        }
        self.next_look = Instant::now() + SHORTEST;
    }

    async fn look(&mut self) -> Result<(), Error> {
        let found =
            store::positions_after(&self.db, self.ctx.tenant(), &self.filter, self.complete, LOOK).await?;
        let now = Instant::now();
        let full = found.len() >= usize::try_from(LOOK).unwrap_or(usize::MAX);
        for position in &found {
            if self.seen.insert(*position, now).is_none() {
                self.waiting.push(*position);
            }
        }
        self.waiting.sort_unstable();
        while let Some(first) = self.seen.first_entry() {
            // A look that was cut short by its limit must move on, or it would stand still in a busy trail.
            if !full && now.duration_since(*first.get()) < WINDOW {
                break;
            }
            self.complete = *first.key();
            first.remove();
        }
        Ok(())
    }
}
