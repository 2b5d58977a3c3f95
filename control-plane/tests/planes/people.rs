//! Users, groups and grants over gRPC, on both databases: two who act at once, and what proxies are told.

use tonic::Code;
use waffles_proto::auth::v1 as pb;
use waffles_proto::auth::v1::auth_service_client::AuthServiceClient;
use waffles_proto::auth::v1::grant_holder::Who;
use waffles_proto::auth::v1::grant_service_client::GrantServiceClient;
use waffles_proto::auth::v1::principal_service_client::PrincipalServiceClient;
use waffles_proto::policy::v1::scope::Kind;
use waffles_proto::policy::v1::{Scope, WholeTenant};

use super::{Database, Operator, Plane};

const PASSWORD: &str = "correct horse battery";

fn everywhere() -> Option<Scope> {
    Some(Scope { kind: Some(Kind::Tenant(WholeTenant {})) })
}

fn people(operator: &Operator) -> PrincipalServiceClient<tonic::transport::Channel> {
    PrincipalServiceClient::new(operator.channel.clone())
}

async fn invite(admin: &Operator, email: &str) -> String {
    let request = pb::CreateUserRequest { email: email.into(), ..Default::default() };
    let made = people(admin).create_user(admin.ask(request)).await.unwrap().into_inner();
    made.password_token.unwrap().secret
}

async fn set(plane: &Plane, token: &str) -> Code {
    let request = pb::SetPasswordRequest { token: token.into(), password: PASSWORD.into() };
    let set = PrincipalServiceClient::new(plane.channel().await).set_password(request).await;
    set.err().map_or(Code::Ok, |status| status.code())
}

async fn login(plane: &Plane, email: &str) -> Operator {
    let request = pb::LoginRequest { email: email.into(), password: PASSWORD.into(), tenant: String::new() };
    let channel = plane.channel().await;
    let answer = AuthServiceClient::new(channel.clone()).login(request).await.unwrap().into_inner();
    Operator { token: answer.tokens.unwrap().access_token, channel }
}

async fn grant(by: &Operator, role: &str, who: Who) -> Result<String, Code> {
    let holder = Some(pb::GrantHolder { who: Some(who) });
    let request = pb::CreateGrantRequest { role: role.into(), holder, scope: everywhere() };
    let made = GrantServiceClient::new(by.channel.clone()).create_grant(by.ask(request)).await;
    made.map(|made| made.into_inner().grant.unwrap().id).map_err(|status| status.code())
}

