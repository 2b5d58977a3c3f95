//! What many servers, proxies and keys cost: a control plane on Postgres with all of them, proxies that are played by hand
//! and hold real streams, a few that are real, and proxies that start from what is on their disk.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use futures_util::StreamExt as _;
use sqlx::{Connection as _, PgConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tonic::transport::Channel;
use uuid::Uuid;
use waffles_core::credential::KeyLimits;
use waffles_core::server::{Marks, ToolMark};
use waffles_proto::proxy::v1::CreateJoinTokenRequest;
use waffles_proto::registry::v1::{self as registry, CreateServerRequest, ServerSpec};

use super::compare::median;
use crate::member::{self, Followed, Member};
use crate::programs::{ControlPlaneOptions, DataPlane, DataPlaneOptions};
use crate::promise::Figure;
use crate::seed::Seed;
use crate::waffles::{endpoint, spec};
use crate::{McpClient, McpServer, PATIENCE, Postgres, Waffles, WafflesOptions};

/// Requests to the control plane under way while it is filled.
const TOGETHER: usize = 8;
/// Keys of one owner, as many as the control plane lets one have.
const KEYS_PER_OWNER: usize = 200;
/// For how long after a restart statements are counted, with the herd and without.
const COUNTED: Duration = Duration::from_secs(20);
/// Work that goes by the clock falls into one such time more often than into another, by so much: that is not the herd's.
const PHASE: usize = 2;
/// How long the whole herd may take, before the measurement is given up.
const HERD_TIME: Duration = Duration::from_secs(120);

/// Fills a control plane, and counts the time.
#[derive(Debug, Args)]
pub(super) struct Scale {
    /// How many servers.
    #[arg(long, default_value_t = 10_000)]
    servers: usize,
    /// How many tools are told of each.
    #[arg(long, default_value_t = 5)]
    tools: usize,
    /// How many proxies are played by hand.
    #[arg(long, default_value_t = 500)]
    proxies: usize,
    /// How many API keys.
    #[arg(long, default_value_t = 100_000)]
    keys: usize,
    /// How many changes are followed to every stream.
    #[arg(long, default_value_t = 20)]
    changes: usize,
    /// Only the proxies that start from their disk.
    #[arg(long)]
    start_only: bool,
}

impl Scale {
    /// Prints what it takes.
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        for servers in [0, 1000, self.servers] {
            self.start_from_disk(servers).await?;
        }
        self.cost_by_keys().await?;
        if self.start_only {
            return Ok(());
        }
        let postgres = Postgres::start().await;
        let mut waffles = self.fill(&postgres).await?;
        self.full_sync(&waffles).await?;
        postgres.count_statements().await;
        let (own, _) = statements_of_a_restart(&mut waffles, &postgres, None).await?;
        let herd = Herd::gather(&waffles, self.proxies).await?;
        self.follow_changes(&waffles, &herd).await?;
        self.restart(&mut waffles, &herd, &postgres, own).await
    }

    /// A proxy that finds its configuration on its disk, and nothing else alive.
    async fn start_from_disk(&self, servers: usize) -> anyhow::Result<()> {
        let mut seed = Seed::new();
        let alice = seed.principal("alice", "user");
        seed.key(alice, KeyLimits::default());
        for number in 0..servers {
            seed.server(&name(number), "http://10.0.0.1:9000/mcp", |server| {
                server.spec.marks = marks(self.tools);
            });
        }
        let dir = tempfile::tempdir()?;
        seed.save(dir.path());
        let copy = |to: &std::path::Path| {
            for entry in std::fs::read_dir(dir.path()).expect("it is there").flatten() {
                std::fs::copy(entry.path(), to.join(entry.file_name())).expect("it can be copied");
            }
        };
        let options = DataPlaneOptions { args: quiet(), ..DataPlaneOptions::default() };
        let mut times = Vec::new();
        let mut resident = 0;
        for _ in 0..3 {
            let started = Cell::new(Instant::now());
            let copied = |to: &std::path::Path| {
                copy(to);
                started.set(Instant::now());
            };
            let proxy = DataPlane::start_seeded(copied, options.clone()).await;
            first_answer(proxy.mcp).await?;
            times.push(started.get().elapsed());
            tokio::time::sleep(Duration::from_secs(3)).await;
            resident = super::resident_bytes(proxy.program.pid()).unwrap_or_default();
        }
        times.sort_unstable();
        let time = times.get(1).copied().unwrap_or_default();
        let limit = Duration::from_secs(if servers > 1000 { 3 } else { 1 });
        note("P03", &format!("start from the disk, {servers} servers"), time, limit);
        if servers == 0 {
            note("bench", "start from the disk to the first answer", time, Duration::from_millis(25));
        }
        let goal = match servers {
            0 => 12,
            1..=1000 => 40,
            _ => 512,
        };
        note_bytes(&format!("a proxy at rest, {servers} servers"), resident, goal);
        Ok(())
    }

    /// The same call, with few keys in the snapshot and with many.
    async fn cost_by_keys(&self) -> anyhow::Result<()> {
        let upstream = McpServer::start().await;
        let mut costs = Vec::new();
        for keys in [10, self.keys] {
            let mut seed = Seed::new();
            let mut secret = String::new();
            for owner in 0..keys.div_ceil(KEYS_PER_OWNER) {
                let owner = seed.principal(&format!("owner-{owner}"), "user");
                for _ in 0..KEYS_PER_OWNER.min(keys) {
                    secret = seed.key(owner, KeyLimits::default());
                }
            }
            seed.server("demo", &upstream.url(), |_| {});
            let options = DataPlaneOptions { args: quiet(), ..DataPlaneOptions::default() };
            let mut proxy = DataPlane::start_seeded(|dir| seed.save(dir), options).await;
            proxy.ready().await;
            let client = McpClient::new(&proxy.server_url("demo")).with_bearer(&secret);
            let client = client.of(crate::Era::Stateless).await;
            costs.push((keys, proxy, client));
        }
        let mut rounds: Vec<Vec<f64>> = vec![Vec::new(); costs.len()];
        for round in 0..12 {
            for ((_, proxy, client), times) in costs.iter().zip(&mut rounds) {
                let before = super::cpu_micros(proxy.program.pid()).unwrap_or_default();
                for id in 0..1000 {
                    client.ask(id, "tools/list", serde_json::json!({})).await?.result();
                }
                let spent = super::cpu_micros(proxy.program.pid()).unwrap_or_default() - before;
                // The first rounds make connections and fill caches.
                if round >= 2 {
                    times.push(spent as f64 / 1000.0);
                }
            }
        }
        let medians: Vec<f64> = rounds.into_iter().map(median).collect();
        let ratio = medians.last().copied().unwrap_or(0.0) / medians.first().copied().unwrap_or(1.0);
        Figure {
            promise: "P06".into(),
            what: format!("CPU of one call, {} keys to 10 keys", self.keys),
            goal: "≤ 1.05".into(),
            measured: format!("{ratio:.3} ({:.0} µs to {:.0} µs)", medians[1], medians[0]),
            extent: "10 rounds of 1000 calls".into(),
            met: ratio <= 1.05,
        }
        .note();
        for (keys, proxy, _) in &costs {
            let resident = super::resident_bytes(proxy.program.pid()).unwrap_or_default();
            note_bytes(&format!("a proxy with {keys} keys"), resident, 512);
        }
        Ok(())
    }

    /// A control plane with everything in its database.
    async fn fill(&self, postgres: &Postgres) -> anyhow::Result<Waffles> {
        let started = Instant::now();
        let url = postgres.database().await;
        let control_plane = ControlPlaneOptions {
            database_url: Some(url.clone()),
            args: quiet(),
            ..ControlPlaneOptions::default()
        };
        let mut waffles =
            Waffles::with(WafflesOptions { control_plane, proxies: 0, ..WafflesOptions::default() }).await;
        let made =
            futures_util::stream::iter(0..self.servers).map(|number| {
                let mut client = waffles.registry();
                let tool = |tool: usize| registry::ToolMark {
                    pattern: format!("tool_{tool}"),
                    read_only: Some(true),
                    ..registry::ToolMark::default()
                };
                let spec = ServerSpec {
                    name: name(number),
                    endpoints: vec![endpoint("http://10.0.0.1:9000/mcp")],
                    marks: (0..self.tools).map(tool).collect(),
                    ..spec()
                };
                async move {
                    client.create_server(CreateServerRequest { spec: Some(spec), disabled: false }).await
                }
            });
        let mut made = made.buffer_unordered(TOGETHER);
        while let Some(result) = made.next().await {
            result.context("a server can be registered")?;
        }
        drop(made);
        // Keys that nobody holds: hashes need no more than to be there.
        let mut database = PgConnection::connect(&url).await?;
        let owners = self.keys.div_ceil(KEYS_PER_OWNER);
        let people = "INSERT INTO users (id, tenant, email, name, roles, active, created_at, updated_at, kind)
            SELECT gen_random_uuid(), 'default', 'owner-' || n, 'owner-' || n, '[]', true, now(), now(), 'service_account'
            FROM generate_series(1, $1) AS n";
        sqlx::query(people).bind(i32::try_from(owners)?).execute(&mut database).await?;
        let keys = "INSERT INTO api_keys (id, tenant, owner, name, hash, limits, created_at)
            SELECT substr(md5(u.id::text || n), 1, 16), 'default', u.id, 'seeded',
                sha256((u.id::text || n)::bytea), '{}', now()
            FROM users u, generate_series(1, $1) AS n WHERE u.email LIKE 'owner-%' LIMIT $2";
        sqlx::query(keys)
            .bind(i32::try_from(KEYS_PER_OWNER)?)
            .bind(i64::try_from(self.keys)?)
            .execute(&mut database)
            .await?;
        database.close().await?;
        say(&format!("filled in {:.1?}", started.elapsed()));
        // It reads all of it anew, as after any restart.
        let started = Instant::now();
        waffles.control_plane.restart().await;
        crate::eventually(PATIENCE, || async { waffles.proxy_list().await.map(drop) }).await;
        let took = started.elapsed();
        note("P06", "start of the control plane", took, Duration::from_secs(10));
        Ok(waffles)
    }

    /// Three real proxies that know nothing yet.
    async fn full_sync(&self, waffles: &Waffles) -> anyhow::Result<()> {
        let options = DataPlaneOptions { args: quiet(), ..DataPlaneOptions::default() };
        let started = Instant::now();
        let starting = (0..3).map(|_| DataPlane::start(&waffles.control_plane, options.clone()));
        let mut proxies = futures_util::future::join_all(starting).await;
        for proxy in &mut proxies {
            proxy.ready_within(Duration::from_secs(60)).await;
        }
        let took = started.elapsed();
        note("P06", "full sync of 3 proxies that start and join", took, Duration::from_secs(5));
        tokio::time::sleep(Duration::from_secs(3)).await;
        for proxy in &proxies {
            let resident = super::resident_bytes(proxy.program.pid()).unwrap_or_default();
            note_bytes("a proxy with everything", resident, 512);
        }
        Ok(())
    }

    /// One server changes, and every stream hears of it.
    async fn follow_changes(&self, waffles: &Waffles, herd: &Herd) -> anyhow::Result<()> {
        let mut times = Vec::new();
        for change in 0..self.changes {
            let changed = Instant::now();
            waffles.set_enabled(&name(change), change % 2 == 1).await;
            let (_, revision) = waffles.proxy_list().await?;
            times.extend(herd.reach(revision, HERD_TIME).await?.iter().map(|at| at.duration_since(changed)));
        }
        times.sort_unstable();
        let at = |share: usize| times.get((times.len() * share / 100).min(times.len() - 1)).copied();
        let p99 = at(99).unwrap_or_default();
        say(&format!("one change to {} streams: p50 {:.1?}", self.proxies, at(50).unwrap_or_default()));
        let what = format!("one change to {} streams, p99", self.proxies);
        note("P06", &what, p99, Duration::from_millis(500));
        Ok(())
    }

    /// The control plane is killed, and everybody comes back. `own` statements a restart takes without the herd.
    async fn restart(
        &self,
        waffles: &mut Waffles,
        herd: &Herd,
        postgres: &Postgres,
        own: BTreeMap<String, usize>,
    ) -> anyhow::Result<()> {
        let (statements, took) = statements_of_a_restart(waffles, postgres, Some(herd)).await?;
        let mut herds = 0;
        for (statement, count) in statements {
            let more = count.saturating_sub(own.get(&statement).copied().unwrap_or(0));
            if more > PHASE {
                say(&format!("{more:4} more: {statement}"));
                herds += more;
            }
        }
        let what = format!("{} proxies back after a restart", self.proxies);
        note("P06", &what, took, Duration::from_secs(30));
        Figure {
            promise: "P06".into(),
            what: "SQL statements for the whole herd".into(),
            goal: "≤ 20".into(),
            measured: format!("{herds} more than without it"),
            extent: format!("{} proxies", self.proxies),
            met: herds <= 20,
        }
        .note();
        waffles.set_enabled(&name(0), true).await;
        let (_, revision) = waffles.proxy_list().await?;
        herd.reach(revision, HERD_TIME).await?;
        let peak = super::peak_bytes(waffles.control_plane.program.pid()).unwrap_or_default();
        note_bytes("the control plane at its peak", peak, 512);
        Ok(())
    }
}

