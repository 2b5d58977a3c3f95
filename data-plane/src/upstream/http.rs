//! One attempt at one endpoint over HTTP/1.1, and the answer's body, which gives its connection back when it was read
//! to its end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use http::{Uri, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};
use waffles_core::server::Timeouts;
use waffles_runtime::task;

use super::Answer;
use super::gate::Place;
use super::pool::{Connection, Outbound, Pool};
use super::ticket::Ticket;
use crate::overload::Hold;
use crate::reject::{Reject, UpstreamFault};

/// How long the rest of a body that nobody wants may take before its connection is closed instead of used again.
const RECYCLE: Duration = Duration::from_secs(1);
/// How long an answer waits for others to let go of the bytes that they hold.
const ROOM_TIME: Duration = Duration::from_secs(5);

/// An answer's body, with the connection that it comes on.
pub struct Lease {
    incoming: Incoming,
    connection: Option<Connection>,
    pool: Arc<Pool>,
    ticket: Ticket,
}

/// An attempt that came to nothing. Boxed, since every exchange would carry its room.
pub(super) struct Failed {
    /// Why.
    pub(super) reject: Reject,
    /// The request, where nothing of it was written.
    pub(super) unsent: Option<Outbound>,
    /// The place, for another attempt.
    pub(super) place: Option<Place>,
}

impl Failed {
    fn unsent(fault: UpstreamFault, request: Outbound, mut ticket: Ticket) -> Box<Self> {
        // What the outbound policy keeps closed says nothing of the server.
        if fault != UpstreamFault::Closed {
            ticket.failed(fault);
        }
        let (reject, place) = (Reject::upstream(fault, false), ticket.take_place());
        Box::new(Self { reject, unsent: Some(request), place })
    }

    fn sent(fault: UpstreamFault, mut ticket: Ticket) -> Box<Self> {
        ticket.failed(fault);
        let (reject, place) = (Reject::upstream(fault, true), ticket.take_place());
        Box::new(Self { reject, unsent: None, place })
    }
}

/// Sends the message over a waiting connection, or over a fresh one where there is none or where the waiting one was
/// closed before anything was written to it.
pub(super) async fn attempt(
    pool: &Arc<Pool>,
    mut ticket: Ticket,
    path: Option<&Uri>,
    mut request: Outbound,
    timeouts: &Timeouts,
    until: Instant,
) -> Result<Answer, Box<Failed>> {
    let (prepared, endpoint) = (Arc::clone(&ticket.prepared), ticket.endpoint);
    let Some(target) = prepared.targets.get(usize::from(endpoint)) else {
        return Err(Failed::unsent(UpstreamFault::Unreachable, request, ticket));
    };
    *request.uri_mut() = path.unwrap_or(&target.uri).clone();
    request.headers_mut().insert(header::HOST, target.host_header.clone());
    loop {
        let (mut connection, fresh) = match pool.take(&prepared, endpoint) {
            Some(mut waiting) => {
                // Ready as soon as the last answer's end has been seen, which may take one more turn of its task.
                let ready = match waiting.ready().now_or_never() {
                    Some(ready) => ready.is_ok(),
                    None => matches!(
                        timeout_at(Instant::now() + timeouts.connect, waiting.ready()).await,
                        Ok(Ok(()))
                    ),
                };
                if !ready {
                    continue;
                }
                (waiting, false)
            }
            // Boxed, as it is rare and large: every call would carry its room.
            None => match Box::pin(pool.connect(target, timeouts.connect)).await {
                Ok(connection) => (connection, true),
                Err(fault) => return Err(Failed::unsent(fault, request, ticket)),
            },
        };
        let sent = connection.try_send_request(request);
        let response = match timeout_at(until.min(Instant::now() + timeouts.first_byte), sent).await {
            Ok(Ok(response)) => response,
            Ok(Err(mut error)) => match error.take_message() {
                // Nothing of it was written: the server had closed a connection that waited too long.
                Some(unsent) if !fresh => {
                    request = unsent;
                    continue;
                }
                Some(unsent) => return Err(Failed::unsent(UpstreamFault::Unreachable, unsent, ticket)),
                None => return Err(Failed::sent(UpstreamFault::BrokeOff, ticket)),
            },
            Err(_) => return Err(Failed::sent(UpstreamFault::TimedOut, ticket)),
        };
        let (head, incoming) = response.into_parts();
        ticket.heard(head.status, &head.headers);
        let body = Lease { incoming, connection: Some(connection), pool: Arc::clone(pool), ticket };
        return Ok(Answer { status: head.status, headers: head.headers, body, endpoint });
    }
}

