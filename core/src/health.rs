//! How a registered server is: how often it is looked at, what a check can find, the rule by which findings and calls
//! become a state, how the views of several proxies become one, and which proxies look. No clock and no dice of its own.

use std::borrow::Cow;
use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::FieldError;

/// What a check asks a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Check {
    /// `server/discover`, or `initialize` and `ping` where the server is of an older revision.
    #[default]
    Handshake,
    /// The same, and then its list of tools.
    Tools,
    /// Nothing: only calls tell.
    Off,
}

impl Check {
    /// One word, as in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Tools => "tools",
            Self::Off => "off",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Handshake, Self::Tools, Self::Off].into_iter().find(|check| check.as_str() == word)
    }
}

/// How a server's health is found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthPolicy {
    /// What a check asks.
    pub check: Check,
    /// Between two checks.
    pub interval: Duration,
    /// By how many hundredths of the interval a check may be earlier or later, so that checks do not march in step.
    pub jitter: u8,
    /// How long a check may take.
    pub timeout: Duration,
    /// How many checks in a row, or calls in a row, make it worse than it was.
    pub fall: u8,
    /// How many checks in a row make it better than it was.
    pub rise: u8,
    /// How many proxies of each group look.
    pub proxies: u8,
}

impl Default for HealthPolicy {
    fn default() -> Self {
        Self {
            check: Check::Handshake,
            interval: Duration::from_secs(30),
            jitter: 10,
            timeout: Duration::from_secs(5),
            fall: 3,
            rise: 2,
            proxies: 2,
        }
    }
}

impl HealthPolicy {
    /// Everything that is wrong with it, field by field.
    pub fn problems(&self) -> Vec<FieldError> {
        let mut problems = Vec::new();
        let mut wrong = |field: &str, reason: &str| {
            problems.push(FieldError::new(format!("health.{field}"), reason));
        };
        if self.interval < Duration::from_secs(1) || self.interval > Duration::from_secs(3600) {
            wrong("interval", "must be 1 s to 1 h");
        }
        if self.timeout < Duration::from_millis(100) || self.timeout > Duration::from_secs(60) {
            wrong("timeout", "must be 100 ms to 60 s");
        }
        if self.jitter > 50 {
            wrong("jitter", "must be 0 to 50 per cent");
        }
        for (field, value) in [("fall", self.fall), ("rise", self.rise), ("proxies", self.proxies)] {
            if !(1..=10).contains(&value) {
                wrong(field, "must be 1 to 10");
            }
        }
        problems
    }

    /// How long after a check the next one is due. `dice` is anything from 0 to 1.
    pub fn pause(&self, dice: f64) -> Duration {
        let share = f64::from(self.jitter.min(50)) / 100.0;
        self.interval.mul_f64(1.0 - share + 2.0 * share * dice.clamp(0.0, 1.0))
    }
}

/// How a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum State {
    /// Nobody has looked, or nobody can.
    #[default]
    Unknown,
    /// It does not answer as an MCP server does.
    Down,
    /// It answers, and something about it does not work.
    Degraded,
    /// It answers.
    Up,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Up, Self::Degraded, Self::Down, Self::Unknown];

    /// One word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Degraded => "degraded",
            Self::Down => "down",
            Self::Unknown => "unknown",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// Why, in one stable word.
pub type Reason = Cow<'static, str>;

/// Nobody has looked yet.
pub const NOT_CHECKED: &str = "not_checked";
/// Checks are off, and nobody has called it.
pub const CHECKS_OFF: &str = "checks_off";
/// No proxy says anything about it.
pub const NO_REPORT: &str = "no_report";
/// It is disabled, so nobody looks.
pub const DISABLED: &str = "disabled";
/// Calls fail, whatever checks find.
pub const CALLS_FAIL: &str = "calls_fail";
/// It is there for some proxies only.
pub const PARTLY: &str = "partly_unreachable";
/// It refuses the credential that it is shown.
pub const CREDENTIAL: &str = "credential";
/// Some of its endpoints do not answer.
pub const ENDPOINTS: &str = "some_endpoints_down";

