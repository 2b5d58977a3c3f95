//! The one connection of a session with an HTTP+SSE server [2024-11-05 basic/transports]: a GET stream that names the
//! address to POST to and then carries every message of the server. The reader sorts them by the request they belong to.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Uri, header};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use waffles_mcp::sse::{Decoder, Item};
use waffles_mcp::{Id, Kind, Limits, Message, Slot};
use waffles_runtime::task;

use super::http::Lease;
use super::inbox::Inbox;
use super::{Manner, Outgoing, Upstream, is_type};
use crate::permit::Permit;
use crate::reject::{Reject, UpstreamFault};

/// Messages that wait for one request's reader. When they are too many, notifications are dropped; an answer waits for
/// room, and holds up the others of its session meanwhile.
const QUEUE: usize = 256;
const ROOM: Duration = Duration::from_secs(10);

/// A GET stream and who waits for what it says.
#[derive(Debug)]
pub(super) struct Line {
    /// Where messages are posted.
    pub(super) post: Uri,
    /// The endpoint that both belong to.
    pub(super) endpoint: u16,
    waiting: Arc<Waiting>,
    _reader: DropGuard,
}

/// Requests under way, and where what belongs to them goes.
type Calls = Vec<(Id, mpsc::Sender<Message>)>;

#[derive(Debug, Default)]
struct Waiting {
    /// The calls under way, oldest first; none once the stream has ended.
    calls: Mutex<Option<Calls>>,
    /// Who takes what belongs to no call.
    strays: Mutex<Option<mpsc::Sender<Message>>>,
}

impl Line {
    /// Opens the stream and waits for the address.
    pub(super) async fn open(upstream: &Upstream, permit: &Permit) -> Result<Self, Reject> {
        let mut headers = HeaderMap::with_capacity(2);
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        let outgoing = Outgoing {
            method: Method::GET,
            headers,
            body: Default::default(),
            endpoint: None,
            path: None,
            manner: Manner::Listens,
        };
        let answer = upstream.call(permit, outgoing).await?;
        let bad = || Reject::upstream(UpstreamFault::BadAnswer, true);
        match answer.status.as_u16() {
            401 | 403 | 407 => return Err(Reject::upstream(UpstreamFault::Credential, true)),
            200 if is_type(&answer.headers, "text/event-stream") => {}
            500.. => return Err(Reject::upstream(UpstreamFault::Failed, true)),
            _ => return Err(bad()),
        }
        let until = Instant::now() + permit.entry().server.spec.timeouts.first_byte;
        let (mut lease, mut decoder) = (answer.body, Decoder::default());
        let address = loop {
            match next_event(&mut lease, &mut decoder, until).await? {
                event if event.event.as_deref() == Some("endpoint") => break event.data,
                _ => continue,
            }
        };
        let endpoints = &permit.entry().server.spec.endpoints;
        let base = &endpoints.get(usize::from(answer.endpoint)).ok_or_else(bad)?.url;
        let address = std::str::from_utf8(&address).map_err(|_| bad())?;
        let url = base.join(address.trim()).map_err(|_| bad())?;
        // The server's word alone must not send us, and the credential, to another host.
        if url.origin() != base.origin() {
            return Err(bad());
        }
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let post = path.parse().map_err(|_| bad())?;
        let waiting = Arc::new(Waiting { calls: Mutex::new(Some(Vec::new())), ..Waiting::default() });
        let stop = CancellationToken::new();
        task::spawn("http+sse reader", read(lease, decoder, Arc::clone(&waiting), stop.clone()));
        Ok(Self { post, endpoint: answer.endpoint, waiting, _reader: stop.drop_guard() })
    }

    /// Whether the stream is still there.
    pub(super) fn is_open(&self) -> bool {
        self.waiting.calls.lock().is_some()
    }

