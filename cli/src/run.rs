//! `run`: an MCP server that speaks on standard streams, run on this host, served over HTTP, and registered as long as it
//! runs. This command is the only way by which Waffles starts a program, and whoever gives it starts it.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;
use url::Url;
use waffles_core::credential::random_text;
use waffles_core::is_dns_label;

use crate::args::{Format, Global};
use crate::bridge::{self, Bridge};
use crate::client::{Chosen, Client};
use crate::failure::Failure;
use crate::output::shape::Running;
use crate::output::{note, print, print_one};
use crate::stdio;
use crate::up::Signals;
use registration::Registration;

pub(crate) mod registration;

/// Letters of the token that protects the port: 256 random bits.
const TOKEN: usize = 43;
/// How long taking the server out of service may take.
const GOODBYE: Duration = Duration::from_secs(5);

/// Flags of `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The server's name: a DNS label.
    name: String,
    /// Where the bridge listens for the data plane; port 0 is any free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The address that data planes on other hosts reach the bridge at, such as http://HOST:PORT/mcp.
    #[arg(long, value_name = "URL")]
    advertise: Option<Url>,
    /// What the server is, for people.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// How many sessions, each with a run of the program, there may be at a time.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    max_children: u16,
    /// Retire the server at the end, rather than disable it. Its name may then stay taken.
    #[arg(long)]
    forget: bool,
    /// The program and its arguments. Without it: the imported program of this name.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// `run`.
pub(crate) async fn run(global: &Global, args: RunArgs) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let filter = EnvFilter::new("warn,wafflectl=info");
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(std::io::stderr().is_terminal()).try_init().map_err(|error| anyhow::anyhow!(error))?;
    let (bridge, listener, registration) = tokio::select! {
        started = start(global, &args) => started?,
        () = signals.next() => return Ok(()),
    };
    let ended = tokio::select! {
        ended = bridge::serve(bridge.clone(), listener) => ended,
        () = bridge.sweep() => Ok(()),
        () = signals.next() => Ok(()),
    };
    let goodbye = async {
        match tokio::time::timeout(GOODBYE, registration.end(global, args.forget)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => left_behind(&args.name, &format!("{error:#}")),
            Err(_) => left_behind(&args.name, "the control plane does not answer"),
        }
        bridge.end().await;
    };
    // A second signal means: at once.
    tokio::select! {
        () = goodbye => {}
        () = signals.next() => {}
    }
    ended
}

fn left_behind(name: &str, reason: &str) {
    note(&format!(
        "Server {name} is still registered, though nothing serves it: {reason}\n  The next `wafflectl run {name}` \
         takes it up; `wafflectl server disable {name}` stops calls to it."
    ));
}

async fn start(
    global: &Global,
    args: &RunArgs,
) -> anyhow::Result<(std::sync::Arc<Bridge>, TcpListener, Registration)> {
    let name = &args.name;
    if !is_dns_label(name) {
        let message = format!("{name:?} is no server name");
        return Err(Failure::usage(message).next("Give 1 to 63 of a-z, 0-9 and inner hyphens.").into());
    }
    let command = command(global, args)?;
    let client = Client::open(global).await?;
    // Before the program is started, for nothing, maybe at length.
    registration::find(&client, name).await?;
    let eras = bridge::probe(&command, name).await?;
    let listener = TcpListener::bind(args.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", args.listen))?;
    let url = endpoint(args, listener.local_addr()?)?;
    let token = random_text(TOKEN)?;
    let what = command.program.to_string_lossy().into_owned();
    let registration = Registration {
        name: name.clone(),
        url: url.to_string(),
        // Arguments may hold secrets.
        description: args.description.clone().unwrap_or_else(|| format!("{what}, run by wafflectl")),
    };
    let bridge = Bridge::new(name, command, eras, token.clone(), usize::from(args.max_children));
    let enabled = registration.begin(&client, token).await?;
    let mcp = client.chosen.context.mcp.as_ref();
    let running = Running {
        name: name.clone(),
        url: url.to_string(),
        eras: [("sessions", eras.sessions), ("stateless", eras.stateless)]
            .into_iter()
            .filter_map(|(era, speaks)| speaks.then_some(era))
            .collect(),
        enabled,
        mcp: mcp.map(|mcp| format!("{}/servers/{name}", mcp.trim_end_matches('/'))),
    };
    match global.output {
        Format::Json => print_one(Format::Json, &running)?,
        format => print(format, &running)?,
    }
    Ok((bridge, listener, registration))
}

fn command(global: &Global, args: &RunArgs) -> anyhow::Result<bridge::Command> {
    if let Some((program, rest)) = args.command.split_first() {
        return Ok(bridge::Command { program: program.clone(), args: rest.to_vec(), ..Default::default() });
    }
    let path = stdio::path(&Chosen::find(global)?.store);
    let program = stdio::load(&path)?.servers.remove(&args.name).ok_or_else(|| {
        let message = format!("no program is given, and {} knows none for {}", path.display(), args.name);
        Failure::usage(message).next(format!("Give it: `wafflectl run {} -- COMMAND ARGS…`.", args.name))
    })?;
    Ok(program.into())
}

/// The address that is registered.
fn endpoint(args: &RunArgs, listening: SocketAddr) -> anyhow::Result<Url> {
    if let Some(url) = &args.advertise {
        return Ok(url.clone());
    }
    if listening.ip().is_unspecified() {
        let message =
            format!("{listening} is every address of this host, and none that a data plane can call");
        return Err(Failure::usage(message)
            .next("Say which one with --advertise http://HOST:PORT/mcp.")
            .into());
    }
    Ok(Url::parse(&format!("http://{listening}{}", bridge::PATH))?)
}
