//! Join tokens and authorities.

use chrono::{DateTime, Utc};
use serde::Serialize;
use waffles_core::wire::time;
use waffles_proto::proxy::v1 as pb;

use super::{Shape, columns, fields, since, stamp};

/// A join token, shown this once, or the file that it was written to.
#[derive(Debug, Serialize)]
pub(crate) struct JoinToken {
    pub(crate) token: Option<String>,
    pub(crate) file: Option<String>,
    pub(crate) group: String,
    pub(crate) expires_at: Option<DateTime<Utc>>,
}

impl Shape for JoinToken {
    fn text(&self) -> String {
        fields([
            ("token", self.token.clone().unwrap_or_default()),
            ("file", self.file.clone().unwrap_or_default()),
            ("group", self.group.clone()),
            ("ends", stamp(self.expires_at)),
            (
                "next",
                "waffles-data-plane --control-plane https://HOST:8082 --join-token-file FILE".to_owned(),
            ),
        ])
    }
}

/// An authority that certifies proxies.
#[derive(Debug, Serialize)]
pub(crate) struct Authority {
    fingerprint: String,
    created_at: Option<DateTime<Utc>>,
    retires_at: Option<DateTime<Utc>>,
    certificate: String,
}

impl From<pb::Authority> for Authority {
    fn from(authority: pb::Authority) -> Self {
        let pb::Authority { fingerprint, certificate, created_at, retires_at } = authority;
        let (created_at, retires_at) = (time(created_at), time(retires_at));
        Self { fingerprint, created_at, retires_at, certificate }
    }
}

impl Shape for [Authority] {
    fn text(&self) -> String {
        let rows = self.iter().map(|authority| {
            [authority.fingerprint.clone(), since(authority.created_at), stamp(authority.retires_at)]
        });
        columns(["FINGERPRINT", "MADE", "LAST CERTIFICATE ENDS"], rows, "There are no authorities.")
    }
}
