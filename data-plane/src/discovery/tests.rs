use std::net::SocketAddr;

use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status as GrpcStatus};
use waffles_core::snapshot::Snapshot;
use waffles_proto::discovery::v1::discovery_service_server::{DiscoveryService, DiscoveryServiceServer};
use waffles_proto::discovery::v1::stream_request::Message;
use waffles_runtime::admin::Gates;
use waffles_runtime::drain;

use super::*;
use crate::state::tests::{server, settings};

/// A control plane that a test plays by hand.
struct Plane {
    addr: SocketAddr,
    streams: mpsc::Receiver<Session>,
    server: JoinHandle,
}

type JoinHandle = tokio::task::JoinHandle<()>;

/// One stream of the proxy.
struct Session {
    requests: Streaming<pb::StreamRequest>,
    responses: mpsc::Sender<Result<pb::StreamResponse, GrpcStatus>>,
}

struct Script(mpsc::Sender<Session>);

#[tonic::async_trait]
impl DiscoveryService for Script {
    type StreamStream = ReceiverStream<Result<pb::StreamResponse, GrpcStatus>>;

    async fn stream(
        &self,
        request: Request<Streaming<pb::StreamRequest>>,
    ) -> Result<Response<Self::StreamStream>, GrpcStatus> {
        let (responses, sent) = mpsc::channel(8);
        let session = Session { requests: request.into_inner(), responses };
        self.0.send(session).await.map_err(|_| GrpcStatus::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(sent)))
    }
}

impl Plane {
    async fn start(addr: SocketAddr) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (sessions, streams) = mpsc::channel(8);
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder()
            .add_service(DiscoveryServiceServer::new(Script(sessions)))
            .serve_with_incoming(incoming);
        let server = task::spawn("plane", async move { server.await.unwrap() });
        Self { addr, streams, server }
    }

    async fn session(&mut self) -> Session {
        within(self.streams.recv()).await.unwrap()
    }

    async fn kill(self) {
        self.server.abort();
        assert!(self.server.await.is_err());
    }
}

impl Session {
    async fn next(&mut self) -> Message {
        within(self.requests.message()).await.unwrap().unwrap().message.unwrap()
    }

    async fn hello(&mut self) -> pb::Hello {
        match self.next().await {
            Message::Hello(hello) => hello,
            other => panic!("not a hello: {other:?}"),
        }
    }

    async fn send(&self, response: pb::StreamResponse) {
        self.responses.send(Ok(response)).await.unwrap();
    }
}

fn update(revision: u64, full: bool, resources: Vec<pb::Resource>) -> pb::StreamResponse {
    pb::StreamResponse {
        lineage: "l".into(),
        revision,
        nonce: format!("n{revision}"),
        full,
        resources,
        removed: vec![],
        last: true,
        authorities: vec![],
        orders: vec![],
    }
}

fn ack(revision: u64) -> Message {
    Message::Ack(pb::Ack { nonce: format!("n{revision}"), revision })
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.expect("in time")
}

struct Proxy {
    dir: TempDir,
    current: Arc<Current>,
    gates: Gates,
    status: Arc<Status>,
    trigger: drain::Trigger,
}

impl Proxy {
    fn start(addr: SocketAddr, dir: TempDir) -> Self {
        let disk = Disk::open(dir.path()).unwrap();
        let current = Arc::new(Current::new(disk.load().unwrap_or_default()));
        let gates = Gates::new();
        let (trigger, drain) = drain::channel(Duration::from_secs(1));
        let config = Config {
            link: Link::plain(addr, dir.path()),
            proxy_id: Uuid::from_u128(1),
            name: "proxy-1".into(),
            line: Arc::default(),
            version: "0.1".into(),
            monitor: Arc::new(Monitor::new(
                Arc::clone(&current),
                crate::metrics::Metrics::new(&waffles_runtime::telemetry::Metrics::new()),
            )),
        };
        let status = spawn(config, Arc::clone(&current), disk, gates.gate("snapshot"), drain);
        Self { dir, current, gates, status, trigger }
    }

