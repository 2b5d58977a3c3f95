//! Postgres hangs, or is gone: answers are quick and honest, streams stay, and nothing is taken for removed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;
use uuid::Uuid;
use waffles_proto::discovery::v1 as pb;
use waffles_proto::registry::v1 as registry;
use waffles_proto::registry::v1::registry_service_client::RegistryServiceClient;
use waffles_runtime::task;

use super::audit::{Upload, record, search};
use super::discovery::{Proxy, create};
use super::{Database, Operator, Plane, eventually};

const FLOWS: u8 = 0;
const FROZEN: u8 = 1;
const CUT: u8 = 2;

/// A wire to Postgres that can be frozen or cut.
struct Wire {
    port: u16,
    state: Arc<AtomicU8>,
}

impl Wire {
    async fn to(host: String, port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire =
            Self { port: listener.local_addr().unwrap().port(), state: Arc::new(AtomicU8::new(FLOWS)) };
        let state = wire.state.clone();
        task::spawn("wire", async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if state.load(Ordering::SeqCst) == CUT {
                    continue;
                }
                let Ok(server) = TcpStream::connect((host.as_str(), port)).await else { continue };
                let (a, b) = client.into_split();
                let (c, d) = server.into_split();
                task::spawn("wire", pump(a, d, state.clone()));
                task::spawn("wire", pump(c, b, state.clone()));
            }
        });
        wire
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::SeqCst);
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    state: Arc<AtomicU8>,
) {
    let mut bytes = vec![0; 65536];
    loop {
        let read = tokio::time::timeout(Duration::from_millis(20), from.read(&mut bytes)).await;
        while state.load(Ordering::SeqCst) == FROZEN {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if state.load(Ordering::SeqCst) == CUT {
            return;
        }
        match read {
            Err(_) => {}
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(count)) => {
                if to.write_all(&bytes[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn get(admin: &Operator) -> (Code, Duration) {
    let before = tokio::time::Instant::now();
    let request = admin.ask(registry::GetServerRequest { name: "one".into() });
    let answer = RegistryServiceClient::new(admin.channel.clone()).get_server(request).await;
    (answer.err().map_or(Code::Ok, |status| status.code()), before.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_hangs_or_is_gone_takes_nothing_down_with_it() {
    let Some(database) = Database::postgres().await else { return };
    let mut url = url::Url::parse(&database.url).unwrap();
    let wire = Wire::to(url.host_str().unwrap().to_owned(), url.port().unwrap_or(5432)).await;
    url.set_host(Some("127.0.0.1")).unwrap();
    url.set_port(Some(wire.port)).unwrap();
    let plane = Plane::start_at(&database, url.as_str()).await;
    let admin = plane.sign_in().await;
    create(&admin, "one").await;
    let mut proxy = Proxy::connect(&plane, pb::Hello::default()).await;
    let mut held = proxy.update().await;
    proxy.ack(&held).await;
    while proxy.lacks("one") {
        held = proxy.update().await;
        proxy.ack(&held).await;
    }
    let (id, spool) = (proxy.id, Uuid::now_v7());
    let (mut upload, _) = Upload::open(&plane, &proxy.who, spool).await;

    for (round, state) in [FROZEN, CUT, FROZEN, CUT].into_iter().enumerate() {
        wire.set(state);
        let sequence = round as u64 + 1;
        upload.send(vec![record(spool, sequence)]).await;
        let many = futures_util::future::join_all((0..30).map(|_| get(&admin))).await;
        for (code, took) in many {
            assert_eq!(code, Code::Unavailable);
            assert!(took < Duration::from_millis(2300), "round {round}: took {took:?}");
        }
        proxy.is_quiet().await;
        wire.set(FLOWS);
        let before = tokio::time::Instant::now();
        eventually(async || (get(&admin).await.0 == Code::Ok).then_some(())).await;
        assert!(
            before.elapsed() < Duration::from_secs(4),
            "round {round}: back after {:?}",
            before.elapsed()
        );
        assert_eq!(tokio::time::timeout(Duration::from_secs(12), upload.receipt()).await.unwrap(), sequence);
        // The stream is the same one, nothing was removed, and changes arrive again.
        let name = format!("after-{round}");
        eventually(async || {
            let spec = super::spec(&name);
            let request = registry::CreateServerRequest { spec: Some(spec), disabled: false };
            let made =
                RegistryServiceClient::new(admin.channel.clone()).create_server(admin.ask(request)).await;
            (made.is_ok() || made.unwrap_err().code() == Code::AlreadyExists).then_some(())
        })
        .await;
        held = proxy.update().await;
        // The server, and `default`, which it joined.
        assert!(held.removed.is_empty() && !held.full && held.resources.len() == 2, "{held:?}");
        proxy.ack(&held).await;
    }
    let filter = waffles_proto::audit::v1::EventFilter { proxy_id: id.to_string(), ..Default::default() };
    assert_eq!(search(&admin, filter, 100).await.len(), 4);
    drop((proxy, upload));
    plane.stop().await;
    database.drop().await;
}
