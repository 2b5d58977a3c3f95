//! `server …`: register, show, change and retire MCP servers, and see what they offer.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use secrecy::ExposeSecret as _;
use waffles_proto::registry::v1::{
    AuditMode, BasicCredential, BearerCredential, Capture, CheckServerRequest, CreateServerRequest,
    Credential, DeleteServerRequest, Endpoint, GetServerHealthRequest, GetServerRequest, HeaderCredential,
    HealthCheck, ListServersRequest, NoCredential, ServerSpec, SetServerEnabledRequest, Timeouts, ToolFilter,
    ToolMark, Transport, UpdateServerRequest, credential,
};

use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::import::{self, ImportArgs};
use crate::login::{read_secret, secret_env};
use crate::moment;
use crate::output::shape::{Server, ServerHealth, Tool};
use crate::output::{note, print};
use crate::{call, mcp};

#[derive(Debug, Subcommand)]
pub(crate) enum ServerCommand {
    /// Register a server.
    Add {
        /// Its name: a DNS label, never changed.
        name: String,
        /// One or more addresses of its MCP endpoint.
        #[arg(required = true)]
        url: Vec<String>,
        #[command(flatten)]
        spec: Box<SpecArgs>,
        /// Register it without letting calls reach it.
        #[arg(long)]
        disabled: bool,
    },
    /// List servers.
    List {
        /// Only servers whose name contains this.
        #[arg(long, value_name = "TEXT")]
        name: Option<String>,
        /// Only servers with this tag; may be repeated.
        #[arg(long, value_name = "TAG")]
        tag: Vec<String>,
        /// Only enabled servers.
        #[arg(long, conflicts_with = "disabled")]
        enabled: bool,
        /// Only disabled servers.
        #[arg(long)]
        disabled: bool,
    },
    /// Show a server.
    Get {
        /// Its name.
        name: String,
    },
    /// Change a server. What is not named stays as it is; a list that is named is replaced.
    Edit {
        /// Its name.
        name: String,
        /// An address, instead of all present ones; may be repeated.
        #[arg(long, value_name = "URL")]
        url: Vec<String>,
        #[command(flatten)]
        spec: Box<SpecArgs>,
        /// Empty this field, or put it back to its default; may be repeated.
        #[arg(long, value_name = "FIELD")]
        clear: Vec<Field>,
        /// Refuse when the server is not at this version any more.
        #[arg(long, value_name = "N")]
        version: Option<u64>,
    },
    /// Let calls reach a server.
    Enable {
        /// Its name.
        name: String,
    },
    /// Stop calls to a server.
    Disable {
        /// Its name.
        name: String,
    },
    /// Retire a server. Its name stays taken as long as audit events refer to it.
    Remove {
        /// Its name.
        name: String,
    },
    /// Show how a server is, as the proxies near it see it, and how it was.
    Health {
        /// Its name.
        name: String,
        /// Have them look now, and wait for what they find. The exit status is 1 where it is not well.
        #[arg(long)]
        now: bool,
    },
    /// Take over what Claude Desktop, VS Code or Cursor is configured with: servers with an address are
    /// registered, programs are noted for `up` and `run`.
    Import(ImportArgs),
    /// List the tools that a server offers you, asked through the data plane.
    Tools {
        /// Its name.
        name: String,
        #[command(flatten)]
        era: call::EraArgs,
    },
}

