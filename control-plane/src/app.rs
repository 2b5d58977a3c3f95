//! Wiring: builds every part, opens every socket, runs until a signal and drains.

use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use chrono::Utc;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use url::Url;
use waffles_core::proxy::JoinToken;
use waffles_core::snapshot::Settings;
use waffles_runtime::admin::{self, Admin, Gates};
use waffles_runtime::drain::{self, Drain, Outcome, Signals, Trigger};
use waffles_runtime::host::{Hosts, Pages};
use waffles_runtime::listen;
use waffles_runtime::outbound;
use waffles_runtime::task::{self, Driver, Supervisor, Tasks};
use waffles_runtime::telemetry::{self, Metrics};

use crate::audit::{Audit, Checkpoints};
use crate::authz::OpCtx;
use crate::config::Config;
use crate::discovery::{Discovery, Listener, Publisher};
use crate::enrolment::{self, Enrolment};
use crate::grpc;
use crate::health::{self, Ward};
use crate::http::{self, Limits, Secure};
use crate::identity::{self, Identity, OneTime};
use crate::metrics;
use crate::namespaces::Namespaces;
use crate::policy::Policy;
use crate::proxies::Proxies;
use crate::registry::Registry;
use crate::rest;
use crate::secrets::Secrets;
use crate::secrets::keys::{self, Keys, Rekeying};
use crate::services::Services;
use crate::store::changes::{self, Claim};
use crate::store::{self, Db, OpenError};
use crate::tenants::Tenants;
use crate::upkeep::{self, Pulse, Upkeep};
use crate::usage;

/// How long a start waits for a database that is not there yet.
const DATABASE_TIME: Duration = Duration::from_secs(60);
const DATABASE_PAUSE: Duration = Duration::from_millis(500);
/// How long a start waits for the address of the database.
const RESOLVE_TIME: Duration = Duration::from_secs(2);
const CLOSE_TIME: Duration = Duration::from_secs(5);

const fn http_limits(per_address: usize) -> Limits {
    let answer = Some(Duration::from_secs(15));
    Limits { connections: 1024, per_address, body: Some(1024 * 1024), answer, http2_only: false }
}

const fn grpc_limits(per_address: usize) -> Limits {
    Limits { connections: 4096, per_address, body: None, answer: None, http2_only: true }
}

/// Every socket is open, nothing is served yet.
pub struct Bound {
    /// Where REST listens.
    pub http_addr: SocketAddr,
    /// Where gRPC listens.
    pub grpc_addr: SocketAddr,
    /// Where the admin port listens.
    pub admin_addr: SocketAddr,
    /// The admin account, at the very first start.
    pub first: Option<OneTime>,
    announce: bool,
    ca: String,
    db: Db,
    /// Keeps other control planes off a SQLite file until the process ends.
    _held: Option<std::fs::File>,
    services: Services,
    gates: Gates,
    tasks: Tasks,
    trigger: Trigger,
    drain: Drain,
    signals: Signals,
    http: (std::net::TcpListener, axum::Router, Limits),
    grpc: (std::net::TcpListener, axum::Router, Limits),
    health: HealthReporter,
    admin: admin::Bound,
    work: Work,
}

/// The tasks that run beside the doors.
struct Work {
    publisher: Driver<Publisher>,
    pulse: Driver<Pulse>,
    upkeep: Driver<Upkeep>,
    checkpoints: (Checkpoints, Driver<Checkpoints>),
    rotation: Driver<identity::Rotation>,
    roster: Driver<crate::proxies::Roster>,
    usage: Driver<usage::Writer>,
    listener: Listener,
    keeper: Driver<enrolment::Keeper>,
    rekeying: Driver<Rekeying>,
    health: Driver<health::Rounds>,
}

