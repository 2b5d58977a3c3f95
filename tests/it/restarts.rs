//! Restarts under load: two proxies, of which one after the other is restarted while clients call through both. The long
//! version: `WAFFLES_TEST_RESTARTS=20`, `WAFFLES_TEST_RESTART_CALLS=100000`.

use std::time::Duration;

use waffles_tests::programs::DataPlaneOptions;
use waffles_tests::traffic::{Plan, Traffic};
use waffles_tests::{Figure, Seeded};

const CALLERS: usize = 8;

#[expect(clippy::disallowed_methods, reason = "a test binary has no settings of its own")]
fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarting_one_of_two_proxies_loses_no_call() {
    let restarts = setting("WAFFLES_TEST_RESTARTS", 4);
    let calls = setting("WAFFLES_TEST_RESTART_CALLS", 1_000);
    // What is shed is not lost, but here nothing shall be shed either.
    let args = ["--linger", "500ms", "--max-lag", "10s"].map(str::to_owned).to_vec();
    let options = DataPlaneOptions { args, workers: 2, ..DataPlaneOptions::default() };
    let mut waffles = Seeded::made(options.clone(), |_| {}, |_, _| {}).await;
    let mut other = waffles.another_with(options).await;
    let traffic = Traffic::start(&Plan {
        proxies: [waffles.proxy.mcp, other.mcp].into(),
        server: "demo".into(),
        key: waffles.key.clone(),
        callers: CALLERS,
        pause: Duration::ZERO,
    });
    for restart in 0..restarts {
        traffic.reach(calls * (restart + 1) / (restarts + 1)).await;
        let proxy = if restart % 2 == 0 { &mut waffles.proxy } else { &mut other };
        let ended = proxy.stop().await;
        assert!(ended.success(), "{ended}");
        proxy.restart().await;
        proxy.ready().await;
        // Both serve before the other one goes.
        proxy.takes_connections().await;
    }
    traffic.reach(calls).await;
    let (made, failures) = traffic.stop().await;
    Figure {
        promise: "P01".into(),
        what: "calls lost while proxies are restarted".into(),
        goal: "0 of 100000 over 20 restarts".into(),
        measured: format!("{} of {made} over {restarts} restarts", failures.len()),
        extent: format!("{made} of 100000 calls"),
        met: failures.is_empty(),
    }
    .note();
    assert!(
        failures.is_empty(),
        "{} of {made} calls: {:#?}",
        failures.len(),
        failures.iter().take(5).collect::<Vec<_>>()
    );
}
