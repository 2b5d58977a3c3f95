//! One message to one server: wait for a place, pick an endpoint, attempt, try again where that is safe, give up. Knows
//! endpoints, attempts and time; not principals or policy.

pub mod backs;
mod breaker;
pub mod eras;
mod gate;
mod http;
mod inbox;
mod latency;
mod line;
mod manner;
mod pick;
mod pool;
pub mod schemas;
mod standing;
mod ticket;
mod window;

use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, Method, StatusCode, Uri};
use bytes::Bytes;
use tokio::time::{Instant, sleep};
use waffles_core::server::Timeouts;
use waffles_runtime::outbound::OutboundPolicy;

use crate::overload::Buffers;
use crate::permit::Permit;
use crate::reject::Reject;
use crate::state::Current;

pub use breaker::{Circuit, Why};
pub use gate::Place;
use http::Failed;
pub use http::{Lease, collect, next_frame};
pub use inbox::{Heard, Inbox};
pub use manner::Manner;
use pick::{Picked, Tried};
pub use pool::Pool;
use pool::Prepared;
pub use standing::{EndpointSignal, Standings};
use ticket::{Ticket, retry_after};

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
    /// What it may do at the server.
    pub manner: Manner,
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

impl Answer {
    /// How long the server wants to be left alone, as it says.
    pub fn retry_after(&self) -> Option<Duration> {
        retry_after(&self.headers)
    }

    /// Nothing more is wanted of it but the place, for another attempt.
    fn give_up(mut self) -> Option<Place> {
        let place = self.body.take_place();
        self.body.recycle();
        place
    }

    /// Whether the server, or what stands before it, says that it cannot answer just now.
    fn is_passing_trouble(&self) -> bool {
        matches!(self.status.as_u16(), 502..=504)
    }
}

/// The way to the servers, one for each thread.
#[derive(Clone)]
pub struct Upstream {
    pool: Arc<Pool>,
}

impl Upstream {
    /// A way that obeys the outbound policy, closes what the control plane says is its own, and holds no more of answers
    /// than the process may.
    pub fn new(
        policy: OutboundPolicy,
        current: Arc<Current>,
        buffers: Arc<Buffers>,
        standings: Arc<Standings>,
    ) -> Self {
        Self { pool: Arc::new(Pool::new(policy, current, buffers, standings)) }
    }

    /// The connections, for the task that closes idle ones.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Sends a message and waits for the head of the answer. What has left this process is sent again only where that is
    /// [`Manner::Repeatable`], and nothing is once a part of an answer has come.
    pub async fn call(&self, permit: &Permit, outgoing: Outgoing) -> Result<Answer, Reject> {
        let prepared = self.pool.prepare(permit.entry())?;
        let timeouts = permit.entry().server.spec.timeouts;
        let (manner, pinned, path) = (outgoing.manner, outgoing.endpoint, outgoing.path.clone());
        let until = Instant::now() + timeouts.total;
        let mut course = Course {
            prepared: &prepared,
            timeouts,
            pinned,
            manner,
            until,
            tried: Tried::default(),
            again: 0,
        };
        let mut place = match manner.needs_place() {
            true => course.place().await?,
            false => None,
        };
        let mut request = prepared.request(outgoing);
        let mut last = None;
        loop {
            let picked = match course.pick() {
                Ok(picked) => picked,
                Err(reject) => return Err(last.unwrap_or(reject)),
            };
            // Boxed, as all that only few messages need: every exchange would carry its room.
            let spare =
                (manner == Manner::Repeatable && course.has_another()).then(|| Box::new(request.clone()));
            let ticket = Ticket::new(&prepared, picked, place.take(), manner);
            match http::attempt(&self.pool, ticket, path.as_ref(), request, &timeouts, until).await {
                Ok(answer) => match spare.filter(|_| answer.is_passing_trouble()) {
                    None => return Ok(answer),
                    Some(spare) => {
                        if !Box::pin(course.goes_again(picked, answer.retry_after())).await {
                            return Ok(answer);
                        }
                        (request, place) = (*spare, answer.give_up());
                    }
                },
                Err(failed) => {
                    let Failed { reject, unsent, place: back } = *failed;
                    request = match (unsent, spare) {
                        // Another endpoint will do, since nothing has left this process.
                        (Some(unsent), _)
                            if reject.retryable() && course.goes_elsewhere(picked, "unsent") =>
                        {
                            unsent
                        }
                        (None, Some(spare))
                            if reject.is_break() && Box::pin(course.goes_again(picked, None)).await =>
                        {
                            *spare
                        }
                        _ => return Err(reject),
                    };
                    (last, place) = (Some(reject), back);
                }
            }
        }
    }
}

