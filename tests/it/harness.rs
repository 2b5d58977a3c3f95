//! The harness itself: what the other tests stand on must not be what fails.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use waffles_tests::mcp_client::events;
use waffles_tests::{Behaviour, Era, McpClient, McpServer, Postgres, Redis, Waffles, until};

#[tokio::test]
async fn a_killed_postgres_comes_back_with_its_data() {
    let postgres = Postgres::start().await;
    let url = postgres.database().await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::query("CREATE TABLE kept (n INT)").execute(&mut connection).await.unwrap();
    sqlx::query("INSERT INTO kept VALUES (7)").execute(&mut connection).await.unwrap();
    postgres.kill9();
    assert!(sqlx::query("SELECT 1").execute(&mut connection).await.is_err());
    assert!(PgConnection::connect(&url).await.is_err());
    postgres.restart().await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let kept: i32 = sqlx::query_scalar("SELECT n FROM kept").fetch_one(&mut connection).await.unwrap();
    assert_eq!(kept, 7);
}

#[tokio::test]
async fn each_database_is_new() {
    let postgres = Postgres::shared().await;
    let (one, other) = (postgres.database().await, postgres.database().await);
    assert_ne!(one, other);
    for url in [one, other] {
        let mut connection = PgConnection::connect(&url).await.unwrap();
        sqlx::query("CREATE TABLE same (n INT)").execute(&mut connection).await.unwrap();
    }
}

#[tokio::test]
async fn a_killed_redis_comes_back_on_the_same_port() {
    let redis = Redis::start().await;
    let port = redis.url().rsplit_once(':').unwrap().1.parse().unwrap();
    let connect = || tokio::net::TcpStream::connect(("127.0.0.1", port));
    assert!(connect().await.is_ok());
    redis.kill9();
    assert!(connect().await.is_err());
    redis.restart().await;
    assert!(connect().await.is_ok());
}

#[tokio::test]
async fn the_scripted_server_serves_both_eras_on_one_endpoint() {
    let server = McpServer::start().await;
    for era in Era::BOTH {
        let client = McpClient::new(&server.url()).of(era).await;
        let listed = client.ask("a", "tools/list", json!({})).await.unwrap().message();
        assert_eq!(listed["id"], "a");
        assert_eq!(listed["result"]["tools"][0]["name"], "echo");
        let sum = client.call("add", json!({"a": 2, "b": 3})).await.unwrap().result();
        assert_eq!(sum["content"][0]["text"], "5");
    }
    assert_eq!(server.seen_of("tools/call").len(), 2);
}

#[tokio::test]
async fn a_session_ends_with_delete() {
    let server = McpServer::start().await;
    let client = McpClient::new(&server.url()).initialize().await;
    let mut stream = client.get_stream().await.unwrap();
    let note = json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"});
    assert_eq!(server.push(&note).await, 1);
    assert_eq!(stream.message().await.unwrap(), note);
    client.delete().await.unwrap();
    assert_eq!(client.call("echo", json!({})).await.unwrap().status, 404);
}

#[tokio::test]
async fn the_faults_are_as_told() {
    let server = McpServer::start().await;
    let client = McpClient::new(&server.url()).of(Era::Stateless).await;
    let cases: [(&str, Behaviour); 10] = [
        ("sse", Behaviour::EchoSse),
        ("odd", Behaviour::OddSse),
        ("flood", Behaviour::Flood(500)),
        ("twice", Behaviour::Twice),
        ("none", Behaviour::NoAnswer),
        ("reset", Behaviour::ResetMidStream),
        ("truncated", Behaviour::Truncated),
        ("html", Behaviour::WrongContentType),
        ("id", Behaviour::WrongId),
        ("large", Behaviour::Large(3_000_000)),
    ];
    let mut seen = Vec::new();
    for (tool, behaviour) in cases {
        server.on_tool(tool, behaviour);
        let answer = client.call(tool, json!({"x": 1})).await.unwrap();
        seen.push((tool, answer.complete, answer.is_sse(), answer.messages().len()));
    }
    let expected = [
        ("sse", true, true, 1),
        ("odd", true, true, 2),
        ("flood", true, true, 501),
        ("twice", true, true, 2),
        ("none", true, true, 1),
        ("reset", false, true, 1),
        ("truncated", false, false, 0),
        ("html", true, false, 1),
        ("id", true, false, 1),
        ("large", true, false, 1),
    ];
    assert_eq!(seen, expected);
    server.on_tool("hangup", Behaviour::HangUp);
    assert!(client.call("hangup", json!({})).await.is_err());
}

