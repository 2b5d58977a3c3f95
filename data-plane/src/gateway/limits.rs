//! The step `limit`: what a message costs, whatever door, era or connection it came through.

use http::Method as HttpMethod;
use http::request::Parts;
use waffles_core::limit::{About, Class};
use waffles_core::snapshot::{ServerEntry, Snapshot};
use waffles_mcp::{Head, Method};

use super::{Exchange, Gateway, is_unmirrored};
use crate::authn::Identity;
use crate::limit::{Spent, class_of};
use crate::record::Record;
use crate::reject::Reject;

impl Gateway {
    /// Spends from every limit that covers the message; none of them is touched where one refuses. Answers to questions of
    /// servers have no head and cost as much as the retries by which stateless clients answer.
    pub(super) async fn limit(
        &self,
        exchange: &mut Exchange,
        parts: &Parts,
        identity: &Identity,
        entry: Option<&ServerEntry>,
        head: Option<&Head>,
    ) -> Result<(), Reject> {
        let tenant = &identity.principal().tenant;
        let Some(covering) = exchange.snapshot.limits(tenant).cloned() else { return Ok(()) };
        // What another proxy passes on has been paid for there; what ends a session, or is a part of a stream that is paid
        // for, costs nothing.
        let is_stream = exchange.verb == HttpMethod::GET;
        if exchange.passed.is_some()
            || exchange.verb == HttpMethod::DELETE
            || is_stream && is_unmirrored(parts)
        {
            return Ok(());
        }
        let about = About {
            principal: identity.principal(),
            key: identity.key().map(|key| key.id.as_str()),
            server: entry.map(|entry| (entry.server.id, entry.server.spec.name.as_str())),
            tool: head.filter(|head| head.method == Method::ToolsCall).and_then(|head| head.name.as_deref()),
            class: match head {
                Some(head) => class_of(&head.method),
                None => is_stream.then_some(Class::Listens),
            },
            is_asked: exchange.id.is_some(),
        };
        let mut spent = self.shared.limits.spend(&covering, &about).await?;
        exchange.record.hold(spent.take_held());
        exchange.spent = Some(spent).filter(Spent::is_told);
        Ok(())
    }

    /// The same for a stream that another door opens.
    pub async fn limit_stream(
        &self,
        snapshot: &Snapshot,
        record: &mut Record,
        identity: &Identity,
        entry: Option<&ServerEntry>,
    ) -> Result<Spent, Reject> {
        let Some(covering) = snapshot.limits(&identity.principal().tenant) else {
            return Ok(Spent::default());
        };
        let about = About {
            principal: identity.principal(),
            key: identity.key().map(|key| key.id.as_str()),
            server: entry.map(|entry| (entry.server.id, entry.server.spec.name.as_str())),
            tool: None,
            class: Some(Class::Listens),
            is_asked: false,
        };
        let mut spent = self.shared.limits.spend(covering, &about).await?;
        record.hold(spent.take_held());
        Ok(spent)
    }
}
