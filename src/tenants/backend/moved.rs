//! What moves a tenant elsewhere reads and writes beside what requests do: rows with their numbers
//! and times, as they are stored.

use zeroize::Zeroizing;

use super::stored::{StoredAnswer, TableNumber};
use crate::documents::deploy::Deploy;
use crate::documents::schedule::{CronState, FinishedJob};
use crate::documents::{Document, TableName};
use crate::tenants::{CURSOR_KEY_BYTES, StoreError};

/// An answer that is remembered, with its key and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedAnswer {
    /// Its number.
    pub number: i64,
    /// The digest of the request's key.
    pub key: [u8; 32],
    /// The bytes of all answers up to and with this one.
    pub bytes: i64,
    /// What was answered.
    pub answer: StoredAnswer,
}

/// Rows as they are stored.
pub trait MovedRows {
    /// The key that seals the tenant's cursors.
    fn cursor_key(&mut self) -> Result<Zeroizing<[u8; CURSOR_KEY_BYTES]>, StoreError>;

    /// All tables, by number.
    fn tables(&mut self) -> Result<Vec<(TableNumber, TableName)>, StoreError>;

    /// The first documents of a table that were inserted after a write, in the order of their
    /// insertion, each with the number of the write that inserted it. None without more.
    fn documents_after(
        &mut self,
        table: TableNumber,
        after: i64,
    ) -> Result<Vec<(i64, Document)>, StoreError>;

    /// The first jobs of the history after a number, in the order in which they ran. None without
    /// more.
    fn finished_jobs_after(&mut self, after: i64) -> Result<Vec<(i64, FinishedJob)>, StoreError>;

    /// All crons by name, and what the clock said when the next time of each was reckoned.
    fn reckoned_crons(&mut self) -> Result<Vec<(CronState, i64)>, StoreError>;

    /// The first answers after a number. None without more.
    fn answers_after(&mut self, after: i64) -> Result<Vec<PlacedAnswer>, StoreError>;
}

/// Rows that come from elsewhere.
pub trait MovedWrites {
    /// Sets the number of the last write of a tenant without a journal, and the key of its cursors.
    fn put_start(
        &mut self,
        latest: i64,
        cursor_key: &[u8; CURSOR_KEY_BYTES],
    ) -> Result<(), StoreError>;

    /// Makes a table of this number.
    fn put_table(&mut self, number: TableNumber, name: &TableName) -> Result<(), StoreError>;

    /// Stores a deploy as the generation of this number.
    fn put_generation(
        &mut self,
        number: i64,
        deploy: &Deploy,
        created_ms: i64,
    ) -> Result<(), StoreError>;
}

/// So many rows are read at a time, and none after those that together have
/// [`MOVED_BYTES`].
pub(crate) const MOVED_ROWS: usize = 500;
/// Bytes of documents that are read, or written, at a time, about.
pub(crate) const MOVED_BYTES: usize = 1 << 20;
