//! A whole Waffles: a control plane, proxies, and an operator who has logged in and made a key.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use http::HeaderValue;
use serde_json::json;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use waffles_proto::audit::v1::audit_service_client::AuditServiceClient;
use waffles_proto::audit::v1::{Event, EventFilter, SearchEventsRequest};
use waffles_proto::auth::v1::auth_service_client::AuthServiceClient;
use waffles_proto::auth::v1::principal_service_client::PrincipalServiceClient;
use waffles_proto::auth::v1::{
    CreateApiKeyRequest, KeyLimits, LoginRequest, RevokeApiKeyRequest, SetPasswordRequest, Tokens,
};
use waffles_proto::policy::v1::limit_service_client::LimitServiceClient;
use waffles_proto::policy::v1::policy_service_client::PolicyServiceClient;
use waffles_proto::proxy::v1::proxy_service_client::ProxyServiceClient;
use waffles_proto::proxy::v1::{ListProxiesRequest, ListProxiesResponse, Proxy};
use waffles_proto::registry::v1::registry_service_client::RegistryServiceClient;
use waffles_proto::registry::v1::{self as registry, CreateServerRequest, HealthPolicy, Server, ServerSpec};
use waffles_proto::tenant::v1::CreateTenantRequest;
use waffles_proto::tenant::v1::tenant_service_client::TenantServiceClient;

use crate::programs::{ControlPlane, ControlPlaneOptions, DataPlane, DataPlaneOptions};
use crate::{Era, McpClient, PATIENCE, eventually};

/// A channel that presents a credential with every call.
pub type Authorized = InterceptedService<Channel, Bearer>;

/// What a Waffles is started with.
#[derive(Debug, Clone)]
pub struct WafflesOptions {
    pub control_plane: ControlPlaneOptions,
    /// How many proxies; all are alike but for their names, `proxy-0` and so on.
    pub proxies: usize,
    pub data_plane: DataPlaneOptions,
}

impl Default for WafflesOptions {
    fn default() -> Self {
        Self {
            control_plane: ControlPlaneOptions::default(),
            proxies: 1,
            data_plane: DataPlaneOptions::default(),
        }
    }
}

/// An API key.
#[derive(Debug, Clone)]
pub struct Key {
    pub id: String,
    /// The whole key (`wfl_…`).
    pub secret: String,
}

/// A tenant beside `default`, and its admin.
#[derive(Debug, Clone)]
pub struct Tenant {
    pub id: String,
    pub email: String,
    pub password: String,
    /// A key of its admin.
    pub key: Key,
}

/// A running Waffles. Its parts are killed when it is dropped.
#[derive(Debug)]
pub struct Waffles {
    // Proxies first, so that they are stopped first.
    pub proxies: Vec<DataPlane>,
    pub control_plane: ControlPlane,
    /// Of the first account, which may do everything.
    pub admin: Key,
    pub password: String,
    channel: Channel,
}

impl Waffles {
    /// One proxy, SQLite.
    pub async fn start() -> Self {
        Self::with(WafflesOptions::default()).await
    }

    /// One proxy, a database on the Postgres that the tests of this process share.
    pub async fn on_postgres() -> Self {
        let database_url = Some(crate::Postgres::shared().await.database().await);
        let control_plane = ControlPlaneOptions { database_url, ..ControlPlaneOptions::default() };
        Self::with(WafflesOptions { control_plane, ..WafflesOptions::default() }).await
    }

