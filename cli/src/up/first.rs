//! The credential that `up` and the next commands work with, and the first one of all.

use secrecy::{ExposeSecret as _, SecretString};
use waffles_proto::auth::v1::auth_service_client::AuthServiceClient;
use waffles_proto::auth::v1::{CreateApiKeyRequest, GetSelfRequest, LoginRequest};

use crate::client::Client;
use crate::context::Store;
use crate::failure::Failure;
use crate::place::Place;

/// The account that the first start makes.
pub(super) const ADMIN: &str = "admin@localhost";

/// The key in use, and what of it was made just now.
pub(super) struct Credential {
    pub(super) key: SecretString,
    pub(super) email: String,
    /// Known only when the key was made just now.
    pub(super) password: Option<SecretString>,
    pub(super) is_new: bool,
}

/// The key of a context, when the control plane knows it.
pub(super) async fn kept(grpc: Place<'_>, key: SecretString, store: &Store) -> anyhow::Result<Credential> {
    let link = Client::link(grpc, Some(&key)).await?;
    match AuthServiceClient::new(link).get_self(GetSelfRequest {}).await {
        Ok(_) => Ok(Credential { key, password: None, email: ADMIN.to_owned(), is_new: false }),
        Err(status) if status.code() == tonic::Code::Unauthenticated => {
            let path = store.path().display();
            let next = format!(
                "Move {path} away: the next `wafflectl up` makes a new key, and a new admin password."
            );
            let message = format!("the API key in {path} is not good for this database");
            Err(Failure::failed(message).next(next).into())
        }
        Err(status) => Err(Failure::from(status).into()),
    }
}

/// A new key, made with the admin's password.
pub(super) async fn made(
    grpc: Place<'_>,
    email: &str,
    password: &SecretString,
) -> anyhow::Result<Credential> {
    let mut identity = AuthServiceClient::new(Client::link(grpc, None).await?);
    let request = LoginRequest {
        email: email.to_owned(),
        password: password.expose_secret().to_owned(),
        tenant: String::new(),
    };
    let answer = identity.login(request).await.map_err(Failure::from)?.into_inner();
    let access = SecretString::from(answer.tokens.unwrap_or_default().access_token);
    let mut identity = AuthServiceClient::new(Client::link(grpc, Some(&access)).await?);
    let request = CreateApiKeyRequest { name: "wafflectl up".to_owned(), ..CreateApiKeyRequest::default() };
    let answer = identity.create_api_key(request).await.map_err(Failure::from)?.into_inner();
    Ok(Credential {
        key: answer.secret.into(),
        email: email.to_owned(),
        password: Some(password.clone()),
        is_new: true,
    })
}
