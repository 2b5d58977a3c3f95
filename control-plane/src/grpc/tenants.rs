//! `TenantService`: decode, one call of the tenants, encode.

use secrecy::ExposeSecret as _;
use tonic::{Request, Response, Status};
use waffles_core::wire::timestamp;
use waffles_proto::tenant::v1 as pb;
use waffles_proto::tenant::v1::tenant_service_server::TenantService;

use super::actor;
use crate::page::Page;
use crate::tenants::{Limits, NewTenant, Tenant, Tenants};

pub(super) struct Estates {
    tenants: Tenants,
}

impl Estates {
    pub(super) fn new(tenants: Tenants) -> Self {
        Self { tenants }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl TenantService for Estates {
    async fn create_tenant(
        &self,
        request: Request<pb::CreateTenantRequest>,
    ) -> Answer<pb::CreateTenantResponse> {
        let ctx = actor(&request)?;
        let pb::CreateTenantRequest { id, description, admin_email, limits } = request.into_inner();
        let new = NewTenant { id, description, admin_email, limits: limits.map(limits_of) };
        let founded =
            self.tenants.create(&ctx, new).await.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::CreateTenantResponse {
            tenant: shown(founded.tenant),
            admin_email: founded.admin_email,
            password_token: founded.token.secret.expose_secret().to_owned(),
            token_expires_at: Some(timestamp(founded.token.expires_at)),
        }))
    }

    async fn list_tenants(
        &self,
        request: Request<pb::ListTenantsRequest>,
    ) -> Answer<pb::ListTenantsResponse> {
        let ctx = actor(&request)?;
        let pb::ListTenantsRequest { page_size, cursor } = request.into_inner();
        let listed = self.tenants.list(&ctx, &Page { size: page_size, cursor }).await;
        let page = listed.map_err(|error| error.into_status(ctx.request_id()))?;
        let tenants = page.items.into_iter().filter_map(shown).collect();
        Ok(Response::new(pb::ListTenantsResponse { tenants, next_cursor: page.next }))
    }

    async fn get_tenant(&self, request: Request<pb::GetTenantRequest>) -> Answer<pb::GetTenantResponse> {
        let ctx = actor(&request)?;
        let found = self.tenants.get(&ctx, &request.into_inner().id).await;
        let (tenant, usage) = found.map_err(|error| error.into_status(ctx.request_id()))?;
        let usage = pb::TenantUsage {
            servers: usage.servers,
            namespaces: usage.namespaces,
            principals: usage.principals,
            api_keys: usage.api_keys,
        };
        Ok(Response::new(pb::GetTenantResponse { tenant: shown(tenant), usage: Some(usage) }))
    }

    async fn suspend_tenant(
        &self,
        request: Request<pb::SuspendTenantRequest>,
    ) -> Answer<pb::SuspendTenantResponse> {
        let ctx = actor(&request)?;
        let suspended = self.tenants.set_suspended(&ctx, &request.into_inner().id, true).await;
        let tenant = suspended.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::SuspendTenantResponse { tenant: shown(tenant) }))
    }

    async fn resume_tenant(
        &self,
        request: Request<pb::ResumeTenantRequest>,
    ) -> Answer<pb::ResumeTenantResponse> {
        let ctx = actor(&request)?;
        let resumed = self.tenants.set_suspended(&ctx, &request.into_inner().id, false).await;
        let tenant = resumed.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::ResumeTenantResponse { tenant: shown(tenant) }))
    }

    async fn set_tenant_limits(
        &self,
        request: Request<pb::SetTenantLimitsRequest>,
    ) -> Answer<pb::SetTenantLimitsResponse> {
        let ctx = actor(&request)?;
        let pb::SetTenantLimitsRequest { id, limits } = request.into_inner();
        // No limits at all, where they were meant to be given, would be the widest ones.
        let limits = limits.map(limits_of).ok_or_else(|| {
            crate::error::Error::invalid("limits", "is missing").into_status(ctx.request_id())
        })?;
        let set = self.tenants.set_limits(&ctx, &id, limits).await;
        let tenant = set.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::SetTenantLimitsResponse { tenant: shown(tenant) }))
    }
}

fn limits_of(message: pb::TenantLimits) -> Limits {
    let pb::TenantLimits { max_servers, max_principals, max_api_keys } = message;
    Limits { max_servers, max_principals, max_api_keys }
}

#[expect(clippy::unnecessary_wraps, reason = "the form that answers take it in")]
fn shown(tenant: Tenant) -> Option<pb::Tenant> {
    let Limits { max_servers, max_principals, max_api_keys } = tenant.limits;
    Some(pb::Tenant {
        id: tenant.id,
        description: tenant.description,
        created_at: Some(timestamp(tenant.created_at)),
        suspended_at: tenant.suspended_at.map(timestamp),
        limits: Some(pb::TenantLimits { max_servers, max_principals, max_api_keys }),
    })
}
