use waffles_core::limit::{Limit, LimitSpec, Per, Shape};
use waffles_core::policy::Who;
use waffles_core::principal::Principal;

use super::count::{Granted, Wanted};
use super::*;

const SECOND: u64 = 1_000_000;

fn compiled(id: u128, kind: LimitKind, amount: u64, window_seconds: u64) -> Arc<CompiledLimit> {
    let spec = LimitSpec {
        name: format!("limit-{id}"),
        description: String::new(),
        kind,
        amount,
        window_seconds,
        per: vec![Per::Principal],
        principals: Who::default(),
        servers: Vec::new(),
        tools: Vec::new(),
        classes: Vec::new(),
    };
    let limit = Limit { id: Uuid::from_u128(id), tenant: "default".into(), spec };
    Arc::new(CompiledLimit::compile(limit).unwrap())
}

fn principal(id: u128) -> Principal {
    Principal { id: Uuid::from_u128(id), tenant: "default".into(), active: true, ..Principal::default() }
}

fn about(principal: &Principal) -> About<'_> {
    About { principal, key: None, server: None, tool: None, class: Some(Class::Calls), is_asked: true }
}

fn shape(seconds: u64) -> Shape {
    compiled(1, LimitKind::Rate, 1, seconds).shape
}

#[tokio::test(start_paused = true)]
async fn a_refusal_takes_nothing_of_any_limit() {
    let covering = Covering::new(vec![
        compiled(1, LimitKind::Rate, 5, 60),
        compiled(2, LimitKind::Concurrent, 100, 0),
        compiled(3, LimitKind::Rate, 2, 10),
    ]);
    let limits = Limits::new(None);
    let alice = principal(1);
    for _ in 0..2 {
        limits.spend(&covering, &about(&alice)).await.unwrap();
    }
    for _ in 0..20 {
        let Err(Reject::Limited(limited)) = limits.spend(&covering, &about(&alice)).await else { panic!() };
        assert_eq!((limited.limit.as_str(), limited.rule.as_str()), ("limit-3", "limit:limit-3"));
        assert!(limited.retry_after <= Duration::from_secs(11), "{limited:?}");
    }
    // Of the first limit two are spent, not twenty-two.
    tokio::time::advance(Duration::from_secs(11)).await;
    limits.spend(&covering, &about(&alice)).await.unwrap();
    limits.spend(&covering, &about(&principal(2))).await.unwrap();
    assert_eq!(limits.kept(), 6);
}

