//! One call through a proxy on real sockets: what reaches the server, what comes back, what is written down.

use std::time::Duration;

use bytes::Bytes;
use http::header;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use uuid::Uuid;
use waffles_core::audit::Outcome;
use waffles_core::credential::KeyLimits;
use waffles_core::policy::Permission;
use waffles_core::server::{Capture, Credential, Server, ToolFilter};
use waffles_mcp::{Limits, Message};
use waffles_runtime::task;
use waffles_tests::mcp_client::{Answer, stateless_meta};
use waffles_tests::{Behaviour, Era, McpClient, Seeded, until};

/// An answer as bytes, but for the one part that differs each time.
pub(crate) fn masked(answer: &Answer) -> String {
    let text = answer.text();
    let Some(at) = text.find(r#""request_id":""#) else { return text };
    let at = at + r#""request_id":""#.len();
    assert!(text[at..at + 36].parse::<Uuid>().is_ok(), "{text}");
    format!("{}…{}", &text[..at], &text[at + 36..])
}

/// These bytes as an event stream.
pub(crate) fn stream_of(body: &str) -> Behaviour {
    let headers = vec![("content-type".to_owned(), "text/event-stream".to_owned())];
    Behaviour::Raw { status: 200, headers, body: body.to_owned().into() }
}

/// These bytes as a JSON answer.
pub(crate) fn json_of(status: u16, body: &str) -> Behaviour {
    let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
    Behaviour::Raw { status, headers, body: body.to_owned().into() }
}

fn filtered(allow: &[&str], deny: &[&str]) -> impl FnOnce(&mut Server) {
    let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    let filter = ToolFilter { allow: owned(allow), deny: owned(deny) };
    |server| server.spec.tools = filter
}

fn names(listed: &Value) -> Vec<&str> {
    listed["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_call_is_answered_and_recorded_in_both_eras_as_json_and_as_a_stream() {
    for (era, behaviour, is_sse) in [
        (Era::Sessions, Behaviour::Echo, false),
        (Era::Sessions, Behaviour::EchoSse, true),
        (Era::Stateless, Behaviour::Echo, false),
        (Era::Stateless, Behaviour::EchoSse, true),
    ] {
        let waffles = Seeded::start().await;
        waffles.upstream.on_tool("say", behaviour);
        let client = waffles.client().of(era).await;
        let answer = client.call("say", json!({"x": [1, "2"]})).await.unwrap();
        let record = waffles.record();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.is_sse(), is_sse, "a JSON answer stays JSON");
        assert_eq!(answer.messages().len(), 1);
        assert_eq!(answer.message()["id"], 1);
        assert_eq!(answer.result()["structuredContent"], json!({"x": [1, "2"]}));
        assert_eq!(waffles.upstream.seen_of("tools/call").len(), 1);

        assert_eq!(record.action, "mcp.tools/call");
        assert_eq!(record.outcome, Outcome::Ok);
        assert_eq!((record.http_status, record.rpc_code), (200, 0));
        assert_eq!(record.target, "say");
        assert_eq!(record.protocol_version, era.revision());
        assert_eq!((record.tenant.as_str(), record.server_name.as_str()), ("default", "demo"));
        assert_eq!((record.principal_id, record.principal_name.as_str()), (Some(waffles.alice), "alice"));
        assert_eq!(record.api_key_id, waffles.key[4..20]);
        assert_eq!((record.rule.as_str(), record.reason.as_str()), ("role:user", ""));
        assert_eq!(record.client_ip, "127.0.0.1");
        assert_eq!(record.proxy_id.unwrap().to_string(), waffles.proxy.proxy_id);
        assert!(record.upstream_us > 0 && record.upstream_us <= record.duration_us, "{record:?}");
        assert_eq!(record.response_bytes, answer.body.len() as u64);
        assert!(record.request_payload.is_empty() && record.response_payload.is_empty());
        if era == Era::Stateless {
            assert_eq!(record.client_name, "waffles-tests");
        }
    }
}

#[tokio::test]
async fn params_and_results_keep_their_bytes() {
    let arguments = "{ \"z\":1.0,\"a\" : -0.0e-7,\n\t\"big\":123456789012345678901234567890,\"t\":\"\\u0041\\/\\ud83c\\udf0a\",\
                     \"e\":[ ],\"\u{e9}\":\"\u{20ac}\u{202e}\",\"n\":null,\"f\":1E2 }";
    let result = "{ \"content\":[{\"type\":\"text\" , \"text\":\"\\u00e9\\n\"}],\"structuredContent\": {\"k\":2e0,\"b\":0.10,\
                  \"b2\":18446744073709551616}, \"resultType\":\"complete\" }";
    let waffles = Seeded::start().await;
    let whole = format!("{{\"result\":{result},\"id\":1,\"jsonrpc\":\"2.0\"}}");
    waffles.upstream.on_tool("whole", json_of(200, &whole));
    waffles.upstream.on_tool("stream", stream_of(&format!("data: {whole}\n\n")));
    for era in Era::BOTH {
        for tool in ["whole", "stream"] {
            let mut client = waffles.client().of(era).await;
            let mut params = format!("{{\"name\":\"{tool}\", \"arguments\":{arguments}");
            if era == Era::Stateless {
                params.push_str(&format!(" ,\"_meta\":{}", stateless_meta()));
                client = client.with("mcp-method", "tools/call").with("mcp-name", tool);
            }
            params.push('}');
            let body =
                format!("{{\"id\":1,\"params\":{params},\"method\":\"tools\\/call\",\"jsonrpc\":\"2.0\"}}");
            let answer = client.post(body).await.unwrap();
            let seen = waffles.upstream.seen_of("tools/call").pop().unwrap();
            let sent = Message::parse(seen.body, &Limits::default()).unwrap().params().unwrap();
            assert_eq!(String::from_utf8_lossy(&sent), params);
            assert!(answer.text().contains(&format!("\"result\":{result}")), "{}", answer.text());
        }
    }
}

#[tokio::test]
async fn ids_keep_their_type_and_their_text() {
    let waffles = Seeded::start().await;
    for id in ["1", "\"1\"", "-7", "9007199254740993", "\"\u{fc}\"", "\"\"", "0"] {
        let client = waffles.client().of(Era::Stateless).await.with("mcp-method", "ping");
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"ping","params":{{"_meta":{}}}}}"#,
            stateless_meta()
        );
        let answer = client.post(body).await.unwrap();
        assert_eq!(answer.status, 200);
        assert!(answer.text().contains(&format!("\"id\":{id},")), "{id}: {}", answer.text());
    }
}

