//! Subscriptions: many clients that listen, few subscriptions at servers. Those who may see the same of a server share one,
//! whoever they are and whichever era they speak. A listener is told what servers say, what was perhaps missed while a
//! server was away, and what a change of the configuration does to what it sees. One ticker looks after all of them.

mod feed;
mod listener;
mod source;
mod topic;
mod waiting;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_lc_rs::digest;
use futures_util::future::join_all;
use http::Response;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use uuid::Uuid;
use waffles_core::snapshot::Snapshot;
use waffles_mcp::translate::Client;
use waffles_mcp::translate::notice::Filter;
use waffles_runtime::task;

use self::feed::{Decided, Feed, Key, Member, Seat};
use self::listener::{Listener, Looked};
use self::topic::Topic;
use crate::authn::Identity;
use crate::bridge::Naming;
use crate::flow::{Open, Outbox};
use crate::front::Session;
use crate::permit::Permit;
use crate::record::Record;
use crate::reject::Reject;
use crate::shared::Means;
use crate::stream::Body;
use crate::upstream::eras::Speaks;

pub use listener::{Audience, Listening, Renew};
pub use topic::List;

/// How often all listeners are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// When the process ends, its listeners are told this far apart, unless time is short.
const FAREWELL: Duration = Duration::from_millis(2);
/// A wait that is shorter than this is added to the next.
const TURN: Duration = Duration::from_millis(5);
/// How long a listener waits for the servers before it is told what it gets.
const SERVER_TIME: Duration = Duration::from_secs(15);
const FEDERATED_TIME: Duration = Duration::from_secs(3);
/// How long a `resources/subscribe` may take.
const SUBSCRIBE_TIME: Duration = Duration::from_secs(5);
/// How long a subscription stays open for who asked once.
const KEEP: Duration = Duration::from_secs(300);
/// Resources and tasks that one listener, and all who share a subscription, may name.
const MAX_NAMED: usize = 1000;
const MAX_NAMED_TOGETHER: usize = 50_000;

/// One server of what a listener listens to.
#[derive(Debug, Clone)]
pub struct Part {
    /// The right to it.
    pub permit: Permit,
    /// Under which names the client knows what the server has.
    pub naming: Naming,
}

/// What a listener may listen to, under a configuration.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// The servers.
    pub parts: Vec<Part>,
    /// A number for whatever else decides what of them is seen. When it changes, the listener is told that its lists may
    /// have changed.
    pub mark: u64,
}

/// What a client wants to hear.
pub struct Ask {
    /// Who listens.
    pub audience: Audience,
    /// Who it is.
    pub identity: Identity,
    /// What it says of itself.
    pub client: Client,
    /// What it asks for, in its own words. A session's is `Ask::filter_of`.
    pub filter: Filter,
    /// What it may listen to under a configuration; none where the door itself is closed to it.
    pub renew: Box<Renew>,
    /// A federated door: the gateway itself changes its lists, and a server that is away is only missing.
    pub federated: bool,
    /// Where messages go.
    pub outbox: Outbox,
    /// It comes back, and may have missed something.
    pub again: bool,
}

impl Ask {
    /// A client at the door of one server, under the server's own names.
    pub fn at_server(
        permit: &Permit,
        audience: Audience,
        client: Client,
        filter: Filter,
        outbox: Outbox,
    ) -> Self {
        let identity = permit.identity().clone();
        let permit = permit.clone();
        let renew = move |snapshot: &Snapshot, _: &Identity| {
            let part = Part { permit: permit.renewed(snapshot)?, naming: Naming::Own };
            Some(View { parts: vec![part], mark: 0 })
        };
        Self {
            audience,
            identity,
            client,
            filter,
            renew: Box::new(renew),
            federated: false,
            outbox,
            again: false,
        }
    }

    /// The standing stream of a session: all lists, and what the session has subscribed to.
    #[must_use]
    pub fn filter_of(session: &Session) -> Filter {
        Filter { uris: session.subscribed(), ..topic::all_lists() }
    }
}

/// Who is told which lists of which server are not what they were.
type Invalidate = Box<dyn Fn(Uuid, List) + Send + Sync>;

/// All listeners and subscriptions of the process.
#[derive(Default)]
pub struct Hub {
    inner: Mutex<Inner>,
    invalidate: OnceLock<Invalidate>,
}

#[derive(Default)]
struct Inner {
    /// The subscriptions at each server.
    feeds: HashMap<Uuid, Vec<Arc<Feed>>>,
    listeners: HashMap<u64, Arc<Listener>>,
    /// The listeners of sessions.
    standing: HashMap<u128, u64>,
    next: u64,
}

