//! Nobody gives what they do not hold: what an actor holds somewhere, and whether that is all that another one has.

use waffles_core::policy::{Permission, PermissionSet, Scope, Target};
use waffles_core::principal::Principal;

use super::OpCtx;
use crate::error::Error;

impl OpCtx {
    /// Refuses unless the actor has the permission on this: in the whole tenant, or there.
    pub fn require_on(&self, permission: Permission, target: Target<'_>) -> Result<(), Error> {
        if self.may_on(permission, target) { Ok(()) } else { Err(self.refusal()) }
    }

    /// Whether the actor has the permission on this: in the whole tenant, or there.
    pub fn may_on(&self, permission: Permission, target: Target<'_>) -> bool {
        self.may(permission)
            || (self.passed.contains(permission)
                && self.principal.permissions_on(target).contains(permission))
    }

    /// Whether the actor has the permission anywhere at all.
    pub fn may_somewhere(&self, permission: Permission) -> bool {
        self.may(permission)
            || (self.passed.contains(permission) && self.principal.holds_anywhere(permission))
    }

    /// The scopes below the tenant on which the actor has a permission.
    pub fn scopes_of(&self, permission: Permission) -> impl Iterator<Item = &Scope> {
        let passed = self.passed.contains(permission);
        let held = self.principal.grants.iter();
        held.filter(move |held| passed && self.principal.permissions_of(&held.role).contains(permission))
            .map(|held| &held.scope)
    }

    /// Which of these permissions the actor does not hold there.
    pub fn lacks(&self, wanted: PermissionSet, scope: &Scope) -> PermissionSet {
        let there = self.principal.grants.iter().filter(|held| includes(&held.scope, scope));
        let there =
            there.fold(PermissionSet::NONE, |all, held| all | self.principal.permissions_of(&held.role));
        let held = self.permissions | there.and(self.passed);
        wanted.iter().filter(|permission| !held.contains(*permission)).collect()
    }

    /// Whether the actor holds all that somebody else does.
    pub fn covers(&self, other: &Principal) -> bool {
        let holds = |wanted, scope: &Scope| self.lacks(wanted, scope).is_empty();
        holds(other.permissions(), &Scope::Tenant)
            && other.grants.iter().all(|held| holds(other.permissions_of(&held.role), &held.scope))
    }

    /// Refuses a key that is for some servers, tools or namespaces: it has not the whole to give away.
    pub fn require_whole(&self) -> Result<(), Error> {
        let narrow = self.key.as_ref().is_some_and(|key| {
            let limits = &key.limits;
            !(limits.servers.is_empty() && limits.tools.is_empty() && limits.namespaces.is_empty())
        });
        if narrow { Err(self.refusal()) } else { Ok(()) }
    }

    /// The same actor with what it holds now.
    pub(crate) fn holding(&self, now: Principal) -> Self {
        Self::authenticated(now, self.key.clone(), self.session, self.request_id, self.address)
    }
}

/// Whether what is held in one place is held in another one too.
fn includes(held: &Scope, wanted: &Scope) -> bool {
    match (held, wanted) {
        (Scope::Tenant, _) => true,
        (Scope::Server(held), Scope::Tools { server, .. }) => held == server,
        (Scope::Tools { server: held, pattern }, Scope::Tools { server, pattern: wanted }) => {
            (held == server || held == "*") && (pattern == wanted || pattern == "*")
        }
        (held, wanted) => held == wanted,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use waffles_core::policy::Held;

    use super::*;

    fn actor(roles: &[&str], grants: &[(&str, Scope)]) -> OpCtx {
        OpCtx::authenticated(person(roles, grants), None, None, Uuid::nil(), None)
    }

    fn person(roles: &[&str], grants: &[(&str, Scope)]) -> Principal {
        let held = |(role, scope): &(&str, Scope)| Held { role: (*role).to_owned(), scope: scope.clone() };
        Principal {
            tenant: "default".into(),
            roles: roles.iter().map(ToString::to_string).collect(),
            grants: grants.iter().map(held).collect(),
            active: true,
            ..Principal::default()
        }
    }

    fn tools(server: &str, pattern: &str) -> Scope {
        Scope::Tools { server: server.into(), pattern: pattern.into() }
    }

    #[test]
    fn what_is_held_on_less_is_not_held_on_more() {
        let server = Scope::Server("a".into());
        for (held, wanted, expected) in [
            (&server, &server, true),
            (&server, &tools("a", "x*"), true),
            (&server, &tools("b", "x*"), false),
            (&server, &tools("*", "x*"), false),
            (&server, &Scope::Tenant, false),
            (&server, &Scope::Server("b".into()), false),
            (&server, &Scope::Namespace("a".into()), false),
            (&Scope::Tenant, &tools("*", "*"), true),
            (&tools("*", "*"), &tools("b", "x*"), true),
            (&tools("*", "x*"), &tools("b", "x*"), true),
            (&tools("b", "*"), &tools("b", "x*"), true),
            (&tools("b", "x*"), &tools("b", "xy"), false),
            (&tools("b", "x*"), &tools("b", "*"), false),
            (&tools("b", "*"), &Scope::Server("b".into()), false),
        ] {
            assert_eq!(includes(held, wanted), expected, "{held} {wanted}");
            let user = person(&[], &[("user", wanted.clone())]);
            assert_eq!(actor(&[], &[("user", held.clone())]).covers(&user), expected, "{held} {wanted}");
        }
    }

    #[test]
    fn an_operator_is_no_admin_and_an_admin_is_everybody() {
        let (admin, operator) = (actor(&["admin"], &[]), actor(&["operator"], &[]));
        assert!(admin.covers(&person(&["admin", "auditor"], &[("user", tools("a", "b"))])));
        assert!(operator.covers(&person(&["operator"], &[])) && operator.covers(&person(&["readonly"], &[])));
        assert!(!operator.covers(&person(&["user"], &[])), "an operator calls nothing");
        assert!(!operator.covers(&person(&["admin"], &[])));
        assert!(!operator.covers(&person(&[], &[("user", tools("a", "b"))])));
        assert!(operator.covers(&person(&["no-such-role"], &[])));
    }
}
