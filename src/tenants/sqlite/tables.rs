//! The tables of documents, the journal and the cursor key of a tenant's file.
//! [`migrations`](super::migrations) describes them.

use rusqlite::{Connection, OptionalExtension as _, params};
use zeroize::Zeroizing;

use crate::documents::TableName;
use crate::tenants::CURSOR_KEY_BYTES;
use crate::tenants::backend::{JournalBounds, TableNumber};

/// The tables of version 1.
pub(super) const TABLES: &str = "
    CREATE TABLE nimbus_tables (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
    CREATE TABLE nimbus_sequence (id INTEGER PRIMARY KEY CHECK (id = 1), last INTEGER NOT NULL) STRICT;
    INSERT INTO nimbus_sequence VALUES (1, 0);";

/// The table of version 2.
pub(super) const JOURNAL: &str = "
    CREATE TABLE nimbus_journal (
        sequence INTEGER PRIMARY KEY,
        change INTEGER NOT NULL,
        number INTEGER NOT NULL,
        id BLOB NOT NULL,
        at INTEGER NOT NULL
    ) STRICT;";

/// The table of version 4.
pub(super) const CURSOR_KEY: &str = "
    CREATE TABLE nimbus_cursor_key (id INTEGER PRIMARY KEY CHECK (id = 1), key BLOB NOT NULL) STRICT;";

/// The key that seals the tenant's cursors.
pub(super) fn cursor_key(
    connection: &Connection,
) -> rusqlite::Result<Zeroizing<[u8; CURSOR_KEY_BYTES]>> {
    connection.query_row("SELECT key FROM nimbus_cursor_key", [], |row| {
        row.get(0).map(Zeroizing::new)
    })
}

/// The number of a table of documents; `None` when there is no such table yet.
pub(super) fn table_number(
    connection: &Connection,
    table: &TableName,
) -> rusqlite::Result<Option<TableNumber>> {
    connection
        .prepare_cached("SELECT number FROM nimbus_tables WHERE name = ?1")?
        .query_row(params![table.as_str()], |row| row.get(0))
        .optional()
}

/// Makes a table of documents, of this number or the next, and returns its number.
pub(super) fn create_table(
    connection: &Connection,
    table: &TableName,
    number: Option<TableNumber>,
) -> rusqlite::Result<TableNumber> {
    let number: i64 = connection.query_row(
        "INSERT INTO nimbus_tables (number, name, ascending) VALUES (?1, ?2, 1) RETURNING number",
        params![number, table.as_str()],
        |row| row.get(0),
    )?;
    connection.execute_batch(&format!(
        "CREATE TABLE documents_{number} (
            seq INTEGER PRIMARY KEY,
            id BLOB NOT NULL UNIQUE,
            created INTEGER NOT NULL,
            updated INTEGER NOT NULL,
            fields BLOB NOT NULL,
            version INTEGER
        ) STRICT"
    ))?;
    Ok(number)
}

/// The number of the last write, and the one after which the journal has all.
pub(super) fn journal_bounds(connection: &Connection) -> rusqlite::Result<JournalBounds> {
    connection
        .prepare_cached(
            "SELECT coalesce((SELECT max(sequence) FROM nimbus_journal), last),
                    coalesce((SELECT min(sequence) - 1 FROM nimbus_journal), last)
             FROM nimbus_sequence",
        )?
        .query_row([], |row| {
            Ok(JournalBounds {
                latest: row.get(0)?,
                floor: row.get(1)?,
            })
        })
}
