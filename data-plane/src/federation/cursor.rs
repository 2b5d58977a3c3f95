//! Where the next page of a federated list starts. Sealed, so that a client brings back only what it was given, for the
//! same door and list; it names the last entry as well as its place, so that a list that has changed meanwhile neither
//! skips nor repeats.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use waffles_core::seal::SealRing;

use super::catalogue::Entry;
use crate::reject::Reject;

const PURPOSE: &[u8] = b"waffles list cursor 1";

/// A place in a federated list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    /// `tools`, `prompts`, `resources` or `resourceTemplates`.
    pub(super) list: String,
    pub(super) door: String,
    pub(super) principal: Uuid,
    /// The server of the last entry.
    pub(super) server: String,
    /// How many entries of its list are done.
    pub(super) done: usize,
    /// The last of them, in the server's own name.
    pub(super) last: String,
}

impl Cursor {
    pub(super) fn seal(&self, ring: &SealRing) -> Result<String, Reject> {
        let failed = || Reject::Internal("cannot_seal_cursor");
        let plain = serde_json::to_vec(self).map_err(|_| failed())?;
        Ok(URL_SAFE_NO_PAD.encode(ring.seal(PURPOSE, &plain).map_err(|_| failed())?))
    }

    /// Reads a cursor that was given for this list, at this door, to this principal.
    pub(super) fn open(
        text: &str,
        ring: &SealRing,
        list: &str,
        door: &str,
        principal: Uuid,
    ) -> Result<Self, Reject> {
        let sealed = URL_SAFE_NO_PAD.decode(text).map_err(|_| Reject::BadCursor)?;
        let plain = ring.open(PURPOSE, &sealed).map_err(|_| Reject::BadCursor)?;
        let cursor: Self = serde_json::from_slice(&plain).map_err(|_| Reject::BadCursor)?;
        let ours = cursor.list == list && cursor.door == door && cursor.principal == principal;
        if ours { Ok(cursor) } else { Err(Reject::BadCursor) }
    }

    /// Where to go on in the list of the cursor's server, as it is now.
    pub(super) fn go_on(&self, entries: &[Entry]) -> Result<usize, Reject> {
        let at = self.done.checked_sub(1).and_then(|at| entries.get(at));
        if at.is_some_and(|entry| entry.name == self.last) {
            return Ok(self.done);
        }
        let moved = entries.iter().position(|entry| entry.name == self.last);
        moved.map(|at| at + 1).ok_or(Reject::BadCursor)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use waffles_core::seal::SealKey;

    use super::*;

    fn ring(byte: u8) -> SealRing {
        SealRing::new(vec![SealKey::new(byte, &[byte; 32])])
    }

    fn cursor() -> Cursor {
        Cursor {
            list: "tools".into(),
            door: "all".into(),
            principal: Uuid::from_u128(1),
            server: "s".into(),
            done: 2,
            last: "b".into(),
        }
    }

    fn entries(names: &[&str]) -> Vec<Entry> {
        let entry = |name: &&str| Entry { name: (*name).into(), own: Bytes::new(), public: Bytes::new() };
        names.iter().map(entry).collect()
    }

    #[test]
    fn a_cursor_is_good_for_its_own_list_only() {
        let text = cursor().seal(&ring(1)).unwrap();
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(Cursor::open(&text, &ring(1), "tools", "all", one).unwrap(), cursor());
        for (key, list, door, principal) in [
            (2, "tools", "all", one),
            (1, "prompts", "all", one),
            (1, "tools", "ns/x", one),
            (1, "tools", "all", two),
        ] {
            let opened = Cursor::open(&text, &ring(key), list, door, principal);
            assert!(matches!(opened, Err(Reject::BadCursor)));
        }
        let cut: String = text.chars().skip(1).collect();
        for forged in ["", "abc", "!!", &cut] {
            assert!(Cursor::open(forged, &ring(1), "tools", "all", one).is_err(), "{forged}");
        }
    }

    #[test]
    fn a_list_that_changed_is_gone_on_with_behind_the_last_entry() {
        assert_eq!(cursor().go_on(&entries(&["a", "b", "c"])).unwrap(), 2);
        assert_eq!(cursor().go_on(&entries(&["b", "c"])).unwrap(), 1, "one before it went");
        assert_eq!(cursor().go_on(&entries(&["n", "a", "b", "c"])).unwrap(), 3, "one before it came");
        assert!(cursor().go_on(&entries(&["a", "c"])).is_err(), "it went itself");
        assert!(cursor().go_on(&[]).is_err());
    }
}
