//! Sessions that end, and contexts that are refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::TimeDelta;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Response;
use waffles_core::wire::timestamp;
use waffles_proto::auth::v1::auth_service_server::{AuthService, AuthServiceServer};

use super::*;

/// A control plane that knows one refresh token at a time, and ends the session when an old one comes.
struct Sessions {
    refreshed: Arc<AtomicUsize>,
}

#[tonic::async_trait]
impl AuthService for Sessions {
    async fn refresh(
        &self,
        request: Request<RefreshRequest>,
    ) -> Result<Response<auth_pb::RefreshResponse>, Status> {
        let count = self.refreshed.fetch_add(1, Ordering::SeqCst);
        if request.into_inner().refresh_token != format!("wfr_{count}") {
            return Err(Status::unauthenticated("the session has ended"));
        }
        let later = Some(timestamp(Utc::now() + TimeDelta::hours(1)));
        let tokens = auth_pb::Tokens {
            access_token: format!("access-{}", count + 1),
            access_expires_at: later,
            refresh_token: format!("wfr_{}", count + 1),
            refresh_expires_at: later,
        };
        Ok(Response::new(auth_pb::RefreshResponse { tokens: Some(tokens) }))
    }

    async fn login(
        &self,
        _: Request<auth_pb::LoginRequest>,
    ) -> Result<Response<auth_pb::LoginResponse>, Status> {
        Err(Status::unimplemented("login"))
    }

    async fn logout(
        &self,
        _: Request<auth_pb::LogoutRequest>,
    ) -> Result<Response<auth_pb::LogoutResponse>, Status> {
        Err(Status::unimplemented("logout"))
    }

    async fn get_self(
        &self,
        _: Request<auth_pb::GetSelfRequest>,
    ) -> Result<Response<auth_pb::GetSelfResponse>, Status> {
        Err(Status::unimplemented("get_self"))
    }

    async fn create_api_key(
        &self,
        _: Request<auth_pb::CreateApiKeyRequest>,
    ) -> Result<Response<auth_pb::CreateApiKeyResponse>, Status> {
        Err(Status::unimplemented("create_api_key"))
    }

    async fn list_api_keys(
        &self,
        _: Request<auth_pb::ListApiKeysRequest>,
    ) -> Result<Response<auth_pb::ListApiKeysResponse>, Status> {
        Err(Status::unimplemented("list_api_keys"))
    }

    async fn get_api_key(
        &self,
        _: Request<auth_pb::GetApiKeyRequest>,
    ) -> Result<Response<auth_pb::GetApiKeyResponse>, Status> {
        Err(Status::unimplemented("get_api_key"))
    }

    async fn revoke_api_key(
        &self,
        _: Request<auth_pb::RevokeApiKeyRequest>,
    ) -> Result<Response<auth_pb::RevokeApiKeyResponse>, Status> {
        Err(Status::unimplemented("revoke_api_key"))
    }
}

/// A context file with a session whose access token has ended, at a control plane that counts refreshes.
async fn ended_session(refresh: &str) -> (tempfile::TempDir, Global, Arc<AtomicUsize>) {
    let refreshed = Arc::new(AtomicUsize::new(0));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let grpc = format!("http://{}", listener.local_addr().unwrap());
    let service = AuthServiceServer::new(Sessions { refreshed: Arc::clone(&refreshed) });
    let server = tonic::transport::Server::builder().add_service(service);
    #[expect(clippy::disallowed_methods, reason = "wafflectl does not depend on runtime/")]
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wafflectl.toml");
    let tokens = Tokens {
        email: "admin@localhost".into(),
        access: "access-0".into(),
        access_expires_at: Utc::now() - TimeDelta::seconds(1),
        refresh: refresh.into(),
        refresh_expires_at: Utc::now() + TimeDelta::days(1),
    };
    let context = Context { grpc, tokens: Some(tokens), ..Context::default() };
    let change = |contexts: &mut crate::context::Contexts| {
        contexts.contexts.insert("a".into(), context);
        Ok(())
    };
    Store::at(&path).change(change).unwrap();
    let global = Global { config: Some(path), ..Global::default() };
    (folder, global, refreshed)
}

async fn credential(global: &Global) -> anyhow::Result<String> {
    Ok(Chosen::find(global)?.credential().await?.expose_secret().to_owned())
}

#[tokio::test]
async fn commands_at_once_renew_a_session_only_once() {
    let (_folder, global, refreshed) = ended_session("wfr_0").await;
    let credentials = tokio::join!(credential(&global), credential(&global), credential(&global));
    for credential in [credentials.0, credentials.1, credentials.2] {
        assert_eq!(credential.unwrap(), "access-1");
    }
    assert_eq!(refreshed.load(Ordering::SeqCst), 1);
    assert_eq!(credential(&global).await.unwrap(), "access-1", "the new tokens were written back");
}

#[tokio::test]
async fn a_session_that_has_ended_says_how_to_go_on() {
    let (_folder, global, _) = ended_session("wfr_old").await;
    let (_, text) = crate::failure::report(&credential(&global).await.unwrap_err());
    assert!(text.contains("the session has ended") && text.contains("wafflectl login"), "{text}");
}

#[test]
fn another_tenant_than_the_contexts_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wafflectl.toml");
    std::fs::write(&path, "[contexts.a]\ngrpc = \"http://127.0.0.1:9\"\n").unwrap();
    let mut global = Global { config: Some(path), tenant: Some("default".into()), ..Global::default() };
    assert!(Chosen::find(&global).is_ok());
    global.tenant = Some("acme".into());
    assert!(Chosen::find(&global).is_err());
}
