//! Freed memory goes back to the operating system.
//!
//! The C library keeps what a closed connection has freed, for the next that asks. With many
//! tenants at rest that is most of what the process holds, and there may be no next.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Much was freed that is not soon needed again.
static FREED: AtomicBool = AtomicBool::new(false);
static LAST: Mutex<Option<Instant>> = Mutex::new(None);

/// Says that much was freed that is not soon needed again; whoever calls [`give_back`] next gives
/// it back.
pub fn note_freed() {
    FREED.store(true, Ordering::Relaxed);
}

/// Gives back what was noted as freed, now and then. Costs nothing otherwise. May take
/// milliseconds: for threads with nothing else to do.
pub fn give_back() {
    if !FREED.load(Ordering::Relaxed) {
        return;
    }
    {
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < PAUSE) {
            return;
        }
        *last = Some(Instant::now());
    }
    FREED.store(false, Ordering::Relaxed);
    trim();
}

#[cfg(target_env = "gnu")]
fn trim() {
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    // SAFETY: glibc has it, by this name and with this signature; it may be called at any time by
    // any thread.
    let _given_back = unsafe { malloc_trim(0) };
}

/// Other C libraries give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
fn trim() {}

/// While it works, it holds up those who allocate.
const PAUSE: Duration = Duration::from_secs(5);