/// Opens what the configuration names, brings the database up to date, and makes what must be there at first.
pub async fn build(config: Config) -> anyhow::Result<Bound> {
    let shown = config.shown();
    tracing::info!(config = %shown, version = env!("CARGO_PKG_VERSION"), "starting");
    let mut signals = Signals::listen().context("signals cannot be listened to")?;
    let open = |what: &str, addr| {
        listen::bind(addr, false).with_context(|| format!("{what}: cannot listen on {addr}"))
    };
    let http = open("--http-addr", config.listen.http)?;
    let grpc = open("--grpc-addr", config.listen.grpc)?;
    let http_addr = http.local_addr()?;

    make_folder(&config.data_dir)?;
    // The database may be waited for, and a process that is asked to end meanwhile shall end.
    let (db, secrets) = tokio::select! {
        opened = open_database(&config) => opened?,
        signal = signals.next() => anyhow::bail!("{signal} came before the database did"),
    };
    let held = db.hold().await?;
    upkeep::make_partitions(&db, Utc::now())
        .await
        .context("the partitions of the audit trail cannot be made")?;

    let (trigger, drain) = drain::channel(config.grace);
    let (gates, tasks, metrics) = (Gates::new(), Tasks::new(), Metrics::new());
    let discovery = Discovery::new();
    let identity = Identity::new(db.clone(), &secrets, discovery.clone(), config.redis_url.as_ref())?;
    let first = identity.bootstrap().await.context("the first account cannot be made")?;
    let namespaces = Namespaces::new(db.clone(), discovery.clone());
    namespaces.bootstrap().await.context("the namespace `default` cannot be made")?;
    let enrolment = enrolment_of(&config, &db, &secrets);
    enrolment.bootstrap().await.context("there is no authority to certify proxies with")?;
    let ca = enrolment.authorities_pem()?;
    let services = Services {
        db: db.clone(),
        registry: Registry::new(db.clone(), secrets.seal.clone(), discovery.clone()),
        namespaces,
        policy: Policy::new(db.clone(), discovery.clone()),
        limits: crate::limits::Limits::new(db.clone(), discovery.clone()),
        audit: Audit::new(db.clone(), identity.usage().clone(), secrets.audit.clone()),
        proxies: Proxies::new(db.clone(), discovery.clone()),
        health: Ward::new(db.clone(), discovery.clone()),
        enrolment,
        tenants: Tenants::new(db.clone(), identity.clone(), discovery.clone()),
        keys: Keys::new(&db, secrets.clone(), discovery.clone()),
        identity,
    };
    // A published port of a container is `localhost` to its user, and nobody can rebind that name.
    let names = config.public_hosts.iter().cloned().chain(["localhost".to_owned()]);
    let hosts = Hosts::new(http_addr, names).pages(Pages::Same).origins(config.allowed_origins.clone());
    let rest = rest::router(services.clone(), hosts, gates.clone());
    // No browser speaks gRPC, and proxies know us by names of their cluster.
    let hosts = Hosts::new(grpc.local_addr()?, config.public_hosts.clone()).or_any_name();
    let parts =
        grpc::Parts { services: services.clone(), discovery: discovery.clone(), hosts, drain: drain.clone() };
    let (rpc, health) = grpc::router(parts).context("the descriptors of the contracts cannot be served")?;
    metrics::register(&metrics, &services.audit, &services.proxies, &discovery, &gates);
    let admin = Admin::new(gates.clone(), metrics, tasks.clone())
        .config(shown)
        .route("/discovery", {
            let discovery = discovery.clone();
            move || discovery.counts()
        })
        .bind(config.listen.admin)
        .with_context(|| format!("--admin-addr: cannot listen on {}", config.listen.admin))?;
    let settings = Settings::new(
        secrets.pepper,
        secrets.session_seal.clone(),
        identity::ISSUER.to_owned(),
        identity::AUDIENCE.to_owned(),
    )
    .closing(places(&config, [http_addr, grpc.local_addr()?, admin.local_addr()]).await);
    let mut tx = db.everywhere().begin().await?;
    changes::set_closed(&mut tx, &format!("{:?}", settings.closed)).await?;
    tx.commit().await?;
    let signer = secrets.audit.clone();
    let checkpoints = Checkpoints::new(&db, signer.clone(), config.audit_checkpoint_every);
    let publisher = Publisher::new(
        db.clone(),
        secrets,
        settings,
        discovery.clone(),
        gates.gate("configuration"),
        config.keys_shipped_most,
    );
    let work = Work {
        publisher: publisher.driver(),
        pulse: Driver::new(Pulse::new(db.clone(), gates.gate("database")), Pulse::PERIOD),
        upkeep: Driver::new(Upkeep::new(db.clone(), config.audit_retention, signer.clone()), Upkeep::PERIOD),
        checkpoints: (checkpoints.clone(), Driver::new(checkpoints, config.audit_checkpoint_every)),
        rotation: Driver::new(services.identity.rotation(), identity::Rotation::PERIOD),
        roster: services.proxies.driver(),
        keeper: services.enrolment.driver(),
        usage: services.identity.usage().driver(db.clone()),
        rekeying: services.keys.driver(),
        health: services.health.driver(),
        listener: Listener::new(db.clone(), discovery.clone()),
    };
    let per_address = config.connections_per_address;
    Ok(Bound {
        http_addr,
        grpc_addr: grpc.local_addr()?,
        admin_addr: admin.local_addr(),
        first,
        announce: config.announce,
        ca,
        db,
        _held: held,
        services,
        gates,
        tasks,
        trigger,
        drain,
        signals,
        http: (http, rest, http_limits(per_address)),
        grpc: (grpc, rpc, grpc_limits(per_address)),
        health,
        admin,
        work,
    })
}

