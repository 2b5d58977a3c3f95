//! Proxies beside each other in interleaved rounds: what one costs in parts of what the first does.

use super::{Bench, Cores, Measured, Shape, Target};
use crate::Era;
use crate::watchdog::Dir;

/// Medians of the ratios to the first target, round by round.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ratio {
    pub(super) throughput: f64,
    pub(super) cpu: f64,
}

impl Bench {
    /// Calls all targets in every round, each round beginning with another, so that none has the warmer machine.
    #[allow(clippy::print_stdout, reason = "that is what it is run for")]
    pub(super) async fn compare(
        &self,
        era: Era,
        targets: &[(&str, Target)],
        cores: &Cores,
        dir: &Dir,
    ) -> anyhow::Result<Vec<Ratio>> {
        let mut rounds: Vec<Vec<Measured>> = Vec::new();
        for round in 0..self.rounds() {
            let mut measured = Vec::new();
            for step in 0..targets.len() {
                let which = (round + step) % targets.len();
                let found = self.load(&targets[which].1, (era, Shape::Echo), None, cores, dir).await?;
                measured.push((which, found));
            }
            measured.sort_by_key(|(which, _)| *which);
            let measured: Vec<Measured> = measured.into_iter().map(|(_, measured)| measured).collect();
            let figures = targets.iter().zip(&measured).map(|((name, _), measured)| {
                format!("{name} {:.0}/s {:.1} µs", measured.per_second, measured.cpu_micros_per_call)
            });
            println!("{} round {}: {}", era.revision(), round + 1, figures.collect::<Vec<_>>().join(", "));
            rounds.push(measured);
        }
        let ratio = |which: usize, figure: fn(&Measured) -> f64| {
            median(rounds.iter().map(|round| figure(&round[which]) / figure(&round[0])).collect())
        };
        let ratios = (0..targets.len()).map(|which| Ratio {
            throughput: ratio(which, |measured| measured.per_second),
            cpu: ratio(which, |measured| measured.cpu_micros_per_call),
        });
        Ok(ratios.collect())
    }

    pub(super) fn eras(&self) -> Vec<Era> {
        self.era.map_or_else(|| Era::BOTH.to_vec(), |era| vec![era])
    }
}

pub(super) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
