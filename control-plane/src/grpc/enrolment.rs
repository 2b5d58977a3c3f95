//! `EnrolmentService`: decode, one call of `enrolment`, encode.

use tonic::{Request, Response, Status};
use waffles_core::wire;
use waffles_proto::proxy::v1 as pb;
use waffles_proto::proxy::v1::enrolment_service_server::EnrolmentService;

use super::{actor, peer};
use crate::enrolment::{Enrolment, Issued, Join};
use crate::error::Error;

pub(super) struct Door {
    enrolment: Enrolment,
}

impl Door {
    pub(super) fn new(enrolment: Enrolment) -> Self {
        Self { enrolment }
    }
}

#[tonic::async_trait]
impl EnrolmentService for Door {
    async fn enroll(
        &self,
        request: Request<pb::EnrollRequest>,
    ) -> Result<Response<pb::EnrollResponse>, Status> {
        let ctx = actor(&request)?;
        let pb::EnrollRequest { token, proxy_id, name, request } = request.into_inner();
        let enroll = async {
            let proxy = proxy_id.parse().map_err(|_| Error::invalid("proxy_id", "is not a UUID"))?;
            self.enrolment.enroll(&ctx, Join { token, proxy, name, request }).await
        };
        let issued = enroll.await.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::EnrollResponse { certificate: Some(certificate(issued)) }))
    }

    async fn renew(&self, request: Request<pb::RenewRequest>) -> Result<Response<pb::RenewResponse>, Status> {
        let (ctx, peer) = (actor(&request)?, peer(&request)?);
        let renewed = self.enrolment.renew(&ctx, &peer, &request.into_inner().request).await;
        let issued = renewed.map_err(|error| error.into_status(ctx.request_id()))?;
        Ok(Response::new(pb::RenewResponse { certificate: Some(certificate(issued)) }))
    }
}

fn certificate(issued: Issued) -> pb::Certificate {
    let Issued { chain, authorities, expires_at, group } = issued;
    pb::Certificate { chain, authorities, expires_at: Some(wire::timestamp(expires_at)), group }
}