impl Bound {
    /// The services, for whoever runs a control plane within another program.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// Serves until a signal, then drains.
    pub async fn run(self) -> anyhow::Result<()> {
        Box::pin(self.run_until(std::future::pending())).await
    }

    /// Serves until a signal, or `stop`, or until a part ends that there is no going on without; then drains.
    pub async fn run_until(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let supervisor = Supervisor::new();
        let (drain, tasks) = (self.drain.clone(), self.tasks.clone());
        let admin = self.admin;
        let admin_drain = drain.clone();
        task::spawn("admin", async move {
            if let Err(error) = admin.serve(admin_drain).await {
                tracing::error!(%error, "the admin port is not served");
            }
        });
        self.work.pulse.spawn(&tasks, drain.clone());
        self.work.publisher.spawn(&tasks, drain.clone());
        self.work.roster.spawn(&tasks, drain.clone());
        self.work.health.spawn(&tasks, drain.clone());
        self.work.keeper.spawn(&tasks, drain.clone());
        self.work.rekeying.spawn(&tasks, drain.clone());
        self.work.rotation.spawn(&tasks, drain.clone());
        self.work.upkeep.spawn(&tasks, drain.clone());
        let (checkpoints, driver) = self.work.checkpoints;
        driver.spawn(&tasks, drain.clone());
        self.work.usage.spawn(&tasks, drain.clone());
        supervisor.spawn("listener", self.work.listener.run(drain.clone()));
        let (listener, router, limits) = self.http;
        supervisor.spawn("http", http::serve(listener, router, limits, None, drain.clone()));
        let secure = Secure {
            enrolment: self.services.enrolment.clone(),
            plain: self.grpc_addr.ip().to_canonical().is_loopback(),
        };
        let (listener, router, limits) = self.grpc;
        supervisor.spawn("grpc", http::serve(listener, router, limits, Some(secure), drain.clone()));
        tracing::info!(http = %self.http_addr, grpc = %self.grpc_addr, admin = %self.admin_addr, "listening");

        let line = json!({
            "http": self.http_addr, "grpc": self.grpc_addr, "admin": self.admin_addr, "ca": self.ca,
        });
        let greeting = Greeting { announce: self.announce, line, first: self.first.take() };
        let ready = async {
            self.gates.ready().await;
            self.health.set_service_status("", ServingStatus::Serving).await;
            tracing::info!("ready");
            greeting.say();
            std::future::pending::<()>().await;
        };
        let died = tokio::select! {
            () = ready => None,
            signal = self.signals.next() => {
                tracing::info!(signal, "draining");
                None
            }
            () = stop => None,
            ended = supervisor.ended() => Some(ended),
        };
        if let Some(ended) = &died {
            tracing::error!(
                task.name = ended.name,
                panicked = ended.panicked,
                "a part ended that there is no going on without"
            );
        }

        self.gates.drain();
        self.health.set_service_status("", ServingStatus::NotServing).await;
        self.trigger.start();
        // Whoever watches the health sees the end of it, not a stream that keeps the process alive.
        self.health.clear_service_status("").await;
        match self.trigger.drained_or_signal(&mut self.signals).await {
            Outcome::Clean => tracing::info!("drained"),
            Outcome::Forced { held } => tracing::warn!(held, "not everything ended in time"),
        }
        let close = async {
            self.services.proxies.write().await;
            if let Err(error) = self.services.identity.usage().write(&self.db, true).await {
                tracing::warn!(%error, "the last uses of keys were not written");
            }
            if let Err(error) = checkpoints.make(true).await {
                tracing::warn!(error = %telemetry::chain(&error), "no last checkpoint of the audit trail was made");
            }
            self.db.close().await;
        };
        if tokio::time::timeout(CLOSE_TIME, close).await.is_err() {
            tracing::warn!("the database was not closed in time");
        }
        match died {
            Some(ended) => bail!("{ended}"),
            None => Ok(()),
        }
    }
}

