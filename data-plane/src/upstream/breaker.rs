//! Whether one endpoint is asked at all. Closed: it is. Open: it is left alone for a while. Half-open: a few calls try it.
//! Shared by all threads; while it is closed a call costs it a few atomic steps and no lock.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use tokio::time::Instant;
use waffles_core::resilience::Breaker as Rules;

use super::window::Window;
use crate::reject::UpstreamFault;

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const HALF_OPEN: u8 = 2;

/// How soon it is worth asking again while others try the endpoint.
const WHILE_TRIED: Duration = Duration::from_secs(1);

/// What a breaker lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Circuit {
    /// Everything.
    Closed,
    /// Nothing, for a while.
    Open,
    /// A few calls, which try the endpoint.
    HalfOpen,
}

impl Circuit {
    /// One stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Why an endpoint is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// Too many failures in a row.
    Failures,
    /// Too large a share of its calls failed.
    ErrorRate,
    /// It fails more than the other endpoints of its server.
    Outlier,
    /// It said `Retry-After`.
    AskedToWait,
    /// A call that tried it failed.
    FailedTrial,
}

impl Why {
    /// One stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failures => "failures",
            Self::ErrorRate => "error_rate",
            Self::Outlier => "outlier",
            Self::AskedToWait => "retry_after",
            Self::FailedTrial => "failed_trial",
        }
    }
}

/// The breaker of one endpoint.
#[derive(Debug)]
pub(super) struct Breaker {
    /// A copy of what `inner` says, for the common look that takes no lock.
    state: AtomicU8,
    /// Failures in a row.
    row: AtomicU32,
    pub(super) window: Window,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    until: Instant,
    closed_at: Instant,
    /// How often it opened without being well in between.
    trips: u32,
    /// Calls that try it at the moment, and those that did well in a row.
    trying: u32,
    passed: u32,
    why: Option<Why>,
    since: DateTime<Utc>,
    last_error: Option<(UpstreamFault, DateTime<Utc>)>,
}

/// What a breaker says of its endpoint.
#[derive(Debug, Clone)]
pub(super) struct Report {
    pub(super) circuit: Circuit,
    pub(super) why: Option<Why>,
    pub(super) since: DateTime<Utc>,
    pub(super) opens_in: Duration,
    pub(super) last_error: Option<(UpstreamFault, DateTime<Utc>)>,
}

