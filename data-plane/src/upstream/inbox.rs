//! What a server says to one request, message by message, whichever way it comes: one JSON answer, an event stream, or
//! the shared stream of an HTTP+SSE server. What the messages mean is left to the bridge.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{StatusCode, header};
use http_body_util::BodyExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use waffles_mcp::sse::{Decoder, Item};
use waffles_mcp::{Kind, Limits, Message};

use super::http::{Lease, collect};
use super::{Answer, Place, is_type};
use crate::overload::{Hold, Pace};
use crate::reject::{Reject, UpstreamFault};
use crate::stream::MAX_ANSWER;

/// Most bytes of an answer that is only a refusal, and how long it may take.
const MAX_REFUSAL: usize = 64 * 1024;
const REFUSAL_TIME: Duration = Duration::from_secs(5);

/// The messages that answer one request.
#[derive(Debug)]
pub struct Inbox {
    source: Source,
    /// None where somebody else reads.
    bounds: Option<Box<Bounds>>,
    /// Bytes that have come.
    came: usize,
    /// A listening stream has no bound on all of its bytes together.
    endless: bool,
    /// Where a stream that was closed can be taken up again [2025-11-25 basic/transports#resumability].
    resume: Resume,
    /// The call's place at the server, where the answer does not come with the request's own lease.
    place: Option<Place>,
}

/// What a server has said of taking up a stream again.
#[derive(Debug, Clone, Default)]
pub struct Resume {
    /// The last event's id.
    pub event_id: Option<String>,
    /// How long it wants to be left alone, in milliseconds.
    pub retry: Option<u64>,
}

#[derive(Debug)]
enum Source {
    Json { lease: Box<Lease>, read: BytesMut },
    Stream { lease: Box<Lease>, decoder: Box<Decoder> },
    Shared(mpsc::Receiver<Message>),
    Ended,
}

/// A server's first words to a request.
#[derive(Debug)]
pub enum Heard {
    /// It answers.
    Inbox(Inbox),
    /// It took the message, and has nothing to say.
    Accepted,
    /// It refused the request by an HTTP status.
    Refused {
        /// The status.
        status: StatusCode,
        /// The JSON-RPC error of the body, where there is one.
        message: Option<Box<Message>>,
    },
}

/// What keeps an answer within its bounds.
#[derive(Debug)]
struct Bounds {
    /// What is held of a message that has not come whole.
    hold: Hold,
    /// How fast a stream may say things.
    pace: Pace,
    /// The next message waits until then.
    early: Option<Instant>,
}

impl Heard {
    /// Reads the head of an answer, and the body of a refusal.
    pub async fn read(answer: Answer) -> Result<Self, Reject> {
        let status = answer.status;
        if !status.is_success() {
            if matches!(status.as_u16(), 401 | 403 | 407) {
                return Err(Reject::upstream(UpstreamFault::Credential, true));
            }
            let (until, wait) = (Instant::now() + REFUSAL_TIME, answer.retry_after());
            let body = collect(answer.body, MAX_REFUSAL, REFUSAL_TIME, until).await.unwrap_or_default();
            let message = Message::parse(body, &Limits::RESPONSE).ok();
            let message = message.filter(|message| message.kind() == Kind::Error).map(Box::new);
            if message.is_none() && !status.is_client_error() {
                return Err(Reject::upstream(UpstreamFault::Failed, true).ask_again_in(wait));
            }
            return Ok(Self::Refused { status, message });
        }
        if answer.headers.contains_key(header::CONTENT_ENCODING) {
            return Err(Reject::upstream(UpstreamFault::BadAnswer, true));
        }
        let bounds = Bounds { hold: answer.body.hold(), pace: Pace::new(Instant::now()), early: None };
        let bounds = Box::new(bounds);
        let source = if is_type(&answer.headers, "text/event-stream") {
            Source::Stream { lease: Box::new(answer.body), decoder: Box::default() }
        } else if is_type(&answer.headers, "application/json") {
            Source::Json { lease: Box::new(answer.body), read: BytesMut::new() }
        } else if status == StatusCode::ACCEPTED || status == StatusCode::NO_CONTENT {
            answer.body.recycle();
            return Ok(Self::Accepted);
        } else {
            return Err(Reject::upstream(UpstreamFault::BadAnswer, true));
        };
        Ok(Self::Inbox(Inbox {
            source,
            bounds: Some(bounds),
            came: 0,
            endless: false,
            resume: Resume::default(),
            place: None,
        }))
    }
}

impl Inbox {
    /// The messages that the reader of a shared stream sorts out for one request.
    pub(super) fn shared(receiver: mpsc::Receiver<Message>) -> Self {
        let source = Source::Shared(receiver);
        Self { source, bounds: None, came: 0, endless: true, resume: Resume::default(), place: None }
    }

