//! What proxies found servers to speak.

use chrono::{DateTime, Utc};
use sqlx::QueryBuilder;
use uuid::Uuid;

use super::{Db, on_db, on_tx, push_in, read};

/// Rows a statement.
const ROWS: usize = 500;

/// What one proxy found at one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EraRow {
    /// Which server.
    pub server: Uuid,
    /// Which of its endpoints, from 0.
    pub endpoint: i64,
    /// `stateless`, `sessions` or `http_sse`.
    pub era: &'static str,
    /// The revision of the protocol.
    pub revision: String,
    /// When it was found.
    pub found_at: DateTime<Utc>,
}

/// What is found at an endpoint of a server, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct SeenRow {
    /// The proxy.
    pub proxy_id: Uuid,
    /// Its name.
    pub proxy: String,
    /// Which endpoint, from 0.
    pub endpoint: i64,
    /// `stateless`, `sessions` or `http_sse`.
    pub era: String,
    /// The revision of the protocol.
    pub revision: String,
    /// When it was found.
    pub found_at: DateTime<Utc>,
}

/// Stores what proxies found, in place of what each found before, with as few statements as may be: all of them say it
/// at once after a control plane was away.
pub async fn put(db: &Db, proxies: &[(Uuid, Vec<EraRow>)]) -> sqlx::Result<()> {
    let mut tx = db.begin().await?;
    for proxies in proxies.chunks(ROWS) {
        on_tx!(&mut tx, |conn| {
            let mut query = QueryBuilder::new("DELETE FROM server_eras");
            push_in(&mut query, " WHERE proxy_id", proxies.iter().map(|(id, _)| *id));
            query.build().persistent(false).execute(conn).await.map(drop)
        })?;
    }
    let found: Vec<(Uuid, &EraRow)> =
        proxies.iter().flat_map(|(id, found)| found.iter().map(|row| (*id, row))).collect();
    for rows in found.chunks(ROWS) {
        on_tx!(&mut tx, |conn| {
            let mut query = QueryBuilder::new(
                "INSERT INTO server_eras (proxy_id, server_id, endpoint, era, revision, found_at) ",
            );
            query.push_values(rows, |mut row, (proxy, found)| {
                row.push_bind(*proxy)
                    .push_bind(found.server)
                    .push_bind(found.endpoint)
                    .push_bind(found.era)
                    .push_bind(&found.revision)
                    .push_bind(found.found_at);
            });
            // Two replicas may write for one proxy, which has just changed from one to the other.
            query.push(
                " ON CONFLICT (proxy_id, server_id, endpoint) DO UPDATE SET era = excluded.era,
                    revision = excluded.revision, found_at = excluded.found_at",
            );
            query.build().persistent(false).execute(conn).await.map(drop)
        })?;
    }
    tx.commit().await
}

/// What the proxies that are known found at a server.
pub async fn of_server(db: &Db, server: Uuid) -> sqlx::Result<Vec<SeenRow>> {
    const SQL: &str = "SELECT e.proxy_id, p.name AS proxy, e.endpoint, e.era, e.revision, e.found_at
        FROM server_eras e JOIN proxies p ON p.id = e.proxy_id
        WHERE e.server_id = $1 ORDER BY e.endpoint, p.name, p.id";
    read(|| async { on_db!(db, |pool| sqlx::query_as(SQL).bind(server).fetch_all(pool).await) }).await
}
