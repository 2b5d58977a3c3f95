//! What a client and a server say of themselves: once in `initialize`, or at any time in `server/discover`.

use bytes::Bytes;

use super::Client;
use crate::capability::Capabilities;
use crate::edit::{Fate, Writer, edit, get, get_text};
use crate::era::Revision;
use crate::jsonrpc::{Fault, Id, ParseError, json_string};

const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";

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
    /// Reads the result of `initialize`. A revision that we do not know is refused.
    pub fn from_initialize(result: &[u8]) -> Result<Self, ParseError> {
        let revision = get_text(result, "protocolVersion").and_then(|text| Revision::parse(&text));
        let revision = revision.ok_or_else(|| ParseError::new(Fault::NotAMessage, 0))?;
        Ok(Self::of(result, revision, get(result, "serverInfo")))
    }

    /// Reads the result of `server/discover`, which must name our stateless revision.
    pub fn from_discover(result: &[u8]) -> Result<Self, ParseError> {
        let revision = Revision::V2026_07_28;
        let listed: Option<Vec<String>> =
            get(result, "supportedVersions").and_then(|versions| serde_json::from_slice(&versions).ok());
        if !listed.is_some_and(|listed| listed.iter().any(|version| version == revision.as_str())) {
            return Err(ParseError::new(Fault::NotAMessage, 0));
        }
        let info = get(result, "_meta").and_then(|meta| get(&meta, SERVER_INFO));
        Ok(Self::of(result, revision, info))
    }

    fn of(result: &[u8], revision: Revision, info: Option<Bytes>) -> Self {
        let object = |bytes: Bytes| bytes.starts_with(b"{").then_some(bytes);
        Self {
            revision,
            capabilities: get(result, "capabilities")
                .and_then(object)
                .unwrap_or_else(|| Bytes::from_static(b"{}")),
            info: info.and_then(object),
            instructions: get_text(result, "instructions"),
        }
    }
}

/// `initialize` for a server of an older revision.
pub fn initialize_request(id: &Id, client: &Client, revision: Revision) -> Bytes {
    let mut params = Writer::new(256);
    params.put("protocolVersion", json_string(revision.as_str()).as_bytes());
    params.put("capabilities", &client.capabilities);
    let unknown = Bytes::from_static(br#"{"name":"unknown","version":"0"}"#);
    params.put("clientInfo", client.info.as_ref().unwrap_or(&unknown));
    request(id, "initialize", &params.end())
}

/// `server/discover` for a server of the stateless revision.
pub fn discover_request(id: &Id, client: &Client) -> Bytes {
    let mut meta = Writer::new(256);
    let version = json_string(Revision::V2026_07_28.as_str());
    meta.put("io.modelcontextprotocol/protocolVersion", version.as_bytes());
    meta.put("io.modelcontextprotocol/clientCapabilities", &client.capabilities);
    if let Some(info) = &client.info {
        meta.put("io.modelcontextprotocol/clientInfo", info);
    }
    let mut params = Writer::new(256);
    params.put("_meta", &meta.end());
    request(id, "server/discover", &params.end())
}

fn request(id: &Id, method: &str, params: &[u8]) -> Bytes {
    let mut message = Writer::new(params.len() + 96);
    message.put("jsonrpc", b"\"2.0\"");
    message.put("id", id.as_json().as_bytes());
    message.put("method", json_string(method).as_bytes());
    message.put("params", params);
    message.end().into()
}

/// The result of `initialize` for a session client. Extensions are the stateless revision's own.
pub fn initialize_result(described: &Described, revision: Revision) -> Bytes {
    let mut result = Writer::new(512);
    result.put("protocolVersion", json_string(revision.as_str()).as_bytes());
    let mut capabilities = without(&described.capabilities, &["extensions", "tasks"]);
    if revision == Revision::V2024_11_05 {
        capabilities = without(&capabilities, &["completions"]);
    }
    result.put("capabilities", &capabilities);
    let unknown = Bytes::from_static(br#"{"name":"unknown","version":"0"}"#);
    result.put("serverInfo", described.info.as_ref().unwrap_or(&unknown));
    if let Some(instructions) = &described.instructions {
        result.put("instructions", json_string(instructions).as_bytes());
    }
    result.end().into()
}

/// The result of `server/discover` for a stateless client. What a session server says may change with its session, so
/// nobody else may be served it [2026-07-28 server/utilities/caching].
pub fn discover_result(described: &Described) -> Bytes {
    let mut result = Writer::new(512);
    result.put("resultType", b"\"complete\"");
    result.put("supportedVersions", format!("[{}]", json_string(Revision::V2026_07_28.as_str())).as_bytes());
    // The tasks and the empty capabilities of older revisions mean something else here.
    let capabilities = match described.revision.is_modern() {
        true => described.capabilities.to_vec(),
        false => without(&described.capabilities, &["tasks", "experimental"]),
    };
    result.put("capabilities", &capabilities);
    if let Some(instructions) = &described.instructions {
        result.put("instructions", json_string(instructions).as_bytes());
    }
    result.put("ttlMs", b"0");
    result.put("cacheScope", b"\"private\"");
    if let Some(info) = &described.info {
        let mut meta = Writer::new(info.len() + 64);
        meta.put(SERVER_INFO, info);
        result.put("_meta", &meta.end());
    }
    result.end().into()
}

/// The capabilities of a server, as flags.
pub fn capabilities(described: &Described) -> Capabilities {
    Capabilities::parse(&described.capabilities)
}

fn without(object: &[u8], keys: &[&str]) -> Vec<u8> {
    edit(object, &[], |key, _, _| Ok(if keys.contains(&key) { Fate::Drop } else { Fate::Keep }))
        .unwrap_or_else(|_| b"{}".to_vec())
}
