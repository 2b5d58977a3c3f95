//! Parse, build, run.

use std::io::Write as _;
use std::process::ExitCode;

use waffles_control_plane::config::{Command, Config};
use waffles_control_plane::{app, rest};
use waffles_runtime::{memory, telemetry, tls};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    memory::small_pages();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "ending");
            // The log may be JSON, filtered or not set up yet; this is for people.
            if writeln!(std::io::stderr(), "waffles-control-plane: {error:#}").is_err() {
                return ExitCode::from(3);
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let config = Config::read()?;
    if config.command == Command::Openapi {
        write!(std::io::stdout(), "{}", rest::openapi())?;
        return Ok(());
    }
    telemetry::init(&config.log)?;
    tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match config.command.clone() {
            Command::Serve => Box::pin(app::build(config)).await?.run().await,
            Command::Migrate => app::migrate(&config).await,
            Command::AdminPassword => app::admin_password(&config).await,
            Command::NewLineage => app::new_lineage(&config).await,
            Command::JoinToken { group, file } => app::join_token(&config, &group, file.as_deref()).await,
            Command::Rekey { new_master_key_file } => app::rekey(&config, &new_master_key_file).await,
            Command::Ca => app::authorities(&config).await,
            Command::Openapi => Ok(()),
        }
    })
}
