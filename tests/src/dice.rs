//! Numbers that look random and are the same in every run, for tests that make things up: a failure names the state, and
//! from there it happens again.

/// Marsaglia's xorshift of 64 bits (Journal of Statistical Software 8(14), 2003).
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// From a state that is not 0.
    pub fn new(state: u64) -> Self {
        assert_ne!(state, 0, "zero is followed by zeros");
        Self(state)
    }

    /// What `new` takes to go on from here.
    pub fn state(&self) -> u64 {
        self.0
    }

    /// A number below `sides`.
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).unwrap()
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len())]
    }
}
