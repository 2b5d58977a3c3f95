//! One subscription upstream for all listeners to one server who have the same rights: what they want together, what
//! the server honours of it, and the task that keeps it open and hands round what comes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use uuid::Uuid;
use waffles_core::snapshot::Snapshot;
use waffles_mcp::translate::Client;
use waffles_mcp::translate::notice::{self, Filter};
use waffles_mcp::{Message, Method, Slot, capability};

use super::listener::{Audience, Listener};
use super::source::{Said, Source};
use super::topic::{self, List, Topic};
use crate::authn::Identity;
use crate::bridge::Naming;
use crate::front::Session;
use crate::link::BackOff;
use crate::permit::Permit;
use crate::reject::{Reject, UpstreamFault};
use crate::shared::Means;
use crate::upstream::eras::Seen;

/// Messages about one topic that come within this time are one.
const GATHER: Duration = Duration::from_millis(50);
/// Listeners that come together are asked for together.
const SETTLE: Duration = Duration::from_millis(20);
/// How long a feed waits for another listener before it ends.
const LINGER: Duration = Duration::from_secs(2);
/// A server that offers nothing is asked again after this time, for it may have been changed.
const ASK_AGAIN: Duration = Duration::from_secs(300);
/// Between attempts to reach a server.
const RETRY_LEAST: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(30);
/// A stream that lasted so long was well: the next failure is the first again.
const WELL: Duration = Duration::from_secs(30);

/// In whose session a server is listened to: the one in which the same client's calls are made.
#[derive(Debug, Clone)]
pub struct Seat {
    /// What the client says of itself.
    pub client: Client,
    /// The client's own session, where it has one.
    pub owner: Option<u128>,
}

impl Seat {
    /// Whether the client's calls are made in a session of its own, which the server has.
    pub fn sits(&self, seen: &Seen) -> bool {
        self.owner.is_some() && seen.sessions.is_yes()
    }

    /// What tells one from another: a digest of whose it is. A stateless server has no sessions, and needs none.
    pub fn mark(&self, identity: &Identity) -> [u8; 32] {
        let key = identity.key().map(|key| key.id.as_str()).unwrap_or_default();
        let capabilities = capability::normalise(&self.client.capabilities);
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(identity.principal().id.as_bytes());
        context.update(&self.owner.unwrap_or_default().to_be_bytes());
        context.update(key.as_bytes());
        context.update(&[0]);
        context.update(&capabilities);
        let mut mark = [0; 32];
        mark.copy_from_slice(context.finish().as_ref());
        mark
    }
}

/// Which listeners share a feed: those who may see the same of the same server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// The server.
    pub server: Uuid,
    /// Of its registration: a changed server gets a new subscription.
    pub version: u64,
    /// A digest of the rights. Nothing of a principal is in it.
    pub rights: [u8; 32],
    /// Whose session it is, at a server that has sessions: they are never shared.
    pub seat: Option<[u8; 32]>,
}

impl Key {
    /// Whether it is one for the same server and rights, whatever the session.
    pub fn is_like(&self, other: &Self) -> bool {
        (self.server, self.version, &self.rights) == (other.server, other.version, &other.rights)
    }
}

/// A subscription that several listeners share.
#[derive(Debug)]
pub struct Feed {
    /// Who shares it.
    pub key: Key,
    seat: Seat,
    state: Mutex<State>,
    cover: watch::Sender<Cover>,
    poke: Notify,
}

#[derive(Debug, Default)]
struct State {
    members: HashMap<u64, Member>,
    /// Who keeps it open without listening, and until when.
    kept: Option<(Permit, Instant)>,
    left_at: Option<Instant>,
    /// Something may have happened unheard.
    missed: bool,
    closed: bool,
}

/// A listener's share.
#[derive(Debug)]
pub struct Member {
    /// Who listens.
    pub listener: Arc<Listener>,
    /// Its right to it.
    pub permit: Permit,
    /// Under which names it knows what the server has.
    pub naming: Naming,
    /// What it wants, in the server's words.
    pub wants: Filter,
}

/// What a feed covers now.
#[derive(Debug, Clone, Default)]
struct Cover {
    stage: Stage,
    asked: Arc<Filter>,
    honoured: Arc<Filter>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    /// The server was not reached yet.
    #[default]
    Opening,
    /// Whatever the server says is heard.
    Live,
    /// The server offers none of it.
    Nothing,
    /// The server cannot be reached; it is tried again.
    Failed(UpstreamFault),
}

/// What became of a listener's wish.
#[derive(Debug)]
pub enum Decided {
    /// This much of it is honoured.
    Honoured(Filter),
    /// The server cannot be reached now.
    Failed(UpstreamFault),
}

