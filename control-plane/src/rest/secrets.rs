//! `/api/v1/secrets/keys`: the keys that secrets are sealed with.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::extract::Actor;
use super::{Door, Problem};
use crate::secrets::keys::KeyStatus;

/// A key that secrets are sealed with, without itself.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SealKey {
    /// What it seals: `rest` (what is secret in the database) or `sessions` (session ids).
    purpose: String,
    /// Its id among those of its purpose, 1 to 255.
    id: u8,
    /// `next` (will seal once everybody knows it), `sealing`, or `retired` (opens what it has sealed).
    stage: &'static str,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// How many values in the database it has sealed.
    values: u64,
}

/// The keys.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SealKeys {
    /// Oldest first within a purpose.
    keys: Vec<SealKey>,
}

fn shown(keys: Vec<KeyStatus>) -> Json<SealKeys> {
    let key = |KeyStatus { purpose, id, stage, created_at, values }| SealKey {
        purpose,
        id,
        stage,
        created_at,
        values,
    };
    Json(SealKeys { keys: keys.into_iter().map(key).collect() })
}

/// Shows the keys, and how far a rotation has come.
#[utoipa::path(get, path = "/api/v1/secrets/keys", tag = "secrets", operation_id = "listSealKeys",
    responses((status = 200, body = SealKeys)))]
pub(super) async fn list(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
) -> Result<Json<SealKeys>, Problem> {
    Ok(shown(door.services.keys.list(&ctx).await?))
}

/// Starts a rotation: new keys take over within seconds, and the old ones are forgotten when nothing needs them.
#[utoipa::path(post, path = "/api/v1/secrets/keys/rotate", tag = "secrets", operation_id = "rotateSealKeys",
    responses((status = 202, body = SealKeys)))]
pub(super) async fn rotate(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
) -> Result<(StatusCode, Json<SealKeys>), Problem> {
    Ok((StatusCode::ACCEPTED, shown(door.services.keys.rotate(&ctx).await?)))
}