/// Where we, our database and our Redis are: a server that somebody registers is never there.
async fn places(config: &Config, ours: [SocketAddr; 3]) -> Vec<SocketAddr> {
    let mut found = ours.to_vec();
    let redis = config.redis_url.as_ref();
    for (what, url, port) in [("database", Some(&config.db.url), 5432), ("redis", redis, 6379)] {
        let Some(url) = url.and_then(|url| Url::parse(url.expose_secret()).ok()) else { continue };
        // A file or a socket of this machine has no host.
        let Some(host) = url.host_str().filter(|host| !host.is_empty() && url.scheme() != "sqlite") else {
            continue;
        };
        let host = host.trim_matches(['[', ']']);
        let asked = outbound::look_up(host, url.port().unwrap_or(port));
        match tokio::time::timeout(RESOLVE_TIME, asked).await {
            Ok(Ok(addrs)) => found.extend(addrs),
            _ => tracing::warn!(what, "its address is not known, so proxies cannot keep servers from it"),
        }
    }
    found
}

/// Brings the database up to date, for the command.
pub async fn migrate(config: &Config) -> anyhow::Result<()> {
    make_folder(&config.data_dir)?;
    let (db, _) = open_database(config).await?;
    upkeep::make_partitions(&db, Utc::now()).await?;
    tracing::info!(database = db.kind(), "the database is up to date");
    db.close().await;
    Ok(())
}

/// Gives the admin a new one-time password, for the command.
pub async fn admin_password(config: &Config) -> anyhow::Result<()> {
    make_folder(&config.data_dir)?;
    let (db, secrets) = open_database(config).await?;
    let identity = Identity::new(db.clone(), &secrets, Discovery::new(), config.redis_url.as_ref())?;
    let new = identity.reset_admin_password().await?;
    writeln!(std::io::stdout(), "{}", new.password.expose_secret())?;
    db.close().await;
    Ok(())
}

/// Starts a new lineage, for the command.
pub async fn new_lineage(config: &Config) -> anyhow::Result<()> {
    let (db, _) = open_database(config).await?;
    let mut tx = db.everywhere().begin().await?;
    let lineage = changes::new_lineage(&mut tx).await?;
    crate::audit::note(
        &mut tx,
        &OpCtx::system(),
        "database.new_lineage",
        "database",
        json!({ "lineage": lineage }),
    )
    .await?;
    tx.commit().await?;
    tracing::info!(lineage, "proxies will be sent everything");
    db.close().await;
    Ok(())
}

