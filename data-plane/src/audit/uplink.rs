//! The stream up: records in batches, in order, with receipts; what is acknowledged is cut off the spool. It
//! goes on from what the control plane has, so that a record is sent twice rather than never.

mod codec;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use uuid::Uuid;
use waffles_proto::audit::v1 as pb;
use waffles_runtime::drain::Drain;
use waffles_runtime::{task, telemetry};

use super::Trail;
use super::spool::{Cursor, Record, Spool};
use crate::link::{BackOff, Connection, Link, LinkError, MAX_MESSAGE, OPEN_TIME};
use codec::{Codec, RawBatch, RawEvent, RawRequest};

/// A batch, below the contract's limits of 1000 and 1 MiB: larger ones upload no faster, and what they take of memory
/// stays taken. One record alone may be larger.
const BATCH_EVENTS: usize = 1000;
const BATCH_BYTES: usize = 384 << 10;
/// Batches without a receipt.
const IN_FLIGHT: usize = 3;
/// How long records wait for company: long enough to make batches, short enough to follow the trail live.
const LINGER: Duration = Duration::from_millis(100);
/// Without a receipt for so long, the stream is given up.
const RECEIPT_TIME: Duration = Duration::from_secs(30);
const HEALTH_EVERY: Duration = Duration::from_secs(5);
/// How long the last records may take at the end. What is left then is on disk, for the next start.
const FLUSH_TIME: Duration = Duration::from_secs(5);

/// What the task needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The way to the control plane.
    pub link: Link,
    /// Who this proxy is.
    pub proxy_id: Uuid,
}

/// The running task.
#[derive(Debug)]
pub struct Uplink {
    task: JoinHandle<()>,
    status: Arc<Status>,
}

#[derive(Debug, Default)]
struct Status(Mutex<Live>);

#[derive(Debug, Default)]
struct Live {
    connected: bool,
    error: Option<String>,
    batches: u64,
}

impl Uplink {
    /// Resolves when the task has ended: some time after the drain, with the last records sent if the control
    /// plane takes them.
    pub async fn ended(self) {
        if self.task.await.is_err() {
            tracing::debug!("the upload task had panicked");
        }
    }

    /// A closure for the admin port, which outlives this handle.
    pub fn reporter(&self) -> impl Fn() -> serde_json::Value + Send + Sync + 'static {
        let status = Arc::clone(&self.status);
        move || {
            let live = status.0.lock();
            serde_json::json!({ "connected": live.connected, "error": live.error, "batches": live.batches })
        }
    }
}

/// Starts the task. It ends after the drain has ended, when what was recorded until then is stored or
/// five seconds have passed.
pub fn spawn(
    config: Config,
    trail: &Trail,
    health: impl Fn() -> pb::Health + Send + Sync + 'static,
    news: Arc<Notify>,
    drain: Drain,
) -> Uplink {
    let status = Arc::new(Status::default());
    let spool = Arc::clone(trail.spool());
    let sender = Sender { config, spool, health, news, status: Arc::clone(&status), drain };
    Uplink { task: task::spawn("audit-uplink", sender.run()), status }
}

struct Sender<H> {
    config: Config,
    spool: Arc<Spool>,
    health: H,
    /// There is something to say of the proxy's health before its time.
    news: Arc<Notify>,
    status: Arc<Status>,
    drain: Drain,
}

impl<H: Fn() -> pb::Health + Send + Sync> Sender<H> {
    async fn run(self) {
        let mut back_off = BackOff::new();
        let mut news = self.config.link.news();
        loop {
            news.mark_unchanged();
            let error = match self.connect().await {
                Some(Ok(mut stream)) => match stream.run(&mut back_off).await {
                    Ok(()) => return,
                    Err(error) => error,
                },
                Some(Err(error)) => error,
                None => return,
            };
            self.disconnected(&error);
            tokio::select! {
                biased;
                () = self.drain.ended() => return,
                Ok(()) = news.changed() => back_off.reset(),
                () = tokio::time::sleep(back_off.after(&error)) => {}
            }
        }
    }

    /// A stream, or none if the drain ended before there was one.
    async fn connect(&self) -> Option<Result<Stream<'_, H>, LinkError>> {
        tokio::select! {
            biased;
            () = self.drain.ended() => None,
            stream = Stream::open(self) => Some(stream),
        }
    }

    fn disconnected(&self, error: &LinkError) {
        let text = telemetry::chain(error).to_string();
        let mut live = self.status.0.lock();
        if live.error.as_ref() != Some(&text) {
            tracing::warn!(error = text, "audit records are not uploaded, keeping them and trying again");
        }
        live.connected = false;
        live.error = Some(text);
    }
}

/// One stream, from its opening to its end.
struct Stream<'a, H> {
    sender: &'a Sender<H>,
    requests: mpsc::Sender<RawRequest>,
    receipts: Streaming<pb::UploadResponse>,
    synced: watch::Receiver<u64>,
    cursor: Cursor,
    /// The last number of each batch without a receipt.
    flights: VecDeque<u64>,
    /// The last number sent.
    sent: u64,
    /// The last read filled a batch, so that there is probably more.
    backlog: bool,
    /// When the first of `flights` was sent or became the first.
    waiting_since: Instant,
}

impl<'a, H: Fn() -> pb::Health + Send + Sync> Stream<'a, H> {
    async fn open(sender: &'a Sender<H>) -> Result<Self, LinkError> {
        let connection = sender.config.link.connect().await?;
        let (requests, sent) = mpsc::channel(IN_FLIGHT + 2);
        let hello = pb::UploadHello {
            proxy_id: sender.config.proxy_id.to_string(),
            spool_id: sender.spool.id().to_string(),
        };
        send(&requests, RawRequest { hello: Some(hello), ..RawRequest::default() }).await?;
        let receipts = open(&connection, sent).await?;
        *sender.status.0.lock() = Live { connected: true, ..Live::default() };
        let after = sender.spool.acknowledged();
        Ok(Self {
            sender,
            requests,
            receipts,
            synced: sender.spool.synced(),
            cursor: Cursor::after(after),
            flights: VecDeque::new(),
            sent: after,
            backlog: true,
            waiting_since: Instant::now(),
        })
    }

