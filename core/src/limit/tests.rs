use super::*;

fn spec(kind: LimitKind, amount: u64, window_seconds: u64) -> LimitSpec {
    LimitSpec {
        name: "calls".into(),
        description: String::new(),
        kind,
        amount,
        window_seconds,
        per: vec![Per::Principal],
        principals: Who::default(),
        servers: Vec::new(),
        tools: Vec::new(),
        classes: Vec::new(),
    }
}

fn rate() -> LimitSpec {
    spec(LimitKind::Rate, 100, 60)
}

fn compiled(spec: LimitSpec) -> Arc<CompiledLimit> {
    let limit = Limit { id: Uuid::from_u128(7), tenant: "default".into(), spec };
    Arc::new(CompiledLimit::compile(limit).unwrap())
}

/// A generator of its own (`SplitMix64`), so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

/// When messages were let through.
fn flood(shape: Shape, most: u64, mut gaps: impl FnMut() -> u64, until: u64) -> Vec<u64> {
    let (mut tally, mut now, mut passed) = (Tally::default(), 0, Vec::new());
    while now < until {
        if tally.take(shape, now, most).is_ok() {
            passed.push(now);
        }
        now += gaps();
    }
    passed
}

#[test]
fn no_time_of_the_windows_length_has_more_than_the_limit() {
    let mut dice = Dice(1);
    for round in 0..200 {
        let window_seconds = 1 + dice.roll(100);
        let most = 1 + dice.roll(300);
        let shape = spec(LimitKind::Rate, most, window_seconds).shape();
        let window = window_seconds * 1_000_000;
        let mean = 1 + window / (most * (1 + dice.roll(12)));
        // Bursts and pauses, which are what an attacker would try.
        let gaps = || match dice.roll(20) {
            0 => dice.roll(2 * window),
            1..10 => 0,
            _ => dice.roll(2 * mean),
        };
        let passed = flood(shape, most, gaps, 20 * window);
        for (first, later) in passed.iter().zip(passed.iter().skip(usize::try_from(most).unwrap())) {
            assert!(later - first >= window, "round {round}: {most} and one more in {}", later - first);
        }
    }
}

#[test]
fn under_ten_times_the_limit_98_to_102_percent_pass() {
    for (most, window_seconds) in [(20, 1), (10, 1), (100, 60), (1000, 3600), (777, 7)] {
        let shape = spec(LimitKind::Rate, most, window_seconds).shape();
        let window = window_seconds * 1_000_000;
        let gap = (window / (10 * most)).max(1);
        let windows = 100;
        let passed = flood(shape, most, || gap, windows * window).len() as f64;
        let share = passed / (windows * most) as f64;
        assert!((0.98..=1.02).contains(&share), "{most} in {window_seconds} s: {share}");
    }
}

#[test]
fn a_quota_begins_anew_with_its_period() {
    let shape = spec(LimitKind::Quota, 3, 60).shape();
    let mut tally = Tally::default();
    let second = 1_000_000;
    for _ in 0..3 {
        tally.take(shape, 119 * second, 3).unwrap();
    }
    assert_eq!(tally.take(shape, 119 * second + 1, 3), Err(second - 1));
    assert_eq!(tally.clear_in(shape, 119 * second), second);
    tally.take(shape, 120 * second, 3).unwrap();
    assert_eq!(tally.used(shape, 120 * second), 1);
}

#[test]
fn who_is_told_to_wait_gets_through_then_and_not_before() {
    let mut dice = Dice(2);
    for _ in 0..300 {
        let (most, seconds) = (1 + dice.roll(20), 1 + dice.roll(30));
        let shape = spec(LimitKind::Rate, most, seconds).shape();
        let (mut tally, mut now) = (Tally::default(), dice.roll(1 << 40));
        loop {
            now += dice.roll(shape.length() / most);
            let Err(wait) = tally.take(shape, now, most) else { continue };
            assert!(wait <= shape.length());
            assert!(tally.clone().take(shape, now + wait - 1, most).is_err());
            assert!(tally.clone().take(shape, now + wait, most).is_ok());
            break;
        }
    }
}

