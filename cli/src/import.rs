//! `server import`: takes over what the configuration file of another client names. Servers with an address are
//! registered; programs are noted in a file of this host, for `up` and `run`. First a plan, then the work: where the
//! plan has a fault, nothing is done.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use url::Url;
use waffles_core::is_dns_label;
use waffles_core::server::{Credential, Endpoint, Spec};
use waffles_core::wire::spec_to_proto;
use waffles_proto::registry::v1::{CreateServerRequest, ListServersRequest, Server, ServerSpec};

use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::shape::Imported;
use crate::output::{note, print};
use crate::run::registration::is_ours;
use crate::server;
use crate::stdio::{self, Program, Programs};
use read::{Found, Wanted};

mod jsonc;
mod read;

/// The longest name of a server.
const NAME: usize = 63;

/// Flags of `server import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The file of Claude Desktop, VS Code or Cursor; `-` is standard input.
    file: PathBuf,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Leave out what cannot be imported, and import the rest.
    #[arg(long)]
    partial: bool,
}

/// What is to be done about one entry.
enum Step {
    /// A server is registered.
    Register(Box<ServerSpec>),
    /// A program is noted.
    Note(Program),
    /// It is there already.
    Keep,
    /// It cannot be imported.
    Refuse(String),
}

/// One entry with what is to be done.
struct Planned {
    source: String,
    name: String,
    kind: &'static str,
    target: String,
    step: Step,
}

/// `server import`.
pub(crate) async fn run(global: &Global, args: ImportArgs) -> anyhow::Result<()> {
    let text = text(&args.file)?;
    // A variable that is set is the value that the file means.
    let variables = |name: &str| std::env::var_os(name)?.into_string().ok();
    let found = read::entries(&text, &variables)?;
    let client = Client::open(global).await?;
    let request = ListServersRequest { page_size: 500, ..ListServersRequest::default() };
    let servers = server::list(&client, request).await?;
    let path = stdio::path(&client.chosen.store);
    let programs = stdio::load(&path)?;
    let plan = plan(found, &servers, &programs);
    let faults = plan.iter().filter(|planned| matches!(planned.step, Step::Refuse(_))).count();
    if args.dry_run || (faults > 0 && !args.partial) {
        let shown: Vec<Imported> = plan.iter().map(Planned::before).collect();
        print(global.output, shown.as_slice())?;
        if faults == 0 || (args.dry_run && args.partial) {
            return Ok(());
        }
        let message = format!("{faults} of {} entries cannot be imported; nothing was done", plan.len());
        return Err(Failure::failed(message)
            .next("Correct the file, set the variables it names, or leave those entries out with --partial.")
            .into());
    }
    work(global, &client, plan, programs, &path).await
}

async fn work(
    global: &Global,
    client: &Client,
    plan: Vec<Planned>,
    mut programs: Programs,
    path: &std::path::Path,
) -> anyhow::Result<()> {
    let noted: Vec<String> = plan.iter().filter_map(Planned::noted).map(|(name, _)| name.clone()).collect();
    // The file first: it is written whole or not at all, and without the control plane.
    if !noted.is_empty() {
        programs.servers.extend(
            plan.iter().filter_map(Planned::noted).map(|(name, program)| (name.clone(), program.clone())),
        );
        stdio::save(path, &programs)?;
    }
    let mut shown = Vec::new();
    let mut failed = 0;
    for planned in plan {
        let mut row = planned.before();
        match planned.step {
            Step::Register(spec) => {
                let request = CreateServerRequest { spec: Some(*spec), disabled: false };
                match client.registry().create_server(request).await.map_err(Failure::from) {
                    Ok(_) => row.result = "registered",
                    Err(failure) => {
                        failed += 1;
                        (row.result, row.detail) = ("failed", failure.to_string());
                    }
                }
            }
            Step::Note(_) => row.result = "noted",
            Step::Keep => {}
            Step::Refuse(_) => row.result = "left out",
        }
        shown.push(row);
    }
    print(global.output, shown.as_slice())?;
    if let Some(name) = noted.first() {
        let path = path.display();
        note(&format!(
            "Programs are noted in {path}; `wafflectl up` on that folder runs them, or `wafflectl run {name}` runs one."
        ));
    }
    match failed {
        0 => Ok(()),
        failed => Err(Failure::failed(format!("{failed} servers were not registered"))
            .next("What was done stays; import the file again for the rest.")
            .into()),
    }
}

