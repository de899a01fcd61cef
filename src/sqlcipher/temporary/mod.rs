//! SQLite's temporary files: encrypted, without a name, and bounded.
//!
//! What SQLite would otherwise keep in memory without a bound, it writes to temporary files where
//! `temp_store` is `FILE`: the runs of a sort for an index, the table that an `ORDER BY` without an
//! index fills, and the pages that a savepoint may have to put back. It writes them in plaintext.
//! So connections are opened through a VFS layer ([`layer`]), which hands every file that has a
//! name to SQLite's own layer, unchanged, and gives a [`TemporaryFile`](file::TemporaryFile) where
//! SQLite asks for a file without one.
//!
//! What remains in memory is set here and by the page caches of the connections:
//!
//! | what | in memory | beyond it |
//! | --- | --- | --- |
//! | pages of a savepoint (statement journal) | 64 KiB, `SQLITE_STMTJRNL_SPILL` as it is built | a temporary file |
//! | the table of an `ORDER BY … LIMIT` | 2000 KiB, `SQLITE_DEFAULT_CACHE_SIZE` as it is built | a temporary file |
//! | one run of a sort | `cache_size` of the connection | a temporary file |
//! | pages that a transaction changes | `cache_size` of the connection | the WAL |
//! | of a temporary file | one block and a cipher, and 24 bytes for each 4 KiB | [`room`] refuses |

mod file;
#[expect(
    unsafe_code,
    reason = "a layer of SQLite's is a table of C functions that are given pointers"
)]
mod layer;
mod room;

pub(super) use layer::layer_of;
pub(crate) use room::{keep_free, was_refused};

#[cfg(test)]
mod tests;
