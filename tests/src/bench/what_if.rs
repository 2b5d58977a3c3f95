//! What it takes to try a draft on a week of audited calls: seconds, and the most memory that the control plane ever had.
//! The trail is written into the database directly; it is asked over gRPC, as `wafflectl policy diff` does.

use std::path::Path;

use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use sqlx::{Connection as _, QueryBuilder, Sqlite, SqliteConnection};
use tokio::time::Instant;
use uuid::Uuid;
use waffles_proto::auth::v1::{GetSelfRequest, KeyLimits};
use waffles_proto::policy::v1 as pb;
use waffles_proto::registry::v1 as registry;

use crate::programs::ControlPlaneOptions;
use crate::watchdog::Dir;
use crate::{Waffles, WafflesOptions};

/// So much newer than a week the oldest call is, since to write them all takes a while.
const MARGIN: TimeDelta = TimeDelta::hours(1);
/// Tools of each server.
const TOOLS: usize = 20;
/// Events a statement.
const ROWS: usize = 500;

/// Tries a draft, and counts the time.
#[derive(Debug, Args)]
pub(super) struct WhatIf {
    /// How many audited calls.
    #[arg(long, default_value_t = 1_000_000)]
    calls: u64,
    /// How many servers they go to; every other one keeps arguments.
    #[arg(long, default_value_t = 20)]
    servers: usize,
    /// How many API keys they are made with.
    #[arg(long, default_value_t = 25)]
    keys: usize,
    /// How many rules there are, and in the draft twice as many.
    #[arg(long, default_value_t = 500)]
    rules: usize,
}

impl WhatIf {
    /// Prints what it takes.
    #[allow(clippy::print_stdout, reason = "that is what it is run for")]
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        let dir = Dir::new("waffles-trail-");
        let database = dir.path().join("trail.db");
        let waffles = Waffles::with(WafflesOptions {
            control_plane: ControlPlaneOptions {
                database_url: Some(format!("sqlite://{}", database.display())),
                args: vec!["--log".to_owned(), "warn".to_owned()],
                ..ControlPlaneOptions::default()
            },
            proxies: 0,
            ..WafflesOptions::default()
        })
        .await;
        let started = Instant::now();
        self.fill(&waffles, &database).await?;
        println!("{} calls written in {:.1} s", self.calls, started.elapsed().as_secs_f64());
        let rules = (0..self.rules).map(|number| self.rule(number)).collect();
        let request = pb::ReplaceRulesRequest { rules, version: 0, comment: "bench".into() };
        waffles.policy().replace_rules(request).await?;

