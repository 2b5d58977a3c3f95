//! A raw MCP client: exact headers, exact bytes, one connection a request unless asked otherwise. It checks nothing, so
//! that tests can send what no SDK would, and see all that comes back.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use waffles_mcp::sse;

use crate::PATIENCE;

/// The two families of Streamable HTTP, each by its newest revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Era {
    /// `initialize` and sessions.
    Sessions,
    /// Everything in each request.
    Stateless,
}

impl Era {
    pub const BOTH: [Self; 2] = [Self::Sessions, Self::Stateless];

    /// Its newest revision.
    pub fn revision(self) -> &'static str {
        match self {
            Self::Sessions => "2025-11-25",
            Self::Stateless => "2026-07-28",
        }
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Whether the body ended as HTTP says it must, as opposed to the connection breaking off.
    pub complete: bool,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub fn is_sse(&self) -> bool {
        self.header("content-type").is_some_and(|value| value.starts_with("text/event-stream"))
    }

    /// The messages in it: the JSON body, or the data of its events.
    pub fn messages(&self) -> Vec<Value> {
        if !self.is_sse() {
            return serde_json::from_slice(&self.body).into_iter().collect();
        }
        events(&self.body).iter().filter_map(|event| serde_json::from_slice(&event.data).ok()).collect()
    }

    /// The last message, which answers the request.
    pub fn message(&self) -> Value {
        let messages = self.messages();
        messages.last().cloned().unwrap_or_else(|| panic!("no message in {} {:?}", self.status, self.text()))
    }

    /// The result in it.
    pub fn result(&self) -> Value {
        let message = self.message();
        message.get("result").cloned().unwrap_or_else(|| panic!("no result in {} {message}", self.status))
    }

    /// The code of the error in it.
    pub fn error_code(&self) -> i64 {
        let message = self.message();
        message["error"]["code"].as_i64().unwrap_or_else(|| panic!("no error in {} {message}", self.status))
    }
}

/// All events of a whole stream.
pub fn events(body: &[u8]) -> Vec<sse::Event> {
    let mut decoder = sse::Decoder::new(64 << 20);
    decoder.push(Bytes::copy_from_slice(body));
    let mut events = Vec::new();
    while let Some(item) = decoder.next().expect("events are small enough") {
        if let sse::Item::Event(event) = item {
            events.push(event);
        }
    }
    events
}

/// An answer whose body is read as it comes. Dropping it closes the connection, as a client that goes away does.
#[derive(Debug)]
pub struct Stream {
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: Incoming,
    decoder: sse::Decoder,
    connection: JoinHandle<()>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Stream {
    /// The next event; none at the end of the stream, an error when the connection broke off.
    pub async fn event(&mut self) -> anyhow::Result<Option<sse::Event>> {
        tokio::time::timeout(PATIENCE, self.unbounded_event()).await?
    }

    async fn unbounded_event(&mut self) -> anyhow::Result<Option<sse::Event>> {
        loop {
            match self.decoder.next()? {
                Some(sse::Item::Event(event)) => return Ok(Some(event)),
                Some(sse::Item::Comment) => {}
                None => match self.body.frame().await {
                    None => return Ok(None),
                    Some(frame) => {
                        if let Ok(data) = frame?.into_data() {
                            self.decoder.push(data);
                        }
                    }
                },
            }
        }
    }

    /// The next message in an event's data.
    pub async fn message(&mut self) -> anyhow::Result<Value> {
        loop {
            let event = self.event().await?.ok_or_else(|| anyhow::anyhow!("the stream has ended"))?;
            if !event.data.is_empty() {
                return Ok(serde_json::from_slice(&event.data)?);
            }
        }
    }

    /// Waits for its end.
    pub async fn rest(mut self) -> anyhow::Result<Vec<Value>> {
        let mut messages = Vec::new();
        while let Some(event) = self.event().await? {
            messages.extend(serde_json::from_slice::<Value>(&event.data));
        }
        Ok(messages)
    }
}

/// A client of one endpoint.
#[derive(Debug, Clone)]
pub struct McpClient {
    uri: Uri,
    /// Sent with every request; a test may change them at will.
    pub headers: HeaderMap,
}

impl McpClient {
    /// A client without a credential.
    pub fn new(url: &str) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Self { uri: url.parse().expect("it is a URL"), headers }
    }

    #[must_use]
    pub fn with_bearer(self, credential: &str) -> Self {
        self.with("authorization", &format!("Bearer {credential}"))
    }

