//! What a proxy does while the network between it and its control plane is broken: both ways, one way, and with a part of
//! the packets lost. The proxy stands in a network namespace of its own, as on another machine, and reaches the control plane
//! and the rest of the world over two links, of which only the first breaks. Needs root, and iproute2.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde_json::Value;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::{Instant, interval, sleep};
use waffles_proto::audit::v1::{EventFilter, Outcome};
use waffles_proto::registry::v1::ServerSpec;
use waffles_runtime::task;

use crate::programs::{ControlPlaneOptions, DataPlane, DataPlaneOptions, http_client};
use crate::traffic::{Plan, Traffic};
use crate::waffles::server_at;
use crate::{Figure, McpServer, PATIENCE, Waffles, WafflesOptions, eventually};

/// What the promise allows between the break and its notice.
const NOTICED: Duration = Duration::from_secs(20);
/// What it allows between the mend and the first use of what has changed meanwhile.
const CAUGHT_UP: Duration = Duration::from_secs(3);
/// No network card has this address, so what is sent there is lost without a word.
const NOWHERE: &str = "02:00:00:00:00:01";
/// Of each slice of time the link is broken for a part.
const SLICE: Duration = Duration::from_millis(100);
const LOST: Duration = Duration::from_millis(30);

/// Between two calls.
const PAUSE: Duration = Duration::from_millis(5);

/// Breaks the network in each way.
#[derive(Debug, Args)]
pub(super) struct Partition {
    /// Seconds that each break lasts, beyond its notice.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

/// How the link is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    BothWays,
    Up,
    Down,
    Lossy,
}

impl Break {
    const ALL: [Self; 4] = [Self::BothWays, Self::Up, Self::Down, Self::Lossy];

    fn name(self) -> &'static str {
        match self {
            Self::BothWays => "both ways",
            Self::Up => "from proxy to control plane",
            Self::Down => "from control plane to proxy",
            Self::Lossy => "for 30 ms of each 100 ms",
        }
    }

    /// Whether packets from the proxy are lost, and those to it.
    fn loses(self) -> (bool, bool) {
        match self {
            Self::BothWays | Self::Lossy => (true, true),
            Self::Up => (true, false),
            Self::Down => (false, true),
        }
    }
}

/// A machine of its own, with a link to the control plane and one to everybody else.
struct Host {
    name: String,
    /// Our end of the first link.
    link: String,
    /// Of both links.
    net: [u8; 2],
}

impl Host {
    async fn new() -> anyhow::Result<Self> {
        let number = std::process::id() % 100;
        let third = u8::try_from(number)? * 2;
        let host = Self {
            name: format!("waffles-{number}"),
            link: format!("wfl-c{number}"),
            net: [third, third + 1],
        };
        let (name, data) = (&host.name, format!("wfl-d{number}"));
        ip(&format!("netns add {name}")).await?;
        ip(&format!("-n {name} link set lo up")).await?;
        for (net, (ours, theirs)) in host.net.iter().zip([(&host.link, "c0"), (&data, "d0")]) {
            ip(&format!("link add {ours} type veth peer name {theirs} netns {name}")).await?;
            ip(&format!("addr add 10.77.{net}.1/24 dev {ours}")).await?;
            ip(&format!("link set {ours} up")).await?;
            ip(&format!("-n {name} addr add 10.77.{net}.2/24 dev {theirs}")).await?;
            ip(&format!("-n {name} link set {theirs} up")).await?;
        }
        Ok(host)
    }

    fn ours(&self, link: usize) -> IpAddr {
        Ipv4Addr::new(10, 77, self.net[link], 1).into()
    }

    fn its(&self, link: usize) -> IpAddr {
        Ipv4Addr::new(10, 77, self.net[link], 2).into()
    }

    async fn cut(&self, (up, down): (bool, bool)) -> anyhow::Result<()> {
        let Self { name, link, .. } = self;
        if up {
            ip(&format!("-n {name} neigh replace {} lladdr {NOWHERE} dev c0 nud permanent", self.ours(0)))
                .await?;
        }
        if down {
            ip(&format!("neigh replace {} lladdr {NOWHERE} dev {link} nud permanent", self.its(0))).await?;
        }
        Ok(())
    }

    async fn mend(&self, (up, down): (bool, bool)) -> anyhow::Result<()> {
        let Self { name, link, .. } = self;
        if up {
            ip(&format!("-n {name} neigh del {} dev c0", self.ours(0))).await?;
        }
        if down {
            ip(&format!("neigh del {} dev {link}", self.its(0))).await?;
        }
        Ok(())
    }

