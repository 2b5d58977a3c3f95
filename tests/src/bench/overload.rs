//! What a proxy serves when it is asked for more than it can: clients that call, think and call again, so many that together
//! they ask for 1, 2, 4 and 10 times what it serves. Who is turned away waits as told. At the end the load goes, and it is
//! measured how long it takes until all is as before. With `--rude`, nobody waits as told. A policy makes calls dear, so that
//! it is the proxy that has too much to do, and not what asks: the two share a machine of two cores.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use serde_json::json;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, timeout};
use waffles_core::credential::KeyLimits;
use waffles_runtime::process;

use super::load::{Asked, Connection, Load};
use super::{alone, child, cores, parse_era, pin_self};
use crate::watchdog::Dir;
use crate::{Dice, Era, Figure, Seed};

/// How long a client thinks between two calls.
const THINK: Duration = Duration::from_millis(100);
/// Clients that call without thinking, to find out what the proxy serves.
const GREEDY: usize = 48;
/// How long a load settles before it is looked at.
const SETTLE: Duration = Duration::from_secs(4);
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// So often a client that is turned away at its handshake comes back.
const MOST_TRIES: usize = 200;
/// Within this the proxy is to be as before.
const MOST_RECOVERY: Duration = Duration::from_secs(5);
/// The recovery is looked at in steps of this length.
const STEP: Duration = Duration::from_millis(250);

/// Measures overload.
#[derive(Debug, Args)]
pub(super) struct Overload {
    /// Seconds that each load is looked at.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// The era of the clients: sessions or stateless.
    #[arg(long, value_parser = parse_era, default_value = "stateless")]
    era: Era,
    /// Clients do not wait as told.
    #[arg(long)]
    rude: bool,
    /// Rules that look at the arguments of every call, a microsecond each: they make calls dear, beside which connections that
    /// are seldom used, and refusals, cost little.
    #[arg(long, default_value_t = 400)]
    rules: usize,
    /// How late the proxy's thread may be, where that is not what it is by default.
    #[arg(long)]
    max_lag: Option<String>,
}

/// What the clients share.
#[derive(Default)]
struct Seen {
    /// How many clients may ask.
    wanted: Cell<usize>,
    /// The time that a client thinks.
    think: Cell<Duration>,
    served: RefCell<Vec<u32>>,
    refused: RefCell<Vec<u32>>,
    failed: RefCell<Vec<String>>,
    rude: bool,
}

/// One load.
#[derive(Debug, Clone, Copy)]
struct Measured {
    served: f64,
    refused: f64,
    served_p99: Duration,
    refused_p99: Duration,
}

impl Overload {
    /// Prints and notes what was seen.
    pub(super) async fn run(&self) -> anyhow::Result<()> {
        LocalSet::new().run_until(self.measure()).await
    }

