//! `policy …`: rules, their versions, why a call is decided as it is, what a draft would change; and, without a control
//! plane, whether a file of rules is sound and decides what its author expects.

mod file;
mod offline;

use std::path::PathBuf;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use waffles_core::policy::RuleSpec;
use waffles_core::wire;
use waffles_proto::policy::v1 as pb;
use waffles_proto::policy::v1::policy_service_client::PolicyServiceClient;

use crate::args::{Format, Global};
use crate::client::{Client, Link};
use crate::failure::Failure;
use crate::moment;
use crate::output::shape::{Explanation, PolicyVersion, RuleChange, StoredRule, Trial};
use crate::output::{is_terminal, note, print};

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// List rules.
    List,
    /// Show one rule, or all of them. With `--output yaml` that is a file that `policy set` takes.
    Get {
        /// Its name; without it, all rules.
        name: Option<String>,
        /// The rules of this version.
        #[arg(long, value_name = "N", conflicts_with = "name")]
        version: Option<u64>,
    },
    /// Make the rules of a file the policy: rules that are not in it are removed.
    Set(SetArgs),
    /// Remove a rule.
    Remove {
        /// Its name.
        name: String,
        /// Why, for the history.
        #[arg(long, value_name = "TEXT")]
        comment: Option<String>,
    },
    /// List the versions of the policy, newest first; or show what differs between two.
    Versions {
        /// Show what this version changed against --against, or against the one before.
        #[arg(value_name = "N")]
        version: Option<u64>,
        /// The other version; 0 is the empty policy.
        #[arg(long, value_name = "N", requires = "version")]
        against: Option<u64>,
        /// How many at the most.
        #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
    },
    /// Make the rules of an earlier version the rules of a new one.
    Rollback {
        /// The version to go back to; 0 is the empty policy.
        version: u64,
        /// Why, for the history.
        #[arg(long, value_name = "TEXT")]
        comment: Option<String>,
    },
    /// Say what is decided about a call, past or imagined, and by which rules.
    Explain(Box<ExplainArgs>),
    /// Run a draft over the audited calls of the last days: who would gain, who would lose.
    Diff {
        /// A file of rules; `-` is the standard input.
        file: PathBuf,
        /// How many days back.
        #[arg(long, default_value_t = 7, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=90))]
        days: u32,
    },
    /// Say what is wrong with files of rules, without a control plane.
    Lint {
        /// A file, or a folder with files of rules (*.yaml, *.yml, *.json).
        path: PathBuf,
        /// What tools take: a file with the tools of each server, to check the arguments in conditions against.
        #[arg(long, value_name = "FILE")]
        schemas: Option<PathBuf>,
    },
    /// Say whether a file of rules decides what a file of cases expects, without a control plane.
    Test {
        /// A file of rules.
        rules: PathBuf,
        /// A file of cases.
        cases: PathBuf,
    },
}

/// Flags of `policy set`.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// A file of rules, YAML or JSON; `-` is the standard input.
    #[arg(long, short, value_name = "FILE")]
    file: PathBuf,
    /// Change only these: rules that are not in the file stay.
    #[arg(long)]
    keep: bool,
    /// Refuse when the policy is not at this version any more.
    #[arg(long, value_name = "N")]
    version: Option<u64>,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
    /// Only say what would change.
    #[arg(long)]
    dry_run: bool,
}

/// Flags of `policy explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// A past call: the id of its audit event, which is the request id that its caller was told.
    #[arg(long, value_name = "ID", conflicts_with_all = ["principal", "key", "server", "namespace", "tool", "args", "era",
        "address", "time"], required_unless_present = "server")]
    audit: Option<String>,
    /// Name or id of who calls; without it, you.
    #[arg(long, value_name = "NAME|ID")]
    principal: Option<String>,
    /// Id of the API key that is shown; without it, an access token.
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// Name of the server.
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// Name of the namespace at whose door it is; without it, the server's own.
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// Name of the tool; without it, a list of tools.
    #[arg(long, value_name = "NAME")]
    tool: Option<String>,
    /// Arguments, a JSON object.
    #[arg(long, value_name = "JSON")]
    args: Option<String>,
    /// The client's era: `http_sse`, sessions or stateless; without it, the last of them.
    #[arg(long, value_name = "ERA")]
    era: Option<String>,
    /// The client's address.
    #[arg(long, value_name = "IP")]
    address: Option<std::net::IpAddr>,
    /// When: a span ago, a day or a time; without it, now.
    #[arg(long, value_name = "WHEN", value_parser = moment::past)]
    time: Option<DateTime<Utc>>,
}

