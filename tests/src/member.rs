//! A proxy's side of the channel between the planes, played by hand: to join, to come in, and to come in as somebody else.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status, Streaming};
use uuid::Uuid;
use waffles_core::proxy::JoinToken;
use waffles_proto::audit::v1 as audit;
use waffles_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use waffles_proto::discovery::v1 as discovery;
use waffles_proto::discovery::v1::discovery_service_client::DiscoveryServiceClient;
use waffles_proto::discovery::v1::stream_request::Message;
use waffles_proto::proxy::v1 as pb;
use waffles_proto::proxy::v1::enrolment_service_client::EnrolmentServiceClient;
use waffles_runtime::tls::mutual::{self, Own, Trust};

use crate::{ControlPlane, PATIENCE};

/// A proxy with a certificate.
#[derive(Debug, Clone)]
pub struct Member {
    pub id: Uuid,
    pub group: String,
    pub own: Own,
    pub authorities: Vec<CertificateDer<'static>>,
}

/// Opens a connection to the gRPC port with a handshake of this configuration.
pub async fn dial(control_plane: &ControlPlane, config: Arc<ClientConfig>) -> Result<Channel, Status> {
    dial_at(control_plane.grpc, config).await
}

async fn dial_at(grpc: std::net::SocketAddr, config: Arc<ClientConfig>) -> Result<Channel, Status> {
    let port = grpc.port();
    let connector = tower::service_fn(move |_: Uri| {
        let config = Arc::clone(&config);
        async move { mutual::connect(config, "127.0.0.1", port, Duration::from_secs(5)).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{port}")).expect("it is a URL");
    let connected = endpoint.timeout(PATIENCE).connect_with_connector(connector).await;
    connected.map_err(|error| Status::unavailable(error.to_string()))
}

/// The gRPC port's authorities, as the control plane announced them.
pub fn announced(control_plane: &ControlPlane) -> Vec<CertificateDer<'static>> {
    waffles_runtime::tls::certificate::from_pem(control_plane.ca.as_bytes()).expect("it is PEM")
}

/// A key and a request for a certificate with it.
pub fn request() -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate().expect("there are random numbers");
    let request = CertificateParams::default().serialize_request(&key).expect("a request can be made");
    (key, request.der().to_vec())
}

/// Trades a token for a certificate.
pub async fn enroll(
    control_plane: &ControlPlane,
    token: &str,
    id: Uuid,
    key: &KeyPair,
) -> Result<Member, Status> {
    let read = JoinToken::parse(token).expect("it has a token's form");
    let config = mutual::client(Trust::Fingerprint(*read.authority()), None).expect("it is sound");
    let channel = dial(control_plane, config).await?;
    let signed = CertificateParams::default().serialize_request(key).expect("a request can be made");
    let asked = pb::EnrollRequest {
        token: token.to_owned(),
        proxy_id: id.to_string(),
        name: "by-hand".to_owned(),
        request: signed.der().to_vec(),
    };
    let answer = EnrolmentServiceClient::new(channel).enroll(asked).await?.into_inner();
    let certificate = answer.certificate.expect("the answer holds one");
    let certificates = |list: Vec<Vec<u8>>| list.into_iter().map(CertificateDer::from).collect();
    let own =
        Own { chain: certificates(certificate.chain), key: PrivateKeyDer::Pkcs8(key.serialize_der().into()) };
    Ok(Member { id, group: certificate.group, own, authorities: certificates(certificate.authorities) })
}

impl Member {
    /// A new proxy that joins this group.
    pub async fn join(control_plane: &ControlPlane, group: &str) -> Self {
        let token = control_plane.enroll(group).await;
        let (key, _) = request();
        enroll(control_plane, &token, Uuid::now_v7(), &key).await.expect("a good token lets it in")
    }

    /// The same names, certified by an authority that a stranger made.
    pub fn forged(&self) -> Self {
        let (root, key) = (KeyPair::generate().expect("random"), KeyPair::generate().expect("random"));
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = Issuer::new(params, root);
        let mut params = CertificateParams::default();
        let uri = self.uri();
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().expect("it is ASCII"))];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &issuer).expect("it can be signed");
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Self { own: Own { chain: vec![leaf.der().clone()], key }, ..self.clone() }
    }

    /// What the certificate says who it is.
    pub fn uri(&self) -> String {
        let facts = waffles_runtime::tls::certificate::Facts::read(&self.own.chain[0]).expect("it is one");
        facts.uris[0].clone()
    }

    /// A connection that shows the certificate.
    pub async fn channel(&self, control_plane: &ControlPlane) -> Result<Channel, Status> {
        let trust = Trust::Authorities(&self.authorities);
        dial(control_plane, mutual::client(trust, Some(self.own.clone())).expect("it is sound")).await
    }

    /// The same, to a control plane that may be gone at the moment.
    pub async fn channel_at(&self, grpc: std::net::SocketAddr) -> Result<Channel, Status> {
        let trust = Trust::Authorities(&self.authorities);
        dial_at(grpc, mutual::client(trust, Some(self.own.clone())).expect("it is sound")).await
    }

    /// What a proxy says first.
    pub fn hello(&self) -> discovery::Hello {
        discovery::Hello {
            proxy_id: self.id.to_string(),
            name: "by-hand".into(),
            group: self.group.clone(),
            version: "0".into(),
            ..discovery::Hello::default()
        }
    }
}

