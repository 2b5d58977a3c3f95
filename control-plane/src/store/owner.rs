//! What the owner of the Postgres tables does at every start: makes sure of the role that statements run as, which owns
//! nothing and may do no more than it needs, and that row-level security is forced on every table of a tenant.

use sqlx::{AssertSqlSafe, PgConnection};

use super::OpenError;

/// Names the lock under which one replica at a time does it: "waffles" and a number.
const ROLES: i64 = 0x7761_6666_6c65_7302;
/// Bytes of the longest name that Postgres does not cut.
const MOST_NAME: usize = 63;
const SUFFIX: &str = "_app";

/// The role of a database that is given no other.
pub(super) fn role_of(database: &str) -> String {
    let mut end = database.len().min(MOST_NAME - SUFFIX.len());
    while !database.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{SUFFIX}", database.get(..end).unwrap_or_default())
}

/// A name as a statement takes it, whatever it holds.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Makes sure of the role, of its rights, and of the policies.
pub(super) async fn prepare(conn: &mut PgConnection, role: &str) -> Result<(), OpenError> {
    const LOCK: &str = "SELECT pg_advisory_lock($1)";
    const UNLOCK: &str = "SELECT pg_advisory_unlock($1)";
    let failed = OpenError::Open;
    sqlx::query(LOCK).bind(ROLES).execute(&mut *conn).await.map_err(failed)?;
    make_role(conn, role).await?;
    check_role(conn, role).await?;
    grant(conn, role).await.map_err(failed)?;
    check_policies(conn).await?;
    // Were it not given back here, the end of the connection would do it.
    sqlx::query(UNLOCK).bind(ROLES).execute(&mut *conn).await.map_err(failed)?;
    Ok(())
}

/// Makes the role where there is none, and makes the owner a member of it, so that its connections may become it.
async fn make_role(conn: &mut PgConnection, role: &str) -> Result<(), OpenError> {
    const THERE: &str = "SELECT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = $1)";
    const USER: &str = "SELECT current_user::text";
    let failed = OpenError::Open;
    let name = quoted(role);
    let there: bool = sqlx::query_scalar(THERE).bind(role).fetch_one(&mut *conn).await.map_err(failed)?;
    let user: String = sqlx::query_scalar(USER).fetch_one(&mut *conn).await.map_err(failed)?;
    let create = format!("CREATE ROLE {name} NOLOGIN");
    let join = format!("GRANT {name} TO {}", quoted(&user));
    let remedy = if there { format!("{join};") } else { format!("{create}; {join};") };
    let refused = |source| OpenError::Role {
        role: role.to_owned(),
        user: user.clone(),
        remedy: remedy.clone(),
        source,
    };
    if !there && let Err(error) = run(conn, create).await {
        // Roles belong to the whole server, and another database's start may have been faster.
        if !has_code(&error, &["42710", "23505"]) {
            return Err(refused(error));
        }
    }
    // Trying tells more than asking: what membership allows differs between versions of Postgres.
    let become_role = format!("SET ROLE {name}");
    if run(conn, become_role.clone()).await.is_err() {
        run(conn, join).await.map_err(&refused)?;
        run(conn, become_role).await.map_err(&refused)?;
    }
    run(conn, "RESET ROLE".to_owned()).await.map_err(failed)
}

/// A role that row-level security does not hold for would make all of it a decoration.
async fn check_role(conn: &mut PgConnection, role: &str) -> Result<(), OpenError> {
    const ABOVE: &str = "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = $1";
    const OWNS: &str = "SELECT EXISTS (SELECT 1 FROM pg_class c
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
            AND pg_has_role($1::name, c.relowner, 'MEMBER'))";
    let above: bool =
        sqlx::query_scalar(ABOVE).bind(role).fetch_one(&mut *conn).await.map_err(OpenError::Open)?;
    if above {
        let name = quoted(role);
        return Err(OpenError::Unprotected(format!(
            "the role {name} is a superuser or has BYPASSRLS; ALTER ROLE {name} NOSUPERUSER NOBYPASSRLS, or give another \
             one with --database-role"
        )));
    }
    let owns: bool =
        sqlx::query_scalar(OWNS).bind(role).fetch_one(&mut *conn).await.map_err(OpenError::Open)?;
    if owns {
        return Err(OpenError::Unprotected(format!(
            "the role {} owns the tables, or is a member of the role that does; give another one with --database-role",
            quoted(role)
        )));
    }
    Ok(())
}

/// The tables that the role only adds to: what stands in the audit trail, and what was signed for it.
const TRAIL: &str = "'audit_events', 'audit_checkpoints', 'audit_heads', 'audit_forgotten'";

