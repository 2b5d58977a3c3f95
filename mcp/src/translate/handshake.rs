//! What a client and a server say of themselves: once in `initialize`, or at any time in `server/discover`.

use bytes::Bytes;

use super::request::{CAPABILITIES, INFO, VERSION};
use super::{Client, META, SERVER_INFO, message, without};
use crate::capability::{self, Capabilities};
use crate::edit::{Writer, get, get_object, get_text};
use crate::era::Revision;
use crate::jsonrpc::{Fault, Id, ParseError, json_string};
use crate::message::Method;

/// For a peer that does not say who it is, where the revision wants to know.
const UNKNOWN: &[u8] = br#"{"name":"unknown","version":"0"}"#;

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The revision that it speaks with us.
    pub revision: Revision,
    /// A JSON object.
    pub capabilities: Bytes,
    /// A JSON object.
    pub info: Option<Bytes>,
    /// For the model.
    pub instructions: Option<String>,
}

impl Described {
    /// Reads the result of `initialize`. A revision that we do not know is refused, and one that has no `initialize`.
    pub fn from_initialize(result: &[u8]) -> Result<Self, ParseError> {
        let revision = get_text(result, "protocolVersion").and_then(|text| Revision::parse(&text));
        let revision = revision.filter(|revision| !revision.is_modern());
        let revision = revision.ok_or_else(|| ParseError::new(Fault::NotAMessage, 0))?;
        Ok(Self::of(result, revision, get_object(result, "serverInfo")))
    }

    /// Reads the result of `server/discover`, which must name our stateless revision.
    pub fn from_discover(result: &[u8]) -> Result<Self, ParseError> {
        let revision = Revision::V2026_07_28;
        let listed: Option<Vec<String>> =
            get(result, "supportedVersions").and_then(|versions| serde_json::from_slice(versions).ok());
        if !listed.is_some_and(|listed| listed.iter().any(|version| version == revision.as_str())) {
            return Err(ParseError::new(Fault::NotAMessage, 0));
        }
        let info = get_object(result, META).and_then(|meta| get_object(meta, SERVER_INFO));
        Ok(Self::of(result, revision, info))
    }

    fn of(result: &[u8], revision: Revision, info: Option<&[u8]>) -> Self {
        Self {
            revision,
            capabilities: Bytes::copy_from_slice(get_object(result, "capabilities").unwrap_or(b"{}")),
            info: info.map(Bytes::copy_from_slice),
            instructions: get_text(result, "instructions"),
        }
    }
}

/// `initialize` for a server of an older revision.
pub fn initialize_request(id: &Id, client: &Client, revision: Revision) -> Bytes {
    let version = json_string(revision.as_str());
    let params = Writer::of(&[
        ("protocolVersion", version.as_bytes()),
        ("capabilities", &capability::for_revision(&client.capabilities, revision)),
        ("clientInfo", client.info.as_deref().unwrap_or(UNKNOWN)),
    ]);
    message(Some(id), Method::Initialize.as_str(), &params)
}

/// `server/discover` for a server of the stateless revision.
pub fn discover_request(id: &Id, client: &Client) -> Bytes {
    let version = json_string(Revision::V2026_07_28.as_str());
    let mut meta = Writer::new(256);
    meta.put(VERSION, version.as_bytes());
    meta.put(CAPABILITIES, &client.capabilities);
    if let Some(info) = &client.info {
        meta.put(INFO, info);
    }
    message(Some(id), Method::ServerDiscover.as_str(), &Writer::of(&[(META, &meta.end())]))
}

/// The result of `initialize` for a session client. Extensions are the stateless revision's own, and the tasks of
/// 2025-11-25 have no bridge.
pub fn initialize_result(described: &Described, revision: Revision) -> Bytes {
    let unknown: &[&str] = match revision {
        Revision::V2024_11_05 => &["extensions", "tasks", "completions"],
        _ => &["extensions", "tasks"],
    };
    let mut result = Writer::new(512);
    result.put_text("protocolVersion", revision.as_str());
    result.put("capabilities", &without(&described.capabilities, unknown));
    result.put("serverInfo", described.info.as_deref().unwrap_or(UNKNOWN));
    if let Some(instructions) = &described.instructions {
        result.put_text("instructions", instructions);
    }
    result.end().into()
}

/// The result of `server/discover` for a stateless client. What a session server says may change with its session, so
/// nobody else may be served it [2026-07-28 server/utilities/caching].
pub fn discover_result(described: &Described) -> Bytes {
    let versions = format!("[{}]", json_string(Revision::V2026_07_28.as_str()));
    // What older revisions call tasks is another protocol here, and their experiments were with another wire.
    let capabilities = match described.revision.is_modern() {
        true => described.capabilities.clone(),
        false => without(&described.capabilities, &["tasks", "experimental"]),
    };
    let mut result = Writer::new(512);
    result.put("resultType", br#""complete""#);
    result.put("supportedVersions", versions.as_bytes());
    result.put("capabilities", &capabilities);
    if let Some(instructions) = &described.instructions {
        result.put_text("instructions", instructions);
    }
    result.put("ttlMs", b"0");
    result.put("cacheScope", br#""private""#);
    if let Some(info) = &described.info {
        result.put(META, &Writer::of(&[(SERVER_INFO, info)]));
    }
    result.end().into()
}

/// The capabilities of a server, as flags.
pub fn capabilities(described: &Described) -> Capabilities {
    Capabilities::parse(&described.capabilities)
}

#[cfg(test)]
mod tests;
