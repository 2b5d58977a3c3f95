//! The count of one subject of a limit: what was spent here, what the shared store lets this proxy spend without asking
//! again, and since when it refuses. No I/O; time is an argument, in microseconds.

use waffles_core::limit::{Shape, Tally};

/// Asked for again so soon after the last grant, more is asked for at once.
const HURRY: u64 = 50_000;
/// One part in so many of a limit is the most that is taken from the store at once, by all proxies together.
const PARTS: u64 = 32;
/// A grant is good for one part in so many of the window, and no longer than this.
const LIFE_PARTS: u64 = 10;
const LIFE_MOST: u64 = 10_000_000;
/// How long the word of the store that nothing more may be opened is taken for granted.
const FULL_FOR: u64 = 100_000;
/// When to come again where something has to be closed first.
const LATER: u64 = 1_000_000;

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// This proxy, for there is no shared store.
    Alone,
    /// The shared store, with so many proxies that count with it.
    Shared(u64),
    /// This proxy, by its share of the limit: the shared store does not answer, and so many proxies counted with it last.
    Share(u64),
}

/// Where a caller stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// How many more may come.
    pub(super) remaining: u64,
    /// In how many microseconds as many may come as ever.
    pub(super) reset: u64,
    /// In how many microseconds the next may come.
    pub(super) wait: u64,
}

/// What comes of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Take {
    Granted(Left),
    Refused(Left),
    /// Only the shared store knows.
    Ask,
}

/// The count of one subject.
#[derive(Debug, Default)]
pub(super) struct State {
    shape: Option<Shape>,
    /// What was spent here.
    tally: Tally,
    /// What may be spent without asking, and until when.
    lease: u64,
    lease_until: u64,
    /// How much is asked for at once.
    slice: u64,
    granted_at: u64,
    /// What the store had left when it was last asked.
    remaining: u64,
    /// The store refuses until then.
    refused_until: u64,
    /// What was spent here that the store does not know of.
    unreported: u64,
    /// What it knew when it answered last.
    answered: Option<Answered>,
    /// How many may be open here at once, by the store's leave.
    seats: u64,
}

/// What was known when the store answered.
#[derive(Debug, Clone, Copy)]
struct Answered {
    at: u64,
    /// What it had left.
    left: u64,
    /// What had been spent here.
    told: u64,
}

/// What the store is told and asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// How much to spend, or how much to have open.
    pub(super) want: u64,
    /// What was spent meanwhile.
    pub(super) unreported: u64,
    /// What was spent here and told before; counts where the store has forgotten.
    pub(super) told: u64,
}

/// What the store answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Granted {
    /// How much of it is granted.
    pub(super) granted: u64,
    /// What is left beside.
    pub(super) remaining: u64,
    /// In how many microseconds there is more, where less than wanted was granted.
    pub(super) wait: u64,
}

impl State {
    /// What was spent here in the window that ends now.
    pub(super) fn used(&mut self, shape: Shape, now: u64) -> u64 {
        self.reshape(shape, now);
        self.tally.used(shape, now)
    }

    /// A limit that got another window keeps what was spent, as if it had been spent now.
    fn reshape(&mut self, shape: Shape, now: u64) {
        match self.shape {
            Some(old) if old != shape => {
                let used = self.tally.used(old, now);
                *self = Self { shape: Some(shape), ..Self::default() };
                if used > 0 {
                    self.tally.add(shape, now, used);
                }
            }
            _ => self.shape = Some(shape),
        }
    }

    /// Spends one, if that may be decided here.
    pub(super) fn take(&mut self, shape: Shape, now: u64, most: u64, mode: Mode) -> Take {
        self.reshape(shape, now);
        let leased = self.lease > 0 && now < self.lease_until;
        match mode {
            Mode::Alone => self.take_here(shape, now, most),
            Mode::Shared(_) => {
                // Whatever the store has forgotten: no more than the whole limit passes here. The slot that is past by
                // half is not counted, so that this is never stricter than the store.
                let own = Shape { slots: shape.slots.saturating_sub(2).max(1), ..shape };
                if self.tally.used(shape, now) >= most && self.tally.recent(own, now) >= most {
                    return Take::Refused(self.left(shape, now, self.tally.clone().wait(own, now, most)));
                }
                if leased {
                    self.lease -= 1;
                    self.tally.add(shape, now, 1);
                    return Take::Granted(self.left(shape, now, 0));
                }
                if now < self.refused_until {
                    return Take::Refused(self.left(shape, now, self.refused_until - now));
                }
                Take::Ask
            }
            Mode::Share(proxies) => {
                if leased && self.tally.used(shape, now) < most {
                    self.lease -= 1;
                    self.tally.add(shape, now, 1);
                    return Take::Granted(self.left(shape, now, 0));
                }
                if now < self.refused_until {
                    return Take::Refused(self.left(shape, now, self.refused_until - now));
                }
                let proxies = proxies.max(1);
                let Some(answered) =
                    self.answered.filter(|known| now.saturating_sub(known.at) < shape.length())
                else {
                    let taken = self.take_here(shape, now, most.div_ceil(proxies));
                    self.unreported += u64::from(matches!(taken, Take::Granted(_)));
                    return taken;
                };
                // What was left when the store answered last is for all proxies alike; beside it comes back what this one
                // had spent before.
                let used = self.tally.used(shape, now);
                let aged = answered.told.saturating_sub(used.saturating_sub(self.unreported));
                let may = answered.left.div_ceil(proxies).saturating_add(aged);
                if self.unreported >= may || used >= most {
                    let wait = if used > 0 { self.tally.wait(shape, now, used) } else { LATER };
                    return Take::Refused(Left { remaining: 0, ..self.left(shape, now, wait) });
                }
                self.tally.add(shape, now, 1);
                self.unreported += 1;
                let remaining = may.saturating_sub(self.unreported);
                Take::Granted(Left { remaining, ..self.left(shape, now, 0) })
            }
        }
    }

