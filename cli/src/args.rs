//! The command tree. Every flag also has an environment variable: `WAFFLES_<FLAG>` for the global ones and
//! those of `up`, `WAFFLES_<NOUN>_<FLAG>` for the others.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use crate::audit::{ExportArgs, SearchArgs, TailArgs, VerifyArgs};
use crate::call::CallArgs;
use crate::credential::CredentialCommand;
use crate::grant::GrantCommand;
use crate::group::GroupCommand;
use crate::key::KeyCommand;
use crate::limit::LimitCommand;
use crate::login::{ContextCommand, LoginArgs};
use crate::namespace::NamespaceCommand;
use crate::passwd::PasswdArgs;
use crate::policy::PolicyCommand;
use crate::proxy::ProxyCommand;
use crate::role::RoleCommand;
use crate::run::RunArgs;
use crate::server::ServerCommand;
use crate::tenant::TenantCommand;
use crate::user::{ServiceAccountCommand, UserCommand};

const AFTER_HELP: &str = "\
Every flag can be given as an environment variable too: WAFFLES_<FLAG> for the global flags and
those of `up`, WAFFLES_<NOUN>_<FLAG> for the others (WAFFLES_SERVER_TAG for `server add --tag`).

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 cannot reach the control plane.";

/// The command line of Waffles, the MCP gateway.
#[derive(Debug, Parser)]
#[command(name = "wafflectl", version, after_help = AFTER_HELP, arg_required_else_help = true)]
#[command(subcommand_required = true, term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Default, Clone, Args)]
pub(crate) struct Global {
    /// The context to use, instead of the current one.
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options")]
    pub(crate) context: Option<String>,
    /// The context file. Without it: ./waffles-data/wafflectl.toml if there is one, else
    /// waffles/wafflectl.toml in the user's configuration folder.
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(crate) config: Option<PathBuf>,
    /// How to print results.
    #[arg(long, short, global = true, value_name = "FORMAT", default_value = "table")]
    #[arg(help_heading = "Global options")]
    pub(crate) output: Format,
    /// The tenant; refused when the context's credential is of another one.
    #[arg(long, global = true, value_name = "TENANT", help_heading = "Global options")]
    pub(crate) tenant: Option<String>,
}

/// How results are printed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// For scripts.
    Json,
    /// For scripts and files.
    Yaml,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole Waffles on this machine: both planes, and a context for wafflectl.
    Up(UpArgs),
    /// Run an MCP server that speaks on standard streams, and register it, until Ctrl-C.
    Run(RunArgs),
    /// Log in with a password, or keep an API key, and remember it in a context.
    Login(LoginArgs),
    /// End the session of the context in use.
    Logout,
    /// Say who the context's credential stands for, and what it may do.
    Whoami,
    /// Contexts: which Waffles to talk to, and as whom.
    #[command(subcommand)]
    Context(ContextCommand),
    /// MCP servers.
    #[command(subcommand)]
    Server(ServerCommand),
    /// Namespaces: sets of servers behind one door.
    #[command(subcommand)]
    Namespace(NamespaceCommand),
    /// Policy: rules with conditions, their versions, and what they come to.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Limits: how much may be done in a time, or at once.
    #[command(subcommand)]
    Limit(LimitCommand),
    /// Show how much of the limits is used, and what the tenant has of what it may have.
    Usage,
    /// API keys.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Users: the people who may log in.
    #[command(subcommand)]
    User(UserCommand),
    /// Service accounts: programs, which have API keys and no password.
    #[command(subcommand)]
    ServiceAccount(ServiceAccountCommand),
    /// Groups: those who hold the same.
    #[command(subcommand)]
    Group(GroupCommand),
    /// Roles: sets of permissions.
    #[command(subcommand)]
    Role(RoleCommand),
    /// Grants: who holds which role where.
    #[command(subcommand)]
    Grant(GrantCommand),
    /// Change your password, or set one with a token.
    Passwd(PasswdArgs),
    /// Tenants, for those who run the whole Waffles.
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// The audit trail.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Proxies: the running data planes, and which of them belong.
    #[command(subcommand)]
    Proxy(ProxyCommand),
    /// The keys that secrets are sealed with.
    #[command(subcommand)]
    Credential(CredentialCommand),
    /// Call a tool, as an MCP client does, through the data plane.
    Call(CallArgs),
    /// Check every hop between here and the servers, and say what to do about what is wrong.
    Doctor,
    /// Print a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the version.
    Version,
    /// Run the demo MCP server alone and print its address as JSON.
    #[command(hide = true)]
    DemoServer {
        /// Where to listen; port 0 is any free one.
        #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS")]
        addr: SocketAddr,
        /// Speak on the standard streams instead.
        #[arg(long, conflicts_with = "addr")]
        stdio: bool,
    },
    /// Become another program that ends when its parent does.
    #[command(hide = true)]
    Child {
        /// The parent's process id.
        parent: i32,
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        program: Vec<std::ffi::OsString>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Search, newest first.
    Search(SearchArgs),
    /// Follow: print events as they are stored, until Ctrl-C.
    Tail(TailArgs),
    /// Export as JSON Lines, with all that it takes to verify it offline.
    Export(ExportArgs),
    /// Verify that the trail is as it was written: each record, each checkpoint. Exit status 1 where it is not.
    Verify(VerifyArgs),
}

