//! Capabilities of clients and servers: what a client may be asked, one form for clients that can do the same, and the
//! union of what several servers can do.

use bytes::Bytes;

use crate::edit::{Writer, find, get, get_object, get_text};
use crate::era::Revision;
use crate::message::Method;

/// Whether a client that declared these capabilities may be asked this [2026-07-28 basic/patterns/mrtr].
pub fn allows(capabilities: &[u8], method: &str, params: &[u8]) -> bool {
    match Method::parse(method) {
        Method::RootsList => get_object(capabilities, "roots").is_some(),
        Method::SamplingCreateMessage => get_object(capabilities, "sampling").is_some_and(|sampling| {
            let has_tools = find(params, "tools").is_some() || find(params, "toolChoice").is_some();
            !has_tools || get_object(sampling, "tools").is_some()
        }),
        Method::ElicitationCreate => get_object(capabilities, "elicitation").is_some_and(|elicitation| {
            let modes = Modes::of(elicitation);
            if get_text(params, "mode").as_deref() == Some("url") { modes.url } else { modes.form }
        }),
        _ => false,
    }
}

/// How a person can be asked.
#[derive(Debug, Clone, Copy)]
struct Modes {
    form: bool,
    url: bool,
}

impl Modes {
    /// A capability that names no mode means forms [2025-11-25 client/elicitation#capabilities].
    fn of(elicitation: &[u8]) -> Self {
        let (form, url) =
            (get_object(elicitation, "form").is_some(), get_object(elicitation, "url").is_some());
        Self { form: form || !url, url }
    }
}

/// The capabilities that a server of an older revision is told of, in one form whatever the client's: the known ones, in
/// order. Equal texts mean equal capabilities.
pub fn normalise(capabilities: &[u8]) -> Bytes {
    for_revision(capabilities, Revision::LATEST_LEGACY)
}

/// As [`normalise`], with what a revision knows alone: nobody is asked in a mode that the server's revision does not have.
pub fn for_revision(capabilities: &[u8], revision: Revision) -> Bytes {
    let details = revision >= Revision::V2025_11_25;
    let mut known = Writer::new(128);
    if let Some(elicitation) = get_object(capabilities, "elicitation") {
        // Forms alone are `{}`, which all revisions read so, and strict readers of 2025-06-18 too.
        let (modes, form, url) = (Modes::of(elicitation), &br#"{"form":{},"url":{}}"#[..], br#"{"url":{}}"#);
        match (modes.form, modes.url && details) {
            _ if revision < Revision::V2025_06_18 => {}
            (true, false) => known.put("elicitation", b"{}"),
            (true, true) => known.put("elicitation", form),
            (false, true) => known.put("elicitation", url),
            (false, false) => {}
        }
    }
    if let Some(roots) = get_object(capabilities, "roots") {
        let changed = get(roots, "listChanged") == Some(b"true");
        known.put("roots", if changed { br#"{"listChanged":true}"# } else { b"{}" });
    }
    if let Some(sampling) = get_object(capabilities, "sampling") {
        let mut parts = Writer::new(32);
        for part in ["context", "tools"] {
            if details && get_object(sampling, part).is_some() {
                parts.put(part, b"{}");
            }
        }
        known.put("sampling", &parts.end());
    }
    known.end().into()
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
        let flag = |part: Option<&[u8]>, key: &str| part.and_then(|part| get(part, key)) == Some(b"true");
        let object = |key: &str| get_object(capabilities, key);
        let (tools, prompts, resources) = (object("tools"), object("prompts"), object("resources"));
        Self {
            tools_list_changed: flag(tools, "listChanged"),
            prompts_list_changed: flag(prompts, "listChanged"),
            resources_subscribe: flag(resources, "subscribe"),
            resources_list_changed: flag(resources, "listChanged"),
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
        let object = |flags: &[(&str, bool)]| {
            let mut object = Writer::new(48);
            for (key, _) in flags.iter().filter(|(_, on)| *on) {
                object.put(key, b"true");
            }
            object.end()
        };
        let mut all = Writer::new(256);
        if self.completions {
            all.put("completions", b"{}");
        }
        if self.logging {
            all.put("logging", b"{}");
        }
        if self.prompts {
            all.put("prompts", &object(&[("listChanged", self.prompts_list_changed)]));
        }
        if self.resources {
            let flags =
                [("listChanged", self.resources_list_changed), ("subscribe", self.resources_subscribe)];
            all.put("resources", &object(&flags));
        }
        if self.tools {
            all.put("tools", &object(&[("listChanged", self.tools_list_changed)]));
        }
        all.end().into()
    }
}

#[cfg(test)]
mod tests;