    fn take_here(&mut self, shape: Shape, now: u64, most: u64) -> Take {
        match self.tally.take(shape, now, most) {
            Ok(()) => {
                let remaining = most.saturating_sub(self.tally.used(shape, now));
                Take::Granted(Left { remaining, reset: self.tally.clear_in(shape, now), wait: 0 })
            }
            Err(wait) => Take::Refused(Left { remaining: 0, reset: self.tally.clear_in(shape, now), wait }),
        }
    }

    fn left(&self, shape: Shape, now: u64, wait: u64) -> Left {
        let remaining = self.lease.saturating_add(self.remaining);
        Left { remaining, reset: self.tally.clear_in(shape, now).max(wait), wait }
    }

    /// Takes back what was spent last, which nothing came of.
    pub(super) fn give_back(&mut self) {
        self.tally.give_back(1);
        match self.unreported {
            0 => self.lease = self.lease.saturating_add(1),
            _ => self.unreported -= 1,
        }
    }

    /// Opens one more beside those that are open, if that may be decided here.
    pub(super) fn enter(&mut self, now: u64, open: u64, most: u64, mode: Mode) -> Take {
        let (may, known) = match mode {
            Mode::Alone => (most, true),
            Mode::Shared(_) => (self.seats.min(most), now < self.refused_until),
            Mode::Share(proxies) => (most.div_ceil(proxies.max(1)).max(self.seats).min(most), true),
        };
        if open < may {
            let remaining = may.saturating_sub(open).saturating_sub(1).saturating_add(self.remaining);
            return Take::Granted(Left { remaining: remaining.min(most), reset: 0, wait: 0 });
        }
        match known || open >= most {
            true => Take::Refused(Left { remaining: 0, reset: 0, wait: LATER }),
            false => Take::Ask,
        }
    }

    /// What to ask the store for, when so many wait for it.
    pub(super) fn wanted(&mut self, shape: Shape, now: u64, most: u64, waiting: u64, proxies: u64) -> Wanted {
        self.reshape(shape, now);
        let top = (most / PARTS / proxies.max(1)).max(1);
        self.slice = match now.saturating_sub(self.granted_at) < HURRY {
            true => self.slice.saturating_mul(2).clamp(1, top),
            false => 1,
        };
        let used = self.tally.used(shape, now);
        Wanted {
            want: self.slice.max(waiting).min(most),
            unreported: self.unreported.min(used),
            told: used.saturating_sub(self.unreported),
        }
    }

    /// What the store answered.
    pub(super) fn granted(&mut self, shape: Shape, now: u64, wanted: Wanted, answer: Granted) {
        let life = (shape.length() / LIFE_PARTS).clamp(shape.step.min(LIFE_MOST), LIFE_MOST);
        if now >= self.lease_until {
            self.lease = 0;
        }
        if answer.granted > 0 {
            self.lease = self.lease.saturating_add(answer.granted);
            self.lease_until = now.saturating_add(life);
            self.granted_at = now;
        }
        self.remaining = answer.remaining;
        self.unreported = self.unreported.saturating_sub(wanted.unreported);
        let told = self.tally.used(shape, now).saturating_sub(self.unreported);
        self.answered = Some(Answered { at: now, left: answer.remaining, told });
        self.refused_until =
            if answer.granted < wanted.want { now.saturating_add(answer.wait.max(1)) } else { 0 };
    }

    /// What the store answered about what may be open.
    pub(super) fn seated(&mut self, now: u64, wanted: u64, answer: Granted) {
        self.seats = answer.granted;
        self.remaining = answer.remaining;
        self.refused_until = if answer.granted < wanted { now.saturating_add(FULL_FOR) } else { 0 };
    }

    /// Whether the store gave leave for more than is open.
    pub(super) fn has_spare_seats(&self, open: u64) -> bool {
        self.seats > open
    }

    /// Whether nothing is counted any more.
    pub(super) fn is_clear(&mut self, now: u64) -> bool {
        let leased = self.lease > 0 && now < self.lease_until;
        let spent = self.shape.is_some_and(|shape| !self.tally.is_clear(shape, now));
        !leased && !spent && now >= self.refused_until && self.seats == 0
    }
}
