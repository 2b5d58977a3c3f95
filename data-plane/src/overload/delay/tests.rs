use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::super::admission::Priority;
use super::super::{SHORT_TICK, TICK};
use super::*;

const TARGET: Duration = Duration::from_millis(7);
/// What a call costs before it goes to its server and when its answer has come, and what it costs to turn one away, in
/// microseconds.
const ASK: u64 = 100;
const ANSWER: u64 = 25;
const REFUSAL: u64 = 15;
/// After so many steps of work it looks for what has come.
const LOOK_EVERY: u32 = 61;
/// How long its server takes.
const SERVER: u64 = 200;
/// How long a client thinks between two calls, in the mean.
const THINK: u64 = 100_000;
/// Calls a second that the thread could serve.
const CAPACITY: f64 = 1e6 / (ASK + ANSWER) as f64;

/// What came of a simulated thread, second by second.
#[derive(Debug, Default, Clone)]
struct Second {
    served: u32,
    refused: u32,
    /// How long answers took, and refusals.
    waits: Vec<u64>,
    refusals: Vec<u64>,
}

/// What the thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// It looks how late it is.
    Tick,
    /// A call of this client has come.
    Ask(usize),
    /// The answer to a call that came then.
    Answer(usize, u64),
}

/// One thread and clients that call, think, and call again; who was refused waits a second or two, as told. `clients` says
/// how many there are in each second.
fn simulate(clients: &[usize]) -> (Vec<Second>, u32) {
    let start = Instant::now();
    let at = |micros: u64| start + Duration::from_micros(micros);
    let mut lag = Lag::new(TARGET);
    let mut seconds = vec![Second::default(); clients.len()];
    let (mut clock, mut pressure, mut dice) = (0_u64, 0, 12345_u32);
    let micros = |time: Duration| time.as_micros() as u64;
    // What will come; what has come and was seen, in the order in which it was.
    let mut coming = BinaryHeap::from([Reverse((micros(TICK), Step::Tick))]);
    let mut queue: VecDeque<(u64, Step)> = VecDeque::new();
    let (mut known, mut steps) = (0, 0);
    while let Some(now) = seconds.get_mut((clock / 1_000_000) as usize) {
        let wanted = clients[(clock / 1_000_000) as usize];
        while known < wanted {
            coming.push(Reverse((clock + (known as u64 * 7919) % THINK, Step::Ask(known))));
            known += 1;
        }
        known = known.min(wanted);
        if steps == 0 || queue.is_empty() {
            steps = LOOK_EVERY;
            while let Some(Reverse((due, step))) = coming.peek().copied().filter(|next| next.0.0 <= clock) {
                coming.pop();
                if !matches!(step, Step::Ask(client) if client >= wanted) {
                    queue.push_back((due, step));
                }
            }
        }
        steps -= 1;
        dice ^= dice << 13;
        dice ^= dice >> 17;
        dice ^= dice << 5;
        match queue.pop_front() {
            None => clock += 10,
            Some((due, Step::Tick)) => {
                pressure = lag.sample(at(clock), Duration::from_micros(clock - due));
                let tick = if lag.is_wary() { SHORT_TICK } else { TICK };
                coming.push(Reverse((clock + micros(tick), Step::Tick)));
            }
            Some((due, Step::Ask(client))) if (dice >> 8) % WHOLE < Priority::Call.share(pressure) => {
                clock += REFUSAL;
                now.refused += 1;
                now.refusals.push(clock - due);
                let after =
                    (1_000_000 + u64::from(dice & 1) * 1_000_000) * (1000 + u64::from(dice % 500)) / 1000;
                coming.push(Reverse((clock + after, Step::Ask(client))));
            }
            Some((due, Step::Ask(client))) => {
                clock += ASK / 2 + ASK * u64::from(dice % 1000) / 1000;
                coming.push(Reverse((clock + SERVER, Step::Answer(client, due))));
            }
            Some((_, Step::Answer(client, since))) => {
                clock += ANSWER;
                now.served += 1;
                now.waits.push(clock - since);
                let think = THINK / 2 + THINK * u64::from(dice % 1000) / 1000;
                coming.push(Reverse((clock + think, Step::Ask(client))));
            }
        }
    }
    for second in &mut seconds {
        second.waits.sort_unstable();
        second.refusals.sort_unstable();
    }
    (seconds, pressure)
}

/// How many clients ask for so many times what the thread can serve.
fn clients(times: f64) -> usize {
    (times * CAPACITY * THINK as f64 / 1e6) as usize
}

fn p99(waits: &[u64]) -> Duration {
    Duration::from_micros(waits.get(waits.len() * 99 / 100).copied().unwrap_or(0))
}

#[test]
fn a_thread_below_its_capacity_turns_nobody_away() {
    let (seconds, pressure) = simulate(&[clients(0.9); 5]);
    assert!(seconds.iter().all(|second| second.refused == 0));
    assert_eq!(pressure, 0);
}

#[test]
fn goodput_and_delay_hold_at_ten_times_the_capacity() {
    for (times, least) in [(1.0, 0.9), (2.0, 0.95), (4.0, 0.9), (10.0, 0.85)] {
        let (seconds, _) = simulate(&[clients(times); 14]);
        // The first seconds are those in which everybody comes at once.
        let steady = &seconds[4..];
        let served: u32 = steady.iter().map(|second| second.served).sum();
        let refused: u32 = steady.iter().map(|second| second.refused).sum();
        let goodput = f64::from(served) / steady.len() as f64 / CAPACITY;
        let worst = steady.iter().map(|second| p99(&second.waits)).max().unwrap();
        let refusals = steady.iter().map(|second| p99(&second.refusals)).max().unwrap();
        let told =
            format!("{times} times: goodput {goodput:.3}, p99 {worst:?}, of {refused} refusals {refusals:?}");
        assert!(goodput >= least && worst < TARGET * 5 && refusals < TARGET * 3, "{told}");
    }
}

#[test]
fn when_the_load_is_gone_nobody_is_turned_away_within_two_seconds() {
    let heavy = clients(10.0);
    let (seconds, pressure) =
        simulate(&[heavy, heavy, heavy, heavy, clients(0.5), clients(0.5), clients(0.5)]);
    assert_eq!(
        seconds[6].refused,
        0,
        "{:?}",
        seconds.iter().map(|s| (s.served, s.refused)).collect::<Vec<_>>()
    );
    assert_eq!(pressure, 0);
}

#[test]
fn a_burst_is_let_be_and_a_standing_queue_is_not() {
    let mut lag = Lag::new(TARGET);
    let start = Instant::now();
    let at = |millis: u64| start + Duration::from_millis(millis);
    let late = TARGET * 5;
    for millis in (0..100).step_by(5) {
        assert_eq!(lag.sample(at(millis), late), 0, "after {millis} ms");
    }
    assert!(lag.sample(at(100), late) > 0);
    let mut other = Lag::new(TARGET);
    for millis in (0..1000).step_by(5) {
        let late = if millis % 50 == 0 { Duration::ZERO } else { late };
        assert_eq!(other.sample(at(millis), late), 0, "it is on time now and then");
    }
}

#[test]
fn a_thread_that_was_stopped_is_not_overloaded() {
    let mut lag = Lag::new(TARGET);
    let start = Instant::now();
    assert_eq!(lag.sample(start, Duration::ZERO), 0);
    assert_eq!(lag.sample(start + Duration::from_secs(30), Duration::from_secs(30)), 0);
    assert_eq!(lag.sample(start + Duration::from_secs(31), Duration::ZERO), 0);
}
