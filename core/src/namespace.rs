//! A namespace: a named set of servers behind one door, what it shows of each, and who may go how far there.
//! Members are named as the servers are, since a server's name never changes.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::policy::Role;
use crate::server::{ToolFilter, ToolSet, fits, is_pattern};
use crate::{FieldError, is_dns_label};

/// The namespace that every tenant has; it cannot be removed.
pub const DEFAULT_NAMESPACE: &str = "default";

/// How far someone may go in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The handshake and lists.
    View,
    /// Everything that the servers and the caller's roles permit.
    Execute,
}

/// Which of a server's items a namespace shows. It can only narrow what the server's own filter lets through.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expose {
    /// Names or patterns of tools and prompts; empty: all.
    pub allow: Vec<String>,
    /// Taken away again; deny wins.
    pub deny: Vec<String>,
    /// URIs or patterns of resources and URI templates; empty: all.
    pub resources_allow: Vec<String>,
    /// Taken away again; deny wins.
    pub resources_deny: Vec<String>,
}

/// A server in a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The server's name.
    pub server: String,
    /// Whether its names are shown with the server's name before them.
    pub prefix: bool,
    /// Which of its items are shown.
    pub expose: Expose,
}

impl Member {
    /// A server as it joins by itself: with its prefix and all that it has.
    pub fn whole(server: impl Into<String>) -> Self {
        Self { server: server.into(), prefix: true, expose: Expose::default() }
    }
}

/// What the holders of a role may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleLevel {
    /// The role's name.
    pub role: String,
    /// How far they may go.
    pub level: Level,
}

/// What one principal may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrincipalLevel {
    /// Its name.
    pub principal: String,
    /// How far it may go.
    pub level: Level,
}

/// What an operator decides about a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamespaceSpec {
    /// A DNS label, unique in the tenant, never changed.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Its servers.
    pub servers: Vec<Member>,
    /// Levels by role.
    pub levels: Vec<RoleLevel>,
    /// Levels by principal.
    pub principals: Vec<PrincipalLevel>,
    /// Every server that is registered from now on becomes a member.
    pub is_default: bool,
    /// Shows tools to search and call with in place of the members' tools.
    pub tool_search: bool,
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Given by the control plane.
    pub id: Uuid,
    /// The tenant that owns it.
    pub tenant: String,
    /// What the operator decided.
    pub spec: NamespaceSpec,
    /// Grows by one with each change.
    pub version: u64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

/// Entries of one list of levels or patterns.
const MOST: usize = 1000;

/// The most that a namespace may weigh. It travels in one message, which has at most 4 MiB.
pub const MOST_WEIGHT: usize = 3 << 20;
/// What is said of one that weighs more.
pub const TOO_HEAVY: &str = "must have at most 3 MiB of names and patterns together";

impl NamespaceSpec {
    /// The namespace that a tenant has from the start, without its servers.
    pub fn first() -> Self {
        let level = |role: Role, level| RoleLevel { role: role.as_str().to_owned(), level };
        Self {
            name: DEFAULT_NAMESPACE.to_owned(),
            description: "Every server, unless it was taken out.".to_owned(),
            levels: vec![
                level(Role::Admin, Level::Execute),
                level(Role::User, Level::Execute),
                level(Role::Readonly, Level::View),
            ],
            is_default: true,
            ..Self::default()
        }
    }