/// Kills the control plane, starts it again, and counts its statements for a while; how long the herd takes to come back.
async fn statements_of_a_restart(
    waffles: &mut Waffles,
    postgres: &Postgres,
    herd: Option<&Herd>,
) -> anyhow::Result<(BTreeMap<String, usize>, Duration)> {
    waffles.control_plane.kill9().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    waffles.control_plane.restart().await;
    let (started, before) = (Instant::now(), postgres.statements().len());
    if let Some(herd) = herd {
        let attempts = herd.attempts();
        herd.are_back(HERD_TIME).await?;
        let attempts = (herd.attempts() - attempts) as f64 / herd.members.len() as f64;
        say(&format!("{attempts:.1} attempts a proxy, beside those while the control plane was gone"));
    }
    let took = started.elapsed();
    tokio::time::sleep_until(started + COUNTED).await;
    let mut counts = BTreeMap::new();
    for statement in postgres.statements().split_off(before) {
        *counts.entry(statement).or_default() += 1;
    }
    Ok((counts, took))
}

/// Proxies that are played by hand, each with a connection of its own and both of its streams.
struct Herd {
    members: Vec<Played>,
}

struct Played {
    /// The revision held, and when it came.
    held: watch::Receiver<(u64, Instant)>,
    /// How many connections it has opened, and whether one is open.
    link: watch::Receiver<(u64, bool)>,
}

