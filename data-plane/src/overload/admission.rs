//! The rule of admission: what matters how much, and what is turned away under which load. Pure.

use http::{HeaderMap, Method as Verb};
use waffles_mcp::headers::MCP_METHOD;
use waffles_mcp::{Kind, Method};

use super::memory::Stage;

/// The whole of a share.
pub const WHOLE: u32 = 1000;
/// Of calls a few always get through: they show when there is room again.
const PROBES: u32 = 20;

/// What matters how much, the most first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// What helps work in flight to its end: answers, cancellations, the end of a session. Never turned away.
    Vital,
    /// What somebody waits for.
    Call,
    /// Lists, handshakes: what a client does before its work, or again.
    List,
    /// Streams that stay open.
    Listen,
}

/// Why something is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The thread is late.
    Lag,
    /// Too much is in flight.
    InFlight,
    /// The process is short of memory.
    Memory,
}

impl Priority {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Vital, Self::Call, Self::List, Self::Listen];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vital => "vital",
            Self::Call => "call",
            Self::List => "list",
            Self::Listen => "listen",
        }
    }

    /// Of a method. What no revision names is a call.
    pub fn of(method: &Method) -> Self {
        match method {
            Method::SubscriptionsListen => Self::Listen,
            Method::Initialize | Method::ServerDiscover => Self::List,
            Method::Cancelled | Method::TasksCancel | Method::Progress => Self::Vital,
            method if method.is_list() => Self::List,
            _ => Self::Call,
        }
    }

    /// Of a message that was read; without a method it is an answer.
    pub fn of_message(kind: Kind, method: Option<&Method>) -> Self {
        match (kind, method) {
            (Kind::Response | Kind::Error, _) | (_, None) => Self::Vital,
            (_, Some(method)) => Self::of(method),
        }
    }

    /// Of an HTTP request at a door, as far as its head says. None where only the message does: a client of an older
    /// revision names its method there alone, and one that claims another here gains nothing, for the message counts.
    pub fn of_head(verb: &Verb, headers: &HeaderMap) -> Option<Self> {
        match *verb {
            Verb::GET => Some(Self::Listen),
            Verb::DELETE => Some(Self::Vital),
            _ => {
                let method = headers.get(MCP_METHOD)?.to_str().ok()?;
                Some(Self::of(&Method::parse(method)))
            }
        }
    }

    /// What part of these is turned away under a pressure, in parts of [`WHOLE`]: all who listen before the first call.
    pub fn share(self, pressure: u32) -> u32 {
        match self {
            Self::Vital => 0,
            Self::Listen => (pressure * 5).min(WHOLE),
            Self::List => (pressure.saturating_sub(WHOLE / 10) * 5).min(WHOLE),
            Self::Call => (pressure.saturating_sub(WHOLE / 5) * 5 / 4).min(WHOLE - PROBES),
        }
    }
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Lag, Self::InFlight, Self::Memory];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lag => "lag",
            Self::InFlight => "in_flight",
            Self::Memory => "memory",
        }
    }
}

/// What a thread has to do.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Of its lag, in parts of [`WHOLE`].
    pub pressure: u32,
    /// Exchanges in flight.
    pub in_flight: usize,
    /// How many there may be.
    pub most_in_flight: usize,
    /// How much memory is left.
    pub stage: Stage,
}