#[tokio::test(start_paused = true)]
async fn what_is_open_counts_until_it_is_closed() {
    let covering = Covering::new(vec![compiled(1, LimitKind::Concurrent, 2, 0)]);
    let (limits, alice) = (Limits::new(None), principal(1));
    let one = limits.spend(&covering, &about(&alice)).await.unwrap();
    let _two = limits.spend(&covering, &about(&alice)).await.unwrap();
    let Err(Reject::Limited(limited)) = limits.spend(&covering, &about(&alice)).await else { panic!() };
    assert_eq!(limited.retry_after, Duration::from_secs(1));
    drop(one);
    limits.spend(&covering, &about(&alice)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_is_forgotten_had_nothing_to_remember() {
    let limit = compiled(1, LimitKind::Rate, 2, 10);
    let (covering, limits) = (Covering::new(vec![Arc::clone(&limit)]), Limits::new(None));
    let resource = waffles_core::wire::limit_resource(&limit.limit);
    let update = waffles_core::wire::Update { resources: vec![resource], revision: 1, ..Default::default() };
    let (snapshot, refused) = Snapshot::default().with_update(update);
    assert_eq!(refused, []);
    drop(limits.spend(&covering, &about(&principal(1))).await.unwrap());
    limits.sweep(&snapshot);
    assert_eq!(limits.kept(), 1);
    assert_eq!(limits.report(&snapshot)[0].used, 1);
    tokio::time::advance(Duration::from_secs(11)).await;
    limits.sweep(&snapshot);
    assert_eq!(limits.kept(), 0);
    drop(limits.spend(&covering, &about(&principal(1))).await.unwrap());
    limits.sweep(&Snapshot::default());
    assert_eq!(limits.kept(), 0, "the limit is gone");
}

#[tokio::test(start_paused = true)]
async fn an_answer_says_where_its_caller_stands() {
    let covering =
        Covering::new(vec![compiled(1, LimitKind::Rate, 5, 60), compiled(2, LimitKind::Streams, 3, 0)]);
    let (limits, alice) = (Limits::new(None), principal(1));
    let spent = limits.spend(&covering, &about(&alice)).await.unwrap();
    let mut headers = HeaderMap::new();
    spent.tell(&mut headers);
    assert_eq!(headers[RATE_LIMIT_POLICY], "\"limit-1\";q=5;w=60");
    assert_eq!(headers[RATE_LIMIT], "\"limit-1\";r=4;t=61");
}

/// What the store would say that has so much left.
fn answer(wanted: Wanted, left: &mut u64, wait: u64) -> Granted {
    let granted = wanted.want.min(left.saturating_sub(wanted.unreported));
    *left = left.saturating_sub(granted + wanted.unreported);
    Granted { granted, remaining: *left, wait: if granted < wanted.want { wait } else { 0 } }
}

#[test]
fn a_flood_asks_the_store_once_a_slice_and_not_at_all_once_it_refuses() {
    let (shape, most) = (shape(60), 3200);
    let (mut state, mut left, mut asked, mut passed) = (State::default(), most, 0, 0);
    for at in 0..32_000_u64 {
        let now = SECOND + at * 1000;
        loop {
            match state.take(shape, now, most, Mode::Shared(1)) {
                Take::Granted(_) => break passed += 1,
                Take::Refused(_) => break,
                Take::Ask => {
                    asked += 1;
                    let wanted = state.wanted(shape, now, most, 1, 1);
                    let answer = answer(wanted, &mut left, 40 * SECOND);
                    state.granted(shape, now, wanted, answer);
                }
            }
        }
    }
    assert_eq!(passed, most);
    assert!(asked < 200, "{asked}");
}

#[test]
fn a_dead_store_leaves_a_share_and_hears_of_it_when_it_is_back() {
    let (shape, most, now) = (shape(60), 90, SECOND);
    let mut state = State::default();
    let passed = |state: &mut State, mode| {
        (0..200).filter(|_| matches!(state.take(shape, now, most, mode), Take::Granted(_))).count()
    };
    assert_eq!(passed(&mut state, Mode::Share(3)), 30);
    assert_eq!(state.take(shape, now, most, Mode::Shared(3)), Take::Ask);
    let wanted = state.wanted(shape, now, most, 1, 3);
    assert_eq!((wanted.unreported, wanted.told), (30, 0));
    let mut left = most;
    let answer = answer(wanted, &mut left, 0);
    state.granted(shape, now, wanted, answer);
    assert_eq!(left, 59);
    let wanted = state.wanted(shape, now, most, 1, 3);
    assert_eq!((wanted.unreported, wanted.told), (0, 30));
}

#[test]
fn a_store_that_forgets_gives_no_more_than_the_limit_here() {
    let (shape, most) = (shape(60), 100);
    let mut state = State::default();
    let mut passed = 0;
    for at in 0..1000 {
        let now = SECOND + at * 10_000;
        let taken = match state.take(shape, now, most, Mode::Shared(1)) {
            Take::Ask => {
                let wanted = state.wanted(shape, now, most, 1, 1);
                // Emptied every time.
                state.granted(shape, now, wanted, Granted { granted: wanted.want, remaining: 99, wait: 0 });
                state.take(shape, now, most, Mode::Shared(1))
            }
            taken => taken,
        };
        passed += u64::from(matches!(taken, Take::Granted(_)));
    }
    assert_eq!(passed, most);
}

#[test]
fn what_the_store_lets_open_is_all_that_opens() {
    let mut state = State::default();
    assert_eq!(state.enter(SECOND, 0, 3, Mode::Shared(2)), Take::Ask);
    state.seated(SECOND, 1, Granted { granted: 1, remaining: 1, wait: 0 });
    assert!(matches!(state.enter(SECOND, 0, 3, Mode::Shared(2)), Take::Granted(_)));
    assert_eq!(state.enter(SECOND, 1, 3, Mode::Shared(2)), Take::Ask);
    state.seated(SECOND, 2, Granted { granted: 1, remaining: 0, wait: 0 });
    assert!(matches!(state.enter(SECOND, 1, 3, Mode::Shared(2)), Take::Refused(_)));
    assert_eq!(state.enter(2 * SECOND, 1, 3, Mode::Shared(2)), Take::Ask, "later it is asked again");
    assert!(matches!(state.enter(SECOND, 1, 3, Mode::Share(2)), Take::Granted(_)), "a share is two of three");
    assert!(matches!(state.enter(SECOND, 2, 3, Mode::Share(2)), Take::Refused(_)));
}

#[test]
fn when_the_store_dies_no_more_is_spent_than_it_had_left() {
    let (shape, most, now) = (shape(60), 90, SECOND);
    let mut state = State::default();
    // This one spent 40, others 20, when the store was last heard.
    for _ in 0..40 {
        state.granted(
            shape,
            now,
            Wanted { want: 1, unreported: 0, told: 0 },
            Granted { granted: 1, remaining: 30, wait: 0 },
        );
        assert!(matches!(state.take(shape, now, most, Mode::Shared(3)), Take::Granted(_)));
    }
    let passed = |state: &mut State, now| {
        (0..200).filter(|_| matches!(state.take(shape, now, most, Mode::Share(3)), Take::Granted(_))).count()
    };
    assert_eq!(passed(&mut state, now), 10, "a third of what was left");
    assert_eq!(passed(&mut state, now + 59 * SECOND), 0);
    assert_eq!(
        passed(&mut state, now + 62 * SECOND),
        30,
        "its share, when what was known is of no use any more"
    );
}
