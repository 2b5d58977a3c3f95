//! `audit …`: search the trail, or follow it; export and verify it.

mod trail;

use chrono::{DateTime, Utc};
use clap::Args;
use clap::builder::PossibleValuesParser;
use waffles_core::audit::Outcome;
use waffles_core::wire::{outcome_to_proto, timestamp};
use waffles_proto::audit::v1::{EventFilter, SearchEventsRequest, TailEventsRequest};

use crate::args::{AuditCommand, Global};
use crate::client::Client;
use crate::failure::Failure;
use crate::moment;
use crate::output::shape::Event;
use crate::output::{print, print_one};

pub(crate) use trail::{ExportArgs, VerifyArgs};

/// Which events.
#[derive(Debug, Args)]
struct FilterArgs {
    /// Name or id of who acted.
    #[arg(long, value_name = "NAME|ID")]
    principal: Option<String>,
    /// Name of the server.
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// Tool, prompt or resource URI.
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// The action, such as `mcp.tools/call`, or its beginning when it ends with a dot (`server.`).
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// How it ended; may be repeated.
    #[arg(long, value_name = "OUTCOME")]
    #[arg(value_parser = PossibleValuesParser::new(Outcome::ALL.map(Outcome::as_str)))]
    outcome: Vec<String>,
    /// The event of this request id.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Id of the proxy.
    #[arg(long, value_name = "ID")]
    proxy: Option<String>,
}

/// Flags of `audit search`.
#[derive(Debug, Args)]
pub(crate) struct SearchArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// At or after: a span ago (15m, 7d), a day or a time.
    #[arg(long, value_name = "WHEN", value_parser = moment::past)]
    since: Option<DateTime<Utc>>,
    /// Before: a span ago, a day or a time.
    #[arg(long, value_name = "WHEN", value_parser = moment::past)]
    until: Option<DateTime<Utc>>,
    /// How many at the most.
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
}

/// Flags of `audit tail`.
#[derive(Debug, Args)]
pub(crate) struct TailArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// End after this many events.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

impl From<FilterArgs> for EventFilter {
    fn from(args: FilterArgs) -> Self {
        let outcomes = args.outcome.iter().filter_map(|word| Outcome::parse(word));
        Self {
            since: None,
            until: None,
            principal: args.principal.unwrap_or_default(),
            server: args.server.unwrap_or_default(),
            target: args.target.unwrap_or_default(),
            action: args.action.unwrap_or_default(),
            outcomes: outcomes.map(|outcome| outcome_to_proto(outcome).into()).collect(),
            id: args.id.unwrap_or_default(),
            proxy_id: args.proxy.unwrap_or_default(),
        }
    }
}

/// `audit …`.
pub(crate) async fn run(global: &Global, command: AuditCommand) -> anyhow::Result<()> {
    match command {
        AuditCommand::Search(args) => search(global, args).await,
        AuditCommand::Tail(args) => tail(global, args).await,
        AuditCommand::Export(args) => trail::export(global, args).await,
        AuditCommand::Verify(args) => trail::verify(global, args).await,
    }
}

async fn search(global: &Global, args: SearchArgs) -> anyhow::Result<()> {
    let mut audit = Client::open(global).await?.audit();
    let mut filter = EventFilter::from(args.filter);
    filter.since = args.since.map(timestamp);
    filter.until = args.until.map(timestamp);
    let wanted = usize::try_from(args.limit).unwrap_or(usize::MAX);
    let mut events: Vec<Event> = Vec::new();
    let mut cursor = String::new();
    while events.len() < wanted {
        let page_size = u32::try_from(wanted - events.len()).unwrap_or(u32::MAX).min(1000);
        let request = SearchEventsRequest { filter: Some(filter.clone()), page_size, cursor };
        let page = audit.search_events(request).await.map_err(Failure::from)?.into_inner();
        events.extend(page.events.into_iter().map(Event::from));
        cursor = page.next_cursor;
        if cursor.is_empty() {
            break;
        }
    }
    events.truncate(wanted);
    print(global.output, events.as_slice())
}

async fn tail(global: &Global, args: TailArgs) -> anyhow::Result<()> {
    let mut audit = Client::open(global).await?.audit();
    let request = TailEventsRequest { filter: Some(args.filter.into()) };
    let mut stream = audit.tail_events(request).await.map_err(Failure::from)?.into_inner();
    let mut left = args.limit;
    loop {
        let message = tokio::select! {
            message = stream.message() => message.map_err(Failure::from)?,
            signal = tokio::signal::ctrl_c() => return Ok(signal?),
        };
        let Some(message) = message else {
            return Err(Failure::failed("the control plane ended the stream")
                .next("Start the command again.")
                .into());
        };
        for event in message.events {
            print_one(global.output, &Event::from(event))?;
            if let Some(left) = &mut left {
                *left -= 1;
                if *left == 0 {
                    return Ok(());
                }
            }
        }
    }
}
