//! The demo MCP server: what `--demo` puts behind the gateway, and what the tests call.
//!
//! It speaks both eras on one endpoint, `/mcp`: sessions for 2025-03-26 to 2025-11-25, and
//! the stateless wire of 2026-07-28. It has one tool for each thing that a gateway can get
//! wrong: plain answers, structured ones, progress, questions to the user and to the model,
//! cancellation and failure. It keeps no secrets and asks for no credentials.

use std::borrow::Cow;
use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use axum::serve::ListenerExt as _;
use rmcp::handler::server::router::prompt::PromptRouter;
use rmcp::handler::server::router::tool::ToolRouter;
use rmcp::handler::server::tool::{InputResponses, RequestState, ToolCallContext};
use rmcp::handler::server::wrapper::{Json, Parameters};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ClientCapabilities, ContentBlock, ElicitRequest,
    ElicitRequestParams, ElicitResult, ElicitationAction, ElicitationSchema, GetPromptResult, Implementation,
    InputRequest, InputRequests, InputRequiredResult, ListResourceTemplatesResult, ListResourcesResult,
    PaginatedRequestParams, ProgressNotificationParam, PromptMessage, ProtocolVersion,
    ReadResourceRequestParams, ReadResourceResponse, ReadResourceResult, Resource, ResourceContents,
    ResourceTemplate, ResourceUpdatedNotificationParam, Role, ServerCapabilities, ServerConfig,
    SubscribeRequestParams, SubscriptionFilter, UnsubscribeRequestParams,
};
#[expect(
    deprecated,
    reason = "sampling is deprecated since 2026-07-28, and a gateway must carry it all the same"
)]
use rmcp::model::{CreateMessageRequest, CreateMessageRequestParams, CreateMessageResult, SamplingMessage};
use rmcp::service::{Peer, RequestContext, SubscriptionContext};
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{
    ErrorData, RoleServer, ServerHandler, ServiceExt as _, prompt, prompt_handler, prompt_router, tool,
    tool_handler, tool_router,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

/// The path of the MCP endpoint.
const PATH: &str = "/mcp";
/// How often the subscribed resource changes.
const TICK: Duration = Duration::from_secs(2);
/// How long a session may take to accept one update before it is forgotten.
const NOTIFY_LIMIT: Duration = Duration::from_secs(1);
/// How long calls in progress may take to end once the server is told to stop.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// A disconnected caller is noticed at the latest with the next keep-alive comment, and in
/// the stateless era a disconnect is the only way to cancel, so this is short.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// The longest that `slow` and one step of `progress` may take.
const LONGEST: Duration = Duration::from_secs(600);
/// The most steps that `progress` counts.
const MOST_STEPS: u32 = 10_000;

const GREETING: &str = "demo://greeting";
const README: &str = "demo://readme";
const ITEMS: &str = "demo://items/";

/// Serves the demo on `listener` until `shutdown` is ready.
pub(crate) async fn serve(
    listener: tokio::net::TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let state = Arc::new(State::new());
    let router = axum::Router::new().route_service(PATH, service(&state, &stop));
    // An event stream is written in small pieces, which must not wait for the peer's delayed
    // acknowledgements (40 ms a call). A socket that refuses the option works all the same.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    let server =
        axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned()).into_future();
    tokio::pin!(server);
    tokio::select! {
        served = &mut server => return served.context("the demo server stopped"),
        () = state.tick() => {}
        () = shutdown => {}
    }
    // Cancelling ends the sessions' open streams too. A client that keeps its connection
    // open all the same must not keep the process alive.
    stop.cancel();
    match tokio::time::timeout(DRAIN_LIMIT, server).await {
        Ok(served) => served.context("the demo server did not stop cleanly"),
        Err(_) => Ok(()),
    }
}

