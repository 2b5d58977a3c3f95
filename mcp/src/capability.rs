//! Capabilities of clients and servers: what a client may be asked, one form for clients that can do the same, and the
//! union of what several servers can do.

use bytes::Bytes;

use crate::edit::{get, members};
use crate::scan::Json;

/// Whether a client that declared these capabilities may be asked this [2026-07-28 basic/patterns/mrtr].
pub fn allows(capabilities: &[u8], method: &str, params: &[u8]) -> bool {
    match method {
        "roots/list" => get(capabilities, "roots").is_some(),
        "sampling/createMessage" => get(capabilities, "sampling").is_some_and(|sampling| {
            let has_tools = get(params, "tools").is_some() || get(params, "toolChoice").is_some();
            !has_tools || get(&sampling, "tools").is_some()
        }),
        "elicitation/create" => get(capabilities, "elicitation").is_some_and(|elicitation| {
            let url = get(params, "mode").as_deref() == Some(br#""url""#);
            let (form, by_url) = (get(&elicitation, "form").is_some(), get(&elicitation, "url").is_some());
            // An empty object means forms [2025-11-25 client/elicitation#capabilities].
            if url { by_url } else { form || !by_url }
        }),
        _ => false,
    }
}

/// The capabilities that a server of an older revision is told of, in one form whatever the client's: the known ones, in
/// order. Equal texts mean equal capabilities.
pub fn normalise(capabilities: &[u8]) -> Bytes {
    let mut parts = Vec::new();
    if let Some(elicitation) = get(capabilities, "elicitation") {
        parts.push(format!(r#""elicitation":{}"#, named(&elicitation, &["form", "url"])));
    }
    if let Some(roots) = get(capabilities, "roots") {
        let changed = get(&roots, "listChanged").as_deref() == Some(b"true");
        parts.push(format!(r#""roots":{}"#, if changed { r#"{"listChanged":true}"# } else { "{}" }));
    }
    if let Some(sampling) = get(capabilities, "sampling") {
        parts.push(format!(r#""sampling":{}"#, named(&sampling, &["context", "tools"])));
    }
    format!("{{{}}}", parts.join(",")).into()
}

fn named(object: &[u8], keys: &[&str]) -> String {
    let there: Vec<_> =
        keys.iter().filter(|key| get(object, key).is_some()).map(|key| format!(r#""{key}":{{}}"#)).collect();
    format!("{{{}}}", there.join(","))
}

/// What a server can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    pub tools: bool,
    pub tools_list_changed: bool,
    pub prompts: bool,
    pub prompts_list_changed: bool,
    pub resources: bool,
    pub resources_subscribe: bool,
    pub resources_list_changed: bool,
    pub completions: bool,
    pub logging: bool,
}

impl Capabilities {
    /// Reads a server's capabilities.
    pub fn parse(capabilities: &[u8]) -> Self {
        let flag = |part: &Option<Bytes>, key: &str| {
            part.as_ref().and_then(|part| get(part, key)).as_deref() == Some(b"true")
        };
        let object = |key: &str| {
            let member = members(capabilities).ok()?.into_iter().find(|member| member.key == key)?;
            (member.json == Json::Object)
                .then(|| Bytes::copy_from_slice(capabilities.get(member.value).unwrap_or_default()))
        };
        let (tools, prompts, resources) = (object("tools"), object("prompts"), object("resources"));
        Self {
            tools_list_changed: flag(&tools, "listChanged"),
            prompts_list_changed: flag(&prompts, "listChanged"),
            resources_subscribe: flag(&resources, "subscribe"),
            resources_list_changed: flag(&resources, "listChanged"),
            tools: tools.is_some(),
            prompts: prompts.is_some(),
            resources: resources.is_some(),
            completions: object("completions").is_some(),
            logging: object("logging").is_some(),
        }
    }

    /// What either can do.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            tools: self.tools || other.tools,
            tools_list_changed: self.tools_list_changed || other.tools_list_changed,
            prompts: self.prompts || other.prompts,
            prompts_list_changed: self.prompts_list_changed || other.prompts_list_changed,
            resources: self.resources || other.resources,
            resources_subscribe: self.resources_subscribe || other.resources_subscribe,
            resources_list_changed: self.resources_list_changed || other.resources_list_changed,
            completions: self.completions || other.completions,
            logging: self.logging || other.logging,
        }
    }

    /// What all of them together can do.
    pub fn union(parts: impl IntoIterator<Item = Self>) -> Self {
        parts.into_iter().fold(Self::default(), Self::or)
    }

    /// As a server states them; both eras have one form.
    pub fn to_json(self) -> Bytes {
        let mut parts = Vec::new();
        let object = |flags: &[(&str, bool)]| {
            let set: Vec<_> =
                flags.iter().filter(|(_, on)| *on).map(|(key, _)| format!(r#""{key}":true"#)).collect();
            format!("{{{}}}", set.join(","))
        };
        if self.completions {
            parts.push(r#""completions":{}"#.to_owned());
        }
        if self.logging {
            parts.push(r#""logging":{}"#.to_owned());
        }
        if self.prompts {
            parts.push(format!(r#""prompts":{}"#, object(&[("listChanged", self.prompts_list_changed)])));
        }
        if self.resources {
            let flags =
                [("listChanged", self.resources_list_changed), ("subscribe", self.resources_subscribe)];
            parts.push(format!(r#""resources":{}"#, object(&flags)));
        }
        if self.tools {
            parts.push(format!(r#""tools":{}"#, object(&[("listChanged", self.tools_list_changed)])));
        }
        format!("{{{}}}", parts.join(",")).into()
    }
}
