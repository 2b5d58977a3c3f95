//! A program that runs under watch: found, started, heard, stopped, and its log shown when it fails.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{ChildStdout, Command};
use tokio::time::Instant;

use crate::failure::Failure;
use crate::output::{clean_lines, note};

/// How long a program may take to say that it is ready.
const START_LIMIT: Duration = Duration::from_secs(60);
/// After how long, and how often, a wait is explained.
const NOTICE: Duration = Duration::from_secs(4);
/// The longest announcement that is read.
const LINE_LIMIT: u64 = 64 * 1024;
/// A log that is larger than this is put aside at the next start.
const LOG_LIMIT: u64 = 16 * 1024 * 1024;
/// How much of a log is shown when its program failed.
const TAIL_LINES: usize = 10;
const TAIL_BYTES: u64 = 16 * 1024;

/// Finds a program beside this one, else on the path.
pub(crate) fn find(program: &str) -> anyhow::Result<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(program)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join(program));
    let found = beside.into_iter().chain(on_path).find(|candidate| candidate.is_file());
    found.ok_or_else(|| {
        Failure::failed(format!("cannot find {program}, neither beside wafflectl nor on the path"))
            .next("Build all of Waffles with `make build`, or install the three programs in one folder.")
            .into()
    })
}

/// What is run, and where its log goes.
pub(crate) struct Program {
    /// The name in messages.
    pub(crate) name: String,
    /// The file.
    pub(crate) path: PathBuf,
    /// Its arguments.
    pub(crate) args: Vec<OsString>,
    /// Settings that must not stand in the list of processes, since they hold passwords.
    pub(crate) secrets: Vec<(&'static str, Option<OsString>)>,
    /// Its standard error.
    pub(crate) log: PathBuf,
}

impl Program {
    /// Starts it, in a process group of its own: a Ctrl-C at the terminal reaches only wafflectl, which then
    /// stops its children in the right order.
    pub(crate) fn start(self) -> anyhow::Result<Child> {
        let mut command = self.command();
        let (log, start) = open_log(&self.log)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        command.process_group(0).kill_on_drop(true);
        let mut process = command.spawn().with_context(|| format!("cannot start {}", self.path.display()))?;
        let stdout = process.stdout.take().map(BufReader::new);
        Ok(Child { name: self.name, log: Log { path: self.log, start }, process, stdout })
    }

    /// Runs it to its end and gives back what it printed.
    pub(crate) async fn output(self) -> anyhow::Result<String> {
        let mut command = self.command();
        let (log, start) = open_log(&self.log)?;
        command.stdin(Stdio::null()).stderr(log).kill_on_drop(true);
        let output = tokio::time::timeout(START_LIMIT, command.output()).await;
        let output = output.with_context(|| format!("{} did not end", self.name))??;
        if !output.status.success() {
            return Err(ended(&self.name, output.status, &Log { path: self.log, start }).into());
        }
        String::from_utf8(output.stdout).with_context(|| format!("{} printed no text", self.name))
    }

    fn command(&self) -> Command {
        let mut command = tied(self.path.as_os_str(), &self.args);
        for (name, value) in &self.secrets {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }
}

/// This program itself. On Linux by the kernel's own link, which still works when an upgrade has replaced the file.
pub(crate) fn own() -> std::io::Result<PathBuf> {
    let link = Path::new("/proc/self/exe");
    if link.exists() { Ok(link.to_owned()) } else { std::env::current_exe() }
}

/// On Linux a program is started by way of this one (`become_program`), so that it ends with it, however
/// that happens.
pub(crate) fn tied(program: &OsStr, args: &[OsString]) -> Command {
    match own() {
        // The executable of a unit test is another one.
        Ok(own) if cfg!(all(target_os = "linux", not(test))) => {
            let mut command = Command::new(own);
            command
                .arg0("wafflectl")
                .arg("child")
                .arg(std::process::id().to_string())
                .arg(program)
                .args(args);
            command
        }
        _ => {
            let mut command = Command::new(program);
            command.args(args);
            command
        }
    }
}

/// Asks the kernel to end this process when its parent ends, then becomes the program.
pub(crate) fn become_program(parent: i32, program: &[OsString]) -> anyhow::Result<()> {
    let (path, args) = program.split_first().context("no program is given")?;
    #[cfg(target_os = "linux")]
    {
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        // The parent may have ended before the kernel was asked.
        if rustix::process::getppid().map(Pid::as_raw_nonzero).is_none_or(|pid| pid.get() != parent) {
            anyhow::bail!("the parent has ended");
        }
    }
    let error = std::process::Command::new(path).args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", OsStr::to_string_lossy(path)))
}

/// A running program.
pub(crate) struct Child {
    /// The name in messages.
    pub(crate) name: String,
    log: Log,
    process: tokio::process::Child,
    // Kept to the end: a program whose standard output is closed could stumble over it.
    stdout: Option<BufReader<ChildStdout>>,
}

impl Child {
    /// Waits for the one line of JSON by which the program says that it is ready. A wait that a person would
    /// notice is explained with the last line of the log.
    pub(crate) async fn announcement<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let mut line = String::new();
        let stdout = self.stdout.as_mut().context("the program's output is not read")?;
        let mut limited = stdout.take(LINE_LIMIT);
        let mut read = pin!(limited.read_line(&mut line));
        let end = Instant::now() + START_LIMIT;
        let count = loop {
            if let Ok(count) = tokio::time::timeout(NOTICE, &mut read).await {
                break count.with_context(|| format!("cannot hear {}", self.name))?;
            }
            if Instant::now() >= end {
                let message = format!("{} is not ready after {START_LIMIT:?}", self.name);
                return Err(self.log.explain(message).into());
            }
            let last = self.log.tail(1).unwrap_or_default();
            note(&format!("Waiting for {}: {}", self.name, last.trim()));
        };
        match count {
            0 => Err(self.died().await),
            _ => serde_json::from_str(&line)
                .with_context(|| format!("{} announced something else than JSON", self.name)),
        }
    }

