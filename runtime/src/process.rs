//! What the kernel says about this process, read from `/proc/self` when metrics are scraped, and how many files it may open.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Linux reports processor time to user space in hundredths of a second on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;

/// The `process_*` families.
#[derive(Debug)]
pub(crate) struct Process {
    started: f64,
}

impl Process {
    pub(crate) fn new() -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: started.as_secs_f64() }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut write =
            |name: &str, help: &str, metric: &dyn DynMetric| metric.write(&mut encoder, name, help);
        write(
            "process_start_time_seconds",
            "Start of the process, seconds since 1970",
            &ConstGauge::new(self.started),
        )?;
        write("process_task_panics", "Tasks that panicked", &ConstCounter::new(crate::task::panics()))?;
        // Where /proc is not to be had, the families are absent rather than zero.
        if let Some(seconds) = cpu_seconds() {
            write("process_cpu_seconds", "Processor time, user and system", &ConstCounter::new(seconds))?;
        }
        if let Some(bytes) = resident_bytes() {
            write("process_resident_memory_bytes", "Resident memory", &ConstGauge::new(bytes))?;
        }
        if let Some(count) = open_fds() {
            write("process_open_fds", "Open file descriptors", &ConstGauge::new(count))?;
        }
        if let Some(count) = max_fds() {
            write("process_max_fds", "Limit of open file descriptors", &ConstGauge::new(count))?;
        }
        if let Some(count) = status("Threads:") {
            write("process_threads", "Threads", &ConstGauge::new(count))?;
        }
        Ok(())
    }
}

/// Lets one closure write metrics of several types.
trait DynMetric {
    fn write(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
    ) -> Result<(), std::fmt::Error>;
}

impl<M: EncodeMetric> DynMetric for M {
    fn write(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
    ) -> Result<(), std::fmt::Error> {
        let metric = encoder.encode_descriptor(name, help, None, self.metric_type())?;
        self.encode(metric)
    }
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in brackets and may hold anything, so count behind it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

fn resident_bytes() -> Option<i64> {
    status("VmRSS:").map(|kibibytes| kibibytes * 1024)
}

fn open_fds() -> Option<i64> {
    let count = i64::try_from(fs::read_dir("/proc/self/fd").ok()?.count()).ok()?;
    // One of them is the directory just read.
    Some(count - 1)
}

/// Processor time that the calling thread has had.
#[must_use]
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Lets the process open as many files as its hard limit permits, and says how many that is. The soft limit is there for
/// programs that cannot count beyond 1024.
pub fn raise_file_limit() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let soft = limit.current;
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::debug!(%error, "the limit of open files stays as it is");
            return soft;
        }
    }
    limit.current
}

pub(crate) fn max_fds() -> Option<i64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn status(key: &str) -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_plausible_numbers() {
        assert!(cpu_seconds().unwrap() >= 0.0);
        assert!(resident_bytes().unwrap() > 100_000);
        assert!(open_fds().unwrap() >= 3);
        assert!(max_fds().unwrap() >= open_fds().unwrap());
        assert!(status("Threads:").unwrap() >= 1);
    }
}
