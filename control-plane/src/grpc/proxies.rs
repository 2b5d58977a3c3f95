//! `ProxyService`: decode, one call of `proxies` or `enrolment`, encode.

use std::time::Duration;

use tonic::{Request, Response, Status};
use waffles_core::wire;
use waffles_proto::proxy::v1 as pb;
use waffles_proto::proxy::v1::proxy_service_server::ProxyService;

use super::actor;
use crate::authz::OpCtx;
use crate::enrolment::{Enrolment, Shown};
use crate::error::Error;
use crate::page::Page;
use crate::proxies::{Proxies, Proxy};
use crate::services::Services;

pub(super) struct Fleet {
    proxies: Proxies,
    enrolment: Enrolment,
}

impl Fleet {
    pub(super) fn new(services: &Services) -> Self {
        Self { proxies: services.proxies.clone(), enrolment: services.enrolment.clone() }
    }

    async fn revision(&self, ctx: &OpCtx) -> Result<u64, Status> {
        self.proxies.revision().await.map_err(|error| error.into_status(ctx.request_id()))
    }
}

#[tonic::async_trait]
impl ProxyService for Fleet {
    async fn list_proxies(
        &self,
        request: Request<pb::ListProxiesRequest>,
    ) -> Result<Response<pb::ListProxiesResponse>, Status> {
        let ctx = actor(&request)?;
        let pb::ListProxiesRequest { page_size, cursor } = request.into_inner();
        let page = self
            .proxies
            .list(&ctx, &Page { size: page_size, cursor })
            .await
            .map_err(|error| error.into_status(ctx.request_id()))?;
        let proxies = page.items.into_iter().map(shown).collect();
        let revision = self.revision(&ctx).await?;
        Ok(Response::new(pb::ListProxiesResponse { proxies, revision, next_cursor: page.next }))
    }

    async fn get_proxy(
        &self,
        request: Request<pb::GetProxyRequest>,
    ) -> Result<Response<pb::GetProxyResponse>, Status> {
        let ctx = actor(&request)?;
        let proxy = self
            .proxies
            .get(&ctx, &request.into_inner().proxy)
            .await
            .map_err(|error| error.into_status(ctx.request_id()))?;
        let revision = self.revision(&ctx).await?;
        Ok(Response::new(pb::GetProxyResponse { proxy: Some(shown(proxy)), revision }))
    }

    async fn create_join_token(
        &self,
        request: Request<pb::CreateJoinTokenRequest>,
    ) -> Result<Response<pb::CreateJoinTokenResponse>, Status> {
        let ctx = actor(&request)?;
        let pb::CreateJoinTokenRequest { group, ttl } = request.into_inner();
        let make = async {
            let life = ttl.map(Duration::try_from).transpose();
            let life = life.map_err(|_| Error::invalid("ttl", "must not be negative"))?;
            self.enrolment.create_token(&ctx, &group, life).await
        };
        let new = make.await.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::CreateJoinTokenResponse {
            token: new.token.expose().to_owned(),
            group: new.group,
            expires_at: Some(wire::timestamp(new.expires_at)),
        }))
    }

    async fn deny_proxy(
        &self,
        request: Request<pb::DenyProxyRequest>,
    ) -> Result<Response<pb::DenyProxyResponse>, Status> {
        let ctx = actor(&request)?;
        let denied = self.enrolment.deny(&ctx, &request.into_inner().proxy).await;
        let id = denied.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::DenyProxyResponse { id: id.to_string() }))
    }

    async fn allow_proxy(
        &self,
        request: Request<pb::AllowProxyRequest>,
    ) -> Result<Response<pb::AllowProxyResponse>, Status> {
        let ctx = actor(&request)?;
        let allowed = self.enrolment.allow(&ctx, &request.into_inner().proxy).await;
        let id = allowed.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::AllowProxyResponse { id: id.to_string() }))
    }

    async fn rotate_authority(
        &self,
        request: Request<pb::RotateAuthorityRequest>,
    ) -> Result<Response<pb::RotateAuthorityResponse>, Status> {
        let ctx = actor(&request)?;
        let rotated = self.enrolment.rotate(&ctx).await;
        let authorities = rotated.map_err(|error| error.into_status(ctx.request_id()))?;
        let authorities = authorities.into_iter().map(authority).collect();
        Ok(Response::new(pb::RotateAuthorityResponse { authorities }))
    }
}

fn authority(shown: Shown) -> pb::Authority {
    pb::Authority {
        fingerprint: shown.fingerprint,
        certificate: shown.pem,
        created_at: Some(wire::timestamp(shown.created_at)),
        retires_at: shown.retires_at.map(wire::timestamp),
    }
}

fn shown(proxy: Proxy) -> pb::Proxy {
    pb::Proxy {
        id: proxy.id.to_string(),
        name: proxy.name,
        group: proxy.group,
        version: proxy.version,
        connected: proxy.connected,
        last_seen_at: Some(wire::timestamp(proxy.last_seen_at)),
        acknowledged_revision: proxy.acknowledged_revision,
        lag: proxy.lag,
        last_nack: proxy.last_nack.map(|nack| pb::Nack {
            revision: nack.revision,
            at: Some(wire::timestamp(nack.at)),
            rejections: nack
                .rejections
                .into_iter()
                .map(|r| pb::Rejection { kind: r.kind, name: r.name, reason: r.reason })
                .collect(),
        }),
        open_streams: proxy.health.open_streams,
        spool_depth: proxy.health.spool_depth,
        lost_records: proxy.lost_records,
        certificate_expires_at: proxy.certificate_ends_at.map(wire::timestamp),
        denied: proxy.denied,
    }
}
