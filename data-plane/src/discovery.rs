//! The task that follows the control plane's configuration: it takes in what is sound, refuses the rest by
//! name, keeps what was good, and answers either way. There is no timer that takes configuration away.

mod apply;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use uuid::Uuid;
use waffles_core::wire;
use waffles_proto::discovery::v1 as pb;
use waffles_proto::discovery::v1::discovery_service_client::DiscoveryServiceClient;
use waffles_runtime::admin::Gate;
use waffles_runtime::drain::Drain;
use waffles_runtime::{task, telemetry};

use crate::health::Monitor;
use crate::keys::Line;
use crate::link::{BackOff, Connection, Link, LinkError, MAX_MESSAGE, OPEN_TIME};
use crate::state::{Current, Disk};
use apply::{Collector, Verdict};

/// Answers that may wait to be sent. One update is answered before the next is read, so one would do.
const ANSWERS: usize = 8;
/// How long the rest of an update may take to come.
const CHUNK_TIME: Duration = Duration::from_secs(60);
/// A stream that lived so long was a good one, though nothing changed meanwhile.
const GOOD_TIME: Duration = Duration::from_secs(20);
/// More refused resources than this are asked for by asking for everything; the control plane reads no more of them.
const MAX_REFUSED: usize = 1000;
/// Between two attempts to write the snapshot to disk.
const SAVE_RETRY: Duration = Duration::from_secs(5);
/// Keys that were found within this time are written together.
const FOUND_GATHER: Duration = Duration::from_secs(1);

/// What the task needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The way to the control plane.
    pub link: Link,
    /// Who this proxy is.
    pub proxy_id: Uuid,
    /// Its name, for people.
    pub name: String,
    /// The program's version.
    pub version: String,
    /// Where keys are asked for while the stream is open.
    pub line: Arc<Line>,
    /// Takes what is said of checks.
    pub monitor: Arc<Monitor>,
}

/// How the stream is, for metrics and the admin port.
#[derive(Debug)]
pub struct Status {
    current: Arc<Current>,
    live: Mutex<Live>,
}

#[derive(Debug, Default)]
struct Live {
    connected: bool,
    contact: Option<Instant>,
    attempts: u64,
    error: Option<String>,
    refused: Vec<String>,
    saved: u64,
    save_error: Option<String>,
}

impl Status {
    fn new(current: Arc<Current>) -> Self {
        Self { current, live: Mutex::default() }
    }

    /// Whether the stream is open.
    pub fn is_connected(&self) -> bool {
        self.live.lock().connected
    }

    /// The revision in force.
    pub fn revision(&self) -> u64 {
        self.current.load().revision
    }

    /// How long the control plane may have had news for us: zero while the stream is open, none if it never was
    /// since the start.
    pub fn age(&self) -> Option<Duration> {
        let live = self.live.lock();
        if live.connected { Some(Duration::ZERO) } else { live.contact.map(|contact| contact.elapsed()) }
    }

    /// For the admin port.
    pub fn report(&self) -> serde_json::Value {
        let snapshot = self.current.load();
        let age = self.age();
        let live = self.live.lock();
        serde_json::json!({
            "connected": live.connected,
            "age_seconds": age.map(|age| age.as_secs()),
            "lineage": snapshot.lineage,
            "revision": snapshot.revision,
            "saved_revision": live.saved,
            "holds": snapshot.counts().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            "refused": live.refused,
            "attempts": live.attempts,
            "error": live.error,
            "save_error": live.save_error,
        })
    }

    fn connected(&self) {
        let mut live = self.live.lock();
        live.connected = true;
        live.contact = Some(Instant::now());
        live.error = None;
    }

    fn saved(&self, revision: u64, error: Option<String>) {
        let mut live = self.live.lock();
        match &error {
            None => live.saved = revision,
            Some(text) if live.save_error != error => {
                tracing::error!(
                    error = text,
                    "cannot write the configuration to disk, a restart would lose it"
                );
            }
            Some(_) => {}
        }
        live.save_error = error;
    }

    fn disconnected(&self, error: &LinkError) {
        let text = telemetry::chain(error).to_string();
        let mut live = self.live.lock();
        // Once for each reason, or a control plane that is gone for days fills the log.
        if live.error.as_ref() != Some(&text) {
            tracing::warn!(error = text, "no configuration stream, serving what is known and trying again");
        }
        if live.connected {
            live.contact = Some(Instant::now());
        }
        live.connected = false;
        live.error = Some(text);
    }
}

