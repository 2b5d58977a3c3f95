//! An MCP client of the data plane, on the official SDK: an independent reader of what Waffles serves.

use std::ops::Deref;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use rmcp::model::{
    ClientCapabilities, ClientConfig, ElicitRequestParams, ElicitResult, ElicitationAction, ErrorData,
    Implementation, ProgressNotificationParam, ProtocolVersion,
};
use rmcp::service::{
    ClientInitializeError, ClientLifecycleMode, ClientServiceExt as _, NotificationContext, RequestContext,
    RunningService, ServiceError,
};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::{StreamableHttpClientTransportConfig, StreamableHttpError};
use rmcp::{ClientHandler, RoleClient};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

use crate::args::Global;
use crate::ask;
use crate::client::{Chosen, root};
use crate::failure::Failure;
use crate::output::{clean, note, shape};

/// How long opening a conversation may take.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// How long saying good-bye may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Which family of revisions to speak.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Era {
    /// The newest that the server has.
    #[default]
    Auto,
    /// 2025-11-25 and before.
    Sessions,
    /// 2026-07-28.
    Stateless,
}

/// What wafflectl is as a client: it shows progress, and passes questions on where a person can answer.
pub(crate) struct Listener;

impl ClientHandler for Listener {
    fn get_info(&self) -> ClientConfig {
        let implementation = Implementation::new("wafflectl", env!("CARGO_PKG_VERSION"));
        let mut capabilities = ClientCapabilities::default();
        if ask::can_ask() {
            capabilities = ClientCapabilities::builder().enable_elicitation().build();
        }
        ClientConfig::new(capabilities, implementation)
    }

    async fn create_elicitation(
        &self,
        request: ElicitRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        if !ask::can_ask() {
            return Ok(ElicitResult::new(ElicitationAction::Decline));
        }
        let answer = tokio::task::spawn_blocking(move || ask::ask(&request)).await;
        // A prompt that was left with Ctrl-C or at the end of input is a refusal to answer.
        Ok(answer.ok().and_then(Result::ok).unwrap_or_else(|| ElicitResult::new(ElicitationAction::Cancel)))
    }

    async fn on_progress(
        &self,
        progress: ProgressNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        let total = progress.total.map(|total| format!("/{total}")).unwrap_or_default();
        let message = progress.message.map(|text| format!(" {}", clean(&text))).unwrap_or_default();
        note(&format!("… {}{total}{message}", progress.progress));
    }
}

/// An open conversation with a server.
pub(crate) struct Peer(RunningService<RoleClient, Listener>);

impl Deref for Peer {
    type Target = RunningService<RoleClient, Listener>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Peer {
    /// The revision that both ends speak.
    pub(crate) fn protocol_version(&self) -> Option<String> {
        self.0.peer_info().map(|info| info.protocol_version.as_str().to_owned())
    }

    /// Ends the conversation, and its session where there is one.
    pub(crate) async fn close(self) {
        drop(tokio::time::timeout(CLOSE_LIMIT, self.0.cancel()).await);
    }
}

/// Opens a conversation with a server through the data plane of the context in use.
pub(crate) async fn open(global: &Global, server: &str, era: Era) -> anyhow::Result<Peer> {
    let mut chosen = Chosen::find(global)?;
    let credential = chosen.credential().await?;
    let Some(mcp) = &chosen.context.mcp else {
        return Err(Failure::usage(format!("context {} does not say where its data plane is", chosen.name))
            .next("Add it: `wafflectl login --mcp http://HOST:8080/mcp`.")
            .into());
    };
    connect(mcp, server, &credential, era).await
}

/// Opens a conversation with a server at a data plane.
pub(crate) async fn connect(
    mcp: &str,
    server: &str,
    credential: &SecretString,
    era: Era,
) -> anyhow::Result<Peer> {
    let url = format!("{}/servers/{server}", mcp.trim_end_matches('/'));
    let client = crate::http::builder().connect_timeout(Duration::from_secs(5)).build()?;
    let config = StreamableHttpClientTransportConfig::with_uri(url).auth_header(credential.expose_secret());
    let transport = StreamableHttpClientTransport::with_client(client, config);
    let lifecycle = match era {
        Era::Auto => ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            legacy_version: Some(ProtocolVersion::V_2025_11_25),
        },
        Era::Sessions => ClientLifecycleMode::Initialize,
        Era::Stateless => {
            ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] }
        }
    };
    let opened = tokio::time::timeout(OPEN_LIMIT, Listener.serve_with_lifecycle(transport, lifecycle)).await;
    let opened = opened.with_context(|| format!("server {server} did not answer within {OPEN_LIMIT:?}"))?;
    opened.map(Peer).map_err(|error| opening_failure(&error, server).into())
}

