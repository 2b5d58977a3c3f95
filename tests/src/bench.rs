//! The benchmark. One process measures; the upstream, the pass-through and the load generator are children of the same
//! program, each on one thread and bound to a core: the proxy under test alone on one, everything else on another.

mod compare;
mod dead_resolver;
mod federation;
mod flat;
mod full_disk;
mod listeners;
mod load;
mod neighbours;
mod overload;
mod partition;
mod passthrough;
mod report;
mod rules;
mod scale;
mod secure;
mod tokens;
mod upgrade;
mod upstream;
mod what_if;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use waffles_core::wire::rule_spec_to_proto;
use waffles_proto::policy::v1::{CreateLimitRequest, LimitKind, LimitPer, LimitSpec, ReplaceRulesRequest};

use crate::programs::{self, ControlPlaneOptions, DataPlaneOptions, Program};
use crate::watchdog::Dir;
use crate::{DataPlane, Era, PATIENCE, Seed, Waffles, WafflesOptions};
pub use load::{Measured, Shape};

/// Between two rounds proxies upload what they recorded, so that one round does not pay for another.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// Questions a second of the open loop; at most half of what the slowest target can do.
const OPEN_LOOP_RATE: f64 = 1000.0;

/// Measures requests a second, latency, CPU and memory of verified `tools/call`s: direct, through a bare hyper
/// pass-through, through Waffles with authentication, authorization, a limit and audit on.
#[derive(Debug, Parser)]
#[command(name = "waffles-bench")]
pub struct Bench {
    #[command(subcommand)]
    part: Option<Part>,
    /// A short run, for a first look.
    #[arg(long)]
    quick: bool,
    /// Rounds; the figures are medians over them.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Connections that ask at the same time.
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Only this era: sessions or stateless.
    #[arg(long, value_parser = parse_era)]
    era: Option<Era>,
    /// Only this kind of answer.
    #[arg(long, value_enum)]
    shape: Option<Shape>,
    /// Rules of the policy. Most are about others, as in a real one; one looks at the arguments of every call.
    #[arg(long, default_value_t = 1000)]
    policy: usize,
    /// Writes all figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Measures the direct way and the pass-through alone.
    #[arg(long)]
    without_waffles: bool,
}

/// A child of the benchmark.
#[derive(Debug, Subcommand)]
enum Part {
    /// A fast MCP server.
    #[command(hide = true)]
    Upstream {
        /// It speaks this era alone.
        #[arg(long, value_parser = parse_era)]
        only: Option<Era>,
    },
    /// A proxy that parses nothing.
    #[command(hide = true)]
    Passthrough { upstream: std::net::SocketAddr },
    /// Asks and measures.
    #[command(hide = true)]
    Load(load::Load),
    /// Measures what idle listeners cost.
    Listeners(listeners::Listeners),
    /// Measures what a proxy serves when it is asked for more than it can.
    Overload(overload::Overload),
    /// Measures lists of many servers at one door.
    Federation(federation::Federation),
    /// Measures what it takes to try a draft of the policy on audited calls.
    WhatIf(what_if::WhatIf),
    /// Measures what a policy of many rules costs.
    Rules(rules::Rules),
    /// Measures what many servers, proxies and keys cost.
    Scale(scale::Scale),
    /// Measures what a healthy server notices of a broken one beside it.
    Neighbours(neighbours::Neighbours),
    /// A server that is well or not.
    #[command(hide = true)]
    Other(neighbours::Other),
    /// Asks at a fixed rate.
    #[command(hide = true)]
    Callers(neighbours::Callers),
    /// Breaks the network between a proxy and its control plane, in network namespaces.
    Partition(partition::Partition),
    /// Upgrades everything from the version before, under load.
    Upgrade(upgrade::Upgrade),
    /// Kills the resolver that a proxy asks for its servers.
    DeadResolver(dead_resolver::DeadResolver),
    /// Fills the disk under a proxy.
    FullDisk(full_disk::FullDisk),
    /// Measures whether a call costs the same however much is registered.
    Flat(flat::Flat),
}

/// What a serving child says when it is ready.
#[derive(Debug, Serialize, Deserialize)]
struct Listening {
    addr: std::net::SocketAddr,
}

/// A way to the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    Direct,
    PassThrough,
    Waffles,
    /// Through Waffles, to a server of the other era.
    Bridged,
    /// Through Waffles, with a new token in every call.
    Tokens,
    /// Through Waffles, to which the client speaks TLS.
    Tls,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::PassThrough => "pass-through",
            Self::Waffles => "waffles",
            Self::Bridged => "bridged",
            Self::Tokens => "new tokens",
            Self::Tls => "tls",
        }
    }
}