/// Starts the task. It opens the gate as soon as the snapshot in force can be served from, which one from the
/// disk can be at once, and ends with the drain: until then, revocations still arrive.
pub fn spawn(config: Config, current: Arc<Current>, disk: Disk, gate: Gate, drain: Drain) -> Arc<Status> {
    let status = Arc::new(Status::new(Arc::clone(&current)));
    if current.load().is_usable() {
        gate.open();
    }
    let wants_full = disk.is_foreign();
    let saver = save(Arc::clone(&current), current.changes(), disk, Arc::clone(&status), drain.clone());
    task::spawn("snapshot-saver", saver);
    let follower = Follower { config, current, gate, status: Arc::clone(&status), wants_full };
    task::spawn("discovery", follower.run(drain));
    status
}

struct Follower {
    config: Config,
    current: Arc<Current>,
    gate: Gate,
    status: Arc<Status>,
    /// What is held is no base for differences.
    wants_full: bool,
}

impl Follower {
    async fn run(mut self, drain: Drain) {
        let mut back_off = BackOff::new();
        let mut news = self.config.link.news();
        loop {
            news.mark_unchanged();
            let error = tokio::select! {
                biased;
                () = drain.ended() => return,
                result = self.follow(&mut back_off) => match result {
                    Ok(never) => match never {},
                    Err(error) => error,
                },
            };
            self.config.line.close();
            self.config.link.membership().note(&error);
            self.status.disconnected(&error);
            tokio::select! {
                biased;
                () = drain.ended() => return,
                // It has joined, or joined again.
                Ok(()) = news.changed() => back_off.reset(),
                () = tokio::time::sleep(back_off.after(&error)) => {}
            }
        }
    }

    /// One stream, from its opening to its end.
    async fn follow(&mut self, back_off: &mut BackOff) -> Result<Infallible, LinkError> {
        self.status.live.lock().attempts += 1;
        let connection = self.config.link.connect().await?;
        let (answers, sent) = mpsc::channel(ANSWERS);
        answer(&answers, pb::stream_request::Message::Hello(self.hello(&connection.group))).await?;
        let mut stream = open(&connection, sent).await?;
        self.config.line.open(connection.channel.clone());
        self.status.connected();
        self.config.link.membership().welcomed();
        let opened = Instant::now();
        let mut collector = Collector::default();
        loop {
            let chunk = match collector.is_empty() {
                true => stream.message().await,
                false => timeout(CHUNK_TIME, stream.message())
                    .await
                    .map_err(|_| LinkError::Timeout("the rest of an update"))?,
            };
            if opened.elapsed() >= GOOD_TIME {
                back_off.reset();
            }
            let mut chunk = chunk?.ok_or(LinkError::Closed)?;
            self.config.link.membership().learn(&std::mem::take(&mut chunk.authorities));
            let orders = std::mem::take(&mut chunk.orders);
            let Some((mut update, nonce)) = collector.add(chunk)? else { continue };
            self.config.monitor.take(&mut update.resources);
            self.config.monitor.order(orders);
            answer(&answers, self.take(update, nonce).await?).await?;
            back_off.reset();
        }
    }

    fn hello(&self, group: &str) -> pb::Hello {
        let Config { proxy_id, name, version, .. } = &self.config;
        let mut hello = pb::Hello {
            proxy_id: proxy_id.to_string(),
            name: name.clone(),
            group: group.to_owned(),
            version: version.clone(),
            checks_servers: true,
            ..pb::Hello::default()
        };
        let held = self.current.load();
        if !self.wants_full && held.refused.len() <= MAX_REFUSED {
            hello.lineage.clone_from(&held.lineage);
            hello.revision = held.revision;
            hello.refused = held.refused.iter().map(wire::reference).collect();
        }
        hello
    }

