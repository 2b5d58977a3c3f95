//! `role …`: sets of permissions, the built-in ones and the tenant's own.

use clap::Subcommand;
use waffles_proto::auth::v1 as pb;

use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::print;
use crate::output::shape::Role;

#[derive(Debug, Subcommand)]
pub(crate) enum RoleCommand {
    /// Make a role. You must hold every permission of it yourself.
    Add {
        /// Its name: a DNS label that no built-in role has.
        name: String,
        /// A permission, such as `servers:read`; may be repeated.
        #[arg(long, value_name = "PERMISSION", required = true)]
        permission: Vec<String>,
        /// Free text.
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
    },
    /// List roles, the built-in ones first.
    List,
    /// Show a role.
    Get {
        /// Its name.
        name: String,
    },
    /// Change a role. What is not named stays as it is; permissions that are named replace all.
    Edit {
        /// Its name.
        name: String,
        /// A permission, such as `servers:read`; may be repeated.
        #[arg(long, value_name = "PERMISSION")]
        permission: Vec<String>,
        /// Free text.
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// Refuse when the role is not at this version any more.
        #[arg(long, value_name = "N")]
        version: Option<u64>,
    },
    /// Remove a role that is granted to nobody.
    Remove {
        /// Its name.
        name: String,
    },
}

/// `role …`.
pub(crate) async fn run(global: &Global, command: RoleCommand) -> anyhow::Result<()> {
    let client = Client::open(global).await?;
    let mut roles = client.roles();
    let role = match command {
        RoleCommand::Add { name, permission, description } => {
            let description = description.unwrap_or_default();
            let request = pb::CreateRoleRequest { name, description, permissions: permission };
            roles.create_role(request).await.map_err(Failure::from)?.into_inner().role
        }
        RoleCommand::List => {
            let answer = roles.list_roles(pb::ListRolesRequest {}).await.map_err(Failure::from)?;
            let roles: Vec<Role> = answer.into_inner().roles.into_iter().map(Role::from).collect();
            return print(global.output, roles.as_slice());
        }
        RoleCommand::Get { name } => {
            roles.get_role(pb::GetRoleRequest { name }).await.map_err(Failure::from)?.into_inner().role
        }
        RoleCommand::Edit { name, permission, description, version } => {
            let before = roles.get_role(pb::GetRoleRequest { name: name.clone() }).await;
            let before = before.map_err(Failure::from)?.into_inner().role.unwrap_or_default();
            let request = pb::UpdateRoleRequest {
                name,
                description: description.unwrap_or(before.description),
                permissions: if permission.is_empty() { before.permissions } else { permission },
                version: version.unwrap_or(before.version),
            };
            roles.update_role(request).await.map_err(Failure::from)?.into_inner().role
        }
        RoleCommand::Remove { name } => {
            roles.delete_role(pb::DeleteRoleRequest { name }).await.map_err(Failure::from)?;
            return Ok(());
        }
    };
    print(global.output, &Role::from(role.unwrap_or_default()))
}
