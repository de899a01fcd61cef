//! Pages that were verified, kept in the clear for all connections of the process, under one
//! budget.
//!
//! SQLite asks its own cache first, of which each connection has one and which a commit of another
//! empties. What is not there is read from the disk, and SQLCipher verifies and decrypts it, which
//! costs more than the reading. The cache stands in the place of SQLCipher's cryptography
//! (`provider`), and sees for each page that was read first `hmac` over ciphertext, IV and page
//! number, then, if the MAC is that of the page, `cipher`:
//!
//! - `hmac` looks for an entry of the same IV, owner and page number under the same key whose
//!   ciphertext is equal **byte for byte**, and answers with the MAC that was computed over exactly
//!   these bytes. SQLCipher compares it with the page's, as ever.
//! - `cipher` then copies the plaintext of that entry.
//!
//! So a hit saves work whose result is known, and believes nothing that lies on the disk: a page
//! that was changed in any byte of ciphertext, IV or place has no entry, and one whose MAC was
//! changed is refused by the comparison. What an attacker can put back is an older version of a
//! page that is authentic at that place, which the page MACs accept with or without the cache.
//!
//! An entry belongs to an `Owner`: one opened database under one key. Only connections that are
//! opened for an owner use the cache; those that judge the disk are opened for none. The entries
//! go, wiped, with their owner. That SQLCipher calls in this order is asserted by [`start`], which
//! writes, reads and tampers with a database of its own: where it is otherwise, the cache stays
//! off.

#[expect(
    unsafe_code,
    reason = "a crypto provider of SQLCipher's is a table of C functions that are given pointers"
)]
mod provider;
mod self_test;
mod store;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nimbus_keyproviders::PageMacKey;
use rusqlite::Connection;

pub(super) use provider::opened_for;
pub use store::Figures;
use store::{BESIDE, Found, Mac, Name, SLOT, Shard, shard};

use super::OpenError;
use crate::metrics;
use crate::process::{Arena, memory_limit};

/// How the cache was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Bytes that it may take.
    pub bytes: u64,
    /// The kernel locks them: they are never written to swap.
    pub is_locked: bool,
}

/// Why there is no cache. Everything works without it, slower.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotStarted {
    /// This process has one already.
    #[error("this process has a page cache already")]
    Twice,
    /// There is no memory for it.
    #[error("the operating system gives no {bytes} bytes; say less with --page-cache-bytes")]
    NoMemory {
        /// How many were asked for.
        bytes: u64,
        /// What it said.
        source: io::Error,
    },
    /// The library is another than the one whose interface was read.
    #[error("it was made for SQLCipher {expected}, and this is {found}")]
    Library {
        /// What the interface was read in.
        expected: &'static str,
        /// What is linked.
        found: String,
    },
    /// SQLCipher did not take the provider.
    #[error("SQLCipher does not take a crypto provider")]
    Provider,
    /// The self-test could not be made.
    #[error("its self-test could not be made")]
    SelfTest(#[from] OpenError),
    /// SQLCipher does not do what the cache relies on.
    #[error("SQLCipher does not call its crypto provider as expected: {0}")]
    Order(&'static str),
}

/// The cache of this process, once it is started.
static CACHE: OnceLock<Cache> = OnceLock::new();
/// Whether databases are opened with it.
static ON: AtomicBool = AtomicBool::new(false);

/// Starts the cache of this process, with `bytes` of memory, for the databases that are opened from
/// now on. `dir` is for the file of the self-test. Blocks.
///
/// # Errors
///
/// [`NotStarted`]; the process goes on without a cache.
pub fn start(bytes: u64, dir: &Path) -> Result<Started, NotStarted> {
    super::check_library()?;
    if CACHE.get().is_some() {
        return Err(NotStarted::Twice);
    }
    check_version()?;
    let slots = usize::try_from(bytes).unwrap_or(usize::MAX) / (SLOT + BESIDE);
    let arena = Arena::new(slots.saturating_mul(SLOT))
        .map_err(|source| NotStarted::NoMemory { bytes, source })?;
    let is_locked = arena.is_locked;
    CACHE
        .set(Cache::new(arena.memory))
        .map_err(|_other| NotStarted::Twice)?;
    let cache = CACHE.get().ok_or(NotStarted::Twice)?;
    if !provider::register() {
        return Err(NotStarted::Provider);
    }
    self_test::run(cache, dir)?;
    ON.store(true, Ordering::Release);
    metrics::PAGES_LIMIT.set(bytes as f64);
    Ok(Started { bytes, is_locked })
}

/// How much memory the cache takes where nobody says: an eighth of what the process may use, at
/// most 1 GiB.
#[must_use]
pub fn default_bytes() -> u64 {
    memory_limit().map_or(WITHOUT_A_LIMIT, |limit| (limit / 8).min(MOST))
}

/// Has the metrics say what happened in the cache until now.
pub(crate) fn show_metrics() {
    let figures = figures();
    metrics::PAGES_KEPT.set(figures.bytes as f64);
    metrics::PAGES_HIT.absolute(figures.hits);
    metrics::PAGES_MISSED.absolute(figures.misses);
    metrics::PAGES_EVICTED.absolute(figures.evictions);
}

/// What happened in the cache of this process; zeros without one.
#[must_use]
pub fn figures() -> Figures {
    CACHE.get().map(Cache::figures).unwrap_or_default()
}

/// The interface of crypto providers is no promise of SQLCipher's: it was read in this version.
#[expect(
    clippy::disallowed_methods,
    reason = "a database in memory, to ask for the version"
)]
fn check_version() -> Result<(), NotStarted> {
    let found = Connection::open_in_memory()
        .and_then(|connection| {
            connection.query_row("PRAGMA cipher_version", [], |row| row.get::<_, String>(0))
        })
        .unwrap_or_else(|error| error.to_string());
    if found.split(' ').next() == Some(VERSION) {
        return Ok(());
    }
    Err(NotStarted::Library {
        expected: VERSION,
        found,
    })
}

