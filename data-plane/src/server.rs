//! The HTTP surface: which paths there are, and what no path takes: a foreign `Host` or `Origin`, a credential in the
//! URL. What a message says is left to the gateway.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use hyper::body::Incoming;
use uuid::Uuid;
use waffles_core::is_dns_label;
use waffles_runtime::admin::Gates;
use waffles_runtime::host::{Foreign, Hosts};

use crate::doors::{batch, rest, sse};
use crate::gateway::{Door, Gateway, Scope, Source, read_up_to};
use crate::overload::{Hold, Priority};
use crate::peers;
use crate::reject::Reject;
use crate::stream::Body;

/// Most header fields of a request, where HTTP itself has not counted them already.
const MAX_FIELDS: usize = 100;
/// Most bytes of what another proxy passes on: a whole message, packed.
const MAX_SEALED: usize = 8 * 1024 * 1024;

/// Query parameters by which credentials come to stand in logs.
const SECRET_PARAMETERS: [&str; 11] = [
    "access_token",
    "api_key",
    "api-key",
    "apikey",
    "auth",
    "authorization",
    "bearer",
    "jwt",
    "key",
    "password",
    "token",
];

/// The HTTP surface of one thread.
pub struct Server {
    /// The request path.
    pub gateway: Arc<Gateway>,
    /// The sessions of HTTP+SSE, of all threads.
    pub sessions: Arc<sse::Sessions>,
    /// Which names are ours.
    pub hosts: Hosts,
    /// What must be open before calls are served.
    pub gates: Gates,
}

/// What a path leads to.
#[derive(Debug, PartialEq, Eq)]
enum Route {
    Health,
    Ready,
    /// What another proxy of the group passes on.
    Peer,
    Door(Door),
    /// The stream of an HTTP+SSE session.
    Sse(Door),
    /// A message for one.
    Messages(Door),
    /// The REST form of a call.
    Rest(Door, rest::Call),
}

impl Server {
    /// One HTTP request.
    pub async fn serve(self: Arc<Self>, peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
        match self.route(&request) {
            Ok(Route::Door(door)) => {
                let (parts, body) = request.into_parts();
                let mut source = Source::Wire(body);
                match (self.gateway.receive(&door, peer, &parts, &mut source).await, source) {
                    (None, Source::Batch(bytes)) => {
                        Box::pin(batch::serve(&self.gateway, &door, peer, parts, bytes)).await
                    }
                    (Some(response), _) => response,
                    (None, _) => self.refused(&Reject::Internal("unanswered")),
                }
            }
            Ok(Route::Sse(door)) => {
                let (parts, _) = request.into_parts();
                sse::open(&self.gateway, &self.sessions, &door, peer, &parts).await
            }
            Ok(Route::Messages(door)) => {
                Box::pin(sse::post(&self.gateway, &self.sessions, &door, peer, request)).await
            }
            Ok(Route::Rest(door, call)) => {
                Box::pin(rest::serve(&self.gateway, &door, call, peer, request)).await
            }
            Ok(Route::Peer) => Box::pin(self.passed(peer, request)).await,
            Ok(Route::Health) => plain(StatusCode::OK, "ok\n".into()),
            Ok(Route::Ready) => self.ready(),
            Err(reject) => {
                let refused = self.refused(&reject);
                let is_rest = matches!(parse(request.uri().path()), Some(Route::Rest(..)));
                if is_rest { rest::refusal(&reject, refused.headers()) } else { refused }
            }
        }
    }

    fn refused(&self, reject: &Reject) -> Response<Body> {
        self.gateway.desk.metrics.refused(reject.reason());
        reject.response(None, Uuid::now_v7()).map(Body::full)
    }

