use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::super::admission::Priority;
use super::*;

const TARGET: Duration = Duration::from_millis(10);
const TICK: u64 = 5_000;
/// What one call costs, and what it costs to turn one away, in microseconds.
const CALL: u64 = 80;
const REFUSAL: u64 = 12;
/// How long a client thinks between two calls.
const THINK: u64 = 100_000;
/// Calls a second that the thread could serve.
const CAPACITY: f64 = 1e6 / CALL as f64;

/// What came of a simulated thread, second by second.
#[derive(Debug, Default, Clone)]
struct Second {
    served: u32,
    refused: u32,
    waits: Vec<u64>,
}

/// One thread and clients that call, think, and call again; who was refused waits a second or two, as told. `clients` says
/// how many there are in each second.
fn simulate(clients: &[usize]) -> (Vec<Second>, u32) {
    let start = Instant::now();
    let at = |micros: u64| start + Duration::from_micros(micros);
    let mut lag = Lag::new(TARGET);
    let mut seconds = vec![Second::default(); clients.len()];
    let (mut clock, mut pressure, mut dice) = (0_u64, 0, 12345_u32);
    let mut tick_due = TICK;
    // The ticker takes its turn behind those that were due before it.
    let mut tick_waits = false;
    let mut thinking: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
    let mut queue: VecDeque<(u64, Option<usize>)> = VecDeque::new();
    let mut known = 0;
    while let Some(now) = seconds.get_mut((clock / 1_000_000) as usize) {
        let wanted = clients[(clock / 1_000_000) as usize];
        while known < wanted {
            thinking.push(Reverse((clock + (known as u64 * 7919) % THINK, known)));
            known += 1;
        }
        known = known.min(wanted);
        while let Some(Reverse((due, client))) = thinking.peek().copied().filter(|next| next.0.0 <= clock) {
            thinking.pop();
            if client < wanted {
                queue.push_back((due, Some(client)));
            }
        }
        if tick_due <= clock && !tick_waits {
            tick_waits = true;
            queue.push_back((tick_due, None));
        }
        dice ^= dice << 13;
        dice ^= dice >> 17;
        dice ^= dice << 5;
        match queue.pop_front() {
            None => clock += 10,
            Some((due, None)) => {
                pressure = lag.sample(at(clock), Duration::from_micros(clock - due));
                tick_due = clock + TICK;
                tick_waits = false;
            }
            Some((due, Some(client))) if (dice >> 8) % WHOLE < Priority::Call.share(pressure) => {
                clock += REFUSAL;
                now.refused += 1;
                now.waits.push(clock - due);
                thinking.push(Reverse((clock + 1_000_000 + u64::from(dice % 1_000_000), client)));
            }
            Some((due, Some(client))) => {
                clock += CALL;
                now.served += 1;
                now.waits.push(clock - due);
                thinking.push(Reverse((clock + THINK, client)));
            }
        }
    }
    for second in &mut seconds {
        second.waits.sort_unstable();
    }
    (seconds, pressure)
}

/// How many clients ask for so many times what the thread can serve.
fn clients(times: f64) -> usize {
    (times * CAPACITY * (THINK + CALL) as f64 / 1e6) as usize
}

fn p99(second: &Second) -> Duration {
    let rank = second.waits.len() * 99 / 100;
    Duration::from_micros(second.waits.get(rank).copied().unwrap_or(0))
}

#[test]
fn a_thread_below_its_capacity_turns_nobody_away() {
    let (seconds, pressure) = simulate(&[clients(0.9); 5]);
    assert!(seconds.iter().all(|second| second.refused == 0));
    assert_eq!(pressure, 0);
}

#[test]
fn goodput_and_delay_hold_at_ten_times_the_capacity() {
    for (times, least) in [(2.0, 0.95), (4.0, 0.9), (10.0, 0.8)] {
        let (seconds, _) = simulate(&[clients(times); 12]);
        // The first seconds are those in which everybody comes at once.
        let steady = &seconds[4..];
        let served: u32 = steady.iter().map(|second| second.served).sum();
        let goodput = f64::from(served) / steady.len() as f64 / CAPACITY;
        let worst = steady.iter().map(p99).max().unwrap();
        assert!(goodput >= least, "{times} times: goodput {goodput:.3}, p99 {worst:?}");
        assert!(worst < TARGET * 5, "{times} times: goodput {goodput:.3}, p99 {worst:?}");
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
