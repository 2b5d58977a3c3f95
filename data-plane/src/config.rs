//! The flags and environment of the proxy, and nothing else: everything about servers and people comes from the
//! control plane.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser};
use ipnet::IpNet;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use url::Url;
use waffles_runtime::host::Origin;
use waffles_runtime::outbound::Ports;
use waffles_runtime::telemetry::{LogConfig, LogFormat};

/// The Waffles proxy: one MCP door to all registered servers.
#[derive(Debug, Clone, Parser)]
#[command(name = "waffles-data-plane", version)]
pub struct Config {
    /// gRPC address of the control plane
    #[arg(long, env = "WAFFLES_CONTROL_PLANE", default_value = "https://127.0.0.1:8082")]
    pub control_plane: String,

    /// File with a token (`wfj_…`, of `wafflectl proxy enroll`) that this proxy joins with, once; looked at whenever it has
    /// no certificate that is good. It says which group the proxy belongs to
    #[arg(long, env = "WAFFLES_JOIN_TOKEN_FILE", value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,

    /// Where the last good configuration and the audit spool are kept
    #[arg(long, env = "WAFFLES_DATA_DIR", default_value = "./waffles-data/proxy")]
    pub data_dir: PathBuf,

    /// Name of this proxy; the host's by default
    #[arg(long, env = "WAFFLES_PROXY_NAME")]
    pub name: Option<String>,

    /// Address for MCP clients; port 0 means any free one
    #[arg(long, env = "WAFFLES_MCP_ADDR", default_value = "127.0.0.1:8080")]
    pub mcp_addr: SocketAddr,

    /// Address of the admin port
    #[arg(long, env = "WAFFLES_ADMIN_ADDR", default_value = "127.0.0.1:9080")]
    pub admin_addr: SocketAddr,

    /// Threads that serve calls; one for each core by default
    #[arg(long, env = "WAFFLES_WORKERS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,

    /// Certificate chain (PEM) for the MCP door; read again when it changes
    #[arg(long, env = "WAFFLES_TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// Private key (PEM) of the certificate
    #[arg(long, env = "WAFFLES_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// A host name that clients reach this proxy by; may be given several times
    #[arg(long, env = "WAFFLES_PUBLIC_HOST", value_delimiter = ',')]
    pub public_host: Vec<String>,

    /// An origin, such as `https://console.example.com`, whose pages may call the MCP port; may be given several times
    #[arg(long, env = "WAFFLES_ALLOW_ORIGIN", value_delimiter = ',', value_name = "ORIGIN")]
    pub allow_origin: Vec<Origin>,

    /// Where other proxies of the group reach this one's MCP address, such as `http://10.0.0.7:8080`; by default the
    /// address itself, unless it stands for every interface
    #[arg(long, env = "WAFFLES_PEER_URL")]
    pub peer_url: Option<String>,

    /// Redis (redis://…) in which limits are counted by all proxies together; without it each counts for itself
    #[arg(long, env = "WAFFLES_REDIS_URL", hide_env_values = true, value_name = "URL")]
    pub redis_url: Option<SecretString>,

    /// Let registered servers have loopback and private addresses
    #[arg(long, env = "WAFFLES_ALLOW_PRIVATE_UPSTREAMS", num_args = 0..=1, default_value_t = false,
          default_missing_value = "true", action = ArgAction::Set)]
    pub allow_private_upstreams: bool,

    /// A loopback, private or shared network, such as `10.20.0.0/16`, that registered servers may be in; may be given
    /// several times
    #[arg(long, env = "WAFFLES_ALLOW_UPSTREAM_CIDR", value_delimiter = ',', value_name = "CIDR")]
    pub allow_upstream_cidr: Vec<IpNet>,

    /// A network that registered servers are never in, whatever is allowed, such as your database's; may be given
    /// several times
    #[arg(long, env = "WAFFLES_DENY_UPSTREAM_CIDR", value_delimiter = ',', value_name = "CIDR")]
    pub deny_upstream_cidr: Vec<IpNet>,

    /// Ports that registered servers may have
    #[arg(long, env = "WAFFLES_OUTBOUND_PORTS", default_value_t = Ports::default(), value_name = "PORTS")]
    pub outbound_ports: Ports,

    /// Where this proxy stands, such as `eu-1`: endpoints of servers that are in the same zone are preferred
    #[arg(long, env = "WAFFLES_ZONE")]
    pub zone: Option<String>,

    /// Most entries on one page of a federated list
    #[arg(long, env = "WAFFLES_LIST_PAGE_SIZE", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub list_page_size: u32,

    /// Most client connections
    #[arg(long, env = "WAFFLES_MAX_CONNECTIONS", default_value_t = 20_000)]
    pub max_connections: usize,

    /// Most client connections from one address
    #[arg(long, env = "WAFFLES_MAX_CONNECTIONS_PER_ADDRESS", default_value_t = 10_000)]
    pub max_connections_per_address: usize,

    /// Most client connections from one address that have not shown a good credential yet
    #[arg(long, env = "WAFFLES_MAX_STRANGERS_PER_ADDRESS", default_value_t = 128)]
    pub max_strangers_per_address: usize,

    /// Most calls in flight; beyond that, new ones are turned away
    #[arg(long, env = "WAFFLES_MAX_IN_FLIGHT", default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_in_flight: u32,

    /// How late a thread may be for long; beyond that, part of the calls is turned away
    #[arg(long, env = "WAFFLES_MAX_LAG", default_value = "7ms", value_name = "TIME",
          value_parser = humantime::parse_duration)]
    pub max_lag: Duration,

    /// Most memory, such as 256MiB; by default what the control group of the process may have, if anything
    #[arg(long, env = "WAFFLES_MEMORY_LIMIT", value_name = "BYTES", value_parser = parse_bytes)]
    pub memory_limit: Option<u64>,

    /// Most bytes of the audit spool on disk
    #[arg(long, env = "WAFFLES_SPOOL_MAX_BYTES", default_value_t = 1 << 30)]
    pub spool_max_bytes: u64,

    /// Most bytes of audit records in memory, while the disk takes none
    #[arg(long, env = "WAFFLES_SPOOL_MEMORY_BYTES", default_value_t = 64 << 20)]
    pub spool_memory_bytes: u64,

    /// How long running calls may take after SIGTERM
    #[arg(long, env = "WAFFLES_GRACE", default_value = "30s", value_name = "TIME",
          value_parser = humantime::parse_duration)]
    pub grace: Duration,

    /// How long new calls are still taken after SIGTERM, for load balancers to notice; no longer than half a second where
    /// nobody is connected
    #[arg(long, env = "WAFFLES_LINGER", default_value = "5s", value_name = "TIME",
          value_parser = humantime::parse_duration)]
    pub linger: Duration,

    /// Format of the log on stderr: json or text
    #[arg(long, env = "WAFFLES_LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,

    /// What is logged, such as `info` or `waffles_data_plane=debug`
    #[arg(long, env = "WAFFLES_LOG", default_value = "info")]
    pub log: String,

    /// Print one JSON line with the real addresses on stdout when the sockets are open
    #[arg(long, env = "WAFFLES_ANNOUNCE", num_args = 0..=1, default_value_t = false,
          default_missing_value = "true", action = ArgAction::Set)]
    pub announce: bool,
}