/// One way in one era in one round, closed and open loop.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sample {
    pub era: String,
    pub round: usize,
    pub way: Way,
    pub shape: Shape,
    pub closed: Measured,
    pub open: Option<Measured>,
}

/// A target of the load.
struct Target {
    way: Way,
    /// For clients with sessions, and for stateless ones.
    urls: [String; 2],
    bearer: Option<String>,
    /// A file of credentials, of which every call takes the next.
    bearers: Option<PathBuf>,
    /// The certificate that is trusted, where the way begins with TLS.
    trusted: Option<PathBuf>,
    /// The proxy, or the upstream itself for the direct way.
    pid: u32,
}

impl Target {
    /// A server behind a proxy, for who has this key.
    fn of(proxy: &DataPlane, server: &str, key: String) -> Self {
        let (urls, pid) = (both(&proxy.server_url(server)), proxy.program.pid());
        Self { way: Way::Waffles, urls, bearer: Some(key), bearers: None, trusted: None, pid }
    }

    /// Whether it is measured with this kind of answer.
    fn has(&self, shape: Shape) -> bool {
        shape == Shape::Echo || !matches!(self.way, Way::Bridged | Way::Tokens | Way::Tls)
    }
}

struct Cores {
    proxy: usize,
    load: usize,
    upstream: usize,
    control_plane: usize,
}

