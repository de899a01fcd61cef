//! Memory for content that is kept in the clear: apart from the heap, out of core dumps, and locked
//! where the limit allows.

use std::io;
use std::ptr;

use rustix::mm::{Advice, MapFlags, MlockFlags, ProtFlags, madvise, mlock_with, mmap_anonymous};

/// Memory of this process until its end, all zeros. What is never touched costs nothing.
#[derive(Debug)]
pub(crate) struct Arena {
    /// The memory; it begins at a page of the operating system's.
    pub(crate) memory: &'static mut [u8],
    /// The kernel agreed to lock it: it is never written to swap.
    pub(crate) is_locked: bool,
}

impl Arena {
    /// Takes `bytes` of address space, and locks each page when it is first touched.
    ///
    /// # Errors
    ///
    /// The kernel gives no more.
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without an address the kernel chooses one where nothing lies.
        let start =
            unsafe { mmap_anonymous(ptr::null_mut(), bytes, protection, MapFlags::PRIVATE) }?;
        // SAFETY: the range is the mapping that was just made. The advice does not change its
        // content; a kernel that does not know it refuses, and no core file is written all the same
        // (`hardening`).
        let _refused = unsafe { madvise(start, bytes, Advice::LinuxDontDump) };
        let is_locked = leaves_room_for_keys(bytes) && {
            // SAFETY: as above; locking does not change its content.
            unsafe { mlock_with(start, bytes, MlockFlags::ONFAULT) }.is_ok()
        };
        // SAFETY: the mapping is readable and writable, zeroed, this long, never unmapped, and
        // nobody else has its address.
        let memory = unsafe { std::slice::from_raw_parts_mut(start.cast(), bytes) };
        Ok(Self { memory, is_locked })
    }
}

/// Whether keys can still be locked once `bytes` are. Above the limit only a privileged process
/// locks anything, and that one without a limit.
fn leaves_room_for_keys(bytes: usize) -> bool {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    limit.is_none_or(|limit| limit < bytes as u64 || limit - bytes as u64 >= KEYS)
}

/// Of 32768 keys.
const KEYS: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_zeros_that_can_be_written_and_stay_out_of_dumps() {
        let arena = Arena::new(1 << 20).unwrap();
        assert!(arena.memory.iter().all(|byte| *byte == 0));
        arena.memory.fill(7);
        let start = format!("{:x}-", arena.memory.as_ptr().addr());
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
        let flags = lines.find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(flags.contains(" dd"), "{flags}");
        assert_eq!(flags.contains(" lo"), arena.is_locked, "{flags}");
    }

    #[test]
    fn refuses_more_than_there_are_addresses() {
        assert!(Arena::new(1 << 60).is_err());
    }
}
