//! One message at one endpoint, from the pick to the end of the answer: what is counted of it, once, whatever its end. It
//! goes with the answer's body, so that a stream counts until it is over.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use tokio::time::Instant;

use super::breaker::Why;
use super::gate::Place;
use super::manner::Manner;
use super::pick::Picked;
use super::pool::Prepared;
use crate::reject::UpstreamFault;

/// A message under way.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) prepared: Arc<Prepared>,
    pub(super) endpoint: u16,
    /// It tries an endpoint that was left alone.
    trial: bool,
    /// What it came to is counted already.
    counted: bool,
    /// It is a stream that stays open, which is no load.
    listens: bool,
    began: Instant,
    place: Option<Place>,
}

impl Ticket {
    pub(super) fn new(
        prepared: &Arc<Prepared>,
        picked: Picked,
        place: Option<Place>,
        manner: Manner,
    ) -> Self {
        let listens = manner == Manner::Listens;
        if let Some(state) = prepared.standing.endpoint(picked.endpoint).filter(|_| !listens) {
            state.begin();
        }
        let Picked { endpoint, trial } = picked;
        let began = Instant::now();
        let counted = manner == Manner::Looks;
        Self { prepared: Arc::clone(prepared), endpoint, trial, counted, listens, began, place }
    }

    /// The head of the answer has come. A server that fails says so with 5xx; with 429 or 503 it may say when it wants to
    /// be asked again.
    pub(super) fn heard(&mut self, status: StatusCode, headers: &HeaderMap) {
        if self.counted {
            return;
        }
        let now = Instant::now();
        let standing = &self.prepared.standing;
        let Some(state) = standing.endpoint(self.endpoint) else { return };
        state.latency.note(now.duration_since(self.began), now);
        let most = standing.rules.breaker.retry_after_most;
        if matches!(status.as_u16(), 429 | 503)
            && !most.is_zero()
            && let Some(wanted) = retry_after(headers)
        {
            self.end_trial();
            self.counted = true;
            standing_rest(&self.prepared, self.endpoint, now, wanted.min(most));
        } else if status.is_server_error() {
            self.failed(UpstreamFault::Failed);
        } else if self.trial || self.listens {
            // That it answers at all is what was to be found out.
            self.succeeded();
        }
    }

    /// The answer is complete.
    pub(super) fn succeeded(&mut self) {
        self.place = None;
        if std::mem::replace(&mut self.counted, true) {
            return;
        }
        let standing = &self.prepared.standing;
        let Some(state) = standing.endpoint(self.endpoint) else { return };
        match std::mem::take(&mut self.trial) {
            true => state.breaker.passed(&standing.rules.breaker, Instant::now()),
            false => state.breaker.succeeded(&standing.rules.breaker, Instant::now()),
        }
    }

    /// It came to nothing, by the server's fault.
    pub(super) fn failed(&mut self, fault: UpstreamFault) {
        if std::mem::replace(&mut self.counted, true) {
            return;
        }
        let standing = &self.prepared.standing;
        let Some(state) = standing.endpoint(self.endpoint) else { return };
        let now = Instant::now();
        if fault == UpstreamFault::TimedOut {
            // It was at least this slow, which others shall know before they choose it.
            state.latency.note(now.duration_since(self.began), now);
        }
        match std::mem::take(&mut self.trial) {
            true => {
                state.breaker.fell(&standing.rules.breaker, now, fault, standing.dice.roll());
                standing.metrics.left_alone(standing.name(), Why::FailedTrial.as_str());
            }
            false => standing.failed(self.endpoint, fault, now),
        }
    }

    /// Nobody but a person can say how long it will take now, so it holds no place any more.
    pub(super) fn waits_for_a_person(&mut self) {
        self.place = None;
    }

    /// The place, where the answer comes another way.
    pub(super) fn take_place(&mut self) -> Option<Place> {
        self.place.take()
    }

    fn end_trial(&mut self) {
        if std::mem::take(&mut self.trial)
            && let Some(state) = self.prepared.standing.endpoint(self.endpoint)
        {
            state.breaker.gave_up();
        }
    }
}

fn standing_rest(prepared: &Prepared, endpoint: u16, now: Instant, wanted: Duration) {
    let standing = &prepared.standing;
    if let Some(state) = standing.endpoint(endpoint) {
        state.breaker.rest(now, wanted);
        standing.metrics.left_alone(standing.name(), Why::AskedToWait.as_str());
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.end_trial();
        if let Some(state) = self.prepared.standing.endpoint(self.endpoint).filter(|_| !self.listens) {
            state.end();
        }
    }
}

/// When the server wants to be asked again [RFC 9110 section 10.2.3]: seconds, or a date.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = chrono::DateTime::parse_from_rfc2822(value).ok()?;
    date.signed_duration_since(chrono::Utc::now()).to_std().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(read(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(read("-1"), None);
        assert_eq!(read("soon"), None);
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), None, "that was long ago");
        let later = chrono::Utc::now() + chrono::TimeDelta::seconds(90);
        let wait = read(&later.format("%a, %d %b %Y %H:%M:%S GMT").to_string()).unwrap();
        assert!((85..=90).contains(&wait.as_secs()), "{wait:?}");
    }
}
