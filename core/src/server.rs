//! A registered MCP server: its addresses, the credential presented to it, time limits, and which of its
//! tools exist for callers. Everything that comes from outside passes `Spec::problems` before it is believed.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use globset::{Glob, GlobSet, GlobSetBuilder};
use secrecy::SecretString;
use url::Url;
use uuid::Uuid;

use crate::health::HealthPolicy;
use crate::proxy::is_group;
use crate::resilience::Resilience;
use crate::{FieldError, is_dns_label};

/// How a server speaks MCP on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// The proxy finds out.
    #[default]
    Auto,
    /// Streamable HTTP, 2025-03-26 and later.
    StreamableHttp,
    /// HTTP+SSE of 2024-11-05.
    Sse,
}

/// What happens to a call whose audit record cannot be made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AuditMode {
    /// The call is served, and the lost record is counted.
    #[default]
    Count,
    /// The call is refused before it reaches the server.
    Strict,
}

/// How much of a call's payload the audit keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Capture {
    /// No payload.
    #[default]
    None,
    /// Argument names and JSON types.
    Metadata,
    /// Arguments and results, redacted and cut.
    Full,
}

/// What Waffles presents to a server. The secrets cannot print themselves.
#[derive(Debug, Clone, Default)]
pub enum Credential {
    /// Nothing.
    #[default]
    None,
    /// `Authorization: Bearer …` (RFC 6750).
    Bearer {
        /// The token.
        token: SecretString,
    },
    /// `Authorization: Basic …` (RFC 7617).
    Basic {
        /// Without a colon.
        username: String,
        /// The password.
        password: SecretString,
    },
    /// A header of the server's own.
    Header {
        /// Header name, lower case.
        name: String,
        /// Its value.
        value: SecretString,
    },
}

/// One address of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Absolute http or https URL.
    pub url: Url,
    /// Share of the traffic, 1 to 1000.
    pub weight: u16,
    /// Where it stands, as its operators call it; empty: nowhere in particular. A proxy prefers its own zone.
    pub zone: String,
}

impl Endpoint {
    /// One that has its full share, and stands nowhere in particular.
    pub fn at(url: Url) -> Self {
        Self { url, weight: 1, zone: String::new() }
    }
}

/// Time limits of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To open a connection.
    pub connect: Duration,
    /// From the request's end to the answer's first byte.
    pub first_byte: Duration,
    /// Between two bytes of an answer.
    pub idle: Duration,
    /// From start to end; listening streams are exempt.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            total: Duration::from_secs(600),
        }
    }
}

/// Names or patterns of tools; `*` stands for any run of characters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ToolFilter {
    /// Empty: all tools.
    pub allow: Vec<String>,
    /// Taken away again; deny wins.
    pub deny: Vec<String>,
}

/// What the registry says of tools: an operator's word, which rules and read-only keys go by. What a server says of its
/// own tools is a hint from a stranger [2026-07-28 server/tools].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ToolMark {
    /// A name, or a pattern in which `*` stands for any run of characters.
    pub pattern: String,
    /// What is said of them.
    pub marks: Marks,
}

/// What is said of a tool; none: nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marks {
    /// It only reads.
    pub read_only: Option<bool>,
    /// It may destroy something.
    pub destructive: Option<bool>,
    /// Calling it twice is as calling it once.
    pub idempotent: Option<bool>,
    /// It reaches beyond its server.
    pub open_world: Option<bool>,
}

/// What an operator decides about a server, without its credential.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spec {
    /// A DNS label, unique in the tenant, never changed.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Labels to filter by.
    pub tags: Vec<String>,
    /// How it speaks MCP.
    pub transport: Transport,
    /// Its addresses.
    pub endpoints: Vec<Endpoint>,
    /// Time limits.
    pub timeouts: Timeouts,
    /// Which tools exist for callers.
    pub tools: ToolFilter,
    /// What the registry says of tools. Of two marks that fit a tool, the earlier one counts.
    pub marks: Vec<ToolMark>,
    /// Methods that no revision of the protocol names and that callers may use here: names, or patterns in which `*`
    /// stands for any run of characters. All others are refused.
    pub methods: Vec<String>,
    /// What an audit outage means for calls.
    pub audit: AuditMode,
    /// How much payload the audit keeps.
    pub capture: Capture,
    /// Field names that are blanked in captured payloads.
    pub redact: Vec<String>,
    /// Groups of proxies that serve it; empty: all.
    pub groups: Vec<String>,
    /// What happens when it fails, is slow or is busy.
    pub resilience: Resilience,
    /// How its health is found out.
    pub health: HealthPolicy,
}

