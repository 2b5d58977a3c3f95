//! `/api/v1/users` and `/api/v1/service-accounts`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, TimeDelta, Utc};
use http::{HeaderName, HeaderValue, StatusCode, header};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;
use waffles_core::policy::Scope;
use waffles_core::principal::PrincipalKind;

use super::access::Place;
use super::extract::{Actor, Body, Name, Params};
use super::identity::{IssuedKey, NewKey};
use super::{Door, Problem};
use crate::error::Error;
use crate::identity;
use crate::store::accounts;

const PAGE_MOST: u32 = 500;
const USER: PrincipalKind = PrincipalKind::User;
const SERVICE: PrincipalKind = PrincipalKind::ServiceAccount;

/// A role and where it is held.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HeldRole {
    /// Its name.
    role: String,
    scope: Place,
}

impl HeldRole {
    pub(super) fn new(role: &str, scope: &Scope) -> Self {
        Self { role: role.to_owned(), scope: scope.into() }
    }
}

/// A user or service account.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Account {
    id: Uuid,
    tenant: String,
    /// E-mail address of a user, name of a service account.
    name: String,
    display_name: String,
    /// A deactivated account is refused everywhere.
    active: bool,
    /// A user who has not set a password yet.
    invited: bool,
    /// Names of its groups.
    groups: Vec<String>,
    /// What it holds, itself or through its groups.
    roles: Vec<HeldRole>,
    created_at: DateTime<Utc>,
}

impl From<accounts::Account> for Account {
    fn from(account: accounts::Account) -> Self {
        let principal = account.principal;
        let wide = principal.roles.iter().map(|role| HeldRole::new(role, &Scope::Tenant));
        let narrow = principal.grants.iter().map(|held| HeldRole::new(&held.role, &held.scope));
        Self {
            roles: wide.chain(narrow).collect(),
            invited: principal.kind == USER && !account.has_password,
            id: principal.id,
            tenant: principal.tenant,
            name: principal.name,
            display_name: account.display_name,
            active: principal.active,
            groups: principal.groups,
            created_at: account.created_at,
        }
    }
}

/// A page of users or service accounts.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AccountPage {
    /// By name.
    accounts: Vec<Account>,
    /// Where the next page starts; absent on the last page.
    #[serde(skip_serializing_if = "String::is_empty")]
    next_cursor: String,
}

/// A token that sets a password once. It is shown this once.
#[derive(Serialize, ToSchema)]
pub(super) struct PasswordToken {
    /// The token (`wfs_…`).
    secret: String,
    expires_at: DateTime<Utc>,
}

impl From<identity::PasswordToken> for PasswordToken {
    fn from(token: identity::PasswordToken) -> Self {
        Self { secret: token.secret.expose_secret().to_owned(), expires_at: token.expires_at }
    }
}

/// A user to invite.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewUser {
    /// The e-mail address; case does not matter.
    email: String,
    /// What people call it: at most 100 characters.
    #[serde(default)]
    display_name: String,
    /// How many seconds the token is good: 60 to 86400; 86400 where it is absent.
    valid_for: Option<u32>,
}

/// The new user, and the token with which a password is set.
#[derive(Serialize, ToSchema)]
pub(super) struct Invited {
    user: Account,
    password_token: PasswordToken,
}

/// How long a token shall be good.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenLife {
    /// How many seconds: 60 to 86400; 86400 where it is absent.
    valid_for: Option<u32>,
}

/// A service account to make.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewServiceAccount {
    /// A DNS label: 1 to 63 of a-z, 0-9 and inner hyphens.
    name: String,
    /// What people call it: at most 100 characters.
    #[serde(default)]
    display_name: String,
}

