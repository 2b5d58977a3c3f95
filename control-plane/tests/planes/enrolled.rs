//! A proxy that has joined, as the other side of mutual TLS.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tonic::transport::{Channel, Endpoint, Uri};
use uuid::Uuid;
use waffles_control_plane::authz::OpCtx;
use waffles_proto::proxy::v1 as pb;
use waffles_proto::proxy::v1::enrolment_service_client::EnrolmentServiceClient;
use waffles_runtime::tls::mutual::{self, Own, Trust};

use super::Plane;

/// The group of proxies in these tests.
pub const GROUP: &str = "test";

/// A proxy with a certificate.
#[derive(Clone)]
pub struct Enrolled {
    pub id: Uuid,
    pub group: String,
    own: Own,
    authorities: Vec<CertificateDer<'static>>,
}

/// Opens a connection with a handshake of this configuration.
pub async fn dial(plane: &Plane, config: Arc<rustls::ClientConfig>) -> Channel {
    let uri: Uri = plane.grpc.parse().unwrap();
    let (host, port) = (uri.host().unwrap().to_owned(), uri.port_u16().unwrap());
    let connector = tower::service_fn(move |_: Uri| {
        let (config, host) = (Arc::clone(&config), host.clone());
        async move { mutual::connect(config, &host, port, Duration::from_secs(5)).await.map(TokioIo::new) }
    });
    Endpoint::from_shared(plane.grpc.clone()).unwrap().connect_with_connector(connector).await.unwrap()
}

impl Enrolled {
    /// Joins, as a proxy of the usual group.
    pub async fn new(plane: &Plane) -> Self {
        Self::of(plane, GROUP, Uuid::now_v7()).await
    }

    /// Joins.
    pub async fn of(plane: &Plane, group: &str, id: Uuid) -> Self {
        let new = plane.services.enrolment.create_token(&OpCtx::system(), group, None).await.unwrap();
        let trust = Trust::Fingerprint(*new.token.authority());
        let channel = dial(plane, mutual::client(trust, None).unwrap()).await;
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        let request = pb::EnrollRequest {
            token: new.token.expose().to_owned(),
            proxy_id: id.to_string(),
            name: "edge-1".into(),
            request: request.der().to_vec(),
        };
        let answer = EnrolmentServiceClient::new(channel).enroll(request).await.unwrap().into_inner();
        let certificate = answer.certificate.unwrap();
        assert_eq!(certificate.group, group);
        let certificates = |list: Vec<Vec<u8>>| list.into_iter().map(CertificateDer::from).collect();
        let own = Own {
            chain: certificates(certificate.chain),
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        };
        Self { id, group: group.to_owned(), own, authorities: certificates(certificate.authorities) }
    }

    /// A connection that shows the certificate.
    pub async fn channel(&self, plane: &Plane) -> Channel {
        let trust = Trust::Authorities(&self.authorities);
        dial(plane, mutual::client(trust, Some(self.own.clone())).unwrap()).await
    }
}
