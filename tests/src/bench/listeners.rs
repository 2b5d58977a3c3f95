//! What idle listeners cost: so many `subscriptions/listen` to one server through one proxy, each on a connection of its
//! own. They share one subscription at the server, and hear one change each.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::mcp_client::Stream;
use crate::{Era, Figure, McpServer, Seeded};

/// How many are opened at the same time.
const TOGETHER: usize = 32;

/// Opens listeners, waits, and counts.
#[derive(Debug, Args)]
pub(super) struct Listeners {
    /// How many.
    #[arg(long, default_value_t = 2000)]
    count: usize,
    /// Of how many seconds of idleness the processor time is counted.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

impl Listeners {
    /// Prints what they cost.
    #[allow(clippy::print_stdout, reason = "that is what it is run for")]
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let server = McpServer::only(Era::Stateless).await;
        let url = server.url();
        let waffles = Seeded::and(|seed, _| {
            seed.server("other", &url, |_| {});
        })
        .await;
        let pid = waffles.proxy.program.pid();
        drop(self.open(&waffles, TOGETHER).await?);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = super::resident_bytes(pid).unwrap_or_default() / 1024;
        let started = Instant::now();
        let mut streams = self.open(&waffles, self.count).await?;
        let took = started.elapsed();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let after = super::resident_bytes(pid).unwrap_or_default() / 1024;
        let cpu = super::cpu_micros(pid).unwrap_or_default();
        tokio::time::sleep(Duration::from_secs(self.seconds)).await;
        let idle = super::cpu_micros(pid).unwrap_or_default().saturating_sub(cpu);
        let subscriptions = server.listeners();
        let started = Instant::now();
        server.announce("notifications/tools/list_changed", json!({})).await;
        for stream in &mut streams {
            let told = stream.message().await?;
            anyhow::ensure!(told["method"] == "notifications/tools/list_changed", "{told}");
        }
        let heard = started.elapsed();
        let each = (after.saturating_sub(before)) as f64 / self.count as f64;
        let megabytes = after as f64 * 1024.0 / 1e6;
        let busy = idle as f64 / 1e4 / self.seconds.max(1) as f64;
        let extent = format!("{} of 10000 streams", self.count);
        let figure = |what: &str, goal: String, measured: String, met: bool| Figure {
            promise: "P13".into(),
            what: what.into(),
            goal,
            measured,
            extent: extent.clone(),
            met,
        };
        let most = 320.0 * self.count as f64 / 10_000.0;
        for figure in [
            figure("memory of an idle stream", "≤ 32 KiB".into(), format!("{each:.1} KiB"), each <= 32.0),
            figure(
                "memory of the proxy with them",
                format!("≤ {most:.0} MB"),
                format!("{megabytes:.0} MB"),
                megabytes <= most,
            ),
            figure(
                "processor time while idle",
                "≤ 3 % of a core".into(),
                format!("{busy:.2} %"),
                busy <= 3.0,
            ),
            figure(
                "one change reaches all",
                "≤ 2 s".into(),
                format!("{:.2} s", heard.as_secs_f64()),
                heard <= Duration::from_secs(2),
            ),
            figure(
                "subscriptions at the server",
                "≤ 100".into(),
                subscriptions.to_string(),
                subscriptions <= 100,
            ),
        ] {
            figure.note();
        }
        println!(
            "{} listeners opened in {took:.1?}; {before} KiB before, {after} KiB with them: {each:.1} KiB each; \
             {subscriptions} subscription at the server; {} ms of CPU in {} s of idleness; \
             a change reached all in {heard:.0?}",
            self.count,
            idle / 1000,
            self.seconds
        );
        Ok(())
    }

    async fn open(&self, waffles: &Seeded, count: usize) -> anyhow::Result<Vec<Stream>> {
        let client = crate::McpClient::new(&waffles.proxy.server_url("other")).with_bearer(&waffles.key);
        let client = client.of(Era::Stateless).await;
        let mut streams = Vec::with_capacity(count);
        for batch in 0..count.div_ceil(TOGETHER) {
            let ids = batch * TOGETHER..count.min((batch + 1) * TOGETHER);
            let opened = ids.map(|id| {
                let params = json!({"notifications": {"toolsListChanged": true}});
                client.ask_stream(Value::from(id), "subscriptions/listen", params)
            });
            for stream in futures_util::future::join_all(opened).await {
                let mut stream = stream?;
                let first = stream.message().await?;
                anyhow::ensure!(first["params"]["notifications"]["toolsListChanged"] == true, "{first}");
                streams.push(stream);
            }
        }
        Ok(streams)
    }
}
