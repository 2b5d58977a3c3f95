//! Authorization of one message: the only place that makes a `Permit`, and nothing goes to a server without one.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use waffles_core::namespace::{MemberEntry, NamespaceEntry};
use waffles_core::policy::{Access, Args, Decision, Facts, Permission, Policy, Question, Verdict, decide};
use waffles_core::snapshot::{ServerEntry, Snapshot};
use waffles_mcp::{Era, Head, Message, Method, Slot};

use crate::authn::Identity;
use crate::reject::Reject;

/// What is asked of a server.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The head of the message; none for answers to the server's own requests and for streams.
    pub head: Option<&'a Head>,
    /// The message, for the arguments of a call.
    pub message: Option<&'a Message>,
    /// What the client speaks.
    pub era: Era,
    /// When.
    pub now: DateTime<Utc>,
}

impl Ask<'_> {
    /// What is no message: a stream that a session client opens or ends.
    pub fn stream(now: DateTime<Utc>) -> Self {
        Self { head: None, message: None, era: Era::Sessions, now }
    }
}

/// What is to be counted of a decision, whatever it was.
#[derive(Debug, Default)]
pub struct Notes {
    /// Rules that only take note, and would have decided.
    pub noted: Vec<Arc<str>>,
    /// Conditions that failed, and so counted against the caller.
    pub failed: u32,
}

/// Proof that a caller may send a message to a server.
#[derive(Debug, Clone)]
pub struct Permit {
    identity: Identity,
    entry: Arc<ServerEntry>,
    /// The namespace at whose door it was given.
    namespace: Option<Arc<NamespaceEntry>>,
    policy: Arc<Policy>,
    era: Era,
    access: Access,
    tool: Option<String>,
    /// Kept for when rights change meanwhile, where there are rules that may look at them.
    arguments: Option<Bytes>,
    rule: Cow<'static, str>,
}

impl Permit {
    /// Decides about one message, at the door of a server or of a namespace.
    pub fn authorize(
        snapshot: &Snapshot,
        identity: &Identity,
        entry: &Arc<ServerEntry>,
        namespace: Option<&Arc<NamespaceEntry>>,
        ask: Ask<'_>,
        notes: &mut Notes,
    ) -> Result<Self, Reject> {
        let (access, tool) = match ask.head {
            Some(head) => (access(&head.method), tool(head)),
            // The door itself: what stands behind it, and what changes of it.
            None if namespace.is_some() => (Access::List, None),
            None => (Access::Read, None),
        };
        let policy = snapshot.policy(&identity.principal().tenant);
        let arguments = match (policy.is_empty(), tool) {
            (false, Some(_)) => ask.message.and_then(|message| message.raw(Slot::Arguments)),
            _ => None,
        };
        let draft = Self {
            identity: identity.clone(),
            entry: Arc::clone(entry),
            namespace: namespace.cloned(),
            policy: Arc::clone(policy),
            era: ask.era,
            access,
            tool: tool.map(ToOwned::to_owned),
            arguments,
            rule: Cow::Borrowed(""),
        };
        let verdict = draft.judge(access, tool, Args::Given(draft.arguments.as_deref()), ask.now);
        *notes = Notes { noted: verdict.noted, failed: verdict.failed };
        let rule = match verdict.decision {
            Decision::Allow(rule) => rule,
            Decision::HideServer(rule) => return Err(Reject::UnknownServer(rule)),
            Decision::Disabled => return Err(Reject::ServerDisabled),
            Decision::HideTool(rule) => {
                return Err(Reject::UnknownTool { tool: tool.unwrap_or_default().to_owned(), rule });
            }
            Decision::Forbid(rule) => return Err(Reject::Forbidden(rule)),
        };
        // What no revision names may do anything: a server is reached by it only where its registration says so.
        if let Some(Head { method: Method::Other(method), .. }) = ask.head
            && !entry.server.spec.allows_method(method)
        {
            return Err(Reject::MethodNotFound { modern: ask.era == Era::Stateless });
        }
        Ok(Self { rule, ..draft })
    }

    /// For what the proxy itself asks a server to see how it is: handshakes, pings and lists, and nothing that a caller
    /// wanted. It is nobody's, so no stream can be renewed with it.
    pub fn for_check(entry: &Arc<ServerEntry>) -> Self {
        Self {
            identity: Identity::of_this_proxy(),
            entry: Arc::clone(entry),
            namespace: None,
            policy: Arc::default(),
            era: Era::Stateless,
            access: Access::List,
            tool: None,
            arguments: None,
            rule: Cow::Borrowed("health:check"),
        }
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
        self.judge(access, Some(tool), Args::Any, Utc::now()).decision.is_allowed()
    }

    /// Whether the caller may use the server's prompts and resources: what their lists are filtered by.
    pub fn reads(&self) -> bool {
        match self.judge(Access::Read, None, Args::Any, Utc::now()).decision {
            Decision::Allow(_) => true,
            Decision::Forbid(rule) => rule == "namespace:view",
            _ => false,
        }
    }

    /// Whether nothing could be filtered from a list.
    pub fn sees_all(&self) -> bool {
        let filter = &self.entry.server.spec.tools;
        let limits = self.identity.key().map(|key| &key.limits);
        let name = &self.entry.server.spec.name;
        let exposes_all =
            |namespace: &Arc<NamespaceEntry>| namespace.member(name).is_some_and(MemberEntry::shows_all);
        self.policy.is_empty()
            && self.identity.principal().permissions().contains(Permission::GatewayUse)
            && self.namespace.as_ref().is_none_or(exposes_all)
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
        let renewed = Self {
            policy: Arc::clone(snapshot.policy(&identity.principal().tenant)),
            identity,
            entry: Arc::clone(entry),
            namespace: namespace.cloned(),
            ..self.clone()
        };
        // Arguments that were not kept were of no interest to the rules of then.
        let args = match (&self.arguments, self.policy.is_empty()) {
            (None, true) => Args::Any,
            (arguments, _) => Args::Given(arguments.as_deref()),
        };
        match renewed.judge(self.access, self.tool.as_deref(), args, Utc::now()).decision {
            Decision::Allow(rule) if entry.server.id == server.id => Some(Self { rule, ..renewed }),
            _ => None,
        }
    }

    /// The one question that is put to the policy.
    fn judge(&self, access: Access, tool: Option<&str>, args: Args<'_>, now: DateTime<Utc>) -> Verdict {
        decide(&Question {
            caller: self.identity.caller(),
            policy: &self.policy,
            server: &self.entry.server,
            tools: &self.entry.tools,
            namespace: self.namespace.as_deref(),
            access,
            tool,
            facts: Facts { era: self.era.label(), now, args },
        })
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
