//! `limit …` and `usage`: how much may be done in a time, or at once, and how much was.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use waffles_proto::policy::v1 as pb;

use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::print;
use crate::output::shape::{Limit, Usage};

#[derive(Debug, Subcommand)]
pub(crate) enum LimitCommand {
    /// Make a limit, such as `limit add calls --rate 100/1m --per principal`.
    Add {
        /// Its name: a DNS label, which those who are limited are told.
        name: String,
        #[command(flatten)]
        how_many: HowMany,
        #[command(flatten)]
        about: About,
    },
    /// List limits.
    List,
    /// Show a limit.
    Get {
        /// Its name.
        name: String,
    },
    /// Change a limit. What is not named stays as it is; a list that is named replaces the whole list.
    Edit {
        /// Its name.
        name: String,
        #[command(flatten)]
        how_many: HowMany,
        #[command(flatten)]
        about: About,
        /// Empty these lists.
        #[arg(long, value_name = "LIST", value_delimiter = ',')]
        clear: Vec<List>,
        /// Refuse when the limit is not at this version any more.
        #[arg(long, value_name = "N")]
        version: Option<u64>,
    },
    /// Remove a limit.
    Remove {
        /// Its name.
        name: String,
    },
}

/// What is limited, and to how many.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct HowMany {
    /// So many messages in any time of this length, such as `100/1m`.
    #[arg(long, value_name = "N/TIME", value_parser = windowed)]
    rate: Option<Windowed>,
    /// So many messages in each period of this length, such as `10000/1day`: a day begins at midnight, UTC.
    #[arg(long, value_name = "N/TIME", value_parser = windowed)]
    quota: Option<Windowed>,
    /// So many messages that wait for their answers at once.
    #[arg(long, value_name = "N")]
    concurrent: Option<u64>,
    /// So many streams to listen on, open at once.
    #[arg(long, value_name = "N")]
    streams: Option<u64>,
}

/// What a limit is about.
#[derive(Debug, Args)]
pub(crate) struct About {
    /// What is counted apart; without it, all together.
    #[arg(long, value_name = "WHAT", value_delimiter = ',')]
    per: Vec<Per>,
    /// Only those who hold this role in the whole tenant; may be repeated.
    #[arg(long, value_name = "ROLE", value_delimiter = ',')]
    role: Vec<String>,
    /// Only members of this group; may be repeated.
    #[arg(long, value_name = "GROUP", value_delimiter = ',')]
    group: Vec<String>,
    /// Only this user or service account; may be repeated.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    principal: Vec<String>,
    /// Only messages for this server, or for servers that fit a pattern such as `crm-*`; may be repeated.
    #[arg(long, value_name = "SERVER", value_delimiter = ',')]
    server: Vec<String>,
    /// Only calls of this tool, or of tools that fit a pattern such as `delete_*`; may be repeated.
    #[arg(long, value_name = "TOOL", value_delimiter = ',')]
    tool: Vec<String>,
    /// Only this class of methods; without it, every message.
    #[arg(long, value_name = "CLASS", value_delimiter = ',')]
    class: Vec<Class>,
    /// Free text.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
}

/// What can be counted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Per {
    /// Each user and service account.
    Principal,
    /// Each API key.
    Key,
    /// Each server.
    Server,
    /// Each tool.
    Tool,
}

/// Classes of methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Class {
    /// What does or reads something.
    Calls,
    /// Lists.
    Lists,
    /// Opens a stream to listen on.
    Listens,
}

/// Lists that can be emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum List {
    /// What is counted apart.
    Per,
    /// Roles.
    Roles,
    /// Groups.
    Groups,
    /// Principals.
    Principals,
    /// Servers.
    Servers,
    /// Tools.
    Tools,
    /// Classes of methods.
    Classes,
}

/// How many in which time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Windowed {
    amount: u64,
    seconds: u64,
}

fn windowed(text: &str) -> Result<Windowed, String> {
    let form = || "write it as a number and a time, such as `100/1m`".to_owned();
    let (amount, window) = text.split_once('/').ok_or_else(form)?;
    let amount = amount.trim().parse().map_err(|_| form())?;
    // `100/m` is as good as `100/1m`.
    let window = window.trim();
    let window = if window.starts_with(|c: char| c.is_ascii_digit()) {
        window.to_owned()
    } else {
        format!("1{window}")
    };
    let window: Duration = humantime::parse_duration(&window).map_err(|_| form())?;
    if window.subsec_nanos() != 0 {
        return Err("the time must be of whole seconds".to_owned());
    }
    Ok(Windowed { amount, seconds: window.as_secs() })
}

impl HowMany {
    /// Puts what the flags say into a limit; false where they say nothing.
    fn apply(&self, spec: &mut pb::LimitSpec) -> bool {
        let (kind, amount, seconds) = match (self.rate, self.quota, self.concurrent, self.streams) {
            (Some(rate), ..) => (pb::LimitKind::Rate, rate.amount, rate.seconds),
            (_, Some(quota), ..) => (pb::LimitKind::Quota, quota.amount, quota.seconds),
            (_, _, Some(amount), _) => (pb::LimitKind::Concurrent, amount, 0),
            (.., Some(amount)) => (pb::LimitKind::Streams, amount, 0),
            (None, None, None, None) => return false,
        };
        (spec.kind, spec.amount, spec.window_seconds) = (kind.into(), amount, seconds);
        true
    }
}

