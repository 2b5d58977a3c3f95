//! `RoleService` and `GrantService`: decode, one call of identity, encode.

use tonic::{Request, Response, Status};
use waffles_core::policy::{Permission, Role};
use waffles_core::wire::{scope_from_proto, scope_to_proto, timestamp};
use waffles_proto::auth::v1 as pb;
use waffles_proto::auth::v1::grant_holder::Who;
use waffles_proto::auth::v1::grant_service_server::GrantService;
use waffles_proto::auth::v1::role_service_server::RoleService;

use super::actor;
use crate::error::Error;
use crate::identity::{GrantTo, GrantsOf, Identity, NewGrant, NewRole};
use crate::page::Page;
use crate::store::grants::{Grant, Holder, StoredRole};

#[derive(Clone)]
pub(super) struct Access {
    identity: Identity,
}

impl Access {
    pub(super) fn new(identity: Identity) -> Self {
        Self { identity }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl RoleService for Access {
    async fn create_role(&self, request: Request<pb::CreateRoleRequest>) -> Answer<pb::CreateRoleResponse> {
        let ctx = actor(&request)?;
        let pb::CreateRoleRequest { name, description, permissions } = request.into_inner();
        let created = self.identity.create_role(&ctx, NewRole { name, description, permissions }).await;
        let made = created.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::CreateRoleResponse { role: Some(role(&made)) }))
    }

    async fn list_roles(&self, request: Request<pb::ListRolesRequest>) -> Answer<pb::ListRolesResponse> {
        let ctx = actor(&request)?;
        let listed = self.identity.list_roles(&ctx).await;
        let own = listed.map_err(|error| error.into_status(ctx.request_id()))?;
        let roles = Role::ALL.into_iter().map(built_in).chain(own.iter().map(role)).collect();
        Ok(Response::new(pb::ListRolesResponse { roles }))
    }

    async fn get_role(&self, request: Request<pb::GetRoleRequest>) -> Answer<pb::GetRoleResponse> {
        let ctx = actor(&request)?;
        let name = request.into_inner().name;
        let found = match Role::parse(&name) {
            Some(role) => built_in(role),
            None => {
                let found = self.identity.get_role(&ctx, &name).await;
                role(&found.map_err(|error| error.into_status(ctx.request_id()))?)
            }
        };
        Ok(Response::new(pb::GetRoleResponse { role: Some(found) }))
    }

    async fn update_role(&self, request: Request<pb::UpdateRoleRequest>) -> Answer<pb::UpdateRoleResponse> {
        let ctx = actor(&request)?;
        let pb::UpdateRoleRequest { name, description, permissions, version } = request.into_inner();
        let new = NewRole { name, description, permissions };
        let updated = self.identity.update_role(&ctx, new, version).await;
        let now = updated.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::UpdateRoleResponse { role: Some(role(&now)) }))
    }

    async fn delete_role(&self, request: Request<pb::DeleteRoleRequest>) -> Answer<pb::DeleteRoleResponse> {
        let ctx = actor(&request)?;
        let deleted = self.identity.delete_role(&ctx, &request.into_inner().name).await;
        deleted.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::DeleteRoleResponse {}))
    }
}

#[tonic::async_trait]
impl GrantService for Access {
    async fn create_grant(
        &self,
        request: Request<pb::CreateGrantRequest>,
    ) -> Answer<pb::CreateGrantResponse> {
        let ctx = actor(&request)?;
        let message = request.into_inner();
        let created = async { self.identity.create_grant(&ctx, new_grant(message)?).await };
        let made = created.await.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::CreateGrantResponse { grant: Some(grant(&made)) }))
    }

    async fn list_grants(&self, request: Request<pb::ListGrantsRequest>) -> Answer<pb::ListGrantsResponse> {
        let ctx = actor(&request)?;
        let pb::ListGrantsRequest { page_size, cursor, principal, group, role } = request.into_inner();
        let page = Page { size: page_size, cursor };
        let listed = self.identity.list_grants(&ctx, &GrantsOf { principal, group, role }, &page).await;
        let listed = listed.map_err(|error| error.into_status(ctx.request_id()))?;
        let grants = listed.items.iter().map(grant).collect();
        Ok(Response::new(pb::ListGrantsResponse { grants, next_cursor: listed.next }))
    }

    async fn delete_grant(
        &self,
        request: Request<pb::DeleteGrantRequest>,
    ) -> Answer<pb::DeleteGrantResponse> {
        let ctx = actor(&request)?;
        let deleted = self.identity.delete_grant(&ctx, &request.into_inner().id).await;
        deleted.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::DeleteGrantResponse {}))
    }
}

/// A place that is not said must not become the whole tenant.
fn new_grant(message: pb::CreateGrantRequest) -> Result<NewGrant, Error> {
    let holder = message.holder.and_then(|holder| holder.who);
    let to = match holder.ok_or_else(|| Error::invalid("holder", "is missing"))? {
        Who::Principal(name) => GrantTo::Principal(name),
        Who::Group(name) => GrantTo::Group(name),
    };
    let scope = message.scope.and_then(scope_from_proto);
    let scope = scope.ok_or_else(|| Error::invalid("scope", "is missing"))?;
    Ok(NewGrant { role: message.role, to, scope })
}

fn role(stored: &StoredRole) -> pb::Role {
    let role = &stored.role;
    pb::Role {
        id: role.id.to_string(),
        name: role.name.clone(),
        description: role.description.clone(),
        permissions: role.permissions.iter().map(|p| p.as_str().to_owned()).collect(),
        built_in: false,
        version: stored.version,
        created_at: Some(timestamp(stored.created_at)),
        updated_at: Some(timestamp(stored.updated_at)),
    }
}

fn built_in(role: Role) -> pb::Role {
    pb::Role {
        name: role.as_str().to_owned(),
        description: role.description().to_owned(),
        permissions: role.permissions().iter().map(Permission::as_str).map(str::to_owned).collect(),
        built_in: true,
        ..pb::Role::default()
    }
}

fn grant(grant: &Grant) -> pb::Grant {
    let name = grant.holder_name.clone();
    let (who, id) = match grant.holder {
        Holder::Principal(id) => (Who::Principal(name), id),
        Holder::Group(id) => (Who::Group(name), id),
    };
    pb::Grant {
        id: grant.id.to_string(),
        role: grant.role.clone(),
        holder: Some(pb::GrantHolder { who: Some(who) }),
        holder_id: id.to_string(),
        scope: Some(scope_to_proto(&grant.scope)),
        created_at: Some(timestamp(grant.created_at)),
        created_by: grant.created_by.map(|id| id.to_string()).unwrap_or_default(),
    }
}
