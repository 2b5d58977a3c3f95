//! What of a server's answer a caller may see: a tool that cannot be called is not listed, because both ask `Permit`.

use bytes::Bytes;
use waffles_mcp::jsonrpc::result_response;
use waffles_mcp::listing::filter_list;
use waffles_mcp::{Message, Method, ParseError};

use crate::permit::Permit;

/// The answer for the caller, in the era of the exchange. `method` is none where it is not known: then any list of tools
/// is filtered.
pub fn answer_for(
    permit: &Permit,
    modern: bool,
    method: Option<&Method>,
    message: &Message,
) -> Result<Bytes, ParseError> {
    let (Some(result), Some(id)) = (message.result(), message.id()) else { return Ok(message.rewrite()) };
    let lists_tools = match method {
        Some(method) => *method == Method::ToolsList,
        None => names_tools(&result),
    };
    if !lists_tools || permit.sees_all() {
        return Ok(message.rewrite());
    }
    // What was filtered by a caller's rights is the caller's own, whatever the server said of it
    // [2026-07-28 server/utilities/caching].
    let private = modern || message.raw(waffles_mcp::Slot::ResultType).is_some();
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