    /// Starts all parts and waits until the proxies can serve.
    pub async fn with(options: WafflesOptions) -> Self {
        let control_plane = ControlPlane::start(options.control_plane).await;
        let channel = channel(&control_plane.grpc_url());
        let bootstrap =
            control_plane.bootstrap.clone().expect("the database was empty, so an account was made");
        let tokens = login(&channel, &bootstrap.email, &bootstrap.password)
            .await
            .expect("the first account can log in");
        let admin = new_key(&channel, &tokens.access_token, "tests", KeyLimits::default())
            .await
            .expect("the first account can make a key");
        let mut waffles =
            Self { proxies: Vec::new(), control_plane, admin, password: bootstrap.password, channel };
        for number in 0..options.proxies {
            let name = options.data_plane.name.as_deref().unwrap_or("proxy");
            let named =
                DataPlaneOptions { name: Some(format!("{name}-{number}")), ..options.data_plane.clone() };
            waffles.proxies.push(DataPlane::start(&waffles.control_plane, named).await);
        }
        for proxy in &mut waffles.proxies {
            proxy.ready().await;
        }
        waffles.settled().await;
        waffles
    }

    /// A client of the registry with the admin's key.
    pub fn registry(&self) -> RegistryServiceClient<Authorized> {
        RegistryServiceClient::new(self.authorized(&self.admin.secret))
    }

    /// A client of identity and keys with the admin's key.
    pub fn auth(&self) -> AuthServiceClient<Authorized> {
        AuthServiceClient::new(self.authorized(&self.admin.secret))
    }

    /// A client of the audit trail with the admin's key.
    pub fn audit(&self) -> AuditServiceClient<Authorized> {
        AuditServiceClient::new(self.authorized(&self.admin.secret))
    }

    /// A client of the policy with the admin's key.
    pub fn policy(&self) -> PolicyServiceClient<Authorized> {
        PolicyServiceClient::new(self.authorized(&self.admin.secret))
    }

    /// A client of the limits with the admin's key.
    pub fn limits(&self) -> LimitServiceClient<Authorized> {
        LimitServiceClient::new(self.authorized(&self.admin.secret))
    }

    /// A client of the proxies' register with the admin's key.
    pub fn roster(&self) -> ProxyServiceClient<Authorized> {
        ProxyServiceClient::new(self.authorized(&self.admin.secret))
    }

    /// A client of the tenants with the admin's key.
    pub fn tenants(&self) -> TenantServiceClient<Authorized> {
        TenantServiceClient::new(self.authorized(&self.admin.secret))
    }

    /// Makes a tenant whose admin has set a password and made a key of the name `k`.
    pub async fn add_tenant(&self, id: &str) -> Tenant {
        let (email, password) = ("admin@tenant.example".to_owned(), format!("the password of {id}"));
        let request =
            CreateTenantRequest { id: id.to_owned(), admin_email: email.clone(), ..Default::default() };
        let made = self.tenants().create_tenant(request).await.expect("a tenant can be made").into_inner();
        let request = SetPasswordRequest { token: made.password_token, password: password.clone() };
        let mut principals = PrincipalServiceClient::new(self.channel.clone());
        principals.set_password(request).await.expect("the token sets a password");
        let tokens = login_in(&self.channel, id, &email, &password).await.expect("its admin can log in");
        let key = new_key(&self.channel, &tokens.access_token, "k", KeyLimits::default())
            .await
            .expect("its admin can make a key");
        self.settled().await;
        Tenant { id: id.to_owned(), email, password, key }
    }

    /// The channel to the control plane, without a credential.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The control plane's gRPC with another credential.
    pub fn authorized(&self, credential: &str) -> Authorized {
        InterceptedService::new(self.channel.clone(), Bearer::new(credential))
    }

    /// Logs the admin in.
    pub async fn tokens(&self) -> Tokens {
        login(&self.channel, "admin@localhost", &self.password).await.expect("the admin can log in")
    }

    /// Registers a Streamable HTTP server and waits until all proxies have it.
    pub async fn add_server(&self, name: &str, url: &str) -> Server {
        self.add(server_at(name, url)).await
    }

    /// Registers a server and waits until all proxies have it.
    pub async fn add(&self, spec: ServerSpec) -> Server {
        let server = self.register(spec).await;
        self.settled().await;
        server
    }