/// What one check of a server found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It answers as it should.
    Good,
    /// It answers, and something about it does not work.
    Poor(Reason),
    /// It does not answer as an MCP server does.
    Bad(Reason),
}

impl Finding {
    /// Of a server whose endpoints were found so: as good as they are together.
    pub fn of_endpoints(found: &[Finding]) -> Self {
        let reason = |wanted: fn(&Finding) -> Option<&Reason>| found.iter().find_map(wanted).cloned();
        let bad = reason(|finding| match finding {
            Finding::Bad(reason) => Some(reason),
            _ => None,
        });
        let poor = reason(|finding| match finding {
            Finding::Poor(reason) => Some(reason),
            _ => None,
        });
        let all_bad = !found.is_empty() && found.iter().all(|finding| matches!(finding, Finding::Bad(_)));
        match (bad, poor) {
            (Some(reason), _) if all_bad => Self::Bad(reason),
            (_, Some(reason)) => Self::Poor(reason),
            (Some(_), None) => Self::Poor(ENDPOINTS.into()),
            (None, None) => Self::Good,
        }
    }

    /// The state that it speaks for.
    pub fn state(&self) -> State {
        match self {
            Self::Good => State::Up,
            Self::Poor(_) => State::Degraded,
            Self::Bad(_) => State::Down,
        }
    }

    /// Why; empty where all is well.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Good => "".into(),
            Self::Poor(reason) | Self::Bad(reason) => reason.clone(),
        }
    }
}

/// A state, why, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// How it is.
    pub state: State,
    /// Why; empty where all is well.
    pub reason: Reason,
    /// Since when it is in this state.
    pub since: DateTime<Utc>,
}

/// How one server looks from one proxy, from check to check and from call to call.
#[derive(Debug, Clone)]
pub struct Track {
    /// What checks say.
    checked: (State, Reason),
    worse: u8,
    better: u8,
    /// Calls that failed, one after the other.
    failed: u8,
    calls: Calls,
    status: Status,
}

/// What calls say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Calls {
    Silent,
    Good,
    Fail,
}

impl Track {
    /// Of a server that nobody has looked at.
    pub fn new(policy: &HealthPolicy, now: DateTime<Utc>) -> Self {
        let reason = if policy.check == Check::Off { CHECKS_OFF } else { NOT_CHECKED };
        Self {
            checked: (State::Unknown, reason.into()),
            worse: 0,
            better: 0,
            failed: 0,
            calls: Calls::Silent,
            status: Status { state: State::Unknown, reason: reason.into(), since: now },
        }
    }

    /// How it is.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Whether calls to it fail just now.
    pub fn calls_fail(&self) -> bool {
        self.calls == Calls::Fail
    }

    /// Whether calls have said anything.
    pub fn calls_are_known(&self) -> bool {
        self.calls != Calls::Silent
    }

    /// Whether a call has failed since one went well.
    pub fn is_suspect(&self) -> bool {
        self.failed > 0
    }

    /// Takes in what a check found. Tells whether the state, or why it is so, is another than before.
    ///
    /// The first word of a server that answers counts at once; that one does not answer is believed after `fall` checks,
    /// and that it is better than it was after `rise`.
    pub fn checked(&mut self, policy: &HealthPolicy, finding: &Finding, now: DateTime<Utc>) -> bool {
        let (found, held) = (finding.state(), self.checked.0);
        let enough = match (held, found) {
            (State::Unknown, State::Down) => {
                self.worse = self.worse.saturating_add(1);
                self.checked.1 = finding.reason();
                self.worse >= policy.fall
            }
            (State::Unknown, _) => true,
            _ if found < held => {
                (self.worse, self.better) = (self.worse.saturating_add(1), 0);
                self.worse >= policy.fall
            }
            _ if found > held => {
                (self.better, self.worse) = (self.better.saturating_add(1), 0);
                self.better >= policy.rise
            }
            _ => true,
        };
        if enough {
            (self.worse, self.better) = (0, 0);
            self.checked = (found, finding.reason());
        }
        self.settle(policy, now)
    }