/// Whether something of this priority is let in. `roll` gives a number below [`WHOLE`], and is asked where chance decides.
///
/// # Errors
/// Why not.
pub fn decide(priority: Priority, load: &Load, roll: impl FnOnce() -> u32) -> Result<(), Cause> {
    // Of the places the last ones are for calls, and the last of the others for lists.
    let (stage, places) = match priority {
        Priority::Vital => return Ok(()),
        Priority::Call => (Stage::Critical, load.most_in_flight),
        Priority::List => (Stage::Scarce, load.most_in_flight - load.most_in_flight / 8),
        Priority::Listen => (Stage::Tight, load.most_in_flight - load.most_in_flight / 4),
    };
    if load.stage >= stage {
        return Err(Cause::Memory);
    }
    if load.in_flight >= places {
        return Err(Cause::InFlight);
    }
    if load.pressure > 0 && roll() < priority.share(load.pressure) {
        return Err(Cause::Lag);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Load = Load { pressure: 0, in_flight: 0, most_in_flight: 100, stage: Stage::Calm };

    /// What is let in whatever the dice say, in the order of priorities.
    fn let_in(load: Load) -> Vec<Priority> {
        Priority::ALL.into_iter().filter(|priority| decide(*priority, &load, || 0).is_ok()).collect()
    }

    #[test]
    fn a_calm_proxy_takes_everything_and_asks_no_dice() {
        for priority in Priority::ALL {
            assert_eq!(decide(priority, &CALM, || panic!("nothing is left to chance")), Ok(()));
        }
    }

    #[test]
    fn what_matters_least_goes_first() {
        use Priority::{Call, List, Listen, Vital};
        for (pressure, expected) in [
            (0, vec![Vital, Call, List, Listen]),
            (50, vec![Vital, Call, List]),
            (100, vec![Vital, Call, List]),
            (200, vec![Vital, Call]),
            (201, vec![Vital]),
            (WHOLE, vec![Vital]),
        ] {
            assert_eq!(let_in(Load { pressure, ..CALM }), expected, "pressure {pressure}");
        }
        for (in_flight, expected) in [
            (74, vec![Vital, Call, List, Listen]),
            (75, vec![Vital, Call, List]),
            (88, vec![Vital, Call]),
            (99, vec![Vital, Call]),
            (100, vec![Vital]),
            (1000, vec![Vital]),
        ] {
            assert_eq!(let_in(Load { in_flight, ..CALM }), expected, "{in_flight} in flight");
        }
        for (stage, expected) in [
            (Stage::Calm, vec![Vital, Call, List, Listen]),
            (Stage::Tight, vec![Vital, Call, List]),
            (Stage::Scarce, vec![Vital, Call]),
            (Stage::Critical, vec![Vital]),
        ] {
            assert_eq!(let_in(Load { stage, ..CALM }), expected, "{stage:?}");
        }
    }

    #[test]
    fn before_the_first_call_is_turned_away_all_lists_are_and_before_those_all_listeners() {
        for pressure in 0..=WHOLE {
            let [call, list, listen] =
                [Priority::Call, Priority::List, Priority::Listen].map(|priority| priority.share(pressure));
            assert!(listen >= list && list >= call, "pressure {pressure}");
            assert!(call == 0 || list >= WHOLE / 2 && listen == WHOLE, "pressure {pressure}");
        }
        assert_eq!(Priority::Call.share(WHOLE), WHOLE - PROBES, "some calls always get through");
    }

    #[test]
    fn a_head_says_what_it_can() {
        let head = |verb: Verb, method: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            if let Some(method) = method {
                headers.insert(MCP_METHOD, method.parse().unwrap());
            }
            Priority::of_head(&verb, &headers)
        };
        assert_eq!(head(Verb::GET, None), Some(Priority::Listen));
        assert_eq!(head(Verb::DELETE, None), Some(Priority::Vital));
        assert_eq!(head(Verb::POST, None), None);
        for (method, priority) in [
            ("tools/call", Priority::Call),
            ("vendor/anything", Priority::Call),
            ("resources/read", Priority::Call),
            ("tools/list", Priority::List),
            ("server/discover", Priority::List),
            ("subscriptions/listen", Priority::Listen),
            ("notifications/cancelled", Priority::Vital),
        ] {
            assert_eq!(head(Verb::POST, Some(method)), Some(priority), "{method}");
        }
        assert_eq!(Priority::of_message(Kind::Response, None), Priority::Vital);
        assert_eq!(Priority::of_message(Kind::Request, Some(&Method::Initialize)), Priority::List);
        assert_eq!(Priority::of_message(Kind::Notification, Some(&Method::Initialized)), Priority::Call);
    }
}
