//! The two streams that a proxy holds: its configuration down, its audit records and health up.

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;
use waffles_core::snapshot::ResourceKey;
use waffles_core::wire;
use waffles_proto::audit::v1 as audit_pb;
use waffles_proto::audit::v1::audit_ingest_service_server::AuditIngestService;
use waffles_proto::discovery::v1 as pb;
use waffles_proto::discovery::v1::stream_request::Message;
use waffles_runtime::drain::Drain;
use waffles_runtime::{task, telemetry};

use super::{Parts, peer};
use crate::audit::Audit;
use crate::authz::ProxyPeer;
use crate::discovery::{Chunk, Discovery, Held, Offer, Place, Update};
use crate::enrolment::{Enrolment, Unwelcome};
use crate::error::Error;
use crate::health::{Feed, Ward};
use crate::limits::Limits;
use crate::proxies::{Connected, Proxies};

/// A stream begins with its hello, and an update is answered, within this time.
const HELLO_TIME: Duration = Duration::from_secs(10);
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// A proxy that reads a whole state, however large, more slowly than this is cut off: it holds up those in line behind it.
const DELIVERY_TIME: Duration = Duration::from_secs(60);
/// Another replica may be a moment behind the one that a proxy comes from; only then is it ahead.
const AHEAD_TIME: Duration = Duration::from_secs(6);
/// Messages that wait for the connection, one megabyte at the most; a proxy that is slower is waited for, and cut off after
/// a time. What changes meanwhile does not gather: it is in the next update.
const WAITING: usize = 2;
const MOST_REFUSED: usize = 1000;
/// The pause before a batch is tried again while the database is away.
const RETRY: Duration = Duration::from_millis(250);
const RETRY_MOST: Duration = Duration::from_secs(5);

/// `DiscoveryService`.
pub(super) struct Configuration {
    discovery: Discovery,
    proxies: Proxies,
    enrolment: Enrolment,
    health: Ward,
    drain: Drain,
}

impl Configuration {
    pub(super) fn new(parts: &Parts) -> Self {
        let (proxies, enrolment) = (parts.services.proxies.clone(), parts.services.enrolment.clone());
        let (discovery, health) = (parts.discovery.clone(), parts.services.health.clone());
        Self { discovery, proxies, enrolment, health, drain: parts.drain.clone() }
    }
}

