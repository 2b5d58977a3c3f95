//! Why a message is turned away, and the one place where that becomes bytes: HTTP status, JSON-RPC error of the
//! client's revision, audit outcome. Breaker, retry, status and audit all ask the same value.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use uuid::Uuid;
use waffles_core::audit::Outcome;
use waffles_core::limit::LimitKind;
use waffles_mcp::headers::HeaderError;
use waffles_mcp::jsonrpc::{code, error_response};
use waffles_mcp::{HeadError, Id, ParseError};

use crate::keys::Missing;

/// The revisions that a stateless request may name.
pub const SUPPORTED: [&str; 1] = ["2026-07-28"];

/// Whose fault it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The client's: the same message will fare no better.
    Client,
    /// The registered server's.
    Upstream,
    /// Ours.
    Gateway,
}

/// What went wrong with a registered server. Addresses stay in the log, they are not for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamFault {
    /// No connection.
    #[error("the server cannot be reached")]
    Unreachable,
    /// The outbound policy keeps its address closed.
    #[error("the server's address is not allowed")]
    Closed,
    /// It took too long.
    #[error("the server did not answer in time")]
    TimedOut,
    /// The connection broke before the answer was complete.
    #[error("the server broke off")]
    BrokeOff,
    /// What it said is no answer to the request.
    #[error("the server gave an invalid answer")]
    BadAnswer,
    /// What it said is larger than is let through.
    #[error("the server's answer is too large")]
    TooLarge,
    /// What it said did not fit into what the proxy may hold.
    #[error("the gateway has no room for the server's answer")]
    NoRoom,
    /// It refused our credential.
    #[error("the server refused the gateway's credential")]
    Credential,
    /// It answered with an HTTP error that says nothing to the client.
    #[error("the server failed")]
    Failed,
}

impl UpstreamFault {
    /// One stable word.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unreachable => "upstream_unreachable",
            Self::Closed => "upstream_address_closed",
            Self::TimedOut => "upstream_timed_out",
            Self::BrokeOff => "upstream_broke_off",
            Self::BadAnswer => "upstream_bad_answer",
            Self::TooLarge => "upstream_answer_too_large",
            Self::NoRoom => "no_room_for_answer",
            Self::Credential => "upstream_refused_credential",
            Self::Failed => "upstream_failed",
        }
    }
}

