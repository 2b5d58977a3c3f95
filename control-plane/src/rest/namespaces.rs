//! `/api/v1/namespaces`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use waffles_core::namespace as core;

use super::extract::{Actor, Body, Name, Names, Params, based_on, tagged};
use super::{Door, Problem};
use crate::error::Error;
use crate::namespaces::NamespaceFilter;

const PAGE_MOST: u32 = 500;

/// How far someone may go in a namespace.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Level {
    /// The handshake and lists.
    View,
    /// Everything that the servers and the caller's roles permit.
    Execute,
}

/// Which of a server's items a namespace shows; in patterns `*` stands for any run of characters.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Expose {
    /// Tools and prompts; empty: all.
    allow: Vec<String>,
    /// Taken away again; deny wins.
    deny: Vec<String>,
    /// URIs of resources, and URI templates; empty: all.
    resources_allow: Vec<String>,
    /// Taken away again; deny wins.
    resources_deny: Vec<String>,
}

/// A server in a namespace.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Member {
    /// The server's name.
    server: String,
    /// Its names are shown as `{server}__{name}`; without, as they are where no other member has the same.
    #[serde(default = "yes")]
    prefix: bool,
    #[serde(default)]
    expose: Expose,
}

/// How a server is shown in a namespace.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Membership {
    /// Its names are shown as `{server}__{name}`; without, as they are where no other member has the same.
    #[serde(default = "yes")]
    prefix: bool,
    #[serde(default)]
    expose: Expose,
}

fn yes() -> bool {
    true
}

/// What the holders of a role may do.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RoleLevel {
    /// The role's name.
    role: String,
    level: Level,
}

/// What one principal may do.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PrincipalLevel {
    /// Its name: the e-mail address of a user.
    principal: String,
    level: Level,
}

/// A namespace to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewNamespace {
    /// A DNS label, unique in the tenant, never changed.
    name: String,
    /// Free text of at most 1000 characters.
    #[serde(default)]
    description: String,
    /// Its servers.
    #[serde(default)]
    servers: Vec<Member>,
    /// Levels by role. A caller has the highest of their levels; one without any does not know of the namespace.
    #[serde(default)]
    levels: Vec<RoleLevel>,
    /// Levels by principal.
    #[serde(default)]
    principals: Vec<PrincipalLevel>,
    /// Every server that is registered from now on becomes a member.
    #[serde(default)]
    is_default: bool,
    /// Shows the tools `search_tools` and `call_tool` in place of the members' tools.
    #[serde(default)]
    tool_search: bool,
}

/// The whole new namespace; what is absent gets its default.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NamespaceUpdate {
    /// The version that the change is based on; may stand in `If-Match` instead.
    version: Option<u64>,
    /// If given, the name in the path.
    name: Option<String>,
    /// Free text of at most 1000 characters.
    #[serde(default)]
    description: String,
    /// Its servers.
    #[serde(default)]
    servers: Vec<Member>,
    /// Levels by role. A caller has the highest of their levels; one without any does not know of the namespace.
    #[serde(default)]
    levels: Vec<RoleLevel>,
    /// Levels by principal.
    #[serde(default)]
    principals: Vec<PrincipalLevel>,
    /// Every server that is registered from now on becomes a member.
    #[serde(default)]
    is_default: bool,
    /// Shows the tools `search_tools` and `call_tool` in place of the members' tools.
    #[serde(default)]
    tool_search: bool,
}

/// A named set of servers, served as one MCP endpoint.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Namespace {
    id: Uuid,
    tenant: String,
    name: String,
    description: String,
    /// In the order of their names.
    servers: Vec<Member>,
    levels: Vec<RoleLevel>,
    principals: Vec<PrincipalLevel>,
    is_default: bool,
    tool_search: bool,
    /// Grows by one with each change; also the `ETag`.
    version: u64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

/// A page of namespaces in the order of their names.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NamespacePage {
    namespaces: Vec<Namespace>,
    /// Where the next page starts; absent on the last page.
    #[serde(skip_serializing_if = "String::is_empty")]
    next_cursor: String,
}

impl From<core::Level> for Level {
    fn from(level: core::Level) -> Self {
        match level {
            core::Level::View => Self::View,
            core::Level::Execute => Self::Execute,
        }
    }
}

