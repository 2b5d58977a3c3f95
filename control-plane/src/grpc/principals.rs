//! `PrincipalService`: decode, one call of identity, encode.

use chrono::TimeDelta;
use secrecy::ExposeSecret as _;
use tonic::{Request, Response, Status};
use waffles_core::policy::Scope;
use waffles_core::principal::PrincipalKind;
use waffles_core::wire::{scope_to_proto, timestamp};
use waffles_proto::auth::v1 as pb;
use waffles_proto::auth::v1::principal_service_server::PrincipalService;
use waffles_proto::policy::v1 as policy_pb;

use super::actor;
use super::auth::{new_key, shown, tokens};
use crate::error::Error;
use crate::identity::{Identity, PasswordToken};
use crate::page::Page;
use crate::store::accounts::Account;
use crate::store::groups::{Group, GroupMember};

pub(super) struct Principals {
    identity: Identity,
}

impl Principals {
    pub(super) fn new(identity: Identity) -> Self {
        Self { identity }
    }
}

type Answer<T> = Result<Response<T>, Status>;

const USER: PrincipalKind = PrincipalKind::User;
const SERVICE: PrincipalKind = PrincipalKind::ServiceAccount;

#[tonic::async_trait]
impl PrincipalService for Principals {
    async fn create_user(&self, request: Request<pb::CreateUserRequest>) -> Answer<pb::CreateUserResponse> {
        let ctx = actor(&request)?;
        let pb::CreateUserRequest { email, display_name, valid_for } = request.into_inner();
        let created =
            async { self.identity.create_user(&ctx, &email, &display_name, span(valid_for)?).await };
        let (user, token) = created.await.map_err(|error| error.into_status(ctx.request_id()))?;
        let (user, password_token) = (Some(account(&user)), Some(token_of(&token)));
        Ok(Response::new(pb::CreateUserResponse { user, password_token }))
    }

    async fn list_users(&self, request: Request<pb::ListUsersRequest>) -> Answer<pb::ListUsersResponse> {
        let ctx = actor(&request)?;
        let pb::ListUsersRequest { page_size, cursor, include_inactive } = request.into_inner();
        let page = Page { size: page_size, cursor };
        let listed = self.identity.list_accounts(&ctx, USER, include_inactive, &page).await;
        let listed = listed.map_err(|error| error.into_status(ctx.request_id()))?;
        let users = listed.items.iter().map(account).collect();
        Ok(Response::new(pb::ListUsersResponse { users, next_cursor: listed.next }))
    }

