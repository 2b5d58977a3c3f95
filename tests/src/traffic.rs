//! Clients that call one server through several proxies, over and over, while something is done to the proxies. A client goes
//! to the next proxy where a connection is refused, as any would, since nothing was sent then; whatever else is not the right
//! answer is a failure.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use anyhow::ensure;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use waffles_runtime::task;

use crate::mcp_client::stateless_meta;
use crate::{Era, PATIENCE, until};

/// How long a call may take.
const CALL_TIME: Duration = Duration::from_secs(60);

/// What the callers do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Whom they ask.
    pub proxies: Vec<SocketAddr>,
    /// The server's name.
    pub server: String,
    /// The credential.
    pub key: String,
    /// How many they are.
    pub callers: usize,
    /// How long each waits between two calls.
    pub pause: Duration,
}

/// Callers at work.
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
    callers: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    made: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Traffic {
    /// Begins.
    pub fn start(plan: &Plan) -> Self {
        let shared = Arc::<Shared>::default();
        let callers = (0..plan.callers)
            .map(|number| {
                let caller = Caller::new(plan.clone(), number);
                task::spawn("caller", caller.run(Arc::clone(&shared)))
            })
            .collect();
        Self { shared, callers }
    }

    /// How many calls were made so far, well or not.
    pub fn made(&self) -> usize {
        self.shared.made.load(Relaxed)
    }

    /// Waits until so many were made.
    pub async fn reach(&self, calls: usize) {
        until("calls are made", PATIENCE * 40, || async { self.made() >= calls }).await;
    }

    /// Ends, and tells how many calls were made and why some of them failed.
    pub async fn stop(self) -> (usize, Vec<String>) {
        self.shared.stop.store(true, Relaxed);
        for caller in self.callers {
            tokio::time::timeout(CALL_TIME * 2, caller)
                .await
                .expect("a caller ends")
                .expect("no caller panics");
        }
        (self.shared.made.load(Relaxed), std::mem::take(&mut *self.shared.failures.lock()))
    }
}

/// A client that keeps its connections, as an agent or a load balancer does, or takes a new one for each call.
struct Caller {
    plan: Plan,
    kept: Vec<Option<SendRequest<Full<Bytes>>>>,
    number: usize,
    keeps: bool,
}

impl Caller {
    fn new(plan: Plan, number: usize) -> Self {
        let kept = plan.proxies.iter().map(|_| None).collect();
        Self { plan, kept, number, keeps: number.is_multiple_of(2) }
    }

    async fn run(mut self, shared: Arc<Shared>) {
        for call in 0.. {
            if shared.stop.load(Relaxed) {
                return;
            }
            let called = tokio::time::timeout(CALL_TIME, self.call(call)).await;
            if let Err(error) = called.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer"))) {
                let failure = format!("call {call} of caller {}: {error:#}", self.number);
                shared.failures.lock().push(failure);
            }
            shared.made.fetch_add(1, Relaxed);
            if !self.plan.pause.is_zero() {
                tokio::time::sleep(self.plan.pause).await;
            }
        }
    }

    async fn call(&mut self, call: usize) -> anyhow::Result<()> {
        let text = format!("{}-{call}", self.number);
        let proxies = self.plan.proxies.len();
        for turn in 0..2 * proxies {
            let which = (call + self.number + turn) % proxies;
            let Some(mut sender) = self.connection(which).await else { continue };
            let answer = sender.send_request(self.request(which, &text)).await?;
            let closes = answer.headers().get(header::CONNECTION).is_some_and(|value| value == "close");
            let status = answer.status();
            let body = answer.into_body().collect().await?.to_bytes();
            let message: Value = serde_json::from_slice(&body)?;
            ensure!(status == StatusCode::OK, "{status} {message}");
            ensure!(message["result"]["structuredContent"]["text"] == text, "{message}");
            if self.keeps && !closes {
                self.kept[which] = Some(sender);
            }
            return Ok(());
        }
        anyhow::bail!("no proxy takes connections")
    }

    /// A kept connection that is good still, or a new one; none where it is refused.
    async fn connection(&mut self, which: usize) -> Option<SendRequest<Full<Bytes>>> {
        if let Some(mut kept) = self.kept[which].take()
            && !kept.is_closed()
            && kept.ready().await.is_ok()
        {
            return Some(kept);
        }
        let socket = TcpStream::connect(self.plan.proxies[which]).await.ok()?;
        socket.set_nodelay(true).ok()?;
        let (sender, connection) = handshake(TokioIo::new(socket)).await.ok()?;
        task::spawn("caller's connection", async move { drop(connection.await) });
        Some(sender)
    }

    fn request(&self, which: usize, text: &str) -> Request<Full<Bytes>> {
        let params = json!({"name": "echo", "arguments": {"text": text}, "_meta": stateless_meta()});
        let body =
            json!({"jsonrpc": "2.0", "id": text, "method": "tools/call", "params": params}).to_string();
        Request::post(format!("/mcp/servers/{}", self.plan.server))
            .header("host", self.plan.proxies[which].to_string())
            .header("authorization", format!("Bearer {}", self.plan.key))
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", Era::Stateless.revision())
            .header("mcp-method", "tools/call")
            .header("mcp-name", "echo")
            .body(Full::new(Bytes::from(body)))
            .expect("it is well formed")
    }
}
