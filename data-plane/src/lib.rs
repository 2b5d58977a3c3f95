//! The Waffles proxy: terminates MCP, authenticates, authorises, forwards, audits. The modules stand in the order in
//! which a request meets them.

pub mod app;
pub mod config;

pub mod listener;
pub mod server;

pub mod doors;
pub mod gateway;

pub mod bridge;
pub mod checks;
pub mod federation;
pub mod hub;

pub mod authn;
pub mod front;
pub mod limit;
pub mod listing;
pub mod permit;
pub mod session;
pub mod tasks;

pub mod flow;
pub mod shared;
pub mod stream;
pub mod upstream;

pub mod audit;
pub mod discovery;
mod durable;
pub mod enrolment;
pub mod health;
pub mod keys;
mod link;
pub mod metrics;
pub mod overload;
pub mod peers;
pub mod record;
pub mod reject;
mod sightings;
pub mod state;
