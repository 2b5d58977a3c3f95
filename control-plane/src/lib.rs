//! The control plane: stores, decides, publishes. Modules in reading order.

pub mod rest;

pub mod authz;
pub mod registry;

pub mod identity;

pub mod audit;
pub mod discovery;
pub mod proxies;

pub mod cache;
pub mod store;

pub mod error;
pub mod page;
pub mod secrets;
