//! Handshakes, requests, results, errors.

use bytes::Bytes;
use waffles_mcp::translate::handshake::{
    Described, discover_request, discover_result, initialize_request, initialize_result,
};
use waffles_mcp::translate::request::{Extra, to_session, to_stateless};
use waffles_mcp::translate::result::{error_for_session, error_for_stateless, for_session, for_stateless};
use waffles_mcp::{Id, Method, Revision, Slot};

use super::{Page, client, message};

const CALL_2025: &str = r#"{"jsonrpc":"2.0","id":"c-1","method":"tools/call","params":{"name":"search","arguments":{"q":"waffles","n":1.50},"_meta":{"progressToken":"p","traceparent":"00-0af7-b7ad-01","acme.com/x":[1, 2]}}}"#;
const CALL_2026: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search","arguments":{"q":"waffles"},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"roots":{}},"io.modelcontextprotocol/clientInfo":{"name":"desk","version":"2"},"io.modelcontextprotocol/logLevel":"info","progressToken":7,"traceparent":"00-0af7-b7ad-01"}}}"#;

#[test]
fn handshakes() {
    let mut page = Page::new(
        "Bridges 3 and 11: the handshake. What a server says of itself is asked for and told in the words of either era.",
    );
    let discovered = r#"{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{"listChanged":true},"resources":{"subscribe":true},"logging":{},"completions":{},"extensions":{"io.modelcontextprotocol/tasks":{}}},"instructions":"Be kind.","ttlMs":60000,"cacheScope":"public","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"shop","version":"9","icons":[]}}}"#;
    let initialized = r#"{"protocolVersion":"2025-06-18","capabilities":{"tools":{},"prompts":{"listChanged":true},"tasks":{"list":{}},"experimental":{"x":{}}},"serverInfo":{"name":"old shop","version":"1","title":"The old shop"},"instructions":"Be brief."}"#;
    let modern = Described::from_discover(discovered.as_bytes()).unwrap();
    let legacy = Described::from_initialize(initialized.as_bytes()).unwrap();
    for revision in [Revision::V2025_11_25, Revision::V2024_11_05] {
        let heading = format!("2026-07-28 server → {revision} client: the result of initialize");
        page.pair(&heading, discovered, initialize_result(&modern, revision));
    }
    page.pair(
        "2025-06-18 server → 2026-07-28 client: the result of server/discover",
        initialized,
        discover_result(&legacy),
    );
    page.pair(
        "2025-06-18 server → 2025-11-25 client at a door of the gateway: the result of initialize",
        initialized,
        initialize_result(&legacy, Revision::V2025_11_25),
    );
    let mut able = client();
    able.capabilities =
        br#"{"elicitation":{"form":{},"url":{}},"sampling":{"tools":{}},"extensions":{"a.b/c":{}}}"#[..]
            .into();
    let said = std::str::from_utf8(&able.capabilities).unwrap().to_owned();
    for revision in [Revision::V2025_11_25, Revision::V2025_06_18, Revision::V2025_03_26] {
        let heading = format!("2026-07-28 client → {revision} server: its capabilities, in initialize");
        page.pair(&heading, &said, initialize_request(&Id::number(1), &able, revision));
    }
    page.pair(
        "2025-11-25 client → 2026-07-28 server: its capabilities, in server/discover",
        &said,
        discover_request(&Id::number(1), &able),
    );
    page.check("3-handshake.txt");
}

#[test]
fn requests() {
    let mut page = Page::new(
        "Bridges 3 and 18: requests. The stateless revision says who asks in each; ids and progress tokens are the hop's own.",
    );
    let own = Id::number(41);
    let extra = Extra { progress_token: Some("41"), ..Extra::default() };
    page.pair(
        "2025-11-25 client → 2026-07-28 server: a call",
        CALL_2025,
        to_stateless(&message(CALL_2025), Some(&own), &client(), &extra),
    );
    page.pair(
        "2026-07-28 client → 2025-11-25 server: a call",
        CALL_2026,
        to_session(&message(CALL_2026), Some(&own), &extra),
    );
    let renamed = Extra { edits: &[(Slot::Name, "find")], ..extra };
    page.pair(
        "2026-07-28 client at a federated door → 2026-07-28 server: a call under the server's own name",
        CALL_2026,
        to_stateless(&message(CALL_2026), Some(&own), &client(), &renamed),
    );
    let bare = r#"{"jsonrpc":"2.0","id":2,"method":"tools/list"}"#;
    page.pair(
        "2025-03-26 client → 2026-07-28 server: a request without params",
        bare,
        to_stateless(&message(bare), Some(&own), &client(), &Extra::default()),
    );
    let list = r#"{"jsonrpc":"2.0","id":2,"method":"prompts/list","params":{"cursor":"ours","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}"#;
    let first_page = Extra { drop_cursor: true, ..Extra::default() };
    page.pair(
        "2026-07-28 client at a federated door → 2025-06-18 server: the first page of a list",
        list,
        to_session(&message(list), Some(&own), &first_page),
    );
    let complete = r#"{"jsonrpc":"2.0","id":3,"method":"completion/complete","params":{"ref":{"type":"ref/prompt","name":"shop__greet"},"argument":{"name":"who","value":"A"}}}"#;
    let of_prompt = Extra { edits: &[(Slot::RefName, "greet")], ..Extra::default() };
    page.pair(
        "2025-06-18 client at a federated door → 2025-06-18 server: a completion for a prompt",
        complete,
        to_session(&message(complete), Some(&own), &of_prompt),
    );
    page.check("18-requests.txt");
}