fn text(path: &std::path::Path) -> anyhow::Result<String> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// What is to be done, in the order of the file.
fn plan(found: Vec<Found>, servers: &[Server], programs: &Programs) -> Vec<Planned> {
    let servers: BTreeMap<&str, &Server> =
        servers.iter().filter_map(|server| Some((server.spec.as_ref()?.name.as_str(), server))).collect();
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let mut plan = Vec::new();
    for Found { source, wanted } in found {
        let name = label(&source);
        let (kind, target) = match &wanted {
            Ok(Wanted::Http { url, .. }) => ("http", url.clone()),
            Ok(Wanted::Stdio(program)) => ("stdio", program.command.clone()),
            Err(_) => ("", String::new()),
        };
        let step = match (&wanted, seen.get(&name)) {
            (Err(reason), _) => Step::Refuse(reason.clone()),
            _ if !is_dns_label(&name) => {
                Step::Refuse("has a name without a letter or digit of a-z and 0-9".to_owned())
            }
            (_, Some(other)) => Step::Refuse(format!("would be called {name}, as {other:?} is")),
            (Ok(wanted), None) => step(&name, wanted, servers.get(name.as_str()).copied(), programs),
        };
        seen.entry(name.clone()).or_insert_with(|| source.clone());
        plan.push(Planned { source, name, kind, target, step });
    }
    plan
}

fn step(name: &str, wanted: &Wanted, server: Option<&Server>, programs: &Programs) -> Step {
    let noted = programs.servers.get(name);
    match wanted {
        Wanted::Stdio(program) => match (noted, server) {
            (Some(noted), _) if noted == program => Step::Keep,
            (Some(_), _) => Step::Refuse("another program of this name is noted".to_owned()),
            (None, Some(server)) if !is_ours(server) => {
                Step::Refuse("there is a server of this name already".to_owned())
            }
            (None, _) => Step::Note(program.clone()),
        },
        Wanted::Http { .. } if noted.is_some() => Step::Refuse("a program of this name is noted".to_owned()),
        Wanted::Http { url, transport, credential } => {
            let Ok(url) = Url::parse(url) else {
                return Step::Refuse("has an address that is no URL".to_owned());
            };
            let same = |server: &Server| {
                let endpoints = server.spec.as_ref().map(|spec| spec.endpoints.as_slice());
                endpoints.is_some_and(|all| all.iter().any(|endpoint| endpoint.url == url.as_str()))
            };
            match server {
                Some(server) if same(server) => Step::Keep,
                Some(_) => Step::Refuse("there is a server of this name with another address".to_owned()),
                None => checked(
                    Spec {
                        name: name.to_owned(),
                        transport: *transport,
                        endpoints: vec![Endpoint { url, weight: 1, zone: String::new() }],
                        ..Spec::default()
                    },
                    credential,
                ),
            }
        }
    }
}

/// A registration that the control plane will not find a fault with.
fn checked(spec: Spec, credential: &Credential) -> Step {
    let mut problems = spec.problems();
    problems.extend(credential.problems());
    match problems.first() {
        None => Step::Register(Box::new(spec_to_proto(&spec, credential, true))),
        Some(problem) => Step::Refuse(problem.to_string()),
    }
}

/// A name as a DNS label, as far as one can be made of it.
fn label(source: &str) -> String {
    let mut label = String::new();
    for c in source.chars().map(|c| c.to_ascii_lowercase()) {
        match c.is_ascii_alphanumeric() {
            true => label.push(c),
            false if label.ends_with('-') => {}
            false => label.push('-'),
        }
    }
    let label: String = label.trim_matches('-').chars().take(NAME).collect();
    label.trim_end_matches('-').to_owned()
}

impl Planned {
    fn noted(&self) -> Option<(&String, &Program)> {
        match &self.step {
            Step::Note(program) => Some((&self.name, program)),
            _ => None,
        }
    }

