//! Tenants are kept apart by the database itself, on Postgres: what a statement that forgot its tenant, or names another
//! one, sees.

use chrono::Utc;
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;
use waffles_control_plane::store::servers::{self, ServerFilter};
use waffles_control_plane::store::{Db, DbConfig, OpenError, audit};
use waffles_control_plane::upkeep;
use waffles_core::audit::{Event, micros};
use waffles_core::server::{Credential, Server, Spec};

use super::{Database, Plane};

const TENANTS: [&str; 2] = ["acme", "globex"];

/// A database with two tenants, each with a server and an event of the same name.
async fn two_tenants(database: &Database, connections: u32) -> Db {
    let config = DbConfig { max_connections: connections, ..DbConfig::new(database.url.clone()) };
    let db = Db::connect(&config).await.unwrap();
    db.migrate().await.unwrap();
    upkeep::make_partitions(&db, Utc::now()).await.unwrap();
    for tenant in TENANTS {
        raw(database, &format!("INSERT INTO tenants (id, created_at) VALUES ('{tenant}', now())"))
            .await
            .unwrap();
        let now = micros(Utc::now());
        let server = Server {
            id: Uuid::now_v7(),
            tenant: tenant.into(),
            spec: Spec { name: "demo".into(), ..Default::default() },
            credential: Credential::None,
            enabled: true,
            version: 1,
            created_at: now,
            updated_at: now,
        };
        let event = Event { tenant: tenant.into(), server_name: "demo".into(), ..Event::new(server.id, now) };
        let mut tx = db.of(tenant).begin().await.unwrap();
        servers::insert(&mut tx, &server, b"").await.unwrap();
        audit::insert(&mut tx, &[(&event, None)]).await.unwrap();
        tx.commit().await.unwrap();
    }
    db
}

