//! Notifications and subscriptions: what changes are told of on a session's own stream in the older revisions, and on
//! `subscriptions/listen` in the stateless one [2026-07-28 basic/patterns/subscriptions].

use std::collections::BTreeSet;

use bytes::Bytes;

use super::{Draft, META, message};
use crate::edit::{Writer, members};
use crate::jsonrpc::{Id, Message, ParseError, Slot, json_string};
use crate::message::Method;

const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

/// A notification of progress under another token (JSON text).
pub fn with_progress_token(message: &Message, token: &str) -> Bytes {
    let mut draft = Draft::new(message);
    draft.replace(Slot::ProgressToken, token.as_bytes());
    draft.write(None, true)
}

/// A notification as one of a subscription.
pub fn tagged(message: &Message, subscription: &Id) -> Bytes {
    let mut draft = Draft::new(message);
    draft.set_meta(Slot::MetaSubscriptionId, SUBSCRIPTION, Some(subscription.as_json().as_bytes()));
    draft.write(None, true)
}

/// A notification of a subscription, as one of a session.
pub fn untagged(message: &Message) -> Bytes {
    let mut draft = Draft::new(message);
    draft.set_meta(Slot::MetaSubscriptionId, SUBSCRIPTION, None);
    draft.write(None, true)
}

/// That nobody waits for a request any more [2025-11-25 basic/utilities/cancellation]. `request` is the id under which its
/// receiver knows it.
pub fn cancelled(request: &Id, reason: &str) -> Bytes {
    let params = Writer::of(&[
        ("requestId", request.as_json().as_bytes()),
        ("reason", json_string(reason).as_bytes()),
    ]);
    message(None, Method::Cancelled.as_str(), &params)
}

/// The order of the log levels, the least important first (RFC 5424).
pub fn level_rank(level: &str) -> Option<u8> {
    const LEVELS: [&str; 8] =
        ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];
    LEVELS.iter().position(|known| *known == level).and_then(|rank| u8::try_from(rank).ok())
}

/// That the list of a method has changed: of tools, prompts or resources.
pub fn list_changed(method: &Method) -> Bytes {
    message(None, method.as_str(), b"{}")
}

/// That a resource has changed.
pub fn resource_updated(uri: &str) -> Bytes {
    let params = Writer::of(&[("uri", json_string(uri).as_bytes())]);
    message(None, Method::ResourcesUpdated.as_str(), &params)
}

/// What a client wants to hear of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    pub tools: bool,
    pub prompts: bool,
    pub resources: bool,
    pub uris: BTreeSet<String>,
    pub task_ids: BTreeSet<String>,
}

impl Filter {
    /// Reads `params.notifications`.
    pub fn parse(filter: &[u8]) -> Result<Self, ParseError> {
        let mut parsed = Self::default();
        for member in members(filter)? {
            let value = filter.get(member.value).unwrap_or_default();
            let flag = value == b"true";
            let strings = || serde_json::from_slice::<BTreeSet<String>>(value).unwrap_or_default();
            match member.key.as_str() {
                "toolsListChanged" => parsed.tools = flag,
                "promptsListChanged" => parsed.prompts = flag,
                "resourcesListChanged" => parsed.resources = flag,
                "resourceSubscriptions" => parsed.uris = strings(),
                "taskIds" => parsed.task_ids = strings(),
                _ => {}
            }
        }
        Ok(parsed)
    }

    /// As JSON text.
    pub fn to_json(&self) -> Bytes {
        let mut object = Writer::new(128);
        for (key, on) in [
            ("toolsListChanged", self.tools),
            ("promptsListChanged", self.prompts),
            ("resourcesListChanged", self.resources),
        ] {
            if on {
                object.put(key, b"true");
            }
        }
        for (key, set) in [("resourceSubscriptions", &self.uris), ("taskIds", &self.task_ids)] {
            if !set.is_empty() {
                let list: Vec<String> = set.iter().map(|text| json_string(text)).collect();
                object.put(key, format!("[{}]", list.join(",")).as_bytes());
            }
        }
        object.end().into()
    }

    /// What either asks for.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self {
            tools: self.tools || other.tools,
            prompts: self.prompts || other.prompts,
            resources: self.resources || other.resources,
            uris: self.uris.union(&other.uris).cloned().collect(),
            task_ids: self.task_ids.union(&other.task_ids).cloned().collect(),
        }
    }

    /// What both ask for.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        Self {
            tools: self.tools && other.tools,
            prompts: self.prompts && other.prompts,
            resources: self.resources && other.resources,
            uris: self.uris.intersection(&other.uris).cloned().collect(),
            task_ids: self.task_ids.intersection(&other.task_ids).cloned().collect(),
        }
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The first message of a subscription: what of the wish is granted.
    pub fn acknowledged(&self, subscription: &Id) -> Bytes {
        let meta = Writer::of(&[(SUBSCRIPTION, subscription.as_json().as_bytes())]);
        let params = Writer::of(&[(META, &meta), ("notifications", &self.to_json())]);
        message(None, Method::SubscriptionsAcknowledged.as_str(), &params)
    }
}

/// The last message of a subscription that ends in good order: the bytes of its result.
pub fn closing_result(subscription: &Id) -> Bytes {
    let meta = Writer::of(&[(SUBSCRIPTION, subscription.as_json().as_bytes())]);
    Writer::of(&[("resultType", br#""complete""#), (META, &meta)]).into()
}

/// The subscription that a notification belongs to.
pub fn subscription_of(message: &Message) -> Option<Id> {
    Id::from_json(&message.raw(Slot::MetaSubscriptionId)?)
}

#[cfg(test)]
mod tests;