    /// Waits for what belongs to a request that is about to be sent.
    pub(super) fn expect(&self, id: &Id) -> Result<Inbox, Reject> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        match &mut *self.waiting.calls.lock() {
            Some(calls) => {
                calls.retain(|(_, sender)| !sender.is_closed());
                calls.push((id.clone(), sender));
                Ok(Inbox::shared(receiver))
            }
            None => Err(Reject::upstream(UpstreamFault::BrokeOff, false)),
        }
    }

    /// Takes what belongs to no call, from now on.
    pub(super) fn strays(&self) -> Inbox {
        let (sender, receiver) = mpsc::channel(QUEUE);
        *self.waiting.strays.lock() = Some(sender);
        Inbox::shared(receiver)
    }
}

async fn next_event(
    lease: &mut Lease,
    decoder: &mut Decoder,
    until: Instant,
) -> Result<waffles_mcp::sse::Event, Reject> {
    use http_body_util::BodyExt as _;
    loop {
        match decoder.next() {
            Ok(Some(Item::Event(event))) => return Ok(event),
            Ok(Some(Item::Comment)) => continue,
            Ok(None) => {}
            Err(_) => return Err(Reject::upstream(UpstreamFault::TooLarge, true)),
        }
        match timeout_at(until, lease.frame()).await {
            Err(_) => return Err(Reject::upstream(UpstreamFault::TimedOut, true)),
            Ok(None | Some(Err(_))) => return Err(Reject::upstream(UpstreamFault::BrokeOff, true)),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    decoder.push(data);
                }
            }
        }
    }
}

async fn read(mut lease: Lease, mut decoder: Decoder, waiting: Arc<Waiting>, stop: CancellationToken) {
    let far = || Instant::now() + Duration::from_secs(30 * 24 * 3600);
    loop {
        let event = tokio::select! {
            event = next_event(&mut lease, &mut decoder, far()) => event,
            () = stop.cancelled() => break,
        };
        let Ok(event) = event else { break };
        if event.data.is_empty() || !event.is_message() {
            continue;
        }
        let Ok(message) = Message::parse(event.data, &Limits::RESPONSE) else {
            tracing::debug!("an HTTP+SSE server sent an event that is no message");
            continue;
        };
        waiting.deliver(message).await;
    }
    // Who still waits learns that nothing will come.
    *waiting.calls.lock() = None;
    *waiting.strays.lock() = None;
}

impl Waiting {
    async fn deliver(&self, message: Message) {
        let is_answer = matches!(message.kind(), Kind::Response | Kind::Error);
        let Some(sender) = self.receiver(&message) else { return };
        if is_answer {
            // The caller may have given up.
            if timeout(ROOM, sender.send(message)).await.is_err() {
                tracing::warn!("a caller of an HTTP+SSE server does not take its answer");
            }
        } else if sender.try_send(message).is_err() {
            tracing::debug!("a notification of an HTTP+SSE server is dropped");
        }
    }

    /// Whose message it is: an answer's by its id, progress by its token (which is the id), anything that is said
    /// during a call the oldest call's, the rest nobody's.
    fn receiver(&self, message: &Message) -> Option<mpsc::Sender<Message>> {
        let mut calls = self.calls.lock();
        let calls = calls.as_mut()?;
        calls.retain(|(_, sender)| !sender.is_closed());
        if matches!(message.kind(), Kind::Response | Kind::Error) {
            let at = calls.iter().position(|(id, _)| Some(id) == message.id())?;
            return Some(calls.remove(at).1);
        }
        if let Some(token) = message.raw(Slot::ProgressToken) {
            let token = Id::from_json(&token)?;
            return calls.iter().find(|(id, _)| *id == token).map(|(_, sender)| sender.clone());
        }
        let method = message.method().unwrap_or_default();
        let of_call = message.kind() == Kind::Request || method == "notifications/message";
        match calls.first().filter(|_| of_call) {
            Some((_, sender)) => Some(sender.clone()),
            None => self.strays.lock().clone(),
        }
    }
}
