//! `HealthService`: decode, one call of the service, encode.

use tonic::{Request, Response, Status};
use waffles_core::health::State;
use waffles_core::wire;
use waffles_proto::registry::v1 as pb;
use waffles_proto::registry::v1::health_service_server::HealthService;

use super::actor;
use super::registry::shown_summary;
use crate::health::{ChangeRow, Health, ProxyView, Ward};
use crate::store::health::FoundDoc;

pub(super) struct Rounds {
    ward: Ward,
}

impl Rounds {
    pub(super) fn new(ward: Ward) -> Self {
        Self { ward }
    }
}

#[tonic::async_trait]
impl HealthService for Rounds {
    async fn get_server_health(
        &self,
        request: Request<pb::GetServerHealthRequest>,
    ) -> Result<Response<pb::GetServerHealthResponse>, Status> {
        let ctx = actor(&request)?;
        let health = self.ward.get(&ctx, &request.into_inner().name).await;
        let health = health.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::GetServerHealthResponse { health: Some(shown(health)) }))
    }

    async fn check_server(
        &self,
        request: Request<pb::CheckServerRequest>,
    ) -> Result<Response<pb::CheckServerResponse>, Status> {
        let ctx = actor(&request)?;
        let health = self.ward.check(&ctx, &request.into_inner().name).await;
        let health = health.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::CheckServerResponse { health: Some(shown(health)) }))
    }
}

fn shown(health: Health) -> pb::ServerHealth {
    let change = |row: ChangeRow| pb::HealthChange {
        at: Some(wire::timestamp(row.at)),
        state: state(&row.state),
        reason: row.reason,
    };
    pb::ServerHealth {
        name: health.name,
        summary: Some(shown_summary(&health.summary)),
        proxies: health.views.into_iter().map(view).collect(),
        history: health.history.into_iter().map(change).collect(),
        policy: Some(wire::health_to_proto(&health.policy)),
    }
}

fn view(view: ProxyView) -> pb::ProxyView {
    let (id, proxy, group) =
        view.proxy.map_or_else(Default::default, |(id, proxy, group)| (id.to_string(), proxy, group));
    let finding = |found: FoundDoc| pb::EndpointFinding {
        endpoint: found.endpoint,
        state: state(&found.state),
        reason: found.reason,
        saw: found.saw,
        took: Some(wire::duration(std::time::Duration::from_micros(found.took_us))),
    };
    pb::ProxyView {
        proxy_id: id,
        proxy,
        group,
        checks: view.checks,
        state: wire::state_to_proto(view.state).into(),
        reason: view.reason,
        since: Some(wire::timestamp(view.since)),
        checked_at: view.checked_at.map(wire::timestamp),
        endpoints: view.found.into_iter().map(finding).collect(),
        fresh: view.fresh,
    }
}

fn state(word: &str) -> i32 {
    wire::state_to_proto(State::parse(word).unwrap_or_default()).into()
}
