//! Notifications and subscriptions: what changes are told of on a session's own stream in the older revisions, and on
//! `subscriptions/listen` in the stateless one [2026-07-28 basic/patterns/subscriptions].

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::edit::{Fate, Writer, edit, get, members};
use crate::jsonrpc::{Id, Message, ParseError, Slot, json_string};
use crate::message::Method;

const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

/// A notification of progress under another token (JSON text).
pub fn with_progress_token(message: &Message, token: &str) -> Bytes {
    let params = message.params().unwrap_or_default();
    let edited = edit(&params, &[], |key, _, _| {
        Ok(if key == "progressToken" { Fate::Become(token.as_bytes().to_vec()) } else { Fate::Keep })
    });
    notification(message.method().unwrap_or_default(), &edited.unwrap_or_else(|_| params.to_vec()))
}

/// A notification as one of a subscription.
pub fn tagged(message: &Message, subscription: &Id) -> Bytes {
    let params = message.params().unwrap_or_else(|| Bytes::from_static(b"{}"));
    let meta = message.raw(Slot::Meta).unwrap_or_else(|| Bytes::from_static(b"{}"));
    let tag = subscription.as_json().as_bytes();
    let meta = edit(&meta, &[(SUBSCRIPTION, tag)], |key, _, _| {
        Ok(if key == SUBSCRIPTION { Fate::Drop } else { Fate::Keep })
    });
    with_meta(message, &params, &meta.unwrap_or_default())
}

/// A notification of a subscription, as one of a session.
pub fn untagged(message: &Message) -> Bytes {
    let Some(params) = message.params() else { return message.rewrite() };
    let meta = message.raw(Slot::Meta).unwrap_or_else(|| Bytes::from_static(b"{}"));
    let meta = edit(&meta, &[], |key, _, _| Ok(if key == SUBSCRIPTION { Fate::Drop } else { Fate::Keep }));
    with_meta(message, &params, &meta.unwrap_or_default())
}

fn with_meta(message: &Message, params: &[u8], meta: &[u8]) -> Bytes {
    let put: &[(&str, &[u8])] = if meta.is_empty() || meta == b"{}" { &[] } else { &[("_meta", meta)] };
    let edited = edit(params, put, |key, _, _| Ok(if key == "_meta" { Fate::Drop } else { Fate::Keep }));
    notification(message.method().unwrap_or_default(), &edited.unwrap_or_else(|_| b"{}".to_vec()))
}

fn notification(method: &str, params: &[u8]) -> Bytes {
    let mut message = Writer::new(params.len() + 96);
    message.put("jsonrpc", b"\"2.0\"");
    message.put("method", json_string(method).as_bytes());
    if params != b"{}" {
        message.put("params", params);
    }
    message.end().into()
}

/// The order of the log levels, the least important first (RFC 5424).
pub fn level_rank(level: &str) -> Option<u8> {
    const LEVELS: [&str; 8] =
        ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];
    LEVELS.iter().position(|known| *known == level).and_then(|rank| u8::try_from(rank).ok())
}

/// That the list of a method has changed: of tools, prompts or resources.
pub fn list_changed(method: &Method) -> Bytes {
    notification(method.as_str(), b"{}")
}

/// That a resource has changed.
pub fn resource_updated(uri: &str) -> Bytes {
    let mut params = Writer::new(uri.len() + 16);
    params.put("uri", json_string(uri).as_bytes());
    notification(Method::ResourcesUpdated.as_str(), &params.end())
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
        let mut meta = Writer::new(64);
        meta.put(SUBSCRIPTION, subscription.as_json().as_bytes());
        let mut params = Writer::new(256);
        params.put("_meta", &meta.end());
        params.put("notifications", &self.to_json());
        notification(Method::SubscriptionsAcknowledged.as_str(), &params.end())
    }
}

/// The last message of a subscription that ends in good order: the bytes of its result.
pub fn closing_result(subscription: &Id) -> Bytes {
    let mut meta = Writer::new(64);
    meta.put(SUBSCRIPTION, subscription.as_json().as_bytes());
    let mut result = Writer::new(128);
    result.put("resultType", b"\"complete\"");
    result.put("_meta", &meta.end());
    result.end().into()
}

/// The subscription that a notification belongs to.
pub fn subscription_of(message: &Message) -> Option<Id> {
    let meta = message.raw(Slot::Meta)?;
    Id::from_json(&get(&meta, SUBSCRIPTION)?)
}
