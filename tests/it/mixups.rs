//! Nobody gets another's answer, and what was authorised is what every reader finds in the bytes that were sent on.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use waffles_core::credential::KeyLimits;
use waffles_tests::{Behaviour, Era, McpClient, McpServer, Seeded};

/// How many calls are made in all; `WAFFLES_TEST_CALLS=1000000` makes the long version of it.
#[expect(clippy::disallowed_methods, reason = "a test binary has no settings of its own")]
fn calls() -> usize {
    std::env::var("WAFFLES_TEST_CALLS").ok().and_then(|text| text.parse().ok()).unwrap_or(3000)
}

#[tokio::test]
async fn answers_to_colliding_ids_reach_those_who_asked() {
    let (old, new) = (McpServer::only(Era::Sessions).await, McpServer::only(Era::Stateless).await);
    for server in [&old, &new] {
        server.on_tool("stream", Behaviour::EchoSse);
    }
    let (at_old, at_new) = (old.url(), new.url());
    let mut keys = Vec::new();
    let waffles = Seeded::and(|seed, _| {
        seed.server("old", &at_old, |_| {});
        seed.server("new", &at_new, |_| {});
        for name in ["bob", "carol"] {
            let owner = seed.principal(name, "user");
            keys.push(seed.key(owner, KeyLimits::default()));
        }
    })
    .await;
    keys.push(waffles.key.clone());
    let proxy = &waffles.proxy;
    let doors = [
        (proxy.server_url("old"), ""),
        (proxy.server_url("new"), ""),
        (format!("http://{}/mcp", proxy.mcp), "old__"),
        (format!("http://{}/mcp", proxy.mcp), "new__"),
    ];
    let mut clients = Vec::new();
    for key in &keys {
        for era in Era::BOTH {
            for (url, prefix) in &doors {
                let client = McpClient::new(url).with_bearer(key).of(era).await;
                clients.push(Arc::new((client, *prefix)));
            }
        }
    }
    let rounds = calls().div_ceil(clients.len());
    let work = clients.iter().enumerate().map(|(number, client)| {
        let client = Arc::clone(client);
        async move {
            let (client, prefix) = &*client;
            let mut wrong = 0;
            for round in 0..rounds {
                let tool = if round % 2 == 0 { "echo" } else { "stream" };
                let own = format!("{number}-{round}");
                let params = json!({"name": format!("{prefix}{tool}"), "arguments": {"own": own}});
                // Everybody uses the same few ids, as numbers and as strings.
                let id = if round % 3 == 0 { json!(round % 2) } else { json!((round % 2).to_string()) };
                let answer = client.ask(id.clone(), "tools/call", params).await.expect("an answer").message();
                let right = answer["id"] == id && answer["result"]["structuredContent"]["own"] == own;
                wrong += usize::from(!right);
            }
            wrong
        }
    });
    let wrong: usize = futures_util::future::join_all(work).await.into_iter().sum();
    assert_eq!(wrong, 0, "of {} answers", rounds * clients.len());
}

/// What a strict reader of structs sees.
#[derive(Deserialize)]
struct Strict {
    params: StrictParams,
}

#[derive(Deserialize)]
struct StrictParams {
    name: String,
    #[serde(default)]
    arguments: Value,
}

/// Documents that read as different things to different parsers, around the name and one argument.
fn hostile() -> Vec<String> {
    let names = [
        r#""name":"echo""#,
        r#""name":"secret""#,
        r#""name":"echo","name":"secret""#,
        r#""name":"secret","name":"echo""#,
        r#""n\u0061me":"echo""#,
        r#""name":"echo","n\u0061me":"secret""#,
        r#""Name":"secret","name":"echo""#,
        r#""name":"ec\u0068o""#,
        r#""name":"echo\u0000""#,
        r#""name":"echo","NAME":"secret""#,
        r#""name" : "echo" , "naMe":"secret""#,
        r#""name":"\uD800echo""#,
        r#""name":"echo","ſame":"x""#,
    ];
    let arguments = [
        r#""arguments":{"path":"a"}"#,
        r#""arguments":{"path":"a","path":"b"}"#,
        r#""arguments":{"path":"a","p\u0061th":"b"}"#,
        r#""arguments":{"path":"\u0061"}"#,
        r#""arguments":{"path":"a"},"arguments":{"path":"b"}"#,
        r#""arguments":{"path":"a","n":1e400}"#,
        r#""arguments":{"path":"a","n":123456789012345678901234567890}"#,
        r#""arguments":{"path":"a","deep":[[[[{"x":{"x":1,"x":2}}]]]]}"#,
        r#""arguments":{"path":"a\\u0062"}"#,
        r#""arguments":{"path":"é\u00e9\ud83e\uddc7"}"#,
    ];
    let frames = [
        |params: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{{params}}}}}"#),
        |params: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"secret"}},"params":{{{params}}}}}"#
            )
        },
        |params: &str| {
            format!(r#"{{"jsonrpc":"2.0","id":1,"m\u0065thod":"tools/call","params":{{{params}}}}}"#)
        },
        |params: &str| {
            format!(
                "\u{feff}{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{{{params}}}}}"
            )
        },
        |params: &str| {
            format!(r#"{{"params":{{{params}}},"method":"tools/call","id":1,"jsonrpc":"2.0"}} {{}}"#)
        },
        |params: &str| {
            format!(
                "  {{\"params\":{{{params}}},\t\"method\":\"tools/call\",\n\"id\":1,\"jsonrpc\":\"2.0\"}}\r\n"
            )
        },
    ];
    let mut documents = Vec::new();
    for frame in frames {
        for name in names {
            for argument in arguments {
                documents.push(frame(&format!("{name},{argument}")));
                documents.push(frame(&format!("{argument},{name}")));
            }
        }
    }
    documents
}