/// Serves the demo on the standard streams until their end. The process is one session, or serves the stateless
/// revision, as its client begins.
pub(crate) async fn serve_stdio() -> anyhow::Result<()> {
    let state = Arc::new(State::new());
    let demo = Demo::new(Arc::clone(&state)).for_session();
    let running = demo.serve((tokio::io::stdin(), tokio::io::stdout())).await;
    let running = running.context("the client did not begin")?;
    tokio::select! {
        ended = running.waiting() => ended.map(drop).context("the demo server stopped"),
        () = state.tick() => Ok(()),
    }
}

fn service(state: &Arc<State>, stop: &CancellationToken) -> StreamableHttpService<Demo, LocalSessionManager> {
    let template = Demo::new(Arc::clone(state));
    StreamableHttpService::new(
        move || Ok(template.for_session()),
        Arc::new(LocalSessionManager::default()),
        StreamableHttpServerConfig::default()
            .with_sse_keep_alive(Some(KEEP_ALIVE))
            .enforce_origin_validation()
            .with_cancellation_token(stop.child_token()),
    )
}

/// What all sessions and all stateless requests share.
struct State {
    /// How often the greeting has changed.
    changes: watch::Sender<u64>,
    /// Calls of `slow` that were cancelled before their time was up.
    cancelled: AtomicU64,
    sessions: AtomicU64,
    /// Who wants to hear of a change, by session and URI. Only the session era needs it:
    /// a stateless subscription is a request that waits for `changes` itself.
    subscribers: Mutex<HashMap<(u64, String), Peer<RoleServer>>>,
}

impl State {
    fn new() -> Self {
        Self {
            changes: watch::Sender::new(0),
            cancelled: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            subscribers: Mutex::default(),
        }
    }

    /// Changes the greeting again and again, and tells the sessions that subscribed.
    async fn tick(&self) {
        let mut interval = tokio::time::interval(TICK);
        loop {
            interval.tick().await;
            self.changes.send_modify(|changes| *changes += 1);
            let subscribers: Vec<_> =
                self.subscribers.lock().await.iter().map(|(key, peer)| (key.clone(), peer.clone())).collect();
            for (key, peer) in subscribers {
                let update = ResourceUpdatedNotificationParam::new(key.1.clone());
                let sent = tokio::time::timeout(NOTIFY_LIMIT, peer.notify_resource_updated(update)).await;
                if !matches!(sent, Ok(Ok(()))) {
                    self.subscribers.lock().await.remove(&key);
                }
            }
        }
    }

    /// The text of a static resource or of an item, or nothing if there is no such URI.
    fn text(&self, uri: &str) -> Option<String> {
        match uri {
            GREETING => Some(format!(
                "Hello from the Waffles demo server. This greeting has changed {} times.",
                *self.changes.borrow()
            )),
            README => Some(format!(
                "Call echo, add, progress, ask, sample, slow or fail. Slow calls cancelled: {}.",
                self.cancelled.load(Ordering::Relaxed)
            )),
            _ => uri
                .strip_prefix(ITEMS)
                .filter(|id| !id.is_empty() && !id.contains('/'))
                .map(|id| format!("This is item {id}.")),
        }
    }
}

/// The server as one session, or one stateless request, sees it.
#[derive(Clone)]
struct Demo {
    state: Arc<State>,
    session: u64,
    tools: Arc<ToolRouter<Self>>,
    prompts: Arc<PromptRouter<Self>>,
}

impl Demo {
    fn new(state: Arc<State>) -> Self {
        Self {
            state,
            session: 0,
            tools: Arc::new(Self::tool_router()),
            prompts: Arc::new(Self::prompt_router()),
        }
    }

    fn for_session(&self) -> Self {
        Self { session: self.state.sessions.fetch_add(1, Ordering::Relaxed), ..self.clone() }
    }
}

#[derive(Deserialize, JsonSchema)]
struct Echo {
    /// The text to send back.
    message: String,
}

#[derive(Deserialize, JsonSchema)]
struct Add {
    a: f64,
    b: f64,
}

#[derive(Serialize, JsonSchema)]
struct Sum {
    sum: f64,
}

#[derive(Deserialize, JsonSchema)]
struct Progress {
    /// How many steps to report.
    #[serde(default = "three")]
    steps: u32,
    /// How long one step takes, in milliseconds.
    #[serde(default)]
    delay_ms: u64,
}

