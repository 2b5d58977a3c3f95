//! `ProxyService`: decode, one call of `proxies`, encode.

use tonic::{Request, Response, Status};
use waffles_core::wire;
use waffles_proto::proxy::v1 as pb;
use waffles_proto::proxy::v1::proxy_service_server::ProxyService;

use super::actor;
use crate::authz::OpCtx;
use crate::page::Page;
use crate::proxies::{Proxies, Proxy};

pub(super) struct Fleet {
    proxies: Proxies,
}

impl Fleet {
    pub(super) fn new(proxies: Proxies) -> Self {
        Self { proxies }
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
    }
}
