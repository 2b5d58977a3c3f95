//! The demo server of `up --demo`: its socket, its place in the registry, and whether calls reach it.

use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tracing_subscriber::EnvFilter;
use waffles_proto::registry::v1::registry_service_client::RegistryServiceClient;
use waffles_proto::registry::v1::{
    CreateServerRequest, Endpoint, GetServerRequest, ServerSpec, Transport, UpdateServerRequest,
};

use super::{POLL, READY_LIMIT, Signals, url};
use crate::client::Link;
use crate::failure::{Failure, is_missing};
use crate::mcp::{self, Era};
use crate::output::line;

/// Its name in the registry.
const NAME: &str = "demo";

/// The demo's socket, on the port of last time if that is free.
pub(super) async fn listen(home: &Path) -> anyhow::Result<TcpListener> {
    let path = home.join("demo.port");
    let last = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u16>().ok());
    let listener = match TcpListener::bind(("127.0.0.1", last.unwrap_or(0))).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(("127.0.0.1", 0)).await.context("cannot listen for the demo server")?,
    };
    let port = listener.local_addr()?.port();
    std::fs::write(&path, format!("{port}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(listener)
}

pub(super) fn address(listener: &TcpListener) -> anyhow::Result<String> {
    Ok(format!("{}/mcp", url(listener.local_addr()?)))
}

/// Registers the demo server, or tells the registry where it is now. Whether it is enabled stays as it was.
pub(super) async fn register(link: Link, url: &str) -> anyhow::Result<()> {
    let mut registry = RegistryServiceClient::new(link);
    let endpoints = vec![Endpoint { url: url.to_owned(), weight: 1, zone: String::new() }];
    match registry.get_server(GetServerRequest { name: NAME.to_owned() }).await {
        Ok(answer) => {
            let server = answer.into_inner().server.unwrap_or_default();
            let mut spec = server.spec.unwrap_or_default();
            if spec.endpoints == endpoints {
                return Ok(());
            }
            spec.endpoints = endpoints;
            spec.credential = None;
            let request = UpdateServerRequest { spec: Some(spec), version: server.version };
            registry.update_server(request).await.map_err(Failure::from)?;
        }
        Err(status) if is_missing(&status) => {
            let spec = ServerSpec {
                name: NAME.to_owned(),
                description: "The demo server of `wafflectl up --demo`".to_owned(),
                tags: vec![NAME.to_owned()],
                transport: Transport::Auto.into(),
                endpoints,
                ..ServerSpec::default()
            };
            let request = CreateServerRequest { spec: Some(spec), disabled: false };
            registry.create_server(request).await.map_err(|status| {
                let failure = Failure::from(status);
                let message = format!("cannot register the demo server: {failure}");
                Failure::failed(message).next("Start without --demo.")
            })?;
        }
        Err(status) => return Err(Failure::from(status).into()),
    }
    Ok(())
}

/// Waits until a call through the data plane reaches the demo server.
pub(super) async fn until_served(mcp: &str, key: &SecretString) -> anyhow::Result<()> {
    let end = Instant::now() + READY_LIMIT;
    loop {
        let error = match mcp::connect(mcp, NAME, key, Era::Stateless).await {
            Ok(peer) => {
                peer.close().await;
                return Ok(());
            }
            Err(error) => error,
        };
        if Instant::now() > end {
            return Err(error.context("the demo server is not served"));
        }
        tokio::time::sleep(POLL).await;
    }
}

pub(super) fn log_to(path: &Path) -> anyhow::Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let filter = EnvFilter::new("warn,wafflectl=info");
    let log = tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(Arc::new(file));
    log.try_init().map_err(|error| anyhow::anyhow!(error))
}

/// `demo-server`: the demo alone, for tests.
pub(crate) async fn run_alone(addr: SocketAddr) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let filter = EnvFilter::new("warn,wafflectl=info");
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.try_init().map_err(|error| anyhow::anyhow!(error))?;
    let listener = TcpListener::bind(addr).await.with_context(|| format!("cannot listen on {addr}"))?;
    line(&serde_json::json!({ "url": address(&listener)? }).to_string())?;
    crate::demo::serve(listener, async move { signals.next().await }).await
}
