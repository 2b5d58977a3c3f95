//! The figures as a table and as JSON.

use serde::Serialize;

use super::compare::median;
use super::load::EVENTS;
use super::{Sample, Shape, Way};
use crate::{Era, Figure};

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
    shape: Shape,
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
    /// In the closed loop.
    closed_p50_ratio: f64,
    per_second_ratio: f64,
    resident_bytes: f64,
}

impl Report {
    pub(super) fn new(connections: usize, resident_at_rest: Vec<(Way, u64)>, samples: Vec<Sample>) -> Self {
        let mut medians = Vec::new();
        for era in Era::BOTH {
            for shape in [Shape::Echo, Shape::Large, Shape::Events] {
                for way in [Way::Direct, Way::PassThrough, Way::Waffles, Way::Bridged, Way::Tokens, Way::Tls]
                {
                    medians.extend(line(&samples, era, shape, way));
                }
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
            "{:<11} {:<7} {:<13} {:>8} {:>8} {:>8} {:>8} | {:>7} {:>8} {:>8} {:>8} | {:>8} {:>7} {:>9}",
            "era",
            "answer",
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
                "{:<11} {:<7} {:<13} {:>8.0} {:>8.0} {:>8.0} {:>8.0} | {:>7.0} {:>8.0} {:>8.0} {:>8.0} | {:>8.1} {:>7} {:>9.1}",
                line.era,
                line.shape.tool(),
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
        println!("\nLatency of events is that of the first one; they are {} a call.\n", EVENTS + 1);
        for line in &self.medians {
            for (what, goal, most, seen) in self.judged(line) {
                let met = if most { seen <= goal } else { seen >= goal };
                Figure {
                    promise: "bench".into(),
                    what: format!("{}: {what}", line.era),
                    goal: format!("{} {goal:.2} × pass-through", if most { "≤" } else { "≥" }),
                    measured: format!("{seen:.2}"),
                    extent: format!("median of {rounds} rounds"),
                    met,
                }
                .note();
            }
        }
        for (way, bytes) in &self.resident_at_rest {
            println!("{} at rest: {:.1} MiB", way.name(), mebibytes(*bytes as f64));
        }
    }
}

impl Report {
    /// What a line is judged by: what it is, the goal, whether that is the most or the least, and what was seen.
    fn judged(&self, line: &Line) -> Vec<(&'static str, f64, bool, f64)> {
        match (line.way, line.shape) {
            (Way::Waffles, Shape::Echo) => vec![
                ("CPU of a call", 1.35, true, line.cpu_ratio),
                ("calls a second", 0.75, false, line.per_second_ratio),
                ("p50 at 1000 calls a second", 1.15, true, line.p50_ratio),
            ],
            (Way::Waffles, Shape::Large) => vec![("CPU of a call of 64 KiB", 1.15, true, line.cpu_ratio)],
            (Way::Waffles, Shape::Events) => vec![
                ("CPU of an event", 1.25, true, line.cpu_ratio),
                ("time to the first event", 1.2, true, line.closed_p50_ratio),
            ],
            (Way::Bridged, _) => vec![("CPU of a bridged call", 1.6, true, line.cpu_ratio)],
            (Way::Tokens, _) => vec![("CPU of a call with a new token", 2.5, true, line.cpu_ratio)],
            _ => Vec::new(),
        }
    }
}

/// One line a round, so that a long run is seen to live.
pub(super) fn progress(era: Era, shape: Shape, round: usize, samples: &[Sample]) {
    let figures: Vec<String> = samples
        .iter()
        .filter(|sample| sample.round == round && sample.era == era.revision() && sample.shape == shape)
        .map(|sample| {
            let closed = &sample.closed;
            format!("{} {:.0}/s {:.1} us", sample.way.name(), closed.per_second, closed.cpu_micros_per_call)
        })
        .collect();
    eprintln!("{} {} round {}: {}", era.revision(), shape.tool(), round + 1, figures.join(", "));
}

fn line(samples: &[Sample], era: Era, shape: Shape, way: Way) -> Option<Line> {
    let of = |way: Way| -> Vec<&Sample> {
        let fits =
            |sample: &&Sample| sample.era == era.revision() && sample.way == way && sample.shape == shape;
        samples.iter().filter(fits).collect()
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
        shape,
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
        closed_p50_ratio: ratio(|sample| sample.closed.p50),
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

fn mebibytes(bytes: f64) -> f64 {
    bytes / 1024.0 / 1024.0
}
