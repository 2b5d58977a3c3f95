//! The load: verified `tools/call`s over kept-alive connections, on one thread. Closed loop: each connection asks again
//! when it has its answer. Open loop: questions come at a fixed rate whatever the answers do, and latency counts from
//! when a question should have been sent, so that a stall is seen by all who would have met it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::LocalSet;
use tokio::time::{Instant, timeout};

use super::{announce, cpu_micros, parse_era, resident_bytes, secure};
use crate::Era;
use crate::mcp_client::{initialize, stateless_meta};

const WARM_UP: Duration = Duration::from_millis(300);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The open loop looks this often whether questions are due. Tokio's own timers count in milliseconds.
const TICK: Duration = Duration::from_micros(100);
/// More waiting questions than this mean that the rate is beyond the target's capacity.
const MOST_WAITING: usize = 100_000;

/// Events of an answer before its last.
pub(super) const EVENTS: usize = 20;
/// Least bytes of a large answer.
const LARGE: usize = 64 << 10;

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// A small answer in JSON.
    #[default]
    Echo,
    /// 64 KiB of it.
    Large,
    /// A stream of events. Latency is then counted to the first of them.
    Events,
}

impl Shape {
    pub(super) fn tool(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Large => "large",
            Self::Events => "events",
        }
    }
}

/// What to ask, where, and how.
#[derive(Debug, Args)]
pub(super) struct Load {
    #[arg(long)]
    pub(super) url: String,
    /// Sent as `Authorization: Bearer`.
    #[arg(long, env = "WAFFLES_BENCH_BEARER", hide_env_values = true)]
    pub(super) bearer: Option<String>,
    /// A file of credentials, one a line, of which every call takes the next.
    #[arg(long)]
    pub(super) bearers: Option<PathBuf>,
    /// A certificate to trust, for a URL that begins with `https`.
    #[arg(long)]
    pub(super) ca: Option<PathBuf>,
    #[arg(long, value_parser = parse_era)]
    pub(super) era: Era,
    #[arg(long, value_enum, default_value_t)]
    pub(super) shape: Shape,
    #[arg(long)]
    pub(super) connections: usize,
    #[arg(long)]
    pub(super) seconds: f64,
    /// Questions a second; without it, as fast as answers come.
    #[arg(long)]
    pub(super) rate: Option<f64>,
    /// The process whose CPU and memory are measured meanwhile.
    #[arg(long)]
    pub(super) watch: u32,
}

/// What was found. Latencies are in microseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    pub calls: u64,
    pub failed: u64,
    pub first_failure: Option<String>,
    pub per_second: f64,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    /// Of the watched process, user and system.
    pub cpu_micros_per_call: f64,
    /// Of the watched process, the most seen.
    pub resident_bytes: u64,
}

/// What came of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Answered,
    /// There was no room; ask again after this time.
    TurnedAway(Duration),
}

/// What the connections share.
#[derive(Default)]
struct Shared {
    counting: Cell<bool>,
    stopped: Cell<bool>,
    latencies: RefCell<Vec<u32>>,
    failed: Cell<u64>,
    first_failure: RefCell<Option<String>>,
    next_id: Cell<u64>,
    bearers: RefCell<VecDeque<String>>,
    /// When questions should have been sent that no connection has taken yet.
    due: RefCell<VecDeque<Instant>>,
    more: Notify,
}

impl Load {
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let measured = LocalSet::new().run_until(self.measure()).await?;
        announce(&measured)
    }

    async fn measure(&self) -> anyhow::Result<Measured> {
        let shared = Rc::new(Shared::default());
        if let Some(path) = &self.bearers {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            shared.bearers.borrow_mut().extend(text.lines().map(str::to_owned));
        }
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..self.connections {
            let connection = Connection::open(self).await?;
            tasks.spawn_local(ask(connection, Rc::clone(&shared), self.rate.is_some()));
        }
        if let Some(rate) = self.rate {
            tasks.spawn_local(tick(Rc::clone(&shared), rate));
        }
        tokio::time::sleep(WARM_UP).await;
        let (start, cpu) = (Instant::now(), cpu_micros(self.watch).context("the watched process has ended")?);
        shared.counting.set(true);
        let end = start + Duration::from_secs_f64(self.seconds);
        let mut resident = 0;
        while Instant::now() < end {
            tokio::time::sleep_until((Instant::now() + Duration::from_millis(250)).min(end)).await;
            resident = resident.max(resident_bytes(self.watch).unwrap_or(0));
        }
        shared.counting.set(false);
        let cpu = cpu_micros(self.watch).context("the watched process has ended")? - cpu;
        let seconds = start.elapsed().as_secs_f64();
        shared.stopped.set(true);
        shared.more.notify_waiters();
        while let Some(ended) =
            timeout(ANSWER_LIMIT, tasks.join_next()).await.context("a connection hangs")?
        {
            ended?;
        }
        let mut latencies = shared.latencies.take();
        latencies.sort_unstable();
        let calls = latencies.len() as u64;
        ensure!(calls > 0 || shared.failed.get() > 0, "no call was answered");
        Ok(Measured {
            calls,
            failed: shared.failed.get(),
            first_failure: shared.first_failure.take(),
            per_second: calls as f64 / seconds,
            p50: percentile(&latencies, 0.5),
            p99: percentile(&latencies, 0.99),
            p999: percentile(&latencies, 0.999),
            cpu_micros_per_call: cpu as f64 / calls.max(1) as f64,
            resident_bytes: resident,
        })
    }
}

