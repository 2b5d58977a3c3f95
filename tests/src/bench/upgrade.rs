//! A rolling upgrade under load: two control planes on one Postgres and three proxies, all of the version before, of which
//! one after the other becomes what was built here, the first proxy before any control plane. Postgres is restarted in the
//! middle, one proxy goes back and forth once more, and after each step a change has to reach every proxy. Run it under
//! `with-services`, which ends the Postgres.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use crate::programs::{ControlPlane, ControlPlaneOptions, DataPlane, DataPlaneOptions};
use crate::traffic::{Plan, Traffic};
use crate::waffles::server_at;
use crate::{Figure, McpServer, PATIENCE, Postgres, Waffles, WafflesOptions, eventually};

/// Upgrades.
#[derive(Debug, Args)]
pub(super) struct Upgrade {
    /// Where the programs of the version before are.
    #[arg(long)]
    previous: PathBuf,
    /// Calls meanwhile.
    #[arg(long, default_value_t = 300_000)]
    calls: usize,
}

/// What is upgraded, or goes back.
#[derive(Debug, Clone, Copy)]
enum Step {
    Proxy(usize),
    ProxyBack(usize),
    FirstControlPlane,
    SecondControlPlane,
    Postgres,
}

const STEPS: [Step; 8] = [
    Step::Proxy(0),
    Step::FirstControlPlane,
    Step::Postgres,
    Step::Proxy(1),
    Step::ProxyBack(0),
    Step::SecondControlPlane,
    Step::Proxy(2),
    Step::Proxy(0),
];

impl Upgrade {
    /// Prints and notes what was lost.
    #[allow(clippy::print_stdout, reason = "that is what it is run for")]
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let postgres = Postgres::shared().await;
        let database_url = Some(postgres.database().await);
        let previous = Some(self.previous.clone());
        let control_plane =
            ControlPlaneOptions { database_url, programs: previous.clone(), ..Default::default() };
        let data_plane = DataPlaneOptions {
            args: ["--linger", "500ms", "--max-lag", "10s"].map(str::to_owned).to_vec(),
            programs: previous,
            ..DataPlaneOptions::default()
        };
        let options = WafflesOptions {
            control_plane: control_plane.clone(),
            proxies: 2,
            data_plane: data_plane.clone(),
        };
        let mut waffles = Waffles::with(options).await;
        // Of one database there is one master key.
        let key = waffles.control_plane.data_dir().join("master.key");
        let control_plane = ControlPlaneOptions {
            args: ["--master-key-file".to_owned(), key.to_string_lossy().into_owned()].into(),
            ..control_plane
        };
        let mut second = ControlPlane::start(control_plane).await;
        let token = waffles.control_plane.enroll("default").await;
        let named = DataPlaneOptions { name: Some("proxy-2".into()), ..data_plane };
        let mut proxy = DataPlane::start_at(second.channel_url(), &token, named).await;
        proxy.ready().await;
        waffles.proxies.push(proxy);
        let server = McpServer::start().await;
        waffles.add_server("demo", &server.url()).await;

        let traffic = Traffic::start(&Plan {
            proxies: waffles.proxies.iter().map(|proxy| proxy.mcp).collect(),
            server: "demo".into(),
            key: waffles.admin.secret.clone(),
            callers: 8,
            pause: Duration::ZERO,
        });
        let mut slowest = Duration::ZERO;
        for (number, step) in STEPS.into_iter().enumerate() {
            traffic.reach(self.calls * (number + 1) / (STEPS.len() + 1)).await;
            match step {
                Step::Proxy(which) => replace(&mut waffles.proxies[which], None).await,
                Step::ProxyBack(which) => {
                    replace(&mut waffles.proxies[which], Some(self.previous.clone())).await
                }
                Step::FirstControlPlane => upgrade(&mut waffles.control_plane).await,
                Step::SecondControlPlane => upgrade(&mut second).await,
                Step::Postgres => postgres.restart().await,
            }
            let took = changed(&waffles, &format!("after-{number}"), &server.url()).await;
            println!("{step:?}: a change was everywhere after {took:.2?}; {} calls so far", traffic.made());
            slowest = slowest.max(took);
        }
        traffic.reach(self.calls).await;
        let (made, failures) = traffic.stop().await;
        for failure in failures.iter().take(5) {
            println!("failed: {failure}");
        }
        let extent = format!("{made} calls, {} steps", STEPS.len());
        let figure = |what: &str, goal: &str, measured: String, met| {
            Figure {
                promise: "P01".into(),
                what: what.into(),
                goal: goal.into(),
                measured,
                extent: extent.clone(),
                met,
            }
            .note();
        };
        figure(
            "calls lost in a rolling upgrade of everything, N and N-1 mixed",
            "0 of 300000",
            format!("{} of {made}", failures.len()),
            failures.is_empty(),
        );
        figure(
            "a change reaches proxies of both versions from control planes of both",
            "≤ 30 s",
            format!("{slowest:.2?} at the most, with the restarts"),
            slowest <= PATIENCE,
        );
        Ok(())
    }
}

/// Ends a proxy in good order and starts it from other programs, on its data.
async fn replace(proxy: &mut DataPlane, programs: Option<PathBuf>) {
    proxy.stop().await;
    proxy.use_programs(programs);
    proxy.restart().await;
    proxy.ready().await;
    // It serves before the next one goes.
    proxy.takes_connections().await;
}

async fn upgrade(control_plane: &mut ControlPlane) {
    control_plane.stop().await;
    control_plane.use_programs(None);
    control_plane.restart().await;
}

/// How long a new server takes to be served by every proxy. Writing is tried again, as an operator would: the control plane
/// may look for its database still.
async fn changed(waffles: &Waffles, name: &str, url: &str) -> Duration {
    let started = Instant::now();
    eventually(PATIENCE, || waffles.try_register(server_at(name, url))).await;
    for proxy in &waffles.proxies {
        waffles.served_by(proxy, name).await;
    }
    started.elapsed()
}
