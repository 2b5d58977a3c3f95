//! What healthy servers notice of a broken one beside them: one server's latency at a fixed rate, while another one behind
//! the same proxy is asked as often as ever and hangs, is slow, breaks off or floods. To compare with: the same while that
//! other one is well. All in interleaved rounds. That other one and who asks it take only what their cores have left, for in
//! life they stand on other machines: what is measured is what reaches the healthy one through the proxy.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;
use tokio::time::{Instant, interval};
use waffles_core::credential::KeyLimits;
use waffles_runtime::task;

use super::compare::median;
use super::{
    Bench, Cores, Listening, Measured, Target, alone, announce, announced, child, cores, part, pin_self,
};
use crate::mcp_client::stateless_meta;
use crate::programs::{self, Program, http_client};
use crate::watchdog::Dir;
use crate::{Behaviour, Era, Figure, McpServer, Seed};

/// What the promise allows.
const GOAL: f64 = 1.2;
/// How long a caller of the other server waits before it goes away.
const PATIENCE: Duration = Duration::from_secs(5);

/// Compares.
#[derive(Debug, Args)]
pub(super) struct Neighbours {
    /// Questions a second to the healthy server.
    #[arg(long, default_value_t = 500.0)]
    rate: f64,
    /// Questions a second to the server beside it.
    #[arg(long, default_value_t = 20.0)]
    beside: f64,
}

/// How the server beside the healthy one fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Fare {
    Well,
    Hung,
    Slow,
    Resetting,
    Flooding,
}

impl Fare {
    const ALL: [Self; 5] = [Self::Well, Self::Hung, Self::Slow, Self::Resetting, Self::Flooding];

    fn name(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Hung => "hung",
            Self::Slow => "slow",
            Self::Resetting => "resetting",
            Self::Flooding => "flooding",
        }
    }

    fn behaviour(self) -> Behaviour {
        match self {
            Self::Well => Behaviour::Echo,
            Self::Hung => Behaviour::Never,
            Self::Slow => Behaviour::Slow(Duration::from_millis(500)),
            Self::Resetting => Behaviour::ResetMidStream,
            Self::Flooding => Behaviour::Flood(200),
        }
    }
}

/// A server that is well or not.
#[derive(Debug, Args)]
pub(super) struct Other {
    #[arg(long)]
    fare: Fare,
}

impl Other {
    pub(super) async fn serve(&self) -> anyhow::Result<()> {
        let server = McpServer::start().await;
        server.on_tool("echo", self.fare.behaviour());
        announce(&Listening { addr: server.addr() })?;
        std::future::pending().await
    }
}

/// Asks at a fixed rate and takes whatever comes.
#[derive(Debug, Args)]
pub(super) struct Callers {
    #[arg(long)]
    url: String,
    /// Sent as `Authorization: Bearer`.
    #[arg(long, env = "WAFFLES_BENCH_BEARER", hide_env_values = true)]
    bearer: String,
    #[arg(long)]
    rate: f64,
}

impl Callers {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let client = http_client();
        let params = json!({"name": "echo", "arguments": {"message": "x"}, "_meta": stateless_meta()});
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string();
        let mut due = interval(Duration::from_secs_f64(1.0 / self.rate));
        loop {
            due.tick().await;
            let request = client
                .post(&self.url)
                .bearer_auth(&self.bearer)
                .header("content-type", "application/json")
                .header("accept", "application/json, text/event-stream")
                .header("mcp-protocol-version", Era::Stateless.revision())
                .header("mcp-method", "tools/call")
                .header("mcp-name", "echo")
                .body(body.clone())
                .timeout(PATIENCE);
            task::spawn("caller", async move {
                if let Ok(answer) = request.send().await {
                    // Read to its end or not: a broken server's answer has none.
                    drop(answer.bytes().await);
                }
            });
        }
    }
}

