//! A token that was never seen before in every call, so that each costs the check of a signature.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use uuid::Uuid;

use super::rules::seeded;
use super::{Cores, Target, Way, alone};
use crate::watchdog::Dir;
use crate::{DataPlane, Seed};

/// More than one run can use.
const TOKENS: usize = 60_000;

/// A proxy whose token key is ours.
pub(super) struct Tokens {
    proxy: DataPlane,
    seed: Seed,
    caller: Uuid,
}

impl Tokens {
    pub(super) async fn start(cores: &Cores, upstream: &str, rules: usize) -> Self {
        let (seed, caller) = seeded(upstream, rules);
        let proxy = alone(&seed, cores, &["--log", "warn"]).await;
        Self { proxy, seed, caller }
    }

    pub(super) fn target(&self, dir: &Dir) -> anyhow::Result<Target> {
        Ok(Target {
            way: Way::Tokens,
            bearers: Some(Self::file(dir)),
            ..Target::of(&self.proxy, "bench", self.renew(dir)?)
        })
    }

    /// Signs new tokens for the next run, and returns one more.
    pub(super) fn renew(&self, dir: &Dir) -> anyhow::Result<String> {
        let mut claims = self.seed.claims(self.caller);
        claims.exp += 3600;
        let mut text = String::new();
        for _ in 0..TOKENS {
            claims.sid = Uuid::now_v7();
            writeln!(text, "{}", self.seed.token(&claims))?;
        }
        std::fs::write(Self::file(dir), text).context("cannot write the tokens")?;
        claims.sid = Uuid::now_v7();
        Ok(self.seed.token(&claims))
    }

    fn file(dir: &Dir) -> PathBuf {
        dir.path().join("tokens")
    }
}
