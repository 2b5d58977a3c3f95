//! What servers list, remembered [2026-07-28 server/utilities/caching]: for everybody only what a server calls public,
//! else for one principal, key and set of capabilities. One asks a server, the others wait for what it gets. It is
//! believed for as long as the server says, or until the server says that it has changed; a server that says neither is
//! asked again, but not by a thousand agents at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use uuid::Uuid;
use waffles_mcp::jsonrpc::code;
use waffles_mcp::listing::{entries, renamed, tool_param_headers};
use waffles_mcp::translate::handshake;
use waffles_mcp::{Method, capability, names, uris};

use super::Member;
use crate::bridge::inquiry::Reply;
use crate::front::Front;
use crate::hub::List;
use crate::reject::{Reject, UpstreamFault};
use crate::shared::Means;

/// What a server that says nothing of its freshness is believed for.
const COALESCE: Duration = Duration::from_secs(1);
/// The longest that anything is believed, also while a server would say that it has changed.
const MAX_FRESH: Duration = Duration::from_secs(300);
/// What was good is still better than nothing for so long.
const STALE: Duration = Duration::from_secs(300);
/// A server that did not answer a list in time is not asked for one again meanwhile.
const SILENCE: Duration = Duration::from_secs(5);
/// Bounds on one server's list.
const MAX_PAGES: usize = 100;
const MAX_ENTRIES: usize = 20_000;
/// Lists that are remembered.
const MAX_LISTS: usize = 10_000;

/// The kinds of lists that a door has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Tools,
    Prompts,
    Resources,
    Templates,
}

impl Kind {
    /// The kind that a method lists.
    pub fn of(method: &Method) -> Option<Self> {
        Some(match method {
            Method::ToolsList => Self::Tools,
            Method::PromptsList => Self::Prompts,
            Method::ResourcesList => Self::Resources,
            Method::ResourcesTemplatesList => Self::Templates,
            _ => return None,
        })
    }

    /// The method that lists it.
    pub fn method(self) -> Method {
        match self {
            Self::Tools => Method::ToolsList,
            Self::Prompts => Method::PromptsList,
            Self::Resources => Method::ResourcesList,
            Self::Templates => Method::ResourcesTemplatesList,
        }
    }

    /// The key of the list in the result.
    pub fn key(self) -> &'static str {
        match self {
            Self::Tools => "tools",
            Self::Prompts => "prompts",
            Self::Resources => "resources",
            Self::Templates => "resourceTemplates",
        }
    }

    /// The field by which an entry is known.
    pub fn field(self) -> &'static str {
        match self {
            Self::Tools | Self::Prompts => "name",
            Self::Resources => "uri",
            Self::Templates => "uriTemplate",
        }
    }

    /// Whether entries are known by a name, as opposed to a URI.
    pub fn is_named(self) -> bool {
        matches!(self, Self::Tools | Self::Prompts)
    }

    fn list(self) -> List {
        match self {
            Self::Tools => List::Tools,
            Self::Prompts => List::Prompts,
            Self::Resources | Self::Templates => List::Resources,
        }
    }

    /// The name under which a door shows an entry.
    pub fn public(self, server: &str, own: &str) -> String {
        match self {
            Self::Tools | Self::Prompts => names::join(server, own),
            Self::Resources | Self::Templates => uris::wrap(server, own),
        }
    }
}

/// One entry of a server's list.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What the server calls it.
    pub name: String,
    /// As the server wrote it.
    pub own: Bytes,
    /// The same under the door's name.
    pub public: Bytes,
}

/// A server's whole list.
#[derive(Debug, Clone)]
pub struct Listed {
    /// In the server's order.
    pub entries: Arc<Vec<Entry>>,
    /// Until when it may be served again.
    pub fresh_until: Instant,
    /// Until when the server itself says that it is good: what clients are told.
    pub said_until: Instant,
    /// Whether the server lets anybody have it.
    pub public: bool,
    /// It is what was good before; the server does not answer now.
    pub stale: bool,
    since: Instant,
    generation: u64,
}

