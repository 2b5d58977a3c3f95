//! `grant …`: who holds which role where.

use clap::{Args, Subcommand};
use waffles_proto::auth::v1::grant_holder::Who;
use waffles_proto::auth::v1::{self as pb, GrantHolder};
use waffles_proto::policy::v1::scope::Kind;
use waffles_proto::policy::v1::{Scope, ToolScope, WholeTenant};

use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::print;
use crate::output::shape::Grant;

#[derive(Debug, Subcommand)]
pub(crate) enum GrantCommand {
    /// Grant a role, in the whole tenant or on less. You must hold every permission of it there.
    Add(AddArgs),
    /// List grants, newest first.
    List {
        /// Only of this user or service account itself.
        #[arg(long, value_name = "NAME")]
        to: Option<String>,
        /// Only of this group.
        #[arg(long, value_name = "NAME")]
        group: Option<String>,
        /// Only of this role.
        #[arg(long, value_name = "ROLE")]
        role: Option<String>,
    },
    /// Take a grant back. The last holder of `admin` cannot lose it.
    Remove {
        /// The grant's id.
        id: String,
    },
}

/// Flags of `grant add`.
#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// The role's name.
    role: String,
    /// Name or id of the user or service account that shall hold it.
    #[arg(long, value_name = "NAME", required_unless_present = "group", conflicts_with = "group")]
    to: Option<String>,
    /// Name of the group that shall hold it.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Only at the door of this namespace.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["server", "tools"])]
    namespace: Option<String>,
    /// Only on this server.
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// Only on tools of this name or `*` pattern, of the server or of every server.
    #[arg(long, value_name = "PATTERN")]
    tools: Option<String>,
}

/// `grant …`.
pub(crate) async fn run(global: &Global, command: GrantCommand) -> anyhow::Result<()> {
    let client = Client::open(global).await?;
    let mut grants = client.grants();
    match command {
        GrantCommand::Add(args) => {
            let kind = match (args.namespace, args.server, args.tools) {
                (Some(namespace), ..) => Kind::Namespace(namespace),
                (None, server, Some(pattern)) => {
                    Kind::Tools(ToolScope { server: server.unwrap_or_else(|| "*".to_owned()), pattern })
                }
                (None, Some(server), None) => Kind::Server(server),
                (None, None, None) => Kind::Tenant(WholeTenant {}),
            };
            // One of the two is there: clap sees to it.
            let who = args.to.map(Who::Principal).or(args.group.map(Who::Group));
            let request = pb::CreateGrantRequest {
                role: args.role,
                holder: Some(GrantHolder { who }),
                scope: Some(Scope { kind: Some(kind) }),
            };
            let answer = grants.create_grant(request).await.map_err(Failure::from)?.into_inner();
            print(global.output, &Grant::from(answer.grant.unwrap_or_default()))
        }
        GrantCommand::List { to, group, role } => {
            let (principal, group) = (to.unwrap_or_default(), group.unwrap_or_default());
            let role = role.unwrap_or_default();
            let mut found = Vec::new();
            let mut request =
                pb::ListGrantsRequest { page_size: 500, principal, group, role, ..Default::default() };
            loop {
                let page = grants.list_grants(request.clone()).await.map_err(Failure::from)?.into_inner();
                found.extend(page.grants.into_iter().map(Grant::from));
                request.cursor = page.next_cursor;
                if request.cursor.is_empty() {
                    return print(global.output, found.as_slice());
                }
            }
        }
        GrantCommand::Remove { id } => {
            grants.delete_grant(pb::DeleteGrantRequest { id }).await.map_err(Failure::from)?;
            Ok(())
        }
    }
}
