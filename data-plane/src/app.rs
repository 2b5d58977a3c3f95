//! Puts the proxy together: `build` opens every socket, `run` serves until a signal and drains.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use secrecy::ExposeSecret as _;
use serde_json::json;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use url::Url;
use uuid::Uuid;
use waffles_core::snapshot::Snapshot;
use waffles_mcp::{Era, Revision};
use waffles_proto::audit::v1::{Health, SeenServer};
use waffles_runtime::admin::{self, Admin, Gates};
use waffles_runtime::drain::{self, Drain, Outcome, Signals, Trigger};
use waffles_runtime::host::{Hosts, Pages};
use waffles_runtime::outbound::{self, Denied, Names, OutboundPolicy};
use waffles_runtime::task::{self, Driver, Supervisor, Tasks};
use waffles_runtime::tls::{ServerPaths, ServerTls};
use waffles_runtime::{listen, process, telemetry};

use crate::audit::uplink::{self, Uplink};
use crate::audit::{Trail, spool};
use crate::authn::Authenticator;
use crate::checks;
use crate::config::Config;
use crate::discovery::{self, Status};
use crate::doors::sse;
use crate::enrolment::{self, Membership};
use crate::gateway::Gateway;
use crate::health::Monitor;
use crate::hub::Hub;
use crate::keys::{Finder, Line};
use crate::limit::{self, Limits};
use crate::link::{self, Address, Link};
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::overload::{self, Caps, Memory, Overload};
use crate::peers;
use crate::record::Desk;
use crate::server::Server;
use crate::shared::{Means, Shared};
use crate::sightings::Sightings;
use crate::state::{Current, Disk, proxy_id};
use crate::upstream::{Standings, Upstream};

/// How often idle connections to servers are closed.
const SWEEP: Duration = Duration::from_secs(2);
/// How often sessions and parked calls are looked through for what nobody comes back for.
const UPKEEP: Duration = Duration::from_secs(2);
/// How often certificate files are looked at.
const TLS_RELOAD: Duration = Duration::from_secs(5);
/// How long the name of Redis may take to be found.
const RESOLVE: Duration = Duration::from_secs(2);
/// How often gauges are brought up to date.
const GAUGES: Duration = Duration::from_secs(1);
/// How often a proxy that lingers looks whether somebody is connected.
const LOOK_AROUND: Duration = Duration::from_millis(50);
/// Where nobody was for so long, it goes.
const ALONE: Duration = Duration::from_millis(500);

/// A proxy whose sockets are open and that serves nothing yet.
pub struct Bound {
    /// Where MCP clients connect.
    pub mcp_addr: SocketAddr,
    /// Where operators look.
    pub admin_addr: SocketAddr,
    /// Who this proxy is.
    pub proxy_id: Uuid,
    config: Config,
    sockets: Vec<std::net::TcpListener>,
    admin: admin::Bound,
    worker: Worker,
    tls: Option<ServerTls>,
    tasks: Tasks,
    uplink: Uplink,
    status: Arc<Status>,
    membership: Arc<Membership>,
    gates: Gates,
    signals: Signals,
    trigger: Trigger,
    drain: Drain,
}

/// What a worker thread is made of; cloned for each.
#[derive(Clone)]
struct Worker {
    current: Arc<Current>,
    authenticator: Arc<Authenticator>,
    keys: Arc<Finder>,
    shared: Arc<Shared>,
    page_size: usize,
    sse_sessions: Arc<sse::Sessions>,
    desk: Arc<Desk>,
    common: Arc<overload::Common>,
    outbound: OutboundPolicy,
    hosts: Hosts,
    gates: Gates,
    tls: Option<TlsAcceptor>,
    caps: Arc<Caps>,
    drain: Drain,
}

