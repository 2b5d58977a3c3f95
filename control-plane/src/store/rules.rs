//! The rules of tenants, and every version that a tenant's policy was ever in: a version is the sum of what it and those
//! before it changed, so that to save one rule among thousands is one row.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::QueryBuilder;
use sqlx::types::Json;
use uuid::Uuid;
use waffles_core::policy::{Rule, RuleSpec};

use super::changes::{signed, unsigned};
use super::{Db, Tx, on_db, on_tx, push_in, read};

/// Rows a statement.
const ROWS: usize = 200;

/// A rule in force, with where it stands in its history.
#[derive(Debug, Clone)]
pub struct StoredRule {
    /// The rule.
    pub rule: Rule,
    /// The version of the tenant's policy in which it changed last.
    pub version: u64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it changed last.
    pub updated_at: DateTime<Utc>,
}

/// One save of a tenant's policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyVersion {
    /// Counts from 1.
    pub version: u64,
    /// The revision at which proxies were told.
    pub revision: u64,
    /// Who saved it; none for Waffles itself.
    pub author: Option<Uuid>,
    /// Who saved it, by name.
    pub author_name: String,
    /// Why, in the author's words.
    pub comment: String,
    /// The version that a rollback went back to.
    pub restored: Option<u64>,
    /// When.
    pub created_at: DateTime<Utc>,
}

/// One rule of a version, or that it was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The rule's id, which it keeps for as long as the tenant's history goes back.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// As it became; none where it was removed.
    pub spec: Option<RuleSpec>,
}

/// A rule out of its stored form. One that cannot be read must not mean more access than it did, and a field that this
/// version does not know may have narrowed what it permits: it forbids everything in its tenant until someone saves it
/// anew, and says so.
fn readable(name: &str, stored: Value) -> RuleSpec {
    match serde_json::from_value::<RuleSpec>(stored) {
        Ok(spec) => RuleSpec { name: name.to_owned(), ..spec },
        Err(error) => {
            tracing::error!(rule.name = name, %error, "a stored rule cannot be read, so it forbids everything");
            let description =
                "The stored form of this rule cannot be read, so it forbids everything.".to_owned();
            RuleSpec { description, ..RuleSpec::forbid_all(name) }
        }
    }
}

