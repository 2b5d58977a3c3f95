//! How servers are, as it is put together and kept, on both databases.

use chrono::{DateTime, TimeDelta, Utc};
use url::Url;
use uuid::Uuid;
use waffles_control_plane::store::changes::{self, Claim};
use waffles_control_plane::store::health::{self, FoundDoc, OrderRow, Report, STALE, Said, Summary};
use waffles_control_plane::store::{Db, DbConfig, servers};
use waffles_core::audit::micros;
use waffles_core::health::{NO_REPORT, State};
use waffles_core::server::{Credential, Endpoint, Server, Spec};

use super::Database;

struct World {
    db: Db,
    server: Uuid,
    now: DateTime<Utc>,
}

impl World {
    async fn open(database: &Database) -> Self {
        let db = Db::connect(&DbConfig::new(database.url.clone())).await.unwrap().everywhere();
        db.migrate().await.unwrap();
        let (server, now) = (Uuid::now_v7(), micros(Utc::now()));
        let endpoints = vec![Endpoint::at(Url::parse("http://127.0.0.1:9/mcp").unwrap())];
        let row = Server {
            id: server,
            tenant: "default".into(),
            spec: Spec { name: "demo".into(), endpoints, ..Spec::default() },
            credential: Credential::None,
            enabled: true,
            version: 1,
            created_at: now,
            updated_at: now,
        };
        let mut tx = db.begin().await.unwrap();
        assert_eq!(changes::claim(&mut tx, "key").await.unwrap(), Claim::Ours);
        servers::insert(&mut tx, &row, b"sealed").await.unwrap();
        tx.commit().await.unwrap();
        Self { db, server, now }
    }

    fn report(&self, proxy: u128, said: Option<(State, &str)>) -> Report {
        let said = said.map(|(state, reason)| Said {
            checks: true,
            state,
            reason: reason.into(),
            since: self.now,
            checked_at: Some(self.now),
            found: vec![FoundDoc {
                endpoint: 0,
                state: state.as_str().into(),
                reason: reason.into(),
                saw: "what was seen".into(),
                took_us: 7,
            }],
            answered: None,
        });
        Report { server: self.server, proxy: Uuid::from_u128(proxy), said }
    }

    async fn put(&self, reports: &[Report], after: i64) -> usize {
        health::put(&self.db, reports, self.now + TimeDelta::seconds(after)).await.unwrap()
    }

    async fn summary(&self, tenant: &str) -> Option<Summary> {
        let db = self.db.of(tenant);
        health::summaries(&db, tenant, &[self.server]).await.unwrap().remove(&self.server)
    }

    async fn state(&self) -> (State, String) {
        let summary = self.summary("default").await.unwrap();
        (summary.state, summary.reason)
    }

    async fn history(&self) -> Vec<String> {
        let rows = health::history(&self.db.of("default"), "default", self.server, 100).await.unwrap();
        rows.into_iter().map(|row| row.state).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_proxies_say_is_put_together_and_each_change_is_kept() {
    for database in Database::all().await {
        let world = World::open(&database).await;
        let (up, down) = (Some((State::Up, "")), Some((State::Down, "unreachable")));
        assert_eq!(world.put(&[world.report(1, up), world.report(2, up)], 1).await, 1);
        assert_eq!(world.state().await, (State::Up, String::new()));
        assert_eq!(world.put(&[world.report(1, up)], 2).await, 0, "nothing is another than before");
        world.put(&[world.report(2, down)], 3).await;
        assert_eq!(world.state().await, (State::Degraded, "partly_unreachable".into()));
        world.put(&[world.report(1, down)], 4).await;
        assert_eq!(world.state().await, (State::Down, "unreachable".into()));
        let since = world.summary("default").await.unwrap().since;
        assert_eq!(since, Some(world.now + TimeDelta::seconds(4)));
        // One has nothing to say any more, and the other has been silent for too long.
        world.put(&[world.report(2, None), world.report(1, up)], 5).await;
        assert_eq!(world.state().await.0, State::Up);
        let late = world.now + STALE + TimeDelta::seconds(10);
        assert_eq!(health::sweep(&world.db, late).await.unwrap(), 1);
        assert_eq!(world.state().await, (State::Unknown, NO_REPORT.into()));
        assert_eq!(health::sweep(&world.db, late).await.unwrap(), 0);
        assert_eq!(world.history().await, ["unknown", "up", "down", "degraded", "up"]);

        // What is said of a server that is not there is nothing.
        let stray = Report { server: Uuid::now_v7(), ..world.report(1, up) };
        assert_eq!(world.put(&[stray], 6).await, 0);
        // Another tenant sees none of it.
        assert_eq!(world.summary("acme").await, None);
        let views = health::views(&world.db.of("acme"), "acme", world.server, world.now).await.unwrap();
        assert!(views.is_empty());

        let forgotten = health::forget(&world.db, late, world.now + TimeDelta::seconds(4)).await.unwrap();
        assert_eq!((forgotten, world.history().await.len()), (2, 3));
        let mut tx = world.db.begin().await.unwrap();
        servers::delete(&mut tx, "default", "demo", late).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(world.summary("default").await, None, "it goes with its server");
        world.db.close().await;
        database.drop().await;
    }
}

/// Two replicas write what their proxies say at the same time, and neither overlooks what the other wrote.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_write_at_once_come_to_one_state() {
    for database in Database::all().await {
        let world = World::open(&database).await;
        for round in 1..=20_i64 {
            let (state, reason) = if round % 2 == 0 { (State::Up, "") } else { (State::Down, "timed_out") };
            let puts = (1..=4).map(|proxy| {
                let report = world.report(proxy, Some((state, reason)));
                async { world.put(&[report], round).await }
            });
            futures_util::future::join_all(puts).await;
            assert_eq!(world.state().await, (state, reason.to_owned()), "round {round}");
        }
        world.db.close().await;
        database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_heard_of_for_a_while_by_all() {
    for database in Database::all().await {
        let world = World::open(&database).await;
        let order = OrderRow { id: Uuid::now_v7(), server_id: world.server };
        let db = world.db.of("default");
        let mut tx = db.begin().await.unwrap();
        health::order(&mut tx, "default", order, world.now).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(health::orders_since(&world.db, world.now).await.unwrap(), [order]);
        let later = world.now + TimeDelta::seconds(1);
        assert_eq!(health::orders_since(&world.db, later).await.unwrap(), []);
        health::forget(&world.db, later, world.now).await.unwrap();
        assert_eq!(health::orders_since(&world.db, world.now).await.unwrap(), []);
        world.db.close().await;
        database.drop().await;
    }
}