    /// Everything that is wrong with it, field by field; empty when it is sound. Whether its servers exist is not
    /// known here.
    pub fn problems(&self) -> Vec<FieldError> {
        let mut problems = Vec::new();
        let mut wrong = |field: String, reason: &str| problems.push(FieldError::new(field, reason));
        if !is_dns_label(&self.name) {
            wrong("name".into(), "must be a DNS label: 1 to 63 of a-z, 0-9 and inner hyphens");
        }
        if self.description.chars().count() > 1000 || self.description.contains('\0') {
            wrong("description".into(), "must have at most 1000 characters and no NUL");
        }
        for (field, count) in [("levels", self.levels.len()), ("principals", self.principals.len())] {
            if count > MOST {
                wrong(field.into(), "must be at most 1000");
            }
        }
        let mut roles = HashSet::new();
        for (i, RoleLevel { role, .. }) in self.levels.iter().enumerate() {
            if Role::parse(role).is_none() {
                wrong(format!("levels[{i}].role"), "is not a role");
            } else if !roles.insert(role) {
                wrong(format!("levels[{i}].role"), "is named twice");
            }
        }
        let mut names = HashSet::new();
        for (i, PrincipalLevel { principal, .. }) in self.principals.iter().enumerate() {
            let field = || format!("principals[{i}].principal");
            if principal.is_empty() || principal.len() > 320 || principal.chars().any(char::is_control) {
                wrong(field(), "must have 1 to 320 bytes and no control characters");
            } else if !names.insert(principal) {
                wrong(field(), "is named twice");
            }
        }
        if self.weight() > MOST_WEIGHT {
            wrong("servers".into(), TOO_HEAVY);
        }
        let mut servers = HashSet::new();
        for (i, member) in self.servers.iter().enumerate() {
            problems.extend(member.problems(&format!("servers[{i}].")));
            if !servers.insert(&member.server) {
                problems.push(FieldError::new(format!("servers[{i}].server"), "is named twice"));
            }
        }
        problems
    }

    /// About how many bytes it takes in a message, and no fewer.
    pub fn weight(&self) -> usize {
        let text = |text: &String| text.len() + 8;
        text(&self.name)
            + text(&self.description)
            + self.servers.iter().map(Member::weight).sum::<usize>()
            + self.levels.iter().map(|entry| 8 + text(&entry.role)).sum::<usize>()
            + self.principals.iter().map(|entry| 8 + text(&entry.principal)).sum::<usize>()
    }
}

impl Member {
    fn weight(&self) -> usize {
        let Expose { allow, deny, resources_allow, resources_deny } = &self.expose;
        let patterns = [allow, deny, resources_allow, resources_deny].into_iter().flatten();
        24 + self.server.len() + patterns.map(|pattern| pattern.len() + 4).sum::<usize>()
    }

    /// Everything that is wrong with it; the names of its fields begin with `at`.
    pub fn problems(&self, at: &str) -> Vec<FieldError> {
        let mut problems = Vec::new();
        if !is_dns_label(&self.server) {
            problems.push(FieldError::new(format!("{at}server"), "is not a server name"));
        }
        let names = "must be 1 to 128 letters, digits or any of `_./-*`";
        let uris = "must be 1 to 1024 visible ASCII characters; `*` stands for any run of them";
        let Expose { allow, deny, resources_allow, resources_deny } = &self.expose;
        for (list, patterns, fits, reason) in [
            ("allow", allow, is_pattern as fn(&str) -> bool, names),
            ("deny", deny, is_pattern, names),
            ("resources_allow", resources_allow, is_uri_pattern, uris),
            ("resources_deny", resources_deny, is_uri_pattern, uris),
        ] {
            let field = format!("{at}expose.{list}");
            if patterns.len() > MOST {
                problems.push(FieldError::new(&field, "must be at most 1000"));
            }
            for (i, _) in patterns.iter().enumerate().filter(|(_, pattern)| !fits(pattern)) {
                problems.push(FieldError::new(format!("{field}[{i}]"), reason));
            }
        }
        problems
    }
}

/// Whether a text may stand in a filter of resources.
pub fn is_uri_pattern(pattern: &str) -> bool {
    (1..=1024).contains(&pattern.len()) && pattern.bytes().all(|b| b.is_ascii_graphic())
}

/// A compiled filter of URIs. URIs hold most of the characters that globs give a meaning to, so here only `*` has one.
#[derive(Debug, Clone, Default)]
pub struct UriSet {
    allow: Vec<String>,
    deny: Vec<String>,
}

