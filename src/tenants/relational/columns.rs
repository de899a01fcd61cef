//! What becomes of each column of a tenant's tables where its documents are sealed. The list is
//! that of `docs/sealed-format.md`, which a test compares; so is that no column is missing.

#[cfg(test)]
use Kept::{Blind, Clear, Findable, Mac, Sealed};

/// How a column is kept.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// Sealed, under a random salt.
    Sealed,
    /// Sealed, and equal where its content is: it is looked for.
    Findable,
    /// An HMAC of each field.
    Blind,
    /// An HMAC of the rest of its row.
    Mac,
    /// As it is.
    Clear,
}

/// A column that is sealed, or a MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Column(pub(super) &'static str);

pub(super) const CURSOR_KEY: Column = Column("head.cursor_key");
pub(super) const FIELDS: Column = Column("documents.fields");
pub(super) const INDEX_NAME: Column = Column("indexes.name");
pub(super) const INDEX_DEFINITION: Column = Column("indexes.definition");
pub(super) const JOURNAL: Column = Column("journal.mac");
pub(super) const SCHEMA: Column = Column("schemas.definition");
pub(super) const JOB: Column = Column("jobs.mutation");
pub(super) const FINISHED_JOB: Column = Column("job_history.mutation");
pub(super) const JOB_FAILURE: Column = Column("job_history.failure");
pub(super) const CRON_SCHEDULE: Column = Column("crons.schedule");
pub(super) const CRON: Column = Column("crons.mutation");
pub(super) const CRON_FAILURE: Column = Column("crons.last_error");
pub(super) const ANSWER_NAME: Column = Column("answers.name");
pub(super) const ANSWER: Column = Column("answers.answer");
pub(super) const GENERATION_NAME: Column = Column("generations.name");
pub(super) const SCHEMA_LIST: Column = Column("generations.schema_list");
pub(super) const CRON_LIST: Column = Column("generations.cron_list");
pub(super) const FILE_PATH: Column = Column("files.path");
pub(super) const CONTENT_HASH: Column = Column("contents.sha");
pub(super) const PIECE: Column = Column("pieces.piece");

/// Every column of bytes of a tenant's tables.
#[cfg(test)]
pub(super) const ALL: &[(&str, Kept)] = &[
    ("head.incarnation", Clear),
    (CURSOR_KEY.0, Sealed),
    ("commits.id", Clear),
    ("tables.name", Clear),
    ("documents.id", Clear),
    (FIELDS.0, Sealed),
    (INDEX_NAME.0, Sealed),
    (INDEX_DEFINITION.0, Sealed),
    ("entries.entry", Blind),
    ("uniques.entry", Blind),
    ("journal.id", Clear),
    (JOURNAL.0, Mac),
    (SCHEMA.0, Sealed),
    ("jobs.id", Clear),
    (JOB.0, Sealed),
    ("job_history.id", Clear),
    (JOB_FAILURE.0, Sealed),
    (FINISHED_JOB.0, Sealed),
    ("crons.name", Clear),
    (CRON_FAILURE.0, Sealed),
    (CRON_SCHEDULE.0, Sealed),
    (CRON.0, Sealed),
    (ANSWER_NAME.0, Findable),
    // Sealed with the answer; empty here.
    ("answers.request", Sealed),
    (ANSWER.0, Sealed),
    ("answers.credential", Clear),
    ("answers_of.credential", Clear),
    (GENERATION_NAME.0, Sealed),
    (SCHEMA_LIST.0, Sealed),
    (CRON_LIST.0, Sealed),
    (FILE_PATH.0, Findable),
    (CONTENT_HASH.0, Findable),
    (PIECE.0, Sealed),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tenants::relational::layout;

    /// The columns of bytes that tables have, in the order of the layout.
    fn columns() -> Vec<String> {
        let mut columns = Vec::new();
        for sql in layout::TENANT {
            let Some(rest) = sql.strip_prefix("CREATE TABLE @") else {
                continue;
            };
            let (table, rest) = rest.split_once(" (").unwrap();
            let typed = rest.split([',', '(', ')']).filter_map(|part| {
                let mut words = part.split_whitespace();
                let (name, kind) = (words.next()?, words.next()?);
                kind.starts_with('{')
                    .then(|| format!("{table}.{}", name.trim_matches('"')))
            });
            columns.extend(typed);
        }
        columns
    }

    #[test]
    fn every_column_of_bytes_is_on_the_list() {
        let listed: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
        assert_eq!(columns(), listed);
    }

    #[test]
    fn the_page_of_the_format_has_the_list() {
        let page = include_str!("../../../docs/sealed-format.md");
        for (name, kept) in ALL {
            let word = match kept {
                Sealed => "sealed",
                Findable => "sealed, findable",
                Blind => "blind",
                Mac => "a MAC",
                Clear => "in the clear",
            };
            let row = format!("| `{name}` | {word} |");
            assert!(page.contains(&row), "{row}");
        }
    }
}
