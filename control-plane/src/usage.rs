//! When API keys were last used. Uses are gathered in memory, from this process's own doors and from what proxies report,
//! and written by a task: one statement for many keys, and at most one write a minute for a key.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;
use serde::Serialize;
use waffles_runtime::task::{Driver, Task};

use crate::store::{Db, principals};

/// How often a key is written.
const PAUSE: TimeDelta = TimeDelta::seconds(60);
/// Keys remembered; the uses of further ones are not noted until some were written.
const MOST: usize = 100_000;
/// Keys a statement.
const ROWS: usize = 500;

/// Uses that wait to be written; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    keys: Arc<Mutex<HashMap<String, Use>>>,
}

#[derive(Debug)]
struct Use {
    tenant: String,
    latest: DateTime<Utc>,
    /// What was written last, and when.
    written: Option<(DateTime<Utc>, DateTime<Utc>)>,
}

impl Use {
    fn is_due(&self, now: DateTime<Utc>) -> bool {
        self.written.is_none_or(|(time, at)| self.latest > time && now - at >= PAUSE)
    }

    /// Whether it can be forgotten: it is written, and no other write has to wait for it.
    fn is_over(&self, now: DateTime<Utc>) -> bool {
        self.written.is_some_and(|(time, at)| self.latest <= time && now - at >= PAUSE)
    }
}

impl Usage {
    /// Notes that a key was used. Proxies tell of the tenant too, and a key of another one is none.
    pub fn note(&self, tenant: &str, key: &str, at: DateTime<Utc>) {
        let mut keys = self.keys.lock();
        if let Some(known) = keys.get_mut(key) {
            known.latest = known.latest.max(at);
        } else if keys.len() < MOST {
            keys.insert(key.to_owned(), Use { tenant: tenant.to_owned(), latest: at, written: None });
        }
    }

    /// The task that writes.
    pub fn driver(&self, db: Db) -> Driver<Writer> {
        Driver::new(Writer { usage: self.clone(), db }, Writer::PERIOD)
    }

    /// Writes what is due, or at the end all of it.
    pub async fn write(&self, db: &Db, all: bool) -> sqlx::Result<usize> {
        let now = Utc::now();
        let due: Vec<(String, String, DateTime<Utc>)> = {
            let mut keys = self.keys.lock();
            keys.retain(|_, known| !known.is_over(now));
            let waits = |known: &Use| known.written.is_none_or(|(time, _)| known.latest > time);
            keys.iter()
                .filter(|(_, known)| known.is_due(now) || (all && waits(known)))
                .map(|(id, known)| (id.clone(), known.tenant.clone(), known.latest))
                .collect()
        };
        for some in due.chunks(ROWS) {
            principals::note_uses(&db.everywhere(), some).await?;
            let mut keys = self.keys.lock();
            for (id, _, time) in some {
                if let Some(known) = keys.get_mut(id) {
                    known.written = Some((*time, now));
                }
            }
        }
        Ok(due.len())
    }
}

/// Writes when keys were last used.
#[derive(Debug)]
pub struct Writer {
    usage: Usage,
    db: Db,
}

/// What one run did.
#[derive(Debug, Serialize)]
pub struct Report {
    written: usize,
    error: Option<String>,
}

impl Writer {
    /// How often it looks.
    const PERIOD: Duration = Duration::from_secs(5);
}

impl Task for Writer {
    const NAME: &'static str = "key_usage";
    type Report = Report;

    async fn activate(&mut self) -> Report {
        match self.usage.write(&self.db, false).await {
            Ok(written) => Report { written, error: None },
            // The database's own task says so in the log, and nothing is lost by waiting.
            Err(error) => Report { written: 0, error: Some(error.to_string()) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_written_once_a_minute() {
        let now = Utc::now();
        let mut known = Use { tenant: "default".into(), latest: now, written: None };
        assert!(known.is_due(now), "the first use is written at once");
        known.written = Some((now, now));
        assert!(!known.is_due(now) && !known.is_over(now));
        known.latest = now + TimeDelta::seconds(1);
        assert!(!known.is_due(now + TimeDelta::seconds(59)));
        assert!(known.is_due(now + TimeDelta::seconds(60)));
        known.written = Some((known.latest, now));
        assert!(known.is_over(now + TimeDelta::seconds(60)));
    }

    #[test]
    fn an_older_use_takes_nothing_back() {
        let (usage, now) = (Usage::default(), Utc::now());
        usage.note("default", "k", now);
        usage.note("default", "k", now - TimeDelta::hours(1));
        assert_eq!(usage.keys.lock()["k"].latest, now);
    }
}
