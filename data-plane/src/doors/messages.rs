//! What an answer of the gateway says, message by message, whether it came as JSON or as a stream. Who asked for an id
//! gets one answer to it. Event ids go no further: a door that mixes streams has none to give, so a stream that its server
//! lets go is taken up again here.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::BodyExt as _;
use tokio::time::sleep;
use uuid::Uuid;
use waffles_mcp::sse::{Decoder, Item};
use waffles_mcp::{Id, Kind, Limits, Message};

use super::Caller;
use crate::reject::{Reject, UpstreamFault};
use crate::stream::{Body, MAX_ANSWER};
use crate::upstream::is_type;

/// How long to wait before a stream is taken up again, where its server does not say.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often in a row that may come to nothing.
const MAX_IDLE_RESUMES: usize = 5;

/// The messages of one answer.
pub(super) struct Messages {
    body: Body,
    form: Form,
    /// The request that is answered.
    id: Option<Id>,
    over: bool,
    resume: Option<(Caller, HeaderValue)>,
    /// The last event that had an id, and when its server wants to be asked again.
    last_event: Option<String>,
    pause: Duration,
    idle: usize,
}

enum Form {
    Empty,
    Whole,
    Stream(Box<Decoder>),
}

impl Messages {
    /// Those of an answer to the request with this id; none for other messages and for streams of a session.
    pub(super) fn of(response: Response<Body>, id: Option<Id>) -> Self {
        let form = match is_stream(&response) {
            true => Form::Stream(Box::default()),
            false if matches!(response.body(), Body::Empty) => Form::Empty,
            false => Form::Whole,
        };
        Self {
            body: response.into_body(),
            form,
            id,
            over: false,
            resume: None,
            last_event: None,
            pause: PAUSE,
            idle: 0,
        }
    }

    /// Takes a stream of this session up again, where its server closes it for a while.
    #[must_use]
    pub(super) fn resumed_by(mut self, caller: Caller, session: Option<HeaderValue>) -> Self {
        self.resume = session.map(|session| (caller, session));
        self
    }

    /// Whether the last message was the answer, or nothing more will come.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// The last event that had an id.
    pub(super) fn last_event(&self) -> Option<&str> {
        self.last_event.as_deref()
    }

    /// The next message.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.over {
                return None;
            }
            let said = match &mut self.form {
                Form::Empty => None,
                Form::Whole => {
                    self.over = true;
                    return self.whole().await;
                }
                Form::Stream(_) => self.heard().await,
            };
            match said {
                Some(message) => return Some(message),
                None if self.take_up().await => {}
                None => {
                    self.over = true;
                    return self.unanswered();
                }
            }
        }
    }

    async fn whole(&mut self) -> Option<Bytes> {
        let mut whole = BytesMut::new();
        while let Some(Ok(frame)) = self.body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            if whole.len() + data.len() > MAX_ANSWER {
                return self.failed(UpstreamFault::TooLarge);
            }
            whole.extend_from_slice(&data);
        }
        let whole = whole.freeze();
        match &self.id {
            None => Some(whole).filter(|whole| !whole.is_empty()),
            Some(id) => Some(addressed(whole, id)),
        }
    }

    /// The next message of a stream; none at its end.
    async fn heard(&mut self) -> Option<Bytes> {
        let Form::Stream(decoder) = &mut self.form else { return None };
        loop {
            match decoder.next() {
                Ok(Some(Item::Comment)) => continue,
                Ok(Some(Item::Event(event))) => {
                    if let Some(id) = event.id {
                        self.last_event = Some(id);
                        self.idle = 0;
                    }
                    if let Some(retry) = event.retry {
                        self.pause = Duration::from_millis(retry).min(LONGEST_PAUSE);
                    }
                    if event.data.is_empty() {
                        continue;
                    }
                    self.over = self.id.is_some() && is_answer(&event.data, self.id.as_ref());
                    return Some(event.data);
                }
                Ok(None) => {}
                Err(_) => return None,
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        decoder.push(data);
                    }
                }
                _ => return None,
            }
        }
    }

    /// Asks for the rest of a stream that ended before its answer. False where there is none to ask for.
    async fn take_up(&mut self) -> bool {
        let (Some(_), Body::Relay(_)) = (&self.id, &self.body) else { return false };
        let (Some((caller, session)), Some(after)) = (&self.resume, &self.last_event) else { return false };
        while self.idle < MAX_IDLE_RESUMES {
            self.idle += 1;
            sleep(self.pause).await;
            let response = caller.listen(Some(session), Some(after)).await;
            if is_stream(&response) {
                self.body = response.into_body();
                self.form = Form::Stream(Box::default());
                return true;
            }
            if matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED) {
                break;
            }
        }
        false
    }

    /// What a request is told whose stream is over. Work of our own that says nothing was taken back by the client.
    fn unanswered(&self) -> Option<Bytes> {
        match &self.body {
            Body::Relay(_) | Body::Passed(_) => self.failed(UpstreamFault::BrokeOff),
            _ => None,
        }
    }

    fn failed(&self, fault: UpstreamFault) -> Option<Bytes> {
        let id = self.id.as_ref()?;
        Some(Reject::upstream(fault, true).message(Some(id), Uuid::now_v7()))
    }
}