/// Why a stream is not read any further.
enum Over {
    /// Nobody listens any more.
    Closed,
    /// It broke off, or what is wanted cannot be had on it.
    Lost,
}

impl Feed {
    /// A feed that nothing has been heard of.
    pub fn new(key: Key, seat: Seat) -> Self {
        let state = State { left_at: Some(Instant::now()), ..State::default() };
        Self { key, seat, state: Mutex::new(state), cover: watch::Sender::default(), poke: Notify::new() }
    }

    /// Adds a listener. `late` says that it listened before, elsewhere, and may have missed something meanwhile. False
    /// where the feed has ended.
    pub fn join(&self, number: u64, member: Member, late: bool) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            return false;
        }
        let mut look = !topic::names_all(&self.cover.borrow().asked, &member.wants);
        state.members.insert(number, member);
        // Who comes now need not wait for the next attempt at a server that could not be reached.
        self.cover.send_if_modified(|cover| {
            state.missed |= late && cover.stage != Stage::Live;
            let failed = matches!(cover.stage, Stage::Failed(_));
            if failed {
                cover.stage = Stage::Opening;
            }
            look |= failed || cover.stage == Stage::Opening;
            failed
        });
        drop(state);
        if look {
            self.poke.notify_one();
        }
        true
    }

    /// How many resources and tasks its listeners name.
    pub fn named(&self) -> usize {
        self.state
            .lock()
            .members
            .values()
            .map(|member| member.wants.uris.len() + member.wants.task_ids.len())
            .sum()
    }

    /// Takes a listener away.
    pub fn leave(&self, number: u64) {
        let mut state = self.state.lock();
        let Some(gone) = state.members.remove(&number) else { return };
        if state.members.is_empty() {
            state.left_at = Some(Instant::now());
        }
        let look = state.members.is_empty() || !gone.wants.uris.is_empty();
        drop(state);
        if look {
            self.poke.notify_one();
        }
    }

    /// Changes what a listener wants.
    pub fn rewish(&self, number: u64, wants: impl FnOnce(&Naming) -> Filter) {
        if let Some(member) = self.state.lock().members.get_mut(&number) {
            member.wants = wants(&member.naming);
        }
        self.poke.notify_one();
    }

    /// Keeps it open until then, though nobody listens. False where it has ended.
    pub fn keep(&self, permit: &Permit, until: Instant) -> bool {
        let mut state = self.state.lock();
        let first = state.kept.is_none();
        state.kept = Some((permit.clone(), until));
        let open = !state.closed;
        drop(state);
        if first {
            self.poke.notify_one();
        }
        open
    }

    /// Whether the server's word that a list has changed would be heard.
    pub fn covers(&self, list: List) -> bool {
        let cover = self.cover.borrow();
        cover.stage == Stage::Live && list.is_in(&cover.honoured)
    }

    /// Waits until it is known what becomes of a wish; too long a wait counts as a failure.
    pub async fn decided(&self, wants: &Filter, until: Instant) -> Decided {
        let mut cover = self.cover.subscribe();
        let settled = |cover: &Cover| match cover.stage {
            Stage::Opening => false,
            Stage::Live | Stage::Nothing => topic::names_all(&cover.asked, wants),
            Stage::Failed(_) => true,
        };
        match timeout_at(until, cover.wait_for(settled)).await {
            Ok(Ok(cover)) => match cover.stage {
                Stage::Failed(fault) => Decided::Failed(fault),
                _ => Decided::Honoured(cover.honoured.intersect(wants)),
            },
            _ => Decided::Failed(UpstreamFault::TimedOut),
        }
    }

    /// Looks whether who keeps it open still may.
    pub fn check(&self, snapshot: &Snapshot) {
        let mut state = self.state.lock();
        let version = self.key.version;
        let may = |permit: &Permit| {
            permit.renewed(snapshot).is_some_and(|permit| permit.entry().server.version == version)
        };
        if state.kept.as_ref().is_some_and(|(permit, _)| !may(permit)) {
            state.kept = None;
            drop(state);
            self.poke.notify_one();
        }
    }

    /// Ends it, where nobody is there. Called under the lock of the hub, so that nobody joins in between.
    pub fn close(&self) -> bool {
        let mut state = self.state.lock();
        state.closed |= state.ends_at().is_some_and(|at| at <= Instant::now());
        state.closed
    }

    fn wanted(&self) -> Filter {
        let state = self.state.lock();
        let all = if state.kept.is_some() { topic::all_lists() } else { Filter::default() };
        state.members.values().fold(all, |all, member| all.union(&member.wants))
    }

    /// Somebody's right to be here, as it is now.
    fn permit(&self, snapshot: &Snapshot) -> Option<Permit> {
        let state = self.state.lock();
        let kept = state.kept.iter().map(|(permit, _)| permit);
        let mut all = state.members.values().map(|member| &member.permit).chain(kept);
        all.find_map(|permit| {
            permit.renewed(snapshot).filter(|permit| permit.entry().server.version == self.key.version)
        })
    }

    fn ends_at(&self) -> Option<Instant> {
        self.state.lock().ends_at()
    }

    fn tell(&self, cover: Cover) {
        self.cover.send_replace(cover);
    }

    /// Hands round what has changed.
    fn deliver(&self, news: &[(Topic, Arc<Message>)]) {
        for member in self.state.lock().members.values() {
            for (topic, message) in news.iter().filter(|(topic, _)| topic.is_wanted(&member.wants)) {
                member.listener.notice(topic.clone().public(&member.naming), message);
            }
        }
    }

    /// Says to listeners that all that is covered may have changed.
    fn announce(&self) {
        let covered = Arc::clone(&self.cover.borrow().honoured);
        let news = Topic::all(&covered).into_iter();
        let news = news.filter_map(|topic| topic.announcement().map(|message| (topic, message)));
        self.deliver(&news.collect::<Vec<_>>());
    }

    /// Says to who remembers lists that what is covered is not to be believed: what was read before the server's word was
    /// heard may have changed unheard, and so may anything once it is heard no more.
    fn doubt(&self, means: &Means) {
        let covered = Arc::clone(&self.cover.borrow().honoured);
        for topic in Topic::all(&covered) {
            means.shared.hub.invalidate(self.key.server, &topic);
        }
    }

    /// Keeps the subscription open for as long as somebody wants it.
    pub async fn run(self: Arc<Self>, means: Means) {
        let mut back_off = BackOff::between(RETRY_LEAST, RETRY_MOST);
        loop {
            let opened = self.open(&means).await;
            let wait = match opened {
                Ok(Some((permit, mut source))) => {
                    self.doubt(&means);
                    if std::mem::take(&mut self.state.lock().missed) {
                        self.announce();
                    }
                    let since = Instant::now();
                    let over = self.listen(&means, &permit, &mut source).await;
                    self.cover.send_modify(|cover| cover.stage = Stage::Opening);
                    self.doubt(&means);
                    if matches!(over, Over::Closed) {
                        source.release(&means, &permit).await;
                        break;
                    }
                    if since.elapsed() > WELL {
                        back_off.reset();
                    }
                    self.state.lock().missed = true;
                    back_off.next()
                }
                Ok(None) => {
                    back_off.reset();
                    ASK_AGAIN
                }
                Err(reject) => {
                    tracing::debug!(server.id = %self.key.server, reason = reject.reason(), "cannot subscribe");
                    let fault = match reject {
                        Reject::Upstream { fault, .. } => fault,
                        _ => UpstreamFault::Failed,
                    };
                    let mut state = self.state.lock();
                    state.missed = true;
                    drop(state);
                    self.tell(Cover { stage: Stage::Failed(fault), ..Cover::default() });
                    back_off.next()
                }
            };
            if self.rest(&means, wait).await {
                break;
            }
        }
    }

    async fn open(&self, means: &Means) -> Result<Option<(Permit, Source)>, Reject> {
        tokio::time::sleep(SETTLE).await;
        let gone = || Reject::Forbidden("nobody may listen".into());
        let permit = self.permit(&means.current.load()).ok_or_else(gone)?;
        let wanted = self.wanted();
        let source = Source::open(means, &permit, &self.seat, &wanted).await?;
        let Some(source) = source else {
            self.tell(Cover { stage: Stage::Nothing, asked: Arc::new(wanted), honoured: Arc::default() });
            return Ok(None);
        };
        self.covered(&source, &wanted);
        Ok(Some((permit, source)))
    }

    /// What the server does not offer counts as asked for: it will not be had by asking again.
    fn covered(&self, source: &Source, wanted: &Filter) {
        let asked = Arc::new(source.asked.union(wanted));
        self.tell(Cover { stage: Stage::Live, asked, honoured: Arc::new(source.honoured.clone()) });
    }

    /// Reads the stream until it is over.
    async fn listen(&self, means: &Means, permit: &Permit, source: &mut Source) -> Over {
        let mut news: Vec<(Topic, Arc<Message>)> = Vec::new();
        let mut due: Option<Instant> = None;
        loop {
            let ends_at = self.ends_at();
            let heard = tokio::select! {
                heard = source.next() => heard,
                () = at(due) => {
                    due = None;
                    self.deliver(&std::mem::take(&mut news));
                    continue;
                }
                () = at(ends_at) => {
                    if means.shared.hub.close(means, self) {
                        return Over::Closed;
                    }
                    continue;
                }
                () = self.poke.notified() => {
                    tokio::time::sleep(SETTLE).await;
                    let wanted = self.wanted();
                    // One that is about to end keeps what it has, in case somebody comes back.
                    if self.ends_at().is_none() && source.is_behind(&wanted) {
                        if source.follow(means, permit, &wanted).await.is_err() {
                            self.deliver(&news);
                            return Over::Lost;
                        }
                        self.covered(source, &wanted);
                    } else if !topic::names_all(&self.cover.borrow().asked, &wanted) {
                        self.covered(source, &wanted);
                    }
                    continue;
                }
            };
            let message = match heard {
                Ok(Some(message)) => message,
                Ok(None) | Err(_) if source.take_up(means, permit).await => continue,
                Ok(None) | Err(_) => {
                    self.deliver(&news);
                    return Over::Lost;
                }
            };
            let client = self.client();
            match source.judge(means, permit, client.as_ref(), message).await {
                Said::Notification(message) => match Topic::of(&message) {
                    Some(topic) => {
                        means.shared.hub.invalidate(self.key.server, &topic);
                        gather(&mut news, topic, message);
                        due.get_or_insert_with(|| Instant::now() + GATHER);
                    }
                    None => self.pass_on(means, client.as_ref(), &message),
                },
                Said::Nothing => means.desk.metrics.dropped("not_subscribed_to"),
                Said::Ended => {
                    self.deliver(&news);
                    return Over::Lost;
                }
            }
        }
    }

    /// The client's session, where the server is listened to in it.
    fn client(&self) -> Option<Arc<Session>> {
        self.seat.owner?;
        self.state.lock().members.values().find_map(|member| match &member.listener.audience {
            Audience::Standing(session) => Some(Arc::clone(session)),
            Audience::Listen(_) => None,
        })
    }

    /// A log message that belongs to no call, as the session's client wants it.
    fn pass_on(&self, means: &Means, client: Option<&Arc<Session>>, message: &Message) {
        let is_log = message.method() == Some(Method::LoggingMessage.as_str());
        let standing = client.filter(|_| is_log).and_then(|session| Some((session, session.standing()?)));
        let Some((session, standing)) = standing else {
            return means.desk.metrics.dropped("not_subscribed_to");
        };
        let wanted = session.log_level().as_deref().and_then(notice::level_rank).unwrap_or(0);
        let level = message.text(Slot::Level).and_then(|level| notice::level_rank(&level));
        // A copy: what waits for a slow client must not keep the whole chunk that it came in.
        if level.is_some_and(|level| level < wanted) || !standing.try_send(message.rewrite_with(None, &[])) {
            means.desk.metrics.dropped("log_not_wanted");
        }
    }

    /// Waits before the next attempt; true where nobody wants one any more.
    async fn rest(&self, means: &Means, wait: Duration) -> bool {
        let now = Instant::now();
        let (mut until, soonest) = (now + wait, now + wait.min(RETRY_LEAST));
        loop {
            let ends_at = self.ends_at();
            tokio::select! {
                () = sleep_until(until) => return false,
                () = at(ends_at) => {
                    if means.shared.hub.close(means, self) {
                        return true;
                    }
                }
                () = self.poke.notified() => {
                    let cover = self.cover.borrow().clone();
                    let again = match cover.stage {
                        Stage::Opening => true,
                        // Something else is wanted than what the server was found not to offer.
                        Stage::Nothing => !topic::names_all(&cover.asked, &self.wanted()),
                        Stage::Live | Stage::Failed(_) => false,
                    };
                    if again {
                        until = until.min(soonest);
                    }
                }
            }
        }
    }
}

impl State {
    /// When it ends, if nobody comes.
    fn ends_at(&self) -> Option<Instant> {
        if !self.members.is_empty() {
            return None;
        }
        let left = self.left_at.map(|at| at + LINGER);
        let kept = self.kept.as_ref().map(|(_, until)| *until);
        left.max(kept)
    }
}

/// Waits until then; for ever where there is no then.
async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

fn gather(news: &mut Vec<(Topic, Arc<Message>)>, topic: Topic, message: Message) {
    let message = Arc::new(message);
    match news.iter_mut().find(|(other, _)| *other == topic) {
        Some((_, older)) => *older = message,
        None => news.push((topic, message)),
    }
}