/// Why a message is turned away.
#[derive(Debug, thiserror::Error)]
pub enum Reject {
    /// No door at this path.
    #[error("there is nothing at this path")]
    UnknownPath,
    /// The door does not take this HTTP method.
    #[error("this HTTP method is not served here")]
    MethodNotAllowed,
    /// A `Host` that is not ours: DNS rebinding, or a wrong `--public-host`.
    #[error("the Host header does not name this gateway")]
    ForeignHost,
    /// A browser page of another origin [2025-11-25 basic/transports#security-warning].
    #[error("the Origin is not allowed")]
    ForeignOrigin,
    /// Mirrored or repeated headers.
    #[error("{0}")]
    Header(#[from] HeaderError),
    /// A key or token in the query string, where logs would keep it.
    #[error("credentials do not belong in a URL; send `Authorization: Bearer …`")]
    CredentialInUrl,
    /// Nobody, or nobody any more.
    #[error("a valid API key or access token is required")]
    Unauthenticated(&'static str),
    /// There are too many keys to know them all, and the control plane cannot be asked for this one.
    #[error("the credential cannot be checked at the moment; try again")]
    Unchecked(Missing),
    /// Not JSON, or encoded.
    #[error("the body must be application/json without a content encoding")]
    UnsupportedMediaType,
    /// The client would not take what may come.
    #[error("Accept must list application/json and text/event-stream")]
    NotAcceptable,
    /// The body is too large.
    #[error("the message is larger than {0} bytes")]
    TooLarge(usize),
    /// The body came too slowly, or broke off.
    #[error("the message did not arrive in time")]
    SlowBody,
    /// Not one message with one reading.
    #[error("{0}")]
    Parse(#[from] ParseError),
    /// Parameters that every server would refuse.
    #[error("{0}")]
    Head(#[from] HeadError),
    /// A stateless client has nothing to answer [2026-07-28 basic/transports/streamable-http].
    #[error("a client of this protocol version sends no responses")]
    UnexpectedAnswer,
    /// The registered server refused the message without a JSON-RPC error.
    #[error("the server refused the message")]
    Refused,
    /// Only what was negotiated can say how a batch is read [2025-03-26 basic/lifecycle#initialization].
    #[error("`initialize` must not be part of a batch")]
    InitializeInBatch,
    /// A revision that is not served.
    #[error("protocol version {0} is not supported")]
    UnsupportedVersion(String),
    /// Unknown, or not to be known of.
    #[error("unknown server")]
    UnknownServer(Cow<'static, str>),
    /// Switched off by an operator.
    #[error("the server is disabled")]
    ServerDisabled,
    /// Unknown, or not to be known of.
    #[error("Unknown tool: {tool}")]
    UnknownTool {
        /// As the client named it.
        tool: String,
        /// The rule that hid it.
        rule: Cow<'static, str>,
    },
    /// A prompt or resource that no server behind this door has, or that the caller may not know of.
    #[error("Unknown {0}: {1}")]
    Unknown(&'static str, String),
    /// A cursor that was not given for this list.
    #[error("the cursor is not valid; list again from the start")]
    BadCursor,
    /// The caller may know of it, but not do it.
    #[error("not permitted")]
    Forbidden(Cow<'static, str>),
    /// Ended, forged, or of somebody else: which one is nobody's business.
    #[error("unknown session")]
    UnknownSession,
    /// `audit = strict`, and no record can be made.
    #[error("the audit trail is unavailable and this server may not be called without it")]
    AuditUnavailable,
    /// The registered server.
    #[error("{fault}")]
    Upstream {
        /// What went wrong.
        fault: UpstreamFault,
        /// Whether any of the message may have reached the server.
        sent: bool,
        /// When the server wants to be asked again, as it says.
        retry_after: Option<Duration>,
    },
    /// All endpoints of the server have failed so much that they are left alone for a while.
    #[error("the server has failed too often; it is asked again in a while")]
    CircuitOpen(Duration),
    /// As many calls of the server are under way as it is given, and no place will be free in time.
    #[error("the server is busy; too many calls of it are under way")]
    ServerBusy(Duration),
    /// More of something than one caller may hold.
    #[error("too many {0}; finish some first")]
    TooMany(&'static str),
    /// More than a limit lets pass.
    #[error("{0}")]
    Limited(Box<Limited>),
    /// No method of the revision that the client speaks [2026-07-28 basic/index#errors].
    #[error("Method not found")]
    MethodNotFound {
        /// The stateless revision says 404; in a session that would mean that the session is gone.
        modern: bool,
    },
    /// A log level that no revision knows.
    #[error("unknown log level")]
    BadLevel,
    /// Only with a session can this server be used in this revision.
    #[error("send `initialize` first, and the Mcp-Session-Id of its answer with every message")]
    SessionRequired,
    /// `requestState` that we did not give for this request, or not to this caller, or not any more.
    #[error("the request state is not valid; send the request again without it")]
    BadRequestState(&'static str),
    /// The server asked something, and the client gave no answer.
    #[error("the server asked for input that the client did not give")]
    NoAnswer,
    /// The server asks something, and there is no session to ask in.
    #[error("the server asks for input, and there is no session to ask in")]
    NoWayToAsk,
    /// The proxy that holds what this message is for cannot be reached.
    #[error("the proxy that waits for this is gone; send the request again without its state")]
    PeerGone,
    /// The client has taken its request back.
    #[error("the request was cancelled")]
    Cancelled,
    /// No configuration yet.
    #[error("the gateway has no configuration yet")]
    NotReady,
    /// There is no room for more; try again after so many seconds.
    #[error("the gateway is overloaded; try again in {0} s")]
    Overloaded(u8),
    /// More header fields than are read.
    #[error("the request has too many header fields")]
    TooManyHeaders,
    /// A fault in Waffles.
    #[error("internal error")]
    Internal(&'static str),
}

/// A limit that is used up, and when to come again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limited {
    /// What it limits.
    pub kind: LimitKind,
    /// Its name.
    pub limit: String,
    /// How the audit trail names it.
    pub rule: String,
    /// When to come again.
    pub retry_after: Duration,
    /// `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers).
    pub policy: String,
    /// `RateLimit`.
    pub state: String,
}

impl std::fmt::Display for Limited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { limit, retry_after, .. } = self;
        let seconds = retry_after.as_secs();
        match self.kind {
            LimitKind::Rate | LimitKind::Quota => {
                write!(f, "the limit {limit} is used up; try again in {seconds} s")
            }
            LimitKind::Concurrent => {
                write!(f, "too many calls at once for the limit {limit}; finish some first")
            }
            LimitKind::Streams => write!(f, "too many open streams for the limit {limit}; close some first"),
        }
    }
}

impl Limited {
    fn reason(&self) -> &'static str {
        match self.kind {
            LimitKind::Rate => "rate_limited",
            LimitKind::Quota => "quota_exceeded",
            LimitKind::Concurrent => "too_many_calls",
            LimitKind::Streams => "too_many_streams",
        }
    }
}

impl From<Missing> for Reject {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::Unknown => Self::Unauthenticated("unknown_key"),
            Missing::Away | Missing::Busy => Self::Unchecked(missing),
        }
    }
}

impl Reject {
    /// A server that could not be reached, or whose answer came to nothing.
    pub fn upstream(fault: UpstreamFault, sent: bool) -> Self {
        Self::Upstream { fault, sent, retry_after: None }
    }

    /// The same, with when the server wants to be asked again.
    #[must_use]
    pub fn ask_again_in(self, wait: Option<Duration>) -> Self {
        match self {
            Self::Upstream { fault, sent, .. } => Self::Upstream { fault, sent, retry_after: wait },
            other => other,
        }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Upstream { .. } | Self::Refused | Self::CircuitOpen(_) | Self::ServerBusy(_) => {
                Fault::Upstream
            }
            Self::AuditUnavailable
            | Self::Unchecked(_)
            | Self::NotReady
            | Self::Overloaded(_)
            | Self::Internal(_) => Fault::Gateway,
            _ => Fault::Client,
        }
    }

    /// Safe to try elsewhere: the message never left this process.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Upstream { fault: UpstreamFault::Unreachable, sent: false, .. })
    }

    /// The connection broke, so that nothing will come of the message any more: of one that may run twice another attempt
    /// makes sense. Where a server took too long, the client has waited long enough.
    pub fn is_break(&self) -> bool {
        matches!(self, Self::Upstream { fault: UpstreamFault::BrokeOff, .. })
    }

    /// Whether the server may have done what the message asks for, though nobody can say: where it is a call of a tool, it
    /// must not be sent again without thought. A server that refuses our credential has done nothing.
    fn may_have_run(&self) -> Option<bool> {
        match self {
            Self::Upstream { fault, sent, .. } => Some(*sent && *fault != UpstreamFault::Credential),
            Self::CircuitOpen(_) | Self::ServerBusy(_) => Some(false),
            _ => None,
        }
    }

    /// After how many whole seconds it is worth to ask again.
    fn retry_after(&self) -> Option<u64> {
        let whole = |wait: &Duration| wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        match self {
            Self::AuditUnavailable | Self::Unchecked(_) | Self::NotReady | Self::TooMany(_) => Some(1),
            Self::Overloaded(seconds) => Some(u64::from(*seconds)),
            Self::CircuitOpen(wait) | Self::ServerBusy(wait) => Some(whole(wait).max(1)),
            Self::Limited(limited) => Some(limited.retry_after.as_secs().max(1)),
            Self::Upstream { retry_after, .. } => retry_after.as_ref().map(whole),
            _ => None,
        }
    }

    /// One stable word, for metrics and the audit trail.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownPath => "unknown_path",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::ForeignHost => "foreign_host",
            Self::ForeignOrigin => "foreign_origin",
            Self::Header(error) => error.reason(),
            Self::CredentialInUrl => "credential_in_url",
            Self::Unauthenticated(reason) | Self::Internal(reason) => reason,
            Self::Unchecked(Missing::Busy) => "too_many_unknown_keys",
            Self::Unchecked(_) => "key_unchecked",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::NotAcceptable => "not_acceptable",
            Self::TooLarge(_) => "too_large",
            Self::SlowBody => "slow_body",
            Self::Parse(error) => error.reason(),
            Self::Head(error) => error.reason(),
            Self::UnexpectedAnswer => "unexpected_answer",
            Self::Refused => "server_refused",
            Self::InitializeInBatch => "initialize_in_batch",
            Self::UnsupportedVersion(_) => "unsupported_version",
            Self::UnknownServer(_) => "unknown_server",
            Self::ServerDisabled => "server_disabled",
            Self::UnknownTool { .. } => "unknown_tool",
            Self::Unknown(..) => "unknown",
            Self::BadCursor => "bad_cursor",
            Self::Forbidden(_) => "forbidden",
            Self::UnknownSession => "unknown_session",
            Self::AuditUnavailable => "audit_unavailable",
            Self::Upstream { fault, .. } => fault.reason(),
            Self::CircuitOpen(_) => "circuit_open",
            Self::ServerBusy(_) => "server_busy",
            Self::TooMany(_) => "too_many",
            Self::Limited(limited) => limited.reason(),
            Self::MethodNotFound { .. } => "method_not_found",
            Self::BadLevel => "bad_level",
            Self::SessionRequired => "session_required",
            Self::BadRequestState(reason) => reason,
            Self::NoAnswer => "no_answer",
            Self::NoWayToAsk => "no_way_to_ask",
            Self::PeerGone => "peer_gone",
            Self::Cancelled => "cancelled",
            Self::NotReady => "not_ready",
            Self::Overloaded(_) => "overloaded",
            Self::TooManyHeaders => "too_many_headers",
        }
    }

