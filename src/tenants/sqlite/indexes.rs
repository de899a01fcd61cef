//! The indexes of tables: their definitions, and what a broken rule of uniqueness says.

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::expressions::Ordered;
use super::rows::malformed;
use crate::documents::schema::IndexRule;

/// The rule of uniqueness that was broken.
pub(super) enum Violated {
    /// Ids of documents.
    Id,
    /// The index in this slot.
    Index(i64),
}

pub(super) fn violated(error: &rusqlite::Error) -> Option<Violated> {
    let rusqlite::Error::SqliteFailure(code, message) = error else {
        return None;
    };
    if code.extended_code != rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE {
        return None;
    }
    // SQLite: UNIQUE constraint failed: index 'nimbus_index_7'
    let slot = message
        .as_deref()
        .and_then(|message| message.split_once("'nimbus_index_"))
        .and_then(|(_, rest)| rest.split_once('\''))
        .and_then(|(slot, _)| slot.parse().ok());
    Some(slot.map_or(Violated::Id, Violated::Index))
}

/// What an index is on.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Definition {
    /// The names on the way to each field.
    pub(super) fields: Vec<Vec<String>>,
    pub(super) unique: bool,
}

impl Definition {
    pub(super) fn of(rule: &IndexRule) -> Self {
        Self {
            fields: rule
                .fields
                .iter()
                .map(|path| path.names().to_vec())
                .collect(),
            unique: rule.unique,
        }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("names and a flag")
    }

    pub(super) fn from_json(text: &str, column: usize) -> rusqlite::Result<Self> {
        serde_json::from_str(text).map_err(|_| malformed(column, "definition"))
    }
}

/// The indexes of a table: slot, name and definition.
pub(super) fn slots(
    connection: &Connection,
    number: i64,
) -> rusqlite::Result<Vec<(i64, String, String)>> {
    connection
        .prepare_cached("SELECT slot, name, definition FROM nimbus_indexes WHERE number = ?1")?
        .query_map(params![number], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?
        .collect()
}

/// Name and definition of an index.
pub(super) fn index(connection: &Connection, slot: i64) -> rusqlite::Result<(String, Definition)> {
    connection.query_row(
        "SELECT name, definition FROM nimbus_indexes WHERE slot = ?1",
        params![slot],
        |row| {
            let definition = Definition::from_json(&row.get::<_, String>(1)?, 1)?;
            Ok((row.get(0)?, definition))
        },
    )
}

/// The indexes of a table: of each, its fields.
pub(super) type Indexes = Vec<Vec<Indexed>>;

/// A field of an index.
#[derive(Debug)]
pub(super) struct Indexed {
    /// The names on the way to it.
    pub(super) names: Vec<String>,
    /// As the index has it.
    pub(super) columns: Ordered,
}

/// Reads the indexes of a table.
pub(super) fn indexes(connection: &Connection, number: i64) -> rusqlite::Result<Indexes> {
    let slots = slots(connection, number)?;
    let definitions = slots.iter();
    definitions
        .map(|(_, _, text)| {
            let fields = Definition::from_json(text, 2)?.fields.into_iter();
            let indexed = fields.map(|names| Indexed {
                columns: Ordered::indexed(&names),
                names,
            });
            Ok(indexed.collect())
        })
        .collect()
}
