use std::collections::BTreeMap;
use std::net::SocketAddr;

use chrono::Utc;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status as GrpcStatus};
use waffles_core::audit::Event;
use waffles_proto::audit::v1::audit_ingest_service_server::{AuditIngestService, AuditIngestServiceServer};
use waffles_proto::audit::v1::upload_request::Message;
use waffles_runtime::drain;

use super::super::spool::Limits;
use super::*;

/// An ingest service that stores exactly once, and breaks off as it is told.
#[derive(Clone, Default)]
struct Ingest(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    /// By spool and sequence: the event's id, and how often it came.
    rows: BTreeMap<(String, u64), (String, u32)>,
    largest: usize,
    health: Vec<pb::Health>,
    lost: u64,
    streams: u64,
    /// Streams end after so many batches, with the last one stored but not acknowledged.
    break_after: Option<u64>,
    /// Nothing is acknowledged.
    mute: bool,
}

#[tonic::async_trait]
impl AuditIngestService for Ingest {
    type UploadStream = ReceiverStream<Result<pb::UploadResponse, GrpcStatus>>;

    async fn upload(
        &self,
        request: Request<Streaming<pb::UploadRequest>>,
    ) -> Result<Response<Self::UploadStream>, GrpcStatus> {
        let mut requests = request.into_inner();
        let (receipts, sent) = mpsc::channel(8);
        let table = Arc::clone(&self.0);
        table.lock().streams += 1;
        task::spawn("ingest", async move {
            let mut spool = String::new();
            let mut batches = 0;
            while let Ok(Some(request)) = requests.message().await {
                match request.message.unwrap() {
                    Message::Hello(hello) => spool = hello.spool_id,
                    Message::Health(health) => table.lock().health.push(health),
                    Message::Batch(batch) => {
                        batches += 1;
                        let (stored_through, broken, mute) = store(&table, &spool, batch, batches);
                        if broken {
                            let _ended = receipts.send(Err(GrpcStatus::unavailable("on purpose"))).await;
                            return;
                        }
                        if !mute && receipts.send(Ok(pb::UploadResponse { stored_through })).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(sent)))
    }
}

fn store(table: &Mutex<Table>, spool: &str, batch: pb::Batch, batches: u64) -> (u64, bool, bool) {
    let mut table = table.lock();
    assert!(batch.events.len() <= 1000);
    table.largest = table.largest.max(prost::Message::encoded_len(&batch));
    table.lost = batch.lost;
    let mut last = 0;
    for event in batch.events {
        assert!(event.sequence > last, "in ascending order");
        last = event.sequence;
        let id = event.event.unwrap().id;
        let row = table.rows.entry((spool.to_owned(), last)).or_insert((id.clone(), 0));
        assert_eq!(row.0, id, "a number names one record for ever");
        row.1 += 1;
    }
    (last, table.break_after.is_some_and(|most| batches >= most), table.mute)
}

impl Ingest {
    async fn serve(&self, addr: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder()
            .add_service(AuditIngestServiceServer::new(self.clone()))
            .serve_with_incoming(incoming);
        (addr, task::spawn("ingest-server", async move { server.await.unwrap() }))
    }

    fn stored(&self) -> Vec<u64> {
        self.0.lock().rows.keys().map(|(_, sequence)| *sequence).collect()
    }
}

struct Proxy {
    dir: TempDir,
    trail: Trail,
    uplink: Uplink,
    trigger: drain::Trigger,
}

impl Proxy {
    fn start(addr: SocketAddr, dir: TempDir) -> Self {
        let trail = Trail::open(&dir.path().join("spool"), Limits::default()).unwrap();
        let (trigger, drain) = drain::channel(Duration::from_secs(1));
        let link = Link::plain(addr, dir.path());
        let health = || pb::Health { revision: 4, ..pb::Health::default() };
        let uplink =
            spawn(Config { link, proxy_id: Uuid::from_u128(1) }, &trail, health, Arc::default(), drain);
        Self { dir, trail, uplink, trigger }
    }

    fn record(&self, count: usize) {
        for _ in 0..count {
            let mut event = Event::new(Uuid::now_v7(), Utc::now());
            event.action = "mcp.tools/call".into();
            self.trail.record(event);
        }
    }

    async fn stop(self) -> TempDir {
        let Self { dir, trail, uplink, trigger } = self;
        trigger.drained().await;
        uplink.ended().await;
        drop(trail);
        dir
    }
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..4000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

fn anywhere() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

#[tokio::test]
async fn records_arrive_soon_and_are_cut_off() {
    let ingest = Ingest::default();
    let (addr, _server) = ingest.serve(anywhere()).await;
    let proxy = Proxy::start(addr, tempfile::tempdir().unwrap());
    eventually("health", || !ingest.0.lock().health.is_empty()).await;
    for n in 1..=3 {
        let start = Instant::now();
        proxy.record(1);
        eventually("stored", || ingest.stored().len() == n).await;
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
    eventually("acknowledged", || proxy.trail.depth() == 0).await;
    assert_eq!(ingest.0.lock().health[0].revision, 4);
    assert!((proxy.uplink.reporter())()["connected"].as_bool().unwrap());
}

#[tokio::test]
async fn a_backlog_goes_up_in_batches_of_the_contract_s_size() {
    let ingest = Ingest::default();
    let (addr, _server) = ingest.serve(anywhere()).await;
    let proxy = Proxy::start(addr, tempfile::tempdir().unwrap());
    proxy.record(5000);
    for _ in 0..5 {
        let mut event = Event::new(Uuid::now_v7(), Utc::now());
        event.request_payload = format!("\"{}\"", "x".repeat(700_000));
        proxy.trail.record(event);
    }
    eventually("acknowledged", || proxy.trail.depth() == 0).await;
    assert_eq!(ingest.stored(), (1..=5005).collect::<Vec<_>>());
    let table = ingest.0.lock();
    assert!(table.largest <= 1 << 20, "{}", table.largest);
    assert!(table.rows.values().all(|(_, times)| *times == 1));
}

#[tokio::test]
async fn a_stream_that_breaks_off_loses_nothing_and_stores_nothing_twice() {
    let ingest = Ingest::default();
    ingest.0.lock().break_after = Some(3);
    let (addr, _server) = ingest.serve(anywhere()).await;
    let proxy = Proxy::start(addr, tempfile::tempdir().unwrap());
    proxy.record(10_000);
    eventually("acknowledged", || proxy.trail.depth() == 0).await;
    assert_eq!(ingest.stored(), (1..=10_000).collect::<Vec<_>>());
    let table = ingest.0.lock();
    assert!(table.streams > 2, "{}", table.streams);
    assert!(table.rows.values().any(|(_, times)| *times > 1), "some came twice, as they must");
}

#[tokio::test]
async fn what_was_recorded_without_a_control_plane_arrives_when_it_returns() {
    let ingest = Ingest::default();
    let (addr, server) = ingest.serve(anywhere()).await;
    let proxy = Proxy::start(addr, tempfile::tempdir().unwrap());
    proxy.record(10);
    eventually("acknowledged", || proxy.trail.depth() == 0).await;
    server.abort();
    assert!(server.await.is_err());
    proxy.record(20);
    let proxy = Proxy::start(addr, proxy.stop().await);
    proxy.record(30);
    let (_, _server) = ingest.serve(addr).await;
    eventually("acknowledged", || proxy.trail.depth() == 0).await;
    assert_eq!(ingest.stored(), (1..=60).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_last_records_are_stored_before_the_end() {
    let ingest = Ingest::default();
    let (addr, _server) = ingest.serve(anywhere()).await;
    let proxy = Proxy::start(addr, tempfile::tempdir().unwrap());
    eventually("connected", || !ingest.0.lock().health.is_empty()).await;
    proxy.record(2500);
    proxy.stop().await;
    assert_eq!(ingest.stored().len(), 2500);
}

#[tokio::test]
async fn a_control_plane_that_acknowledges_nothing_does_not_hold_up_the_end() {
    let ingest = Ingest::default();
    ingest.0.lock().mute = true;
    let (addr, _server) = ingest.serve(anywhere()).await;
    let proxy = Proxy::start(addr, tempfile::tempdir().unwrap());
    proxy.record(8000);
    eventually("batches", || ingest.stored().len() == IN_FLIGHT * BATCH_EVENTS).await;
    tokio::time::sleep(LINGER * 2).await;
    assert_eq!(ingest.stored().len(), IN_FLIGHT * BATCH_EVENTS, "no more without receipts");
    assert_eq!(proxy.trail.depth(), 8000);
    let start = Instant::now();
    proxy.stop().await;
    assert!(start.elapsed() < FLUSH_TIME * 2);
}
