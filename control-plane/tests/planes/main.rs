//! A whole control plane on free ports, on SQLite and, where `WAFFLES_TEST_POSTGRES` names a server on which
//! databases may be made, on Postgres.

#![allow(clippy::disallowed_methods, reason = "tests connect to what they have started")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    unreachable_pub,
    reason = "all of it is test code, not only what stands in functions marked so"
)]

mod audit;
mod auth;
mod crossing;
mod discovery;
mod doors;
mod enrolled;
mod health;
mod namespaces;
mod outage;
mod people;
mod policy;
mod registry;
mod store;
mod tenants;

use std::path::PathBuf;
use std::time::Duration;

use sqlx::Connection as _;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;
use waffles_control_plane::app;
use waffles_control_plane::config::Config;
use waffles_control_plane::services::Services;
use waffles_proto::auth::v1 as auth_pb;
use waffles_proto::auth::v1::auth_service_client::AuthServiceClient;
use waffles_proto::registry::v1 as registry_pb;

/// How long anything may take that the system does by itself.
const SOON: Duration = Duration::from_secs(5);

/// A database to test on.
pub struct Database {
    url: String,
    folder: TempDir,
    /// Where Postgres databases are made and dropped.
    server: Option<(String, String)>,
}

impl Database {
    pub fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("control-plane.db").display());
        Self { url, folder, server: None }
    }

    pub async fn postgres() -> Option<Self> {
        #[allow(clippy::disallowed_methods, reason = "a test is told by the environment where Postgres is")]
        let server = std::env::var("WAFFLES_TEST_POSTGRES").ok()?;
        let name = format!("waffles_test_{}", Uuid::now_v7().simple());
        let mut conn = sqlx::PgConnection::connect(&server).await.unwrap();
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut conn).await.unwrap();
        let mut url = url::Url::parse(&server).unwrap();
        url.set_path(&name);
        Some(Self { url: url.into(), folder: tempfile::tempdir().unwrap(), server: Some((server, name)) })
    }

    /// SQLite, and Postgres where there is one.
    pub async fn all() -> Vec<Self> {
        let mut all = vec![Self::sqlite()];
        all.extend(Self::postgres().await);
        all
    }

    /// Drops a Postgres database.
    pub async fn drop(self) {
        if let Some((server, name)) = self.server {
            let mut conn = sqlx::PgConnection::connect(&server).await.unwrap();
            let sql = format!("DROP DATABASE {name} WITH (FORCE)");
            sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut conn).await.unwrap();
        }
    }
}

/// A running control plane.
pub struct Plane {
    pub grpc: String,
    pub http: String,
    pub admin: String,
    pub password: Option<String>,
    pub services: Services,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<anyhow::Result<()>>,
}

impl Plane {
    pub async fn start(database: &Database) -> Self {
        Self::start_at(database, &database.url).await
    }

    pub async fn start_at(database: &Database, url: &str) -> Self {
        Self::try_start_at(database, url).await.unwrap()
    }

    pub async fn try_start(database: &Database) -> anyhow::Result<Self> {
        Self::try_start_at(database, &database.url).await
    }

    async fn try_start_at(database: &Database, url: &str) -> anyhow::Result<Self> {
        let folder: PathBuf = database.folder.path().into();
        let mut args = vec!["waffles-control-plane", "--database-url", url, "--grace", "5s", "--data-dir"];
        args.push(folder.to_str().unwrap());
        for flag in ["--http-addr", "--grpc-addr", "--admin-addr"] {
            args.extend([flag, "127.0.0.1:0"]);
        }
        let mut bound = Box::pin(app::build(Config::from_args(args).unwrap())).await?;
        use secrecy::ExposeSecret as _;
        let password = bound.first.take().map(|first| first.password.expose_secret().to_owned());
        let (grpc, http) = (format!("http://{}", bound.grpc_addr), format!("http://{}", bound.http_addr));
        let admin = format!("http://{}", bound.admin_addr);
        let services = bound.services().clone();
        let (stop, stopped) = oneshot::channel();
        let ended = waffles_runtime::task::spawn("plane", async move {
            Box::pin(bound.run_until(async { drop(stopped.await) })).await
        });
        Ok(Self { grpc, http, admin, password, services, stop, ended })
    }

    pub async fn channel(&self) -> Channel {
        Endpoint::new(self.grpc.clone()).unwrap().connect().await.unwrap()
    }

    /// Signs the admin in with the one-time password, and gives an access token.
    pub async fn sign_in(&self) -> Operator {
        let login = auth_pb::LoginRequest {
            email: "admin@localhost".into(),
            password: self.password.clone().expect("only the first start has a password"),
            tenant: String::new(),
        };
        let answer = AuthServiceClient::new(self.channel().await).login(login).await.unwrap().into_inner();
        Operator { token: answer.tokens.unwrap().access_token, channel: self.channel().await }
    }

    pub async fn stop(self) {
        self.stop.send(()).unwrap();
        tokio::time::timeout(SOON, self.ended).await.expect("the drain hangs").unwrap().unwrap();
    }
}

/// Someone with a credential.
#[derive(Clone)]
pub struct Operator {
    pub token: String,
    pub channel: Channel,
}

impl Operator {
    /// A request with the credential.
    pub fn ask<T>(&self, message: T) -> tonic::Request<T> {
        with_bearer(message, &self.token)
    }
}

pub fn with_bearer<T>(message: T, token: &str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let value: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

/// A sound specification.
pub fn spec(name: &str) -> registry_pb::ServerSpec {
    registry_pb::ServerSpec {
        name: name.into(),
        endpoints: vec![registry_pb::Endpoint {
            url: "http://127.0.0.1:9/mcp".into(),
            weight: 1,
            zone: String::new(),
        }],
        ..Default::default()
    }
}

/// Waits until a look finds something.
pub async fn eventually<T, F>(mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "did not happen within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
