use url::Url;
use waffles_core::resilience::{Breaker as Rules, Outlier, Retry};
use waffles_core::server::{Credential, Endpoint, Spec};

use super::super::pick::{Picked, Tried};
use super::*;

fn server(endpoints: &[(&str, u16)], change: impl FnOnce(&mut Server)) -> Server {
    let endpoints = endpoints.iter().enumerate().map(|(i, (zone, weight))| Endpoint {
        url: Url::parse(&format!("http://10.0.0.{i}/mcp?key=secret")).unwrap(),
        weight: *weight,
        zone: (*zone).into(),
    });
    let mut server = Server {
        id: Uuid::from_u128(1),
        tenant: "default".into(),
        spec: Spec { name: "demo".into(), endpoints: endpoints.collect(), ..Spec::default() },
        credential: Credential::None,
        enabled: true,
        version: 1,
        created_at: Utc::now(),
        updated_at: Utc::now(),
    };
    change(&mut server);
    server
}

fn standings(zone: &str) -> Standings {
    Standings::new(Some(zone.to_owned()), UpstreamMetrics::default())
}

/// How often each of the endpoints is picked of a thousand times.
fn picks(standing: &Standing, count: usize) -> Vec<u32> {
    let mut picks = vec![0; count];
    for _ in 0..1000 {
        let Picked { endpoint, .. } = standing.pick(Tried::default(), Instant::now()).unwrap();
        picks[usize::from(endpoint)] += 1;
    }
    picks
}