    fn route(&self, request: &Request<Incoming>) -> Result<Route, Reject> {
        if request.headers().len() > MAX_FIELDS {
            return Err(Reject::TooManyHeaders);
        }
        self.hosts.check(request.uri(), request.headers()).map_err(|foreign| match foreign {
            Foreign::Host => Reject::ForeignHost,
            Foreign::Origin => Reject::ForeignOrigin,
        })?;
        if has_secret(request.uri()) {
            return Err(Reject::CredentialInUrl);
        }
        let route = parse(request.uri().path()).ok_or(Reject::UnknownPath)?;
        let method = request.method();
        let served = match route {
            Route::Health | Route::Ready | Route::Sse(_) => method == Method::GET,
            Route::Peer | Route::Messages(_) => method == Method::POST,
            // What is wrong there is told in its own form.
            Route::Rest(..) => true,
            Route::Door(_) => [Method::POST, Method::GET, Method::DELETE].contains(method),
        };
        if !served {
            return Err(Reject::MethodNotAllowed);
        }
        // What can be refused for want of room is refused before anything is read or verified.
        let priority = match &route {
            Route::Door(_) => Priority::of_head(method, request.headers()),
            Route::Sse(_) => Some(Priority::Listen),
            Route::Rest(_, call) => Some(call.priority()),
            // Signs of life, what other proxies wait for, and messages that only their text tells apart.
            Route::Health | Route::Ready | Route::Peer | Route::Messages(_) => None,
        };
        priority.map_or(Ok(()), |priority| self.gateway.overload.look(priority))?;
        Ok(route)
    }

    /// A message that a client brought to another proxy, and that is for something that this one holds.
    async fn passed(&self, peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
        let (mut parts, mut body) = request.into_parts();
        let mut hold = Hold::new(&self.gateway.shared.buffers);
        let sealed = match read_up_to(&mut body, MAX_SEALED, &mut hold).await {
            Ok(sealed) => sealed,
            Err(reject) => return self.refused(&reject),
        };
        let snapshot = self.gateway.current.load();
        let passed = match peers::open(&snapshot, &sealed, chrono::Utc::now().timestamp()) {
            Ok(passed) => passed,
            Err(reject) => return self.refused(&reject),
        };
        let (Some(Route::Door(door)), Ok(uri)) = (parse(&passed.path), passed.path.parse()) else {
            return self.refused(&Reject::UnknownPath);
        };
        parts.headers = passed.headers;
        parts.uri = uri;
        let source = Source::Read(passed.body);
        self.gateway.serve_as(Some(passed.identity), door, peer, parts, source).await
    }

    fn ready(&self) -> Response<Body> {
        let missing = self.gates.missing();
        if self.gates.is_ready() {
            plain(StatusCode::OK, "ready\n".into())
        } else {
            plain(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", ")))
        }
    }
}

/// Reads a path. Anything that is not exactly one of ours leads nowhere: there is no second spelling of a door.
fn parse(path: &str) -> Option<Route> {
    match path {
        "/health" => return Some(Route::Health),
        "/ready" => return Some(Route::Ready),
        peers::PATH => return Some(Route::Peer),
        _ => {}
    }
    if let Some(below) = path.strip_prefix("/api/v1/gateway/") {
        let (server, call) = match below.split_once('/') {
            Some((server, call)) => (server, Some(rest::Call::parse(call)?)),
            None => (below, None),
        };
        let door =
            is_dns_label(server).then(|| Door { tenant: None, scope: Scope::Server(server.to_owned()) })?;
        return Some(call.map_or(Route::Door(door.clone()), |call| Route::Rest(door, call)));
    }
    let (tenant, rest) = match path.strip_prefix("/t/") {
        Some(rest) => {
            let (tenant, rest) = rest.split_once('/')?;
            (Some(tenant), rest)
        }
        None => (None, path.strip_prefix('/')?),
    };
    if !tenant.is_none_or(is_dns_label) {
        return None;
    }
    let door = |scope| Door { tenant: tenant.map(ToOwned::to_owned), scope };
    // A server may be called `sse`, so a whole path comes before a path and its end.
    if let Some(scope) = scope(rest) {
        return Some(Route::Door(door(scope)));
    }
    let (rest, end) = rest.rsplit_once('/')?;
    match end {
        "sse" => Some(Route::Sse(door(scope(rest)?))),
        "messages" => Some(Route::Messages(door(scope(rest)?))),
        _ => None,
    }
}

