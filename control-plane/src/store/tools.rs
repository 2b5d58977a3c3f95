//! The tools that proxies saw in lists of servers, with the schemas of their arguments.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::QueryBuilder;
use uuid::Uuid;

use super::{Db, Tx, on_db, on_tx, read};

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

/// Stores the tools of a server in place of those before; writes what differs. A server that is not there any more has
/// none. Tells whether anything was written.
pub async fn put(db: &Db, server: Uuid, tools: &[SeenTool], now: DateTime<Utc>) -> sqlx::Result<bool> {
    const TENANT: &str = "SELECT tenant FROM servers WHERE id = $1";
    let mut tx = db.begin().await?;
    let tenant: Option<String> =
        on_tx!(&mut tx, |conn| sqlx::query_scalar(TENANT).bind(server).fetch_optional(conn).await)?;
    let Some(tenant) = tenant else { return Ok(false) };
    let mut known: HashMap<String, String> = present(&mut tx, &tenant, server).await?.into_iter().collect();
    let new: Vec<&SeenTool> = tools
        .iter()
        .filter(|tool| known.remove(&tool.name).is_none_or(|schema| schema != tool.input_schema))
        .collect();
    let gone: Vec<String> = known.into_keys().collect();
    if new.is_empty() && gone.is_empty() {
        return Ok(false);
    }
    remove(&mut tx, &tenant, server, &gone).await?;
    for rows in new.chunks(ROWS) {
        on_tx!(&mut tx, |conn| {
            let mut query = QueryBuilder::new(
                "INSERT INTO server_tools (tenant, server_id, name, input_schema, seen_at) ",
            );
            query.push_values(rows, |mut row, tool| {
                row.push_bind(&tenant)
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
        })?;
    }
    tx.commit().await?;
    Ok(true)
}

async fn present(tx: &mut Tx, tenant: &str, server: Uuid) -> sqlx::Result<Vec<(String, String)>> {
    const SQL: &str = "SELECT name, input_schema FROM server_tools WHERE tenant = $1 AND server_id = $2";
    on_tx!(tx, |conn| sqlx::query_as(SQL).bind(tenant).bind(server).fetch_all(conn).await)
}

async fn remove(tx: &mut Tx, tenant: &str, server: Uuid, names: &[String]) -> sqlx::Result<()> {
    for names in names.chunks(ROWS) {
        on_tx!(&mut *tx, |conn| {
            let mut query = QueryBuilder::new("DELETE FROM server_tools WHERE tenant = ");
            query.push_bind(tenant).push(" AND server_id = ").push_bind(server).push(" AND name IN (");
            let mut list = query.separated(", ");
            for name in names {
                list.push_bind(name);
            }
            query.push(")");
            query.build().persistent(false).execute(conn).await.map(drop)
        })?;
    }
    Ok(())
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
