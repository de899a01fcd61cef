//! What this process asks of its operating system: hardening at start, open files, and the lock on a data directory.

mod files;
mod hardening;
mod lock;
#[expect(
    unsafe_code,
    reason = "only the C library can give back what it keeps, and only to a foreign call"
)]
mod memory;
mod service;
#[expect(
    unsafe_code,
    reason = "an allocator is made of unsafe calls, and wipes the blocks that it owns"
)]
mod wiping;

pub use files::raise_file_limit;
pub use hardening::{Hardening, harden};
pub use lock::{DataDirLock, LockError, RunningServer, running_server};
pub use memory::{give_back, note_freed};
pub use service::{inherited_listener, notify};
pub use wiping::WipingAllocator;
