//! Namespaces from the registry to the proxies: what an operator decides is what a proxy holds, now and when it starts
//! without a control plane.

use anyhow::ensure;
use serde_json::Value;
use uuid::Uuid;
use waffles_core::namespace::Level;
use waffles_core::policy::{Caller, level};
use waffles_core::principal::Principal;
use waffles_core::snapshot::Snapshot;
use waffles_data_plane::state::Disk;
use waffles_proto::registry::v1 as pb;
use waffles_proto::registry::v1::namespace_service_client::NamespaceServiceClient;
use waffles_tests::programs::http_client;
use waffles_tests::waffles::Authorized;
use waffles_tests::{PATIENCE, Waffles, eventually};

fn desk(waffles: &Waffles) -> NamespaceServiceClient<Authorized> {
    NamespaceServiceClient::new(waffles.authorized(&waffles.admin.secret))
}

fn team() -> pb::NamespaceSpec {
    let expose = pb::Expose {
        allow: vec!["get_*".into()],
        resources_deny: vec!["db://private/*".into()],
        ..Default::default()
    };
    let bare = pb::NamespaceMember { server: "beta".into(), prefix: Some(false), expose: Some(expose) };
    let whole = pb::NamespaceMember { server: "alpha".into(), ..Default::default() };
    pb::NamespaceSpec {
        name: "team".into(),
        servers: vec![bare, whole],
        levels: vec![pb::RoleLevel { role: "user".into(), level: pb::Level::View.into() }],
        principals: vec![pb::PrincipalLevel { principal: "eve".into(), level: pb::Level::Execute.into() }],
        ..Default::default()
    }
}

/// Waits until the proxy has written what it holds, ends it, and reads what it would start from.
async fn at_rest(waffles: &mut Waffles) -> Snapshot {
    waffles.settled().await;
    let proxy = &mut waffles.proxies[0];
    eventually(PATIENCE, || async {
        let report: Value = http_client().get(proxy.admin_url("/discovery")).send().await?.json().await?;
        ensure!(report["saved_revision"] == report["revision"], "{report}");
        Ok(())
    })
    .await;
    proxy.stop().await;
    Disk::open(proxy.data_dir()).unwrap().load().expect("it has written a snapshot")
}

fn level_of(snapshot: &Snapshot, name: &str, role: &str, namespace: &str) -> Option<Level> {
    let principal = Principal {
        id: Uuid::nil(),
        tenant: "default".into(),
        name: name.into(),
        roles: vec![role.into()],
        active: true,
        ..Principal::default()
    };
    let caller = Caller { principal: &principal, key: None, address: None };
    level(&caller, snapshot.policy("default"), &snapshot.namespace("default", namespace)?.namespace)
}

fn members(snapshot: &Snapshot, namespace: &str) -> Vec<String> {
    let entry = snapshot.namespace("default", namespace).unwrap();
    entry.members.iter().map(|member| member.server.clone()).collect()
}

async fn with_team() -> Waffles {
    let waffles = Waffles::start().await;
    for name in ["beta", "alpha"] {
        waffles.add_server(name, "http://127.0.0.1:9/mcp").await;
    }
    let request = pb::CreateNamespaceRequest { spec: Some(team()) };
    desk(&waffles).create_namespace(request).await.unwrap();
    waffles
}

#[tokio::test]
async fn a_proxy_holds_what_operators_decide() {
    let mut waffles = with_team().await;
    let snapshot = at_rest(&mut waffles).await;
    assert_eq!(members(&snapshot, "default"), ["alpha", "beta"]);
    assert_eq!(members(&snapshot, "team"), ["alpha", "beta"]);
    let team = snapshot.namespace("default", "team").unwrap();
    let (alpha, beta) = (team.member("alpha").unwrap(), team.member("beta").unwrap());
    assert!(alpha.prefix && alpha.shows_all());
    assert!(!beta.prefix && beta.names.contains("get_x") && !beta.names.contains("put_x"));
    assert!(beta.resources.contains("db://open/x") && !beta.resources.contains("db://private/x"));
    let servers: Vec<_> =
        snapshot.servers_of("default").map(|entry| entry.server.spec.name.as_str()).collect();
    assert_eq!(servers, ["alpha", "beta"]);
    for (name, role, namespace, expected) in [
        ("ann", "user", "team", Some(Level::View)),
        ("eve", "user", "team", Some(Level::Execute)),
        ("ann", "admin", "team", None),
        ("ann", "user", "default", Some(Level::Execute)),
        ("ann", "readonly", "default", Some(Level::View)),
        ("ann", "auditor", "default", None),
        ("ann", "user", "absent", None),
    ] {
        assert_eq!(level_of(&snapshot, name, role, namespace), expected, "{name} {role} {namespace}");
    }
}

#[tokio::test]
async fn a_retired_server_and_a_removed_namespace_leave_the_proxies() {
    let mut waffles = with_team().await;
    waffles.settled().await;
    let retire = pb::DeleteServerRequest { name: "beta".into() };
    waffles.registry().delete_server(retire).await.unwrap();
    let mut desk = desk(&waffles);
    let other = pb::NamespaceSpec { name: "other".into(), ..team() };
    let other = pb::NamespaceSpec { servers: vec![], ..other };
    desk.create_namespace(pb::CreateNamespaceRequest { spec: Some(other) }).await.unwrap();
    waffles.settled().await;
    desk.delete_namespace(pb::DeleteNamespaceRequest { name: "other".into() }).await.unwrap();
    let snapshot = at_rest(&mut waffles).await;
    assert_eq!(members(&snapshot, "default"), ["alpha"]);
    assert_eq!(members(&snapshot, "team"), ["alpha"]);
    assert!(snapshot.namespace("default", "other").is_none());
}
