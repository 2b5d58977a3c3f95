//! One message to one server: pick an endpoint, attempt, try another one while nothing has left this process, give up.
//! Knows endpoints, attempts and time; not principals, policy or what a message says.

pub mod backs;
pub mod eras;
mod http;
mod inbox;
mod line;
mod pool;
pub mod schemas;

use std::sync::Arc;

use ::http::{HeaderMap, Method, StatusCode, Uri};
use bytes::Bytes;
use waffles_runtime::outbound::OutboundPolicy;

use crate::overload::Buffers;
use crate::permit::Permit;
use crate::reject::Reject;
use crate::state::Current;

use http::Failed;
pub use http::{Lease, collect, next_frame};
pub use inbox::{Heard, Inbox};
pub use pool::Pool;

/// What is sent, but for what the registration adds: address, host, credential.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// POST, GET or DELETE.
    pub method: Method,
    /// Headers made for this hop.
    pub headers: HeaderMap,
    /// The body; empty without one.
    pub body: Bytes,
    /// The endpoint that holds the session.
    pub endpoint: Option<u16>,
    /// Another path than the endpoint's own, at the same host: where an HTTP+SSE server takes messages.
    pub path: Option<Uri>,
}

/// What came back: the head, and the body as it comes.
#[derive(Debug)]
pub struct Answer {
    /// The server's status.
    pub status: StatusCode,
    /// The server's headers.
    pub headers: HeaderMap,
    /// The server's body.
    pub body: Lease,
    /// The endpoint that answered.
    pub endpoint: u16,
}

/// The way to the servers, one for each thread.
#[derive(Clone)]
pub struct Upstream {
    pool: Arc<Pool>,
}

impl Upstream {
    /// A way that obeys the outbound policy, closes what the control plane says is its own, and holds no more of answers
    /// than the process may.
    pub fn new(policy: OutboundPolicy, current: Arc<Current>, buffers: Arc<Buffers>) -> Self {
        Self { pool: Arc::new(Pool::new(policy, current, buffers)) }
    }

    /// The connections, for the task that closes idle ones.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Sends a message and waits for the head of the answer. Only a message that has not left this process is sent
    /// again, to another endpoint or on a fresh connection.
    pub async fn call(&self, permit: &Permit, outgoing: Outgoing) -> Result<Answer, Reject> {
        let prepared = self.pool.prepare(permit.entry())?;
        let timeouts = permit.entry().server.spec.timeouts;
        let endpoints = prepared.order(outgoing.endpoint);
        let path = outgoing.path.clone();
        let mut request = prepared.request(outgoing);
        // A session whose endpoint is gone has no other to go to.
        let mut last = Reject::UnknownSession;
        for endpoint in endpoints {
            match http::attempt(&self.pool, &prepared, endpoint, path.as_ref(), request, &timeouts).await {
                Ok(answer) => return Ok(answer),
                Err(Failed { reject, unsent: Some(unsent) }) if reject.retryable() => {
                    (last, request) = (reject, unsent);
                }
                Err(failed) => return Err(failed.reject),
            }
        }
        Err(last)
    }
}

/// Whether the body is of a media type, whatever its parameters.
pub fn is_type(headers: &HeaderMap, wanted: &str) -> bool {
    let value =
        headers.get(::http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(wanted)
}
