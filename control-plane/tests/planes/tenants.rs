//! Tenants over gRPC, and how the database itself keeps them apart, on Postgres: what a statement that forgot its tenant, or
//! names another one, sees.

use chrono::Utc;
use sqlx::{Connection as _, PgConnection};
use tonic::Code;
use uuid::Uuid;
use waffles_control_plane::audit::retention;
use waffles_control_plane::store::servers::{self, ServerFilter};
use waffles_control_plane::store::{Db, DbConfig, OpenError};
use waffles_control_plane::upkeep;
use waffles_core::audit::{Event, micros};
use waffles_core::server::{Credential, Server, Spec};
use waffles_core::trail::Signer;

use waffles_proto::auth::v1 as auth;
use waffles_proto::auth::v1::auth_service_client::AuthServiceClient;
use waffles_proto::auth::v1::grant_service_client::GrantServiceClient;
use waffles_proto::auth::v1::principal_service_client::PrincipalServiceClient;
use waffles_proto::auth::v1::role_service_client::RoleServiceClient;
use waffles_proto::policy::v1 as policy;
use waffles_proto::registry::v1 as registry;
use waffles_proto::registry::v1::namespace_service_client::NamespaceServiceClient;
use waffles_proto::registry::v1::registry_service_client::RegistryServiceClient;
use waffles_proto::tenant::v1 as pb;
use waffles_proto::tenant::v1::tenant_service_client::TenantServiceClient;

use super::{Database, Operator, Plane, spec};

const PASSWORD: &str = "a password of a tenant";

/// A tenant that has one of everything.
pub struct Settler {
    pub tenant: String,
    pub admin: Operator,
    /// An API key of its admin.
    pub key: String,
    /// What every name in it begins with.
    prefix: String,
    /// The ids of its things, and beside each one that nobody ever had.
    ids: Vec<(String, String)>,
}

impl Settler {
    /// Stands in every text that a tenant of this prefix writes of its own things.
    fn mark(prefix: &str) -> String {
        format!("{prefix} keeps this to itself")
    }

    /// Whether a text shows what is this tenant's.
    pub fn is_shown_in(&self, text: &str) -> bool {
        text.contains(&Self::mark(&self.prefix))
    }

    /// Another tenant, and our own.
    pub async fn two(plane: &Plane) -> (Self, Self) {
        let platform = plane.sign_in().await;
        let theirs = Self::settle(plane, &platform, "globex", "zeta").await;
        (theirs, Self::settle(plane, &platform, "acme", "ours").await)
    }

    /// A tenant whose admin has set a password.
    pub async fn found(
        plane: &Plane,
        platform: &Operator,
        tenant: &str,
        limits: Option<pb::TenantLimits>,
    ) -> Operator {
        let request = pb::CreateTenantRequest {
            id: tenant.into(),
            description: String::new(),
            admin_email: "admin@example.com".into(),
            limits,
        };
        let mut tenants = TenantServiceClient::new(plane.channel().await);
        let made = tenants.create_tenant(platform.ask(request)).await.unwrap().into_inner();
        let request = auth::SetPasswordRequest { token: made.password_token, password: PASSWORD.into() };
        PrincipalServiceClient::new(plane.channel().await).set_password(request).await.unwrap();
        let login =
            auth::LoginRequest { email: made.admin_email, password: PASSWORD.into(), tenant: tenant.into() };
        let session = AuthServiceClient::new(plane.channel().await).login(login).await.unwrap().into_inner();
        Operator { token: session.tokens.unwrap().access_token, channel: plane.channel().await }
    }

