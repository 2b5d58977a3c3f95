//! What a proxy does while nobody resolves names any more: a server that is known by a name is called over new connections,
//! once while its name resolves, once while the resolver refuses and once while it swallows what it is asked. The proxy has
//! its own `/etc/hosts` and `/etc/resolv.conf`. Needs root, and a free port 53 on 127.0.0.9.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use serde_json::json;
use tokio::net::UdpSocket;
use tokio::time::Instant;

use crate::programs::DataPlaneOptions;
use crate::{Era, Figure, McpServer, Waffles, WafflesOptions};

/// What the server is called.
const NAME: &str = "tools.waffles.test";
/// Where the resolver is, or is not.
const RESOLVER: &str = "127.0.0.9";

/// Kills the resolver.
#[derive(Debug, Args)]
pub(super) struct DeadResolver {
    /// Calls in each state of the resolver, all over new connections.
    #[arg(long, default_value_t = 200)]
    calls: usize,
}

impl DeadResolver {
    /// Prints and notes which calls failed.
    #[allow(clippy::print_stdout, reason = "that is what it is run for")]
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let script = r#"echo "127.0.0.1 localhost tools.waffles.test" > {dir}/hosts
            echo "nameserver 127.0.0.9" > {dir}/resolv.conf
            mount --bind {dir}/hosts /etc/hosts && mount --bind {dir}/resolv.conf /etc/resolv.conf && exec "$0" "$@""#;
        let data_plane = DataPlaneOptions {
            wrap: ["unshare", "--mount", "sh", "-c", script].map(str::to_owned).into(),
            args: ["--log", "error"].map(str::to_owned).into(),
            ..DataPlaneOptions::default()
        };
        let waffles = Waffles::with(WafflesOptions { data_plane, ..WafflesOptions::default() }).await;
        let mut server = McpServer::start().await;
        let url = format!("http://{NAME}:{}/mcp", server.addr().port());
        waffles.add_server("demo", &url).await;
        let hosts = waffles.proxies[0].data_dir().join("hosts");

        let (failed, well) = self.calls(&waffles, &mut server).await?;
        ensure!(failed == 0, "{failed} calls fail while the name resolves");
        forget_names(&hosts)?;
        let (refused, slowest_refused) = self.calls(&waffles, &mut server).await?;
        let silent =
            UdpSocket::bind((RESOLVER, 53)).await.context("no port 53 for a resolver that says nothing")?;
        // What was found out of the one that refuses is left alone for a while.
        tokio::time::sleep(Duration::from_secs(6)).await;
        let (swallowed, slowest_swallowed) = self.calls(&waffles, &mut server).await?;
        let mut asked = [0; 512];
        ensure!(silent.try_recv(&mut asked).is_ok(), "the resolver was not asked, so nothing was tried");
        println!(
            "{} calls each, over new connections: {refused} failed while the resolver refuses, {swallowed} while it says \
             nothing; slowest {slowest_refused:.1?} and {slowest_swallowed:.1?}, while it works {well:.1?}",
            self.calls
        );
        Figure {
            promise: "P21".into(),
            what: "failed calls over new connections, the resolver dead or silent".into(),
            goal: "0".into(),
            measured: (refused + swallowed).to_string(),
            extent: format!("{} calls, the slowest {slowest_swallowed:.1?}", 2 * self.calls),
            met: refused + swallowed == 0,
        }
        .note();
        Ok(())
    }

    /// How many of some calls failed, each over a connection of its own, and how long the slowest took.
    async fn calls(&self, waffles: &Waffles, server: &mut McpServer) -> anyhow::Result<(usize, Duration)> {
        let client = waffles.client("demo").of(Era::Stateless).await;
        let (mut failed, mut slowest) = (0, Duration::ZERO);
        for _ in 0..self.calls {
            server.restart().await;
            let (started, before) = (Instant::now(), server.accepted());
            failed += usize::from(client.call("echo", json!({"message": "x"})).await?.status != 200);
            slowest = slowest.max(started.elapsed());
            ensure!(failed > 0 || server.accepted() > before, "no new connection was made");
        }
        Ok((failed, slowest))
    }
}

/// Takes the server's name out of the file, which the proxy sees under another path.
fn forget_names(hosts: &Path) -> anyhow::Result<()> {
    std::fs::write(hosts, "127.0.0.1 localhost\n").context("the proxy's hosts cannot be changed")
}