impl Config {
    /// How to log.
    pub fn log(&self) -> LogConfig {
        LogConfig { format: self.log_format, filter: self.log.clone() }
    }

    /// How many threads serve calls.
    pub fn worker_count(&self) -> usize {
        self.workers.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from)
    }

    /// What is in force, for the log and the admin port. Holds no secret: those are in files.
    pub fn effective(&self) -> Value {
        json!({
            "control_plane": self.control_plane,
            "join_token_file": self.join_token_file,
            "data_dir": self.data_dir,
            "name": self.name,
            "mcp_addr": self.mcp_addr,
            "admin_addr": self.admin_addr,
            "workers": self.worker_count(),
            "tls_cert": self.tls_cert,
            "public_host": self.public_host,
            "allow_origin": self.allow_origin.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "peer_url": self.peer_url,
            "redis_url": self.redis_url.as_ref().map(without_password),
            "zone": self.zone,
            "list_page_size": self.list_page_size,
            "allow_private_upstreams": self.allow_private_upstreams,
            "allow_upstream_cidr": self.allow_upstream_cidr,
            "deny_upstream_cidr": self.deny_upstream_cidr,
            "outbound_ports": self.outbound_ports.to_string(),
            "max_connections": self.max_connections,
            "max_connections_per_address": self.max_connections_per_address,
            "max_strangers_per_address": self.max_strangers_per_address,
            "max_in_flight": self.max_in_flight,
            "max_lag_ms": self.max_lag.as_millis(),
            "memory_limit": self.memory_limit,
            "spool_max_bytes": self.spool_max_bytes,
            "spool_memory_bytes": self.spool_memory_bytes,
            "grace_seconds": self.grace.as_secs(),
            "linger_seconds": self.linger.as_secs(),
            "log": self.log,
        })
    }
}

/// An address without what it may hold of a password.
fn without_password(url: &SecretString) -> String {
    let Ok(mut url) = Url::parse(url.expose_secret()) else { return "not a URL".to_owned() };
    // Fails only for URLs that cannot have one.
    if url.password().is_some() && url.set_password(Some("***")).is_err() {
        return "hidden".to_owned();
    }
    url.set_query(None);
    url.to_string()
}

/// The least memory that a proxy can do anything useful with.
const LEAST_MEMORY: u64 = 16 << 20;

/// Reads a number of bytes, with or without a unit of 1024.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text.strip_prefix(digits).unwrap_or_default().trim();
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" | "Ki" => 1 << 10,
        "MiB" | "Mi" => 1 << 20,
        "GiB" | "Gi" => 1 << 30,
        _ => return Err("write a number of bytes, such as 256MiB or 2GiB".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "write a number of bytes, such as 256MiB".to_owned())?;
    let bytes = number.checked_mul(factor).ok_or("that is more than there can be")?;
    if bytes < LEAST_MEMORY { Err("a proxy needs 16MiB at the least".to_owned()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units_of_1024() {
        for (text, bytes) in
            [("268435456", 256 << 20), ("256MiB", 256 << 20), ("256Mi", 256 << 20), ("2 GiB", 2 << 30)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "256MB", "1.5GiB", "-1", "1KiB", "99999999999GiB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
