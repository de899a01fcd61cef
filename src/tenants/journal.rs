//! The journal: which part of it a cursor asks for, and how much of it is kept.

use super::StoreError;
use super::backend::{JournalBounds, Rows};
use crate::documents::{JOURNAL_RECORDS, JournalPage, MAX_JOURNAL_PAGE};

/// The journal after a write, from its beginning without one.
pub(super) fn page(
    rows: &mut impl Rows,
    after: Option<u64>,
    limit: usize,
) -> Result<JournalPage, StoreError> {
    rows.snapshot(|rows| {
        let JournalBounds { latest, floor } = rows.journal_bounds()?;
        let from = match after {
            None => floor,
            Some(after) => match i64::try_from(after) {
                Ok(from) if from < floor => {
                    return Err(StoreError::JournalExpired { after, floor });
                }
                Ok(from) if from <= latest => from,
                _ => return Err(StoreError::JournalCursor { after, latest }),
            },
        };
        let limit = limit.min(MAX_JOURNAL_PAGE);
        // One more says whether there are more.
        let mut records = rows.journal(from, limit + 1)?;
        let has_more = records.len() > limit;
        records.truncate(limit);
        Ok(JournalPage {
            records,
            latest,
            floor,
            has_more,
        })
    })
}

/// The last record that is removed after the writes `before + 1` to `last`. Not every commit
/// removes any: one in [`JOURNAL_SLACK`] writes does.
pub(super) fn expired(before: i64, last: i64) -> Option<i64> {
    let due = before / JOURNAL_SLACK != last / JOURNAL_SLACK && last > JOURNAL_RECORDS;
    due.then(|| last - JOURNAL_RECORDS)
}

/// How many records beyond [`JOURNAL_RECORDS`] there may be, about: some twelve pages.
const JOURNAL_SLACK: i64 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_expire_once_in_so_many_writes() {
        let kept = JOURNAL_RECORDS;
        assert_eq!(expired(0, 10), None);
        assert_eq!(expired(0, kept), None);
        let after = (kept / JOURNAL_SLACK + 1) * JOURNAL_SLACK;
        assert_eq!(expired(after - 1, after), Some(after - kept));
        assert_eq!(expired(after, after + 1), None);
        assert_eq!(expired(after, after), None);
    }
}
