//! `/api/v1/limits` and `/api/v1/usage`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;
use waffles_core::FieldError;
use waffles_core::limit::{Class, LimitKind, LimitSpec, Per};
use waffles_core::policy::Who;

use super::extract::{Actor, Body, Name, based_on, tagged};
use super::{Door, Problem};
use crate::error::Error;
use crate::limits as core;

/// Whom a limit is about: everybody of any of the lists; with all of them empty, everybody.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LimitPrincipals {
    /// Names of roles, held in the whole tenant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    roles: Vec<String>,
    /// Names of groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    /// E-mail addresses of users, names of service accounts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    names: Vec<String>,
}

/// How much may be done in a time, or at once.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LimitBody {
    /// Free text: at most 1000 characters.
    description: String,
    /// `rate`: messages in any time of the window's length. `quota`: messages in each period of that length, counted from
    /// 1970-01-01 UTC. `concurrent`: messages that wait for their answers at the same time. `streams`: streams on which
    /// somebody listens.
    #[schema(example = "rate")]
    kind: String,
    /// How many: at least 1.
    amount: u64,
    /// 1 second to 31 days, of a rate or quota.
    window_seconds: u64,
    /// What is counted apart: any of `principal`, `key`, `server`, `tool`. With none, all is counted together.
    per: Vec<String>,
    /// Whom it is about.
    principals: LimitPrincipals,
    /// Names of servers, or patterns in which `*` stands for any run of characters.
    servers: Vec<String>,
    /// Names of tools, or such patterns; the limit is then about calls of these tools only.
    tools: Vec<String>,
    /// Any of `calls`, `lists`, `listens`. With none, every message of a client is counted.
    classes: Vec<String>,
}

/// What a limit shall be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitDraft {
    /// A DNS label; those who are limited are told it. Where the path has a name, this may be absent.
    name: Option<String>,
    /// Free text: at most 1000 characters.
    #[serde(default)]
    description: String,
    /// `rate`, `quota`, `concurrent` or `streams`.
    kind: String,
    /// How many: at least 1.
    amount: u64,
    /// 1 second to 31 days, of a rate or quota; absent of the others.
    #[serde(default)]
    window_seconds: u64,
    /// What is counted apart: any of `principal`, `key`, `server`, `tool`. With none, all is counted together.
    #[serde(default)]
    per: Vec<String>,
    /// Whom it is about; absent: everybody.
    #[serde(default)]
    principals: LimitPrincipals,
    /// Names of servers, or patterns in which `*` stands for any run of characters.
    #[serde(default)]
    servers: Vec<String>,
    /// Names of tools, or such patterns; the limit is then about calls of these tools only.
    #[serde(default)]
    tools: Vec<String>,
    /// Any of `calls`, `lists`, `listens`. With none, every message of a client is counted.
    #[serde(default)]
    classes: Vec<String>,
    /// For a change: the version that it is based on; may stand in `If-Match` instead.
    version: Option<u64>,
}

/// A limit.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Limit {
    id: Uuid,
    name: String,
    #[serde(flatten)]
    body: LimitBody,
    /// Grows with every change.
    version: u64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

/// All limits, by name.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LimitList {
    limits: Vec<Limit>,
}

/// How much one caller, or all together, used of a limit.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LimitUse {
    /// The limit's name.
    limit: String,
    kind: String,
    amount: u64,
    /// Of a rate or quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    window_seconds: Option<u64>,
    /// The user or service account that is counted apart; absent where none is.
    #[serde(skip_serializing_if = "String::is_empty")]
    principal: String,
    /// The API key that is counted apart, by its public id.
    #[serde(skip_serializing_if = "String::is_empty")]
    key: String,
    /// The server that is counted apart.
    #[serde(skip_serializing_if = "String::is_empty")]
    server: String,
    /// The tool that is counted apart.
    #[serde(skip_serializing_if = "String::is_empty")]
    tool: String,
    /// How many were used in the window that ends now, at all proxies together.
    used: u64,
    /// When proxies said so last; null where none has.
    noted_at: Option<DateTime<Utc>>,
}

/// How many of one thing the tenant has.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TenantUse {
    /// `servers`, `principals`, `api_keys` or `namespaces`.
    what: String,
    used: u64,
    /// How many there may be; null where there is no limit.
    amount: Option<u64>,
}

/// How much is used.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Usage {
    /// Of each limit the callers that used most of it, most first.
    limits: Vec<LimitUse>,
    /// What the tenant has.
    tenant: Vec<TenantUse>,
}

impl From<core::StoredLimit> for Limit {
    fn from(stored: core::StoredLimit) -> Self {
        let core::StoredLimit { limit, version, created_at, updated_at } = stored;
        let LimitSpec { name, description, kind, amount, window_seconds, per, principals, .. } = limit.spec;
        let Who { roles, groups, names } = principals;
        Self {
            id: limit.id,
            name,
            body: LimitBody {
                description,
                kind: kind.as_str().to_owned(),
                amount,
                window_seconds,
                per: per.iter().map(|per| per.as_str().to_owned()).collect(),
                principals: LimitPrincipals { roles, groups, names },
                servers: limit.spec.servers,
                tools: limit.spec.tools,
                classes: limit.spec.classes.iter().map(|class| class.as_str().to_owned()).collect(),
            },
            version,
            created_at,
            updated_at,
        }
    }
}

