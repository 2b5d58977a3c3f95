//! The proxy's program: parse, build, run.

use std::process::ExitCode;

use clap::Parser as _;
use mimalloc::MiMalloc;
use waffles_data_plane::{app, config::Config};
use waffles_runtime::{memory, telemetry, tls};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    memory::small_pages();
    match run(Config::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The causes in one line, for people and for whoever started us; no backtrace.
            tracing::error!(error = format!("{error:#}"), "ending");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    telemetry::init(&config.log())?;
    tls::install_provider();
    // What is not the request path: configuration, audit upload, the admin port. It must never delay a call, so it has
    // a runtime of its own.
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()?;
    control.block_on(async move { Box::pin(app::build(config)).await?.run().await })
}
