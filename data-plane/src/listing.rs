//! What of a server's answer a caller may see: what cannot be called is not listed, because both ask `Permit`.

use std::collections::HashSet;

use bytes::Bytes;
use waffles_core::seal::SealRing;
use waffles_mcp::jsonrpc::result_response;
use waffles_mcp::listing::filter_list;
use waffles_mcp::{Message, Method, ParseError, Slot};

use crate::permit::Permit;
use crate::tasks;

/// The lists that a result can hold.
const LISTS: [&str; 4] = ["tools", "prompts", "resources", "resourceTemplates"];

/// The answer for the caller, in the era of the exchange. `method` is none where it is not known: then any list is
/// filtered.
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
    // What was filtered by a caller's rights is the caller's own, whatever the server said of it
    // [2026-07-28 server/utilities/caching].
    let private = modern || message.raw(Slot::ResultType).is_some();
    match visible(permit, method, &result, private)? {
        Some(filtered) => Ok(result_response(id, &filtered)),
        None => Ok(message.rewrite()),
    }
}

/// A result without what the caller may not see; none where that is nothing. With `private`, a list that lost an entry
/// says that it is one caller's.
pub fn visible(
    permit: &Permit,
    method: Option<&Method>,
    result: &[u8],
    private: bool,
) -> Result<Option<Vec<u8>>, ParseError> {
    let lists: Vec<&str> = match method {
        Some(method) => method.list_key().into_iter().filter(|key| LISTS.contains(key)).collect(),
        None => {
            let held = names(result);
            LISTS.into_iter().filter(|key| held.contains(*key)).collect()
        }
    };
    if lists.is_empty() || permit.sees_all() {
        return Ok(None);
    }
    let mut filtered: Option<Vec<u8>> = None;
    for list in lists {
        let whole = filtered.as_deref().unwrap_or(result);
        let next = match list {
            "tools" => filter_list(whole, list, private, |tool| permit.sees(tool))?,
            _ if permit.reads() => None,
            _ => filter_list(whole, list, private, |_| false)?,
        };
        filtered = next.or(filtered);
    }
    Ok(filtered)
}

/// The names of a result's fields.
fn names(result: &[u8]) -> HashSet<String> {
    let fields: Result<std::collections::HashMap<String, serde::de::IgnoredAny>, _> =
        serde_json::from_slice(result);
    fields.map(|fields| fields.into_keys().collect()).unwrap_or_default()
}