    /// Sends records until the stream fails, or until the last ones are stored after the drain.
    async fn run(&mut self, back_off: &mut BackOff) -> Result<(), LinkError> {
        let mut health = tokio::time::interval(HEALTH_EVERY);
        health.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let drain = self.sender.drain.clone();
        let mut last = None::<Last>;
        loop {
            if last.as_ref().is_some_and(|last| self.sender.spool.acknowledged() >= last.sequence) {
                return Ok(());
            }
            tokio::select! {
                biased;
                receipt = self.receipts.message() => {
                    self.receive(receipt?.ok_or(LinkError::Closed)?);
                    back_off.reset();
                }
                () = drain.ended(), if last.is_none() => {
                    let sequence = self.sender.spool.hurry();
                    last = Some(Last { sequence, until: Instant::now() + FLUSH_TIME });
                }
                () = over(&last) => return Ok(()),
                () = tokio::time::sleep_until(self.waiting_since + RECEIPT_TIME), if !self.flights.is_empty() => {
                    return Err(LinkError::Timeout("the receipt for a batch"));
                }
                () = self.sender.news.notified() => health.reset_immediately(),
                // Under pressure records go first.
                _ = health.tick(), if self.requests.capacity() > 1 => {
                    let health = (self.sender.health)();
                    send(&self.requests, RawRequest { health: Some(health), ..RawRequest::default() }).await?;
                }
                () = records(&mut self.synced, self.sent, self.backlog || last.is_some()),
                    if self.flights.len() < IN_FLIGHT => self.send_batch().await?,
            }
        }
    }

    fn receive(&mut self, receipt: pb::UploadResponse) {
        // Only what was sent can be stored, whatever the receipt says.
        let through = receipt.stored_through.min(self.sent);
        self.sender.spool.acknowledge(through);
        let before = self.flights.len();
        while self.flights.front().is_some_and(|last| *last <= through) {
            self.flights.pop_front();
        }
        if self.flights.len() < before {
            self.waiting_since = Instant::now();
        }
    }

    async fn send_batch(&mut self) -> Result<(), LinkError> {
        let spool = Arc::clone(&self.sender.spool);
        let mut cursor = std::mem::take(&mut self.cursor);
        let read = tokio::task::spawn_blocking(move || {
            let records = spool.read(&mut cursor, BATCH_EVENTS, BATCH_BYTES);
            records.map(|records| (records, cursor))
        });
        let (records, cursor) =
            read.await.unwrap_or_else(|error| Err(std::io::Error::other(error))).map_err(LinkError::Spool)?;
        self.cursor = cursor;
        let Some(last) = records.last().map(|record| record.sequence) else {
            // Everything up to there was lost or is damaged.
            self.backlog = false;
            self.sent = self.sent.max(*self.synced.borrow());
            return Ok(());
        };
        self.backlog = last < *self.synced.borrow();
        let lost = self.sender.spool.lost();
        let events = records.into_iter().map(raw).collect();
        let batch = RawRequest { batch: Some(RawBatch { events, lost }), ..RawRequest::default() };
        send(&self.requests, batch).await?;
        if self.flights.is_empty() {
            self.waiting_since = Instant::now();
        }
        self.flights.push_back(last);
        self.sent = last;
        self.sender.status.0.lock().batches += 1;
        Ok(())
    }
}

/// What has to be stored before the end, and until when that is waited for.
struct Last {
    sequence: u64,
    until: Instant,
}

async fn over(last: &Option<Last>) {
    match last {
        Some(last) => tokio::time::sleep_until(last.until).await,
        None => std::future::pending().await,
    }
}

/// Waits until there are synced records after a number, and then a little for more of them.
async fn records(synced: &mut watch::Receiver<u64>, after: u64, at_once: bool) {
    if synced.wait_for(|synced| *synced > after).await.is_err() {
        // The spool is held by whoever waits here, so that it cannot be closed.
        std::future::pending::<()>().await;
    }
    if !at_once {
        tokio::time::sleep(LINGER).await;
    }
}

fn raw(record: Record) -> RawEvent {
    let hash = record.hash.map(|hash| hash.0.to_vec()).unwrap_or_default();
    RawEvent { sequence: record.sequence, event: record.payload, hash }
}

async fn send(requests: &mpsc::Sender<RawRequest>, request: RawRequest) -> Result<(), LinkError> {
    let sent = requests.send_timeout(request, RECEIPT_TIME).await;
    sent.map_err(|_| LinkError::Timeout("taking a batch"))
}

async fn open(
    connection: &Connection,
    requests: mpsc::Receiver<RawRequest>,
) -> Result<Streaming<pb::UploadResponse>, LinkError> {
    let mut client =
        tonic::client::Grpc::new(connection.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
    let path = PathAndQuery::from_static("/waffles.audit.v1.AuditIngestService/Upload");
    let request = tonic::Request::new(ReceiverStream::new(requests));
    let opening = async {
        let ready = client.ready().await;
        ready.map_err(|source| LinkError::Connect { address: "its gRPC address".into(), source })?;
        Ok(client.streaming(request, path, Codec).await?)
    };
    let response = timeout(OPEN_TIME, opening).await.map_err(|_| LinkError::Timeout("the upload stream"))?;
    response.map(tonic::Response::into_inner)
}

#[cfg(test)]
mod tests;
