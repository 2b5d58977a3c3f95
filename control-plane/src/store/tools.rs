//! The tools that proxies saw in lists of servers, with the schemas of their arguments.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::QueryBuilder;
use uuid::Uuid;

use super::{Db, Tx, on_db, on_tx, push_in, read};

/// Rows a statement.
const ROWS: usize = 100;

/// A tool, as a server listed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenTool {
    /// Its name.
    pub name: String,
    /// The JSON Schema of its arguments, as text.
    pub input_schema: String,
}

/// A tool of a server of a tenant.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ToolRow {
    /// The server's name.
    pub server: String,
    /// The tool's name.
    pub name: String,
    /// The JSON Schema of its arguments, as text.
    pub input_schema: String,
    /// When it was seen last as it is.
    pub seen_at: DateTime<Utc>,
}

/// Tools of a server at the most; those beyond are not in the catalogue.
pub const MOST_TOOLS: usize = 10_000;
/// How long a tool that is listed again as it was keeps its time, so that most lists write nothing.
const KEEPS_TIME: TimeDelta = TimeDelta::days(1);
/// How long a tool that no list holds any more stays.
const FORGOTTEN: TimeDelta = TimeDelta::days(30);

/// Stores tools that a server listed beside those that it listed before; writes what differs, and forgets what was not
/// listed for long. A server that is not there any more has none.
pub async fn put(db: &Db, server: Uuid, tools: &[SeenTool], now: DateTime<Utc>) -> sqlx::Result<()> {
    const TENANT: &str = "SELECT tenant FROM servers WHERE id = $1";
    const FORGET: &str = "DELETE FROM server_tools WHERE tenant = $1 AND server_id = $2 AND seen_at < $3";
    const COUNT: &str = "SELECT COUNT(*) FROM server_tools WHERE tenant = $1 AND server_id = $2";
    let mut tx = db.begin().await?;
    let tenant: Option<String> =
        on_tx!(&mut tx, |conn| sqlx::query_scalar(TENANT).bind(server).fetch_optional(conn).await)?;
    let Some(tenant) = tenant else { return Ok(()) };
    on_tx!(&mut tx, |conn| sqlx::query(FORGET)
        .bind(&tenant)
        .bind(server)
        .bind(now - FORGOTTEN)
        .execute(conn)
        .await
        .map(drop))?;
    let count: i64 =
        on_tx!(&mut tx, |conn| sqlx::query_scalar(COUNT).bind(&tenant).bind(server).fetch_one(conn).await)?;
    let mut room = MOST_TOOLS.saturating_sub(usize::try_from(count).unwrap_or(MOST_TOOLS));
    for tools in tools.chunks(ROWS) {
        let known = present(&mut tx, &tenant, server, tools).await?;
        let mut rows = Vec::new();
        for tool in tools {
            let differs = match known.get(&tool.name) {
                Some((schema, seen_at)) => *schema != tool.input_schema || *seen_at < now - KEEPS_TIME,
                None if room == 0 => false,
                None => {
                    room -= 1;
                    true
                }
            };
            if differs {
                rows.push(tool);
            }
        }
        if !rows.is_empty() {
            write(&mut tx, &tenant, server, &rows, now).await?;
        }
    }
    tx.commit().await
}

async fn present(
    tx: &mut Tx,
    tenant: &str,
    server: Uuid,
    tools: &[SeenTool],
) -> sqlx::Result<HashMap<String, (String, DateTime<Utc>)>> {
    let rows: Vec<(String, String, DateTime<Utc>)> = on_tx!(tx, |conn| {
        let mut query =
            QueryBuilder::new("SELECT name, input_schema, seen_at FROM server_tools WHERE tenant = ");
        query.push_bind(tenant).push(" AND server_id = ").push_bind(server);
        push_in(&mut query, " AND name", tools.iter().map(|tool| &tool.name));
        query.build_query_as().persistent(false).fetch_all(conn).await
    })?;
    Ok(rows.into_iter().map(|(name, schema, seen_at)| (name, (schema, seen_at))).collect())
}

async fn write(
    tx: &mut Tx,
    tenant: &str,
    server: Uuid,
    rows: &[&SeenTool],
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    on_tx!(tx, |conn| {
        let mut query =
            QueryBuilder::new("INSERT INTO server_tools (tenant, server_id, name, input_schema, seen_at) ");
        query.push_values(rows, |mut row, tool| {
            row.push_bind(tenant)
                .push_bind(server)
                .push_bind(&tool.name)
                .push_bind(&tool.input_schema)
                .push_bind(now);
        });
        query.push(
            " ON CONFLICT (server_id, name) DO UPDATE SET input_schema = excluded.input_schema,
                seen_at = excluded.seen_at",
        );
        query.build().persistent(false).execute(conn).await.map(drop)
    })
}

/// Tools of a tenant's servers, in the order of their names, after one of them. A page, since schemas may be long.
pub async fn of_tenant(db: &Db, tenant: &str, after: (&str, &str), limit: u32) -> sqlx::Result<Vec<ToolRow>> {
    const SQL: &str = "SELECT s.name AS server, t.name, t.input_schema, t.seen_at
        FROM server_tools t JOIN servers s ON s.id = t.server_id
        WHERE t.tenant = $1 AND s.tenant = $1 AND (s.name, t.name) > ($2, $3)
        ORDER BY s.name, t.name LIMIT $4";
    read(|| async {
        on_db!(db, |pool| sqlx::query_as(SQL)
            .bind(tenant)
            .bind(after.0)
            .bind(after.1)
            .bind(i64::from(limit))
            .fetch_all(pool)
            .await)
    })
    .await
}