    /// Registers a server; does not wait for the proxies.
    pub async fn register(&self, spec: ServerSpec) -> Server {
        self.try_register(spec).await.expect("the server can be registered")
    }

    /// The same, where the control plane may be away.
    pub async fn try_register(&self, spec: ServerSpec) -> Result<Server, tonic::Status> {
        let request = CreateServerRequest { spec: Some(spec), disabled: false };
        let answer = self.registry().create_server(request).await?;
        Ok(answer.into_inner().server.expect("the answer names it"))
    }

    /// Waits until a proxy serves calls of a server.
    pub async fn served_by(&self, proxy: &DataPlane, server: &str) {
        let client = McpClient::new(&proxy.server_url(server)).with_bearer(&self.admin.secret);
        let client = client.of(Era::Stateless).await;
        eventually(PATIENCE, || async {
            let answer = client.call("echo", json!({})).await?;
            ensure!(answer.status == 200, "{}", answer.text());
            Ok(())
        })
        .await;
    }

    /// Lets calls reach a server or stops them; does not wait for the proxies.
    pub async fn set_enabled(&self, name: &str, enabled: bool) {
        let request = registry::SetServerEnabledRequest { name: name.to_owned(), enabled };
        self.registry().set_server_enabled(request).await.expect("the server can be changed");
    }

    /// A key of the admin's with limits, known to all proxies.
    pub async fn key(&self, limits: KeyLimits) -> Key {
        let key =
            new_key(&self.channel, &self.admin.secret, "limited", limits).await.expect("a key can be made");
        self.settled().await;
        key
    }

    /// Revokes a key; does not wait for the proxies.
    pub async fn revoke(&self, key: &Key) {
        let request = RevokeApiKeyRequest { id: key.id.clone() };
        self.auth().revoke_api_key(request).await.expect("the key can be revoked");
    }

    /// A raw client of one server through the first proxy, with the admin's key.
    pub fn client(&self, server: &str) -> McpClient {
        McpClient::new(&self.proxies[0].server_url(server)).with_bearer(&self.admin.secret)
    }

    /// All events that match, newest first.
    pub async fn audit_search(&self, filter: EventFilter) -> anyhow::Result<Vec<Event>> {
        let mut events = Vec::new();
        let mut cursor = String::new();
        loop {
            let request = SearchEventsRequest { filter: Some(filter.clone()), page_size: 1000, cursor };
            let page = self.audit().search_events(request).await?.into_inner();
            ensure!(events.len() < 1_000_000, "the search does not end");
            events.extend(page.events);
            cursor = page.next_cursor;
            if cursor.is_empty() {
                return Ok(events);
            }
        }
    }

    /// Waits until at least `count` events match, and returns all that do.
    pub async fn audited(&self, filter: EventFilter, count: usize) -> Vec<Event> {
        eventually(PATIENCE, || async {
            let events = self.audit_search(filter.clone()).await?;
            ensure!(events.len() >= count, "{} of {count} events are there: {events:#?}", events.len());
            Ok(events)
        })
        .await
    }

    /// All proxies as the control plane sees them, and the current revision.
    pub async fn proxy_list(&self) -> anyhow::Result<(Vec<Proxy>, u64)> {
        let request = ListProxiesRequest { page_size: 500, cursor: String::new() };
        let ListProxiesResponse { proxies, revision, .. } =
            self.roster().list_proxies(request).await?.into_inner();
        Ok((proxies, revision))
    }

    /// Audit records of all proxies that wait for upload, as the proxies' metrics say.
    pub async fn spool_depth(&self) -> anyhow::Result<u64> {
        let mut depth = 0;
        for proxy in &self.proxies {
            let metrics = proxy.metrics().await;
            let line = metrics.lines().find(|line| !line.starts_with('#') && line.contains("spool_depth"));
            let value =
                line.and_then(|line| line.rsplit(' ').next()).context("no metric of the spool's depth")?;
            depth += value.parse::<f64>()? as u64;
        }
        Ok(depth)
    }