impl Breaker {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: AtomicU8::new(CLOSED),
            row: AtomicU32::new(0),
            window: Window::new(now),
            inner: Mutex::new(Inner {
                until: now,
                closed_at: now,
                trips: 0,
                trying: 0,
                passed: 0,
                why: None,
                since: Utc::now(),
                last_error: None,
            }),
        }
    }

    /// Whether all calls may go to it.
    pub(super) fn is_closed(&self) -> bool {
        self.state.load(Ordering::Acquire) == CLOSED
    }

    /// Whether a call may go to it now, and whether it is one that tries it. Else how long that will take.
    pub(super) fn admit(&self, rules: &Rules, now: Instant) -> Result<bool, Duration> {
        if self.is_closed() {
            return Ok(false);
        }
        let mut inner = self.inner.lock();
        match self.state.load(Ordering::Relaxed) {
            CLOSED => Ok(false),
            OPEN if now < inner.until => Err(inner.until - now),
            OPEN => {
                self.turn(&mut inner, HALF_OPEN);
                (inner.trying, inner.passed) = (1, 0);
                Ok(true)
            }
            _ if inner.trying < rules.trials => {
                inner.trying += 1;
                Ok(true)
            }
            _ => Err(WHILE_TRIED),
        }
    }

    /// Counts a call that did well.
    pub(super) fn succeeded(&self, rules: &Rules, now: Instant) {
        self.window.add(rules.window, now, false);
        if self.row.load(Ordering::Relaxed) != 0 {
            self.row.store(0, Ordering::Relaxed);
        }
    }

    /// Counts a call that failed, and opens where that is one too many.
    pub(super) fn failed(&self, rules: &Rules, now: Instant, fault: UpstreamFault, dice: u64) -> Option<Why> {
        self.note(fault);
        if !self.is_closed() {
            return None;
        }
        self.window.add(rules.window, now, true);
        let row = self.row.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if rules.failures > 0 && row >= rules.failures {
            return self.open(rules, now, Why::Failures, dice);
        }
        let (calls, failures) = self.window.counts(rules.window, now);
        let share = failures * 100 / calls.max(1);
        if rules.error_percent > 0 && calls >= rules.least_calls.into() && share >= rules.error_percent.into()
        {
            return self.open(rules, now, Why::ErrorRate, dice);
        }
        None
    }

    /// A call that tried the endpoint did well.
    pub(super) fn passed(&self, rules: &Rules, now: Instant) {
        let mut inner = self.inner.lock();
        inner.trying = inner.trying.saturating_sub(1);
        inner.passed += 1;
        if self.state.load(Ordering::Relaxed) == HALF_OPEN && inner.passed >= rules.trials {
            self.window.clear();
            self.row.store(0, Ordering::Relaxed);
            inner.closed_at = now;
            inner.why = None;
            self.turn(&mut inner, CLOSED);
        }
    }

    /// A call that tried the endpoint failed: it is left alone for longer.
    pub(super) fn fell(&self, rules: &Rules, now: Instant, fault: UpstreamFault, dice: u64) {
        let mut inner = self.inner.lock();
        inner.trying = inner.trying.saturating_sub(1);
        inner.last_error = Some((fault, Utc::now()));
        if self.state.load(Ordering::Relaxed) == HALF_OPEN {
            self.shut(&mut inner, rules, now, Why::FailedTrial, dice);
        }
    }

    /// A call that tried the endpoint came to no result: its client went away.
    pub(super) fn gave_up(&self) {
        let mut inner = self.inner.lock();
        inner.trying = inner.trying.saturating_sub(1);
    }

    /// Opens it, if all calls go to it now.
    pub(super) fn open(&self, rules: &Rules, now: Instant, why: Why, dice: u64) -> Option<Why> {
        let mut inner = self.inner.lock();
        if self.state.load(Ordering::Relaxed) != CLOSED {
            return None;
        }
        // It was well for a while, so this is a new trouble.
        if now.duration_since(inner.closed_at) > rules.window.max(rules.open_most) {
            inner.trips = 0;
        }
        self.shut(&mut inner, rules, now, why, dice);
        Some(why)
    }

    /// The server wants to be left alone for so long.
    pub(super) fn rest(&self, now: Instant, wanted: Duration) {
        let mut inner = self.inner.lock();
        let until = now + wanted;
        if self.state.load(Ordering::Relaxed) != OPEN || inner.until < until {
            inner.until = until;
            inner.why = Some(Why::AskedToWait);
            self.turn(&mut inner, OPEN);
        }
    }

    pub(super) fn report(&self, now: Instant) -> Report {
        let inner = self.inner.lock();
        let circuit = match self.state.load(Ordering::Relaxed) {
            CLOSED => Circuit::Closed,
            OPEN => Circuit::Open,
            _ => Circuit::HalfOpen,
        };
        let opens_in = match circuit {
            Circuit::Open => inner.until.saturating_duration_since(now),
            _ => Duration::ZERO,
        };
        Report { circuit, why: inner.why, since: inner.since, opens_in, last_error: inner.last_error }
    }

    fn note(&self, fault: UpstreamFault) {
        self.inner.lock().last_error = Some((fault, Utc::now()));
    }

    /// Twice as long each time, and give or take a quarter, so that many proxies do not come back at once.
    fn shut(&self, inner: &mut Inner, rules: &Rules, now: Instant, why: Why, dice: u64) {
        let most = rules.open_most.max(rules.open);
        let longer = rules.open.saturating_mul(1 << inner.trips.min(16)).min(most);
        let part = u32::try_from(dice % 501).unwrap_or(0) + 750;
        inner.until = now + longer * part / 1000;
        inner.trips = inner.trips.saturating_add(1);
        inner.why = Some(why);
        self.turn(inner, OPEN);
    }

    fn turn(&self, inner: &mut Inner, state: u8) {
        inner.since = Utc::now();
        self.state.store(state, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the middle of the dice: no more and no less than the rules say.
    const EVEN: u64 = 250;

    fn rules() -> Rules {
        Rules { failures: 3, error_percent: 50, least_calls: 10, trials: 2, ..Rules::default() }
    }

    fn fail(breaker: &Breaker, times: u32) -> Option<Why> {
        (0..times)
            .map(|_| breaker.failed(&rules(), Instant::now(), UpstreamFault::TimedOut, EVEN))
            .fold(None, Option::or)
    }

    async fn pass(millis: u64) {
        tokio::time::advance(Duration::from_millis(millis)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_open_it_and_one_success_breaks_the_row() {
        let breaker = Breaker::new(Instant::now());
        assert_eq!(fail(&breaker, 2), None);
        breaker.succeeded(&rules(), Instant::now());
        assert_eq!(fail(&breaker, 2), None);
        assert_eq!(breaker.admit(&rules(), Instant::now()), Ok(false));
        assert_eq!(fail(&breaker, 1), Some(Why::Failures));
        assert_eq!(breaker.admit(&rules(), Instant::now()), Err(Duration::from_secs(1)));
        assert_eq!(breaker.report(Instant::now()).last_error.unwrap().0, UpstreamFault::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_of_errors_opens_it_once_there_are_calls_enough_in_the_window() {
        let breaker = Breaker::new(Instant::now());
        for _ in 0..4 {
            assert_eq!(fail(&breaker, 1), None, "fewer calls than say anything");
            breaker.succeeded(&rules(), Instant::now());
        }
        breaker.succeeded(&rules(), Instant::now());
        assert_eq!(fail(&breaker, 1), Some(Why::ErrorRate), "five of ten");

        let breaker = Breaker::new(Instant::now());
        for _ in 0..9 {
            fail(&breaker, 1);
            breaker.succeeded(&rules(), Instant::now());
            pass(3_000).await;
        }
        assert_eq!(fail(&breaker, 1), None, "what was before the window does not count");
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_calls_try_it_and_close_it_or_open_it_for_twice_as_long() {
        let breaker = Breaker::new(Instant::now());
        fail(&breaker, 3);
        pass(999).await;
        assert!(breaker.admit(&rules(), Instant::now()).is_err());
        pass(1).await;
        assert_eq!(breaker.admit(&rules(), Instant::now()), Ok(true));
        assert_eq!(breaker.admit(&rules(), Instant::now()), Ok(true));
        assert!(breaker.admit(&rules(), Instant::now()).is_err(), "two are enough");
        breaker.passed(&rules(), Instant::now());
        breaker.fell(&rules(), Instant::now(), UpstreamFault::BrokeOff, EVEN);
        assert_eq!(breaker.admit(&rules(), Instant::now()), Err(Duration::from_secs(2)));
        pass(2_000).await;
        for _ in 0..2 {
            assert_eq!(breaker.admit(&rules(), Instant::now()), Ok(true));
            breaker.passed(&rules(), Instant::now());
        }
        assert_eq!(breaker.report(Instant::now()).circuit, Circuit::Closed);
        assert_eq!(breaker.admit(&rules(), Instant::now()), Ok(false));
        fail(&breaker, 3);
        assert_eq!(
            breaker.admit(&rules(), Instant::now()),
            Err(Duration::from_secs(4)),
            "it was not well for long"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_has_a_most_and_begins_anew_after_a_good_while() {
        let breaker = Breaker::new(Instant::now());
        fail(&breaker, 3);
        for _ in 0..12 {
            pass(40_000).await;
            assert_eq!(breaker.admit(&rules(), Instant::now()), Ok(true));
            breaker.fell(&rules(), Instant::now(), UpstreamFault::TimedOut, EVEN);
        }
        assert_eq!(breaker.admit(&rules(), Instant::now()), Err(Duration::from_secs(30)));
        pass(30_000).await;
        for _ in 0..2 {
            assert_eq!(breaker.admit(&rules(), Instant::now()), Ok(true));
            breaker.passed(&rules(), Instant::now());
        }
        pass(31_000).await;
        fail(&breaker, 3);
        assert_eq!(breaker.admit(&rules(), Instant::now()), Err(Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_whose_client_went_away_leaves_room_for_another() {
        let breaker = Breaker::new(Instant::now());
        fail(&breaker, 3);
        pass(1_000).await;
        assert_eq!(breaker.admit(&rules(), Instant::now()), Ok(true));
        assert_eq!(breaker.admit(&rules(), Instant::now()), Ok(true));
        breaker.gave_up();
        assert_eq!(breaker.admit(&rules(), Instant::now()), Ok(true));
    }

    #[tokio::test(start_paused = true)]
    async fn the_dice_spread_the_time_by_a_quarter() {
        for (dice, millis) in [(0, 750), (EVEN, 1000), (500, 1250), (501, 750)] {
            let breaker = Breaker::new(Instant::now());
            breaker.open(&rules(), Instant::now(), Why::Outlier, dice);
            let left = breaker.admit(&rules(), Instant::now());
            assert_eq!(left, Err(Duration::from_millis(millis)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_asks_to_be_left_alone_is() {
        let breaker = Breaker::new(Instant::now());
        breaker.rest(Instant::now(), Duration::from_secs(7));
        breaker.rest(Instant::now(), Duration::from_secs(3));
        assert_eq!(breaker.admit(&rules(), Instant::now()), Err(Duration::from_secs(7)));
        assert_eq!(breaker.report(Instant::now()).why, Some(Why::AskedToWait));
    }
}
