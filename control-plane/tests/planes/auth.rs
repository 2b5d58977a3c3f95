//! Sessions and keys over gRPC, and every method's refusal of those who may not.

use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;
use waffles_control_plane::authz::{Act, METHODS, Rule};
use waffles_proto::auth::v1 as pb;
use waffles_proto::auth::v1::auth_service_client::AuthServiceClient;

use super::{Database, Operator, Plane, with_bearer};

async fn issue(operator: &Operator, limits: pb::KeyLimits) -> Result<pb::CreateApiKeyResponse, Status> {
    let new = pb::CreateApiKeyRequest { name: "k".into(), limits: Some(limits), ..Default::default() };
    let mut client = AuthServiceClient::new(operator.channel.clone());
    Ok(client.create_api_key(operator.ask(new)).await?.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_method_denies_who_may_not() {
    let database = Database::sqlite();
    let plane = Plane::start(&database).await;
    let admin = plane.sign_in().await;
    let narrow = pb::KeyLimits { scopes: vec!["gateway:use".into()], ..Default::default() };
    let narrow = issue(&admin, narrow).await.unwrap().secret;
    let unmapped = ("/waffles.registry.v1.RegistryService/NoSuchMethod", Rule::Authenticated, Act::Reads);
    for (path, rule, _) in METHODS.iter().copied().chain([unmapped]) {
        let call = async |credential: Option<&str>| {
            let mut client = Grpc::new(plane.channel().await);
            client.ready().await.unwrap();
            let request = match credential {
                Some(credential) => with_bearer((), credential),
                None => tonic::Request::new(()),
            };
            let codec: ProstCodec<(), ()> = ProstCodec::default();
            let answer = client.server_streaming(request, PathAndQuery::from_static(path), codec).await;
            answer.err().map_or(Code::Ok, |status| status.code())
        };
        let (nobody, somebody) = match rule {
            Rule::Public => continue,
            _ if path == unmapped.0 => (Code::PermissionDenied, Code::PermissionDenied),
            Rule::Authenticated => (Code::Unauthenticated, Code::Ok),
            Rule::Needs(_) | Rule::NeedsEither(..) => (Code::Unauthenticated, Code::PermissionDenied),
            Rule::Proxy | Rule::Join => (Code::Unauthenticated, Code::Unauthenticated),
        };
        assert_eq!(call(None).await, nobody, "{path} without a credential");
        let code = call(Some(&narrow)).await;
        // What anyone may ask for, the service may still refuse: a key changes no password.
        let right = if rule == Rule::Authenticated && path != unmapped.0 {
            code != Code::Unauthenticated
        } else {
            code == somebody
        };
        assert!(right, "{path} with a key for the gateway only: {code:?}");
    }
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
