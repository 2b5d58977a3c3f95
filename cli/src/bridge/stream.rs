//! What goes back over HTTP: one message as JSON, or messages as an event stream with signs of life between them.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Interval};

use super::line::{Answers, Said};

/// How often a silent stream shows that it lives. A client that has gone away is noticed then at the latest.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The body of an answer.
#[derive(Debug)]
pub(super) enum Answer {
    /// All there is; none when it was sent.
    Whole(Option<Bytes>),
    /// Messages as they come.
    Stream(Box<Events>),
}

/// Messages on their way to a client.
#[derive(Debug)]
pub(super) struct Events {
    first: Option<Said>,
    answers: Answers,
    alive: Interval,
}

impl Answer {
    /// A stream that begins with a message.
    pub(super) fn stream(first: Option<Said>, answers: Answers) -> Self {
        let mut alive = tokio::time::interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
        alive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Self::Stream(Box::new(Events { first, answers, alive }))
    }
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Self::Whole(Some(text.into()).filter(|bytes: &Bytes| !bytes.is_empty()))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let events = match self.get_mut() {
            Self::Whole(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(events) => events,
        };
        let said = match events.first.take() {
            Some(said) => Poll::Ready(Some(said)),
            None => events.answers.poll_next(cx),
        };
        match said {
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(said)) => {
                events.alive.reset();
                let event = format!("event: message\ndata: {}\n\n", said.into_text());
                Poll::Ready(Some(Ok(Frame::data(event.into()))))
            }
            Poll::Pending => match events.alive.poll_tick(cx) {
                Poll::Ready(_) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b":\n\n"))))),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}
