//! Whose rows a `Db` is for. On Postgres it becomes two settings of the connection that the policies of every tenant's
//! table look at (`migrations/postgres/0006_tenants.sql`); on SQLite the statements alone say whose rows they mean.

use std::sync::Arc;

/// What `waffles.scope` holds for the rows of every tenant.
pub(super) const ALL: &str = "everywhere";

/// Whose rows are seen and written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Scope {
    /// Nobody's.
    #[default]
    Nothing,
    /// One tenant's, whose id is a DNS label.
    Tenant(Arc<str>),
    /// Everybody's.
    Everywhere,
}

impl Scope {
    /// One tenant's. What cannot be the id of a tenant has no rows; the text also stands in a statement, so it must hold
    /// nothing that ends a literal.
    pub(super) fn of(tenant: &str) -> Self {
        if waffles_core::is_dns_label(tenant) { Self::Tenant(tenant.into()) } else { Self::Nothing }
    }

    /// The statements that tell a connection: `SET` for good, `SET LOCAL` for a transaction.
    pub(super) fn set(&self, how: &str) -> String {
        let (tenant, scope) = match self {
            Self::Nothing => ("", ""),
            Self::Tenant(tenant) => (tenant.as_ref(), ""),
            Self::Everywhere => ("", ALL),
        };
        format!("{how} waffles.tenant = '{tenant}'; {how} waffles.scope = '{scope}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_tenant_has_no_rows() {
        for bad in ["", "'", "a'; RESET ROLE; --", "A", "a b", "ä"] {
            assert_eq!(Scope::of(bad), Scope::Nothing, "{bad}");
        }
        let set = Scope::of("acme").set("SET LOCAL");
        assert_eq!(set, "SET LOCAL waffles.tenant = 'acme'; SET LOCAL waffles.scope = ''");
    }
}
