//! A Postgres of one's own: initialised in a temporary directory, reachable on loopback only, without fsync, gone at the
//! end. Run as root, it drops to the `postgres` user (or `nobody`), because Postgres refuses root.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection as _, PgConnection};
use tokio::sync::OnceCell;

use crate::watchdog::{Dir, Guarded};
use crate::{PATIENCE, eventually};

const USER: &str = "waffles";
const PASSWORD: &str = "waffles-tests";

static SHARED: OnceCell<Postgres> = OnceCell::const_new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// A running instance.
#[derive(Debug)]
pub struct Postgres {
    port: u16,
    owner: Option<(u32, u32)>,
    server: Mutex<Option<Server>>,
    // Removed last, after the server has ended.
    dir: Dir,
}

#[derive(Debug)]
struct Server {
    child: Child,
    _guarded: Guarded,
}

impl Postgres {
    /// The one that the tests of this process share. Those that kill it start their own.
    pub async fn shared() -> &'static Self {
        SHARED.get_or_init(Self::start).await
    }

    /// A new instance.
    pub async fn start() -> Self {
        let dir = Dir::new("waffles-pg-");
        let owner = unprivileged();
        if let Some((uid, gid)) = owner {
            chown(dir.path(), Some(uid), Some(gid)).expect("root may give a directory away");
        }
        let secret = dir.path().join("password");
        std::fs::write(&secret, PASSWORD).unwrap();
        if let Some((uid, gid)) = owner {
            chown(&secret, Some(uid), Some(gid)).unwrap();
        }
        let mut initdb = command("initdb", owner, dir.path());
        initdb
            .arg(format!("--pgdata={}", dir.path().join("data").display()))
            .arg(format!("--username={USER}"))
            .arg(format!("--pwfile={}", secret.display()))
            .args(["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]);
        let done = initdb.output().expect("initdb runs");
        assert!(done.status.success(), "initdb failed: {}", String::from_utf8_lossy(&done.stderr));

        let port = crate::programs::free_port();
        let postgres = Self { port, owner, server: Mutex::new(None), dir };
        postgres.launch().await;
        postgres
    }

    /// The URL of a new, empty database.
    pub async fn database(&self) -> String {
        let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        let mut connection = PgConnection::connect(&self.url("postgres")).await.expect("Postgres answers");
        // The name is our own, and a statement text that is not constant must be vouched for.
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&mut connection)
            .await
            .expect("a database can be made");
        self.url(&name)
    }

    /// Kills it as a crash would: all its processes at once, nothing flushed.
    pub fn kill9(&self) {
        let Some(mut server) = self.server.lock().take() else { return };
        let postmaster = server.child.id();
        // First the children, which would see their parent's end and may finish what they do.
        for child in children(postmaster) {
            signal(child, Signal::KILL);
        }
        signal(postmaster, Signal::KILL);
        server.child.wait().expect("a killed process ends");
        drop(std::fs::remove_file(self.dir.path().join("data/postmaster.pid")));
    }

    /// Starts it again on the same data and port; kills it first where it runs.
    pub async fn restart(&self) {
        self.kill9();
        self.launch().await;
    }

    /// Stops it as a hung machine would, or lets it go on.
    pub fn freeze(&self, frozen: bool) {
        let server = self.server.lock();
        let Some(server) = server.as_ref() else { return };
        let postmaster = server.child.id();
        let what = if frozen { Signal::STOP } else { Signal::CONT };
        for pid in children(postmaster).into_iter().chain([postmaster]) {
            signal(pid, what);
        }
    }

    /// From now on every statement is written to its log, for [`Self::statements`].
    pub async fn count_statements(&self) {
        self.execute("postgres", "ALTER SYSTEM SET log_statement = 'all'").await;
        self.execute("postgres", "SELECT pg_reload_conf()").await;
    }

    /// Statements so far, without those that only begin, end and tell whose rows are wanted: how each begins, in their order.
    pub fn statements(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let said = |line: &str| -> Option<String> {
            let text = line
                .split_once("LOG:  statement: ")
                .or_else(|| line.split_once("LOG:  execute ").and_then(|(_, rest)| rest.split_once(": ")));
            let small =
                ["BEGIN", "COMMIT", "ROLLBACK", "SET", "SELECT set_config", "RESET", "LISTEN", "UNLISTEN"];
            let text = text?.1.trim_start();
            let counts = !text.is_empty() && !small.iter().any(|small| text.starts_with(small));
            counts.then(|| text.chars().take(60).collect())
        };
        log.lines().filter_map(said).collect()
    }

    /// Runs a statement of a test's own, as the superuser.
    pub async fn execute(&self, database: &str, statement: &str) {
        let mut connection = PgConnection::connect(&self.url(database)).await.expect("Postgres answers");
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned()))
            .execute(&mut connection)
            .await
            .expect("the statement runs");
    }

    async fn launch(&self) {
        let log = std::fs::File::options().create(true).append(true).open(self.log()).unwrap();
        let mut postgres = command("postgres", self.owner, self.dir.path());
        postgres
            .arg("-D")
            .arg(self.dir.path().join("data"))
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
            .args([
                "-c",
                &format!("port={}", self.port),
                "-c",
                "max_connections=300",
                "-c",
                "shared_buffers=64MB",
            ])
            // A killed process loses nothing by this, only a machine without power would.
            .args(["-c", "fsync=off", "-c", "full_page_writes=off"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0);
        let child = postgres.spawn().expect("postgres runs");
        let guarded = Guarded::quit(child.id());
        *self.server.lock() = Some(Server { child, _guarded: guarded });
        eventually(PATIENCE, || async {
            if let Some(status) =
                self.server.lock().as_mut().and_then(|server| server.child.try_wait().ok().flatten())
            {
                let log = std::fs::read_to_string(self.log()).unwrap_or_default();
                panic!("postgres ended with {status}:\n{log}");
            }
            let connection = PgConnection::connect(&self.url("postgres"));
            tokio::time::timeout(Duration::from_secs(2), connection)
                .await
                .map_err(anyhow::Error::from)?
                .map_err(anyhow::Error::from)
        })
        .await;
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// A command of the newest Postgres on this machine, as its owner.
fn command(name: &str, owner: Option<(u32, u32)>, dir: &Path) -> Command {
    let mut command = Command::new(find(name));
    command.current_dir(dir).env_remove("PGDATA").env_remove("PGPORT").env("LC_ALL", "C");
    if let Some((uid, gid)) = owner {
        command.uid(uid).gid(gid);
    }
    command
}

fn find(name: &str) -> PathBuf {
    // Debian keeps each version in a directory of its own and leaves the server programs off PATH.
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin").join(name)))
        })
        .filter(|(_, path)| path.exists())
        .collect();
    versions.sort();
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&on_path).map(|dir| dir.join(name)).find(|path| path.exists());
    on_path
        .or_else(|| versions.pop().map(|(_, path)| path))
        .unwrap_or_else(|| panic!("no {name} on this machine; scripts/test-deps.sh installs Postgres"))
}

/// Whom to run as, if we are root.
fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").expect("there is a list of users");
    let of = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    Some(of("postgres").or_else(|| of("nobody")).expect("there is a user other than root"))
}

fn children(parent: u32) -> Vec<u32> {
    let of_thread = format!("/proc/{parent}/task/{parent}/children");
    let listed = std::fs::read_to_string(of_thread).unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("it is the id of a process");
    // It may have ended by itself in this moment.
    kill_process(pid, signal).ok();
}
