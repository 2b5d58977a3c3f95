//! The REST door: the route table, the OpenAPI document made from the same code, and the checks that every
//! request passes. Handlers decode, call one service function and encode.

mod access;
mod enrolment;
mod extract;
mod groups;
mod health;
mod identity;
mod limits;
mod namespaces;
mod observe;
mod policy;
mod principals;
mod problem;
mod secrets;
mod servers;
mod sessions;
mod tenants;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::{HeaderValue, Method, StatusCode, header};
use tokio::time::Instant;
use utoipa::OpenApi as _;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{ApiKey, ApiKeyValue};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use waffles_runtime::admin::Gates;
use waffles_runtime::host::Hosts;

use crate::authz::{self, Rule};
use crate::services::Services;

use problem::Problem;

/// When to ask again for what is usually back at once.
const SOON: Duration = Duration::from_secs(1);
const OPENAPI_PATH: &str = "/api/v1/openapi.json";

/// What handlers and checks see.
struct Door {
    services: Services,
    hosts: Hosts,
    gates: Gates,
    started: Instant,
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Waffles control plane",
        description = "Registry, identity and audit of a Waffles gateway. Every refusal is a problem document \
            (RFC 9457) that names the wrong fields and carries the request id.",
        license(name = "MIT", identifier = "MIT")
    ),
    tags(
        (name = "auth", description = "Sessions and passwords"),
        (name = "users", description = "People"),
        (name = "service-accounts", description = "Programs"),
        (name = "groups", description = "Those who hold the same"),
        (name = "access", description = "Roles and grants"),
        (name = "api-keys", description = "Keys for programs"),
        (name = "servers", description = "Registered MCP servers"),
        (name = "policy", description = "Rules, their versions, and what they come to"),
        (name = "limits", description = "How much may be done in a time, or at once"),
        (name = "tenants", description = "Tenants, for those who run the whole Waffles"),
        (name = "audit", description = "What happened"),
        (name = "proxies", description = "Running data planes"),
        (name = "secrets", description = "The keys that secrets are sealed with"),
        (name = "status", description = "How the control plane is doing")
    ),
    components(schemas(problem::ProblemBody))
)]
struct Document;

/// The REST door. Connections put the peer's address into the requests' extensions as
/// `axum::extract::ConnectInfo<SocketAddr>`; without it log-ins of all addresses share one limit, and keys
/// that are bound to addresses are refused.
pub fn router(services: Services, hosts: Hosts, gates: Gates) -> Router {
    let door = Arc::new(Door { services, hosts, gates, started: Instant::now() });
    let (routes, document) = parts();
    let text: Arc<str> = print(&document).into();
    routes
        .route(OPENAPI_PATH, get(move || openapi_json(text.clone())))
        .route_layer(from_fn_with_state(door.clone(), extract::guard))
        // After the guard, which knows of routes only: what is no route says so.
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(from_fn_with_state(door.clone(), extract::frame))
        .with_state(door)
}

/// The OpenAPI document as it is published.
pub fn openapi() -> String {
    print(&parts().1)
}