impl Configuration {
    /// The proxy says what it holds; it is sent what differs, now and whenever something changes.
    pub(super) fn stream(
        &self,
        request: Request<Streaming<pb::StreamRequest>>,
    ) -> Result<Response<ReceiverStream<Result<Chunk, Status>>>, Status> {
        let peer = peer(&request)?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let (discovery, proxies, drain) = (self.discovery.clone(), self.proxies.clone(), self.drain.clone());
        let (enrolment, health) = (self.enrolment.clone(), self.health.clone());
        let mut inbound = request.into_inner();
        task::spawn("discovery-stream", async move {
            let serve = async {
                let hello = hello(&mut inbound, &peer).await?;
                let (connected, checks) = (proxies.connect(&peer, &hello), health.connect(&peer, &hello));
                let (peer, enrolment) = (peer.clone(), enrolment.clone());
                let place = discovery.join(peer.group());
                let stream = Stream {
                    peer,
                    inbound,
                    sender: sender.clone(),
                    discovery,
                    place,
                    enrolment,
                    connected,
                    checks,
                };
                stream.run(hello).await
            };
            tokio::select! {
                biased;
                () = drain.started() => {}
                () = sender.closed() => {}
                why = enrolment.unwelcome(&peer) => {
                    tracing::info!(proxy.id = %peer.id(), reason = %why, "a proxy's configuration stream is cut");
                    say(&sender, farewell(why)).await;
                }
                ended = serve => if let Err(status) = ended {
                    tracing::info!(proxy.id = %peer.id(), reason = status.message(), "a configuration stream is ended");
                    say(&sender, status).await;
                },
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// What the proxy says of itself must be what its certificate says.
async fn hello(inbound: &mut Streaming<pb::StreamRequest>, peer: &ProxyPeer) -> Result<pb::Hello, Status> {
    let first = tokio::time::timeout(HELLO_TIME, inbound.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no hello came"))??;
    let Some(pb::StreamRequest { message: Some(Message::Hello(hello)) }) = first else {
        return Err(Status::invalid_argument("the first message must be a hello"));
    };
    is_own_id(&hello.proxy_id, peer)?;
    if hello.group != peer.group() {
        return Err(Status::permission_denied("hello.group: is not the group of the certificate"));
    }
    Ok(hello)
}

fn is_own_id(claimed: &str, peer: &ProxyPeer) -> Result<(), Status> {
    let id: Uuid = claimed.parse().map_err(|_| Status::invalid_argument("hello.proxy_id: is not a UUID"))?;
    if id == peer.id() {
        Ok(())
    } else {
        Err(Status::permission_denied("hello.proxy_id: is not the proxy of the certificate"))
    }
}

/// One configuration stream.
struct Stream {
    peer: ProxyPeer,
    inbound: Streaming<pb::StreamRequest>,
    sender: mpsc::Sender<Result<Chunk, Status>>,
    discovery: Discovery,
    place: Place,
    enrolment: Enrolment,
    connected: Connected,
    checks: Feed,
}

impl Stream {
    /// Sends what the proxy lacks, one update at a time, until it hangs up. What changes while an update is
    /// under way is in the next one.
    async fn run(mut self, hello: pb::Hello) -> Result<(), Status> {
        let mut held = Held { lineage: hello.lineage, revision: hello.revision };
        let mut again: Vec<ResourceKey> =
            hello.refused.iter().take(MOST_REFUSED).filter_map(wire::resource_key).collect();
        let mut published = self.discovery.subscribe();
        let (mut ahead_since, mut told) = (None, false);
        let mut count: u64 = 0;
        tracing::info!(
            proxy.id = %self.peer.id(), proxy.name = hello.name, proxy.group = hello.group, revision = held.revision,
            "a proxy is connected"
        );
        loop {
            published.borrow_and_update();
            let (mut offer, look_again) = self.place.offer(&held, &again);
            let discovery = self.discovery.clone();
            // A whole state is read again when it is this proxy's turn.
            let mut turn = None;
            if matches!(&offer, Offer::Update(update) if update.full) {
                turn = discovery.turn().await;
                offer = self.place.offer(&held, &again).0;
            }
            match offer {
                Offer::Update(update) => {
                    count += 1;
                    self.deliver(&update, &format!("{}-{count}", update.revision)).await?;
                    drop(turn);
                    held = Held { lineage: update.lineage, revision: update.revision };
                    again.clear();
                    (ahead_since, told) = (None, false);
                    continue;
                }
                Offer::Ahead { ours } => {
                    let since = *ahead_since.get_or_insert_with(tokio::time::Instant::now);
                    self.discovery.poke();
                    if !told && since.elapsed() >= AHEAD_TIME {
                        self.connected.is_ahead(held.revision, ours);
                        told = true;
                    }
                }
                Offer::Nothing => {
                    if let Some(update) = self.checks.due(&held) {
                        count += 1;
                        self.deliver(&update, &format!("{}-{count}", update.revision)).await?;
                        continue;
                    }
                }
                Offer::NotReady => {}
            }
            tokio::select! {
                changed = published.changed() => if changed.is_err() {
                    return Err(Status::unavailable("the control plane is ending"));
                },
                () = self.checks.changed() => {}
                () = tokio::time::sleep(AHEAD_TIME), if ahead_since.is_some() && !told => {}
                // The proxy that tries changes first takes too long.
                () = at(look_again) => {}
                message = self.inbound.message() => match message? {
                    None => return Ok(()),
                    Some(pb::StreamRequest { message: Some(Message::Hello(_)) }) => {
                        return Err(Status::invalid_argument("a second hello"));
                    }
                    Some(_) => tracing::debug!(proxy.id = %self.peer.id(), "an answer to no update"),
                },
            }
        }
    }

    async fn deliver(&mut self, update: &Update, nonce: &str) -> Result<(), Status> {
        let end = tokio::time::Instant::now() + DELIVERY_TIME;
        for mut chunk in update.chunks(nonce) {
            if chunk.last {
                chunk.authorities = self.enrolment.believed();
            }
            let soon = end.min(tokio::time::Instant::now() + ANSWER_TIME);
            match tokio::time::timeout_at(soon, self.sender.send(Ok(chunk))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Status::cancelled("the proxy hung up")),
                Err(_) => return Err(Status::deadline_exceeded("the update was not read in time")),
            }
        }
        let answer = async {
            loop {
                let Some(request) = self.inbound.message().await? else {
                    return Err(Status::cancelled("the proxy hung up"));
                };
                match request.message {
                    Some(Message::Ack(ack)) if ack.nonce == nonce => return Ok(Vec::new()),
                    Some(Message::Nack(nack)) if nack.nonce == nonce => return Ok(nack.rejections),
                    Some(Message::Hello(_)) => return Err(Status::invalid_argument("a second hello")),
                    _ => tracing::debug!("an answer to another update"),
                }
            }
        };
        let rejections = tokio::time::timeout(ANSWER_TIME, answer)
            .await
            .map_err(|_| Status::deadline_exceeded("the update was not answered in time"))??;
        self.connected.answered(update, &rejections);
        self.place.answered(update, &rejections);
        Ok(())
    }
}

async fn at(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// `AuditIngestService`.
pub(super) struct Uploads {
    audit: Audit,
    proxies: Proxies,
    limits: Limits,
    enrolment: Enrolment,
    health: Ward,
    drain: Drain,
}

impl Uploads {
    pub(super) fn new(parts: &Parts) -> Self {
        let services = &parts.services;
        let (audit, proxies) = (services.audit.clone(), services.proxies.clone());
        let (enrolment, health, limits) =
            (services.enrolment.clone(), services.health.clone(), services.limits.clone());
        Self { audit, proxies, enrolment, health, limits, drain: parts.drain.clone() }
    }
}

#[tonic::async_trait]
impl AuditIngestService for Uploads {
    type UploadStream = ReceiverStream<Result<audit_pb::UploadResponse, Status>>;

    async fn upload(
        &self,
        request: Request<Streaming<audit_pb::UploadRequest>>,
    ) -> Result<Response<Self::UploadStream>, Status> {
        let peer = peer(&request)?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let (audit, proxies, drain) = (self.audit.clone(), self.proxies.clone(), self.drain.clone());
        let (enrolment, health) = (self.enrolment.clone(), self.health.clone());
        let limits = self.limits.clone();
        let mut inbound = request.into_inner();
        task::spawn("audit-upload", async move {
            let upload =
                Upload { peer: peer.clone(), audit, proxies, health, limits, sender: sender.clone() };
            // A batch under way is finished before the stream ends: its receipt spares a second upload.
            let ended = tokio::select! {
                () = sender.closed() => return,
                why = enrolment.unwelcome(&peer) => Err(farewell(why)),
                ended = upload.run(&mut inbound, &drain) => ended,
            };
            if let Err(status) = ended {
                say(&sender, status).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// One upload stream.
struct Upload {
    peer: ProxyPeer,
    audit: Audit,
    proxies: Proxies,
    limits: Limits,
    health: Ward,
    sender: mpsc::Sender<Result<audit_pb::UploadResponse, Status>>,
}

impl Upload {
    async fn run(
        &self,
        inbound: &mut Streaming<audit_pb::UploadRequest>,
        drain: &Drain,
    ) -> Result<(), Status> {
        use audit_pb::upload_request::Message;
        let first = tokio::time::timeout(HELLO_TIME, inbound.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let Some(audit_pb::UploadRequest { message: Some(Message::Hello(hello)) }) = first else {
            return Err(Status::invalid_argument("the first message must be a hello"));
        };
        is_own_id(&hello.proxy_id, &self.peer)?;
        let spool: Uuid =
            hello.spool_id.parse().map_err(|_| Status::invalid_argument("hello.spool_id: is not a UUID"))?;
        let stored = self.patiently(drain, || self.audit.stored_through(&self.peer, spool)).await?;
        self.receipt(stored).await?;
        loop {
            let request = tokio::select! {
                biased;
                () = drain.started() => return Ok(()),
                request = inbound.message() => request?,
            };
            let Some(request) = request else { return Ok(()) };
            match request.message {
                Some(Message::Batch(batch)) => {
                    let store = || self.audit.ingest(&self.peer, spool, batch.clone());
                    let stored = self.patiently(drain, store).await?;
                    self.receipt(stored).await?;
                }
                Some(Message::Health(health)) => {
                    self.proxies.health(&self.peer, &health);
                    self.limits.hear(&self.peer, &health.limits).await;
                    if let Some(report) = &health.health {
                        self.health.hear(&self.peer, report);
                    }
                }
                Some(Message::Hello(_)) => return Err(Status::invalid_argument("a second hello")),
                // A message of a later version.
                None => {}
            }
        }
    }

    /// Tries until the database is back. The proxy keeps its records meanwhile and sends no more than fit on
    /// the way.
    async fn patiently<T, F>(&self, drain: &Drain, mut attempt: impl FnMut() -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut pause = RETRY;
        loop {
            match attempt().await {
                Err(error @ Error::Unavailable { .. }) => {
                    tracing::debug!(error = %telemetry::chain(&error), "audit records wait for the database");
                }
                result => return result.map_err(Status::from),
            }
            tokio::select! {
                () = drain.started() => return Err(Status::unavailable("the control plane is ending")),
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_MOST),
            }
        }
    }

    async fn receipt(&self, stored_through: u64) -> Result<(), Status> {
        match tokio::time::timeout(
            ANSWER_TIME,
            self.sender.send(Ok(audit_pb::UploadResponse { stored_through })),
        )
        .await
        {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the proxy hung up")),
            Err(_) => Err(Status::deadline_exceeded("the receipt was not read in time")),
        }
    }
}

/// A proxy tells by the code whether another certificate would help.
fn farewell(why: Unwelcome) -> Status {
    match why {
        Unwelcome::Denied => Status::permission_denied(why.to_string()),
        Unwelcome::Ended => Status::unauthenticated(why.to_string()),
    }
}

async fn say<T>(sender: &mpsc::Sender<Result<T, Status>>, end: Status) {
    // A proxy that takes not even this is gone.
    if tokio::time::timeout(HELLO_TIME, sender.send(Err(end))).await.is_err() {
        tracing::debug!("the end of a stream was not read");
    }
}