#[tokio::test]
async fn the_server_gets_its_own_credential_and_nothing_else_of_the_client() {
    let cases: [(Credential, Option<(&str, &str)>); 4] = [
        (Credential::None, None),
        (Credential::Bearer { token: "up-secret".into() }, Some(("authorization", "Bearer up-secret"))),
        (
            Credential::Basic { username: "svc".into(), password: "p:w".into() },
            Some(("authorization", "Basic c3ZjOnA6dw==")),
        ),
        (Credential::Header { name: "x-team-key".into(), value: "k1".into() }, Some(("x-team-key", "k1"))),
    ];
    for (credential, expected) in cases {
        let waffles = Seeded::with(|server| server.credential = credential).await;
        for era in Era::BOTH {
            let client = waffles
                .client()
                .of(era)
                .await
                .with("cookie", "a=b")
                .with("proxy-authorization", "Basic eA==")
                .with("x-team-key", "forged")
                .with("x-forwarded-for", "10.0.0.1")
                .with("x-waffles-tenant", "other")
                .with("forwarded", "for=10.0.0.1")
                .with("user-agent", "agent")
                .with("accept-encoding", "gzip")
                .with("mcp-param-region", "eu");
            client.call("echo", json!({})).await.unwrap().result();
            let seen = waffles.upstream.seen_of("tools/call").pop().unwrap();
            let mut names: Vec<&str> = seen.headers.keys().map(|name| name.as_str()).collect();
            names.sort_unstable();
            let mut allowed = vec!["accept", "content-length", "content-type", "host"];
            allowed.extend(["mcp-protocol-version", "user-agent"]);
            match era {
                Era::Sessions => allowed.push("mcp-session-id"),
                Era::Stateless => allowed.extend(["mcp-method", "mcp-name", "mcp-param-region"]),
            }
            allowed.extend(expected.map(|(name, _)| name));
            allowed.sort_unstable();
            assert_eq!(names, allowed);
            if let Some((name, value)) = expected {
                assert_eq!(seen.header(name), Some(value));
            }
            assert_eq!(seen.header("host"), Some(waffles.upstream.addr().to_string().as_str()));
            assert!(seen.header("user-agent").unwrap().starts_with("waffles/"));
            assert!(!String::from_utf8_lossy(&seen.body).contains(&waffles.key));
        }
        let log = waffles.proxy.program.log();
        assert!(!log.contains(&waffles.key) && !log.contains("up-secret"), "{log}");
    }
}

