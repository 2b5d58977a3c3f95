//! Input in mid-call, subscriptions, logging, cancellation.

use waffles_mcp::translate::input::{
    InputRequest, from_server_request, input_required, input_responses, read_input_required,
    read_input_responses, server_request,
};
use waffles_mcp::translate::notice::{
    Filter, cancelled, closing_result, level_rank, list_changed, resource_updated, tagged, untagged,
    with_progress_token,
};
use waffles_mcp::translate::request::{Extra, to_session, to_stateless};
use waffles_mcp::translate::result::url_elicitations;
use waffles_mcp::{Id, Method, Revision, Slot, head};

use super::{Page, client, message};

const CALL: &str =
    r#"{"jsonrpc":"2.0","id":"c-1","method":"tools/call","params":{"name":"book","arguments":{}}}"#;

#[test]
fn input() {
    let mut page = Page::new(
        "Bridges 5 and 12: what a server asks in mid-call. A request on the stream of a session, a result in the stateless revision.",
    );
    let result = r#"{"resultType":"input_required","inputRequests":{"when":{"method":"elicitation/create","params":{"mode":"form","message":"When?","requestedSchema":{"type":"object","properties":{"day":{"type":"string"}}}}},"pay":{"method":"elicitation/create","params":{"mode":"url","message":"Pay here","url":"https://pay.example/1"}},"say":{"method":"sampling/createMessage","params":{"maxTokens":9,"messages":[{"role":"user","content":[{"type":"text","text":"Hi"}]}]}},"roots":{"method":"roots/list"}},"requestState":"opaque"}"#;
    let asked = read_input_required(result.as_bytes()).unwrap().unwrap();
    for request in &asked.requests {
        let revisions: &[Revision] = match request.key.as_str() {
            "when" | "say" => &[Revision::V2025_11_25, Revision::V2025_06_18],
            _ => &[Revision::V2025_11_25],
        };
        for revision in revisions {
            let came = format!(
                r#"{{"method":"{}","params":{}}}"#,
                request.method,
                String::from_utf8_lossy(&request.params)
            );
            let heading = format!("2026-07-28 server → {revision} client: the question `{}`", request.key);
            page.pair(&heading, &came, server_request(&Id::string("waffles-1"), request, *revision, "e-77"));
        }
    }
    let answers = vec![
        ("when".to_owned(), br#"{"action":"accept","content":{"day":"Monday"}}"#[..].into()),
        ("roots".to_owned(), br#"{"roots":[]}"#[..].into()),
    ];
    let responses = input_responses(&answers);
    let extra = Extra {
        input_responses: Some(&responses),
        request_state: asked.state.as_deref(),
        ..Extra::default()
    };
    page.pair(
        "2025-11-25 client → 2026-07-28 server: the call once more, with the answers and the state",
        CALL,
        to_stateless(&message(CALL), Some(&Id::number(42)), &client(), &extra),
    );

    let mut requests = Vec::new();
    for (number, came) in [
        r#"{"jsonrpc":"2.0","id":0,"method":"elicitation/create","params":{"message":"When?","requestedSchema":{"type":"object","properties":{}},"_meta":{"progressToken":4}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"elicitation/create","params":{"mode":"url","elicitationId":"e-1","message":"Pay","url":"https://pay.example/1"}}"#,
        r#"{"jsonrpc":"2.0","id":2,"method":"roots/list"}"#,
    ]
    .into_iter()
    .enumerate()
    {
        let request = from_server_request(&format!("q-{number}"), &message(came)).unwrap();
        page.pair(
            "2025-11-25 server → 2026-07-28 client: a question, as the result of the call",
            came,
            input_required(std::slice::from_ref(&request), Some("sealed")),
        );
        requests.push(request);
    }
    let back = r#"{"q-0":{"action":"decline"},"q-2":{"roots":[{"uri":"file:///a"}]}}"#;
    for (key, answer) in read_input_responses(back.as_bytes()).unwrap() {
        let id = requests.iter().position(|request| request.key == key).unwrap();
        let leaves = waffles_mcp::jsonrpc::result_response(&Id::number(id as u64), &answer);
        page.pair(&format!("2026-07-28 client → 2025-11-25 server: the answer to {key}"), back, leaves);
    }
    let error = r#"{"code":-32042,"message":"Visit","data":{"elicitations":[{"mode":"url","elicitationId":"e-2","url":"https://a.example","message":"Sign in"}]}}"#;
    let urls: Vec<InputRequest> = url_elicitations(error.as_bytes()).unwrap();
    page.pair(
        "2025-11-25 server → 2026-07-28 client: an error that wants a URL visited",
        error,
        input_required(&urls, None),
    );
    page.check("5-12-input.txt");
}

#[test]
fn subscriptions() {
    let mut page = Page::new(
        "Bridges 6 and 14: subscriptions. Tagged on the stream of a listen request, bare on the stream of a session.",
    );
    let id = Id::string("l-1");
    let updated = r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"db://a","_meta":{"a.b/c":1}}}"#;
    page.pair("2025-11-25 server → 2026-07-28 client: a change", updated, tagged(&message(updated), &id));
    let changed = r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;
    page.pair(
        "2025-11-25 server → 2026-07-28 client: a change without params",
        changed,
        tagged(&message(changed), &Id::number(9)),
    );
    for came in [
        r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":9},"uri":"db://a"}}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":9}}}"#,
    ] {
        page.pair("2026-07-28 server → 2025-11-25 client: a change", came, untagged(&message(came)));
    }
    let wish =
        r#"{"toolsListChanged":true,"promptsListChanged":true,"resourceSubscriptions":["db://b","db://a"]}"#;
    let can = r#"{"toolsListChanged":true,"resourceSubscriptions":["db://a"]}"#;
    let (wished, possible) =
        (Filter::parse(wish.as_bytes()).unwrap(), Filter::parse(can.as_bytes()).unwrap());
    let granted = wished.intersect(&possible);
    let first = granted.acknowledged(&id);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    page.case(
        "gateway → 2026-07-28 client: what of its wish is granted",
        &[("wish", wish), ("can", can), ("leaves", &text(&first))],
    );
    let union = wished.union(&possible).to_json();
    page.case(
        "gateway → 2026-07-28 server: the wishes of two listeners, joined",
        &[("leaves", &text(&union))],
    );
    page.case(
        "gateway → 2026-07-28 client: the end of a subscription",
        &[("leaves", &text(&closing_result(&id)))],
    );
    for bytes in [list_changed(&Method::ResourcesListChanged), resource_updated("wfl+shop+db://a")] {
        page.case("gateway → 2025-11-25 client: what no server said", &[("leaves", &text(&bytes))]);
    }
    page.check("6-14-subscriptions.txt");
}

