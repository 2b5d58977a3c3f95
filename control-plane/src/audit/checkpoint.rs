//! Signs for how far every chain has come, now and then. What was written before a checkpoint cannot be rewritten unnoticed,
//! not even by whoever can write to the database, since the key is not in it in the clear.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use waffles_core::audit::micros;
use waffles_core::trail::{Checkpoint, Hash, Signer};
use waffles_runtime::task::Task;
use waffles_runtime::telemetry;

use crate::error::Error;
use crate::store::{Db, trail as store};

/// Makes checkpoints.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    db: Db,
    signer: Arc<Signer>,
    /// Between two of them, whichever replica makes them.
    every: TimeDelta,
}

/// What one run did.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The checkpoint that was made; none where nothing had moved, or another replica was first.
    made: Option<u64>,
    error: Option<String>,
}

impl Checkpoints {
    /// On a database.
    pub fn new(db: &Db, signer: Arc<Signer>, every: Duration) -> Self {
        // A little less than the period, or a replica would find its own last one too young every other time.
        let every = TimeDelta::from_std(every.mul_f64(0.9)).unwrap_or(TimeDelta::MAX);
        Self { db: db.everywhere(), signer, every }
    }

    /// Makes a checkpoint where some chain has moved, and the last one is not young; at the end, however young it is.
    pub async fn make(&self, last: bool) -> Result<Option<u64>, Error> {
        let mut tx = self.db.begin_read().await?;
        let before = store::last_checkpoint(&mut tx).await?;
        drop(tx);
        let now = micros(Utc::now());
        let is_young = |made_at: DateTime<Utc>| made_at <= now && now - made_at < self.every;
        if !last && before.is_some_and(|(_, made_at)| is_young(made_at)) {
            return Ok(None);
        }
        let number = before.map_or(0, |(number, _)| number);
        let previous = store::checkpoints(&self.db, number.saturating_sub(1), number, 1).await?;
        let previous = previous.first().map_or(Hash::START, Checkpoint::hash);
        let mut tx = self.db.begin().await?;
        let unchained = before.is_none() && store::has_unchained(&mut tx).await?;
        // Of two replicas the second waits here for the first, and finds that nothing has moved.
        let heads = store::take_moved(&mut tx).await?;
        let is_next = store::last_checkpoint(&mut tx).await?.map_or(0, |(number, _)| number) == number;
        if !is_next || (heads.is_empty() && before.is_some()) {
            return Ok(None);
        }
        let checkpoint = Checkpoint::sign(&self.signer, number + 1, now, previous, unchained, heads);
        store::insert_checkpoint(&mut tx, &checkpoint).await?;
        tx.commit().await?;
        Ok(Some(checkpoint.number))
    }
}

impl Task for Checkpoints {
    const NAME: &'static str = "audit-checkpoints";
    type Report = Report;

    async fn activate(&mut self) -> Report {
        match self.make(false).await {
            Ok(made) => Report { made, error: None },
            Err(error) => {
                let error = telemetry::chain(&error).to_string();
                tracing::warn!(error, "no checkpoint of the audit trail was made");
                Report { made: None, error: Some(error) }
            }
        }
    }
}