    fn before(&self) -> Imported {
        let (result, detail) = match &self.step {
            Step::Register(_) => ("to register", String::new()),
            Step::Note(_) => ("to note", String::new()),
            Step::Keep => ("unchanged", String::new()),
            Step::Refuse(reason) => ("refused", reason.clone()),
        };
        Imported {
            name: self.name.clone(),
            source: self.source.clone(),
            kind: self.kind,
            target: self.target.clone(),
            result,
            detail,
        }
    }
}

#[cfg(test)]
mod tests {
    use waffles_proto::registry::v1 as pb;

    use super::*;

    fn server(name: &str, url: &str, tag: &str) -> Server {
        let endpoints = vec![pb::Endpoint { url: url.to_owned(), weight: 1, zone: String::new() }];
        let spec = ServerSpec {
            name: name.to_owned(),
            endpoints,
            tags: vec![tag.to_owned()],
            ..ServerSpec::default()
        };
        Server { spec: Some(spec), ..Server::default() }
    }

    #[track_caller]
    fn check(text: &str, expected: &[(&str, &str, &str)]) {
        let servers = [
            server("taken", "https://elsewhere/", ""),
            server("same", "https://h/mcp", ""),
            server("ran", "http://127.0.0.1:1/mcp", crate::run::registration::TAG),
        ];
        let program = Program { command: "x".to_owned(), ..Program::default() };
        let programs = Programs { servers: BTreeMap::from([("noted".to_owned(), program)]) };
        let plan = plan(read::entries(text, &|_| None).unwrap(), &servers, &programs);
        let shown: Vec<Imported> = plan.iter().map(Planned::before).collect();
        let shown: Vec<_> =
            shown.iter().map(|row| (row.name.as_str(), row.result, row.detail.as_str())).collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_is_there_is_kept_and_what_collides_is_refused() {
        check(
            r#"{"mcpServers": {
                "new": {"url": "https://h/mcp"}, "same": {"url": "https://h/mcp"}, "taken": {"url": "https://h/mcp"},
                "New!": {"url": "https://h/mcp"}, "ran": {"command": "x"}, "noted": {"command": "x"},
                "Noted": {"command": "y"}, "same?": {"command": "x"}, "fresh": {"command": "x"}
            }}"#,
            &[
                ("new", "to register", ""),
                ("same", "unchanged", ""),
                ("taken", "refused", "there is a server of this name with another address"),
                ("new", "refused", "would be called new, as \"new\" is"),
                ("ran", "to note", ""),
                ("noted", "unchanged", ""),
                ("noted", "refused", "would be called noted, as \"noted\" is"),
                ("same", "refused", "would be called same, as \"same\" is"),
                ("fresh", "to note", ""),
            ],
        );
        check(
            r#"{"mcpServers": {
                "noted": {"command": "y"}, "taken": {"command": "x"}, "ran": {"url": "https://h/mcp"},
                "日本": {"command": "x"}, "a": {"url": "ftp://h/"}, "b": {"url": "nowhere"},
                "c": {"url": "https://h/mcp", "headers": {"Cookie": "x"}}
            }}"#,
            &[
                ("noted", "refused", "another program of this name is noted"),
                ("taken", "refused", "there is a server of this name already"),
                ("ran", "refused", "there is a server of this name with another address"),
                ("", "refused", "has a name without a letter or digit of a-z and 0-9"),
                ("a", "refused", "endpoints[0].url: must be an http or https URL"),
                ("b", "refused", "has an address that is no URL"),
                (
                    "c",
                    "refused",
                    "credential.header.name: must be a header name in lower case that HTTP, MCP or Waffles does not use itself",
                ),
            ],
        );
    }

    #[test]
    fn names_become_dns_labels() {
        for (source, expected) in [
            ("GitHub", "github"),
            ("  My Files (2) ", "my-files-2"),
            ("@scope/server_x", "scope-server-x"),
            ("--", ""),
            (&"a-".repeat(40), &format!("{}a", "a-".repeat(31))),
        ] {
            assert_eq!(label(source), expected);
        }
    }
}
