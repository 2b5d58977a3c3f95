//! `proxy …`: the running data planes, what they acknowledged and what they refused.

use waffles_proto::proxy::v1::{GetProxyRequest, ListProxiesRequest};

use crate::args::{Global, ProxyCommand};
use crate::client::Client;
use crate::failure::Failure;
use crate::output::print;
use crate::output::shape::Proxy;

/// `proxy …`.
pub(crate) async fn run(global: &Global, command: ProxyCommand) -> anyhow::Result<()> {
    let client = Client::open(global).await?;
    match command {
        ProxyCommand::List => print(global.output, list(&client).await?.as_slice()),
        ProxyCommand::Get { proxy } => {
            let answer = client.proxies().get_proxy(GetProxyRequest { proxy }).await;
            let answer = answer.map_err(Failure::from)?.into_inner();
            print(global.output, &Proxy::new(answer.proxy.unwrap_or_default(), answer.revision))
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