#[derive(sqlx::FromRow)]
struct RuleRow {
    id: Uuid,
    tenant: String,
    name: String,
    spec: Json<Value>,
    version: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl From<RuleRow> for StoredRule {
    fn from(row: RuleRow) -> Self {
        Self {
            rule: Rule { id: row.id, tenant: row.tenant, spec: readable(&row.name, row.spec.0) },
            version: unsigned(row.version),
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

const COLUMNS: &str = "id, tenant, name, spec, version, created_at, updated_at";

#[derive(sqlx::FromRow)]
struct VersionRow {
    version: i64,
    revision: i64,
    author: Option<Uuid>,
    author_name: String,
    comment: String,
    restored: Option<i64>,
    created_at: DateTime<Utc>,
}

impl From<VersionRow> for PolicyVersion {
    fn from(row: VersionRow) -> Self {
        Self {
            version: unsigned(row.version),
            revision: unsigned(row.revision),
            author: row.author,
            author_name: row.author_name,
            comment: row.comment,
            restored: row.restored.map(unsigned),
            created_at: row.created_at,
        }
    }
}

/// Holds others off who change the policy of a tenant, until the transaction ends. The first thing in it.
pub async fn lock(tx: &mut Tx, tenant: &str) -> sqlx::Result<()> {
    const SQL: &str = "UPDATE tenants SET created_at = created_at WHERE id = $1";
    on_tx!(tx, |conn| sqlx::query(SQL).bind(tenant).execute(conn).await.map(drop))
}

/// The version that a tenant's policy is at; 0 before the first save.
pub async fn current(tx: &mut Tx, tenant: &str) -> sqlx::Result<u64> {
    const SQL: &str = "SELECT COALESCE(MAX(version), 0) FROM policy_versions WHERE tenant = $1";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(tenant).fetch_one(conn).await).map(unsigned)
}

/// Every rule of a tenant, in the order of their names.
pub async fn all(tx: &mut Tx, tenant: &str) -> sqlx::Result<Vec<StoredRule>> {
    const SQL: &str = "SELECT id, tenant, name, spec, version, created_at, updated_at FROM policy_rules
        WHERE tenant = $1 ORDER BY name";
    let rows: Vec<RuleRow> = on_tx!(tx, |conn| sqlx::query_as(SQL).bind(tenant).fetch_all(conn).await)?;
    Ok(rows.into_iter().map(StoredRule::from).collect())
}

/// Rules of a tenant by name, after a name.
pub async fn list(db: &Db, tenant: &str, after: Option<&str>, limit: u32) -> sqlx::Result<Vec<StoredRule>> {
    const SQL: &str = "SELECT id, tenant, name, spec, version, created_at, updated_at FROM policy_rules
        WHERE tenant = $1 AND name > $2 ORDER BY name LIMIT $3";
    let rows: Vec<RuleRow> = read(|| async {
        on_db!(db, |pool| sqlx::query_as(SQL)
            .bind(tenant)
            .bind(after.unwrap_or_default())
            .bind(i64::from(limit))
            .fetch_all(pool)
            .await)
    })
    .await?;
    Ok(rows.into_iter().map(StoredRule::from).collect())
}

/// One rule.
pub async fn get(db: &Db, tenant: &str, name: &str) -> sqlx::Result<Option<StoredRule>> {
    const SQL: &str = "SELECT id, tenant, name, spec, version, created_at, updated_at FROM policy_rules
        WHERE tenant = $1 AND name = $2";
    let row: Option<RuleRow> = read(|| async {
        on_db!(db, |pool| sqlx::query_as(SQL).bind(tenant).bind(name).fetch_optional(pool).await)
    })
    .await?;
    Ok(row.map(StoredRule::from))
}

/// Every rule, or those of some ids, of every tenant: for proxies.
pub async fn load(tx: &mut Tx, ids: Option<&[Uuid]>) -> sqlx::Result<Vec<Rule>> {
    let rows: Vec<RuleRow> = on_tx!(tx, |conn| {
        let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM policy_rules"));
        if let Some(ids) = ids {
            push_in(&mut query, " WHERE id", ids.iter().copied());
        }
        query.build_query_as().persistent(false).fetch_all(conn).await
    })?;
    Ok(rows.into_iter().map(|row| StoredRule::from(row).rule).collect())
}

/// Writes what a version changes: into the rules in force, and into the history.
pub async fn write(
    tx: &mut Tx,
    tenant: &str,
    version: u64,
    changes: &[Change],
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    let (put, removed): (Vec<&Change>, Vec<&Change>) =
        changes.iter().partition(|change| change.spec.is_some());
    for rows in removed.chunks(ROWS) {
        on_tx!(&mut *tx, |conn| {
            let mut query = QueryBuilder::new("DELETE FROM policy_rules WHERE tenant = ");
            query.push_bind(tenant);
            push_in(&mut query, " AND id", rows.iter().map(|change| change.id));
            query.build().persistent(false).execute(conn).await.map(drop)
        })?;
    }
    for rows in put.chunks(ROWS) {
        on_tx!(&mut *tx, |conn| {
            let mut query = QueryBuilder::new(
                "INSERT INTO policy_rules (id, tenant, name, spec, version, created_at, updated_at) ",
            );
            query.push_values(rows, |mut row, change| {
                row.push_bind(change.id)
                    .push_bind(tenant)
                    .push_bind(&change.name)
                    .push_bind(change.spec.as_ref().map(Json))
                    .push_bind(signed(version))
                    .push_bind(now)
                    .push_bind(now);
            });
            query.push(
                " ON CONFLICT (id) DO UPDATE SET spec = excluded.spec, version = excluded.version,
                    updated_at = excluded.updated_at",
            );
            query.build().persistent(false).execute(conn).await.map(drop)
        })?;
    }
    for rows in changes.chunks(ROWS) {
        on_tx!(&mut *tx, |conn| {
            let mut query =
                QueryBuilder::new("INSERT INTO policy_changes (tenant, version, rule_id, name, spec) ");
            query.push_values(rows, |mut row, change| {
                row.push_bind(tenant)
                    .push_bind(signed(version))
                    .push_bind(change.id)
                    .push_bind(&change.name)
                    .push_bind(change.spec.as_ref().map(Json));
            });
            query.build().persistent(false).execute(conn).await.map(drop)
        })?;
    }
    Ok(())
}

/// Notes a version: who, why, and at which revision proxies hear of it.
pub async fn note(tx: &mut Tx, tenant: &str, version: &PolicyVersion) -> sqlx::Result<()> {
    const SQL: &str = "INSERT INTO policy_versions
        (tenant, version, revision, author, author_name, comment, restored, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(tenant)
        .bind(signed(version.version))
        .bind(signed(version.revision))
        .bind(version.author)
        .bind(&version.author_name)
        .bind(&version.comment)
        .bind(version.restored.map(signed))
        .bind(version.created_at)
        .execute(conn)
        .await
        .map(drop))
}

/// Versions of a tenant's policy, newest first, before a version.
pub async fn versions(
    db: &Db,
    tenant: &str,
    before: Option<u64>,
    limit: u32,
) -> sqlx::Result<Vec<PolicyVersion>> {
    const SQL: &str = "SELECT version, revision, author, author_name, comment, restored, created_at
        FROM policy_versions WHERE tenant = $1 AND version < $2 ORDER BY version DESC LIMIT $3";
    let before = before.map_or(i64::MAX, signed);
    let rows: Vec<VersionRow> = read(|| async {
        on_db!(db, |pool| sqlx::query_as(SQL)
            .bind(tenant)
            .bind(before)
            .bind(i64::from(limit))
            .fetch_all(pool)
            .await)
    })
    .await?;
    Ok(rows.into_iter().map(PolicyVersion::from).collect())
}

/// One version of a tenant's policy.
pub async fn version(tx: &mut Tx, tenant: &str, version: u64) -> sqlx::Result<Option<PolicyVersion>> {
    const SQL: &str = "SELECT version, revision, author, author_name, comment, restored, created_at
        FROM policy_versions WHERE tenant = $1 AND version = $2";
    let row: Option<VersionRow> =
        on_tx!(tx, |conn| sqlx::query_as(SQL).bind(tenant).bind(signed(version)).fetch_optional(conn).await)?;
    Ok(row.map(PolicyVersion::from))
}

/// The version that was in force at a revision of the configuration; 0 before the first save.
pub async fn version_at(tx: &mut Tx, tenant: &str, revision: u64) -> sqlx::Result<u64> {
    const SQL: &str =
        "SELECT COALESCE(MAX(version), 0) FROM policy_versions WHERE tenant = $1 AND revision <= $2";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(tenant).bind(signed(revision)).fetch_one(conn).await)
        .map(unsigned)
}

/// The rules of a version, in the order of their names.
pub async fn at(tx: &mut Tx, tenant: &str, version: u64) -> sqlx::Result<Vec<Change>> {
    const SQL: &str = "SELECT c.rule_id, c.name, c.spec FROM policy_changes c
        JOIN (SELECT rule_id, MAX(version) AS version FROM policy_changes
            WHERE tenant = $1 AND version <= $2 GROUP BY rule_id) latest
            ON latest.rule_id = c.rule_id AND latest.version = c.version
        WHERE c.tenant = $1 AND c.spec IS NOT NULL ORDER BY c.name";
    let rows: Vec<(Uuid, String, Option<Json<Value>>)> =
        on_tx!(tx, |conn| sqlx::query_as(SQL).bind(tenant).bind(signed(version)).fetch_all(conn).await)?;
    let change = |(id, name, spec): (Uuid, String, Option<Json<Value>>)| {
        let spec = spec.map(|spec| readable(&name, spec.0));
        Change { id, name, spec }
    };
    let mut rules: Vec<Change> = rows.into_iter().map(change).collect();
    // Not by the database, whose order of hyphens may be another than ours.
    rules.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(rules)
}

/// The id that a rule of a name had before, so that it is the same rule in the whole history.
pub async fn former_ids(tx: &mut Tx, tenant: &str) -> sqlx::Result<Vec<(String, Uuid)>> {
    const SQL: &str = "SELECT DISTINCT name, rule_id FROM policy_changes WHERE tenant = $1";
    on_tx!(tx, |conn| sqlx::query_as(SQL).bind(tenant).fetch_all(conn).await)
}
