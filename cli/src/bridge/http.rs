//! The bridge's door: Streamable HTTP at `/mcp`, for those who know the token.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::line::{Answers, INTERNAL, METHOD_NOT_FOUND, Refused, Said};
use super::message::{self, Kind, Message, Unreadable};
use super::stream::Answer;
use super::{Bridge, Turned};

/// The path of the endpoint.
pub(crate) const PATH: &str = "/mcp";
/// The largest message that is taken.
const BODY_LIMIT: usize = 16 << 20;
const BODY_TIME: Duration = Duration::from_secs(30);
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Connections at a time. More wait in the system's queue.
const CONNECTIONS: usize = 1024;
/// How long answers under way may take once the bridge ends; their programs are ending too.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long an answer is waited for before a stream is begun that can show signs of life. In the stateless revision an
/// error has a status of its own, which a stream that has begun cannot give; in a session a client may want to know
/// early that its request has arrived.
const QUIET: Duration = Duration::from_secs(5);
const QUIET_SESSION: Duration = Duration::from_millis(100);

const SESSION: &str = "mcp-session-id";
const VERSION: &str = "mcp-protocol-version";
const METHOD: &str = "mcp-method";
const JSON: HeaderValue = HeaderValue::from_static("application/json");

const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;
/// What has no better code; of no meaning between eras.
const REFUSED: i64 = -32000;
const HEADER_MISMATCH: i64 = -32020;
const UNSUPPORTED_VERSION: i64 = -32022;
const STATELESS: &str = "2026-07-28";
const NEWEST_SESSIONS: &str = "2025-11-25";

type Reply = Response<Answer>;

/// Serves the bridge until its end.
pub(crate) async fn serve(bridge: Arc<Bridge>, listener: TcpListener) -> anyhow::Result<()> {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&room).acquire_owned().await?;
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // A socket that refuses the option works all the same.
        drop(socket.set_nodelay(true));
        let (bridge, stop, tracker) = (Arc::clone(&bridge), bridge.stop.clone(), bridge.tracker.clone());
        let service = service_fn(move |request| {
            let bridge = Arc::clone(&bridge);
            async move { Ok::<_, std::convert::Infallible>(bridge.answer(request).await) }
        });
        tracker.spawn(async move {
            let mut connection = pin!(
                http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIME)
                    .serve_connection(TokioIo::new(socket), service)
            );
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    timeout(LAST_WORDS, connection).await.unwrap_or(Ok(()))
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended");
            }
            drop(place);
        });
    }
}

impl Bridge {
    async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Reply {
        if !self.is_known(&request) {
            return plain(StatusCode::UNAUTHORIZED, String::new());
        }
        if request.uri().path() != PATH {
            return plain(StatusCode::NOT_FOUND, String::new());
        }
        let session = header(&request, SESSION).map(str::to_owned);
        match (request.method(), session) {
            (&Method::POST, session) => self.post(request, session).await,
            // Streams and sessions are the older revisions' only.
            (&Method::GET, Some(session)) => match self.session(&session).and_then(|line| Ok(line.listen()?))
            {
                Ok(answers) => stream(None, answers),
                Err(turned) => turned_away(None, &turned),
            },
            (&Method::DELETE, Some(session)) => match self.close(&session) {
                Ok(()) => plain(StatusCode::NO_CONTENT, String::new()),
                Err(turned) => turned_away(None, &turned),
            },
            (&Method::GET | &Method::DELETE, None) if self.eras.sessions => {
                refusal(StatusCode::BAD_REQUEST, None, REFUSED, "Mcp-Session-Id is missing.")
            }
            _ => {
                let mut reply = plain(StatusCode::METHOD_NOT_ALLOWED, String::new());
                let allowed = if self.eras.sessions { "POST, GET, DELETE" } else { "POST" };
                reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
                reply
            }
        }
    }

