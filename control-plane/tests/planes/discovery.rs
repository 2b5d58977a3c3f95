//! Proxies are told what they lack, and say what they make of it.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use uuid::Uuid;
use waffles_proto::discovery::v1 as pb;
use waffles_proto::discovery::v1::discovery_service_client::DiscoveryServiceClient;
use waffles_proto::discovery::v1::stream_request::Message;
use waffles_proto::proxy::v1 as proxy_pb;
use waffles_proto::proxy::v1::proxy_service_client::ProxyServiceClient;
use waffles_proto::registry::v1 as registry;
use waffles_proto::registry::v1::registry_service_client::RegistryServiceClient;

use super::enrolled::Enrolled;
use super::{Database, Operator, Plane, SOON, eventually, spec};

/// A quiet time after which nothing more is expected.
const QUIET: Duration = Duration::from_millis(700);

/// The proxy's end of a configuration stream.
pub struct Proxy {
    pub id: Uuid,
    pub who: Enrolled,
    pub to: mpsc::Sender<pb::StreamRequest>,
    pub from: Streaming<pb::StreamResponse>,
    /// Names of the servers that it was ever told.
    servers: Vec<String>,
}

/// A whole update.
#[derive(Debug, Default)]
pub struct Update {
    pub full: bool,
    pub lineage: String,
    pub revision: u64,
    nonce: String,
    pub resources: Vec<pb::Resource>,
    pub removed: Vec<pb::ResourceRef>,
}

impl Update {
    fn servers(&self) -> Vec<(String, String)> {
        let server = |resource: &pb::Resource| match resource.kind.as_ref()? {
            pb::resource::Kind::Server(server) => {
                Some((server.spec.as_ref()?.name.clone(), server.id.clone()))
            }
            _ => None,
        };
        self.resources.iter().filter_map(server).collect()
    }
}

impl Proxy {
    /// A new proxy, with what it says that it holds.
    pub async fn connect(plane: &Plane, hello: pb::Hello) -> Self {
        Self::connect_as(plane, &Enrolled::new(plane).await, hello).await
    }

    pub async fn connect_as(plane: &Plane, who: &Enrolled, hello: pb::Hello) -> Self {
        let hello = pb::Hello {
            proxy_id: who.id.to_string(),
            name: "edge-1".into(),
            group: who.group.clone(),
            ..hello
        };
        let (to, requests) = mpsc::channel(4);
        to.send(pb::StreamRequest { message: Some(Message::Hello(hello)) }).await.unwrap();
        let from = DiscoveryServiceClient::new(who.channel(plane).await)
            .stream(ReceiverStream::new(requests))
            .await
            .unwrap()
            .into_inner();
        Self { id: who.id, who: who.clone(), to, from, servers: Vec::new() }
    }

    pub async fn update(&mut self) -> Update {
        let mut update = Update::default();
        loop {
            let chunk = tokio::time::timeout(SOON, self.from.message())
                .await
                .expect("no update came")
                .unwrap()
                .unwrap();
            (update.full, update.lineage, update.revision) = (chunk.full, chunk.lineage, chunk.revision);
            update.nonce = chunk.nonce;
            update.resources.extend(chunk.resources);
            update.removed.extend(chunk.removed);
            if chunk.last {
                self.servers.extend(update.servers().into_iter().map(|server| server.0));
                return update;
            }
        }
    }

    pub async fn ack(&self, update: &Update) {
        let ack = pb::Ack { nonce: update.nonce.clone(), revision: update.revision };
        self.to.send(pb::StreamRequest { message: Some(Message::Ack(ack)) }).await.unwrap();
    }

    async fn nack(&self, update: &Update, resource: pb::ResourceRef, reason: &str) {
        let rejections = vec![pb::Rejection { resource: Some(resource), reason: reason.into() }];
        let nack = pb::Nack { nonce: update.nonce.clone(), revision: update.revision, rejections };
        self.to.send(pb::StreamRequest { message: Some(Message::Nack(nack)) }).await.unwrap();
    }

    pub fn lacks(&self, server: &str) -> bool {
        !self.servers.iter().any(|name| name == server)
    }

    pub async fn is_quiet(&mut self) {
        let message = tokio::time::timeout(QUIET, self.from.message()).await;
        assert!(message.is_err(), "something came: {message:?}");
    }
}

pub async fn create(admin: &Operator, name: &str) {
    let request = registry::CreateServerRequest { spec: Some(spec(name)), disabled: false };
    RegistryServiceClient::new(admin.channel.clone()).create_server(admin.ask(request)).await.unwrap();
}

