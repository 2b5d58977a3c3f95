//! What the store promises, on both databases.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;
use waffles_control_plane::audit::retention;
use waffles_control_plane::store::changes::{self, Claim};
use waffles_control_plane::store::servers::{self, NameClaim};
use waffles_control_plane::store::{Db, DbConfig, audit, principals};
use waffles_control_plane::upkeep;
use waffles_core::audit::{Event, micros};
use waffles_core::credential::{ApiKey, ApiKeyParts, KeyLimits};
use waffles_core::principal::Principal;
use waffles_core::snapshot::{Kind, ResourceKey};
use waffles_core::trail::Signer;

use super::Database;

async fn open(database: &Database) -> Db {
    let db = Db::connect(&DbConfig::new(database.url.clone())).await.unwrap().everywhere();
    db.migrate().await.unwrap();
    let mut tx = db.begin().await.unwrap();
    assert_eq!(changes::claim(&mut tx, "key").await.unwrap(), Claim::Ours);
    tx.commit().await.unwrap();
    db
}

async fn end(db: Db, database: Database) {
    db.close().await;
    database.drop().await;
}

fn key(id: impl ToString) -> ResourceKey {
    ResourceKey::new(Kind::TokenKey, id.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_run_once_also_when_many_run_them() {
    for database in Database::all().await {
        let dbs = futures_util::future::join_all((0..4).map(|_| open(&database))).await;
        let mut tx = dbs[0].begin().await.unwrap();
        assert_eq!(changes::head(&mut tx).await.unwrap().revision, 1);
        assert_eq!(changes::claim(&mut tx, "another").await.unwrap(), Claim::Foreign("key".into()));
        drop(tx);
        for db in &dbs {
            db.close().await;
        }
        database.drop().await;
    }
}

/// A reader that has seen a revision never finds a lower one later, however writers overlap and give up.
#[tokio::test(flavor = "multi_thread")]
async fn revisions_become_visible_in_their_order() {
    for database in Database::all().await {
        let db = open(&database).await;
        let done = Arc::new(AtomicBool::new(false));
        let write = |writer: u32| {
            let db = db.clone();
            async move {
                for i in 0..20_u32 {
                    let mut tx = db.begin().await.unwrap();
                    changes::append(&mut tx, &key(format!("{writer}-{i}")), false).await.unwrap();
                    if i % 5 == 4 {
                        continue;
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(u64::from(writer))).await;
                    tx.commit().await.unwrap();
                }
            }
        };
        let read = async {
            let (mut known, mut seen) = (1, 0);
            loop {
                let last = done.load(Ordering::SeqCst);
                let mut tx = db.begin_read().await.unwrap();
                let head = changes::head(&mut tx).await.unwrap();
                let new = changes::since(&mut tx, known).await.unwrap();
                assert_eq!(new.last().map_or(known, |change| change.revision), head.revision);
                assert!(new.iter().zip(known + 1..).all(|(change, expected)| change.revision == expected));
                known = head.revision;
                seen += new.len();
                if last {
                    return seen;
                }
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        };
        let writers = async {
            futures_util::future::join_all((0..4).map(write)).await;
            done.store(true, Ordering::SeqCst);
        };
        let (seen, ()) = tokio::join!(read, writers);
        assert_eq!(seen, 4 * 16, "what was given up must leave no trace");
        end(db, database).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_cut_off_behind_its_latest_entry() {
    for database in Database::all().await {
        let db = open(&database).await;
        let mut tx = db.begin().await.unwrap();
        for i in 0..3 {
            changes::append(&mut tx, &key(i), i == 1).await.unwrap();
        }
        tx.commit().await.unwrap();
        assert_eq!(changes::cut_off(&db, micros(Utc::now()) - TimeDelta::days(1)).await.unwrap(), 0);
        assert_eq!(changes::cut_off(&db, micros(Utc::now()) + TimeDelta::days(1)).await.unwrap(), 3);
        let mut tx = db.begin_read().await.unwrap();
        let head = changes::head(&mut tx).await.unwrap();
        assert_eq!((head.revision, head.floor), (4, 3));
        assert_eq!(changes::since(&mut tx, 0).await.unwrap().len(), 1);
        drop(tx);
        assert_eq!(changes::cut_off(&db, micros(Utc::now()) + TimeDelta::days(1)).await.unwrap(), 0);
        end(db, database).await;
    }
}

fn event(at: DateTime<Utc>, server: &str) -> Event {
    Event { tenant: "default".into(), server_name: server.into(), ..Event::new(Uuid::now_v7(), at) }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_events_are_forgotten_and_only_those() {
    for database in Database::all().await {
        let db = open(&database).await;
        let now = micros(Utc::now());
        assert_eq!(
            upkeep::make_partitions(&db, now - TimeDelta::days(400)).await.unwrap() > 0,
            db.kind() == "postgres"
        );
        upkeep::make_partitions(&db, now).await.unwrap();
        assert_eq!(upkeep::make_partitions(&db, now).await.unwrap(), 0);
        // In a month of its own, in none, and in the present one.
        let ages = [400, 390, 1000, 2, 0];
        let events: Vec<_> = ages.iter().map(|days| event(now - TimeDelta::days(*days), "s")).collect();
        let mut tx = db.begin().await.unwrap();
        events.iter().for_each(|event| tx.note(event.clone()));
        tx.commit().await.unwrap();
        let signer = Signer::new(&[1; 32]);
        while retention::forget(&db, &signer, now - TimeDelta::days(100), 1).await.unwrap() > 0 {}
        let left = audit::search(&db, "default", &audit::EventFilter::default(), None, 100).await.unwrap();
        assert_eq!(left.iter().map(|event| event.id).collect::<Vec<_>>(), [events[4].id, events[3].id]);
        end(db, database).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_free_again_when_the_trail_has_forgotten_its_server() {
    for database in Database::all().await {
        let db = open(&database).await;
        let claim = async |id: Uuid| {
            let mut tx = db.begin().await.unwrap();
            let claim = servers::claim_name(&mut tx, "default", "demo", id).await.unwrap();
            tx.commit().await.unwrap();
            claim
        };
        let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
        assert_eq!(claim(first).await, NameClaim::Granted);
        assert_eq!(claim(second).await, NameClaim::Taken);
        let now = micros(Utc::now());
        let server = waffles_core::server::Server {
            id: first,
            tenant: "default".into(),
            spec: waffles_core::server::Spec { name: "demo".into(), ..Default::default() },
            credential: waffles_core::server::Credential::None,
            enabled: true,
            version: 1,
            created_at: now,
            updated_at: now,
        };
        let mut tx = db.begin().await.unwrap();
        servers::insert(&mut tx, &server, b"").await.unwrap();
        assert_eq!(servers::delete(&mut tx, "default", "demo", now).await.unwrap(), Some(first));
        tx.note(event(now, "demo"));
        tx.commit().await.unwrap();
        assert_eq!(claim(second).await, NameClaim::Remembered);
        retention::forget(&db, &Signer::new(&[1; 32]), now + TimeDelta::days(1), 100).await.unwrap();
        assert_eq!(claim(second).await, NameClaim::Granted);
        end(db, database).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_ended_by_themselves_leave_the_proxies_once() {
    for database in Database::all().await {
        let db = open(&database).await;
        let now = micros(Utc::now());
        let owner = Principal {
            id: Uuid::now_v7(),
            tenant: "default".into(),
            name: "alice@localhost".into(),
            roles: vec!["user".into()],
            active: true,
            ..Principal::default()
        };
        let mut tx = db.begin().await.unwrap();
        principals::put_user(&mut tx, &owner, "", now).await.unwrap();
        let hour = TimeDelta::hours(1);
        let ends = [
            ("live", None, None),
            ("later", Some(now + hour), None),
            ("expired", Some(now - hour), None),
            ("past", None, Some(now - hour)),
        ];
        for (number, (id, expires_at, not_after)) in (0..).zip(ends) {
            let key = ApiKey::compile(ApiKeyParts {
                id: id.into(),
                tenant: "default".into(),
                name: id.into(),
                owner: owner.id,
                limits: KeyLimits::default(),
                created_at: now - hour,
                expires_at,
                revoked_at: None,
                not_after,
            });
            principals::insert_key(&mut tx, &key.unwrap(), &[number; 32]).await.unwrap();
        }
        tx.commit().await.unwrap();
        assert_eq!(principals::end_expired_keys(&db, now).await.unwrap(), 2);
        assert_eq!(principals::end_expired_keys(&db, now).await.unwrap(), 0);
        let mut tx = db.begin().await.unwrap();
        let removed: Vec<_> =
            changes::since(&mut tx, 1).await.unwrap().into_iter().filter(|c| c.removed).collect();
        let mut ids: Vec<_> = removed.iter().map(|change| change.key.id.as_str()).collect();
        ids.sort_unstable();
        assert_eq!(ids, ["expired", "past"]);
        drop(tx);
        end(db, database).await;
    }
}