/// Which accounts, and which page of them.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes the query in the OpenAPI document; `Params` reads it")]
pub(super) struct AccountQuery {
    /// Deactivated ones too.
    include_inactive: Option<bool>,
    /// How many at the most: 1 to 500; 100 where it is absent.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

fn life(seconds: Option<u32>) -> Option<TimeDelta> {
    seconds.map(|seconds| TimeDelta::seconds(seconds.into()))
}

async fn list(
    door: &Door,
    Actor(ctx): Actor,
    mut params: Params,
    kind: PrincipalKind,
) -> Result<Json<AccountPage>, Problem> {
    let inactive =
        params.read_as("include_inactive", "true or false", |text| text.parse().ok()).unwrap_or(false);
    let page = params.page(PAGE_MOST);
    params.done()?;
    let paged = door.services.identity.list_accounts(&ctx, kind, inactive, &page).await?;
    let accounts = paged.items.into_iter().map(Account::from).collect();
    Ok(Json(AccountPage { accounts, next_cursor: paged.next }))
}

async fn set_active(
    door: &Door,
    Actor(ctx): Actor,
    kind: PrincipalKind,
    name: &str,
    active: bool,
) -> Result<Json<Account>, Problem> {
    Ok(Json(door.services.identity.set_account_active(&ctx, kind, name, active).await?.into()))
}

fn location(path: &str) -> Result<[(HeaderName, HeaderValue); 1], Problem> {
    Ok([(header::LOCATION, HeaderValue::from_str(path).map_err(Error::internal)?)])
}

/// Lists users by address.
#[utoipa::path(get, path = "/api/v1/users", tag = "users", operation_id = "listUsers",
    params(AccountQuery), responses((status = 200, body = AccountPage)))]
pub(super) async fn list_users(
    State(door): State<Arc<Door>>,
    actor: Actor,
    params: Params,
) -> Result<Json<AccountPage>, Problem> {
    list(&door, actor, params, USER).await
}

/// Invites a user, who sets a password with the token of the answer.
///
/// It holds nothing yet.
#[utoipa::path(post, path = "/api/v1/users", tag = "users", operation_id = "createUser",
    request_body = NewUser, responses((status = 201, body = Invited, headers(("Location" = String)))))]
pub(super) async fn create_user(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(NewUser { email, display_name, valid_for }): Body<NewUser>,
) -> Result<(StatusCode, [(HeaderName, HeaderValue); 1], Json<Invited>), Problem> {
    let (user, token) =
        door.services.identity.create_user(&ctx, &email, &display_name, life(valid_for)).await?;
    let location = location(&format!("/api/v1/users/{}", user.principal.id))?;
    let invited = Invited { user: user.into(), password_token: token.into() };
    Ok((StatusCode::CREATED, location, Json(invited)))
}

/// Shows a user.
#[utoipa::path(get, path = "/api/v1/users/{name}", tag = "users", operation_id = "getUser",
    params(("name" = String, Path, description = "The user's id or e-mail address")),
    responses((status = 200, body = Account)))]
pub(super) async fn get_user(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
) -> Result<Json<Account>, Problem> {
    Ok(Json(door.services.identity.get_account(&ctx, USER, &name).await?.into()))
}

/// Deactivates a user.
///
/// Its sessions end, and its credentials are refused everywhere within a second. The last holder of `admin` on the tenant
/// cannot be deactivated.
#[utoipa::path(post, path = "/api/v1/users/{name}/deactivate", tag = "users", operation_id = "deactivateUser",
    params(("name" = String, Path, description = "The user's id or e-mail address")),
    responses((status = 200, body = Account)))]
pub(super) async fn deactivate_user(
    State(door): State<Arc<Door>>,
    actor: Actor,
    Name(name): Name,
) -> Result<Json<Account>, Problem> {
    set_active(&door, actor, USER, &name, false).await
}

/// Takes a user up again.
///
/// Its keys are good again then, its sessions are not.
#[utoipa::path(post, path = "/api/v1/users/{name}/reactivate", tag = "users", operation_id = "reactivateUser",
    params(("name" = String, Path, description = "The user's id or e-mail address")),
    responses((status = 200, body = Account)))]
pub(super) async fn reactivate_user(
    State(door): State<Arc<Door>>,
    actor: Actor,
    Name(name): Name,
) -> Result<Json<Account>, Problem> {
    set_active(&door, actor, USER, &name, true).await
}

/// Makes a token with which a user sets a new password once.
///
/// The one made before is void. Nobody makes one for a user who holds more than they do.
#[utoipa::path(post, path = "/api/v1/users/{name}/password-token", tag = "users",
    operation_id = "createPasswordToken",
    params(("name" = String, Path, description = "The user's id or e-mail address")),
    request_body = TokenLife, responses((status = 201, body = PasswordToken)))]
