//! Which server a request at a federated door is for, and what that server calls what it is about. A name that leads
//! nowhere and one that leads to what the caller may not know of give the same answer.

use std::sync::Arc;

use tokio::time::Instant;
use waffles_core::snapshot::ServerEntry;
use waffles_mcp::message::Reference;
use waffles_mcp::names::{self, Public};
use waffles_mcp::{Head, Method, Slot, uris};

use super::catalogue::Kind;
use super::{DEADLINE, Member, Realm};
use crate::front::Front;
use crate::reject::Reject;
use crate::shared::Means;
use crate::tasks;

/// A request in its server's own names.
#[derive(Debug)]
pub struct Found {
    /// The server.
    pub entry: Arc<ServerEntry>,
    /// Its name, which the client's names start with.
    pub server: String,
    /// The head, with the server's own name.
    pub head: Box<Head>,
    /// What to put into the message.
    pub edits: Vec<(Slot, String)>,
}

impl Means {
    /// Finds the server that a request is for.
    pub async fn resolve(&self, front: &Front, realm: &Realm, head: &Head) -> Result<Found, Reject> {
        match (&head.method, &head.reference) {
            (Method::ToolsCall, _) => self.named(front, realm, head, Kind::Tools, Slot::Name).await,
            (Method::PromptsGet, _) => self.named(front, realm, head, Kind::Prompts, Slot::Name).await,
            (Method::ResourcesRead, _) => self.at_uri(front, realm, head).await,
            (Method::CompletionComplete, Some(Reference::Prompt(name))) => {
                let unknown = || Reject::Unknown("prompt", name.clone());
                let (member, own) = self.find(front, realm, Kind::Prompts, name).await.ok_or_else(unknown)?;
                shown(member, Kind::Prompts, &own).ok_or_else(unknown)?;
                let mut head = Box::new(head.clone());
                head.reference = Some(Reference::Prompt(own.clone()));
                Ok(found(member, head, vec![(Slot::RefName, own)]))
            }
            (Method::CompletionComplete, Some(Reference::Resource(uri))) => {
                let unknown = || Reject::Unknown("resource", uri.clone());
                let (member, own) = match uris::unwrap(uri) {
                    Some((server, own)) => (realm.member(server).ok_or_else(unknown)?, own.to_owned()),
                    None => {
                        let member = self.of_web(front, realm, Kind::Templates, uri).await;
                        (member.ok_or_else(unknown)?, uri.clone())
                    }
                };
                shown(member, Kind::Templates, &own).ok_or_else(unknown)?;
                let mut head = Box::new(head.clone());
                head.reference = Some(Reference::Resource(own.clone()));
                Ok(found(member, head, vec![(Slot::RefUri, own)]))
            }
            (method, _) if tasks::is_about_one(method) => {
                let public = head.name.clone().unwrap_or_default();
                let member = tasks::server_of(&public).and_then(|server| realm.member(server));
                let member = member.ok_or(Reject::Unknown("task", public))?;
                Ok(found(member, Box::new(head.clone()), Vec::new()))
            }
            _ => Err(Reject::MethodNotFound { modern: front.is_stateless() }),
        }
    }

    async fn named(
        &self,
        front: &Front,
        realm: &Realm,
        head: &Head,
        kind: Kind,
        slot: Slot,
    ) -> Result<Found, Reject> {
        let public = head.name.as_deref().unwrap_or_default();
        let here = self.find(front, realm, kind, public).await;
        // A tool's permit says what a namespace does not expose.
        let here = here.filter(|(member, own)| kind == Kind::Tools || member.shows(kind, own));
        let Some((member, own)) = here else {
            return Err(match kind {
                Kind::Tools => Reject::UnknownTool { tool: public.to_owned(), rule: "federation".into() },
                _ => Reject::Unknown("prompt", public.to_owned()),
            });
        };
        let mut head = Box::new(head.clone());
        head.name = Some(own.clone());
        Ok(found(member, head, vec![(slot, own)]))
    }

    /// The member and its own name for a public one.
    async fn find<'a>(
        &self,
        front: &Front,
        realm: &'a Realm,
        kind: Kind,
        public: &str,
    ) -> Option<(&'a Member, String)> {
        match names::split(public) {
            // Every name has one spelling: what is too long has a short form alone.
            Public::Exact { server, name } => realm
                .member(server)
                .filter(|_| names::join(server, name) == public)
                .map(|member| (member, name.to_owned())),
            Public::Short { text } => {
                let until = Instant::now() + DEADLINE;
                let head = text.split('_').next().unwrap_or_default();
                for member in realm.members.iter().filter(|member| member.name().starts_with(head)) {
                    let Ok(listed) = self.listed(front, member, kind, until).await else { continue };
                    let mut entries = listed.entries.iter();
                    let entry = entries.find(|entry| names::is_short_of(text, member.name(), &entry.name));
                    if let Some(entry) = entry {
                        return Some((member, entry.name.clone()));
                    }
                }
                None
            }
            Public::Bare(name) => {
                if !realm.members.iter().any(|member| member.bare) {
                    return None;
                }
                let (lists, _) = self.lists(front, realm, kind).await;
                if !Realm::bare_names(&lists).contains(name) {
                    return None;
                }
                let has = |(member, listed): &&(&'a Member, super::catalogue::Listed)| {
                    member.bare
                        && member.exposes(name)
                        && listed.entries.iter().any(|entry| entry.name == name)
                };
                lists.iter().find(has).map(|(member, _)| (*member, name.to_owned()))
            }
        }
    }

    /// The first member that shows a URI or template of the web, which stands under its own name.
    async fn of_web<'a>(&self, front: &Front, realm: &'a Realm, kind: Kind, uri: &str) -> Option<&'a Member> {
        if !uris::is_web(uri) {
            return None;
        }
        let (lists, _) = self.lists(front, realm, kind).await;
        let has = |listed: &super::catalogue::Listed| listed.entries.iter().any(|entry| entry.name == uri);
        lists
            .iter()
            .find(|(member, listed)| member.shows(kind, uri) && has(listed))
            .map(|(member, _)| *member)
    }

    /// A resource is wrapped with its server's name, or is a URI of the web that some server lists.
    async fn at_uri(&self, front: &Front, realm: &Realm, head: &Head) -> Result<Found, Reject> {
        let public = head.name.as_deref().unwrap_or_default();
        let unknown = || Reject::Unknown("resource", public.to_owned());
        let (member, own) = match uris::unwrap(public) {
            Some((server, own)) => (realm.member(server).ok_or_else(unknown)?, own.to_owned()),
            None => {
                let member = self.of_web(front, realm, Kind::Resources, public).await.ok_or_else(unknown)?;
                (member, public.to_owned())
            }
        };
        shown(member, Kind::Resources, &own).ok_or_else(unknown)?;
        let mut head = Box::new(head.clone());
        head.name = Some(own.clone());
        Ok(found(member, head, vec![(Slot::Uri, own)]))
    }
}

fn shown(member: &Member, kind: Kind, own: &str) -> Option<()> {
    member.shows(kind, own).then_some(())
}

fn found(member: &Member, head: Box<Head>, edits: Vec<(Slot, String)>) -> Found {
    let (entry, server) = (Arc::clone(member.permit.entry()), member.name().to_owned());
    Found { entry, server, head, edits }
}
