//! Writes of a transaction that are held back in memory, and what they make of the tables.
//!
//! Each is the new state of one row. What is sent of them is, for each table, what rows go and what
//! rows come, in statements of many rows: the number of statements does not grow with that of
//! writes. A savepoint is a mark in the list. Only where something must be read that the memory
//! does not know are writes sent before the commit, and open savepoints made in the engine with
//! them.

use std::collections::BTreeMap;

use super::engine::{Statement, Value, parameter_rows};

/// A table whose rows are written by their primary key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Table {
    Tables,
    Documents,
    Entries,
    Uniques,
    Journal,
    Schemas,
    Indexes,
    Jobs,
    Crons,
    Answers,
    AnswersOf,
    Generations,
    Active,
    Files,
    Contents,
    Pieces,
}

impl Table {
    /// Its name, its columns, and how many of these are its key.
    pub(super) const fn columns(self) -> (&'static str, &'static [&'static str], usize) {
        match self {
            Self::Tables => ("tables", &["number", "name"], 1),
            Self::Documents => (
                "documents",
                &[
                    "tbl", "seq", "id", "version", "created", "updated", "fields",
                ],
                2,
            ),
            Self::Entries => ("entries", &["slot", "entry", "seq"], 3),
            Self::Uniques => ("uniques", &["slot", "entry", "seq"], 2),
            Self::Journal => (
                "journal",
                &["sequence", "kind", "tbl", "id", "at_ms", "mac"],
                1,
            ),
            Self::Schemas => ("schemas", &["tbl", "definition"], 1),
            Self::Indexes => ("indexes", &["slot", "tbl", "name", "definition"], 1),
            Self::Jobs => ("jobs", &["id", "due", "mutation"], 1),
            Self::Crons => (
                "crons",
                &[
                    "name",
                    "origin",
                    "due",
                    "reckoned",
                    "last_due",
                    "last_finished",
                    "last_error",
                    "schedule",
                    "mutation",
                ],
                1,
            ),
            Self::Answers => (
                "answers",
                &[
                    "number",
                    "name",
                    "request",
                    "at_ms",
                    "total",
                    "answer",
                    "credential",
                ],
                1,
            ),
            Self::AnswersOf => ("answers_of", &["credential", "answers", "total"], 1),
            Self::Generations => (
                "generations",
                &[
                    "generation",
                    "name",
                    "created",
                    // A word of MySQL, which is quoted.
                    r#""schemas""#,
                    "crons",
                    "files",
                    "total",
                    "schema_list",
                    "cron_list",
                ],
                1,
            ),
            Self::Active => ("active", &["one", "generation"], 1),
            Self::Files => ("files", &["generation", "path", "content"], 2),
            Self::Contents => ("contents", &["number", "sha", "size", "uses"], 1),
            Self::Pieces => ("pieces", &["content", "place", "piece"], 2),
        }
    }
}

/// A write.
#[derive(Debug, Clone)]
pub(super) enum Write {
    /// The row of this key, as it is from here on.
    Row {
        table: Table,
        key: Vec<Value>,
        /// Its other columns; `None` for no row.
        row: Option<Vec<Value>>,
        /// Whether there was no row of this key before.
        fresh: bool,
    },
    /// Something else, in the spelling of the engine.
    Statement(Statement),
}

/// The statements of some writes. `spell` puts one in the words of the engine.
pub(super) fn statements(writes: &[Write], spell: impl Fn(&str) -> String) -> Vec<Statement> {
    #[derive(Default)]
    struct Changes<'a> {
        gone: Vec<&'a [Value]>,
        /// The last state, if that is a row.
        rows: BTreeMap<&'a [Value], Option<&'a [Value]>>,
    }
    let mut statements = Vec::new();
    let mut tables: BTreeMap<Table, Changes<'_>> = BTreeMap::new();
    for write in writes {
        match write {
            Write::Statement(statement) => statements.push(statement.clone()),
            Write::Row {
                table,
                key,
                row,
                fresh,
            } => {
                let changes = tables.entry(*table).or_default();
                let first = changes.rows.insert(key, row.as_deref()).is_none();
                if first && !fresh {
                    changes.gone.push(key);
                }
            }
        }
    }
    for (table, changes) in tables {
        let (name, columns, keys) = table.columns();
        for gone in changes.gone.chunks(MAX_PARAMETERS / keys) {
            let rows = parameter_rows(keys, gone.len());
            let among = match keys {
                1 => format!("{} IN ({})", columns[0], rows.replace(['(', ')'], "")),
                _ => format!("({}) IN ({{rows}} {rows})", columns[..keys].join(", ")),
            };
            statements.push(Statement {
                sql: spell(&format!("DELETE FROM @{name} WHERE {among}")),
                values: gone.iter().flat_map(|key| key.iter().cloned()).collect(),
            });
        }
        let rows: Vec<_> = changes
            .rows
            .into_iter()
            .filter_map(|(key, row)| Some((key, row?)))
            .collect();
        let mut rows = &rows[..];
        while !rows.is_empty() {
            let mut bytes = 0;
            let count = rows.iter().take(MAX_PARAMETERS / columns.len());
            let count = count
                .take_while(|(_, row)| {
                    let before = bytes;
                    bytes += row.iter().map(weight).sum::<usize>();
                    before == 0 || bytes <= MAX_BYTES
                })
                .count()
                .max(1);
            let (these, rest) = rows.split_at(count);
            rows = rest;
            let values = these
                .iter()
                .flat_map(|(key, row)| key.iter().chain(*row).cloned());
            statements.push(Statement {
                sql: spell(&format!(
                    "INSERT INTO @{name} ({}) VALUES {}",
                    columns.join(", "),
                    parameter_rows(columns.len(), these.len())
                )),
                values: values.collect(),
            });
        }
    }
    statements
}

fn weight(value: &Value) -> usize {
    match value {
        Value::Bytes(Some(bytes)) => bytes.len(),
        Value::Bytes(None) | Value::Integer(_) => 8,
    }
}

/// Parameters of one statement, at most: Postgres takes 65535, SQLite 32766.
const MAX_PARAMETERS: usize = 30_000;
/// Bytes of one statement, about. MariaDB takes 16 MiB, in which a byte may have become two.
const MAX_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::{super::engine::values, *};

    #[test]
    fn many_writes_of_a_table_are_two_statements_with_the_last_state_of_each_row() {
        let row = |key: i64, fresh, seq: Option<i64>| Write::Row {
            table: Table::Uniques,
            key: values![1_i64, key.to_string()],
            row: seq.map(|seq| values![seq]),
            fresh,
        };
        let writes = [
            row(1, true, Some(7)),
            row(2, false, None),
            row(3, false, Some(8)),
            row(3, true, None),
            row(3, true, Some(9)),
            row(4, true, Some(7)),
            row(4, false, None),
        ];
        let sent = statements(&writes, str::to_owned);
        assert_eq!(sent.len(), 2, "{sent:?}");
        assert_eq!(
            sent[0].sql,
            "DELETE FROM @uniques WHERE (slot, entry) IN ({rows} (?, ?), (?, ?))"
        );
        assert_eq!(sent[0].values, values![1_i64, "2", 1_i64, "3"]);
        assert_eq!(
            sent[1].sql,
            "INSERT INTO @uniques (slot, entry, seq) VALUES (?, ?, ?), (?, ?, ?)"
        );
        assert_eq!(
            sent[1].values,
            values![1_i64, "1", 7_i64, 1_i64, "3", 9_i64]
        );
    }
}
