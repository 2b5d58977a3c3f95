//! `wafflectl`, the operator's command line: reads it, runs one command, and says how that ended.
//!
//! One thread is enough, and `up` needs it: the kernel ties its children to the thread that started them.

mod args;
mod ask;
mod audit;
mod bridge;
mod call;
mod client;
mod context;
mod credential;
mod demo;
mod doctor;
mod failure;
mod grant;
mod group;
mod http;
mod import;
mod key;
mod limit;
mod login;
mod mcp;
mod moment;
mod namespace;
mod output;
mod passwd;
mod place;
mod policy;
mod proxy;
mod role;
mod run;
mod server;
mod stdio;
mod tenant;
mod up;
mod user;

use std::process::ExitCode;

use args::{Cli, Command};
use output::shape::Version;
use output::{note, print};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = match args::parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing can be done about an output that is closed.
            drop(error.print());
            return u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
        }
    };
    // Fails only when there is one already, which is as good.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    match Box::pin(run(cli)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let (exit, text) = failure::report(&error);
            note(&text);
            exit.into()
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let Cli { global, command } = cli;
    match command {
        Command::Up(args) => up::run(&global, args).await,
        Command::Run(args) => run::run(&global, args).await,
        Command::Login(args) => login::login(&global, args).await,
        Command::Logout => login::logout(&global).await,
        Command::Whoami => login::whoami(&global).await,
        Command::Context(command) => login::context(&global, command),
        Command::Server(command) => server::run(&global, command).await,
        Command::Namespace(command) => namespace::run(&global, command).await,
        Command::Policy(command) => policy::run(&global, command).await,
        Command::Limit(command) => limit::run(&global, command).await,
        Command::Usage => limit::usage(&global).await,
        Command::Key(command) => key::run(&global, command).await,
        Command::User(command) => user::run(&global, command).await,
        Command::ServiceAccount(command) => user::run_service(&global, command).await,
        Command::Group(command) => group::run(&global, command).await,
        Command::Role(command) => role::run(&global, command).await,
        Command::Grant(command) => grant::run(&global, command).await,
        Command::Passwd(args) => passwd::run(&global, args).await,
        Command::Tenant(command) => tenant::run(&global, command).await,
        Command::Audit(command) => audit::run(&global, command).await,
        Command::Proxy(command) => proxy::run(&global, command).await,
        Command::Credential(command) => credential::run(&global, command).await,
        Command::Call(args) => call::run(&global, args).await,
        Command::Doctor => doctor::run(&global).await,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut args::command(), "wafflectl", &mut script);
            output::line(String::from_utf8_lossy(&script).trim_end())
        }
        Command::Version => print(global.output, &Version { version: env!("CARGO_PKG_VERSION") }),
        Command::DemoServer { stdio: true, .. } => demo::serve_stdio().await,
        Command::DemoServer { addr, stdio: false } => up::demo::run_alone(addr).await,
        Command::Child { parent, program } => up::child::become_program(parent, &program),
    }
}
