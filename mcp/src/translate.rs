//! One message in the words of another revision: data in, data out. Each module is one side of the conversation; each
//! function names the revision that it writes for. Fields that the gateway does not know pass through as they were
//! written.

pub mod handshake;
pub mod input;
pub mod notice;
pub mod request;
pub mod result;

use bytes::Bytes;

/// What a client says of itself: in `initialize`, or in `_meta` of every request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// A JSON object.
    pub capabilities: Bytes,
    /// A JSON object.
    pub info: Option<Bytes>,
}
