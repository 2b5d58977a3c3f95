//! What a proxy does on a disk that is really full: calls of a server with `audit = strict` are refused at once and reach
//! nobody, those of the others go on, every record that is lost is counted, and all is well soon after there is room again.
//! The audit spool stands on a small file system in memory that only the proxy sees. Needs root, or user namespaces.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde_json::json;
use tokio::time::{Instant, sleep};
use waffles_proto::audit::v1::EventFilter;
use waffles_proto::registry::v1::{AuditMode, ServerSpec};

use crate::programs::DataPlaneOptions;
use crate::waffles::server_at;
use crate::{Era, Figure, McpClient, McpServer, PATIENCE, Waffles, WafflesOptions, eventually};

/// How long after there is room strict calls may be refused still.
const RECOVERED: Duration = Duration::from_secs(2);
/// How long a refusal may take.
const REFUSED: Duration = Duration::from_millis(10);

/// Fills the disk.
#[derive(Debug, Args)]
pub(super) struct FullDisk {
    /// Calls of each server meanwhile.
    #[arg(long, default_value_t = 1000)]
    calls: usize,
}

impl FullDisk {
    /// Prints and notes what became of calls and of their records.
    #[allow(clippy::print_stdout, reason = "that is what it is run for")]
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let mount =
            r#"mkdir -p {dir}/spool && mount -t tmpfs -o size=8m tmpfs {dir}/spool && exec "$0" "$@""#;
        let data_plane = DataPlaneOptions {
            wrap: ["unshare", "--mount", "sh", "-c", mount].map(str::to_owned).into(),
            args: ["--log", "error", "--spool-memory-bytes", "20000"].map(str::to_owned).into(),
            ..DataPlaneOptions::default()
        };
        let waffles = Waffles::with(WafflesOptions { data_plane, ..WafflesOptions::default() }).await;
        let server = McpServer::start().await;
        for (name, mode) in [("strict", AuditMode::Strict), ("count", AuditMode::Count)] {
            waffles.add(ServerSpec { audit: mode.into(), ..server_at(name, &server.url()) }).await;
        }
        let strict = waffles.client("strict").of(Era::Stateless).await;
        let count = waffles.client("count").of(Era::Stateless).await;
        for client in [&strict, &count] {
            ensure!(status(client).await? == 200, "calls are not served before the disk is full");
        }

        let proxy = &waffles.proxies[0];
        let spool = Path::new("/proc").join(proxy.program.pid().to_string()).join("root");
        let spool = spool.join(proxy.data_dir().strip_prefix("/")?).join("spool");
        let filler = fill(&spool)?;
        // What was taken before is in the record; from the first refusal on nothing may reach the server unrecorded.
        let mut admitted = 0;
        while status(&strict).await? == 200 {
            admitted += 1;
            ensure!(admitted < 100_000, "the disk is never full");
        }
        let asked = server.seen_of("tools/call").len();
        let (mut failed, mut slowest, mut let_in) = (0, Duration::ZERO, 0);
        for _ in 0..self.calls {
            failed += usize::from(status(&count).await? != 200);
            let started = Instant::now();
            let_in += usize::from(status(&strict).await? != 503);
            slowest = slowest.max(started.elapsed());
        }
        let unaudited = server.seen_of("tools/call").len() - asked - self.calls;
        std::fs::remove_file(&filler).context("there is no way to make room")?;
        let freed = Instant::now();
        while status(&strict).await? != 200 {
            ensure!(freed.elapsed() < PATIENCE, "strict calls are never served again");
            sleep(Duration::from_millis(20)).await;
        }
        let recovered = freed.elapsed();

        let (kept, lost, exchanges) = eventually(PATIENCE, || counted(&waffles)).await;
        println!(
            "{admitted} strict calls until the disk was full; then {let_in} let in, {unaudited} unaudited, {failed} of {} \
             counted ones failed; refusals ≤ {slowest:.1?}; served again after {recovered:.2?}; {kept} records kept, {lost} \
             lost, of {exchanges}",
            self.calls
        );
        let figure = |what: &str, goal: &str, measured: String, met| {
            let extent = format!("{} calls of each server", self.calls);
            Figure { promise: "F12".into(), what: what.into(), goal: goal.into(), measured, extent, met }
                .note();
        };
        figure(
            "a full disk: unaudited strict calls, failed counted calls",
            "0, 0",
            format!("{unaudited}, {failed}"),
            unaudited == 0 && let_in == 0 && failed == 0,
        );
        figure(
            "a full disk: lost records",
            "counted exactly",
            format!("{lost} lost + {kept} kept of {exchanges}"),
            lost > 0 && lost + kept == exchanges,
        );
        figure(
            "a full disk: refusal of a strict call",
            "≤ 10 ms",
            format!("{slowest:.1?}"),
            slowest <= REFUSED,
        );
        figure(
            "a full disk: strict calls after there is room",
            "≤ 2 s",
            format!("{recovered:.2?}"),
            recovered <= RECOVERED,
        );
        Ok(())
    }
}

async fn status(client: &McpClient) -> anyhow::Result<u16> {
    Ok(client.call("echo", json!({"message": "x"})).await?.status.as_u16())
}

/// Writes a file into the directory until there is no room for one byte more.
fn fill(dir: &Path) -> anyhow::Result<PathBuf> {
    let path = dir.join("filler");
    let mut file =
        std::fs::File::create(&path).with_context(|| format!("{} cannot be filled", dir.display()))?;
    for size in [1 << 16, 1] {
        let piece = vec![0; size];
        loop {
            match file.write_all(&piece) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                Err(error) => bail!("the disk cannot be filled: {error}"),
            }
        }
    }
    Ok(path)
}

/// Records of calls that are in the trail, lost records, and exchanges; an error while they do not add up.
async fn counted(waffles: &Waffles) -> anyhow::Result<(u64, u64, u64)> {
    let events = waffles.audit_search(EventFilter::default()).await?;
    let kept = events.iter().filter(|event| event.action.starts_with("mcp.")).count() as u64;
    let proxy = &waffles.proxies[0];
    let lost = proxy.metric("waffles_audit_lost_records").await as u64;
    let exchanges = proxy.metric("waffles_served_exchanges_total").await as u64;
    ensure!(kept + lost == exchanges, "{kept} kept, {lost} lost, of {exchanges}");
    Ok((kept, lost, exchanges))
}
