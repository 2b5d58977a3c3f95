//! A question of the gateway's own to a server, on a caller's behalf: what a federated door lists. It has no client that
//! hears anything before the answer, and nobody who could be asked.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method as HttpMethod, header};
use tokio::time::{Instant, timeout_at};
use waffles_mcp::headers;
use waffles_mcp::listing::{ParamHeader, entries, tool_param_headers};
use waffles_mcp::translate::request::{self, Extra};
use waffles_mcp::{Head, Id, Kind, Limits, Message, Method, Revision, head};

use super::Way;
use crate::front::Front;
use crate::permit::Permit;
use crate::reject::{Reject, UpstreamFault};
use crate::shared::Means;
use crate::upstream::backs::Missed;
use crate::upstream::schemas::Annotated;
use crate::upstream::{Heard, Inbox, Manner, Outgoing};

/// What a server answered.
#[derive(Debug)]
pub enum Reply {
    /// The bytes of its result.
    Result(Bytes),
    /// Its JSON-RPC error code.
    Error(i64),
}

impl Means {
    /// Asks a server. `request` is a whole JSON-RPC request of an older revision, under any id.
    pub async fn inquire(
        &self,
        front: &Front,
        permit: &Permit,
        request: Bytes,
        until: Instant,
    ) -> Result<Reply, Reject> {
        let asked = self.inquire_now(front, permit, request);
        timeout_at(until, asked).await.map_err(|_| Reject::upstream(UpstreamFault::TimedOut, true))?
    }

    async fn inquire_now(&self, front: &Front, permit: &Permit, request: Bytes) -> Result<Reply, Reject> {
        let message = Message::parse(request, &Limits::default())?;
        match self.way(front, permit).await? {
            Way::Stateless(_) => {
                let id = self.shared.fresh_id();
                let body = request::to_stateless(&message, Some(&id), &front.client, &Extra::default());
                let mut to = HeaderMap::with_capacity(6);
                to.insert(header::ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
                to.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                headers::write(&head(&message)?, Revision::V2026_07_28, &mut to);
                let outgoing = Outgoing {
                    method: HttpMethod::POST,
                    headers: to,
                    body,
                    endpoint: None,
                    path: None,
                    // Nothing but lists is asked.
                    manner: Manner::Repeatable,
                };
                match Heard::read(self.upstream.call(permit, outgoing).await?).await? {
                    Heard::Inbox(inbox) => answer(inbox, &id).await,
                    Heard::Refused { message: Some(message), .. } => {
                        Ok(Reply::Error(message.error_code().unwrap_or_default()))
                    }
                    Heard::Refused { message: None, .. } => {
                        self.shared.eras.forget(&permit.entry().server);
                        Err(Reject::Refused)
                    }
                    Heard::Accepted => Err(Reject::upstream(UpstreamFault::BadAnswer, true)),
                }
            }
            Way::Session(back) => {
                let lost = || Reject::upstream(UpstreamFault::BrokeOff, true);
                let mut back = back;
                for _ in 0..2 {
                    let id = back.fresh_id();
                    let _busy = back.busy();
                    let body = request::to_session(&message, Some(&id), &Extra::default());
                    match back.ask(&self.upstream, permit, &id, body).await {
                        Ok(inbox) => return answer(inbox, &id).await,
                        Err(Missed::Answered(message)) => {
                            return Ok(Reply::Error(message.error_code().unwrap_or_default()));
                        }
                        Err(Missed::Reject(reject)) => return Err(reject),
                        Err(Missed::Lost) => back = self.back(front, permit).await?,
                    }
                }
                Err(lost())
            }
        }
    }
}

/// How long reading a server's tools may take, and over how many pages.
const READ_TIME: Duration = Duration::from_secs(10);
const MAX_PAGES: usize = 100;

impl Means {
    /// Which arguments of the tool that a message calls are mirrored in headers; none where none are, or where the list
    /// cannot be read: then the server says what is wrong.
    pub async fn annotations(
        &self,
        front: &Front,
        permit: &Permit,
        head: &Head,
    ) -> Option<Arc<Vec<ParamHeader>>> {
        let tool = head.name.as_ref().filter(|_| head.method == Method::ToolsCall)?;
        let server = &permit.entry().server;
        let tools = match self.shared.schemas.of(server) {
            Some(tools) => tools,
            None => {
                let read = self.read_annotations(front, permit).await?;
                self.shared.schemas.note(server, read)
            }
        };
        tools.get(tool).cloned()
    }

    async fn read_annotations(&self, front: &Front, permit: &Permit) -> Option<Annotated> {
        let until = Instant::now() + READ_TIME;
        let front = Front { session: None, ..front.clone() };
        let mut annotated = Annotated::new();
        let mut params = serde_json::json!({});
        for _ in 0..MAX_PAGES {
            let request =
                serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": params});
            let reply = self.inquire(&front, permit, request.to_string().into(), until).await.ok()?;
            let Reply::Result(page) = reply else { return None };
            let (list, next) = entries(&page, "tools").ok()?;
            for entry in list {
                if let Ok(annotations) = tool_param_headers(&entry.raw)
                    && !annotations.is_empty()
                {
                    annotated.insert(entry.name, Arc::new(annotations));
                }
            }
            match next {
                Some(next) => params = serde_json::json!({"cursor": next}),
                None => return Some(annotated),
            }
        }
        None
    }
}

async fn answer(mut inbox: Inbox, id: &Id) -> Result<Reply, Reject> {
    loop {
        match inbox.next().await.map_err(|fault| Reject::upstream(fault, true))? {
            None => return Err(Reject::upstream(UpstreamFault::BrokeOff, true)),
            Some(message) if message.id() == Some(id) => match message.kind() {
                Kind::Response => {
                    inbox.done();
                    return Ok(Reply::Result(message.result().unwrap_or_default()));
                }
                Kind::Error => {
                    inbox.done();
                    return Ok(Reply::Error(message.error_code().unwrap_or_default()));
                }
                _ => {}
            },
            Some(_) => {}
        }
    }
}