    /// The word that the client is told. Why a credential is not good is for the audit trail: the finder of a key must
    /// not learn that it was one.
    pub fn told(&self) -> &'static str {
        match self {
            Self::Unauthenticated("no_credential" | "two_credentials" | "unsupported_scheme") => {
                self.reason()
            }
            Self::Unauthenticated(_) => "invalid_credential",
            _ => self.reason(),
        }
    }

    /// The rule that decided, for the audit trail only.
    pub fn rule(&self) -> &str {
        match self {
            Self::UnknownServer(rule) | Self::Forbidden(rule) | Self::UnknownTool { rule, .. } => rule,
            Self::Limited(limited) => &limited.rule,
            _ => "",
        }
    }

    /// The HTTP status. An unknown tool is a result of the method, so its status is 200
    /// [2026-07-28 basic/index#errors].
    pub fn status(&self) -> StatusCode {
        match self {
            Self::UnknownPath
            | Self::UnknownServer(_)
            | Self::ServerDisabled
            | Self::UnknownSession
            | Self::MethodNotFound { modern: true } => StatusCode::NOT_FOUND,
            Self::TooMany(_) | Self::Limited(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::MethodNotFound { modern: false }
            | Self::BadLevel
            | Self::BadCursor
            | Self::Unknown(..)
            | Self::BadRequestState(_)
            | Self::NoAnswer
            | Self::NoWayToAsk
            | Self::PeerGone
            | Self::Cancelled => StatusCode::OK,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::ForeignHost | Self::ForeignOrigin | Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Self::Header(_)
            | Self::CredentialInUrl
            | Self::Parse(_)
            | Self::Head(_)
            | Self::UnexpectedAnswer
            | Self::Refused
            | Self::SessionRequired
            | Self::InitializeInBatch
            | Self::UnsupportedVersion(_) => StatusCode::BAD_REQUEST,
            Self::UnknownTool { .. } => StatusCode::OK,
            Self::AuditUnavailable
            | Self::Unchecked(_)
            | Self::NotReady
            | Self::Overloaded(_)
            | Self::CircuitOpen(_)
            | Self::ServerBusy(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::TooManyHeaders => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Upstream { fault: UpstreamFault::TimedOut, .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Upstream { .. } => StatusCode::BAD_GATEWAY,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The JSON-RPC code.
    pub fn code(&self) -> i64 {
        match self {
            Self::Header(error) => error.code(),
            Self::Parse(error) => error.code(),
            Self::Head(error) => error.code(),
            Self::UnsupportedVersion(_) => code::UNSUPPORTED_PROTOCOL_VERSION,
            Self::UnknownTool { .. }
            | Self::Unknown(..)
            | Self::BadCursor
            | Self::BadRequestState(_)
            | Self::BadLevel => code::INVALID_PARAMS,
            Self::MethodNotFound { .. } => code::METHOD_NOT_FOUND,
            Self::NoAnswer
            | Self::NoWayToAsk
            | Self::PeerGone
            | Self::TooMany(_)
            | Self::Limited(_)
            | Self::AuditUnavailable
            | Self::Unchecked(_)
            | Self::Upstream { .. }
            | Self::NotReady
            | Self::Overloaded(_)
            | Self::CircuitOpen(_)
            | Self::ServerBusy(_)
            | Self::Internal(_) => code::INTERNAL_ERROR,
            _ => code::INVALID_REQUEST,
        }
    }

    /// How the audit trail calls it.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Unauthenticated(_) | Self::CredentialInUrl => Outcome::Unauthenticated,
            Self::ForeignHost
            | Self::ForeignOrigin
            | Self::UnknownServer(_)
            | Self::ServerDisabled
            | Self::UnknownTool { .. }
            | Self::Unknown(..)
            | Self::Forbidden(_) => Outcome::Denied,
            Self::Refused => Outcome::Error,
            Self::Upstream { .. } => Outcome::UpstreamFailed,
            Self::AuditUnavailable
            | Self::Unchecked(_)
            | Self::NotReady
            | Self::TooMany(_)
            | Self::Limited(_)
            | Self::Overloaded(_)
            | Self::CircuitOpen(_)
            | Self::ServerBusy(_) => Outcome::Shed,
            Self::Cancelled => Outcome::Cancelled,
            Self::Internal(_) => Outcome::Internal,
            _ => Outcome::Invalid,
        }
    }

    /// The id to echo, where only the refusal itself knows it.
    pub fn id(&self) -> Option<&Id> {
        match self {
            Self::Parse(error) => error.id(),
            _ => None,
        }
    }

    /// The JSON-RPC error, with the reason and the request id to ask an operator with.
    pub fn message(&self, id: Option<&Id>, request_id: Uuid) -> Bytes {
        let mut data = json!({"reason": self.told(), "request_id": request_id});
        if let Value::Object(data) = &mut data {
            if let Self::UnsupportedVersion(requested) = self {
                data.insert("supported".into(), json!(SUPPORTED));
                data.insert("requested".into(), json!(requested));
            }
            if let Some(may_have_run) = self.may_have_run() {
                data.insert("may_have_run".into(), json!(may_have_run));
            }
            if let Self::Limited(limited) = self {
                data.insert("limit".into(), json!(limited.limit));
            }
            // Also here, since it is all that a client sees in whose stream the refusal comes.
            if let Some(seconds) = self.retry_after() {
                data.insert("retry_after".into(), json!(seconds));
            }
        }
        error_response(id.or(self.id()), self.code(), &self.to_string(), Some(&data))
    }

    /// The whole answer.
    pub fn response(&self, id: Option<&Id>, request_id: Uuid) -> Response<Bytes> {
        let mut response = Response::new(self.message(id, request_id));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        match self {
            Self::Unauthenticated(_) => {
                headers
                    .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"waffles\""));
            }
            Self::Limited(limited) => {
                for (name, text) in [("ratelimit-policy", &limited.policy), ("ratelimit", &limited.state)] {
                    if let Ok(value) = HeaderValue::from_str(text) {
                        headers.insert(name, value);
                    }
                }
            }
            Self::MethodNotAllowed => {
                headers.insert(header::ALLOW, HeaderValue::from_static("POST, GET, DELETE"));
            }
            // The rest of the body was not read, so nothing more can be read from this connection.
            Self::TooLarge(_) | Self::SlowBody => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests;