fn three() -> u32 {
    3
}

#[derive(Deserialize, JsonSchema)]
struct Ask {
    /// What to ask the user.
    #[serde(default = "question")]
    question: String,
}

fn question() -> String {
    "What is your name?".to_owned()
}

#[derive(Deserialize, JsonSchema)]
struct Sample {
    /// What to ask the model.
    prompt: String,
}

#[derive(Deserialize, JsonSchema)]
struct Slow {
    /// How long the call takes.
    seconds: f64,
}

#[derive(Deserialize, JsonSchema)]
struct Greet {
    /// Whom to greet.
    name: String,
}

#[tool_router]
impl Demo {
    /// Sends a message back.
    #[tool(annotations(read_only_hint = true))]
    async fn echo(&self, Parameters(echo): Parameters<Echo>) -> String {
        echo.message
    }

    /// Adds two numbers and answers with structured content.
    #[tool(annotations(read_only_hint = true))]
    async fn add(&self, Parameters(add): Parameters<Add>) -> Json<Sum> {
        Json(Sum { sum: add.a + add.b })
    }

    /// Takes some steps and reports each of them to a caller that sent a progress token.
    #[tool]
    async fn progress(
        &self,
        Parameters(progress): Parameters<Progress>,
        context: RequestContext<RoleServer>,
    ) -> Result<String, ErrorData> {
        let token = context.meta.get_progress_token();
        let steps = progress.steps.min(MOST_STEPS);
        let delay = Duration::from_millis(progress.delay_ms).min(LONGEST);
        for step in 1..=steps {
            if !delay.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = context.ct.cancelled() => return Ok(format!("cancelled at {step}")),
                }
            }
            let Some(token) = token.clone() else { continue };
            let report = ProgressNotificationParam::new(token, f64::from(step))
                .with_total(f64::from(steps))
                .with_message(format!("step {step} of {steps}"));
            let sent = context.peer.notify_progress(report).await;
            sent.map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
        }
        Ok(format!("{steps} steps done"))
    }

    /// Asks the user a question and answers with what the user said.
    #[tool]
    async fn ask(
        &self,
        Parameters(ask): Parameters<Ask>,
        RequestState(state): RequestState,
        InputResponses(responses): InputResponses,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let capabilities = context.client_capabilities().unwrap_or_default();
        if capabilities.elicitation.is_none() {
            let required = ClientCapabilities::builder().enable_elicitation().build();
            return lacking(&context, "ask the user", required);
        }
        let form = ElicitRequestParams::FormElicitationParams {
            meta: None,
            message: ask.question,
            requested_schema: ElicitationSchema::builder()
                .required_string("answer")
                .build()
                .map_err(|error| ErrorData::internal_error(error, None))?,
        };
        let answer: ElicitResult = if stateless(&context) {
            match answered("ask", state, responses)? {
                Some(answer) => answer,
                None => return Ok(question_for("ask", InputRequest::Elicitation(ElicitRequest::new(form)))),
            }
        } else {
            let answer = context.peer.create_elicitation(form).await;
            answer.map_err(|error| ErrorData::internal_error(error.to_string(), None))?
        };
        let text = match answer.action {
            ElicitationAction::Accept => format!(
                "The user answered: {}",
                answer
                    .content
                    .as_ref()
                    .and_then(|content| content.get("answer")?.as_str())
                    .unwrap_or("nothing")
            ),
            ElicitationAction::Decline => "The user declined.".to_owned(),
            _ => "The user cancelled.".to_owned(),
        };
        Ok(CallToolResult::success(vec![ContentBlock::text(text)]).into())
    }

    // The macro does not see a doc comment on a function that has another attribute too.
    #[tool(description = "Asks the caller's model and answers with what the model said.")]
    #[expect(
        deprecated,
        reason = "sampling is deprecated since 2026-07-28, and a gateway must carry it all the same"
    )]
    async fn sample(
        &self,
        Parameters(sample): Parameters<Sample>,
        RequestState(state): RequestState,
        InputResponses(responses): InputResponses,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let capabilities = context.client_capabilities().unwrap_or_default();
        if capabilities.sampling.is_none() {
            let required = ClientCapabilities::builder().enable_sampling().build();
            return lacking(&context, "ask the model", required);
        }
        let params = CreateMessageRequestParams::new(vec![SamplingMessage::user_text(sample.prompt)], 100);
        let answer: CreateMessageResult = if stateless(&context) {
            match answered("sample", state, responses)? {
                Some(answer) => answer,
                None => {
                    let request = CreateMessageRequest::new(params);
                    return Ok(question_for("sample", InputRequest::CreateMessage(request)));
                }
            }
        } else {
            let answer = context.peer.create_message(params).await;
            answer.map_err(|error| ErrorData::internal_error(error.to_string(), None))?
        };
        let text = answer.message.content.first().and_then(|block| block.as_text());
        let text = text.map_or("nothing", |block| block.text.as_str());
        let text = format!("The model {} answered: {text}", answer.model);
        Ok(CallToolResult::success(vec![ContentBlock::text(text)]).into())
    }

    /// Takes its time, and stops early when the call is cancelled.
    #[tool]
    async fn slow(
        &self,
        Parameters(slow): Parameters<Slow>,
        context: RequestContext<RoleServer>,
    ) -> Result<String, ErrorData> {
        let time = Duration::try_from_secs_f64(slow.seconds)
            .map_err(|error| ErrorData::invalid_params(format!("seconds: {error}"), None))?;
        tokio::select! {
            () = tokio::time::sleep(time.min(LONGEST)) => {
                Ok(format!("done after {} seconds", slow.seconds))
            }
            () = context.ct.cancelled() => {
                self.state.cancelled.fetch_add(1, Ordering::Relaxed);
                tracing::info!("a slow call was cancelled");
                Ok("cancelled".to_owned())
            }
        }
    }

    /// Fails, as a tool does: with a result that says so.
    #[tool]
    async fn fail(&self) -> CallToolResult {
        CallToolResult::error(vec![ContentBlock::text("This tool always fails.")])
    }
}