async fn delete(admin: &Operator, name: &str) {
    let request = registry::DeleteServerRequest { name: name.into() };
    RegistryServiceClient::new(admin.channel.clone()).delete_server(admin.ask(request)).await.unwrap();
}

async fn shown(admin: &Operator, proxy: Uuid) -> Option<proxy_pb::Proxy> {
    let request = proxy_pb::GetProxyRequest { proxy: proxy.to_string() };
    ProxyServiceClient::new(admin.channel.clone())
        .get_proxy(admin.ask(request))
        .await
        .ok()?
        .into_inner()
        .proxy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_gets_everything_once_and_then_what_differs() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        create(&admin, "one").await;
        let mut proxy = Proxy::connect(&plane, pb::Hello::default()).await;
        // The first state may be from before the registration, which then follows.
        let mut first = proxy.update().await;
        assert!(first.full && first.revision > 0 && !first.lineage.is_empty());
        while first.servers().is_empty() {
            proxy.ack(&first).await;
            let next = proxy.update().await;
            first.revision = next.revision;
            first.nonce.clone_from(&next.nonce);
            first.resources.extend(next.resources);
        }
        let kind = |wanted: fn(&pb::resource::Kind) -> bool| {
            first.resources.iter().filter(|r| r.kind.as_ref().is_some_and(wanted)).count()
        };
        assert_eq!(kind(|k| matches!(k, pb::resource::Kind::Settings(_))), 1);
        assert_eq!(kind(|k| matches!(k, pb::resource::Kind::Principal(_))), 1);
        assert!(kind(|k| matches!(k, pb::resource::Kind::TokenKey(_))) >= 1);
        proxy.ack(&first).await;
        proxy.is_quiet().await;

        create(&admin, "two").await;
        let second = proxy.update().await;
        assert!(!second.full && second.revision > first.revision);
        // The server, and `default`, which it joined.
        assert_eq!(second.resources.len(), 2);
        assert_eq!(second.servers()[0].0, "two");
        // Nothing more before the answer: several changes are one update.
        delete(&admin, "two").await;
        create(&admin, "three").await;
        proxy.is_quiet().await;
        proxy.ack(&second).await;
        let third = proxy.update().await;
        assert_eq!(third.servers().iter().map(|s| s.0.as_str()).collect::<Vec<_>>(), ["three"]);
        assert_eq!(third.removed.len(), 1);
        assert_eq!(third.removed[0].id, second.servers()[0].1);
        proxy.ack(&third).await;
        let acknowledged = eventually(async || {
            shown(&admin, proxy.id).await.filter(|p| p.acknowledged_revision == third.revision)
        })
        .await;
        assert!(acknowledged.connected && acknowledged.lag == 0 && acknowledged.last_nack.is_none());

        // A control plane that was started anew listens elsewhere and tells so; who holds everything gets no more than that.
        drop(proxy);
        plane.stop().await;
        let plane = Plane::start(&database).await;
        let held =
            pb::Hello { lineage: third.lineage.clone(), revision: third.revision, ..Default::default() };
        let mut back = Proxy::connect(&plane, held.clone()).await;
        let told = back.update().await;
        let kinds: Vec<_> = told.resources.iter().map(|resource| resource.id.as_str()).collect();
        assert_eq!((told.full, kinds.as_slice(), told.removed.len()), (false, ["settings"].as_slice(), 0));
        back.ack(&told).await;
        back.is_quiet().await;
        let older = pb::Hello { revision: second.revision, ..held };
        let mut older = Proxy::connect(&plane, older).await;
        let missed = older.update().await;
        assert!(!missed.full);
        assert_eq!((missed.resources.len(), missed.removed.len()), (3, 1));
        drop((back, older));
        plane.stop().await;
        database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_resource_is_named_and_sent_again() {
    let database = Database::sqlite();
    let plane = Plane::start(&database).await;
    let admin = plane.sign_in().await;
    let mut proxy = Proxy::connect(&plane, pb::Hello::default()).await;
    let first = proxy.update().await;
    proxy.ack(&first).await;
    create(&admin, "bad").await;
    let update = proxy.update().await;
    let bad = pb::ResourceRef { kind: pb::ResourceKind::Server.into(), id: update.servers()[0].1.clone() };
    proxy.nack(&update, bad.clone(), "tools: cannot read x\n[31m").await;
    let nack = eventually(async || shown(&admin, proxy.id).await?.last_nack).await;
    assert_eq!(nack.revision, update.revision);
    assert_eq!((nack.rejections[0].kind.as_str(), nack.rejections[0].name.as_str()), ("server", "bad"));
    assert_eq!(nack.rejections[0].reason, "tools: cannot read x\u{fffd}[31m");

    // Another update that it takes does not make the refusal go away; a new form of the resource does.
    create(&admin, "good").await;
    let good = proxy.update().await;
    proxy.ack(&good).await;
    eventually(async || shown(&admin, proxy.id).await.filter(|p| p.acknowledged_revision == good.revision))
        .await;
    assert!(shown(&admin, proxy.id).await.unwrap().last_nack.is_some());

    // A new stream names what it refused, and gets it again although its revision is the latest.
    let hello = pb::Hello {
        lineage: good.lineage.clone(),
        revision: good.revision,
        refused: vec![bad],
        ..Default::default()
    };
    let who = proxy.who.clone();
    drop(proxy);
    let mut again = Proxy::connect_as(&plane, &who, hello).await;
    let sent = again.update().await;
    assert_eq!((sent.full, sent.servers()[0].0.as_str(), sent.resources.len()), (false, "bad", 1));
    again.ack(&sent).await;
    eventually(async || shown(&admin, again.id).await.filter(|p| p.last_nack.is_none())).await;
    again.is_quiet().await;
    drop(again);
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_ahead_of_a_restored_database_gets_nothing_and_operators_hear_of_it() {
    let database = Database::sqlite();
    let plane = Plane::start(&database).await;
    let admin = plane.sign_in().await;
    let mut proxy = Proxy::connect(&plane, pb::Hello::default()).await;
    let first = proxy.update().await;
    let ahead =
        pb::Hello { lineage: first.lineage.clone(), revision: first.revision + 1000, ..Default::default() };
    let mut ahead = Proxy::connect(&plane, ahead).await;
    ahead.is_quiet().await;
    let look = async || {
        let nack = shown(&admin, ahead.id).await?.last_nack?;
        nack.rejections[0].reason.contains("new-lineage").then_some(())
    };
    // It is told only after another replica could have caught up.
    let told = async {
        while look().await.is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(SOON * 3, told).await.expect("nobody was told");
    drop((proxy, ahead));
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_a_hello_or_with_two_is_ended() {
    let database = Database::sqlite();
    let plane = Plane::start(&database).await;
    let (to, requests) = mpsc::channel(1);
    to.send(pb::StreamRequest { message: Some(Message::Ack(pb::Ack::default())) }).await.unwrap();
    let channel = Enrolled::new(&plane).await.channel(&plane).await;
    let mut from = DiscoveryServiceClient::new(channel)
        .stream(ReceiverStream::new(requests))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(from.message().await.unwrap_err().code(), Code::InvalidArgument);

    let mut proxy = Proxy::connect(&plane, pb::Hello::default()).await;
    let first = proxy.update().await;
    proxy.ack(&first).await;
    proxy.to.send(pb::StreamRequest { message: Some(Message::Hello(pb::Hello::default())) }).await.unwrap();
    assert_eq!(proxy.from.message().await.unwrap_err().code(), Code::InvalidArgument);
    plane.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_streams_and_the_process_at_once() {
    let database = Database::sqlite();
    let plane = Plane::start(&database).await;
    let mut proxy = Proxy::connect(&plane, pb::Hello::default()).await;
    let first = proxy.update().await;
    proxy.ack(&first).await;
    let before = tokio::time::Instant::now();
    let (ended, ()) = tokio::join!(proxy.from.message(), plane.stop());
    assert!(ended.unwrap().is_none());
    assert!(before.elapsed() < Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_replica_writes_every_replica_tells() {
    let Some(database) = Database::postgres().await else { return };
    let (writer, teller) = (Plane::start(&database).await, Plane::start(&database).await);
    assert!(writer.password.is_some() && teller.password.is_none(), "one of them makes the admin");
    let admin = writer.sign_in().await;
    let mut proxy = Proxy::connect(&teller, pb::Hello::default()).await;
    let mut last = proxy.update().await;
    for name in ["one", "two"] {
        proxy.ack(&last).await;
        let before = tokio::time::Instant::now();
        create(&admin, name).await;
        last = proxy.update().await;
        assert_eq!(last.servers()[0].0, name);
        assert!(before.elapsed() < Duration::from_secs(1), "took {:?}", before.elapsed());
    }
    // Each replica shows the proxy of the other.
    eventually(async || shown(&admin, proxy.id).await.filter(|p| p.connected)).await;
    drop(proxy);
    writer.stop().await;
    teller.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_herd_that_comes_at_once_is_served_from_memory() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        create(&admin, "one").await;
        let mut members = Vec::new();
        for _ in 0..15 {
            members.extend(futures_util::future::join_all((0..20).map(|_| Enrolled::new(&plane))).await);
        }
        // Each proxy has a connection of its own, as in life.
        let come = async |who: Enrolled| {
            let mut proxy = Proxy::connect_as(&plane, &who, pb::Hello::default()).await;
            let first = proxy.update().await;
            proxy.ack(&first).await;
            (proxy, first)
        };
        let before = tokio::time::Instant::now();
        let herd = futures_util::future::join_all(members.into_iter().map(come)).await;
        assert!(before.elapsed() < SOON, "took {:?}", before.elapsed());
        assert!(herd.iter().all(|(_, first)| first.full));
        let mut client = ProxyServiceClient::new(admin.channel.clone());
        eventually(async || {
            let request = proxy_pb::ListProxiesRequest { page_size: 500, cursor: String::new() };
            let list = client.clone().list_proxies(admin.ask(request)).await.unwrap().into_inner();
            let current = |p: &&proxy_pb::Proxy| p.connected && p.acknowledged_revision > 0;
            (list.proxies.iter().filter(current).count() == 300).then_some(())
        })
        .await;
        // Pages of proxies with one name lose none.
        let (mut seen, mut cursor) = (std::collections::HashSet::new(), String::new());
        loop {
            let request = proxy_pb::ListProxiesRequest { page_size: 70, cursor };
            let page = client.list_proxies(admin.ask(request)).await.unwrap().into_inner();
            seen.extend(page.proxies.into_iter().map(|proxy| proxy.id));
            cursor = page.next_cursor;
            if cursor.is_empty() {
                break;
            }
        }
        assert_eq!(seen.len(), 300);
        drop(herd);
        plane.stop().await;
        database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_together_on_an_empty_database_agree() {
    // SQLite takes one at a time.
    if let Some(database) = Database::postgres().await {
        let planes = futures_util::future::join_all((0..3).map(|_| Plane::start(&database))).await;
        assert_eq!(planes.iter().filter(|plane| plane.password.is_some()).count(), 1);
        let mut lineages = std::collections::HashSet::new();
        for plane in &planes {
            let mut proxy = Proxy::connect(plane, pb::Hello::default()).await;
            lineages.insert(proxy.update().await.lineage);
        }
        assert_eq!(lineages.len(), 1);
        for plane in planes {
            plane.stop().await;
        }
        database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_told_at_once_and_is_not_in_a_new_state() {
    use waffles_proto::auth::v1 as auth;
    use waffles_proto::auth::v1::auth_service_client::AuthServiceClient;
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let admin = plane.sign_in().await;
        let mut keys = AuthServiceClient::new(admin.channel.clone());
        let request = auth::CreateApiKeyRequest { name: "k".into(), ..Default::default() };
        let made = keys.create_api_key(admin.ask(request)).await.unwrap().into_inner().api_key.unwrap();
        let mut proxy = Proxy::connect(&plane, pb::Hello::default()).await;
        let find = |update: &Update| {
            update.resources.iter().find_map(|resource| match resource.kind.as_ref()? {
                pb::resource::Kind::ApiKey(key) => key.api_key.clone().filter(|key| key.id == made.id),
                _ => None,
            })
        };
        let mut update = proxy.update().await;
        while find(&update).is_none() {
            proxy.ack(&update).await;
            update = proxy.update().await;
        }
        assert!(find(&update).unwrap().revoked_at.is_none());
        proxy.ack(&update).await;

        let before = tokio::time::Instant::now();
        keys.revoke_api_key(admin.ask(auth::RevokeApiKeyRequest { id: made.id.clone() })).await.unwrap();
        let told = proxy.update().await;
        assert!(before.elapsed() < Duration::from_secs(1));
        let gone = told.removed.iter().any(|gone| gone.id == made.id);
        assert!(gone || find(&told).is_some_and(|key| key.revoked_at.is_some()), "{told:?}");
        proxy.ack(&told).await;
        drop(proxy);
        plane.stop().await;

        // A control plane that is started anew tells it to whoever missed it, as gone.
        let plane = Plane::start(&database).await;
        let held =
            pb::Hello { lineage: update.lineage.clone(), revision: update.revision, ..Default::default() };
        let mut late = Proxy::connect(&plane, held).await;
        let missed = late.update().await;
        assert!(!missed.full && missed.removed.iter().any(|gone| gone.id == made.id), "{missed:?}");
        let mut new = Proxy::connect(&plane, pb::Hello::default()).await;
        assert!(find(&new.update().await).is_none());
        drop((late, new));
        plane.stop().await;
        database.drop().await;
    }
}
