//! Rights that are taken away: a role, a group, a user, a session. Every proxy refuses within a second, and open streams
//! of that principal end within five.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use waffles_proto::auth::v1 as pb;
use waffles_proto::auth::v1::auth_service_client::AuthServiceClient;
use waffles_proto::auth::v1::grant_holder::Who;
use waffles_proto::auth::v1::grant_service_client::GrantServiceClient;
use waffles_proto::auth::v1::principal_service_client::PrincipalServiceClient;
use waffles_proto::policy::v1::scope::Kind;
use waffles_proto::policy::v1::{Scope, WholeTenant};
use waffles_tests::waffles::{Authorized, channel, login};
use waffles_tests::{Era, McpClient, McpServer, Waffles, eventually};

const PASSWORD: &str = "correct horse battery";
/// How long a refusal may take to reach a proxy.
const REFUSED: Duration = Duration::from_secs(1);
/// How long a stream may stay open.
const CLOSED: Duration = Duration::from_secs(5);

struct World {
    waffles: Waffles,
    people: PrincipalServiceClient<Authorized>,
    grants: GrantServiceClient<Authorized>,
    _server: McpServer,
}

impl World {
    async fn start() -> Self {
        let server = McpServer::start().await;
        let waffles = Waffles::start().await;
        waffles.add_server("demo", &server.url()).await;
        let admin = || waffles.authorized(&waffles.admin.secret);
        let (people, grants) = (PrincipalServiceClient::new(admin()), GrantServiceClient::new(admin()));
        Self { waffles, people, grants, _server: server }
    }

    /// A user with a password, who holds nothing.
    async fn user(&mut self, email: &str) {
        let request = pb::CreateUserRequest { email: email.into(), ..Default::default() };
        let made = self.people.create_user(request).await.unwrap().into_inner();
        let token = made.password_token.unwrap().secret;
        let request = pb::SetPasswordRequest { token, password: PASSWORD.into() };
        self.people.set_password(request).await.unwrap();
    }

    async fn token(&self, email: &str) -> String {
        let channel = channel(&self.waffles.control_plane.grpc_url());
        login(&channel, email, PASSWORD).await.unwrap().access_token
    }

    async fn grant(&mut self, who: Who) -> String {
        let request = pb::CreateGrantRequest {
            role: "user".into(),
            holder: Some(pb::GrantHolder { who: Some(who) }),
            scope: Some(Scope { kind: Some(Kind::Tenant(WholeTenant {})) }),
        };
        let made = self.grants.create_grant(request).await.unwrap().into_inner();
        self.waffles.settled().await;
        made.grant.unwrap().id
    }

    fn client(&self, credential: &str) -> McpClient {
        McpClient::new(&self.waffles.proxies[0].server_url("demo")).with_bearer(credential)
    }

    async fn status(&self, credential: &str) -> u16 {
        let client = self.client(credential).of(Era::Stateless).await;
        client.call("echo", json!({})).await.unwrap().status.as_u16()
    }

