//! A scripted MCP server of both eras on one endpoint, and the faults a server can have. By default it does all it
//! should; a test scripts what is otherwise, by tool name or by method, and looks at what has arrived.

mod faults;
mod listen;
mod wire;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use waffles_runtime::task;

use crate::{Era, PATIENCE, eventually};
pub use wire::{Body, Feed, Head};

/// Revisions of the session era that it agrees to.
const REVISIONS: [&str; 3] = ["2025-11-25", "2025-06-18", "2025-03-26"];
/// Stands for a GET among the scripted methods.
const GET: &str = " GET";
const LARGEST_BODY: usize = 64 << 20;

/// What it does with a request.
#[derive(Debug, Clone)]
pub enum Behaviour {
    /// The arguments back as text and as structured content, as one JSON answer.
    Echo,
    /// The same as an event stream.
    EchoSse,
    /// This result.
    Result(Value),
    /// This JSON-RPC error with HTTP status 200.
    Error { code: i64, message: String, data: Value },
    /// Exactly this, whatever was asked.
    Raw { status: u16, headers: Vec<(String, String)>, body: Bytes },
    /// The echo after a time.
    Slow(Duration),
    /// Reads the request and never answers.
    Never,
    /// The head of an event stream, and then nothing.
    SilentStream,
    /// Closes the connection once it has read the request.
    HangUp,
    /// An event, the start of a second, and then the connection breaks.
    ResetMidStream,
    /// A stream that ends properly but without an answer.
    NoAnswer,
    /// The echo with a content type that MCP does not know.
    WrongContentType,
    /// Two different answers to one request on one stream.
    Twice,
    /// The answer carries another id.
    WrongId,
    /// A JSON body that breaks off in the middle, though its length was announced.
    Truncated,
    /// Not JSON, as JSON.
    NotJson,
    /// A stream that is right but odd: CR LF and CR line ends, comments, several data lines, ids, cut byte by byte.
    OddSse,
    /// So many notifications, and then the echo.
    Flood(usize),
    /// So many notifications of progress with a pause between them, and then the echo.
    Progress { steps: usize, pause: Duration },
    /// A result with a text of so many bytes.
    Large(usize),
    /// As if the session were unknown.
    SessionGone,
    /// Asks the client this on the stream (session era) or by `input_required` (stateless), and answers with its reply.
    Ask { method: String, params: Value },
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The JSON-RPC method, empty for a response or none.
    pub rpc_method: String,
    /// Which connection it came over, counted from 1.
    pub connection: u64,
}

impl Seen {
    /// Its body.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A running server. It ends, with all its connections, when it is dropped.
#[derive(Debug)]
pub struct McpServer {
    addr: SocketAddr,
    state: Arc<State>,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    by_tool: Mutex<HashMap<String, Behaviour>>,
    by_method: Mutex<HashMap<String, Behaviour>>,
    /// Bodies for the next request of a method.
    fed: Mutex<HashMap<String, Body>>,
    tools: Mutex<Vec<Value>>,
    /// The one era that it speaks; none means both.
    only: Mutex<Option<Era>>,
    seen: Mutex<VecDeque<Seen>>,
    sessions: Mutex<HashMap<String, Session>>,
    listens: Mutex<Vec<listen::Listen>>,
    /// The capabilities, where they are not the usual ones.
    offered: Mutex<Option<Value>>,
    asked: Mutex<HashMap<String, oneshot::Sender<Value>>>,
    connections: AtomicU64,
    open: AtomicUsize,
    /// Requests whose answer was given up because the other side went away.
    abandoned: AtomicU64,
    numbers: AtomicU64,
}

#[derive(Debug, Default)]
struct Session {
    /// The stream opened by GET, if there is one.
    stream: Option<Feed>,
}

impl McpServer {
    /// Starts one on a free port.
    pub async fn start() -> Self {
        let state = State::default();
        *state.tools.lock() = ["echo", "add"].map(tool).to_vec();
        let mut server =
            Self { addr: ([127, 0, 0, 1], 0).into(), state: Arc::new(state), stop: CancellationToken::new() };
        server.serve().await;
        server
    }