/// Whose list it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    server: Uuid,
    version: u64,
    kind: Option<Kind>,
    principal: Uuid,
    api_key: String,
    capabilities: Bytes,
}

impl Key {
    /// For this member and client.
    pub fn of(member: &Member, front: &Front, kind: Option<Kind>) -> Self {
        let identity = member.permit.identity();
        let server = &member.permit.entry().server;
        Self {
            server: server.id,
            version: server.version,
            kind,
            principal: identity.principal().id,
            api_key: identity.key().map(|key| key.id.clone()).unwrap_or_default(),
            capabilities: capability::normalise(&front.client.capabilities),
        }
    }

    /// The same for everybody.
    fn of_all(&self) -> Self {
        Self {
            principal: Uuid::nil(),
            api_key: String::new(),
            capabilities: Bytes::new(),
            server: self.server,
            version: self.version,
            kind: self.kind,
        }
    }
}

type Slot = Arc<tokio::sync::Mutex<()>>;

#[derive(Debug, Default)]
struct Inner {
    lists: HashMap<Key, Listed>,
    asking: HashMap<Key, Slot>,
    /// How often each server's lists have changed.
    generations: HashMap<(Uuid, List), u64>,
    /// Servers that did not answer in time, and until when they are not asked again.
    silent: HashMap<(Uuid, u64), Instant>,
    described: HashMap<Key, (Instant, waffles_mcp::capability::Capabilities)>,
}

/// What all servers list. Shared by all threads.
#[derive(Debug, Default)]
pub struct Catalogue(Mutex<Inner>);

impl Catalogue {
    /// A server's list is not what it was.
    pub fn invalidate(&self, server: Uuid, list: List) {
        *self.0.lock().generations.entry((server, list)).or_default() += 1;
    }

    /// Forgets what can be asked for again: memory is short.
    pub fn clear(&self) {
        let mut inner = self.0.lock();
        inner.lists.clear();
        inner.described.clear();
    }

    /// Forgets what nobody could be given any more.
    pub fn sweep(&self) {
        let mut inner = self.0.lock();
        let now = Instant::now();
        inner.lists.retain(|_, listed| now < listed.fresh_until + STALE);
        inner.described.retain(|_, (since, _)| since.elapsed() < MAX_FRESH);
        inner.silent.retain(|_, until| now < *until);
        inner.asking.retain(|_, slot| Arc::strong_count(slot) > 1);
        let servers: std::collections::HashSet<Uuid> = inner.lists.keys().map(|key| key.server).collect();
        inner.generations.retain(|(server, _), _| servers.contains(server));
    }

    pub(super) fn described(
        &self,
        key: &Key,
        most: Duration,
    ) -> Option<waffles_mcp::capability::Capabilities> {
        let inner = self.0.lock();
        inner.described.get(key).filter(|(since, _)| since.elapsed() < most).map(|(_, can)| *can)
    }

    pub(super) fn note_described(&self, key: Key, can: waffles_mcp::capability::Capabilities) {
        let mut inner = self.0.lock();
        if inner.described.len() < MAX_LISTS {
            inner.described.insert(key, (Instant::now(), can));
        }
    }

    /// What is remembered: for everybody, or for this caller.
    fn known(&self, key: &Key) -> Option<(Listed, bool)> {
        let inner = self.0.lock();
        let listed = inner.lists.get(&key.of_all()).or_else(|| inner.lists.get(key))?;
        let list = key.kind.map(Kind::list)?;
        let changed =
            inner.generations.get(&(key.server, list)).copied().unwrap_or_default() != listed.generation;
        Some((listed.clone(), !changed && Instant::now() < listed.fresh_until))
    }

    fn is_silent(&self, key: &Key) -> bool {
        let inner = self.0.lock();
        let silent = inner.silent.get(&(key.server, key.version));
        silent.is_some_and(|until| Instant::now() < *until)
    }

