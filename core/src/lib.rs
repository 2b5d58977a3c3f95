//! The domain of Waffles as data: what a server, a principal, a key, a decision, an audit event and a
//! snapshot are. No I/O and no async: the proxy enforces with it, the control plane explains with it, the
//! command line checks files with it. Time is always an argument.

pub mod audit;
pub mod credential;
pub mod found;
pub mod health;
pub mod limit;
pub mod namespace;
pub mod policy;
pub mod principal;
pub mod proxy;
pub mod resilience;
pub mod seal;
pub mod server;
pub mod snapshot;
pub mod trail;
pub mod wire;

/// One wrong field of a request or resource, for people to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field, such as `endpoints[0].url`.
    pub field: String,
    /// What is wrong with it, as a sentence without a full stop.
    pub reason: String,
}

impl FieldError {
    /// Names a wrong field.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

/// The tenant that exists from the start.
pub const DEFAULT_TENANT: &str = "default";

/// Whether a text is a DNS label: 1 to 63 of a-z, 0-9 and inner hyphens (RFC 1123 §2.1).
pub fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}