    #[allow(clippy::print_stdout, reason = "that is what it is run for")]
    async fn measure(&self) -> anyhow::Result<()> {
        let cores = cores()?;
        pin_self(cores.load)?;
        process::raise_file_limit();
        let dir = Dir::new("waffles-bench-");
        let (_upstream, addr) = child("upstream", &[], cores.upstream, &dir).await;
        let mut seed = Seed::new();
        let caller = seed.principal("caller", "user");
        let key = seed.key(caller, KeyLimits::default());
        seed.server("bench", &format!("http://{addr}/mcp"), |_| {});
        for number in 0..self.rules {
            let rule = json!({
                "name": format!("rule-{number}"), "effect": "forbid", "items": {"servers": ["bench"]},
                "condition": format!("has(args.message) && args.message == 'forbidden {number}'"),
            });
            seed.rule(serde_json::from_value(rule)?);
        }
        // All of them are one address, and connect before they say who they are.
        let mut flags = vec!["--log", "warn", "--max-strangers-per-address", "20000"];
        flags.extend(self.max_lag.iter().flat_map(|lag| ["--max-lag", lag]));
        let proxy = alone(&seed, &cores, &flags).await;
        let load = Rc::new(Load {
            url: proxy.server_url("bench"),
            bearer: Some(key),
            era: self.era,
            connections: 0,
            bearers: None,
            ca: None,
            shape: super::Shape::Echo,
            seconds: 0.0,
            rate: None,
            watch: proxy.program.pid(),
        });

        let seen = Rc::new(Seen { rude: self.rude, ..Seen::default() });
        let mut clients = Clients { load, seen: Rc::clone(&seen), count: 0 };
        clients.ask(GREEDY, Duration::ZERO).await?;
        let capacity = clients.look(Duration::from_secs(self.seconds)).await?.served;
        let of = |times: f64| (times * capacity * THINK.as_secs_f64()) as usize;
        clients.ask(of(0.5), THINK).await?;
        let quiet = clients.look(Duration::from_secs(self.seconds)).await?;
        println!("{capacity:.0} calls/s at the most; at half of it p99 {:.2?}", quiet.served_p99);

        let mut peak = capacity;
        for (times, least) in [(1.0, 0.0), (2.0, 0.95), (4.0, 0.90), (10.0, 0.85)] {
            clients.ask(of(times), THINK).await?;
            let found = clients.look(Duration::from_secs(self.seconds)).await?;
            peak = peak.max(found.served);
            let part = found.served / peak;
            println!(
                "{times:>4} ×: {} clients, {:.0} served/s ({:.0} %), {:.0} turned away/s; p99 served {:.2?}, \
                 turned away {:.2?}",
                clients.seen.wanted.get(),
                found.served,
                part * 100.0,
                found.refused,
                found.served_p99,
                found.refused_p99
            );
            if times > 1.0 {
                self.note(
                    &format!("goodput at {times} ×"),
                    format!("≥ {:.0} % of the peak", least * 100.0),
                    format!("{:.1} %", part * 100.0),
                    part >= least,
                );
                self.note(
                    &format!("refusal at {times} ×"),
                    "p99 ≤ 20 ms".into(),
                    format!("{:.1} ms", found.refused_p99.as_secs_f64() * 1e3),
                    found.refused_p99 <= Duration::from_millis(20),
                );
                let factor = found.served_p99.as_secs_f64() / quiet.served_p99.as_secs_f64();
                self.note(
                    &format!("accepted calls at {times} ×"),
                    "p99 ≤ 3 × that at half the load".into(),
                    format!("{factor:.1} × ({:.1} ms)", found.served_p99.as_secs_f64() * 1e3),
                    factor <= 3.0,
                );
            }
        }
        let gone = Instant::now();
        clients.ask(of(0.5), THINK).await?;
        let normal = clients.recovered(gone, quiet.served_p99).await?;
        println!("as before after {normal:.1?}");
        self.note(
            "after the load is gone",
            "normal ≤ 5 s".into(),
            format!("{:.2} s", normal.as_secs_f64()),
            normal <= MOST_RECOVERY,
        );
        Ok(())
    }

    fn note(&self, what: &str, goal: String, measured: String, met: bool) {
        let rude = if self.rude { ", clients that do not wait" } else { "" };
        let era = self.era.revision();
        let what = format!("{what} ({era}{rude})");
        Figure { promise: "P10".into(), what, goal, measured, extent: "full".into(), met }.note();
    }
}

struct Clients {
    load: Rc<Load>,
    seen: Rc<Seen>,
    count: usize,
}

impl Clients {
    /// Has so many clients ask.
    async fn ask(&mut self, wanted: usize, think: Duration) -> anyhow::Result<()> {
        self.seen.think.set(think);
        self.seen.wanted.set(wanted.min(self.count).max(1));
        // Those that are new come one after the other: what is measured is not how connections are made.
        while self.count < wanted {
            let number = self.count;
            self.count += 1;
            if self.load.era == Era::Sessions && number >= GREEDY {
                tokio::task::spawn_local(arrive(Rc::clone(&self.load), number, Rc::clone(&self.seen)));
                continue;
            }
            let opened = timeout(ANSWER_LIMIT, Connection::open(&self.load)).await;
            let connection = opened.context("no connection")??;
            tokio::task::spawn_local(ask(connection, number, Rc::clone(&self.seen)));
        }
        self.seen.wanted.set(wanted);
        Ok(())
    }