        let pid = waffles.control_plane.program.pid();
        let before = peak_bytes(pid).unwrap_or(0);
        let draft = (0..self.rules * 2).map(|number| self.rule(number + self.rules / 2)).collect();
        let started = Instant::now();
        let mut stream =
            waffles.policy().try_rules(pb::TryRulesRequest { rules: draft, days: 7 }).await?.into_inner();
        let (mut progress, mut trial) = (0, None);
        while let Some(message) = stream.message().await? {
            match message.message {
                Some(pb::try_rules_response::Message::Progress(_)) => progress += 1,
                Some(pb::try_rules_response::Message::Trial(found)) => trial = Some(found),
                None => {}
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        let trial = trial.ok_or_else(|| anyhow::anyhow!("the trial has no result"))?;
        anyhow::ensure!(trial.complete && trial.calls == self.calls, "{} calls were looked at", trial.calls);
        let mib = |bytes: u64| bytes / (1024 * 1024);
        println!(
            "{} calls tried in {seconds:.1} s ({:.0} a second, {progress} words of progress): {} gained, {} lost, \
             {} unknown; the control plane had at most {} MiB, before that {} MiB",
            trial.calls,
            trial.calls as f64 / seconds,
            trial.gained,
            trial.lost,
            trial.unknown,
            mib(peak_bytes(pid).unwrap_or(0)),
            mib(before)
        );
        Ok(())
    }

    /// A mixed lot of rules: some by name alone, some that look at arguments, the time or the address.
    fn rule(&self, number: usize) -> pb::RuleSpec {
        let condition = match number % 4 {
            0 => format!("args.amount > {}", 500 + number % 400),
            1 => "request.time.getHours() < 6 && !request.address.in_cidr('10.0.0.0/9')".to_owned(),
            2 => "has(args.to) && args.to.startsWith('eve')".to_owned(),
            _ => String::new(),
        };
        // A few rules are about each tool, as where people write them.
        let tool = format!("tool_{}", number / self.servers.max(1) % TOOLS);
        pb::RuleSpec {
            name: format!("rule-{number}"),
            effect: pb::Effect::Forbid.into(),
            items: Some(pb::What {
                servers: vec![format!("server-{}", number % self.servers)],
                tools: vec![tool],
                ..pb::What::default()
            }),
            condition,
            ..pb::RuleSpec::default()
        }
    }

    async fn fill(&self, waffles: &Waffles, database: &Path) -> anyhow::Result<()> {
        let me = waffles.auth().get_self(GetSelfRequest {}).await?.into_inner();
        let me: Uuid = me.principal.unwrap_or_default().id.parse()?;
        let mut servers: Vec<(Uuid, String, bool)> = Vec::new();
        for number in 0..self.servers {
            let full = number % 2 == 0;
            let capture = if full { registry::Capture::Full } else { registry::Capture::None };
            let endpoint =
                registry::Endpoint { url: "http://127.0.0.1:9/mcp".into(), weight: 1, zone: String::new() };
            let name = format!("server-{number}");
            let server = waffles
                .add(registry::ServerSpec {
                    name: name.clone(),
                    endpoints: vec![endpoint],
                    capture: capture.into(),
                    ..registry::ServerSpec::default()
                })
                .await;
            servers.push((server.id.parse()?, name, full));
        }
        let mut keys = Vec::new();
        for _ in 0..self.keys {
            keys.push(waffles.key(KeyLimits::default()).await.id);
        }
        let now = Utc::now();
        let step =
            (TimeDelta::days(7) - MARGIN).num_microseconds().unwrap_or(0) / i64::try_from(self.calls)?.max(1);
        let at = |number: u64| now - TimeDelta::microseconds(step * i64::try_from(number).unwrap_or(0));
        let mut conn = SqliteConnection::connect(&format!("sqlite://{}", database.display())).await?;
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut number = 0;
        while number < self.calls {
            let mut tx = conn.begin().await?;
            for _ in 0..40 {
                let rows = self.calls.saturating_sub(number).min(ROWS as u64);
                if rows == 0 {
                    break;
                }
                insert(&mut tx, number..number + rows, me, &servers, &keys, &mut random, &at).await?;
                number += rows;
            }
            tx.commit().await?;
        }
        Ok(())
    }
}

async fn insert(
    conn: &mut SqliteConnection,
    numbers: std::ops::Range<u64>,
    me: Uuid,
    servers: &[(Uuid, String, bool)],
    keys: &[String],
    random: &mut u64,
    at: &impl Fn(u64) -> DateTime<Utc>,
) -> anyhow::Result<()> {
    let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(
        "INSERT INTO audit_events (id, tenant, occurred_at, action, outcome, principal_id, principal_name, api_key_id,
            client_ip, client_name, protocol_version, server_id, server_name, target, rule, reason, http_status, rpc_code,
            duration_us, upstream_us, request_bytes, response_bytes, request_payload, response_payload, revision,
            resource, detail) ",
    );
    query.push_values(numbers, |mut row, number| {
        // xorshift64: the same calls in every run.
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        let pick = |count: usize, bits: u32| usize::try_from(*random >> bits).unwrap_or(0) % count.max(1);
        let (server, name, full) = &servers[pick(servers.len(), 3)];
        let tool = format!("tool_{}", pick(TOOLS, 11));
        let payload = match full {
            true => format!(
                r#"{{"name":"{tool}","arguments":{{"amount":{}.50,"to":"ada","note":"{}"}}}}"#,
                pick(1000, 17),
                "x".repeat(100)
            ),
            false => String::new(),
        };
        row.push_bind(Uuid::now_v7())
            .push_bind("default")
            .push_bind(at(number))
            .push_bind("mcp.tools/call")
            .push_bind("ok")
            .push_bind(me)
            .push_bind("admin@localhost")
            .push_bind(keys[pick(keys.len(), 23)].clone())
            .push_bind(format!("10.{}.2.3", pick(256, 31)))
            .push_bind("bench")
            .push_bind("2026-07-28")
            .push_bind(*server)
            .push_bind(name.clone())
            .push_bind(tool)
            .push_bind("role:admin")
            .push_bind("")
            .push_bind(200_i32)
            .push_bind(0_i64)
            .push_bind(1000_i64)
            .push_bind(900_i64)
            .push_bind(200_i64)
            .push_bind(300_i64)
            .push_bind(payload)
            .push_bind("")
            .push_bind(1_i64)
            .push_bind("")
            .push_bind("");
    });
    query.build().execute(conn).await?;
    Ok(())
}

/// The most memory that a process ever had.
fn peak_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}
