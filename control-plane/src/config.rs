//! Flags and environment, read once and checked as a whole: every mistake is told in one go.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use waffles_runtime::host::Origin;
use waffles_runtime::telemetry::{LogConfig, LogFormat, chain};

use crate::enrolment::{AuthorityFiles, CERTIFICATE_LIFE};
use crate::secrets::{SecretError, Secrets, is_placeholder};
use crate::store::DbConfig;

/// What to do, and how.
#[derive(Debug)]
pub struct Config {
    /// What to do.
    pub command: Command,
    /// Where files are kept.
    pub data_dir: PathBuf,
    /// The database.
    pub db: DbConfig,
    /// Redis, where there is one.
    pub redis_url: Option<SecretString>,
    /// Where to listen.
    pub listen: Listen,
    /// Names that callers may use for the REST port.
    pub public_hosts: Vec<String>,
    /// Pages of these may call the REST port.
    pub allowed_origins: Vec<Origin>,
    /// Files with secrets.
    pub secrets: SecretFiles,
    /// An authority from outside, instead of one of our own.
    pub authority: Option<AuthorityFiles>,
    /// How long a proxy's certificate is good.
    pub certificate_life: Duration,
    /// More API keys than this are not sent to proxies, which ask for those that they meet.
    pub keys_shipped_most: u64,
    /// Connections of one address to either door that have shown no proxy's certificate.
    pub connections_per_address: usize,
    /// How long audit events are kept; none for ever.
    pub audit_retention: Option<Duration>,
    /// How often a checkpoint of the audit trail is made.
    pub audit_checkpoint_every: Duration,
    /// Logs.
    pub log: LogConfig,
    /// How long a drain may take.
    pub grace: Duration,
    /// Print one line of JSON when ready.
    pub announce: bool,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Subcommand)]
pub enum Command {
    /// Serve until a signal (the default).
    #[default]
    Serve,
    /// Bring the database up to date, then end.
    Migrate,
    /// Give the admin a new one-time password and print it.
    AdminPassword,
    /// Print the OpenAPI document.
    Openapi,
    /// Tell proxies that a database restored from an older state is another one.
    NewLineage,
    /// Make a token that one proxy joins with within ten minutes, and print it.
    JoinToken {
        /// The group that the proxy will belong to.
        #[arg(long, default_value = waffles_core::proxy::DEFAULT_GROUP, value_name = "NAME")]
        group: String,
        /// Write it to this file, for its owner only, instead of printing it.
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Tie the database to another master key. Stop the control plane first.
    Rekey {
        /// The file with the new key; made when there is no such file.
        #[arg(long, value_name = "FILE")]
        new_master_key_file: PathBuf,
    },
    /// Print the authorities that the gRPC port is certified by, in PEM form.
    Ca,
}

/// Where to listen.
#[derive(Debug, Clone, Copy)]
pub struct Listen {
    /// REST.
    pub http: SocketAddr,
    /// Operators and proxies.
    pub grpc: SocketAddr,
    /// The admin port.
    pub admin: SocketAddr,
}

/// Files with secrets.
#[derive(Debug, Clone)]
pub struct SecretFiles {
    /// The master key.
    pub master_key: PathBuf,
    /// The master key itself, where it is not in a file.
    pub given: Option<SecretString>,
}

/// Everything that is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
#[error("the configuration is not valid:{}", .0.iter().map(|line| format!("\n  {line}")).collect::<String>())]
pub struct ConfigError(Vec<String>);

#[derive(Debug, Parser)]
#[command(
    name = "waffles-control-plane",
    version,
    about = "The control plane of Waffles: registry, identity, audit"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Debug, Args)]
