//! The way to the control plane: the context in use, its credential, refreshed when it is about to end, and
//! the gRPC channel.

use chrono::Utc;
use secrecy::{ExposeSecret as _, SecretString};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use waffles_core::wire::time;
use waffles_proto::audit::v1::audit_service_client::AuditServiceClient;
use waffles_proto::auth::v1::auth_service_client::AuthServiceClient;
use waffles_proto::auth::v1::grant_service_client::GrantServiceClient;
use waffles_proto::auth::v1::principal_service_client::PrincipalServiceClient;
use waffles_proto::auth::v1::role_service_client::RoleServiceClient;
use waffles_proto::auth::v1::{self as auth_pb, RefreshRequest};
use waffles_proto::policy::v1::limit_service_client::LimitServiceClient;
use waffles_proto::policy::v1::policy_service_client::PolicyServiceClient;
use waffles_proto::proxy::v1::proxy_service_client::ProxyServiceClient;
use waffles_proto::registry::v1::health_service_client::HealthServiceClient;
use waffles_proto::registry::v1::namespace_service_client::NamespaceServiceClient;
use waffles_proto::registry::v1::registry_service_client::RegistryServiceClient;
use waffles_proto::secret::v1::secret_service_client::SecretServiceClient;
use waffles_proto::tenant::v1::tenant_service_client::TenantServiceClient;

use crate::args::Global;
use crate::context::{Context, Store, Tokens};
use crate::failure::Failure;
use crate::place::Place;

/// An access token that ends sooner than this is refreshed first.
const MARGIN: chrono::TimeDelta = chrono::TimeDelta::seconds(30);

/// What gRPC clients talk through.
pub(crate) type Link = InterceptedService<Channel, Auth>;

/// Adds the credential to each request.
#[derive(Clone)]
pub(crate) struct Auth(Option<MetadataValue<Ascii>>);

