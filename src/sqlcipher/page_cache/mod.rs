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
//!   these bytes. SQLCipher compares it with the page's, as always.
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

mod cache;
#[expect(
    unsafe_code,
    reason = "a crypto provider of SQLCipher's is a table of C functions that are given pointers"
)]
mod provider;
mod self_test;
mod store;

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use rusqlite::Connection;

pub(crate) use cache::Owner;
use cache::{CACHE, Cache, ON};
pub(super) use provider::opened_for;
pub use store::CacheStats;
use store::{BESIDE, SLOT};

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
    let stats = stats();
    metrics::PAGES_KEPT.set(stats.bytes as f64);
    metrics::PAGES_HIT.absolute(stats.hits);
    metrics::PAGES_MISSED.absolute(stats.misses);
    metrics::PAGES_EVICTED.absolute(stats.evictions);
}

/// What happened in the cache of this process; zeros without one.
#[must_use]
pub fn stats() -> CacheStats {
    CACHE.get().map(Cache::stats).unwrap_or_default()
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

const VERSION: &str = "4.19.0";
const MOST: u64 = 1 << 30;
/// Where nobody says how much memory there is.
const WITHOUT_A_LIMIT: u64 = 64 << 20;
/// The least that is of use.
pub(crate) const LEAST_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests;