/// Gives the role what the statements need: all rows of every table but those of the audit trail, which it only adds to.
/// Asks first, since most starts change nothing.
async fn grant(conn: &mut PgConnection, role: &str) -> sqlx::Result<()> {
    const SCHEMA: &str = "SELECT current_schema()::text,
        has_schema_privilege($1::name, current_schema()::text, 'USAGE')";
    let tables = format!(
        "SELECT c.oid::regclass::text, c.relname IN ({TRAIL}) FROM pg_class c
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
            AND NOT c.relispartition AND c.relname <> '_sqlx_migrations'
            AND NOT (has_table_privilege($1::name, c.oid, 'SELECT')
                AND has_table_privilege($1::name, c.oid, 'INSERT')
                AND (c.relname IN ({TRAIL}) OR (has_table_privilege($1::name, c.oid, 'UPDATE')
                    AND has_table_privilege($1::name, c.oid, 'DELETE'))))"
    );
    let wide = format!(
        "SELECT c.oid::regclass::text FROM pg_class c
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relname IN ({TRAIL})
            AND has_table_privilege($1::name, c.oid, 'UPDATE, DELETE, TRUNCATE')"
    );
    const SEQUENCES: &str = "SELECT c.oid::regclass::text FROM pg_class c
        WHERE c.relnamespace = current_schema()::regnamespace
            AND CASE WHEN c.relkind = 'S' THEN NOT has_sequence_privilege($1::name, c.oid, 'USAGE') ELSE FALSE END";
    let name = quoted(role);
    let (schema, usable): (String, bool) = sqlx::query_as(SCHEMA).bind(role).fetch_one(&mut *conn).await?;
    if !usable {
        run(conn, format!("GRANT USAGE ON SCHEMA {} TO {name}", quoted(&schema))).await?;
    }
    let tables: Vec<(String, bool)> =
        sqlx::query_as(AssertSqlSafe(tables)).bind(role).fetch_all(&mut *conn).await?;
    for (table, only_adds) in tables {
        let rights = if only_adds { "SELECT, INSERT" } else { "SELECT, INSERT, UPDATE, DELETE" };
        run(conn, format!("GRANT {rights} ON {table} TO {name}")).await?;
    }
    let sequences: Vec<String> = sqlx::query_scalar(SEQUENCES).bind(role).fetch_all(&mut *conn).await?;
    for sequence in sequences {
        run(conn, format!("GRANT USAGE ON SEQUENCE {sequence} TO {name}")).await?;
    }
    let wide: Vec<String> = sqlx::query_scalar(AssertSqlSafe(wide)).bind(role).fetch_all(&mut *conn).await?;
    for table in wide {
        run(conn, format!("REVOKE UPDATE, DELETE, TRUNCATE ON {table} FROM {name}")).await?;
    }
    Ok(())
}

/// A table of a tenant that a migration forgot is a reason not to start.
async fn check_policies(conn: &mut PgConnection) -> Result<(), OpenError> {
    const BARE: &str = "SELECT c.relname::text FROM pg_class c
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'tenant' AND NOT a.attisdropped
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
            AND NOT (c.relrowsecurity AND c.relforcerowsecurity AND (c.relispartition
                OR EXISTS (SELECT 1 FROM pg_policy p WHERE p.polrelid = c.oid)))
        ORDER BY c.relname";
    let bare: Vec<String> = sqlx::query_scalar(BARE).fetch_all(&mut *conn).await.map_err(OpenError::Open)?;
    if bare.is_empty() {
        return Ok(());
    }
    Err(OpenError::Unprotected(format!("row-level security is not forced on {}", bare.join(", "))))
}

/// What is run holds names from the catalogue and quoted names only.
async fn run(conn: &mut PgConnection, sql: String) -> sqlx::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await.map(drop)
}

fn has_code(error: &sqlx::Error, codes: &[&str]) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| codes.contains(&code.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_named_after_its_database_and_never_cut() {
        assert_eq!(role_of("waffles"), "waffles_app");
        assert_eq!(role_of(&"x".repeat(80)), format!("{}_app", "x".repeat(59)));
        let umlauts = role_of(&"ü".repeat(40));
        assert!(umlauts.len() <= MOST_NAME && umlauts.ends_with("ü_app"));
    }

    #[test]
    fn a_name_cannot_end_its_quotes() {
        assert_eq!(quoted("a\"; DROP TABLE users; --"), "\"a\"\"; DROP TABLE users; --\"");
    }
}
