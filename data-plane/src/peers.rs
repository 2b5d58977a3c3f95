//! The other proxies of the group. What a client brings back for something that another proxy holds (a parked call, a
//! question of a server) goes to that proxy, sealed whole under the keys that the proxies share, with who the client is
//! instead of its credential. It is rare, so it takes no connection pool.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, Uri, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use waffles_core::seal::SealRing;
use waffles_core::snapshot::Snapshot;
use waffles_mcp::headers::{MCP_METHOD, MCP_NAME, MCP_PROTOCOL_VERSION, MCP_SESSION_ID};
use waffles_runtime::outbound::{OutboundPolicy, Ports};
use waffles_runtime::task;
use waffles_runtime::tls::ClientTrust;

use crate::authn::{Carried, Identity};
use crate::reject::Reject;
use crate::stream::Body;

/// Where a proxy takes what others pass on to it.
pub const PATH: &str = "/internal/v1/peer";
const PURPOSE: &[u8] = b"waffles peer 1";
/// A sealed message is good for as long as two clocks may differ and a connection may take.
const MAX_AGE: i64 = 60;
const CONNECT_TIME: Duration = Duration::from_secs(5);
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// The headers of a message that its meaning depends on.
const CARRIED: [http::HeaderName; 6] =
    [header::CONTENT_TYPE, header::ACCEPT, MCP_PROTOCOL_VERSION, MCP_SESSION_ID, MCP_METHOD, MCP_NAME];

/// A client's message on its way to the proxy that it is for.
#[derive(Serialize, Deserialize)]
struct Envelope {
    at: i64,
    who: Carried,
    address: IpAddr,
    path: String,
    headers: Vec<(String, String)>,
    body: String,
}

/// A message that another proxy has passed on.
#[derive(Debug)]
pub struct Passed {
    /// Who sent it.
    pub identity: Identity,
    /// The path that it came to.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// The message.
    pub body: Bytes,
}

/// Seals an address of this proxy, for what only it can answer.
pub fn mark(ring: &SealRing, address: &str) -> Option<String> {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    ring.seal(PURPOSE, address.as_bytes()).ok().map(|sealed| URL_SAFE_NO_PAD.encode(sealed))
}

/// Reads it again.
pub fn marked(ring: &SealRing, mark: &str) -> Option<String> {
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    String::from_utf8(ring.open(PURPOSE, &URL_SAFE_NO_PAD.decode(mark).ok()?).ok()?).ok()
}

/// Passes a client's message on to the proxy at `owner` and gives that proxy's answer.
pub async fn pass_on(
    owner: &str,
    ring: &SealRing,
    identity: &Identity,
    parts: &Parts,
    body: &[u8],
    now: i64,
) -> Result<Response<Body>, Reject> {
    let text = |name: &http::HeaderName| {
        let value = parts.headers.get(name)?.to_str().ok()?;
        Some((name.as_str().to_owned(), value.to_owned()))
    };
    let envelope = Envelope {
        at: now,
        who: identity.carry(),
        address: identity.address(),
        path: parts.uri.path().to_owned(),
        headers: CARRIED.iter().filter_map(text).collect(),
        body: STANDARD.encode(body),
    };
    let failed = || Reject::Internal("cannot_pass_on");
    let plain = serde_json::to_vec(&envelope).map_err(|_| failed())?;
    let sealed = ring.seal(PURPOSE, &plain).map_err(|_| failed())?;
    match timeout(ANSWER_TIME, send(owner, sealed.into())).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => {
            tracing::warn!(peer = owner, %error, "another proxy does not take a message for it");
            Err(Reject::PeerGone)
        }
        Err(_) => Err(Reject::PeerGone),
    }
}

/// Opens what another proxy passed on.
pub fn open(snapshot: &Arc<Snapshot>, sealed: &[u8], now: i64) -> Result<Passed, Reject> {
    let settings = snapshot.settings().ok_or(Reject::NotReady)?;
    let refused = || Reject::Unauthenticated("forged_peer_message");
    let plain = settings.seal.open(PURPOSE, sealed).map_err(|_| refused())?;
    let envelope: Envelope = serde_json::from_slice(&plain).map_err(|_| refused())?;
    if now.saturating_sub(envelope.at).abs() > MAX_AGE {
        return Err(refused());
    }
    let identity = Identity::carried(snapshot, envelope.who, envelope.address).ok_or_else(refused)?;
    let mut headers = HeaderMap::new();
    for (name, value) in envelope.headers {
        let name: http::HeaderName = name.parse().map_err(|_| refused())?;
        headers.insert(name, HeaderValue::try_from(value).map_err(|_| refused())?);
    }
    let body = STANDARD.decode(envelope.body).map_err(|_| refused())?.into();
    Ok(Passed { identity, path: envelope.path, headers, body })
}

async fn send(owner: &str, sealed: Bytes) -> anyhow::Result<Response<Body>> {
    let uri: Uri = owner.parse()?;
    let host = uri.host().unwrap_or_default().to_owned();
    let tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    // Proxies are beside one another, on whatever ports and in pods of whatever network; what is never one stays closed.
    let policy = OutboundPolicy {
        allow_private: true,
        allow_cidrs: vec![IpNet::new_assert(Ipv4Addr::new(100, 64, 0, 0).into(), 10)],
        ports: Ports::any(),
        ..OutboundPolicy::default()
    };
    let bare = host.trim_matches(['[', ']']).to_owned();
    let stream = policy.connect(&host, port, CONNECT_TIME).await?;
    let mut request = Request::post(PATH).body(Full::new(sealed))?;
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    request.headers_mut().insert(header::HOST, HeaderValue::try_from(authority)?);
    if tls {
        let connector = TlsConnector::from(ClientTrust::default().http1()?);
        let stream = timeout(CONNECT_TIME, connector.connect(ServerName::try_from(bare)?, stream)).await??;
        exchange(stream, request).await
    } else {
        exchange(stream, request).await
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Body>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
    task::spawn("peer connection", async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, "a connection to another proxy ended");
        }
    });
    let (mut head, body) = sender.send_request(request).await?.into_parts();
    // Those are of this hop.
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH, header::DATE] {
        head.headers.remove(name);
    }
    Ok(Response::from_parts(head, Body::Passed(body)))
}

/// The address by which other proxies of the group reach this one, where it can be told from where it listens.
pub fn own_address(given: Option<&str>, listens: SocketAddr, tls: bool) -> Option<String> {
    match given {
        Some(given) => Some(given.to_owned()),
        None if listens.ip().is_unspecified() => None,
        None => Some(format!("{}://{listens}", if tls { "https" } else { "http" })),
    }
}
