//! Sessions of the revisions 2025-03-26 to 2025-11-25. The proxy keeps none: the id that a client holds is the
//! server's own, sealed together with whom and what it belongs to, so that any proxy with the same seal key can serve
//! it. Whatever does not open, or belongs to somebody else, is an unknown session.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use http::HeaderValue;
use uuid::Uuid;
use waffles_core::seal::SealRing;

use crate::reject::{Reject, UpstreamFault};

const PURPOSE: &[u8] = b"waffles mcp session 1";
/// Longest id that a server may give.
const MAX_UPSTREAM_ID: usize = 1024;
/// A session ends by itself after this many seconds, whatever the server says.
const MAX_AGE: i64 = 7 * 24 * 3600;
const FIXED: usize = 16 + 16 + 2 + 8;

/// What an id was sealed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Whose it is.
    pub principal: Uuid,
    /// Of which server.
    pub server: Uuid,
    /// At which of its endpoints: state may live in one process.
    pub endpoint: u16,
    /// Since when, in seconds since the epoch.
    pub issued_at: i64,
    /// The server's own id.
    pub upstream: HeaderValue,
}

impl Session {
    /// The id for the client.
    pub fn seal(&self, ring: &SealRing) -> Result<HeaderValue, Reject> {
        let upstream = self.upstream.as_bytes();
        // Visible ASCII only [2025-11-25 basic/transports#session-management].
        if upstream.is_empty()
            || upstream.len() > MAX_UPSTREAM_ID
            || !upstream.iter().all(u8::is_ascii_graphic)
        {
            return Err(Reject::upstream(UpstreamFault::BadAnswer, true));
        }
        let mut plain = Vec::with_capacity(FIXED + upstream.len());
        plain.extend_from_slice(self.principal.as_bytes());
        plain.extend_from_slice(self.server.as_bytes());
        plain.extend_from_slice(&self.endpoint.to_be_bytes());
        plain.extend_from_slice(&self.issued_at.to_be_bytes());
        plain.extend_from_slice(upstream);
        let sealed = ring.seal(PURPOSE, &plain).map_err(|_| Reject::Internal("cannot_seal_session"))?;
        HeaderValue::try_from(URL_SAFE_NO_PAD.encode(sealed))
            .map_err(|_| Reject::Internal("cannot_seal_session"))
    }

    /// Opens an id and checks whose it is.
    pub fn open(
        id: &str,
        ring: &SealRing,
        principal: Uuid,
        server: Uuid,
        now: DateTime<Utc>,
    ) -> Result<Self, Reject> {
        let session = Self::read(id, ring).ok_or(Reject::UnknownSession)?;
        let age = now.timestamp().saturating_sub(session.issued_at);
        if session.principal == principal && session.server == server && age <= MAX_AGE {
            Ok(session)
        } else {
            Err(Reject::UnknownSession)
        }
    }

    fn read(id: &str, ring: &SealRing) -> Option<Self> {
        let plain = ring.open(PURPOSE, &URL_SAFE_NO_PAD.decode(id).ok()?).ok()?;
        let (principal, rest) = plain.split_first_chunk::<16>()?;
        let (server, rest) = rest.split_first_chunk::<16>()?;
        let (endpoint, rest) = rest.split_first_chunk::<2>()?;
        let (issued_at, upstream) = rest.split_first_chunk::<8>()?;
        Some(Self {
            principal: Uuid::from_bytes(*principal),
            server: Uuid::from_bytes(*server),
            endpoint: u16::from_be_bytes(*endpoint),
            issued_at: i64::from_be_bytes(*issued_at),
            upstream: HeaderValue::from_bytes(upstream).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use waffles_core::seal::SealKey;

    use super::*;

    fn session() -> Session {
        Session {
            principal: Uuid::from_u128(1),
            server: Uuid::from_u128(2),
            endpoint: 3,
            issued_at: 1000,
            upstream: HeaderValue::from_static("abc-123"),
        }
    }

    fn ring(byte: u8) -> SealRing {
        SealRing::new(vec![SealKey::new(byte, &[byte; 32])])
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    #[test]
    fn any_proxy_with_the_same_key_opens_a_session() {
        let id = session().seal(&ring(1)).unwrap();
        let opened =
            Session::open(id.to_str().unwrap(), &ring(1), Uuid::from_u128(1), Uuid::from_u128(2), at(1001))
                .unwrap();
        assert_eq!(opened, session());
    }

    #[test]
    fn a_session_of_another_principal_server_time_or_key_is_unknown() {
        let id = session().seal(&ring(1)).unwrap();
        let id = id.to_str().unwrap();
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        for (key, principal, server, now) in
            [(1, two, two, 1001), (1, one, one, 1001), (1, one, two, 1001 + MAX_AGE), (2, one, two, 1001)]
        {
            let opened = Session::open(id, &ring(key), principal, server, at(now));
            assert!(matches!(opened, Err(Reject::UnknownSession)));
        }
        let mut shorter = id.to_owned();
        shorter.pop();
        for forged in ["", "abc", "!!", &format!("x{id}"), &shorter] {
            assert!(Session::open(forged, &ring(1), one, two, at(1001)).is_err(), "{forged}");
        }
    }

    #[test]
    fn an_id_that_is_no_header_value_is_the_servers_fault() {
        let bad = Session { upstream: HeaderValue::from_static("with space"), ..session() };
        assert!(matches!(bad.seal(&ring(1)), Err(Reject::Upstream { .. })));
    }
}