    async fn settle(plane: &Plane, platform: &Operator, tenant: &str, prefix: &str) -> Self {
        let admin = Self::found(plane, platform, tenant, None).await;
        let mark = || Self::mark(prefix);
        let name = |what: &str| format!("{prefix}-{what}");
        let mut ids = Vec::new();

        let request = auth::CreateApiKeyRequest { name: mark(), ..Default::default() };
        let mut keys = AuthServiceClient::new(admin.channel.clone());
        let key = keys.create_api_key(admin.ask(request)).await.unwrap().into_inner();
        ids.push(key.api_key.unwrap().id);

        let server = registry::ServerSpec { description: mark(), ..spec(&name("maps")) };
        let request = registry::CreateServerRequest { spec: Some(server), disabled: false };
        let mut servers = RegistryServiceClient::new(admin.channel.clone());
        let made = servers.create_server(admin.ask(request)).await.unwrap().into_inner();
        ids.push(made.server.unwrap().id);
        let namespace =
            registry::NamespaceSpec { name: name("team"), description: mark(), ..Default::default() };
        let request = registry::CreateNamespaceRequest { spec: Some(namespace) };
        let mut namespaces = NamespaceServiceClient::new(admin.channel.clone());
        let made = namespaces.create_namespace(admin.ask(request)).await.unwrap().into_inner();
        ids.push(made.namespace.unwrap().id);

        let mut principals = PrincipalServiceClient::new(admin.channel.clone());
        let request = auth::CreateUserRequest {
            email: format!("{prefix}@example.com"),
            display_name: mark(),
            valid_for: None,
        };
        let made = principals.create_user(admin.ask(request)).await.unwrap().into_inner();
        ids.push(made.user.unwrap().id);
        let request = auth::CreateServiceAccountRequest { name: name("bot"), display_name: mark() };
        let made = principals.create_service_account(admin.ask(request)).await.unwrap().into_inner();
        ids.push(made.service_account.unwrap().id);
        let request = auth::CreateGroupRequest { name: name("crew"), description: mark() };
        principals.create_group(admin.ask(request)).await.unwrap();
        let request = auth::AddGroupMemberRequest { group: name("crew"), member: name("bot") };
        principals.add_group_member(admin.ask(request)).await.unwrap();
        let request = auth::ListSessionsRequest::default();
        let sessions = principals.list_sessions(admin.ask(request)).await.unwrap().into_inner().sessions;
        ids.extend(sessions.into_iter().map(|session| session.id));

        let request = auth::CreateRoleRequest {
            name: name("role"),
            description: mark(),
            permissions: vec!["servers:read".into()],
        };
        let mut roles = RoleServiceClient::new(admin.channel.clone());
        roles.create_role(admin.ask(request)).await.unwrap();
        let request = auth::CreateGrantRequest {
            role: name("role"),
            holder: Some(auth::GrantHolder { who: Some(auth::grant_holder::Who::Group(name("crew"))) }),
            scope: Some(policy::Scope { kind: Some(policy::scope::Kind::Server(name("maps"))) }),
        };
        let mut grants = GrantServiceClient::new(admin.channel.clone());
        let made = grants.create_grant(admin.ask(request)).await.unwrap().into_inner();
        ids.push(made.grant.unwrap().id);
        let unknown = |id: &String| match id.parse::<Uuid>() {
            Ok(_) => Uuid::now_v7().to_string(),
            Err(_) => id.chars().rev().collect(),
        };
        let ids = ids.iter().map(|id| (id.clone(), unknown(id))).collect();
        Self { tenant: tenant.into(), admin, key: key.secret, prefix: prefix.into(), ids }
    }

    /// What it has, and beside each something of the same form that nobody ever had.
    pub fn pairs(&self) -> Vec<(String, String)> {
        let nobody = |text: &str| text.replacen(&self.prefix, "yeta", 1);
        let mut pairs: Vec<(String, String)> = ["maps", "team", "bot", "crew", "role"]
            .iter()
            .map(|what| format!("{}-{what}", self.prefix))
            .chain([format!("{}@example.com", self.prefix)])
            .map(|theirs| (theirs.clone(), nobody(&theirs)))
            .collect();
        pairs.push((self.tenant.clone(), "nobody".into()));
        pairs.extend(self.ids.iter().cloned());
        pairs
    }

