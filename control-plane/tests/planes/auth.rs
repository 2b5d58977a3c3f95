//! Sessions and keys over gRPC, and every method's refusal of those who may not.

use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;
use waffles_control_plane::authz::{Act, METHODS, ROUTES, Rule};
use waffles_proto::audit::v1 as audit_pb;
use waffles_proto::audit::v1::audit_service_client::AuditServiceClient;
use waffles_proto::auth::v1 as pb;
use waffles_proto::auth::v1::auth_service_client::AuthServiceClient;

use super::{Database, Operator, Plane, with_bearer};

async fn issue(operator: &Operator, limits: pb::KeyLimits) -> Result<pb::CreateApiKeyResponse, Status> {
    let new = pb::CreateApiKeyRequest { name: "k".into(), limits: Some(limits), ..Default::default() };
    let mut client = AuthServiceClient::new(operator.channel.clone());
    Ok(client.create_api_key(operator.ask(new)).await?.into_inner())
}

/// An RPC without content; what it says to that is its own matter once it was let in.
async fn rpc(plane: &Plane, path: &'static str, credential: Option<&str>) -> Code {
    let mut client = Grpc::new(plane.channel().await);
    client.ready().await.unwrap();
    let request = match credential {
        Some(credential) => with_bearer((), credential),
        None => tonic::Request::new(()),
    };
    let codec: ProstCodec<(), ()> = ProstCodec::default();
    let answer = client.server_streaming(request, PathAndQuery::from_static(path), codec).await;
    answer.err().map_or(Code::Ok, |status| status.code())
}

/// A request to REST without content, over a socket; answers with the status.
async fn rest(plane: &Plane, method: &str, path: &str, credential: Option<&str>) -> u16 {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let address = plane.http.strip_prefix("http://").unwrap();
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let shown = credential.map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\n{shown}content-length: 0\r\nconnection: close\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(super::SOON, socket.read_to_end(&mut answer)).await.unwrap().unwrap();
    let head = String::from_utf8_lossy(&answer);
    head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{head}"))
}

/// How many events the trail has: every change leaves one.
async fn events(operator: &Operator) -> usize {
    let request = audit_pb::SearchEventsRequest { page_size: 1000, ..Default::default() };
    let found = AuditServiceClient::new(operator.channel.clone()).search_events(operator.ask(request)).await;
    found.unwrap().into_inner().events.len()
}

