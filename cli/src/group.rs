//! `group …`: those who hold the same.

use clap::Subcommand;
use waffles_proto::auth::v1 as pb;

use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::print;
use crate::output::shape::{Group, Member};

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Make a group.
    Add {
        /// Its name: a DNS label, never changed.
        name: String,
        /// Free text.
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
    },
    /// List groups.
    List,
    /// Remove a group. Its members lose what they held through it.
    Remove {
        /// Its name.
        name: String,
    },
    /// List the members of a group.
    Members {
        /// The group's name.
        name: String,
    },
    /// Put a user or service account into a group. You must hold all that the group holds.
    AddMember {
        /// The group's name.
        name: String,
        /// Name or id of the user or service account.
        member: String,
    },
    /// Take a user or service account out of a group.
    RemoveMember {
        /// The group's name.
        name: String,
        /// Name or id of the user or service account.
        member: String,
    },
}

/// `group …`.
pub(crate) async fn run(global: &Global, command: GroupCommand) -> anyhow::Result<()> {
    let client = Client::open(global).await?;
    let mut people = client.people();
    let group = match command {
        GroupCommand::Add { name, description } => {
            let request = pb::CreateGroupRequest { name, description: description.unwrap_or_default() };
            people.create_group(request).await.map_err(Failure::from)?.into_inner().group
        }
        GroupCommand::List => {
            let mut groups = Vec::new();
            let mut cursor = String::new();
            loop {
                let request = pb::ListGroupsRequest { page_size: 500, cursor };
                let page = people.list_groups(request).await.map_err(Failure::from)?.into_inner();
                groups.extend(page.groups.into_iter().map(Group::from));
                cursor = page.next_cursor;
                if cursor.is_empty() {
                    return print(global.output, groups.as_slice());
                }
            }
        }
        GroupCommand::Remove { name } => {
            people.delete_group(pb::DeleteGroupRequest { name }).await.map_err(Failure::from)?;
            return Ok(());
        }
        GroupCommand::Members { name } => {
            let answer = people.get_group(pb::GetGroupRequest { name }).await.map_err(Failure::from)?;
            let members: Vec<Member> = answer.into_inner().members.into_iter().map(Member::from).collect();
            return print(global.output, members.as_slice());
        }
        GroupCommand::AddMember { name, member } => {
            let request = pb::AddGroupMemberRequest { group: name, member };
            people.add_group_member(request).await.map_err(Failure::from)?.into_inner().group
        }
        GroupCommand::RemoveMember { name, member } => {
            let request = pb::RemoveGroupMemberRequest { group: name, member };
            people.remove_group_member(request).await.map_err(Failure::from)?.into_inner().group
        }
    };
    print(global.output, &Group::from(group.unwrap_or_default()))
}