/// Flags of `up`.
#[derive(Debug, Clone, Args)]
pub(crate) struct UpArgs {
    /// Where everything is kept.
    #[arg(long, default_value = crate::context::DATA_DIR, value_name = "FOLDER")]
    pub(crate) data_dir: PathBuf,
    /// Also start and register the small demo MCP server.
    #[arg(long)]
    pub(crate) demo: bool,
    /// Postgres (postgres://…) instead of SQLite in the data folder.
    #[arg(long, value_name = "URL")]
    pub(crate) database_url: Option<String>,
    /// Redis, for limits shared between replicas.
    #[arg(long, value_name = "URL")]
    pub(crate) redis_url: Option<String>,
    /// Where MCP clients connect; port 0 is any free one.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub(crate) mcp_addr: SocketAddr,
    /// Where REST is served; port 0 is any free one.
    #[arg(long, default_value = "127.0.0.1:8081", value_name = "ADDRESS")]
    pub(crate) http_addr: SocketAddr,
    /// Where gRPC is served, for wafflectl and proxies; port 0 is any free one.
    #[arg(long, default_value = "127.0.0.1:8082", value_name = "ADDRESS")]
    pub(crate) grpc_addr: SocketAddr,
}

/// The whole command tree, with the environment variable of each flag.
pub(crate) fn command() -> clap::Command {
    let mut root = with_env(Cli::command(), "WAFFLES", true);
    let names: Vec<String> = root.get_subcommands().map(|noun| noun.get_name().to_owned()).collect();
    for name in names {
        let prefix = match name.as_str() {
            "up" => "WAFFLES".to_owned(),
            noun => format!("WAFFLES_{}", screaming(noun)),
        };
        root = root.mut_subcommand(name, |noun| {
            let noun = with_env(noun, &prefix, prefix == "WAFFLES");
            let verbs: Vec<String> = noun.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
            verbs
                .into_iter()
                .fold(noun, |noun, verb| noun.mut_subcommand(verb, |verb| with_env(verb, &prefix, false)))
        });
    }
    root
}

fn with_env(command: clap::Command, prefix: &str, shown: bool) -> clap::Command {
    command.mut_args(|arg| {
        let Some(long) = arg.get_long() else { return arg };
        let name = format!("{prefix}_{}", screaming(long));
        // Clap keeps the name for the life of the process; there are a few dozen, made once.
        let name: &'static str = Box::leak(name.into_boxed_str());
        // Values are never shown in help texts: a database's address may hold its password.
        arg.env(name).hide_env_values(true).hide_env(!shown)
    })
}

fn screaming(name: &str) -> String {
    name.replace('-', "_").to_ascii_uppercase()
}

/// Reads the command line. Wrong usage and help end here, with clap's own texts.
pub(crate) fn parse() -> Result<Cli, clap::Error> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_sound() {
        command().debug_assert();
    }

    fn each(command: &clap::Command, path: &str, visit: &mut dyn FnMut(&str, &clap::Command)) {
        visit(path, command);
        for sub in command.get_subcommands() {
            each(sub, &format!("{path} {}", sub.get_name()), visit);
        }
    }

    #[test]
    fn every_flag_has_an_environment_variable() {
        each(&command(), "wafflectl", &mut |path, command| {
            for arg in command.get_arguments().filter(|arg| arg.get_long().is_some()) {
                let name = arg.get_env().and_then(|name| name.to_str());
                assert!(name.is_some_and(|name| name.starts_with("WAFFLES_")), "{path} --{arg}");
            }
        });
    }

    #[test]
    fn the_help_texts_are_the_golden_ones() {
        let mut text = String::new();
        let mut root = command();
        root.build();
        each(&root, "wafflectl", &mut |path, command| {
            if path.split(' ').all(|word| word != "help") {
                let help = command.clone().render_long_help();
                let lines: Vec<String> =
                    help.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
                text.push_str(&format!("$ {path} --help\n{}\n\n", lines.join("\n").trim_end()));
            }
        });
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/help.txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            golden == text,
            "the help texts changed; run the tests with UPDATE_GOLDEN=1 and look at the diff"
        );
    }
}