    /// Puts an update in force, as far as it can be, and says so.
    async fn take(
        &mut self,
        update: wire::Update,
        nonce: String,
    ) -> Result<pb::stream_request::Message, LinkError> {
        let held = self.current.load();
        let before = Arc::clone(&held);
        let full = update.full;
        if update.is_nothing_after(&held) {
            return Ok(pb::stream_request::Message::Ack(pb::Ack { nonce, revision: held.revision }));
        }
        // Reading thousands of resources takes a while, and this runtime has other tasks.
        let verdict = tokio::task::spawn_blocking(move || apply::judge(&held, update))
            .await
            .map_err(|_| LinkError::Contract("an update that cannot be read"))?;
        let (next, refusals) = match verdict {
            Verdict::Taken(next, refusals) => (*next, refusals),
            Verdict::NoBase => {
                self.wants_full = true;
                return Err(LinkError::Contract("differences to something that this proxy does not hold"));
            }
            Verdict::Refused(reason) => {
                tracing::error!(reason, "refused a configuration as a whole, serving the last good one");
                self.status.live.lock().refused = vec![reason.clone()];
                let rejections = vec![pb::Rejection { resource: None, reason }];
                let revision = self.current.load().revision;
                return Ok(pb::stream_request::Message::Nack(pb::Nack { nonce, revision, rejections }));
            }
        };
        if let (true, Some(before), Some(found)) = (full, before.found(), next.found()) {
            // Whoever has a stream open with a key that is good still shall keep it.
            self.config.line.again(&next.lineage, before, found).await;
        }
        self.wants_full &= !full;
        let revision = next.revision;
        let is_usable = next.is_usable();
        self.status.live.lock().refused = next.refused.iter().map(name).collect();
        self.current.replace(next);
        if is_usable {
            self.gate.open();
        }
        if refusals.is_empty() {
            return Ok(pb::stream_request::Message::Ack(pb::Ack { nonce, revision }));
        }
        let rejections = refusals.into_iter().map(rejection).collect();
        Ok(pb::stream_request::Message::Nack(pb::Nack { nonce, revision, rejections }))
    }
}

async fn open(
    connection: &Connection,
    requests: mpsc::Receiver<pb::StreamRequest>,
) -> Result<Streaming<pb::StreamResponse>, LinkError> {
    let mut client =
        DiscoveryServiceClient::new(connection.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
    let response = timeout(OPEN_TIME, client.stream(ReceiverStream::new(requests)))
        .await
        .map_err(|_| LinkError::Timeout("the configuration stream"))??;
    Ok(response.into_inner())
}

async fn answer(
    answers: &mpsc::Sender<pb::StreamRequest>,
    message: pb::stream_request::Message,
) -> Result<(), LinkError> {
    let sent = answers.send_timeout(pb::StreamRequest { message: Some(message) }, CHUNK_TIME).await;
    sent.map_err(|_| LinkError::Timeout("taking an answer"))
}

fn rejection(refusal: wire::Refusal) -> pb::Rejection {
    let wire::Refusal { key, reason } = refusal;
    tracing::error!(resource = key.as_ref().map(name), reason, "refused a resource of the configuration");
    pb::Rejection { resource: key.as_ref().map(wire::reference), reason }
}

fn name(key: &waffles_core::snapshot::ResourceKey) -> String {
    format!("{}/{}", key.kind.as_str(), key.id)
}

/// Writes what is in force to disk, whenever it changed: the newest only, one write at a time.
async fn save(
    current: Arc<Current>,
    mut changes: watch::Receiver<u64>,
    disk: Disk,
    status: Arc<Status>,
    drain: Drain,
) {
    let disk = Arc::new(disk);
    let mut is_saved = true;
    let mut findings = current.findings();
    let (mut keys_due, mut pace) = (None, FOUND_GATHER);
    loop {
        let retry = async {
            match is_saved {
                true => std::future::pending().await,
                false => tokio::time::sleep(SAVE_RETRY).await,
            }
        };
        tokio::select! {
            biased;
            changed = changes.changed() => if changed.is_err() { return },
            () = drain.ended() => return,
            () = retry => {}
            Ok(()) = findings.changed(), if keys_due.is_none() => {
                keys_due = Some(Instant::now() + pace);
                continue;
            }
            () = tokio::time::sleep_until(keys_due.unwrap_or_else(Instant::now)), if keys_due.is_some() => {
                keys_due = None;
                let hold = drain.hold();
                let (snapshot, place, began) = (current.load(), Arc::clone(&disk), Instant::now());
                let saved = tokio::task::spawn_blocking(move || place.save_keys(&snapshot)).await;
                drop(hold);
                if let Ok(Err(error)) = saved {
                    tracing::warn!(error = %telemetry::chain(&error), "cannot write found keys to disk");
                }
                // Many keys take longer to write, and are written less often.
                pace = FOUND_GATHER.max(began.elapsed() * 20);
                continue;
            }
        }
        let hold = drain.hold();
        let (snapshot, place) = (current.load(), Arc::clone(&disk));
        let revision = snapshot.revision;
        // The keys first: those on disk must not be older than the snapshot there.
        let save = move || place.save_keys(&snapshot).and_then(|()| place.save(&snapshot));
        let error = match tokio::task::spawn_blocking(save).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(telemetry::chain(&error).to_string()),
            Err(error) => Some(error.to_string()),
        };
        drop(hold);
        is_saved = error.is_none();
        status.saved(revision, error);
    }
}

#[cfg(test)]
mod tests;