impl Auth {
    fn new(credential: Option<&SecretString>) -> anyhow::Result<Self> {
        let Some(credential) = credential else { return Ok(Self(None)) };
        let value = format!("Bearer {}", credential.expose_secret());
        let mut value: MetadataValue<Ascii> = value.parse().map_err(|_| {
            Failure::failed("the credential of this context has characters no header can hold")
        })?;
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

impl Interceptor for Auth {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// The context that a command works with.
pub(crate) struct Chosen {
    /// The file it stands in.
    pub(crate) store: Store,
    /// Its name.
    pub(crate) name: String,
    /// What it says.
    pub(crate) context: Context,
}

impl Chosen {
    /// Finds the context to work with.
    pub(crate) fn find(global: &Global) -> anyhow::Result<Self> {
        let store = Store::locate(global)?;
        let mut contexts = store.load()?;
        let Some(name) = contexts.chosen(global) else {
            let next = match contexts.contexts.len() {
                0 => {
                    "Start a Waffles with `wafflectl up`, or log in to one with `wafflectl login --grpc URL`."
                }
                _ => "Choose one with `wafflectl context use NAME` or --context.",
            };
            let message = format!("no context is chosen (looked in {})", store.path().display());
            return Err(Failure::usage(message).next(next).into());
        };
        let Some(context) = contexts.contexts.remove(&name) else {
            let message = format!("there is no context {name} in {}", store.path().display());
            return Err(Failure::usage(message).next("List them with `wafflectl context list`.").into());
        };
        let own = context.tenant();
        if let Some(tenant) = global.tenant.as_deref().filter(|tenant| *tenant != own) {
            let message = format!("context {name} is for tenant {own}, not {tenant}");
            let next = format!(
                "Log in to it: `wafflectl --tenant {tenant} login`. If there are several contexts for it, name one with --context."
            );
            return Err(Failure::usage(message).next(next).into());
        }
        Ok(Self { store, name, context })
    }

    /// The credential to present. A session that is about to end is renewed and written back first.
    pub(crate) async fn credential(&mut self) -> anyhow::Result<SecretString> {
        match &self.context.tokens {
            Some(tokens) if !is_ending(tokens) => return Ok(tokens.access.clone()),
            Some(_) => self.refresh().await?,
            None => {}
        }
        let Context { tokens, api_key, .. } = &self.context;
        let credential = tokens.as_ref().map(|tokens| tokens.access.clone()).or_else(|| api_key.clone());
        credential.ok_or_else(|| {
            Failure::failed(format!("context {} has no credential", self.name))
                .next("Log in with `wafflectl login`.")
                .into()
        })
    }

    async fn refresh(&mut self) -> anyhow::Result<()> {
        let channel = connect(&self.context).await?;
        let lock = {
            let store = self.store.clone();
            tokio::task::spawn_blocking(move || store.lock()).await??
        };
        // Another command may have been faster: a refresh token that is used twice ends the session.
        let mut contexts = self.store.load()?;
        let Some(context) = contexts.contexts.get_mut(&self.name) else {
            anyhow::bail!("context {} was removed meanwhile", self.name)
        };
        if let Some(tokens) = context.tokens.as_ref().filter(|tokens| is_ending(tokens)) {
            let mut client = AuthServiceClient::new(channel);
            let refresh_token = tokens.refresh.expose_secret().to_owned();
            let answer = client.refresh(RefreshRequest { refresh_token }).await;
            let answer = answer.map_err(|status| match status.code() {
                Code::Unauthenticated => {
                    let mut next = "Log in again with `wafflectl login`.".to_owned();
                    if context.api_key.is_some() {
                        next.push_str(" `wafflectl logout` goes back to the context's API key.");
                    }
                    Failure::failed("the session has ended").next(next)
                }
                _ => Failure::from(status),
            })?;
            let email = tokens.email.clone();
            context.tokens = Some(tokens_from(answer.into_inner().tokens, email)?);
            self.store.save(&contexts)?;
        }
        drop(lock);
        let context = contexts.contexts.remove(&self.name);
        self.context = context.unwrap_or_default();
        Ok(())
    }
}

fn is_ending(tokens: &Tokens) -> bool {
    tokens.access_expires_at - MARGIN <= Utc::now()
}

/// Tokens as the context file keeps them.
pub(crate) fn tokens_from(tokens: Option<auth_pb::Tokens>, email: String) -> anyhow::Result<Tokens> {
    let read = || {
        let tokens = tokens?;
        Some(Tokens {
            email,
            access: tokens.access_token.into(),
            access_expires_at: time(tokens.access_expires_at)?,
            refresh: tokens.refresh_token.into(),
            refresh_expires_at: time(tokens.refresh_expires_at)?,
        })
    };
    read().ok_or_else(|| anyhow::anyhow!("the control plane's answer holds no tokens"))
}

/// Opens a channel to the control plane at a place.
pub(crate) async fn connect(place: impl Into<Place<'_>>) -> anyhow::Result<Channel> {
    place.into().connect().await
}

/// The deepest cause of an error, which is the one that says something.
pub(crate) fn root(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// The control plane's services, as the caller may use them.
pub(crate) struct Client {
    /// The context in use.
    pub(crate) chosen: Chosen,
    channel: Channel,
    auth: Auth,
}

impl Client {
    /// Connects with the context in use.
    pub(crate) async fn open(global: &Global) -> anyhow::Result<Self> {
        let mut chosen = Chosen::find(global)?;
        let credential = chosen.credential().await?;
        let channel = connect(&chosen.context).await?;
        Ok(Self { auth: Auth::new(Some(&credential))?, channel, chosen })
    }

    /// A link to an address with a credential, for when there is no context yet.
    pub(crate) async fn link(
        place: impl Into<Place<'_>>,
        credential: Option<&SecretString>,
    ) -> anyhow::Result<Link> {
        Ok(InterceptedService::new(connect(place).await?, Auth::new(credential)?))
    }

    fn wire(&self) -> Link {
        InterceptedService::new(self.channel.clone(), self.auth.clone())
    }

    /// Servers.
    pub(crate) fn registry(&self) -> RegistryServiceClient<Link> {
        RegistryServiceClient::new(self.wire())
    }

    /// How servers are.
    pub(crate) fn health(&self) -> HealthServiceClient<Link> {
        HealthServiceClient::new(self.wire())
    }

    /// Namespaces.
    pub(crate) fn namespaces(&self) -> NamespaceServiceClient<Link> {
        NamespaceServiceClient::new(self.wire())
    }

    /// Log-in and keys.
    pub(crate) fn identity(&self) -> AuthServiceClient<Link> {
        AuthServiceClient::new(self.wire())
    }

    /// The policy. What it is told may be as long as one message, and so may what it tells.
    pub(crate) fn policies(&self) -> PolicyServiceClient<Link> {
        PolicyServiceClient::new(self.wire())
    }

    /// Limits.
    pub(crate) fn limits(&self) -> LimitServiceClient<Link> {
        LimitServiceClient::new(self.wire())
    }

    /// Users, service accounts, groups and sessions.
    pub(crate) fn people(&self) -> PrincipalServiceClient<Link> {
        PrincipalServiceClient::new(self.wire())
    }

    /// Roles.
    pub(crate) fn roles(&self) -> RoleServiceClient<Link> {
        RoleServiceClient::new(self.wire())
    }

    /// Grants.
    pub(crate) fn grants(&self) -> GrantServiceClient<Link> {
        GrantServiceClient::new(self.wire())
    }

    /// Tenants.
    pub(crate) fn tenants(&self) -> TenantServiceClient<Link> {
        TenantServiceClient::new(self.wire())
    }

    /// The audit trail.
    pub(crate) fn audit(&self) -> AuditServiceClient<Link> {
        AuditServiceClient::new(self.wire())
    }

    /// The keys that secrets are sealed with.
    pub(crate) fn secrets(&self) -> SecretServiceClient<Link> {
        SecretServiceClient::new(self.wire())
    }

    /// Proxies.
    pub(crate) fn proxies(&self) -> ProxyServiceClient<Link> {
        ProxyServiceClient::new(self.wire())
    }
}

#[cfg(test)]
mod tests;