#[test]
fn logging() {
    let mut page = Page::new(
        "Bridges 7 and 15: logging. The level of a session is put into each stateless request, and taken from a request for a session.",
    );
    let levels: Vec<_> = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"]
        .iter()
        .map(|level| format!("{level} {}", level_rank(level).unwrap()))
        .collect();
    page.case("levels, the least important first", &[("ranks", &levels.join(", "))]);
    let extra = Extra { log_level: Some("warning"), ..Extra::default() };
    page.pair(
        "2025-11-25 client with logging/setLevel `warning` → 2026-07-28 server: a call",
        CALL,
        to_stateless(&message(CALL), Some(&Id::number(43)), &client(), &extra),
    );
    let came = r#"{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"book","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/logLevel":"warning"}}}"#;
    page.pair(
        "2026-07-28 client → 2025-11-25 server: a call with a level",
        came,
        to_session(&message(came), Some(&Id::number(43)), &Extra::default()),
    );
    page.check("7-15-logging.txt");
}

#[test]
fn cancellation() {
    let mut page = Page::new(
        "Bridges 8 and 16: cancellation and progress. Ids and tokens are a hop's own, and keep their type. To a stateless server, cancelling is closing the stream.",
    );
    for came in [
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7,"reason":"user"}}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"7"}}"#,
    ] {
        let id = head(&message(came)).unwrap().request_id.unwrap();
        page.case(
            "2025-11-25 client → 2026-07-28 server: a request is cancelled",
            &[
                ("came", came),
                ("closes", &format!("the stream of the request that came as {}", id.as_json())),
            ],
        );
    }
    let bytes = cancelled(&Id::number(44), "the client has gone");
    page.case(
        "2026-07-28 client → 2025-11-25 server: a stream is closed, and the server told under the hop's own id",
        &[("leaves", std::str::from_utf8(&bytes).unwrap())],
    );
    let came = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":44,"progress":0.50,"total":1,"message":"half"}}"#;
    assert_eq!(message(came).raw(Slot::ProgressToken).unwrap(), "44");
    page.pair(
        "any server → any client: progress, under the client's token",
        came,
        with_progress_token(&message(came), "\"p\""),
    );
    page.check("8-16-cancellation.txt");
}
