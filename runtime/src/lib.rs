//! What any Waffles process needs, and no domain: a drain, named tasks, telemetry, an admin port,
//! TLS, listeners, whose `Host` and `Origin` they take, and the one outbound connector. Both programs behave alike because both use these.

pub mod admin;
pub mod drain;
pub mod host;
pub mod listen;
pub mod memory;
pub mod outbound;
pub mod process;
pub mod task;
pub mod telemetry;
pub mod tls;
