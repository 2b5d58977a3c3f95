//! The Model Context Protocol as data: the envelope, the revisions, the mirrored headers, lists and event-stream
//! framing, as a gateway needs them. It reads a message once and strictly, borrows from the bytes it was given, and
//! passes on unread what the gateway does not act on. It does no I/O, knows no runtime and decides no policy.

pub mod capability;
mod edit;
pub mod era;
mod fault;
mod fields;
pub mod headers;
pub mod jsonrpc;
pub mod listing;
pub mod message;
pub mod names;
mod scan;
pub mod sse;
pub mod translate;
pub mod uris;

pub use era::{Era, Revision};
pub use fault::{Fault, Limits};
pub use jsonrpc::{Id, Kind, Message, ParseError, Slot};
pub use message::{Head, HeadError, Method, head};