    /// Whether the caller shows the token, compared without stopping at the first difference.
    fn is_known(&self, request: &Request<Incoming>) -> bool {
        let shown = header(request, AUTHORIZATION.as_str()).unwrap_or_default();
        let Some((scheme, shown)) = shown.split_once(' ') else { return false };
        let differs = |all: u8, (one, other): (u8, u8)| all | (one ^ other);
        scheme.eq_ignore_ascii_case("bearer")
            && shown.len() == self.token.len()
            && shown.bytes().zip(self.token.bytes()).fold(0, differs) == 0
    }

    async fn post(self: &Arc<Self>, request: Request<Incoming>, session: Option<String>) -> Reply {
        let is_json = header(&request, CONTENT_TYPE.as_str())
            .and_then(|kind| kind.split(';').next())
            .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
        if !is_json {
            return plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, String::new());
        }
        let (head, body) = request.into_parts();
        let mirrored = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
        let text = match timeout(BODY_TIME, Limited::new(body, BODY_LIMIT).collect()).await {
            Err(_) => return plain(StatusCode::REQUEST_TIMEOUT, String::new()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return plain(StatusCode::PAYLOAD_TOO_LARGE, String::new());
            }
            Ok(Err(_)) => return plain(StatusCode::BAD_REQUEST, String::new()),
            Ok(Ok(body)) => String::from_utf8(body.to_bytes().into()).unwrap_or_default(),
        };
        let message = match Message::parse(&text) {
            Ok(message) => message,
            Err(error) => {
                let code = match &error {
                    Unreadable::Json(cause) if !cause.is_data() => PARSE_ERROR,
                    _ => INVALID_REQUEST,
                };
                return refusal(
                    StatusCode::BAD_REQUEST,
                    None,
                    code,
                    &format!("This cannot be taken: {error}."),
                );
            }
        };
        let version = message.version();
        // Revisions are dates, and compare as text.
        let stateless =
            version.is_some() || mirrored(VERSION).is_some_and(|version| version > NEWEST_SESSIONS);
        if !stateless {
            return self.post_session(message, session).await;
        }
        if !self.eras.stateless {
            let text = "The program behind this bridge has sessions only; begin with `initialize`.";
            return refusal(StatusCode::BAD_REQUEST, message.id(), REFUSED, text);
        }
        // What the headers say must be what the program reads [2026-07-28 streamable-http#request-metadata].
        if mirrored(VERSION) != version.as_deref() {
            let text = "MCP-Protocol-Version is not the version in the request's metadata.";
            return refusal(StatusCode::BAD_REQUEST, message.id(), HEADER_MISMATCH, text);
        }
        if message.kind() == Kind::Request && mirrored(METHOD) != Some(message.method()) {
            let text = "Mcp-Method is not the request's method.";
            return refusal(StatusCode::BAD_REQUEST, message.id(), HEADER_MISMATCH, text);
        }
        self.post_stateless(message).await
    }

    async fn post_stateless(self: &Arc<Self>, message: Message) -> Reply {
        let id = message.id().map(str::to_owned);
        let line = match self.shared().await {
            Ok(line) => line,
            Err(turned) => return turned_away(id.as_deref(), &turned),
        };
        match message.kind() {
            Kind::Request => match line.ask(message).await {
                Ok(answers) => first_words(answers, true).await,
                // It has ended in this moment, and a later request starts it again; nothing is gone for the client.
                Err(Refused::Ended) => turned_away(id.as_deref(), &Turned::Resting(Duration::ZERO)),
                Err(refused) => turned_away(id.as_deref(), &refused.into()),
            },
            // The stateless revision has none that this transport carries, and ids in it would not be the program's.
            Kind::Notification => plain(StatusCode::ACCEPTED, String::new()),
            Kind::Answer => refusal(
                StatusCode::BAD_REQUEST,
                None,
                INVALID_REQUEST,
                "The stateless revision has no answers of clients.",
            ),
        }
    }

    async fn post_session(self: &Arc<Self>, message: Message, session: Option<String>) -> Reply {
        let id = message.id().map(str::to_owned);
        let id = id.as_deref();
        if !self.eras.sessions {
            let text =
                "The program behind this bridge speaks revision 2026-07-28 only, which has no sessions.";
            let data = json!({ "supported": [STATELESS] });
            let error = message::error(id, UNSUPPORTED_VERSION, text, Some(data));
            return json_reply(StatusCode::BAD_REQUEST, error);
        }
        let Some(session) = session else {
            if message.kind() == Kind::Request && message.method() == "initialize" {
                return self.post_initialize(message).await;
            }
            return refusal(StatusCode::BAD_REQUEST, id, REFUSED, "Mcp-Session-Id is missing.");
        };
        let line = match self.session(&session) {
            Ok(line) => line,
            Err(turned) => return turned_away(id, &turned),
        };
        match message.kind() {
            Kind::Request => match line.ask(message).await {
                Ok(answers) => first_words(answers, false).await,
                Err(refused) => turned_away(id, &refused.into()),
            },
            Kind::Notification | Kind::Answer => match line.tell(&message).await {
                Ok(()) => plain(StatusCode::ACCEPTED, String::new()),
                Err(refused) => turned_away(None, &refused.into()),
            },
        }
    }

    async fn post_initialize(self: &Arc<Self>, message: Message) -> Reply {
        let id = message.id().map(str::to_owned);
        match self.open(message).await {
            Ok((session, said)) => {
                let mut reply = json_reply(StatusCode::OK, said.into_text());
                if let Some(session) = session.and_then(|id| HeaderValue::try_from(id).ok()) {
                    reply.headers_mut().insert(SESSION, session);
                }
                reply
            }
            Err(turned) => turned_away(id.as_deref(), &turned),
        }
    }
}

