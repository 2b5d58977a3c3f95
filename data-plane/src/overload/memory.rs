//! How much memory the process has left. Resident memory is looked at several times a second and judged in stages; what
//! grows faster than that, the bytes of messages that are held, has a budget of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde_json::{Value, json};
use waffles_runtime::memory;

use super::buffers::Buffers;

/// How often resident memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Without a limit, messages may take this much.
const DEFAULT_BUFFERS: u64 = 2 << 30;
/// A stage ends this far below where it began, in parts of a hundred, so that it does not come and go.
const SLACK: u64 = 3;

/// How short of memory the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// Not at all.
    Calm,
    /// From 80 %: no new listeners, caches are given up.
    Tight,
    /// From 90 %: no new lists and sessions, idle connections are closed.
    Scarce,
    /// From 95 %: only what is in flight; who does not take what it asked for is cut off.
    Critical,
}

impl Stage {
    /// All but the first, and where they begin, in parts of a hundred.
    const FROM: [(Self, u64); 3] = [(Self::Critical, 95), (Self::Scarce, 90), (Self::Tight, 80)];

    fn of(number: u8) -> Self {
        match number {
            0 => Self::Calm,
            1 => Self::Tight,
            2 => Self::Scarce,
            _ => Self::Critical,
        }
    }
}

/// The stage at so much of a limit, after another one.
pub fn stage_at(used: u64, limit: u64, before: Stage) -> Stage {
    let part = used.saturating_mul(100) / limit.max(1);
    let at = |part: u64| {
        Stage::FROM.iter().find(|(_, from)| part >= *from).map_or(Stage::Calm, |(stage, _)| *stage)
    };
    at(part).max(at(part.saturating_add(SLACK)).min(before))
}

/// The memory of the process.
#[derive(Debug)]
pub struct Memory {
    limit: Option<u64>,
    stage: AtomicU8,
    resident: AtomicU64,
    buffers: Arc<Buffers>,
}

impl Memory {
    /// With the limit of the configuration, or else that of the control group, or none.
    pub fn new(configured: Option<u64>) -> Self {
        let limit = configured.or_else(memory::group_limit).filter(|limit| *limit > 0);
        // What is held may be held twice for a moment, while one message is made out of another or a buffer grows, and what
        // was let go of goes back to the system a second later.
        let buffers = limit.map_or(DEFAULT_BUFFERS, |limit| limit / 4);
        Self {
            limit,
            stage: AtomicU8::new(0),
            resident: AtomicU64::new(0),
            buffers: Arc::new(Buffers::new(usize::try_from(buffers).unwrap_or(usize::MAX))),
        }
    }

    /// The stage as it was last looked at.
    pub fn stage(&self) -> Stage {
        Stage::of(self.stage.load(Relaxed))
    }

    /// The budget of messages that are held.
    pub fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    /// The limit in force.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Looks at resident memory for as long as the process runs; `trim` gives up what can be had again, when memory gets
    /// shorter.
    pub async fn keep(&self, trim: impl Fn()) {
        let Some(limit) = self.limit else { return };
        loop {
            let before = self.stage();
            let resident = memory::resident().unwrap_or(0);
            let stage = stage_at(resident, limit, before);
            self.resident.store(resident, Relaxed);
            self.stage.store(stage as u8, Relaxed);
            if stage > before {
                let (from, to) = (format!("{before:?}"), format!("{stage:?}"));
                tracing::warn!(memory.resident = resident, memory.limit = limit, from, to, "memory is short");
                trim();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// For operators.
    pub fn report(&self) -> Value {
        json!({
            "limit": self.limit,
            "resident": self.resident.load(Relaxed),
            "stage": format!("{:?}", self.stage()).to_lowercase(),
            "buffered": self.buffers.used(),
            "most_buffered": self.buffers.most(),
            "denied": self.buffers.denied(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_begin_at_their_part_and_end_a_little_below() {
        let mut stage = Stage::Calm;
        for (used, expected) in [
            (0, Stage::Calm),
            (79, Stage::Calm),
            (80, Stage::Tight),
            (78, Stage::Tight),
            (76, Stage::Calm),
            (90, Stage::Scarce),
            (88, Stage::Scarce),
            (86, Stage::Tight),
            (95, Stage::Critical),
            (200, Stage::Critical),
            (92, Stage::Critical),
            (91, Stage::Scarce),
            (10, Stage::Calm),
            (94, Stage::Scarce),
        ] {
            stage = stage_at(used, 100, stage);
            assert_eq!(stage, expected, "at {used} %");
        }
        assert_eq!(stage_at(u64::MAX, 1, Stage::Calm), Stage::Critical);
        assert_eq!(stage_at(0, 0, Stage::Critical), Stage::Calm, "no limit makes no trouble");
    }

    #[test]
    fn a_quarter_of_the_limit_is_for_messages() {
        let memory = Memory::new(Some(256 << 20));
        assert_eq!(memory.buffers().most(), 64 << 20);
        assert_eq!(memory.stage(), Stage::Calm);
    }
}
