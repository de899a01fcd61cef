//! The entries of all owners, and the owners.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nimbus_keyproviders::PageMacKey;

use super::store::{CacheStats, Found, Mac, Name, SLOT, Shard, shard};

/// The cache of this process, once it is started.
pub(super) static CACHE: OnceLock<Cache> = OnceLock::new();
/// Whether databases are opened with it.
pub(super) static ON: AtomicBool = AtomicBool::new(false);

/// The pages of all owners.
#[derive(Debug)]
pub(super) struct Cache {
    pub(super) shards: Box<[Mutex<Shard>]>,
    numbers: Mutex<Numbers>,
}

/// Who has which number: as small as possible, since each shard has a list for each.
#[derive(Debug, Default)]
struct Numbers {
    next: u32,
    free: Vec<u32>,
}

impl Cache {
    pub(super) fn new(memory: &'static mut [u8]) -> Self {
        let (slots, _rest) = memory.as_chunks_mut::<SLOT>();
        // All of one size: each gets as many pages as the others.
        let count = (slots.len() / LEAST_SLOTS).clamp(1, SHARDS);
        let each = slots.len().div_ceil(count).max(1);
        let shards = slots.chunks_mut(each).map(Shard::new).map(Mutex::new);
        Self {
            shards: shards.collect(),
            numbers: Mutex::default(),
        }
    }

    /// An owner that has no page yet.
    pub(super) fn owner(&'static self) -> Owner {
        let mut numbers = lock(&self.numbers);
        let number = numbers.free.pop().unwrap_or_else(|| {
            numbers.next += 1;
            numbers.next - 1
        });
        Owner(Arc::new(Owned {
            cache: self,
            number,
            is_closed: AtomicBool::new(false),
            key: OnceLock::new(),
        }))
    }

    fn shard(&self, iv: &[u8; 16]) -> Option<MutexGuard<'_, Shard>> {
        self.shards
            .get(shard(iv, self.shards.len().max(1)))
            .map(lock)
    }

    pub(super) fn forget(&self, owner: u32) {
        for shard in &self.shards {
            // In pieces: others wait for the lock.
            while lock(shard).forget(owner, AT_ONCE) {}
        }
    }

    pub(super) fn stats(&self) -> CacheStats {
        let mut sum = CacheStats::default();
        for shard in &self.shards {
            let stats = lock(shard).stats();
            sum.bytes += stats.bytes;
            sum.hits += stats.hits;
            sum.misses += stats.misses;
            sum.evictions += stats.evictions;
        }
        sum
    }
}

/// An opened database under one key, whose pages are kept for all its connections until it is
/// closed.
#[derive(Clone)]
pub(crate) struct Owner(pub(super) Arc<Owned>);

pub(super) struct Owned {
    cache: &'static Cache,
    pub(super) number: u32,
    is_closed: AtomicBool,
    /// The key that the pages of this owner are authenticated with: the first that is used.
    key: OnceLock<PageMacKey>,
}

impl Owner {
    /// A new one; `None` without a cache.
    pub(in crate::sqlcipher) fn new() -> Option<Self> {
        let cache = CACHE.get().filter(|_| ON.load(Ordering::Acquire))?;
        Some(cache.owner())
    }

    /// From now on none of its pages is found, and none is kept.
    pub(in crate::sqlcipher) fn close(&self) {
        self.0.is_closed.store(true, Ordering::SeqCst);
    }

    /// Closes it, and wipes its pages. Takes a while where there are many.
    pub(in crate::sqlcipher) fn forget(&self) {
        self.close();
        self.0.cache.forget(self.0.number);
    }

    /// Whether `key` is the one of its pages.
    pub(super) fn is_under(&self, key: &[u8; 32]) -> bool {
        let first = || PageMacKey::copy_of(key);
        self.0.key.get_or_init(first).is(key)
    }

    pub(super) fn find(&self, page: &Page, ciphertext: &[u8]) -> Option<(Found, Mac)> {
        let mut shard = self.shard(&page.iv)?;
        shard.find(&self.name(page), ciphertext)
    }

    pub(super) fn copy(&self, found: Found, iv: &[u8; 16], out: &mut [u8]) -> bool {
        self.shard(iv)
            .is_some_and(|shard| shard.copy(found, iv, out))
    }

    pub(super) fn insert(&self, page: &Page, ciphertext: &[u8], mac: &Mac, plaintext: &[u8]) {
        if let Some(mut shard) = self.shard(&page.iv) {
            shard.insert(&self.name(page), ciphertext, mac, plaintext);
        }
    }

    /// The shard of a page, unless the owner is closed: looked at under the lock, so that nothing
    /// comes into a shard that was emptied.
    fn shard(&self, iv: &[u8; 16]) -> Option<MutexGuard<'_, Shard>> {
        let shard = self.0.cache.shard(iv)?;
        (!self.0.is_closed.load(Ordering::SeqCst)).then_some(shard)
    }

    fn name(&self, page: &Page) -> Name {
        Name {
            owner: self.0.number,
            number: page.number,
            iv: page.iv,
            length: page.length,
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.cache.forget(self.number);
        lock(&self.cache.numbers).free.push(self.number);
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Owner({})", self.0.number)
    }
}

/// A page as the provider sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) number: [u8; 4],
    pub(super) iv: [u8; 16],
    /// Bytes of ciphertext.
    pub(super) length: u16,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic leaves is found by the comparison of bytes, or not at all.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// So many threads seldom wait for each other.
const SHARDS: usize = 16;
/// Of a shard, unless there are fewer in all.
const LEAST_SLOTS: usize = 64;
/// Wiped under one lock.
const AT_ONCE: usize = 64;