/// What can be said about a server.
#[derive(Debug, Args)]
pub(crate) struct SpecArgs {
    /// How it speaks MCP.
    #[arg(long, value_name = "TRANSPORT")]
    transport: Option<TransportArg>,
    /// Share of the traffic for each address in turn, such as `3,1`.
    #[arg(long, value_name = "N", value_delimiter = ',')]
    weight: Vec<u32>,
    /// A tag to filter by; may be repeated.
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Free text.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Present the bearer token in this file (`-` is standard input).
    #[arg(long, value_name = "FILE", group = "credential")]
    bearer_file: Option<PathBuf>,
    /// Present the bearer token in this environment variable.
    #[arg(long, value_name = "VARIABLE", group = "credential")]
    bearer_env: Option<String>,
    /// Present this user name, with the password of --password-file.
    #[arg(long, value_name = "USER", group = "credential", requires = "password_file")]
    basic_user: Option<String>,
    /// The password in this file (`-` is standard input).
    #[arg(long, value_name = "FILE", requires = "basic_user")]
    password_file: Option<PathBuf>,
    /// Present a header of this name, with the value of --value-file.
    #[arg(long, value_name = "NAME", group = "credential", requires = "value_file")]
    header: Option<String>,
    /// The header's value in this file (`-` is standard input).
    #[arg(long, value_name = "FILE", requires = "header")]
    value_file: Option<PathBuf>,
    /// A tool that exists for callers, as name or `*` pattern; may be repeated. Without it: all.
    #[arg(long, value_name = "PATTERN")]
    allow: Vec<String>,
    /// A tool that does not exist for callers; may be repeated, and wins.
    #[arg(long, value_name = "PATTERN")]
    deny: Vec<String>,
    /// What the registry says of tools, as `PATTERN=WORD,…` with `read-only`, `destructive`, `idempotent`, `open-world`, or
    /// one of them with `not-` before it; may be repeated. Rules and read-only keys go by it.
    #[arg(long, value_name = "PATTERN=WORDS", value_parser = mark)]
    mark: Vec<ToolMark>,
    /// A method that no revision of the protocol names and that callers may use, as name or `*` pattern; may be repeated.
    #[arg(long, value_name = "PATTERN")]
    method: Vec<String>,
    /// How long opening a connection may take.
    #[arg(long, value_name = "SPAN", value_parser = moment::span)]
    timeout_connect: Option<Duration>,
    /// How long the first byte of an answer may take.
    #[arg(long, value_name = "SPAN", value_parser = moment::span)]
    timeout_first_byte: Option<Duration>,
    /// How long an answer may pause.
    #[arg(long, value_name = "SPAN", value_parser = moment::span)]
    timeout_idle: Option<Duration>,
    /// How long a call may take in all.
    #[arg(long, value_name = "SPAN", value_parser = moment::span)]
    timeout_total: Option<Duration>,
    /// The zone of each address in turn, such as `eu-1,eu-2`; empty for one that is in none. A proxy prefers its own.
    #[arg(long, value_name = "ZONE", value_delimiter = ',')]
    zone: Vec<String>,
    #[command(flatten)]
    resilience: ResilienceArgs,
    /// What happens to a call whose audit record cannot be made durable.
    #[arg(long, value_name = "MODE")]
    audit: Option<AuditArg>,
    /// How much of a call's payload the audit keeps.
    #[arg(long, value_name = "HOW MUCH")]
    capture: Option<CaptureArg>,
    /// A field that is blanked in captured payloads; may be repeated.
    #[arg(long, value_name = "FIELD")]
    redact: Vec<String>,
    /// A group of proxies that serves it, instead of all; may be repeated.
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
    /// What a check of its health asks.
    #[arg(long, value_name = "CHECK")]
    health_check: Option<CheckArg>,
    /// How long between two checks.
    #[arg(long, value_name = "SPAN", value_parser = moment::span)]
    health_interval: Option<Duration>,
    /// How long a check may take.
    #[arg(long, value_name = "SPAN", value_parser = moment::span)]
    health_timeout: Option<Duration>,
    /// By how many hundredths of the interval a check may be earlier or later.
    #[arg(long, value_name = "PERCENT")]
    health_jitter: Option<u32>,
    /// How many checks, or calls, in a row make it worse than it was.
    #[arg(long, value_name = "N")]
    health_fall: Option<u32>,
    /// How many checks in a row make it better than it was.
    #[arg(long, value_name = "N")]
    health_rise: Option<u32>,
    /// How many proxies of each group look.
    #[arg(long, value_name = "N")]
    health_proxies: Option<u32>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CheckArg {
    /// `server/discover`, or `initialize` and `ping`.
    Handshake,
    /// The same, and its list of tools.
    Tools,
    /// Nothing: only calls tell.
    Off,
}

/// What happens when a server fails, is slow or is busy.
#[derive(Debug, Args)]
struct ResilienceArgs {
    /// After so many failures in a row an address is left alone for a while; 0: not for that.
    #[arg(long, value_name = "N")]
    breaker_failures: Option<u32>,
    /// The same where such a share of recent calls failed, in percent; 0: not for that.
    #[arg(long, value_name = "PERCENT")]
    breaker_error_percent: Option<u32>,
    /// Fewer recent calls than this say nothing about the share.
    #[arg(long, value_name = "N")]
    breaker_least_calls: Option<u32>,
    /// What recent is.
    #[arg(long, value_name = "SPAN", value_parser = moment::span)]
    breaker_window: Option<Duration>,
    /// How long an address is left alone the first time, and each time after that twice as long.
    #[arg(long, value_name = "SPAN", value_parser = moment::span)]
    breaker_open: Option<Duration>,
    /// How long at the most.
    #[arg(long, value_name = "SPAN", value_parser = moment::span)]
    breaker_open_most: Option<Duration>,
    /// So many calls must succeed before all go to it again.
    #[arg(long, value_name = "N")]
    breaker_trials: Option<u32>,
    /// How long a `Retry-After` of the server is obeyed at the most; 0s: it is only passed on.
    #[arg(long, value_name = "SPAN", value_parser = moment::span)]
    retry_after_most: Option<Duration>,
    /// An address whose share of errors is by so many percentage points above that of the others is left out; 0: never.
    #[arg(long, value_name = "POINTS")]
    outlier_margin: Option<u32>,
    /// Most of the addresses that are left out for that, in percent.
    #[arg(long, value_name = "PERCENT")]
    outlier_most: Option<u32>,
    /// Most calls under way at a time, from one proxy; 0: no cap.
    #[arg(long, value_name = "N")]
    max_concurrent: Option<u32>,
    /// Most calls that wait for one of these places.
    #[arg(long, value_name = "N")]
    queue: Option<u32>,
    /// How long one waits for a place at the most.
    #[arg(long, value_name = "SPAN", value_parser = moment::span)]
    queue_wait: Option<Duration>,
    /// Most attempts after the first, for what may be sent again; 0: none.
    #[arg(long, value_name = "N")]
    retries: Option<u32>,
    /// Such a share of all messages may be sent again, in percent.
    #[arg(long, value_name = "PERCENT")]
    retry_budget: Option<u32>,
    /// So many a second may be, however few messages there are.
    #[arg(long, value_name = "N")]
    retry_least: Option<u32>,
    /// The first wait before an attempt; each after that is twice as long.
    #[arg(long, value_name = "SPAN", value_parser = moment::span)]
    retry_backoff: Option<Duration>,
}

impl ResilienceArgs {
    fn apply(self, spec: &mut ServerSpec) -> anyhow::Result<()> {
        let resilience = spec.resilience.get_or_insert_default();
        let breaker = resilience.breaker.get_or_insert_default();
        let outlier = resilience.outlier.get_or_insert_default();
        let retry = resilience.retry.get_or_insert_default();
        for (number, new) in [
            (&mut breaker.failures, self.breaker_failures),
            (&mut breaker.error_percent, self.breaker_error_percent),
            (&mut breaker.least_calls, self.breaker_least_calls),
            (&mut breaker.trials, self.breaker_trials),
            (&mut outlier.margin_percent, self.outlier_margin),
            (&mut outlier.most_percent, self.outlier_most),
            (&mut resilience.max_concurrent, self.max_concurrent),
            (&mut resilience.queue, self.queue),
            (&mut retry.attempts, self.retries),
            (&mut retry.budget_percent, self.retry_budget),
            (&mut retry.budget_least, self.retry_least),
        ] {
            *number = new.or(*number);
        }
        for (span, new) in [
            (&mut breaker.window, self.breaker_window),
            (&mut breaker.open, self.breaker_open),
            (&mut breaker.open_most, self.breaker_open_most),
            (&mut breaker.retry_after_most, self.retry_after_most),
            (&mut resilience.queue_wait, self.queue_wait),
            (&mut retry.backoff, self.retry_backoff),
        ] {
            if let Some(new) = new {
                *span = Some(new.try_into()?);
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TransportArg {
    /// The proxy finds out.
    Auto,
    /// 2025-03-26 and later.
    StreamableHttp,
    /// HTTP+SSE of 2024-11-05.
    Sse,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AuditArg {
    /// It is served, and the lost record counted.
    Count,
    /// It is refused.
    Strict,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CaptureArg {
    /// Nothing.
    None,
    /// Argument names and JSON types.
    Metadata,
    /// Arguments and results.
    Full,
}

/// What `edit --clear` can empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Field {
    /// No description.
    Description,
    /// No tags.
    Tags,
    /// No credential.
    Credential,
    /// All tools.
    Allow,
    /// No tool taken away.
    Deny,
    /// Nothing said of tools.
    Marks,
    /// No method beside those of the protocol.
    Methods,
    /// The default time limits.
    Timeouts,
    /// The defaults of what happens when it fails, is slow or is busy.
    Resilience,
    /// No field blanked.
    Redact,
    /// All groups of proxies.
    Groups,
    /// The default checks.
    Health,
}

impl SpecArgs {
    /// Changes what the flags name.
    fn apply(self, spec: &mut ServerSpec) -> anyhow::Result<()> {
        if let Some(credential) = self.credential()? {
            spec.credential = Some(credential);
        }
        if let Some(transport) = self.transport {
            spec.transport = match transport {
                TransportArg::Auto => Transport::Auto,
                TransportArg::StreamableHttp => Transport::StreamableHttp,
                TransportArg::Sse => Transport::Sse,
            }
            .into();
        }
        if let Some(audit) = self.audit {
            spec.audit = match audit {
                AuditArg::Count => AuditMode::Count,
                AuditArg::Strict => AuditMode::Strict,
            }
            .into();
        }
        if let Some(capture) = self.capture {
            spec.capture = match capture {
                CaptureArg::None => Capture::None,
                CaptureArg::Metadata => Capture::Metadata,
                CaptureArg::Full => Capture::Full,
            }
            .into();
        }
        if !self.weight.is_empty() && self.weight.len() != spec.endpoints.len() {
            let message = format!("{} weights for {} addresses", self.weight.len(), spec.endpoints.len());
            return Err(Failure::usage(message).next("Give one weight for each address.").into());
        }
        for (endpoint, weight) in spec.endpoints.iter_mut().zip(self.weight) {
            endpoint.weight = weight;
        }
        if !self.zone.is_empty() && self.zone.len() != spec.endpoints.len() {
            let message = format!("{} zones for {} addresses", self.zone.len(), spec.endpoints.len());
            return Err(Failure::usage(message).next("Give one zone for each address.").into());
        }
        for (endpoint, zone) in spec.endpoints.iter_mut().zip(self.zone) {
            endpoint.zone = zone;
        }
        self.resilience.apply(spec)?;
        if let Some(description) = self.description {
            spec.description = description;
        }
        let replace = |list: &mut Vec<String>, new: Vec<String>| {
            if !new.is_empty() {
                *list = new;
            }
        };
        replace(&mut spec.tags, self.tag);
        replace(&mut spec.redact, self.redact);
        replace(&mut spec.methods, self.method);
        if !self.mark.is_empty() {
            spec.marks = self.mark;
        }
        replace(&mut spec.groups, self.group);
        let tools = spec.tools.get_or_insert_default();
        replace(&mut tools.allow, self.allow);
        replace(&mut tools.deny, self.deny);
        let health = spec.health.get_or_insert_default();
        if let Some(check) = self.health_check {
            health.check = match check {
                CheckArg::Handshake => HealthCheck::Handshake,
                CheckArg::Tools => HealthCheck::Tools,
                CheckArg::Off => HealthCheck::Off,
            }
            .into();
        }
        for (span, new) in
            [(&mut health.interval, self.health_interval), (&mut health.timeout, self.health_timeout)]
        {
            if let Some(new) = new {
                *span = Some(new.try_into()?);
            }
        }
        health.jitter_percent = self.health_jitter.or(health.jitter_percent);
        for (flag, number, new) in [
            ("--health-fall", &mut health.fall, self.health_fall),
            ("--health-rise", &mut health.rise, self.health_rise),
            ("--health-proxies", &mut health.proxies, self.health_proxies),
        ] {
            // On the wire 0 means the default, which is not what was written here.
            if new == Some(0) {
                return Err(Failure::usage(format!("{flag} must be 1 to 10")).into());
            }
            *number = new.unwrap_or(*number);
        }
        let timeouts = spec.timeouts.get_or_insert_default();
        for (limit, new) in [
            (&mut timeouts.connect, self.timeout_connect),
            (&mut timeouts.first_byte, self.timeout_first_byte),
            (&mut timeouts.idle, self.timeout_idle),
            (&mut timeouts.total, self.timeout_total),
        ] {
            if let Some(new) = new {
                *limit = Some(new.try_into()?);
            }
        }
        Ok(())
    }

    fn credential(&self) -> anyhow::Result<Option<Credential>> {
        let text = |path: &PathBuf| anyhow::Ok(read_secret(path)?.expose_secret().to_owned());
        let kind = if let Some(file) = &self.bearer_file {
            credential::Kind::Bearer(BearerCredential { token: text(file)? })
        } else if let Some(name) = &self.bearer_env {
            let token = secret_env(name)?
                .ok_or_else(|| Failure::usage(format!("the environment variable {name} is not set")))?;
            credential::Kind::Bearer(BearerCredential { token: token.expose_secret().to_owned() })
        } else if let (Some(username), Some(file)) = (&self.basic_user, &self.password_file) {
            credential::Kind::Basic(BasicCredential { username: username.clone(), password: text(file)? })
        } else if let (Some(name), Some(file)) = (&self.header, &self.value_file) {
            credential::Kind::Header(HeaderCredential { name: name.to_ascii_lowercase(), value: text(file)? })
        } else {
            return Ok(None);
        };
        Ok(Some(Credential { kind: Some(kind) }))
    }
}

/// Reads `PATTERN=WORD,…`.
fn mark(text: &str) -> Result<ToolMark, String> {
    let (pattern, words) = text.split_once('=').ok_or("must be PATTERN=WORD,…")?;
    let mut mark = ToolMark { pattern: pattern.to_owned(), ..ToolMark::default() };
    for word in words.split(',') {
        let (word, value) = word.strip_prefix("not-").map_or((word, true), |word| (word, false));
        let field = match word {
            "read-only" => &mut mark.read_only,
            "destructive" => &mut mark.destructive,
            "idempotent" => &mut mark.idempotent,
            "open-world" => &mut mark.open_world,
            other => {
                return Err(format!("{other} is not one of read-only, destructive, idempotent, open-world"));
            }
        };
        *field = Some(value);
    }
    Ok(mark)
}

fn endpoints(urls: Vec<String>) -> Vec<Endpoint> {
    urls.into_iter().map(|url| Endpoint { url, weight: 1, zone: String::new() }).collect()
}

fn clear(spec: &mut ServerSpec, field: Field) {
    match field {
        Field::Description => spec.description.clear(),
        Field::Tags => spec.tags.clear(),
        // An absent credential would keep the present one.
        Field::Credential => {
            spec.credential = Some(Credential { kind: Some(credential::Kind::None(NoCredential {})) });
        }
        Field::Allow => spec.tools.get_or_insert_with(ToolFilter::default).allow.clear(),
        Field::Deny => spec.tools.get_or_insert_with(ToolFilter::default).deny.clear(),
        Field::Marks => spec.marks.clear(),
        Field::Methods => spec.methods.clear(),
        Field::Timeouts => spec.timeouts = Some(Timeouts::default()),
        Field::Resilience => spec.resilience = None,
        Field::Redact => spec.redact.clear(),
        Field::Groups => spec.groups.clear(),
        Field::Health => spec.health = None,
    }
}

/// `server …`.
pub(crate) async fn run(global: &Global, command: ServerCommand) -> anyhow::Result<()> {
    if let ServerCommand::Tools { name, era } = command {
        return tools(global, &name, era).await;
    }
    if let ServerCommand::Import(args) = command {
        return import::run(global, args).await;
    }
    let client = Client::open(global).await?;
    if let ServerCommand::Health { name, now } = command {
        return health(global, &client, name, now).await;
    }
    let mut registry = client.registry();
    let server = match command {
        ServerCommand::Add { name, url, spec: args, disabled } => {
            let mut spec = ServerSpec { name, endpoints: endpoints(url), ..ServerSpec::default() };
            args.apply(&mut spec)?;
            let request = CreateServerRequest { spec: Some(spec), disabled };
            registry.create_server(request).await.map_err(Failure::from)?.into_inner().server
        }
        ServerCommand::List { name, tag, enabled, disabled } => {
            let state = (enabled || disabled).then_some(enabled);
            let request = ListServersRequest {
                name_contains: name.unwrap_or_default(),
                tags: tag,
                enabled: state,
                page_size: 500,
                cursor: String::new(),
            };
            let servers = list(&client, request).await?;
            let servers: Vec<Server> = servers.into_iter().map(Server::from).collect();
            return print(global.output, servers.as_slice());
        }
        ServerCommand::Get { name } => {
            registry.get_server(GetServerRequest { name }).await.map_err(Failure::from)?.into_inner().server
        }
        ServerCommand::Edit { name, url, spec: args, clear: fields, version } => {
            let answer = registry.get_server(GetServerRequest { name }).await.map_err(Failure::from)?;
            let server = answer.into_inner().server.unwrap_or_default();
            let mut spec = server.spec.unwrap_or_default();
            // Answers hold no secrets; sent back, the empty ones would replace the real ones.
            spec.credential = None;
            fields.into_iter().for_each(|field| clear(&mut spec, field));
            if !url.is_empty() {
                spec.endpoints = endpoints(url);
            }
            args.apply(&mut spec)?;
            let version = version.unwrap_or(server.version);
            let request = UpdateServerRequest { spec: Some(spec), version };
            registry.update_server(request).await.map_err(Failure::from)?.into_inner().server
        }
        ServerCommand::Enable { name } => {
            let request = SetServerEnabledRequest { name, enabled: true };
            registry.set_server_enabled(request).await.map_err(Failure::from)?.into_inner().server
        }
        ServerCommand::Disable { name } => {
            let request = SetServerEnabledRequest { name, enabled: false };
            registry.set_server_enabled(request).await.map_err(Failure::from)?.into_inner().server
        }
        ServerCommand::Remove { name } => {
            let request = DeleteServerRequest { name: name.clone() };
            registry.delete_server(request).await.map_err(Failure::from)?;
            note(&format!("Server {name} is retired."));
            return Ok(());
        }
        ServerCommand::Tools { .. } | ServerCommand::Import(_) | ServerCommand::Health { .. } => {
            return Ok(());
        }
    };
    print(global.output, &Server::from(server.unwrap_or_default()))
}

/// All servers that a request asks for, whatever its pages.
pub(crate) async fn list(
    client: &Client,
    mut request: ListServersRequest,
) -> anyhow::Result<Vec<waffles_proto::registry::v1::Server>> {
    let mut registry = client.registry();
    let mut servers = Vec::new();
    loop {
        let page = registry.list_servers(request.clone()).await.map_err(Failure::from)?.into_inner();
        servers.extend(page.servers);
        request.cursor = page.next_cursor;
        if request.cursor.is_empty() {
            return Ok(servers);
        }
    }
}

async fn health(global: &Global, client: &Client, name: String, now: bool) -> anyhow::Result<()> {
    let mut service = client.health();
    if !now {
        let request = GetServerHealthRequest { name };
        let answer = service.get_server_health(request).await.map_err(Failure::from)?.into_inner();
        return print(global.output, &ServerHealth::from(answer.health.unwrap_or_default()));
    }
    let request = CheckServerRequest { name: name.clone() };
    let answer = service.check_server(request).await.map_err(Failure::from)?.into_inner();
    let health = ServerHealth::from(answer.health.unwrap_or_default()).asked();
    print(global.output, &health)?;
    match health.is_well() {
        true => Ok(()),
        false => Err(Failure::failed(format!("server {name} is not well")).into()),
    }
}

async fn tools(global: &Global, name: &str, era: call::EraArgs) -> anyhow::Result<()> {
    let peer = mcp::open(global, name, era.era).await?;
    let tools = peer.list_all_tools().await.map_err(|error| mcp::failure(&error, name))?;
    let tools: Vec<Tool> = tools.into_iter().map(mcp::tool).collect();
    peer.close().await;
    print(global.output, tools.as_slice())
}
