//! A whole Waffles in a test: the real programs on free ports, a Postgres and a redis of one's own, a scripted MCP
//! server with faults, a raw MCP client. Everything waits for conditions with an end, and nothing outlives the test.

#![allow(clippy::disallowed_methods, reason = "tests connect to what they have started")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a harness fails by panicking"
)]
#![allow(clippy::print_stderr, reason = "what a failed test says")]

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

pub mod bench;
pub mod clock;
pub mod dice;
pub mod matrix;
pub mod mcp_client;
pub mod mcp_server;
pub mod member;
pub mod postgres;
pub mod programs;
pub mod promise;
pub mod raw_server;
pub mod redis;
pub mod sdk;
pub mod seed;
pub mod traffic;
pub mod waffles;
pub mod watchdog;

pub use dice::Dice;
pub use mcp_client::{Answer, Era, McpClient};
pub use mcp_server::{Behaviour, McpServer};
pub use postgres::Postgres;
pub use programs::{ControlPlane, ControlPlaneOptions, DataPlane, DataPlaneOptions, Program};
pub use promise::Figure;
pub use raw_server::RawServer;
pub use redis::Redis;
pub use seed::{Seed, Seeded};
pub use waffles::{Waffles, WafflesOptions};

/// How long a test waits for what should take a moment, on a busy machine with two cores.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Calls `probe` until it succeeds and returns what it found. Panics with its last error after `limit`.
pub async fn eventually<T, E, F, Fut>(limit: Duration, mut probe: F) -> T
where
    E: Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let end = tokio::time::Instant::now() + limit;
    let mut pause = Duration::from_millis(5);
    let mut last = String::from("the probe never ended");
    loop {
        match tokio::time::timeout_at(end, probe()).await {
            Ok(Ok(found)) => return found,
            Ok(Err(err)) => last = format!("{err:#}"),
            Err(_) => panic!("not so within {limit:?}: {last}"),
        }
        assert!(tokio::time::Instant::now() < end, "not so within {limit:?}: {last}");
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(100));
    }
}

/// As [`eventually`], for a plain condition.
pub async fn until<F, Fut>(what: &str, limit: Duration, mut probe: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    eventually(limit, || {
        let holds = probe();
        async move { if holds.await { Ok(()) } else { Err(what.to_owned()) } }
    })
    .await;
}
