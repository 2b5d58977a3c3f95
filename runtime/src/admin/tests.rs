use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::drain;

struct World {
    addr: SocketAddr,
    gates: Gates,
    trigger: drain::Trigger,
    drain: Drain,
    served: tokio::task::JoinHandle<io::Result<()>>,
}

fn world() -> World {
    let gates = Gates::new();
    let admin = Admin::new(gates.clone(), Metrics::new(), Tasks::new())
        .config(json!({ "name": "test" }))
        .detail(|| json!({ "revision": 7 }))
        .route("/snapshot", || json!({ "servers": 2 }))
        .route("/broken", || panic!("on purpose"));
    let bound = admin.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = bound.local_addr();
    let (trigger, drain) = drain::channel(Duration::from_secs(5));
    let served = task::spawn("admin", bound.serve(drain.clone()));
    World { addr, gates, trigger, drain, served }
}

impl World {
    async fn send(&self, head: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        stream.write_all(format!("{head}\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: {}", self.addr)).await
    }

    async fn json(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.get(path).await;
        (status, serde_json::from_str(&body).unwrap())
    }
}

#[tokio::test]
async fn ready_names_what_is_missing() {
    let world = world();
    let (snapshot, database) = (world.gates.gate("snapshot"), world.gates.gate("database"));
    let ready = |missing: &[&str]| json!({ "ready": missing.is_empty(), "missing": missing, "detail": { "revision": 7 } });
    assert_eq!(world.json("/ready").await, (503, ready(&["snapshot", "database"])));
    snapshot.open();
    assert_eq!(world.json("/ready").await, (503, ready(&["database"])));
    database.open();
    assert_eq!(world.json("/ready").await, (200, ready(&[])));
    world.gates.ready().await;
    snapshot.close();
    assert_eq!(world.json("/ready").await, (503, ready(&["snapshot"])));
    assert_eq!(world.json("/live").await.0, 200);
}

#[tokio::test]
async fn every_page_answers() {
    let world = world();
    assert_eq!(world.json("/config").await, (200, json!({ "name": "test" })));
    assert_eq!(world.json("/tasks").await, (200, json!([])));
    assert_eq!(world.json("/snapshot").await, (200, json!({ "servers": 2 })));
    assert_eq!(world.json("/nothing").await.0, 404);
    let (status, text) = world.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn a_page_that_panics_is_an_error_and_the_port_lives() {
    let world = world();
    assert_eq!(world.json("/broken").await.0, 500);
    assert_eq!(world.json("/live").await.0, 200);
}

#[tokio::test]
async fn other_methods_hosts_and_origins_are_refused() {
    let world = world();
    for (status, head) in [
        (405, "POST /live HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0"),
        (403, "GET /live HTTP/1.1\r\nhost: evil.test"),
        (403, "GET /live HTTP/1.1\r\nx: y"),
        (403, "GET /live HTTP/1.1\r\nhost: localhost\r\nhost: evil.test"),
        (403, "GET http://evil.test/live HTTP/1.1\r\nhost: localhost"),
        (403, "GET /live HTTP/1.1\r\nhost: localhost\r\norigin: http://localhost"),
        (403, "GET /metrics HTTP/1.1\r\nhost: localhost\r\norigin: null"),
        (200, "GET /live HTTP/1.1\r\nhost: localhost:1"),
    ] {
        assert_eq!(world.send(head).await.0, status, "{head}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_never_finishes_its_request_is_cut_off() {
    let world = world();
    let before = tokio::time::Instant::now();
    let mut stream = TcpStream::connect(world.addr).await.unwrap();
    stream.write_all(b"GET /live HTTP/1.1\r\nhost: loc").await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(before.elapsed() <= HEADER_TIME * 2, "{:?}", before.elapsed());
}

#[tokio::test]
async fn huge_heads_are_refused() {
    let world = world();
    let many: String = (0..100).map(|n| format!("x{n}: y\r\n")).collect();
    let head = format!("GET /live HTTP/1.1\r\nhost: localhost\r\n{many}z: z");
    assert_eq!(world.send(&head).await.0, 431);
}

#[tokio::test]
async fn the_port_stays_up_until_the_drain_has_ended() {
    let world = world();
    let hold = world.drain.hold();
    world.gates.drain();
    world.trigger.start();
    let (status, body) = world.json("/ready").await;
    assert_eq!((status, &body["missing"]), (503, &json!(["draining"])));
    drop(hold);
    assert_eq!(world.trigger.drained().await, drain::Outcome::Clean);
    world.served.await.unwrap().unwrap();
}
