//! Numbers that a seed determines.

pub(crate) struct Random(u64);

impl Random {
    /// The numbers of one worker.
    pub(crate) fn new(seed: u64, worker: u64) -> Self {
        let mixed =
            (seed ^ worker.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        Self(mixed | 1)
    }

    /// Marsaglia's xorshift64.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}