fn trip(standing: &Standing, endpoint: u16) {
    for _ in 0..standing.rules.breaker.failures {
        standing.failed(endpoint, UpstreamFault::Unreachable, Instant::now());
    }
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_fare_alike_are_asked_by_weight() {
    let standing = standings("").of(&server(&[("", 3), ("", 1)], |_| {}));
    let picks = picks(&standing, 2);
    assert!((700..800).contains(&picks[0]), "{picks:?}");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_clearly_slower_or_busier_is_left_to_the_others() {
    let standing = standings("").of(&server(&[("", 1), ("", 1), ("", 1)], |_| {}));
    let [slow, fast, busy] = &standing.endpoints[..] else { panic!("there are three") };
    slow.latency.note(Duration::from_millis(500), Instant::now());
    fast.latency.note(Duration::from_millis(5), Instant::now());
    busy.latency.note(Duration::from_millis(5), Instant::now());
    (0..20).for_each(|_| busy.begin());
    let before = picks(&standing, 3);
    assert!(before[0] < 30 && before[2] < before[1], "{before:?}");
    // Nobody has asked it for long, so it may have become better.
    tokio::time::advance(Duration::from_secs(6000)).await;
    (0..20).for_each(|_| busy.end());
    assert!(picks(&standing, 3).iter().all(|picks| *picks > 200));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_of_little_weight_has_little_whatever_the_others_do() {
    let standing = standings("").of(&server(&[("", 999), ("", 1)], |_| {}));
    standing.endpoints[0].latency.note(Duration::from_millis(500), Instant::now());
    let picks = picks(&standing, 2);
    assert!(picks[1] < 20, "{picks:?}");
}

#[tokio::test(start_paused = true)]
async fn its_own_zone_comes_first_and_the_others_when_nothing_of_it_is_left() {
    let standing = standings("b").of(&server(&[("a", 1), ("b", 1), ("b", 1), ("", 1)], |_| {}));
    let own = picks(&standing, 4);
    assert_eq!((own[0], own[3]), (0, 0), "{own:?}");
    trip(&standing, 1);
    assert_eq!(picks(&standing, 4)[2], 1000);
    trip(&standing, 2);
    let others = picks(&standing, 4);
    assert_eq!((others[1], others[2]), (0, 0), "{others:?}");
    assert!(others[0] > 400 && others[3] > 400, "{others:?}");
}

#[tokio::test(start_paused = true)]
async fn where_all_are_left_alone_nobody_is_asked_until_one_is_tried() {
    let standing = standings("").of(&server(&[("", 1), ("", 1)], |_| {}));
    trip(&standing, 0);
    assert_eq!(standing.pick(Tried::default(), Instant::now()).unwrap().endpoint, 1);
    trip(&standing, 1);
    let wait = standing.pick(Tried::default(), Instant::now()).unwrap_err().unwrap();
    assert!(wait <= Duration::from_millis(1250), "{wait:?}");
    tokio::time::advance(wait).await;
    assert!(standing.pick(Tried::default(), Instant::now()).unwrap().trial);
    let mut tried = Tried::default();
    tried.note(0);
    tried.note(1);
    assert_eq!(standing.pick(tried, Instant::now()), Err(None), "there is no third");
    assert!(!tried.leaves_any_of(2) && tried.leaves_any_of(3));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_fails_more_than_the_others_is_left_out_but_not_too_many() {
    let rules = |server: &mut Server| {
        let breaker = Rules { failures: 0, error_percent: 0, least_calls: 20, ..Rules::default() };
        let outlier = Outlier { margin_percent: 25, most_percent: 50 };
        server.spec.resilience = Resilience { breaker, outlier, ..Resilience::default() };
    };
    let standing = standings("").of(&server(&[("", 1), ("", 1), ("", 1)], rules));
    let fare = |endpoint: u16, good: u32, bad: u32| {
        let state = standing.endpoint(endpoint).unwrap();
        (0..good).for_each(|_| state.breaker.succeeded(&standing.rules.breaker, Instant::now()));
        (0..bad).for_each(|_| standing.failed(endpoint, UpstreamFault::Failed, Instant::now()));
    };
    fare(0, 50, 2);
    fare(1, 50, 2);
    fare(2, 30, 10);
    let signals = standing.signals(Instant::now());
    assert_eq!(signals[2].circuit, Circuit::Closed, "a quarter is not so many more");
    fare(2, 0, 10);
    let signals = standing.signals(Instant::now());
    assert_eq!((signals[2].circuit, signals[2].reason), (Circuit::Open, Some(Why::Outlier)));
    assert_eq!(signals[2].last_error.unwrap().0, UpstreamFault::Failed);
    fare(1, 0, 200);
    assert_eq!(standing.signals(Instant::now())[1].circuit, Circuit::Closed, "one of three is half of them");
}

#[tokio::test(start_paused = true)]
async fn messages_are_sent_again_within_a_share_of_all_or_a_few_a_second() {
    let rules = |server: &mut Server| {
        server.spec.resilience.retry = Retry { budget_percent: 20, budget_least: 1, ..Retry::default() };
    };
    let standing = standings("").of(&server(&[("", 1)], rules));
    let granted = |times: u32| (0..times).filter(|_| standing.may_repeat(Instant::now())).count();
    assert_eq!(granted(100), 10, "one a second, over ten seconds");
    let state = standing.endpoint(0).unwrap();
    (0..200).for_each(|_| state.breaker.succeeded(&standing.rules.breaker, Instant::now()));
    assert_eq!(granted(100), 30, "a fifth of two hundred, of which ten were granted");
    tokio::time::advance(Duration::from_secs(11)).await;
    assert_eq!(granted(100), 10);
}

#[tokio::test(start_paused = true)]
async fn a_changed_registration_keeps_what_is_known_of_the_endpoints_that_stay() {
    let standings = standings("");
    let old = standings.of(&server(&[("", 1), ("", 1)], |_| {}));
    trip(&old, 1);
    let changed = server(&[("", 1), ("", 1), ("", 1)], |server| {
        server.version = 2;
        server.spec.endpoints.remove(0);
        server.spec.resilience.max_concurrent = 1;
    });
    let new = standings.of(&changed);
    let _place = old.gate.try_enter().unwrap().unwrap();
    assert!(new.gate.try_enter().unwrap().is_none(), "the places are the same");
    let circuits: Vec<_> = standings.signals(changed.id).iter().map(|signal| signal.circuit).collect();
    assert_eq!(circuits, [Circuit::Open, Circuit::Closed]);
    standings.of(&server(&[("", 1), ("", 1)], |_| {}));
    assert_eq!(standings.signals(changed.id).len(), 2, "an older registration does not come back");
    assert!(Arc::ptr_eq(&standings.of(&changed), &new));
}

#[tokio::test(start_paused = true)]
async fn the_report_shows_no_query() {
    let standings = standings("eu");
    standings.of(&server(&[("eu", 1)], |_| {}));
    let report = standings.report();
    assert_eq!(report["servers"][0]["endpoints"][0]["circuit"], "closed");
    assert_eq!(report["servers"][0]["endpoints"][0]["address"], "http://10.0.0.0/mcp");
    assert!(!report.to_string().contains("secret"));
}
