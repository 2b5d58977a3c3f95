//! `SecretService`: decode, one call of `secrets::keys`, encode.

use tonic::{Request, Response, Status};
use waffles_core::wire::timestamp;
use waffles_proto::secret::v1 as pb;
use waffles_proto::secret::v1::secret_service_server::SecretService;

use super::actor;
use crate::secrets::keys::{KeyStatus, Keys};

pub(super) struct Seals(Keys);

impl Seals {
    pub(super) fn new(keys: Keys) -> Self {
        Self(keys)
    }
}

#[tonic::async_trait]
impl SecretService for Seals {
    async fn list_keys(
        &self,
        request: Request<pb::ListKeysRequest>,
    ) -> Result<Response<pb::ListKeysResponse>, Status> {
        let ctx = actor(&request)?;
        let keys = self.0.list(&ctx).await.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::ListKeysResponse { keys: keys.into_iter().map(shown).collect() }))
    }

    async fn rotate_keys(
        &self,
        request: Request<pb::RotateKeysRequest>,
    ) -> Result<Response<pb::RotateKeysResponse>, Status> {
        let ctx = actor(&request)?;
        let keys = self.0.rotate(&ctx).await.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::RotateKeysResponse { keys: keys.into_iter().map(shown).collect() }))
    }
}

fn shown(key: KeyStatus) -> pb::Key {
    let KeyStatus { purpose, id, stage, created_at, values } = key;
    let created_at = Some(timestamp(created_at));
    pb::Key { purpose, id: id.into(), stage: stage.to_owned(), created_at, values }
}