/// One JSON answer where the answer is all that is said, else a stream.
async fn first_words(mut answers: Answers, stateless: bool) -> Reply {
    let quiet = if stateless { QUIET } else { QUIET_SESSION };
    match timeout(quiet, answers.next()).await {
        Ok(Some(Said::Answer(text, code))) => {
            let status = match code {
                Some(code) if stateless => status_of(code),
                _ => StatusCode::OK,
            };
            json_reply(status, text)
        }
        Ok(said) => stream(said, answers),
        Err(_) => stream(None, answers),
    }
}

/// The HTTP status that the stateless revision prescribes for an error.
fn status_of(code: i64) -> StatusCode {
    match code {
        METHOD_NOT_FOUND => StatusCode::NOT_FOUND,
        HEADER_MISMATCH | -32021 | UNSUPPORTED_VERSION | PARSE_ERROR | INVALID_REQUEST => {
            StatusCode::BAD_REQUEST
        }
        _ => StatusCode::OK,
    }
}

fn turned_away(id: Option<&str>, turned: &Turned) -> Reply {
    let (status, code) = match turned {
        Turned::Unknown | Turned::Refused(Refused::Ended) => (StatusCode::NOT_FOUND, REFUSED),
        Turned::Refused(Refused::SameId) => (StatusCode::BAD_REQUEST, INVALID_REQUEST),
        Turned::Resting(_) | Turned::Full | Turned::NotStarted(_) | Turned::Refused(Refused::Busy) => {
            (StatusCode::SERVICE_UNAVAILABLE, INTERNAL)
        }
    };
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let detail = if let Turned::NotStarted(detail) = turned { detail } else { "" };
        tracing::warn!(reason = %turned, detail, "a message was turned away");
    }
    let mut reply = refusal(status, id, code, &format!("This is not possible now: {turned}."));
    if let Turned::Resting(wait) = turned {
        reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
    }
    reply
}

fn header<'a>(request: &'a Request<Incoming>, name: &str) -> Option<&'a str> {
    request.headers().get(name)?.to_str().ok()
}

fn refusal(status: StatusCode, id: Option<&str>, code: i64, text: &str) -> Reply {
    json_reply(status, message::error(id, code, text, None))
}

fn json_reply(status: StatusCode, text: String) -> Reply {
    let mut reply = plain(status, text);
    reply.headers_mut().insert(CONTENT_TYPE, JSON);
    reply
}

fn stream(first: Option<Said>, answers: Answers) -> Reply {
    let mut reply = Response::new(Answer::stream(first, answers));
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    reply
}

fn plain(status: StatusCode, text: String) -> Reply {
    let mut reply = Response::new(Answer::from(text));
    *reply.status_mut() = status;
    reply
}
