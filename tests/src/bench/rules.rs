//! What a policy of many rules costs: the same proxy without one and with one, in interleaved rounds; and one decision by
//! itself. Most rules are about others, as in a real policy; some apply, and one of them looks at the arguments.

use clap::Args;
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;
use waffles_core::credential::KeyLimits;
use waffles_core::policy::{Access, Args as Arguments, Caller, Facts, Question, RuleSpec, decide};

use super::compare::Ratio;
use super::{Bench, Target, alone, child, cores, pin_self};
use crate::watchdog::Dir;
use crate::{Figure, Seed};

/// Compares, and times decisions.
#[derive(Debug, Args)]
pub(super) struct Rules {
    /// How many rules.
    #[arg(long, default_value_t = 1000)]
    rules: usize,
    /// How many single decisions are timed.
    #[arg(long, default_value_t = 200_000)]
    decisions: usize,
    /// Times decisions alone.
    #[arg(long)]
    decisions_only: bool,
}

impl Rules {
    /// Prints what it costs.
    pub(super) async fn run(&self, bench: &Bench) -> anyhow::Result<()> {
        let cores = cores()?;
        pin_self(cores.load)?;
        let dir = Dir::new("waffles-bench-");
        self.time_decisions();
        if self.decisions_only {
            return Ok(());
        }
        let (_upstream, addr) = child("upstream", &[], cores.upstream, &dir).await;
        let url = format!("http://{addr}/mcp");
        let mut targets = Vec::new();
        let mut proxies = Vec::new();
        let named = format!("{} rules", self.rules);
        for (name, count) in [("no rules", 0), (named.as_str(), self.rules)] {
            let (mut seed, caller) = seeded(&url, count);
            let key = seed.key(caller, KeyLimits::default());
            let proxy = alone(&seed, &cores, &["--log", "warn"]).await;
            targets.push((name, Target::of(&proxy, "bench", key)));
            proxies.push(proxy);
        }
        for era in bench.eras() {
            let ratios = bench.compare(era, &targets, &cores, &dir).await?;
            let Ratio { throughput, cpu } = ratios[1];
            Figure {
                promise: "bench".into(),
                what: format!("{}: throughput with {named}", era.revision()),
                goal: "≥ 0.95 × without".into(),
                measured: format!("{throughput:.3}, CPU of a call × {cpu:.3}"),
                extent: format!("median of {} rounds", bench.rounds()),
                met: throughput >= 0.95,
            }
            .note();
        }
        Ok(())
    }

    fn time_decisions(&self) {
        let mut seed = Seed::new();
        let people: Vec<_> = (0..50).map(|number| seed.principal(&format!("p{number}"), "user")).collect();
        for number in 0..20 {
            seed.server(&format!("server-{number}"), "http://127.0.0.1:1024/mcp", |_| {});
        }
        seed.server("bench", "http://127.0.0.1:1024/mcp", |_| {});
        for spec in specs(self.rules) {
            seed.rule(spec);
        }
        let snapshot = seed.snapshot();
        let policy = snapshot.policy("default");
        let arguments = json!({"amount": 50, "text": "hello"}).to_string();
        for (what, servers, args) in [
            ("any server, arguments unknown", 21, Arguments::Any),
            ("any server, with arguments", 21, Arguments::Given(Some(arguments.as_bytes()))),
            ("the server whose rule looks at the arguments", 1, Arguments::Given(Some(arguments.as_bytes()))),
        ] {
            let mut times = Vec::with_capacity(self.decisions);
            for number in 0..self.decisions {
                let person = &people[number % people.len()];
                let name = match number % servers {
                    0 => "bench".to_owned(),
                    other => format!("server-{}", other - 1),
                };
                let tool = format!("tool_{}", number % 97);
                let principal = snapshot.principal(person).expect("it was seeded");
                let entry = snapshot.server("default", &name).expect("it was seeded");
                let question = Question {
                    caller: Caller { principal, key: None, address: None },
                    policy,
                    server: &entry.server,
                    tools: &entry.tools,
                    namespace: None,
                    access: Access::Call,
                    tool: Some(&tool),
                    facts: Facts { era: "stateless", now: chrono::Utc::now(), args },
                };
                let started = Instant::now();
                let verdict = decide(&question);
                times.push(started.elapsed().as_nanos());
                assert_eq!(verdict.failed, 0, "{verdict:?}");
            }
            times.sort_unstable();
            let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
            Figure {
                promise: "bench".into(),
                what: format!("one decision with {} rules, {what}", self.rules),
                goal: "p99 ≤ 20 µs".into(),
                measured: format!("p50 {:.2} µs, p99 {:.2} µs, p99.9 {:.2} µs", at(0.5), at(0.99), at(0.999)),
                extent: format!("{} decisions", self.decisions),
                met: at(0.99) <= 20.0,
            }
            .note();
        }
    }
}

/// One server, a policy of so many rules, and a caller.
pub(super) fn seeded(upstream: &str, count: usize) -> (Seed, Uuid) {
    let mut seed = Seed::new();
    let caller = seed.principal("caller", "user");
    seed.server("bench", upstream, |_| {});
    for spec in specs(count) {
        seed.rule(spec);
    }
    (seed, caller)
}

/// A policy: by far the most rules are about other people, servers and tools.
pub(super) fn specs(count: usize) -> Vec<RuleSpec> {
    let spec = |number: usize| -> Value {
        let name = format!("rule-{number}");
        match number % 10 {
            _ if number == 0 => json!({
                "name": name, "effect": "forbid", "items": {"servers": ["bench"]},
                "condition": "has(args.amount) && args.amount > 1000",
            }),
            _ if number == 1 => json!({
                "name": name, "effect": "forbid", "items": {"tools": ["drop_*"]},
            }),
            2 => json!({
                "name": name, "effect": "forbid", "principals": {"groups": [format!("group-{number}")]},
                "condition": "request.time.getHours() < 6",
            }),
            3 => json!({
                "name": name, "effect": "allow", "principals": {"names": [format!("user-{number}@example.test")]},
            }),
            4 => json!({
                "name": name, "effect": "forbid", "items": {"tools": [format!("delete_{number}")]},
            }),
            5 => json!({
                "name": name, "effect": "forbid", "principals": {"roles": ["contractor"]},
                "items": {"servers": [format!("server-{}", number % 20)]},
                "condition": "args.amount > 10",
            }),
            _ => json!({
                "name": name, "effect": if number.is_multiple_of(2) { "allow" } else { "forbid" },
                "items": {"servers": [format!("other-{}", number % 300)], "tools": ["get_*", "set_*"]},
                "condition": "!tool.name.endsWith('_all')",
            }),
        }
    };
    (0..count).map(|number| serde_json::from_value(spec(number)).expect("it is a rule")).collect()
}
