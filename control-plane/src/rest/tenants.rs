//! `/api/v1/tenants`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use http::{HeaderValue, StatusCode, header};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Actor, Body, Name, Params};
use super::{Door, Problem};
use crate::tenants as core;

const PAGE_MOST: u32 = 500;

/// How much a tenant may have. What is null or absent is not limited.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TenantLimits {
    /// Registered servers.
    max_servers: Option<u64>,
    /// Active users and service accounts.
    max_principals: Option<u64>,
    /// API keys that may still be used.
    max_api_keys: Option<u64>,
}

/// One tenant.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Tenant {
    /// A DNS label, never changed.
    id: String,
    description: String,
    created_at: DateTime<Utc>,
    /// Since when it is suspended; null while it is not.
    suspended_at: Option<DateTime<Utc>>,
    limits: TenantLimits,
}

/// How much there is in a tenant.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TenantUsage {
    servers: u64,
    namespaces: u64,
    /// Active users and service accounts.
    principals: u64,
    /// Those that may still be used.
    api_keys: u64,
}

/// A tenant, and how much there is in it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TenantDetail {
    #[serde(flatten)]
    tenant: Tenant,
    usage: TenantUsage,
}

/// A tenant to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTenant {
    /// A DNS label.
    id: String,
    #[serde(default)]
    description: String,
    /// The e-mail address of its first admin.
    admin_email: String,
    /// Absent: 1,000 servers, 10,000 principals and 50,000 API keys.
    #[serde(default)]
    limits: Option<TenantLimits>,
}

/// A new tenant, and the way in for its first admin.
#[derive(Serialize, ToSchema)]
pub(super) struct FoundedTenant {
    tenant: Tenant,
    admin_email: String,
    /// With it the admin sets a password once (`wfs_…`). Shown this once.
    password_token: String,
    token_expires_at: DateTime<Utc>,
}

/// A page of tenants.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TenantPage {
    tenants: Vec<Tenant>,
    /// Where the next page starts; absent on the last page.
    #[serde(skip_serializing_if = "String::is_empty")]
    next_cursor: String,
}

impl From<core::Limits> for TenantLimits {
    fn from(core::Limits { max_servers, max_principals, max_api_keys }: core::Limits) -> Self {
        Self { max_servers, max_principals, max_api_keys }
    }
}

impl From<TenantLimits> for core::Limits {
    fn from(TenantLimits { max_servers, max_principals, max_api_keys }: TenantLimits) -> Self {
        Self { max_servers, max_principals, max_api_keys }
    }
}

impl From<core::Tenant> for Tenant {
    fn from(tenant: core::Tenant) -> Self {
        Self {
            id: tenant.id,
            description: tenant.description,
            created_at: tenant.created_at,
            suspended_at: tenant.suspended_at,
            limits: tenant.limits.into(),
        }
    }
}

/// Which page of tenants.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query in the OpenAPI document; `Params` reads it")]
pub(super) struct TenantQuery {
    /// How many at the most: 1 to 500; 100 where it is absent.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Lists tenants by id, one page at a time.
#[utoipa::path(get, path = "/api/v1/tenants", tag = "tenants", operation_id = "listTenants",
    params(TenantQuery), responses((status = 200, body = TenantPage)))]
pub(super) async fn list(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    mut params: Params,
) -> Result<Json<TenantPage>, Problem> {
    let page = params.page(PAGE_MOST);
    params.done()?;
    let paged = door.services.tenants.list(&ctx, &page).await?;
    let tenants = paged.items.into_iter().map(Tenant::from).collect();
    Ok(Json(TenantPage { tenants, next_cursor: paged.next }))
}

/// Makes a tenant with its namespace `default` and its first admin.
///
/// An id that is taken is a 409.
#[utoipa::path(post, path = "/api/v1/tenants", tag = "tenants", operation_id = "createTenant",
    request_body = NewTenant,
    responses((status = 201, body = FoundedTenant, headers(("Location" = String)))))]
pub(super) async fn create(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(new): Body<NewTenant>,
) -> Result<(StatusCode, [(http::HeaderName, HeaderValue); 1], Json<FoundedTenant>), Problem> {
    let NewTenant { id, description, admin_email, limits } = new;
    let new = core::NewTenant { id, description, admin_email, limits: limits.map(Into::into) };
    let founded = door.services.tenants.create(&ctx, new).await?;
    let location = HeaderValue::from_str(&format!("/api/v1/tenants/{}", founded.tenant.id))
        .map_err(crate::error::Error::internal)?;
    let answer = FoundedTenant {
        tenant: founded.tenant.into(),
        admin_email: founded.admin_email,
        password_token: founded.token.secret.expose_secret().to_owned(),
        token_expires_at: founded.token.expires_at,
    };
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(answer)))
}

/// Shows one tenant, and how much there is in it.
#[utoipa::path(get, path = "/api/v1/tenants/{id}", tag = "tenants", operation_id = "getTenant",
    params(("id" = String, Path, description = "The tenant's id")),
    responses((status = 200, body = TenantDetail)))]
pub(super) async fn get(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(id): Name,
) -> Result<Json<TenantDetail>, Problem> {
    let (tenant, usage) = door.services.tenants.get(&ctx, &id).await?;
    let core::Usage { servers, namespaces, principals, api_keys } = usage;
    let usage = TenantUsage { servers, namespaces, principals, api_keys };
    Ok(Json(TenantDetail { tenant: tenant.into(), usage }))
}

/// Has every principal of a tenant refused everywhere, within a second.
///
/// `default` is a 400.
#[utoipa::path(post, path = "/api/v1/tenants/{id}/suspend", tag = "tenants", operation_id = "suspendTenant",
    params(("id" = String, Path, description = "The tenant's id")),
    responses((status = 200, body = Tenant)))]
pub(super) async fn suspend(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(id): Name,
) -> Result<Json<Tenant>, Problem> {
    Ok(Json(door.services.tenants.set_suspended(&ctx, &id, true).await?.into()))
}

/// Lets the principals of a suspended tenant in again.
#[utoipa::path(post, path = "/api/v1/tenants/{id}/resume", tag = "tenants", operation_id = "resumeTenant",
    params(("id" = String, Path, description = "The tenant's id")),
    responses((status = 200, body = Tenant)))]
pub(super) async fn resume(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(id): Name,
) -> Result<Json<Tenant>, Problem> {
    Ok(Json(door.services.tenants.set_suspended(&ctx, &id, false).await?.into()))
}

/// Replaces what a tenant may have.
///
/// What there is already stays, also where it is more.
#[utoipa::path(put, path = "/api/v1/tenants/{id}/limits", tag = "tenants", operation_id = "setTenantLimits",
    params(("id" = String, Path, description = "The tenant's id")),
    request_body = TenantLimits, responses((status = 200, body = Tenant)))]
pub(super) async fn set_limits(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(id): Name,
    Body(limits): Body<TenantLimits>,
) -> Result<Json<Tenant>, Problem> {
    Ok(Json(door.services.tenants.set_limits(&ctx, &id, limits.into()).await?.into()))
}