    async fn get_user(&self, request: Request<pb::GetUserRequest>) -> Answer<pb::GetUserResponse> {
        let ctx = actor(&request)?;
        let found = self.identity.get_account(&ctx, USER, &request.into_inner().user).await;
        let user = found.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::GetUserResponse { user: Some(account(&user)) }))
    }

    async fn set_user_active(
        &self,
        request: Request<pb::SetUserActiveRequest>,
    ) -> Answer<pb::SetUserActiveResponse> {
        let ctx = actor(&request)?;
        let pb::SetUserActiveRequest { user, active } = request.into_inner();
        let changed = self.identity.set_account_active(&ctx, USER, &user, active).await;
        let user = changed.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::SetUserActiveResponse { user: Some(account(&user)) }))
    }

    async fn create_password_token(
        &self,
        request: Request<pb::CreatePasswordTokenRequest>,
    ) -> Answer<pb::CreatePasswordTokenResponse> {
        let ctx = actor(&request)?;
        let pb::CreatePasswordTokenRequest { user, valid_for } = request.into_inner();
        let made = async { self.identity.create_password_token(&ctx, &user, span(valid_for)?).await };
        let token = made.await.map_err(|error| error.into_status(ctx.request_id()))?;
        let password_token = Some(token_of(&token));
        Ok(Response::new(pb::CreatePasswordTokenResponse { password_token }))
    }

    async fn set_password(
        &self,
        request: Request<pb::SetPasswordRequest>,
    ) -> Answer<pb::SetPasswordResponse> {
        let ctx = actor(&request)?;
        let pb::SetPasswordRequest { token, password } = request.into_inner();
        let set = self.identity.set_password(&ctx, &token.into(), password.into()).await;
        set.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::SetPasswordResponse {}))
    }

    async fn change_password(
        &self,
        request: Request<pb::ChangePasswordRequest>,
    ) -> Answer<pb::ChangePasswordResponse> {
        let ctx = actor(&request)?;
        let pb::ChangePasswordRequest { present_password, password } = request.into_inner();
        let changed = self.identity.change_password(&ctx, present_password.into(), password.into()).await;
        let (session, _) = changed.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::ChangePasswordResponse { tokens: Some(tokens(&session)) }))
    }

    async fn create_service_account(
        &self,
        request: Request<pb::CreateServiceAccountRequest>,
    ) -> Answer<pb::CreateServiceAccountResponse> {
        let ctx = actor(&request)?;
        let pb::CreateServiceAccountRequest { name, display_name } = request.into_inner();
        let created = self.identity.create_service_account(&ctx, &name, &display_name).await;
        let made = created.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::CreateServiceAccountResponse { service_account: Some(account(&made)) }))
    }

    async fn list_service_accounts(
        &self,
        request: Request<pb::ListServiceAccountsRequest>,
    ) -> Answer<pb::ListServiceAccountsResponse> {
        let ctx = actor(&request)?;
        let pb::ListServiceAccountsRequest { page_size, cursor, include_inactive } = request.into_inner();
        let page = Page { size: page_size, cursor };
        let listed = self.identity.list_accounts(&ctx, SERVICE, include_inactive, &page).await;
        let listed = listed.map_err(|error| error.into_status(ctx.request_id()))?;
        let service_accounts = listed.items.iter().map(account).collect();
        Ok(Response::new(pb::ListServiceAccountsResponse { service_accounts, next_cursor: listed.next }))
    }

    async fn get_service_account(
        &self,
        request: Request<pb::GetServiceAccountRequest>,
    ) -> Answer<pb::GetServiceAccountResponse> {
        let ctx = actor(&request)?;
        let found = self.identity.get_account(&ctx, SERVICE, &request.into_inner().service_account).await;
        let found = found.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::GetServiceAccountResponse { service_account: Some(account(&found)) }))
    }

    async fn set_service_account_active(
        &self,
        request: Request<pb::SetServiceAccountActiveRequest>,
    ) -> Answer<pb::SetServiceAccountActiveResponse> {
        let ctx = actor(&request)?;
        let pb::SetServiceAccountActiveRequest { service_account, active } = request.into_inner();
        let changed = self.identity.set_account_active(&ctx, SERVICE, &service_account, active).await;
        let changed = changed.map_err(|error| error.into_status(ctx.request_id()))?;
        let service_account = Some(account(&changed));
        Ok(Response::new(pb::SetServiceAccountActiveResponse { service_account }))
    }

    async fn create_service_account_key(
        &self,
        request: Request<pb::CreateServiceAccountKeyRequest>,
    ) -> Answer<pb::CreateServiceAccountKeyResponse> {
        let ctx = actor(&request)?;
        let pb::CreateServiceAccountKeyRequest { service_account, name, limits, expires_at, not_after } =
            request.into_inner();
        let message = pb::CreateApiKeyRequest { name, limits, expires_at, not_after };
        let created = async { self.identity.create_key_for(&ctx, &service_account, new_key(message)?).await };
        let (owned, secret) = created.await.map_err(|error| error.into_status(ctx.request_id()))?;
        let secret = secret.expose_secret().to_owned();
        Ok(Response::new(pb::CreateServiceAccountKeyResponse { api_key: Some(shown(&owned)), secret }))
    }

    async fn create_group(
        &self,
        request: Request<pb::CreateGroupRequest>,
    ) -> Answer<pb::CreateGroupResponse> {
        let ctx = actor(&request)?;
        let pb::CreateGroupRequest { name, description } = request.into_inner();
        let created = self.identity.create_group(&ctx, &name, &description).await;
        let made = created.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::CreateGroupResponse { group: Some(group(&made)) }))
    }

    async fn list_groups(&self, request: Request<pb::ListGroupsRequest>) -> Answer<pb::ListGroupsResponse> {
        let ctx = actor(&request)?;
        let pb::ListGroupsRequest { page_size, cursor } = request.into_inner();
        let listed = self.identity.list_groups(&ctx, &Page { size: page_size, cursor }).await;
        let listed = listed.map_err(|error| error.into_status(ctx.request_id()))?;
        let groups = listed.items.iter().map(group).collect();
        Ok(Response::new(pb::ListGroupsResponse { groups, next_cursor: listed.next }))
    }

    async fn get_group(&self, request: Request<pb::GetGroupRequest>) -> Answer<pb::GetGroupResponse> {
        let ctx = actor(&request)?;
        let found = self.identity.get_group(&ctx, &request.into_inner().name).await;
        let (found, members) = found.map_err(|error| error.into_status(ctx.request_id()))?;
        let members = members.into_iter().map(member).collect();
        Ok(Response::new(pb::GetGroupResponse { group: Some(group(&found)), members }))
    }

    async fn delete_group(
        &self,
        request: Request<pb::DeleteGroupRequest>,
    ) -> Answer<pb::DeleteGroupResponse> {
        let ctx = actor(&request)?;
        let deleted = self.identity.delete_group(&ctx, &request.into_inner().name).await;
        deleted.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::DeleteGroupResponse {}))
    }

    async fn add_group_member(
        &self,
        request: Request<pb::AddGroupMemberRequest>,
    ) -> Answer<pb::AddGroupMemberResponse> {
        let ctx = actor(&request)?;
        let pb::AddGroupMemberRequest { group: name, member } = request.into_inner();
        let added = self.identity.add_group_member(&ctx, &name, &member).await;
        let now = added.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::AddGroupMemberResponse { group: Some(group(&now)) }))
    }

    async fn remove_group_member(
        &self,
        request: Request<pb::RemoveGroupMemberRequest>,
    ) -> Answer<pb::RemoveGroupMemberResponse> {
        let ctx = actor(&request)?;
        let pb::RemoveGroupMemberRequest { group: name, member } = request.into_inner();
        let removed = self.identity.remove_group_member(&ctx, &name, &member).await;
        let now = removed.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::RemoveGroupMemberResponse { group: Some(group(&now)) }))
    }

    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Answer<pb::ListSessionsResponse> {
        let ctx = actor(&request)?;
        let listed = self.identity.list_sessions(&ctx, &request.into_inner().user).await;
        let listed = listed.map_err(|error| error.into_status(ctx.request_id()))?;
        let sessions = listed.into_iter().map(|session| pb::Session {
            current: ctx.session() == Some(session.id),
            id: session.id.to_string(),
            user_id: session.user_id.to_string(),
            user_name: session.user_name,
            created_at: Some(timestamp(session.created_at)),
            last_used_at: Some(timestamp(session.last_used_at)),
            expires_at: Some(timestamp(session.expires_at)),
            client_ip: session.client_ip,
        });
        Ok(Response::new(pb::ListSessionsResponse { sessions: sessions.collect() }))
    }

    async fn revoke_session(
        &self,
        request: Request<pb::RevokeSessionRequest>,
    ) -> Answer<pb::RevokeSessionResponse> {
        let ctx = actor(&request)?;
        let revoked = self.identity.revoke_session(&ctx, &request.into_inner().id).await;
        revoked.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::RevokeSessionResponse {}))
    }

    async fn revoke_sessions(
        &self,
        request: Request<pb::RevokeSessionsRequest>,
    ) -> Answer<pb::RevokeSessionsResponse> {
        let ctx = actor(&request)?;
        let revoked = self.identity.revoke_sessions(&ctx, &request.into_inner().user).await;
        let revoked = revoked.map_err(|error| error.into_status(ctx.request_id()))?;
        let revoked = u32::try_from(revoked).unwrap_or(u32::MAX);
        Ok(Response::new(pb::RevokeSessionsResponse { revoked }))
    }
}

