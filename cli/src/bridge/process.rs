//! One run of the program: its three streams, and its end. Lines go in and out; what they say is left to others. What
//! it writes to standard error goes to the log line by line and is never read for meaning.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::output::{clean, note};
use crate::up::child::tied;

/// The longest line that a program may write. A longer one ends it: what follows could not be told from its rest.
const LINE_LIMIT: usize = 16 << 20;
/// The longest line of standard error that is logged; the rest of it is left out.
const LOG_LINE: usize = 8 << 10;
/// Lines that wait to be written. A sender waits while it is full.
const QUEUE: usize = 64;
/// How long a program may take to end after its input was closed, and again after SIGTERM.
const END_TIME: Duration = Duration::from_secs(2);
/// How long the output of a program that has ended may go on, where its own children hold it open.
const REST_TIME: Duration = Duration::from_millis(500);

/// What is run. Its environment may hold secrets, so it does not print.
#[derive(Clone, Default)]
pub(crate) struct Command {
    /// The program, found on the path where it is no path.
    pub(crate) program: OsString,
    /// Its arguments.
    pub(crate) args: Vec<OsString>,
    /// More environment variables.
    pub(crate) env: BTreeMap<String, String>,
    /// Where it runs; none is here.
    pub(crate) cwd: Option<PathBuf>,
}

/// A running program, as its users hold it.
#[derive(Debug)]
pub(super) struct Process {
    /// Lines for its standard input.
    pub(super) stdin: mpsc::Sender<String>,
    /// Ends it: its input is closed, then it is asked to end, then it is killed.
    pub(super) stop: CancellationToken,
    /// The process is gone.
    pub(super) gone: CancellationToken,
    /// It ended without being told to.
    pub(super) unasked: CancellationToken,
}

/// What a running program says.
#[derive(Debug)]
pub(super) struct Lines {
    reader: BufReader<ChildStdout>,
    gone: CancellationToken,
    stop: CancellationToken,
    unasked: CancellationToken,
    label: String,
}

impl Command {
    /// Starts it. Its streams and its end are looked after by tasks of the tracker.
    pub(super) fn start(&self, name: &str, tracker: &TaskTracker) -> anyhow::Result<(Process, Lines)> {
        let mut command = tied(&self.program, &self.args);
        // Settings of wafflectl are none of the program's business, and may hold passwords.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("WAFFLES_") {
                command.env_remove(name);
            }
        }
        command.envs(&self.env).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(cwd) = &self.cwd {
            command.current_dir(cwd);
        }
        // A group of its own: a Ctrl-C at the terminal reaches only wafflectl, and what the program starts ends with it.
        command.process_group(0).kill_on_drop(true);
        let what = self.program.display();
        let mut child = command.spawn().with_context(|| format!("cannot start {what}"))?;
        let pid = child.id().unwrap_or_default();
        let streams = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = streams else {
            anyhow::bail!("{what} has no standard streams")
        };
        let (sender, receiver) = mpsc::channel(QUEUE);
        let new = CancellationToken::new;
        let process = Process { stdin: sender, stop: new(), gone: new(), unasked: new() };
        let label = format!("[{name} {pid}]");
        tracker.spawn(write(stdin, receiver, process.stop.clone()));
        tracker.spawn(log(stderr, label.clone()));
        let keeper = Keeper {
            stop: process.stop.clone(),
            gone: process.gone.clone(),
            unasked: process.unasked.clone(),
            label: label.clone(),
        };
        tracker.spawn(keeper.keep(child));
        let (gone, stop, unasked) = (process.gone.clone(), process.stop.clone(), process.unasked.clone());
        let lines = Lines { reader: BufReader::new(stdout), gone, stop, unasked, label };
        Ok((process, lines))
    }
}

impl Lines {
    /// The next line that holds something; none at the end of the program, or when it breaks the framing.
    pub(super) async fn next(&mut self) -> Option<String> {
        let gone = self.gone.clone();
        let over = async {
            gone.cancelled().await;
            tokio::time::sleep(REST_TIME).await;
        };
        let next = async {
            loop {
                let mut line = Vec::new();
                match read_line(&mut self.reader, &mut line, LINE_LIMIT).await {
                    Ok(Read::Line) => {}
                    Ok(Read::End) => return None,
                    Ok(Read::Cut) => {
                        note(&format!(
                            "{} wrote a line of more than {LINE_LIMIT} bytes and is ended",
                            self.label
                        ));
                        return None;
                    }
                    Err(error) => {
                        note(&format!("{} cannot be read: {error}", self.label));
                        return None;
                    }
                }
                match String::from_utf8(line) {
                    Ok(line) if line.trim().is_empty() => {}
                    Ok(line) => return Some(line),
                    Err(_) => note(&format!("{} wrote a line that is no UTF-8; it is left out", self.label)),
                }
            }
        };
        let line = tokio::select! {
            biased;
            line = next => line,
            () = over => None,
        };
        if line.is_none() && !self.stop.is_cancelled() {
            self.unasked.cancel();
            self.stop.cancel();
        }
        line
    }

