//! The memory in which SQLite sorts the keys of a new index.
//!
//! SQLite sorts in runs: it fills memory with keys up to `cache_size`, sorts them, and writes them
//! to a temporary file. In the end it merges all runs at once, with the next key of each in memory
//! (`vdbesort.c`; `PmaReader` has an allocation that doubles until the key fits). So of keys as
//! long as documents it holds one for each run, which has no bound where runs are short. Runs of
//! about the square root of what there is to sort need the least memory in all. That much is
//! charged to the request beforehand, as bodies and answers are: a tenant cannot take more,
//! whatever its documents are.

use rusqlite::Connection;

use super::expressions::Ordered;
use super::room;
use super::rows::{WRITER_CACHE_KIB, take_room};
use crate::budget;
use crate::documents::schema::IndexRule;
use crate::tenants::backend::TableNumber;

/// Makes an index over a table by `make`, with the memory that this takes.
pub(super) fn alone(
    connection: &Connection,
    table: TableNumber,
    rule: &IndexRule,
    make: impl FnOnce() -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let sort = Sort::of(connection, table, rule)?;
    let bytes = usize::try_from(sort.memory()).unwrap_or(usize::MAX);
    take_room(bytes)?;
    let made = in_runs(connection, sort.run, make);
    if let Some(account) = budget::account() {
        account.give_back(bytes);
    }
    made
}

/// Has what is sorted by `make` sorted in runs of so many bytes. The connection keeps as many bytes
/// of pages.
fn in_runs(
    connection: &Connection,
    run: u64,
    make: impl FnOnce() -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let set = |kib: i64| connection.pragma_update(None, "cache_size", kib);
    if run == LEAST {
        return make();
    }
    set(-i64::try_from(run / 1024).unwrap_or(i64::MAX))?;
    let made = make();
    let back = set(WRITER_CACHE_KIB.into());
    made.and(back)
}

/// What there is to sort, and in runs of how many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sort {
    /// All keys, with what SQLite keeps beside each.
    all: u64,
    /// What one key takes at most while runs are merged.
    key: u64,
    run: u64,
}

impl Sort {
    /// The keys of `rule` in a table. No key is longer than its document, and the lengths of
    /// documents are read from pages without the documents: only where long ones might be keys is
    /// each looked at.
    fn of(connection: &Connection, table: TableNumber, rule: &IndexRule) -> rusqlite::Result<Self> {
        let in_use = room::in_use(connection)?;
        if in_use <= SMALL {
            return Ok(Self::new(0, in_use, 0));
        }
        let documents = Self::measured(connection, table, "length(fields)")?;
        if documents.memory() <= COMMON {
            return Ok(documents);
        }
        let lengths: Vec<String> = rule
            .fields
            .iter()
            .map(|path| {
                let Ordered { key, .. } = Ordered::indexed(path.names());
                format!("ifnull(octet_length({key}), 0)")
            })
            .collect();
        Self::measured(connection, table, &lengths.join(" + "))
    }

    fn measured(
        connection: &Connection,
        table: TableNumber,
        length: &str,
    ) -> rusqlite::Result<Self> {
        let sql = format!(
            "SELECT count(*), ifnull(sum({length}), 0), ifnull(max({length}), 0) FROM documents_{table}"
        );
        connection.query_row(&sql, [], |row| {
            let number = |column| row.get(column).map(|number: i64| number.unsigned_abs());
            Ok(Self::new(number(0)?, number(1)?, number(2)?))
        })
    }

    fn new(keys: u64, bytes: u64, longest: u64) -> Self {
        let all = bytes.saturating_add(keys.saturating_mul(BESIDE));
        let key = (longest + BESIDE).next_power_of_two();
        let square = all.saturating_mul(key / 2).isqrt();
        // Room for a few keys, so that none is left half empty.
        let run = square.max(4 * key).next_multiple_of(LEAST).min(MOST);
        let run = if longest <= SHORT { LEAST } else { run };
        Self { all, key, run }
    }

    /// The memory that it takes: a run and as many bytes of pages, and a key and a page of each
    /// run, twice where runs are merged in several steps.
    fn memory(self) -> u64 {
        let Self { all, key, run } = self;
        let runs = all.div_ceil(run - run / 4);
        let merged = (runs + runs.div_ceil(16)).saturating_mul(key + PAGE);
        (2 * run).saturating_add(merged)
    }
}

/// What SQLite keeps beside a key: the ranks, the number of the document, and its own record of it.
const BESIDE: u64 = 64;
const PAGE: u64 = 4096;
/// The writer's page cache, and so a run: 2 MiB.
const LEAST: u64 = WRITER_CACHE_KIB.unsigned_abs() as u64 * 1024;
const MOST: u64 = 256 << 20;
/// A database with no more than this in it is sorted as it comes: 32 MiB.
const SMALL: u64 = 32 << 20;
/// Taken without a closer look: 32 MiB.
const COMMON: u64 = 32 << 20;
/// Keys that are no longer are sorted in the shortest runs.
const SHORT: u64 = 1 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_grows_as_the_root_of_what_is_sorted() {
        let of = |documents: u64, length: u64| {
            let sort = Sort::new(documents, documents * length, length);
            (sort.run / MIB, sort.memory() / MIB)
        };
        // What most indexes are.
        assert_eq!(of(0, 0), (2, 4));
        assert_eq!(of(1_000_000, 40), (2, 4));
        assert!(of(100_000_000, 100).1 < 100, "{:?}", of(100_000_000, 100));
        for (documents, most) in [(60, 32), (600, 120), (6000, 360)] {
            let (run, memory) = of(documents, 1_000_000);
            assert!(run >= 4 && memory < most, "{documents}: {run}, {memory}");
        }
    }

    #[test]
    fn no_run_is_longer_than_sqlite_makes_them() {
        let sort = Sort::new(u64::MAX / 2, u64::MAX, 1 << 20);
        assert_eq!(sort.run, MOST);
        assert!(sort.memory() > 1 << 40);
    }
}
