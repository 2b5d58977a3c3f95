//! `RegistryService`: decode, one call of the registry, encode. Secrets are never in an answer.

use tonic::{Request, Response, Status};
use waffles_core::server::{Credential, Server, Spec};
use waffles_core::wire;
use waffles_proto::registry::v1 as pb;
use waffles_proto::registry::v1::registry_service_server::RegistryService;

use super::actor;
use crate::error::Error;
use crate::page::Page;
use crate::registry::{Registry, Seen, ServerFilter, Summary};

pub(super) struct Servers {
    registry: Registry,
}

impl Servers {
    pub(super) fn new(registry: Registry) -> Self {
        Self { registry }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl RegistryService for Servers {
    async fn create_server(
        &self,
        request: Request<pb::CreateServerRequest>,
    ) -> Answer<pb::CreateServerResponse> {
        let ctx = actor(&request)?;
        let message = request.into_inner();
        let created = async {
            let (spec, credential) = spec(message.spec)?;
            self.registry.create(&ctx, spec, credential.unwrap_or_default(), !message.disabled).await
        };
        let server = created.await.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::CreateServerResponse { server: Some(shown(&server)) }))
    }

    async fn list_servers(
        &self,
        request: Request<pb::ListServersRequest>,
    ) -> Answer<pb::ListServersResponse> {
        let ctx = actor(&request)?;
        let pb::ListServersRequest { name_contains, tags, enabled, page_size, cursor } = request.into_inner();
        let filter = ServerFilter { name_contains, tags, enabled };
        let page = self
            .registry
            .list(&ctx, &filter, &Page { size: page_size, cursor })
            .await
            .map_err(|error| error.into_status(ctx.request_id()))?;
        let with = |(server, summary): &(Server, Summary)| pb::Server {
            health: Some(shown_summary(summary)),
            ..shown(server)
        };
        let servers = page.items.iter().map(with).collect();
        Ok(Response::new(pb::ListServersResponse { servers, next_cursor: page.next }))
    }

    async fn get_server(&self, request: Request<pb::GetServerRequest>) -> Answer<pb::GetServerResponse> {
        let ctx = actor(&request)?;
        let (server, seen, summary) = self
            .registry
            .get(&ctx, &request.into_inner().name)
            .await
            .map_err(|error| error.into_status(ctx.request_id()))?;
        let seen = seen.into_iter().map(shown_era).collect();
        let server = pb::Server { seen, health: Some(shown_summary(&summary)), ..shown(&server) };
        Ok(Response::new(pb::GetServerResponse { server: Some(server) }))
    }

    async fn update_server(
        &self,
        request: Request<pb::UpdateServerRequest>,
    ) -> Answer<pb::UpdateServerResponse> {
        let ctx = actor(&request)?;
        let message = request.into_inner();
        let updated = async {
            let (spec, credential) = spec(message.spec)?;
            self.registry.update(&ctx, spec, credential, message.version).await
        };
        let server = updated.await.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::UpdateServerResponse { server: Some(shown(&server)) }))
    }

    async fn set_server_enabled(
        &self,
        request: Request<pb::SetServerEnabledRequest>,
    ) -> Answer<pb::SetServerEnabledResponse> {
        let ctx = actor(&request)?;
        let pb::SetServerEnabledRequest { name, enabled } = request.into_inner();
        let server = self
            .registry
            .set_enabled(&ctx, &name, enabled)
            .await
            .map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::SetServerEnabledResponse { server: Some(shown(&server)) }))
    }

    async fn delete_server(
        &self,
        request: Request<pb::DeleteServerRequest>,
    ) -> Answer<pb::DeleteServerResponse> {
        let ctx = actor(&request)?;
        self.registry
            .delete(&ctx, &request.into_inner().name)
            .await
            .map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::DeleteServerResponse {}))
    }
}

fn spec(message: Option<pb::ServerSpec>) -> Result<(Spec, Option<Credential>), Error> {
    let message = message.ok_or_else(|| Error::invalid("spec", "is missing"))?;
    Ok(wire::spec_from_proto(message)?)
}

fn shown(server: &Server) -> pb::Server {
    wire::server_to_proto(server, false)
}

/// How a server is, in short.
pub(super) fn shown_summary(summary: &Summary) -> pb::HealthSummary {
    pb::HealthSummary {
        state: wire::state_to_proto(summary.state).into(),
        reason: summary.reason.clone(),
        since: summary.since.map(wire::timestamp),
    }
}

fn shown_era(seen: Seen) -> pb::SeenEra {
    let (proxy_id, proxy) = seen.proxy.map(|(id, name)| (id.to_string(), name)).unwrap_or_default();
    pb::SeenEra {
        proxy_id,
        proxy,
        endpoint: seen.endpoint,
        era: seen.era,
        revision: seen.revision,
        found_at: Some(wire::timestamp(seen.found_at)),
    }
}