#[tokio::test]
async fn what_needs_no_answer_gets_none() {
    let waffles = Seeded::start().await;
    let client = waffles.client().of(Era::Sessions).await;
    for (body, action) in [
        (
            json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}),
            "mcp.notifications/cancelled",
        ),
        (json!({"jsonrpc": "2.0", "id": "x", "result": {"action": "accept"}}), "mcp.response"),
        (json!({"jsonrpc": "2.0", "id": 7, "error": {"code": -1, "message": "no"}}), "mcp.response"),
    ] {
        let before = waffles.records().len();
        let answer = client.post(body.to_string()).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.body.len()), (202, 0), "{body}");
        let records = waffles.records();
        assert_eq!(records.len(), before + 1);
        assert_eq!(records[before].action, action);
        assert_eq!((records[before].outcome, records[before].http_status), (Outcome::Ok, 202));
        let seen = waffles.upstream.seen().pop().unwrap();
        assert_eq!(seen.json(), body, "the server gets it as it is");
    }
}

#[tokio::test]
async fn a_hidden_tool_is_neither_listed_nor_callable() {
    for era in Era::BOTH {
        let waffles = Seeded::with(filtered(&["a*", "echo"], &["a_secret"])).await;
        for tool in ["a_secret", "a_plain", "other"] {
            waffles.upstream.on_tool(tool, Behaviour::Echo);
        }
        let client = waffles.client().of(era).await;
        let list = |client: McpClient| async move { client.ask(1, "tools/list", json!({})).await.unwrap() };
        let whole = list(client.clone()).await;
        assert_eq!(names(&whole.result()), ["echo", "add", "a_plain"], "as JSON");
        if era == Era::Stateless {
            assert_eq!(whole.result()["cacheScope"], "private");
        }
        let all = json!({"jsonrpc": "2.0", "id": 1, "result": {"tools": [
            {"name": "a_secret"}, {"na\u{6d}e": "other"}, {"name": "a_plain"}], "resultType": "complete",
            "ttlMs": 5, "cacheScope": "public", "nextCursor": "more"}});
        let stream =
            stream_of(&format!("data: {}\n\n", all.to_string().replace("a_secret", "a_s\\u0065cret")));
        waffles.upstream.on_method("tools/list", stream);
        let streamed = list(client.clone()).await;
        assert_eq!(names(&streamed.result()), ["a_plain"], "as a stream");
        assert_eq!(streamed.result()["nextCursor"], "more");
        assert_eq!(streamed.result()["cacheScope"], "private", "what was filtered is the caller's own");

        let before = waffles.upstream.seen_of("tools/call").len();
        for hidden in ["a_secret", "other", "Echo", "echo ", "no_such"] {
            let mut call = client.clone();
            if hidden.ends_with(' ') && era == Era::Stateless {
                call = call.with("mcp-name", "=?base64?ZWNobyA=?=");
                let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
                    "params": {"name": hidden, "_meta": stateless_meta()}});
                let answer = call.with("mcp-method", "tools/call").post(body.to_string()).await.unwrap();
                assert_eq!((answer.status.as_u16(), answer.error_code()), (200, -32602), "{hidden:?}");
                continue;
            }
            let answer = call.call(hidden, json!({})).await.unwrap();
            assert_eq!((answer.status.as_u16(), answer.error_code()), (200, -32602), "{hidden:?}");
            assert_eq!(answer.message()["error"]["message"], format!("Unknown tool: {hidden}"));
        }
        assert_eq!(waffles.upstream.seen_of("tools/call").len(), before, "none of it reached the server");
        let denied = waffles.records_of("mcp.tools/call");
        assert_eq!(denied.len(), 5);
        assert!(denied.iter().all(|record| record.outcome == Outcome::Denied
            && record.reason == "unknown_tool"
            && record.rule == "server:tools"));
    }
}