/// Calls to a server, by the proxy's metrics.
fn exchanges(metrics: &str, server: &str) -> u64 {
    let label = format!("server=\"{server}\"");
    let lines =
        metrics.lines().filter(|line| line.starts_with("waffles_exchanges_total{") && line.contains(&label));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

impl Neighbours {
    /// Prints and notes what the healthy server notices.
    #[allow(clippy::print_stdout, reason = "that is what it is run for")]
    pub(super) async fn run(&self, bench: &Bench) -> anyhow::Result<()> {
        let cores = cores()?;
        pin_self(cores.load)?;
        let dir = Dir::new("waffles-bench-");
        let (_upstream, addr) = child("upstream", &[], cores.upstream, &dir).await;
        let mut seed = Seed::new();
        let caller = seed.principal("caller", "user");
        let key = seed.key(caller, KeyLimits::default());
        seed.server("healthy", &format!("http://{addr}/mcp"), |_| {});
        let mut others = Vec::new();
        for fare in Fare::ALL {
            let arguments = ["--fare".to_owned(), fare.name().to_owned()];
            let command = programs::idle(&part("other", &arguments, cores.upstream));
            let (program, addr) = announced("other", command, &dir).await;
            seed.server(fare.name(), &format!("http://{addr}/mcp"), |_| {});
            others.push(program);
        }
        let proxy = alone(&seed, &cores, &["--log", "error"]).await;
        let target = Target::of(&proxy, "healthy", key.clone());
        let mut p99 = vec![Vec::new(); Fare::ALL.len()];
        let began = Instant::now();
        for round in 0..bench.rounds() {
            // Which of them comes first changes, so that none has the warmer machine.
            for step in 0..Fare::ALL.len() {
                let which = (round + step) % Fare::ALL.len();
                let fare = Fare::ALL[which];
                let _callers = self.callers(&proxy.server_url(fare.name()), &key, &cores, &dir);
                let measured = self.ask(bench, &target, &cores, &dir).await?;
                println!(
                    "round {}, beside a server that is {}: p50 {:.0} µs, p99 {:.0} µs, {} calls",
                    round + 1,
                    fare.name(),
                    measured.p50,
                    measured.p99,
                    measured.calls,
                );
                p99[which].push(measured.p99);
            }
        }
        let metrics = proxy.metrics().await;
        let calls = Fare::ALL.map(|fare| exchanges(&metrics, fare.name()));
        for (fare, calls_here) in Fare::ALL.iter().zip(calls) {
            println!("calls to the server that is {}: {calls_here}", fare.name());
            anyhow::ensure!(calls_here * 10 > calls[0] * 8, "it was called less than the one that is well");
        }
        let normal = p99[0].clone();
        for (fare, found) in Fare::ALL.iter().zip(&p99).skip(1) {
            // Of a short round the hundredth part is a few calls, so each side is settled before the two are compared.
            let ratio = median(found.clone()) / median(normal.clone());
            let rounds = bench.rounds();
            println!(
                "p99 of a healthy server beside a {} one: × {ratio:.3}, medians of {rounds} rounds",
                fare.name()
            );
            Figure {
                promise: "P22".into(),
                what: format!("p99 of a healthy server beside a {} one", fare.name()),
                goal: format!("≤ {GOAL} × normal"),
                measured: format!("{ratio:.2} ×"),
                extent: format!(
                    "{rounds} interleaved rounds, {:.0} and {:.0} calls/s, {:.0} s in all",
                    self.rate,
                    self.beside,
                    began.elapsed().as_secs_f64(),
                ),
                met: ratio <= GOAL,
            }
            .note();
        }
        Ok(())
    }

    /// Who asks the server beside the healthy one; stops when it is dropped.
    fn callers(&self, url: &str, key: &str, cores: &Cores, dir: &Dir) -> Program {
        let arguments = ["--url", url, "--rate", &self.beside.to_string()].map(str::to_owned);
        let mut command = programs::idle(&part("callers", &arguments, cores.load));
        command.env("WAFFLES_BENCH_BEARER", key);
        Program::spawn("callers", command, dir.path().join("callers.log"))
    }

    async fn ask(
        &self,
        bench: &Bench,
        target: &Target,
        cores: &Cores,
        dir: &Dir,
    ) -> anyhow::Result<Measured> {
        bench.load(target, (Era::Stateless, super::Shape::Echo), Some(self.rate), cores, dir).await
    }
}
