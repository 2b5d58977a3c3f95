//! What principals hold, itself and through their groups: read with two statements however many principals are asked
//! about, so that a look at one is as cheap as one at all is bounded.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::QueryBuilder;
use sqlx::types::Json;
use uuid::Uuid;
use waffles_core::policy::{Held, Permission, RoleDef, Scope};
use waffles_core::principal::Principal;

use super::{Tx, on_tx, push_in};

/// Principals a statement; with more of them, everything is read at once.
const MOST_IDS: usize = 200;

#[derive(sqlx::FromRow)]
struct MemberRow {
    holder: Uuid,
    name: String,
}

#[derive(sqlx::FromRow)]
struct HeldRow {
    holder: Uuid,
    tenant: String,
    role: String,
    scope: String,
    scope_name: String,
    pattern: String,
    role_id: Option<Uuid>,
    description: Option<String>,
    permissions: Option<Json<Vec<String>>>,
}

/// Adds to principals what they hold: groups, roles, grants, and what their roles of the tenant's own making permit.
pub(super) async fn add(tx: &mut Tx, principals: &mut [Principal]) -> sqlx::Result<()> {
    if principals.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = principals.iter().map(|principal| principal.id).collect();
    let only = (ids.len() <= MOST_IDS).then_some(ids.as_slice());
    let (members, held) = (members(tx, only).await?, held(tx, only).await?);
    let mut groups: HashMap<Uuid, Vec<String>> = HashMap::new();
    for MemberRow { holder, name } in members {
        groups.entry(holder).or_default().push(name);
    }
    let mut rights: HashMap<Uuid, Vec<HeldRow>> = HashMap::new();
    for row in held {
        rights.entry(row.holder).or_default().push(row);
    }
    let mut roles: HashMap<Uuid, Arc<RoleDef>> = HashMap::new();
    for principal in principals {
        principal.groups = groups.remove(&principal.id).unwrap_or_default();
        for row in rights.remove(&principal.id).unwrap_or_default() {
            if let Some(role) = row.definition() {
                let role = roles.entry(role.id).or_insert_with(|| Arc::new(role));
                if principal.custom.iter().all(|known| known.id != role.id) {
                    principal.custom.push(Arc::clone(role));
                }
            }
            match scope_of(&row.scope, row.scope_name, row.pattern) {
                Some(Scope::Tenant) => principal.roles.push(row.role),
                Some(scope) => principal.grants.push(Held { role: row.role, scope }),
                // One that a later version knows. What is not understood gives nothing.
                None => {}
            }
        }
    }
    Ok(())
}

impl HeldRow {
    fn definition(&self) -> Option<RoleDef> {
        let (Some(id), Some(permissions)) = (self.role_id, &self.permissions) else { return None };
        Some(RoleDef {
            id,
            tenant: self.tenant.clone(),
            name: self.role.clone(),
            description: self.description.clone().unwrap_or_default(),
            permissions: permissions.iter().filter_map(|name| Permission::parse(name)).collect(),
        })
    }
}

/// Reads where a grant is held.
pub(super) fn scope_of(scope: &str, name: String, pattern: String) -> Option<Scope> {
    match scope {
        "tenant" => Some(Scope::Tenant),
        "namespace" => Some(Scope::Namespace(name)),
        "server" => Some(Scope::Server(name)),
        "tools" => Some(Scope::Tools { server: name, pattern }),
        _ => None,
    }
}

/// The columns of where a grant is held.
pub(super) fn columns_of(scope: &Scope) -> (&'static str, &str, &str) {
    match scope {
        Scope::Tenant => ("tenant", "", ""),
        Scope::Namespace(name) => ("namespace", name, ""),
        Scope::Server(name) => ("server", name, ""),
        Scope::Tools { server, pattern } => ("tools", server, pattern),
    }
}

async fn members(tx: &mut Tx, only: Option<&[Uuid]>) -> sqlx::Result<Vec<MemberRow>> {
    on_tx!(tx, |conn| {
        let mut query = QueryBuilder::new(
            "SELECT m.principal_id AS holder, g.name FROM group_members m
            JOIN principal_groups g ON g.id = m.group_id AND g.tenant = m.tenant",
        );
        if let Some(ids) = only {
            push_in(&mut query, " WHERE m.principal_id", ids.iter().copied());
        }
        query.push(" ORDER BY g.name");
        let one = only.is_some_and(|ids| ids.len() == 1);
        query.build_query_as().persistent(one).fetch_all(conn).await
    })
}

async fn held(tx: &mut Tx, only: Option<&[Uuid]>) -> sqlx::Result<Vec<HeldRow>> {
    on_tx!(tx, |conn| {
        let mut query = QueryBuilder::new(
            "SELECT h.holder, h.tenant, h.role, h.scope, h.scope_name, h.pattern,
                r.id AS role_id, r.description, r.permissions
            FROM (SELECT g.tenant, g.principal_id AS holder, g.role, g.scope, g.scope_name, g.pattern
                FROM grants g WHERE g.principal_id IS NOT NULL",
        );
        if let Some(ids) = only {
            push_in(&mut query, " AND g.principal_id", ids.iter().copied());
        }
        query.push(
            " UNION SELECT g.tenant, m.principal_id AS holder, g.role, g.scope, g.scope_name, g.pattern
                FROM grants g JOIN group_members m ON m.group_id = g.group_id AND m.tenant = g.tenant",
        );
        if let Some(ids) = only {
            push_in(&mut query, " WHERE m.principal_id", ids.iter().copied());
        }
        query.push(
            ") AS h LEFT JOIN roles r ON r.tenant = h.tenant AND r.name = h.role
            ORDER BY h.role, h.scope, h.scope_name, h.pattern",
        );
        let one = only.is_some_and(|ids| ids.len() == 1);
        query.build_query_as().persistent(one).fetch_all(conn).await
    })
}
