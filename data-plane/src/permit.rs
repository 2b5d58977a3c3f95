//! Authorization of one message: the only place that makes a `Permit`, and nothing goes to a server without one.

use std::borrow::Cow;
use std::sync::Arc;

use waffles_core::policy::{Access, Decision, decide};
use waffles_core::snapshot::{ServerEntry, Snapshot};
use waffles_mcp::{Head, Method};

use crate::authn::Identity;
use crate::reject::Reject;

/// Proof that a caller may send a message to a server.
#[derive(Debug, Clone)]
pub struct Permit {
    identity: Identity,
    entry: Arc<ServerEntry>,
    access: Access,
    tool: Option<String>,
    rule: Cow<'static, str>,
}

impl Permit {
    /// Decides about one message; `head` is none for answers to the server's own requests and for streams.
    pub fn authorize(
        identity: &Identity,
        entry: &Arc<ServerEntry>,
        head: Option<&Head>,
    ) -> Result<Self, Reject> {
        let (access, tool) = match head {
            Some(head) => (access(&head.method), tool(head)),
            None => (Access::Read, None),
        };
        let rule = match decide(&identity.caller(), &entry.server, &entry.tools, access, tool) {
            Decision::Allow(rule) => rule,
            Decision::HideServer(rule) => return Err(Reject::UnknownServer(rule)),
            Decision::Disabled => return Err(Reject::ServerDisabled),
            Decision::HideTool(rule) => {
                return Err(Reject::UnknownTool { tool: tool.unwrap_or_default().to_owned(), rule });
            }
            Decision::Forbid(rule) => return Err(Reject::Forbidden(rule)),
        };
        let tool = tool.map(ToOwned::to_owned);
        Ok(Self { identity: identity.clone(), entry: Arc::clone(entry), access, tool, rule })
    }

    /// The server.
    pub fn entry(&self) -> &Arc<ServerEntry> {
        &self.entry
    }

    /// Who was permitted.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The rule that decided.
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// Whether the caller may call a tool: what a list is filtered by.
    pub fn sees(&self, tool: &str) -> bool {
        let decision =
            decide(&self.identity.caller(), &self.entry.server, &self.entry.tools, Access::Call, Some(tool));
        matches!(decision, Decision::Allow(_))
    }

    /// Whether nothing could be filtered from a list.
    pub fn sees_all(&self) -> bool {
        let filter = &self.entry.server.spec.tools;
        let limits = self.identity.key().map(|key| &key.limits);
        filter.allow.is_empty()
            && filter.deny.is_empty()
            && limits.is_none_or(|limits| limits.tools.is_empty() && !limits.read_only)
    }

    /// The same permit under the configuration and at the time of now; none when it would not be given any more. Streams
    /// that stay open ask.
    pub fn renewed(&self, snapshot: &Snapshot) -> Option<Self> {
        let identity = self.identity.renew(snapshot)?;
        let server = &self.entry.server;
        let entry = snapshot.server(&server.tenant, &server.spec.name)?;
        let tool = self.tool.as_deref();
        match decide(&identity.caller(), &entry.server, &entry.tools, self.access, tool) {
            Decision::Allow(rule) if entry.server.id == server.id => Some(Self {
                identity,
                entry: Arc::clone(entry),
                access: self.access,
                tool: self.tool.clone(),
                rule,
            }),
            _ => None,
        }
    }
}

/// What a method may do at a server. Methods that no revision names may do anything, so they count as calls.
fn access(method: &Method) -> Access {
    match method {
        Method::ToolsCall
        | Method::TasksUpdate
        | Method::TasksCancel
        | Method::TasksResult
        | Method::ElicitationCreate
        | Method::SamplingCreateMessage
        | Method::Other(_) => Access::Call,
        _ => Access::Read,
    }
}

fn tool(head: &Head) -> Option<&str> {
    match head.method {
        Method::ToolsCall => head.name.as_deref(),
        _ => None,
    }
}
