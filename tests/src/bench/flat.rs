//! Whether a call costs the same however much is registered: proxies with few and with many servers and keys, called in
//! interleaved rounds.

use clap::Args;
use waffles_core::credential::KeyLimits;

use super::{Bench, Target, alone, child, cores, pin_self};
use crate::watchdog::Dir;
use crate::{Figure, Seed};

/// What few is.
const FEW: usize = 10;

/// Compares few with many.
#[derive(Debug, Args)]
pub(super) struct Flat {
    /// How many servers are many.
    #[arg(long, default_value_t = 10_000)]
    servers: usize,
    /// How many keys are many.
    #[arg(long, default_value_t = 100_000)]
    keys: usize,
}

impl Flat {
    /// Notes what it costs.
    pub(super) async fn run(&self, bench: &Bench) -> anyhow::Result<()> {
        let cores = cores()?;
        pin_self(cores.load)?;
        let dir = Dir::new("waffles-bench-");
        let (_upstream, addr) = child("upstream", &[], cores.upstream, &dir).await;
        let url = format!("http://{addr}/mcp");
        let (servers, keys) = (format!("{} servers", self.servers), format!("{} keys", self.keys));
        let mut targets = Vec::new();
        let mut proxies = Vec::new();
        for (name, servers, keys) in
            [("few", FEW, FEW), (&servers, self.servers, FEW), (&keys, FEW, self.keys)]
        {
            let mut seed = Seed::new();
            let caller = seed.principal("caller", "user");
            for number in 1..servers {
                seed.server(&format!("other-{number}"), &url, |_| {});
            }
            for _ in 1..keys {
                seed.key(caller, KeyLimits::default());
            }
            seed.server("bench", &url, |_| {});
            let key = seed.key(caller, KeyLimits::default());
            let proxy = alone(&seed, &cores, &["--log", "warn"]).await;
            targets.push((name, Target::of(&proxy, "bench", key)));
            proxies.push(proxy);
        }
        for era in bench.eras() {
            let ratios = bench.compare(era, &targets, &cores, &dir).await?;
            for ((name, _), ratio) in targets.iter().zip(&ratios).skip(1) {
                Figure {
                    promise: "bench".into(),
                    what: format!("{}: CPU of a call with {name}", era.revision()),
                    goal: format!("≤ 1.05 × with {FEW}"),
                    measured: format!("{:.3}", ratio.cpu),
                    extent: format!("median of {} rounds", bench.rounds()),
                    met: ratio.cpu <= 1.05,
                }
                .note();
            }
        }
        Ok(())
    }
}