/// What another language's parser reads: the name and the path of each document, one JSON array a line.
fn read_by(program: &str, arguments: &[&str], documents: &[Vec<u8>]) -> Vec<Value> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let lines: Vec<u8> = documents
        .iter()
        .flat_map(|document| {
            // JSON text has no line end that is not blank space.
            document.iter().map(|byte| if *byte == b'\n' { b' ' } else { *byte }).chain(*b"\n")
        })
        .collect();
    let writer = std::thread::spawn(move || stdin.write_all(&lines));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{program} ended with {}", output.status);
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

const PYTHON: &str = "import json,sys
for line in sys.stdin.buffer:
    params = json.loads(line)['params']
    print(json.dumps([params['name'], (params.get('arguments') or {}).get('path')]))";

const NODE: &str = "const lines = require('fs').readFileSync(0, 'utf8').split('\\n').filter(Boolean);
for (const line of lines) {
    const params = JSON.parse(line).params;
    console.log(JSON.stringify([params.name, (params.arguments || {}).path ?? null]));
}";

#[tokio::test]
async fn four_parsers_read_what_was_authorised() {
    let documents = hostile();
    let mut forwarded = Vec::new();
    let mut audited = Vec::new();
    for only in [None, Some(Era::Stateless)] {
        let server = match only {
            Some(era) => McpServer::only(era).await,
            None => McpServer::start().await,
        };
        let url = server.url();
        let waffles = Seeded::and(|seed, _| {
            seed.server("guarded", &url, |server| server.spec.tools.deny = vec!["secret".into()]);
        })
        .await;
        let client = McpClient::new(&waffles.proxy.server_url("guarded")).with_bearer(&waffles.key);
        let client = client.of(Era::Sessions).await;
        let mut refused = 0;
        for document in &documents {
            let answer = client.post(document.clone()).await.unwrap();
            refused += usize::from(!answer.text().contains(r#""result""#));
        }
        let seen = server.seen_of("tools/call");
        assert_eq!(seen.len() + refused, documents.len(), "each is refused or sent on");
        assert!(seen.len() > 20 && refused > 100, "{} sent on, {refused} refused", seen.len());
        forwarded.extend(seen.into_iter().map(|seen| seen.body.to_vec()));
        let records = waffles.records_of("mcp.tools/call");
        let good = records.into_iter().filter(|record| record.outcome == waffles_core::audit::Outcome::Ok);
        audited.extend(good.map(|record| record.target));
    }
    assert_eq!(forwarded.len(), audited.len());
    let python = read_by("python3", &["-c", PYTHON], &forwarded);
    let node = read_by("node", &["-e", NODE], &forwarded);
    for (((body, target), python), node) in forwarded.iter().zip(&audited).zip(&python).zip(&node) {
        let text = String::from_utf8_lossy(body);
        let strict: Strict = serde_json::from_slice(body).unwrap_or_else(|error| panic!("{error}: {text}"));
        let value: Value = serde_json::from_slice(body).unwrap();
        let read = json!([value["params"]["name"], value["params"]["arguments"]["path"]]);
        assert_eq!(json!(target), read[0], "authorised and sent: {text}");
        assert_eq!(json!([strict.params.name, strict.params.arguments["path"]]), read, "{text}");
        assert_eq!(*python, read, "Python reads otherwise: {text}");
        assert_eq!(*node, read, "Node reads otherwise: {text}");
        assert_ne!(read[0], "secret");
    }
}