    fn note_silent(&self, key: &Key) {
        let until = Instant::now() + SILENCE;
        self.0.lock().silent.insert((key.server, key.version), until);
    }

    fn slot(&self, key: &Key) -> Slot {
        Arc::clone(self.0.lock().asking.entry(key.clone()).or_default())
    }

    fn generation(&self, key: &Key) -> u64 {
        let list = key.kind.map(Kind::list);
        let inner = self.0.lock();
        list.and_then(|list| inner.generations.get(&(key.server, list)).copied()).unwrap_or_default()
    }

    fn keep(&self, key: Key, listed: Listed) {
        let mut inner = self.0.lock();
        let all = key.of_all();
        let key = if listed.public {
            all
        } else {
            // A list that is nobody else's any more must not stand before each caller's own.
            inner.lists.remove(&all);
            key
        };
        if inner.lists.len() >= MAX_LISTS && !inner.lists.contains_key(&key) {
            // The one that is the longest out of date makes room.
            let oldest =
                inner.lists.iter().min_by_key(|(_, listed)| listed.fresh_until).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                inner.lists.remove(&oldest);
            }
        }
        inner.lists.insert(key, listed);
    }
}

impl Means {
    /// A member's whole list.
    pub async fn listed(
        &self,
        front: &Front,
        member: &Member,
        kind: Kind,
        until: Instant,
    ) -> Result<Listed, Reject> {
        let key = Key::of(member, front, Some(kind));
        let catalogue = &self.shared.catalogue;
        if let Some((listed, true)) = catalogue.known(&key) {
            return Ok(listed);
        }
        let slot = catalogue.slot(&key);
        let turn = tokio::time::timeout_at(until, slot.lock()).await;
        let _turn = turn.map_err(|_| Reject::upstream(UpstreamFault::TimedOut, false))?;
        let old = match catalogue.known(&key) {
            Some((listed, true)) => return Ok(listed),
            old => old.map(|(listed, _)| listed),
        };
        let generation = catalogue.generation(&key);
        let read = match catalogue.is_silent(&key) {
            // One that hangs shall not hold up every list.
            true => Err(Reject::upstream(UpstreamFault::TimedOut, false)),
            false => self.read_list(front, member, kind, until).await,
        };
        if matches!(read, Err(Reject::Upstream { fault: UpstreamFault::TimedOut, sent: true, .. })) {
            catalogue.note_silent(&key);
        }
        match read {
            Ok(read) => {
                self.shared.hub.want(self, &member.permit, &front.client);
                let now = Instant::now();
                let covered = self.shared.hub.covers(member.permit.entry().server.id, kind.list());
                let fresh = match read.ttl {
                    Some(ttl) if !ttl.is_zero() => ttl.min(MAX_FRESH),
                    _ if covered => MAX_FRESH,
                    _ => COALESCE,
                };
                let listed = Listed {
                    entries: Arc::new(read.entries),
                    fresh_until: now + fresh,
                    said_until: now + read.ttl.unwrap_or_default().min(MAX_FRESH),
                    public: read.public,
                    stale: false,
                    since: now,
                    generation,
                };
                catalogue.keep(key, listed.clone());
                Ok(listed)
            }
            Err(reject) => match old.filter(|listed| listed.since.elapsed() < MAX_FRESH + STALE) {
                Some(listed) => {
                    let (server, reason) = (member.name(), reject.reason());
                    tracing::warn!(server.name = server, reason, "serving a list that may be out of date");
                    Ok(Listed { stale: true, ..listed })
                }
                None => Err(reject),
            },
        }
    }