impl From<Level> for core::Level {
    fn from(level: Level) -> Self {
        match level {
            Level::View => Self::View,
            Level::Execute => Self::Execute,
        }
    }
}

impl From<core::Member> for Member {
    fn from(member: core::Member) -> Self {
        let core::Expose { allow, deny, resources_allow, resources_deny } = member.expose;
        let expose = Expose { allow, deny, resources_allow, resources_deny };
        Self { server: member.server, prefix: member.prefix, expose }
    }
}

impl Membership {
    fn of(self, server: String) -> core::Member {
        let Expose { allow, deny, resources_allow, resources_deny } = self.expose;
        let expose = core::Expose { allow, deny, resources_allow, resources_deny };
        core::Member { server, prefix: self.prefix, expose }
    }
}

impl From<core::Namespace> for Namespace {
    fn from(namespace: core::Namespace) -> Self {
        let spec = namespace.spec;
        let role = |entry: core::RoleLevel| RoleLevel { role: entry.role, level: entry.level.into() };
        let principal = |entry: core::PrincipalLevel| PrincipalLevel {
            principal: entry.principal,
            level: entry.level.into(),
        };
        Self {
            id: namespace.id,
            tenant: namespace.tenant,
            name: spec.name,
            description: spec.description,
            servers: spec.servers.into_iter().map(Member::from).collect(),
            levels: spec.levels.into_iter().map(role).collect(),
            principals: spec.principals.into_iter().map(principal).collect(),
            is_default: spec.is_default,
            tool_search: spec.tool_search,
            version: namespace.version,
            created_at: namespace.created_at,
            updated_at: namespace.updated_at,
        }
    }
}

impl NamespaceUpdate {
    fn into_spec(self, name: String) -> core::NamespaceSpec {
        let member = |Member { server, prefix, expose }| Membership { prefix, expose }.of(server);
        let role = |entry: RoleLevel| core::RoleLevel { role: entry.role, level: entry.level.into() };
        let principal = |entry: PrincipalLevel| core::PrincipalLevel {
            principal: entry.principal,
            level: entry.level.into(),
        };
        core::NamespaceSpec {
            name,
            description: self.description,
            servers: self.servers.into_iter().map(member).collect(),
            levels: self.levels.into_iter().map(role).collect(),
            principals: self.principals.into_iter().map(principal).collect(),
            is_default: self.is_default,
            tool_search: self.tool_search,
        }
    }
}

impl NewNamespace {
    fn into_spec(self) -> core::NamespaceSpec {
        let update = NamespaceUpdate {
            version: None,
            name: None,
            description: self.description,
            servers: self.servers,
            levels: self.levels,
            principals: self.principals,
            is_default: self.is_default,
            tool_search: self.tool_search,
        };
        update.into_spec(self.name)
    }
}

/// The domain's names of a member's fields in the names that they have in the body of `addNamespaceServer`.
fn in_our_words(error: Error) -> Error {
    let Error::Invalid(fields) = error else { return error };
    let renamed = fields.into_iter().map(|mut problem| {
        if let Some(rest) = problem.field.strip_prefix("member.") {
            problem.field = rest.to_owned();
        }
        problem
    });
    Error::Invalid(renamed.collect())
}

fn answer(status: StatusCode, namespace: core::Namespace) -> Response {
    let version = namespace.version;
    tagged((status, Json(Namespace::from(namespace))).into_response(), version)
}

/// Which namespaces, and which page of them.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query in the OpenAPI document; `Params` reads it")]
pub(super) struct NamespaceQuery {
    /// Part of the name.
    name: Option<String>,
    /// Only those that this server is a member of.
    server: Option<String>,
    /// How many at the most: 1 to 500; 100 where it is absent.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists namespaces by name, one page at a time.
///
/// Shows those that the caller may change or use.
#[utoipa::path(get, path = "/api/v1/namespaces", tag = "namespaces", operation_id = "listNamespaces",
    params(NamespaceQuery), responses((status = 200, body = NamespacePage)))]
pub(super) async fn list(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    mut params: Params,
) -> Result<Json<NamespacePage>, Problem> {
    let filter = NamespaceFilter {
        name_contains: params.one("name").unwrap_or_default(),
        server: params.one("server").unwrap_or_default(),
    };
    let page = params.page(PAGE_MOST);
    params.done()?;
    let paged = door.services.namespaces.list(&ctx, &filter, &page).await?;
    let namespaces = paged.items.into_iter().map(Namespace::from).collect();
    Ok(Json(NamespacePage { namespaces, next_cursor: paged.next }))
}