/// Nanoseconds kept as tenths of microseconds fit in 32 bits up to seven minutes.
fn percentile(sorted: &[u32], part: f64) -> f64 {
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    f64::from(sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)) / 10.0
}

async fn ask(mut connection: Connection, shared: Rc<Shared>, open_loop: bool) {
    while !shared.stopped.get() {
        let from = if open_loop {
            let Some(due) = shared.due.borrow_mut().pop_front() else {
                shared.more.notified().await;
                continue;
            };
            due
        } else {
            Instant::now()
        };
        let id = shared.next_id.get() + 1;
        shared.next_id.set(id);
        if connection.changing_bearer {
            connection.bearer = shared.bearers.borrow_mut().pop_front();
        }
        let asked = timeout(ANSWER_LIMIT, connection.call(id)).await;
        if let Err(failure) = asked.map_err(anyhow::Error::from).and_then(|answered| answered) {
            shared.failed.set(shared.failed.get() + 1);
            shared.first_failure.borrow_mut().get_or_insert(format!("{failure:#}"));
            // Its connection is in an unknown state.
            return;
        }
        if shared.counting.get() {
            let until = connection.first_event.take().unwrap_or_else(Instant::now);
            let tenths = until.duration_since(from).as_nanos() / 100;
            shared.latencies.borrow_mut().push(u32::try_from(tenths).unwrap_or(u32::MAX));
        }
    }
    connection.close().await;
}

/// Makes questions due at a fixed rate.
async fn tick(shared: Rc<Shared>, rate: f64) {
    let timer = timer().expect("the kernel has timers");
    let start = Instant::now();
    let mut made = 0_u64;
    while !shared.stopped.get() {
        let Ok(mut ready) = timer.readable().await else { return };
        let mut expirations = [0; 8];
        // How often it expired is of no use; the clock says what is due.
        rustix::io::read(timer.get_ref(), &mut expirations).ok();
        ready.clear_ready();
        let due = (start.elapsed().as_secs_f64() * rate) as u64;
        while made < due {
            made += 1;
            shared.due.borrow_mut().push_back(start + Duration::from_secs_f64(made as f64 / rate));
            shared.more.notify_one();
        }
        if shared.due.borrow().len() > MOST_WAITING {
            shared
                .first_failure
                .borrow_mut()
                .get_or_insert(format!("{rate:.0} questions a second are too many"));
            return;
        }
    }
}

fn timer() -> anyhow::Result<AsyncFd<std::os::fd::OwnedFd>> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let tick = Timespec { tv_sec: 0, tv_nsec: TICK.as_nanos().try_into()? };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: tick, it_value: tick })?;
    #[allow(
        deprecated,
        reason = "its successor is unsafe, and an owned descriptor stays open as long as it is used"
    )]
    Ok(AsyncFd::new(timer)?)
}

/// What a connection is made on.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket for S {}

/// One kept-alive connection. HTTP is written by hand, because the load must cost less than what it measures.
pub(super) struct Connection {
    socket: Box<dyn Socket>,
    /// Everything of a request's head up to the length of its body.
    head: String,
    /// What a body ends with, behind the arguments.
    tail: &'static str,
    request: Vec<u8>,
    buffer: Vec<u8>,
    session: Option<String>,
    authority: String,
    path: String,
    shape: Shape,
    /// When the first event of the answer was there.
    first_event: Option<Instant>,
    changing_bearer: bool,
    bearer: Option<String>,
}

struct Reply {
    status: u16,
    retry_after: Option<u64>,
    session: Option<String>,
    body: std::ops::Range<usize>,
}