#[test]
fn results() {
    let mut page = Page::new(
        "Bridges 9 and 13: results. The stateless revision wants to know what each is and how long it is good; the older ones read less.",
    );
    let info = br#"{"name":"old shop","version":"1"}"#;
    let called = r#"{"content":[{"type":"text","text":"caf\u00e9"}],"structuredContent":{"n":1.0},"_meta":{"a.b/c":1}}"#;
    let listed = r#"{"tools":[{"name":"search","inputSchema":{"type":"object"}}],"nextCursor":"2"}"#;
    for (method, came) in [(Method::ToolsCall, called), (Method::ToolsList, listed)] {
        let heading = format!("2025-11-25 server → 2026-07-28 client: {method}");
        let leaves = for_stateless(&method, &Bytes::from_static(came.as_bytes()), Some(info)).unwrap();
        page.pair(&heading, came, leaves);
    }
    let asking = r#"{"resultType":"input_required","requestState":"s"}"#;
    let leaves = for_stateless(&Method::ResourcesRead, &Bytes::from_static(asking.as_bytes()), None).unwrap();
    page.pair("2026-07-28 server → 2026-07-28 client: an interim result has no hints", asking, leaves);

    let session = |method: Method, came: &'static str, revision| {
        for_session(&method, &Bytes::from_static(came.as_bytes()), revision).unwrap()
    };
    let modern = r#"{"resultType":"complete","ttlMs":60000,"cacheScope":"public","resources":[{"uri":"db://a","name":"a"}]}"#;
    page.pair(
        "2026-07-28 server → 2025-11-25 client: resources/list",
        modern,
        session(Method::ResourcesList, modern, Revision::V2025_11_25),
    );
    let list =
        r#"{"resultType":"complete","content":[{"type":"text","text":"[1,2]"}],"structuredContent":[1, 2]}"#;
    page.pair(
        "2026-07-28 server → 2025-11-25 client: structured content that is no object",
        list,
        session(Method::ToolsCall, list, Revision::V2025_11_25),
    );
    let schemas = r##"{"resultType":"complete","tools":[{"name":"ids","inputSchema":{"type":"object"},"outputSchema":{"type":"array","items":{"$ref":"#/$defs/id"},"$defs":{"id":{"type":"integer"}}}},{"name":"any","inputSchema":{"type":"object"},"outputSchema":{"anyOf":[{"type":"object"},{"type":"null"}]}},{"name":"row","inputSchema":{"type":"object"},"outputSchema":{"type":"object"}}],"ttlMs":0,"cacheScope":"private"}"##;
    page.pair(
        "2026-07-28 server → 2025-06-18 client: output schemas of lists, of either, of objects",
        schemas,
        session(Method::ToolsList, schemas, Revision::V2025_06_18),
    );
    let media = r#"{"content":[{"type":"resource_link","uri":"db://a","name":"A"},{"type":"audio","data":"AA==","mimeType":"audio/wav"},{"type":"resource","resource":{"uri":"db://b","text":"b"}}]}"#;
    for revision in [Revision::V2025_06_18, Revision::V2025_03_26, Revision::V2024_11_05] {
        let heading = format!("2025-11-25 server → {revision} client: content of later revisions");
        page.pair(&heading, media, session(Method::ToolsCall, media, revision));
    }
    page.check("9-13-results.txt");
}

#[test]
fn errors() {
    let mut page = Page::new(
        "Bridges 10 and 17: errors. A stateless client is told of an unknown resource by the code of its revision; session clients take every code.",
    );
    for (what, came) in [
        ("an unknown resource", r#"{"code":-32002,"message":"Resource not found","data":{"uri":"db://x"}}"#),
        ("an unknown tool", r#"{"code":-32602,"message":"Unknown tool: x"}"#),
        ("an error of the server's own", r#"{"code":0,"message":"Unknown resource"}"#),
        ("a URL to visit that is not named", r#"{"code":-32042,"message":"Visit","data":{}}"#),
    ] {
        let heading = format!("2025-11-25 server → 2026-07-28 client: {what}");
        page.pair(&heading, came, error_for_stateless(&Bytes::from_static(came.as_bytes())));
    }
    for (what, came) in [
        ("an unknown resource", r#"{"code":-32602,"message":"Unknown resource"}"#),
        (
            "a missing capability",
            r#"{"code":-32021,"message":"Needs sampling","data":{"requiredCapabilities":{"sampling":{}}}}"#,
        ),
    ] {
        let heading = format!("2026-07-28 server → 2025-06-18 client: {what}");
        let leaves = error_for_session(&Bytes::from_static(came.as_bytes()), Revision::V2025_06_18);
        page.pair(&heading, came, leaves);
    }
    page.check("10-17-errors.txt");
}