fn opening_failure(error: &ClientInitializeError, server: &str) -> Failure {
    if error.is_authorization_required() {
        return refused();
    }
    match error {
        // The older era is tried last, and its answer is the one that tells.
        ClientInitializeError::LegacyFallbackFailed { fallback, .. } => opening_failure(fallback, server),
        ClientInitializeError::JsonRpcError(error) => rpc_failure(error, server),
        ClientInitializeError::TransportError { error, .. } => sending_failure(error.error.as_ref(), server),
        error => Failure::failed(format!("server {server}: {}", root(error))).next(HOPS),
    }
}

/// What went wrong with a request, in words.
pub(crate) fn failure(error: &ServiceError, server: &str) -> Failure {
    match error {
        ServiceError::McpError(error) => rpc_failure(error, server),
        ServiceError::TransportSend(_) if error.is_authorization_required() => refused(),
        ServiceError::TransportSend(error) => sending_failure(error.error.as_ref(), server),
        error => Failure::failed(format!("server {server}: {}", root(error))).next(HOPS),
    }
}

const HOPS: &str = "Check every hop with `wafflectl doctor`.";

fn refused() -> Failure {
    Failure::failed("the data plane refuses the credential of this context")
        .next("See it with `wafflectl whoami`; log in again with `wafflectl login`.")
}

fn rpc_failure(error: &ErrorData, server: &str) -> Failure {
    let data = |name: &str| error.data.as_ref()?.get(name)?.as_str().map(clean);
    let reason = data("reason").map(|reason| format!(", reason {reason}")).unwrap_or_default();
    let message = clean(&error.message);
    let failure =
        Failure::failed(format!("server {server} answers: {message} (code {}{reason})", error.code.0));
    // Only a refusal by Waffles itself carries an id.
    match data("request_id") {
        Some(id) => failure.next(format!("See what happened with `wafflectl audit search --id {id}`.")),
        None => failure.next(format!("See what happened with `wafflectl audit search --server {server}`.")),
    }
}

fn sending_failure(error: &(dyn std::error::Error + 'static), server: &str) -> Failure {
    // The SDK does not name the HTTP client's error as its cause, which is where the reason stands.
    let text = match error.downcast_ref::<StreamableHttpError<reqwest::Error>>() {
        Some(StreamableHttpError::Client(error)) if error.is_connect() || error.is_timeout() => {
            return Failure::failed(format!("cannot reach the data plane: {}", root(error))).next(HOPS);
        }
        Some(StreamableHttpError::Client(error)) => root(error),
        _ => error.to_string(),
    };
    let next = match text.contains("HTTP 429") {
        true => "A limit is used up: see which with `wafflectl usage`.",
        false => HOPS,
    };
    Failure::failed(format!("server {server} through the data plane: {}", clean(&text))).next(next)
}

/// A tool as it is printed.
pub(crate) fn tool(tool: rmcp::model::Tool) -> shape::Tool {
    shape::Tool {
        name: tool.name.into_owned(),
        title: tool.title,
        description: tool.description.map(std::borrow::Cow::into_owned),
        input_schema: Value::Object(tool.input_schema.as_ref().clone()),
    }
}
