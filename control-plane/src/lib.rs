//! The control plane: stores, decides, publishes. Modules in reading order.

pub mod authz;
pub mod error;
pub mod store;