/// A configuration stream that is open.
#[derive(Debug)]
pub struct Followed {
    to: mpsc::Sender<discovery::StreamRequest>,
    from: Streaming<discovery::StreamResponse>,
}

impl Followed {
    /// Opens one.
    pub async fn open(channel: Channel, hello: discovery::Hello) -> Result<Self, Status> {
        let (to, requests) = mpsc::channel(4);
        let first = discovery::StreamRequest { message: Some(Message::Hello(hello)) };
        to.send(first).await.expect("it is held");
        let from =
            DiscoveryServiceClient::new(channel).stream(ReceiverStream::new(requests)).await?.into_inner();
        Ok(Self { to, from })
    }

    /// The next update, acknowledged.
    pub async fn update(&mut self) -> Result<Vec<discovery::Resource>, Status> {
        let mut resources = Vec::new();
        loop {
            let chunk = tokio::time::timeout(PATIENCE, self.from.message())
                .await
                .map_err(|_| Status::deadline_exceeded("nothing came"))??;
            let chunk = chunk.ok_or_else(|| Status::new(Code::Ok, "the stream ended"))?;
            resources.extend(chunk.resources);
            if chunk.last {
                let ack = discovery::Ack { nonce: chunk.nonce, revision: chunk.revision };
                let message = discovery::StreamRequest { message: Some(Message::Ack(ack)) };
                self.to.send(message).await.map_err(|_| Status::unavailable("the stream is over"))?;
                return Ok(resources);
            }
        }
    }

    /// The lineage and revision of the next update, acknowledged; waits for it as long as the stream is open.
    pub async fn skim(&mut self) -> Result<(String, u64), Status> {
        loop {
            let chunk = self.from.message().await?;
            let chunk = chunk.ok_or_else(|| Status::new(Code::Ok, "the stream ended"))?;
            if chunk.last {
                let ack = discovery::Ack { nonce: chunk.nonce, revision: chunk.revision };
                let message = discovery::StreamRequest { message: Some(Message::Ack(ack)) };
                self.to.send(message).await.map_err(|_| Status::unavailable("the stream is over"))?;
                return Ok((chunk.lineage, chunk.revision));
            }
        }
    }

    /// How it ends, when it does so in time.
    pub async fn end(&mut self, limit: Duration) -> Status {
        let over = async {
            loop {
                match self.from.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Status::new(Code::Ok, "it was closed"),
                    Err(status) => return status,
                }
            }
        };
        tokio::time::timeout(limit, over).await.expect("the stream is open still")
    }
}

/// Opens an upload stream, and waits for its first receipt.
pub async fn upload(channel: Channel, id: Uuid) -> Result<u64, Status> {
    open_upload(channel, id).await.map(|(_, stored_through)| stored_through)
}

/// Opens an upload stream that stays open for as long as the answer lives.
pub async fn uploading(channel: Channel, id: Uuid) -> Result<mpsc::Sender<audit::UploadRequest>, Status> {
    open_upload(channel, id).await.map(|(to, _)| to)
}

async fn open_upload(
    channel: Channel,
    id: Uuid,
) -> Result<(mpsc::Sender<audit::UploadRequest>, u64), Status> {
    let (to, requests) = mpsc::channel(4);
    let hello = audit::UploadHello { proxy_id: id.to_string(), spool_id: Uuid::now_v7().to_string() };
    let hello = audit::UploadRequest { message: Some(audit::upload_request::Message::Hello(hello)) };
    to.send(hello).await.expect("it is held");
    let mut from =
        AuditIngestServiceClient::new(channel).upload(ReceiverStream::new(requests)).await?.into_inner();
    let receipt = from.message().await?.ok_or_else(|| Status::unavailable("the stream ended"))?;
    Ok((to, receipt.stored_through))
}

/// Names of the servers among some resources.
pub fn servers(resources: &[discovery::Resource]) -> Vec<String> {
    let name = |resource: &discovery::Resource| match resource.kind.as_ref()? {
        discovery::resource::Kind::Server(server) => Some(server.spec.as_ref()?.name.clone()),
        _ => None,
    };
    let mut names: Vec<String> = resources.iter().filter_map(name).collect();
    names.sort();
    names
}
