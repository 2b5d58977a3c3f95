//! Namespaces are made, changed and removed, and always name servers that there are.

use std::collections::BTreeSet;

use prost_types::Timestamp;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;
use waffles_control_plane::store::{Db, DbConfig, namespaces};
use waffles_proto::audit::v1 as audit_pb;
use waffles_proto::discovery::v1 as discovery_pb;
use waffles_proto::registry::v1 as pb;
use waffles_proto::registry::v1::namespace_service_client::NamespaceServiceClient;
use waffles_proto::registry::v1::registry_service_client::RegistryServiceClient;

use super::audit::Upload;
use super::discovery::{Proxy, create};
use super::{Database, Operator, Plane, eventually, spec};

/// An operator at the namespaces.
#[derive(Clone)]
struct Desk {
    admin: Operator,
    client: NamespaceServiceClient<Channel>,
}

impl Desk {
    fn of(admin: &Operator) -> Self {
        Self { admin: admin.clone(), client: NamespaceServiceClient::new(admin.channel.clone()) }
    }

    async fn create(&self, spec: pb::NamespaceSpec) -> Result<pb::Namespace, Status> {
        let request = pb::CreateNamespaceRequest { spec: Some(spec) };
        let answer = self.client.clone().create_namespace(self.admin.ask(request)).await?;
        Ok(answer.into_inner().namespace.unwrap())
    }

    async fn get(&self, name: &str) -> Result<pb::Namespace, Status> {
        let request = pb::GetNamespaceRequest { name: name.into() };
        let answer = self.client.clone().get_namespace(self.admin.ask(request)).await?;
        Ok(answer.into_inner().namespace.unwrap())
    }

    async fn update(&self, spec: pb::NamespaceSpec, version: u64) -> Result<pb::Namespace, Status> {
        let request = pb::UpdateNamespaceRequest { spec: Some(spec), version };
        let answer = self.client.clone().update_namespace(self.admin.ask(request)).await?;
        Ok(answer.into_inner().namespace.unwrap())
    }

    async fn add(&self, namespace: &str, member: pb::NamespaceMember) -> Result<pb::Namespace, Status> {
        let request = pb::AddServerRequest { namespace: namespace.into(), member: Some(member) };
        let answer = self.client.clone().add_server(self.admin.ask(request)).await?;
        Ok(answer.into_inner().namespace.unwrap())
    }

    async fn remove(&self, namespace: &str, server: &str) -> Result<pb::Namespace, Status> {
        let request = pb::RemoveServerRequest { namespace: namespace.into(), server: server.into() };
        let answer = self.client.clone().remove_server(self.admin.ask(request)).await?;
        Ok(answer.into_inner().namespace.unwrap())
    }

    async fn delete(&self, name: &str) -> Result<(), Status> {
        let request = pb::DeleteNamespaceRequest { name: name.into() };
        self.client.clone().delete_namespace(self.admin.ask(request)).await.map(drop)
    }

    async fn retire(&self, server: &str) -> Result<(), Status> {
        let request = pb::DeleteServerRequest { name: server.into() };
        let mut servers = RegistryServiceClient::new(self.admin.channel.clone());
        servers.delete_server(self.admin.ask(request)).await.map(drop)
    }
}

fn member(server: &str) -> pb::NamespaceMember {
    pb::NamespaceMember { server: server.into(), ..Default::default() }
}

fn members(namespace: &pb::Namespace) -> Vec<&str> {
    namespace.spec.as_ref().unwrap().servers.iter().map(|member| member.server.as_str()).collect()
}

fn fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    details.bad_request().unwrap().field_violations.iter().map(|v| v.field.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_lives_from_its_making_to_its_removal() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        life(&admin).await;
        plane.stop().await;
        database.drop().await;
    }
}

