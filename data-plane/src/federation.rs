//! Many servers behind one door: who stands behind it for this caller, what they list together, and which of them a
//! request is for. The catalogue remembers what servers list; names and URIs are `waffles_mcp::{names, uris}`.

pub mod catalogue;
mod cursor;
pub mod lists;
pub mod resolve;
pub mod search;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use futures_util::future::join_all;
use tokio::time::{Instant, timeout_at};
use waffles_core::namespace::NamespaceEntry;
use waffles_core::policy::{Permission, level};
use waffles_core::snapshot::{ServerEntry, Snapshot};
use waffles_mcp::capability::Capabilities;
use waffles_mcp::translate::handshake::{self, Described};
use waffles_mcp::{Era, Revision, names};

use crate::authn::Identity;
use crate::bridge::Naming;
use crate::front::Front;
use crate::hub::{Part, View};
use crate::permit::{Ask, Notes, Permit};
use crate::reject::Reject;
use crate::shared::Means;
use crate::upstream::eras::waffles;
use catalogue::{Key, Kind};

/// How long a door waits for its servers together.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// How long what servers say of themselves is believed.
const DESCRIBED: Duration = Duration::from_secs(60);

/// What stands behind a door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// One server under its own names.
    Server(String),
    /// A namespace, federated.
    Namespace(String),
    /// Every server that the caller may use, federated.
    All,
}

/// One server behind a federated door, as this caller may use it.
#[derive(Debug, Clone)]
pub struct Member {
    /// The right to its handshake and lists.
    pub permit: Permit,
    /// Its own names are shown without a prefix, where no other has the same.
    pub bare: bool,
    /// The namespace that says what of it is exposed.
    pub exposed: Option<Arc<NamespaceEntry>>,
}

/// What stands behind a federated door for one caller, in the order of the servers' names.
#[derive(Debug, Clone)]
pub struct Realm {
    /// The door, as sessions and cursors are bound to it.
    pub door: String,
    /// The namespace, where the door is that of one.
    pub namespace: Option<Arc<NamespaceEntry>>,
    /// The servers.
    pub members: Vec<Member>,
}

impl Member {
    /// The server's name.
    pub fn name(&self) -> &str {
        &self.permit.entry().server.spec.name
    }

    /// Whether the namespace lets a tool or prompt of this name be seen, whoever asks.
    pub fn exposes(&self, name: &str) -> bool {
        let exposed = self.exposed.as_ref().and_then(|namespace| namespace.member(self.name()));
        exposed.is_none_or(|member| member.names.contains(name))
    }

    /// Whether an entry of a list exists for the caller, by the server's own name.
    pub fn shows(&self, kind: Kind, own: &str) -> bool {
        let exposed = self.exposed.as_ref().and_then(|namespace| namespace.member(self.name()));
        match kind {
            Kind::Tools => self.permit.sees(own),
            Kind::Prompts => self.exposes(own) && self.permit.reads(),
            Kind::Resources | Kind::Templates => {
                exposed.is_none_or(|member| member.resources.contains(own)) && self.permit.reads()
            }
        }
    }
}

impl Realm {
    /// Who stands behind this door for this caller. A door that is closed to it does not exist.
    pub fn of(snapshot: &Snapshot, identity: &Identity, era: Era, scope: &Scope) -> Result<Self, Reject> {
        match scope {
            Scope::All => Self::all(snapshot, identity, era),
            Scope::Namespace(name) => Self::in_namespace(snapshot, identity, era, name),
            Scope::Server(_) => Err(Reject::UnknownServer("registry".into())),
        }
    }

    fn in_namespace(snapshot: &Snapshot, identity: &Identity, era: Era, name: &str) -> Result<Self, Reject> {
        let hidden = |rule: &'static str| Reject::UnknownServer(rule.into());
        let tenant = &identity.principal().tenant;
        let namespace = snapshot.namespace(tenant, name).ok_or_else(|| hidden("registry"))?;
        let policy = snapshot.policy(tenant);
        level(&identity.caller(), policy, &namespace.namespace).ok_or_else(|| hidden("namespace:levels"))?;
        let members = namespace.members.iter().filter_map(|member| {
            let entry = snapshot.server(tenant, &member.server)?;
            let permit = behind(snapshot, identity, era, entry, Some(namespace))?;
            Some(Member { permit, bare: !member.prefix, exposed: Some(Arc::clone(namespace)) })
        });
        let members = members.collect();
        let door = format!("ns/{}", namespace.namespace.id);
        Ok(Self { door, namespace: Some(Arc::clone(namespace)), members })
    }