/// Whether an answer is an event stream.
pub(super) fn is_stream(response: &Response<Body>) -> bool {
    response.status().is_success() && is_type(response.headers(), "text/event-stream")
}

fn is_answer(data: &Bytes, id: Option<&Id>) -> bool {
    Message::parse(data.clone(), &Limits::RESPONSE)
        .is_ok_and(|message| matches!(message.kind(), Kind::Response | Kind::Error) && message.id() == id)
}

/// An answer under the id that was asked with. A refusal that came before the message was read names none.
fn addressed(answer: Bytes, id: &Id) -> Bytes {
    let Ok(message) = Message::parse(answer.clone(), &Limits::RESPONSE) else {
        return Reject::Refused.message(Some(id), Uuid::now_v7());
    };
    match message.error() {
        _ if message.id() == Some(id) => answer,
        Some(error) => {
            let mut out = BytesMut::from(&b"{\"jsonrpc\":\"2.0\",\"id\":"[..]);
            out.extend_from_slice(id.as_json().as_bytes());
            out.extend_from_slice(b",\"error\":");
            out.extend_from_slice(&error);
            out.extend_from_slice(b"}");
            out.freeze()
        }
        None => Reject::upstream(UpstreamFault::BadAnswer, true).message(Some(id), Uuid::now_v7()),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};
    use http::header;

    use super::*;

    fn streamed(chunks: &'static [&'static str]) -> Response<Body> {
        let chunks = stream::iter(chunks.iter().map(|chunk| Bytes::from_static(chunk.as_bytes())));
        let mut response = Response::new(Body::Made(chunks.boxed()));
        let sse = HeaderValue::from_static("text/event-stream");
        response.headers_mut().insert(header::CONTENT_TYPE, sse);
        response
    }

    async fn all(response: Response<Body>, id: Option<Id>) -> Vec<String> {
        let mut messages = Messages::of(response, id);
        let mut said = Vec::new();
        while let Some(message) = messages.next().await {
            said.push(String::from_utf8(message.to_vec()).unwrap());
        }
        said
    }

    #[tokio::test]
    async fn a_stream_is_read_to_its_answer_however_it_is_cut() {
        let note = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{}}"#;
        let other = r#"{"jsonrpc":"2.0","id":"1","result":{}}"#;
        let answer = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
        let cut: &[&str] = &[
            ":\n\nid: 1\ndata:\n\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notif",
            "ications/message\",\"params\":{}}\n\ndata: {\"jsonrpc\":\"2.0\",\"id\":\"1\",\"result\":{}}\n\n",
            "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n\ndata: {}\n\n",
        ];
        assert_eq!(all(streamed(cut), Some(Id::number(1))).await, [note, other, answer]);
        assert_eq!(all(streamed(cut), None).await, [note, other, answer, "{}"]);
    }

    #[tokio::test]
    async fn a_refusal_is_told_under_the_id_of_the_request() {
        let reject = Reject::Unauthenticated("unknown_key");
        let response = reject.response(None, Uuid::nil()).map(Body::full);
        let said = all(response, Some(Id::string("a"))).await;
        assert_eq!(said.len(), 1);
        assert!(said[0].starts_with(r#"{"jsonrpc":"2.0","id":"a","error":{"code":-32600"#), "{}", said[0]);
        let nobody = Response::new(Body::full(Bytes::from_static(b"<html>")));
        let said = all(nobody, Some(Id::number(7))).await;
        assert!(said[0].contains(r#""id":7"#) && said[0].contains("server_refused"), "{}", said[0]);
    }

    #[tokio::test]
    async fn what_says_nothing_says_nothing() {
        assert_eq!(all(Response::new(Body::Empty), Some(Id::number(1))).await, [""; 0]);
        assert_eq!(all(streamed(&[]), Some(Id::number(1))).await, [""; 0], "a cancelled request");
    }
}
