//! Who and what there is in a tenant, as a decision needs it: looked up once each and kept for as long as one question, or
//! one run over many calls, lasts.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use uuid::Uuid;
use waffles_core::audit::REDACTED;
use waffles_core::credential::ApiKey;
use waffles_core::namespace::NamespaceEntry;
use waffles_core::policy::{
    Access, Args, Caller, CompiledRule, Effect, Facts, Mode, Policy as Rules, Question, Rule, RuleSpec,
};
use waffles_core::principal::Principal;
use waffles_core::server::{Capture, ToolSet};
use waffles_core::snapshot::ServerEntry;
use waffles_mcp::{Era, Revision};

use crate::error::Error;
use crate::store::accounts::{self, Named};
use crate::store::{Db, namespaces, principals, servers};

/// Entries of one kind that are kept; beyond that they are looked up again.
const MOST_KEPT: usize = 20_000;

/// Between whom a call is, as a decision needs it.
pub(super) struct Parties {
    pub(super) principal: Arc<Principal>,
    pub(super) key: Option<Arc<ApiKey>>,
    pub(super) server: Arc<ServerEntry>,
    pub(super) namespace: Option<Arc<NamespaceEntry>>,
    pub(super) access: Access,
    pub(super) tool: Option<String>,
    pub(super) era: &'static str,
}

impl Parties {
    /// The question about a call between them, from an address at a time.
    pub(super) fn question<'a>(
        &'a self,
        policy: &'a Rules,
        address: Option<IpAddr>,
        time: DateTime<Utc>,
        args: Args<'a>,
    ) -> Question<'a> {
        Question {
            caller: Caller { principal: &self.principal, key: self.key.as_deref(), address },
            policy,
            server: &self.server.server,
            tools: &self.server.tools,
            namespace: self.namespace.as_deref(),
            access: self.access,
            tool: self.tool.as_deref(),
            facts: Facts { era: self.era, now: time, args },
        }
    }
}

/// Captured arguments as a question takes them; none: they are not known.
pub(super) fn as_args(captured: Option<&Option<Box<RawValue>>>) -> Args<'_> {
    match captured {
        None => Args::Any,
        Some(args) => Args::Given(args.as_ref().map(|raw| raw.get().as_bytes())),
    }
}

/// What there is in a tenant.
pub(super) struct World {
    db: Db,
    tenant: String,
    principals: HashMap<Uuid, Option<Arc<Principal>>>,
    keys: HashMap<String, Option<Arc<ApiKey>>>,
    servers: HashMap<String, Option<Arc<ServerEntry>>>,
    namespaces: HashMap<String, Option<Arc<NamespaceEntry>>>,
}

impl World {
    pub(super) fn new(db: Db, tenant: &str) -> Self {
        Self {
            db,
            tenant: tenant.to_owned(),
            principals: HashMap::new(),
            keys: HashMap::new(),
            servers: HashMap::new(),
            namespaces: HashMap::new(),
        }
    }

    pub(super) async fn principal(&mut self, id: Uuid) -> Result<Option<Arc<Principal>>, Error> {
        if let Some(known) = self.principals.get(&id) {
            return Ok(known.clone());
        }
        let mut tx = self.db.begin_read().await?;
        let found = principals::principal(&mut tx, id).await?.filter(|found| found.tenant == self.tenant);
        Ok(keep(&mut self.principals, id, found.map(Arc::new)))
    }

    /// A principal by its name or id.
    pub(super) async fn named(&mut self, name_or_id: &str) -> Result<Option<Arc<Principal>>, Error> {
        if let Ok(id) = name_or_id.parse() {
            return self.principal(id).await;
        }
        if name_or_id.contains('\0') {
            return Ok(None);
        }
        let named = Named::Name(name_or_id.to_owned());
        let mut tx = self.db.begin_read().await?;
        let found = accounts::find(&mut tx, &self.tenant, None, &named).await?;
        Ok(found.map(|account| Arc::new(account.principal)))
    }

    pub(super) async fn key(&mut self, id: &str) -> Result<Option<Arc<ApiKey>>, Error> {
        if let Some(known) = self.keys.get(id) {
            return Ok(known.clone());
        }
        if id.contains('\0') {
            return Ok(None);
        }
        let found = principals::key(&self.db, &self.tenant, id).await?;
        Ok(keep(&mut self.keys, id.to_owned(), found.map(|owned| Arc::new(owned.key))))
    }

    pub(super) async fn server(&mut self, name: &str) -> Result<Option<Arc<ServerEntry>>, Error> {
        if let Some(known) = self.servers.get(name) {
            return Ok(known.clone());
        }
        if name.contains('\0') {
            return Ok(None);
        }
        let row = servers::get(&self.db, &self.tenant, name).await?;
        let server = row.map(servers::ServerRow::described).transpose().map_err(Error::internal)?;
        let entry = match server {
            Some(server) => {
                let tools = ToolSet::compile(&server.spec.tools).map_err(Error::internal)?;
                Some(Arc::new(ServerEntry { server, tools }))
            }
            None => None,
        };
        Ok(keep(&mut self.servers, name.to_owned(), entry))
    }

