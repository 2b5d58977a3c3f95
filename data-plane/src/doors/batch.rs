//! Batches of 2025-03-26: several messages in one POST. Each is served by itself and leaves its own record; a batch is
//! never forwarded as one. The answers come as one JSON array, or as one stream where any of them comes as a stream.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, Stream, StreamExt as _, once, unfold};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::value::RawValue;
use waffles_mcp::headers::MCP_SESSION_ID;
use waffles_mcp::sse::encode_message;
use waffles_mcp::{Id, Kind, Limits, Message};

use super::messages::{Messages, is_stream};
use super::{Caller, event_stream, kept_alive, refusal};
use crate::gateway::{Door, Gateway, Source};
use crate::limit::{RATE_LIMIT, RATE_LIMIT_POLICY};
use crate::reject::Reject;
use crate::stream::Body;

/// How many messages of a batch are served at once; the others wait until one of those is answered.
const AT_ONCE: usize = 8;
/// Most bytes of answers that are kept for an array. What is more comes as a stream, at the client's pace.
const MAX_ARRAY: usize = 1024 * 1024;
/// The headers that a refusal of the whole keeps.
const TOLD: [http::HeaderName; 4] =
    [header::WWW_AUTHENTICATE, header::RETRY_AFTER, RATE_LIMIT_POLICY, RATE_LIMIT];

/// Serves a batch that the gateway has read and found to be one.
pub async fn serve(
    gateway: &Arc<Gateway>,
    door: &Door,
    peer: SocketAddr,
    parts: Parts,
    batch: Bytes,
) -> Response<Body> {
    let Ok(items) = serde_json::from_slice::<Vec<&RawValue>>(&batch) else {
        return refusal(&Reject::Internal("unreadable_batch"));
    };
    let items: Vec<Bytes> = items.iter().map(|item| batch.slice_ref(item.get().as_bytes())).collect();
    let caller = Caller::new(gateway, door, peer, &parts.headers);
    let parts = Arc::new(parts);
    let said = stream::iter(items.into_iter().enumerate())
        .map(move |(at, item)| answers(caller.clone(), Arc::clone(&parts), at, item).boxed())
        .flatten_unordered(AT_ONCE);
    collect(said.boxed()).await
}

/// What is known of one item's answer.
enum Said {
    /// Its head came.
    Head { status: StatusCode, headers: HeaderMap, streams: bool },
    /// A message for the client.
    Message(usize, Bytes),
    /// The refusal of an item that is owed no answer.
    Refusal(Bytes),
}

/// What an item is owed.
enum Owed {
    Answer(Id),
    Nothing,
    /// Nobody can tell, so it is told what is wrong with it.
    Error,
}

/// One item's answer, as it comes.
fn answers(
    caller: Caller,
    parts: Arc<Parts>,
    at: usize,
    item: Bytes,
) -> impl Stream<Item = Said> + Send + 'static {
    let owed = match Message::parse(item.clone(), &Limits::default()) {
        Ok(message) => match (message.kind(), message.id()) {
            (Kind::Request, Some(id)) => Owed::Answer(id.clone()),
            _ => Owed::Nothing,
        },
        Err(_) => Owed::Error,
    };
    once(async move {
        let source = Source::Batched(item);
        let door = caller.door.clone();
        let served = Box::pin(caller.gateway.serve(door, caller.peer, (*parts).clone(), source)).await;
        let (status, streams) = (served.status(), is_stream(&served));
        let headers = served.headers().clone();
        let session = parts.headers.get(MCP_SESSION_ID).cloned();
        let id = match &owed {
            Owed::Answer(id) => Some(id.clone()),
            Owed::Nothing | Owed::Error => None,
        };
        let messages = Messages::of(served, id).resumed_by(caller, session);
        let spoken = unfold(messages, |mut messages| async move {
            messages.next().await.map(|message| (message, messages))
        });
        let spoken = spoken.map(move |message| match owed {
            Owed::Nothing => Said::Refusal(message),
            Owed::Answer(_) | Owed::Error => Said::Message(at, message),
        });
        once(async move { Said::Head { status, headers, streams } }).chain(spoken)
    })
    .flatten()
}

