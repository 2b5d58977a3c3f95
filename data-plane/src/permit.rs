//! Authorization of one message: the only place that makes a `Permit`, and nothing goes to a server without one.

use std::borrow::Cow;
use std::sync::Arc;

use waffles_core::namespace::NamespaceEntry;
use waffles_core::policy::{Access, Decision, decide, decide_in, level};
use waffles_core::snapshot::{ServerEntry, Snapshot};
use waffles_mcp::{Head, Method};

use crate::authn::Identity;
use crate::reject::Reject;

/// Proof that a caller may send a message to a server.
#[derive(Debug, Clone)]
pub struct Permit {
    identity: Identity,
    entry: Arc<ServerEntry>,
    /// The namespace at whose door it was given.
    namespace: Option<Arc<NamespaceEntry>>,
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
        Self::authorize_at(identity, entry, None, head)
    }

    /// As [`Permit::authorize`], at the door of a namespace.
    pub fn authorize_at(
        identity: &Identity,
        entry: &Arc<ServerEntry>,
        namespace: Option<&Arc<NamespaceEntry>>,
        head: Option<&Head>,
    ) -> Result<Self, Reject> {
        let (access, tool) = match head {
            Some(head) => (access(&head.method), tool(head)),
            // The door itself: what stands behind it, and what changes of it.
            None if namespace.is_some() => (Access::List, None),
            None => (Access::Read, None),
        };
        let rule = match judge(identity, entry, namespace.map(Arc::as_ref), access, tool) {
            Decision::Allow(rule) => rule,
            Decision::HideServer(rule) => return Err(Reject::UnknownServer(rule)),
            Decision::Disabled => return Err(Reject::ServerDisabled),
            Decision::HideTool(rule) => {
                return Err(Reject::UnknownTool { tool: tool.unwrap_or_default().to_owned(), rule });
            }
            Decision::Forbid(rule) => return Err(Reject::Forbidden(rule)),
        };
        let tool = tool.map(ToOwned::to_owned);
        let (identity, entry, namespace) = (identity.clone(), Arc::clone(entry), namespace.cloned());
        Ok(Self { identity, entry, namespace, access, tool, rule })
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
        // With the level `view`, lists show what `execute` could call.
        let access = if self.namespace.is_some() { Access::List } else { Access::Call };
        let namespace = self.namespace.as_deref();
        let decision = judge(&self.identity, &self.entry, namespace, access, Some(tool));
        matches!(decision, Decision::Allow(_))
    }

    /// Whether nothing could be filtered from a list.
    pub fn sees_all(&self) -> bool {
        let filter = &self.entry.server.spec.tools;
        let limits = self.identity.key().map(|key| &key.limits);
        let name = &self.entry.server.spec.name;
        let exposes_all = |namespace: &Arc<NamespaceEntry>| {
            namespace.member(name).is_some_and(waffles_core::namespace::MemberEntry::shows_all)
        };
        self.namespace.as_ref().is_none_or(exposes_all)
            && filter.allow.is_empty()
            && filter.deny.is_empty()
            && limits.is_none_or(|limits| limits.tools.is_empty() && !limits.read_only)
    }

    /// The same permit under the configuration and at the time of now; none when it would not be given any more. Streams
    /// that stay open ask.
    pub fn renewed(&self, snapshot: &Snapshot) -> Option<Self> {
        let identity = self.identity.renew(snapshot)?;
        let server = &self.entry.server;
        let entry = snapshot.server(&server.tenant, &server.spec.name)?;
        let namespace = match &self.namespace {
            Some(old) => {
                let namespace = &old.namespace;
                Some(snapshot.namespace(&namespace.tenant, &namespace.spec.name)?)
            }
            None => None,
        };
        let tool = self.tool.as_deref();
        match judge(&identity, entry, namespace.map(Arc::as_ref), self.access, tool) {
            Decision::Allow(rule) if entry.server.id == server.id => Some(Self {
                identity,
                entry: Arc::clone(entry),
                namespace: namespace.cloned(),
                access: self.access,
                tool: self.tool.clone(),
                rule,
            }),
            _ => None,
        }
    }
}

/// The one question that is put to the policy.
fn judge(
    identity: &Identity,
    entry: &ServerEntry,
    namespace: Option<&NamespaceEntry>,
    access: Access,
    tool: Option<&str>,
) -> Decision {
    let caller = identity.caller();
    let Some(namespace) = namespace else {
        return decide(&caller, &entry.server, &entry.tools, access, tool);
    };
    let Some(level) = level(&caller, &namespace.namespace) else {
        return Decision::HideServer("namespace:levels".into());
    };
    let Some(member) = namespace.member(&entry.server.spec.name) else {
        return Decision::HideServer("namespace:servers".into());
    };
    decide_in(level, &caller, member, &entry.server, &entry.tools, access, tool)
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
        Method::Initialize | Method::Initialized | Method::ServerDiscover | Method::Ping => Access::List,
        Method::ToolsList
        | Method::PromptsList
        | Method::ResourcesList
        | Method::ResourcesTemplatesList
        | Method::SubscriptionsListen => Access::List,
        _ => Access::Read,
    }
}

fn tool(head: &Head) -> Option<&str> {
    match head.method {
        Method::ToolsCall => head.name.as_deref(),
        _ => None,
    }
}