#[tokio::test]
async fn a_server_that_is_unknown_foreign_or_not_permitted_does_not_exist() {
    let waffles = Seeded::and(|seed, url| {
        seed.server("disabled", url, |server| server.enabled = false);
        seed.server("foreign", url, |server| server.tenant = "other".into());
    })
    .await;
    let at =
        |path: &str| McpClient::new(&format!("http://{}{path}", waffles.proxy.mcp)).with_bearer(&waffles.key);
    let mut texts = Vec::new();
    for path in [
        "/mcp/servers/no-such",
        "/mcp/servers/foreign",
        "/t/other/mcp/servers/foreign",
        "/t/other/mcp/servers/demo",
        "/t/none/mcp/servers/demo",
        "/mcp/servers/disabled",
    ] {
        let client = at(path).with("mcp-protocol-version", Era::Stateless.revision());
        let answer = client.call("echo", json!({})).await.unwrap();
        assert_eq!(answer.status, 404, "{path}");
        texts.push(masked(&answer));
    }
    let switched_off = texts.pop().unwrap();
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:#?}");
    assert!(switched_off.contains("disabled"), "who may use a server learns that it is switched off");
    assert_eq!(waffles.upstream.seen().len(), 0);
    let records = waffles.records();
    assert_eq!(records.len(), 6);
    assert!(records.iter().all(|record| record.outcome == Outcome::Denied && record.http_status == 404));
    let own = at("/t/default/mcp/servers/demo").of(Era::Stateless).await;
    assert_eq!(own.call("echo", json!({})).await.unwrap().status, 200, "the caller's own tenant by name");
}

#[tokio::test]
async fn a_key_narrows_what_its_owner_may_do() {
    let limits = |change: fn(&mut KeyLimits)| {
        let mut limits = KeyLimits::default();
        change(&mut limits);
        limits
    };
    // HTTP status and error code of a call of `echo`, and how many tools are listed.
    let cases: [(&str, KeyLimits, u16, i64, usize); 8] = [
        ("nothing", limits(|_| {}), 200, 0, 2),
        ("this server", limits(|l| l.servers = vec!["demo".into()]), 200, 0, 2),
        ("another server", limits(|l| l.servers = vec!["other".into()]), 404, -32600, 0),
        ("this tool", limits(|l| l.tools = vec!["ec*".into()]), 200, 0, 1),
        ("another tool", limits(|l| l.tools = vec!["add".into()]), 200, -32602, 1),
        ("reading", limits(|l| l.read_only = true), 200, -32602, 0),
        ("another scope", limits(|l| l.scopes = vec![Permission::ServersRead]), 404, -32600, 0),
        ("another address", limits(|l| l.ip_ranges = vec!["10.0.0.0/8".parse().unwrap()]), 401, -32600, 0),
    ];
    let mut keys = Vec::new();
    let waffles = Seeded::and(|seed, _| {
        let owner = seed.principal("bob", "user");
        keys.extend(cases.iter().map(|case| seed.key(owner, case.1.clone())));
    })
    .await;
    for ((what, _, status, code, listed), key) in cases.iter().zip(&keys) {
        let client = waffles.anonymous().with_bearer(key).of(Era::Stateless).await;
        let before = waffles.upstream.seen_of("tools/call").len();
        let answer = client.call("echo", json!({})).await.unwrap();
        assert_eq!(answer.status.as_u16(), *status, "{what}");
        assert_eq!(answer.message()["error"]["code"].as_i64().unwrap_or(0), *code, "{what}");
        let reached = waffles.upstream.seen_of("tools/call").len() - before;
        assert_eq!(reached, usize::from(*code == 0), "{what}");
        let answer = client.ask(1, "tools/list", json!({})).await.unwrap();
        let tools = answer.message()["result"]["tools"].as_array().map_or(0, Vec::len);
        assert_eq!(tools, *listed, "{what}: what cannot be called is not listed");
    }
    // A method that nobody knows may do anything.
    let reading = waffles.anonymous().with_bearer(&keys[5]).of(Era::Stateless).await;
    assert_eq!(reading.ask(1, "vendor/run", json!({})).await.unwrap().status, 403);
    assert_eq!(waffles.upstream.seen_of("vendor/run").len(), 0);
}