type Policies = PolicyServiceClient<Link>;

/// `policy …`.
pub(crate) async fn run(global: &Global, command: PolicyCommand) -> anyhow::Result<()> {
    match command {
        PolicyCommand::Lint { path, schemas } => return offline::lint(global, &path, schemas.as_deref()),
        PolicyCommand::Test { rules, cases } => return offline::test(global, &rules, &cases),
        _ => {}
    }
    let mut policies = Client::open(global).await?.policies();
    match command {
        PolicyCommand::List => {
            let (rules, _) = all(&mut policies).await?;
            print(global.output, rules.into_iter().map(StoredRule::from).collect::<Vec<_>>().as_slice())
        }
        PolicyCommand::Get { name: Some(name), .. } => {
            let answer =
                policies.get_rule(pb::GetRuleRequest { name }).await.map_err(Failure::from)?.into_inner();
            let rule = answer.rule.context("the answer holds no rule")?;
            match global.output {
                Format::Table => print(global.output, &StoredRule::from(rule)),
                _ => file::print(global.output, &[read(rule.spec.unwrap_or_default())?]),
            }
        }
        PolicyCommand::Get { name: None, version } => {
            let request = pb::GetVersionRequest { version: version.unwrap_or_default() };
            let answer = policies.get_version(request).await.map_err(Failure::from)?.into_inner();
            let rules: anyhow::Result<Vec<RuleSpec>> = answer.rules.into_iter().map(read).collect();
            let format = if global.output == Format::Table { Format::Yaml } else { global.output };
            file::print(format, &rules?)
        }
        PolicyCommand::Set(args) => set(global, &mut policies, args).await,
        PolicyCommand::Remove { name, comment } => {
            let request = pb::DeleteRuleRequest { name: name.clone(), comment: comment.unwrap_or_default() };
            let answer = policies.delete_rule(request).await.map_err(Failure::from)?.into_inner();
            note(&format!("Rule {name} is removed; the policy is at version {} now.", answer.version));
            Ok(())
        }
        PolicyCommand::Versions { version: Some(to), against, .. } => {
            let from = against.unwrap_or_else(|| to.saturating_sub(1));
            let request = pb::CompareVersionsRequest { from, to };
            let answer = policies.compare_versions(request).await.map_err(Failure::from)?.into_inner();
            changes(global, answer.changes)
        }
        PolicyCommand::Versions { limit, .. } => {
            let request = pb::ListVersionsRequest { page_size: limit, cursor: String::new() };
            let answer = policies.list_versions(request).await.map_err(Failure::from)?.into_inner();
            let versions: Vec<PolicyVersion> = answer.versions.into_iter().map(PolicyVersion::from).collect();
            print(global.output, versions.as_slice())
        }
        PolicyCommand::Rollback { version, comment } => {
            let request =
                pb::RollbackRequest { to: version, version: 0, comment: comment.unwrap_or_default() };
            let answer = policies.rollback(request).await.map_err(Failure::from)?.into_inner();
            note(&format!(
                "The policy is at version {} now, with the rules of version {version}.",
                answer.version
            ));
            changes(global, answer.changes)
        }
        PolicyCommand::Explain(args) => explain(global, &mut policies, *args).await,
        PolicyCommand::Diff { file, days } => diff(global, &mut policies, &file, days).await,
        PolicyCommand::Lint { .. } | PolicyCommand::Test { .. } => Ok(()),
    }
}

async fn all(policies: &mut Policies) -> anyhow::Result<(Vec<pb::PolicyRule>, u64)> {
    let mut request = pb::ListRulesRequest { page_size: 500, cursor: String::new() };
    let mut rules = Vec::new();
    loop {
        let page = policies.list_rules(request.clone()).await.map_err(Failure::from)?.into_inner();
        rules.extend(page.rules);
        request.cursor = page.next_cursor;
        if request.cursor.is_empty() {
            return Ok((rules, page.version));
        }
    }
}

async fn set(global: &Global, policies: &mut Policies, args: SetArgs) -> anyhow::Result<()> {
    let new = file::read(&args.file)?;
    let (present, version) = all(policies).await?;
    let mut rules: Vec<pb::RuleSpec> = new.iter().map(wire::rule_spec_to_proto).collect();
    if args.keep {
        let others = present.iter().filter_map(|rule| rule.spec.clone());
        rules.extend(others.filter(|spec| new.iter().all(|new| new.name != spec.name)));
    }
    if args.dry_run {
        let checked = policies.check_rules(pb::CheckRulesRequest { rules: rules.clone() }).await;
        warn(checked.map_err(|status| placed(status, &rules))?.into_inner().warnings);
        return changes(global, file::differences(present, rules));
    }
    let request = pb::ReplaceRulesRequest {
        rules: rules.clone(),
        version: args.version.unwrap_or(version),
        comment: args.comment.unwrap_or_default(),
    };
    let answer = policies.replace_rules(request).await.map_err(|status| placed(status, &rules))?.into_inner();
    warn(answer.warnings);
    if answer.changes.is_empty() {
        note(&format!("Nothing differs; the policy stays at version {}.", answer.version));
    } else {
        note(&format!("The policy is at version {} now.", answer.version));
    }
    changes(global, answer.changes)
}

