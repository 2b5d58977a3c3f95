//! Whose rows a `Db` is for. On Postgres it becomes two settings of the connection that the policies of every tenant's
//! table look at (`migrations/postgres/0007_row_security.sql`); on SQLite the statements alone say whose rows they mean.

use std::sync::Arc;

use sqlx::PgConnection;

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

    /// The statements that tell a transaction, for which they are gone when it ends.
    pub(super) fn set_local(&self) -> String {
        let (tenant, scope) = self.settings();
        format!("SET LOCAL waffles.tenant = '{tenant}'; SET LOCAL waffles.scope = '{scope}'")
    }

    /// Tells a connection, until it is told something else.
    pub(super) async fn tell(&self, conn: &mut PgConnection) -> sqlx::Result<()> {
        const SQL: &str =
            "SELECT set_config('waffles.tenant', $1, false), set_config('waffles.scope', $2, false)";
        let (tenant, scope) = self.settings();
        sqlx::query(SQL).bind(tenant).bind(scope).execute(conn).await.map(drop)
    }

    fn settings(&self) -> (&str, &str) {
        match self {
            Self::Nothing => ("", ""),
            Self::Tenant(tenant) => (tenant, ""),
            Self::Everywhere => ("", ALL),
        }
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
        let set = Scope::of("acme").set_local();
        assert_eq!(set, "SET LOCAL waffles.tenant = 'acme'; SET LOCAL waffles.scope = ''");
    }
}