    /// Waits until every proxy that this value holds has acknowledged the current revision.
    pub async fn settled(&self) {
        self.settled_within(PATIENCE).await;
    }

    /// As `settled`, for no longer than `limit`.
    pub async fn settled_within(&self, limit: Duration) {
        eventually(limit, || async {
            let (listed, revision) = self.proxy_list().await?;
            for proxy in &self.proxies {
                let seen = listed.iter().find(|seen| seen.id == proxy.proxy_id);
                let seen = seen.with_context(|| format!("proxy {} is not listed", proxy.proxy_id))?;
                ensure!(seen.connected, "proxy {} is not connected", seen.name);
                ensure!(
                    seen.acknowledged_revision >= revision,
                    "proxy {} is at {} of {revision}; its last refusal: {:?}",
                    seen.name,
                    seen.acknowledged_revision,
                    seen.last_nack
                );
            }
            Ok(())
        })
        .await;
    }
}

/// A specification with defaults, for struct updates.
pub fn spec() -> ServerSpec {
    ServerSpec {
        transport: registry::Transport::StreamableHttp.into(),
        // What arrives at a scripted server is what a test has sent. Tests of health say otherwise.
        health: Some(HealthPolicy { check: registry::HealthCheck::Off.into(), ..HealthPolicy::default() }),
        ..ServerSpec::default()
    }
}

/// A Streamable HTTP server of this name.
pub fn server_at(name: &str, url: &str) -> ServerSpec {
    ServerSpec { name: name.to_owned(), endpoints: vec![endpoint(url)], ..spec() }
}

/// An endpoint with the usual weight.
pub fn endpoint(url: &str) -> registry::Endpoint {
    registry::Endpoint { url: url.to_owned(), weight: 1, zone: String::new() }
}

/// A channel that connects when it is used, and again after a restart.
pub fn channel(url: &str) -> Channel {
    let endpoint = Endpoint::from_shared(url.to_owned()).expect("it is a URL");
    endpoint.connect_timeout(Duration::from_secs(5)).timeout(PATIENCE).connect_lazy()
}

/// Exchanges a password for tokens.
pub async fn login(channel: &Channel, email: &str, password: &str) -> Result<Tokens, tonic::Status> {
    login_in(channel, "", email, password).await
}

/// Exchanges the password of an account in a tenant for tokens.
pub async fn login_in(
    channel: &Channel,
    tenant: &str,
    email: &str,
    password: &str,
) -> Result<Tokens, tonic::Status> {
    let (email, password, tenant) = (email.to_owned(), password.to_owned(), tenant.to_owned());
    let request = LoginRequest { email, password, tenant };
    let answer = AuthServiceClient::new(channel.clone()).login(request).await?;
    answer.into_inner().tokens.ok_or_else(|| tonic::Status::internal("no tokens in the answer"))
}

/// Makes a key for whom `credential` belongs to.
pub async fn new_key(
    channel: &Channel,
    credential: &str,
    name: &str,
    limits: KeyLimits,
) -> Result<Key, tonic::Status> {
    let mut client = AuthServiceClient::with_interceptor(channel.clone(), Bearer::new(credential));
    let request = CreateApiKeyRequest {
        name: name.to_owned(),
        limits: Some(limits),
        expires_at: None,
        not_after: None,
    };
    let answer = client.create_api_key(request).await?.into_inner();
    let id = answer.api_key.map(|key| key.id).unwrap_or_default();
    Ok(Key { id, secret: answer.secret })
}

/// Presents a credential.
#[derive(Debug, Clone)]
pub struct Bearer(MetadataValue<tonic::metadata::Ascii>);

impl Bearer {
    pub fn new(credential: &str) -> Self {
        let value =
            HeaderValue::try_from(format!("Bearer {credential}")).expect("a credential fits in a header");
        Self(value.as_bytes().try_into().expect("it is ASCII"))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}
