//! Whole-system tests: each starts its own planes on free ports.

#![allow(clippy::disallowed_methods, reason = "tests connect to what they have started")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test fails by panicking"
)]

mod access;
mod attacks;
mod auth;
mod breakers;
mod bridge;
mod call;
mod canary;
mod channel;
mod cli;
mod clients;
mod discovery;
mod doors;
mod edges;
mod eras;
mod escalation;
mod federation;
mod harness;
mod health;
mod hostile;
mod limits;
mod matrix;
mod mixups;
mod namespace_doors;
mod namespaces;
mod overload;
mod planes;
mod resilience;
mod restarts;
mod rights;
mod rmcp_client;
mod rotation;
mod scale;
mod ssrf;
mod stdio;
mod streaming;
mod subscriptions;
mod tenants;
mod tls;
mod tokens;
mod trail;
mod up;