/// A registered MCP server.
#[derive(Debug, Clone)]
pub struct Server {
    /// Given by the control plane.
    pub id: Uuid,
    /// The tenant that owns it.
    pub tenant: String,
    /// What the operator decided.
    pub spec: Spec,
    /// What Waffles presents to it.
    pub credential: Credential,
    /// Whether calls may reach it.
    pub enabled: bool,
    /// Grows by one with each change.
    pub version: u64,
    /// When it was registered.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

/// Headers that HTTP, MCP or Waffles itself sets, so that no credential may take their place.
const RESERVED_HEADERS: [&str; 16] = [
    "accept",
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "last-event-id",
    "origin",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl Spec {
    /// Everything that is wrong with it, field by field; empty when it is sound.
    pub fn problems(&self) -> Vec<FieldError> {
        let mut problems = Vec::new();
        let mut wrong = |field: String, reason: &str| problems.push(FieldError::new(field, reason));
        if !is_dns_label(&self.name) {
            wrong("name".into(), "must be a DNS label: 1 to 63 of a-z, 0-9 and inner hyphens");
        }
        if self.description.chars().count() > 1000 || self.description.contains('\0') {
            wrong("description".into(), "must have at most 1000 characters and no NUL");
        }
        if self.tags.len() > 32 {
            wrong("tags".into(), "must be at most 32");
        }
        for (i, tag) in self.tags.iter().enumerate() {
            if !is_tag(tag) {
                wrong(format!("tags[{i}]"), "must be 1 to 63 letters, digits or any of `_.:/-`");
            }
        }
        if self.endpoints.is_empty() || self.endpoints.len() > 16 {
            wrong("endpoints".into(), "must be 1 to 16");
        }
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            if let Err(reason) = check_url(&endpoint.url) {
                wrong(format!("endpoints[{i}].url"), reason);
            }
            if !(1..=1000).contains(&endpoint.weight) {
                wrong(format!("endpoints[{i}].weight"), "must be 1 to 1000");
            }
            if !endpoint.zone.is_empty() && !is_zone(&endpoint.zone) {
                wrong(format!("endpoints[{i}].zone"), "must be 1 to 63 letters, digits or any of `_.-`");
            }
        }
        for (field, value, most) in [
            ("connect", self.timeouts.connect, 60),
            ("first_byte", self.timeouts.first_byte, 3600),
            ("idle", self.timeouts.idle, 3600),
            ("total", self.timeouts.total, 86_400),
        ] {
            if value < Duration::from_millis(1) || value > Duration::from_secs(most) {
                wrong(format!("timeouts.{field}"), &format!("must be 1 ms to {most} s"));
            }
        }
        for (list, patterns) in [("allow", &self.tools.allow), ("deny", &self.tools.deny)] {
            if patterns.len() > 1000 {
                wrong(format!("tools.{list}"), "must be at most 1000");
            }
            for (i, pattern) in patterns.iter().enumerate() {
                if !is_pattern(pattern) {
                    wrong(format!("tools.{list}[{i}]"), "must be 1 to 128 letters, digits or any of `_./-*`");
                }
            }
        }
        if self.marks.len() > 1000 {
            wrong("marks".into(), "must be at most 1000");
        }
        for (i, _) in self.marks.iter().enumerate().filter(|(_, mark)| !is_pattern(&mark.pattern)) {
            wrong(format!("marks[{i}].pattern"), "must be 1 to 128 letters, digits or any of `_./-*`");
        }
        if self.methods.len() > 100 {
            wrong("methods".into(), "must be at most 100");
        }
        for (i, _) in self.methods.iter().enumerate().filter(|(_, method)| !is_pattern(method)) {
            wrong(format!("methods[{i}]"), "must be 1 to 128 letters, digits or any of `_./-*`");
        }
        if self.redact.len() > 100 {
            wrong("redact".into(), "must be at most 100");
        }
        for (i, name) in self.redact.iter().enumerate() {
            if name.is_empty() || name.len() > 128 || name.contains('\0') {
                wrong(format!("redact[{i}]"), "must have 1 to 128 bytes and no NUL");
            }
        }
        if self.groups.len() > 32 {
            wrong("groups".into(), "must be at most 32");
        }
        for (i, _) in self.groups.iter().enumerate().filter(|(_, group)| !is_group(group)) {
            wrong(format!("groups[{i}]"), "must be a DNS label: 1 to 63 of a-z, 0-9 and inner hyphens");
        }
        problems.extend(self.resilience.problems());
        problems.extend(self.health.problems());
        problems
    }

    /// Whether callers may use a method that no revision of the protocol names.
    pub fn allows_method(&self, method: &str) -> bool {
        self.methods.iter().any(|pattern| fits(pattern, method))
    }

    /// Whether a tool may be called again where nobody knows whether it ran: by the registry's word alone.
    pub fn may_repeat(&self, tool: &str) -> bool {
        // Most servers have no marks, and this is asked for each call.
        !self.marks.is_empty() && {
            let marks = self.marks_of(tool);
            marks.read_only == Some(true) || marks.idempotent == Some(true)
        }
    }

    /// What the registry says of a tool.
    pub fn marks_of(&self, tool: &str) -> Marks {
        let mut said = Marks::default();
        for ToolMark { marks, .. } in self.marks.iter().filter(|mark| fits(&mark.pattern, tool)) {
            said.read_only = said.read_only.or(marks.read_only);
            said.destructive = said.destructive.or(marks.destructive);
            said.idempotent = said.idempotent.or(marks.idempotent);
            said.open_world = said.open_world.or(marks.open_world);
        }
        said
    }
}

impl Credential {
    /// Everything that is wrong with it, field by field.
    pub fn problems(&self) -> Vec<FieldError> {
        use secrecy::ExposeSecret as _;
        let mut problems = Vec::new();
        let mut secret = |field: &str, value: &SecretString| {
            let value = value.expose_secret();
            let visible = value.bytes().all(|b| (0x20..0x7f).contains(&b));
            if value.is_empty() || value.len() > 8192 || !visible || value.trim() != value {
                problems.push(FieldError::new(
                    format!("credential.{field}"),
                    "must be 1 to 8192 visible ASCII characters without blanks at its ends",
                ));
            }
        };
        match self {
            Self::None => {}
            Self::Bearer { token } => secret("bearer.token", token),
            Self::Basic { username, password } => {
                secret("basic.password", password);
                if username.contains(':') || username.chars().any(char::is_control) || username.len() > 255 {
                    problems.push(FieldError::new(
                        "credential.basic.username",
                        "must have at most 255 bytes, no colon and no control characters (RFC 7617)",
                    ));
                }
            }
            Self::Header { name, value } => {
                secret("header.value", value);
                if !is_free_header(name) {
                    problems.push(FieldError::new(
                        "credential.header.name",
                        "must be a header name in lower case that HTTP, MCP or Waffles does not use itself",
                    ));
                }
            }
        }
        problems
    }
}

fn is_free_header(name: &str) -> bool {
    let token = !name.is_empty()
        && name.len() <= 128
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
    token
        && !RESERVED_HEADERS.contains(&name)
        && !["mcp-", "proxy-", "x-waffles-", "x-forwarded-"].iter().any(|prefix| name.starts_with(prefix))
}

fn is_tag(tag: &str) -> bool {
    (1..=63).contains(&tag.len()) && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.:/-".contains(&b))
}

/// Whether a text may be the name of a zone.
pub fn is_zone(zone: &str) -> bool {
    (1..=63).contains(&zone.len()) && zone.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// Whether a text may stand in a tool filter.
pub fn is_pattern(pattern: &str) -> bool {
    (1..=128).contains(&pattern.len())
        && pattern.bytes().all(|b| b.is_ascii_alphanumeric() || b"_./-*".contains(&b))
}

/// Whether a text fits a pattern in which `*`, and nothing else, stands for any run of characters.
pub(crate) fn fits(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    let inner = text.strip_prefix(head).and_then(|text| text.strip_suffix(tail));
    let Some(mut inner) = inner else { return false };
    // The first place for each piece leaves the most room for those after it.
    for piece in middle.split('*') {
        let Some((_, after)) = inner.split_once(piece) else { return false };
        inner = after;
    }
    true
}

/// An address that Waffles may connect to, as far as its text tells; the outbound connector checks what it
/// resolves to.
fn check_url(url: &Url) -> Result<(), &'static str> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err("must be an http or https URL");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user name or password; give a credential instead");
    }
    if url.fragment().is_some() {
        return Err("must not have a fragment");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err("must have a host");
    }
    if url.as_str().len() > 2048 {
        return Err("must have at most 2048 characters");
    }
    Ok(())
}

