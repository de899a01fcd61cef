//! The layout of a tenant's file, version 1.
//!
//! ```sql
//! -- Which tables of documents there are. Names never become part of SQL text; `number` does.
//! nimbus_tables    (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)
//! -- One row: the number of the last insertion. Numbers are never given twice, whatever is deleted.
//! nimbus_sequence  (id = 1, last INTEGER NOT NULL)
//! -- One table for each table of documents, in the order of insertion.
//! documents_<number> (
//!     seq     INTEGER PRIMARY KEY,  -- the number of its insertion, across all tables of the tenant
//!     id      BLOB NOT NULL UNIQUE, -- 16 bytes, UUIDv7
//!     created INTEGER NOT NULL,     -- milliseconds since the Unix epoch
//!     updated INTEGER NOT NULL,     -- the same; never before `created`
//!     fields  BLOB NOT NULL         -- JSONB; `json(fields)` is the text that came in, compact
//! )
//! ```
//!
//! `PRAGMA user_version` holds the layout's version. Why it is so: `docs/decisions/0003-document-storage.md`.

use nimbus_manifests::TenantId;
use rusqlite::{Connection, OptionalExtension as _, TransactionBehavior, params};

use super::failure;
use crate::{
    documents::TableName,
    tenants::{MAX_TABLES, StoreError},
};

/// The layout that this version writes.
const VERSION: i64 = 1;

const CREATE: &str = "
    CREATE TABLE nimbus_tables (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
    CREATE TABLE nimbus_sequence (id INTEGER PRIMARY KEY CHECK (id = 1), last INTEGER NOT NULL) STRICT;
    INSERT INTO nimbus_sequence VALUES (1, 0);
    PRAGMA user_version = 1;";

/// Whether the file has the layout of this version.
pub(super) fn is_current(connection: &Connection, tenant: &TenantId) -> Result<bool, StoreError> {
    let found = layout(connection).map_err(|error| failure(tenant, error))?;
    Ok(found == VERSION)
}

/// Sees to it that the file has the layout of this version: makes it in a file without any, refuses a newer one and
/// files that are not ours.
pub(super) fn establish(connection: &mut Connection, tenant: &TenantId) -> Result<(), StoreError> {
    let sqlite = |error| failure(tenant, error);
    if layout(connection).map_err(sqlite)? == VERSION {
        return Ok(());
    }
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(sqlite)?;
    match layout(&transaction).map_err(sqlite)? {
        VERSION => return Ok(()),
        0 if is_empty(&transaction).map_err(sqlite)? => {}
        found @ 1.. => {
            return Err(StoreError::LayoutTooNew {
                tenant: tenant.clone(),
                found,
                known: VERSION,
            });
        }
        _ => {
            return Err(StoreError::ForeignFile {
                path: transaction.path().unwrap_or_default().into(),
            });
        }
    }
    transaction.execute_batch(CREATE).map_err(sqlite)?;
    transaction.commit().map_err(sqlite)
}

fn layout(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| {
        row.get(0)
    })
}

/// The number of a table of documents; `None` when there is no such table yet.
pub(super) fn table_number(
    connection: &Connection,
    table: &TableName,
) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT number FROM nimbus_tables WHERE name = ?1")?
        .query_row(params![table.as_str()], |row| row.get(0))
        .optional()
}

/// Makes a table of documents and returns its number; `None` when there are [`MAX_TABLES`] already.
pub(super) fn create_table(
    connection: &Connection,
    table: &TableName,
) -> rusqlite::Result<Option<i64>> {
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM nimbus_tables", [], |row| row.get(0))?;
    if usize::try_from(tables).is_ok_and(|tables| tables >= MAX_TABLES) {
        return Ok(None);
    }
    let number: i64 = connection.query_row(
        "INSERT INTO nimbus_tables (name) VALUES (?1) RETURNING number",
        params![table.as_str()],
        |row| row.get(0),
    )?;
    connection.execute_batch(&format!(
        "CREATE TABLE documents_{number} (
            seq INTEGER PRIMARY KEY,
            id BLOB NOT NULL UNIQUE,
            created INTEGER NOT NULL,
            updated INTEGER NOT NULL,
            fields BLOB NOT NULL
        ) STRICT"
    ))?;
    Ok(Some(number))
}

/// The number of the last insertion.
pub(super) fn last_sequence(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT last FROM nimbus_sequence", [], |row| row.get(0))
}

/// Records the number of the last insertion.
pub(super) fn set_last_sequence(connection: &Connection, last: i64) -> rusqlite::Result<()> {
    let _one = connection
        .prepare_cached("UPDATE nimbus_sequence SET last = ?1")?
        .execute(params![last])?;
    Ok(())
}