async fn life(admin: &Operator) {
    let desk = Desk::of(admin);
    for name in ["weather", "maps"] {
        create(admin, name).await;
    }
    let expose = pb::Expose {
        allow: vec!["get_*".into()],
        deny: vec!["get_secret".into()],
        resources_allow: vec!["db://*".into()],
        resources_deny: vec!["db://private/*".into()],
    };
    let wanted = pb::NamespaceSpec {
        name: "team".into(),
        description: "für das Team".into(),
        servers: vec![
            pb::NamespaceMember { prefix: Some(false), expose: Some(expose.clone()), ..member("weather") },
            member("maps"),
        ],
        levels: vec![pb::RoleLevel { role: "user".into(), level: pb::Level::Execute.into() }],
        principals: vec![pb::PrincipalLevel { principal: "eve@test".into(), level: pb::Level::View.into() }],
        tool_search: true,
        ..Default::default()
    };
    let made = desk.create(wanted.clone()).await.unwrap();
    assert_eq!((made.version, made.tenant.as_str()), (1, "default"));
    let shown = desk.get("team").await.unwrap();
    assert_eq!(shown, made);
    let kept = shown.spec.clone().unwrap();
    assert_eq!(members(&shown), ["maps", "weather"]);
    assert_eq!((kept.servers[0].prefix, kept.servers[1].prefix), (Some(true), Some(false)));
    assert_eq!(kept.servers[1].expose.as_ref(), Some(&expose));
    assert_eq!((&kept.levels, &kept.principals), (&wanted.levels, &wanted.principals));
    assert_eq!((&kept.description, kept.tool_search, kept.is_default), (&wanted.description, true, false));
    assert_eq!(desk.create(wanted.clone()).await.unwrap_err().code(), Code::AlreadyExists);

    // A lost update is told, with the version that won, and leaves the members alone.
    let change = pb::NamespaceSpec { servers: vec![member("maps")], ..wanted };
    let changed = desk.update(change.clone(), 1).await.unwrap();
    assert_eq!((changed.version, members(&changed)), (2, vec!["maps"]));
    let lost = desk.update(pb::NamespaceSpec { servers: vec![], ..change.clone() }, 1).await.unwrap_err();
    assert_eq!(lost.code(), Code::Aborted);
    assert!(lost.message().contains('2'), "{lost}");
    assert_eq!(desk.get("team").await.unwrap(), changed);

    let added = desk.add("team", member("weather")).await.unwrap();
    assert_eq!((added.version, members(&added)), (3, vec!["maps", "weather"]));
    let bare = pb::NamespaceMember { prefix: Some(false), ..member("weather") };
    let bare = desk.add("team", bare).await.unwrap();
    assert_eq!((bare.version, bare.spec.unwrap().servers[1].prefix), (4, Some(false)));
    let removed = desk.remove("team", "maps").await.unwrap();
    assert_eq!((removed.version, members(&removed)), (5, vec!["weather"]));
    assert_eq!(desk.remove("team", "maps").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(fields(&desk.add("team", member("absent")).await.unwrap_err()), ["member.server"]);
    assert_eq!(desk.add("absent", member("maps")).await.unwrap_err().code(), Code::NotFound);

    // A retired server leaves, and the namespace counts it as a change.
    desk.retire("weather").await.unwrap();
    let emptied = desk.get("team").await.unwrap();
    assert_eq!((emptied.version, members(&emptied)), (6, vec![]));
    assert_eq!(members(&desk.get("default").await.unwrap()), ["maps"]);

    assert_eq!(fields(&desk.delete("default").await.unwrap_err()), ["name"]);
    desk.delete("team").await.unwrap();
    assert_eq!(desk.delete("team").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(desk.update(change.clone(), 6).await.unwrap_err().code(), Code::NotFound);
    // Its name is free at once: the audit trail tells namespaces apart by their ids.
    assert_eq!(desk.create(change).await.unwrap().version, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_field_is_named_and_nothing_is_written() {
    let database = Database::sqlite();
    let plane = Plane::start(&database).await;
    let admin = plane.sign_in().await;
    let desk = Desk::of(&admin);
    create(&admin, "maps").await;
    let bad = pb::NamespaceSpec {
        name: "team".into(),
        servers: vec![member("maps"), member("absent"), member("maps")],
        levels: vec![pb::RoleLevel { role: "owner".into(), level: pb::Level::View.into() }],
        ..Default::default()
    };
    let refused = desk.create(bad.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(fields(&refused), ["levels[0].role", "servers[2].server"]);
    let sound = pb::NamespaceSpec { levels: vec![], servers: vec![member("maps"), member("absent")], ..bad };
    assert_eq!(fields(&desk.create(sound.clone()).await.unwrap_err()), ["servers[1].server"]);
    let first = pb::NamespaceSpec { name: "default".into(), ..sound };
    assert_eq!(fields(&desk.update(first, 2).await.unwrap_err()), ["servers[1].server"]);
    assert_eq!(desk.get("team").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(members(&desk.get("default").await.unwrap()), ["maps"]);
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_and_paged() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        let desk = Desk::of(&admin);
        create(&admin, "maps").await;
        for i in 0..5 {
            let servers = if i % 2 == 0 { vec![member("maps")] } else { vec![] };
            let spec = pb::NamespaceSpec { name: format!("n{i}"), servers, ..Default::default() };
            desk.create(spec).await.unwrap();
        }
        let list = async |filter: pb::ListNamespacesRequest| {
            let (mut client, mut names, mut cursor) = (desk.client.clone(), Vec::new(), String::new());
            loop {
                let request = pb::ListNamespacesRequest { page_size: 2, cursor, ..filter.clone() };
                let page = client.list_namespaces(admin.ask(request)).await.unwrap().into_inner();
                assert!(page.namespaces.len() <= 2);
                names.extend(page.namespaces.into_iter().map(|namespace| namespace.spec.unwrap().name));
                cursor = page.next_cursor;
                if cursor.is_empty() {
                    return names;
                }
            }
        };
        let all = pb::ListNamespacesRequest::default();
        assert_eq!(list(all.clone()).await, ["default", "n0", "n1", "n2", "n3", "n4"]);
        let with = pb::ListNamespacesRequest { server: "maps".into(), ..all.clone() };
        assert_eq!(list(with).await, ["default", "n0", "n2", "n4"]);
        let named = pb::ListNamespacesRequest { name_contains: "n3".into(), ..all.clone() };
        assert_eq!(list(named).await, ["n3"]);
        let odd = pb::ListNamespacesRequest { name_contains: "%".into(), ..all };
        assert!(list(odd).await.is_empty());
        plane.stop().await;
        database.drop().await;
    }
}

/// One message has at most 4 MiB: what would not fit in it must neither be made nor be put on a page with others.
#[tokio::test(flavor = "multi_thread")]
async fn heavy_namespaces_are_bounded_and_still_listed() {
    let database = Database::sqlite();
    let plane = Plane::start(&database).await;
    let admin = plane.sign_in().await;
    let desk = Desk::of(&admin);
    create(&admin, "maps").await;
    create(&admin, "weather").await;
    let patterns = |bytes| vec!["x".repeat(bytes); 1000];
    let heavy = |server: &str| {
        let expose = pb::Expose {
            resources_allow: patterns(1000),
            resources_deny: patterns(800),
            ..Default::default()
        };
        pb::NamespaceMember { expose: Some(expose), ..member(server) }
    };
    for name in ["n0", "n1", "n2"] {
        let servers = vec![heavy("maps")];
        desk.create(pb::NamespaceSpec { name: name.into(), servers, ..Default::default() }).await.unwrap();
    }
    let refused = desk.add("n0", heavy("weather")).await.unwrap_err();
    assert_eq!((refused.code(), fields(&refused)), (Code::InvalidArgument, vec!["member.expose".to_owned()]));
    // Another form of the member that is there takes the place of its first.
    assert_eq!(desk.add("n0", heavy("maps")).await.unwrap().version, 2);
    assert_eq!(members(&desk.add("n0", member("weather")).await.unwrap()), ["maps", "weather"]);
    let (mut names, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let request = pb::ListNamespacesRequest { cursor, ..Default::default() };
        let page = desk.client.clone().list_namespaces(admin.ask(request)).await.unwrap().into_inner();
        names.extend(page.namespaces.into_iter().map(|namespace| namespace.spec.unwrap().name));
        (cursor, pages) = (page.next_cursor, pages + 1);
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!((names.join(" ").as_str(), pages), ("default n0 n1 n2", 3));
    // Proxies hear of all of them.
    let mut proxy = Proxy::connect(&plane, discovery_pb::Hello::default()).await;
    let mut held = BTreeSet::new();
    while held.len() < 4 {
        let update = proxy.update().await;
        let of_kind = |resource: &discovery_pb::Resource| match resource.kind.as_ref()? {
            discovery_pb::resource::Kind::Namespace(namespace) => Some(namespace.id.clone()),
            _ => None,
        };
        held.extend(update.resources.iter().filter_map(of_kind));
        proxy.ack(&update).await;
    }
    drop(proxy);
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_hear_of_a_namespace_and_of_its_end() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        let desk = Desk::of(&admin);
        create(&admin, "maps").await;
        let mut proxy = Proxy::connect(&plane, discovery_pb::Hello::default()).await;
        let held = |update: &super::discovery::Update| -> Vec<(String, usize)> {
            let namespace = |resource: &discovery_pb::Resource| match resource.kind.as_ref()? {
                discovery_pb::resource::Kind::Namespace(namespace) => {
                    let spec = namespace.spec.as_ref()?;
                    Some((spec.name.clone(), spec.servers.len()))
                }
                _ => None,
            };
            update.resources.iter().filter_map(namespace).collect()
        };
        // The first state may be from before the registration, which then follows.
        let mut first = proxy.update().await;
        while proxy.lacks("maps") {
            proxy.ack(&first).await;
            first = proxy.update().await;
        }
        assert_eq!(held(&first), [("default".to_owned(), 1)]);
        proxy.ack(&first).await;
        let spec =
            pb::NamespaceSpec { name: "team".into(), servers: vec![member("maps")], ..Default::default() };
        let made = desk.create(spec).await.unwrap();
        let update = proxy.update().await;
        assert_eq!(held(&update), [("team".to_owned(), 1)]);
        proxy.ack(&update).await;
        // One update: the server's end, and the namespaces without it.
        desk.retire("maps").await.unwrap();
        let update = proxy.update().await;
        let mut without = held(&update);
        without.sort();
        assert_eq!(without, [("default".to_owned(), 0), ("team".to_owned(), 0)]);
        assert_eq!(update.removed.len(), 1);
        proxy.ack(&update).await;
        desk.delete("team").await.unwrap();
        let update = proxy.update().await;
        let kind = discovery_pb::ResourceKind::Namespace.into();
        assert_eq!(update.removed, [discovery_pb::ResourceRef { kind, id: made.id }]);
        drop(proxy);
        plane.stop().await;
        database.drop().await;
    }
}

/// Whoever changes members and whoever changes servers neither block each other for ever nor leave a member behind.
#[tokio::test(flavor = "multi_thread")]
async fn servers_that_come_and_go_and_namespaces_that_name_them_agree() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        let desk = Desk::of(&admin);
        desk.create(pb::NamespaceSpec { name: "team".into(), ..Default::default() }).await.unwrap();
        let expected = |result: Result<(), Status>| {
            let Err(status) = result else { return };
            let known = [Code::Aborted, Code::InvalidArgument, Code::NotFound];
            assert!(known.contains(&status.code()), "{status}");
        };
        let churn = |writer: u32| {
            let (desk, admin) = (desk.clone(), admin.clone());
            async move {
                for i in 0..8 {
                    let name = format!("s{writer}-{i}");
                    create(&admin, &name).await;
                    expected(desk.add("team", member(&name)).await.map(drop));
                    if i % 2 == 0 {
                        expected(desk.retire(&name).await);
                    }
                }
            }
        };
        let rewrite = |writer: u32| {
            let desk = desk.clone();
            async move {
                for i in 0..12 {
                    let team = desk.get("team").await.unwrap();
                    let mut spec = team.spec.unwrap();
                    let name = format!("s{}-{}", (writer + i) % 3, i % 8);
                    match spec.servers.iter().position(|member| member.server == name) {
                        Some(at) => drop(spec.servers.remove(at)),
                        None => spec.servers.push(member(&name)),
                    }
                    expected(desk.update(spec, team.version).await.map(drop));
                }
            }
        };
        let churn = futures_util::future::join_all((0..3).map(churn));
        let rewrite = futures_util::future::join_all((0..3).map(rewrite));
        tokio::join!(churn, rewrite);

        let mut servers = RegistryServiceClient::new(admin.channel.clone());
        let list = servers.list_servers(admin.ask(pb::ListServersRequest::default())).await.unwrap();
        let there: BTreeSet<_> =
            list.into_inner().servers.into_iter().map(|server| server.spec.unwrap().name).collect();
        assert_eq!(there.len(), 12);
        let all = desk.get("default").await.unwrap();
        assert_eq!(members(&all).into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), there);
        let team = desk.get("team").await.unwrap();
        assert!(members(&team).iter().all(|member| there.contains(*member)), "{:?}", members(&team));
        plane.stop().await;
        database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_an_older_version_gets_default_with_the_servers_that_it_has() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        create(&admin, "maps").await;
        create(&admin, "weather").await;
        let before = Desk::of(&admin).get("default").await.unwrap();
        plane.stop().await;
        let db = Db::connect(&DbConfig::new(database.url.clone())).await.unwrap();
        let mut tx = db.of("default").begin().await.unwrap();
        assert!(namespaces::delete(&mut tx, "default", "default").await.unwrap().is_some());
        tx.commit().await.unwrap();
        db.close().await;
        let plane = Plane::start(&database).await;
        let admin = Operator { token: admin.token, channel: plane.channel().await };
        let after = Desk::of(&admin).get("default").await.unwrap();
        assert_ne!(after.id, before.id);
        assert_eq!((after.version, after.spec), (1, before.spec));
        plane.stop().await;
        database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_what_proxies_found_a_server_to_speak() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        create(&admin, "maps").await;
        create(&admin, "weather").await;
        let get = async |name: &str| {
            let request = pb::GetServerRequest { name: name.into() };
            let mut client = RegistryServiceClient::new(admin.channel.clone());
            client.get_server(admin.ask(request)).await.unwrap().into_inner().server.unwrap()
        };
        let server = get("maps").await;
        assert_eq!(server.seen, []);
        let proxy = Proxy::connect(&plane, discovery_pb::Hello::default()).await;
        let (upload, _) = Upload::open(&plane, &proxy.who, Uuid::now_v7()).await;
        let seen = |era: &str, endpoint, seconds| audit_pb::SeenServer {
            server_id: server.id.clone(),
            endpoint,
            era: era.into(),
            revision: "2025-11-25".into(),
            found_at: Some(Timestamp { seconds, nanos: 0 }),
        };
        let say = async |servers| {
            upload.say(audit_pb::Health { servers, ..Default::default() }).await;
        };
        // What cannot be believed is left out, and so is a server that is none.
        let foreign = audit_pb::SeenServer { server_id: "x".into(), ..seen("sessions", 0, 5) };
        say(vec![seen("sessions", 1, 7), seen("stateless", 0, 5), seen("telepathy", 2, 5), foreign]).await;
        let shown = eventually(async || Some(get("maps").await.seen).filter(|seen| !seen.is_empty())).await;
        let found: Vec<_> = shown.iter().map(|seen| (seen.endpoint, seen.era.as_str())).collect();
        assert_eq!(found, [(0, "stateless"), (1, "sessions")]);
        assert_eq!((shown[0].proxy_id.clone(), shown[0].proxy.as_str()), (proxy.id.to_string(), "edge-1"));
        assert_eq!(shown[1].revision, "2025-11-25");
        assert_eq!(shown[1].found_at.unwrap().seconds, 7);
        assert_eq!(get("weather").await.seen, []);

        // The latest word counts, and nothing is a word.
        say(vec![seen("http_sse", 0, 9)]).await;
        let at_last = async || {
            let seen = get("maps").await.seen;
            (seen.len() == 1 && seen[0].era == "http_sse").then_some(())
        };
        eventually(at_last).await;
        say(vec![]).await;
        eventually(async || get("maps").await.seen.is_empty().then_some(())).await;
        drop((proxy, upload));
        plane.stop().await;
        database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_registered_joins_every_namespace_that_new_ones_join() {
    let database = Database::sqlite();
    let plane = Plane::start(&database).await;
    let admin = plane.sign_in().await;
    let desk = Desk::of(&admin);
    for (name, is_default) in [("all", true), ("some", false)] {
        desk.create(pb::NamespaceSpec { name: name.into(), is_default, ..Default::default() }).await.unwrap();
    }
    create(&admin, "maps").await;
    for (name, expected) in [("default", vec!["maps"]), ("all", vec!["maps"]), ("some", vec![])] {
        assert_eq!(members(&desk.get(name).await.unwrap()), expected, "{name}");
    }
    // A registration that is refused joins nothing.
    let request = pb::CreateServerRequest { spec: Some(spec("maps")), disabled: false };
    let mut servers = RegistryServiceClient::new(admin.channel.clone());
    assert!(servers.create_server(admin.ask(request)).await.is_err());
    assert_eq!(desk.get("all").await.unwrap().version, 2);
    plane.stop().await;
}