#[test]
fn a_clock_that_goes_back_gives_nothing() {
    let shape = rate().shape();
    let mut tally = Tally::default();
    let hour = 3_600_000_000;
    for _ in 0..100 {
        tally.take(shape, 2 * hour, 100).unwrap();
    }
    assert!(tally.take(shape, hour, 100).is_err());
    assert!(tally.take(shape, 2 * hour, 100).is_err());
    tally.give_back(30);
    assert_eq!(tally.used(shape, 2 * hour), 70);
}

fn principal(name: &str, role: &str, group: &str) -> Principal {
    Principal {
        id: Uuid::from_u128(1),
        tenant: "default".into(),
        name: name.into(),
        roles: vec![role.into()],
        groups: vec![group.into()],
        active: true,
        ..Principal::default()
    }
}

fn about(principal: &Principal) -> About<'_> {
    About {
        principal,
        key: Some("k1"),
        server: Some((Uuid::from_u128(2), "crm")),
        tool: Some("deploy"),
        class: Some(Class::Calls),
        is_asked: true,
    }
}

fn check(change: impl FnOnce(&mut LimitSpec), ask: impl FnOnce(&mut About<'_>), expected: bool) {
    let mut spec = rate();
    change(&mut spec);
    let limits = Limits::new(vec![compiled(spec.clone())]);
    let alice = principal("alice", "user", "ops");
    let mut asked = about(&alice);
    ask(&mut asked);
    assert_eq!(limits.covering(&asked).count(), usize::from(expected), "{spec:?} and {asked:?}");
}

#[test]
fn a_limit_counts_what_it_is_about_and_nothing_else() {
    let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    check(|_| {}, |_| {}, true);
    check(|spec| spec.principals.names = texts(&["alice"]), |_| {}, true);
    check(|spec| spec.principals.names = texts(&["bob"]), |_| {}, false);
    check(|spec| spec.principals.roles = texts(&["user"]), |_| {}, true);
    check(|spec| spec.principals.groups = texts(&["dev"]), |_| {}, false);
    check(|spec| spec.servers = texts(&["crm"]), |_| {}, true);
    check(|spec| spec.servers = texts(&["CRM"]), |_| {}, true);
    check(|spec| spec.servers = texts(&["c*"]), |_| {}, true);
    check(|spec| spec.servers = texts(&["demo", "erp"]), |_| {}, false);
    check(|spec| spec.servers = texts(&["crm"]), |about| about.server = None, false);
    check(|spec| spec.per = vec![Per::Server], |about| about.server = None, false);
    check(|_| {}, |about| (about.server, about.tool) = (None, None), true);
    check(|spec| spec.tools = texts(&["deploy"]), |about| about.tool = Some("DePloy"), true);
    check(|spec| spec.tools = texts(&["de*"]), |_| {}, true);
    check(|spec| spec.tools = texts(&["get_*"]), |_| {}, false);
    check(|spec| spec.tools = texts(&["deploy"]), |about| about.tool = None, false);
    check(|spec| spec.per = vec![Per::Tool], |about| about.tool = None, false);
    check(|spec| spec.classes = vec![Class::Calls], |_| {}, true);
    check(|spec| spec.classes = vec![Class::Lists, Class::Listens], |_| {}, false);
    check(|spec| spec.classes = vec![Class::Calls], |about| about.class = None, false);
    check(|_| {}, |about| about.class = None, true);
    let open = |kind| move |spec: &mut LimitSpec| (spec.kind, spec.window_seconds) = (kind, 0);
    check(open(LimitKind::Concurrent), |_| {}, true);
    check(open(LimitKind::Concurrent), |about| about.is_asked = false, false);
    check(open(LimitKind::Concurrent), |about| about.class = Some(Class::Listens), false);
    check(open(LimitKind::Streams), |_| {}, false);
    check(open(LimitKind::Streams), |about| (about.tool, about.class) = (None, Some(Class::Listens)), true);
}

#[test]
fn what_is_counted_together_has_one_name() {
    let (alice, mut bob) = (principal("alice", "user", "ops"), principal("bob", "user", "ops"));
    bob.id = Uuid::from_u128(9);
    let together = |per: &[Per], change: fn(&mut About<'_>)| {
        let limit = compiled(LimitSpec { per: per.to_vec(), ..rate() });
        let mut other = about(&alice);
        change(&mut other);
        limit.subject(&about(&alice)) == limit.subject(&other)
    };
    assert!(together(&[Per::Principal], |about| about.key = Some("k2")));
    assert!(together(&[Per::Principal], |about| about.key = None));
    assert!(!together(&[Per::Key], |about| about.key = Some("k2")));
    assert!(together(&[Per::Tool], |about| about.tool = Some("DEPLOY")));
    assert!(!together(&[Per::Tool], |about| about.tool = Some("undo")));
    assert!(!together(&[Per::Tool], |about| about.server = Some((Uuid::from_u128(3), "erp"))));
    assert!(together(&[], |about| about.server = Some((Uuid::from_u128(3), "erp"))));
    let limit = compiled(rate());
    assert_ne!(limit.subject(&about(&alice)), limit.subject(&about(&bob)));
    let whole = compiled(LimitSpec { per: Vec::new(), ..rate() });
    assert_eq!(whole.subject(&about(&alice)), whole.subject(&about(&bob)));
}

#[test]
fn what_is_wrong_is_named() {
    fn wrong(change: impl FnOnce(&mut LimitSpec)) -> Vec<String> {
        let mut spec = rate();
        change(&mut spec);
        spec.problems().into_iter().map(|problem| problem.field).collect()
    }
    assert!(wrong(|_| {}).is_empty());
    assert_eq!(wrong(|spec| spec.name = "No".into()), ["name"]);
    assert_eq!(wrong(|spec| spec.amount = 0), ["amount"]);
    assert_eq!(wrong(|spec| spec.amount = AMOUNT_MOST + 1), ["amount"]);
    assert_eq!(wrong(|spec| spec.window_seconds = 0), ["window_seconds"]);
    assert_eq!(wrong(|spec| spec.window_seconds = WINDOW_MOST + 1), ["window_seconds"]);
    assert_eq!(wrong(|spec| spec.kind = LimitKind::Concurrent), ["window_seconds"]);
    assert_eq!(wrong(|spec| spec.per = vec![Per::Key, Per::Key]), ["per[1]"]);
    assert_eq!(wrong(|spec| spec.servers = vec!["a b".into()]), ["servers[0]"]);
    assert_eq!(wrong(|spec| spec.tools = vec!["ok".into(), String::new()]), ["tools[1]"]);
    assert_eq!(wrong(|spec| spec.principals.roles = vec!["A".into()]), ["principals.roles[0]"]);
    assert_eq!(wrong(|spec| spec.classes = vec![Class::Calls, Class::Calls]), ["classes[1]"]);
    let streams = |spec: &mut LimitSpec| (spec.kind, spec.window_seconds) = (LimitKind::Streams, 0);
    assert_eq!(wrong(|spec| (streams(spec), spec.classes = vec![Class::Calls]).1), ["classes[0]"]);
    assert_eq!(wrong(|spec| (streams(spec), spec.tools = vec!["x".into()]).1), ["tools"]);
    let lists_of_a_tool = |spec: &mut LimitSpec| {
        (spec.tools, spec.classes) = (vec!["x".into()], vec![Class::Lists]);
    };
    assert_eq!(wrong(lists_of_a_tool), ["classes[0]"]);
}
