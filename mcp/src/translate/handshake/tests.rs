use serde_json::{Value, json};

use super::*;
use crate::translate::tests::value;

fn described(revision: Revision, capabilities: &Value) -> Described {
    Described {
        revision,
        capabilities: capabilities.to_string().into(),
        info: Some(Bytes::from_static(br#"{"name":"s","version":"1","icons":[]}"#)),
        instructions: Some("say \"hi\"".into()),
    }
}

#[test]
fn a_server_is_read_from_either_handshake() {
    let capabilities = json!({"tools": {"listChanged": true}, "x": [1.5]});
    let info = json!({"name": "s", "version": "1", "icons": []});
    let initialize = json!({"protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": info,
        "instructions": "say \"hi\""});
    let discover = json!({"supportedVersions": ["2025-11-25", "2026-07-28"], "capabilities": capabilities,
        "instructions": "say \"hi\"", "_meta": {SERVER_INFO: info}});
    let read = Described::from_initialize(initialize.to_string().as_bytes()).unwrap();
    assert_eq!(read.revision, Revision::V2025_06_18);
    assert_eq!(value(&read.capabilities), capabilities);
    assert_eq!(value(&read.info.clone().unwrap()), info);
    assert_eq!(read.instructions.as_deref(), Some("say \"hi\""));
    let other = Described::from_discover(discover.to_string().as_bytes()).unwrap();
    assert_eq!(other, Described { revision: Revision::V2026_07_28, ..read });
}

#[test]
fn a_handshake_without_a_known_revision_is_refused() {
    for bad in [
        json!({}),
        json!({"protocolVersion": "2027-01-01"}),
        json!({"protocolVersion": "2026-07-28"}),
        json!({"protocolVersion": 1}),
        json!([]),
    ] {
        assert!(Described::from_initialize(bad.to_string().as_bytes()).is_err(), "{bad}");
    }
    for bad in [json!({}), json!({"supportedVersions": []}), json!({"supportedVersions": "2026-07-28"})] {
        assert!(Described::from_discover(bad.to_string().as_bytes()).is_err(), "{bad}");
    }
    let bare =
        Described::from_initialize(br#"{"protocolVersion":"2025-03-26","capabilities":[],"serverInfo":1}"#);
    let want = Described {
        revision: Revision::V2025_03_26,
        capabilities: "{}".into(),
        info: None,
        instructions: None,
    };
    assert_eq!(bare.unwrap(), want);
}

#[test]
fn a_client_introduces_itself_in_either_handshake() {
    let client = Client {
        capabilities: Bytes::from_static(br#"{"elicitation":{"url":{}},"extensions":{"a/b":{}},"roots":{}}"#),
        info: Some(Bytes::from_static(br#"{"name":"c","version":"1"}"#)),
    };
    let id = Id::number(1);
    assert_eq!(
        value(&initialize_request(&id, &client, Revision::V2025_11_25)),
        json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {"elicitation": {"url": {}}, "roots": {}},
            "clientInfo": {"name": "c", "version": "1"}}})
    );
    let anonymous = Client { info: None, ..client.clone() };
    let sent = value(&initialize_request(&id, &anonymous, Revision::V2025_06_18));
    assert_eq!(sent["params"]["capabilities"], json!({"roots": {}}), "it has no URLs to visit");
    assert_eq!(sent["params"]["clientInfo"], json!({"name": "unknown", "version": "0"}));
    assert_eq!(
        value(&discover_request(&id, &client))["params"]["_meta"],
        json!({VERSION: "2026-07-28", INFO: {"name": "c", "version": "1"},
            CAPABILITIES: {"elicitation": {"url": {}}, "extensions": {"a/b": {}}, "roots": {}}})
    );
    assert!(value(&discover_request(&id, &anonymous))["params"]["_meta"].get(INFO).is_none());
}

#[test]
fn a_session_client_hears_nothing_of_extensions() {
    let server = described(
        Revision::V2026_07_28,
        &json!({"completions": {}, "tools": {}, "extensions": {"a/b": {}}, "tasks": {}, "own": {}}),
    );
    assert_eq!(
        value(&initialize_result(&server, Revision::V2025_06_18)),
        json!({"protocolVersion": "2025-06-18", "capabilities": {"completions": {}, "tools": {}, "own": {}},
            "serverInfo": {"name": "s", "version": "1", "icons": []}, "instructions": "say \"hi\""})
    );
    let oldest = value(&initialize_result(&server, Revision::V2024_11_05));
    assert_eq!(oldest["capabilities"], json!({"tools": {}, "own": {}}));
    let silent = Described { info: None, instructions: None, ..server };
    let sent = value(&initialize_result(&silent, Revision::V2025_11_25));
    assert_eq!(sent["serverInfo"], json!({"name": "unknown", "version": "0"}));
    assert!(sent.get("instructions").is_none());
}

#[test]
fn a_stateless_client_hears_nothing_of_old_tasks() {
    let capabilities = json!({"tools": {}, "tasks": {}, "experimental": {}, "logging": {}});
    let sent = value(&discover_result(&described(Revision::V2025_11_25, &capabilities)));
    assert_eq!(
        sent,
        json!({"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}, "logging": {}},
            "instructions": "say \"hi\"", "ttlMs": 0, "cacheScope": "private",
            "_meta": {SERVER_INFO: {"name": "s", "version": "1", "icons": []}}})
    );
    let modern = value(&discover_result(&described(Revision::V2026_07_28, &capabilities)));
    assert_eq!(modern["capabilities"], capabilities);
    let read = Described::from_discover(sent.to_string().as_bytes()).unwrap();
    assert_eq!(capabilities_of(&read), (true, true, false));
}

fn capabilities_of(described: &Described) -> (bool, bool, bool) {
    let can = super::capabilities(described);
    (can.tools, can.logging, can.prompts)
}
