//! Other doors to the same path: HTTP+SSE of 2024-11-05, batches of 2025-03-26, and the REST form for scripts. Each makes
//! single messages of Streamable HTTP out of what it is given and serves them through the gateway, so that credentials,
//! policy, limits and audit are those of every message.

pub mod batch;
mod messages;
pub mod rest;
pub mod sse;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _, unfold};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use hyper::body::Incoming;
use tokio::time::timeout;
use waffles_mcp::headers::{LAST_EVENT_ID, MCP_SESSION_ID, X_API_KEY};
use waffles_mcp::sse::KEEP_ALIVE;

use crate::authn::Identity;
use crate::gateway::{Door, Gateway, Scope, Source, Unmirrored, discard, read};
use crate::overload::Hold;
use crate::record::Record;
use crate::reject::Reject;
use crate::stream::Body;
use crate::upstream::is_type;

/// A quiet stream says that it is alive this often.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);
/// The headers that say who asks.
const CREDENTIALS: [HeaderName; 2] = [header::AUTHORIZATION, X_API_KEY];

/// On whose behalf a door serves messages, and where to.
#[derive(Clone)]
struct Caller {
    gateway: Arc<Gateway>,
    door: Door,
    peer: SocketAddr,
    credential: HeaderMap,
}

impl Caller {
    fn new(gateway: &Arc<Gateway>, door: &Door, peer: SocketAddr, headers: &HeaderMap) -> Self {
        let mut credential = HeaderMap::new();
        for name in CREDENTIALS {
            for value in headers.get_all(&name) {
                credential.append(name.clone(), value.clone());
            }
        }
        Self { gateway: Arc::clone(gateway), door: door.clone(), peer, credential }
    }

    /// Serves a message as if it had been posted by itself, under these headers beside the usual ones.
    async fn post(&self, message: Bytes, headers: HeaderMap) -> Response<Body> {
        self.send(Method::POST, headers, Source::Read(message)).await
    }

    /// Opens the stream of a session, or what came on one behind an event.
    async fn listen(&self, session: Option<&HeaderValue>, after: Option<&str>) -> Response<Body> {
        let mut headers = of_session(session);
        if let Some(after) = after.and_then(|id| HeaderValue::from_str(id).ok()) {
            headers.insert(LAST_EVENT_ID, after);
        }
        self.send(Method::GET, headers, Source::Read(Bytes::new())).await
    }

    /// Ends a session.
    async fn delete(&self, session: &HeaderValue) -> Response<Body> {
        self.send(Method::DELETE, of_session(Some(session)), Source::Read(Bytes::new())).await
    }

    async fn send(&self, method: Method, headers: HeaderMap, source: Source) -> Response<Body> {
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = method;
        // What another proxy is passed has the path of the door that serves messages.
        match path_of(&self.door).try_into() {
            Ok(uri) => parts.uri = uri,
            Err(_) => return refusal(&Reject::UnknownPath),
        }
        // What mirrors arguments is for Streamable HTTP alone.
        parts.extensions.insert(Unmirrored);
        parts.headers = headers;
        parts.headers.extend(self.credential.clone());
        let accept = HeaderValue::from_static("application/json, text/event-stream");
        parts.headers.insert(header::ACCEPT, accept);
        parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // Boxed, because it is large, and most of what these doors do is to wait.
        Box::pin(self.gateway.serve(self.door.clone(), self.peer, parts, source)).await
    }
}

/// An HTTP request to one of these doors, until it is clear what comes of it. What is refused before the gateway sees a
/// message of it leaves a record of its own.
struct Visit<'a> {
    gateway: &'a Arc<Gateway>,
    door: &'a Door,
    peer: SocketAddr,
    parts: &'a Parts,
    record: Record,
    /// What is held of its body.
    hold: Hold,
}

