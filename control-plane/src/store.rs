//! The database: Postgres or SQLite behind one `Db`, one statement text for both, transactions, migrations. A `Db` says
//! whose rows it is for, and on Postgres row-level security holds it to that. The files below hold the SQL; nothing here
//! or there knows a rule.

pub mod accounts;
pub mod audit;
pub mod changes;
pub mod data_keys;
pub mod enrolment;
pub mod eras;
pub mod grants;
pub mod groups;
pub mod health;
pub mod limits;
pub mod namespaces;
mod owner;
pub mod principals;
pub mod proxies;
mod rights;
pub mod rules;
mod scope;
pub mod servers;
pub mod sessions;
pub mod tenants;
pub mod tools;
pub mod trail;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, PgPool};
use sqlx::{Postgres, Sqlite, SqlitePool};

use scope::Scope;

/// How long a read may take, its second attempt included: a caller hears of a lost database within two seconds.
pub const READ_TIME: Duration = Duration::from_millis(1800);
/// How long a replica waits for another one that is migrating.
const MIGRATION_TIME: Duration = Duration::from_secs(300);
/// How long a control plane waits for the one before it to end, on SQLite.
const HOLD_TIME: Duration = Duration::from_secs(3);

static POSTGRES: sqlx::migrate::Migrator = sqlx::migrate!("../migrations/postgres");
static SQLITE: sqlx::migrate::Migrator = sqlx::migrate!("../migrations/sqlite");

/// Where the database is and how it is used.
#[derive(Debug, Clone)]
pub struct DbConfig {
    /// `postgres://…` or `sqlite://…`. May hold a password.
    pub url: SecretString,
    /// Connections at the most.
    pub max_connections: u32,
    /// How long to wait for a connection.
    pub acquire_timeout: Duration,
    /// How long Postgres works on one statement, or SQLite waits for another writer.
    pub statement_timeout: Duration,
    /// The role that statements run as on Postgres; none for the database's name and `_app`.
    pub role: Option<String>,
}

impl DbConfig {
    /// The defaults for an address.
    pub fn new(url: impl Into<SecretString>) -> Self {
        Self {
            url: url.into(),
            max_connections: 10,
            acquire_timeout: Duration::from_millis(1500),
            statement_timeout: Duration::from_secs(10),
            role: None,
        }
    }
}

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The address names neither kind of database.
    #[error("the database URL must begin with `postgres://` or `sqlite://`")]
    Url,
    /// The address cannot be read, or the database cannot be reached.
    #[error("the database cannot be opened")]
    Open(#[source] sqlx::Error),
    /// The SQLite file or its lock cannot be made.
    #[error("cannot use {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another process has been migrating for too long.
    #[error("another process has been migrating the database for {} s", MIGRATION_TIME.as_secs())]
    Locked,
    /// A migration failed; what was done before it stays.
    #[error("a migration failed")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// The role that row-level security is for is not there, and this user may not make it.
    #[error(
        "tenants are kept apart by row-level security, for which the database role {role} is needed, and the user {user} \
         may not make it; have an administrator of the database run: {remedy}"
    )]
    Role {
        /// The role.
        role: String,
        /// Who tried to make it.
        user: String,
        /// What an administrator has to run.
        remedy: String,
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
    /// Row-level security would not hold.
    #[error("tenants would not be kept apart by the database: {0}")]
    Unprotected(String),
    /// Another control plane serves from this SQLite file.
    #[error(
        "another control plane serves from {0}: SQLite takes one at a time; stop the other one, or use Postgres"
    )]
    Taken(PathBuf),
}

/// An open database for some tenant's rows, for those of all, or for those of none; cheap to clone.
#[derive(Debug, Clone)]
pub struct Db {
    pool: Pool,
    scope: Scope,
}

/// Its connections. Nobody but the macros and methods here takes one, since each must be told its scope first.
#[derive(Debug, Clone)]
enum Pool {
    Pg(PgPool, std::sync::Arc<str>),
    Lite(SqlitePool),
}

/// A transaction. Dropped without [`Tx::commit`], it is rolled back.
#[derive(Debug)]
pub struct Tx {
    pub(crate) begun: Begun,
    /// Acts that it notes in the audit trail when it commits: the end of the chain that they become part of is locked last
    /// of all and for no longer than it takes, or any two writers would wait for each other.
    notes: Vec<waffles_core::audit::Event>,
}