#[tokio::test]
async fn a_method_that_no_revision_names_reaches_a_server_whose_registration_allows_it() {
    for (methods, answered) in [(vec![], false), (vec!["vendor/*"], true), (vec!["other/run"], false)] {
        let allowed = methods.into_iter().map(ToOwned::to_owned).collect();
        let waffles = Seeded::with(|server| server.spec.methods = allowed).await;
        for era in Era::BOTH {
            let client = waffles.client().of(era).await;
            let before = waffles.upstream.seen_of("vendor/run").len();
            let answer = client.ask(1, "vendor/run", json!({})).await.unwrap();
            // The scripted server does not know the method either.
            assert_eq!(answer.error_code(), -32601, "{era:?}");
            assert_eq!(
                waffles.upstream.seen_of("vendor/run").len() - before,
                usize::from(answered),
                "{era:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_message_that_is_never_read_is_still_found_in_the_trail() {
    let waffles = Seeded::start().await;
    waffles.anonymous().post("{}").await.unwrap();
    waffles.client().post("{").await.unwrap();
    let records = waffles.records_of("mcp.none");
    let outcomes: Vec<Outcome> = records.iter().map(|record| record.outcome).collect();
    assert_eq!(outcomes, [Outcome::Unauthenticated, Outcome::Invalid]);
}

#[tokio::test]
async fn captured_payloads_are_what_the_registration_says() {
    let arguments = json!({"city": "Paris", "api_key": "sk-1", "deep": [{"pin": "1234", "n": 1}]});
    for (capture, kept, gone) in [
        (Capture::None, vec![], vec!["Paris", "city", "sk-1", "1234"]),
        (Capture::Metadata, vec!["city", "api_key"], vec!["Paris", "sk-1", "1234"]),
        (Capture::Full, vec!["Paris", "city", "[redacted]"], vec!["sk-1", "1234"]),
    ] {
        for behaviour in [Behaviour::Echo, Behaviour::EchoSse] {
            let waffles = Seeded::with(|server| {
                server.spec.capture = capture;
                server.spec.redact = vec!["pin".into(), "text".into()];
            })
            .await;
            waffles.upstream.on_tool("echo", behaviour);
            let client = waffles.client().of(Era::Stateless).await;
            client.call("echo", arguments.clone()).await.unwrap().result();
            let record = waffles.record();
            for payload in [&record.request_payload, &record.response_payload] {
                assert!(kept.iter().all(|text| payload.contains(text)), "{capture:?}: {payload}");
                assert!(gone.iter().all(|text| !payload.contains(text)), "{capture:?}: {payload}");
            }
            if capture != Capture::None {
                let payload: Value = serde_json::from_str(&record.request_payload).unwrap();
                assert!(payload["arguments"]["city"].is_string());
            }
        }
    }
}

#[tokio::test]
async fn metrics_have_their_families_and_bounded_labels() {
    let waffles = Seeded::with(|server| server.spec.methods = vec!["vendor/*".into()]).await;
    let client = waffles.client().of(Era::Stateless).await;
    client.call("echo", json!({})).await.unwrap().result();
    for number in 0..20 {
        client.ask(1, &format!("vendor/m{number}"), json!({})).await.unwrap();
        let other = McpClient::new(&waffles.proxy.server_url(&format!("no-such-{number}")));
        other.with_bearer(&waffles.key).post("{}").await.unwrap();
    }
    waffles.anonymous().post("{}").await.unwrap();
    let text = waffles.proxy.metrics().await;
    for line in [
        "waffles_exchanges_total{server=\"demo\",method=\"tools/call\",outcome=\"ok\"} 1",
        "waffles_exchanges_total{server=\"demo\",method=\"other\",outcome=\"error\"} 20",
        "waffles_exchanges_total{server=\"\",method=\"none\",outcome=\"unauthenticated\"} 1",
        "waffles_exchange_duration_seconds_count{server=\"demo\"} 21",
        "waffles_upstream_duration_seconds_count{server=\"demo\"} 21",
        "waffles_served_exchanges_total 42",
        "waffles_open_streams 0",
        "waffles_audit_lost_records 0",
        "waffles_config_connected 0",
        "waffles_config_revision 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    for family in ["waffles_connections ", "waffles_audit_spool_depth ", "waffles_refused_connections_total "]
    {
        assert!(text.contains(family), "{family}\n{text}");
    }
    for unbounded in ["no-such", "vendor/m", "alice", &waffles.key] {
        assert!(!text.contains(unbounded), "{unbounded}\n{text}");
    }
    let series = text.lines().filter(|line| line.starts_with("waffles_exchanges_total")).count();
    assert_eq!(series, 4);
}

#[tokio::test]
async fn an_answer_carries_only_headers_of_the_gateways_own() {
    let waffles = Seeded::start().await;
    let headers = [
        ("content-type", "application/json; charset=utf-8"),
        ("set-cookie", "upstream=1"),
        ("mcp-session-id", "not-asked-for"),
        ("www-authenticate", "Bearer resource_metadata=\"http://evil.test\""),
        ("access-control-allow-origin", "*"),
        ("server", "secret/1"),
        ("location", "http://evil.test"),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let body = json!({"jsonrpc": "2.0", "id": 1, "result": {"resultType": "complete"}}).to_string();
    waffles.upstream.on_tool("loud", Behaviour::Raw { status: 200, headers, body: body.into() });
    for era in Era::BOTH {
        let answer = waffles.client().of(era).await.call("loud", json!({})).await.unwrap();
        let mut names: Vec<&str> = answer.headers.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "content-type", "date"]);
        assert_eq!(answer.headers[header::CONTENT_TYPE], "application/json");
    }
}

#[tokio::test]
async fn a_call_over_http2_is_the_same_and_is_cancelled_by_a_reset() {
    let waffles = Seeded::start().await;
    waffles.upstream.on_tool("never", Behaviour::Never);
    let socket = tokio::net::TcpStream::connect(waffles.proxy.mcp).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.unwrap();
    let connection = task::spawn("caller", connection);
    let call = |tool: &str| {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": {"name": tool, "arguments": {"x": 1}, "_meta": stateless_meta()}});
        let mut request = http::Request::post(waffles.proxy.server_url("demo"))
            .body(Full::new(Bytes::from(body.to_string())));
        let client = waffles.client().with("mcp-protocol-version", Era::Stateless.revision());
        let client = client.with("mcp-method", "tools/call").with("mcp-name", tool);
        *request.as_mut().unwrap().headers_mut() = client.headers;
        request.unwrap()
    };
    let answer = sender.send_request(call("echo")).await.unwrap();
    assert_eq!(answer.status(), 200);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let message: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(message["result"]["structuredContent"], json!({"x": 1}));

    let left = tokio::time::timeout(Duration::from_millis(300), sender.send_request(call("never"))).await;
    assert!(left.is_err());
    until("the server was told", Duration::from_secs(1), || async { waffles.upstream.abandoned() == 1 })
        .await;
    let answer = sender.send_request(call("echo")).await.unwrap();
    assert_eq!(answer.status(), 200, "the connection goes on");
    connection.abort();
}

#[tokio::test]
async fn no_caller_gets_the_answer_of_another_though_all_use_one_id() {
    let waffles = Seeded::start().await;
    waffles.upstream.on_tool("later", Behaviour::Slow(Duration::from_millis(20)));
    waffles.upstream.on_tool("stream", Behaviour::EchoSse);
    let callers: Vec<_> = (0..16)
        .map(|caller| {
            let client = waffles.client();
            task::spawn("caller", async move {
                let client = client.of(if caller % 2 == 0 { Era::Stateless } else { Era::Sessions }).await;
                for number in 0..40 {
                    let arguments = json!({"caller": caller, "number": number});
                    let tool = ["echo", "later", "stream"][number % 3];
                    if number % 7 == 6 {
                        // Goes away, so that a connection with an answer under way must not be used again.
                        let soon = Duration::from_millis(5);
                        drop(tokio::time::timeout(soon, client.call(tool, arguments)).await);
                        continue;
                    }
                    let answer = client.call(tool, arguments.clone()).await.unwrap();
                    assert_eq!(answer.result()["structuredContent"], arguments);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
}
