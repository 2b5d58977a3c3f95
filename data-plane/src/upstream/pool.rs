//! Endpoints as they are connected to, and the connections that wait for their next message. One pool a thread: a
//! connection is used on the runtime that opened it, and nothing waits for another thread's lock.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri, header};
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use uuid::Uuid;
use waffles_core::server::{Credential, Endpoint};
use waffles_core::snapshot::{ServerEntry, Snapshot};
use waffles_runtime::outbound::{ConnectError, Denied, OutboundPolicy};
use waffles_runtime::tls::ClientTrust;
use waffles_runtime::{task, telemetry};

use super::Outgoing;
use super::standing::{Standing, Standings};
use crate::overload::Buffers;
use crate::reject::{Reject, UpstreamFault};
use crate::state::Current;

/// Most waiting connections an endpoint.
const MAX_IDLE: usize = 128;
/// Node and uvicorn close a connection that was idle for 5 s, without a word; a message must not cross that close.
const IDLE: Duration = Duration::from_secs(4);
/// Head of an answer, and what is read of one at once: each connection whose answer waits for room holds as much.
const MAX_HEAD: usize = 32 * 1024;

/// A connection to a server.
pub(super) type Connection = SendRequest<Full<Bytes>>;

/// A request on its way to a server.
pub(super) type Outbound = Request<Full<Bytes>>;

/// One endpoint as it is connected to.
#[derive(Debug)]
pub(super) struct Target {
    host: String,
    port: u16,
    tls: bool,
    pub(super) uri: Uri,
    pub(super) host_header: HeaderValue,
}

/// What is made once of a registration and used for every message.
#[derive(Debug)]
pub(super) struct Prepared {
    entry: Arc<ServerEntry>,
    pub(super) targets: Vec<Target>,
    credential: Option<(HeaderName, HeaderValue)>,
    /// What is known of the server, by all threads.
    pub(super) standing: Arc<Standing>,
}

struct Idle {
    connection: Connection,
    prepared: Arc<Prepared>,
    since: Instant,
}

/// The connections of one thread.
pub struct Pool {
    policy: OutboundPolicy,
    current: Arc<Current>,
    standings: Arc<Standings>,
    tls: Mutex<Option<TlsConnector>>,
    prepared: Mutex<HashMap<Uuid, Arc<Prepared>>>,
    idle: Mutex<HashMap<(Uuid, u16), Vec<Idle>>>,
    /// How much of answers may be held.
    pub(super) buffers: Arc<Buffers>,
}

impl Pool {
    pub(super) fn new(
        policy: OutboundPolicy,
        current: Arc<Current>,
        buffers: Arc<Buffers>,
        standings: Arc<Standings>,
    ) -> Self {
        let (tls, prepared, idle) = Default::default();
        Self { policy, current, buffers, standings, tls, prepared, idle }
    }

    /// The policy of this moment.
    fn policy(&self) -> OutboundPolicy {
        let mut policy = self.policy.clone();
        if let Some(settings) = self.current.load().settings() {
            policy.denied.extend(settings.closed.iter().copied().flat_map(Denied::own));
        }
        policy
    }

    /// What is made of this registration; made anew when the registration changed.
    pub(super) fn prepare(&self, entry: &Arc<ServerEntry>) -> Result<Arc<Prepared>, Reject> {
        if let Some(prepared) = self.prepared.lock().get(&entry.server.id)
            && Arc::ptr_eq(&prepared.entry, entry)
        {
            return Ok(Arc::clone(prepared));
        }
        let prepared = Prepared::new(entry, &self.standings);
        let prepared = Arc::new(prepared.ok_or(Reject::Internal("unusable_registration"))?);
        self.prepared.lock().insert(entry.server.id, Arc::clone(&prepared));
        Ok(prepared)
    }

    /// A waiting connection, the one that waited least: it is the likeliest to be alive.
    pub(super) fn take(&self, prepared: &Arc<Prepared>, endpoint: u16) -> Option<Connection> {
        let mut idle = self.idle.lock();
        let waiting = idle.get_mut(&(prepared.entry.server.id, endpoint))?;
        while let Some(Idle { connection, prepared: of, since }) = waiting.pop() {
            if !connection.is_closed() && since.elapsed() < IDLE && Arc::ptr_eq(&of, prepared) {
                return Some(connection);
            }
        }
        None
    }

    /// Takes a connection back whose answer was read to its end.
    pub(super) fn give_back(&self, connection: Connection, prepared: Arc<Prepared>, endpoint: u16) {
        if connection.is_closed() {
            return;
        }
        let mut idle = self.idle.lock();
        let waiting = idle.entry((prepared.entry.server.id, endpoint)).or_default();
        if waiting.len() < MAX_IDLE {
            waiting.push(Idle { connection, prepared, since: Instant::now() });
        }
    }

