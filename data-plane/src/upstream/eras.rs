//! Which eras a server speaks, as far as it was found out, with a date: a verdict that is too old, or that a server
//! contradicts, is forgotten and found out again [2026-07-28 basic/versioning]. Only a server's own answer is evidence;
//! 401, 403, 5xx and time-outs are none.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderValue, Method as HttpMethod, header};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;
use waffles_core::server::{Server, Transport};
use waffles_core::snapshot::Snapshot;
use waffles_mcp::headers::{MCP_METHOD, MCP_PROTOCOL_VERSION};
use waffles_mcp::jsonrpc::code;
use waffles_mcp::translate::Client;
use waffles_mcp::translate::handshake::{Described, discover_request};
use waffles_mcp::{Era, Id, Kind, Message, Revision};

use super::{Heard, Inbox, Manner, Outgoing, Upstream};
use crate::permit::Permit;
use crate::reject::{Reject, UpstreamFault};

/// A stale verdict for an older era would succeed for ever, so each is looked at again after a while.
const MAX_AGE: Duration = Duration::from_secs(600);
/// How long the question may take.
const PROBE: Duration = Duration::from_secs(10);

/// What is known of one era of a server.
#[derive(Debug, Clone, Default)]
pub enum Speaks<T> {
    /// Nobody has asked.
    #[default]
    Unknown,
    /// It does not.
    No,
    /// It does.
    Yes(T),
}

impl<T> Speaks<T> {
    /// Whether it was found that it does not.
    pub fn is_no(&self) -> bool {
        matches!(self, Self::No)
    }

    /// Whether it was found that it does.
    pub fn is_yes(&self) -> bool {
        matches!(self, Self::Yes(_))
    }
}

/// What is known of a server.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The stateless revision, and what the server says of itself.
    pub stateless: Speaks<Arc<Described>>,
    /// The revisions with `initialize` over Streamable HTTP, and which one the server chose.
    pub sessions: Speaks<Revision>,
    /// HTTP+SSE.
    pub http_sse: Speaks<()>,
}