    /// What it has of this name.
    pub fn own(&self, field: &str) -> Option<String> {
        let name = |what: &str| Some(format!("{}-{what}", self.prefix));
        match field {
            "server" => name("maps"),
            "namespace" => name("team"),
            "group" => name("crew"),
            "role" => name("role"),
            "service_account" | "member" | "principal" => name("bot"),
            "user" => Some(format!("{}@example.com", self.prefix)),
            _ => None,
        }
    }
}

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
        tx.note(event);
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
        ("UPDATE audit_checkpoints SET number = 7", "42501"),
        ("DELETE FROM audit_checkpoints", "42501"),
        ("DELETE FROM audit_heads", "42501"),
        ("DELETE FROM audit_forgotten", "42501"),
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
    tx.note(event);
    tx.commit().await.unwrap();
    let signer = Signer::new(&[1; 32]);
    let until = now + chrono::TimeDelta::seconds(1);
    assert_eq!(retention::forget(&db, &signer, until, 10).await.unwrap(), 1);

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

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_begins_with_an_admin_and_a_namespace_and_only_the_platform_makes_one() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let platform = plane.sign_in().await;
        let admin = Settler::found(&plane, &platform, "acme", None).await;
        let mut auth = AuthServiceClient::new(plane.channel().await);
        let me = auth.get_self(admin.ask(auth::GetSelfRequest {})).await.unwrap().into_inner();
        assert!(me.permissions.contains(&"access:write".to_owned()), "{:?}", me.permissions);
        for platforms in ["tenants:manage", "proxies:read", "proxies:write", "secrets:rotate"] {
            assert!(!me.permissions.contains(&platforms.to_owned()), "{platforms}");
        }
        let mut namespaces = NamespaceServiceClient::new(plane.channel().await);
        let request = registry::ListNamespacesRequest::default();
        let listed = namespaces.list_namespaces(admin.ask(request)).await.unwrap().into_inner().namespaces;
        assert_eq!(
            listed.iter().map(|n| n.spec.as_ref().unwrap().name.as_str()).collect::<Vec<_>>(),
            ["default"]
        );

        let mut tenants = TenantServiceClient::new(plane.channel().await);
        let new = |id: &str, email: &str| pb::CreateTenantRequest {
            id: id.into(),
            admin_email: email.into(),
            ..Default::default()
        };
        let refused = tenants.create_tenant(admin.ask(new("other", "a@b"))).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        for (id, email, code) in [
            ("acme", "a@b", Code::AlreadyExists),
            ("default", "a@b", Code::AlreadyExists),
            ("Other", "a@b", Code::InvalidArgument),
            ("other", "nobody", Code::InvalidArgument),
        ] {
            let refused = tenants.create_tenant(platform.ask(new(id, email))).await.unwrap_err();
            assert_eq!(refused.code(), code, "{id} {email}: {refused}");
        }
        let request = pb::ListTenantsRequest { page_size: 1, cursor: String::new() };
        let first = tenants.list_tenants(platform.ask(request)).await.unwrap().into_inner();
        let request = pb::ListTenantsRequest { page_size: 1, cursor: first.next_cursor };
        let second = tenants.list_tenants(platform.ask(request)).await.unwrap().into_inner();
        assert_eq!((first.tenants[0].id.as_str(), second.tenants[0].id.as_str()), ("acme", "default"));
        assert!(second.next_cursor.is_empty());
        for id in ["nobody", "", "a b", "nul\0", &"x".repeat(300)] {
            let request = pb::GetTenantRequest { id: id.into() };
            let missing = tenants.get_tenant(platform.ask(request)).await.unwrap_err();
            assert_eq!(missing.code(), Code::NotFound, "{id:?}");
        }
        let request = pb::SuspendTenantRequest { id: "default".into() };
        let refused = tenants.suspend_tenant(platform.ask(request)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        plane.stop().await;
        database.drop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_has_no_more_than_it_may_have_however_many_ask_at_once() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let platform = plane.sign_in().await;
        let limits =
            pb::TenantLimits { max_servers: Some(2), max_principals: Some(3), max_api_keys: Some(2) };
        let admin = Settler::found(&plane, &platform, "acme", Some(limits)).await;
        let (server, user, key) = (
            async |i: usize| {
                let request =
                    registry::CreateServerRequest { spec: Some(spec(&format!("s{i}"))), disabled: false };
                let mut servers = RegistryServiceClient::new(admin.channel.clone());
                servers.create_server(admin.ask(request)).await.map(drop)
            },
            async |i: usize| {
                let request = auth::CreateUserRequest { email: format!("u{i}@b"), ..Default::default() };
                let mut principals = PrincipalServiceClient::new(admin.channel.clone());
                principals.create_user(admin.ask(request)).await.map(drop)
            },
            async |i: usize| {
                let request = auth::CreateApiKeyRequest { name: format!("k{i}"), ..Default::default() };
                let mut keys = AuthServiceClient::new(admin.channel.clone());
                keys.create_api_key(admin.ask(request)).await.map(drop)
            },
        );
        let all = futures_util::future::join3(
            futures_util::future::join_all((0..5).map(&server)),
            futures_util::future::join_all((0..5).map(&user)),
            futures_util::future::join_all((0..5).map(&key)),
        );
        let (servers, users, keys) = all.await;
        // The admin is the third principal.
        for (limit, answers, fit) in
            [("max_servers", servers, 2), ("max_principals", users, 2), ("max_api_keys", keys, 2)]
        {
            assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), fit, "{limit}: {answers:?}");
            for refused in answers.into_iter().filter_map(Result::err) {
                assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
                assert!(refused.message().contains(limit), "{refused}");
            }
        }
        let mut tenants = TenantServiceClient::new(plane.channel().await);
        let request =
            pb::SetTenantLimitsRequest { id: "acme".into(), limits: Some(pb::TenantLimits::default()) };
        tenants.set_tenant_limits(platform.ask(request)).await.unwrap();
        server(7).await.unwrap();
        user(7).await.unwrap();
        key(7).await.unwrap();
        let request = pb::GetTenantRequest { id: "acme".into() };
        let shown = tenants.get_tenant(platform.ask(request)).await.unwrap().into_inner();
        assert_eq!(
            shown.usage,
            Some(pb::TenantUsage { servers: 3, namespaces: 1, principals: 4, api_keys: 3 })
        );
        plane.stop().await;
        database.drop().await;
    }
}

