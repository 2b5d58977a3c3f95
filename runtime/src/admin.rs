//! The admin port: live, ready, metrics, effective configuration, tasks, and what a program adds.
//! It answers GET only, to callers on this machine (or in the pod's network, where it is bound
//! there for probes), and stays up until the drain has ended. It has no log-in, so nothing secret
//! may be shown on it.

mod gate;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::drain::Drain;
use crate::host::{BROWSERS, Hosts};
use crate::task::Tasks;
use crate::telemetry::{METRICS_TYPE, Metrics};
use crate::{listen, task};

pub use gate::{Gate, Gates};

const MAX_CONNECTIONS: usize = 64;
const HEADER_TIME: Duration = Duration::from_secs(10);
/// A connection takes requests this long, and gets a little more for the last answer, so that a
/// reader who never reads does not keep one for ever.
const CONNECTION_TIME: Duration = Duration::from_secs(300);
const LAST_ANSWER_TIME: Duration = Duration::from_secs(10);
const MAX_HEADERS: usize = 64;
const MAX_HEAD_BYTES: usize = 32 * 1024;

type Show = Box<dyn Fn() -> Value + Send + Sync>;

/// What the admin port shows.
pub struct Admin {
    gates: Gates,
    metrics: Metrics,
    tasks: Tasks,
    config: Value,
    detail: Option<Show>,
    routes: BTreeMap<&'static str, Show>,
    hosts: Vec<String>,
}

impl Admin {
    /// The parts every program has.
    #[must_use]
    pub fn new(gates: Gates, metrics: Metrics, tasks: Tasks) -> Self {
        let (config, routes) = (Value::Null, BTreeMap::new());
        Self { gates, metrics, tasks, config, detail: None, routes, hosts: Vec::new() }
    }

    /// The effective configuration for `/config`. Secrets are never in it.
    #[must_use]
    pub fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// What `/ready` shows beside the gates.
    #[must_use]
    pub fn detail(mut self, show: impl Fn() -> Value + Send + Sync + 'static) -> Self {
        self.detail = Some(Box::new(show));
        self
    }

    /// One more path, such as `/snapshot`.
    #[must_use]
    pub fn route(mut self, path: &'static str, show: impl Fn() -> Value + Send + Sync + 'static) -> Self {
        self.routes.insert(path, Box::new(show));
        self
    }

    /// One more name callers may use in `Host`, where the port is not bound to loopback.
    #[must_use]
    pub fn host(mut self, name: impl Into<String>) -> Self {
        self.hosts.push(name.into());
        self
    }

    /// Opens the port.
    ///
    /// # Errors
    /// When the address is taken or not ours.
    pub fn bind(self, addr: SocketAddr) -> io::Result<Bound> {
        let listener = listen::bind(addr, false)?;
        let local_addr = listener.local_addr()?;
        Ok(Bound { admin: Arc::new(self), listener, local_addr })
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if method != Method::GET {
            let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, "the admin port answers GET only");
            response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET"));
            return response;
        }
        match path {
            "/live" => json_response(StatusCode::OK, &json!({ "live": true })),
            "/ready" => self.ready(),
            "/metrics" => match self.metrics.encode() {
                Ok(text) => response(StatusCode::OK, METRICS_TYPE, text.into()),
                Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            },
            "/config" => json_response(StatusCode::OK, &self.config),
            "/tasks" => json_response(StatusCode::OK, &self.tasks.report()),
            "/" => json_response(StatusCode::OK, &self.index()),
            _ => match self.routes.get(path) {
                Some(show) => json_response(StatusCode::OK, &show()),
                None => problem(StatusCode::NOT_FOUND, "no such path; / lists them"),
            },
        }
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        let missing = self.gates.missing();
        let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let mut body = json!({ "ready": missing.is_empty(), "missing": missing });
        if let (Some(show), Some(body)) = (&self.detail, body.as_object_mut()) {
            body.insert("detail".to_owned(), show());
        }
        json_response(status, &body)
    }

    fn index(&self) -> Value {
        let mut paths = vec!["/live", "/ready", "/metrics", "/config", "/tasks"];
        paths.extend(self.routes.keys());
        json!({ "paths": paths })
    }
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("gates", &self.gates)
            .field("routes", &self.routes.keys())
            .finish_non_exhaustive()
    }
}

/// The admin port, open but not served yet.
#[derive(Debug)]
pub struct Bound {
    admin: Arc<Admin>,
    listener: std::net::TcpListener,
    local_addr: SocketAddr,
}

impl Bound {
    /// Where it listens; with port 0, the port the system chose.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until the drain has ended.
    ///
    /// # Errors
    /// When the runtime cannot watch the socket.
    pub async fn serve(self, drain: Drain) -> io::Result<()> {
        let listener = listen::adopt(self.listener)?;
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        // A forwarded port is `localhost` to whoever looks, and that name cannot be rebound. No page may look.
        let names = self.admin.hosts.iter().cloned().chain(["localhost".to_owned()]);
        let hosts = Arc::new(Hosts::new(self.local_addr, names));
        let serve = async {
            loop {
                // Full means waiting in the kernel's queue; silent connections end within seconds.
                let place = places.clone().acquire_owned().await;
                let (stream, _) = listen::accept(&listener).await;
                let (admin, hosts) = (self.admin.clone(), hosts.clone());
                task::spawn("admin-connection", async move {
                    connection(stream, admin, hosts).await;
                    drop(place);
                });
            }
        };
        tokio::select! {
            () = serve => {}
            () = drain.ended() => {}
        }
        Ok(())
    }
}

async fn connection(stream: TcpStream, admin: Arc<Admin>, hosts: Arc<Hosts>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (admin, hosts) = (admin.clone(), hosts.clone());
        async move { Ok::<_, Infallible>(guarded(&admin, &request, &hosts)) }
    });
    let serve = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serve);
    let served = match tokio::time::timeout(CONNECTION_TIME, serve.as_mut()).await {
        Ok(served) => Ok(served),
        Err(_) => {
            serve.as_mut().graceful_shutdown();
            tokio::time::timeout(LAST_ANSWER_TIME, serve).await
        }
    };
    match served {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "admin connection failed"),
        Err(_) => tracing::debug!("admin connection cut off, its answer was not read"),
    }
}

fn guarded(admin: &Admin, request: &Request<Incoming>, hosts: &Hosts) -> Response<Full<Bytes>> {
    if let Err(foreign) = hosts.check(request.uri(), request.headers()) {
        return problem(StatusCode::FORBIDDEN, &foreign.to_string());
    }
    let answer = AssertUnwindSafe(|| admin.answer(request.method(), request.uri().path()));
    match std::panic::catch_unwind(answer) {
        Ok(response) => response,
        Err(panic) => {
            task::report_panic(panic.as_ref());
            problem(StatusCode::INTERNAL_SERVER_ERROR, "this page failed; see the log")
        }
    }
}

fn problem(status: StatusCode, reason: &str) -> Response<Full<Bytes>> {
    json_response(status, &json!({ "error": reason }))
}

fn json_response(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    response(status, "application/json", format!("{value:#}\n").into())
}

fn response(status: StatusCode, media_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media_type));
    for (name, value) in BROWSERS {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests connect to what they have started")]
mod tests;