struct Flags {
    /// Where the SQLite database and the secret files are kept.
    #[arg(
        long,
        env = "WAFFLES_DATA_DIR",
        default_value = "./waffles-data",
        value_name = "DIR",
        global = true
    )]
    data_dir: PathBuf,
    /// `postgres://…` or `sqlite://…` [default: a SQLite file in the data directory]
    #[arg(long, env = "WAFFLES_DATABASE_URL", hide_env_values = true, value_name = "URL", global = true)]
    database_url: Option<SecretString>,
    /// Connections to the database at the most.
    #[arg(long, env = "WAFFLES_DATABASE_CONNECTIONS", default_value_t = 10, value_name = "N", global = true)]
    database_connections: u32,
    /// How long to wait for a connection to the database.
    #[arg(long, env = "WAFFLES_DATABASE_WAIT", default_value = "1500ms", value_name = "TIME", global = true)]
    database_wait: String,
    /// How long the database may work on one statement.
    #[arg(
        long,
        env = "WAFFLES_DATABASE_STATEMENT_TIME",
        default_value = "10s",
        value_name = "TIME",
        global = true
    )]
    database_statement_time: String,
    /// The role that statements run as on Postgres [default: the name of the database and `_app`]
    #[arg(long, env = "WAFFLES_DATABASE_ROLE", value_name = "NAME", global = true)]
    database_role: Option<String>,
    /// Redis, for limits that replicas share.
    #[arg(long, env = "WAFFLES_REDIS_URL", hide_env_values = true, value_name = "URL", global = true)]
    redis_url: Option<SecretString>,
    /// Where REST listens; port 0 for any free one.
    #[arg(long, env = "WAFFLES_HTTP_ADDR", default_value_t = local(8081), value_name = "ADDR", global = true)]
    http_addr: SocketAddr,
    /// Where gRPC listens.
    #[arg(long, env = "WAFFLES_GRPC_ADDR", default_value_t = local(8082), value_name = "ADDR", global = true)]
    grpc_addr: SocketAddr,
    /// Where the admin port listens.
    #[arg(long, env = "WAFFLES_ADMIN_ADDR", default_value_t = local(9081), value_name = "ADDR", global = true)]
    admin_addr: SocketAddr,
    /// A name that callers may use for the REST port; may be given several times.
    #[arg(long, env = "WAFFLES_PUBLIC_HOST", value_delimiter = ',', value_name = "NAME", global = true)]
    public_host: Vec<String>,
    /// An origin, such as `https://console.example.com`, whose pages may call the REST port; may be given several times.
    #[arg(long, env = "WAFFLES_ALLOW_ORIGIN", value_delimiter = ',', value_name = "ORIGIN", global = true)]
    allow_origin: Vec<Origin>,
    /// The master key itself instead of a file: 32 random bytes in hexadecimal or Base64. Give it in the environment, since
    /// every user of a machine can see its flags.
    #[arg(
        long,
        env = "WAFFLES_MASTER_KEY",
        hide_env_values = true,
        value_name = "KEY",
        conflicts_with = "master_key_file",
        global = true
    )]
    master_key: Option<SecretString>,
    /// 32 random bytes in hexadecimal or Base64; made when there is no such file [default: master.key in the data directory]
    #[arg(long, env = "WAFFLES_MASTER_KEY_FILE", value_name = "FILE", global = true)]
    master_key_file: Option<PathBuf>,
    /// Certificate (PEM) of an authority from outside, which proxies and the gRPC port are certified by; others behind it
    /// are believed as well
    #[arg(long, env = "WAFFLES_CA_CERT_FILE", value_name = "FILE", requires = "ca_key_file", global = true)]
    ca_cert_file: Option<PathBuf>,
    /// Its private key (PEM, PKCS #8)
    #[arg(long, env = "WAFFLES_CA_KEY_FILE", value_name = "FILE", requires = "ca_cert_file", global = true)]
    ca_key_file: Option<PathBuf>,
    /// How long a proxy's certificate is good, 24 hours at the most.
    #[arg(
        long,
        env = "WAFFLES_PROXY_CERTIFICATE_LIFE",
        default_value = "24h",
        value_name = "TIME",
        global = true
    )]
    proxy_certificate_life: String,
    /// API keys that may be used, of all tenants: more than this many are not sent to every proxy any more. Proxies ask
    /// for those that they meet, and go on to do so until `new-lineage`
    #[arg(
        long,
        env = "WAFFLES_KEYS_SHIPPED_MOST",
        default_value_t = 10_000,
        value_name = "N",
        global = true
    )]
    keys_shipped_most: u64,
    /// Connections of one address to the REST port, and to the gRPC port without a proxy's certificate; further ones are
    /// closed. Raise it where many come from one address, as behind a load balancer
    #[arg(
        long,
        env = "WAFFLES_MAX_CONNECTIONS_PER_ADDRESS",
        default_value_t = 128,
        value_name = "N",
        global = true
    )]
    max_connections_per_address: usize,
    /// How many days audit events are kept [default: for ever]
    #[arg(long, env = "WAFFLES_AUDIT_RETENTION_DAYS", value_name = "DAYS", global = true)]
    audit_retention_days: Option<u32>,
    /// How often it is signed how far the audit trail has come: from then on it cannot be rewritten unnoticed.
    #[arg(
        long,
        env = "WAFFLES_AUDIT_CHECKPOINT_EVERY",
        default_value = "60s",
        value_name = "TIME",
        global = true
    )]
    audit_checkpoint_every: String,
    /// json or text.
    #[arg(long, env = "WAFFLES_LOG_FORMAT", default_value_t = LogFormat::Json, value_name = "FORMAT", global = true)]
    log_format: LogFormat,
    /// What to log, such as `info,waffles=debug`.
    #[arg(long, env = "WAFFLES_LOG", default_value = "info", value_name = "FILTER", global = true)]
    log: String,
    /// How long requests may take to end after a signal.
    #[arg(long, env = "WAFFLES_GRACE", default_value = "30s", value_name = "TIME", global = true)]
    grace: String,
    /// Print one line of JSON on standard output when ready.
    #[arg(long, env = "WAFFLES_ANNOUNCE", global = true)]
    announce: bool,
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