/// A cursor says a place, not whose list it is of: with another tenant's one sees one's own things behind that place.
#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_of_another_tenant_shows_nothing_of_it() {
    for database in Database::all().await {
        let plane = Plane::start(&database).await;
        let (theirs, ours) = Settler::two(&plane).await;
        let request = registry::CreateServerRequest { spec: Some(spec("alpha")), disabled: false };
        let mut servers = RegistryServiceClient::new(plane.channel().await);
        servers.create_server(theirs.admin.ask(request)).await.unwrap();
        let page = |cursor: &str| registry::ListServersRequest {
            page_size: 1,
            cursor: cursor.into(),
            ..Default::default()
        };
        let first = servers.list_servers(theirs.admin.ask(page(""))).await.unwrap().into_inner();
        assert!(!first.next_cursor.is_empty());
        let seen = servers.list_servers(ours.admin.ask(page(&first.next_cursor))).await.unwrap().into_inner();
        assert!(seen.servers.iter().all(|server| server.tenant == "acme"), "{seen:?}");

        let mut trail =
            waffles_proto::audit::v1::audit_service_client::AuditServiceClient::new(plane.channel().await);
        let page = |cursor: &str| waffles_proto::audit::v1::SearchEventsRequest {
            page_size: 1,
            cursor: cursor.into(),
            ..Default::default()
        };
        let first = trail.search_events(theirs.admin.ask(page(""))).await.unwrap().into_inner();
        let seen = trail.search_events(ours.admin.ask(page(&first.next_cursor))).await.unwrap().into_inner();
        assert!(seen.events.iter().all(|event| event.tenant == "acme"), "{seen:?}");
        plane.stop().await;
        database.drop().await;
    }
}
