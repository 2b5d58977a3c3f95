//! The Rust SDK as a client of the matrix, in both eras. The checks are those of `sdk/matrix/client.mjs`.

#![allow(
    deprecated,
    reason = "sampling, roots and logging are deprecated, and every revision that is served has them"
)]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, ClientCapabilities, ClientConfig, ClientRequest,
    CreateMessageRequestParams, CreateMessageResult, ElicitRequestParams, ElicitResult, ElicitationAction,
    ErrorData, GetPromptRequestParams, Implementation, ListRootsResult, LoggingLevel,
    LoggingMessageNotificationParam, ProgressNotificationParam, ProtocolVersion, ReadResourceRequestParams,
    RequestMetaObject, ResourceUpdatedNotificationParam, Root, SamplingMessage, ServerNotification,
    SetLevelRequestParams, SubscribeRequestParams, SubscriptionFilter, UnsubscribeRequestParams,
};
use rmcp::service::{
    ClientCacheConfig, ClientLifecycleMode, ClientServiceExt as _, NotificationContext, PeerRequestOptions,
    RequestContext, RunningService, ServiceError,
};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::{ClientHandler, RoleClient};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use waffles_tests::matrix::{Check, FEATURES, Report, Status, Target};

const LIMIT: Duration = Duration::from_secs(10);
/// How many runs are in progress at once.
const PARALLEL: usize = 4;

/// What the server asked and told.
#[derive(Debug, Default)]
struct Heard {
    questions: Vec<String>,
    prompts: Vec<String>,
    logs: Vec<String>,
    updates: Vec<String>,
    changes: Vec<&'static str>,
    progress: Vec<f64>,
    content: Value,
}

#[derive(Debug, Clone, Default)]
struct Handler(Arc<Mutex<Heard>>);

impl ClientHandler for Handler {
    fn get_info(&self) -> ClientConfig {
        let capabilities =
            ClientCapabilities::builder().enable_elicitation().enable_sampling().enable_roots().build();
        ClientConfig::new(capabilities, Implementation::new("waffles-matrix-rmcp", "1"))
    }

    async fn create_elicitation(
        &self,
        request: ElicitRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        let asked = serde_json::to_value(&request).unwrap();
        let mut heard = self.0.lock();
        heard.questions.push(asked["message"].as_str().unwrap_or_default().to_owned());
        Ok(ElicitResult::new(ElicitationAction::Accept).with_content(heard.content.clone()))
    }

    async fn create_message(
        &self,
        request: CreateMessageRequestParams,
        _context: RequestContext<RoleClient>,
    ) -> Result<CreateMessageResult, ErrorData> {
        let asked = serde_json::to_string(&request.messages).unwrap();
        self.0.lock().prompts.push(asked);
        Ok(CreateMessageResult::new(SamplingMessage::assistant_text("waffle"), "checker".into()))
    }

    async fn list_roots(&self, _context: RequestContext<RoleClient>) -> Result<ListRootsResult, ErrorData> {
        Ok(ListRootsResult::new(vec![Root::new("file:///waffles")]))
    }

    async fn on_progress(
        &self,
        progress: ProgressNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        self.0.lock().progress.push(progress.progress);
    }

    async fn on_logging_message(
        &self,
        params: LoggingMessageNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        self.0.lock().logs.push(params.data.to_string());
    }

    async fn on_resource_updated(
        &self,
        params: ResourceUpdatedNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        self.0.lock().updates.push(params.uri);
    }

    async fn on_resource_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.0.lock().changes.push("resources");
    }

    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.0.lock().changes.push("tools");
    }
}

/// One run on each target, a few at a time.
pub(super) async fn run(targets: &[Target]) -> Vec<Report> {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    futures_util::stream::iter(targets).map(one).buffer_unordered(PARALLEL).collect().await
}