    /// Takes in how a call ended. Tells whether the state, or why it is so, is another than before. One call that goes
    /// well is enough to believe in calls again.
    pub fn called(&mut self, policy: &HealthPolicy, went_well: bool, now: DateTime<Utc>) -> bool {
        if went_well {
            (self.failed, self.calls) = (0, Calls::Good);
        } else {
            self.failed = self.failed.saturating_add(1);
            if self.failed >= policy.fall {
                self.calls = Calls::Fail;
            }
        }
        self.settle(policy, now)
    }

    fn settle(&mut self, policy: &HealthPolicy, now: DateTime<Utc>) -> bool {
        let only_calls = policy.check == Check::Off;
        let (state, reason): (State, Reason) = match (&self.checked, self.calls) {
            ((State::Up, _), Calls::Fail) => (State::Degraded, CALLS_FAIL.into()),
            ((State::Unknown, _), Calls::Fail) if only_calls => (State::Down, CALLS_FAIL.into()),
            ((State::Unknown, _), Calls::Fail) => (State::Degraded, CALLS_FAIL.into()),
            ((State::Unknown, _), Calls::Good) if only_calls => (State::Up, "".into()),
            (checked, _) => checked.clone(),
        };
        if state != self.status.state {
            self.status = Status { state, reason, since: now };
            return true;
        }
        let other = reason != self.status.reason;
        self.status.reason = reason;
        other
    }
}

/// How a server looks from one of several proxies.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Whether this proxy checks it. One that does not can tell of its calls only.
    pub checks: bool,
    /// How it is.
    pub state: State,
    /// Why.
    pub reason: &'a str,
}

/// What several proxies see together. Down is what no proxy that looks can reach; one that some can reach is degraded.
pub fn merge(views: &[View<'_>]) -> (State, Reason) {
    let known = || views.iter().filter(|view| view.state != State::Unknown);
    let lookers = || known().filter(|view| view.checks);
    let first = |wanted: State| {
        let found = known().find(|view| view.state == wanted);
        found.map(|view| Reason::Owned(view.reason.to_owned())).unwrap_or_default()
    };
    if lookers().next().is_some() && lookers().all(|view| view.state == State::Down) {
        let found = lookers().next().map(|view| view.reason.to_owned()).unwrap_or_default();
        return (State::Down, found.into());
    }
    let has = |state: State| known().any(|view| view.state == state);
    match (has(State::Down), has(State::Degraded), has(State::Up)) {
        (true, true, _) | (true, _, true) => (State::Degraded, PARTLY.into()),
        (true, false, false) => (State::Down, first(State::Down)),
        (false, true, _) => (State::Degraded, first(State::Degraded)),
        (false, false, true) => (State::Up, "".into()),
        (false, false, false) => {
            let said = views.iter().find(|view| view.checks).or(views.first());
            (State::Unknown, said.map_or(NO_REPORT.into(), |view| view.reason.to_owned().into()))
        }
    }
}

/// The proxies that look at a server: of all that could, those that stand highest for it (rendezvous hashing). When one
/// goes, only its servers are somebody else's; when one comes, it takes its share and no other changes.
pub fn lookers(server: Uuid, proxies: &[Uuid], count: usize) -> Vec<Uuid> {
    if proxies.len() <= count {
        return proxies.to_vec();
    }
    let mut ranked: Vec<(u64, Uuid)> =
        proxies.iter().map(|proxy| (standing(server, *proxy), *proxy)).collect();
    ranked.sort_unstable_by(|one, other| other.cmp(one));
    ranked.into_iter().take(count).map(|(_, proxy)| proxy).collect()
}

/// The same for the same pair in every process and version.
fn standing(server: Uuid, proxy: Uuid) -> u64 {
    let (s, p) = (server.as_u64_pair(), proxy.as_u64_pair());
    [s.0, s.1, p.0, p.1].into_iter().fold(0x9E37_79B9_7F4A_7C15, |mixed, word| {
        // The finaliser of SplitMix64: each bit of what comes in changes half of those that go out.
        let mut x = (mixed ^ word).wrapping_add(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    })
}

#[cfg(test)]
mod tests;