    async fn saved(&self, revision: u64) {
        within(async {
            while self.status.report()["saved_revision"] != revision {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    async fn stop(self) -> TempDir {
        self.trigger.drained().await;
        self.dir
    }
}

fn servers(snapshot: &Snapshot) -> Vec<String> {
    let mut names: Vec<_> = snapshot.servers().map(|entry| entry.server.spec.name.clone()).collect();
    names.sort();
    names
}

async fn anywhere() -> Plane {
    Plane::start(([127, 0, 0, 1], 0).into()).await
}

fn bad_server(n: u128) -> pb::Resource {
    let mut resource = server(n);
    if let Some(pb::resource::Kind::Server(message)) = &mut resource.kind {
        message.spec.as_mut().unwrap().endpoints.clear();
    }
    resource
}

#[tokio::test]
async fn a_proxy_is_ready_with_its_first_configuration_and_follows_it() {
    let mut plane = anywhere().await;
    let proxy = Proxy::start(plane.addr, tempfile::tempdir().unwrap());
    let mut session = plane.session().await;
    let hello = session.hello().await;
    assert_eq!((hello.name.as_str(), hello.lineage.as_str(), hello.revision), ("proxy-1", "", 0));
    assert_eq!(hello.group, "default");
    assert!(!proxy.gates.is_ready());

    // In chunks: nothing of an update counts before its end.
    session.send(pb::StreamResponse { last: false, ..update(4, true, vec![server(1), settings()]) }).await;
    session.send(pb::StreamResponse { last: false, ..update(4, true, vec![server(2)]) }).await;
    assert_eq!(proxy.current.load().revision, 0);
    session.send(update(4, true, vec![server(3)])).await;
    assert_eq!(session.next().await, ack(4));
    assert!(proxy.gates.is_ready());
    assert_eq!(servers(&proxy.current.load()), ["server-1", "server-2", "server-3"]);

    let mut changed = update(5, false, vec![server(4)]);
    changed.removed = vec![wire::reference(&wire::key_of(&server(2)).unwrap())];
    session.send(changed).await;
    assert_eq!(session.next().await, ack(5));
    assert_eq!(servers(&proxy.current.load()), ["server-1", "server-3", "server-4"]);
    assert!(proxy.status.is_connected());
    assert_eq!(proxy.status.age(), Some(Duration::ZERO));
}

#[tokio::test]
async fn a_refused_resource_is_named_and_asked_for_again() {
    let mut plane = anywhere().await;
    let proxy = Proxy::start(plane.addr, tempfile::tempdir().unwrap());
    let mut session = plane.session().await;
    session.hello().await;
    session.send(update(1, true, vec![settings(), server(1)])).await;
    assert_eq!(session.next().await, ack(1));
    session.send(update(2, false, vec![bad_server(1), server(2)])).await;
    let Message::Nack(nack) = session.next().await else { panic!("not refused") };
    assert_eq!((nack.nonce.as_str(), nack.revision), ("n2", 2));
    let named = nack.rejections[0].resource.clone().unwrap();
    assert_eq!(Some(named.clone()), wire::key_of(&server(1)).map(|key| wire::reference(&key)));
    assert!(nack.rejections[0].reason.contains("endpoints"), "{nack:?}");
    assert_eq!(servers(&proxy.current.load()), ["server-1", "server-2"], "the last good form is kept");
    assert_eq!(proxy.status.report()["refused"], serde_json::json!([format!("server/{}", named.id)]));

    drop(session);
    let hello = plane.session().await.hello().await;
    assert_eq!((hello.lineage.as_str(), hello.revision, hello.refused), ("l", 2, vec![named]));
}

#[tokio::test]
async fn a_proxy_serves_on_without_its_control_plane_and_after_a_restart() {
    let mut plane = anywhere().await;
    let proxy = Proxy::start(plane.addr, tempfile::tempdir().unwrap());
    let mut session = plane.session().await;
    session.hello().await;
    session.send(update(3, true, vec![settings(), server(1)])).await;
    assert_eq!(session.next().await, ack(3));
    proxy.saved(3).await;
    let addr = plane.addr;
    drop(session);
    plane.kill().await;
    within(async {
        while proxy.status.is_connected() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(proxy.gates.is_ready());
    assert_eq!(servers(&proxy.current.load()), ["server-1"]);

    let proxy = Proxy::start(addr, proxy.stop().await);
    assert!(proxy.gates.is_ready(), "at once, from the disk");
    assert_eq!(proxy.status.age(), None);

    let mut plane = Plane::start(addr).await;
    let mut session = plane.session().await;
    let hello = session.hello().await;
    assert_eq!((hello.lineage.as_str(), hello.revision), ("l", 3));
    session.send(update(4, false, vec![server(2)])).await;
    assert_eq!(session.next().await, ack(4));
    assert_eq!(servers(&proxy.current.load()), ["server-1", "server-2"]);
}

#[tokio::test]
async fn an_older_or_impossible_configuration_is_refused_as_a_whole() {
    let mut plane = anywhere().await;
    let proxy = Proxy::start(plane.addr, tempfile::tempdir().unwrap());
    let mut session = plane.session().await;
    session.hello().await;
    session.send(update(7, true, vec![settings(), server(1)])).await;
    assert_eq!(session.next().await, ack(7));
    let mut without_settings = update(8, false, vec![]);
    without_settings.removed = vec![wire::reference(&wire::key_of(&settings()).unwrap())];
    let cases = [
        update(6, true, vec![settings()]),
        update(6, false, vec![server(2)]),
        update(8, true, vec![]),
        pb::StreamResponse { lineage: String::new(), ..update(8, true, vec![settings()]) },
        without_settings,
    ];
    for case in cases {
        let nonce = case.nonce.clone();
        session.send(case).await;
        let Message::Nack(nack) = session.next().await else { panic!("not refused") };
        assert_eq!((nack.nonce, nack.revision), (nonce, 7));
        assert_eq!(nack.rejections.len(), 1);
        assert_eq!(proxy.current.load().revision, 7);
        assert_eq!(servers(&proxy.current.load()), ["server-1"]);
    }
    // The same revision again is no step back, and another database counts anew.
    session.send(update(7, false, vec![server(2)])).await;
    assert_eq!(session.next().await, ack(7));
    session.send(pb::StreamResponse { lineage: "other".into(), ..update(2, true, vec![settings()]) }).await;
    assert_eq!(session.next().await, ack(2));
    assert_eq!(servers(&proxy.current.load()), [""; 0]);
}

#[tokio::test]
async fn differences_to_what_is_not_held_make_the_proxy_ask_for_everything() {
    let mut plane = anywhere().await;
    let proxy = Proxy::start(plane.addr, tempfile::tempdir().unwrap());
    let mut session = plane.session().await;
    session.hello().await;
    session.send(update(7, true, vec![settings(), server(1)])).await;
    assert_eq!(session.next().await, ack(7));
    session.send(pb::StreamResponse { lineage: "other".into(), ..update(9, false, vec![server(2)]) }).await;
    let mut session = plane.session().await;
    let hello = session.hello().await;
    assert_eq!((hello.lineage.as_str(), hello.revision), ("", 0));
    assert_eq!(servers(&proxy.current.load()), ["server-1"]);
    session.send(update(8, true, vec![settings(), server(3)])).await;
    assert_eq!(session.next().await, ack(8));
    drop(session);
    assert_eq!(plane.session().await.hello().await.revision, 8);
}

#[tokio::test]
async fn mixed_chunks_end_the_stream_and_change_nothing() {
    let mut plane = anywhere().await;
    let proxy = Proxy::start(plane.addr, tempfile::tempdir().unwrap());
    let mut session = plane.session().await;
    session.hello().await;
    session.send(pb::StreamResponse { last: false, ..update(4, true, vec![settings()]) }).await;
    session.send(update(5, true, vec![settings()])).await;
    assert_eq!(plane.session().await.hello().await.revision, 0);
    assert!(!proxy.gates.is_ready());
    assert!(proxy.status.report()["attempts"].as_u64().unwrap() >= 2);
}

#[tokio::test]
async fn the_newest_of_many_changes_ends_on_disk() {
    let mut plane = anywhere().await;
    let proxy = Proxy::start(plane.addr, tempfile::tempdir().unwrap());
    let mut session = plane.session().await;
    session.hello().await;
    session.send(update(1, true, vec![settings()])).await;
    assert_eq!(session.next().await, ack(1));
    for revision in 2..=40 {
        session.send(update(revision, false, vec![server(u128::from(revision))])).await;
        assert_eq!(session.next().await, ack(revision));
    }
    proxy.saved(40).await;
    let dir = proxy.stop().await;
    let found = Disk::open(dir.path()).unwrap().load().unwrap();
    assert_eq!((found.revision, found.servers().count()), (40, 39));
}