#[derive(Debug)]
pub(crate) enum Begun {
    Pg(sqlx::Transaction<'static, Postgres>),
    Lite(sqlx::Transaction<'static, Sqlite>),
}

/// Runs one statement on whichever database is open, within its scope: `on_db!(db, |conn| query.fetch_all(conn).await)`.
macro_rules! on_db {
    ($db:expr, |$conn:ident| $body:expr) => {{
        let db: &$crate::store::Db = $db;
        match &db.pool {
            $crate::store::Pool::Pg(pool, _) => match db.scoped(pool).await {
                Ok(mut conn) => {
                    let $conn = &mut *conn;
                    $body
                }
                Err(error) => Err(error),
            },
            $crate::store::Pool::Lite($conn) => $body,
        }
    }};
}

/// The same within a transaction: `on_tx!(tx, |conn| query.execute(conn).await)`. A body with more than one
/// statement says `&mut *conn`.
macro_rules! on_tx {
    ($tx:expr, |$conn:ident| $body:expr) => {
        match &mut $tx.begun {
            $crate::store::Begun::Pg(tx) => {
                let $conn = &mut **tx;
                $body
            }
            $crate::store::Begun::Lite(tx) => {
                let $conn = &mut **tx;
                $body
            }
        }
    };
}

#[allow(unused_imports, reason = "the files below use what they need")]
pub(crate) use {on_db, on_tx};

/// Adds `before IN (…)` to a statement, each value bound. There must be one at the least: SQL knows no empty list.
fn push_in<'t, DB: sqlx::Database, T: sqlx::Encode<'t, DB> + sqlx::Type<DB>>(
    query: &mut sqlx::QueryBuilder<DB>,
    before: &str,
    values: impl IntoIterator<Item = T>,
) {
    query.push(before).push(" IN (");
    let mut list = query.separated(", ");
    for value in values {
        list.push_bind(value);
    }
    query.push(")");
}

impl Db {
    /// Opens the database, for nobody's rows yet. A SQLite file is made where there is none, readable by its owner only.
    /// Postgres need not be there yet: its connections are made when they are needed.
    pub async fn connect(config: &DbConfig) -> Result<Self, OpenError> {
        let url = config.url.expose_secret();
        let pool = if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            open_postgres(url, config)?
        } else if url.starts_with("sqlite:") {
            Pool::Lite(open_sqlite(url, config).await?)
        } else {
            return Err(OpenError::Url);
        };
        Ok(Self { pool, scope: Scope::Nothing })
    }

    /// The same database for one tenant's rows.
    #[must_use]
    pub fn of(&self, tenant: &str) -> Self {
        Self { pool: self.pool.clone(), scope: Scope::of(tenant) }
    }

    /// The same database for the rows of every tenant: for what proxies are sent, for log-ins, for housekeeping.
    #[must_use]
    pub fn everywhere(&self) -> Self {
        Self { pool: self.pool.clone(), scope: Scope::Everywhere }
    }

    /// Begins a transaction that writes. On SQLite it takes the write lock at once, so that two of them wait for
    /// each other instead of failing in the middle.
    pub async fn begin(&self) -> Result<Tx, sqlx::Error> {
        match &self.pool {
            // A server that is stopped, not gone, takes bytes and never answers.
            Pool::Pg(pool, _) => tokio::time::timeout(READ_TIME, self.begin_scoped(pool, "BEGIN"))
                .await
                .unwrap_or(Err(sqlx::Error::PoolTimedOut)),
            Pool::Lite(pool) => Ok(Tx::new(Begun::Lite(pool.begin_with("BEGIN IMMEDIATE").await?))),
        }
    }

    /// Begins a transaction that reads, all of it from one moment.
    pub async fn begin_read(&self) -> Result<Tx, sqlx::Error> {
        match &self.pool {
            Pool::Pg(pool, _) => {
                self.begin_scoped(pool, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await
            }
            Pool::Lite(pool) => Ok(Tx::new(Begun::Lite(pool.begin_with("BEGIN").await?))),
        }
    }

    /// The scope travels with the statement that begins the transaction, so that it costs no time, and ends with it.
    async fn begin_scoped(&self, pool: &PgPool, begin: &str) -> Result<Tx, sqlx::Error> {
        let begin = format!("{begin}; {}", self.scope.set_local());
        Ok(Tx::new(Begun::Pg(pool.begin_with(AssertSqlSafe(begin)).await?)))
    }

    /// A connection for one statement, told the scope. It forgets it when it goes back (`open_postgres`), and whoever
    /// gets it next sets another.
    async fn scoped(&self, pool: &PgPool) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        let mut conn = pool.acquire().await?;
        self.scope.tell(&mut conn).await?;
        Ok(conn)
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), sqlx::Error> {
        read(|| async {
            on_db!(self, |conn| sqlx::query("SELECT revision FROM meta").execute(conn).await.map(drop))
        })
        .await
    }

    /// Listens for other replicas' writes, on Postgres; none on SQLite, where there are no others.
    pub async fn listener(&self) -> Result<Option<PgListener>, sqlx::Error> {
        match &self.pool {
            Pool::Pg(pool, _) => PgListener::connect_with(pool).await.map(Some),
            Pool::Lite(_) => Ok(None),
        }
    }

    /// Keeps other control planes off a SQLite file for as long as the answer lives: each would publish its own writes
    /// only. Replicas on Postgres hear of one another, so there is nothing to keep.
    pub async fn hold(&self) -> Result<Option<std::fs::File>, OpenError> {
        let Pool::Lite(pool) = &self.pool else { return Ok(None) };
        let options = pool.connect_options();
        let database = options.get_filename();
        let lock = lock_beside(database, ".lock");
        let held = tokio::time::timeout(HOLD_TIME, lock).await;
        held.unwrap_or_else(|_| Err(OpenError::Taken(database.to_owned()))).map(Some)
    }

    /// Runs the migrations that are missing, under a lock that holds other replicas off, and makes sure that Postgres
    /// keeps tenants apart.
    pub async fn migrate(&self) -> Result<(), OpenError> {
        let run = async {
            match &self.pool {
                Pool::Pg(pool, role) => {
                    let mut conn = owner(pool).await.map_err(OpenError::Open)?;
                    POSTGRES.run_direct(None, &mut conn, false).await.map_err(OpenError::Migrate)?;
                    owner::prepare(&mut conn, role).await?;
                    conn.close().await.map_err(OpenError::Open)
                }
                Pool::Lite(pool) => {
                    let options = pool.connect_options();
                    let _lock = lock_beside(options.get_filename(), ".migrate-lock").await?;
                    SQLITE.run(pool).await.map_err(OpenError::Migrate)
                }
            }
        };
        tokio::time::timeout(MIGRATION_TIME, run).await.unwrap_or(Err(OpenError::Locked))
    }

    /// Closes every connection.
    pub async fn close(&self) {
        match &self.pool {
            Pool::Pg(pool, _) => pool.close().await,
            Pool::Lite(pool) => pool.close().await,
        }
    }

    /// `postgres` or `sqlite`.
    pub fn kind(&self) -> &'static str {
        match &self.pool {
            Pool::Pg(..) => "postgres",
            Pool::Lite(_) => "sqlite",
        }
    }
}

