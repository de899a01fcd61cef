//! The scheduler's clock.

use std::fmt::Debug;

use crate::clock;

/// A clock that people set, forward and back.
pub trait Clock: Debug + Send + Sync {
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> i64;
}

/// The system's.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> i64 {
        clock::now_ms()
    }
}
