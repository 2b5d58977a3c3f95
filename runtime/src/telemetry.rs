//! Logs on standard error and metrics as OpenMetrics text. Log fields have dotted names
//! (`server.name`, `request.id`); never a token, an argument's content or a result's.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::process::Process;

/// The media type of [`Metrics::encode`].
pub const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

impl std::str::FromStr for LogFormat {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        match text {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(UnknownFormat),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Json => "json",
            Self::Text => "text",
        })
    }
}

/// Neither `json` nor `text`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a log format is json or text")]
pub struct UnknownFormat;

/// What to log and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// JSON or text.
    pub format: LogFormat,
    /// Directives such as `info,hyper=warn`.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Json, filter: "info".to_owned() }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter makes no sense.
    #[error("log filter {filter:?} is not valid; an example is `info,hyper=warn`")]
    Filter {
        /// As given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Called twice.
    #[error("logging is already set up")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Sends log lines to standard error, panics included; once a process.
///
/// # Errors
/// When the filter is not valid or a logger is set already.
pub fn init(config: &LogConfig) -> Result<(), InitError> {
    let filter = EnvFilter::try_new(&config.filter)
        .map_err(|source| InitError::Filter { filter: config.filter.clone(), source })?;
    // A closed standard error must not take the process with it, which complaining there would.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    match config.format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).finish().try_init()?,
        LogFormat::Text => builder.finish().try_init()?,
    }
    // The default hook would put plain text between the JSON lines. The message is logged where the
    // panic is caught; this adds the place.
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string);
        tracing::error!(panic.location = location, "panic");
    }));
    Ok(())
}

/// Prints an error and its causes on one line: `what: why: why that`.
#[must_use]
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl fmt::Display + 'a {
    Chain(error)
}

struct Chain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// The metrics of this process; cheap to clone. Carries the `process_*` families from the start.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// With the families of the process itself.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process::new()));
        Self { registry: Arc::new(Mutex::new(registry)) }
    }

    /// Lets a program enter its families: `metrics.register(|registry| ...)`.
    pub fn register<R>(&self, enter: impl FnOnce(&mut Registry) -> R) -> R {
        enter(&mut self.registry.lock())
    }

    /// All families as OpenMetrics text.
    ///
    /// # Errors
    /// When a family cannot be written.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry.lock())?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_chain_prints_every_cause_once() {
        let error = Outer(std::io::Error::other("port taken"));
        assert_eq!(chain(&error).to_string(), "cannot start: port taken");
    }

    #[test]
    fn metrics_show_the_process_and_what_was_registered() {
        let metrics = Metrics::new();
        let calls = Counter::<u64>::default();
        metrics.register(|registry| registry.register("waffles_calls", "Calls.", calls.clone()));
        calls.inc();
        let text = metrics.encode().unwrap();
        for name in [
            "waffles_calls_total 1",
            "process_resident_memory_bytes ",
            "process_open_fds ",
            "process_cpu_seconds_total ",
            "process_start_time_seconds ",
            "process_task_panics_total ",
        ] {
            assert!(text.contains(&format!("\n{name}")), "{name} is missing in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_bad_filter_is_refused_by_name() {
        let config = LogConfig { filter: "info,=,=".to_owned(), ..LogConfig::default() };
        let error = init(&config).unwrap_err();
        assert!(error.to_string().contains("info,=,="), "{error}");
    }
}
