//! The figures as a table and as JSON.

use serde::Serialize;

use super::{Sample, Way};
use crate::Era;

/// Everything measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    connections: usize,
    resident_at_rest: Vec<(Way, u64)>,
    medians: Vec<Line>,
    samples: Vec<Sample>,
}

/// Medians over the rounds. Latencies are in microseconds.
#[derive(Debug, Serialize)]
struct Line {
    era: String,
    way: Way,
    per_second: f64,
    closed_p50: f64,
    closed_p99: f64,
    closed_p999: f64,
    open_rate: f64,
    open_p50: f64,
    open_p99: f64,
    open_p999: f64,
    cpu_micros_per_call: f64,
    /// Round by round to the pass-through of the same round.
    cpu_ratio: f64,
    p50_ratio: f64,
    per_second_ratio: f64,
    resident_bytes: f64,
}

impl Report {
    pub(super) fn new(connections: usize, resident_at_rest: Vec<(Way, u64)>, samples: Vec<Sample>) -> Self {
        let mut medians = Vec::new();
        for era in Era::BOTH {
            for way in [Way::Direct, Way::PassThrough, Way::Waffles, Way::Bridged] {
                medians.extend(line(&samples, era, way));
            }
        }
        Self { connections, resident_at_rest, medians, samples }
    }

    #[allow(clippy::print_stdout, reason = "it is what the program is for")]
    pub(super) fn print(&self) {
        let rounds = self.samples.iter().map(|sample| sample.round + 1).max().unwrap_or(0);
        println!(
            "\nMedians of {rounds} interleaved rounds, {} connections, the proxy alone on one core; times in microseconds.",
            self.connections
        );
        println!(
            "CPU is user and system time of the proxy per call (of the upstream itself for the direct way).\n"
        );
        println!(
            "{:<11} {:<13} {:>8} {:>8} {:>8} {:>8} | {:>7} {:>8} {:>8} {:>8} | {:>8} {:>7} {:>9}",
            "era",
            "way",
            "calls/s",
            "p50",
            "p99",
            "p99.9",
            "rate",
            "p50",
            "p99",
            "p99.9",
            "CPU/call",
            "ratio",
            "RSS MiB"
        );
        for line in &self.medians {
            let ratio = match line.way {
                Way::Direct => "-".to_owned(),
                _ => format!("{:.2}", line.cpu_ratio),
            };
            println!(
                "{:<11} {:<13} {:>8.0} {:>8.0} {:>8.0} {:>8.0} | {:>7.0} {:>8.0} {:>8.0} {:>8.0} | {:>8.1} {:>7} {:>9.1}",
                line.era,
                line.way.name(),
                line.per_second,
                line.closed_p50,
                line.closed_p99,
                line.closed_p999,
                line.open_rate,
                line.open_p50,
                line.open_p99,
                line.open_p999,
                line.cpu_micros_per_call,
                ratio,
                mebibytes(line.resident_bytes),
            );
        }
        println!();
        for line in self.medians.iter().filter(|line| line.way == Way::Waffles) {
            println!(
                "{}: Waffles costs {:.2} times the CPU of the pass-through, {:.2} times its p50 in the open loop, and serves {:.2} times its calls a second.",
                line.era, line.cpu_ratio, line.p50_ratio, line.per_second_ratio
            );
        }
        for line in self.medians.iter().filter(|line| line.way == Way::Bridged) {
            let native = self.medians.iter().find(|other| other.era == line.era && other.way == Way::Waffles);
            let times = native.map_or(f64::NAN, |native| line.cpu_ratio / native.cpu_ratio);
            println!("{}: a bridged call costs {times:.2} times the CPU of one that is not.", line.era);
        }
        for (way, bytes) in &self.resident_at_rest {
            println!("{} at rest: {:.1} MiB", way.name(), mebibytes(*bytes as f64));
        }
    }
}

/// One line a round, so that a long run is seen to live.
pub(super) fn progress(era: Era, round: usize, samples: &[Sample]) {
    let figures: Vec<String> = samples
        .iter()
        .filter(|sample| sample.round == round && sample.era == era.revision())
        .map(|sample| {
            let closed = &sample.closed;
            format!("{} {:.0}/s {:.1} us", sample.way.name(), closed.per_second, closed.cpu_micros_per_call)
        })
        .collect();
    eprintln!("{} round {}: {}", era.revision(), round + 1, figures.join(", "));
}

fn line(samples: &[Sample], era: Era, way: Way) -> Option<Line> {
    let of = |way: Way| -> Vec<&Sample> {
        samples.iter().filter(|sample| sample.era == era.revision() && sample.way == way).collect()
    };
    let own = of(way);
    if own.is_empty() {
        return None;
    }
    let floor = of(Way::PassThrough);
    let all = |figure: fn(&Sample) -> f64| median(own.iter().map(|sample| figure(sample)).collect());
    let ratio = |figure: fn(&Sample) -> f64| {
        median(own.iter().zip(&floor).map(|(sample, floor)| figure(sample) / figure(floor)).collect())
    };
    let open =
        |sample: &Sample, figure: fn(&super::Measured) -> f64| sample.open.as_ref().map_or(0.0, figure);
    let opens =
        |figure: fn(&super::Measured) -> f64| median(own.iter().map(|sample| open(sample, figure)).collect());
    Some(Line {
        era: era.revision().to_owned(),
        way,
        per_second: all(|sample| sample.closed.per_second),
        closed_p50: all(|sample| sample.closed.p50),
        closed_p99: all(|sample| sample.closed.p99),
        closed_p999: all(|sample| sample.closed.p999),
        open_rate: opens(|open| open.per_second),
        open_p50: opens(|open| open.p50),
        open_p99: opens(|open| open.p99),
        open_p999: opens(|open| open.p999),
        cpu_micros_per_call: all(|sample| sample.closed.cpu_micros_per_call),
        cpu_ratio: ratio(|sample| sample.closed.cpu_micros_per_call),
        p50_ratio: ratio(|sample| sample.open.as_ref().map_or(f64::NAN, |open| open.p50)),
        per_second_ratio: ratio(|sample| sample.closed.per_second),
        resident_bytes: own
            .iter()
            .map(|sample| {
                sample.closed.resident_bytes.max(open(sample, |open| open.resident_bytes as f64) as u64)
            })
            .max()
            .unwrap_or(0) as f64,
    })
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

fn mebibytes(bytes: f64) -> f64 {
    bytes / 1024.0 / 1024.0
}