impl UriSet {
    /// Whether a resource or URI template is shown.
    pub fn contains(&self, uri: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| fits(pattern, uri));
        (self.allow.is_empty() || any(&self.allow)) && !any(&self.deny)
    }
}

/// A member with what is compiled from its filters.
#[derive(Debug)]
pub struct MemberEntry {
    /// The server's name.
    pub server: String,
    /// Whether its names are shown with the server's name before them.
    pub prefix: bool,
    /// Which of its tools and prompts are shown, by their own names.
    pub names: ToolSet,
    /// Which of its resources and URI templates are shown, by their own URIs.
    pub resources: UriSet,
    shows_all: bool,
}

impl MemberEntry {
    /// Whether nothing of the server is hidden here.
    pub fn shows_all(&self) -> bool {
        self.shows_all
    }
}

/// A namespace with what is compiled from its specification.
#[derive(Debug)]
pub struct NamespaceEntry {
    /// The namespace.
    pub namespace: Namespace,
    /// Its members, in the order of the servers' names. A server that is not in the snapshot is named here all the same.
    pub members: Vec<MemberEntry>,
}

impl NamespaceEntry {
    /// Compiles the members' filters. The error is the pattern that cannot be read.
    pub fn compile(namespace: Namespace) -> Result<Self, String> {
        let mut members = Vec::with_capacity(namespace.spec.servers.len());
        for member in &namespace.spec.servers {
            let Expose { allow, deny, resources_allow, resources_deny } = member.expose.clone();
            let uris = [&resources_allow, &resources_deny];
            if let Some(bad) = uris.into_iter().flatten().find(|pattern| !is_uri_pattern(pattern)) {
                return Err(bad.clone());
            }
            members.push(MemberEntry {
                server: member.server.clone(),
                prefix: member.prefix,
                shows_all: member.expose == Expose::default(),
                names: ToolSet::compile(&ToolFilter { allow, deny })?,
                resources: UriSet { allow: resources_allow, deny: resources_deny },
            });
        }
        members.sort_by(|one, other| one.server.cmp(&other.server));
        Ok(Self { namespace, members })
    }

