//! Calls of stateless clients at servers of older revisions that asked something in mid-call: the server's stream stays
//! open here while the client fetches the answers. What the client is given for it is sealed, so that nobody else can
//! come back with it, or for another request [2026-07-28 basic/patterns/mrtr].

use std::collections::HashMap;
use std::time::Duration;

use aws_lc_rs::{digest, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;
use waffles_core::seal::SealRing;
use waffles_mcp::translate::input::InputRequest;
use waffles_mcp::{Head, Id};

use super::session::Call;
use crate::permit::Permit;
use crate::reject::Reject;

const PURPOSE: &[u8] = b"waffles request state 1";
/// How long a call waits for its client.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// Calls of one principal, and altogether, that may wait at a time.
const MAX_PER_PRINCIPAL: usize = 100;
const MAX_CALLS: usize = 10_000;
/// Answered calls that are remembered, so that a duplicate is told from a stranger.
const ANSWERED: usize = 10_000;

/// What a `requestState` of ours says. Opaque to clients.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    principal: Uuid,
    key: String,
    tenant: String,
    server: Uuid,
    method: String,
    /// Of the name or URI and the arguments.
    digest: String,
    /// Seconds since the epoch.
    expires: i64,
    /// The proxy that holds the call, by its address for other proxies.
    pub owner: Option<String>,
    /// The call that waits.
    pub call: Option<u128>,
    /// The server's own state, where it speaks the stateless revision itself.
    pub upstream: Option<String>,
}

impl State {
    /// The state of a request that was permitted.
    pub fn new(permit: &Permit, head: &Head, now: i64) -> Self {
        let identity = permit.identity();
        let server = &permit.entry().server;
        Self {
            principal: identity.principal().id,
            key: identity.key().map(|key| key.id.clone()).unwrap_or_default(),
            tenant: server.tenant.clone(),
            server: server.id,
            method: head.method.as_str().to_owned(),
            digest: digest_of(head),
            expires: now + i64::try_from(PATIENCE.as_secs()).unwrap_or(600),
            owner: None,
            call: None,
            upstream: None,
        }
    }

    /// The text for the client.
    pub fn seal(&self, ring: &SealRing) -> Result<String, Reject> {
        let failed = || Reject::Internal("cannot_seal_state");
        let plain = serde_json::to_vec(self).map_err(|_| failed())?;
        Ok(URL_SAFE_NO_PAD.encode(ring.seal(PURPOSE, &plain).map_err(|_| failed())?))
    }

    /// Reads a state, and checks that it was given to this principal, for this request, and not too long ago.
    pub fn open(text: &str, ring: &SealRing, permit: &Permit, head: &Head, now: i64) -> Result<Self, Reject> {
        let bad = Reject::BadRequestState;
        let sealed = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad("forged_request_state"))?;
        let plain = ring.open(PURPOSE, &sealed).map_err(|_| bad("forged_request_state"))?;
        let state: Self = serde_json::from_slice(&plain).map_err(|_| bad("forged_request_state"))?;
        let expected = Self::new(permit, head, now);
        let same = state.principal == expected.principal
            && state.key == expected.key
            && state.tenant == expected.tenant
            && state.server == expected.server
            && state.method == expected.method
            && state.digest == expected.digest;
        if !same {
            return Err(bad("foreign_request_state"));
        }
        if state.expires < now {
            return Err(bad("expired_request_state"));
        }
        Ok(state)
    }
}

/// What makes two requests the same, whatever the order of their keys.
fn digest_of(head: &Head) -> String {
    let arguments = head.arguments.as_deref().unwrap_or(b"{}");
    let canonical = serde_json::from_slice::<serde_json::Value>(arguments)
        .map_or_else(|_| arguments.to_vec(), |value| value.to_string().into_bytes());
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(head.name.as_deref().unwrap_or_default().as_bytes());
    context.update(&[0]);
    context.update(&canonical);
    URL_SAFE_NO_PAD.encode(context.finish())
}

/// A call whose server waits for answers.
#[derive(Debug)]
pub struct Parked {
    /// The open call.
    pub call: Call,
    /// What the server asked: the id to answer under, and the question as the client got it.
    pub asked: Vec<(Id, InputRequest)>,
    /// Under which right it was made; asked again when it goes on.
    pub permit: Permit,
}

#[derive(Debug)]
struct Space {
    principal: Uuid,
    until: Instant,
    parked: Box<Parked>,
}

/// All the calls that wait. Shared by all threads.
#[derive(Debug, Default)]
pub struct Lot {
    waiting: Mutex<HashMap<u128, Space>>,
    answered: Mutex<std::collections::VecDeque<u128>>,
}

impl Lot {
    /// Lets a call wait, and names it. A principal that has too many has to finish some first.
    pub fn park(&self, parked: Parked) -> Result<u128, Reject> {
        let mut name = [0; 16];
        rand::fill(&mut name).map_err(|_| Reject::Internal("no_random_numbers"))?;
        let name = u128::from_be_bytes(name);
        let principal = parked.permit.identity().principal().id;
        let mut waiting = self.waiting.lock();
        let own = waiting.values().filter(|space| space.principal == principal).count();
        if waiting.len() >= MAX_CALLS || own >= MAX_PER_PRINCIPAL {
            // The call is dropped with what it holds, which cancels it at the server.
            return Err(Reject::TooMany("calls that wait for input"));
        }
        waiting.insert(name, Space { principal, until: Instant::now() + PATIENCE, parked: Box::new(parked) });
        Ok(name)
    }

    /// Takes a call out to go on with it. A second one who comes for it is told so.
    pub fn take(&self, name: u128) -> Result<Parked, Reject> {
        if let Some(space) = self.waiting.lock().remove(&name) {
            let mut answered = self.answered.lock();
            while answered.len() >= ANSWERED {
                answered.pop_front();
            }
            answered.push_back(name);
            return Ok(*space.parked);
        }
        let answered = self.answered.lock().contains(&name);
        Err(Reject::BadRequestState(if answered { "request_state_used" } else { "request_state_lost" }))
    }

    /// Gives up calls whose client did not come back: dropping one cancels it at its server.
    pub fn sweep(&self) {
        let now = Instant::now();
        let gone: Vec<Space> = {
            let mut waiting = self.waiting.lock();
            let names: Vec<u128> =
                waiting.iter().filter(|(_, space)| space.until <= now).map(|(name, _)| *name).collect();
            names.into_iter().filter_map(|name| waiting.remove(&name)).collect()
        };
        if !gone.is_empty() {
            tracing::info!(calls = gone.len(), "gave up calls whose clients did not come back with answers");
        }
    }

    /// Gives up all of them.
    pub fn clear(&self) {
        let gone = std::mem::take(&mut *self.waiting.lock());
        drop(gone);
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