    /// How the program is called in the log.
    pub(super) fn label(&self) -> &str {
        &self.label
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Read {
    Line,
    Cut,
    End,
}

/// Reads a line without its end. `Cut` says that it is longer than the limit; its rest is still to be read.
async fn read_line(
    reader: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
    limit: usize,
) -> std::io::Result<Read> {
    loop {
        let buffer = reader.fill_buf().await?;
        if buffer.is_empty() {
            return Ok(if line.is_empty() { Read::End } else { Read::Line });
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let part = buffer.get(..end.unwrap_or(buffer.len())).unwrap_or_default();
        let room = limit.saturating_sub(line.len());
        let fits = part.len() <= room;
        line.extend(part.iter().take(room));
        let used = if fits { part.len() + usize::from(end.is_some()) } else { room };
        reader.consume(used);
        match (fits, end) {
            (false, _) => return Ok(Read::Cut),
            (true, Some(_)) => return Ok(Read::Line),
            (true, None) => {}
        }
    }
}

async fn write(mut stdin: ChildStdin, mut lines: mpsc::Receiver<String>, stop: CancellationToken) {
    let write = async {
        while let Some(mut line) = lines.recv().await {
            line.push('\n');
            // A program that does not read any more ends, or is ended, and that is noticed elsewhere.
            if stdin.write_all(line.as_bytes()).await.is_err() || stdin.flush().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = write => {}
        () = stop.cancelled() => {}
    }
}

async fn log(stderr: ChildStderr, label: String) {
    let mut reader = BufReader::new(stderr);
    let mut cut = false;
    loop {
        let mut line = Vec::new();
        let read = read_line(&mut reader, &mut line, LOG_LINE).await;
        let more = std::mem::replace(&mut cut, matches!(read, Ok(Read::Cut)));
        match read {
            Ok(Read::End) | Err(_) => return,
            // The rest of a line of which the beginning was logged.
            Ok(_) if more => {}
            Ok(_) => note(&format!("{label} {}", clean(String::from_utf8_lossy(&line).trim_end()))),
        }
    }
}

/// Waits for the program's end, which it brings about when it is told to.
struct Keeper {
    stop: CancellationToken,
    gone: CancellationToken,
    unasked: CancellationToken,
    label: String,
}

impl Keeper {
    async fn keep(self, mut child: Child) {
        let group = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let signal = |signal| {
            if let Some(group) = group {
                // It may have ended in this moment, which is what is asked for.
                kill_process_group(group, signal).ok();
            }
        };
        tokio::select! {
            status = child.wait() => {
                note(&format!("{} has ended ({})", self.label, said(status)));
                self.unasked.cancel();
            }
            () = self.stop.cancelled() => {
                if timeout(END_TIME, child.wait()).await.is_err() {
                    signal(Signal::TERM);
                    if timeout(END_TIME, child.wait()).await.is_err() {
                        note(&format!("{} did not end and is killed", self.label));
                        signal(Signal::KILL);
                        drop(child.wait().await);
                    }
                }
            }
        }
        // What it started and left behind.
        signal(Signal::TERM);
        self.gone.cancel();
        self.stop.cancel();
    }
}

fn said(status: std::io::Result<ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(text: &[u8], limit: usize) -> Vec<(Read, String)> {
        let mut reader = BufReader::with_capacity(3, text);
        let mut read = Vec::new();
        loop {
            let mut line = Vec::new();
            match read_line(&mut reader, &mut line, limit).await.unwrap() {
                Read::End => return read,
                how => read.push((how, String::from_utf8(line).unwrap())),
            }
        }
    }

    #[tokio::test]
    async fn lines_come_whole_and_one_that_is_too_long_is_noticed() {
        let line = |text: &str| (Read::Line, text.to_owned());
        assert_eq!(lines(b"a\nlonger\n\nend", 6).await, [line("a"), line("longer"), line(""), line("end")]);
        assert_eq!(lines(b"longer\nx\n", 5).await, [(Read::Cut, "longe".to_owned()), line("r"), line("x")]);
    }

    #[tokio::test]
    async fn a_program_gets_lines_gives_lines_and_ends_with_its_input() {
        let tracker = TaskTracker::new();
        let command = Command { program: "/bin/cat".into(), ..Command::default() };
        let (process, mut lines) = command.start("test", &tracker).unwrap();
        process.stdin.send("hello".to_owned()).await.unwrap();
        assert_eq!(lines.next().await.as_deref(), Some("hello"));
        process.stop.cancel();
        assert_eq!(lines.next().await, None);
        tracker.close();
        timeout(END_TIME, tracker.wait()).await.expect("it ends by itself");
    }

    #[tokio::test]
    async fn a_program_that_does_not_want_to_end_is_killed() {
        let tracker = TaskTracker::new();
        let args = ["-c", "trap '' TERM; echo ready; while :; do read x || sleep 0.05; done"];
        let command =
            Command { program: "/bin/sh".into(), args: args.map(Into::into).to_vec(), ..Command::default() };
        let (process, mut lines) = command.start("test", &tracker).unwrap();
        assert_eq!(lines.next().await.as_deref(), Some("ready"));
        process.stop.cancel();
        tracker.close();
        timeout(END_TIME * 4, tracker.wait()).await.expect("it is killed");
        assert!(process.gone.is_cancelled());
    }
}
