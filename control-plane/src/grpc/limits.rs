//! `LimitService`: decode, one call of the limits, encode.

use tonic::{Request, Response, Status};
use waffles_core::limit::LimitSpec;
use waffles_core::wire::{limit_kind_to_proto, limit_spec_from_proto, limit_spec_to_proto, timestamp};
use waffles_proto::policy::v1 as pb;
use waffles_proto::policy::v1::limit_service_server::LimitService;

use super::actor;
use crate::error::Error;
use crate::limits::{LimitUse, Limits, StoredLimit, TenantUse};

pub(super) struct Bounds {
    limits: Limits,
}

impl Bounds {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl LimitService for Bounds {
    async fn create_limit(
        &self,
        request: Request<pb::CreateLimitRequest>,
    ) -> Answer<pb::CreateLimitResponse> {
        let ctx = actor(&request)?;
        let spec = request.into_inner().spec;
        let made = async { self.limits.create(&ctx, read(spec)?).await };
        let made = made.await.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::CreateLimitResponse { limit: Some(shown(&made)) }))
    }

    async fn list_limits(&self, request: Request<pb::ListLimitsRequest>) -> Answer<pb::ListLimitsResponse> {
        let ctx = actor(&request)?;
        let listed = self.limits.list(&ctx).await.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::ListLimitsResponse { limits: listed.iter().map(shown).collect() }))
    }

    async fn get_limit(&self, request: Request<pb::GetLimitRequest>) -> Answer<pb::GetLimitResponse> {
        let ctx = actor(&request)?;
        let found = self.limits.get(&ctx, &request.into_inner().name).await;
        let found = found.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::GetLimitResponse { limit: Some(shown(&found)) }))
    }

    async fn update_limit(
        &self,
        request: Request<pb::UpdateLimitRequest>,
    ) -> Answer<pb::UpdateLimitResponse> {
        let ctx = actor(&request)?;
        let pb::UpdateLimitRequest { spec, version } = request.into_inner();
        let now = async { self.limits.update(&ctx, read(spec)?, version).await };
        let now = now.await.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::UpdateLimitResponse { limit: Some(shown(&now)) }))
    }

    async fn delete_limit(
        &self,
        request: Request<pb::DeleteLimitRequest>,
    ) -> Answer<pb::DeleteLimitResponse> {
        let ctx = actor(&request)?;
        let removed = self.limits.remove(&ctx, &request.into_inner().name).await;
        removed.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::DeleteLimitResponse {}))
    }

    async fn get_usage(&self, request: Request<pb::GetUsageRequest>) -> Answer<pb::GetUsageResponse> {
        let ctx = actor(&request)?;
        let report = self.limits.usage(&ctx).await.map_err(|error| error.into_status(ctx.request_id()))?;
        let tenant = report.tenant.into_iter().map(|TenantUse { what, used, amount }| pb::TenantUse {
            what: what.to_owned(),
            used,
            amount,
        });
        Ok(Response::new(pb::GetUsageResponse {
            limits: report.limits.into_iter().map(used).collect(),
            tenant: tenant.collect(),
        }))
    }
}

fn read(spec: Option<pb::LimitSpec>) -> Result<LimitSpec, Error> {
    let spec = spec.ok_or_else(|| Error::invalid("spec", "is missing"))?;
    limit_spec_from_proto(spec).map_err(Error::Invalid)
}

fn shown(stored: &StoredLimit) -> pb::StoredLimit {
    pb::StoredLimit {
        id: stored.limit.id.to_string(),
        spec: Some(limit_spec_to_proto(&stored.limit.spec)),
        version: stored.version,
        created_at: Some(timestamp(stored.created_at)),
        updated_at: Some(timestamp(stored.updated_at)),
    }
}

fn used(of: LimitUse) -> pb::LimitUsage {
    let LimitUse { spec, principal, key, server, tool, used, noted_at } = of;
    pb::LimitUsage {
        limit: spec.name,
        kind: limit_kind_to_proto(spec.kind).into(),
        amount: spec.amount,
        window_seconds: spec.window_seconds,
        principal,
        key,
        server,
        tool,
        used,
        noted_at: noted_at.map(timestamp),
    }
}