/// Makes a namespace.
///
/// A name that is taken is a 409.
#[utoipa::path(post, path = "/api/v1/namespaces", tag = "namespaces", operation_id = "createNamespace",
    request_body = NewNamespace, responses((status = 201, body = Namespace,
        headers(("ETag" = String, description = "The version, in quotes"), ("Location" = String)))))]
pub(super) async fn create(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(new): Body<NewNamespace>,
) -> Result<Response, Problem> {
    let namespace = door.services.namespaces.create(&ctx, new.into_spec()).await?;
    let location = HeaderValue::from_str(&format!("/api/v1/namespaces/{}", namespace.spec.name));
    let mut response = answer(StatusCode::CREATED, namespace);
    if let Ok(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Shows one namespace.
#[utoipa::path(get, path = "/api/v1/namespaces/{name}", tag = "namespaces", operation_id = "getNamespace",
    params(("name" = String, Path, description = "The namespace's name")),
    responses((status = 200, body = Namespace, headers(("ETag" = String, description = "The version, in quotes")))))]
pub(super) async fn get(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
) -> Result<Response, Problem> {
    Ok(answer(StatusCode::OK, door.services.namespaces.get(&ctx, &name).await?))
}

/// Replaces a namespace, its members included.
///
/// The version that the change is based on stands in the body or in `If-Match`; if it is not the current one,
/// the answer is a 409 and nothing changes.
#[utoipa::path(put, path = "/api/v1/namespaces/{name}", tag = "namespaces", operation_id = "updateNamespace",
    params(("name" = String, Path, description = "The namespace's name"),
        ("If-Match" = Option<String>, Header, description = "The version, in quotes")),
    request_body = NamespaceUpdate,
    responses((status = 200, body = Namespace, headers(("ETag" = String, description = "The version, in quotes")))))]
pub(super) async fn update(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
    headers: HeaderMap,
    Body(update): Body<NamespaceUpdate>,
) -> Result<Response, Problem> {
    if update.name.as_ref().is_some_and(|given| *given != name) {
        return Err(Error::invalid("name", "cannot be changed; it must be the one in the path").into());
    }
    let version = based_on(update.version, &headers)?;
    let namespace = door.services.namespaces.update(&ctx, update.into_spec(name), version).await?;
    Ok(answer(StatusCode::OK, namespace))
}

/// Removes a namespace; its servers stay.
///
/// `default`, which every tenant keeps, is a 400.
#[utoipa::path(delete, path = "/api/v1/namespaces/{name}", tag = "namespaces", operation_id = "deleteNamespace",
    params(("name" = String, Path, description = "The namespace's name")),
    responses((status = 204)))]
pub(super) async fn delete(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    door.services.namespaces.delete(&ctx, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes a server into a namespace, or changes how a member is shown there.
#[utoipa::path(put, path = "/api/v1/namespaces/{name}/servers/{server}", tag = "namespaces",
    operation_id = "addNamespaceServer",
    params(("name" = String, Path, description = "The namespace's name"),
        ("server" = String, Path, description = "The server's name")),
    request_body = Membership,
    responses((status = 200, body = Namespace, headers(("ETag" = String, description = "The version, in quotes")))))]
pub(super) async fn add_server(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Names(name, server): Names,
    Body(membership): Body<Membership>,
) -> Result<Response, Problem> {
    let added = door.services.namespaces.add_server(&ctx, &name, membership.of(server)).await;
    Ok(answer(StatusCode::OK, added.map_err(in_our_words)?))
}

/// Takes a server out of a namespace.
#[utoipa::path(delete, path = "/api/v1/namespaces/{name}/servers/{server}", tag = "namespaces",
    operation_id = "removeNamespaceServer",
    params(("name" = String, Path, description = "The namespace's name"),
        ("server" = String, Path, description = "The server's name")),
    responses((status = 200, body = Namespace, headers(("ETag" = String, description = "The version, in quotes")))))]
pub(super) async fn remove_server(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Names(name, server): Names,
) -> Result<Response, Problem> {
    Ok(answer(StatusCode::OK, door.services.namespaces.remove_server(&ctx, &name, &server).await?))
}