/// As the owner, who sees all rows.
async fn raw(database: &Database, sql: &str) -> sqlx::Result<u64> {
    let mut conn = PgConnection::connect(&database.url).await?;
    let sql = format!("SET waffles.scope = 'everywhere'; {sql}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut conn).await.map(|done| done.rows_affected())
}

/// As the role that statements run as, told what the test says.
async fn as_role(database: &Database, scope: &str) -> PgConnection {
    let mut conn = PgConnection::connect(&database.url).await.unwrap();
    let name: String =
        sqlx::query_scalar("SELECT current_database()::text").fetch_one(&mut conn).await.unwrap();
    let sql = format!("SET ROLE \"{name}_app\"; {scope}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut conn).await.unwrap();
    conn
}

async fn count(conn: &mut PgConnection, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(conn).await.unwrap()
}

async fn names(db: &Db, tenant: &str) -> usize {
    servers::list(db, tenant, &ServerFilter::default(), None, None, 10).await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_forgot_its_tenant_sees_nothing() {
    let Some(database) = Database::postgres().await else { return };
    let db = two_tenants(&database, 3).await;
    for (scope, seen) in [
        ("", 0),
        ("SET waffles.tenant = 'nobody'", 0),
        ("SET waffles.scope = 'tenant'", 0),
        ("SET waffles.tenant = 'acme'", 1),
        ("SET waffles.scope = 'everywhere'", 2),
    ] {
        let mut conn = as_role(&database, scope).await;
        for table in ["servers", "audit_events"] {
            assert_eq!(count(&mut conn, table).await, seen, "{table} with {scope:?}");
        }
        conn.close().await.unwrap();
    }
    // A tenant other than the one named, by the store's own statements.
    assert_eq!(names(&db.of("acme"), "acme").await, 1);
    assert_eq!(names(&db.of("acme"), "globex").await, 0);
    assert_eq!(names(&db, "acme").await, 0);
    assert_eq!(names(&db.of("a'; SET waffles.scope = 'everywhere"), "acme").await, 0);
    assert_eq!(names(&db.everywhere(), "globex").await, 1);
    db.close().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_writes_no_rows_of_another_tenant() {
    let Some(database) = Database::postgres().await else { return };
    let db = two_tenants(&database, 3).await;
    let mut conn = as_role(&database, "SET waffles.tenant = 'acme'").await;
    for (sql, touched) in [
        ("UPDATE servers SET enabled = false WHERE tenant = 'globex'", 0),
        ("DELETE FROM servers WHERE tenant = 'globex'", 0),
        ("UPDATE servers SET enabled = false", 1),
        ("UPDATE tenants SET description = 'mine'", 1),
    ] {
        assert_eq!(sqlx::query(sql).execute(&mut conn).await.unwrap().rows_affected(), touched, "{sql}");
    }
    for (sql, code) in [
        ("UPDATE servers SET tenant = 'globex'", "42501"),
        (
            "INSERT INTO server_names (tenant, name, server_id) VALUES ('globex', 'x', gen_random_uuid())",
            "42501",
        ),
        // The trail is only added to, and what it consists of is reached through it alone.
        ("UPDATE audit_events SET reason = ''", "42501"),
        ("DELETE FROM audit_events", "42501"),
        ("TRUNCATE audit_events", "42501"),
        ("SELECT * FROM audit_events_default", "42501"),
        // Neither the structure nor the history of the database is the role's.
        ("ALTER TABLE servers DISABLE ROW LEVEL SECURITY", "42501"),
        ("DROP POLICY of_tenant ON servers", "42501"),
        ("SELECT * FROM _sqlx_migrations", "42501"),
    ] {
        let error = sqlx::query(sql).execute(&mut conn).await.expect_err(sql);
        assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some(code), "{sql}: {error}");
    }
    conn.close().await.unwrap();
    db.close().await;
    database.drop().await;
}

/// With one connection, whatever one user leaves behind is what the next one finds.
#[tokio::test(flavor = "multi_thread")]
async fn a_scope_never_reaches_the_next_user_of_a_connection() {
    let Some(database) = Database::postgres().await else { return };
    let db = two_tenants(&database, 1).await;
    let hammer = |tenant: &'static str, other: &'static str| {
        let db = db.clone();
        async move {
            for round in 0..60_u32 {
                let own = db.of(tenant);
                match round % 6 {
                    0 => assert_eq!(names(&own, tenant).await, 1),
                    1 => assert_eq!(names(&own, other).await, 0),
                    2 => assert_eq!(names(&db, tenant).await, 0),
                    3 => {
                        let mut tx = own.begin().await.unwrap();
                        assert!(servers::find(&mut tx, tenant, "demo").await.unwrap().is_some());
                        assert!(servers::find(&mut tx, other, "demo").await.unwrap().is_none());
                    }
                    4 => {
                        let mut tx = own.begin_read().await.unwrap();
                        assert_eq!(servers::load(&mut tx, None).await.unwrap().len(), 1);
                        tx.commit().await.unwrap();
                    }
                    // Given up in the middle, wherever that is.
                    _ => {
                        let wait = std::time::Duration::from_micros(u64::from(round) * 40);
                        drop(tokio::time::timeout(wait, names(&db.everywhere(), other)).await);
                    }
                }
            }
        }
    };
    let all = [
        hammer("acme", "globex"),
        hammer("globex", "acme"),
        hammer("acme", "globex"),
        hammer("globex", "acme"),
    ];
    futures_util::future::join_all(all).await;
    db.close().await;
    database.drop().await;
}

/// So that no migration forgets it.
#[tokio::test(flavor = "multi_thread")]
async fn every_table_of_a_tenant_has_forced_row_level_security() {
    const TABLES: &str = "SELECT c.relname::text, c.relrowsecurity, c.relforcerowsecurity, c.relispartition,
            (SELECT count(*) FROM pg_policies p WHERE p.schemaname = 'public' AND p.tablename = c.relname
                AND p.permissive = 'PERMISSIVE' AND p.cmd = 'ALL' AND p.qual LIKE '%waffles.tenant%'
                AND p.with_check = p.qual)
        FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
            AND (c.relname = 'tenants' OR EXISTS (SELECT 1 FROM pg_attribute a
                WHERE a.attrelid = c.oid AND a.attname = 'tenant' AND NOT a.attisdropped))
        ORDER BY 1";
    let Some(database) = Database::postgres().await else { return };
    let db = two_tenants(&database, 3).await;
    let mut conn = PgConnection::connect(&database.url).await.unwrap();
    let tables: Vec<(String, bool, bool, bool, i64)> =
        sqlx::query_as(TABLES).fetch_all(&mut conn).await.unwrap();
    assert!(tables.len() > 12, "{tables:?}");
    for (name, enabled, forced, partition, policies) in &tables {
        assert!(*enabled && *forced, "{name} has no forced row-level security");
        assert_eq!(*policies, i64::from(!partition), "{name} has {policies} policies for its tenant");
    }
    // A start finds out, too.
    raw(&database, "CREATE TABLE forgotten (tenant TEXT NOT NULL)").await.unwrap();
    let error = db.migrate().await.unwrap_err();
    assert!(matches!(&error, OpenError::Unprotected(why) if why.ends_with("forgotten")), "{error}");
    conn.close().await.unwrap();
    db.close().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_who_may_make_no_role_is_told_what_to_run() {
    let Some(database) = Database::postgres().await else { return };
    let mut url = url::Url::parse(&database.url).unwrap();
    let name = url.path().trim_start_matches('/').to_owned();
    let owner = format!("{name}_owner");
    raw(
        &database,
        &format!("CREATE ROLE {owner} LOGIN PASSWORD 'pass'; GRANT CREATE ON SCHEMA public TO {owner}"),
    )
    .await
    .unwrap();
    url.set_username(&owner).unwrap();
    url.set_password(Some("pass")).unwrap();
    let db = Db::connect(&DbConfig::new(url.to_string())).await.unwrap();
    let error = db.migrate().await.unwrap_err();
    let OpenError::Role { remedy, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*remedy, format!("CREATE ROLE \"{name}_app\" NOLOGIN; GRANT \"{name}_app\" TO \"{owner}\";"));
    assert!(error.to_string().contains(remedy), "{error}");
    raw(&database, remedy).await.unwrap();
    db.migrate().await.unwrap();
    // The owner is no superuser: forced policies hold for it, and its housekeeping works all the same.
    upkeep::make_partitions(&db, Utc::now()).await.unwrap();
    let now = micros(Utc::now());
    let event = Event { tenant: "default".into(), ..Event::new(Uuid::now_v7(), now) };
    let mut tx = db.of("default").begin().await.unwrap();
    audit::insert(&mut tx, &[(&event, None)]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(audit::forget(&db, now + chrono::TimeDelta::days(1), 10).await.unwrap(), 1);

    // A role that could look past the policies is none.
    raw(&database, &format!("ALTER ROLE \"{name}_app\" BYPASSRLS")).await.unwrap();
    let error = db.migrate().await.unwrap_err();
    assert!(matches!(&error, OpenError::Unprotected(why) if why.contains("BYPASSRLS")), "{error}");
    let own = DbConfig { role: Some(owner), ..DbConfig::new(url.to_string()) };
    let error = Db::connect(&own).await.unwrap().migrate().await.unwrap_err();
    assert!(matches!(&error, OpenError::Unprotected(why) if why.contains("owns the tables")), "{error}");
    db.close().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_file_takes_one_control_plane_at_a_time() {
    let database = Database::sqlite();
    let plane = Plane::start(&database).await;
    let error = Plane::try_start(&database).await.err().expect("a second one does not start");
    assert!(error.to_string().contains("another control plane serves from"), "{error:#}");
    plane.stop().await;
    Plane::start(&database).await.stop().await;
}