#[prompt_router]
impl Demo {
    /// Greets someone by name.
    #[prompt]
    async fn greet(&self, Parameters(greet): Parameters<Greet>) -> GetPromptResult {
        let text = format!("Please greet {} in one friendly sentence.", greet.name);
        GetPromptResult::new(vec![PromptMessage::new_text(Role::User, text)])
            .with_description("A greeting by name")
    }

    /// Summarises what this server offers.
    #[prompt]
    async fn summarise(&self) -> Vec<PromptMessage> {
        let text = "Summarise what the demo server offers, from its lists.";
        vec![PromptMessage::new_text(Role::User, text)]
    }
}

#[tool_handler(router = self.tools)]
#[prompt_handler(router = self.prompts)]
impl ServerHandler for Demo {
    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Borrowed(&[
            ProtocolVersion::V_2026_07_28,
            ProtocolVersion::V_2025_11_25,
            ProtocolVersion::V_2025_06_18,
            ProtocolVersion::V_2025_03_26,
        ])
    }

    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_prompts()
            .enable_resources()
            .enable_resources_subscribe()
            .build();
        ServerConfig::new(capabilities)
            .with_server_info(
                Implementation::new("waffles-demo", env!("CARGO_PKG_VERSION"))
                    .with_title("Waffles demo server"),
            )
            .with_instructions("A server to try a gateway with.")
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        tracing::info!(
            tool.name = %request.name,
            mcp.version = context.protocol_version().as_ref().map(ProtocolVersion::as_str),
            "demo tool called"
        );
        self.tools.call(ToolCallContext::new(self, request, context)).await
    }

    async fn list_resources(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(ListResourcesResult::with_all_items(vec![
            Resource::new(GREETING, "greeting")
                .with_description("A greeting that changes every two seconds")
                .with_mime_type("text/plain"),
            Resource::new(README, "readme")
                .with_description("What this server can do")
                .with_mime_type("text/plain"),
        ]))
    }

    async fn list_resource_templates(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(ListResourceTemplatesResult::with_all_items(vec![
            ResourceTemplate::new("demo://items/{id}", "item")
                .with_description("An item by its id")
                .with_mime_type("text/plain"),
        ]))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        tracing::info!(resource.uri = %request.uri, "demo resource read");
        let Some(text) = self.state.text(&request.uri) else {
            let data = serde_json::json!({ "uri": request.uri });
            return Err(ErrorData::resource_not_found("There is no such resource.", Some(data)));
        };
        let contents = ResourceContents::text(text, request.uri).with_mime_type("text/plain");
        Ok(ReadResourceResult::new(vec![contents]).into())
    }

    // Subscriptions of the session era: the server remembers, and `State::tick` tells.
    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        if self.state.text(&request.uri).is_none() {
            return Err(ErrorData::resource_not_found("There is no such resource.", None));
        }
        let key = (self.session, request.uri);
        self.state.subscribers.lock().await.insert(key, context.peer);
        Ok(())
    }

    async fn unsubscribe(
        &self,
        request: UnsubscribeRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        let key = (self.session, request.uri);
        self.state.subscribers.lock().await.remove(&key);
        Ok(())
    }

    // Subscriptions of the stateless era: one request that stays open.
    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        let mut accepted = requested.clone();
        if let Some(uris) = accepted.resource_subscriptions.as_mut() {
            uris.retain(|uri| self.state.text(uri).is_some());
        }
        Some(accepted)
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        tracing::info!("demo subscription opened");
        let mut changes = self.state.changes.subscribe();
        let uris = context.accepted().resource_subscriptions.clone();
        loop {
            tokio::select! {
                () = context.cancelled() => return Ok(()),
                changed = changes.changed() => if changed.is_err() { return Ok(()) },
            }
            for uri in uris.iter().flatten() {
                if context.sink().notify_resource_updated(uri.as_str()).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

fn stateless(context: &RequestContext<RoleServer>) -> bool {
    context.protocol_version().is_some_and(|version| !version.has_initialize())
}

/// The refusal for a client that did not declare what a tool needs. The stateless era has an
/// error of its own for it; before, the tool can only fail.
fn lacking(
    context: &RequestContext<RoleServer>,
    act: &str,
    required: ClientCapabilities,
) -> Result<CallToolResponse, ErrorData> {
    if stateless(context) {
        return Err(ErrorData::missing_required_client_capability(required));
    }
    let text = format!("This client cannot {act}.");
    Ok(CallToolResult::error(vec![ContentBlock::text(text)]).into())
}

/// The interim answer that asks the client for one thing under the key `key`. The state says
/// nothing that the server relies on; it is there so that its way back can be checked, with
/// characters in it that a careless intermediary would change.
fn question_for(key: &str, request: InputRequest) -> CallToolResponse {
    let mut requests = InputRequests::new();
    requests.insert(key.to_owned(), request);
    InputRequiredResult::new(Some(requests), Some(state_of(key))).into()
}

fn state_of(key: &str) -> String {
    format!("demo/{key} +=\"\\é")
}

/// The client's answer to [`question_for`], or nothing when it is still to be asked.
fn answered<T: for<'de> Deserialize<'de>>(
    key: &str,
    state: Option<String>,
    responses: Option<rmcp::model::InputResponses>,
) -> Result<Option<T>, ErrorData> {
    // An answer that is missing is asked for again rather than failed.
    let Some(answer) = responses.and_then(|mut responses| responses.remove(key)) else {
        return Ok(None);
    };
    if state.as_deref() != Some(state_of(key).as_str()) {
        let message = "requestState is not what this server gave.";
        return Err(ErrorData::invalid_params(message, None));
    }
    serde_json::from_value(answer)
        .map(Some)
        .map_err(|error| ErrorData::invalid_params(format!("inputResponses.{key}: {error}"), None))
}