impl Hub {
    /// Sets who is told that a server's list has changed, before any client is.
    pub fn on_change(&self, tell: impl Fn(Uuid, List) + Send + Sync + 'static) {
        if self.invalidate.set(Box::new(tell)).is_err() {
            tracing::error!("changes of lists are told to somebody already");
        }
    }

    fn invalidate(&self, server: Uuid, topic: &Topic) {
        if let (Some(tell), Topic::List(list)) = (self.invalidate.get(), topic) {
            tell(server, *list);
        }
    }

    /// Whether the server's word that such a list has changed would be heard.
    pub fn covers(&self, server: Uuid, list: List) -> bool {
        let inner = self.inner.lock();
        inner.feeds.get(&server).is_some_and(|feeds| feeds.iter().any(|feed| feed.covers(list)))
    }

    /// Keeps a subscription to a server's lists open for a while, for a cache.
    pub fn want(&self, means: &Means, permit: &Permit, client: &Client) {
        let seat = Seat { client: client.clone(), owner: None };
        let key = key(means, permit, &seat);
        let until = Instant::now() + KEEP;
        while !self.feed(means, &key, &seat).keep(permit, until) {}
    }

    /// Opens a stream of what changes. The record goes with it.
    pub async fn listen(
        &self,
        means: &Means,
        ask: Ask,
        exchange_record: &mut Record,
    ) -> Result<Response<Body>, Reject> {
        let Ask { audience, identity, client, filter, renew, federated, outbox, again } = ask;
        if filter.uris.len() + filter.task_ids.len() > MAX_NAMED {
            return Err(Reject::TooMany("resources in one subscription"));
        }
        let gone = || Reject::Forbidden("nothing to listen to".into());
        let snapshot = means.current.load();
        let view = renew(&snapshot, &identity).ok_or_else(gone)?;
        let number = {
            let mut inner = self.inner.lock();
            inner.next += 1;
            inner.next
        };
        let owner = match &audience {
            Audience::Standing(session) => Some(session.nonce),
            Audience::Listen(_) => None,
        };
        let seat = Seat { client, owner };
        find_out(means, &view.parts, &seat).await;
        let record = exchange_record.hand_over();
        let listener = Listener::new(number, audience, seat, identity.clone(), renew, outbox, record);
        let listener = Arc::new(listener);
        // From here on, whatever happens, the listener leaves with its stream.
        let stream = self.enter(means, &listener);
        listener.set_filter(filter.clone());
        let mark = view.mark;
        let feeds = self.join(means, &listener, &view.parts, &[], &filter);
        let shared = feeds.iter().map(|(feed, _)| Arc::clone(feed)).collect();
        listener.note(Looked { identity, feeds: shared, mark });
        if let Audience::Listen(id) = &listener.audience {
            let until = Instant::now() + if federated { FEDERATED_TIME } else { SERVER_TIME };
            let honoured = match honoured(&feeds, &filter, federated, until).await {
                Ok(honoured) => honoured,
                Err(reject) => {
                    *exchange_record = listener.record();
                    return Err(reject);
                }
            };
            let first = honoured.acknowledged(id);
            for (feed, naming) in &feeds {
                feed.rewish(number, |_| topic::own(&honoured, naming));
            }
            listener.set_filter(honoured);
            listener.begin(Some(first));
        } else {
            listener.begin(None);
        }
        if again {
            listener.announce();
        }
        // A configuration that came while the servers were asked found nothing to change yet.
        let now = means.current.load();
        if now.revision != snapshot.revision && !self.renew(means, &now, &listener) {
            listener.revoke();
        }
        Ok(stream.response())
    }

    fn enter(&self, means: &Means, listener: &Arc<Listener>) -> Listening {
        let metrics = &means.desk.metrics;
        let open = [Open::new(&metrics.open_streams), Open::new(&metrics.listeners)];
        let mut inner = self.inner.lock();
        inner.listeners.insert(listener.number, Arc::clone(listener));
        if let Audience::Standing(session) = &listener.audience {
            inner.standing.insert(session.nonce, listener.number);
        }
        drop(inner);
        Listening::new(Arc::clone(listener), Arc::clone(&means.shared), open)
    }

    /// Takes a listener away, and its record to its end.
    fn leave(&self, listener: &Arc<Listener>) {
        let mut inner = self.inner.lock();
        inner.listeners.remove(&listener.number);
        if let Audience::Standing(session) = &listener.audience
            && let Entry::Occupied(standing) = inner.standing.entry(session.nonce)
            && *standing.get() == listener.number
        {
            standing.remove();
        }
        drop(inner);
        for feed in listener.leave() {
            feed.leave(listener.number);
        }
    }

