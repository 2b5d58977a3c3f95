//! Which proxy looks at which servers.

use std::collections::{BTreeSet, HashMap};

use uuid::Uuid;
use waffles_core::health::lookers;
use waffles_proto::discovery::v1 as pb;

use crate::discovery::Checked;

/// The servers that one proxy looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Share {
    /// All that it serves: there are no more proxies in its group than are to look.
    All,
    /// These.
    These(BTreeSet<Uuid>),
}

impl Share {
    pub(super) fn contains(&self, server: &Uuid) -> bool {
        match self {
            Self::All => true,
            Self::These(servers) => servers.contains(server),
        }
    }

    /// As the proxy is told.
    pub(super) fn resource(&self) -> pb::Resource {
        let checks = match self {
            Self::All => pb::Checks { all: true, server_ids: Vec::new() },
            Self::These(servers) => {
                let ids = servers.iter().map(|id| id.as_bytes().to_vec());
                pb::Checks { all: false, server_ids: ids.collect() }
            }
        };
        pb::Resource { id: "checks".into(), kind: Some(pb::resource::Kind::Checks(checks)) }
    }
}

/// Shares the servers out among the proxies of each group. What changes moves the share of those whom it concerns, and no
/// other.
pub(super) fn shares(servers: &[Checked], groups: &HashMap<String, Vec<Uuid>>) -> HashMap<Uuid, Share> {
    let mut made: HashMap<Uuid, Share> = HashMap::new();
    for (group, proxies) in groups {
        let theirs = || servers.iter().filter(|server| server.is_for(group));
        if theirs().all(|server| server.proxies >= proxies.len()) {
            made.extend(proxies.iter().map(|proxy| (*proxy, Share::All)));
            continue;
        }
        let mut sets: HashMap<Uuid, BTreeSet<Uuid>> =
            proxies.iter().map(|id| (*id, BTreeSet::new())).collect();
        for server in theirs() {
            for proxy in lookers(server.id, proxies, server.proxies) {
                sets.entry(proxy).or_default().insert(server.id);
            }
        }
        made.extend(sets.into_iter().map(|(proxy, servers)| (proxy, Share::These(servers))));
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(n: u128, groups: &[&str], proxies: usize) -> Checked {
        let groups = groups.iter().map(ToString::to_string).collect();
        Checked { id: Uuid::from_u128(n), groups, proxies }
    }

    fn ids(from: u128, count: u128) -> Vec<Uuid> {
        (from..from + count).map(Uuid::from_u128).collect()
    }

    #[test]
    fn a_small_group_looks_at_everything_and_a_large_one_shares() {
        let servers: Vec<Checked> = (1..=300).map(|n| server(n, &[], 2)).collect();
        let groups = HashMap::from([("small".to_owned(), ids(1000, 2)), ("large".to_owned(), ids(2000, 6))]);
        let made = shares(&servers, &groups);
        assert_eq!(made.len(), 8);
        assert!(ids(1000, 2).iter().all(|proxy| made[proxy] == Share::All));
        for server in &servers {
            let looking = ids(2000, 6).iter().filter(|proxy| made[proxy].contains(&server.id)).count();
            assert_eq!(looking, 2);
        }
    }

    #[test]
    fn a_proxy_that_goes_leaves_its_servers_to_others_and_theirs_stay() {
        let servers: Vec<Checked> = (1..=300).map(|n| server(n, &[], 2)).collect();
        let before = shares(&servers, &HashMap::from([("g".to_owned(), ids(1, 6))]));
        let after = shares(&servers, &HashMap::from([("g".to_owned(), ids(1, 5))]));
        for (proxy, share) in &after {
            assert!(servers.iter().all(|s| !before[proxy].contains(&s.id) || share.contains(&s.id)));
        }
        assert!(!after.contains_key(&Uuid::from_u128(6)));
    }

    #[test]
    fn a_server_is_looked_at_by_its_groups_and_by_as_many_as_it_wants() {
        let servers = [server(1, &["eu"], 1), server(2, &[], 3)];
        let groups = HashMap::from([("eu".to_owned(), ids(10, 3)), ("us".to_owned(), ids(20, 3))]);
        let made = shares(&servers, &groups);
        let count = |of: &[Uuid], id: u128| {
            of.iter().filter(|proxy| made[proxy].contains(&Uuid::from_u128(id))).count()
        };
        assert_eq!((count(&ids(10, 3), 1), count(&ids(10, 3), 2)), (1, 3));
        // `All` there is all that is served there, which the first is not.
        assert!(ids(20, 3).iter().all(|proxy| made[proxy] == Share::All));
    }
}
