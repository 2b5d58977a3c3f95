//! `KeyService`: API keys for proxies that meet them, where there are too many to send.

use std::time::Duration;

use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};
use waffles_core::credential::KeyHash;
use waffles_core::wire;
use waffles_proto::discovery::v1 as pb;
use waffles_proto::discovery::v1::key_service_server::KeyService;

use super::{Parts, peer};
use crate::discovery::Discovery;
use crate::identity::Identity;

const MOST_HASHES: usize = 1000;
/// Questions that are answered at the same time: a few of the database's connections, so that proxies under a flood leave
/// the others to operators. More of them wait, and are refused after a time.
const AT_ONCE: usize = 4;
const WAIT: Duration = Duration::from_secs(1);

/// `KeyService`.
pub(super) struct Keys {
    identity: Identity,
    line: Semaphore,
}

impl Keys {
    pub(super) fn new(parts: &Parts) -> Self {
        Self { identity: parts.services.identity.clone(), line: Semaphore::new(AT_ONCE) }
    }
}

#[tonic::async_trait]
impl KeyService for Keys {
    async fn find_keys(
        &self,
        request: Request<pb::FindKeysRequest>,
    ) -> Result<Response<pb::FindKeysResponse>, Status> {
        let peer = peer(&request)?;
        let hashes = request.into_inner().hashes;
        if !(1..=MOST_HASHES).contains(&hashes.len()) {
            return Err(Status::invalid_argument(format!("hashes: must be 1 to {MOST_HASHES}")));
        }
        let hashes: Vec<KeyHash> = hashes
            .into_iter()
            .map(|hash| hash.try_into().map_err(|_| Status::invalid_argument("hashes: must have 32 bytes")))
            .collect::<Result<_, _>>()?;
        let turn = tokio::time::timeout(WAIT, self.line.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(Status::unavailable("too many questions for keys at once; ask again"));
        };
        let (head, keys) = self.identity.find_keys(&peer, &hashes).await?;
        Ok(Response::new(pb::FindKeysResponse {
            lineage: Discovery::lineage_of(&head.lineage, peer.group()),
            revision: head.revision,
            keys: keys.iter().map(|(key, hash)| wire::found_key(key, hash)).collect(),
        }))
    }
}
