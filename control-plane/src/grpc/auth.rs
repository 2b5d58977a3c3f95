//! `AuthService`: decode, one call of identity, encode.

use secrecy::ExposeSecret as _;
use tonic::{Request, Response, Status};
use waffles_core::FieldError;
use waffles_core::wire::{key_to_proto, limits_from_proto, principal_to_proto, time, timestamp};
use waffles_proto::auth::v1 as pb;
use waffles_proto::auth::v1::auth_service_server::AuthService;

use super::actor;
use crate::error::Error;
use crate::identity::{Identity, Login, NewApiKey, Tokens};
use crate::page::Page;
use crate::store::principals::OwnedKey;

pub(super) struct Auth {
    identity: Identity,
}

impl Auth {
    pub(super) fn new(identity: Identity) -> Self {
        Self { identity }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl AuthService for Auth {
    async fn login(&self, request: Request<pb::LoginRequest>) -> Answer<pb::LoginResponse> {
        let ctx = actor(&request)?;
        let pb::LoginRequest { email, password, tenant } = request.into_inner();
        let login = Login { tenant, email, password: password.into() };
        let (session, user) =
            self.identity.login(&ctx, login).await.map_err(|error| error.into_status(ctx.request_id()))?;
        let principal = Some(principal_to_proto(&user));
        Ok(Response::new(pb::LoginResponse { tokens: Some(tokens(&session)), principal }))
    }

    async fn refresh(&self, request: Request<pb::RefreshRequest>) -> Answer<pb::RefreshResponse> {
        let ctx = actor(&request)?;
        let token = request.into_inner().refresh_token.into();
        let session =
            self.identity.refresh(&ctx, &token).await.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::RefreshResponse { tokens: Some(tokens(&session)) }))
    }

    async fn logout(&self, request: Request<pb::LogoutRequest>) -> Answer<pb::LogoutResponse> {
        let ctx = actor(&request)?;
        let token = request.into_inner().refresh_token.into();
        self.identity.logout(&ctx, &token).await.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::LogoutResponse {}))
    }

    async fn get_self(&self, request: Request<pb::GetSelfRequest>) -> Answer<pb::GetSelfResponse> {
        let ctx = actor(&request)?;
        Ok(Response::new(pb::GetSelfResponse {
            principal: Some(principal_to_proto(ctx.principal())),
            permissions: ctx.permissions().iter().map(|permission| permission.as_str().to_owned()).collect(),
            api_key_id: ctx.key().map(|key| key.id.clone()).unwrap_or_default(),
        }))
    }

    async fn create_api_key(
        &self,
        request: Request<pb::CreateApiKeyRequest>,
    ) -> Answer<pb::CreateApiKeyResponse> {
        let ctx = actor(&request)?;
        let message = request.into_inner();
        let created = async { self.identity.create_key(&ctx, new_key(message)?).await };
        let (owned, secret) = created.await.map_err(|error| error.into_status(ctx.request_id()))?;
        let secret = secret.expose_secret().to_owned();
        Ok(Response::new(pb::CreateApiKeyResponse { api_key: Some(shown(&owned)), secret }))
    }

    async fn list_api_keys(
        &self,
        request: Request<pb::ListApiKeysRequest>,
    ) -> Answer<pb::ListApiKeysResponse> {
        let ctx = actor(&request)?;
        let pb::ListApiKeysRequest { page_size, cursor, include_ended } = request.into_inner();
        let page = Page { size: page_size, cursor };
        let listed = self.identity.list_keys(&ctx, include_ended, &page).await;
        let keys = listed.map_err(|error| error.into_status(ctx.request_id()))?;
        let api_keys = keys.items.iter().map(shown).collect();
        Ok(Response::new(pb::ListApiKeysResponse { api_keys, next_cursor: keys.next }))
    }

    async fn get_api_key(&self, request: Request<pb::GetApiKeyRequest>) -> Answer<pb::GetApiKeyResponse> {
        let ctx = actor(&request)?;
        let found = self.identity.get_key(&ctx, &request.into_inner().id).await;
        let key = found.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::GetApiKeyResponse { api_key: Some(shown(&key)) }))
    }

    async fn revoke_api_key(
        &self,
        request: Request<pb::RevokeApiKeyRequest>,
    ) -> Answer<pb::RevokeApiKeyResponse> {
        let ctx = actor(&request)?;
        let revoked = self.identity.revoke_key(&ctx, &request.into_inner().id).await;
        let key = revoked.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::RevokeApiKeyResponse { api_key: Some(shown(&key)) }))
    }
}

/// A time that cannot be read must not become "no end".
pub(super) fn new_key(message: pb::CreateApiKeyRequest) -> Result<NewApiKey, Error> {
    let mut problems = Vec::new();
    let mut end = |field: &str, given: Option<prost_types::Timestamp>| {
        let read = time(given);
        if given.is_some() && read.is_none() {
            problems.push(FieldError::new(field, "is out of range"));
        }
        read
    };
    let (expires_at, not_after) =
        (end("expires_at", message.expires_at), end("not_after", message.not_after));
    let limits = match limits_from_proto(message.limits.unwrap_or_default()) {
        Ok(limits) => limits,
        Err(wrong) => {
            problems.extend(wrong);
            waffles_core::credential::KeyLimits::default()
        }
    };
    if !problems.is_empty() {
        return Err(Error::Invalid(problems));
    }
    Ok(NewApiKey { name: message.name, limits, expires_at, not_after })
}

pub(super) fn shown(owned: &OwnedKey) -> pb::ApiKey {
    let last_used_at = owned.last_used_at.map(timestamp);
    pb::ApiKey { last_used_at, ..key_to_proto(&owned.key, &owned.owner_name) }
}

pub(super) fn tokens(session: &Tokens) -> pb::Tokens {
    pb::Tokens {
        access_token: session.access.expose_secret().to_owned(),
        access_expires_at: Some(timestamp(session.access_expires_at)),
        refresh_token: session.refresh.expose_secret().to_owned(),
        refresh_expires_at: Some(timestamp(session.refresh_expires_at)),
    }
}