/// Reads what is on disk and opens every socket.
pub async fn build(config: Config) -> anyhow::Result<Bound> {
    let signals = Signals::listen().context("cannot listen to signals")?;
    let proxy_id = proxy_id(&config.data_dir)?;
    let disk = Disk::open(&config.data_dir)?;
    let limits = spool::Limits {
        disk: config.spool_max_bytes,
        ring: usize::try_from(config.spool_memory_bytes).unwrap_or(usize::MAX),
        ..spool::Limits::default()
    };
    let trail = Trail::open(&config.data_dir.join("spool"), limits)?;
    let gates = Gates::new();
    let snapshot_gate = gates.gate("snapshot");
    let last = disk.load().unwrap_or_default();
    if last.is_usable() {
        tracing::info!(revision = last.revision, "starting with the configuration from disk");
    }
    let current = Arc::new(Current::new(last));

    let registry = telemetry::Metrics::new();
    let metrics = Metrics::new(&registry);
    let common = Arc::new(overload::Common::new(
        Arc::new(Memory::new(config.memory_limit)),
        config.max_lag,
        usize::try_from(config.max_in_flight).unwrap_or(usize::MAX),
        config.worker_count(),
        metrics.clone(),
    ));
    let (trigger, drain) = drain::channel(config.grace);
    let tls = match (&config.tls_cert, &config.tls_key) {
        (Some(chain), Some(key)) => {
            Some(ServerTls::load(ServerPaths { chain: chain.clone(), key: key.clone() })?)
        }
        _ => None,
    };
    let sockets = listen::bind_many(config.mcp_addr, config.worker_count())
        .with_context(|| format!("cannot listen on {} for MCP", config.mcp_addr))?;
    let mcp_addr = sockets.first().context("there is at least one worker")?.local_addr()?;

    let monitor = Arc::new(Monitor::new(Arc::clone(&current), metrics.clone()));
    let desk = Arc::new(Desk {
        trail,
        metrics,
        proxy_id,
        sightings: Sightings::default(),
        monitor: Arc::clone(&monitor),
        no_server: "".into(),
    });
    let name = config.name.clone().unwrap_or_else(host_name);
    let address =
        Address::parse(&config.control_plane).map_err(|wrong| anyhow::anyhow!("--control-plane: {wrong}"))?;
    let membership = Membership::open(enrolment::Config {
        address: address.clone(),
        data_dir: config.data_dir.clone(),
        token_file: config.join_token_file.clone(),
        proxy_id,
        name: name.clone(),
    })?;
    enrolment::spawn(&membership, drain.clone());
    let link = Link::new(address, Arc::clone(&membership));
    let line = Arc::new(Line::default());
    let follows = discovery::Config {
        line: Arc::clone(&line),
        link: link.clone(),
        proxy_id,
        name,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        monitor: Arc::clone(&monitor),
    };
    let status = discovery::spawn(follows, Arc::clone(&current), disk, snapshot_gate, drain.clone());
    let (limits, keeper) = counts(&config, proxy_id, &desk.metrics)?;
    if let Some(keeper) = keeper {
        task::spawn("shared limits", keeper.run(drain.clone()));
    }
    let standings = Standings::new(config.zone.clone(), desk.metrics.upstream.clone());
    let address = peers::own_address(config.peer_url.as_deref(), mcp_addr, tls.is_some());
    let shared = Arc::new(Shared::new(address, limits, Arc::clone(common.memory.buffers()), standings));
    let sends = uplink::Config { link, proxy_id };
    let uplink = uplink::spawn(
        sends,
        &desk.trail,
        health(Arc::clone(&current), Arc::clone(&desk), Arc::clone(&shared)),
        Arc::clone(&monitor.news),
        drain.clone(),
    );
    let tasks = Tasks::new();
    let admin = Admin::new(gates.clone(), registry, tasks.clone())
        .config(config.effective())
        .detail({
            let (status, membership) = (Arc::clone(&status), Arc::clone(&membership));
            move || {
                let mut report = status.report();
                if let Some(fields) = report.as_object_mut() {
                    fields.insert("enrolment".into(), membership.report());
                }
                report
            }
        })
        .route("/snapshot", {
            let current = Arc::clone(&current);
            move || describe(&current.load())
        })
        .route("/audit", {
            let desk = Arc::clone(&desk);
            move || desk.trail.report()
        })
        .route("/upstreams", {
            let standings = Arc::clone(&shared.standings);
            move || standings.report()
        })
        .route("/uplink", uplink.reporter())
        .route("/overload", {
            let common = Arc::clone(&common);
            move || common.report()
        })
        .route("/servers", move || monitor.describe())
        .bind(config.admin_addr)
        .with_context(|| format!("cannot listen on {} for the admin port", config.admin_addr))?;
    let memory_limit = common.memory.limit();
    let worker = Worker {
        keys: Arc::new(Finder::new(Arc::clone(&current), line, desk.metrics.clone())),
        current,
        authenticator: Arc::new(Authenticator::default()),
        shared,
        sse_sessions: Arc::default(),
        page_size: usize::try_from(config.list_page_size).unwrap_or(1000),
        desk,
        common,
        outbound: outbound(&config, [admin.local_addr(), mcp_addr]).await,
        hosts: Hosts::new(mcp_addr, config.public_host.clone())
            .pages(Pages::Own)
            .origins(config.allow_origin.clone()),
        gates: gates.clone(),
        tls: tls.as_ref().map(|tls| TlsAcceptor::from(tls.config())),
        caps: Arc::new(caps(&config, memory_limit)),
        drain: drain.clone(),
    };
    Ok(Bound {
        mcp_addr,
        admin_addr: admin.local_addr(),
        proxy_id,
        config,
        sockets,
        admin,
        worker,
        tls,
        tasks,
        uplink,
        status,
        membership,
        gates,
        signals,
        trigger,
        drain,
    })
}