    /// Keeps the call's place until the call is over.
    pub(super) fn holding(self, place: Option<Place>) -> Self {
        Self { place, ..self }
    }

    /// The server has asked something that a person may have to answer: the call holds no place at it any more.
    pub fn waits_for_a_person(&mut self) {
        self.place = None;
        match &mut self.source {
            Source::Json { lease, .. } => lease.waits_for_a_person(),
            Source::Stream { lease, .. } => lease.waits_for_a_person(),
            Source::Shared(_) | Source::Ended => {}
        }
    }

    /// Counts it as a failure of the server, and hands back of which kind.
    pub fn failed(&mut self, fault: UpstreamFault) -> UpstreamFault {
        match &mut self.source {
            Source::Json { lease, .. } => lease.failed(fault),
            Source::Stream { lease, .. } => lease.failed(fault),
            Source::Shared(_) | Source::Ended => fault,
        }
    }

    /// For a stream that stays open: it may say any amount in the course of time.
    #[must_use]
    pub fn endless(mut self) -> Self {
        self.endless = true;
        self
    }

    /// Where the stream can be taken up again.
    pub fn resume(&self) -> &Resume {
        &self.resume
    }

    /// The next message; none at the end. Nothing is lost where the wait is given up.
    pub async fn next(&mut self) -> Result<Option<Message>, UpstreamFault> {
        loop {
            let data = match &mut self.source {
                Source::Ended => return Ok(None),
                Source::Shared(receiver) => return Ok(receiver.recv().await),
                Source::Stream { lease, decoder } => {
                    if let Some(bounds) = &mut self.bounds
                        && let Some(until) = bounds.early
                    {
                        sleep_until(until).await;
                        bounds.early = None;
                    }
                    match decoder.next() {
                        Ok(Some(Item::Comment)) => continue,
                        Ok(Some(Item::Event(event))) => {
                            if let Some(bounds) = &mut self.bounds {
                                bounds.hold.shrink_to(0);
                                bounds.early = bounds.pace.take(Instant::now);
                            }
                            if event.id.is_some() {
                                self.resume.event_id = event.id.clone().filter(|id| !id.is_empty());
                            }
                            self.resume.retry = event.retry.or(self.resume.retry);
                            if event.data.is_empty() || !event.is_message() {
                                continue;
                            }
                            return match Message::parse(event.data, &Limits::RESPONSE) {
                                Ok(message) => Ok(Some(message)),
                                Err(_) => self.end(Err(UpstreamFault::BadAnswer)),
                            };
                        }
                        Ok(None) => {}
                        Err(_) => {
                            let fault = lease.failed(UpstreamFault::TooLarge);
                            return self.end(Err(fault));
                        }
                    }
                    match lease.frame().await {
                        None => return self.end(Ok(None)),
                        Some(Err(_)) => return self.end(Err(UpstreamFault::BrokeOff)),
                        Some(Ok(frame)) => match frame.into_data() {
                            Ok(data) => {
                                decoder.push(data.clone());
                                data.len()
                            }
                            Err(_) => continue,
                        },
                    }
                }
                Source::Json { lease, read } => match lease.frame().await {
                    Some(Err(_)) => return self.end(Err(UpstreamFault::BrokeOff)),
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => {
                            read.extend_from_slice(&data);
                            data.len()
                        }
                        Err(_) => continue,
                    },
                    None => {
                        let mut whole: Bytes = std::mem::take(read).freeze();
                        if let Some(bounds) = self.bounds.take() {
                            whole = bounds.hold.keep(whole);
                        }
                        self.source = Source::Ended;
                        return match Message::parse(whole, &Limits::RESPONSE) {
                            Ok(message) => Ok(Some(message)),
                            Err(_) => Err(UpstreamFault::BadAnswer),
                        };
                    }
                },
            };
            self.came = self.came.saturating_add(data);
            if self.bounds.as_mut().is_some_and(|bounds| !bounds.hold.grow_twice(data)) {
                return self.end(Err(UpstreamFault::NoRoom));
            }
            if self.came > MAX_ANSWER && !self.endless {
                return self.end(Err(UpstreamFault::TooLarge));
            }
        }
    }

    /// Nothing more is wanted: what is left of a stream is read away, so that its connection can be used again.
    pub fn done(self) {
        if let Source::Stream { lease, .. } = self.source {
            lease.recycle();
        }
    }

    fn end(
        &mut self,
        result: Result<Option<Message>, UpstreamFault>,
    ) -> Result<Option<Message>, UpstreamFault> {
        self.source = Source::Ended;
        result
    }
}