    async fn refused(&self, credential: &str) {
        eventually(REFUSED, || async {
            let status = self.status(credential).await;
            ensure!(status == 401 || status == 404 || status == 403, "the proxy answers {status}");
            Ok(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_right_that_is_taken_back_ends_calls_and_streams() {
    let mut world = World::start().await;
    world.user("uma@test").await;
    let token = world.token("uma@test").await;
    assert_ne!(world.status(&token).await, 200, "who holds nothing calls nothing");
    let grant = world.grant(Who::Principal("uma@test".into())).await;
    assert_eq!(world.status(&token).await, 200);
    let stream = world.client(&token).of(Era::Sessions).await.get_stream().await.unwrap();
    world.grants.delete_grant(pb::DeleteGrantRequest { id: grant }).await.unwrap();
    world.refused(&token).await;
    assert!(tokio::time::timeout(CLOSED, stream.rest()).await.is_ok(), "the stream is open");
}

#[tokio::test]
async fn a_group_gives_and_takes() {
    let mut world = World::start().await;
    world.user("uma@test").await;
    let token = world.token("uma@test").await;
    let group = pb::CreateGroupRequest { name: "staff".into(), ..Default::default() };
    world.people.create_group(group).await.unwrap();
    world.grant(Who::Group("staff".into())).await;
    assert_ne!(world.status(&token).await, 200);
    let add = pb::AddGroupMemberRequest { group: "staff".into(), member: "uma@test".into() };
    world.people.add_group_member(add).await.unwrap();
    world.waffles.settled().await;
    assert_eq!(world.status(&token).await, 200);
    let take = pb::RemoveGroupMemberRequest { group: "staff".into(), member: "uma@test".into() };
    world.people.remove_group_member(take).await.unwrap();
    world.refused(&token).await;
}

#[tokio::test]
async fn a_session_that_is_revoked_takes_its_token_and_no_other_with_it() {
    let mut world = World::start().await;
    world.user("uma@test").await;
    world.grant(Who::Principal("uma@test".into())).await;
    let (one, other) = (world.token("uma@test").await, world.token("uma@test").await);
    let own = PrincipalServiceClient::new(world.waffles.authorized(&one));
    let sessions =
        own.clone().list_sessions(pb::ListSessionsRequest::default()).await.unwrap().into_inner().sessions;
    let current = sessions.iter().find(|session| session.current).unwrap().id.clone();
    assert_eq!((world.status(&one).await, world.status(&other).await), (200, 200));
    let stream = world.client(&one).of(Era::Sessions).await.get_stream().await.unwrap();
    world.people.revoke_session(pb::RevokeSessionRequest { id: current }).await.unwrap();
    world.refused(&one).await;
    assert!(tokio::time::timeout(CLOSED, stream.rest()).await.is_ok(), "the stream is open");
    assert_eq!(world.status(&other).await, 200);
}

#[tokio::test]
async fn a_log_out_ends_the_access_token_on_proxies_too() {
    let mut world = World::start().await;
    world.user("uma@test").await;
    world.grant(Who::Principal("uma@test".into())).await;
    let channel = channel(&world.waffles.control_plane.grpc_url());
    let tokens = login(&channel, "uma@test", PASSWORD).await.unwrap();
    assert_eq!(world.status(&tokens.access_token).await, 200);
    let request = pb::LogoutRequest { refresh_token: tokens.refresh_token };
    AuthServiceClient::new(channel).logout(request).await.unwrap();
    world.refused(&tokens.access_token).await;
}

#[tokio::test]
async fn who_is_deactivated_is_refused_by_token_and_key() {
    let mut world = World::start().await;
    world.user("uma@test").await;
    world.grant(Who::Principal("uma@test".into())).await;
    let token = world.token("uma@test").await;
    let mut own = AuthServiceClient::new(world.waffles.authorized(&token));
    let key = pb::CreateApiKeyRequest { name: "k".into(), ..Default::default() };
    let key = own.create_api_key(key).await.unwrap().into_inner().secret;
    world.waffles.settled().await;
    assert_eq!((world.status(&token).await, world.status(&key).await), (200, 200));
    let stream = world.client(&key).of(Era::Sessions).await.get_stream().await.unwrap();
    let off = pb::SetUserActiveRequest { user: "uma@test".into(), active: false };
    world.people.set_user_active(off).await.unwrap();
    world.refused(&token).await;
    world.refused(&key).await;
    assert!(tokio::time::timeout(CLOSED, stream.rest()).await.is_ok(), "the stream is open");
}

#[tokio::test]
async fn a_key_used_at_a_proxy_says_so() {
    let mut world = World::start().await;
    let request = pb::CreateServiceAccountRequest { name: "robot".into(), ..Default::default() };
    world.people.create_service_account(request).await.unwrap();
    world.grant(Who::Principal("robot".into())).await;
    let request = pb::CreateServiceAccountKeyRequest {
        service_account: "robot".into(),
        name: "k".into(),
        ..Default::default()
    };
    let made = world.people.create_service_account_key(request).await.unwrap().into_inner();
    world.waffles.settled().await;
    assert_eq!(world.status(&made.secret).await, 200);
    let id = made.api_key.unwrap().id;
    eventually(Duration::from_secs(20), || async {
        let request = pb::GetApiKeyRequest { id: id.clone() };
        let key = world.waffles.auth().get_api_key(request).await?.into_inner().api_key;
        ensure!(key.is_some_and(|key| key.last_used_at.is_some()), "nobody knows that it was used");
        Ok(())
    })
    .await;
}