    /// Loses packets of a part of the time, for as long as it is polled.
    async fn lose(&self) -> anyhow::Result<()> {
        let mut slices = interval(SLICE);
        loop {
            slices.tick().await;
            self.cut((true, true)).await?;
            sleep(LOST).await;
            self.mend((true, true)).await?;
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The links end with it.
        drop(std::process::Command::new("ip").args(["netns", "del", &self.name]).status());
    }
}

async fn ip(arguments: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output().await;
    let output = output.context("`ip` of iproute2 is needed, and root")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {told}");
    Ok(())
}

/// Brings whoever connects there to an address of this machine.
#[expect(clippy::disallowed_methods, reason = "both ends are the benchmark's own")]
async fn forward(from: IpAddr, to: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((from, 0)).await?;
    let addr = listener.local_addr()?;
    task::spawn("forward", async move {
        while let Ok((mut client, _)) = listener.accept().await {
            task::spawn("forwarded", async move {
                if let Ok(mut server) = TcpStream::connect(to).await {
                    // How it ends is for the two ends to notice.
                    drop(copy_bidirectional(&mut client, &mut server).await);
                }
            });
        }
    });
    Ok(addr)
}

/// What one break showed.
struct Shown {
    noticed: Option<Duration>,
    caught_up: Duration,
}

impl Partition {
    /// Prints and notes what calls, and changes, went through.
    #[allow(clippy::print_stdout, reason = "that is what it is run for")]
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let host = Host::new().await?;
        let server = McpServer::start().await;
        let upstream = forward(host.ours(1), server.addr()).await?;
        let control_plane = ControlPlaneOptions {
            args: ["--log".into(), "warn".into(), "--public-host".into(), host.ours(0).to_string()].into(),
            ..ControlPlaneOptions::default()
        };
        let options = WafflesOptions { control_plane, proxies: 0, ..WafflesOptions::default() };
        let mut waffles = Waffles::with(options).await;
        let door = forward(host.ours(0), waffles.control_plane.grpc).await?;
        let options = DataPlaneOptions {
            wrap: ["ip", "netns", "exec", &host.name].map(str::to_owned).into(),
            listen: Some(host.its(1)),
            ..DataPlaneOptions::default()
        };
        let token = waffles.control_plane.enroll("default").await;
        let mut proxy = DataPlane::start_at(format!("https://{door}"), &token, options).await;
        proxy.ready().await;
        waffles.proxies.push(proxy);
        let url = format!("http://{upstream}/mcp");
        waffles.add_server("demo", &url).await;

        let traffic = Traffic::start(&Plan {
            proxies: vec![waffles.proxies[0].mcp],
            server: "demo".into(),
            key: waffles.admin.secret.clone(),
            callers: 1,
            pause: PAUSE,
        });
        let mut all = Vec::new();
        for (number, kind) in Break::ALL.into_iter().enumerate() {
            let shown = self.once(&host, &waffles, kind, server_at(&format!("late-{number}"), &url)).await?;
            let noticed = shown.noticed.map_or("not noticed, nor had to be".to_owned(), |after| {
                format!("noticed after {after:.1?}")
            });
            println!("broken {}: {noticed}; caught up {:.2?} after the mend", kind.name(), shown.caught_up);
            all.push(shown);
        }
        let (made, failed) = traffic.stop().await;
        let answered = made - failed.len();
        let calls = EventFilter { action: "mcp.tools/call".into(), ..EventFilter::default() };
        let audited = || async {
            let events = waffles.audit_search(calls.clone()).await?;
            let found = events.iter().filter(|event| event.outcome() == Outcome::Ok).count();
            ensure!(found >= answered, "{found} of {answered} calls are in the trail");
            Ok(found)
        };
        let found = eventually(PATIENCE, audited).await;
        println!("{answered} calls answered, {} failed, {found} in the trail", failed.len());
        if let Some(first) = failed.first() {
            println!("the first: {first}");
        }
        note(&all, answered, failed.len(), found);
        Ok(())
    }

    async fn once(
        &self,
        host: &Host,
        waffles: &Waffles,
        kind: Break,
        late: ServerSpec,
    ) -> anyhow::Result<Shown> {
        let broken = Instant::now();
        let noticed = if kind == Break::Lossy {
            let lossy = async {
                sleep(NOTICED).await;
                waffles.register(late.clone()).await;
            };
            tokio::select! {
                error = host.lose() => bail!("the link cannot be broken: {error:?}"),
                () = lossy => {}
            }
            // It may have been between the two.
            host.mend((true, true)).await.ok();
            None
        } else {
            host.cut(kind.loses()).await?;
            let noticed = until_noticed(waffles, broken).await?;
            waffles.register(late.clone()).await;
            sleep(Duration::from_secs(self.seconds)).await;
            host.mend(kind.loses()).await?;
            Some(noticed)
        };
        let mended = Instant::now();
        waffles.served_by(&waffles.proxies[0], &late.name).await;
        let caught_up = mended.elapsed();
        waffles.settled().await;
        Ok(Shown { noticed, caught_up })
    }
}

/// Waits until the proxy says that it has lost the control plane.
async fn until_noticed(waffles: &Waffles, since: Instant) -> anyhow::Result<Duration> {
    let (client, url) = (http_client(), waffles.proxies[0].admin_url("/ready"));
    while since.elapsed() < NOTICED * 2 {
        let report: Value = client.get(&url).send().await?.json().await?;
        if report["detail"]["connected"] == false {
            return Ok(since.elapsed());
        }
        sleep(Duration::from_millis(100)).await;
    }
    bail!("the proxy does not notice that its control plane is gone")
}

fn note(all: &[Shown], answered: usize, failed: usize, audited: usize) {
    let extent = format!("{} breaks of the network, one proxy", all.len());
    let figure = |what: &str, goal: String, measured: String, met| {
        Figure { promise: "P02".into(), what: what.into(), goal, measured, extent: extent.clone(), met }
            .note();
    };
    let noticed = all.iter().filter_map(|shown| shown.noticed).max().unwrap_or_default();
    let caught_up = all.iter().map(|shown| shown.caught_up).max().unwrap_or_default();
    let goal = |most: Duration| format!("≤ {} s", most.as_secs());
    figure(
        "failed calls while the network is partitioned",
        "0".into(),
        format!("{failed} of {answered}"),
        failed == 0 && answered > 0,
    );
    figure(
        "answered calls missing from the audit after it",
        "0".into(),
        (answered.saturating_sub(audited)).to_string(),
        audited >= answered,
    );
    figure("a partition is noticed", goal(NOTICED), format!("{noticed:.1?}"), noticed <= NOTICED);
    figure(
        "what was changed meanwhile is served after it",
        goal(CAUGHT_UP),
        format!("{caught_up:.2?}"),
        caught_up <= CAUGHT_UP,
    );
}