impl<'a> Visit<'a> {
    fn open(
        gateway: &'a Arc<Gateway>,
        door: &'a Door,
        peer: SocketAddr,
        parts: &'a Parts,
        action: &'static str,
    ) -> Self {
        let revision = gateway.current.load().revision;
        let mut record = Record::open(Arc::clone(&gateway.desk), peer.ip().to_canonical(), revision);
        record.note_stream(action);
        Self { gateway, door, peer, parts, record, hold: Hold::new(&gateway.shared.buffers) }
    }

    /// Who asks. Comes before any body is read.
    async fn identify(&mut self) -> Result<Identity, Reject> {
        let identity = self.gateway.identify(self.peer, self.parts).await?;
        self.record.note_identity(&identity);
        Ok(identity)
    }

    /// The body as JSON text, not yet looked at.
    async fn read(&mut self, body: &mut Incoming) -> Result<Bytes, Reject> {
        let headers = &self.parts.headers;
        if !is_type(headers, "application/json") || headers.contains_key(header::CONTENT_ENCODING) {
            return Err(Reject::UnsupportedMediaType);
        }
        read(body, &mut self.hold).await
    }

    fn caller(&self) -> Caller {
        Caller::new(self.gateway, self.door, self.peer, &self.parts.headers)
    }

    /// The gateway serves the message, and keeps the record of it.
    fn pass(mut self) {
        self.record.leave();
    }

    /// Turns the request away, and reads what else comes of it.
    async fn refuse(mut self, reject: &Reject, body: Option<&mut Incoming>) -> Response<Bytes> {
        if let Some(body) = body {
            discard(self.parts, body).await;
        }
        let response = reject.response(None, self.record.id());
        self.record.refuse(reject, response.status().as_u16());
        response
    }
}

/// The path of the door itself, as Streamable HTTP has it.
fn path_of(door: &Door) -> String {
    let below = match &door.scope {
        Scope::All => String::new(),
        Scope::Server(name) => format!("/servers/{name}"),
        Scope::Namespace(name) => format!("/namespaces/{name}"),
    };
    match &door.tenant {
        Some(tenant) => format!("/t/{tenant}/mcp{below}"),
        None => format!("/mcp{below}"),
    }
}

fn of_session(session: Option<&HeaderValue>) -> HeaderMap {
    session.map(|id| (MCP_SESSION_ID, id.clone())).into_iter().collect()
}

fn refusal(reject: &Reject) -> Response<Body> {
    reject.response(None, uuid::Uuid::now_v7()).map(Body::full)
}

/// The head of an event stream of our own.
fn event_stream(events: BoxStream<'static, Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Made(events));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// The same stream with signs of life where it is quiet.
fn kept_alive(events: BoxStream<'static, Bytes>) -> BoxStream<'static, Bytes> {
    unfold(events, |mut events| async move {
        match timeout(KEEP_ALIVE_EVERY, events.next()).await {
            Ok(event) => event.map(|event| (event, events)),
            Err(_) => Some((Bytes::from_static(KEEP_ALIVE), events)),
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doors_path_leads_to_it() {
        let door = |tenant: Option<&str>, scope| Door { tenant: tenant.map(Into::into), scope };
        for (door, path) in [
            (door(None, Scope::All), "/mcp"),
            (door(None, Scope::Server("demo".into())), "/mcp/servers/demo"),
            (door(Some("acme"), Scope::Namespace("team".into())), "/t/acme/mcp/namespaces/team"),
        ] {
            assert_eq!(path_of(&door), path);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_stream_says_that_it_is_alive() {
        let slow = unfold(0, |n| async move {
            tokio::time::sleep(Duration::from_secs(20)).await;
            (n < 1).then(|| (Bytes::from_static(b"data: x\n\n"), n + 1))
        });
        let said: Vec<Bytes> = kept_alive(slow.boxed()).collect().await;
        assert_eq!(said, [KEEP_ALIVE, b"data: x\n\n", KEEP_ALIVE]);
    }
}