impl Seen {
    /// The newest era that it is known to speak.
    pub fn newest(&self) -> Option<(Era, Revision)> {
        match (&self.stateless, &self.sessions, &self.http_sse) {
            (Speaks::Yes(_), ..) => Some((Era::Stateless, Revision::V2026_07_28)),
            (_, Speaks::Yes(revision), _) => Some((Era::Sessions, *revision)),
            (_, _, Speaks::Yes(())) => Some((Era::HttpSse, Revision::V2024_11_05)),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct Entry {
    /// Of the registration: a changed server is a server of which nothing is known.
    version: u64,
    seen: Seen,
    since: Instant,
    found_at: DateTime<Utc>,
    /// One asks, the others wait for what it finds.
    asking: Arc<tokio::sync::Mutex<()>>,
}

/// What is known of all servers. Shared by all threads.
#[derive(Debug, Default)]
pub struct Eras(Mutex<HashMap<Uuid, Entry>>);

impl Eras {
    /// What is known of a server.
    pub fn seen(&self, server: &Server) -> Seen {
        self.with(server, |entry| entry.seen.clone())
    }

    /// Notes what a server has shown.
    pub fn note(&self, server: &Server, change: impl FnOnce(&mut Seen)) {
        self.with(server, |entry| {
            let before = entry.seen.newest();
            change(&mut entry.seen);
            if entry.seen.newest() != before {
                entry.found_at = Utc::now();
            }
        });
    }

    /// Forgets a server that contradicts what was known of it.
    pub fn forget(&self, server: &Server) {
        self.0.lock().remove(&server.id);
    }

    /// The verdicts with their dates, for the admin port and the control plane.
    pub fn verdicts(&self) -> Vec<(Uuid, Era, Revision, DateTime<Utc>)> {
        let entries = self.0.lock();
        let verdict = |(id, entry): (&Uuid, &Entry)| {
            entry.seen.newest().map(|(era, revision)| (*id, era, revision, entry.found_at))
        };
        entries.iter().filter_map(verdict).collect()
    }

    /// Forgets servers that are gone.
    pub fn sweep(&self, snapshot: &Snapshot) {
        let here: std::collections::HashSet<Uuid> = snapshot.servers().map(|entry| entry.server.id).collect();
        self.0.lock().retain(|id, _| here.contains(id));
    }

    /// What a server of the stateless revision says of itself; none where it does not speak it. Asks where nobody knows.
    pub async fn stateless(
        &self,
        upstream: &Upstream,
        permit: &Permit,
    ) -> Result<Option<Arc<Described>>, Reject> {
        let server = &permit.entry().server;
        let known = |seen: Seen| match seen.stateless {
            Speaks::Yes(described) => Some(Some(described)),
            Speaks::No => Some(None),
            Speaks::Unknown => None,
        };
        if let Some(found) = known(self.seen(server)) {
            return Ok(found);
        }
        let asking = self.with(server, |entry| Arc::clone(&entry.asking));
        let _turn = asking.lock().await;
        if let Some(found) = known(self.seen(server)) {
            return Ok(found);
        }
        let found = Box::pin(probe(upstream, permit)).await?.map(Arc::new);
        tracing::info!(
            server.name = %server.spec.name, stateless = found.is_some(), "found out which era a server speaks"
        );
        let answer = found.clone();
        self.note(server, |seen| {
            seen.stateless = found.map_or(Speaks::No, Speaks::Yes);
        });
        Ok(answer)
    }

    fn with<T>(&self, server: &Server, look: impl FnOnce(&mut Entry) -> T) -> T {
        let mut entries = self.0.lock();
        let entry = entries.entry(server.id).or_insert_with(|| Entry::new(server));
        if entry.version != server.version || entry.since.elapsed() > MAX_AGE {
            *entry = Entry { asking: Arc::clone(&entry.asking), ..Entry::new(server) };
        }
        look(entry)
    }
}

impl Entry {
    fn new(server: &Server) -> Self {
        let seen = match server.spec.transport {
            Transport::Auto => Seen::default(),
            Transport::StreamableHttp => Seen { http_sse: Speaks::No, ..Seen::default() },
            Transport::Sse => Seen { stateless: Speaks::No, sessions: Speaks::No, http_sse: Speaks::Unknown },
        };
        Self {
            version: server.version,
            seen,
            since: Instant::now(),
            found_at: Utc::now(),
            asking: Arc::default(),
        }
    }
}

/// Whether an HTTP status may say that the server does not know what it was asked in this era. 401, 403, 5xx and
/// time-outs never do.
pub fn is_foreign(status: u16) -> bool {
    matches!(status, 400 | 404 | 405 | 406 | 415 | 422)
}

/// Asks a server for `server/discover`. None where it does not know the stateless revision.
async fn probe(upstream: &Upstream, permit: &Permit) -> Result<Option<Described>, Reject> {
    let until = Instant::now() + PROBE;
    let timed_out = |_| Reject::upstream(UpstreamFault::TimedOut, true);
    let asked = upstream.call(permit, discover());
    let answer = timeout_at(until, asked).await.map_err(timed_out)??;
    let mut inbox: Inbox = match timeout_at(until, Heard::read(answer)).await.map_err(timed_out)?? {
        Heard::Accepted => return Ok(None),
        Heard::Refused { status, message } => return judge(status.as_u16(), message.as_deref()),
        Heard::Inbox(inbox) => inbox,
    };
    loop {
        let next = timeout_at(until, inbox.next()).await.map_err(timed_out)?;
        let message = match next.map_err(|fault| Reject::upstream(fault, true))? {
            None => return Err(Reject::upstream(UpstreamFault::BrokeOff, true)),
            Some(message) => message,
        };
        match message.kind() {
            Kind::Error => return judge(200, Some(&message)),
            Kind::Response => {
                inbox.done();
                let result = message.result().unwrap_or_default();
                return Ok(Described::from_discover(&result).ok());
            }
            Kind::Request | Kind::Notification => {}
        }
    }
}

/// What an error says of the era [2026-07-28 basic/versioning].
fn judge(status: u16, message: Option<&Message>) -> Result<Option<Described>, Reject> {
    match message.and_then(Message::error_code) {
        // It is a server of a stateless revision, but of none that we speak.
        Some(code::UNSUPPORTED_PROTOCOL_VERSION) => {
            let data = message.and_then(|message| message.raw(waffles_mcp::Slot::ErrorData));
            let ours = Revision::V2026_07_28.as_str().as_bytes();
            let listed = data.is_some_and(|data: Bytes| data.windows(ours.len()).any(|part| part == ours));
            if listed { Err(Reject::upstream(UpstreamFault::BadAnswer, true)) } else { Ok(None) }
        }
        Some(code) if code::is_modern(code) => Err(Reject::upstream(UpstreamFault::BadAnswer, true)),
        // 429 and 408 are about this moment, not about the era.
        None if matches!(status, 408 | 425 | 429) => Err(Reject::upstream(UpstreamFault::Failed, true)),
        _ => Ok(None),
    }
}

fn discover() -> Outgoing {
    let client = Client { capabilities: Bytes::from_static(b"{}"), info: Some(waffles()) };
    let mut headers = HeaderMap::with_capacity(5);
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(MCP_PROTOCOL_VERSION, HeaderValue::from_static(Revision::V2026_07_28.as_str()));
    headers.insert(MCP_METHOD, HeaderValue::from_static("server/discover"));
    Outgoing {
        method: HttpMethod::POST,
        headers,
        body: discover_request(&Id::number(1), &client),
        endpoint: None,
        path: None,
        manner: Manner::Repeatable,
    }
}

/// How the gateway calls itself where it speaks for itself.
pub fn waffles() -> Bytes {
    Bytes::from_static(
        concat!(r#"{"name":"waffles","version":""#, env!("CARGO_PKG_VERSION"), r#""}"#).as_bytes(),
    )
}