impl About {
    fn apply(self, spec: &mut pb::LimitSpec) {
        let per = self.per.into_iter().map(|per| match per {
            Per::Principal => pb::LimitPer::Principal.into(),
            Per::Key => pb::LimitPer::Key.into(),
            Per::Server => pb::LimitPer::Server.into(),
            Per::Tool => pb::LimitPer::Tool.into(),
        });
        let classes = self.class.into_iter().map(|class| match class {
            Class::Calls => pb::MethodClass::Calls.into(),
            Class::Lists => pb::MethodClass::Lists.into(),
            Class::Listens => pb::MethodClass::Listens.into(),
        });
        let (per, classes): (Vec<i32>, Vec<i32>) = (per.collect(), classes.collect());
        let who = spec.principals.get_or_insert_default();
        for (given, list) in [
            (self.role, &mut who.roles),
            (self.group, &mut who.groups),
            (self.principal, &mut who.names),
            (self.server, &mut spec.servers),
            (self.tool, &mut spec.tools),
        ] {
            if !given.is_empty() {
                *list = given;
            }
        }
        for (given, list) in [(per, &mut spec.per), (classes, &mut spec.classes)] {
            if !given.is_empty() {
                *list = given;
            }
        }
        if let Some(description) = self.description {
            spec.description = description;
        }
    }
}

fn empty(spec: &mut pb::LimitSpec, list: List) {
    let who = spec.principals.get_or_insert_default();
    match list {
        List::Per => spec.per.clear(),
        List::Roles => who.roles.clear(),
        List::Groups => who.groups.clear(),
        List::Principals => who.names.clear(),
        List::Servers => spec.servers.clear(),
        List::Tools => spec.tools.clear(),
        List::Classes => spec.classes.clear(),
    }
}

/// `limit …`.
pub(crate) async fn run(global: &Global, command: LimitCommand) -> anyhow::Result<()> {
    let client = Client::open(global).await?;
    let mut limits = client.limits();
    let limit = match command {
        LimitCommand::Add { name, how_many, about } => {
            let mut spec = pb::LimitSpec { name, ..pb::LimitSpec::default() };
            if !how_many.apply(&mut spec) {
                return Err(Failure::usage("it is not said how many")
                    .next("Give one of --rate 100/1m, --quota 10000/1day, --concurrent 10 or --streams 5.")
                    .into());
            }
            about.apply(&mut spec);
            let request = pb::CreateLimitRequest { spec: Some(spec) };
            limits.create_limit(request).await.map_err(Failure::from)?.into_inner().limit
        }
        LimitCommand::List => {
            let answer = limits.list_limits(pb::ListLimitsRequest {}).await.map_err(Failure::from)?;
            let limits: Vec<Limit> = answer.into_inner().limits.into_iter().map(Limit::from).collect();
            return print(global.output, limits.as_slice());
        }
        LimitCommand::Get { name } => {
            limits.get_limit(pb::GetLimitRequest { name }).await.map_err(Failure::from)?.into_inner().limit
        }
        LimitCommand::Edit { name, how_many, about, clear, version } => {
            let before = limits.get_limit(pb::GetLimitRequest { name }).await.map_err(Failure::from)?;
            let before = before.into_inner().limit.unwrap_or_default();
            let mut spec = before.spec.unwrap_or_default();
            how_many.apply(&mut spec);
            for list in clear {
                empty(&mut spec, list);
            }
            about.apply(&mut spec);
            let version = version.unwrap_or(before.version);
            let request = pb::UpdateLimitRequest { spec: Some(spec), version };
            limits.update_limit(request).await.map_err(Failure::from)?.into_inner().limit
        }
        LimitCommand::Remove { name } => {
            limits.delete_limit(pb::DeleteLimitRequest { name }).await.map_err(Failure::from)?;
            return Ok(());
        }
    };
    print(global.output, &Limit::from(limit.unwrap_or_default()))
}

/// `usage`.
pub(crate) async fn usage(global: &Global) -> anyhow::Result<()> {
    let client = Client::open(global).await?;
    let answer = client.limits().get_usage(pb::GetUsageRequest {}).await.map_err(Failure::from)?;
    print(global.output, &Usage::from(answer.into_inner()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_in_a_time_is_read() {
        let check = |text: &str, expected: Option<(u64, u64)>| {
            let read = windowed(text).ok().map(|read| (read.amount, read.seconds));
            assert_eq!(read, expected, "{text}");
        };
        check("100/1m", Some((100, 60)));
        check("100/m", Some((100, 60)));
        check("5/1s", Some((5, 1)));
        check("10000/1day", Some((10_000, 86_400)));
        check("100", None);
        check("x/1m", None);
        check("1/500ms", None);
        check("1/", None);
    }
}