/// Waits until it is clear what form the answer has.
async fn collect(mut said: BoxStream<'static, Said>) -> Response<Body> {
    let mut answers = Vec::new();
    let mut refusals = Vec::new();
    let mut heads: Vec<(StatusCode, HeaderMap)> = Vec::new();
    let mut size = 0;
    while let Some(next) = said.next().await {
        match next {
            Said::Head { streams: true, .. } => return streamed(answers, said),
            Said::Head { status, headers, .. } => heads.push((status, headers)),
            Said::Message(at, message) => {
                size += message.len();
                answers.push((at, message));
                if size > MAX_ARRAY {
                    return streamed(answers, said);
                }
            }
            Said::Refusal(message) => refusals.push(message),
        }
    }
    answers.sort_by_key(|(at, _)| *at);
    let mut answers: Vec<Bytes> = answers.into_iter().map(|(_, message)| message).collect();
    // Where all were turned away alike, so is the batch: a client must learn that its session is gone.
    let (status, headers) = heads.first().cloned().unwrap_or_default();
    let alike = !status.is_success() && heads.iter().all(|(other, _)| *other == status);
    if alike && answers.is_empty() {
        answers = refusals;
    }
    let mut response = match answers.is_empty() {
        true => Response::new(Body::Empty),
        false => Response::new(Body::full(array(&answers))),
    };
    if !answers.is_empty() {
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
    }
    *response.status_mut() = match (alike, answers.is_empty()) {
        (true, _) => status,
        (false, true) => StatusCode::ACCEPTED,
        (false, false) => StatusCode::OK,
    };
    for name in TOLD {
        if let (true, Some(value)) = (alike, headers.get(&name)) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

/// What was said until now and what will be, as one stream. Messages of different items come as they do.
fn streamed(answers: Vec<(usize, Bytes)>, rest: BoxStream<'static, Said>) -> Response<Body> {
    let rest = rest.filter_map(|said| async move {
        match said {
            Said::Message(_, message) => Some(message),
            Said::Head { .. } | Said::Refusal(_) => None,
        }
    });
    let messages = stream::iter(answers.into_iter().map(|(_, message)| message)).chain(rest);
    event_stream(kept_alive(messages.map(|message| encode_message(&message)).boxed()))
}

fn array(messages: &[Bytes]) -> Bytes {
    let size: usize = messages.iter().map(|message| message.len() + 1).sum();
    let mut out = BytesMut::with_capacity(size + 1);
    for (before, message) in std::iter::once(&b"["[..]).chain(std::iter::repeat(&b","[..])).zip(messages) {
        out.extend_from_slice(before);
        out.extend_from_slice(message);
    }
    out.extend_from_slice(b"]");
    out.freeze()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn head(status: u16, streams: bool) -> Said {
        let headers = HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_static("1"))]);
        Said::Head { status: StatusCode::from_u16(status).unwrap(), headers, streams }
    }

    fn message(at: usize, text: &'static str) -> Said {
        Said::Message(at, Bytes::from_static(text.as_bytes()))
    }

    async fn check(said: Vec<Said>, status: u16, sse: bool, body: &str) {
        let response = collect(stream::iter(said).boxed()).await;
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(is_stream(&response), sse);
        assert_eq!(response.headers().contains_key(header::RETRY_AFTER), status >= 400);
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(std::str::from_utf8(&bytes).unwrap(), body);
    }

    #[tokio::test]
    async fn answers_stand_in_the_order_of_their_questions() {
        let said =
            vec![head(200, false), message(2, "2"), head(202, false), head(404, false), message(0, "0")];
        check(said, 200, false, "[0,2]").await;
    }

    #[tokio::test]
    async fn what_is_owed_no_answer_gets_none() {
        check(vec![head(202, false), head(202, false)], 202, false, "").await;
        let refused = || Said::Refusal(Bytes::from_static(b"no"));
        check(vec![head(404, false), refused(), head(202, false)], 202, false, "").await;
        check(vec![head(404, false), refused()], 404, false, "[no]").await;
    }

    #[tokio::test]
    async fn what_is_refused_alike_is_refused_as_a_whole() {
        let said = vec![head(404, false), message(0, "0"), head(404, false), message(1, "1")];
        check(said, 404, false, "[0,1]").await;
        let said = vec![head(404, false), message(0, "0"), head(400, false), message(1, "1")];
        check(said, 200, false, "[0,1]").await;
    }

    #[tokio::test]
    async fn one_stream_makes_a_stream_of_all() {
        let event = |data| format!("event: message\ndata: {data}\n\n");
        let said =
            vec![head(200, false), message(1, "1"), head(200, true), message(0, "0"), head(202, false)];
        check(said, 200, true, &(event("1") + &event("0"))).await;
    }
}