#[derive(Deserialize)]
struct Answer<'a> {
    jsonrpc: &'a str,
    id: u64,
    #[serde(borrow)]
    result: CallResult<'a>,
}

#[derive(Deserialize)]
struct CallResult<'a> {
    #[serde(borrow)]
    content: Vec<Content<'a>>,
}

#[derive(Deserialize)]
struct Content<'a> {
    text: &'a str,
}

impl Connection {
    pub(super) async fn open(load: &Load) -> anyhow::Result<Self> {
        let rest = load.url.split_once("://").context("the URL has a scheme")?.1;
        let (authority, path) = rest.split_once('/').context("the URL has a path")?;
        let addr: SocketAddr = authority.parse().context("the URL names an address")?;
        let socket = timeout(ANSWER_LIMIT, TcpStream::connect(addr)).await??;
        socket.set_nodelay(true)?;
        let socket: Box<dyn Socket> = match &load.ca {
            None => Box::new(socket),
            Some(ca) => Box::new(secure::connect(socket, addr, ca).await?),
        };
        let mut common = format!(
            "POST /{path} HTTP/1.1\r\nhost: {authority}\r\nuser-agent: waffles-bench\r\n\
             content-type: application/json\r\naccept: application/json, text/event-stream\r\n"
        );
        let changing_bearer = load.bearers.is_some();
        if let (Some(bearer), false) = (&load.bearer, changing_bearer) {
            common.push_str(&format!("authorization: Bearer {bearer}\r\n"));
        }
        let mut connection = Self {
            socket,
            head: common.clone(),
            tail: "",
            request: Vec::new(),
            buffer: Vec::with_capacity(16 * 1024),
            session: None,
            authority: authority.to_owned(),
            path: path.to_owned(),
            shape: load.shape,
            first_event: None,
            changing_bearer,
            bearer: load.bearer.clone().filter(|_| changing_bearer),
        };
        let revision = load.era.revision();
        match load.era {
            Era::Sessions => {
                let hello = initialize(revision).to_string();
                let reply = timeout(ANSWER_LIMIT, connection.exchange(&hello)).await??;
                ensure!(reply.status == 200, "initialize: {}", connection.shown(&reply));
                let session = reply.session.context("no session id")?;
                connection.head =
                    format!("{common}mcp-protocol-version: {revision}\r\nmcp-session-id: {session}\r\n");
                connection.session = Some(session);
                connection.buffer.drain(..reply.body.end);
                let ready = json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string();
                let reply = timeout(ANSWER_LIMIT, connection.exchange(&ready)).await??;
                ensure!(reply.status == 202, "initialized: {}", connection.shown(&reply));
                connection.buffer.drain(..reply.body.end);
                connection.tail = "}}";
            }
            Era::Stateless => {
                let tool = load.shape.tool();
                connection.head = format!(
                    "{common}mcp-protocol-version: {revision}\r\nmcp-method: tools/call\r\nmcp-name: {tool}\r\n"
                );
                connection.tail = format!(r#","_meta":{}}}}}"#, stateless_meta()).leak();
            }
        }
        Ok(connection)
    }

    async fn call(&mut self, id: u64) -> anyhow::Result<()> {
        match self.ask(id).await? {
            Asked::Answered => Ok(()),
            Asked::TurnedAway(_) => bail!("turned away"),
        }
    }

    /// Asks, and checks the answer; that there is no room is one.
    pub(super) async fn ask(&mut self, id: u64) -> anyhow::Result<Asked> {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"{}","arguments":{{"message":"this is question {id}"}}{}"#,
            self.shape.tool(),
            self.tail
        );
        self.first_event = None;
        let reply = self.exchange(&body).await?;
        if let (503, Some(seconds)) = (reply.status, reply.retry_after) {
            self.buffer.drain(..reply.body.end);
            return Ok(Asked::TurnedAway(Duration::from_secs(seconds)));
        }
        ensure!(reply.status == 200, "{}", self.shown(&reply));
        if self.shape == Shape::Events {
            self.check_events(&reply, id)?;
            self.buffer.drain(..reply.body.end);
            return Ok(Asked::Answered);
        }
        let answer: Answer<'_> =
            serde_json::from_slice(&self.buffer[reply.body.clone()]).with_context(|| self.shown(&reply))?;
        let text = answer.result.content.first().map_or("", |content| content.text);
        let number = text.strip_prefix("this is question ").and_then(|rest| rest.split(' ').next());
        let right = number.is_some_and(|number| number.parse() == Ok(id))
            && (self.shape != Shape::Large || text.len() >= LARGE);
        ensure!(answer.jsonrpc == "2.0" && answer.id == id && right, "wrong answer: {}", self.shown(&reply));
        self.buffer.drain(..reply.body.end);
        Ok(Asked::Answered)
    }

