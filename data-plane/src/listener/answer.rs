//! The body of an answer on its way out. Over HTTP/1.1 that is the body itself. Over HTTP/2 it goes in small pieces, and each
//! is watched until it has left, since a reader that opens no window would hold what it never takes.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Response, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::connection::{Connection, Turn};
use crate::stream::Body;

/// Most bytes of one piece.
const PIECE: usize = 16 * 1024;

/// A body, and the turn that it ends.
pub(super) struct Outgoing {
    body: Body,
    /// What of a frame has not been handed out.
    rest: Bytes,
    watched: bool,
    turn: Turn,
}

impl Outgoing {
    pub(super) fn of(response: Response<Body>, version: Version, turn: Turn) -> Response<Self> {
        let watched = version == Version::HTTP_2;
        response.map(|body| Self { body, rest: Bytes::new(), watched, turn })
    }

    fn piece(&mut self, mut bytes: Bytes) -> Bytes {
        if bytes.len() > PIECE {
            self.rest = bytes.split_off(PIECE);
        }
        let connection = Arc::clone(self.turn.connection());
        let number = connection.hand_out();
        Bytes::from_owner(Piece { bytes, number, connection })
    }
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            return Poll::Ready(Some(Ok(Frame::data(self.piece(rest)))));
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match polled {
            Poll::Ready(Some(Ok(frame))) if self.watched => Poll::Ready(Some(Ok(match frame.into_data() {
                Ok(bytes) => Frame::data(self.piece(bytes)),
                Err(frame) => frame,
            }))),
            Poll::Ready(None) => {
                self.turn.done();
                Poll::Ready(None)
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let rest = self.rest.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if self.is_end_stream() {
            self.turn.done();
        }
    }
}

struct Piece {
    bytes: Bytes,
    number: u64,
    connection: Arc<Connection>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.connection.has_left(self.number);
    }
}
