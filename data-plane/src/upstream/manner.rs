//! How a message is handled on its way to a server, which depends on what it may do there.

use waffles_core::server::Spec;
use waffles_mcp::{Head, Method};

/// What a message may do at a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It may do something, so it goes out once. It needs a place.
    Once,
    /// It lists or reads, or calls a tool of which the registry says that twice is as good as once. It needs a place.
    Repeatable,
    /// It opens a stream that stays open, and needs no place.
    Listens,
    /// It belongs to something that is under way or over (an answer to a question, a notification, the end of a
    /// session). It waits for no place: what holds one may wait for it.
    Aside,
    /// It looks how the server is: also one that is left alone, and without a word in that.
    Looks,
}

impl Manner {
    /// Of a client's message; none: an answer to a question.
    pub fn of(head: Option<&Head>, spec: &Spec) -> Self {
        let Some(head) = head else { return Self::Aside };
        match &head.method {
            Method::ToolsList
            | Method::ResourcesList
            | Method::ResourcesTemplatesList
            | Method::ResourcesRead
            | Method::PromptsList
            | Method::PromptsGet
            | Method::CompletionComplete
            | Method::ServerDiscover
            | Method::TasksGet
            | Method::TasksList
            | Method::Ping => Self::Repeatable,
            Method::ToolsCall if head.name.as_deref().is_some_and(|tool| spec.may_repeat(tool)) => {
                Self::Repeatable
            }
            Method::SubscriptionsListen => Self::Listens,
            // How long a task takes is not for the place to wait.
            Method::TasksResult => Self::Aside,
            method if method.as_str().starts_with("notifications/") => Self::Aside,
            _ => Self::Once,
        }
    }

    /// Whether it needs a place at the server.
    pub(super) fn needs_place(self) -> bool {
        matches!(self, Self::Once | Self::Repeatable)
    }
}
