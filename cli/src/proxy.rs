//! `proxy …`: the running data planes, what they acknowledged and what they refused; and which of them belong.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use secrecy::ExposeSecret as _;
use waffles_core::wire::time;
use waffles_proto::proxy::v1::{
    AllowProxyRequest, CreateJoinTokenRequest, DenyProxyRequest, GetProxyRequest, ListProxiesRequest,
    RotateAuthorityRequest,
};

use crate::args::Global;
use crate::client::Client;
use crate::context::replace_private;
use crate::failure::Failure;
use crate::moment;
use crate::output::shape::{Authority, JoinToken, Proxy};
use crate::output::{note, print};

#[derive(Debug, Subcommand)]
pub(crate) enum ProxyCommand {
    /// List proxies, with what they acknowledged and how far they are behind.
    List,
    /// Show one proxy, with its certificate and the resources it refused.
    Get {
        /// Its name or id.
        proxy: String,
    },
    /// Make a token that one new proxy joins with, once.
    Enroll {
        /// The group that the proxy will belong to, such as a cluster or region.
        #[arg(long, default_value = waffles_core::proxy::DEFAULT_GROUP, value_name = "NAME")]
        group: String,
        /// How long the token is good, ten minutes at the most.
        #[arg(long, default_value = "10m", value_name = "TIME", value_parser = moment::span)]
        ttl: Duration,
        /// Write the token to this file, for its owner only, instead of printing it.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Shut a proxy out: its streams end within seconds. It serves what it knew to whoever reaches it.
    Deny {
        /// Its name or id.
        proxy: String,
    },
    /// Let a proxy that was shut out join again, with a new token.
    Allow {
        /// Its name or id.
        proxy: String,
    },
    /// Make a new authority. The present one is believed until its last certificate has ended.
    RotateCa,
}

/// `proxy …`.
pub(crate) async fn run(global: &Global, command: ProxyCommand) -> anyhow::Result<()> {
    let client = Client::open(global).await?;
    let mut proxies = client.proxies();
    match command {
        ProxyCommand::List => print(global.output, list(&client).await?.as_slice()),
        ProxyCommand::Get { proxy } => {
            let answer = proxies.get_proxy(GetProxyRequest { proxy }).await;
            let answer = answer.map_err(Failure::from)?.into_inner();
            print(global.output, &Proxy::new(answer.proxy.unwrap_or_default(), answer.revision))
        }
        ProxyCommand::Enroll { group, ttl, file } => {
            let ttl = Some(prost_types::Duration::try_from(ttl)?);
            let answer = proxies.create_join_token(CreateJoinTokenRequest { group, ttl }).await;
            let answer = answer.map_err(Failure::from)?.into_inner();
            let mut token = JoinToken {
                token: Some(answer.token),
                file: None,
                group: answer.group,
                expires_at: time(answer.expires_at),
            };
            if let Some(path) = file {
                let text = secrecy::SecretString::from(token.token.take().unwrap_or_default());
                replace_private(&path, &format!("{}\n", text.expose_secret()))?;
                token.file = Some(path.display().to_string());
            }
            print(global.output, &token)
        }
        ProxyCommand::Deny { proxy } => {
            let answer = proxies.deny_proxy(DenyProxyRequest { proxy }).await.map_err(Failure::from)?;
            note(&format!("Proxy {} is shut out.", answer.into_inner().id));
            Ok(())
        }
        ProxyCommand::Allow { proxy } => {
            let answer = proxies.allow_proxy(AllowProxyRequest { proxy }).await.map_err(Failure::from)?;
            let id = answer.into_inner().id;
            note(&format!("Proxy {id} may join again: give it the token of `wafflectl proxy enroll`."));
            Ok(())
        }
        ProxyCommand::RotateCa => {
            let answer = proxies.rotate_authority(RotateAuthorityRequest {}).await.map_err(Failure::from)?;
            let authorities = answer.into_inner().authorities.into_iter().map(Authority::from);
            print(global.output, authorities.collect::<Vec<_>>().as_slice())
        }
    }
}

/// All proxies.
pub(crate) async fn list(client: &Client) -> anyhow::Result<Vec<Proxy>> {
    let mut service = client.proxies();
    let mut proxies = Vec::new();
    let mut cursor = String::new();
    loop {
        let request = ListProxiesRequest { page_size: 500, cursor };
        let page = service.list_proxies(request).await.map_err(Failure::from)?.into_inner();
        proxies.extend(page.proxies.into_iter().map(|proxy| Proxy::new(proxy, page.revision)));
        cursor = page.next_cursor;
        if cursor.is_empty() {
            return Ok(proxies);
        }
    }
}