fn parts() -> (Router<Arc<Door>>, OpenApi) {
    let (routes, mut document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(observe::health))
        .routes(routes!(observe::ready))
        .routes(routes!(identity::login))
        .routes(routes!(identity::refresh))
        .routes(routes!(identity::logout))
        .routes(routes!(identity::me))
        .routes(routes!(sessions::change_password))
        .routes(routes!(sessions::set_password))
        .routes(routes!(sessions::list, sessions::revoke_all))
        .routes(routes!(sessions::revoke))
        .routes(routes!(principals::list_users, principals::create_user))
        .routes(routes!(principals::get_user))
        .routes(routes!(principals::deactivate_user))
        .routes(routes!(principals::reactivate_user))
        .routes(routes!(principals::create_password_token))
        .routes(routes!(principals::list_services, principals::create_service))
        .routes(routes!(principals::get_service))
        .routes(routes!(principals::deactivate_service))
        .routes(routes!(principals::reactivate_service))
        .routes(routes!(principals::create_service_key))
        .routes(routes!(groups::list, groups::create))
        .routes(routes!(groups::get, groups::delete))
        .routes(routes!(groups::add_member, groups::remove_member))
        .routes(routes!(access::list_roles, access::create_role))
        .routes(routes!(access::get_role, access::update_role, access::delete_role))
        .routes(routes!(access::list_grants, access::create_grant))
        .routes(routes!(access::delete_grant))
        .routes(routes!(servers::list, servers::create))
        .routes(routes!(servers::get, servers::update, servers::delete))
        .routes(routes!(servers::enable))
        .routes(routes!(servers::disable))
        .routes(routes!(health::get, health::check))
        .routes(routes!(namespaces::list, namespaces::create))
        .routes(routes!(namespaces::get, namespaces::update, namespaces::delete))
        .routes(routes!(namespaces::add_server, namespaces::remove_server))
        .routes(routes!(identity::list_keys, identity::create_key))
        .routes(routes!(identity::get_key, identity::revoke_key))
        .routes(routes!(policy::list, policy::create, policy::replace))
        .routes(routes!(policy::get, policy::update, policy::delete))
        .routes(routes!(policy::versions))
        .routes(routes!(policy::version))
        .routes(routes!(policy::rollback))
        .routes(routes!(policy::explain))
        .routes(routes!(policy::diff))
        .routes(routes!(limits::list, limits::create))
        .routes(routes!(limits::get, limits::update, limits::delete))
        .routes(routes!(limits::usage))
        .routes(routes!(tenants::list, tenants::create))
        .routes(routes!(tenants::get))
        .routes(routes!(tenants::suspend))
        .routes(routes!(tenants::resume))
        .routes(routes!(tenants::set_limits))
        .routes(routes!(observe::search))
        .routes(routes!(observe::export))
        .routes(routes!(observe::list_proxies))
        .routes(routes!(observe::get_proxy))
        .routes(routes!(secrets::list))
        .routes(routes!(secrets::rotate))
        .routes(routes!(enrolment::deny))
        .routes(routes!(enrolment::allow))
        .routes(routes!(enrolment::create_join_token))
        .routes(routes!(enrolment::rotate))
        .routes(routes!(observe::status))
        .split_for_parts();
    complete(&mut document);
    (routes, document)
}

/// Adds to every operation what is the same everywhere or stands in the table of rights: the form of refusals,
/// the credentials, the permission.
fn complete(document: &mut OpenApi) {
    let components = document.components.get_or_insert_default();
    let bearer =
        HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("API key or access token"));
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer.build()));
    let key = ApiKeyValue::with_description("x-api-key", "API key");
    components.add_security_scheme("api_key", SecurityScheme::ApiKey(ApiKey::Header(key)));
    for (path, item) in &mut document.paths.paths {
        for (method, operation) in [
            (Method::GET, &mut item.get),
            (Method::POST, &mut item.post),
            (Method::PUT, &mut item.put),
            (Method::DELETE, &mut item.delete),
        ] {
            if let Some(operation) = operation {
                describe(operation, authz::route_rule(&method, path));
            }
        }
    }
}

fn describe(operation: &mut Operation, rule: Option<Rule>) {
    // A response must have a description (OpenAPI 3.1, 4.8.17); the name of its status says enough.
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response {
            let named = status.parse().ok().and_then(|status: StatusCode| status.canonical_reason());
            response.description = named.unwrap_or_default().to_owned();
        }
    }
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let refusal = ResponseBuilder::new().description("Refused").content(problem::PROBLEM_TYPE, problem);
    operation.responses.responses.insert("default".to_owned(), refusal.build().into());
    let needs = match rule {
        Some(Rule::Public) => {
            operation.security = Some(Vec::new());
            return;
        }
        Some(Rule::Authenticated) => "Needs any valid credential.".to_owned(),
        Some(Rule::Needs(permission)) => format!("Needs `{}`.", permission.as_str()),
        Some(Rule::NeedsEither(a, b)) => format!("Needs `{}` or `{}`.", a.as_str(), b.as_str()),
        Some(Rule::Proxy | Rule::Join) | None => "Nobody may.".to_owned(),
    };
    let no_scopes: [&str; 0] = [];
    operation.security = Some(vec![
        SecurityRequirement::new("bearer", no_scopes),
        SecurityRequirement::new("api_key", no_scopes),
    ]);
    operation.description = Some(match operation.description.take() {
        Some(text) if !text.is_empty() => format!("{text}\n\n{needs}"),
        _ => needs,
    });
}

fn print(document: &OpenApi) -> String {
    // Made of texts and numbers only; the test of the published document would see an empty one.
    serde_json::to_string_pretty(document).map(|text| text + "\n").unwrap_or_default()
}

async fn openapi_json(text: Arc<str>) -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, json)], text.to_string()).into_response()
}

async fn not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
}

async fn method_not_allowed() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path does not take this method")
}
