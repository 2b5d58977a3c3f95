//! What waits for a client that does not read: of each topic the newest message, in the order in which the topics came.

use std::sync::Arc;

use waffles_mcp::Message;

use super::topic::Topic;

/// Topics that wait at the most.
const MAX: usize = 4096;

/// What waits. It takes no room while nothing does.
#[derive(Debug, Default)]
pub(super) struct Waiting(Vec<(Topic, Arc<Message>)>);

impl Waiting {
    /// Adds a message in place of an older one about the same topic. False where there are too many topics.
    pub(super) fn put(&mut self, topic: Topic, message: &Arc<Message>) -> bool {
        if let Some((_, older)) = self.0.iter_mut().find(|(other, _)| *other == topic) {
            *older = Arc::clone(message);
            return true;
        }
        let room = self.0.len() < MAX;
        if room {
            self.0.push((topic, Arc::clone(message)));
        }
        room
    }

    /// Takes the first of them.
    pub(super) fn take(&mut self, most: usize) -> Vec<(Topic, Arc<Message>)> {
        let count = most.min(self.0.len());
        let taken = self.0.drain(..count).collect();
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
        taken
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.0 = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::topic::List;

    #[test]
    fn who_lags_gets_each_topic_once_and_the_newest_message_of_it() {
        let uri = |n: usize| Topic::Resource(format!("test://{n}"));
        let mut waiting = Waiting::default();
        let old = uri(0).announcement().unwrap();
        let new = uri(1).announcement().unwrap();
        for message in [&old, &new] {
            assert!(waiting.put(Topic::List(List::Tools), message));
            for n in 0..3 {
                assert!(waiting.put(uri(n), message));
            }
        }
        let taken = waiting.take(2);
        assert_eq!(taken[0].0, Topic::List(List::Tools));
        assert_eq!(taken[1].0, uri(0));
        assert!(taken.iter().all(|(_, message)| Arc::ptr_eq(message, &new)));
        assert_eq!(waiting.take(100).len(), 2);
        assert!(waiting.is_empty());
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut waiting = Waiting::default();
        let message = Topic::List(List::Tools).announcement().unwrap();
        let kept = (0..2 * MAX).filter(|n| waiting.put(Topic::Resource(n.to_string()), &message)).count();
        assert_eq!(kept, MAX);
        assert!(waiting.put(Topic::Resource("0".into()), &message), "one that waits already is renewed");
    }
}
