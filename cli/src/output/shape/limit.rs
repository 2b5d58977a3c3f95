//! Limits, and how much of them is used.

use chrono::{DateTime, Utc};
use serde::Serialize;
use waffles_core::limit::LimitKind;
use waffles_core::wire::{limit_kind_from_proto, limit_spec_from_proto, time};
use waffles_proto::policy::v1 as pb;

use super::super::{Shape, columns, fields};
use super::{list, since, stamp};

/// A limit.
#[derive(Debug, Serialize)]
pub(crate) struct Limit {
    id: String,
    name: String,
    description: String,
    kind: &'static str,
    amount: u64,
    /// Of a rate or quota.
    #[serde(skip_serializing_if = "Option::is_none")]
    window_seconds: Option<u64>,
    per: Vec<&'static str>,
    principals: Principals,
    servers: Vec<String>,
    tools: Vec<String>,
    classes: Vec<&'static str>,
    version: u64,
    created_at: Option<DateTime<Utc>>,
    updated_at: Option<DateTime<Utc>>,
}

/// Whom it is about.
#[derive(Debug, Default, Serialize)]
struct Principals {
    roles: Vec<String>,
    groups: Vec<String>,
    names: Vec<String>,
}

/// How much is used.
#[derive(Debug, Serialize)]
pub(crate) struct Usage {
    limits: Vec<LimitUse>,
    tenant: Vec<TenantUse>,
}

#[derive(Debug, Serialize)]
struct LimitUse {
    limit: String,
    kind: &'static str,
    amount: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    window_seconds: Option<u64>,
    /// What is counted apart: `principal`, `key`, `server` and `tool`, as far as the limit tells them apart.
    of: Of,
    used: u64,
    noted_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Serialize)]
struct Of {
    #[serde(skip_serializing_if = "String::is_empty")]
    principal: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    server: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    tool: String,
}

#[derive(Debug, Serialize)]
struct TenantUse {
    what: String,
    used: u64,
    amount: Option<u64>,
}

fn kind(kind: i32) -> Option<LimitKind> {
    limit_kind_from_proto(kind)
}

fn word(kind: Option<LimitKind>) -> &'static str {
    kind.map_or("unknown", LimitKind::as_str)
}

/// An amount in people's words: `100 in 1m`.
fn amount(amount: u64, window_seconds: Option<u64>) -> String {
    match window_seconds {
        Some(seconds) => {
            format!("{amount} in {}", humantime::format_duration(std::time::Duration::from_secs(seconds)))
        }
        None => format!("{amount} at once"),
    }
}

impl From<pb::StoredLimit> for Limit {
    fn from(stored: pb::StoredLimit) -> Self {
        let spec = stored.spec.unwrap_or_default();
        let kind = kind(spec.kind);
        // What a later control plane knows more of, this one does not show.
        let read = limit_spec_from_proto(spec.clone()).ok();
        let who = spec.principals.unwrap_or_default();
        Self {
            id: stored.id,
            name: spec.name,
            description: spec.description,
            kind: word(kind),
            amount: spec.amount,
            window_seconds: (spec.window_seconds > 0).then_some(spec.window_seconds),
            per: read.iter().flat_map(|spec| spec.per.iter().map(|per| per.as_str())).collect(),
            principals: Principals { roles: who.roles, groups: who.groups, names: who.names },
            servers: spec.servers,
            tools: spec.tools,
            classes: read.iter().flat_map(|spec| spec.classes.iter().map(|class| class.as_str())).collect(),
            version: stored.version,
            created_at: time(stored.created_at),
            updated_at: time(stored.updated_at),
        }
    }
}

impl Limit {
    fn per(&self) -> String {
        if self.per.is_empty() { "tenant".to_owned() } else { self.per.join(", ") }
    }
}

impl Shape for Limit {
    fn text(&self) -> String {
        fields([
            ("name", self.name.clone()),
            ("id", self.id.clone()),
            ("description", self.description.clone()),
            ("kind", self.kind.to_owned()),
            ("amount", amount(self.amount, self.window_seconds)),
            ("per", self.per()),
            ("roles", list(&self.principals.roles)),
            ("groups", list(&self.principals.groups)),
            ("principals", list(&self.principals.names)),
            ("servers", list(&self.servers)),
            ("tools", list(&self.tools)),
            ("classes", self.classes.join(", ")),
            ("version", self.version.to_string()),
            ("created", stamp(self.created_at)),
            ("updated", stamp(self.updated_at)),
        ])
    }
}

impl Shape for [Limit] {
    fn text(&self) -> String {
        let row = |limit: &Limit| {
            [
                limit.name.clone(),
                limit.kind.to_owned(),
                amount(limit.amount, limit.window_seconds),
                limit.per(),
                since(limit.updated_at),
            ]
        };
        columns(["NAME", "KIND", "AMOUNT", "PER", "CHANGED"], self.iter().map(row), "There is no limit.")
    }
}

impl From<pb::GetUsageResponse> for Usage {
    fn from(answer: pb::GetUsageResponse) -> Self {
        let limits = answer.limits.into_iter().map(|of| LimitUse {
            limit: of.limit,
            kind: word(kind(of.kind)),
            amount: of.amount,
            window_seconds: (of.window_seconds > 0).then_some(of.window_seconds),
            of: Of { principal: of.principal, key: of.key, server: of.server, tool: of.tool },
            used: of.used,
            noted_at: time(of.noted_at),
        });
        let tenant =
            answer.tenant.into_iter().map(|of| TenantUse { what: of.what, used: of.used, amount: of.amount });
        Self { limits: limits.collect(), tenant: tenant.collect() }
    }
}

impl Shape for Usage {
    fn text(&self) -> String {
        let share = |used: u64, amount: u64| match amount {
            0 => String::new(),
            amount => format!("{}%", used.saturating_mul(100) / amount),
        };
        let of_limits = self.limits.iter().map(|of| {
            let apart = [&of.of.principal, &of.of.key, &of.of.server, &of.of.tool];
            let apart: Vec<&str> = apart.into_iter().map(String::as_str).filter(|t| !t.is_empty()).collect();
            [
                of.limit.clone(),
                if apart.is_empty() { "-".to_owned() } else { apart.join(" ") },
                of.used.to_string(),
                amount(of.amount, of.window_seconds),
                share(of.used, of.amount),
            ]
        });
        let of_tenant = self.tenant.iter().map(|of| {
            [
                of.what.clone(),
                "-".to_owned(),
                of.used.to_string(),
                of.amount.map_or_else(|| "not limited".to_owned(), |amount| amount.to_string()),
                of.amount.map(|amount| share(of.used, amount)).unwrap_or_default(),
            ]
        });
        let rows: Vec<[String; 5]> = of_limits.chain(of_tenant).collect();
        columns(["LIMIT", "OF", "USED", "AMOUNT", "SHARE"], rows, "Nothing is limited.")
    }
}
