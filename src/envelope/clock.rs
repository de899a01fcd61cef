//! The time that the core goes by.

use std::fmt;

use nimbus_manifests::Timestamp;

use crate::clock::{self, Moment};

/// Where the core takes the time from; tests inject their own.
pub trait Clock: fmt::Debug + Send + Sync {
    /// The time now, UTC to the second.
    fn now(&self) -> Timestamp;

    /// A moment that only moves forward, for leases.
    fn moment(&self) -> Moment {
        Moment::now()
    }
}

/// The clock of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let seconds = clock::now().as_second();
        Timestamp::from_unix(seconds).expect("the clock is held between the years 1970 and 9998")
    }
}