    /// Finds the member of a server's name.
    pub fn member(&self, server: &str) -> Option<&MemberEntry> {
        let at = self.members.binary_search_by(|member| member.server.as_str().cmp(server)).ok()?;
        self.members.get(at)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::wire::namespace_to_proto;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    fn with(expose: Expose) -> Namespace {
        let member = Member { expose, ..Member::whole("b") };
        Namespace {
            id: Uuid::nil(),
            tenant: "default".into(),
            spec: NamespaceSpec {
                name: "team".into(),
                servers: vec![Member::whole("c"), member, Member::whole("a")],
                ..NamespaceSpec::default()
            },
            version: 1,
            created_at: DateTime::UNIX_EPOCH,
            updated_at: DateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn the_first_namespace_is_sound() {
        assert_eq!(NamespaceSpec::first().problems(), []);
    }

    #[test]
    fn every_wrong_field_is_named() {
        let bad = Expose {
            allow: strings(&["ok_*", "not ok"]),
            deny: strings(&[""]),
            resources_allow: strings(&["file:///a?b={c}*", "not\nok"]),
            resources_deny: strings(&["ä"]),
        };
        let level = |role: &str| RoleLevel { role: role.into(), level: Level::View };
        let principal = |name: &str| PrincipalLevel { principal: name.into(), level: Level::Execute };
        let spec = NamespaceSpec {
            name: "Team".into(),
            servers: vec![
                Member::whole("a"),
                Member { expose: bad, ..Member::whole("b") },
                Member::whole("a"),
                Member::whole("-"),
            ],
            levels: vec![level("admin"), level("owner"), level("admin")],
            principals: vec![principal("a@b"), principal(""), principal("a@b")],
            ..NamespaceSpec::default()
        };
        let fields: Vec<_> = spec.problems().into_iter().map(|problem| problem.field).collect();
        assert_eq!(
            fields,
            [
                "name",
                "levels[1].role",
                "levels[2].role",
                "principals[1].principal",
                "principals[2].principal",
                "servers[1].expose.allow[1]",
                "servers[1].expose.deny[0]",
                "servers[1].expose.resources_allow[1]",
                "servers[1].expose.resources_deny[0]",
                "servers[2].server",
                "servers[3].server",
            ]
        );
    }

    #[test]
    fn a_namespace_fits_in_one_message() {
        let whole = |i: usize| Member::whole(format!("server-{i}"));
        let mut spec = NamespaceSpec { servers: (0..20_000).map(whole).collect(), ..NamespaceSpec::first() };
        assert_eq!(spec.problems(), [], "a namespace of every server of a large fleet");
        spec.principals =
            vec![PrincipalLevel { principal: "eve@example.test".into(), level: Level::View }; 9];
        for member in spec.servers.iter_mut().take(4) {
            member.expose.allow = vec!["a".into(); MOST];
            member.expose.resources_deny = vec!["x".repeat(500); MOST];
        }
        let sent = namespace_to_proto(&Namespace { spec: spec.clone(), ..with(Expose::default()) });
        let bytes = sent.spec.unwrap().encoded_len();
        assert!((bytes..bytes * 2).contains(&spec.weight()), "{} for {bytes}", spec.weight());
        spec.principals.clear();
        assert_eq!(spec.problems(), []);
        for member in spec.servers.iter_mut().take(4) {
            member.expose.resources_allow = vec!["x".repeat(500); MOST];
        }
        assert_eq!(spec.problems(), [FieldError::new("servers", TOO_HEAVY)]);
    }

    #[test]
    fn members_stand_in_the_order_of_their_names_and_show_what_is_exposed() {
        let expose = Expose {
            allow: strings(&["get_*", "put"]),
            deny: strings(&["get_secret"]),
            resources_allow: strings(&["db://*", "https://x.example/{id}"]),
            resources_deny: strings(&["db://private/*"]),
        };
        let entry = NamespaceEntry::compile(with(expose)).unwrap();
        let names: Vec<_> = entry.members.iter().map(|member| member.server.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert!(entry.member("d").is_none());
        let (all, some) = (entry.member("a").unwrap(), entry.member("b").unwrap());
        assert!(all.shows_all() && all.names.contains("anything") && all.resources.contains("x:y"));
        assert!(!some.shows_all());
        for (name, shown) in [("get_x", true), ("put", true), ("get_secret", false), ("putt", false)] {
            assert_eq!(some.names.contains(name), shown, "{name}");
        }
        for (uri, shown) in [
            ("db://a/b?c", true),
            ("db://private/x", false),
            ("db:/", false),
            ("https://x.example/{id}", true),
            ("https://x.example/i", false),
        ] {
            assert_eq!(some.resources.contains(uri), shown, "{uri}");
        }
    }

    #[test]
    fn only_the_asterisk_means_something_in_a_pattern_of_uris() {
        for (pattern, uri, fits) in [
            ("*", "", true),
            ("*", "a:b", true),
            ("a*", "a", true),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "ac", false),
            ("a*bc*bc", "abc", false),
            ("a*bc*bc", "abcbc", true),
            ("a**c", "ac", true),
            ("*b*", "abc", true),
            ("*b*", "acc", false),
            ("a?c", "abc", false),
            ("a?c", "a?c", true),
            ("[a]{b}", "[a]{b}", true),
            ("file:///*.txt", "file:///a/b/.txt", true),
            ("file:///*.txt", "file:///a.txt/", false),
        ] {
            assert_eq!(crate::server::fits(pattern, uri), fits, "{pattern} on {uri}");
        }
    }
}
