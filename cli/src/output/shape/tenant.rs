//! Tenants.

use chrono::{DateTime, Utc};
use serde::Serialize;
use waffles_core::wire::time;
use waffles_proto::tenant::v1 as pb;

use super::super::{Shape, columns, fields};
use super::{since, stamp};

/// A tenant.
#[derive(Debug, Serialize)]
pub(crate) struct Tenant {
    id: String,
    description: String,
    status: &'static str,
    created_at: Option<DateTime<Utc>>,
    suspended_at: Option<DateTime<Utc>>,
    limits: Limits,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    admin: Option<Admin>,
}

/// How much it may have; null is as much as it likes.
#[derive(Debug, Serialize)]
struct Limits {
    servers: Option<u64>,
    principals: Option<u64>,
    keys: Option<u64>,
}

/// How much it has.
#[derive(Debug, Serialize)]
struct Usage {
    servers: u64,
    namespaces: u64,
    principals: u64,
    keys: u64,
}

/// The way in for the first admin of a new tenant.
#[derive(Debug, Serialize)]
struct Admin {
    email: String,
    password_token: String,
    token_expires_at: Option<DateTime<Utc>>,
}

impl From<pb::Tenant> for Tenant {
    fn from(tenant: pb::Tenant) -> Self {
        let suspended_at = time(tenant.suspended_at);
        let limits = tenant.limits.unwrap_or_default();
        Self {
            id: tenant.id,
            description: tenant.description,
            status: if suspended_at.is_some() { "suspended" } else { "active" },
            created_at: time(tenant.created_at),
            suspended_at,
            limits: Limits {
                servers: limits.max_servers,
                principals: limits.max_principals,
                keys: limits.max_api_keys,
            },
            usage: None,
            admin: None,
        }
    }
}

impl Tenant {
    /// With how much there is in it.
    pub(crate) fn with_usage(self, usage: pb::TenantUsage) -> Self {
        let pb::TenantUsage { servers, namespaces, principals, api_keys } = usage;
        Self { usage: Some(Usage { servers, namespaces, principals, keys: api_keys }), ..self }
    }

    /// One that was just made, with what is shown this once.
    pub(crate) fn with_admin(self, answer: pb::CreateTenantResponse) -> Self {
        let admin = Admin {
            email: answer.admin_email,
            password_token: answer.password_token,
            token_expires_at: time(answer.token_expires_at),
        };
        Self { admin: Some(admin), ..self }
    }

    fn of(&self, used: Option<u64>, most: Option<u64>) -> String {
        match (used, most) {
            (Some(used), Some(most)) => format!("{used} of {most}"),
            (Some(used), None) => used.to_string(),
            (None, Some(most)) => format!("at most {most}"),
            (None, None) => "not limited".to_owned(),
        }
    }
}

impl Shape for Tenant {
    fn text(&self) -> String {
        let used = |count: fn(&Usage) -> u64| self.usage.as_ref().map(count);
        let admin = |text: fn(&Admin) -> String| self.admin.as_ref().map(text).unwrap_or_default();
        fields([
            ("id", self.id.clone()),
            ("description", self.description.clone()),
            ("status", self.status.to_owned()),
            ("servers", self.of(used(|u| u.servers), self.limits.servers)),
            ("namespaces", used(|u| u.namespaces).map(|count| count.to_string()).unwrap_or_default()),
            ("principals", self.of(used(|u| u.principals), self.limits.principals)),
            ("keys", self.of(used(|u| u.keys), self.limits.keys)),
            ("created", stamp(self.created_at)),
            ("suspended", stamp(self.suspended_at)),
            ("admin", admin(|a| a.email.clone())),
            ("password token", admin(|a| a.password_token.clone())),
            ("token ends", admin(|a| stamp(a.token_expires_at))),
        ])
    }
}

impl Shape for [Tenant] {
    fn text(&self) -> String {
        let row = |tenant: &Tenant| {
            [
                tenant.id.clone(),
                tenant.status.to_owned(),
                since(tenant.created_at),
                tenant.description.lines().next().unwrap_or_default().to_owned(),
            ]
        };
        columns(["ID", "STATUS", "AGE", "DESCRIPTION"], self.iter().map(row), "There is no tenant.")
    }
}
