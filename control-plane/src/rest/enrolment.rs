//! `/api/v1/join-tokens`, `/api/v1/authorities`, and which proxies belong.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::extract::{Actor, Body, Name};
use super::{Door, Problem};
use crate::enrolment::Shown;

/// What a proxy shall join with.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewJoinToken {
    /// The group that the proxy will belong to, a DNS label; `default` where it is absent.
    #[serde(default)]
    group: String,
    /// How long the token is good: 1 to 600; 600 where it is absent.
    ttl_seconds: Option<u32>,
}

/// A join token, shown this once.
#[derive(Serialize, ToSchema)]
pub(super) struct JoinToken {
    /// `wfj_…`; good once.
    token: String,
    group: String,
    expires_at: DateTime<Utc>,
}

/// Which proxy was shut out, or let in again.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ProxyId {
    id: Uuid,
}

/// An authority that certifies proxies and the gRPC port.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Authority {
    /// SHA-256 of its certificate.
    fingerprint: String,
    /// Its certificate in PEM form.
    certificate: String,
    created_at: DateTime<Utc>,
    /// When its last certificate ends; absent while it issues some.
    #[serde(skip_serializing_if = "Option::is_none")]
    retires_at: Option<DateTime<Utc>>,
}

impl From<Shown> for Authority {
    fn from(shown: Shown) -> Self {
        let Shown { fingerprint, pem, created_at, retires_at } = shown;
        Self { fingerprint, certificate: pem, created_at, retires_at }
    }
}

/// The authorities, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Authorities {
    authorities: Vec<Authority>,
}

/// Makes a token that one proxy joins with, once.
///
/// The whole token is in this answer and nowhere else.
#[utoipa::path(post, path = "/api/v1/join-tokens", tag = "proxies", operation_id = "createJoinToken",
    request_body = NewJoinToken, responses((status = 201, body = JoinToken)))]
pub(super) async fn create_join_token(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(new): Body<NewJoinToken>,
) -> Result<(StatusCode, Json<JoinToken>), Problem> {
    let life = new.ttl_seconds.map(|seconds| Duration::from_secs(seconds.into()));
    let made = door.services.enrolment.create_token(&ctx, &new.group, life).await?;
    let token = made.token.expose().to_owned();
    Ok((StatusCode::CREATED, Json(JoinToken { token, group: made.group, expires_at: made.expires_at })))
}

/// Shuts a proxy out: its streams end within seconds.
#[utoipa::path(post, path = "/api/v1/proxies/{proxy}/deny", tag = "proxies", operation_id = "denyProxy",
    params(("proxy" = String, Path, description = "Its id or its name")),
    responses((status = 200, body = ProxyId)))]
pub(super) async fn deny(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(proxy): Name,
) -> Result<Json<ProxyId>, Problem> {
    Ok(Json(ProxyId { id: door.services.enrolment.deny(&ctx, &proxy).await? }))
}

/// Lets a proxy that was shut out join again, with a new join token.
#[utoipa::path(post, path = "/api/v1/proxies/{proxy}/allow", tag = "proxies", operation_id = "allowProxy",
    params(("proxy" = String, Path, description = "Its id or its name")),
    responses((status = 200, body = ProxyId)))]
pub(super) async fn allow(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(proxy): Name,
) -> Result<Json<ProxyId>, Problem> {
    Ok(Json(ProxyId { id: door.services.enrolment.allow(&ctx, &proxy).await? }))
}

/// Makes a new authority. The one before is believed until its last certificate has ended.
#[utoipa::path(post, path = "/api/v1/authorities", tag = "proxies", operation_id = "rotateAuthority",
    responses((status = 201, body = Authorities)))]
pub(super) async fn rotate(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
) -> Result<(StatusCode, Json<Authorities>), Problem> {
    let authorities = door.services.enrolment.rotate(&ctx).await?;
    let authorities = authorities.into_iter().map(Authority::from).collect();
    Ok((StatusCode::CREATED, Json(Authorities { authorities })))
}
