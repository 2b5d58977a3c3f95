//! Everything a proxy needs, immutable, of one revision, indexed once. A new one is made from the old one and
//! an update, off the request path; what an update does not touch is shared between the two.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use uuid::Uuid;

use crate::credential::{ApiKey, KeyHash, Pepper};
use crate::found::FoundKeys;
use crate::limit::{CompiledLimit, Limits};
use crate::namespace::NamespaceEntry;
use crate::policy::{CompiledRule, Policy, RoleDef};
use crate::principal::Principal;
use crate::seal::SealRing;
use crate::server::{Server, ToolSet};

/// A server with what is compiled from its specification.
#[derive(Debug)]
pub struct ServerEntry {
    /// The server.
    pub server: Server,
    /// Its tool filter.
    pub tools: ToolSet,
}

/// A public key that access tokens are checked with (Ed25519, RFC 8032).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenKey {
    /// The `kid` of tokens.
    pub kid: String,
    /// The public key.
    pub public_key: [u8; 32],
}

/// What all proxies share.
#[derive(Debug)]
pub struct Settings {
    /// Makes key hashes.
    pub pepper: Pepper,
    /// The pepper itself, for the wire.
    pub(crate) pepper_bytes: zeroize::Zeroizing<[u8; 32]>,
    /// Seals session ids.
    pub seal: SealRing,
    /// `iss` of access tokens.
    pub token_issuer: String,
    /// `aud` of access tokens.
    pub token_audience: String,
    /// Where proxies never connect to for a server.
    pub closed: Vec<SocketAddr>,
    /// API keys are asked for one by one.
    pub keys_on_demand: bool,
}

impl Settings {
    /// Puts the settings together.
    pub fn new(pepper: [u8; 32], seal: SealRing, token_issuer: String, token_audience: String) -> Self {
        Self {
            pepper: Pepper::new(&pepper),
            pepper_bytes: zeroize::Zeroizing::new(pepper),
            seal,
            token_issuer,
            token_audience,
            closed: Vec::new(),
            keys_on_demand: false,
        }
    }

    /// Closes addresses of our own to registered servers.
    #[must_use]
    pub fn closing(mut self, closed: Vec<SocketAddr>) -> Self {
        self.closed = closed;
        self
    }
}

/// The kinds of resources that a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An MCP server.
    Server,
    /// A principal.
    Principal,
    /// An API key.
    ApiKey,
    /// A token key.
    TokenKey,
    /// The settings.
    Settings,
    /// A namespace.
    Namespace,
    /// A role that a tenant made.
    Role,
    /// A rule of the policy.
    Rule,
    /// A session that was ended.
    Session,
    /// A limit.
    Limit,
    /// What a proxy is to check. No snapshot holds it.
    Checks,
}

impl Kind {
    /// One word, as in the revision log and in refusals.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Principal => "principal",
            Self::ApiKey => "api_key",
            Self::TokenKey => "token_key",
            Self::Settings => "settings",
            Self::Namespace => "namespace",
            Self::Role => "role",
            Self::Rule => "rule",
            Self::Session => "session",
            Self::Limit => "limit",
            Self::Checks => "checks",
        }
    }

    /// Reads the word.
    pub fn parse(word: &str) -> Option<Self> {
        const ALL: [Kind; 11] = [
            Kind::Server,
            Kind::Principal,
            Kind::ApiKey,
            Kind::TokenKey,
            Kind::Settings,
            Kind::Namespace,
            Kind::Role,
            Kind::Rule,
            Kind::Session,
            Kind::Limit,
            Kind::Checks,
        ];
        ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// Names a resource: its kind, and its id within the kind (UUID of most of them, public id of a key, `kid` of a token key, `settings`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKey {
    /// Its kind.
    pub kind: Kind,
    /// Its id.
    pub id: String,
}

impl ResourceKey {
    /// Names a resource.
    pub fn new(kind: Kind, id: impl Into<String>) -> Self {
        Self { kind, id: id.into() }
    }
}

