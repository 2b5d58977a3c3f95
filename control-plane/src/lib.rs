//! The control plane: stores, decides, publishes. Modules in reading order.

// Wiring.
pub mod app;
pub mod config;

// The doors.
pub mod grpc;
mod http;
mod metrics;
pub mod rest;

// What is done, and by whom.
pub mod audit;
pub mod authz;
pub mod discovery;
pub mod enrolment;
pub mod health;
pub mod identity;
pub mod limits;
pub mod namespaces;
pub mod policy;
pub mod proxies;
pub mod quota;
pub mod registry;
pub mod services;
pub mod tenants;
pub mod upkeep;
pub mod usage;

// What is stored.
pub mod cache;
pub mod store;

// What all of them use.
pub mod error;
pub mod page;
pub mod secrets;