    /// Whether an error says that a server has no such list: it does not know the method, or has never offered the list.
    async fn has_none(&self, front: &Front, member: &Member, kind: Kind, error: i64) -> Result<bool, Reject> {
        if error == code::METHOD_NOT_FOUND {
            return Ok(true);
        }
        let can = handshake::capabilities(&*self.describe(front, &member.permit).await?);
        Ok(match kind {
            Kind::Tools => !can.tools,
            Kind::Prompts => !can.prompts,
            Kind::Resources | Kind::Templates => !can.resources,
        })
    }

    /// Reads all pages. A server that does not have such a list has an empty one.
    async fn read_list(
        &self,
        front: &Front,
        member: &Member,
        kind: Kind,
        until: Instant,
    ) -> Result<Read, Reject> {
        let bad = |_| Reject::upstream(UpstreamFault::BadAnswer, true);
        // Not in the client's own session: what is remembered is not that session's.
        let front = Front { session: None, ..front.clone() };
        let mut read = Read { entries: Vec::new(), ttl: None, public: true };
        let mut cursor: Option<String> = None;
        for page in 0..MAX_PAGES {
            let reply = self.inquire(&front, &member.permit, request(kind, cursor.as_deref()), until).await?;
            let result = match reply {
                Reply::Result(result) => result,
                // What one caller is told of an error says nothing of what others would get.
                Reply::Error(code) if page == 0 && self.has_none(&front, member, kind, code).await? => {
                    return Ok(Read { public: false, ..read });
                }
                Reply::Error(_) => return Err(Reject::upstream(UpstreamFault::BadAnswer, true)),
            };
            let (list, next) = entries(&result, kind.key()).map_err(bad)?;
            let hints = Hints::read(&result);
            read.ttl = Some(read.ttl.map_or(hints.ttl, |ttl| ttl.min(hints.ttl)));
            read.public &= hints.public;
            for entry in list {
                // A client must not be shown a tool whose headers it could not write [2026-07-28 SEP-2243].
                if kind == Kind::Tools && tool_param_headers(&entry.raw).is_err() {
                    tracing::warn!(
                        server.name = member.name(),
                        "a tool with invalid header annotations is left out"
                    );
                    continue;
                }
                if kind == Kind::Tools {
                    self.desk.sightings.note_entry(member.permit.entry().server.id, &entry.raw);
                }
                let public = kind.public(member.name(), &entry.name);
                let public = renamed(&entry.raw, kind.field(), &public);
                read.entries.push(Entry { name: entry.name, own: entry.raw, public });
            }
            if read.entries.len() > MAX_ENTRIES {
                return Err(Reject::upstream(UpstreamFault::TooLarge, true));
            }
            match next {
                // A server that gives the same cursor again would never end.
                Some(next) if cursor.as_ref() != Some(&next) => cursor = Some(next),
                Some(_) => return Err(Reject::upstream(UpstreamFault::BadAnswer, true)),
                None => return Ok(read),
            }
        }
        Err(Reject::upstream(UpstreamFault::TooLarge, true))
    }
}

struct Read {
    entries: Vec<Entry>,
    ttl: Option<Duration>,
    public: bool,
}

/// What a server says of how long its answer is good, and for whom.
struct Hints {
    ttl: Duration,
    public: bool,
}

impl Hints {
    fn read(result: &[u8]) -> Self {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Raw {
            ttl_ms: Option<i64>,
            cache_scope: Option<String>,
        }
        let raw: Option<Raw> = serde_json::from_slice(result).ok();
        let ttl = raw.as_ref().and_then(|raw| raw.ttl_ms).and_then(|ttl| u64::try_from(ttl).ok());
        let public = raw.and_then(|raw| raw.cache_scope).as_deref() == Some("public");
        Self { ttl: Duration::from_millis(ttl.unwrap_or(0)), public }
    }
}

fn request(kind: Kind, cursor: Option<&str>) -> Bytes {
    let params = match cursor {
        Some(cursor) => serde_json::json!({"cursor": cursor}),
        None => serde_json::json!({}),
    };
    let request =
        serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": kind.method().as_str(), "params": params});
    request.to_string().into()
}