impl Bound {
    /// Serves until a signal, then drains.
    pub async fn run(self) -> anyhow::Result<()> {
        let Self { config, sockets, admin, worker, tls, tasks, uplink, status, gates, .. } = self;
        let Self { mut signals, trigger, drain, membership, .. } = self;
        tracing::info!(
            mcp.addr = %self.mcp_addr, admin.addr = %self.admin_addr, proxy.id = %self.proxy_id,
            config = %config.effective(), "listening"
        );
        let supervisor = Supervisor::new();
        let admin_drain = drain.clone();
        supervisor.spawn("admin port", async move {
            if let Err(error) = admin.serve(admin_drain).await {
                tracing::error!(error = %telemetry::chain(&error), "the admin port failed");
            }
        });
        if let Some(tls) = tls {
            Driver::new(tls, TLS_RELOAD).spawn(&tasks, drain.clone());
        }
        let (current, desk) = (Arc::clone(&worker.current), Arc::clone(&worker.desk));
        let shared = Arc::clone(&worker.shared);
        task::spawn("gauges", gauges(current, desk, Arc::clone(&shared), status, membership, drain.clone()));
        let caps = Arc::clone(&worker.caps);
        let common = Arc::clone(&worker.common);
        let memory = task::spawn("memory", {
            let shared = Arc::clone(&shared);
            async move { common.keep(|| shared.catalogue.clear()).await }
        });
        let catalogue = Arc::downgrade(&shared);
        shared.hub.on_change(move |server, list| {
            if let Some(shared) = catalogue.upgrade() {
                shared.catalogue.invalidate(server, list);
            }
        });
        let current = Arc::clone(&worker.current);
        let upstream = worker.upstream();
        let means = Means {
            shared: Arc::clone(&shared),
            upstream: upstream.clone(),
            current: Arc::clone(&current),
            desk: Arc::clone(&worker.desk),
            drain: drain.clone(),
        };
        task::spawn("health checks", checks::run(Arc::clone(&means.desk.monitor), means.clone()));
        task::spawn("subscriptions", Hub::keep(means));
        let keeper = task::spawn("upkeep", upkeep(shared, upstream, current, drain.clone()));
        let threads = worker.start(sockets)?;
        if config.announce {
            announce(&json!({"mcp": self.mcp_addr, "admin": self.admin_addr, "proxy_id": self.proxy_id}))?;
        }

        let failed = tokio::select! {
            signal = signals.next() => {
                tracing::info!(signal, "draining");
                None
            }
            ended = supervisor.ended() => Some(ended),
        };
        gates.drain();
        caps.leave();
        if failed.is_none() {
            // A second signal cuts the linger short.
            tokio::select! {
                () = linger(config.linger, &caps) => {}
                _ = signals.next() => {}
            }
        }
        let outcome = trigger.drained_or_signal(&mut signals).await;
        if let Outcome::Forced { held } = outcome {
            tracing::warn!(held, "the grace period is over; some work was cut off");
        }
        memory.abort();
        if keeper.await.is_err() {
            tracing::error!("the upkeep of sessions had panicked");
        }
        // What was answered until now goes up, if the control plane takes it; the rest is on disk for the next start.
        uplink.ended().await;
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a worker thread had panicked");
            }
        }
        match failed {
            Some(ended) => Err(ended).context("a task that the proxy cannot do without has ended"),
            None => Ok(()),
        }
    }
}

/// Waits until load balancers have noticed that this proxy goes. Where nobody has been connected for a moment there is none.
async fn linger(most: Duration, caps: &Caps) {
    let end = Instant::now() + most;
    let mut last_open = Instant::now();
    while Instant::now() < end && last_open.elapsed() < ALONE {
        if caps.open() > 0 {
            last_open = Instant::now();
        }
        tokio::time::sleep(LOOK_AROUND.min(most)).await;
    }
}