    /// A session's client has subscribed to a resource, or ended that. Returns when the server has been told.
    pub async fn rewish(&self, session: &Session) {
        let listener = {
            let inner = self.inner.lock();
            let number = inner.standing.get(&session.nonce);
            number.and_then(|number| inner.listeners.get(number)).cloned()
        };
        let Some(listener) = listener else { return };
        let filter = Ask::filter_of(session);
        listener.set_filter(filter.clone());
        let until = Instant::now() + SUBSCRIBE_TIME;
        let feeds = listener.look().feeds;
        let mut wishes = Vec::with_capacity(feeds.len());
        for feed in feeds {
            let mut own = Filter::default();
            feed.rewish(listener.number, |naming| {
                own = topic::own(&filter, naming);
                own.clone()
            });
            wishes.push((feed, own));
        }
        // The client may touch the resource as soon as it has its answer. A server that cannot be reached now is
        // subscribed to when it is back, and what was missed is announced then.
        let decided = wishes.iter().filter(|(_, own)| !own.uris.is_empty());
        join_all(decided.map(|(feed, own)| feed.decided(own, until))).await;
    }

    /// Has a listener share the subscriptions to these servers, beside those that it shares already.
    fn join(
        &self,
        means: &Means,
        listener: &Arc<Listener>,
        parts: &[Part],
        before: &[Arc<Feed>],
        filter: &Filter,
    ) -> Vec<(Arc<Feed>, Naming)> {
        let mut joined: Vec<(Arc<Feed>, Naming)> = Vec::with_capacity(parts.len());
        for Part { permit, naming } in parts {
            let key = key(means, permit, &listener.seat);
            if joined.iter().any(|(feed, _)| feed.key.is_like(&key)) {
                continue;
            }
            let late = !before.is_empty();
            loop {
                // What is known of the server's era may have been forgotten meanwhile.
                let known = before.iter().find(|feed| feed.key.is_like(&key)).cloned();
                let feed = known.unwrap_or_else(|| self.feed(means, &key, &listener.seat));
                let mut wants = topic::own(filter, naming);
                let names = wants.uris.len() + wants.task_ids.len();
                if names > 0 && feed.named() + names > MAX_NAMED_TOGETHER {
                    wants.uris.clear();
                    wants.task_ids.clear();
                }
                let (permit, naming) = (permit.clone(), naming.clone());
                let member = Member { listener: Arc::clone(listener), permit, naming: naming.clone(), wants };
                if feed.join(listener.number, member, late) {
                    joined.push((feed, naming));
                    break;
                }
            }
        }
        joined
    }

    /// The subscription with this key; a new one where there is none.
    fn feed(&self, means: &Means, key: &Key, seat: &Seat) -> Arc<Feed> {
        let mut inner = self.inner.lock();
        let feeds = inner.feeds.entry(key.server).or_default();
        if let Some(feed) = feeds.iter().find(|feed| feed.key == *key) {
            return Arc::clone(feed);
        }
        let feed = Arc::new(Feed::new(key.clone(), seat.clone()));
        feeds.push(Arc::clone(&feed));
        drop(inner);
        means.desk.metrics.subscriptions.inc();
        task::spawn("subscription", Arc::clone(&feed).run(means.clone()));
        feed
    }

    /// Ends a subscription that nobody shares. False where somebody does.
    fn close(&self, means: &Means, feed: &Feed) -> bool {
        let mut inner = self.inner.lock();
        if !feed.close() {
            return false;
        }
        if let Entry::Occupied(mut feeds) = inner.feeds.entry(feed.key.server) {
            feeds.get_mut().retain(|other| other.key != feed.key);
            if feeds.get().is_empty() {
                feeds.remove();
            }
        }
        drop(inner);
        means.desk.metrics.subscriptions.dec();
        true
    }

