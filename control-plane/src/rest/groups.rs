//! `/api/v1/groups`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::extract::{Actor, Body, Name, Names, Params};
use super::{Door, Problem};
use crate::error::Error;
use crate::store::groups;

const PAGE_MOST: u32 = 500;

/// A group.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Group {
    id: Uuid,
    tenant: String,
    /// It never changes.
    name: String,
    description: String,
    member_count: i64,
    created_at: DateTime<Utc>,
}

impl From<groups::Group> for Group {
    fn from(group: groups::Group) -> Self {
        let groups::Group { id, tenant, name, description, created_at, members } = group;
        Self { id, tenant, name, description, member_count: members, created_at }
    }
}

/// A member of a group.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GroupMember {
    id: Uuid,
    /// `user` or `service_account`.
    kind: String,
    /// E-mail address of a user, name of a service account.
    name: String,
    active: bool,
    added_at: DateTime<Utc>,
}

impl From<groups::GroupMember> for GroupMember {
    fn from(member: groups::GroupMember) -> Self {
        let groups::GroupMember { id, kind, name, active, added_at } = member;
        Self { id, kind, name, active, added_at }
    }
}

/// A group with its members.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WholeGroup {
    #[serde(flatten)]
    group: Group,
    /// By name.
    members: Vec<GroupMember>,
}

/// A page of groups.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GroupPage {
    /// By name.
    groups: Vec<Group>,
    /// Where the next page starts; absent on the last page.
    #[serde(skip_serializing_if = "String::is_empty")]
    next_cursor: String,
}

/// A group to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewGroup {
    /// A DNS label: 1 to 63 of a-z, 0-9 and inner hyphens.
    name: String,
    /// Free text: at most 1000 characters.
    #[serde(default)]
    description: String,
}

/// Which page of groups.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query in the OpenAPI document; `Params` reads it")]
pub(super) struct GroupQuery {
    /// How many at the most: 1 to 500; 100 where it is absent.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists groups by name.
#[utoipa::path(get, path = "/api/v1/groups", tag = "groups", operation_id = "listGroups",
    params(GroupQuery), responses((status = 200, body = GroupPage)))]
pub(super) async fn list(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    mut params: Params,
) -> Result<Json<GroupPage>, Problem> {
    let page = params.page(PAGE_MOST);
    params.done()?;
    let paged = door.services.identity.list_groups(&ctx, &page).await?;
    let groups = paged.items.into_iter().map(Group::from).collect();
    Ok(Json(GroupPage { groups, next_cursor: paged.next }))
}

/// Makes a group, with nobody in it.
#[utoipa::path(post, path = "/api/v1/groups", tag = "groups", operation_id = "createGroup",
    request_body = NewGroup, responses((status = 201, body = Group, headers(("Location" = String)))))]
pub(super) async fn create(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(NewGroup { name, description }): Body<NewGroup>,
) -> Result<(StatusCode, [(HeaderName, HeaderValue); 1], Json<Group>), Problem> {
    let made = door.services.identity.create_group(&ctx, &name, &description).await?;
    let location =
        HeaderValue::from_str(&format!("/api/v1/groups/{}", made.name)).map_err(Error::internal)?;
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(made.into())))
}

/// Shows a group, with its members.
#[utoipa::path(get, path = "/api/v1/groups/{name}", tag = "groups", operation_id = "getGroup",
    params(("name" = String, Path, description = "The group's name")),
    responses((status = 200, body = WholeGroup)))]
pub(super) async fn get(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
) -> Result<Json<WholeGroup>, Problem> {
    let (group, members) = door.services.identity.get_group(&ctx, &name).await?;
    let members = members.into_iter().map(GroupMember::from).collect();
    Ok(Json(WholeGroup { group: group.into(), members }))
}

/// Removes a group.
///
/// Its members lose what they held through it.
#[utoipa::path(delete, path = "/api/v1/groups/{name}", tag = "groups", operation_id = "deleteGroup",
    params(("name" = String, Path, description = "The group's name")), responses((status = 204)))]
pub(super) async fn delete(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    door.services.identity.delete_group(&ctx, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Puts a user or service account into a group.
///
/// Whoever does so has to hold all that the group holds. Doing it again changes nothing.
#[utoipa::path(put, path = "/api/v1/groups/{name}/members/{member}", tag = "groups",
    operation_id = "addGroupMember",
    params(("name" = String, Path, description = "The group's name"),
        ("member" = String, Path, description = "Id or name of a user or service account")),
    responses((status = 200, body = Group)))]
pub(super) async fn add_member(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Names(name, member): Names,
) -> Result<Json<Group>, Problem> {
    Ok(Json(door.services.identity.add_group_member(&ctx, &name, &member).await?.into()))
}

/// Takes a user or service account out of a group.
#[utoipa::path(delete, path = "/api/v1/groups/{name}/members/{member}", tag = "groups",
    operation_id = "removeGroupMember",
    params(("name" = String, Path, description = "The group's name"),
        ("member" = String, Path, description = "Id or name of a user or service account")),
    responses((status = 200, body = Group)))]
pub(super) async fn remove_member(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Names(name, member): Names,
) -> Result<Json<Group>, Problem> {
    Ok(Json(door.services.identity.remove_group_member(&ctx, &name, &member).await?.into()))
}
