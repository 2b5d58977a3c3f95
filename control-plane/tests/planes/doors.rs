//! Who gets in, and through which door.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_request};
use uuid::Uuid;
use waffles_proto::discovery::v1::discovery_service_client::DiscoveryServiceClient;
use waffles_proto::registry::v1 as registry;
use waffles_proto::registry::v1::registry_service_client::RegistryServiceClient;

use super::enrolled::Enrolled;
use super::{Database, Plane, with_bearer};

async fn list(plane: &Plane, token: &str) -> Code {
    let request = with_bearer(registry::ListServersRequest::default(), token);
    let answer = RegistryServiceClient::new(plane.channel().await).list_servers(request).await;
    answer.err().map_or(Code::Ok, |status| status.code())
}

async fn stream(channel: Channel, token: Option<&str>) -> Code {
    let (_to, requests) = mpsc::channel(1);
    let requests = ReceiverStream::new(requests);
    let request = match token {
        Some(token) => with_bearer(requests, token),
        None => tonic::Request::new(requests),
    };
    let answer = DiscoveryServiceClient::new(channel).stream(request).await;
    answer.err().map_or(Code::Ok, |status| status.code())
}

async fn reflect(plane: &Plane, token: Option<&str>) -> Result<(), Status> {
    let ask = server_reflection_request::MessageRequest::ListServices(String::new());
    let ask = ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    let stream = tokio_stream::once(ask);
    let request = match token {
        Some(token) => with_bearer(stream, token),
        None => tonic::Request::new(stream),
    };
    let mut answers = ServerReflectionClient::new(plane.channel().await)
        .server_reflection_info(request)
        .await?
        .into_inner();
    assert!(answers.message().await?.is_some());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_credential_opens_its_own_door_only() {
    let database = Database::sqlite();
    let plane = Plane::start(&database).await;
    let admin = plane.sign_in().await.token;
    let proxy = Enrolled::new(&plane).await;
    assert_eq!(list(&plane, &admin).await, Code::Ok);
    for wrong in ["x", "", "wfl_0000", "wfj_0000"] {
        assert_eq!(list(&plane, wrong).await, Code::Unauthenticated, "{wrong}");
    }
    assert_eq!(stream(proxy.channel(&plane).await, None).await, Code::Ok);
    for wrong in [Some(admin.as_str()), Some("x"), None] {
        assert_eq!(stream(plane.channel().await, wrong).await, Code::Unauthenticated, "{wrong:?}");
    }
    // A proxy's certificate opens nothing of an operator's, whatever comes with it.
    let request = with_bearer(registry::ListServersRequest::default(), &admin);
    let taken = RegistryServiceClient::new(proxy.channel(&plane).await).list_servers(request).await;
    assert_eq!(taken.unwrap_err().code(), Code::PermissionDenied);
    let bare = RegistryServiceClient::new(plane.channel().await)
        .list_servers(registry::ListServersRequest::default())
        .await
        .unwrap_err();
    assert_eq!(bare.code(), Code::Unauthenticated);
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_open_and_reflection_is_for_operators() {
    let database = Database::sqlite();
    let plane = Plane::start(&database).await;
    let admin = plane.sign_in().await.token;
    let mut health = HealthClient::new(plane.channel().await);
    super::eventually(async || {
        let answer = health.clone().check(HealthCheckRequest::default()).await.ok()?.into_inner();
        (answer.status == 1).then_some(())
    })
    .await;
    reflect(&plane, Some(&admin)).await.unwrap();
    for refused in [None, Some("x"), Some("wfj_0000")] {
        assert_eq!(reflect(&plane, refused).await.unwrap_err().code(), Code::Unauthenticated);
    }
    // Someone who watches the health does not keep the process from ending.
    let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_nobody_mapped_is_denied() {
    let database = Database::sqlite();
    let plane = Plane::start(&database).await;
    let admin = plane.sign_in().await;
    let mut grpc = tonic::client::Grpc::new(admin.channel.clone());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<registry::GetServerRequest, registry::GetServerResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/waffles.registry.v1.RegistryService/DropEverything");
    let request = admin.ask(registry::GetServerRequest::default());
    let denied = grpc.unary(request, path, codec).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_master_key_is_refused_by_name() {
    let database = Database::sqlite();
    Plane::start(&database).await.stop().await;
    let other = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    std::fs::write(database.folder.path().join("master.key"), other).unwrap();
    let folder = database.folder.path().to_str().unwrap();
    let args = ["waffles-control-plane", "migrate", "--data-dir", folder];
    let config = waffles_control_plane::config::Config::from_args(args).unwrap();
    let error = waffles_control_plane::app::migrate(&config).await.unwrap_err();
    assert!(error.to_string().contains("--master-key-file"), "{error}");
}
