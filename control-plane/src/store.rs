//! The database: Postgres or SQLite behind one `Db`, one statement text for both, transactions, migrations.
//! The files below it hold the SQL; nothing here or there knows a rule.

pub mod audit;
pub mod changes;
pub mod eras;
pub mod namespaces;
pub mod principals;
pub mod proxies;
pub mod servers;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, PgPool, Postgres, Sqlite, SqlitePool};

/// How long a read may take, its second attempt included: a caller hears of a lost database within two seconds.
pub const READ_TIME: Duration = Duration::from_millis(1800);
/// How long a replica waits for another one that is migrating.
const MIGRATION_TIME: Duration = Duration::from_secs(300);

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
}

impl DbConfig {
    /// The defaults for an address.
    pub fn new(url: impl Into<SecretString>) -> Self {
        Self {
            url: url.into(),
            max_connections: 10,
            acquire_timeout: Duration::from_millis(1500),
            statement_timeout: Duration::from_secs(10),
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
}

/// An open database; cheap to clone.
#[derive(Debug, Clone)]
pub enum Db {
    /// Postgres.
    Pg(PgPool),
    /// SQLite, one file.
    Lite(SqlitePool),
}

/// A transaction. Dropped without [`Tx::commit`], it is rolled back.
#[derive(Debug)]
pub enum Tx {
    /// On Postgres.
    Pg(sqlx::Transaction<'static, Postgres>),
    /// On SQLite.
    Lite(sqlx::Transaction<'static, Sqlite>),
}

/// Runs one statement text on whichever database is open: `on_db!(db, |pool| query.fetch_all(pool).await)`.
macro_rules! on_db {
    ($db:expr, |$pool:ident| $body:expr) => {
        match $db {
            $crate::store::Db::Pg($pool) => $body,
            $crate::store::Db::Lite($pool) => $body,
        }
    };
}

/// The same within a transaction: `on_tx!(tx, |conn| query.execute(conn).await)`. A body with more than one
/// statement says `&mut *conn`.
macro_rules! on_tx {
    ($tx:expr, |$conn:ident| $body:expr) => {
        match $tx {
            $crate::store::Tx::Pg(tx) => {
                let $conn = &mut **tx;
                $body
            }
            $crate::store::Tx::Lite(tx) => {
                let $conn = &mut **tx;
                $body
            }
        }
    };
}

#[allow(unused_imports, reason = "the files below use what they need")]
pub(crate) use {on_db, on_tx};

impl Db {
    /// Opens the database. A SQLite file is made where there is none, readable by its owner only. Postgres need
    /// not be there yet: its connections are made when they are needed.
    pub async fn connect(config: &DbConfig) -> Result<Self, OpenError> {
        let url = config.url.expose_secret();
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            Ok(Self::Pg(open_postgres(url, config)?))
        } else if url.starts_with("sqlite:") {
            Ok(Self::Lite(open_sqlite(url, config).await?))
        } else {
            Err(OpenError::Url)
        }
    }

    /// The same database for one tenant's data.
    #[must_use]
    pub fn of(&self, _tenant: &str) -> Self {
        self.clone()
    }

    /// The same database for the data of every tenant: for what proxies are sent, for log-ins, for housekeeping.
    #[must_use]
    pub fn everywhere(&self) -> Self {
        self.clone()
    }

    /// Begins a transaction that writes. On SQLite it takes the write lock at once, so that two of them wait for
    /// each other instead of failing in the middle.
    pub async fn begin(&self) -> Result<Tx, sqlx::Error> {
        let begin = async {
            Ok(match self {
                Self::Pg(pool) => Tx::Pg(pool.begin().await?),
                Self::Lite(pool) => Tx::Lite(pool.begin_with("BEGIN IMMEDIATE").await?),
            })
        };
        match self {
            // A server that is stopped, not gone, takes bytes and never answers.
            Self::Pg(_) => {
                tokio::time::timeout(READ_TIME, begin).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
            }
            Self::Lite(_) => begin.await,
        }
    }

    /// Begins a transaction that reads, all of it from one moment.
    pub async fn begin_read(&self) -> Result<Tx, sqlx::Error> {
        Ok(match self {
            Self::Pg(pool) => {
                Tx::Pg(pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?)
            }
            Self::Lite(pool) => Tx::Lite(pool.begin_with("BEGIN").await?),
        })
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), sqlx::Error> {
        read(|| async {
            on_db!(self, |pool| sqlx::query("SELECT revision FROM meta").execute(pool).await.map(drop))
        })
        .await
    }

    /// Runs the migrations that are missing, under a lock that holds other replicas off.
    pub async fn migrate(&self) -> Result<(), OpenError> {
        let run = async {
            match self {
                Self::Pg(pool) => {
                    // A connection of its own: waiting for the lock and a long migration are no slow statements.
                    let options = pool
                        .connect_options()
                        .as_ref()
                        .clone()
                        .options([("statement_timeout", "0"), ("lock_timeout", "0")]);
                    let mut conn = options.connect().await.map_err(OpenError::Open)?;
                    POSTGRES.run_direct(None, &mut conn, false).await.map_err(OpenError::Migrate)?;
                    conn.close().await.map_err(OpenError::Open)
                }
                Self::Lite(pool) => {
                    let options = pool.connect_options();
                    let _lock = lock_beside(options.get_filename()).await?;
                    SQLITE.run(pool).await.map_err(OpenError::Migrate)
                }
            }
        };
        tokio::time::timeout(MIGRATION_TIME, run).await.unwrap_or(Err(OpenError::Locked))
    }

    /// Closes every connection.
    pub async fn close(&self) {
        on_db!(self, |pool| pool.close().await);
    }

    /// `postgres` or `sqlite`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Pg(_) => "postgres",
            Self::Lite(_) => "sqlite",
        }
    }
}

impl Tx {
    /// Makes it durable. An error may hide a success: the caller must not repeat the work blindly.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Pg(tx) => tx.commit().await,
            Self::Lite(tx) => tx.commit().await,
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

fn open_postgres(url: &str, config: &DbConfig) -> Result<PgPool, OpenError> {
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
    Ok(PgPoolOptions::new()
        .max_connections(config.max_connections)
        .acquire_timeout(config.acquire_timeout)
        .idle_timeout(Duration::from_secs(300))
        .max_lifetime(Duration::from_secs(1800))
        .after_release(|conn, _| {
            Box::pin(async move {
                // A connection that was left in the middle of a statement to a server that hangs would keep its
                // place in the pool for as long as TCP is patient.
                let ping = tokio::time::timeout(Duration::from_secs(2), conn.ping());
                ping.await.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map(|()| true)
            })
        })
        .connect_lazy_with(options))
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

/// The migrator knows no lock on SQLite, so a file beside the database is one.
async fn lock_beside(database: &Path) -> Result<std::fs::File, OpenError> {
    let mut path = database.as_os_str().to_owned();
    path.push(".migrate-lock");
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
