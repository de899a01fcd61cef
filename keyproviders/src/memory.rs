//! Memory that key bytes live in: whole pages, locked and kept out of core dumps, wiped on release.
//!
//! Keys are 32 bytes and a page is 4096 or more, so one page holds many keys: a process under the
//! common `RLIMIT_MEMLOCK` of 64 KiB can still lock about two thousand keys, where a page a key
//! would run out after sixteen. Pages are taken from the allocator once, locked once, and never
//! given back: what was ever key memory never becomes ordinary memory, and `munlock` (which is
//! not counted, so that one call would unlock a neighbour's key) is never needed.
//!
//! Locking is best effort: without the limit for it the keys still work and [`locked_memory`]
//! says so. What locking does not give: hibernation writes locked pages to disk, and anyone who
//! may read this process's memory reads the keys.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use zeroize::Zeroize;

/// The length of every key in this crate.
pub const KEY_BYTES: usize = 32;

/// How much key memory the process holds, and how much of it the kernel agreed to lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockedMemory {
    /// Bytes of key pages that `mlock` accepted: they are never written to swap.
    pub locked_bytes: usize,
    /// Bytes of key pages that it refused (`RLIMIT_MEMLOCK`): keys in them may reach swap.
    pub unlocked_bytes: usize,
    /// Keys held in those pages right now.
    pub keys: usize,
}

/// What the process's key memory looks like now; for a start-up line and for metrics.
///
/// It takes one page if none was taken yet, so that the answer at start-up is a measurement.
#[must_use]
pub fn locked_memory() -> LockedMemory {
    let mut pool = pool();
    if pool.report.locked_bytes + pool.report.unlocked_bytes == 0 {
        pool.grow();
    }
    pool.report
}

/// 32 bytes in a key page; wiped when dropped.
pub(crate) struct KeyBytes(NonNull<[u8; KEY_BYTES]>);

impl KeyBytes {
    /// Zeroes, to be filled in place.
    pub(crate) fn zeroed() -> Self {
        let mut pool = pool();
        if pool.free.is_empty() {
            pool.grow();
        }
        let slot = pool
            .free
            .pop()
            .expect("grow() adds at least one slot or aborts");
        pool.report.keys += 1;
        Self(slot.0)
    }
}

impl Deref for KeyBytes {
    type Target = [u8; KEY_BYTES];

    fn deref(&self) -> &Self::Target {
        // SAFETY: the slot is initialised, aligned (u8), lives in a page that is never freed, and
        // belongs to this value alone until its drop returns it to the pool.
        unsafe { self.0.as_ref() }
    }
}

impl DerefMut for KeyBytes {
    fn deref_mut(&mut self) -> &mut Self::Target {
        // SAFETY: as in `deref`; `&mut self` makes the access unique.
        unsafe { self.0.as_mut() }
    }
}

impl Drop for KeyBytes {
    fn drop(&mut self) {
        pool().give_back(self.0);
    }
}

// SAFETY: a `KeyBytes` owns its slot as a `Box` owns its memory; there is no interior mutability
// and no thread affinity.
unsafe impl Send for KeyBytes {}
// SAFETY: as above; shared access is read only.
unsafe impl Sync for KeyBytes {}

/// A free slot, zeroed.
struct Slot(NonNull<[u8; KEY_BYTES]>);

// SAFETY: a free slot is only memory that nobody owns; whoever pops it owns it alone.
unsafe impl Send for Slot {}

struct Pool {
    free: Vec<Slot>,
    report: LockedMemory,
}

impl Pool {
    /// Wipes a slot and makes it free. The caller must own it, and owns it no longer.
    fn give_back(&mut self, mut slot: NonNull<[u8; KEY_BYTES]>) {
        // SAFETY: the slot is initialised memory in a page that is never freed; its owner handed
        // it over, so nothing else refers to it.
        unsafe { slot.as_mut() }.zeroize();
        self.report.keys -= 1;
        self.free.push(Slot(slot));
    }

    /// Takes one more page and cuts it into slots.
    fn grow(&mut self) {
        let size = rustix::param::page_size();
        let layout = Layout::from_size_align(size, size).expect("a page size is a power of two");
        // SAFETY: the layout's size is not zero.
        let Some(page) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout)
        };
        protect(page, size, &mut self.report);
        for index in 0..size / KEY_BYTES {
            // SAFETY: index * KEY_BYTES + KEY_BYTES <= size, so the slot lies inside the page.
            let slot = unsafe { page.add(index * KEY_BYTES) };
            self.free.push(Slot(slot.cast()));
        }
    }
}

/// Locks the page and keeps it out of dumps and forked children, as far as the system lets us.
fn protect(page: NonNull<u8>, size: usize, report: &mut LockedMemory) {
    let address = page.as_ptr().cast();
    // SAFETY: the range is exactly one page that we own; locking does not change its contents.
    match unsafe { rustix::mm::mlock(address, size) } {
        Ok(()) => report.locked_bytes += size,
        Err(_) => report.unlocked_bytes += size,
    }
    #[cfg(target_os = "linux")]
    for advice in [
        rustix::mm::Advice::LinuxDontDump,
        // A fork without exec has no business with keys; it faults instead of reading them.
        rustix::mm::Advice::LinuxDontFork,
    ] {
        // SAFETY: the range is exactly one page that we own; neither advice changes its contents
        // in this process. A kernel without them refuses, and RLIMIT_CORE=0 remains.
        let _ = unsafe { rustix::mm::madvise(address, size, advice) };
    }
}

fn pool() -> MutexGuard<'static, Pool> {
    static POOL: Mutex<Pool> = Mutex::new(Pool {
        free: Vec::new(),
        report: LockedMemory {
            locked_bytes: 0,
            unlocked_bytes: 0,
            keys: 0,
        },
    });
    // No code that can panic leaves the pool half changed, so a poisoned one is whole.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::mem::ManuallyDrop;

    use super::*;

    #[test]
    fn wipes_a_key_when_it_is_released() {
        let mut key = ManuallyDrop::new(KeyBytes::zeroed());
        key.fill(0xA5);
        let slot = key.0;
        // The lock is held from the release to the look, so that no other thread gets the slot.
        let mut pool = pool();
        pool.give_back(slot);
        // SAFETY: the page is never freed, and a free slot has no owner while the pool is locked.
        assert_eq!(unsafe { *slot.as_ref() }, [0; KEY_BYTES]);
    }

    #[test]
    fn gives_every_key_its_own_zeroed_slot() {
        let keys: Vec<KeyBytes> = (0..1000_u32)
            .map(|number| {
                let mut key = KeyBytes::zeroed();
                assert_eq!(*key, [0; KEY_BYTES]);
                key[..4].copy_from_slice(&number.to_be_bytes());
                key
            })
            .collect();
        for (number, key) in (0..1000_u32).zip(&keys) {
            assert_eq!(key[..4], number.to_be_bytes());
        }
        assert!(locked_memory().keys >= 1000);
    }

    #[test]
    fn locks_the_pages_where_the_limit_allows() {
        let report = locked_memory();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
        if limit.current.is_none_or(|bytes| bytes >= 1 << 20) {
            assert!(report.locked_bytes > 0, "{report:?}");
        }
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        // "dd" is MADV_DONTDUMP, "dc" MADV_DONTFORK: set on the key pages and on nothing else here.
        let protected = smaps
            .lines()
            .filter(|line| line.starts_with("VmFlags:"))
            .any(|flags| flags.contains(" dd") && flags.contains(" dc"));
        assert!(protected, "no mapping is kept out of dumps and forks");
    }
}