pub(super) async fn create_password_token(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
    Body(TokenLife { valid_for }): Body<TokenLife>,
) -> Result<(StatusCode, Json<PasswordToken>), Problem> {
    let token = door.services.identity.create_password_token(&ctx, &name, life(valid_for)).await?;
    Ok((StatusCode::CREATED, Json(token.into())))
}

/// Lists service accounts by name.
#[utoipa::path(get, path = "/api/v1/service-accounts", tag = "service-accounts",
    operation_id = "listServiceAccounts",
    params(AccountQuery), responses((status = 200, body = AccountPage)))]
pub(super) async fn list_services(
    State(door): State<Arc<Door>>,
    actor: Actor,
    params: Params,
) -> Result<Json<AccountPage>, Problem> {
    list(&door, actor, params, SERVICE).await
}

/// Makes a service account.
///
/// It holds nothing yet, and has no key.
#[utoipa::path(post, path = "/api/v1/service-accounts", tag = "service-accounts",
    operation_id = "createServiceAccount",
    request_body = NewServiceAccount,
    responses((status = 201, body = Account, headers(("Location" = String)))))]
pub(super) async fn create_service(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Body(NewServiceAccount { name, display_name }): Body<NewServiceAccount>,
) -> Result<(StatusCode, [(HeaderName, HeaderValue); 1], Json<Account>), Problem> {
    let made = door.services.identity.create_service_account(&ctx, &name, &display_name).await?;
    let location = location(&format!("/api/v1/service-accounts/{}", made.principal.name))?;
    Ok((StatusCode::CREATED, location, Json(made.into())))
}

/// Shows a service account.
#[utoipa::path(get, path = "/api/v1/service-accounts/{name}", tag = "service-accounts",
    operation_id = "getServiceAccount",
    params(("name" = String, Path, description = "Its id or name")),
    responses((status = 200, body = Account)))]
pub(super) async fn get_service(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
) -> Result<Json<Account>, Problem> {
    Ok(Json(door.services.identity.get_account(&ctx, SERVICE, &name).await?.into()))
}

/// Deactivates a service account.
///
/// Its keys are refused everywhere within a second.
#[utoipa::path(post, path = "/api/v1/service-accounts/{name}/deactivate", tag = "service-accounts",
    operation_id = "deactivateServiceAccount",
    params(("name" = String, Path, description = "Its id or name")),
    responses((status = 200, body = Account)))]
pub(super) async fn deactivate_service(
    State(door): State<Arc<Door>>,
    actor: Actor,
    Name(name): Name,
) -> Result<Json<Account>, Problem> {
    set_active(&door, actor, SERVICE, &name, false).await
}

/// Takes a service account up again.
#[utoipa::path(post, path = "/api/v1/service-accounts/{name}/reactivate", tag = "service-accounts",
    operation_id = "reactivateServiceAccount",
    params(("name" = String, Path, description = "Its id or name")),
    responses((status = 200, body = Account)))]
pub(super) async fn reactivate_service(
    State(door): State<Arc<Door>>,
    actor: Actor,
    Name(name): Name,
) -> Result<Json<Account>, Problem> {
    set_active(&door, actor, SERVICE, &name, true).await
}

/// Issues an API key to a service account.
///
/// The whole key is in this answer and nowhere else. Nobody issues one to an account that holds more than they do.
#[utoipa::path(post, path = "/api/v1/service-accounts/{name}/api-keys", tag = "service-accounts",
    operation_id = "createServiceAccountKey",
    params(("name" = String, Path, description = "Its id or name")),
    request_body = NewKey, responses((status = 201, body = IssuedKey, headers(("Location" = String)))))]
pub(super) async fn create_service_key(
    State(door): State<Arc<Door>>,
    Actor(ctx): Actor,
    Name(name): Name,
    Body(new): Body<NewKey>,
) -> Result<(StatusCode, [(HeaderName, HeaderValue); 1], Json<IssuedKey>), Problem> {
    let issued = door.services.identity.create_key_for(&ctx, &name, new.read()?).await?;
    super::identity::issued(issued)
}