    pub(super) async fn namespace(&mut self, name: &str) -> Result<Option<Arc<NamespaceEntry>>, Error> {
        if let Some(known) = self.namespaces.get(name) {
            return Ok(known.clone());
        }
        if name.contains('\0') {
            return Ok(None);
        }
        let found = namespaces::get(&self.db, &self.tenant, name).await?;
        let entry = found.map(NamespaceEntry::compile).transpose().map_err(Error::internal)?;
        Ok(keep(&mut self.namespaces, name.to_owned(), entry.map(Arc::new)))
    }
}

fn keep<K: Hash + Eq, V: Clone>(kept: &mut HashMap<K, V>, key: K, found: V) -> V {
    if kept.len() >= MOST_KEPT {
        kept.clear();
    }
    kept.insert(key, found.clone());
    found
}

/// Rules as a proxy has them: of one that cannot be read what it would permit is gone, and what it would forbid is all that
/// it may have been about.
pub(super) fn compiled(tenant: &str, rules: impl IntoIterator<Item = (Uuid, RuleSpec)>) -> Rules {
    let compile = |(id, spec): (Uuid, RuleSpec)| {
        let rule = |spec: RuleSpec| CompiledRule::compile(Rule { id, tenant: tenant.to_owned(), spec });
        match rule(spec.clone()) {
            Ok(rule) => Some(Arc::new(rule)),
            Err(_) if spec.effect == Effect::Allow || spec.mode == Mode::LogOnly => None,
            Err(_) => {
                let unconditional = RuleSpec { condition: String::new(), ..spec };
                Some(Arc::new(rule(unconditional).unwrap_or_else(|_| CompiledRule::closed(id, tenant))))
            }
        }
    };
    Rules::new(rules.into_iter().filter_map(compile).collect())
}

/// How deep a message reaches into a server, as the proxy has it, and whether its target is a tool.
pub(super) fn reach(action: &str) -> Option<(Access, bool)> {
    let method = action.strip_prefix("mcp.")?;
    Some(match method {
        "tools/call" => (Access::Call, true),
        "initialize" | "notifications/initialized" | "server/discover" | "ping" => (Access::List, false),
        "tools/list"
        | "prompts/list"
        | "resources/list"
        | "resources/templates/list"
        | "subscriptions/listen" => (Access::List, false),
        "prompts/get"
        | "resources/read"
        | "resources/subscribe"
        | "resources/unsubscribe"
        | "completion/complete" => (Access::Read, false),
        _ => return None,
    })
}

/// The era of a client, as conditions see it, of the revision that it spoke.
pub(super) fn era_of(revision: &str) -> &'static str {
    // What a proxy does not know is taken for a client with a session.
    Revision::parse(revision).map_or(Era::Sessions, Revision::era).label()
}

/// The namespace at whose door a call was made, as the proxy says it of the call.
pub(super) fn namespace_of(detail: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Detail {
        namespace: Option<String>,
    }
    if detail.is_empty() {
        return None;
    }
    serde_json::from_str::<Detail>(detail).ok()?.namespace
}

/// The arguments of a call as they were captured: none where they were not, or not whole.
pub(super) fn captured(payload: &str, capture: Capture) -> Option<Option<Box<RawValue>>> {
    #[derive(Deserialize)]
    struct Params {
        arguments: Option<Box<RawValue>>,
    }
    if capture != Capture::Full || payload.is_empty() || payload.contains(REDACTED) {
        return None;
    }
    let params: Params = serde_json::from_str(payload).ok()?;
    let Some(arguments) = params.arguments else { return Some(None) };
    let value: Value = serde_json::from_str(arguments.get()).ok()?;
    // The server may have been registered to keep types alone when the call was made.
    let mut leaves = 0;
    if is_shape(&value, &mut leaves) && leaves > 0 { None } else { Some(Some(arguments)) }
}

/// Whether every value in it is the name of a type.
fn is_shape(value: &Value, leaves: &mut u32) -> bool {
    match value {
        Value::Object(fields) => fields.values().all(|field| is_shape(field, leaves)),
        Value::String(text) => {
            *leaves += 1;
            matches!(text.as_str(), "null" | "boolean" | "number" | "string") || text.starts_with("array(")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_known_only_when_they_were_captured_whole() {
        let known =
            |payload: &str| captured(payload, Capture::Full).map(|args| args.map(|raw| raw.get().to_owned()));
        assert_eq!(known(r#"{"name":"t","arguments":{"a":1.50}}"#), Some(Some(r#"{"a":1.50}"#.into())));
        assert_eq!(known(r#"{"name":"t"}"#), Some(None));
        assert_eq!(known(r#"{"name":"t","arguments":{}}"#), Some(Some("{}".into())));
        assert_eq!(known(r#"{"arguments":{"a":"[redacted]"}}"#), None);
        assert_eq!(known(r#"{"arguments":{"a":"number","b":{"c":"array(2)"}}}"#), None);
        assert_eq!(known(r#""{\"name… [cut from 9 bytes]""#), None);
        assert_eq!(known(""), None);
        assert!(captured(r#"{"arguments":{"a":1}}"#, Capture::Metadata).is_none());
    }

    #[test]
    fn a_namespace_is_read_from_what_the_proxy_says() {
        assert_eq!(namespace_of(r#"{"namespace":"team"}"#).as_deref(), Some("team"));
        for none in ["", "{}", "no JSON", r#"{"claimed_tenant":"x"}"#] {
            assert_eq!(namespace_of(none), None, "{none}");
        }
    }
}