/// A compiled list of names and patterns.
#[derive(Debug, Clone, Default)]
pub struct NameSet {
    names: HashSet<String>,
    patterns: GlobSet,
}

impl NameSet {
    /// Compiles names and `*` patterns. The error is the pattern that cannot be read.
    pub fn compile(patterns: &[String]) -> Result<Self, String> {
        let mut names = HashSet::new();
        let mut globs = GlobSetBuilder::new();
        for pattern in patterns {
            if !is_pattern(pattern) {
                return Err(pattern.clone());
            }
            if pattern.contains('*') {
                globs.add(Glob::new(pattern).map_err(|_| pattern.clone())?);
            } else {
                names.insert(pattern.clone());
            }
        }
        Ok(Self { names, patterns: globs.build().map_err(|error| error.to_string())? })
    }

    /// Whether nothing is named.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.patterns.is_empty()
    }

    /// Whether a name is in the set. Names are compared byte by byte.
    pub fn contains(&self, name: &str) -> bool {
        self.names.contains(name) || (!self.patterns.is_empty() && self.patterns.is_match(name))
    }
}

/// A compiled tool filter.
#[derive(Debug, Clone, Default)]
pub struct ToolSet {
    allow: NameSet,
    deny: NameSet,
}

impl ToolSet {
    /// Compiles a filter. The error is the pattern that cannot be read.
    pub fn compile(filter: &ToolFilter) -> Result<Self, String> {
        Ok(Self { allow: NameSet::compile(&filter.allow)?, deny: NameSet::compile(&filter.deny)? })
    }