    /// Starts one that speaks this era alone.
    pub async fn only(era: Era) -> Self {
        let server = Self::start().await;
        *server.state.only.lock() = Some(era);
        server
    }

    /// Its MCP endpoint.
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.addr)
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Scripts calls of a tool, which is listed from now on.
    pub fn on_tool(&self, name: &str, behaviour: Behaviour) {
        let mut tools = self.state.tools.lock();
        if !tools.iter().any(|tool| tool["name"] == name) {
            tools.push(tool(name));
        }
        self.state.by_tool.lock().insert(name.to_owned(), behaviour);
    }

    /// Scripts a method, such as `initialize` or `tools/list`.
    pub fn on_method(&self, method: &str, behaviour: Behaviour) {
        self.state.by_method.lock().insert(method.to_owned(), behaviour);
    }

    /// Scripts the stream that a GET opens, whatever its session.
    pub fn on_get(&self, behaviour: Behaviour) {
        self.on_method(GET, behaviour);
    }

    /// Answers a method with an event stream that the test itself feeds.
    pub fn on_stream(&self, method: &str) -> Feed {
        let (feed, body) = Feed::new();
        self.state.fed.lock().insert(method.to_owned(), body);
        feed
    }

    /// Lists exactly these tools.
    pub fn set_tools(&self, tools: Vec<Value>) {
        *self.state.tools.lock() = tools;
    }

    /// The newest ten thousand requests that have arrived, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().iter().cloned().collect()
    }

    /// Those of one JSON-RPC method.
    pub fn seen_of(&self, rpc_method: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.rpc_method == rpc_method).collect()
    }

    /// Waits until so many requests of this method have arrived.
    pub async fn arrived(&self, rpc_method: &str, count: usize) {
        eventually(PATIENCE, || async {
            let arrived = self.seen_of(rpc_method).len();
            anyhow::ensure!(arrived >= count, "{arrived} of {count} requests of {rpc_method} have arrived");
            Ok(())
        })
        .await;
    }

    /// Connections that are open now.
    pub fn open_connections(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }

    /// Connections that were ever accepted.
    pub fn accepted(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Requests whose caller went away before the answer was complete.
    pub fn abandoned(&self) -> u64 {
        self.state.abandoned.load(Ordering::SeqCst)
    }

    /// Ids of the sessions that are alive.
    pub fn sessions(&self) -> Vec<String> {
        self.state.sessions.lock().keys().cloned().collect()
    }

    /// Forgets all sessions, as a restart does.
    pub fn forget_sessions(&self) {
        self.state.sessions.lock().clear();
    }

    /// Sends a message on the GET stream of every session that has one; says to how many.
    pub async fn push(&self, message: &Value) -> usize {
        let feeds: Vec<Feed> =
            self.state.sessions.lock().values().filter_map(|session| session.stream.clone()).collect();
        let mut sent = 0;
        for feed in feeds {
            sent += usize::from(feed.message(message).await);
        }
        sent
    }

    /// Stops listening and breaks all connections, as a crash does. Sessions are lost.
    pub fn kill(&self) {
        self.stop.cancel();
        self.forget_sessions();
    }

    /// Serves again on the same port.
    pub async fn restart(&mut self) {
        self.kill();
        self.serve().await;
    }

    async fn serve(&mut self) {
        let addr = self.addr;
        // After a kill the old listener is dropped by its task, soon but not at once.
        let listener = eventually(PATIENCE, || TcpListener::bind(addr)).await;
        self.addr = listener.local_addr().expect("it is bound");
        self.stop = CancellationToken::new();
        let stop = self.stop.clone();
        let state = Arc::clone(&self.state);
        task::spawn("scripted server", async move {
            stop.run_until_cancelled(accept(listener, state, stop.clone())).await;
        });
    }
}

impl Drop for McpServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(listener: TcpListener, state: Arc<State>, stop: CancellationToken) {
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        drop(socket.set_nodelay(true));
        let connection = state.connections.fetch_add(1, Ordering::SeqCst) + 1;
        let state = Arc::clone(&state);
        let stop = stop.clone();
        task::spawn("scripted connection", async move {
            let open = Open::new(&state);
            let service = service_fn(|request| serve_one(Arc::clone(&state), connection, request));
            let served = http1::Builder::new().serve_connection(TokioIo::new(socket), service);
            // Whether it ended well is for the other side to say.
            drop(stop.run_until_cancelled(served).await);
            drop(open);
        });
    }
}

