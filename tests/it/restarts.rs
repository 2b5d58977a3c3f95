//! Restarts under load: two proxies, of which one after the other is restarted while clients call through both. A client
//! goes to the other proxy where a connection is refused, as any would, since nothing was sent then; whatever else is not
//! the right answer is a failure. The long version: `WAFFLES_TEST_RESTARTS=20`, `WAFFLES_TEST_RESTART_CALLS=100000`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use waffles_runtime::task;
use waffles_tests::mcp_client::stateless_meta;
use waffles_tests::programs::DataPlaneOptions;
use waffles_tests::{Era, Figure, PATIENCE, Seeded, eventually, until};

const CALLERS: usize = 8;

#[expect(clippy::disallowed_methods, reason = "a test binary has no settings of its own")]
fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A client that keeps its connections, as an agent or a load balancer does.
struct Caller {
    proxies: [SocketAddr; 2],
    key: String,
    kept: [Option<SendRequest<Full<Bytes>>>; 2],
    number: usize,
    /// Half of the callers take a new connection for each call.
    keeps: bool,
}

impl Caller {
    async fn call(&mut self, call: usize) -> anyhow::Result<()> {
        let text = format!("{}-{call}", self.number);
        for turn in 0..4 {
            let which = (call + self.number + turn) % 2;
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
        anyhow::bail!("neither proxy takes connections")
    }

    /// A kept connection that is good still, or a new one; none where it is refused.
    async fn connection(&mut self, which: usize) -> Option<SendRequest<Full<Bytes>>> {
        if let Some(mut kept) = self.kept[which].take()
            && !kept.is_closed()
            && kept.ready().await.is_ok()
        {
            return Some(kept);
        }
        let socket = TcpStream::connect(self.proxies[which]).await.ok()?;
        socket.set_nodelay(true).ok()?;
        let (sender, connection) = handshake(TokioIo::new(socket)).await.ok()?;
        task::spawn("caller's connection", async move { drop(connection.await) });
        Some(sender)
    }

    fn request(&self, which: usize, text: &str) -> Request<Full<Bytes>> {
        let params = json!({"name": "echo", "arguments": {"text": text}, "_meta": stateless_meta()});
        let body =
            json!({"jsonrpc": "2.0", "id": text, "method": "tools/call", "params": params}).to_string();
        Request::post("/mcp/servers/demo")
            .header("host", self.proxies[which].to_string())
            .header("authorization", format!("Bearer {}", self.key))
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", Era::Stateless.revision())
            .header("mcp-method", "tools/call")
            .header("mcp-name", "echo")
            .body(Full::new(Bytes::from(body)))
            .expect("it is well formed")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarting_one_of_two_proxies_loses_no_call() {
    let restarts = setting("WAFFLES_TEST_RESTARTS", 4);
    let calls = setting("WAFFLES_TEST_RESTART_CALLS", 1_000);
    // What is shed is not lost, but here nothing shall be shed either.
    let args = ["--linger", "500ms", "--max-lag", "10s"].map(str::to_owned).to_vec();
    let options = DataPlaneOptions { args, workers: 2, ..DataPlaneOptions::default() };
    let mut waffles = Seeded::made(options.clone(), |_| {}, |_, _| {}).await;
    let mut other = waffles.another_with(options).await;
    let proxies = [waffles.proxy.mcp, other.mcp];
    let made = Arc::new(AtomicUsize::new(0));
    let stop = Arc::new(AtomicUsize::new(0));
    let failures: Arc<Mutex<Vec<String>>> = Arc::default();
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let mut caller = Caller {
                proxies,
                key: waffles.key.clone(),
                kept: [None, None],
                number,
                keeps: number % 2 == 0,
            };
            let (made, stop, failures) = (Arc::clone(&made), Arc::clone(&stop), Arc::clone(&failures));
            task::spawn("caller", async move {
                for call in 0.. {
                    if stop.load(Relaxed) > 0 {
                        return;
                    }
                    if let Err(error) = caller.call(call).await {
                        failures.lock().push(format!("call {call} of caller {number}: {error:#}"));
                    }
                    made.fetch_add(1, Relaxed);
                }
            })
        })
        .collect();
    for restart in 0..restarts {
        let due = calls * (restart + 1) / (restarts + 1);
        until("calls are made", PATIENCE * 40, || async { made.load(Relaxed) >= due }).await;
        let proxy = if restart % 2 == 0 { &mut waffles.proxy } else { &mut other };
        let ended = proxy.stop().await;
        assert!(ended.success(), "{ended}");
        proxy.restart().await;
        proxy.ready().await;
        // Both serve before the other one goes.
        let addr = proxy.mcp;
        eventually(PATIENCE, || async move { TcpStream::connect(addr).await.context("not yet") }).await;
    }
    until("all calls are made", PATIENCE * 40, || async { made.load(Relaxed) >= calls }).await;
    stop.store(1, Relaxed);
    for caller in callers {
        tokio::time::timeout(Duration::from_secs(60), caller).await.unwrap().unwrap();
    }
    let failures = failures.lock().clone();
    let made = made.load(Relaxed);
    Figure {
        promise: "P01".into(),
        what: "calls lost while proxies are restarted".into(),
        goal: "0 of 100000 over 20 restarts".into(),
        measured: format!("{} of {made} over {restarts} restarts", failures.len()),
        extent: format!("{made} of 100000 calls"),
        met: failures.is_empty(),
    }
    .note();
    assert!(
        failures.is_empty(),
        "{} of {made} calls: {:#?}",
        failures.len(),
        failures.iter().take(5).collect::<Vec<_>>()
    );
}
