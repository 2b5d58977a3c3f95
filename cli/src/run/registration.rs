//! The place of a running program in the registry. When the program stops, its server is disabled rather than retired:
//! a retired name stays taken as long as the audit trail tells of it, and what an operator decided about the server
//! (tools, namespaces, grants) is there again at the next run.

use waffles_proto::registry::v1::{
    BearerCredential, CreateServerRequest, Credential, DeleteServerRequest, Endpoint, GetServerRequest,
    HealthCheck, HealthPolicy, Server, ServerSpec, SetServerEnabledRequest, Transport, UpdateServerRequest,
    credential,
};

use crate::args::Global;
use crate::client::Client;
use crate::failure::{Failure, is_missing};
use crate::output::note;

/// Marks servers that `run` made, and may change.
pub(crate) const TAG: &str = "wafflectl-run";
/// Marks those that `run` disabled at its end. Without it, an operator did, and it stays so.
const STOPPED: &str = "wafflectl-stopped";

/// What is registered.
pub(crate) struct Registration {
    /// The server's name.
    pub(crate) name: String,
    /// Its address.
    pub(crate) url: String,
    /// What it is.
    pub(crate) description: String,
}

/// The server of this name, where there is one and it is ours to change.
pub(crate) async fn find(client: &Client, name: &str) -> anyhow::Result<Option<Server>> {
    let server = match client.registry().get_server(GetServerRequest { name: name.to_owned() }).await {
        Ok(answer) => answer.into_inner().server.unwrap_or_default(),
        Err(status) if is_missing(&status) => return Ok(None),
        Err(status) => return Err(Failure::from(status).into()),
    };
    if is_ours(&server) {
        return Ok(Some(server));
    }
    Err(Failure::failed(format!("there is a server {name} already, and `wafflectl run` did not make it"))
        .next("Choose another name, or retire that one with `wafflectl server remove`.")
        .into())
}

/// Whether `run` made a server.
pub(crate) fn is_ours(server: &Server) -> bool {
    server.spec.as_ref().is_some_and(|spec| spec.tags.iter().any(|tag| tag == TAG))
}

impl Registration {
    /// Registers the server, or takes up what an earlier run left. Gives whether calls can reach it.
    pub(crate) async fn begin(&self, client: &Client, token: String) -> anyhow::Result<bool> {
        let mut registry = client.registry();
        let credential = Credential { kind: Some(credential::Kind::Bearer(BearerCredential { token })) };
        let Some(server) = find(client, &self.name).await? else {
            let mut spec = ServerSpec {
                name: self.name.clone(),
                description: self.description.clone(),
                tags: vec![TAG.to_owned()],
                // To look at a program with sessions means to start it: how it is, calls tell.
                health: Some(HealthPolicy { check: HealthCheck::Off.into(), ..HealthPolicy::default() }),
                ..ServerSpec::default()
            };
            self.place(&mut spec, credential);
            let request = CreateServerRequest { spec: Some(spec), disabled: false };
            registry.create_server(request).await.map_err(Failure::from)?;
            return Ok(true);
        };
        let mut spec = server.spec.unwrap_or_default();
        let was_stopped = spec.tags.iter().any(|tag| tag == STOPPED);
        spec.tags.retain(|tag| tag != STOPPED);
        self.place(&mut spec, credential);
        let request = UpdateServerRequest { spec: Some(spec), version: server.version };
        registry.update_server(request).await.map_err(Failure::from)?;
        if was_stopped && !server.enabled {
            let request = SetServerEnabledRequest { name: self.name.clone(), enabled: true };
            registry.set_server_enabled(request).await.map_err(Failure::from)?;
            return Ok(true);
        }
        if !server.enabled {
            let name = &self.name;
            note(&format!(
                "Server {name} is disabled; let calls through with `wafflectl server enable {name}`."
            ));
        }
        Ok(server.enabled)
    }

    /// Takes the server out of service, unless another run has taken its place.
    pub(crate) async fn end(&self, global: &Global, forget: bool) -> anyhow::Result<()> {
        // The credential of the beginning may have ended meanwhile.
        let client = Client::open(global).await?;
        let mut registry = client.registry();
        let Some(server) = find(&client, &self.name).await? else { return Ok(()) };
        let spec = server.spec.unwrap_or_default();
        if spec.endpoints.iter().all(|endpoint| endpoint.url != self.url) {
            return Ok(());
        }
        let name = self.name.clone();
        if forget {
            registry.delete_server(DeleteServerRequest { name }).await.map_err(Failure::from)?;
            return Ok(());
        }
        if !server.enabled {
            return Ok(());
        }
        let request = SetServerEnabledRequest { name, enabled: false };
        let disabled = registry.set_server_enabled(request).await.map_err(Failure::from)?.into_inner();
        let server = disabled.server.unwrap_or_default();
        let mut spec = server.spec.unwrap_or_default();
        spec.credential = None;
        spec.tags.push(STOPPED.to_owned());
        let request = UpdateServerRequest { spec: Some(spec), version: server.version };
        registry.update_server(request).await.map_err(Failure::from)?;
        Ok(())
    }

    fn place(&self, spec: &mut ServerSpec, credential: Credential) {
        spec.transport = Transport::StreamableHttp.into();
        spec.endpoints = vec![Endpoint { url: self.url.clone(), weight: 1, zone: String::new() }];
        spec.credential = Some(credential);
    }
}
