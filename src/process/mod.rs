//! What this process asks of its operating system: hardening at start, open files, and the lock on a data directory.

mod files;
mod hardening;
mod lock;

pub use files::raise_file_limit;
pub use hardening::{Hardening, harden};
pub use lock::{DataDirLock, LockError, RunningServer, running_server};