impl Bench {
    pub fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        match &self.part {
            Some(Part::Upstream { only }) => runtime.block_on(upstream::serve(*only)),
            Some(Part::Passthrough { upstream }) => runtime.block_on(passthrough::serve(*upstream)),
            Some(Part::Load(load)) => runtime.block_on(load.run()),
            Some(Part::Listeners(listeners)) => runtime.block_on(listeners.run()),
            Some(Part::Overload(overload)) => runtime.block_on(overload.run()),
            Some(Part::Federation(federation)) => runtime.block_on(federation.run()),
            Some(Part::WhatIf(what_if)) => runtime.block_on(what_if.run()),
            Some(Part::Rules(rules)) => runtime.block_on(rules.run(&self)),
            Some(Part::Scale(scale)) => runtime.block_on(scale.run()),
            Some(Part::Neighbours(neighbours)) => runtime.block_on(neighbours.run(&self)),
            Some(Part::Other(other)) => runtime.block_on(other.serve()),
            Some(Part::Callers(callers)) => runtime.block_on(callers.run()),
            Some(Part::Flat(flat)) => runtime.block_on(flat.run(&self)),
            Some(Part::Partition(partition)) => runtime.block_on(partition.run()),
            Some(Part::Upgrade(upgrade)) => runtime.block_on(upgrade.run()),
            Some(Part::DeadResolver(dead)) => runtime.block_on(dead.run()),
            Some(Part::FullDisk(disk)) => runtime.block_on(disk.run()),
            None => runtime.block_on(self.measure()),
        }
    }

    async fn measure(self) -> anyhow::Result<()> {
        let cores = cores()?;
        // This process waits most of the time, and must not do that on the proxy's core.
        pin_self(cores.load)?;
        let dir = Dir::new("waffles-bench-");
        let (upstream, upstream_addr) = child("upstream", &[], cores.upstream, &dir).await;
        let (passthrough, passthrough_addr) =
            child("passthrough", &[upstream_addr.to_string()], cores.proxy, &dir).await;
        let upstream_url = format!("http://{upstream_addr}/mcp");
        let mut targets = vec![
            Target {
                way: Way::Direct,
                urls: both(&upstream_url),
                bearer: None,
                bearers: None,
                trusted: None,
                pid: upstream.pid(),
            },
            Target {
                way: Way::PassThrough,
                urls: both(&format!("http://{passthrough_addr}/mcp")),
                bearer: None,
                bearers: None,
                trusted: None,
                pid: passthrough.pid(),
            },
        ];
        let waffles =
            if self.without_waffles { None } else { Some(self.start_waffles(&cores, &upstream_url).await?) };
        let mut others = Vec::new();
        let mut signed = None;
        let mut secured = None;
        if let Some(waffles) = &waffles {
            for only in ["sessions", "stateless"] {
                let arguments = ["--only".to_owned(), only.to_owned()];
                let (program, addr) = child("upstream", &arguments, cores.upstream, &dir).await;
                waffles.add_server(only, &format!("http://{addr}/mcp")).await;
                others.push(program);
            }
            let proxy = &waffles.proxies[0];
            let ways = [
                (Way::Waffles, both(&proxy.server_url("bench"))),
                (Way::Bridged, ["stateless", "sessions"].map(|server| proxy.server_url(server))),
            ];
            for (way, urls) in ways {
                let bearer = Some(waffles.admin.secret.clone());
                targets.push(Target {
                    way,
                    urls,
                    bearer,
                    bearers: None,
                    trusted: None,
                    pid: proxy.program.pid(),
                });
            }
            let seeded = tokens::Tokens::start(&cores, &upstream_url, self.policy).await;
            targets.push(seeded.target(&dir)?);
            signed = Some(seeded);
            let speaks_tls = secure::Secure::start(&cores, &upstream_url, self.policy, &dir).await;
            targets.push(speaks_tls.target(&dir));
            secured = Some(speaks_tls);
        }
        let at_rest: Vec<(Way, u64)> =
            targets.iter().map(|target| (target.way, resident_bytes(target.pid).unwrap_or(0))).collect();

        let mut samples = Vec::new();
        for era in self.eras() {
            let mut rate = None;
            for round in 0..self.rounds() {
                for shape in self.shapes() {
                    let mut closed = Vec::new();
                    for target in targets.iter().filter(|target| target.has(shape)) {
                        if let (Way::Tokens, Some(signed)) = (target.way, &signed) {
                            signed.renew(&dir)?;
                        }
                        closed.push((target, self.load(target, (era, shape), None, &cores, &dir).await?));
                        drain(waffles.as_ref()).await;
                    }
                    // One rate for all ways and rounds, or latencies could not be compared.
                    let slowest = closed.iter().map(|(_, closed)| closed.per_second).fold(f64::MAX, f64::min);
                    for (target, closed) in closed {
                        let mut open = None;
                        if shape == Shape::Echo && target.way != Way::Tokens {
                            let rate = *rate.get_or_insert(OPEN_LOOP_RATE.min(slowest / 2.0));
                            open = Some(self.load(target, (era, shape), Some(rate), &cores, &dir).await?);
                            drain(waffles.as_ref()).await;
                        }
                        let era = era.revision().to_owned();
                        samples.push(Sample { era, round, way: target.way, shape, closed, open });
                    }
                    report::progress(era, shape, round, &samples);
                }
            }
        }
        drop(secured);
        let report = report::Report::new(self.connections, at_rest, samples);
        report.print();
        if let Some(file) = &self.json {
            std::fs::write(file, serde_json::to_vec_pretty(&report)?)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    fn shapes(&self) -> Vec<Shape> {
        self.shape.map_or_else(|| vec![Shape::Echo, Shape::Large, Shape::Events], |shape| vec![shape])
    }

    fn rounds(&self) -> usize {
        if self.quick { self.rounds.min(2) } else { self.rounds }
    }

    async fn start_waffles(&self, cores: &Cores, upstream: &str) -> anyhow::Result<Waffles> {
        let waffles = Waffles::with(WafflesOptions {
            control_plane: ControlPlaneOptions {
                cpu: Some(cores.control_plane),
                args: ["--log", "warn"].map(str::to_owned).to_vec(),
                ..ControlPlaneOptions::default()
            },
            data_plane: on_its_core(cores, &["--log", "warn"]),
            ..WafflesOptions::default()
        })
        .await;
        let rules = rules::specs(self.policy).iter().map(rule_spec_to_proto).collect();
        let request = ReplaceRulesRequest { rules, ..Default::default() };
        waffles.policy().replace_rules(request).await.context("the rules are not taken")?;
        // As many as nobody asks: what is measured is that it is counted.
        let spec = LimitSpec {
            name: "per-principal".into(),
            kind: LimitKind::Rate.into(),
            amount: 100_000_000,
            window_seconds: 60,
            per: vec![LimitPer::Principal.into()],
            ..LimitSpec::default()
        };
        let request = CreateLimitRequest { spec: Some(spec) };
        waffles.limits().create_limit(request).await.context("the limit is not taken")?;
        waffles.add_server("bench", upstream).await;
        Ok(waffles)
    }

    async fn load(
        &self,
        target: &Target,
        (era, shape): (Era, Shape),
        rate: Option<f64>,
        cores: &Cores,
        dir: &Dir,
    ) -> anyhow::Result<Measured> {
        let seconds = match (self.quick, rate.is_some()) {
            (true, _) => 0.7,
            (false, false) => 2.0,
            (false, true) => 1.5,
        };
        let mut command = programs::command("waffles-bench", Some(cores.load));
        let url = &target.urls[usize::from(era == Era::Stateless)];
        command.args(["load", "--url", url, "--watch", &target.pid.to_string()]);
        command.args(["--connections", &self.connections.to_string(), "--seconds", &seconds.to_string()]);
        command.args(["--era", if era == Era::Sessions { "sessions" } else { "stateless" }]);
        command.args(["--shape", shape.tool()]);
        if let Some(bearers) = &target.bearers {
            command.arg("--bearers").arg(bearers);
        }
        if let Some(trusted) = &target.trusted {
            command.arg("--ca").arg(trusted);
        }
        if let Some(bearer) = &target.bearer {
            // Not as an argument, which every user of the machine may read.
            command.env("WAFFLES_BENCH_BEARER", bearer);
        }
        if let Some(rate) = rate {
            command.args(["--rate", &rate.to_string()]);
        }
        let mut program = Program::spawn("load", command, dir.path().join("load.log"));
        let measured: Measured = program.announced(PATIENCE).await;
        program.wait(PATIENCE).await;
        if let Some(failure) = &measured.first_failure {
            anyhow::bail!("{} calls {} failed, the first: {failure}", measured.failed, target.way.name());
        }
        Ok(measured)
    }
}

fn both(url: &str) -> [String; 2] {
    [url.to_owned(), url.to_owned()]
}

/// What a proxy is started with that has one thread, and a core for it.
fn on_its_core(cores: &Cores, flags: &[&str]) -> DataPlaneOptions {
    let args = flags.iter().map(|flag| (*flag).to_owned()).collect();
    DataPlaneOptions { workers: 1, cpu: Some(cores.proxy), args, ..DataPlaneOptions::default() }
}

/// A proxy without a control plane, on its core.
async fn alone(seed: &Seed, cores: &Cores, flags: &[&str]) -> DataPlane {
    let mut proxy = DataPlane::start_seeded(|dir| seed.save(dir), on_its_core(cores, flags)).await;
    proxy.ready().await;
    proxy
}

async fn child(part: &str, args: &[String], cpu: usize, dir: &Dir) -> (Program, std::net::SocketAddr) {
    announced(part, self::part(part, args, cpu), dir).await
}

/// This program, as a part of the benchmark.
fn part(part: &str, args: &[String], cpu: usize) -> Command {
    let mut command = programs::command("waffles-bench", Some(cpu));
    command.arg(part).args(args);
    command
}

async fn announced(part: &str, command: Command, dir: &Dir) -> (Program, std::net::SocketAddr) {
    let mut program = Program::spawn(part, command, dir.path().join(format!("{part}.log")));
    let Listening { addr } = program.announced(PATIENCE).await;
    (program, addr)
}

/// Waits until the proxy has uploaded its audit records, or for as long as is fair.
async fn drain(waffles: Option<&Waffles>) {
    let Some(waffles) = waffles else { return };
    let end = tokio::time::Instant::now() + DRAIN_LIMIT;
    while tokio::time::Instant::now() < end {
        match waffles.spool_depth().await {
            Ok(0) => return,
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

fn parse_era(text: &str) -> Result<Era, String> {
    match text {
        "sessions" => Ok(Era::Sessions),
        "stateless" => Ok(Era::Stateless),
        _ => Err("sessions or stateless".to_owned()),
    }
}

/// The proxy gets a core for itself; the others share one where there are no more than two.
fn cores() -> anyhow::Result<Cores> {
    let allowed = rustix::thread::sched_getaffinity(None).context("the kernel tells the cores")?;
    let usable: Vec<usize> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    let at = |wanted: usize| usable[wanted.min(usable.len() - 1)];
    Ok(Cores { proxy: at(0), load: at(1), upstream: at(2), control_plane: at(3) })
}

fn pin_self(core: usize) -> anyhow::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set).context("a process may choose among its cores")
}

/// Processor time of a process, user and system, in microseconds.
pub fn cpu_micros(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets and may hold anything, so count behind it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    // Linux reports hundredths of a second to user space on every architecture.
    Some((user + system) * 10_000)
}

pub fn resident_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmRSS:")
}

/// The most memory that a process ever had.
fn peak_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmHWM:")
}

fn status_bytes(pid: u32, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

#[allow(clippy::print_stdout, reason = "the parent reads it there")]
fn announce(value: &impl Serialize) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush().context("the parent listens")
}