/// Everything a proxy needs, of one revision.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The store that the revision counts in; empty before the first update.
    pub lineage: String,
    /// The revision.
    pub revision: u64,
    pub(crate) servers: HashMap<Uuid, Arc<ServerEntry>>,
    by_name: HashMap<String, HashMap<String, Arc<ServerEntry>>>,
    in_order: HashMap<String, Vec<Arc<ServerEntry>>>,
    pub(crate) namespaces: HashMap<Uuid, Arc<NamespaceEntry>>,
    namespaces_by_name: HashMap<String, HashMap<String, Arc<NamespaceEntry>>>,
    pub(crate) principals: HashMap<Uuid, Arc<Principal>>,
    pub(crate) keys: HashMap<String, (KeyHash, Arc<ApiKey>)>,
    by_hash: HashMap<KeyHash, Arc<ApiKey>>,
    /// Where keys are asked for one by one: those that were found. Then there are no others.
    pub(crate) found: Option<Arc<FoundKeys>>,
    pub(crate) token_keys: HashMap<String, TokenKey>,
    pub(crate) settings: Option<Arc<Settings>>,
    pub(crate) roles: HashMap<Uuid, Arc<RoleDef>>,
    pub(crate) rules: HashMap<Uuid, Arc<CompiledRule>>,
    pub(crate) sessions: HashSet<Uuid>,
    pub(crate) limits: HashMap<Uuid, Arc<CompiledLimit>>,
    limits_of: HashMap<String, Arc<Limits>>,
    policies: HashMap<String, Arc<Policy>>,
    no_policy: Arc<Policy>,
    /// Resources of this revision that were refused; asked for again when the stream opens anew.
    pub refused: BTreeSet<ResourceKey>,
}

impl Snapshot {
    /// Finds a server by its tenant and name.
    pub fn server(&self, tenant: &str, name: &str) -> Option<&Arc<ServerEntry>> {
        self.by_name.get(tenant)?.get(name)
    }

    /// The servers of a tenant, in the order of their names.
    pub fn servers_of(&self, tenant: &str) -> impl Iterator<Item = &Arc<ServerEntry>> {
        self.in_order.get(tenant).into_iter().flatten()
    }

    /// Finds a namespace by its tenant and name.
    pub fn namespace(&self, tenant: &str, name: &str) -> Option<&Arc<NamespaceEntry>> {
        self.namespaces_by_name.get(tenant)?.get(name)
    }

    /// Every server, in no order.
    pub fn servers(&self) -> impl Iterator<Item = &Arc<ServerEntry>> {
        self.servers.values()
    }

    /// Finds a server by its id.
    pub fn server_by_id(&self, id: &Uuid) -> Option<&Arc<ServerEntry>> {
        self.servers.get(id)
    }

    /// Finds an API key by the hash of its text.
    pub fn key(&self, hash: &KeyHash) -> Option<Arc<ApiKey>> {
        match &self.found {
            None => self.by_hash.get(hash).map(Arc::clone),
            Some(found) => found.get(hash),
        }
    }

    /// Finds an API key by its public id, for streams that were opened with it.
    pub fn key_by_id(&self, id: &str) -> Option<Arc<ApiKey>> {
        match &self.found {
            None => self.keys.get(id).map(|(_, key)| Arc::clone(key)),
            Some(found) => found.by_id(id),
        }
    }

    /// The keys that were asked for one by one; none where all keys are here.
    pub fn found(&self) -> Option<&Arc<FoundKeys>> {
        self.found.as_ref()
    }

    /// Finds a principal.
    pub fn principal(&self, id: &Uuid) -> Option<&Arc<Principal>> {
        self.principals.get(id)
    }

    /// Finds a token key.
    pub fn token_key(&self, kid: &str) -> Option<&TokenKey> {
        self.token_keys.get(kid)
    }

    /// The rules of a tenant.
    pub fn policy(&self, tenant: &str) -> &Arc<Policy> {
        self.policies.get(tenant).unwrap_or(&self.no_policy)
    }

