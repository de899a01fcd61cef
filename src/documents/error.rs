//! Errors of input.

use thiserror::Error;

use super::limits::{MAX_CRON_NAME_BYTES, MAX_DEPTH, MAX_FIELDS_BYTES, MAX_TABLE_NAME_BYTES};

/// Input that is refused before any store sees it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InputError {
    /// A table name outside the rule of [`TableName`](super::TableName).
    #[error(
        "table name {name:?} is not valid: use a letter, then letters, digits, '_' and '-', at most {MAX_TABLE_NAME_BYTES} in all"
    )]
    TableName {
        /// The name as given, cut to a printable length.
        name: String,
    },
    /// A document id that is no UUIDv7 in canonical lower-case form.
    #[error(
        "document id {id:?} is not valid: use a UUID version 7 in lower case with hyphens, as the server returns it in \"id\""
    )]
    DocumentId {
        /// The id as given, cut to a printable length.
        id: String,
    },
    /// Text that is no JSON, or holds a number or a string that JSON consumers cannot read.
    #[error("the JSON cannot be read: {reason}")]
    Json {
        /// What is wrong with it, and where.
        reason: String,
    },
    /// Fields that are JSON but no object.
    #[error("a document is a JSON object: send {{\"field\": value, …}}")]
    NotAnObject,
    /// A mutation that is not written as one.
    #[error("the mutation is not right: {reason}")]
    Mutation {
        /// What is wrong with it.
        reason: String,
    },
    /// A job that is not written as one.
    #[error("the job is not right: {reason}")]
    Job {
        /// What is wrong with it.
        reason: String,
    },
    /// A job id that is none.
    #[error(
        "job id {id:?} is not valid: use a UUID version 7 in lower case with hyphens, as the server returns it in \"job_id\""
    )]
    JobId {
        /// The id as given, cut to a printable length.
        id: String,
    },
    /// A cron that is not written as one.
    #[error("the cron is not right: {reason}")]
    Cron {
        /// What is wrong with it.
        reason: String,
    },
    /// The name of a cron outside the rule of [`CronName`](super::schedule::CronName).
    #[error(
        "cron name {name:?} is not valid: use a letter, then letters, digits, '_' and '-', at most {MAX_CRON_NAME_BYTES} in all"
    )]
    CronName {
        /// The name as given, cut to a printable length.
        name: String,
    },
    /// A cron expression that cannot be read, or that never fires.
    #[error(
        "cron expression {expression:?} is not valid: {reason}; write minute, hour, day of the month, month and weekday, such as \"30 3 * * MON\""
    )]
    CronExpression {
        /// The expression as given, cut to a printable length.
        expression: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A time zone that is not in the database.
    #[error(
        "there is no time zone {name:?}: use a name of the IANA database, such as \"Europe/Berlin\" or \"UTC\""
    )]
    TimeZone {
        /// The name as given, cut to a printable length.
        name: String,
    },
    /// A query that is not written as one.
    #[error("the query is not right: {reason}")]
    Query {
        /// What is wrong with it.
        reason: String,
    },
    /// A table's schema that is not written as one, or goes beyond a limit.
    #[error("the schema is not right: {reason}")]
    Schema {
        /// What is wrong with it.
        reason: String,
    },
    /// A cursor that is no cursor, or that of another query or tenant.
    #[error(
        "the cursor is not one that this tenant gave for this list or query: send \"next_cursor\" of the part before with the same request, or begin anew without it"
    )]
    Cursor,
    /// A document over [`MAX_FIELDS_BYTES`].
    #[error(
        "the document has {size} bytes, over the limit of {MAX_FIELDS_BYTES}: split it, or keep large parts in documents of their own"
    )]
    TooLarge {
        /// Bytes of the document's fields as compact JSON.
        size: usize,
    },
    /// Nesting over [`MAX_DEPTH`].
    #[error("the document is nested deeper than {MAX_DEPTH} levels: flatten it")]
    TooDeep,
    /// A top-level field name that begins with `_`.
    #[error(
        "field {name:?} is reserved: names that begin with '_' belong to the server; rename it"
    )]
    ReservedField {
        /// The name as given, cut to a printable length.
        name: String,
    },
    /// The same name twice in one object, at any level.
    #[error(
        "field {name:?} occurs twice in one object: keep one, which of them counts is not defined"
    )]
    DuplicateField {
        /// The name as given, cut to a printable length.
        name: String,
    },
}

/// The first characters of what a client sent, short enough for an error message.
pub(super) fn excerpt(text: &str) -> String {
    match text.char_indices().nth(EXCERPT_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

const EXCERPT_CHARS: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_are_cut_at_characters() {
        assert_eq!(excerpt("short"), "short");
        assert_eq!(excerpt(&"é".repeat(80)), "é".repeat(80));
        assert_eq!(excerpt(&"é".repeat(81)), format!("{}…", "é".repeat(80)));
    }
}
