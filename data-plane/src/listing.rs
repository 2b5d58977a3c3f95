//! What of a server's answer a caller may see: a tool that cannot be called is not listed, because both ask `Permit`.

use bytes::Bytes;
use waffles_core::seal::SealRing;
use waffles_mcp::jsonrpc::result_response;
use waffles_mcp::listing::filter_list;
use waffles_mcp::{Message, Method, ParseError, Slot};

use crate::permit::Permit;
use crate::tasks;

/// The answer for the caller, in the era of the exchange. `method` is none where it is not known: then any list of tools
/// is filtered.
pub fn answer_for(
    permit: &Permit,
    modern: bool,
    method: Option<&Method>,
    message: &Message,
    ring: Option<&SealRing>,
) -> Result<Bytes, ParseError> {
    let (Some(result), Some(id)) = (message.result(), message.id()) else { return Ok(message.rewrite()) };
    // A call that became a task: its id is the caller's own.
    if modern && let (Some(own), Some(ring)) = (message.text(Slot::ResultTaskId), ring) {
        let public = tasks::public(ring, permit, &own).unwrap_or_default();
        return Ok(message.rewrite_with(None, &[(Slot::ResultTaskId, &public)]));
    }
    let lists_tools = match method {
        Some(method) => *method == Method::ToolsList,
        None => names_tools(&result),
    };
    if !lists_tools || permit.sees_all() {
        return Ok(message.rewrite());
    }
    // What was filtered by a caller's rights is the caller's own, whatever the server said of it
    // [2026-07-28 server/utilities/caching].
    let private = modern || message.raw(Slot::ResultType).is_some();
    match filter_list(&result, "tools", private, |tool| permit.sees(tool))? {
        Some(filtered) => Ok(result_response(id, &filtered)),
        None => Ok(message.rewrite()),
    }
}

fn names_tools(result: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Tools {
        tools: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_slice::<Tools>(result).is_ok_and(|result| result.tools.is_some())
}
