//! `/api/v1/sessions` and `/api/v1/auth/password`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use http::StatusCode;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::extract::{Actor, Body, Name, Params};
use super::identity::Tokens;
use super::{Door, Problem};
use crate::store::sessions;

/// A session that lives.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LiveSession)]
pub(super) struct Session {
    id: Uuid,
    user_id: Uuid,
    /// The user's e-mail address.
    user_name: String,
    created_at: DateTime<Utc>,
    /// When its last tokens were issued.
    last_used_at: DateTime<Utc>,
    /// When it ends, if it is not used before.
    expires_at: DateTime<Utc>,
    /// Address that it was opened from.
    client_ip: String,
    /// Whether it is the one that asks.
    current: bool,
}

impl Session {
    fn new(session: sessions::Session, asking: Option<Uuid>) -> Self {
        let sessions::Session { id, user_id, user_name, created_at, last_used_at, expires_at, client_ip } =
            session;
        let current = asking == Some(id);
        Self { id, user_id, user_name, created_at, last_used_at, expires_at, client_ip, current }
    }
}

/// Sessions, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SessionList {
    sessions: Vec<Session>,
}

/// How many sessions were ended.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Revoked {
    revoked: usize,
}

/// A new password, and the present one.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PasswordChange {
    #[schema(value_type = String, write_only)]
    present_password: SecretString,
    /// 12 to 1024 bytes.
    #[schema(value_type = String, write_only)]
    password: SecretString,
}

/// A new password, and the token that sets it.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PasswordReset {
    /// The token (`wfs_…`).
    #[schema(value_type = String, write_only)]
    token: SecretString,
    /// 12 to 1024 bytes.
    #[schema(value_type = String, write_only)]
    password: SecretString,
}

/// Whose sessions.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query in the OpenAPI document; `Params` reads it")]
pub(super) struct SessionQuery {
    /// A user's id or e-mail address; the caller's own where it is absent.
    user: Option<String>,
}

/// Lists the sessions that live: the caller's own, or with `principals:read` another user's.
#[utoipa::path(get, path = "/api/v1/sessions", tag = "auth", operation_id = "listSessions",
    params(SessionQuery), responses((status = 200, body = SessionList)))]
pub(super) async fn list(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    mut params: Params,
) -> Result<Json<SessionList>, Problem> {
    let user = params.one("user").unwrap_or_default();
    params.done()?;
    let found = door.services.identity.list_sessions(&ctx, &user).await?;
    let sessions = found.into_iter().map(|session| Session::new(session, ctx.session())).collect();
    Ok(Json(SessionList { sessions }))
}

/// Ends every session of the caller, or with `principals:write` of another user.
///
/// Their access tokens are refused everywhere within a second.
#[utoipa::path(delete, path = "/api/v1/sessions", tag = "auth", operation_id = "revokeSessions",
    params(SessionQuery), responses((status = 200, body = Revoked)))]
pub(super) async fn revoke_all(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    mut params: Params,
) -> Result<Json<Revoked>, Problem> {
    let user = params.one("user").unwrap_or_default();
    params.done()?;
    Ok(Json(Revoked { revoked: door.services.identity.revoke_sessions(&ctx, &user).await? }))
}

/// Ends a session: one of the caller's own, or with `principals:write` any.
#[utoipa::path(delete, path = "/api/v1/sessions/{id}", tag = "auth", operation_id = "revokeSession",
    params(("id" = String, Path, description = "The session's id")), responses((status = 204)))]
pub(super) async fn revoke(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(id): Name,
) -> Result<StatusCode, Problem> {
    door.services.identity.revoke_session(&ctx, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Changes the caller's own password.
///
/// Every session and access token of before ends; the answer is a new session. Needs an access token: a key changes no
/// password.
#[utoipa::path(post, path = "/api/v1/auth/password", tag = "auth", operation_id = "changePassword",
    request_body = PasswordChange, responses((status = 200, body = Tokens)))]
pub(super) async fn change_password(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(PasswordChange { present_password, password }): Body<PasswordChange>,
) -> Result<Json<Tokens>, Problem> {
    let (tokens, _) = door.services.identity.change_password(&ctx, present_password, password).await?;
    Ok(Json(tokens.into()))
}

/// Sets a password with a token, which is used up.
///
/// For the invited, and for those whose password was lost. Sessions and access tokens of before end.
#[utoipa::path(post, path = "/api/v1/auth/password/reset", tag = "auth", operation_id = "setPassword",
    request_body = PasswordReset, responses((status = 204)))]
pub(super) async fn set_password(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(PasswordReset { token, password }): Body<PasswordReset>,
) -> Result<StatusCode, Problem> {
    door.services.identity.set_password(&ctx, &token, password).await?;
    Ok(StatusCode::NO_CONTENT)
}