/// Seals the database's keys under another master key, for the command.
pub async fn rekey(config: &Config, file: &Path) -> anyhow::Result<()> {
    let new = Secrets::load(file).context("--new-master-key-file")?;
    let (db, old) = match open_database(config).await {
        Ok(opened) => opened,
        // The command was run before, and the file was not put in its place yet.
        Err(error) if error.to_string().contains(new.fingerprint()) => {
            writeln!(std::io::stdout(), "The database belongs to the key in {} already.", file.display())?;
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let done = keys::rekey(&db, &old, &new).await?;
    db.close().await;
    let path = file.display();
    match done {
        true => writeln!(
            std::io::stdout(),
            "The database belongs to the key in {path} now. Give that file as --master-key-file and start again; what the \
             old keys have sealed is then sealed anew within a minute, and they are forgotten."
        )?,
        false => writeln!(std::io::stdout(), "The key in {path} is the one in use.")?,
    }
    Ok(())
}

/// Makes a join token, for the command: whoever has this machine may let a proxy in.
pub async fn new_join_token(config: &Config, group: &str) -> anyhow::Result<JoinToken> {
    make_folder(&config.data_dir)?;
    let (db, secrets) = open_database(config).await?;
    let enrolment = enrolment_of(config, &db, &secrets);
    enrolment.bootstrap().await?;
    let new = enrolment.create_token(&OpCtx::system(), group, None).await?;
    db.close().await;
    Ok(new.token)
}

/// Makes a join token and prints it, or writes it to a file.
pub async fn join_token(config: &Config, group: &str, file: Option<&Path>) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let token = new_join_token(config, group).await?;
    let Some(path) = file else {
        writeln!(std::io::stdout(), "{}", token.expose())?;
        return Ok(());
    };
    let write = || {
        let draft = path.with_extension("draft");
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        writeln!(file, "{}", token.expose())?;
        std::fs::rename(&draft, path)
    };
    write().with_context(|| format!("--file: cannot write {}", path.display()))
}

/// Prints the authorities, for the command.
pub async fn authorities(config: &Config) -> anyhow::Result<()> {
    make_folder(&config.data_dir)?;
    let (db, secrets) = open_database(config).await?;
    let enrolment = enrolment_of(config, &db, &secrets);
    enrolment.bootstrap().await?;
    write!(std::io::stdout(), "{}", enrolment.authorities_pem()?)?;
    db.close().await;
    Ok(())
}

/// The gRPC port is reached by the public names, and always from this machine.
fn enrolment_of(config: &Config, db: &Db, secrets: &Secrets) -> Enrolment {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    let bound = config.listen.grpc.ip();
    if !bound.is_unspecified() && !bound.is_loopback() {
        names.push(bound.to_string());
    }
    names.extend(config.public_hosts.iter().map(|name| name.to_ascii_lowercase()));
    let settings = enrolment::Settings {
        certificate_life: config.certificate_life,
        names,
        files: config.authority.clone(),
    };
    Enrolment::new(db.clone(), secrets, settings)
}

/// Opens the database, waits for it where it is not there yet, migrates it, and makes sure of the master key.
async fn open_database(config: &Config) -> anyhow::Result<(Db, Secrets)> {
    let mut secrets = config.secrets.load()?;
    let db = Db::connect(&config.db).await?;
    let started = Instant::now();
    loop {
        match db.migrate().await {
            Ok(()) => break,
            Err(OpenError::Open(error))
                if store::is_connection_loss(&error) && started.elapsed() < DATABASE_TIME =>
            {
                tracing::warn!(%error, "waiting for the database");
                tokio::time::sleep(DATABASE_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    let mut tx = db.everywhere().begin().await?;
    let claim = changes::claim(&mut tx, secrets.fingerprint()).await?;
    tx.commit().await?;
    if let Claim::Foreign(theirs) = claim {
        bail!(
            "--master-key-file: {} has the fingerprint {}, but the database was made with the master key {theirs}; \
             give the file that belongs to this database",
            config.secrets.master_key.display(),
            secrets.fingerprint(),
        );
    }
    let mut tx = db.everywhere().begin().await?;
    let unlocked = keys::unlock(&mut tx, &mut secrets).await;
    unlocked.context("--master-key-file: the keys in the database cannot be opened with it")?;
    tx.commit().await?;
    Ok((db, secrets))
}

fn make_folder(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("--data-dir: {} cannot be made", path.display()))
}

/// What is said once when everything is ready.
struct Greeting {
    announce: bool,
    line: Value,
    first: Option<OneTime>,
}

impl Greeting {
    /// On standard output for programs, else on standard error, where the password is no log line. A stream that
    /// is closed is no reason to end.
    fn say(mut self) {
        let said = if self.announce {
            let first = self
                .first
                .as_ref()
                .map(|f| json!({ "email": f.email, "password": f.password.expose_secret() }));
            if let Some(line) = self.line.as_object_mut() {
                line.insert("bootstrap".into(), first.into());
            }
            let mut out = std::io::stdout();
            writeln!(out, "{}", self.line).and_then(|()| out.flush())
        } else if let Some(first) = &self.first {
            writeln!(
                std::io::stderr(),
                "\nThe first account:\n  e-mail    {}\n  password  {}\nIt is shown this once. \
                 `waffles-control-plane admin-password` makes another.\n",
                first.email,
                first.password.expose_secret(),
            )
        } else {
            Ok(())
        };
        if let Err(error) = said {
            tracing::warn!(error = %telemetry::chain(&error), "what is said when ready could not be written");
        }
    }
}
