//! Which arguments of a server's tools are mirrored in headers, as its current list says [2026-07-28
//! streamable-http#request-metadata]. Read when the first bridged call needs it, and again when the server says that the
//! headers do not match.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method as HttpMethod, header};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;
use waffles_core::server::Server;
use waffles_mcp::headers::{MCP_METHOD, MCP_PROTOCOL_VERSION};
use waffles_mcp::listing::{ParamHeader, entries, tool_param_headers};
use waffles_mcp::{Id, Kind, Revision};

use super::{Heard, Outgoing, Upstream};
use crate::permit::Permit;

/// How long a list is believed.
const MAX_AGE: Duration = Duration::from_secs(300);
/// How long reading it may take, and over how many pages.
const READ_TIME: Duration = Duration::from_secs(10);
const MAX_PAGES: usize = 64;

/// The annotated tools of one server.
#[derive(Debug, Clone)]
struct Known {
    version: u64,
    since: Instant,
    tools: Arc<HashMap<String, Arc<Vec<ParamHeader>>>>,
}

/// The annotated tools of all servers. Shared by all threads.
#[derive(Debug, Default)]
pub struct Schemas(Mutex<HashMap<Uuid, Known>>);

impl Schemas {
    /// Forgets a server's tools.
    pub fn forget(&self, server: &Server) {
        self.0.lock().remove(&server.id);
    }

    /// The annotations of a tool; none where it has none, or where the list cannot be read: the server then says so.
    pub async fn of(
        &self,
        upstream: &Upstream,
        permit: &Permit,
        tool: &str,
    ) -> Option<Arc<Vec<ParamHeader>>> {
        let server = &permit.entry().server;
        let known = self.0.lock().get(&server.id).cloned();
        let known =
            match known.filter(|known| known.version == server.version && known.since.elapsed() < MAX_AGE) {
                Some(known) => known,
                None => {
                    let tools = Arc::new(read(upstream, permit).await?);
                    let known = Known { version: server.version, since: Instant::now(), tools };
                    self.0.lock().insert(server.id, known.clone());
                    known
                }
            };
        known.tools.get(tool).cloned()
    }
}

async fn read(upstream: &Upstream, permit: &Permit) -> Option<HashMap<String, Arc<Vec<ParamHeader>>>> {
    let until = Instant::now() + READ_TIME;
    let mut tools = HashMap::new();
    let mut cursor = None;
    for _ in 0..MAX_PAGES {
        let page = timeout_at(until, page(upstream, permit, cursor.as_deref())).await.ok()??;
        let (list, next) = entries(&page, "tools").ok()?;
        for entry in list {
            if let Ok(annotations) = tool_param_headers(&entry.raw)
                && !annotations.is_empty()
            {
                tools.insert(entry.name, Arc::new(annotations));
            }
        }
        match next {
            Some(next) => cursor = Some(next),
            None => return Some(tools),
        }
    }
    Some(tools)
}

/// The result of one page of `tools/list`.
async fn page(upstream: &Upstream, permit: &Permit, cursor: Option<&str>) -> Option<Bytes> {
    let version = Revision::V2026_07_28.as_str();
    let mut params = serde_json::json!({"_meta": {
        "io.modelcontextprotocol/protocolVersion": version,
        "io.modelcontextprotocol/clientCapabilities": {},
    }});
    if let (Some(cursor), Some(params)) = (cursor, params.as_object_mut()) {
        params.insert("cursor".into(), cursor.into());
    }
    let id = Id::number(1);
    let body = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": params});
    let mut headers = HeaderMap::with_capacity(5);
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(MCP_PROTOCOL_VERSION, HeaderValue::from_static(version));
    headers.insert(MCP_METHOD, HeaderValue::from_static("tools/list"));
    let outgoing = Outgoing {
        method: HttpMethod::POST,
        headers,
        body: body.to_string().into(),
        endpoint: None,
        path: None,
    };
    let answer = upstream.call(permit, outgoing).await.ok()?;
    let Heard::Inbox(mut inbox) = Heard::read(answer).await.ok()? else { return None };
    while let Some(message) = inbox.next().await.ok()? {
        if message.kind() == Kind::Response && message.id() == Some(&id) {
            inbox.done();
            return message.result();
        }
    }
    None
}
