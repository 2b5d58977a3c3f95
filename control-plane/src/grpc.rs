//! The gRPC door: operators, proxies, health, and reflection for operators. One check stands before every
//! method; a method that `authz` does not name is denied.

mod access;
mod audit;
mod auth;
mod enrolment;
mod health;
mod keys;
mod limits;
mod namespaces;
mod policy;
mod principals;
mod proxies;
mod proxy;
mod registry;
mod secrets;
mod stream;
mod tenants;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use http::HeaderMap;
use secrecy::SecretString;
use tonic::Status;
use tonic::service::Routes;
use uuid::Uuid;
use waffles_proto::DESCRIPTORS;
use waffles_proto::audit::v1::audit_ingest_service_server::AuditIngestServiceServer;
use waffles_proto::audit::v1::audit_service_server::AuditServiceServer;
use waffles_proto::auth::v1::auth_service_server::AuthServiceServer;
use waffles_proto::auth::v1::grant_service_server::GrantServiceServer;
use waffles_proto::auth::v1::principal_service_server::PrincipalServiceServer;
use waffles_proto::auth::v1::role_service_server::RoleServiceServer;
use waffles_proto::discovery::v1::key_service_server::KeyServiceServer;
use waffles_proto::policy::v1::limit_service_server::LimitServiceServer;
use waffles_proto::policy::v1::policy_service_server::PolicyServiceServer;
use waffles_proto::proxy::v1::enrolment_service_server::EnrolmentServiceServer;
use waffles_proto::proxy::v1::proxy_service_server::ProxyServiceServer;
use waffles_proto::registry::v1::health_service_server::HealthServiceServer;
use waffles_proto::registry::v1::namespace_service_server::NamespaceServiceServer;
use waffles_proto::registry::v1::registry_service_server::RegistryServiceServer;
use waffles_proto::secret::v1::secret_service_server::SecretServiceServer;
use waffles_proto::tenant::v1::tenant_service_server::TenantServiceServer;
use waffles_runtime::drain::Drain;
use waffles_runtime::host::{Foreign, Hosts};

use crate::authz::{Channel, OpCtx, ProxyPeer, Rule, method};
use crate::discovery::Discovery;
use crate::enrolment::Unwelcome;
use crate::error::Error;
use crate::services::Services;

/// A request is at most this long; batches and chunks of our own make are far below.
const MOST_BYTES: usize = 4 * 1024 * 1024;
/// A method begins its answer within this time. Streams then go on.
const ANSWER_TIME: Duration = Duration::from_secs(15);
/// Longer credentials are none of ours.
const MOST_CREDENTIAL: usize = 8192;

/// What gRPC needs beside the services that REST has as well.
#[derive(Clone)]
pub struct Parts {
    /// The services.
    pub services: Services,
    /// What proxies are told.
    pub discovery: Discovery,
    /// The names that the port answers to. No page may call it.
    pub hosts: Hosts,
    /// Ends streams.
    pub drain: Drain,
}

/// The gRPC door, and what tells of its health.
pub fn router(
    parts: Parts,
) -> Result<(axum::Router, tonic_health::server::HealthReporter), tonic_reflection::server::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection =
        || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
    let services = parts.services.clone();
    macro_rules! limited {
        ($server:ident, $service:expr) => {
            $server::new($service).max_decoding_message_size(MOST_BYTES).max_encoding_message_size(MOST_BYTES)
        };
    }
    let routes = Routes::new(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(limited!(AuthServiceServer, auth::Auth::new(services.identity.clone())))
        .add_service(limited!(PrincipalServiceServer, principals::Principals::new(services.identity.clone())))
        .add_service(limited!(RoleServiceServer, access::Access::new(services.identity.clone())))
        .add_service(limited!(GrantServiceServer, access::Access::new(services.identity.clone())))
        .add_service(limited!(RegistryServiceServer, registry::Servers::new(services.registry.clone())))
        .add_service(limited!(HealthServiceServer, health::Rounds::new(services.health.clone())))
        .add_service(limited!(NamespaceServiceServer, namespaces::Realms::new(services.namespaces.clone())))
        .add_service(limited!(SecretServiceServer, secrets::Seals::new(services.keys.clone())))
        .add_service(limited!(PolicyServiceServer, policy::Rules::new(&services, parts.drain.clone())))
        .add_service(limited!(LimitServiceServer, limits::Bounds::new(services.limits.clone())))
        .add_service(limited!(TenantServiceServer, tenants::Estates::new(services.tenants.clone())))
        .add_service(limited!(AuditServiceServer, audit::Trail::new(&services, parts.drain.clone())))
        .add_service(limited!(ProxyServiceServer, proxies::Fleet::new(&services)))
        .add_service(limited!(EnrolmentServiceServer, enrolment::Door::new(services.enrolment.clone())))
        .add_service(stream::Server::new(proxy::Configuration::new(&parts)))
        .add_service(limited!(KeyServiceServer, keys::Keys::new(&parts)))
        .add_service(limited!(AuditIngestServiceServer, proxy::Uploads::new(&parts)));
    let door = from_fn_with_state(Arc::new(parts), guard);
    Ok((routes.prepare().into_axum_router().layer(door), reporter))
}

