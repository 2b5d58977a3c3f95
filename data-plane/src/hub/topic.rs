//! What a subscription is about, in a server's own words and in a client's.

use std::sync::Arc;

use bytes::Bytes;
use waffles_mcp::translate::notice::{self, Filter};
use waffles_mcp::{Id, Limits, Message, Method, Slot, uris};

use crate::bridge::Naming;

/// A list that servers say has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum List {
    /// Of tools.
    Tools,
    /// Of prompts.
    Prompts,
    /// Of resources, and of their templates.
    Resources,
}

impl List {
    const ALL: [Self; 3] = [Self::Tools, Self::Prompts, Self::Resources];

    /// Whether a filter asks for it.
    pub fn is_in(self, filter: &Filter) -> bool {
        match self {
            Self::Tools => filter.tools,
            Self::Prompts => filter.prompts,
            Self::Resources => filter.resources,
        }
    }

    fn method(self) -> Method {
        match self {
            Self::Tools => Method::ToolsListChanged,
            Self::Prompts => Method::PromptsListChanged,
            Self::Resources => Method::ResourcesListChanged,
        }
    }
}

/// What has changed. Of several messages about one topic, only the newest matters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// A list.
    List(List),
    /// The resource of this URI.
    Resource(String),
    /// The task of this id.
    Task(String),
}

impl Topic {
    /// What a server's notification is about; none where it is nothing that one subscribes to.
    pub fn of(message: &Message) -> Option<Self> {
        match Method::parse(message.method().unwrap_or_default()) {
            Method::ToolsListChanged => Some(Self::List(List::Tools)),
            Method::PromptsListChanged => Some(Self::List(List::Prompts)),
            Method::ResourcesListChanged => Some(Self::List(List::Resources)),
            Method::ResourcesUpdated => message.text(Slot::Uri).map(|uri| Self::Resource(uri.into_owned())),
            Method::TasksChanged => message.text(Slot::TaskId).map(|id| Self::Task(id.into_owned())),
            _ => None,
        }
    }

    /// Whether a filter asks for it. What changed may be a part of what was subscribed to [server/resources].
    pub fn is_wanted(&self, filter: &Filter) -> bool {
        match self {
            Self::List(list) => list.is_in(filter),
            Self::Resource(uri) => {
                filter.uris.contains(uri) || filter.uris.iter().any(|whole| is_part(whole, uri))
            }
            Self::Task(id) => filter.task_ids.contains(id),
        }
    }

    /// All that a filter asks for, as if it had just changed.
    pub fn all(filter: &Filter) -> Vec<Self> {
        let lists = List::ALL.into_iter().filter(|list| list.is_in(filter)).map(Self::List);
        lists.chain(filter.uris.iter().cloned().map(Self::Resource)).collect()
    }

    /// The topic as the client knows it.
    #[must_use]
    pub fn public(self, naming: &Naming) -> Self {
        match (self, naming) {
            (Self::Resource(uri), Naming::Federated(server)) => Self::Resource(uris::wrap(server, &uri)),
            (Self::Task(id), naming) => Self::Task(public_task(&id, naming)),
            (topic, _) => topic,
        }
    }

    /// A message that says so, where no server has said it.
    pub fn announcement(&self) -> Option<Arc<Message>> {
        let bytes = match self {
            Self::List(list) => notice::list_changed(&list.method()),
            Self::Resource(uri) => notice::resource_updated(uri),
            // What a task has come to, only its server can say.
            Self::Task(_) => return None,
        };
        Message::parse(bytes, &Limits::RESPONSE).ok().map(Arc::new)
    }

    /// A server's message for a client that knows the topic by this name, tagged with its subscription where it has one.
    pub fn message(&self, message: &Message, subscription: Option<&Id>) -> Bytes {
        let renamed = match self {
            Self::Resource(uri) if message.text(Slot::Uri).as_deref() != Some(uri) => {
                Some(message.rewrite_with(None, &[(Slot::Uri, uri)]))
            }
            Self::Task(id) if message.text(Slot::TaskId).as_deref() != Some(id) => {
                Some(message.rewrite_with(None, &[(Slot::TaskId, id)]))
            }
            _ => None,
        };
        let renamed = renamed.and_then(|bytes| Message::parse(bytes, &Limits::RESPONSE).ok());
        let message = renamed.as_ref().unwrap_or(message);
        match subscription {
            Some(id) => notice::tagged(message, id),
            None => notice::untagged(message),
        }
    }
}

