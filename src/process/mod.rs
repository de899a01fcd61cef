//! What this process asks of its operating system: hardening at start, and the lock on a data directory.

mod hardening;
mod lock;

pub use hardening::{Hardening, harden};
pub use lock::{DataDirLock, LockError, RunningServer, running_server};
