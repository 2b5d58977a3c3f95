//! Which endpoint a message goes to: of one that has its turn by weight and one that is drawn, the one that is clearly better off, by how long it
//! takes to answer and how much is under way at it; first those in our own zone. Endpoints that are left alone are
//! skipped; where all are, the message is turned away at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::standing::{EndpointState, Standing};

/// Only what is so many times better off is preferred to what the weights say: less is noise.
const CLEARLY: u64 = 2;
/// So often another one is drawn to compare with. Not for as long as it takes: an endpoint of little weight is to have
/// little, whatever the others do.
const DRAWS: u32 = 4;
/// Answers that come faster than this are equally fast.
const FLOOR_US: u64 = 1000;

/// An endpoint, and whether the call is one that tries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Picked {
    pub(super) endpoint: u16,
    pub(super) trial: bool,
}

/// Endpoints that a message has been tried at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tried(u32);

impl Tried {
    pub(super) fn note(&mut self, endpoint: u16) {
        self.0 |= 1_u32.checked_shl(endpoint.into()).unwrap_or(0);
    }

    /// Whether one of so many is left.
    pub(super) fn leaves_any_of(self, count: usize) -> bool {
        usize::try_from(self.0.count_ones()).unwrap_or(usize::MAX) < count
    }

    fn holds(self, endpoint: u16) -> bool {
        self.0 & 1_u32.checked_shl(endpoint.into()).unwrap_or(0) != 0
    }
}

/// Numbers that are random enough to spread load with: splitmix64.
#[derive(Debug, Default)]
pub(super) struct Dice(AtomicU64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    pub(super) fn roll(&self) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Standing {
    /// An endpoint that the message was not tried at. The error says how long all that are left will be left alone;
    /// none where there are no others.
    pub(super) fn pick(&self, tried: Tried, now: Instant) -> Result<Picked, Option<Duration>> {
        let own = |state: &EndpointState| state.own_zone && state.breaker.is_closed();
        let prefers_own = (0..).zip(&self.endpoints).any(|(i, state)| own(state) && !tried.holds(i));
        let eligible = |i: u16, state: &EndpointState| !tried.holds(i) && (!prefers_own || state.own_zone);
        // One whose time has come is tried before anything else, or it would never be.
        let mut soonest = None;
        for (i, state) in (0..).zip(&self.endpoints) {
            if state.breaker.is_closed() || !eligible(i, state) {
                continue;
            }
            match state.breaker.admit(&self.rules.breaker, now) {
                Ok(trial) => return Ok(Picked { endpoint: i, trial }),
                Err(wait) => soonest = Some(soonest.map_or(wait, |other: Duration| other.min(wait))),
            }
        }
        let open = |i: u16, state: &EndpointState| eligible(i, state) && state.breaker.is_closed();
        // In turn, so that the weights come out even over few messages too.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let Some(first) = self.draw(turn, open) else { return Err(soonest) };
        let other = || self.draw(self.dice.roll(), open).filter(|second| *second != first);
        let picked = match (0..DRAWS).find_map(|_| other()) {
            Some(second) => self.better(first, second, now),
            None => first,
        };
        Ok(Picked { endpoint: picked, trial: false })
    }

    /// One of these, by weight.
    fn draw(&self, number: u64, among: impl Fn(u16, &EndpointState) -> bool) -> Option<u16> {
        let candidates = || (0..).zip(&self.endpoints).filter(|(i, state)| among(*i, state));
        let total: u64 = candidates().map(|(_, state)| u64::from(state.weight)).sum();
        let mut left = number % total.max(1);
        for (i, state) in candidates() {
            if left < u64::from(state.weight) {
                return Some(i);
            }
            left -= u64::from(state.weight);
        }
        None
    }

    fn better(&self, first: u16, second: u16, now: Instant) -> u16 {
        let cost =
            |i: u16| self.endpoints.get(usize::from(i)).map_or(u64::MAX, |state| self.cost(state, now));
        if cost(second).saturating_mul(CLEARLY) < cost(first) { second } else { first }
    }

    /// How long an answer takes, times what is under way: as much as its weight gives it counts as one call.
    fn cost(&self, state: &EndpointState, now: Instant) -> u64 {
        let (weight, count) = (u64::from(state.weight).max(1), self.endpoints.len() as u64);
        let under_way = u64::from(state.in_flight()) * self.total_weight / (weight * count.max(1));
        state.latency.expected_us(now).max(FLOOR_US).saturating_mul(under_way + 1)
    }
}
