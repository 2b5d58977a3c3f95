//! Users and service accounts as those who manage them see them, their passwords, and the tokens that set one.

use chrono::{DateTime, Utc};
use sqlx::QueryBuilder;
use sqlx::types::Json;
use uuid::Uuid;
use waffles_core::audit::micros;
use waffles_core::credential::KeyHash;
use waffles_core::principal::{Principal, PrincipalKind};

use super::{Db, Tx, on_tx, read, rights};
use crate::store::principals::{USER, UserRow};

/// A user or service account.
#[derive(Debug, Clone)]
pub struct Account {
    /// Who it is, and what it holds.
    pub principal: Principal,
    /// What people call it; free text.
    pub display_name: String,
    /// Whether it has a password. A user without one was invited and has not come yet.
    pub has_password: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

#[derive(sqlx::FromRow)]
struct AccountRow {
    #[sqlx(flatten)]
    user: UserRow,
    display_name: String,
    has_password: bool,
    created_at: DateTime<Utc>,
}

impl From<AccountRow> for Account {
    fn from(row: AccountRow) -> Self {
        Self {
            principal: row.user.into(),
            display_name: row.display_name,
            has_password: row.has_password,
            created_at: row.created_at,
        }
    }
}

/// Beside those of the principal.
const MORE: &str = ", u.name AS display_name, u.password_hash IS NOT NULL AS has_password, u.created_at";

/// Which accounts, how many, and from where on.
#[derive(Debug, Clone)]
pub struct AccountPage {
    /// Users or service accounts.
    pub kind: PrincipalKind,
    /// Deactivated ones too.
    pub inactive: bool,
    /// The name of the last account of the page before.
    pub after: Option<String>,
    /// At the most.
    pub limit: u32,
}

/// Accounts of a tenant by name.
pub async fn list(db: &Db, tenant: &str, page: &AccountPage) -> sqlx::Result<Vec<Account>> {
    read(|| async {
        let mut tx = db.begin_read().await?;
        let rows: Vec<AccountRow> = on_tx!(&mut tx, |conn| {
            let mut query = QueryBuilder::new(format!("SELECT {USER}{MORE} FROM users u WHERE u.tenant = "));
            query.push_bind(tenant).push(" AND u.kind = ").push_bind(page.kind.as_str());
            if !page.inactive {
                query.push(" AND u.active");
            }
            if let Some(after) = &page.after {
                query.push(" AND u.email > ").push_bind(after);
            }
            query.push(" ORDER BY u.email LIMIT ").push_bind(i64::from(page.limit));
            query.build_query_as().fetch_all(conn).await
        })?;
        with_rights(&mut tx, rows).await
    })
    .await
}

/// How an account is named.
#[derive(Debug, Clone)]
pub enum Named {
    /// By its id.
    Id(Uuid),
    /// By its e-mail address, or its name.
    Name(String),
}

/// One account of a tenant.
pub async fn find(
    tx: &mut Tx,
    tenant: &str,
    kind: Option<PrincipalKind>,
    named: &Named,
) -> sqlx::Result<Option<Account>> {
    let rows: Vec<AccountRow> = on_tx!(&mut *tx, |conn| {
        let mut query = QueryBuilder::new(format!("SELECT {USER}{MORE} FROM users u WHERE u.tenant = "));
        query.push_bind(tenant);
        if let Some(kind) = kind {
            query.push(" AND u.kind = ").push_bind(kind.as_str());
        }
        match named {
            Named::Id(id) => query.push(" AND u.id = ").push_bind(*id),
            Named::Name(name) => query.push(" AND u.email = ").push_bind(name),
        };
        query.build_query_as().fetch_all(conn).await
    })?;
    Ok(with_rights(tx, rows).await?.pop())
}

async fn with_rights(tx: &mut Tx, rows: Vec<AccountRow>) -> sqlx::Result<Vec<Account>> {
    let mut accounts: Vec<Account> = rows.into_iter().map(Account::from).collect();
    let mut principals: Vec<Principal> =
        accounts.iter_mut().map(|account| std::mem::take(&mut account.principal)).collect();
    rights::add(tx, &mut principals).await?;
    for (account, principal) in accounts.iter_mut().zip(principals) {
        account.principal = principal;
    }
    Ok(accounts)
}

/// How many active accounts a tenant has.
pub async fn count(tx: &mut Tx, tenant: &str) -> sqlx::Result<i64> {
    const SQL: &str = "SELECT count(*) FROM users WHERE tenant = $1 AND active";
    on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(tenant).fetch_one(conn).await)
}

/// Writes a new account without a password; false where the name is taken.
pub async fn insert(
    tx: &mut Tx,
    principal: &Principal,
    display_name: &str,
    by: Uuid,
    now: DateTime<Utc>,
) -> sqlx::Result<bool> {
    const SQL: &str = "INSERT INTO users
        (id, tenant, kind, email, name, password_hash, roles, active, tokens_not_before, created_by, created_at,
            updated_at)
        VALUES ($1, $2, $3, $4, $5, NULL, $6, $7, NULL, $8, $9, $9) ON CONFLICT (tenant, email) DO NOTHING";
    let none: [&str; 0] = [];
    let count = on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(principal.id)
        .bind(&principal.tenant)
        .bind(principal.kind.as_str())
        .bind(&principal.name)
        .bind(display_name)
        .bind(Json(none))
        .bind(principal.active)
        .bind(by)
        .bind(micros(now))
        .execute(conn)
        .await
        .map(|done| done.rows_affected()))?;
    Ok(count > 0)
}

