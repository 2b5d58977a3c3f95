//! The real router on a real database: SQLite, or Postgres where `WAFFLES_TEST_POSTGRES` names a server on
//! which databases may be made.

mod access;
mod crossing;
mod enrolment;
mod keys;
mod limits;
mod namespaces;
mod people;
mod servers;
mod sessions;

use axum::body::Body;
use axum::extract::ConnectInfo;
use http::{HeaderMap, Request};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;
use waffles_core::policy::Role;
use waffles_core::principal::Principal;

use waffles_runtime::host::Pages;

use super::*;
use crate::audit::Audit;
use crate::discovery::Discovery;
use crate::enrolment::{CERTIFICATE_LIFE, Enrolment};
use crate::identity::Identity;
use crate::namespaces::Namespaces;
use crate::proxies::Proxies;
use crate::registry::Registry;
use crate::secrets::Secrets;
use crate::store::Db;
use crate::store::{DbConfig, on_tx, principals};
use crate::tenants::Tenants;

/// A control plane without ports.
struct World {
    router: Router,
    services: Services,
    gates: Gates,
    admin_password: String,
    _folder: tempfile::TempDir,
}

/// An answer, its body read.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        #[allow(clippy::disallowed_methods, reason = "a test is told by the environment where Postgres is")]
        let url = match std::env::var("WAFFLES_TEST_POSTGRES") {
            Ok(server) => make_database(&server).await,
            Err(_) => format!("sqlite://{}", folder.path().join("test.db").display()),
        };
        let db = Db::connect(&DbConfig { max_connections: 3, ..DbConfig::new(url) }).await.unwrap();
        db.migrate().await.unwrap();
        let secrets = Secrets::from_master(&[7; 32]);
        let discovery = Discovery::new();
        let identity = Identity::new(db.clone(), &secrets, discovery.clone(), None).unwrap();
        let admin = identity.bootstrap().await.unwrap().expect("the first start makes the admin");
        assert_eq!(admin.email, "admin@localhost");
        assert!(identity.bootstrap().await.unwrap().is_none(), "the second start makes none");
        let channel =
            crate::enrolment::Settings { certificate_life: CERTIFICATE_LIFE, names: Vec::new(), files: None };
        let services = Services {
            registry: Registry::new(db.clone(), secrets.seal.clone(), discovery.clone()),
            namespaces: Namespaces::new(db.clone(), discovery.clone()),
            policy: crate::policy::Policy::new(db.clone(), discovery.clone()),
            limits: crate::limits::Limits::new(db.clone(), discovery.clone()),
            audit: Audit::new(db.clone(), identity.usage().clone(), secrets.audit.clone()),
            enrolment: Enrolment::new(db.clone(), &secrets, channel),
            proxies: Proxies::new(db.clone(), discovery.clone()),
            health: crate::health::Ward::new(db.clone(), discovery.clone()),
            tenants: Tenants::new(db.clone(), identity.clone(), discovery.clone()),
            keys: crate::secrets::keys::Keys::new(&db, secrets.clone(), discovery.clone()),
            identity,
            db,
        };
        services.namespaces.bootstrap().await.unwrap();
        services.enrolment.bootstrap().await.unwrap();
        let gates = Gates::new();
        let hosts = Hosts::new("127.0.0.1:8081".parse().unwrap(), []).pages(Pages::Same);
        Self {
            router: router(services.clone(), hosts, gates.clone()),
            gates,
            services,
            admin_password: admin.password.expose_secret().to_owned(),
            _folder: folder,
        }
    }

    async fn send(&self, mut request: Request<Body>) -> Answer {
        request.headers_mut().entry(header::HOST).or_insert(HeaderValue::from_static("localhost:8081"));
        let peer: std::net::SocketAddr = "127.0.0.1:50000".parse().unwrap();
        request.extensions_mut().insert(ConnectInfo(peer));
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let is_lines =
            parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/jsonl");
        let body = match bytes.is_empty() {
            true => Value::Null,
            // A list of the lines.
            false if is_lines => {
                let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                lines.map(|line| serde_json::from_slice::<Value>(line).unwrap()).collect()
            }
            false => serde_json::from_slice(&bytes).unwrap(),
        };
        let refused = !parts.status.is_success();
        if refused {
            assert_eq!(parts.headers[header::CONTENT_TYPE], "application/problem+json", "{}", parts.status);
            assert_eq!(body["status"], parts.status.as_u16());
            assert_eq!(body["request_id"], parts.headers["x-request-id"].to_str().unwrap());
        }
        assert_eq!(parts.headers["x-content-type-options"], "nosniff");
        assert_eq!(parts.headers["cache-control"], "no-store");
        assert!(
            parts.headers["content-security-policy"].to_str().unwrap().contains("frame-ancestors 'none'")
        );
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// A request with a credential and, unless it is null, a JSON body.
    async fn call(&self, method: &str, path: &str, credential: &str, body: Value) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !credential.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {credential}"));
        }
        let body = match body {
            Value::Null => Body::empty(),
            body => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Body::from(body.to_string())
            }
        };
        self.send(request.body(body).unwrap()).await
    }

    async fn get(&self, path: &str, credential: &str) -> Answer {
        self.call("GET", path, credential, Value::Null).await
    }

    async fn login(&self, email: &str, password: &str) -> Answer {
        self.call("POST", "/api/v1/auth/login", "", json!({"email": email, "password": password})).await
    }

    async fn admin(&self) -> String {
        let answer = self.login("admin@localhost", &self.admin_password).await;
        answer.body["access_token"].as_str().expect("the admin may log in").to_owned()
    }

    /// Makes a user of another role directly, since there is no route for it yet; answers with a token.
    async fn user(&self, tenant: &str, name: &str, role: &str) -> String {
        let db = self.services.db.everywhere();
        let now = chrono::Utc::now();
        let user = Principal {
            id: uuid::Uuid::now_v7(),
            tenant: tenant.to_owned(),
            name: name.to_owned(),
            roles: vec![role.to_owned()],
            active: true,
            ..Principal::default()
        };
        let hash = self.services.identity.hash_for_test("password").await;
        let mut tx = db.begin().await.unwrap();
        const TENANT: &str = "INSERT INTO tenants (id, created_at) VALUES ($1, $2) ON CONFLICT DO NOTHING";
        on_tx!(&mut tx, |conn| sqlx::query(TENANT).bind(tenant).bind(now).execute(conn).await.map(drop))
            .unwrap();
        principals::put_user(&mut tx, &user, &hash, now).await.unwrap();
        tx.commit().await.unwrap();
        let login = json!({"email": name, "password": "password", "tenant": tenant});
        let answer = self.call("POST", "/api/v1/auth/login", "", login).await;
        answer.body["access_token"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned()
    }

    /// Actions in the audit trail, newest first.
    async fn acts(&self, credential: &str) -> Vec<String> {
        let answer = self.get("/api/v1/audit?limit=1000", credential).await;
        let events = answer.body["events"].as_array().unwrap().clone();
        events.iter().map(|event| event["action"].as_str().unwrap().to_owned()).collect()
    }
}

impl Answer {
    fn fields(&self) -> Vec<&str> {
        let errors = self.body["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
        errors.iter().map(|error| error["field"].as_str().unwrap()).collect()
    }

    fn text(&self, field: &str) -> String {
        self.body[field].as_str().unwrap_or_else(|| panic!("no {field} in {}", self.body)).to_owned()
    }
}

async fn make_database(server: &str) -> String {
    let mut conn = <sqlx::PgConnection as sqlx::Connection>::connect(server).await.unwrap();
    let name = format!("waffles_rest_{}", uuid::Uuid::now_v7().simple());
    sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut conn).await.unwrap();
    let mut url = url::Url::parse(server).unwrap();
    url.set_path(&name);
    url.into()
}

fn demo(name: &str) -> Value {
    json!({"name": name, "endpoints": [{"url": "http://127.0.0.1:9999/mcp"}]})
}
