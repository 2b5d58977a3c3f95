//! `/api/v1/auth` and `/api/v1/api-keys`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use http::{HeaderValue, StatusCode, header};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use waffles_core::principal;
use waffles_core::wire;
use waffles_proto::auth::v1 as pb;

use super::extract::{Actor, Body, Name, Params};
use super::principals::HeldRole;
use super::{Door, Problem};
use crate::identity::{self, NewApiKey};
use crate::store::principals::OwnedKey;

const PAGE_MOST: u32 = 500;

/// What someone logs in with.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    /// The account's address.
    email: String,
    #[schema(value_type = String, write_only)]
    password: SecretString,
    /// `default` where it is absent.
    #[serde(default)]
    tenant: String,
}

/// The last refresh token of a session.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RefreshToken {
    #[schema(value_type = String, write_only)]
    refresh_token: SecretString,
}

/// A user or service account.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Principal {
    id: Uuid,
    tenant: String,
    /// E-mail address of a user, name of a service account.
    name: String,
    /// `user` or `service_account`.
    kind: &'static str,
    /// Names of its groups.
    groups: Vec<String>,
    /// The roles that it holds in the whole tenant, itself or through its groups.
    roles: Vec<String>,
    /// The roles that it holds on less, itself or through its groups.
    grants: Vec<HeldRole>,
}

/// The tokens of a session.
#[derive(Serialize, ToSchema)]
pub(super) struct Tokens {
    /// JWT for the header `authorization`.
    access_token: String,
    /// Always `Bearer`.
    token_type: &'static str,
    access_expires_at: DateTime<Utc>,
    /// Good for one refresh.
    refresh_token: String,
    refresh_expires_at: DateTime<Utc>,
}

/// A new session.
#[derive(Serialize, ToSchema)]
pub(super) struct Session {
    #[serde(flatten)]
    tokens: Tokens,
    principal: Principal,
}

/// Who the caller is, and what the credential permits.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Me {
    principal: Principal,
    /// Such as `servers:read`.
    permissions: Vec<&'static str>,
    /// The API key that was shown; absent for a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key_id: Option<String>,
}

/// What a key may be used for; it can only narrow what its owner may do. Empty lists do not narrow.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct KeyLimits {
    /// Permissions such as `servers:read` or `gateway:use`.
    scopes: Vec<String>,
    /// Names of servers.
    servers: Vec<String>,
    /// Names or patterns of tools (`*` stands for any run of characters).
    tools: Vec<String>,
    /// Addresses and ranges (CIDR) that the key may be used from.
    ip_ranges: Vec<String>,
    /// Only listing and reading.
    read_only: bool,
    /// Names of namespaces; a key that is for some reaches servers through them only.
    namespaces: Vec<String>,
}

/// A key to issue.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKey {
    /// 1 to 100 characters.
    name: String,
    #[serde(default)]
    limits: KeyLimits,
    /// When it ends; absent: never by itself.
    expires_at: Option<DateTime<Utc>>,
    /// When proxies refuse it even if they have lost the control plane; at or before `expires_at`.
    not_after: Option<DateTime<Utc>>,
}

/// An API key, without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ApiKey {
    /// The public part; also stands in the key after `wfl_`.
    id: String,
    tenant: String,
    name: String,
    owner_id: Uuid,
    owner_name: String,
    limits: KeyLimits,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
    not_after: Option<DateTime<Utc>>,
    revoked_at: Option<DateTime<Utc>>,
    /// When it was last used, to the minute.
    last_used_at: Option<DateTime<Utc>>,
}

/// A new key. The secret is shown this once.
#[derive(Serialize, ToSchema)]
pub(super) struct IssuedKey {
    api_key: ApiKey,
    /// The whole key (`wfl_…`).
    secret: String,
}

/// A page of keys, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct KeyPage {
    api_keys: Vec<ApiKey>,
    /// Where the next page starts; absent on the last page.
    #[serde(skip_serializing_if = "String::is_empty")]
    next_cursor: String,
}

impl NewKey {
    /// As the service takes it.
    pub(super) fn read(self) -> Result<NewApiKey, Problem> {
        let KeyLimits { scopes, servers, tools, ip_ranges, read_only, namespaces } = self.limits;
        let limits = pb::KeyLimits { scopes, servers, tools, ip_ranges, read_only, namespaces };
        let limits = wire::limits_from_proto(limits).map_err(crate::error::Error::Invalid)?;
        let (expires_at, not_after) = (self.expires_at, self.not_after);
        Ok(NewApiKey { name: self.name, limits, expires_at, not_after })
    }
}

impl From<&principal::Principal> for Principal {
    fn from(principal: &principal::Principal) -> Self {
        Self {
            id: principal.id,
            tenant: principal.tenant.clone(),
            name: principal.name.clone(),
            kind: principal.kind.as_str(),
            groups: principal.groups.clone(),
            roles: principal.roles.clone(),
            grants: principal.grants.iter().map(|held| HeldRole::new(&held.role, &held.scope)).collect(),
        }
    }
}

impl From<identity::Tokens> for Tokens {
    fn from(tokens: identity::Tokens) -> Self {
        Self {
            access_token: tokens.access.expose_secret().to_owned(),
            token_type: "Bearer",
            access_expires_at: tokens.access_expires_at,
            refresh_token: tokens.refresh.expose_secret().to_owned(),
            refresh_expires_at: tokens.refresh_expires_at,
        }
    }
}

