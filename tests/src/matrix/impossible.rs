//! What no gateway can give: cells that the specification rules out, each with the reason.

use super::{Client, Door, Server};
use crate::Era;

const NO_ELICITATION: &str = "elicitation came with 2025-06-18";
const ONLY_ANSWERS: &str = "a server without streams sends nothing but its answers";
const CANNOT_ASK: &str = "a server without streams has no way to ask its client";
const CANNOT_FIND: &str = "a server without sessions cannot find the call that is cancelled";
const LOG_OF_NO_CALL: &str =
    "2026-07-28 knows log messages of a request only, and this server sends them beside its calls";
const ROOTS_OF_NO_CALL: &str =
    "2026-07-28 knows questions of a request only, and this server asks for roots beside its calls";

const LISTS_OF_SESSIONS: &str =
    "the lists at a federated address are of a principal, and this server has others for each session";

/// Why this cell cannot pass, if it cannot.
pub fn reason(client: &Client, server: &Server, door: Door, feature: &str) -> Option<&'static str> {
    let oldest = client.revision.min(server.revision);
    if feature == "elicitation" && oldest < "2025-06-18" {
        return Some(NO_ELICITATION);
    }
    if server.plain {
        return match feature {
            "progress" | "log" | "subscribe" | "list-changed" => Some(ONLY_ANSWERS),
            "elicitation" | "sampling" | "roots" => Some(CANNOT_ASK),
            "cancel" => Some(CANNOT_FIND),
            _ => None,
        };
    }
    let everything = server.vocabulary == "everything";
    if everything && door == Door::Federated && feature == "list-changed" {
        return Some(LISTS_OF_SESSIONS);
    }
    // Over HTTP+SSE all that a server sends comes on one stream, so what it sends during a call is taken to be of it.
    if server.name == "everything" && client.era == Era::Stateless {
        return match feature {
            "log" => Some(LOG_OF_NO_CALL),
            "roots" => Some(ROOTS_OF_NO_CALL),
            _ => None,
        };
    }
    None
}
