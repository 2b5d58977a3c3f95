use waffles_core::server::{Credential, Endpoint, Spec};
use waffles_core::snapshot::Snapshot;

use super::*;

fn server(name: &str, check: Check) -> Server {
    let health = HealthPolicy { check, fall: 2, rise: 1, ..HealthPolicy::default() };
    let url = url::Url::parse("http://127.0.0.1:9/mcp").unwrap();
    let endpoints = vec![Endpoint::at(url)];
    let now = Utc::now();
    Server {
        id: Uuid::now_v7(),
        tenant: "default".into(),
        spec: Spec { name: name.into(), endpoints, health, ..Spec::default() },
        credential: Credential::None,
        enabled: true,
        version: 1,
        created_at: now,
        updated_at: now,
    }
}

fn monitor(servers: &[&Server]) -> Monitor {
    let update = wire::Update {
        lineage: "here".into(),
        revision: 1,
        full: true,
        resources: servers.iter().map(|server| wire::server_resource(server)).collect(),
        removed: Vec::new(),
    };
    let (snapshot, refused) = Snapshot::default().with_update(update);
    assert!(refused.is_empty(), "{refused:?}");
    let metrics = Metrics::new(&waffles_runtime::telemetry::Metrics::new());
    Monitor::new(Arc::new(Current::new(snapshot)), metrics)
}

fn found(finding: Finding) -> Vec<Found> {
    vec![Found { endpoint: 0, finding, saw: "what was seen".into(), took: Duration::from_millis(3) }]
}

/// What the reports say, as `name-or-gone:state:reason`.
fn told(monitor: &Monitor) -> Vec<String> {
    let show = |report: ServerReport| {
        let state = wire::state_from_proto(report.state).as_str();
        if report.gone { "gone".to_owned() } else { format!("{state}:{}:{}", report.reason, report.checks) }
    };
    monitor.report().servers.into_iter().map(show).collect()
}

fn call(monitor: &Monitor, server: &Server, outcome: Outcome) {
    monitor.called("default", &server.spec.name, outcome);
}

#[tokio::test(start_paused = true)]
async fn news_is_told_a_few_times_and_everything_from_time_to_time() {
    let server = server("a", Check::Handshake);
    let monitor = monitor(&[&server]);
    monitor.begin(&server);
    monitor.checked(&server, found(Finding::Good), None, Duration::ZERO);
    for _ in 0..TELLINGS {
        assert_eq!(told(&monitor), ["up::true"]);
    }
    assert!(told(&monitor).is_empty());
    tokio::time::advance(RETOLD).await;
    assert_eq!(told(&monitor), ["up::true"]);
    assert!(told(&monitor).is_empty());
    monitor.end(server.id);
    for _ in 0..TELLINGS {
        assert_eq!(told(&monitor), ["gone"]);
    }
    assert!(told(&monitor).is_empty());
}

#[tokio::test]
async fn an_order_is_named_by_the_check_that_answers_it() {
    let server = server("a", Check::Handshake);
    let (monitor, order) = (monitor(&[&server]), Uuid::now_v7());
    monitor.begin(&server);
    monitor.order(vec![pb::CheckOrder { id: order.to_string(), server_id: server.id.to_string() }]);
    let (mut orders, _nudges) = monitor.work().unwrap();
    assert_eq!(orders.recv().await, Some(Order { server: server.id, id: Some(order) }));
    assert!(monitor.work().is_none(), "one task does the work");
    monitor.checked(&server, found(Finding::Bad("unreachable".into())), Some(order), Duration::ZERO);
    let report = monitor.report().servers.remove(0);
    assert_eq!((report.order, report.reason.as_str()), (order.to_string(), "unreachable"));
    assert_eq!(wire::state_from_proto(report.state), State::Unknown, "one of two");
    assert_eq!(report.endpoints[0].saw, "what was seen");
}

#[tokio::test]
async fn calls_that_fail_degrade_a_server_and_hurry_its_check() {
    let server = server("a", Check::Handshake);
    let monitor = monitor(&[&server]);
    let (_orders, mut nudges) = monitor.work().unwrap();
    monitor.begin(&server);
    monitor.checked(&server, found(Finding::Good), None, Duration::ZERO);
    call(&monitor, &server, Outcome::UpstreamFailed);
    call(&monitor, &server, Outcome::UpstreamFailed);
    assert_eq!(told(&monitor), ["degraded:calls_fail:true"]);
    assert_eq!(nudges.try_recv().unwrap(), Order { server: server.id, id: None });
    assert!(nudges.try_recv().is_err(), "one a second");
    // What a client or a rule is to blame for says nothing of the server.
    call(&monitor, &server, Outcome::Cancelled);
    call(&monitor, &server, Outcome::Denied);
    assert_eq!(told(&monitor), ["degraded:calls_fail:true"]);
    call(&monitor, &server, Outcome::Error);
    assert_eq!(told(&monitor), ["up::true"]);
    assert_eq!(monitor.suspects.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_proxy_that_does_not_look_tells_of_calls_only_while_they_fail() {
    let (looked, off) = (server("a", Check::Handshake), server("b", Check::Off));
    let monitor = monitor(&[&looked, &off]);
    call(&monitor, &looked, Outcome::Ok);
    assert!(told(&monitor).is_empty());
    for _ in 0..2 {
        call(&monitor, &looked, Outcome::UpstreamFailed);
    }
    assert_eq!(told(&monitor), ["degraded:calls_fail:false"]);
    call(&monitor, &looked, Outcome::Ok);
    assert_eq!(told(&monitor), ["gone"]);
    // Where checks are off, calls are all there is.
    for _ in 0..2 {
        call(&monitor, &off, Outcome::UpstreamFailed);
    }
    assert!(told(&monitor).contains(&"down:calls_fail:false".to_owned()));
    call(&monitor, &off, Outcome::Ok);
    assert!(told(&monitor).contains(&"up::false".to_owned()));
}

#[test]
fn what_to_check_is_taken_out_of_an_update() {
    let server = server("a", Check::Handshake);
    let monitor = monitor(&[&server]);
    let checks = |all: bool, ids: Vec<Vec<u8>>| pb::Resource {
        id: "checks".into(),
        kind: Some(pb::resource::Kind::Checks(pb::Checks { all, server_ids: ids })),
    };
    let mut resources =
        vec![wire::server_resource(&server), checks(false, vec![server.id.as_bytes().to_vec(), vec![1]])];
    let assigned = monitor.assigned();
    monitor.take(&mut resources);
    assert!(resources.len() == 1 && resources[0].kind.is_some());
    assert_eq!(*assigned.borrow(), Assigned::These(HashSet::from([server.id])));
    monitor.take(&mut vec![checks(true, vec![])]);
    assert!(assigned.borrow().contains(&Uuid::nil()));
}
