//! `NamespaceService`: decode, one call of the namespaces, encode.

use tonic::{Request, Response, Status};
use waffles_core::namespace::Namespace;
use waffles_core::wire;
use waffles_proto::registry::v1 as pb;
use waffles_proto::registry::v1::namespace_service_server::NamespaceService;

use super::actor;
use crate::error::Error;
use crate::namespaces::{NamespaceFilter, Namespaces};
use crate::page::Page;

pub(super) struct Realms {
    namespaces: Namespaces,
}

impl Realms {
    pub(super) fn new(namespaces: Namespaces) -> Self {
        Self { namespaces }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl NamespaceService for Realms {
    async fn create_namespace(
        &self,
        request: Request<pb::CreateNamespaceRequest>,
    ) -> Answer<pb::CreateNamespaceResponse> {
        let ctx = actor(&request)?;
        let message = request.into_inner();
        let created = async { self.namespaces.create(&ctx, spec(message.spec)?).await };
        let namespace = created.await.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::CreateNamespaceResponse { namespace: shown(&namespace) }))
    }

    async fn list_namespaces(
        &self,
        request: Request<pb::ListNamespacesRequest>,
    ) -> Answer<pb::ListNamespacesResponse> {
        let ctx = actor(&request)?;
        let pb::ListNamespacesRequest { name_contains, server, page_size, cursor } = request.into_inner();
        let filter = NamespaceFilter { name_contains, server };
        let page = self
            .namespaces
            .list(&ctx, &filter, &Page { size: page_size, cursor })
            .await
            .map_err(|error| error.into_status(ctx.request_id()))?;
        let namespaces = page.items.iter().map(wire::namespace_to_proto).collect();
        Ok(Response::new(pb::ListNamespacesResponse { namespaces, next_cursor: page.next }))
    }

    async fn get_namespace(
        &self,
        request: Request<pb::GetNamespaceRequest>,
    ) -> Answer<pb::GetNamespaceResponse> {
        let ctx = actor(&request)?;
        let namespace = self
            .namespaces
            .get(&ctx, &request.into_inner().name)
            .await
            .map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::GetNamespaceResponse { namespace: shown(&namespace) }))
    }

    async fn update_namespace(
        &self,
        request: Request<pb::UpdateNamespaceRequest>,
    ) -> Answer<pb::UpdateNamespaceResponse> {
        let ctx = actor(&request)?;
        let message = request.into_inner();
        let updated = async { self.namespaces.update(&ctx, spec(message.spec)?, message.version).await };
        let namespace = updated.await.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::UpdateNamespaceResponse { namespace: shown(&namespace) }))
    }

    async fn delete_namespace(
        &self,
        request: Request<pb::DeleteNamespaceRequest>,
    ) -> Answer<pb::DeleteNamespaceResponse> {
        let ctx = actor(&request)?;
        self.namespaces
            .delete(&ctx, &request.into_inner().name)
            .await
            .map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::DeleteNamespaceResponse {}))
    }

    async fn add_server(&self, request: Request<pb::AddServerRequest>) -> Answer<pb::AddServerResponse> {
        let ctx = actor(&request)?;
        let message = request.into_inner();
        let added = async {
            let member = message.member.ok_or_else(|| Error::invalid("member", "is missing"))?;
            let member = wire::member_from_proto(member)?;
            self.namespaces.add_server(&ctx, &message.namespace, member).await
        };
        let namespace = added.await.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::AddServerResponse { namespace: shown(&namespace) }))
    }

    async fn remove_server(
        &self,
        request: Request<pb::RemoveServerRequest>,
    ) -> Answer<pb::RemoveServerResponse> {
        let ctx = actor(&request)?;
        let pb::RemoveServerRequest { namespace, server } = request.into_inner();
        let namespace = self
            .namespaces
            .remove_server(&ctx, &namespace, &server)
            .await
            .map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::RemoveServerResponse { namespace: shown(&namespace) }))
    }
}

fn spec(message: Option<pb::NamespaceSpec>) -> Result<waffles_core::namespace::NamespaceSpec, Error> {
    let message = message.ok_or_else(|| Error::invalid("spec", "is missing"))?;
    Ok(wire::namespace_spec_from_proto(message)?)
}

#[expect(clippy::unnecessary_wraps, reason = "the form that answers take it in")]
fn shown(namespace: &Namespace) -> Option<pb::Namespace> {
    Some(wire::namespace_to_proto(namespace))
}