async fn one(target: &Target) -> Report {
    let mut checks = Vec::new();
    let mut note = |name: &str, status, detail: String| {
        checks.push(Check { name: name.to_owned(), status, detail });
    };
    let mut revision = String::new();
    match within(Peer::open(target)).await {
        Ok(peer) => {
            revision =
                peer.client.peer_info().map(|info| info.protocol_version.to_string()).unwrap_or_default();
            note("handshake", Status::Pass, String::new());
            for feature in &FEATURES[1..] {
                if let Some(reason) = target.skip.get(feature) {
                    note(feature, Status::Unsupported, (*reason).to_owned());
                } else if let Some(lack) = target.vocabulary[feature].as_str() {
                    note(feature, Status::Unsupported, format!("the server {lack}"));
                } else {
                    match within(peer.check(feature, &target.vocabulary[feature])).await {
                        Ok(()) => note(feature, Status::Pass, String::new()),
                        Err(err) => note(feature, Status::Fail, format!("{err:#}")),
                    }
                }
            }
            drop(timeout(LIMIT, peer.client.cancel()).await);
        }
        Err(err) => {
            note("handshake", Status::Fail, format!("{err:#}"));
            for feature in &FEATURES[1..] {
                note(feature, Status::Fail, "there is no connection".to_owned());
            }
        }
    }
    Report { id: target.id.clone(), revision, checks }
}

async fn within<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    timeout(LIMIT, work).await.unwrap_or_else(|_| bail!("no end within {LIMIT:?}"))
}

struct Peer<'a> {
    client: RunningService<RoleClient, Handler>,
    heard: Arc<Mutex<Heard>>,
    stateless: bool,
    prefix: &'a str,
    uris: &'a str,
}