    fn all(snapshot: &Snapshot, identity: &Identity, era: Era) -> Result<Self, Reject> {
        let tenant = &identity.principal().tenant;
        let mut members: Vec<Member> = snapshot
            .servers()
            .filter(|entry| entry.server.tenant == *tenant)
            .filter_map(|entry| behind(snapshot, identity, era, entry, None))
            .map(|permit| Member { permit, bare: false, exposed: None })
            .collect();
        // Who may use the gateway but no server yet stands before an empty hall, anybody else before no door.
        if members.is_empty() && !identity.caller().holds_anywhere(Permission::GatewayUse) {
            return Err(Reject::UnknownServer("no role permits gateway:use".into()));
        }
        members.sort_unstable_by(|one, other| one.name().cmp(other.name()));
        Ok(Self { door: "all".into(), namespace: None, members })
    }

    /// The member of a name.
    pub fn member(&self, server: &str) -> Option<&Member> {
        let at = self.members.binary_search_by(|member| member.name().cmp(server)).ok()?;
        self.members.get(at)
    }

    /// What a listener at this door listens to.
    pub fn view(&self) -> View {
        let mut mark = DefaultHasher::new();
        self.namespace.as_ref().map(|entry| entry.namespace.version).hash(&mut mark);
        let parts = self.members.iter().map(|member| {
            (member.name(), member.bare, &member.permit.entry().server.spec.tools.allow).hash(&mut mark);
            member.permit.entry().server.spec.tools.deny.hash(&mut mark);
            Part { permit: member.permit.clone(), naming: Naming::Federated(member.name().to_owned()) }
        });
        let parts = parts.collect();
        View { parts, mark: mark.finish() }
    }

    /// The members whose names no prefix is needed for: own names that are there once, and read as no prefixed one.
    fn bare_names(lists: &[(&Member, catalogue::Listed)]) -> BTreeSet<String> {
        let mut once = BTreeSet::new();
        let mut twice = BTreeSet::new();
        for (member, listed) in lists.iter().filter(|(member, _)| member.bare) {
            for entry in listed.entries.iter().filter(|entry| member.exposes(&entry.name)) {
                if !once.insert(entry.name.clone()) {
                    twice.insert(entry.name.clone());
                }
            }
        }
        once.retain(|name| !twice.contains(name) && matches!(names::split(name), names::Public::Bare(_)));
        once
    }
}

/// The right to a server's handshake and lists.
fn behind(
    snapshot: &Snapshot,
    identity: &Identity,
    era: Era,
    entry: &Arc<ServerEntry>,
    namespace: Option<&Arc<NamespaceEntry>>,
) -> Option<Permit> {
    let ask = Ask { era, ..Ask::stream(Utc::now()) };
    Permit::authorize(snapshot, identity, entry, namespace, ask, &mut Notes::default()).ok()
}

impl Means {
    /// What the members of a door can do together. Who does not answer in time is not counted.
    pub async fn describe_all(&self, front: &Front, realm: &Realm) -> Described {
        let until = Instant::now() + DEADLINE;
        let asked = realm.members.iter().map(|member| async move {
            let key = Key::of(member, front, None);
            if let Some(known) = self.shared.catalogue.described(&key, DESCRIBED) {
                return Some(known);
            }
            let described = match timeout_at(until, self.describe(front, &member.permit)).await {
                Ok(Ok(described)) => described,
                Ok(Err(reject)) => {
                    let (server, reason) = (member.name(), reject.reason());
                    tracing::warn!(server.name = server, reason, "a server is left out of a handshake");
                    return None;
                }
                Err(_) => {
                    let server = member.name();
                    tracing::warn!(server.name = server, "a slow server is left out of a handshake");
                    return None;
                }
            };
            let can = handshake::capabilities(&described);
            self.shared.catalogue.note_described(key, can);
            Some(can)
        });
        let parts = join_all(asked).await;
        let mut can = Capabilities::union(parts.into_iter().flatten());
        // The gateway itself says when the lists change: servers come and go.
        (can.tools, can.tools_list_changed) = (true, true);
        can.prompts_list_changed |= can.prompts;
        can.resources_list_changed |= can.resources;
        let servers: Vec<&str> = realm.members.iter().map(Member::name).collect();
        let instructions = format!(
            "This endpoint joins several MCP servers. Names of tools and prompts start with the server's name and two \
             underscores. Servers: {}.",
            servers.join(", ")
        );
        Described {
            revision: Revision::V2026_07_28,
            capabilities: can.to_json(),
            info: Some(waffles()),
            instructions: Some(instructions),
        }
    }
}