    fn check_events(&self, reply: &Reply, id: u64) -> anyhow::Result<()> {
        let body = std::str::from_utf8(&self.buffer[reply.body.clone()])?;
        let mut events = body.lines().filter_map(|line| line.strip_prefix("data:"));
        let right = events.by_ref().take(EVENTS).filter(|data| data.contains("step ")).count() == EVENTS;
        let last: Answer<'_> = serde_json::from_str(events.next().context("no last event")?)?;
        let right = right && last.id == id && last.result.content.first().is_some_and(|c| c.text == "done");
        ensure!(right && events.next().is_none(), "wrong events: {}", self.shown(reply));
        Ok(())
    }

    /// Ends the session, so that the target need not keep it.
    async fn close(mut self) {
        if let Some(session) = &self.session {
            let rest = self.head.split_once("\r\n").map_or("", |(_, rest)| rest);
            let request = format!("DELETE /{} HTTP/1.1\r\n{rest}\r\n", self.path);
            debug_assert!(request.contains(session.as_str()) && request.contains(&self.authority));
            if self.socket.write_all(request.as_bytes()).await.is_ok() {
                // Whether the target lets sessions be ended is its own affair.
                timeout(ANSWER_LIMIT, self.reply()).await.ok();
            }
        }
    }

    async fn exchange(&mut self, body: &str) -> anyhow::Result<Reply> {
        self.request.clear();
        self.request.extend_from_slice(self.head.as_bytes());
        if let Some(bearer) = &self.bearer {
            self.request.extend_from_slice(format!("authorization: Bearer {bearer}\r\n").as_bytes());
        }
        self.request.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
        self.request.extend_from_slice(body.as_bytes());
        self.socket.write_all(&self.request).await?;
        self.reply().await
    }

    /// Reads one whole answer; its bytes stay in the buffer.
    async fn reply(&mut self) -> anyhow::Result<Reply> {
        let head_end = loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.read().await?;
        };
        let head = std::str::from_utf8(&self.buffer[..head_end])?;
        let status = head.get(9..12).and_then(|digits| digits.parse().ok()).context("not HTTP")?;
        let (mut length, mut chunked, mut session, mut retry_after) = (None, false, None, None);
        for line in head.lines().skip(1) {
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.parse::<usize>()?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = value.eq_ignore_ascii_case("chunked");
            } else if name.eq_ignore_ascii_case("retry-after") {
                retry_after = value.parse().ok();
            } else if name.eq_ignore_ascii_case("mcp-session-id") {
                session = Some(value.to_owned());
            }
        }
        let body = if chunked { self.unchunk(head_end).await? } else { length.unwrap_or(0) };
        while self.buffer.len() < head_end + body {
            self.read().await?;
        }
        Ok(Reply { status, retry_after, session, body: head_end..head_end + body })
    }

    /// Takes the chunk framing out of the buffer and says how long the body is. Answers come one at a time, so that
    /// nothing stands behind it.
    async fn unchunk(&mut self, start: usize) -> anyhow::Result<usize> {
        let mut at = start;
        loop {
            let line_end = loop {
                if let Some(found) = self.buffer[at..].windows(2).position(|window| window == b"\r\n") {
                    break at + found;
                }
                self.read().await?;
            };
            let size = std::str::from_utf8(&self.buffer[at..line_end])?;
            let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)?;
            while self.buffer.len() < line_end + 2 + size + 2 {
                self.read().await?;
            }
            self.buffer.drain(at..line_end + 2);
            at += size;
            self.buffer.drain(at..at + 2);
            if size == 0 {
                return Ok(at - start);
            }
        }
    }

    async fn read(&mut self) -> anyhow::Result<()> {
        if self.socket.read_buf(&mut self.buffer).await? == 0 {
            bail!("the connection was closed");
        }
        if self.shape == Shape::Events
            && self.first_event.is_none()
            && self.buffer.windows(5).any(|window| window == b"data:")
        {
            self.first_event = Some(Instant::now());
        }
        Ok(())
    }

    fn shown(&self, reply: &Reply) -> String {
        format!("{} {}", reply.status, String::from_utf8_lossy(&self.buffer[reply.body.clone()]))
    }
}