    /// The limits of a tenant; none where it has none.
    pub fn limits(&self, tenant: &str) -> Option<&Arc<Limits>> {
        self.limits_of.get(tenant)
    }

    /// One limit.
    pub fn limit(&self, id: &Uuid) -> Option<&Arc<CompiledLimit>> {
        self.limits.get(id)
    }

    /// Whether a session was ended, so that its access tokens are good no more.
    pub fn is_ended(&self, session: &Uuid) -> bool {
        self.sessions.contains(session)
    }

    /// What all proxies share; none before the first update.
    pub fn settings(&self) -> Option<&Arc<Settings>> {
        self.settings.as_ref()
    }

    /// Whether calls can be served from it.
    pub fn is_usable(&self) -> bool {
        self.revision > 0 && self.settings.is_some()
    }

    /// How many resources of each kind it holds, for the admin port.
    pub fn counts(&self) -> [(&'static str, usize); 9] {
        [
            ("servers", self.servers.len()),
            ("principals", self.principals.len()),
            ("api_keys", self.keys.len() + self.found.as_ref().map_or(0, |found| found.len())),
            ("token_keys", self.token_keys.len()),
            ("namespaces", self.namespaces.len()),
            ("roles", self.roles.len()),
            ("rules", self.rules.len()),
            ("ended_sessions", self.sessions.len()),
            ("limits", self.limits.len()),
        ]
    }

    /// Whether it holds a resource.
    pub fn holds(&self, key: &ResourceKey) -> bool {
        match key.kind {
            Kind::Server => key.id.parse().is_ok_and(|id: Uuid| self.servers.contains_key(&id)),
            Kind::Principal => key.id.parse().is_ok_and(|id: Uuid| self.principals.contains_key(&id)),
            Kind::ApiKey => self.key_by_id(&key.id).is_some(),
            Kind::TokenKey => self.token_keys.contains_key(&key.id),
            Kind::Settings => self.settings.is_some(),
            Kind::Namespace => key.id.parse().is_ok_and(|id: Uuid| self.namespaces.contains_key(&id)),
            Kind::Role => key.id.parse().is_ok_and(|id: Uuid| self.roles.contains_key(&id)),
            Kind::Rule => key.id.parse().is_ok_and(|id: Uuid| self.rules.contains_key(&id)),
            Kind::Session => key.id.parse().is_ok_and(|id: Uuid| self.sessions.contains(&id)),
            Kind::Limit => key.id.parse().is_ok_and(|id: Uuid| self.limits.contains_key(&id)),
            Kind::Checks => false,
        }
    }

    /// A copy to change. The resources themselves are shared.
    pub(crate) fn draft(&self) -> Snapshot {
        Snapshot {
            lineage: self.lineage.clone(),
            revision: self.revision,
            servers: self.servers.clone(),
            by_name: HashMap::new(),
            in_order: HashMap::new(),
            namespaces: self.namespaces.clone(),
            namespaces_by_name: HashMap::new(),
            principals: self.principals.clone(),
            keys: self.keys.clone(),
            by_hash: HashMap::new(),
            found: self.found.clone(),
            token_keys: self.token_keys.clone(),
            settings: self.settings.clone(),
            roles: self.roles.clone(),
            rules: self.rules.clone(),
            sessions: self.sessions.clone(),
            limits: self.limits.clone(),
            limits_of: HashMap::new(),
            policies: HashMap::new(),
            no_policy: Arc::clone(&self.no_policy),
            refused: self.refused.clone(),
        }
    }

    pub(crate) fn remove(&mut self, key: &ResourceKey) {
        let id: Option<Uuid> = key.id.parse().ok();
        match (key.kind, id) {
            (Kind::ApiKey, _) => {
                self.keys.remove(&key.id);
                if let Some(found) = &self.found {
                    found.remove(&key.id);
                }
            }
            (Kind::TokenKey, _) => drop(self.token_keys.remove(&key.id)),
            (Kind::Settings, _) => self.settings = None,
            (Kind::Server, Some(id)) => drop(self.servers.remove(&id)),
            (Kind::Principal, Some(id)) => drop(self.principals.remove(&id)),
            (Kind::Namespace, Some(id)) => drop(self.namespaces.remove(&id)),
            (Kind::Role, Some(id)) => drop(self.roles.remove(&id)),
            (Kind::Rule, Some(id)) => drop(self.rules.remove(&id)),
            (Kind::Session, Some(id)) => drop(self.sessions.remove(&id)),
            (Kind::Limit, Some(id)) => drop(self.limits.remove(&id)),
            // What has no such id was never held.
            (Kind::Checks, _) | (_, None) => {}
        }
        self.refused.remove(key);
    }

    /// Builds the look-up tables: the last step of making a snapshot.
    pub(crate) fn index(mut self) -> Self {
        self.by_name.clear();
        for entry in self.servers.values() {
            self.by_name
                .entry(entry.server.tenant.clone())
                .or_default()
                .insert(entry.server.spec.name.clone(), Arc::clone(entry));
        }
        self.in_order = self
            .by_name
            .iter()
            .map(|(tenant, servers)| {
                let mut servers: Vec<_> = servers.values().map(Arc::clone).collect();
                servers.sort_unstable_by(|one, other| one.server.spec.name.cmp(&other.server.spec.name));
                (tenant.clone(), servers)
            })
            .collect();
        self.namespaces_by_name.clear();
        for entry in self.namespaces.values() {
            self.namespaces_by_name
                .entry(entry.namespace.tenant.clone())
                .or_default()
                .insert(entry.namespace.spec.name.clone(), Arc::clone(entry));
        }
        let mut rules: HashMap<&str, Vec<Arc<CompiledRule>>> = HashMap::new();
        for rule in self.rules.values() {
            rules.entry(&rule.rule.tenant).or_default().push(Arc::clone(rule));
        }
        self.policies = rules
            .into_iter()
            .map(|(tenant, rules)| (tenant.to_owned(), Arc::new(Policy::new(rules))))
            .collect();
        let mut limits: HashMap<&str, Vec<Arc<CompiledLimit>>> = HashMap::new();
        for limit in self.limits.values() {
            limits.entry(&limit.limit.tenant).or_default().push(Arc::clone(limit));
        }
        self.limits_of = limits
            .into_iter()
            .map(|(tenant, limits)| (tenant.to_owned(), Arc::new(Limits::new(limits))))
            .collect();
        self.define_roles();
        match self.settings.as_ref().is_some_and(|settings| settings.keys_on_demand) {
            true => {
                let revision = self.revision;
                let found = self.found.get_or_insert_with(|| Arc::new(FoundKeys::new(revision)));
                // Those that came before there were too many are as good as found.
                for (hash, key) in std::mem::take(&mut self.keys).into_values() {
                    if !found.insert(hash, key, revision) {
                        break;
                    }
                }
            }
            false => self.found = None,
        }
        self.by_hash = self.keys.values().map(|(hash, key)| (*hash, Arc::clone(key))).collect();
        self
    }

    /// Gives principals the definitions of the custom roles that they hold.
    fn define_roles(&mut self) {
        let by_name: HashMap<(&str, &str), &Arc<RoleDef>> =
            self.roles.values().map(|role| ((role.tenant.as_str(), role.name.as_str()), role)).collect();
        for principal in self.principals.values_mut() {
            let wanted =
                principal.custom_names().filter_map(|name| by_name.get(&(principal.tenant.as_str(), name)));
            let mut wanted: Vec<Arc<RoleDef>> = wanted.map(|role| Arc::clone(role)).collect();
            wanted.sort_unstable_by_key(|role| role.id);
            wanted.dedup();
            if wanted != principal.custom {
                *principal = Arc::new(Principal { custom: wanted, ..Principal::clone(principal) });
            }
        }
    }
}
