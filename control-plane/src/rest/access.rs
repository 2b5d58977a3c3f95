//! `/api/v1/roles` and `/api/v1/grants`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use waffles_core::policy::{self, Permission, Scope};

use super::extract::{Actor, Body, Name, Params, based_on, tagged};
use super::{Door, Problem};
use crate::error::Error;
use crate::identity::{GrantTo, GrantsOf, NewGrant, NewRole};
use crate::store::grants::{self, Holder, StoredRole};

const PAGE_MOST: u32 = 500;

/// A role.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Role {
    /// Absent for a built-in role.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Uuid>,
    name: String,
    description: String,
    /// Such as `servers:read`.
    permissions: Vec<&'static str>,
    built_in: bool,
    /// Grows with every change; 0 for a built-in role.
    version: u64,
    /// Absent for a built-in role.
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<DateTime<Utc>>,
    /// Absent for a built-in role.
    #[serde(skip_serializing_if = "Option::is_none")]
    updated_at: Option<DateTime<Utc>>,
}

impl From<policy::Role> for Role {
    fn from(role: policy::Role) -> Self {
        Self {
            id: None,
            name: role.as_str().to_owned(),
            description: role.description().to_owned(),
            permissions: role.permissions().iter().map(Permission::as_str).collect(),
            built_in: true,
            version: 0,
            created_at: None,
            updated_at: None,
        }
    }
}

impl From<StoredRole> for Role {
    fn from(stored: StoredRole) -> Self {
        let StoredRole { role, version, created_at, updated_at } = stored;
        Self {
            id: Some(role.id),
            name: role.name,
            description: role.description,
            permissions: role.permissions.iter().map(Permission::as_str).collect(),
            built_in: false,
            version,
            created_at: Some(created_at),
            updated_at: Some(updated_at),
        }
    }
}

/// All roles: the built-in ones, then the tenant's own by name.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RoleList {
    roles: Vec<Role>,
}

/// A role to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewRole)]
pub(super) struct RoleDraft {
    /// A DNS label that no built-in role has.
    name: String,
    /// Free text: at most 1000 characters.
    #[serde(default)]
    description: String,
    /// Such as `servers:read`; at least one.
    permissions: Vec<String>,
}

/// What a role shall become.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RoleChange {
    /// Free text: at most 1000 characters.
    #[serde(default)]
    description: String,
    /// All that it shall permit.
    permissions: Vec<String>,
    /// The version that the change is based on; may stand in `If-Match` instead.
    version: Option<u64>,
}

/// Where a role is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "snake_case", tag = "kind")]
#[schema(as = Scope)]
pub(super) enum Place {
    /// In the whole tenant.
    Tenant,
    /// At the door of a namespace.
    Namespace {
        /// Its name.
        namespace: String,
    },
    /// On a server.
    Server {
        /// Its name.
        server: String,
    },
    /// On tools.
    Tools {
        /// The server's name, or `*` for every server.
        server: String,
        /// A name, or a pattern in which `*` stands for any run of characters.
        pattern: String,
    },
}

impl From<&Scope> for Place {
    fn from(scope: &Scope) -> Self {
        match scope.clone() {
            Scope::Tenant => Self::Tenant,
            Scope::Namespace(namespace) => Self::Namespace { namespace },
            Scope::Server(server) => Self::Server { server },
            Scope::Tools { server, pattern } => Self::Tools { server, pattern },
        }
    }
}

impl From<Place> for Scope {
    fn from(place: Place) -> Self {
        match place {
            Place::Tenant => Self::Tenant,
            Place::Namespace { namespace } => Self::Namespace(namespace),
            Place::Server { server } => Self::Server(server),
            Place::Tools { server, pattern } => Self::Tools { server, pattern },
        }
    }
}

/// A role that somebody holds somewhere.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Grant {
    id: Uuid,
    /// The role's name.
    role: String,
    /// Name of the user or service account that holds it; absent where a group does.
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<String>,
    /// Name of the group that holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    holder_id: Uuid,
    scope: Place,
    created_at: DateTime<Utc>,
    /// Absent for what Waffles made itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<Uuid>,
}

impl From<grants::Grant> for Grant {
    fn from(grant: grants::Grant) -> Self {
        let (principal, group, holder_id) = match grant.holder {
            Holder::Principal(id) => (Some(grant.holder_name), None, id),
            Holder::Group(id) => (None, Some(grant.holder_name), id),
        };
        Self {
            id: grant.id,
            role: grant.role,
            principal,
            group,
            holder_id,
            scope: (&grant.scope).into(),
            created_at: grant.created_at,
            created_by: grant.created_by,
        }
    }
}

/// A page of grants, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GrantPage {
    grants: Vec<Grant>,
    /// Where the next page starts; absent on the last page.
    #[serde(skip_serializing_if = "String::is_empty")]
    next_cursor: String,
}

/// A grant to make: to one principal, or to one group.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewGrant)]
pub(super) struct GrantDraft {
    /// The role's name.
    role: String,
    /// Id or name of a user or service account.
    principal: Option<String>,
    /// Name of a group.
    group: Option<String>,
    scope: Place,
}