impl Worker {
    /// Starts one thread for each socket: a runtime of its own, an accept loop, and connections to servers that no
    /// other thread touches.
    fn start(self, sockets: Vec<std::net::TcpListener>) -> anyhow::Result<Vec<thread::JoinHandle<()>>> {
        let mut threads = Vec::with_capacity(sockets.len());
        for (i, socket) in sockets.into_iter().enumerate() {
            let worker = self.clone();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let thread = thread::Builder::new().name(format!("worker {i}")).spawn(move || {
                runtime.block_on(async move {
                    if let Err(error) = worker.serve(socket).await {
                        tracing::error!(error = %telemetry::chain(&error), "a worker thread cannot accept");
                    }
                });
                // A look-up of a name may hang in the system for longer than anybody waits.
                runtime.shutdown_background();
            })?;
            threads.push(thread);
        }
        Ok(threads)
    }

    /// A way to the servers, with connections of its own.
    fn upstream(&self) -> Upstream {
        let (buffers, standings) = (Arc::clone(&self.shared.buffers), Arc::clone(&self.shared.standings));
        Upstream::new(self.outbound.clone(), Arc::clone(&self.current), buffers, standings)
    }

    async fn serve(self, socket: std::net::TcpListener) -> std::io::Result<()> {
        let upstream = self.upstream();
        let overload = Overload::new(&self.common);
        let sweeper = sweep(upstream.clone(), Arc::clone(&self.current));
        let metrics = self.desk.metrics.clone();
        let gateway = Arc::new(Gateway {
            current: self.current,
            authenticator: self.authenticator,
            keys: self.keys,
            upstream,
            shared: self.shared,
            page_size: self.page_size,
            desk: self.desk,
            overload: Arc::clone(&overload),
            drain: self.drain.clone(),
        });
        let sessions = self.sse_sessions;
        let listener = Listener {
            socket: listen::adopt(socket)?,
            tls: self.tls,
            caps: self.caps,
            memory: Arc::clone(&self.common.memory),
            metrics,
            server: Arc::new(Server { gateway, sessions, hosts: self.hosts, gates: self.gates }),
        };
        let sweeper = task::spawn("sweep connections", sweeper);
        let watch = task::spawn("lag", overload.keep());
        listener.run(self.drain.clone()).await;
        // The connections live on this runtime, so it stays until they are done or cut off.
        self.drain.ended().await;
        sweeper.abort();
        watch.abort();
        Ok(())
    }
}

/// Where servers may be. Never where we are ourselves: a registration must not reach our admin port, nor the control
/// plane from within its network, nor send calls round in circles.
async fn outbound(config: &Config, ours: [SocketAddr; 2]) -> OutboundPolicy {
    let (names, addrs) = link::places(&config.control_plane).await;
    let own = ours.into_iter().chain(addrs).chain(redis(config).await).flat_map(Denied::own);
    OutboundPolicy {
        allow_private: config.allow_private_upstreams,
        allow_cidrs: config.allow_upstream_cidr.clone(),
        denied: config.deny_upstream_cidr.iter().copied().map(Denied::network).chain(own).collect(),
        denied_names: names,
        ports: config.outbound_ports.clone(),
        names: Names::default(),
    }
}

/// Where the Redis is that limits are counted in.
async fn redis(config: &Config) -> Vec<SocketAddr> {
    let url = config.redis_url.as_ref().and_then(|url| Url::parse(url.expose_secret()).ok());
    // A socket of this machine has no host.
    let Some(host) = url.as_ref().and_then(Url::host_str).filter(|host| !host.is_empty()) else {
        return Vec::new();
    };
    let port = url.as_ref().and_then(Url::port).unwrap_or(6379);
    match timeout(RESOLVE, outbound::look_up(host.trim_matches(['[', ']']), port)).await {
        Ok(Ok(addrs)) => addrs.into_iter().collect(),
        _ => {
            tracing::warn!("the address of --redis-url is not known, so servers cannot be kept from it");
            Vec::new()
        }
    }
}

/// The counts of limits, and the task that counts with other proxies.
fn counts(
    config: &Config,
    proxy_id: Uuid,
    metrics: &Metrics,
) -> anyhow::Result<(Limits, Option<limit::Keeper>)> {
    let Some(url) = &config.redis_url else { return Ok((Limits::default(), None)) };
    let asked =
        limit::Counts { asked: metrics.limit_asks.clone(), failed: metrics.failed_limit_asks.clone() };
    let (global, keeper) = limit::Global::new(url, proxy_id, asked)
        .map_err(|_| anyhow::anyhow!("--redis-url: must be an address such as redis://HOST:6379"))?;
    Ok((Limits::new(Some(global)), Some(keeper)))
}

