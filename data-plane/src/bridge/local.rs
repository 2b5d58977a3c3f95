//! What a bridge answers itself, because the server knows nothing of it: the handshake of another era, and what is the
//! session's own.

use bytes::Bytes;
use waffles_mcp::translate::handshake::{Described, discover_result, initialize_result};
use waffles_mcp::translate::notice;
use waffles_mcp::{Head, Kind, Method, Revision};

use crate::front::{Front, Session};
use crate::reject::Reject;

/// What becomes of a message in a session of the gateway's own, or of a stateless one for a server with sessions.
#[derive(Debug)]
pub enum Local {
    /// A result that needs no server.
    Result(Bytes),
    /// Nothing to say.
    Accepted,
    /// The server's handshake, in the client's words.
    Describe,
    /// A stream of what changes.
    Listen,
    /// The server is asked.
    Ask,
}

/// Which it is. What a session remembers is noted on the way.
pub fn of(front: &Front, head: &Head) -> Result<Local, Reject> {
    match &front.session {
        Some(session) if !front.is_stateless() => in_session(session, head),
        _ => stateless(front, head),
    }
}

fn in_session(session: &Session, head: &Head) -> Result<Local, Reject> {
    if head.kind == Kind::Notification {
        if let (Method::Cancelled, Some(id)) = (&head.method, &head.request_id) {
            session.cancel(id);
        }
        return Ok(Local::Accepted);
    }
    let empty = Local::Result(Bytes::from_static(b"{}"));
    match &head.method {
        Method::Ping => Ok(empty),
        Method::LoggingSetLevel => {
            let level = head.log_level.as_deref().filter(|level| notice::level_rank(level).is_some());
            session.set_log_level(level.ok_or(Reject::BadLevel)?);
            Ok(empty)
        }
        Method::ResourcesSubscribe => {
            session.subscribe(head.name.as_deref().unwrap_or_default())?;
            Ok(empty)
        }
        Method::ResourcesUnsubscribe => {
            session.unsubscribe(head.name.as_deref().unwrap_or_default());
            Ok(empty)
        }
        // The tasks of 2025-11-25 are another protocol than those of the stateless revision's extension.
        Method::TasksGet
        | Method::TasksUpdate
        | Method::TasksCancel
        | Method::TasksResult
        | Method::TasksList
        | Method::ServerDiscover
        | Method::SubscriptionsListen
        | Method::Initialize => Err(Reject::MethodNotFound { modern: false }),
        _ => Ok(Local::Ask),
    }
}

fn stateless(front: &Front, head: &Head) -> Result<Local, Reject> {
    if head.kind == Kind::Notification {
        return Ok(Local::Accepted);
    }
    match &head.method {
        Method::ServerDiscover => Ok(Local::Describe),
        Method::SubscriptionsListen => Ok(Local::Listen),
        method if method.is_legacy() || !front.is_stateless() => Err(Reject::MethodNotFound { modern: true }),
        Method::ToolsCall
            if head.log_level.as_deref().is_some_and(|level| notice::level_rank(level).is_none()) =>
        {
            Err(Reject::BadLevel)
        }
        _ => Ok(Local::Ask),
    }
}

/// The revision for a session client: the one that it asked for, where it is one with sessions, else the newest.
pub fn agree(asked: Option<&str>) -> Revision {
    asked
        .and_then(Revision::parse)
        .filter(|revision| !revision.is_modern())
        .unwrap_or(Revision::LATEST_LEGACY)
}

/// What a server says of itself, as the result of the client's own handshake.
pub fn describe(described: &Described, revision: Revision) -> Bytes {
    if revision.is_modern() { discover_result(described) } else { initialize_result(described, revision) }
}
