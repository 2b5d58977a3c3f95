//! `key …`: API keys. A key's secret is printed once, when it is made, and kept nowhere here.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use waffles_core::wire::timestamp;
use waffles_proto::auth::v1::{
    CreateApiKeyRequest, CreateServiceAccountKeyRequest, GetApiKeyRequest, KeyLimits, ListApiKeysRequest,
    RevokeApiKeyRequest,
};

use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::moment;
use crate::output::shape::Key;
use crate::output::{note, print};

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key of your own, or for a service account. It is shown this once.
    Create(CreateArgs),
    /// List your keys; an admin sees those of the whole tenant.
    List {
        /// Revoked and expired keys too.
        #[arg(long)]
        all: bool,
    },
    /// Show a key, without its secret.
    Get {
        /// The key's id.
        id: String,
    },
    /// Revoke a key. Proxies refuse it within a second.
    Revoke {
        /// The key's id.
        id: String,
    },
}

/// Flags of `key create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// What you call it.
    name: String,
    /// Make it for this service account, which must not hold more than you do.
    #[arg(long = "for", value_name = "SERVICE_ACCOUNT")]
    service_account: Option<String>,
    /// Only this permission, such as `gateway:use`; may be repeated. Without it: all that you have.
    #[arg(long, value_name = "PERMISSION")]
    scope: Vec<String>,
    /// Only this server; may be repeated.
    #[arg(long, value_name = "NAME")]
    server: Vec<String>,
    /// Only this namespace; may be repeated. A key that is for some reaches servers through them only.
    #[arg(long, value_name = "NAME")]
    namespace: Vec<String>,
    /// Only tools of this name or `*` pattern; may be repeated.
    #[arg(long, value_name = "PATTERN")]
    tool: Vec<String>,
    /// Only from this address or range; may be repeated.
    #[arg(long, value_name = "CIDR")]
    ip: Vec<String>,
    /// Only listing and reading: no tool calls, no changes.
    #[arg(long)]
    read_only: bool,
    /// When it ends: a span from now (90d) or a time. Without it: never by itself.
    #[arg(long, value_name = "WHEN", value_parser = moment::future)]
    expires: Option<DateTime<Utc>>,
    /// When proxies refuse it even without word from the control plane; at or before the end.
    #[arg(long, value_name = "WHEN", value_parser = moment::future)]
    not_after: Option<DateTime<Utc>>,
}

/// `key …`.
pub(crate) async fn run(global: &Global, command: KeyCommand) -> anyhow::Result<()> {
    let client = Client::open(global).await?;
    let mut identity = client.identity();
    match command {
        KeyCommand::Create(args) => {
            let limits = KeyLimits {
                scopes: args.scope,
                servers: args.server,
                tools: args.tool,
                ip_ranges: args.ip,
                read_only: args.read_only,
                namespaces: args.namespace,
            };
            let (name, limits) = (args.name, Some(limits));
            let (expires_at, not_after) = (args.expires.map(timestamp), args.not_after.map(timestamp));
            let (key, secret) = match args.service_account {
                None => {
                    let request = CreateApiKeyRequest { name, limits, expires_at, not_after };
                    let answer = identity.create_api_key(request).await.map_err(Failure::from)?.into_inner();
                    (answer.api_key, answer.secret)
                }
                Some(service_account) => {
                    let request = CreateServiceAccountKeyRequest {
                        service_account,
                        name,
                        limits,
                        expires_at,
                        not_after,
                    };
                    let answer = client.people().create_service_account_key(request).await;
                    let answer = answer.map_err(Failure::from)?.into_inner();
                    (answer.api_key, answer.secret)
                }
            };
            let key = Key::from(key.unwrap_or_default()).with_secret(secret);
            print(global.output, &key)?;
            note("Keep the key now: it is not shown again.");
            Ok(())
        }
        KeyCommand::List { all } => {
            let mut keys = Vec::new();
            let mut cursor = String::new();
            loop {
                let request = ListApiKeysRequest { page_size: 500, cursor, include_ended: all };
                let page = identity.list_api_keys(request).await.map_err(Failure::from)?.into_inner();
                keys.extend(page.api_keys.into_iter().map(Key::from));
                cursor = page.next_cursor;
                if cursor.is_empty() {
                    return print(global.output, keys.as_slice());
                }
            }
        }
        KeyCommand::Get { id } => {
            let answer = identity.get_api_key(GetApiKeyRequest { id }).await.map_err(Failure::from)?;
            print(global.output, &Key::from(answer.into_inner().api_key.unwrap_or_default()))
        }
        KeyCommand::Revoke { id } => {
            let answer = identity.revoke_api_key(RevokeApiKeyRequest { id }).await.map_err(Failure::from)?;
            print(global.output, &Key::from(answer.into_inner().api_key.unwrap_or_default()))
        }
    }
}