/// A refusal of many rules, with the name of each rule beside its place.
fn placed(mut status: tonic::Status, rules: &[pb::RuleSpec]) -> Failure {
    use tonic_types::StatusExt as _;
    let mut details = status.get_error_details();
    if let Some(mut violations) = details.bad_request().map(|request| request.field_violations.clone()) {
        for violation in &mut violations {
            let place = violation.field.strip_prefix("rules[").and_then(|rest| rest.split(']').next());
            let at = place.and_then(|place| place.parse::<usize>().ok());
            if let Some(rule) = at.and_then(|at| rules.get(at)) {
                violation.field = format!("{} ({})", violation.field, rule.name);
            }
        }
        details.set_bad_request(violations);
        status = tonic::Status::with_error_details(status.code(), status.message().to_owned(), details);
    }
    Failure::from(status)
}

async fn explain(global: &Global, policies: &mut Policies, args: ExplainArgs) -> anyhow::Result<()> {
    use pb::explain_request::About;
    let about = match args.audit {
        Some(id) => About::AuditId(id),
        None => About::Call(pb::Imagined {
            principal: args.principal.unwrap_or_default(),
            api_key: args.key.unwrap_or_default(),
            server: args.server.unwrap_or_default(),
            namespace: args.namespace.unwrap_or_default(),
            tool: args.tool.unwrap_or_default(),
            arguments: args.args.unwrap_or_default(),
            era: args.era.unwrap_or_default(),
            address: args.address.map(|address| address.to_string()).unwrap_or_default(),
            time: args.time.map(wire::timestamp),
        }),
    };
    let answer = policies.explain(pb::ExplainRequest { about: Some(about) }).await.map_err(Failure::from)?;
    print(global.output, &Explanation::from(answer.into_inner()))
}

async fn diff(
    global: &Global,
    policies: &mut Policies,
    file: &std::path::Path,
    days: u32,
) -> anyhow::Result<()> {
    use pb::try_rules_response::Message;
    let rules: Vec<pb::RuleSpec> = file::read(file)?.iter().map(wire::rule_spec_to_proto).collect();
    let request = pb::TryRulesRequest { rules: rules.clone(), days };
    let mut stream = policies.try_rules(request).await.map_err(|status| placed(status, &rules))?.into_inner();
    let shown = is_terminal() && global.output == Format::Table;
    loop {
        let message = tokio::select! {
            message = stream.message() => message.map_err(|status| placed(status, &rules))?,
            signal = tokio::signal::ctrl_c() => return Ok(signal?),
        };
        match message.and_then(|answer| answer.message) {
            Some(Message::Progress(progress)) if shown => {
                note(&format!("{} of {} events", progress.calls, progress.total));
            }
            Some(Message::Progress(_)) => {}
            Some(Message::Trial(mut trial)) => {
                warn(std::mem::take(&mut trial.warnings));
                return print(global.output, &Trial::from(trial));
            }
            None => {
                let failure = Failure::failed("the control plane ended the trial before its result");
                return Err(failure.next("Start the command again.").into());
            }
        }
    }
}

fn changes(global: &Global, changes: Vec<pb::RuleChange>) -> anyhow::Result<()> {
    let changes: anyhow::Result<Vec<RuleChange>> = changes.into_iter().map(RuleChange::read).collect();
    print(global.output, changes?.as_slice())
}

fn warn(warnings: Vec<pb::Warning>) {
    for warning in warnings {
        note(&format!("warning: {} {}: {}", warning.rule, warning.field, warning.message));
    }
}

/// A rule as the control plane sent it. One that this version cannot read is not shown as something else.
pub(crate) fn read(spec: pb::RuleSpec) -> anyhow::Result<RuleSpec> {
    let name = spec.name.clone();
    wire::rule_spec_from_proto(spec).map_err(|problems| {
        let reasons: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Failure::failed(format!("this version cannot read rule {name}: {}", reasons.join("; ")))
            .next("Compare `wafflectl version` with the version of the control plane.")
            .into()
    })
}