struct Open(Arc<State>);

impl Open {
    fn new(state: &Arc<State>) -> Self {
        state.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(state))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Counts a request that was dropped before it had its answer.
pub(crate) struct Unanswered(Option<Arc<State>>);

impl Unanswered {
    fn new(state: &Arc<State>) -> Self {
        Self(Some(Arc::clone(state)))
    }

    pub(crate) fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(state) = &self.0 {
            state.abandoned.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// An error ends the connection without an answer.
async fn serve_one(
    state: Arc<State>,
    connection: u64,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, LARGEST_BODY).collect().await.map_err(std::io::Error::other)?.to_bytes();
    let message: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let rpc_method = message["method"].as_str().unwrap_or_default().to_owned();
    let head = Head { method: parts.method.clone(), headers: parts.headers.clone() };
    {
        let mut seen = state.seen.lock();
        if seen.len() >= 10_000 {
            seen.pop_front();
        }
        seen.push_back(Seen { method: parts.method, headers: parts.headers, body, rpc_method, connection });
    }
    let unanswered = Unanswered::new(&state);
    answer(&state, head, message, unanswered).await
}

async fn answer(
    state: &Arc<State>,
    head: Head,
    message: Value,
    unanswered: Unanswered,
) -> Result<Response<Body>, std::io::Error> {
    let stateless = head.header("mcp-protocol-version") == Some(Era::Stateless.revision());
    let era = if stateless { Era::Stateless } else { Era::Sessions };
    let method = message["method"].as_str().unwrap_or_default().to_owned();
    if let Some(body) = state.fed.lock().remove(&method) {
        unanswered.answered();
        return Ok(wire::sse(body));
    }
    let scripted = match head.method {
        Method::POST => state.by_method.lock().get(&method).cloned(),
        Method::GET => state.by_method.lock().get(GET).cloned(),
        _ => None,
    };
    if let Some(behaviour) = scripted {
        return faults::behave(state, behaviour, era, &message, unanswered).await;
    }
    let only = *state.only.lock();
    match only {
        Some(Era::Sessions) if stateless => {
            unanswered.answered();
            return Ok(wire::refusal(StatusCode::BAD_REQUEST, &message, -32600, "a session id is required"));
        }
        Some(Era::Stateless) if !stateless => {
            unanswered.answered();
            if head.method != Method::POST {
                return Ok(wire::empty(StatusCode::METHOD_NOT_ALLOWED));
            }
            return Ok(wire::refusal(StatusCode::BAD_REQUEST, &message, -32022, "only 2026-07-28"));
        }
        _ => {}
    }
    let session = head.header("mcp-session-id").map(str::to_owned);
    if era == Era::Sessions && method != "initialize" {
        let known = session.as_ref().is_some_and(|id| state.sessions.lock().contains_key(id));
        if session.is_none() {
            unanswered.answered();
            return Ok(wire::refusal(StatusCode::BAD_REQUEST, &message, -32600, "a session id is required"));
        }
        if !known {
            unanswered.answered();
            return Ok(wire::refusal(StatusCode::NOT_FOUND, &message, -32001, "no such session"));
        }
    }
    if head.method == Method::POST {
        if method.is_empty() && (message.get("result").is_some() || message.get("error").is_some()) {
            let key = message["id"].as_str().unwrap_or_default();
            if let Some(waiting) = state.asked.lock().remove(key) {
                drop(waiting.send(message.clone()));
            }
        }
        if message.get("id").is_none() || method.is_empty() {
            unanswered.answered();
            return Ok(wire::empty(StatusCode::ACCEPTED));
        }
        return respond(state, era, &method, &message, unanswered).await;
    }
    if era == Era::Sessions && head.method == Method::GET {
        let (feed, body) = Feed::new();
        if let Some(id) = session
            && let Some(session) = state.sessions.lock().get_mut(&id)
        {
            session.stream = Some(feed);
        }
        unanswered.answered();
        return Ok(wire::sse(body));
    }
    unanswered.answered();
    if era == Era::Sessions && head.method == Method::DELETE {
        state.sessions.lock().remove(&session.unwrap_or_default());
        return Ok(wire::empty(StatusCode::OK));
    }
    Ok(wire::empty(StatusCode::METHOD_NOT_ALLOWED))
}

async fn respond(
    state: &Arc<State>,
    era: Era,
    method: &str,
    message: &Value,
    unanswered: Unanswered,
) -> Result<Response<Body>, std::io::Error> {
    let params = &message["params"];
    let result = match method {
        "initialize" => {
            let asked = params["protocolVersion"].as_str().unwrap_or_default();
            let agreed = REVISIONS.iter().find(|known| **known == asked).unwrap_or(&REVISIONS[0]);
            let id = format!("session-{}", state.numbers.fetch_add(1, Ordering::Relaxed));
            state.sessions.lock().insert(id.clone(), Session::default());
            let result = json!({
                "protocolVersion": agreed, "capabilities": capabilities(state),
                "serverInfo": {"name": "scripted", "version": "1"},
            });
            unanswered.answered();
            let mut answer = wire::result(era, message, result);
            answer.headers_mut().insert("mcp-session-id", id.parse().expect("it is a header's value"));
            return Ok(answer);
        }
        "server/discover" => json!({
            "supportedVersions": [Era::Stateless.revision()], "capabilities": capabilities(state),
            "ttlMs": 0, "cacheScope": "private",
            "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "scripted", "version": "1"}},
        }),
        "ping" => json!({}),
        "resources/subscribe" | "resources/unsubscribe" if era == Era::Sessions => json!({}),
        "subscriptions/listen" if era == Era::Stateless => {
            unanswered.answered();
            return Ok(listen::listen(state, message).await);
        }
        "tools/list" => json!({"tools": *state.tools.lock(), "ttlMs": 0, "cacheScope": "private"}),
        "tools/call" => {
            let name = params["name"].as_str().unwrap_or_default();
            let scripted = state.by_tool.lock().get(name).cloned();
            let listed = state.tools.lock().iter().any(|tool| tool["name"] == name);
            let behaviour = match (scripted, name) {
                (Some(behaviour), _) => behaviour,
                (None, "add") => {
                    let number = |name: &str| params["arguments"][name].as_f64().unwrap_or(0.0);
                    let sum = number("a") + number("b");
                    Behaviour::Result(json!({"content": [{"type": "text", "text": sum.to_string()}]}))
                }
                (None, _) if listed => Behaviour::Echo,
                (None, _) => {
                    Behaviour::Error { code: -32602, message: format!("no tool {name}"), data: Value::Null }
                }
            };
            return faults::behave(state, behaviour, era, message, unanswered).await;
        }
        "resources/list" => {
            json!({"resources": [{"uri": "test://one", "name": "one"}], "ttlMs": 0, "cacheScope": "private"})
        }
        "resources/read" => {
            let uri = &params["uri"];
            json!({"contents": [{"uri": uri, "text": "a resource"}], "ttlMs": 0, "cacheScope": "private"})
        }
        "prompts/list" => json!({"prompts": [{"name": "greet"}], "ttlMs": 0, "cacheScope": "private"}),
        "prompts/get" => {
            json!({"messages": [{"role": "user", "content": {"type": "text", "text": "hello"}}]})
        }
        _ => {
            unanswered.answered();
            let status = if era == Era::Stateless { StatusCode::NOT_FOUND } else { StatusCode::OK };
            return Ok(wire::refusal(status, message, -32601, "no such method"));
        }
    };
    unanswered.answered();
    Ok(wire::result(era, message, result))
}

fn capabilities(state: &State) -> Value {
    let usual = || json!({"tools": {"listChanged": true}, "resources": {}, "prompts": {}, "logging": {}});
    state.offered.lock().clone().unwrap_or_else(usual)
}

/// A tool with this name that takes anything.
pub fn tool(name: &str) -> Value {
    json!({"name": name, "description": format!("The tool {name}."), "inputSchema": {"type": "object"}})
}