impl Herd {
    async fn gather(waffles: &Waffles, count: usize) -> anyhow::Result<Self> {
        let started = Instant::now();
        let control_plane =
            Arc::new(Address { grpc: waffles.control_plane.grpc, lineage: std::sync::OnceLock::new() });
        let joining = futures_util::stream::iter(0..count).map(|_| async {
            let request = CreateJoinTokenRequest { group: String::new(), ttl: None };
            let token = waffles.roster().create_join_token(request).await?.into_inner().token;
            let (key, _) = member::request();
            member::enroll(&waffles.control_plane, &token, Uuid::now_v7(), &key).await
        });
        let joined: Vec<_> = joining.buffer_unordered(TOGETHER).collect().await;
        say(&format!("{count} proxies joined in {:.1?}", started.elapsed()));
        // One takes everything; the others say that they hold it, as proxies do that come back.
        let (_, revision) = waffles.proxy_list().await?;
        let mut members = Vec::with_capacity(count);
        for (number, member) in joined.into_iter().enumerate() {
            let member = member.context("a proxy can join")?;
            let (held, told) = watch::channel((0, Instant::now()));
            let (link, linked) = watch::channel((0, false));
            let play = Play { member, to: Arc::clone(&control_plane), held, link };
            #[allow(clippy::disallowed_methods, reason = "the benchmark has no drain")]
            tokio::spawn(play.run());
            members.push(Played { held: told, link: linked });
            if number == 0 {
                let first = Self { members };
                first.reach(revision, HERD_TIME).await?;
                members = first.members;
            }
        }
        let herd = Self { members };
        herd.are_back(HERD_TIME).await?;
        Ok(herd)
    }