    /// Looks after all listeners until the process drains, and then ends their streams.
    pub async fn keep(means: Means) {
        let hub = &means.shared.hub;
        let mut changes = means.current.changes();
        loop {
            let changed = tokio::select! {
                () = means.drain.started() => break,
                changed = changes.changed() => changed.is_ok(),
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            hub.look(&means, changed);
        }
        let all_by = means.drain.forced_at().map_or_else(Instant::now, |end| {
            Instant::now() + end.saturating_duration_since(Instant::now()) / 3
        });
        loop {
            let listeners = hub.listeners();
            // All come back somewhere else: not in the same instant, where there are many.
            let pause = (all_by.saturating_duration_since(Instant::now())
                / u32::try_from(listeners.len().max(1)).unwrap_or(u32::MAX))
            .min(FAREWELL);
            let mut next = Instant::now();
            for listener in listeners {
                listener.drain();
                next += pause;
                if next > Instant::now() + TURN {
                    tokio::time::sleep_until(next).await;
                }
            }
            // Some may have come while the others went.
            tokio::select! {
                () = means.drain.ended() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    fn listeners(&self) -> Vec<Arc<Listener>> {
        self.inner.lock().listeners.values().cloned().collect()
    }

    fn look(&self, means: &Means, changed: bool) {
        let snapshot = means.current.load();
        let now = Instant::now();
        for listener in self.listeners() {
            let may = match changed {
                false => listener.is_current(&snapshot),
                true => self.renew(means, &snapshot, &listener),
            };
            if !may {
                listener.revoke();
                continue;
            }
            listener.keep_alive(now);
        }
        if changed {
            let feeds: Vec<_> = self.inner.lock().feeds.values().flatten().cloned().collect();
            for feed in feeds {
                feed.check(&snapshot);
            }
        }
    }

    /// Brings a listener up to a new configuration; false where it may not listen any more.
    fn renew(&self, means: &Means, snapshot: &Snapshot, listener: &Arc<Listener>) -> bool {
        let looked = listener.look();
        let Some(identity) = looked.identity.renew(snapshot) else { return false };
        let Some(view) = (listener.renew)(snapshot, &identity) else { return false };
        let filter = listener.filter();
        let joined = self.join(means, listener, &view.parts, &looked.feeds, &filter);
        let feeds: Vec<_> = joined.into_iter().map(|(feed, _)| feed).collect();
        let is_in = |feed: &Arc<Feed>, all: &[Arc<Feed>]| all.iter().any(|other| Arc::ptr_eq(other, feed));
        let mut differs = view.mark != looked.mark || feeds.iter().any(|feed| !is_in(feed, &looked.feeds));
        for gone in looked.feeds.iter().filter(|feed| !is_in(feed, &feeds)) {
            gone.leave(listener.number);
            differs = true;
        }
        listener.note(Looked { identity, feeds, mark: view.mark });
        if !self.inner.lock().listeners.contains_key(&listener.number) {
            // It went meanwhile, and must not stay behind in what it has just joined.
            for feed in listener.leave() {
                feed.leave(listener.number);
            }
        } else if differs {
            listener.announce();
        }
        true
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = self.inner.lock();
        f.debug_struct("Hub")
            .field("servers", &inner.feeds.len())
            .field("listeners", &inner.listeners.len())
            .finish_non_exhaustive()
    }
}

/// Finds out which of the servers are stateless, where nobody knows yet: those subscriptions are shared.
async fn find_out(means: &Means, parts: &[Part], seat: &Seat) {
    let unknown = |part: &&Part| {
        let seen = means.shared.eras.seen(&part.permit.entry().server);
        !seat.sits(&seen) && matches!(seen.stateless, Speaks::Unknown)
    };
    let asked =
        parts.iter().filter(unknown).map(|part| means.shared.eras.stateless(&means.upstream, &part.permit));
    // A server that does not answer now gets a subscription that is not shared, once it does.
    if timeout(FEDERATED_TIME, join_all(asked)).await.is_err() {
        tracing::debug!("not every server said in time which era it speaks");
    }
}

/// What of a wish the servers honour, once they have said so.
async fn honoured(
    feeds: &[(Arc<Feed>, Naming)],
    filter: &Filter,
    federated: bool,
    until: Instant,
) -> Result<Filter, Reject> {
    // The lists of a federated door change when servers come and go, which needs no server to say so.
    let mut honoured = if federated { topic::all_lists() } else { Filter::default() };
    for (feed, naming) in feeds {
        let wants = topic::own(filter, naming);
        let part = match feed.decided(&wants, until).await {
            Decided::Honoured(part) => part,
            // When it is back, all of this is announced.
            Decided::Failed(_) if federated => wants,
            Decided::Failed(fault) => return Err(Reject::upstream(fault, true)),
        };
        honoured = honoured.union(&topic::public(&part, naming, filter));
    }
    Ok(honoured.intersect(filter))
}

/// Who shares a subscription: those with the same rights to the same server. Nothing of a principal is in that; only at a
/// server that has sessions everybody listens in its own.
fn key(means: &Means, permit: &Permit, seat: &Seat) -> Key {
    let (identity, server) = (permit.identity(), &permit.entry().server);
    let principal = identity.principal();
    let mut roles: Vec<&str> = principal.roles.iter().map(String::as_str).collect();
    roles.sort_unstable();
    let limits = identity.key().map(|key| &key.limits);
    let text = serde_json::to_vec(&(&principal.tenant, roles, limits)).unwrap_or_default();
    let mut rights = [0; 32];
    rights.copy_from_slice(digest::digest(&digest::SHA256, &text).as_ref());
    let seen = means.shared.eras.seen(server);
    let in_session = seat.sits(&seen) || !seen.stateless.is_yes();
    let seat = in_session.then(|| seat.mark(identity));
    Key { server: server.id, version: server.version, rights, seat }
}