/// The next frame of a body, with an end to the wait. A frame that is there already costs no timer.
pub async fn next_frame<B: Body + Unpin>(
    body: &mut B,
    until: impl FnOnce() -> Instant,
) -> Result<Option<Result<Frame<B::Data>, B::Error>>, Elapsed> {
    match body.frame().now_or_never() {
        Some(frame) => Ok(frame),
        None => timeout_at(until(), body.frame()).await,
    }
}

/// Reads a whole body of at most `most` bytes, with a bound on each pause and on the whole. What it takes is held of the
/// process's budget for as long as the bytes are there; while there is no room, the server waits.
pub async fn collect(
    mut body: Lease,
    most: usize,
    idle: Duration,
    until: Instant,
) -> Result<Bytes, UpstreamFault> {
    let mut hold = body.hold();
    let room_until = || until.min(Instant::now() + ROOM_TIME);
    // What is said of the length is believed, for memory that nobody writes to costs nothing.
    let said = usize::try_from(body.size_hint().lower()).unwrap_or(most).min(most);
    if !hold.claim_until(said, room_until()).await {
        return Err(UpstreamFault::NoRoom);
    }
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    loop {
        let frame = match next_frame(&mut body, || until.min(Instant::now() + idle)).await {
            Err(_) => return Err(body.failed(UpstreamFault::TimedOut)),
            Ok(None) => break,
            Ok(Some(Err(_))) => return Err(body.failed(UpstreamFault::BrokeOff)),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        let bytes = first.len() + rest.len() + data.len();
        if bytes > most {
            return Err(body.failed(UpstreamFault::TooLarge));
        }
        // Without a length its room grows by doubling, and is there twice for a moment.
        let needs = if said == 0 { bytes * 2 } else { bytes };
        if !hold.reach_until(needs, room_until()).await {
            return Err(UpstreamFault::NoRoom);
        }
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else {
            if rest.is_empty() {
                rest.reserve(said.max(bytes));
                rest.extend_from_slice(&first);
                first = Bytes::new();
            }
            rest.extend_from_slice(&data);
        }
    }
    Ok(hold.keep(if rest.is_empty() { first } else { rest.freeze() }))
}

impl Lease {
    /// A hold of the process's budget, for what is read of this body.
    pub fn hold(&self) -> Hold {
        Hold::new(&self.pool.buffers)
    }

    /// Reads what is left in the background, so that the connection can be used again; gives up after a second.
    pub fn recycle(mut self) {
        self.ticket.succeeded();
        if self.incoming.is_end_stream() {
            return;
        }
        task::spawn("upstream recycle", async move {
            let until = Instant::now() + RECYCLE;
            while let Ok(Some(Ok(_))) = timeout_at(until, self.frame()).await {}
        });
    }

    /// Counts it as a failure of the server, and hands back of which kind.
    pub fn failed(&mut self, fault: UpstreamFault) -> UpstreamFault {
        self.ticket.failed(fault);
        fault
    }

    /// The server has asked something that a person may have to answer: it holds no place at the server any more.
    pub fn waits_for_a_person(&mut self) {
        self.ticket.waits_for_a_person();
    }

    /// The place at the server, for where the answer comes another way, or for another attempt.
    pub(super) fn take_place(&mut self) -> Option<Place> {
        self.ticket.take_place()
    }

    fn give_back(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.give_back(connection, Arc::clone(&self.ticket.prepared), self.ticket.endpoint);
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("endpoint", &self.ticket.endpoint).finish_non_exhaustive()
    }
}

impl Body for Lease {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => self.give_back(),
            Poll::Ready(Some(Err(_))) => self.ticket.failed(UpstreamFault::BrokeOff),
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for Lease {
    /// A body that was read to its end, or has none, leaves a connection that can be used again; any other connection
    /// is closed, which tells the server that nobody listens. A whole answer is a good one, if nobody has said that it is
    /// not.
    fn drop(&mut self) {
        if self.connection.is_none() || self.incoming.is_end_stream() {
            self.ticket.succeeded();
            self.give_back();
        }
    }
}