    /// When each came to a revision.
    async fn reach(&self, revision: u64, limit: Duration) -> anyhow::Result<Vec<Instant>> {
        let end = Instant::now() + limit;
        let mut times = Vec::with_capacity(self.members.len());
        for member in &self.members {
            let mut held = member.held.clone();
            let reached = tokio::time::timeout_at(end, held.wait_for(|(at, _)| *at >= revision)).await;
            times.push(reached.context("a proxy hears of a change")??.1);
        }
        Ok(times)
    }

    /// Waits until all have both of their streams.
    async fn are_back(&self, limit: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + limit;
        for member in &self.members {
            let mut link = member.link.clone();
            let back = tokio::time::timeout_at(end, link.wait_for(|(_, open)| *open)).await;
            back.context("a proxy comes back")??;
        }
        Ok(())
    }

    fn attempts(&self) -> u64 {
        self.members.iter().map(|member| member.link.borrow().0).sum()
    }
}

/// Where the control plane is, and the lineage that all proxies hold.
struct Address {
    grpc: std::net::SocketAddr,
    lineage: std::sync::OnceLock<(String, u64)>,
}

struct Play {
    member: Member,
    to: Arc<Address>,
    held: watch::Sender<(u64, Instant)>,
    link: watch::Sender<(u64, bool)>,
}