    async fn look(&self, time: Duration) -> anyhow::Result<Measured> {
        sleep(SETTLE).await;
        self.take();
        let started = Instant::now();
        sleep(time).await;
        let seconds = started.elapsed().as_secs_f64();
        let (mut served, mut refused) = self.take();
        let failed = self.seen.failed.borrow();
        ensure!(failed.is_empty(), "{} clients failed, the first: {}", failed.len(), failed[0]);
        Ok(Measured {
            served: served.len() as f64 / seconds,
            refused: refused.len() as f64 / seconds,
            served_p99: p99(&mut served),
            refused_p99: p99(&mut refused),
        })
    }

    /// When nobody is turned away any more and answers come as fast as before, give or take.
    async fn recovered(&self, since: Instant, usual: Duration) -> anyhow::Result<Duration> {
        let (mut good, mut begun) = (0, since.elapsed());
        self.take();
        while good < 4 {
            ensure!(since.elapsed() < MOST_RECOVERY * 6, "it does not recover");
            let before = since.elapsed();
            sleep(STEP).await;
            let (mut served, refused) = self.take();
            if refused.is_empty() && p99(&mut served) <= usual * 3 {
                if good == 0 {
                    begun = before;
                }
                good += 1;
            } else {
                good = 0;
            }
        }
        Ok(begun)
    }

    fn take(&self) -> (Vec<u32>, Vec<u32>) {
        (self.seen.served.take(), self.seen.refused.take())
    }
}

/// A client with a session to begin: under load its handshake is turned away before any call, and it tries again.
async fn arrive(load: Rc<Load>, number: usize, seen: Rc<Seen>) {
    let mut dice = Dice::new(number as u64 + 1);
    for _ in 0..MOST_TRIES {
        sleep(THINK.mul_f64(dice.roll(20) as f64)).await;
        if let Ok(Ok(connection)) = timeout(ANSWER_LIMIT, Connection::open(&load)).await {
            return ask(connection, number, seen).await;
        }
    }
    seen.failed.borrow_mut().push(format!("client {number} never gets a session"));
}

async fn ask(mut connection: Connection, number: usize, seen: Rc<Seen>) {
    let mut dice = Dice::new(number as u64 + 1);
    // Not all at once.
    sleep(THINK.mul_f64((number % 97) as f64 / 97.0)).await;
    for call in 0.. {
        while number >= seen.wanted.get() {
            sleep(STEP).await;
        }
        let started = Instant::now();
        let asked = match timeout(ANSWER_LIMIT, connection.ask(number as u64 * 1_000_000 + call)).await {
            Ok(Ok(asked)) => asked,
            Ok(Err(error)) => return seen.failed.borrow_mut().push(format!("{error:#}")),
            Err(_) => return seen.failed.borrow_mut().push("no answer".to_owned()),
        };
        let micros = u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX);
        let jitter = dice.roll(1000) as f64 / 1000.0;
        match asked {
            Asked::Answered => {
                seen.served.borrow_mut().push(micros);
                let think = seen.think.get();
                if think > Duration::ZERO {
                    sleep(think.mul_f64(0.5 + jitter)).await;
                }
            }
            Asked::TurnedAway(after) => {
                seen.refused.borrow_mut().push(micros);
                if !seen.rude {
                    sleep(after.mul_f64(1.0 + jitter / 2.0)).await;
                }
            }
        }
    }
}

fn p99(micros: &mut [u32]) -> Duration {
    micros.sort_unstable();
    let rank = micros.len() * 99 / 100;
    Duration::from_micros(micros.get(rank).copied().unwrap_or(0).into())
}
