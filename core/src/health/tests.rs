use std::collections::HashMap;

use super::*;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_000_000 + second, 0).unwrap()
}

fn policy() -> HealthPolicy {
    HealthPolicy { fall: 3, rise: 2, ..HealthPolicy::default() }
}

/// Feeds checks (`g`ood, `p`oor, `b`ad) and calls (`+`, `-`), and gives the state after each.
fn run(policy: &HealthPolicy, steps: &str) -> String {
    let mut track = Track::new(policy, at(0));
    let letter = |state: State| match state {
        State::Up => 'U',
        State::Degraded => 'd',
        State::Down => 'D',
        State::Unknown => '?',
    };
    let states = steps.chars().enumerate().map(|(i, step)| {
        let now = at(i64::try_from(i).unwrap() + 1);
        match step {
            'g' => track.checked(policy, &Finding::Good, now),
            'p' => track.checked(policy, &Finding::Poor(CREDENTIAL.into()), now),
            'b' => track.checked(policy, &Finding::Bad("unreachable".into()), now),
            '+' => track.called(policy, true, now),
            '-' => track.called(policy, false, now),
            other => panic!("{other}"),
        };
        letter(track.status().state)
    });
    states.collect()
}

#[test]
fn checks_and_calls_become_states_by_their_thresholds() {
    for (steps, states) in [
        // The first answer counts at once, the first silence does not.
        ("g", "U"),
        ("p", "d"),
        ("bbb", "??D"),
        ("bbg", "??U"),
        // It falls after three and rises after two; one of the other kind starts the count anew.
        ("gbbb", "UUUD"),
        ("gbbgbbb", "UUUUUUD"),
        ("bbbgg", "??DDU"),
        ("bbbgbgg", "??DDDDU"),
        // What refuses the credential is there.
        ("gppp", "UUUd"),
        ("gpbp", "UUUd"),
        ("bbbpp", "??DDd"),
        ("pgg", "ddU"),
        // Calls that fail degrade what checks find well, and one that goes well mends it.
        ("g---", "UUUd"),
        ("g---+", "UUUdU"),
        ("g--+---", "UUUUUUd"),
        // Checks decide what is down.
        ("bbb+", "??DD"),
        ("g---bbb", "UUUdddD"),
        ("---", "??d"),
    ] {
        assert_eq!(run(&policy(), steps), states, "{steps}");
    }
}

#[test]
fn with_checks_off_calls_decide() {
    let off = HealthPolicy { check: Check::Off, ..policy() };
    assert_eq!(run(&off, "+---+"), "UUUDU");
    assert_eq!(Track::new(&off, at(0)).status().reason, CHECKS_OFF);
}

#[test]
fn a_state_knows_why_and_since_when() {
    let (policy, mut track) = (HealthPolicy { fall: 1, ..policy() }, Track::new(&policy(), at(0)));
    assert_eq!(track.status().reason, NOT_CHECKED);
    assert!(track.checked(&policy, &Finding::Bad("unreachable".into()), at(1)));
    assert!(track.checked(&policy, &Finding::Bad("timed_out".into()), at(2)), "why is another");
    assert!(!track.checked(&policy, &Finding::Bad("timed_out".into()), at(3)));
    let expected = Status { state: State::Down, reason: "timed_out".into(), since: at(1) };
    assert_eq!(*track.status(), expected);
}

#[test]
fn a_server_is_as_good_as_its_endpoints_together() {
    let (good, poor) = (Finding::Good, Finding::Poor(CREDENTIAL.into()));
    let bad = || Finding::Bad("unreachable".into());
    assert_eq!(Finding::of_endpoints(&[Finding::Good, Finding::Good]), good);
    assert_eq!(Finding::of_endpoints(&[bad(), bad()]), bad());
    assert_eq!(Finding::of_endpoints(&[Finding::Good, bad()]), Finding::Poor(ENDPOINTS.into()));
    assert_eq!(Finding::of_endpoints(&[bad(), poor.clone()]), poor);
}

#[test]
fn several_views_become_one() {
    let view = |text: &str| match text {
        "up" => View { checks: true, state: State::Up, reason: "" },
        "down" => View { checks: true, state: State::Down, reason: "unreachable" },
        "degraded" => View { checks: true, state: State::Degraded, reason: CREDENTIAL },
        "unknown" => View { checks: true, state: State::Unknown, reason: NOT_CHECKED },
        "calls" => View { checks: false, state: State::Degraded, reason: CALLS_FAIL },
        other => panic!("{other}"),
    };
    for (views, state, reason) in [
        ("", State::Unknown, NO_REPORT),
        ("unknown", State::Unknown, NOT_CHECKED),
        ("up up", State::Up, ""),
        ("up unknown", State::Up, ""),
        ("down down", State::Down, "unreachable"),
        ("down unknown", State::Down, "unreachable"),
        ("down up", State::Degraded, PARTLY),
        ("up degraded", State::Degraded, CREDENTIAL),
        ("up calls", State::Degraded, CALLS_FAIL),
        ("down calls", State::Down, "unreachable"),
        ("calls", State::Degraded, CALLS_FAIL),
    ] {
        let list: Vec<View<'_>> = views.split_whitespace().map(view).collect();
        assert_eq!(merge(&list), (state, reason.into()), "{views}");
    }
}

#[test]
fn wrong_fields_of_a_policy_are_named() {
    assert_eq!(HealthPolicy::default().problems(), []);
    let bad = HealthPolicy {
        interval: Duration::ZERO,
        timeout: Duration::from_secs(61),
        jitter: 51,
        fall: 0,
        rise: 11,
        proxies: 0,
        check: Check::Off,
    };
    let fields: Vec<_> = bad.problems().into_iter().map(|problem| problem.field).collect();
    let expected = ["interval", "timeout", "jitter", "fall", "rise", "proxies"];
    assert_eq!(fields, expected.map(|field| format!("health.{field}")));
}

#[test]
fn a_pause_stays_within_the_jitter() {
    let policy = HealthPolicy { interval: Duration::from_secs(10), jitter: 20, ..HealthPolicy::default() };
    for (dice, millis) in [(0.0, 8_000), (0.5, 10_000), (1.0, 12_000), (7.0, 12_000)] {
        assert_eq!(policy.pause(dice).as_millis(), millis, "{dice}");
    }
}

#[test]
fn lookers_are_few_even_and_stay_when_others_go() {
    let proxies: Vec<Uuid> = (1..=10).map(Uuid::from_u128).collect();
    let servers: Vec<Uuid> = (1..=2000).map(|n| Uuid::from_u128(n << 64 | 7)).collect();
    let mut load: HashMap<Uuid, usize> = HashMap::new();
    for server in &servers {
        let chosen = lookers(*server, &proxies, 2);
        assert!(chosen.len() == 2 && chosen[0] != chosen[1]);
        chosen.iter().for_each(|proxy| *load.entry(*proxy).or_default() += 1);
        // One goes: those who look and are still there go on.
        let gone = proxies[3];
        let rest: Vec<Uuid> = proxies.iter().copied().filter(|proxy| *proxy != gone).collect();
        let then = lookers(*server, &rest, 2);
        assert!(chosen.iter().all(|proxy| *proxy == gone || then.contains(proxy)));
        assert_eq!(lookers(*server, &proxies[..2], 2), &proxies[..2]);
    }
    // 400 each on average.
    assert!(load.values().all(|count| (300..500).contains(count)), "{load:?}");
}