    /// Closes connections that waited too long, and forgets servers that are gone.
    pub fn sweep(&self, snapshot: &Snapshot) {
        self.idle.lock().retain(|_, waiting| {
            waiting.retain(|idle| !idle.connection.is_closed() && idle.since.elapsed() < IDLE);
            !waiting.is_empty()
        });
        self.prepared.lock().retain(|_, prepared| {
            let server = &prepared.entry.server;
            snapshot.server(&server.tenant, &server.spec.name).is_some_and(|now| now.server.id == server.id)
        });
    }

    /// Opens a connection.
    pub(super) async fn connect(
        &self,
        target: &Target,
        timeout: Duration,
    ) -> Result<Connection, UpstreamFault> {
        let deadline = Instant::now() + timeout;
        let stream = match self.policy().connect(&target.host, target.port, timeout).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(error = %telemetry::chain(&error), "cannot connect to a server");
                return Err(match error {
                    ConnectError::Refused { .. } | ConnectError::Closed { .. } => UpstreamFault::Closed,
                    _ => UpstreamFault::Unreachable,
                });
            }
        };
        if !target.tls {
            return handshake(stream).await;
        }
        let connector = self.connector()?;
        let name = ServerName::try_from(target.host.trim_matches(['[', ']']).to_owned())
            .map_err(|_| UpstreamFault::Unreachable)?;
        match tokio::time::timeout_at(deadline, connector.connect(name, stream)).await {
            Ok(Ok(stream)) => handshake(stream).await,
            Ok(Err(error)) => {
                tracing::warn!(error = %telemetry::chain(&error), "TLS with a server failed");
                Err(UpstreamFault::Unreachable)
            }
            Err(_) => Err(UpstreamFault::Unreachable),
        }
    }

    /// The system's trusted roots are read when the first https server is called, not at start.
    fn connector(&self) -> Result<TlsConnector, UpstreamFault> {
        let mut tls = self.tls.lock();
        if let Some(connector) = &*tls {
            return Ok(connector.clone());
        }
        let config = ClientTrust::default().http1().map_err(|error| {
            tracing::error!(error = %telemetry::chain(&error), "no trusted roots to check https servers with");
            UpstreamFault::Unreachable
        })?;
        Ok(tls.insert(TlsConnector::from(config)).clone())
    }
}

async fn handshake<S>(stream: S) -> Result<Connection, UpstreamFault>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (connection, driver) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| UpstreamFault::Unreachable)?;
    task::spawn_hot(async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, "a connection to a server ended");
        }
    });
    Ok(connection)
}

impl Prepared {
    fn new(entry: &Arc<ServerEntry>, standings: &Standings) -> Option<Self> {
        let targets = entry.server.spec.endpoints.iter().map(Target::new).collect::<Option<Vec<_>>>()?;
        let credential = credential(&entry.server.credential)?;
        Some(Self { entry: Arc::clone(entry), targets, credential, standing: standings.of(&entry.server) })
    }

    /// The request for whichever endpoint: with the server's credential, still without an address.
    pub(super) fn request(&self, outgoing: Outgoing) -> Outbound {
        let mut request = Request::new(Full::new(outgoing.body));
        *request.method_mut() = outgoing.method;
        let headers = request.headers_mut();
        *headers = outgoing.headers;
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("waffles/", env!("CARGO_PKG_VERSION"))),
        );
        if let Some((name, value)) = &self.credential {
            headers.insert(name.clone(), value.clone());
        }
        request
    }
}

impl Target {
    fn new(endpoint: &Endpoint) -> Option<Self> {
        let url = &endpoint.url;
        let host = url.host_str()?.to_owned();
        // The server's own name: guards against DNS rebinding refuse any other.
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.clone(),
        };
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        Some(Self {
            host,
            port: url.port_or_known_default()?,
            tls: url.scheme() == "https",
            uri: path.parse().ok()?,
            host_header: authority.parse().ok()?,
        })
    }
}

/// The header that a credential becomes; the outer none means that it cannot be one.
fn credential(credential: &Credential) -> Option<Option<(HeaderName, HeaderValue)>> {
    let (name, value) = match credential {
        Credential::None => return Some(None),
        Credential::Bearer { token } => (header::AUTHORIZATION, format!("Bearer {}", token.expose_secret())),
        Credential::Basic { username, password } => {
            let pair = format!("{username}:{}", password.expose_secret());
            (header::AUTHORIZATION, format!("Basic {}", STANDARD.encode(pair)))
        }
        Credential::Header { name, value } => (name.parse().ok()?, value.expose_secret().to_owned()),
    };
    let mut value = HeaderValue::try_from(value).ok()?;
    value.set_sensitive(true);
    Some(Some((name, value)))
}