impl Config {
    /// Reads the command line and the environment. Ends the process for `--help` and for flags that clap refuses.
    pub fn read() -> Result<Self, ConfigError> {
        Self::check(Cli::parse())
    }

    /// Reads arguments, the program's name first.
    pub fn from_args<I, T>(args: I) -> Result<Self, ConfigError>
    where
        I: IntoIterator<Item = T>,
        T: Into<std::ffi::OsString> + Clone,
    {
        let cli = Cli::try_parse_from(args).map_err(|error| ConfigError(vec![error.to_string()]))?;
        Self::check(cli)
    }

    fn check(cli: Cli) -> Result<Self, ConfigError> {
        let Cli { command, flags } = cli;
        let mut wrong = Vec::new();
        let mut time = |flag: &str, text: &str, least: Duration, most: Duration| match duration(text) {
            Some(time) if (least..=most).contains(&time) => time,
            _ => {
                wrong.push(format!(
                    "--{flag}: {text:?} is not a time of {least:?} to {most:?}, such as `30s` or `1500ms`"
                ));
                least
            }
        };
        let (ms, hour) = (Duration::from_millis(1), Duration::from_secs(3600));
        let grace = time("grace", &flags.grace, Duration::ZERO, hour);
        let acquire_timeout = time("database-wait", &flags.database_wait, ms * 10, Duration::from_secs(60));
        let statement_timeout = time(
            "database-statement-time",
            &flags.database_statement_time,
            ms * 100,
            Duration::from_secs(600),
        );
        let certificate_life =
            time("proxy-certificate-life", &flags.proxy_certificate_life, ms * 4000, CERTIFICATE_LIFE);
        let audit_checkpoint_every =
            time("audit-checkpoint-every", &flags.audit_checkpoint_every, ms * 100, hour);
        let url = flags.database_url.unwrap_or_else(|| {
            // Within a URL these three would end the path or begin an escape.
            let path = flags.data_dir.join("control-plane.db").display().to_string();
            format!("sqlite://{}", path.replace('%', "%25").replace('?', "%3F").replace('#', "%23")).into()
        });
        let scheme = url.expose_secret().split_once(':').map_or("", |(scheme, _)| scheme);
        if !matches!(scheme, "postgres" | "postgresql" | "sqlite") {
            wrong.push("--database-url: must begin with `postgres://` or `sqlite://`".into());
        }
        if let Some(redis) = &flags.redis_url
            && !["redis://", "rediss://", "unix://"]
                .iter()
                .any(|scheme| redis.expose_secret().starts_with(scheme))
        {
            wrong.push("--redis-url: must begin with `redis://` or `rediss://`".into());
        }
        for (flag, url) in [("database", Some(&url)), ("redis", flags.redis_url.as_ref())] {
            if url.is_some_and(has_placeholder) {
                wrong.push(format!(
                    "--{flag}-url: its password is one that stands in examples; give the account another one"
                ));
            }
        }
        // Of a file that is not there yet there is nothing to say.
        let file = flags.master_key_file.clone().unwrap_or_else(|| flags.data_dir.join("master.key"));
        let master = match &flags.master_key {
            Some(given) => Secrets::given(given).err(),
            None if file.exists() => Secrets::load(&file).err(),
            None => None,
        };
        wrong.extend(master.map(|error| chain(&error).to_string()));
        // Listeners and the publisher each need one beside those that serve requests.
        if !(3..=1000).contains(&flags.database_connections) {
            wrong.push("--database-connections: must be 3 to 1000".into());
        }
        if flags
            .database_role
            .as_ref()
            .is_some_and(|role| !(1..=63).contains(&role.len()) || role.contains('\0'))
        {
            wrong.push("--database-role: must have 1 to 63 bytes and no NUL".into());
        }
        if flags.audit_retention_days == Some(0) {
            wrong.push(
                "--audit-retention-days: must be at least 1; leave it out to keep events for ever".into(),
            );
        }
        let fixed = [("http", flags.http_addr), ("grpc", flags.grpc_addr), ("admin", flags.admin_addr)];
        for (i, (name, addr)) in fixed.iter().enumerate() {
            if let Some((other, _)) = fixed.iter().skip(i + 1).find(|(_, o)| o == addr && addr.port() != 0) {
                wrong.push(format!("--{name}-addr and --{other}-addr: are both {addr}"));
            }
        }
        if !wrong.is_empty() {
            return Err(ConfigError(wrong));
        }
        let beside = |file: Option<PathBuf>, name: &str| file.unwrap_or_else(|| flags.data_dir.join(name));
        Ok(Self {
            command: command.unwrap_or_default(),
            db: DbConfig {
                url,
                max_connections: flags.database_connections,
                acquire_timeout,
                statement_timeout,
                role: flags.database_role,
            },
            redis_url: flags.redis_url,
            listen: Listen { http: flags.http_addr, grpc: flags.grpc_addr, admin: flags.admin_addr },
            public_hosts: flags.public_host,
            allowed_origins: flags.allow_origin,
            secrets: SecretFiles {
                master_key: beside(flags.master_key_file, "master.key"),
                given: flags.master_key,
            },
            authority: flags
                .ca_cert_file
                .zip(flags.ca_key_file)
                .map(|(certificate, key)| AuthorityFiles { certificate, key }),
            certificate_life,
            keys_shipped_most: flags.keys_shipped_most,
            connections_per_address: flags.max_connections_per_address.max(1),
            audit_retention: flags
                .audit_retention_days
                .map(|days| Duration::from_secs(u64::from(days) * 86_400)),
            audit_checkpoint_every,
            log: LogConfig { format: flags.log_format, filter: flags.log },
            grace,
            announce: flags.announce,
            data_dir: flags.data_dir,
        })
    }