impl Tx {
    fn new(begun: Begun) -> Self {
        Self { begun, notes: Vec::new() }
    }

    /// Notes an act, which becomes part of the audit trail with the commit.
    pub fn note(&mut self, event: waffles_core::audit::Event) {
        self.notes.push(event);
    }

    /// Makes it durable, with the acts that it noted. An error may hide a success: the caller must not repeat the work
    /// blindly.
    pub async fn commit(mut self) -> Result<(), sqlx::Error> {
        let notes = std::mem::take(&mut self.notes);
        if !notes.is_empty() {
            audit::append_own(&mut self, notes).await?;
        }
        match self.begun {
            Begun::Pg(tx) => tx.commit().await,
            Begun::Lite(tx) => tx.commit().await,
        }
    }
}

/// Runs a read, within [`READ_TIME`], once more when its connection was lost. Writes do not go through here:
/// one whose connection was lost may have happened.
pub async fn read<T, F>(mut query: impl FnMut() -> F) -> sqlx::Result<T>
where
    F: Future<Output = sqlx::Result<T>>,
{
    let attempts = async {
        match query().await {
            Err(error) if is_connection_loss(&error) => {
                tracing::debug!(%error, "reading again on another connection");
                query().await
            }
            result => result,
        }
    };
    tokio::time::timeout(READ_TIME, attempts).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// Whether the fault lies with the connection or the server's state, not with the statement.
pub fn is_connection_loss(error: &sqlx::Error) -> bool {
    match error {
        // A server that hangs up in the middle of a handshake reads as one that breaks the protocol.
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::WorkerCrashed => true,
        // Class 08 is a connection exception; 57P01 to 57P03 are a server that stops or starts.
        sqlx::Error::Database(db) => db
            .code()
            .is_some_and(|code| code.starts_with("08") || matches!(&*code, "57P01" | "57P02" | "57P03")),
        _ => false,
    }
}

/// A connection of the tables' owner, beside the pool: what changes tables is no statement of any tenant, and waiting for
/// a lock and a long migration are no slow statements. The owner is held to row-level security like everyone else, so it
/// is told to see all rows.
async fn owner(pool: &PgPool) -> Result<PgConnection, sqlx::Error> {
    let options = pool.connect_options().as_ref().clone();
    let options =
        options.options([("statement_timeout", "0"), ("lock_timeout", "0"), ("waffles.scope", scope::ALL)]);
    options.connect().await
}

fn open_postgres(url: &str, config: &DbConfig) -> Result<Pool, OpenError> {
    let statement = config.statement_timeout.as_millis().to_string();
    let lock = (config.statement_timeout / 2).as_millis().to_string();
    let options = PgConnectOptions::from_str(url)
        .map_err(OpenError::Open)?
        .application_name("waffles-control-plane")
        .options([
            ("statement_timeout", statement.as_str()),
            ("lock_timeout", lock.as_str()),
            ("idle_in_transaction_session_timeout", statement.as_str()),
        ]);
    let role: std::sync::Arc<str> = match &config.role {
        Some(role) => role.as_str().into(),
        None => owner::role_of(options.get_database().unwrap_or(options.get_username())).into(),
    };
    let become_role = format!("SET ROLE {}", owner::quoted(&role));
    let pool = PgPoolOptions::new()
        .max_connections(config.max_connections)
        .acquire_timeout(config.acquire_timeout)
        .idle_timeout(Duration::from_secs(300))
        .max_lifetime(Duration::from_secs(1800))
        .after_connect(move |conn, _| {
            let become_role = become_role.clone();
            Box::pin(async move { sqlx::raw_sql(AssertSqlSafe(become_role)).execute(conn).await.map(drop) })
        })
        .after_release(|conn, _| {
            Box::pin(async move {
                // A connection that was left in the middle of a statement to a server that hangs would keep its
                // place in the pool for as long as TCP is patient. One that answers also forgets its scope.
                let forgot = tokio::time::timeout(Duration::from_secs(2), Scope::Nothing.tell(conn)).await;
                forgot.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map(|()| true)
            })
        })
        .connect_lazy_with(options);
    Ok(Pool::Pg(pool, role))
}

async fn open_sqlite(url: &str, config: &DbConfig) -> Result<SqlitePool, OpenError> {
    let options = SqliteConnectOptions::from_str(url)
        .map_err(OpenError::Open)?
        .create_if_missing(true)
        .foreign_keys(true)
        .journal_mode(SqliteJournalMode::Wal)
        // A receipt means durable, so a commit waits for the disk.
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(config.statement_timeout);
    make_private(options.get_filename())?;
    SqlitePoolOptions::new()
        .max_connections(config.max_connections)
        // Waiting for the one writer is part of the work here, not a sign of a lost server.
        .acquire_timeout(config.statement_timeout)
        .connect_with(options)
        .await
        .map_err(OpenError::Open)
}

/// Makes the file beforehand, since SQLite would make it readable by everyone.
fn make_private(path: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(OpenError::File { path: path.to_owned(), source }),
    }
}

/// SQLite knows no lock that outlives a transaction, so a file beside the database is one.
async fn lock_beside(database: &Path, suffix: &str) -> Result<std::fs::File, OpenError> {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    let path = PathBuf::from(path);
    let failed = |source| OpenError::File { path: path.clone(), source };
    let file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(std::fs::TryLockError::WouldBlock) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(std::fs::TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
}
