//! What a list of many servers costs at one door: the first one against the slowest server asked directly, and those after
//! it. Servers of both eras, in this process.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::mcp_server::tool;
use crate::{Era, McpClient, McpServer, Seeded};

/// Lists, and counts the time.
#[derive(Debug, Args)]
pub(super) struct Federation {
    /// How many servers.
    #[arg(long, default_value_t = 20)]
    servers: usize,
    /// How many tools each of them has.
    #[arg(long, default_value_t = 200)]
    tools: usize,
    /// How many lists after the first.
    #[arg(long, default_value_t = 500)]
    lists: usize,
}

impl Federation {
    /// Prints what it takes.
    #[allow(clippy::print_stdout, reason = "that is what it is run for")]
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let mut servers = Vec::with_capacity(self.servers);
        for number in 0..self.servers {
            let server = McpServer::only(Era::BOTH[number % 2]).await;
            server
                .set_tools((0..self.tools).map(|tool_number| tool(&format!("tool_{tool_number}"))).collect());
            servers.push(server);
        }
        let urls: Vec<String> = servers.iter().map(McpServer::url).collect();
        let mut slowest = Duration::ZERO;
        for (number, url) in urls.iter().enumerate() {
            let client = McpClient::new(url).of(Era::BOTH[number % 2]).await;
            let started = Instant::now();
            client.ask(1, "tools/list", json!({})).await?.result();
            slowest = slowest.max(started.elapsed());
        }
        let waffles = Seeded::and(|seed, _| {
            for (number, url) in urls.iter().enumerate() {
                seed.server(&format!("server-{number:02}"), url, |_| {});
            }
        })
        .await;
        let client = McpClient::new(&format!("http://{}/mcp", waffles.proxy.mcp)).with_bearer(&waffles.key);
        let client = client.of(Era::Stateless).await;
        let started = Instant::now();
        let first = walk(&client).await?;
        let cold = started.elapsed();
        // The demo server that every seeded proxy has comes on top.
        anyhow::ensure!(first >= self.servers * self.tools, "{first} tools are listed");
        let mut times = Vec::with_capacity(self.lists);
        for _ in 0..self.lists {
            let started = Instant::now();
            client.ask(1, "tools/list", json!({})).await?.result();
            times.push(started.elapsed());
        }
        times.sort_unstable();
        let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
        println!(
            "{} servers, {first} tools: the first walk took {cold:.1?} (the slowest server alone {slowest:.1?}); \
             a page of 1000 after that p50 {:.1?}, p99 {:.1?}",
            self.servers,
            at(50),
            at(99)
        );
        Ok(())
    }
}

/// All pages; how many tools there are.
async fn walk(client: &McpClient) -> anyhow::Result<usize> {
    let (mut count, mut params) = (0, json!({}));
    loop {
        let page = client.ask(1, "tools/list", params).await?.result();
        count += page["tools"].as_array().map_or(0, Vec::len);
        match page.get("nextCursor") {
            Some(Value::String(cursor)) => params = json!({"cursor": cursor}),
            _ => return Ok(count),
        }
    }
}