/// The pages of all owners.
#[derive(Debug)]
struct Cache {
    shards: Box<[Mutex<Shard>]>,
    numbers: Mutex<Numbers>,
}

/// Who has which number: as small as possible, since each shard has a list for each.
#[derive(Debug, Default)]
struct Numbers {
    next: u32,
    free: Vec<u32>,
}

impl Cache {
    fn new(memory: &'static mut [u8]) -> Self {
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
    fn owner(&'static self) -> Owner {
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

    fn forget(&self, owner: u32) {
        for shard in &self.shards {
            // In pieces: others wait for the lock.
            while lock(shard).forget(owner, AT_ONCE) {}
        }
    }

    fn figures(&self) -> Figures {
        let mut sum = Figures::default();
        for shard in &self.shards {
            let figures = lock(shard).figures();
            sum.bytes += figures.bytes;
            sum.hits += figures.hits;
            sum.misses += figures.misses;
            sum.evictions += figures.evictions;
        }
        sum
    }
}

/// An opened database under one key, whose pages are kept for all its connections until it is
/// closed.
#[derive(Clone)]
pub(crate) struct Owner(Arc<Owned>);

struct Owned {
    cache: &'static Cache,
    number: u32,
    is_closed: AtomicBool,
    /// The key that the pages of this owner are authenticated with: the first that is used.
    key: OnceLock<PageMacKey>,
}

impl Owner {
    /// A new one; `None` without a cache.
    pub(super) fn new() -> Option<Self> {
        let cache = CACHE.get().filter(|_| ON.load(Ordering::Acquire))?;
        Some(cache.owner())
    }

    /// From now on none of its pages is found, and none is kept.
    pub(super) fn close(&self) {
        self.0.is_closed.store(true, Ordering::SeqCst);
    }

    /// Closes it, and wipes its pages. Takes a while where there are many.
    pub(super) fn forget(&self) {
        self.close();
        self.0.cache.forget(self.0.number);
    }

    /// Whether `key` is the one of its pages.
    fn is_under(&self, key: &[u8; 32]) -> bool {
        let first = || PageMacKey::copy_of(key);
        self.0.key.get_or_init(first).is(key)
    }

    fn find(&self, page: &Page, ciphertext: &[u8]) -> Option<(Found, Mac)> {
        let mut shard = self.shard(&page.iv)?;
        shard.find(&self.name(page), ciphertext)
    }

    fn copy(&self, found: Found, iv: &[u8; 16], out: &mut [u8]) -> bool {
        self.shard(iv)
            .is_some_and(|shard| shard.copy(found, iv, out))
    }

    fn insert(&self, page: &Page, ciphertext: &[u8], mac: &Mac, plaintext: &[u8]) {
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

/// A page as the provider is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Page {
    number: [u8; 4],
    iv: [u8; 16],
    /// Bytes of ciphertext.
    length: u16,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic leaves is found by the comparison of bytes, or not at all.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const VERSION: &str = "4.19.0";
/// So many threads seldom wait for each other.
const SHARDS: usize = 16;
/// Of a shard, unless there are fewer in all.
const LEAST_SLOTS: usize = 64;
/// Wiped under one lock.
const AT_ONCE: usize = 64;
const MOST: u64 = 1 << 30;
/// Where nobody says how much memory there is.
const WITHOUT_A_LIMIT: u64 = 64 << 20;
/// The least that is of use.
pub(crate) const LEAST_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests;