    /// Whether a tool exists for callers.
    pub fn contains(&self, tool: &str) -> bool {
        (self.allow.is_empty() || self.allow.contains(tool)) && !self.deny.contains(tool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec {
            name: "demo".into(),
            endpoints: vec![Endpoint::at(Url::parse("http://127.0.0.1:9/mcp").unwrap())],
            ..Spec::default()
        }
    }

    #[test]
    fn a_sound_specification_has_no_problems() {
        assert_eq!(spec().problems(), []);
    }

    #[test]
    fn every_wrong_field_is_named() {
        let bad = Spec {
            name: "Not A Label".into(),
            tags: vec!["ok".into(), "not ok".into()],
            endpoints: vec![Endpoint {
                url: Url::parse("ftp://user@host/").unwrap(),
                weight: 0,
                zone: "not a zone".into(),
            }],
            timeouts: Timeouts { connect: Duration::ZERO, ..Timeouts::default() },
            tools: ToolFilter { allow: vec!["a b".into()], deny: vec![] },
            ..spec()
        };
        let fields: Vec<_> = bad.problems().into_iter().map(|p| p.field).collect();
        assert_eq!(
            fields,
            [
                "name",
                "tags[1]",
                "endpoints[0].url",
                "endpoints[0].weight",
                "endpoints[0].zone",
                "timeouts.connect",
                "tools.allow[0]"
            ]
        );
    }

    #[test]
    fn a_credential_cannot_take_the_place_of_a_protocol_header() {
        for name in ["host", "mcp-session-id", "cookie", "X-Upper", "", "x-forwarded-for"] {
            let credential = Credential::Header { name: name.into(), value: "v".into() };
            assert_eq!(credential.problems().len(), 1, "{name}");
        }
        assert!(Credential::Header { name: "x-api-key".into(), value: "v".into() }.problems().is_empty());
        assert_eq!(Credential::Bearer { token: "a\r\nb".into() }.problems().len(), 1);
    }

    #[test]
    fn a_secret_does_not_print_itself() {
        let credential = Credential::Bearer { token: "hunter2".into() };
        assert!(!format!("{credential:?}").contains("hunter2"));
    }

    #[test]
    fn deny_wins_and_an_empty_allow_list_means_all() {
        let cases: [(&[&str], &[&str], &str, bool); 6] = [
            (&[], &[], "any", true),
            (&["get_*"], &[], "get_user", true),
            (&["get_*"], &[], "set_user", false),
            (&[], &["delete*"], "delete_all", false),
            (&["*"], &["delete_all"], "delete_all", false),
            (&["echo"], &[], "Echo", false),
        ];
        for (allow, deny, tool, expected) in cases {
            let filter = ToolFilter {
                allow: allow.iter().map(ToString::to_string).collect(),
                deny: deny.iter().map(ToString::to_string).collect(),
            };
            assert_eq!(ToolSet::compile(&filter).unwrap().contains(tool), expected, "{filter:?} {tool}");
        }
    }
}