    /// The effective configuration, without secrets: logged at start and shown on the admin port.
    pub fn shown(&self) -> Value {
        json!({
            "data_dir": self.data_dir,
            "database": {
                "url": without_password(&self.db.url),
                "connections": self.db.max_connections,
                "wait_ms": millis(self.db.acquire_timeout),
                "statement_time_ms": millis(self.db.statement_timeout),
                "role": self.db.role,
            },
            "redis_url": self.redis_url.as_ref().map(without_password),
            "http_addr": self.listen.http,
            "grpc_addr": self.listen.grpc,
            "admin_addr": self.listen.admin,
            "public_hosts": self.public_hosts,
            "allowed_origins": self.allowed_origins.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "master_key_file": self.secrets.master_key,
            "ca_cert_file": self.authority.as_ref().map(|files| &files.certificate),
            "proxy_certificate_life_ms": millis(self.certificate_life),
            "keys_shipped_most": self.keys_shipped_most,
            "max_connections_per_address": self.connections_per_address,
            "audit_retention_days": self.audit_retention.map(|time| time.as_secs() / 86_400),
            "audit_checkpoint_every_ms": millis(self.audit_checkpoint_every),
            "log": { "format": self.log.format, "filter": self.log.filter },
            "grace_ms": millis(self.grace),
        })
    }
}

