//! Housekeeping in the database: partitions made ahead, old events, log entries and proxies forgotten; and the
//! look whether the database is there.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Months, TimeDelta, Utc};
use serde::Serialize;
use waffles_core::audit::micros;
use waffles_core::trail::Signer;
use waffles_runtime::admin::Gate;
use waffles_runtime::task::Task;
use waffles_runtime::telemetry;

use crate::audit::retention;
use crate::store::{Db, audit, changes, enrolment, health, limits, principals, proxies};

/// How long log entries are kept. A proxy that was away for longer gets everything.
const LOG_TIME: TimeDelta = TimeDelta::days(30);
const PROXY_TIME: TimeDelta = TimeDelta::days(30);
/// What proxies said of the use of limits is of no use for longer than they take to say it again.
const USE_TIME: TimeDelta = TimeDelta::hours(1);
/// How long it is kept how servers were, and what checks were asked for.
const HISTORY_TIME: TimeDelta = TimeDelta::days(30);
const ORDER_TIME: TimeDelta = TimeDelta::hours(1);
const MONTHS_AHEAD: u32 = 2;
/// Events removed by one statement, so that no transaction grows long.
const AT_ONCE: u32 = 5000;
const MOST_ROUNDS: usize = 200;
const MOST_TIME: Duration = Duration::from_secs(1800);

/// The housekeeper.
#[derive(Debug)]
pub struct Upkeep {
    db: Db,
    retention: Option<TimeDelta>,
    signer: Arc<Signer>,
}

/// What one run did.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    partitions_made: usize,
    events_forgotten: u64,
    keys_ended: usize,
    log_entries_cut: u64,
    proxies_forgotten: u64,
    certificates_forgotten: u64,
    limit_uses_forgotten: u64,
    health_changes_forgotten: u64,
    error: Option<String>,
}

impl Upkeep {
    /// How often it runs.
    pub const PERIOD: Duration = Duration::from_secs(3600);

    /// With how long audit events are kept; none for ever.
    pub fn new(db: Db, retention: Option<Duration>, signer: Arc<Signer>) -> Self {
        let db = db.everywhere();
        Self { db, retention: retention.and_then(|time| TimeDelta::from_std(time).ok()), signer }
    }

    async fn run(&self, report: &mut Report) -> sqlx::Result<()> {
        let now = micros(Utc::now());
        report.partitions_made = make_partitions(&self.db, now).await?;
        if let Some(retention) = self.retention {
            for _ in 0..MOST_ROUNDS {
                let forgotten = retention::forget(&self.db, &self.signer, now - retention, AT_ONCE).await?;
                report.events_forgotten += forgotten;
                if forgotten < u64::from(AT_ONCE) {
                    break;
                }
            }
        }
        report.keys_ended = principals::end_expired_keys(&self.db, now).await?;
        report.log_entries_cut = changes::cut_off(&self.db, now - LOG_TIME).await?;
        report.proxies_forgotten = proxies::forget(&self.db, now - PROXY_TIME).await?;
        report.certificates_forgotten = enrolment::forget(&self.db, now - PROXY_TIME).await?;
        report.limit_uses_forgotten = limits::forget_usage(&self.db, now - USE_TIME).await?;
        report.health_changes_forgotten =
            health::forget(&self.db, now - ORDER_TIME, now - HISTORY_TIME).await?;
        Ok(())
    }
}

/// Makes the partitions of this month and the next ones, where they are missing. Done before the first event,
/// since a month whose events went elsewhere cannot be made any more.
pub async fn make_partitions(db: &Db, now: DateTime<Utc>) -> sqlx::Result<usize> {
    let mut made = 0;
    for month in 0..=MONTHS_AHEAD {
        if let Some(time) = now.checked_add_months(Months::new(month)) {
            made += usize::from(audit::make_partition(db, time).await?);
        }
    }
    Ok(made)
}

impl Task for Upkeep {
    const NAME: &'static str = "upkeep";
    type Report = Report;

    async fn activate(&mut self) -> Report {
        let mut report = Report::default();
        let run = tokio::time::timeout(MOST_TIME, self.run(&mut report));
        if let Err(error) = run.await.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            let error = telemetry::chain(&error).to_string();
            tracing::warn!(error, "the housekeeping in the database was not finished");
            report.error = Some(error);
        }
        report
    }
}

/// Looks whether the database answers, and opens or closes the gate of readiness.
#[derive(Debug)]
pub struct Pulse {
    db: Db,
    gate: Gate,
    there: bool,
}

/// What one look found.
#[derive(Debug, Serialize)]
pub struct PulseReport {
    reachable: bool,
    error: Option<String>,
}

impl Pulse {
    /// How often it looks.
    pub const PERIOD: Duration = Duration::from_secs(1);

    /// The gate is open while the database answers.
    pub fn new(db: Db, gate: Gate) -> Self {
        Self { db, gate, there: true }
    }
}

impl Task for Pulse {
    const NAME: &'static str = "database";
    type Report = PulseReport;

    async fn activate(&mut self) -> PulseReport {
        let error = self.db.ping().await.err().map(|error| error.to_string());
        let was = std::mem::replace(&mut self.there, error.is_none());
        match &error {
            None => {
                self.gate.open();
                if !was {
                    tracing::info!("the database answers again");
                }
            }
            Some(error) => {
                self.gate.close();
                if was {
                    tracing::error!(error, "the database does not answer");
                }
            }
        }
        PulseReport { reachable: error.is_none(), error }
    }
}
