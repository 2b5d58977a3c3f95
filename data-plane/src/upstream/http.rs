//! One attempt at one endpoint over HTTP/1.1, and the answer's body, which gives its connection back when it was read
//! to its end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use http::{Uri, header};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};
use waffles_core::server::Timeouts;
use waffles_runtime::task;

use super::Answer;
use super::pool::{Connection, Outbound, Pool, Prepared};
use crate::reject::{Reject, UpstreamFault};

/// How long the rest of a body that nobody wants may take before its connection is closed instead of used again.
const RECYCLE: Duration = Duration::from_secs(1);

/// An answer's body, with the connection that it comes on.
pub struct Lease {
    incoming: Incoming,
    connection: Option<Connection>,
    pool: Arc<Pool>,
    prepared: Arc<Prepared>,
    endpoint: u16,
}

/// An attempt that came to nothing.
pub(super) struct Failed {
    /// Why.
    pub(super) reject: Reject,
    /// The request, where nothing of it was written.
    pub(super) unsent: Option<Outbound>,
}

impl Failed {
    fn unsent(fault: UpstreamFault, request: Outbound) -> Self {
        Self { reject: Reject::upstream(fault, false), unsent: Some(request) }
    }

    fn sent(fault: UpstreamFault) -> Self {
        Self { reject: Reject::upstream(fault, true), unsent: None }
    }
}

/// Sends the message over a waiting connection, or over a fresh one where there is none or where the waiting one was
/// closed before anything was written to it.
pub(super) async fn attempt(
    pool: &Arc<Pool>,
    prepared: &Arc<Prepared>,
    endpoint: u16,
    path: Option<&Uri>,
    mut request: Outbound,
    timeouts: &Timeouts,
) -> Result<Answer, Failed> {
    let Some(target) = prepared.targets.get(usize::from(endpoint)) else {
        return Err(Failed::unsent(UpstreamFault::Unreachable, request));
    };
    *request.uri_mut() = path.unwrap_or(&target.uri).clone();
    request.headers_mut().insert(header::HOST, target.host_header.clone());
    loop {
        let (mut connection, fresh) = match pool.take(prepared, endpoint) {
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
                Err(fault) => return Err(Failed::unsent(fault, request)),
            },
        };
        let sent = connection.try_send_request(request);
        let first_byte = timeouts.first_byte.min(timeouts.total);
        let response = match timeout_at(Instant::now() + first_byte, sent).await {
            Ok(Ok(response)) => response,
            Ok(Err(mut error)) => match error.take_message() {
                // Nothing of it was written: the server had closed a connection that waited too long.
                Some(unsent) if !fresh => {
                    request = unsent;
                    continue;
                }
                Some(unsent) => return Err(Failed::unsent(UpstreamFault::Unreachable, unsent)),
                None => return Err(Failed::sent(UpstreamFault::BrokeOff)),
            },
            Err(_) => return Err(Failed::sent(UpstreamFault::TimedOut)),
        };
        let (head, incoming) = response.into_parts();
        let body = Lease {
            incoming,
            connection: Some(connection),
            pool: Arc::clone(pool),
            prepared: Arc::clone(prepared),
            endpoint,
        };
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

/// Reads a whole body of at most `most` bytes, with a bound on each pause and on the whole.
pub async fn collect(
    mut body: Lease,
    most: usize,
    idle: Duration,
    until: Instant,
) -> Result<Bytes, UpstreamFault> {
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    loop {
        let frame = match next_frame(&mut body, || until.min(Instant::now() + idle)).await {
            Err(_) => return Err(UpstreamFault::TimedOut),
            Ok(None) => break,
            Ok(Some(Err(_))) => return Err(UpstreamFault::BrokeOff),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + rest.len() + data.len() > most {
            return Err(UpstreamFault::TooLarge);
        }
        if first.is_empty() && rest.is_empty() {
            first = data;
        } else {
            if rest.is_empty() {
                rest.reserve(first.len() + data.len());
                rest.extend_from_slice(&first);
                first = Bytes::new();
            }
            rest.extend_from_slice(&data);
        }
    }
    Ok(if rest.is_empty() { first } else { rest.freeze() })
}

impl Lease {
    /// Reads what is left in the background, so that the connection can be used again; gives up after a second.
    pub fn recycle(mut self) {
        if self.incoming.is_end_stream() {
            return;
        }
        task::spawn("upstream recycle", async move {
            let until = Instant::now() + RECYCLE;
            while let Ok(Some(Ok(_))) = timeout_at(until, self.frame()).await {}
        });
    }

    fn give_back(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.pool.give_back(connection, Arc::clone(&self.prepared), self.endpoint);
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("endpoint", &self.endpoint).finish_non_exhaustive()
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
        if let Poll::Ready(None) = polled {
            self.give_back();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }
}

impl Drop for Lease {
    /// A body that was read to its end, or has none, leaves a connection that can be used again; any other connection
    /// is closed, which tells the server that nobody listens.
    fn drop(&mut self) {
        if self.incoming.is_end_stream() {
            self.give_back();
        }
    }
}
