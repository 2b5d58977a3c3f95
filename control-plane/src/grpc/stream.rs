//! `DiscoveryService` by hand: as generated, but that it sends [`Chunk`]s, whose resources are encoded already.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use waffles_proto::discovery::v1 as pb;
use waffles_proto::discovery::v1::discovery_service_server::SERVICE_NAME;

use super::MOST_BYTES;
use super::proxy::Configuration;
use crate::discovery::Chunk;

/// The one method of the service.
const PATH: &str = "/waffles.discovery.v1.DiscoveryService/Stream";

/// The service.
#[derive(Clone)]
pub(super) struct Server(Arc<Configuration>);

impl Server {
    pub(super) fn new(configuration: Configuration) -> Self {
        Self(Arc::new(configuration))
    }
}

impl NamedService for Server {
    const NAME: &'static str = SERVICE_NAME;
}

struct Method(Arc<Configuration>);

impl StreamingService<pb::StreamRequest> for Method {
    type Response = Chunk;
    type ResponseStream = ReceiverStream<Result<Chunk, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<pb::StreamRequest>>) -> Self::Future {
        let configuration = Arc::clone(&self.0);
        Box::pin(async move { configuration.stream(request) })
    }
}

impl Service<http::Request<Body>> for Server {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = Method(Arc::clone(&self.0));
        Box::pin(async move {
            if request.uri().path() != PATH {
                return Ok(Status::unimplemented("there is no such method").into_http());
            }
            let codec = ProstCodec::<Chunk, pb::StreamRequest>::default();
            let mut grpc = Grpc::new(codec).apply_max_message_size_config(Some(MOST_BYTES), Some(MOST_BYTES));
            Ok(grpc.streaming(method, request).await)
        })
    }
}