fn is_part(whole: &str, uri: &str) -> bool {
    let rest = uri.strip_prefix(whole).unwrap_or_default();
    !rest.is_empty() && (whole.ends_with('/') || rest.starts_with(['/', '?', '#']))
}

/// What of a client's filter concerns one server, in that server's words.
pub(super) fn own(filter: &Filter, naming: &Naming) -> Filter {
    let uri = |uri: &String| match naming {
        Naming::Own => Some(uri.clone()),
        Naming::Federated(server) => match uris::unwrap(uri) {
            Some((of, original)) => (of == server).then(|| original.to_owned()),
            // What stands under its own name may be anybody's, so all of them are asked.
            None => Some(uri.clone()),
        },
    };
    let uris = filter.uris.iter().filter_map(uri).collect();
    let task_ids = filter.task_ids.iter().filter_map(|id| own_task(id, naming)).collect();
    Filter { uris, task_ids, ..filter.clone() }
}

/// A server's filter in the words of the client that asked for `asked`.
pub(super) fn public(filter: &Filter, naming: &Naming, asked: &Filter) -> Filter {
    let uri = |uri: &String| match Topic::Resource(uri.clone()).public(naming) {
        Topic::Resource(uri) => Some(uri).filter(|uri| asked.uris.contains(uri)),
        Topic::List(_) | Topic::Task(_) => None,
    };
    let uris = filter.uris.iter().filter_map(uri).collect();
    let task_ids = filter.task_ids.iter().map(|id| public_task(id, naming));
    let task_ids = task_ids.filter(|id| asked.task_ids.contains(id)).collect();
    Filter { uris, task_ids, ..filter.clone() }
}

/// A task's id at its server. The one place that maps ids of tasks on subscriptions, with `public_task`.
fn own_task(id: &str, _naming: &Naming) -> Option<String> {
    Some(id.to_owned())
}

fn public_task(id: &str, _naming: &Naming) -> String {
    id.to_owned()
}

/// Whether everything that a filter names one by one is in another.
pub(super) fn names_all(more: &Filter, less: &Filter) -> bool {
    less.uris.is_subset(&more.uris) && less.task_ids.is_subset(&more.task_ids)
}

/// All lists, and nothing by name.
pub(super) fn all_lists() -> Filter {
    Filter { tools: true, prompts: true, resources: true, ..Filter::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(uris: &[&str]) -> Filter {
        Filter { uris: uris.iter().map(ToString::to_string).collect(), ..all_lists() }
    }

    #[test]
    fn a_part_of_a_resource_is_wanted_with_it() {
        let asked = filter(&["file:///a", "file:///dir/"]);
        for (uri, wanted) in [
            ("file:///a", true),
            ("file:///a/b", true),
            ("file:///a#l", true),
            ("file:///ab", false),
            ("file:///dir/x", true),
            ("file:///", false),
        ] {
            assert_eq!(Topic::Resource(uri.into()).is_wanted(&asked), wanted, "{uri}");
        }
    }

    #[test]
    fn a_federated_filter_is_split_by_server_and_put_together_again() {
        let naming = Naming::Federated("one".into());
        let asked =
            filter(&[&uris::wrap("one", "file:///x"), &uris::wrap("two", "file:///y"), "https://h/z"]);
        let part = own(&asked, &naming);
        assert_eq!(part, filter(&["file:///x", "https://h/z"]));
        assert_eq!(public(&part, &naming, &asked), filter(&[&uris::wrap("one", "file:///x"), "https://h/z"]));
    }

    #[test]
    fn a_message_is_renamed_and_tagged_with_the_id_and_its_type() {
        let topic = Topic::Resource("u".into());
        let message = topic.announcement().unwrap();
        let public = topic.public(&Naming::Federated("one".into()));
        for id in [Id::number(1), Id::string("1")] {
            let bytes = public.message(&message, Some(&id));
            let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(json["params"]["uri"], uris::wrap("one", "u"));
            let tag = &json["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"];
            assert_eq!(tag.to_string(), id.as_json());
        }
    }
}
