//! Runs a command with a private Postgres and a private redis, named by `WAFFLES_TEST_POSTGRES` and `WAFFLES_TEST_REDIS`:
//! for tests of one crate, which cannot use the harness. Both end with the command, whose exit status is passed on.

use std::process::ExitCode;

use anyhow::Context as _;
use waffles_tests::{Postgres, Redis};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let program = args.next().context("usage: with-services COMMAND ARGS…")?;
    let (postgres, redis) = (Postgres::start().await, Redis::start().await);
    let database = postgres.database().await;
    let server = database.rsplit_once('/').context("a database's URL has a path")?.0.to_owned();
    let status = tokio::process::Command::new(program)
        .args(args)
        .env("WAFFLES_TEST_POSTGRES", format!("{server}/postgres"))
        .env("WAFFLES_TEST_REDIS", redis.url())
        .status()
        .await?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
