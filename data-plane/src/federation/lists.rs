//! One list of many servers: asked all at once under one deadline, in the order of the servers' names, page by page. A
//! server that does not answer is left out and named; it never ends the list.

use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::Instant;
use waffles_core::snapshot::Settings;
use waffles_mcp::Head;
use waffles_mcp::listing::list_result;

use super::catalogue::{Kind, Listed};
use super::cursor::Cursor;
use super::{DEADLINE, Member, Realm};
use crate::front::Front;
use crate::reject::Reject;
use crate::shared::Means;

/// What names the servers that are left out, in `_meta` of the result.
const UNAVAILABLE: &str = "io.waffles/unavailable";

/// A server that is left out, and the one word that says why.
type Missing<'a> = (&'a str, &'static str);

impl Means {
    /// One page of a list: the bytes of a stateless result.
    pub async fn list(
        &self,
        front: &Front,
        realm: &Realm,
        kind: Kind,
        head: &Head,
        settings: &Settings,
        page_size: usize,
    ) -> Result<Bytes, Reject> {
        let principal = realm.members.first().map(|member| member.permit.identity().principal().id);
        let principal = principal.unwrap_or_default();
        let from = match head.cursor.as_deref() {
            Some(text) => Some(Cursor::open(text, &settings.seal, kind.key(), &realm.door, principal)?),
            None => None,
        };
        let (lists, missing) = self.lists(front, realm, kind).await;
        let bare = Realm::bare_names(&lists);
        let mut page = Vec::new();
        let mut next = None;
        'lists: for (member, listed) in &lists {
            let mut at = 0;
            if let Some(cursor) = &from {
                match member.name().cmp(cursor.server.as_str()) {
                    std::cmp::Ordering::Less => continue,
                    std::cmp::Ordering::Equal => at = cursor.go_on(&listed.entries)?,
                    std::cmp::Ordering::Greater => {}
                }
            }
            for (number, entry) in listed.entries.iter().enumerate().skip(at) {
                if !member.shows(kind, &entry.name) {
                    continue;
                }
                if page.len() >= page_size {
                    let (done, last) = (number, listed.entries.get(number.wrapping_sub(1)));
                    next = Some(match last {
                        Some(last) => place(kind, realm, principal, member.name(), done, &last.name),
                        // The page ended with the server before: nothing of this one is done.
                        None => before(kind, realm, principal, &lists, member.name()),
                    });
                    break 'lists;
                }
                let own = member.bare && kind.is_named() && bare.contains(&entry.name);
                page.push(if own { &entry.own } else { &entry.public });
            }
        }
        let next = next.map(|cursor| cursor.seal(&settings.seal)).transpose()?;
        let mut result = list_result(kind.key(), page, next.as_deref());
        add_hints(&mut result, &lists, &missing);
        Ok(result)
    }

    /// Every member's list, and who has none to give in time.
    pub(super) async fn lists<'a>(
        &self,
        front: &Front,
        realm: &'a Realm,
        kind: Kind,
    ) -> (Vec<(&'a Member, Listed)>, Vec<Missing<'a>>) {
        let until = Instant::now() + DEADLINE;
        let asked = realm
            .members
            .iter()
            .map(|member| async move { (member, self.listed(front, member, kind, until).await) });
        let (mut lists, mut missing) = (Vec::with_capacity(realm.members.len()), Vec::new());
        for (member, listed) in join_all(asked).await {
            match listed {
                Ok(listed) => lists.push((member, listed)),
                Err(reject) => {
                    let (server, reason) = (member.name(), reject.reason());
                    tracing::warn!(
                        server.name = server,
                        reason,
                        list = kind.key(),
                        "a server is left out of a list"
                    );
                    missing.push((server, reason));
                }
            }
        }
        (lists, missing)
    }
}

fn place(kind: Kind, realm: &Realm, principal: uuid::Uuid, server: &str, done: usize, last: &str) -> Cursor {
    let (list, door) = (kind.key().to_owned(), realm.door.clone());
    Cursor { list, door, principal, server: server.to_owned(), done, last: last.to_owned() }
}

/// The place behind the last entry of the server before this one.
fn before(
    kind: Kind,
    realm: &Realm,
    principal: uuid::Uuid,
    lists: &[(&Member, Listed)],
    server: &str,
) -> Cursor {
    let earlier = lists.iter().take_while(|(member, _)| member.name() < server);
    let last = earlier.filter_map(|(member, listed)| Some((member, listed, listed.entries.last()?))).last();
    match last {
        Some((member, listed, entry)) => {
            place(kind, realm, principal, member.name(), listed.entries.len(), &entry.name)
        }
        None => place(kind, realm, principal, "", 0, ""),
    }
}

/// How long the page is good, and for whom; and who is missing.
fn add_hints(result: &mut Bytes, lists: &[(&Member, Listed)], missing: &[Missing<'_>]) {
    let now = Instant::now();
    let stale = lists.iter().any(|(_, listed)| listed.stale);
    let fresh = lists.iter().map(|(_, listed)| listed.said_until.saturating_duration_since(now)).min();
    let ttl = fresh.filter(|_| missing.is_empty() && !stale).map_or(0, |fresh| fresh.as_millis());
    // Which servers there are depends on who asks, so the whole is that caller's own.
    let mut tail = format!(r#","resultType":"complete","ttlMs":{ttl},"cacheScope":"private""#);
    if !missing.is_empty() {
        let names: Vec<_> =
            missing.iter().map(|(server, reason)| json!({"server": server, "reason": reason})).collect();
        tail.push_str(&format!(r#","_meta":{}"#, json!({UNAVAILABLE: names})));
    }
    tail.push('}');
    let mut whole = Vec::with_capacity(result.len() + tail.len());
    whole.extend_from_slice(result.strip_suffix(b"}").unwrap_or(result));
    whole.extend_from_slice(tail.as_bytes());
    *result = whole.into();
}