/// Which grants, and which page of them.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query in the OpenAPI document; `Params` reads it")]
pub(super) struct GrantQuery {
    /// Only of this user or service account itself: its id or name.
    principal: Option<String>,
    /// Only of this group.
    group: Option<String>,
    /// Only of this role.
    role: Option<String>,
    /// How many at the most: 1 to 500; 100 where it is absent.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists the built-in roles, then the tenant's own by name.
#[utoipa::path(get, path = "/api/v1/roles", tag = "access", operation_id = "listRoles",
    responses((status = 200, body = RoleList)))]
pub(super) async fn list_roles(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
) -> Result<Json<RoleList>, Problem> {
    let own = door.services.identity.list_roles(&ctx).await?;
    let roles = policy::Role::ALL.into_iter().map(Role::from).chain(own.into_iter().map(Role::from));
    Ok(Json(RoleList { roles: roles.collect() }))
}

/// Makes a role.
///
/// Whoever does so has to hold every permission of it in the whole tenant.
#[utoipa::path(post, path = "/api/v1/roles", tag = "access", operation_id = "createRole",
    request_body = RoleDraft, responses((status = 201, body = Role, headers(("Location" = String)))))]
pub(super) async fn create_role(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(RoleDraft { name, description, permissions }): Body<RoleDraft>,
) -> Result<Response, Problem> {
    let made = door.services.identity.create_role(&ctx, NewRole { name, description, permissions }).await?;
    let (path, version) = (format!("/api/v1/roles/{}", made.role.name), made.version);
    let location = HeaderValue::from_str(&path).map_err(Error::internal)?;
    let answer = (StatusCode::CREATED, [(header::LOCATION, location)], Json(Role::from(made)));
    Ok(tagged(answer.into_response(), version))
}

/// Shows a role.
#[utoipa::path(get, path = "/api/v1/roles/{name}", tag = "access", operation_id = "getRole",
    params(("name" = String, Path, description = "The role's name")),
    responses((status = 200, body = Role)))]
pub(super) async fn get_role(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
) -> Result<Response, Problem> {
    let role = match policy::Role::parse(&name) {
        Some(role) => Role::from(role),
        None => door.services.identity.get_role(&ctx, &name).await?.into(),
    };
    let version = role.version;
    Ok(tagged(Json(role).into_response(), version))
}

/// Gives a role another description and other permissions.
///
/// Whoever does so has to hold every permission that is added, in the whole tenant. A built-in role never changes.
#[utoipa::path(put, path = "/api/v1/roles/{name}", tag = "access", operation_id = "updateRole",
    params(("name" = String, Path, description = "The role's name")),
    request_body = RoleChange, responses((status = 200, body = Role)))]
pub(super) async fn update_role(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
    headers: HeaderMap,
    Body(RoleChange { description, permissions, version }): Body<RoleChange>,
) -> Result<Response, Problem> {
    let version = based_on(version, &headers)?;
    let new = NewRole { name, description, permissions };
    let now = door.services.identity.update_role(&ctx, new, version).await?;
    let version = now.version;
    Ok(tagged(Json(Role::from(now)).into_response(), version))
}

/// Removes a role that is granted to nobody.
#[utoipa::path(delete, path = "/api/v1/roles/{name}", tag = "access", operation_id = "deleteRole",
    params(("name" = String, Path, description = "The role's name")), responses((status = 204)))]
pub(super) async fn delete_role(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    door.services.identity.delete_role(&ctx, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Lists grants, newest first.
#[utoipa::path(get, path = "/api/v1/grants", tag = "access", operation_id = "listGrants",
    params(GrantQuery), responses((status = 200, body = GrantPage)))]
pub(super) async fn list_grants(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    mut params: Params,
) -> Result<Json<GrantPage>, Problem> {
    let mut text = |name| params.one(name).unwrap_or_default();
    let of = GrantsOf { principal: text("principal"), group: text("group"), role: text("role") };
    let page = params.page(PAGE_MOST);
    params.done()?;
    let paged = door.services.identity.list_grants(&ctx, &of, &page).await?;
    let grants = paged.items.into_iter().map(Grant::from).collect();
    Ok(Json(GrantPage { grants, next_cursor: paged.next }))
}

/// Grants a role.
///
/// Whoever does so has to hold every permission of it there.
#[utoipa::path(post, path = "/api/v1/grants", tag = "access", operation_id = "createGrant",
    request_body = GrantDraft, responses((status = 201, body = Grant)))]
pub(super) async fn create_grant(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(GrantDraft { role, principal, group, scope }): Body<GrantDraft>,
) -> Result<(StatusCode, Json<Grant>), Problem> {
    let to = match (principal, group) {
        (Some(principal), None) => GrantTo::Principal(principal),
        (None, Some(group)) => GrantTo::Group(group),
        (Some(_), Some(_)) => return Err(Error::invalid("group", "is given beside a principal").into()),
        (None, None) => return Err(Error::invalid("principal", "is missing, and there is no group").into()),
    };
    let made = door.services.identity.create_grant(&ctx, NewGrant { role, to, scope: scope.into() }).await?;
    Ok((StatusCode::CREATED, Json(made.into())))
}

/// Takes a grant back.
///
/// The last holder of `admin` on the tenant cannot lose it.
#[utoipa::path(delete, path = "/api/v1/grants/{id}", tag = "access", operation_id = "deleteGrant",
    params(("id" = String, Path, description = "The grant's id")), responses((status = 204)))]
pub(super) async fn delete_grant(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(id): Name,
) -> Result<StatusCode, Problem> {
    door.services.identity.delete_grant(&ctx, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