fn read(name: String, body: LimitDraft) -> Result<LimitSpec, Error> {
    let mut problems = Vec::new();
    let kind = LimitKind::parse(&body.kind);
    if kind.is_none() {
        problems.push(FieldError::new("kind", "must be `rate`, `quota`, `concurrent` or `streams`"));
    }
    let mut words = |field: &str, list: &[String], known: fn(&str) -> bool, reason: &str| {
        for (i, _) in list.iter().enumerate().filter(|(_, word)| !known(word)) {
            problems.push(FieldError::new(format!("{field}[{i}]"), reason));
        }
    };
    let (per, classes) =
        ("must be `principal`, `key`, `server` or `tool`", "must be `calls`, `lists` or `listens`");
    words("per", &body.per, |word| Per::parse(word).is_some(), per);
    words("classes", &body.classes, |word| Class::parse(word).is_some(), classes);
    let Some(kind) = kind.filter(|_| problems.is_empty()) else { return Err(Error::Invalid(problems)) };
    let LimitPrincipals { roles, groups, names } = body.principals;
    Ok(LimitSpec {
        name,
        description: body.description,
        kind,
        amount: body.amount,
        window_seconds: body.window_seconds,
        per: body.per.iter().filter_map(|word| Per::parse(word)).collect(),
        principals: Who { roles, groups, names },
        servers: body.servers,
        tools: body.tools,
        classes: body.classes.iter().filter_map(|word| Class::parse(word)).collect(),
    })
}

/// Lists limits by name.
#[utoipa::path(get, path = "/api/v1/limits", tag = "limits", operation_id = "listLimits",
    responses((status = 200, body = LimitList)))]
pub(super) async fn list(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
) -> Result<Json<LimitList>, Problem> {
    let limits = door.services.limits.list(&ctx).await?;
    Ok(Json(LimitList { limits: limits.into_iter().map(Limit::from).collect() }))
}

/// Makes a limit. It is in force at every proxy within a second.
#[utoipa::path(post, path = "/api/v1/limits", tag = "limits", operation_id = "createLimit",
    request_body = LimitDraft, responses((status = 201, body = Limit, headers(("Location" = String)))))]
pub(super) async fn create(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(mut draft): Body<LimitDraft>,
) -> Result<Response, Problem> {
    let name = draft.name.take().ok_or_else(|| Error::invalid("name", "is missing"))?;
    let made = door.services.limits.create(&ctx, read(name, draft)?).await?;
    let (path, version) = (format!("/api/v1/limits/{}", made.limit.spec.name), made.version);
    let location = HeaderValue::from_str(&path).map_err(Error::internal)?;
    let answer = (StatusCode::CREATED, [(header::LOCATION, location)], Json(Limit::from(made)));
    Ok(tagged(answer.into_response(), version))
}

/// Shows a limit.
#[utoipa::path(get, path = "/api/v1/limits/{name}", tag = "limits", operation_id = "getLimit",
    params(("name" = String, Path, description = "The limit's name")),
    responses((status = 200, body = Limit)))]
pub(super) async fn get(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
) -> Result<Response, Problem> {
    let found = door.services.limits.get(&ctx, &name).await?;
    let version = found.version;
    Ok(tagged(Json(Limit::from(found)).into_response(), version))
}

/// Replaces a limit. What was counted until then counts on.
#[utoipa::path(put, path = "/api/v1/limits/{name}", tag = "limits", operation_id = "updateLimit",
    params(("name" = String, Path, description = "The limit's name")),
    request_body = LimitDraft, responses((status = 200, body = Limit)))]
pub(super) async fn update(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
    headers: HeaderMap,
    Body(draft): Body<LimitDraft>,
) -> Result<Response, Problem> {
    let version = based_on(draft.version, &headers)?;
    if draft.name.as_ref().is_some_and(|given| *given != name) {
        return Err(Error::invalid("name", "differs from the one in the path; a limit keeps its name").into());
    }
    let now = door.services.limits.update(&ctx, read(name, draft)?, version).await?;
    let version = now.version;
    Ok(tagged(Json(Limit::from(now)).into_response(), version))
}

/// Removes a limit.
#[utoipa::path(delete, path = "/api/v1/limits/{name}", tag = "limits", operation_id = "deleteLimit",
    params(("name" = String, Path, description = "The limit's name")), responses((status = 204)))]
pub(super) async fn delete(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    door.services.limits.remove(&ctx, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Shows how much of the limits is used, and what the tenant has of what it may have.
///
/// Of each limit the hundred callers that used most of it, as proxies said a few seconds ago.
#[utoipa::path(get, path = "/api/v1/usage", tag = "limits", operation_id = "getUsage",
    responses((status = 200, body = Usage)))]
pub(super) async fn usage(State(door): State<Arc<Door>>, Actor(ctx): Actor) -> Result<Json<Usage>, Problem> {
    let core::Report { limits, tenant } = door.services.limits.usage(&ctx).await?;
    let limits = limits.into_iter().map(|of| LimitUse {
        window_seconds: of.spec.kind.has_window().then_some(of.spec.window_seconds),
        limit: of.spec.name,
        kind: of.spec.kind.as_str().to_owned(),
        amount: of.spec.amount,
        principal: of.principal,
        key: of.key,
        server: of.server,
        tool: of.tool,
        used: of.used,
        noted_at: of.noted_at,
    });
    let tenant = tenant.into_iter().map(|core::TenantUse { what, used, amount }| TenantUse {
        what: what.to_owned(),
        used,
        amount,
    });
    Ok(Json(Usage { limits: limits.collect(), tenant: tenant.collect() }))
}