    /// The first line that it prints, however long it takes; none where it ends without one.
    pub(crate) async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.stdout.as_mut()?.take(LINE_LIMIT).read_line(&mut line).await;
        read.ok().filter(|count| *count > 0).map(|_| line)
    }

    /// Waits until the program ends, which it should not, and says why.
    pub(crate) async fn died(&mut self) -> anyhow::Error {
        match self.process.wait().await {
            Ok(status) => ended(&self.name, status, &self.log).into(),
            Err(error) => anyhow::Error::new(error).context(format!("cannot watch {}", self.name)),
        }
    }

    /// Asks it to end, waits, and ends it after that.
    pub(crate) async fn stop(&mut self, limit: Duration) {
        let pid = self.process.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else { return };
        // It may have ended in this moment, which is what is asked for.
        kill_process(pid, Signal::TERM).ok();
        if tokio::time::timeout(limit, self.process.wait()).await.is_err() {
            note(&format!("{} did not end within {limit:?} and is killed.", self.name));
            self.kill().await;
        }
    }

    /// Ends it at once.
    pub(crate) async fn kill(&mut self) {
        drop(self.process.kill().await);
    }
}

/// A log, and where in it the part of the present program begins.
struct Log {
    path: PathBuf,
    start: u64,
}

fn ended(name: &str, status: ExitStatus, log: &Log) -> Failure {
    log.explain(format!("{name} has ended ({status})"))
}

fn open_log(path: &Path) -> anyhow::Result<(File, u64)> {
    if std::fs::metadata(path).is_ok_and(|file| file.len() > LOG_LIMIT) {
        std::fs::rename(path, path.with_extension("log.1"))
            .with_context(|| format!("cannot put {} aside", path.display()))?;
    }
    let open = || {
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        let start = log.metadata()?.len();
        std::io::Result::Ok((log, start))
    };
    open().with_context(|| format!("cannot open {}", path.display()))
}

impl Log {
    /// A failure of the program, with the end of its log.
    fn explain(&self, message: String) -> Failure {
        let tail = self.tail(TAIL_LINES).unwrap_or_default();
        let tail = if tail.is_empty() { tail } else { format!("; the end of its log:\n{tail}") };
        Failure::failed(format!("{message}{tail}")).next(format!("Its log: {}", self.path.display()))
    }

    fn tail(&self, most: usize) -> std::io::Result<String> {
        let mut file = File::open(&self.path)?;
        let start = file.metadata()?.len().saturating_sub(TAIL_BYTES).max(self.start);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let skipped = lines.len().saturating_sub(most);
        let lines: Vec<String> =
            lines.into_iter().skip(skipped).map(|line| format!("    {}", readable(line))).collect();
        Ok(clean_lines(&lines.join("\n")))
    }
}

/// A line of a log in JSON as a person reads it: level, message, and the error where there is one.
fn readable(line: &str) -> String {
    let Ok(Value::Object(fields)) = serde_json::from_str(line) else { return line.to_owned() };
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    let (Some(level), Some(message)) = (text("level"), text("message")) else { return line.to_owned() };
    let error = text("error").map(|error| format!(": {error}")).unwrap_or_default();
    format!("{level:<5} {message}{error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_json_is_made_readable_and_any_other_is_kept() {
        let line = r#"{"level":"WARN","message":"cannot connect","error":"refused","target":"x"}"#;
        assert_eq!(readable(line), "WARN  cannot connect: refused");
        assert_eq!(readable("error: {"), "error: {");
    }

    #[test]
    fn only_the_part_of_this_start_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        std::fs::write(&path, "old\n").unwrap();
        let (_file, start) = open_log(&path).unwrap();
        std::fs::write(&path, "old\nnew\n").unwrap();
        assert_eq!(Log { path, start }.tail(9).unwrap(), "    new");
    }
}