impl SecretFiles {
    /// Reads the master key, or makes it.
    pub fn load(&self) -> Result<Secrets, SecretError> {
        self.given.as_ref().map_or_else(|| Secrets::load(&self.master_key), Secrets::given)
    }
}

/// Whether a URL holds a password that is none.
fn has_placeholder(url: &SecretString) -> bool {
    let Ok(url) = url::Url::parse(url.expose_secret()) else { return false };
    let queried = url.query_pairs().find(|(name, _)| name == "password").map(|(_, value)| value.into_owned());
    url.password().map(str::to_owned).or(queried).is_some_and(|password| is_placeholder(&password))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A URL as it may be shown: passwords hide in the user information and in the query.
fn without_password(url: &SecretString) -> String {
    match url::Url::parse(url.expose_secret()) {
        Ok(mut url) => {
            if url.password().is_some() && url.set_password(Some("***")).is_err() {
                return "[hidden]".into();
            }
            url.set_query(None);
            url.to_string()
        }
        Err(_) => "[hidden]".into(),
    }
}

/// A number and a unit: `ms`, `s`, `m` or `h`.
fn duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(unit_at)?;
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(args: &[&str]) -> Result<Config, ConfigError> {
        Config::from_args([&["waffles-control-plane"], args].concat())
    }

    #[test]
    fn without_flags_everything_is_beside_the_data() {
        let config = config(&["--data-dir", "/tmp/a b%"]).unwrap();
        assert_eq!(config.command, Command::Serve);
        assert_eq!(config.db.url.expose_secret(), "sqlite:///tmp/a b%25/control-plane.db");
        assert_eq!(config.secrets.master_key, PathBuf::from("/tmp/a b%/master.key"));
        assert_eq!(config.grace, Duration::from_secs(30));
    }

    #[test]
    fn every_mistake_is_told_in_one_go() {
        let error = config(&[
            "--grace",
            "soon",
            "--database-url",
            "mysql://x",
            "--database-connections",
            "1",
            "--redis-url",
            "x",
            "--http-addr",
            "127.0.0.1:9",
            "--grpc-addr",
            "127.0.0.1:9",
            "migrate",
        ])
        .unwrap_err()
        .to_string();
        for flag in ["--grace", "--database-url", "--database-connections", "--redis-url", "--http-addr"] {
            assert!(error.contains(flag), "{flag} is missing in {error}");
        }
    }

    #[test]
    fn a_secret_that_is_none_is_refused_by_its_name_and_all_of_them_at_once() {
        let zeros = "00".repeat(32);
        let error = config(&[
            "--database-url",
            "postgres://waffles:changeme@h/db",
            "--redis-url",
            "redis://:password@h",
            "--master-key",
            &zeros,
        ])
        .unwrap_err()
        .to_string();
        for name in ["--database-url", "--redis-url", "WAFFLES_MASTER_KEY"] {
            assert!(error.contains(name), "{name} is missing in {error}");
        }
        assert!(!error.contains("changeme") && !error.contains(&zeros), "{error}");
    }

    #[test]
    fn what_is_shown_holds_no_password() {
        let config = config(&["--database-url", "postgres://u:hunter2@h/db?password=hunter3"]).unwrap();
        let shown = config.shown().to_string();
        assert!(shown.contains("postgres://u:***@h/db") && !shown.contains("hunter"), "{shown}");
        assert!(!format!("{config:?}").contains("hunter"));
    }

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(duration("1500ms"), Some(Duration::from_millis(1500)));
        assert_eq!(duration("2h"), Some(Duration::from_secs(7200)));
        for bad in ["", "5", "s", "-1s", "1 s", "99999999999999999999s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