impl<'a> Peer<'a> {
    async fn open(target: &'a Target) -> anyhow::Result<Self> {
        let mut config = StreamableHttpClientTransportConfig::with_uri(target.url.clone());
        if !target.token.is_empty() {
            config = config.auth_header(&target.token);
        }
        let http = reqwest::Client::builder().no_proxy().build()?;
        let transport = StreamableHttpClientTransport::with_client(http, config);
        let stateless = target.era == "stateless";
        let lifecycle = if stateless {
            ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] }
        } else {
            ClientLifecycleMode::Initialize
        };
        let handler = Handler::default();
        let heard = Arc::clone(&handler.0);
        let client = handler.serve_with_lifecycle(transport, lifecycle).await?;
        client.set_response_cache_config(ClientCacheConfig::disabled()).await;
        Ok(Self { client, heard, stateless, prefix: &target.prefix, uris: &target.uris })
    }

    async fn check(&self, feature: &str, words: &Value) -> anyhow::Result<()> {
        let words = &labelled(words);
        match feature {
            "list" => {
                let listed = self.client.list_all_tools().await?;
                includes(words, self.prefix, listed.iter().map(|tool| tool.name.as_ref()))
            }
            "call" => {
                let result = self.call(words).await?;
                ensure!(result["isError"] != true, "the result says that it failed: {result}");
                has(&result, words)
            }
            "error" => self.error(words).await,
            "progress" => self.progress(words).await,
            "log" => self.log(words).await,
            "cancel" => self.cancel(words).await,
            "elicitation" => {
                self.heard.lock().content = words["content"].clone();
                self.asks(words, |heard| heard.questions.clone()).await
            }
            "sampling" => self.asks(words, |heard| heard.prompts.clone()).await,
            "roots" => self.asks(words, |_| Vec::new()).await,
            "resources" => {
                let listed = self.client.list_all_resources().await?;
                includes(words, self.uris, listed.iter().map(|resource| resource.uri.as_str()))?;
                self.contents(words).await
            }
            "templates" => {
                let listed = self.client.list_all_resource_templates().await?;
                includes(words, self.uris, listed.iter().map(|template| template.uri_template.as_str()))?;
                self.contents(words).await
            }
            "subscribe" => self.subscribe(words).await,
            "prompts" => {
                let listed = self.client.list_all_prompts().await?;
                includes(words, self.prefix, listed.iter().map(|prompt| prompt.name.as_str()))?;
                let arguments = words["arguments"].as_object().cloned().unwrap_or_default();
                let request =
                    GetPromptRequestParams::new(self.name(&words["name"])).with_arguments(arguments);
                let prompt = serde_json::to_string(&self.client.get_prompt(request).await?)?;
                ensure!(prompt.contains(text(&words["text"])), "the prompt is {prompt}");
                Ok(())
            }
            "completion" => self.completion(words).await,
            "list-changed" => self.list_changed(words).await,
            _ => bail!("nobody knows the check {feature}"),
        }
    }

    fn name(&self, name: &Value) -> String {
        format!("{}{}", self.prefix, text(name))
    }

    fn uri(&self, uri: &Value) -> String {
        format!("{}{}", self.uris, text(uri))
    }

    fn request(&self, words: &Value) -> CallToolRequestParams {
        let arguments = words["arguments"].as_object().cloned().unwrap_or_default();
        CallToolRequestParams::new(self.name(&words["tool"])).with_arguments(arguments)
    }

    async fn call(&self, words: &Value) -> anyhow::Result<Value> {
        Ok(serde_json::to_value(self.client.call_tool(self.request(words)).await?)?)
    }

    async fn error(&self, words: &Value) -> anyhow::Result<()> {
        let result = self.call(words).await?;
        ensure!(result["isError"] == true, "the result does not say that it failed: {result}");
        has(&result, words)?;
        match self.client.read_resource(ReadResourceRequestParams::new(self.uri(&words["uri"]))).await {
            Err(ServiceError::McpError(error)) => {
                ensure!(
                    [-32602, -32002].contains(&error.code.0),
                    "the code is {}: {}",
                    error.code.0,
                    error.message
                );
                Ok(())
            }
            other => bail!("expected an error; saw {other:?}"),
        }
    }

    async fn progress(&self, words: &Value) -> anyhow::Result<()> {
        self.heard.lock().progress.clear();
        has(&self.call(words).await?, words)?;
        let expected: Vec<f64> =
            words["seen"].as_array().context("no steps")?.iter().filter_map(Value::as_f64).collect();
        // This SDK handles each notification in a task of its own, so their order is not what it was on the wire.
        let seen = || {
            let mut seen = self.heard.lock().progress.clone();
            seen.sort_by(f64::total_cmp);
            seen
        };
        eventually(async || Ok(seen().len() >= expected.len()), || format!("the progress is {:?}", seen()))
            .await?;
        ensure!(seen().starts_with(&expected), "the progress is {:?}", seen());
        Ok(())
    }

    async fn log(&self, words: &Value) -> anyhow::Result<()> {
        let level: LoggingLevel = serde_json::from_value(words["level"].clone())?;
        let mut request = self.request(words);
        if self.stateless {
            let mut meta = RequestMetaObject::new();
            meta.0.insert("io.modelcontextprotocol/logLevel".to_owned(), words["level"].clone());
            request.meta = Some(meta);
        } else {
            self.client.set_level(SetLevelRequestParams::new(level)).await?;
        }
        let logs = || self.heard.lock().logs.clone();
        let logged = |what: &str| logs().iter().any(|log| log.contains(what));
        // A tool that toggles may switch off what another run has switched on.
        for _ in 0..if words["toggles"] == true { 3 } else { 1 } {
            self.client.call_tool(request.clone()).await?;
            let end = Instant::now() + Duration::from_secs(2);
            while Instant::now() < end && !logged(text(&words["seen"])) {
                sleep(Duration::from_millis(50)).await;
            }
            if logged(text(&words["seen"])) {
                break;
            }
        }
        eventually(async || Ok(logged(text(&words["seen"]))), || format!("the logs are {:?}", logs()))
            .await?;
        let quiet = words["unseen"].as_str().is_none_or(|unseen| !logged(unseen));
        ensure!(quiet, "the level does not hold: {:?}", logs());
        Ok(())
    }

    async fn cancel(&self, words: &Value) -> anyhow::Result<()> {
        let proof = &words["proof"];
        let before = if proof["grows"].is_string() { self.count(proof).await? } else { 0 };
        let request = ClientRequest::CallToolRequest(CallToolRequest::new(self.request(words)));
        let handle = self.client.send_cancellable_request(request, PeerRequestOptions::no_options()).await?;
        // A call that the server has not begun would be cancelled without its knowing.
        if let Some(before) = proof["before"].as_str() {
            let begun = async || Ok(self.call(proof).await?["content"][0]["text"] == before);
            eventually(begun, || "the call never began".to_owned()).await?;
        } else {
            sleep(Duration::from_millis(400)).await;
        }
        handle.cancel(Some("no longer needed".to_owned())).await?;
        let proven = async || {
            if proof["grows"].is_string() {
                return Ok(self.count(proof).await? > before);
            }
            Ok(self.call(proof).await?["content"][0]["text"] == proof["text"])
        };
        eventually(proven, || "the server never heard of the cancellation".to_owned()).await
    }

    /// The number in the resource that proves a cancellation.
    async fn count(&self, proof: &Value) -> anyhow::Result<u64> {
        let read = self.client.read_resource(ReadResourceRequestParams::new(self.uri(&proof["uri"]))).await?;
        let read = serde_json::to_string(&read)?;
        let start = text(&proof["grows"]).split('(').next().unwrap_or_default();
        let (_, rest) = read.split_once(start).with_context(|| format!("no {start} in {read}"))?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Ok(digits.parse()?)
    }

    async fn asks(&self, words: &Value, heard: impl Fn(&Heard) -> Vec<String>) -> anyhow::Result<()> {
        let before = heard(&self.heard.lock()).len();
        has(&self.call(words).await?, words)?;
        if let Some(asked) = words["asked"].as_str() {
            let seen = heard(&self.heard.lock())[before..].to_vec();
            ensure!(seen.len() == 1 && seen[0].contains(asked), "the client was asked {seen:?}");
        }
        Ok(())
    }

    async fn contents(&self, words: &Value) -> anyhow::Result<()> {
        let uri = self.uri(&words["uri"]);
        let read = self.client.read_resource(ReadResourceRequestParams::new(uri.clone())).await?;
        let read = serde_json::to_value(&read)?;
        let first = &read["contents"][0];
        ensure!(first["uri"] == uri.as_str(), "the contents say {}", first["uri"]);
        ensure!(text(&first["text"]).contains(text(&words["text"])), "the contents are {first}");
        Ok(())
    }

    async fn subscribe(&self, words: &Value) -> anyhow::Result<()> {
        let uri = self.uri(&words["uri"]);
        if self.stateless {
            let filter = SubscriptionFilter::builder().resource_subscriptions([uri.clone()]).build();
            return self.listens(filter, words, |message| {
                matches!(message, ServerNotification::ResourceUpdatedNotification(updated) if updated.params.uri == uri)
            })
            .await;
        }
        let before = self.heard.lock().updates.len();
        self.client.subscribe(SubscribeRequestParams::new(uri.clone())).await?;
        if words["tool"].is_string() {
            self.call(words).await?;
        }
        let updates = || self.heard.lock().updates[before..].to_vec();
        let updated = eventually(
            async || Ok(updates().contains(&uri)),
            || format!("no update of {uri}: {:?}", updates()),
        );
        updated.await?;
        self.client.unsubscribe(UnsubscribeRequestParams::new(uri.clone())).await?;
        Ok(())
    }

    async fn list_changed(&self, words: &Value) -> anyhow::Result<()> {
        let tools = words["kind"] == "tools";
        if self.stateless {
            let filter = SubscriptionFilter::builder();
            let filter = if tools { filter.tools_list_changed() } else { filter.resources_list_changed() };
            self.listens(filter.build(), words, |message| match message {
                ServerNotification::ToolListChangedNotification(_) => tools,
                ServerNotification::ResourceListChangedNotification(_) => !tools,
                _ => false,
            })
            .await?;
        } else {
            let before = self.heard.lock().changes.len();
            self.call(words).await?;
            let kind = text(&words["kind"]);
            let changes = || self.heard.lock().changes[before..].to_vec();
            eventually(
                async || Ok(changes().contains(&kind)),
                || format!("no word of {kind}: {:?}", changes()),
            )
            .await?;
        }
        let appears = if tools { self.name(&words["appears"]) } else { self.uri(&words["appears"]) };
        let listed = async || {
            Ok(if tools {
                self.client.list_all_tools().await?.iter().any(|tool| tool.name == appears)
            } else {
                self.client.list_all_resources().await?.iter().any(|resource| resource.uri == appears)
            })
        };
        eventually(listed, || format!("the list never had {appears}")).await
    }

    /// Opens a stream, makes the server send something, and reads until it is there.
    async fn listens(
        &self,
        filter: SubscriptionFilter,
        words: &Value,
        wanted: impl Fn(&ServerNotification) -> bool,
    ) -> anyhow::Result<()> {
        let mut stream = self.client.listen(filter.clone()).await?;
        ensure!(*stream.acknowledged() == filter, "acknowledged is {:?}", stream.acknowledged());
        // A tool that toggles may switch off what another run has switched on.
        let tries: u32 = if words["toggles"] == true { 3 } else { 1 };
        for _ in 0..tries {
            if words["tool"].is_string() {
                self.call(words).await?;
            }
            let end = Instant::now() + (LIMIT - Duration::from_secs(2)) / tries;
            while let Ok(next) = tokio::time::timeout_at(end, stream.next()).await {
                if wanted(&next?.context("the stream has ended")?) {
                    stream.cancel().await?;
                    return Ok(());
                }
            }
        }
        bail!("nothing came on the stream")
    }

    async fn completion(&self, words: &Value) -> anyhow::Result<()> {
        for words in words.as_array().context("no completions")? {
            let (reference, argument) = (&words["ref"], &words["argument"]);
            let (name, value) = (text(&argument["name"]), text(&argument["value"]));
            let values = if reference["name"].is_string() {
                self.client.complete_prompt_simple(self.name(&reference["name"]), name, value).await?
            } else {
                self.client.complete_resource_simple(self.uri(&reference["uri"]), name, value).await?
            };
            ensure!(json!(values) == words["values"], "the values are {values:?}");
        }
        Ok(())
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn has(result: &Value, words: &Value) -> anyhow::Result<()> {
    let blocks = result["content"].as_array().into_iter().flatten();
    let said: Vec<&str> = blocks.filter_map(|block| block["text"].as_str()).collect();
    ensure!(said.join("\n").contains(text(&words["text"])), "the result is {result}");
    Ok(())
}

fn includes<'b>(words: &Value, prefix: &str, listed: impl Iterator<Item = &'b str>) -> anyhow::Result<()> {
    let listed: Vec<&str> = listed.collect();
    for wanted in words["has"].as_array().context("nothing is wanted")? {
        let wanted = format!("{prefix}{}", text(wanted));
        ensure!(listed.contains(&wanted.as_str()), "there is no {wanted} in {listed:?}");
    }
    Ok(())
}

/// `words` with each `$label` replaced by one new label.
fn labelled(words: &Value) -> Value {
    let label = &uuid::Uuid::new_v4().simple().to_string()[..8];
    serde_json::from_str(&words.to_string().replace("$label", label)).unwrap()
}

async fn eventually(
    condition: impl AsyncFn() -> anyhow::Result<bool>,
    message: impl Fn() -> String,
) -> anyhow::Result<()> {
    let end = Instant::now() + LIMIT - Duration::from_secs(2);
    while !condition().await? {
        ensure!(Instant::now() < end, message());
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