/// Activates or deactivates an account; tokens that were issued before `not_before` end.
pub async fn set_active(
    tx: &mut Tx,
    tenant: &str,
    id: Uuid,
    active: bool,
    not_before: DateTime<Utc>,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    const SQL: &str = "UPDATE users SET active = $3, tokens_not_before = $4, updated_at = $5
        WHERE tenant = $1 AND id = $2";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(tenant)
        .bind(id)
        .bind(active)
        .bind(micros(not_before))
        .bind(micros(now))
        .execute(conn)
        .await
        .map(drop))
}

/// Gives a user another password; tokens that were issued before `not_before` end.
pub async fn set_password(
    tx: &mut Tx,
    tenant: &str,
    id: Uuid,
    password_hash: &str,
    not_before: DateTime<Utc>,
    now: DateTime<Utc>,
) -> sqlx::Result<()> {
    const SQL: &str = "UPDATE users SET password_hash = $3, tokens_not_before = $4, updated_at = $5
        WHERE tenant = $1 AND id = $2";
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(tenant)
        .bind(id)
        .bind(password_hash)
        .bind(micros(not_before))
        .bind(micros(now))
        .execute(conn)
        .await
        .map(drop))
}

/// The hash of a user's password.
pub async fn password_hash(tx: &mut Tx, tenant: &str, id: Uuid) -> sqlx::Result<Option<String>> {
    const SQL: &str = "SELECT password_hash FROM users WHERE tenant = $1 AND id = $2";
    let found: Option<Option<String>> =
        on_tx!(tx, |conn| sqlx::query_scalar(SQL).bind(tenant).bind(id).fetch_optional(conn).await)?;
    Ok(found.flatten())
}

// === Tokens that set a password ===

/// Whose token it is, and who made it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct TokenRow {
    /// The tenant.
    pub tenant: String,
    /// The user whose password it sets.
    pub user_id: Uuid,
    /// Who made it; none: Waffles itself.
    pub created_by: Option<Uuid>,
}

/// Writes the one token of a user; one that there was before is void.
pub async fn put_token(
    tx: &mut Tx,
    hash: &KeyHash,
    token: &TokenRow,
    now: DateTime<Utc>,
    expires_at: DateTime<Utc>,
) -> sqlx::Result<()> {
    const SQL: &str =
        "INSERT INTO password_tokens (hash, tenant, user_id, created_by, created_at, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6)";
    drop_tokens(tx, &token.tenant, token.user_id).await?;
    on_tx!(tx, |conn| sqlx::query(SQL)
        .bind(hash.as_slice())
        .bind(&token.tenant)
        .bind(token.user_id)
        .bind(token.created_by)
        .bind(micros(now))
        .bind(micros(expires_at))
        .execute(conn)
        .await
        .map(drop))
}

/// Makes the tokens of a user void.
pub async fn drop_tokens(tx: &mut Tx, tenant: &str, user: Uuid) -> sqlx::Result<()> {
    const SQL: &str = "DELETE FROM password_tokens WHERE tenant = $1 AND user_id = $2";
    on_tx!(tx, |conn| sqlx::query(SQL).bind(tenant).bind(user).execute(conn).await.map(drop))
}

/// Whether a token is good at the moment, without using it: a look before the expensive work. The token says whose it
/// is, so it names the tenant too.
pub async fn is_token(db: &Db, hash: &KeyHash, now: DateTime<Utc>) -> sqlx::Result<bool> {
    const SQL: &str = "SELECT count(*) FROM password_tokens WHERE hash = $1 AND expires_at > $2";
    let count: i64 = read(|| async {
        let mut tx = db.begin_read().await?;
        on_tx!(&mut tx, |conn| sqlx::query_scalar(SQL)
            .bind(hash.as_slice())
            .bind(micros(now))
            .fetch_one(conn)
            .await)
    })
    .await?;
    Ok(count > 0)
}

/// Uses a token up. The one statement decides between two who try at once.
pub async fn take_token(tx: &mut Tx, hash: &KeyHash, now: DateTime<Utc>) -> sqlx::Result<Option<TokenRow>> {
    const SQL: &str = "DELETE FROM password_tokens WHERE hash = $1 AND expires_at > $2
        RETURNING tenant, user_id, created_by";
    on_tx!(tx, |conn| sqlx::query_as(SQL).bind(hash.as_slice()).bind(micros(now)).fetch_optional(conn).await)
}

/// Forgets tokens that nobody used in time, of every tenant.
pub async fn forget_tokens(tx: &mut Tx, now: DateTime<Utc>) -> sqlx::Result<u64> {
    const SQL: &str = "DELETE FROM password_tokens WHERE expires_at <= $1";
    on_tx!(tx, |conn| sqlx::query(SQL).bind(micros(now)).execute(conn).await.map(|done| done.rows_affected()))
}
