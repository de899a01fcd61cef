//! The journal: the ordered record of a tenant's applied writes.

use serde::Serialize;

use super::{DocumentId, TableName};

/// How many of the last writes the journal keeps, at least.
pub const JOURNAL_RECORDS: i64 = 100_000;

/// The most records in one page of the journal.
pub const MAX_JOURNAL_PAGE: usize = 1000;

/// What a write did to its document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum Change {
    /// It was added.
    #[serde(rename = "insert")]
    Inserted,
    /// It was changed.
    #[serde(rename = "update")]
    Updated,
    /// It was removed.
    #[serde(rename = "delete")]
    Deleted,
}

/// One applied write. It names the document and does not hold it: what the document is now, a read
/// says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JournalRecord {
    /// Its number: the writes of a tenant are numbered from 1, without a gap, in the order in
    /// which they were applied.
    pub sequence: i64,
    /// What it did.
    #[serde(rename = "type")]
    pub change: Change,
    /// The table written to.
    pub table: TableName,
    /// The document written.
    pub id: DocumentId,
    /// When, in milliseconds since the Unix epoch. The clock may be set back; `sequence` is the
    /// order.
    #[serde(rename = "timestamp")]
    pub at_ms: i64,
}

/// Part of the journal, as of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalPage {
    /// In order.
    pub records: Vec<JournalRecord>,
    /// The number of the last write.
    pub latest: i64,
    /// Every record after this number is still there. Who read up to a lower one has missed
    /// writes.
    pub floor: i64,
    /// Whether there are records after the last of these.
    pub has_more: bool,
}

impl JournalPage {
    /// What to continue after.
    #[must_use]
    pub fn next_cursor(&self) -> i64 {
        self.records
            .last()
            .map_or(self.latest, |record| record.sequence)
    }
}