impl Play {
    /// Comes back for ever, at random between 0.1 and 15 seconds, as a proxy does.
    async fn run(self) {
        let mut limit = 0.2;
        loop {
            self.link.send_modify(|link| link.0 += 1);
            let opened = Instant::now();
            // Why it ended does not matter: it comes back.
            drop(self.follow().await);
            self.link.send_modify(|link| link.1 = false);
            if opened.elapsed() > Duration::from_secs(5) {
                limit = 0.2;
            }
            let spread =
                f64::from(u32::from_le_bytes(*Uuid::new_v4().as_bytes().first_chunk().expect("16 bytes")))
                    / f64::from(u32::MAX);
            tokio::time::sleep(Duration::from_secs_f64(0.1 + (limit - 0.1) * spread)).await;
            limit = (limit * 2.0f64).min(15.0);
        }
    }

    async fn follow(&self) -> anyhow::Result<()> {
        let channel: Channel = timeout(PATIENCE, self.member.channel_at(self.to.grpc)).await??;
        let mut hello = self.member.hello();
        let held = self.held.borrow().0;
        if let Some((lineage, revision)) = self.to.lineage.get() {
            hello.lineage.clone_from(lineage);
            hello.revision = held.max(*revision);
        }
        let mut stream = timeout(PATIENCE, Followed::open(channel.clone(), hello)).await??;
        // Held for as long as the stream, as a proxy's is.
        let _upload: mpsc::Sender<_> = member::uploading(channel, self.member.id).await?;
        self.link.send_modify(|link| link.1 = true);
        loop {
            let (lineage, revision) = stream.skim().await?;
            self.to.lineage.get_or_init(|| (lineage, revision));
            self.held.send_replace((revision, Instant::now()));
        }
    }
}

/// Asks until it is answered that the proxy serves.
async fn first_answer(proxy: SocketAddr) -> anyhow::Result<()> {
    let asks = async {
        loop {
            let mut socket = TcpStream::connect(proxy).await?;
            let request = format!("GET /ready HTTP/1.1\r\nhost: {proxy}\r\nconnection: close\r\n\r\n");
            socket.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await?;
            if answer.starts_with("HTTP/1.1 200 ") {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, asks).await.context("it does not become ready")?
}

fn name(number: usize) -> String {
    format!("server-{number:05}")
}

fn marks(tools: usize) -> Vec<ToolMark> {
    let mark = |tool| ToolMark {
        pattern: format!("tool_{tool}"),
        marks: Marks { read_only: Some(true), ..Marks::default() },
    };
    (0..tools).map(mark).collect()
}

fn quiet() -> Vec<String> {
    vec!["--log".to_owned(), "warn".to_owned()]
}

fn note(promise: &str, what: &str, time: Duration, limit: Duration) {
    Figure {
        promise: promise.into(),
        what: what.into(),
        goal: format!("≤ {limit:?}"),
        measured: format!("{time:.1?}"),
        extent: "full".into(),
        met: time <= limit,
    }
    .note();
}

fn note_bytes(what: &str, bytes: u64, mebibytes: u64) {
    let measured = bytes as f64 / f64::from(1 << 20);
    Figure {
        promise: "P06".into(),
        what: format!("memory of {what}"),
        goal: format!("≤ {mebibytes} MiB"),
        measured: format!("{measured:.1} MiB"),
        extent: "full".into(),
        met: measured <= mebibytes as f64,
    }
    .note();
}

#[allow(clippy::print_stdout, reason = "that is what it is run for")]
fn say(text: &str) {
    println!("{text}");
}
