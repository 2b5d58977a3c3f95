//! Servers are registered, shown, changed and retired.

use tonic::Code;
use tonic_types::StatusExt as _;
use waffles_proto::audit::v1 as audit;
use waffles_proto::audit::v1::audit_service_client::AuditServiceClient;
use waffles_proto::registry::v1 as pb;
use waffles_proto::registry::v1::registry_service_client::RegistryServiceClient;

use super::{Database, Operator, Plane, spec};

fn create(spec: pb::ServerSpec) -> pb::CreateServerRequest {
    pb::CreateServerRequest { spec: Some(spec), disabled: false }
}

async fn code<T>(call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Code {
    call.await.err().map_or(Code::Ok, |status| status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_lives_from_registration_to_retirement() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        Box::pin(life(&admin)).await;
        plane.stop().await;
        database.drop().await;
    }
}

async fn life(admin: &Operator) {
    let mut servers = RegistryServiceClient::new(admin.channel.clone());
    let secret = pb::Credential {
        kind: Some(pb::credential::Kind::Bearer(pb::BearerCredential { token: "hunter2".into() })),
    };
    let wanted = pb::ServerSpec {
        description: "für Tests".into(),
        tags: vec!["red".into(), "team:a".into()],
        credential: Some(secret),
        capture: pb::Capture::Full.into(),
        audit: pb::AuditMode::Strict.into(),
        tools: Some(pb::ToolFilter { allow: vec!["get_*".into()], deny: vec!["get_secret".into()] }),
        redact: vec!["ssn".into()],
        ..spec("demo")
    };
    let made =
        servers.create_server(admin.ask(create(wanted.clone()))).await.unwrap().into_inner().server.unwrap();
    assert_eq!((made.version, made.enabled, made.tenant.as_str()), (1, true, "default"));
    let shown = servers.get_server(admin.ask(pb::GetServerRequest { name: "demo".into() })).await.unwrap();
    let mut shown = shown.into_inner().server.unwrap();
    // Only who looks is told how it is.
    let health = shown.health.take().unwrap();
    assert_eq!((health.state(), health.reason.as_str()), (pb::HealthState::Unknown, "no_report"));
    assert_eq!(shown, made);
    let kept = shown.spec.unwrap();
    assert_eq!((&kept.tags, &kept.tools, &kept.redact), (&wanted.tags, &wanted.tools, &wanted.redact));
    assert_eq!(
        (kept.capture, kept.audit, &kept.description),
        (wanted.capture, wanted.audit, &wanted.description)
    );
    assert!(!format!("{kept:?}").contains("hunter2"), "a secret is shown");

    // A lost update is told, with the version that won.
    let change = pb::ServerSpec { description: "neu".into(), credential: None, ..wanted };
    let update = |version| pb::UpdateServerRequest { spec: Some(change.clone()), version };
    let changed = servers.update_server(admin.ask(update(1))).await.unwrap().into_inner().server.unwrap();
    assert_eq!((changed.version, changed.spec.unwrap().description.as_str()), (2, "neu"));
    let lost = servers.update_server(admin.ask(update(1))).await.unwrap_err();
    assert_eq!(lost.code(), Code::Aborted);
    assert!(lost.message().contains('2'), "{lost}");

    let off = pb::SetServerEnabledRequest { name: "demo".into(), enabled: false };
    let disabled =
        servers.set_server_enabled(admin.ask(off.clone())).await.unwrap().into_inner().server.unwrap();
    assert_eq!((disabled.enabled, disabled.version), (false, 3));
    let again = servers.set_server_enabled(admin.ask(off)).await.unwrap().into_inner().server.unwrap();
    assert_eq!(again.version, 3, "nothing changed");

    assert_eq!(code(servers.create_server(admin.ask(create(spec("demo"))))).await, Code::AlreadyExists);
    let delete = || admin.ask(pb::DeleteServerRequest { name: "demo".into() });
    servers.delete_server(delete()).await.unwrap();
    assert_eq!(code(servers.delete_server(delete())).await, Code::NotFound);
    assert_eq!(code(servers.update_server(admin.ask(update(3)))).await, Code::NotFound);
    // The audit trail tells of the first server of that name.
    assert_eq!(code(servers.create_server(admin.ask(create(spec("demo"))))).await, Code::AlreadyExists);

    // Every act, and only what happened, is in the trail.
    let filter = audit::EventFilter { server: "demo".into(), action: "server.".into(), ..Default::default() };
    let search = audit::SearchEventsRequest { filter: Some(filter), ..Default::default() };
    let found =
        AuditServiceClient::new(admin.channel.clone()).search_events(admin.ask(search)).await.unwrap();
    let events = found.into_inner().events;
    let actions: Vec<_> = events.iter().map(|event| event.action.as_str()).collect();
    assert_eq!(actions, ["server.delete", "server.disable", "server.update", "server.create"]);
    assert!(
        events.iter().all(|event| event.principal_name == "admin@localhost" && !event.client_ip.is_empty())
    );
    assert!(!format!("{events:?}").contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_field_is_named_and_nothing_is_written() {
    let database = Database::sqlite();
    let plane = Plane::start(&database).await;
    let admin = plane.sign_in().await;
    let mut servers = RegistryServiceClient::new(admin.channel.clone());
    let bad = pb::ServerSpec { tags: vec!["not ok".into()], endpoints: vec![], ..spec("Bad Name") };
    let refused = servers.create_server(admin.ask(create(bad))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let details = refused.get_error_details();
    let fields: Vec<_> =
        details.bad_request().unwrap().field_violations.iter().map(|v| v.field.as_str()).collect();
    assert_eq!(fields, ["name", "tags[0]", "endpoints"]);
    assert_eq!(
        code(servers.create_server(admin.ask(pb::CreateServerRequest::default()))).await,
        Code::InvalidArgument
    );
    let list = servers.list_servers(admin.ask(pb::ListServersRequest::default())).await.unwrap().into_inner();
    assert!(list.servers.is_empty());
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_and_paged() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        let mut servers = RegistryServiceClient::new(admin.channel.clone());
        for (i, tag) in ["red", "blue", "red", "blue", "red"].iter().enumerate() {
            let spec =
                pb::ServerSpec { tags: vec![(*tag).into(), "all".into()], ..spec(&format!("server-{i}")) };
            let request = pb::CreateServerRequest { spec: Some(spec), disabled: i == 0 };
            servers.create_server(admin.ask(request)).await.unwrap();
        }
        let check = async |filter: pb::ListServersRequest, expected: &[u32]| {
            let (mut servers, mut names, mut cursor) = (servers.clone(), Vec::new(), String::new());
            loop {
                let request = pb::ListServersRequest { page_size: 2, cursor, ..filter.clone() };
                let page = servers.list_servers(admin.ask(request)).await.unwrap().into_inner();
                assert!(page.servers.len() <= 2);
                names.extend(page.servers.into_iter().map(|server| server.spec.unwrap().name));
                cursor = page.next_cursor;
                if cursor.is_empty() {
                    break;
                }
            }
            let expected: Vec<_> = expected.iter().map(|i| format!("server-{i}")).collect();
            assert_eq!(names, expected, "{filter:?}");
        };
        let all = pb::ListServersRequest::default();
        check(all.clone(), &[0, 1, 2, 3, 4]).await;
        check(pb::ListServersRequest { tags: vec!["red".into()], ..all.clone() }, &[0, 2, 4]).await;
        check(pb::ListServersRequest { tags: vec!["red".into(), "all".into()], ..all.clone() }, &[0, 2, 4])
            .await;
        check(pb::ListServersRequest { tags: vec!["red".into(), "blue".into()], ..all.clone() }, &[]).await;
        check(pb::ListServersRequest { enabled: Some(false), ..all.clone() }, &[0]).await;
        check(
            pb::ListServersRequest { enabled: Some(true), tags: vec!["red".into()], ..all.clone() },
            &[2, 4],
        )
        .await;
        check(pb::ListServersRequest { name_contains: "r-3".into(), ..all.clone() }, &[3]).await;
        check(pb::ListServersRequest { name_contains: "%".into(), ..all.clone() }, &[]).await;
        for bad in [
            pb::ListServersRequest { page_size: 501, ..all.clone() },
            pb::ListServersRequest { cursor: "x".into(), ..all.clone() },
        ] {
            assert_eq!(code(servers.list_servers(admin.ask(bad))).await, Code::InvalidArgument);
        }
        plane.stop().await;
        database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_writers_at_one_version_one_wins() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        let mut servers = RegistryServiceClient::new(admin.channel.clone());
        servers.create_server(admin.ask(create(spec("demo")))).await.unwrap();
        let write = |i: usize| {
            let (mut servers, admin) = (servers.clone(), admin.clone());
            async move {
                let spec = pb::ServerSpec { description: i.to_string(), ..spec("demo") };
                let request = pb::UpdateServerRequest { spec: Some(spec), version: 1 };
                code(servers.update_server(admin.ask(request))).await
            }
        };
        let codes = futures_util::future::join_all((0..8).map(write)).await;
        assert_eq!(codes.iter().filter(|code| **code == Code::Ok).count(), 1, "{codes:?}");
        assert_eq!(codes.iter().filter(|code| **code == Code::Aborted).count(), 7, "{codes:?}");
        plane.stop().await;
        database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_credential_goes_nowhere_else() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        let mut servers = RegistryServiceClient::new(admin.channel.clone());
        let bearer = pb::credential::Kind::Bearer(pb::BearerCredential { token: "hunter2".into() });
        let secret = Some(pb::Credential { kind: Some(bearer) });
        let wanted = pb::ServerSpec { credential: secret.clone(), ..spec("demo") };
        servers.create_server(admin.ask(create(wanted.clone()))).await.unwrap();
        let at = |url: &str, credential| pb::UpdateServerRequest {
            spec: Some(pb::ServerSpec {
                endpoints: vec![pb::Endpoint { url: url.into(), weight: 1, zone: String::new() }],
                credential,
                ..wanted.clone()
            }),
            version: 1,
        };
        let elsewhere =
            servers.update_server(admin.ask(at("http://127.0.0.1:6/mcp", None))).await.unwrap_err();
        let wrong = elsewhere.get_error_details();
        let fields: Vec<_> =
            wrong.bad_request().unwrap().field_violations.iter().map(|wrong| wrong.field.as_str()).collect();
        assert_eq!((elsewhere.code(), fields), (Code::InvalidArgument, vec!["credential"]));
        let given = servers.update_server(admin.ask(at("http://127.0.0.1:6/mcp", secret.clone()))).await;
        assert_eq!(given.unwrap().into_inner().server.unwrap().version, 2);
        plane.stop().await;
        database.drop().await;
    }
}
