//! What this process asks of its operating system: hardening at start, open files, and the lock on
//! a data directory.

#[expect(
    unsafe_code,
    reason = "memory apart from the heap comes from mmap, and its pages are locked and kept out of dumps by address"
)]
mod arena;
mod control_socket;
mod disk;
#[expect(unsafe_code, reason = "an end that runs no handler is a foreign call")]
mod exit;
mod files;
mod hardening;
mod home;
mod lock;
#[expect(
    unsafe_code,
    reason = "only the C library can give back what it keeps, and only to a foreign call"
)]
mod memory;
mod new_file;
mod service;
#[expect(
    unsafe_code,
    reason = "an allocator is made of unsafe calls, and wipes the blocks that it owns"
)]
mod wiping;

pub(crate) use arena::Arena;
pub(crate) use control_socket::Place;
pub use control_socket::{ANSWERS_WITHIN, ControlListener, ControlSocket, ControlSocketError};
pub use disk::{Disk, Limits, Reserve, free_bytes};
pub use exit::exit_now;
pub use files::{FileLimit, files_ran_out, is_exhaustion, most_open_tenants};
pub use hardening::{Hardening, harden};
pub use home::{HomeError, user_dir};
pub(crate) use lock::process;
pub use lock::{DataDirLock, Holder, LockError, LockId, holder};
pub use memory::{give_back, note_freed};
pub(crate) use new_file::{NewFile, nameless_file};
pub use service::{InheritedError, inherited_listener, notify};
pub use wiping::WipingAllocator;

/// How much memory this process may use: the machine's, or what its container is limited to. `None`
/// where neither exists.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "files of the kernel, and no database"
)]
pub fn memory_limit() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok();
    let machine = machine.and_then(|text| {
        let kib = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = kib.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    });
    // Without a limit it says `max`.
    let container = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let container = container.and_then(|text| text.trim().parse().ok());
    machine.into_iter().chain(container).min()
}