    /// Sets a header.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::try_from(name).expect("it is a header's name");
        self.headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).expect("it is a header's value"));
        self
    }

    /// Takes a header away.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.headers.remove(name);
        self
    }

    /// Posts exactly these bytes.
    pub async fn post(&self, body: impl Into<Bytes>) -> anyhow::Result<Answer> {
        self.request(Method::POST, body.into()).await
    }

    /// Posts and returns when the answer's head is there.
    pub async fn post_stream(&self, body: impl Into<Bytes>) -> anyhow::Result<Stream> {
        self.open(Method::POST, body.into()).await
    }

    /// Opens the stream of a session.
    pub async fn get_stream(&self) -> anyhow::Result<Stream> {
        self.clone().with("accept", "text/event-stream").open(Method::GET, Bytes::new()).await
    }

    pub async fn get(&self) -> anyhow::Result<Answer> {
        self.request(Method::GET, Bytes::new()).await
    }

    pub async fn delete(&self) -> anyhow::Result<Answer> {
        self.request(Method::DELETE, Bytes::new()).await
    }

    /// A request and its whole answer, also a broken-off one.
    pub async fn request(&self, method: Method, body: Bytes) -> anyhow::Result<Answer> {
        let mut stream = self.open(method, body).await?;
        let mut body = Vec::new();
        let complete = tokio::time::timeout(PATIENCE * 4, async {
            loop {
                match stream.body.frame().await {
                    None => return true,
                    Some(Err(_)) => return false,
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            body.extend_from_slice(&data);
                        }
                    }
                }
            }
        })
        .await?;
        Ok(Answer { status: stream.status, headers: stream.headers.clone(), body: body.into(), complete })
    }

    async fn open(&self, method: Method, body: Bytes) -> anyhow::Result<Stream> {
        let authority = self.uri.authority().expect("the URL names a host");
        let connect = TcpStream::connect(authority.as_str());
        let socket = tokio::time::timeout(Duration::from_secs(5), connect).await??;
        socket.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
        let connection = waffles_runtime::task::spawn("raw client connection", async move {
            drop(connection.await);
        });
        let mut request = Request::builder()
            .method(method)
            .uri(self.uri.path_and_query().map_or("/", |path| path.as_str()))
            .body(Full::new(body))?;
        request.headers_mut().extend(self.headers.clone());
        if !self.headers.contains_key(header::HOST) {
            request.headers_mut().insert(header::HOST, HeaderValue::from_str(authority.as_str())?);
        }
        let answer = tokio::time::timeout(PATIENCE * 4, sender.send_request(request)).await??;
        let (head, body) = answer.into_parts();
        let decoder = sse::Decoder::new(64 << 20);
        Ok(Stream { status: head.status, headers: head.headers, body, decoder, connection })
    }

    /// Writes exactly these bytes to a new connection, the request line included, and reads until the other side closes
    /// it or `limit` is over.
    pub async fn bytes(&self, bytes: &[u8], limit: Duration) -> anyhow::Result<Vec<u8>> {
        let authority = self.uri.authority().expect("the URL names a host");
        let mut socket = TcpStream::connect(authority.as_str()).await?;
        socket.write_all(bytes).await?;
        let mut answer = Vec::new();
        // What came until then is what the caller looks at, so neither a reset nor the limit is an error here.
        drop(tokio::time::timeout(limit, socket.read_to_end(&mut answer)).await);
        Ok(answer)
    }

    /// Starts a session and returns a client within it. Panics when it is refused.
    pub async fn initialize(&self) -> Self {
        let revision = Era::Sessions.revision();
        let answer = self.post(initialize(revision).to_string()).await.expect("the endpoint answers");
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let session = answer.header("mcp-session-id").map(str::to_owned);
        let agreed = answer.result()["protocolVersion"].as_str().expect("a revision is agreed").to_owned();
        let mut client = self.clone().with("mcp-protocol-version", &agreed);
        if let Some(session) = session {
            client = client.with("mcp-session-id", &session);
        }
        let ready = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
        let answer = client.post(ready.to_string()).await.expect("the endpoint answers");
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
        client
    }

    /// A client that is ready to ask in this era.
    pub async fn of(&self, era: Era) -> Self {
        match era {
            Era::Sessions => self.initialize().await,
            Era::Stateless => self.clone().with("mcp-protocol-version", era.revision()),
        }
    }

    /// Asks, in the era that the client is ready for.
    pub async fn ask(&self, id: impl Into<Value>, method: &str, params: Value) -> anyhow::Result<Answer> {
        let (client, body) = self.prepared(id.into(), method, params);
        client.post(body).await
    }

    /// Asks and returns when the answer's head is there.
    pub async fn ask_stream(
        &self,
        id: impl Into<Value>,
        method: &str,
        params: Value,
    ) -> anyhow::Result<Stream> {
        let (client, body) = self.prepared(id.into(), method, params);
        client.post_stream(body).await
    }

    /// Calls a tool.
    pub async fn call(&self, tool: &str, arguments: Value) -> anyhow::Result<Answer> {
        self.ask(1, "tools/call", json!({"name": tool, "arguments": arguments})).await
    }

    fn prepared(&self, id: Value, method: &str, mut params: Value) -> (Self, String) {
        let revision = self.headers.get("mcp-protocol-version").and_then(|value| value.to_str().ok());
        let mut client = self.clone();
        if revision == Some(Era::Stateless.revision()) {
            client = client.with("mcp-method", method);
            if let Some(name) = params.get("name").or_else(|| params.get("uri")).and_then(Value::as_str) {
                client = client.with("mcp-name", name);
            }
            if params["_meta"].is_null() {
                params["_meta"] = json!({});
            }
            let meta = params["_meta"].as_object_mut().expect("_meta is an object");
            for (key, value) in stateless_meta().as_object().expect("it is an object") {
                meta.entry(key).or_insert_with(|| value.clone());
            }
        }
        let message = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        (client, message.to_string())
    }
}

/// An `initialize` request.
pub fn initialize(revision: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": revision,
        "capabilities": {"elicitation": {}, "sampling": {}, "roots": {}},
        "clientInfo": {"name": "waffles-tests", "version": "1"},
    }})
}

/// What a stateless request carries in `_meta`.
pub fn stateless_meta() -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": Era::Stateless.revision(),
        "io.modelcontextprotocol/clientInfo": {"name": "waffles-tests", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {"elicitation": {}, "sampling": {}, "roots": {}},
    })
}
