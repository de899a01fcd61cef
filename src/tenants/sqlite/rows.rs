//! What every module with SQL needs: columns of documents, limits, values that are malformed.

use crate::budget;

/// The version of a stored document: a write that only inserted it is its number.
pub(super) const VERSION: &str = "ifnull(version, seq)";

/// The columns of a stored document, as `documents` reads them.
pub(super) const DOCUMENT: &str = "id, created, updated, ifnull(version, seq), json(fields)";

/// Takes room in memory for part of an answer. [`failure`](super::error::failure) knows the error.
pub(super) fn take_room(bytes: usize) -> rusqlite::Result<()> {
    budget::take(bytes).map_err(|refused| rusqlite::Error::UserFunctionError(Box::new(refused)))
}

/// A value that no version of Nimbus has written.
pub(super) fn malformed(column: usize, name: &str) -> rusqlite::Error {
    let kind = rusqlite::types::Type::Blob;
    rusqlite::Error::FromSqlConversionFailure(column, kind, format!("{name} is malformed").into())
}

/// The `LIMIT` of SQL by which it shows whether there are more.
pub(super) fn one_more(limit: usize) -> i64 {
    i64::try_from(limit).map_or(i64::MAX, |limit| limit.saturating_add(1))
}

/// A limit as SQL takes it.
pub(super) fn sql_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// Page cache of the writer, in KiB (negative: the unit is KiB and not pages).
pub(super) const WRITER_CACHE_KIB: i32 = -2048;