/// The attempts of one message.
struct Course<'a> {
    prepared: &'a Arc<Prepared>,
    timeouts: Timeouts,
    pinned: Option<u16>,
    manner: Manner,
    /// When all of it must be over.
    until: Instant,
    tried: Tried,
    again: u32,
}

impl Course<'_> {
    /// A place at the server: at once, or after a wait in line.
    async fn place(&self) -> Result<Option<Place>, Reject> {
        let standing = &self.prepared.standing;
        match standing.gate.try_enter() {
            None => Ok(None),
            Some(Some(place)) => Ok(Some(place)),
            Some(None) => {
                let now = Instant::now();
                let until = self.until.min(now + standing.rules.queue_wait);
                let entered = Box::pin(standing.gate.enter(now, until)).await;
                standing.metrics.waited(standing.name(), now.elapsed(), entered.is_ok());
                entered.map(Some).map_err(|full| Reject::ServerBusy(full.0))
            }
        }
    }

    /// Where the next attempt goes. A session has no other endpoint than its own.
    fn pick(&self) -> Result<Picked, Reject> {
        let (standing, now) = (&self.prepared.standing, Instant::now());
        let only = match (self.pinned, standing.endpoints.len()) {
            (None, 1) => Some(0),
            (pinned, _) => pinned,
        };
        let picked = match only {
            None => standing.pick(self.tried, now),
            Some(endpoint) => {
                let state = standing.endpoint(endpoint).ok_or(Reject::UnknownSession)?;
                let admitted = match self.manner {
                    Manner::Looks => Ok(false),
                    _ => state.breaker.admit(&standing.rules.breaker, now),
                };
                admitted.map(|trial| Picked { endpoint, trial }).map_err(Some)
            }
        };
        picked.map_err(|wait| {
            standing.metrics.turned_away(standing.name());
            Reject::CircuitOpen(wait.unwrap_or_default())
        })
    }

    /// Whether one more attempt is allowed at all, by their number.
    fn has_another(&self) -> bool {
        self.again < self.prepared.standing.rules.retry.attempts
    }

    /// Whether the message goes to an endpoint that was not tried. There is no wait: it is another machine.
    fn goes_elsewhere(&mut self, picked: Picked, what: &'static str) -> bool {
        self.tried.note(picked.endpoint);
        let count = self.prepared.standing.endpoints.len();
        self.pinned.is_none() && self.tried.leaves_any_of(count) && self.may_repeat(what)
    }

    /// Whether a message of which something was sent goes out again: elsewhere, or after a wait to the same endpoint.
    async fn goes_again(&mut self, picked: Picked, wanted: Option<Duration>) -> bool {
        if self.goes_elsewhere(picked, "sent") {
            return true;
        }
        // The server has said when it wants to hear from us; its client may have other plans until then.
        if wanted.is_some() {
            return false;
        }
        let standing = &self.prepared.standing;
        let longest = standing.rules.retry.backoff.saturating_mul(1 << self.again.min(8));
        let part = u32::try_from(standing.dice.roll() % 1000).unwrap_or(0);
        let wait = longest * part / 1000;
        if Instant::now() + wait + self.timeouts.connect > self.until || !self.may_repeat("sent") {
            return false;
        }
        self.tried = Tried::default();
        sleep(wait).await;
        true
    }

    /// Asks the budget. What never left costs a server nothing, so each endpoint is tried once whatever the number.
    fn may_repeat(&mut self, what: &'static str) -> bool {
        let sent = what == "sent";
        let standing = &self.prepared.standing;
        let allowed = (!sent || self.has_another()) && standing.may_repeat(Instant::now());
        if allowed {
            self.again += u32::from(sent);
            standing.metrics.repeated(standing.name(), what);
        }
        allowed
    }
}

/// Whether the body is of a media type, whatever its parameters.
pub fn is_type(headers: &HeaderMap, wanted: &str) -> bool {
    let value =
        headers.get(::http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(wanted)
}
