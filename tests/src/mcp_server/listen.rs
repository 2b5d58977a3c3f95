//! Subscriptions at the scripted server: `subscriptions/listen` of the stateless era, GET streams of sessions.

use std::sync::Arc;

use http::Response;
use serde_json::{Value, json};

use super::wire::{self, Body, Feed};
use super::{McpServer, State};

const TAG: &str = "io.modelcontextprotocol/subscriptionId";

/// An open `subscriptions/listen`.
#[derive(Debug)]
pub(super) struct Listen {
    id: Value,
    feed: Feed,
}

/// Acknowledges all that was asked for, and keeps the stream open.
pub(super) async fn listen(state: &Arc<State>, message: &Value) -> Response<Body> {
    let (feed, body) = Feed::new();
    let id = message["id"].clone();
    let acknowledged = json!({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged",
        "params": {"notifications": message["params"]["notifications"], "_meta": {TAG: id}}});
    feed.message(&acknowledged).await;
    state.listens.lock().push(Listen { id, feed });
    wire::sse(body)
}

impl McpServer {
    /// Says that it has these capabilities.
    pub fn offer(&self, capabilities: Value) {
        *self.state.offered.lock() = Some(capabilities);
    }

    /// How many subscriptions are open: listening requests, and streams of sessions.
    pub fn listeners(&self) -> usize {
        let mut listens = self.state.listens.lock();
        listens.retain(|listen| !listen.feed.is_gone());
        let sessions = self.state.sessions.lock();
        let streams =
            sessions.values().filter(|session| session.stream.as_ref().is_some_and(|feed| !feed.is_gone()));
        listens.len() + streams.count()
    }

    /// Sends a notification on every open subscription, tagged where its era does that; says on how many.
    pub async fn announce(&self, method: &str, params: Value) -> usize {
        let mut sent = self.push(&json!({"jsonrpc": "2.0", "method": method, "params": params})).await;
        let listens: Vec<(Value, Feed)> =
            self.state.listens.lock().iter().map(|listen| (listen.id.clone(), listen.feed.clone())).collect();
        for (id, feed) in listens {
            let mut params = params.clone();
            params["_meta"] = json!({TAG: id});
            let message = json!({"jsonrpc": "2.0", "method": method, "params": params});
            sent += usize::from(feed.message(&message).await);
        }
        sent
    }

    /// Ends every open subscription without a word.
    pub fn hang_up(&self) {
        self.state.listens.lock().clear();
        for session in self.state.sessions.lock().values_mut() {
            session.stream = None;
        }
    }
}
