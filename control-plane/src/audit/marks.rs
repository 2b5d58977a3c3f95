//! How far spools are stored, for many proxies at once: after a restart all of them ask within seconds, and their questions
//! of one moment are one statement.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use uuid::Uuid;

use crate::store::Db;
use crate::store::audit as store;

/// Questions within this time are one statement. A proxy does not feel it: it has just opened a connection, and what it has
/// to tell is on its disk.
const GATHER: Duration = Duration::from_secs(2);
/// The first question after a quiet time is not kept waiting for long.
const GATHER_FIRST: Duration = Duration::from_millis(5);
/// More than this many at once have their statement at once.
const MOST: usize = 1000;

type Found = Option<Arc<HashMap<(Uuid, Uuid), u64>>>;

/// Gathers questions; cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Marks(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    proxies: Vec<Uuid>,
    answer: Option<Shared<BoxFuture<'static, Found>>>,
    /// When the last statement was made.
    last: Option<tokio::time::Instant>,
}

impl std::fmt::Debug for Marks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Marks(..)")
    }
}

impl Marks {
    /// How far a spool is stored; 0 for one that is not known.
    pub(super) async fn stored_through(&self, db: &Db, proxy: Uuid, spool: Uuid) -> sqlx::Result<u64> {
        let answer = self.join(db, proxy);
        match answer.await {
            Some(found) => Ok(found.get(&(proxy, spool)).copied().unwrap_or(0)),
            // What went wrong is told to each by its own question.
            None => store::stored_through(db, proxy, spool).await,
        }
    }

    fn join(&self, db: &Db, proxy: Uuid) -> Shared<BoxFuture<'static, Found>> {
        let mut waiting = self.0.lock();
        if waiting.proxies.len() >= MOST {
            *waiting = Waiting { last: waiting.last, ..Waiting::default() };
        }
        waiting.proxies.push(proxy);
        if let Some(answer) = &waiting.answer {
            return answer.clone();
        }
        let quiet = waiting.last.is_none_or(|last| last.elapsed() > GATHER * 2);
        let (marks, db) = (self.clone(), db.clone());
        let answer = async move {
            tokio::time::sleep(if quiet { GATHER_FIRST } else { GATHER }).await;
            let proxies = {
                let mut waiting = marks.0.lock();
                let last = Some(tokio::time::Instant::now());
                std::mem::replace(&mut *waiting, Waiting { last, ..Waiting::default() }).proxies
            };
            store::marks(&db, &proxies).await.ok().map(|found| Arc::new(found.into_iter().collect()))
        };
        let answer = answer.boxed().shared();
        waiting.answer = Some(answer.clone());
        answer
    }
}
