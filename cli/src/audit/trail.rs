//! `audit export` and `audit verify`: the trail as JSON Lines, and whether it is as it was written. A file is verified here
//! and now, without a control plane.

use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use clap::Args;
use waffles_core::trail::{PublicKey, Report, Verifier};
use waffles_core::wire::timestamp;
use waffles_proto::audit::v1::{EventFilter, ExportEventsRequest, ExportEventsResponse};

use super::FilterArgs;
use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::moment;
use crate::output::{Shape, note, print};

/// The longest line that is read: a record has 1 MiB at the most, and escapes may make it six times as long.
const MOST_LINE: u64 = 16 << 20;
/// Findings that are shown to people; JSON has all of them.
const MOST_SHOWN: usize = 100;

/// Flags of `audit export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// At or after: a span ago (15m, 7d), a day or a time. The chains begin a little before.
    #[arg(long, value_name = "WHEN", value_parser = moment::past)]
    since: Option<DateTime<Utc>>,
    /// Before: a span ago, a day or a time.
    #[arg(long, value_name = "WHEN", value_parser = moment::past)]
    until: Option<DateTime<Utc>>,
    /// Write to this file, which only you may read, instead of standard output.
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

/// Flags of `audit verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// An export, or `-` for standard input; without it the control plane is asked for one.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// A file with the public key that the trail must be signed with, in hexadecimal, as a verification prints it. Keep it
    /// where those who can write to the database cannot.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Without a file: only what was stored since: a span ago (15m, 7d), a day or a time.
    #[arg(long, value_name = "WHEN", value_parser = moment::past, conflicts_with = "file")]
    since: Option<DateTime<Utc>>,
}

pub(super) async fn export(global: &Global, args: ExportArgs) -> anyhow::Result<()> {
    let ExportArgs { filter, since, until, to } = args;
    let filter =
        EventFilter { since: since.map(timestamp), until: until.map(timestamp), ..EventFilter::from(filter) };
    let mut out: Box<dyn Write + Send> = match &to {
        Some(path) => {
            let failed = || format!("cannot write {}", path.display());
            Box::new(BufWriter::new(private(path).with_context(failed)?))
        }
        None => Box::new(std::io::stdout()),
    };
    let mut parts = ask(global, filter).await?;
    let mut lines = 0;
    while let Some(ExportEventsResponse { lines: part }) = parts.message().await.map_err(Failure::from)? {
        lines += part.iter().filter(|byte| **byte == b'\n').count();
        out.write_all(&part)?;
    }
    out.flush()?;
    if let Some(path) = to {
        note(&format!("{lines} lines written to {}", path.display()));
    }
    Ok(())
}

pub(super) async fn verify(global: &Global, args: VerifyArgs) -> anyhow::Result<()> {
    let pinned = args.key.as_deref().map(read_key).transpose()?;
    let mut verifier = Verifier::new(pinned);
    match &args.file {
        None => {
            let filter = EventFilter { since: args.since.map(timestamp), ..EventFilter::default() };
            verify_online(global, filter, &mut verifier).await?;
        }
        Some(path) if path.as_os_str() == "-" => read_lines(std::io::stdin(), &mut verifier)?,
        Some(path) => {
            let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            read_lines(file, &mut verifier)?;
        }
    }
    let report = verifier.finish();
    print(global.output, &report)?;
    if report.is_clean() {
        return Ok(());
    }
    let count = report.findings.len() as u64 + report.more_findings;
    let next =
        "Keep this export and the database as they are; what each finding is about stands before its colon.";
    Err(Failure::failed(format!("the audit trail is not as it was written: {count} findings"))
        .next(next)
        .into())
}

async fn ask(global: &Global, filter: EventFilter) -> anyhow::Result<tonic::Streaming<ExportEventsResponse>> {
    let mut audit = Client::open(global).await?.audit();
    let request = ExportEventsRequest { filter: Some(filter) };
    Ok(audit.export_events(request).await.map_err(Failure::from)?.into_inner())
}

/// Parts are whole lines, so that nothing has to be kept.
async fn verify_online(global: &Global, filter: EventFilter, verifier: &mut Verifier) -> anyhow::Result<()> {
    let mut parts = ask(global, filter).await?;
    let mut number = 0;
    while let Some(part) = parts.message().await.map_err(Failure::from)? {
        for line in part.lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            number += 1;
            verifier.text(number, &String::from_utf8_lossy(line));
        }
    }
    Ok(())
}

fn read_lines(from: impl Read, verifier: &mut Verifier) -> anyhow::Result<()> {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if from.by_ref().take(MOST_LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        verifier.text(number, String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
    }
    Ok(())
}

fn read_key(path: &Path) -> anyhow::Result<PublicKey> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("--key: cannot read {}", path.display()))?;
    PublicKey::parse(&text).ok_or_else(|| {
        let message = format!("--key: {} must hold 64 hexadecimal digits", path.display());
        Failure::usage(message).next("`wafflectl audit verify` prints the key of an export.").into()
    })
}

/// An export tells what everybody did, so that nobody else shall read it.
fn private(path: &Path) -> std::io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

impl Shape for Report {
    fn text(&self) -> String {
        let mut lines = vec![
            format!("tenant            {}", crate::output::clean(&self.tenant)),
            format!("events            {}", self.events),
            format!("other tenants'    {} records, by their digests", self.foreign),
            format!("chains            {}", self.chains),
            match self.checkpointed_at {
                Some(time) => format!("checkpoints       {}, the last at {time}", self.checkpoints),
                None => "checkpoints       none yet".to_owned(),
            },
            format!("signed with       {}", self.public_key),
            format!("lost by proxies   {}", self.lost),
        ];
        let mut also = |count: u64, what: &str| {
            if count > 0 {
                lines.push(format!("note              {count} {what}"));
            }
        };
        also(self.forgotten, "records are not there any more because of their age");
        also(
            self.uncovered,
            "records are newer than the last checkpoint, and protected from the next one on",
        );
        also(self.attested, "records came otherwise than they were linked, as the control plane noted then");
        also(
            self.redacted,
            "events without their payloads, which you may not see: their content is not verified",
        );
        also(self.unchained, "events have no place in a chain: nothing protects those");
        if self.is_clean() {
            lines.push("verified          everything is as it was written".to_owned());
        }
        for finding in self.findings.iter().take(MOST_SHOWN) {
            lines.push(format!("FINDING           {}", crate::output::clean(&finding.to_string())));
        }
        let more = self.findings.len().saturating_sub(MOST_SHOWN) as u64 + self.more_findings;
        if more > 0 {
            lines.push(format!("FINDING           and {more} more"));
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_export_is_not_verified() {
        for text in ["", "hello\n", "{}\n{}\n"] {
            let mut verifier = Verifier::new(None);
            read_lines(text.as_bytes(), &mut verifier).unwrap();
            let report = verifier.finish();
            assert!(!report.is_clean(), "{text:?}");
            assert!(report.text().contains("FINDING"), "{}", report.text());
        }
    }

    #[test]
    fn a_key_is_64_digits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, format!("{}\n", "a1".repeat(32))).unwrap();
        assert_eq!(read_key(&path).unwrap().to_string(), "a1".repeat(32));
        std::fs::write(&path, "a1").unwrap();
        assert!(read_key(&path).unwrap_err().to_string().contains("64 hexadecimal digits"));
    }
}