/// A span that cannot be read must not become the usual one.
fn span(message: Option<prost_types::Duration>) -> Result<Option<TimeDelta>, Error> {
    let unreadable = || Error::invalid("valid_for", "is out of range");
    let read = |span: prost_types::Duration| {
        let nanos = u32::try_from(span.nanos).map_err(|_| unreadable())?;
        TimeDelta::new(span.seconds, nanos).ok_or_else(unreadable)
    };
    message.map(read).transpose()
}

fn token_of(token: &PasswordToken) -> pb::PasswordToken {
    pb::PasswordToken {
        secret: token.secret.expose_secret().to_owned(),
        expires_at: Some(timestamp(token.expires_at)),
    }
}

fn account(account: &Account) -> pb::Account {
    let principal = &account.principal;
    let held = |role: &str, scope: &Scope| policy_pb::HeldRole {
        role: role.to_owned(),
        scope: Some(scope_to_proto(scope)),
    };
    let wide = principal.roles.iter().map(|role| held(role, &Scope::Tenant));
    let roles = wide.chain(principal.grants.iter().map(|grant| held(&grant.role, &grant.scope)));
    pb::Account {
        id: principal.id.to_string(),
        tenant: principal.tenant.clone(),
        name: principal.name.clone(),
        display_name: account.display_name.clone(),
        active: principal.active,
        invited: principal.kind == USER && !account.has_password,
        groups: principal.groups.clone(),
        roles: roles.collect(),
        created_at: Some(timestamp(account.created_at)),
    }
}

fn group(group: &Group) -> pb::Group {
    pb::Group {
        id: group.id.to_string(),
        tenant: group.tenant.clone(),
        name: group.name.clone(),
        description: group.description.clone(),
        member_count: u32::try_from(group.members).unwrap_or(u32::MAX),
        created_at: Some(timestamp(group.created_at)),
    }
}

fn member(member: GroupMember) -> pb::GroupMember {
    pb::GroupMember {
        id: member.id.to_string(),
        name: member.name,
        service_account: member.kind == SERVICE.as_str(),
        active: member.active,
        added_at: Some(timestamp(member.added_at)),
    }
}