/// How many connections there may be: not more than the process can open files.
fn caps(config: &Config, memory: Option<u64>) -> Caps {
    let files = process::raise_file_limit();
    let total = Caps::for_files(config.max_connections, files);
    if total < config.max_connections {
        tracing::warn!(
            max_connections = total,
            files,
            "fewer connections than configured: raise the limit of open files"
        );
    }
    let (per_address, strangers) = (config.max_connections_per_address, config.max_strangers_per_address);
    Caps::new(total, per_address, strangers, Caps::for_memory(memory))
}

/// How this proxy says it is.
fn health(
    current: Arc<Current>,
    desk: Arc<Desk>,
    shared: Arc<Shared>,
) -> impl Fn() -> Health + Send + Sync + 'static {
    let started = Instant::now();
    move || Health {
        revision: current.load().revision,
        open_streams: u64::try_from(desk.metrics.open_streams.get()).unwrap_or(0),
        spool_depth: desk.trail.depth(),
        uptime_seconds: started.elapsed().as_secs(),
        exchanges: desk.metrics.served.get(),
        servers: shared.eras.verdicts().into_iter().map(seen).collect(),
        tools: desk.sightings.take(),
        limits: shared.limits.report(&current.load()),
        health: Some(desk.monitor.report()),
    }
}

/// What was found out of a server, as the control plane shows it.
fn seen((server, era, revision, found_at): (Uuid, Era, Revision, DateTime<Utc>)) -> SeenServer {
    SeenServer {
        server_id: server.to_string(),
        endpoint: 0,
        era: era.label().to_owned(),
        revision: revision.as_str().to_owned(),
        found_at: Some(waffles_core::wire::timestamp(found_at)),
    }
}

async fn sweep(upstream: Upstream, current: Arc<Current>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        upstream.pool().sweep(&current.load());
    }
}

/// Gives up what nobody comes back for, and at the end everything: servers are told, while they can be.
async fn upkeep(shared: Arc<Shared>, upstream: Upstream, current: Arc<Current>, drain: Drain) {
    loop {
        tokio::select! {
            () = drain.ended() => break,
            () = tokio::time::sleep(UPKEEP) => {}
        }
        shared.lot.sweep();
        shared.sessions.sweep();
        shared.catalogue.sweep();
        shared.backs.sweep(&upstream).await;
        shared.eras.sweep(&current.load());
        shared.schemas.sweep(&current.load());
        shared.limits.sweep(&current.load());
        shared.standings.sweep(&current.load());
        upstream.pool().sweep(&current.load());
    }
    shared.lot.clear();
    shared.backs.drain(&upstream).await;
}

async fn gauges(
    current: Arc<Current>,
    desk: Arc<Desk>,
    shared: Arc<Shared>,
    status: Arc<Status>,
    membership: Arc<Membership>,
    drain: Drain,
) {
    let metrics = &desk.metrics;
    loop {
        metrics.revision.set(i64::try_from(current.load().revision).unwrap_or(i64::MAX));
        // -1: not heard since the start.
        let age = status.age().map_or(-1, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        metrics.config_age.set(age);
        metrics.limit_counts.set(i64::try_from(shared.limits.kept()).unwrap_or(i64::MAX));
        metrics.limits_shared.set(shared.limits.is_shared().map_or(-1, i64::from));
        metrics.connected.set(status.is_connected().into());
        metrics.certificate_left.set(membership.seconds_left());
        metrics.spool_depth.set(i64::try_from(desk.trail.depth()).unwrap_or(i64::MAX));
        metrics.lost_records.set(i64::try_from(desk.trail.lost()).unwrap_or(i64::MAX));
        tokio::select! {
            () = drain.ended() => return,
            () = tokio::time::sleep(GAUGES) => {}
        }
    }
}

/// The snapshot for operators: names and numbers, no secret.
fn describe(snapshot: &Snapshot) -> serde_json::Value {
    let servers: Vec<_> = snapshot
        .servers()
        .map(|entry| {
            let server = &entry.server;
            json!({
                "tenant": server.tenant, "name": server.spec.name, "id": server.id,
                "enabled": server.enabled, "version": server.version,
            })
        })
        .collect();
    let refused: Vec<_> =
        snapshot.refused.iter().map(|key| json!({"kind": key.kind.as_str(), "id": key.id})).collect();
    let counts: serde_json::Map<_, _> =
        snapshot.counts().into_iter().map(|(kind, count)| (kind.to_owned(), count.into())).collect();
    json!({
        "lineage": snapshot.lineage, "revision": snapshot.revision, "counts": counts,
        "servers": servers, "refused": refused,
    })
}

/// The one line that a program which started us waits for.
fn announce(line: &serde_json::Value) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "proxy".to_owned())
}