impl From<OwnedKey> for ApiKey {
    fn from(OwnedKey { key, owner_name, last_used_at }: OwnedKey) -> Self {
        let limits = wire::limits_to_proto(&key.limits);
        Self {
            id: key.id,
            tenant: key.tenant,
            name: key.name,
            owner_id: key.owner,
            owner_name,
            limits: KeyLimits {
                scopes: limits.scopes,
                servers: limits.servers,
                tools: limits.tools,
                ip_ranges: limits.ip_ranges,
                read_only: limits.read_only,
                namespaces: limits.namespaces,
            },
            created_at: key.created_at,
            expires_at: key.expires_at,
            not_after: key.not_after,
            revoked_at: key.revoked_at,
            last_used_at,
        }
    }
}

/// Opens a session with a password.
///
/// An unknown account and a wrong password get the same 401; too many attempts get a 429.
#[utoipa::path(post, path = "/api/v1/auth/login", tag = "auth", operation_id = "login",
    request_body = Login, responses((status = 200, body = Session)))]
pub(super) async fn login(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(Login { email, password, tenant }): Body<Login>,
) -> Result<Json<Session>, Problem> {
    let login = identity::Login { tenant, email, password };
    let (tokens, user) = door.services.identity.login(&ctx, login).await?;
    Ok(Json(Session { tokens: tokens.into(), principal: (&user).into() }))
}

/// Exchanges a refresh token for new tokens.
///
/// The old one is used up; used twice, it ends the session.
#[utoipa::path(post, path = "/api/v1/auth/refresh", tag = "auth", operation_id = "refresh",
    request_body = RefreshToken, responses((status = 200, body = Tokens)))]
pub(super) async fn refresh(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(RefreshToken { refresh_token }): Body<RefreshToken>,
) -> Result<Json<Tokens>, Problem> {
    Ok(Json(door.services.identity.refresh(&ctx, &refresh_token).await?.into()))
}

/// Ends the session of a refresh token.
///
/// Its access tokens are refused everywhere within a second.
#[utoipa::path(post, path = "/api/v1/auth/logout", tag = "auth", operation_id = "logout",
    request_body = RefreshToken, responses((status = 204)))]
pub(super) async fn logout(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(RefreshToken { refresh_token }): Body<RefreshToken>,
) -> Result<StatusCode, Problem> {
    door.services.identity.logout(&ctx, &refresh_token).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Says who the caller is.
#[utoipa::path(get, path = "/api/v1/auth/me", tag = "auth", operation_id = "me",
    responses((status = 200, body = Me)))]
pub(super) async fn me(Actor(ctx): Actor) -> Json<Me> {
    Json(Me {
        principal: ctx.principal().into(),
        permissions: ctx.permissions().iter().map(|permission| permission.as_str()).collect(),
        api_key_id: ctx.key().map(|key| key.id.clone()),
    })
}

/// Which keys, and which page of them.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query in the OpenAPI document; `Params` reads it")]
pub(super) struct KeyQuery {
    /// Revoked and expired keys too.
    include_ended: Option<bool>,
    /// How many at the most: 1 to 500; 100 where it is absent.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists the caller's API keys, or with `keys:manage` those of the tenant.
#[utoipa::path(get, path = "/api/v1/api-keys", tag = "api-keys", operation_id = "listApiKeys",
    params(KeyQuery), responses((status = 200, body = KeyPage)))]
pub(super) async fn list_keys(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    mut params: Params,
) -> Result<Json<KeyPage>, Problem> {
    let ended = params.read_as("include_ended", "true or false", |text| text.parse().ok()).unwrap_or(false);
    let page = params.page(PAGE_MOST);
    params.done()?;
    let paged = door.services.identity.list_keys(&ctx, ended, &page).await?;
    let api_keys = paged.items.into_iter().map(ApiKey::from).collect();
    Ok(Json(KeyPage { api_keys, next_cursor: paged.next }))
}

/// Issues an API key to the caller.
///
/// The whole key is in this answer and nowhere else.
#[utoipa::path(post, path = "/api/v1/api-keys", tag = "api-keys", operation_id = "createApiKey",
    request_body = NewKey, responses((status = 201, body = IssuedKey, headers(("Location" = String)))))]
pub(super) async fn create_key(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(new): Body<NewKey>,
) -> Result<Issued, Problem> {
    issued(door.services.identity.create_key(&ctx, new.read()?).await?)
}

/// 201 with where the new key is, and the key.
pub(super) type Issued = (StatusCode, [(http::HeaderName, HeaderValue); 1], Json<IssuedKey>);

/// The answer with a new key.
pub(super) fn issued((owned, secret): (OwnedKey, SecretString)) -> Result<Issued, Problem> {
    let location = HeaderValue::from_str(&format!("/api/v1/api-keys/{}", owned.key.id))
        .map_err(crate::error::Error::internal)?;
    let issued = IssuedKey { api_key: owned.into(), secret: secret.expose_secret().to_owned() };
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(issued)))
}

/// Shows one API key.
#[utoipa::path(get, path = "/api/v1/api-keys/{id}", tag = "api-keys", operation_id = "getApiKey",
    params(("id" = String, Path, description = "The key's id")),
    responses((status = 200, body = ApiKey)))]
pub(super) async fn get_key(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(id): Name,
) -> Result<Json<ApiKey>, Problem> {
    Ok(Json(door.services.identity.get_key(&ctx, &id).await?.into()))
}

/// Revokes an API key.
///
/// It stays listed; revoking it again changes nothing.
#[utoipa::path(delete, path = "/api/v1/api-keys/{id}", tag = "api-keys", operation_id = "revokeApiKey",
    params(("id" = String, Path, description = "The key's id")),
    responses((status = 200, body = ApiKey)))]
pub(super) async fn revoke_key(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(id): Name,
) -> Result<Json<ApiKey>, Problem> {
    Ok(Json(door.services.identity.revoke_key(&ctx, &id).await?.into()))
}