fn scope(path: &str) -> Option<Scope> {
    if path == "mcp" {
        return Some(Scope::All);
    }
    match path.strip_prefix("mcp/")?.split_once('/')? {
        ("servers", name) if is_dns_label(name) => Some(Scope::Server(name.to_owned())),
        ("namespaces", name) if is_dns_label(name) => Some(Scope::Namespace(name.to_owned())),
        _ => None,
    }
}

fn has_secret(uri: &Uri) -> bool {
    uri.query().is_some_and(|query| {
        query.split('&').any(|pair| {
            let name = pair.split('=').next().unwrap_or_default().to_ascii_lowercase();
            SECRET_PARAMETERS.contains(&name.as_str())
        })
    })
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::full(Bytes::from(text)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_door_has_one_spelling() {
        let door = |tenant: Option<&str>, server: &str| {
            let scope = Scope::Server(server.into());
            Some(Route::Door(Door { tenant: tenant.map(Into::into), scope }))
        };
        let federated = |scope| Some(Route::Door(Door { tenant: None, scope }));
        assert_eq!(parse("/mcp"), federated(Scope::All));
        assert_eq!(parse("/mcp/namespaces/team"), federated(Scope::Namespace("team".into())));
        assert_eq!(parse("/mcp/servers/demo"), door(None, "demo"));
        assert_eq!(parse("/t/acme/mcp/servers/demo"), door(Some("acme"), "demo"));
        let of = |scope| Door { tenant: None, scope };
        let demo = || of(Scope::Server("demo".into()));
        assert_eq!(parse("/mcp/sse"), Some(Route::Sse(of(Scope::All))));
        assert_eq!(parse("/mcp/servers/sse"), door(None, "sse"));
        assert_eq!(parse("/mcp/servers/sse/sse"), Some(Route::Sse(of(Scope::Server("sse".into())))));
        assert_eq!(parse("/mcp/servers/demo/messages"), Some(Route::Messages(demo())));
        let tenants = Door { tenant: Some("acme".into()), scope: Scope::Namespace("team".into()) };
        assert_eq!(parse("/t/acme/mcp/namespaces/team/sse"), Some(Route::Sse(tenants)));
        assert_eq!(parse("/api/v1/gateway/demo"), door(None, "demo"));
        let call = rest::Call::ToolsCall;
        assert_eq!(parse("/api/v1/gateway/demo/tools/call"), Some(Route::Rest(demo(), call)));
        for path in [
            "/",
            "/sse",
            "/mcp/",
            "/mcp/sse/",
            "/mcp/sse/sse",
            "/mcp/servers/sse/messages/",
            "/mcp/servers/demo/SSE",
            "/mcp/servers/demo/sse/messages",
            "/t/acme/api/v1/gateway/demo",
            "/api/v1/gateway/",
            "/api/v1/gateway/demo/",
            "/api/v1/gateway/demo/tools",
            "/api/v1/gateway/demo/tools/call/",
            "/api/v1/gateway/demo//tools/call",
            "/api/v1/gateway/Demo/tools/call",
            "/mcp/namespaces/",
            "/mcp/namespaces/a/b",
            "/mcp/servers/",
            "/mcp/servers/demo/",
            "/mcp//servers/demo",
            "/mcp/servers/../x",
            "/MCP/servers/demo",
            "/mcp/servers/de%6do",
            "/mcp/servers/demo;x",
            "/mcp/servers/Demo",
            "/t//mcp/servers/demo",
            "/t/a/b/mcp/servers/x",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
    }

    #[test]
    fn a_credential_in_the_url_is_noticed() {
        assert!(has_secret(&Uri::from_static("/mcp/servers/x?a=1&API_KEY=wfl_1")));
        assert!(!has_secret(&Uri::from_static("/mcp/servers/x?page=1")));
        assert!(!has_secret(&Uri::from_static("/mcp/messages?sessionId=0")));
    }
}
