//! How many files are read or written at a time: many small ones, and few large ones, so that what
//! is in memory has a bound.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Room in memory for the objects of files that are read or written side by side.
#[derive(Debug)]
pub(super) struct Room(Semaphore);

impl Default for Room {
    fn default() -> Self {
        Self(Semaphore::new(MOST as usize))
    }
}

impl Room {
    /// Room for a file of so many bytes: for an object, and two that are on their way.
    pub(super) async fn take(&self, bytes: u64) -> SemaphorePermit<'_> {
        let object = u32::try_from(bytes >> 20).unwrap_or(u32::MAX).min(16) + 1;
        let taken = self.0.acquire_many(OBJECTS * object).await;
        taken.expect("nobody closes it")
    }
}

/// Files at a time.
pub(super) const AT_ONCE: usize = 12;
/// MiB: two of the largest, or twelve small ones.
const MOST: u32 = 102;
const OBJECTS: u32 = 3;