/// Walks every row of the tables, so that a new route or method cannot be forgotten here: without a credential, with one
/// that lacks the permission, and with a key of the admin's that may only read.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_and_method_denies_who_may_not_and_nothing_is_written() {
    let database = Database::sqlite();
    let plane = Plane::start(&database).await;
    let admin = plane.sign_in().await;
    let narrow = pb::KeyLimits { scopes: vec!["gateway:use".into()], ..Default::default() };
    let narrow = issue(&admin, narrow).await.unwrap().secret;
    let reader = pb::KeyLimits { read_only: true, ..Default::default() };
    let reader = issue(&admin, reader).await.unwrap().secret;
    let before = events(&admin).await;
    for (path, rule, act) in METHODS.iter().copied() {
        let needs = matches!(rule, Rule::Needs(_) | Rule::NeedsEither(..));
        if rule == Rule::Public {
            continue;
        }
        assert_eq!(rpc(&plane, path, None).await, Code::Unauthenticated, "{path} without a credential");
        let (other, read) = (rpc(&plane, path, Some(&narrow)).await, rpc(&plane, path, Some(&reader)).await);
        if matches!(rule, Rule::Proxy | Rule::Join) {
            assert_eq!(
                (other, read),
                (Code::Unauthenticated, Code::Unauthenticated),
                "{path} is for proxies"
            );
            continue;
        }
        // What anyone may ask for, the service may still refuse: a key changes no password.
        assert!(
            other == Code::PermissionDenied || !needs,
            "{path} with a key for the gateway only: {other:?}"
        );
        assert_ne!(other, Code::Unauthenticated, "{path} with a key for the gateway only");
        assert_eq!(
            read == Code::PermissionDenied,
            act == Act::Changes,
            "{path} with a key that reads: {read:?}"
        );
    }
    let unmapped = "/waffles.registry.v1.RegistryService/NoSuchMethod";
    for credential in [None, Some(narrow.as_str()), Some(admin.token.as_str())] {
        assert_eq!(rpc(&plane, unmapped, credential).await, Code::PermissionDenied);
    }
    for (method, path, rule, act) in ROUTES {
        if *rule == Rule::Public {
            continue;
        }
        let parts = path.split('/').map(|part| if part.starts_with('{') { "nobody" } else { part });
        let target = parts.collect::<Vec<_>>().join("/");
        let ask = async |credential| rest(&plane, method.as_str(), &target, credential).await;
        assert_eq!(ask(None).await, 401, "{method} {path} without a credential");
        let (other, read) = (ask(Some(&narrow)).await, ask(Some(&reader)).await);
        assert!(
            other == 403 || *rule == Rule::Authenticated,
            "{method} {path} for the gateway only: {other}"
        );
        assert_ne!(other, 401, "{method} {path} with a key for the gateway only");
        assert_eq!(read == 403, *act == Act::Changes, "{method} {path} with a key that reads: {read}");
    }
    assert_eq!(events(&admin).await, before, "somebody who may not has changed something");
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_issued_used_and_revoked_over_grpc() {
    let database = Database::sqlite();
    let plane = Plane::start(&database).await;
    let admin = plane.sign_in().await;
    let issued = issue(&admin, pb::KeyLimits::default()).await.unwrap();
    let id = issued.api_key.unwrap().id;
    let mut client = AuthServiceClient::new(admin.channel.clone());
    let me = client.get_self(with_bearer(pb::GetSelfRequest {}, &issued.secret)).await.unwrap().into_inner();
    assert_eq!(
        (me.api_key_id.as_str(), me.principal.unwrap().name.as_str()),
        (id.as_str(), "admin@localhost")
    );

    let revoke = pb::RevokeApiKeyRequest { id: id.clone() };
    let revoked = client.revoke_api_key(admin.ask(revoke)).await.unwrap().into_inner();
    assert!(revoked.api_key.unwrap().revoked_at.is_some());
    let refused = client.get_self(with_bearer(pb::GetSelfRequest {}, &issued.secret)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let request = pb::ListApiKeysRequest { include_ended: true, ..Default::default() };
    let listed = client.list_api_keys(admin.ask(request)).await.unwrap().into_inner();
    assert_eq!(listed.api_keys.iter().map(|key| &key.id).collect::<Vec<_>>(), [&id]);
    let missing = client.get_api_key(admin.ask(pb::GetApiKeyRequest { id: "nobody".into() })).await;
    assert_eq!(missing.unwrap_err().code(), Code::NotFound);
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_names_its_wrong_fields() {
    let database = Database::sqlite();
    let plane = Plane::start(&database).await;
    let admin = plane.sign_in().await;
    let limits = pb::KeyLimits {
        scopes: vec!["everything".into()],
        ip_ranges: vec!["here".into()],
        ..Default::default()
    };
    let status = issue(&admin, limits).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let details = status.get_error_details();
    let fields: Vec<_> =
        details.bad_request().unwrap().field_violations.iter().map(|v| v.field.as_str()).collect();
    assert_eq!(fields, ["limits.scopes[0]", "limits.ip_ranges[0]"]);
    assert!(details.request_info().is_some());
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_over_grpc_and_ends_when_a_token_is_used_twice() {
    let database = Database::sqlite();
    let plane = Plane::start(&database).await;
    let mut client = AuthServiceClient::new(plane.channel().await);
    let login = |password: &str| pb::LoginRequest {
        email: "admin@localhost".into(),
        password: password.into(),
        tenant: String::new(),
    };
    let wrong = client.login(login("wrong")).await.unwrap_err();
    assert_eq!(wrong.code(), Code::Unauthenticated);
    let right = login(plane.password.as_deref().unwrap());
    let first = client.login(right).await.unwrap().into_inner().tokens.unwrap().refresh_token;
    let refresh = |token: &str| pb::RefreshRequest { refresh_token: token.to_owned() };
    let second = client.refresh(refresh(&first)).await.unwrap().into_inner().tokens.unwrap();
    let me = with_bearer(pb::GetSelfRequest {}, &second.access_token);
    client.get_self(me).await.unwrap();
    for used_up in [&first, &second.refresh_token] {
        let refused = client.refresh(refresh(used_up)).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
    let me = with_bearer(pb::GetSelfRequest {}, &second.access_token);
    assert_eq!(client.get_self(me).await.unwrap_err().code(), Code::Unauthenticated);
    plane.stop().await;
}