/// The credential of a call, for streams that look again whether it still is good.
#[derive(Clone)]
pub(crate) struct Shown(pub(crate) SecretString);

async fn guard(State(parts): State<Arc<Parts>>, mut request: Request, next: Next) -> Response {
    let request_id = Uuid::now_v7();
    if let Err(foreign) = parts.hosts.check(request.uri(), request.headers()) {
        return forbidden(foreign);
    }
    if let Err(error) = admit(&parts, &mut request, request_id).await {
        return error.into_status(request_id).into_http();
    }
    match tokio::time::timeout(ANSWER_TIME, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            tracing::warn!(request.id = %request_id, "a call was given up, it took too long");
            Status::deadline_exceeded(
                "the control plane took too long; whether the call was done is not known",
            )
            .into_http()
        }
    }
}

/// An answer of HTTP and of gRPC alike: whoever is refused here may speak only the former.
fn forbidden(foreign: Foreign) -> Response {
    let mut response = Status::permission_denied(foreign.to_string()).into_http();
    *response.status_mut() = http::StatusCode::FORBIDDEN;
    response
}

/// Who calls, and whether this method is for them. What the check found out goes with the request.
async fn admit(parts: &Parts, request: &mut Request, request_id: Uuid) -> Result<(), Error> {
    let (rule, act) = method(request.uri().path()).ok_or(Error::Denied)?;
    let address =
        request.extensions().get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip().to_canonical());
    let channel = request.extensions().get::<Channel>().cloned().unwrap_or_default();
    let shown = bearer(request.headers());
    let identity = &parts.services.identity;
    let ctx = match (rule, shown) {
        (Rule::Proxy, _) => {
            let Channel::Proxy(peer) = channel else { return Err(Error::Unauthenticated) };
            parts.services.enrolment.check(&peer).map_err(|why| match why {
                Unwelcome::Denied => Error::Denied,
                Unwelcome::Ended => Error::Unauthenticated,
            })?;
            request.extensions_mut().insert(OpCtx::of_proxy(&peer, request_id, address));
            request.extensions_mut().insert(peer);
            return Ok(());
        }
        // A token in the clear would be anybody's.
        (Rule::Join, _) if matches!(channel, Channel::Plain) => return Err(Error::Unauthenticated),
        (Rule::Join, _) => {
            request.extensions_mut().insert(identity.anonymous(request_id, address));
            return Ok(());
        }
        // Whoever took a proxy over is no operator with it, whatever else they show.
        _ if matches!(channel, Channel::Proxy(_)) && !is_health(request.uri().path()) => {
            return Err(Error::Denied);
        }
        (Rule::Public, _) => identity.anonymous(request_id, address),
        (_, Some(shown)) => {
            let ctx = identity.authenticate(&shown, request_id, address).await?;
            request.extensions_mut().insert(Shown(shown));
            ctx
        }
        (_, None) => return Err(Error::Unauthenticated),
    };
    ctx.enter((rule, act))?;
    request.extensions_mut().insert(ctx);
    Ok(())
}

fn is_health(path: &str) -> bool {
    path.starts_with("/grpc.health.v1.Health/")
}

/// The one bearer credential; none where there are two, since what is ambiguous is not one.
fn bearer(headers: &HeaderMap) -> Option<SecretString> {
    let mut values = headers.get_all(http::header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?.to_str().ok()?, values.next()) else { return None };
    let (scheme, credential) = value.split_once(' ')?;
    let fits = scheme.eq_ignore_ascii_case("bearer") && credential.len() <= MOST_CREDENTIAL;
    fits.then(|| credential.trim().to_owned().into())
}

/// Who acts, as the check before every method found out.
pub(crate) fn actor<T>(request: &tonic::Request<T>) -> Result<OpCtx, Status> {
    request.extensions().get::<OpCtx>().cloned().ok_or_else(|| Error::Unauthenticated.into())
}

/// The proxy's right to its streams, as the check before every method found out.
fn peer<T>(request: &tonic::Request<T>) -> Result<ProxyPeer, Status> {
    request.extensions().get::<ProxyPeer>().cloned().ok_or_else(|| Error::Unauthenticated.into())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn one_bearer_credential_is_read_and_nothing_else() {
        let read = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(http::header::AUTHORIZATION, value.parse().unwrap());
            }
            bearer(&headers).map(|text| text.expose_secret().to_owned())
        };
        assert_eq!(read(&["Bearer wfl_x"]).as_deref(), Some("wfl_x"));
        assert_eq!(read(&["bearer wfl_x"]).as_deref(), Some("wfl_x"));
        assert_eq!(read(&["Basic eA=="]), None);
        assert_eq!(read(&["Bearer a", "Bearer b"]), None);
        assert_eq!(read(&[]), None);
    }
}