#[tokio::test]
async fn an_odd_stream_says_the_same_as_a_plain_one() {
    let server = McpServer::start().await;
    server.on_tool("odd", Behaviour::OddSse);
    let client = McpClient::new(&server.url()).of(Era::Stateless).await;
    let answer = client.call("odd", json!({"x": 1})).await.unwrap();
    assert_eq!(answer.result()["structuredContent"], json!({"x": 1}));
    let ids: Vec<_> = events(&answer.body).into_iter().map(|event| event.id).collect();
    assert_eq!(ids, [None, Some("1".to_owned()), Some("2".to_owned())]);
}

#[tokio::test]
async fn a_client_that_goes_away_is_noticed() {
    let server = McpServer::start().await;
    server.on_tool("never", Behaviour::Never);
    server.on_tool("silent", Behaviour::SilentStream);
    let client = McpClient::new(&server.url()).of(Era::Stateless).await;
    let stream = client.ask_stream(1, "tools/call", json!({"name": "silent"})).await.unwrap();
    drop(stream);
    until("the stream was abandoned", Duration::from_secs(10), || async { server.abandoned() == 1 }).await;
    let short = tokio::time::timeout(Duration::from_millis(200), client.call("never", json!({}))).await;
    assert!(short.is_err());
    until("the call was abandoned", Duration::from_secs(10), || async { server.abandoned() == 2 }).await;
    until("connections are closed", Duration::from_secs(10), || async { server.open_connections() == 0 })
        .await;
}

#[tokio::test]
async fn the_client_is_asked_in_both_eras() {
    let server = McpServer::start().await;
    server.on_tool(
        "ask",
        Behaviour::Ask { method: "elicitation/create".to_owned(), params: json!({"message": "?"}) },
    );
    let client = McpClient::new(&server.url());

    let session = client.of(Era::Sessions).await;
    let mut stream = session.ask_stream(1, "tools/call", json!({"name": "ask"})).await.unwrap();
    let question = stream.message().await.unwrap();
    assert_eq!(question["method"], "elicitation/create");
    let reply = json!({"jsonrpc": "2.0", "id": question["id"], "result": {"action": "accept"}});
    assert_eq!(session.post(reply.to_string()).await.unwrap().status, 202);
    let answer = stream.message().await.unwrap();
    assert_eq!(answer["result"]["structuredContent"]["result"]["action"], "accept");

    let stateless = client.of(Era::Stateless).await;
    let first = stateless.ask(1, "tools/call", json!({"name": "ask"})).await.unwrap().result();
    assert_eq!(first["resultType"], "input_required");
    let again = json!({"name": "ask", "requestState": first["requestState"],
        "inputResponses": {"asked": {"action": "accept"}}});
    let second = stateless.ask(2, "tools/call", again).await.unwrap().result();
    assert_eq!(second["structuredContent"]["action"], "accept");
}

#[tokio::test]
async fn a_killed_server_comes_back_without_its_sessions() {
    let mut server = McpServer::start().await;
    let client = McpClient::new(&server.url()).initialize().await;
    server.kill();
    until("nothing listens", Duration::from_secs(10), || async { client.get().await.is_err() }).await;
    server.restart().await;
    assert_eq!(client.call("echo", Value::Null).await.unwrap().status, 404);
}

#[tokio::test]
async fn bytes_are_sent_as_they_are() {
    let server = McpServer::start().await;
    let answer =
        McpClient::new(&server.url()).bytes(b"NOT HTTP\r\n\r\n", Duration::from_secs(5)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn both_programs_end_cleanly_when_asked() {
    let mut waffles = Waffles::start().await;
    assert!(waffles.proxies[0].stop().await.success());
    assert!(waffles.control_plane.stop().await.success());
    assert_eq!(waffles.proxies[0].program.rest_of_stdout().await, "");
    assert_eq!(waffles.control_plane.program.rest_of_stdout().await, "");
}