async fn deactivate(by: &Operator, user: &str) -> Code {
    let request = pb::SetUserActiveRequest { user: user.into(), active: false };
    let done = people(by).set_user_active(by.ask(request)).await;
    done.err().map_or(Code::Ok, |status| status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_two_use_at_once_is_good_once() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        for round in 0..5 {
            let token = invite(&admin, &format!("uma{round}@test")).await;
            let mut codes: Vec<i32> =
                Vec::from(<[Code; 2]>::from(tokio::join!(set(&plane, &token), set(&plane, &token))))
                    .into_iter()
                    .map(i32::from)
                    .collect();
            codes.sort_unstable();
            assert_eq!(codes, [i32::from(Code::Ok), i32::from(Code::Unauthenticated)]);
        }
        plane.stop().await;
        database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_admins_who_deactivate_each_other_one_stays() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        let token = invite(&admin, "two@test").await;
        assert_eq!(set(&plane, &token).await, Code::Ok);
        grant(&admin, "admin", Who::Principal("two@test".into())).await.unwrap();
        let two = login(&plane, "two@test").await;
        let (one_off, two_off) =
            tokio::join!(deactivate(&two, "admin@localhost"), deactivate(&admin, "two@test"));
        assert_eq!(
            [one_off, two_off].iter().filter(|code| **code == Code::Ok).count(),
            1,
            "{one_off:?} {two_off:?}"
        );
        let (left, name) = if two_off == Code::Ok { (&admin, "admin@localhost") } else { (&two, "two@test") };
        assert_eq!(deactivate(left, name).await, Code::AlreadyExists, "the last admin went");
        plane.stop().await;
        database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_grants_what_they_do_not_hold_also_when_it_was_just_taken() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        let token = invite(&admin, "two@test").await;
        assert_eq!(set(&plane, &token).await, Code::Ok);
        let own = grant(&admin, "admin", Who::Principal("two@test".into())).await.unwrap();
        let two = login(&plane, "two@test").await;
        invite(&admin, "eve@test").await;
        let take = pb::DeleteGrantRequest { id: own };
        let mut grants = GrantServiceClient::new(admin.channel.clone());
        let (taken, given) = tokio::join!(
            grants.delete_grant(admin.ask(take)),
            grant(&two, "auditor", Who::Principal("eve@test".into())),
        );
        taken.unwrap();
        // Whichever came first: afterwards nothing can be given.
        assert!(matches!(given, Ok(_) | Err(Code::PermissionDenied)), "{given:?}");
        let late = grant(&two, "readonly", Who::Principal("eve@test".into())).await;
        assert_eq!(late, Err(Code::PermissionDenied));
        plane.stop().await;
        database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_deactivated_is_refused_with_session_and_key() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        let token = invite(&admin, "uma@test").await;
        assert_eq!(set(&plane, &token).await, Code::Ok);
        grant(&admin, "user", Who::Principal("uma@test".into())).await.unwrap();
        let uma = login(&plane, "uma@test").await;
        let mut auth = AuthServiceClient::new(uma.channel.clone());
        let new = pb::CreateApiKeyRequest { name: "k".into(), ..Default::default() };
        let key = auth.create_api_key(uma.ask(new)).await.unwrap().into_inner().secret;
        assert_eq!(deactivate(&admin, "uma@test").await, Code::Ok);
        for credential in [uma.token.clone(), key] {
            let me = super::with_bearer(pb::GetSelfRequest {}, &credential);
            assert_eq!(auth.get_self(me).await.unwrap_err().code(), Code::Unauthenticated);
        }
        plane.stop().await;
        database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_group_holds_its_members_hold_and_lists_have_pages() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        let mut service = people(&admin);
        for name in ["blue", "red"] {
            let request = pb::CreateGroupRequest { name: name.into(), ..Default::default() };
            service.create_group(admin.ask(request)).await.unwrap();
            grant(&admin, "readonly", Who::Group(name.into())).await.unwrap();
        }
        let request = pb::CreateServiceAccountRequest { name: "robot".into(), ..Default::default() };
        service.create_service_account(admin.ask(request)).await.unwrap();
        for group in ["blue", "red"] {
            let request = pb::AddGroupMemberRequest { group: group.into(), member: "robot".into() };
            let now = service.add_group_member(admin.ask(request)).await.unwrap().into_inner().group.unwrap();
            assert_eq!(now.member_count, 1);
        }
        let request = pb::GetServiceAccountRequest { service_account: "robot".into() };
        let robot = service.get_service_account(admin.ask(request)).await.unwrap().into_inner();
        let robot = robot.service_account.unwrap();
        assert_eq!(robot.groups, ["blue", "red"]);
        assert_eq!(robot.roles.iter().map(|held| held.role.as_str()).collect::<Vec<_>>(), ["readonly"]);
        let request = pb::ListGroupsRequest { page_size: 1, ..Default::default() };
        let first = service.list_groups(admin.ask(request)).await.unwrap().into_inner();
        let request = pb::ListGroupsRequest { page_size: 1, cursor: first.next_cursor };
        let second = service.list_groups(admin.ask(request)).await.unwrap().into_inner();
        assert_eq!((first.groups[0].name.as_str(), second.groups[0].name.as_str()), ("blue", "red"));
        assert!(second.next_cursor.is_empty());
        let mut grants = GrantServiceClient::new(admin.channel.clone());
        let request = pb::ListGrantsRequest { page_size: 1, group: "red".into(), ..Default::default() };
        let found = grants.list_grants(admin.ask(request)).await.unwrap().into_inner();
        assert_eq!((found.grants.len(), found.next_cursor.as_str()), (1, ""));
        let sessions = service.list_sessions(admin.ask(pb::ListSessionsRequest::default())).await.unwrap();
        assert_eq!(sessions.into_inner().sessions.len(), 1);
        plane.stop().await;
        database.drop().await;
    }
}
