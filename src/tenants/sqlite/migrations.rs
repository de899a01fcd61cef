//! The layout of a tenant's file, version 6.
//!
//! ```sql
//! -- Which tables of documents there are. Names never become part of SQL text; `number` does.
//! nimbus_tables    (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
//!                   ascending INTEGER) -- whether `created` ascends with `seq`: see `system_fields.rs`
//! -- The last writes, across all tables of the tenant; numbers are never given twice. The last record is always there.
//! nimbus_journal (
//!     sequence INTEGER PRIMARY KEY, -- the number of the write
//!     change   INTEGER NOT NULL,    -- 1 insert, 2 update, 3 delete
//!     number   INTEGER NOT NULL,    -- of the table, as in nimbus_tables
//!     id       BLOB NOT NULL,       -- of the document
//!     at       INTEGER NOT NULL     -- milliseconds since the Unix epoch
//! )
//! -- One row: the number of the last write before the journal began. 0 in a file that has had one from the start.
//! nimbus_sequence  (id = 1, last INTEGER NOT NULL)
//! -- One row: the key that seals the cursors of this tenant.
//! nimbus_cursor_key (id = 1, key BLOB NOT NULL)
//! -- Requests that were sent under a key, and how many each credential has there: see `remembered.rs`.
//! nimbus_remembered, nimbus_remembered_of
//! -- The schemas of tables, and the indexes made from them: see `schemas.rs`.
//! nimbus_schemas, nimbus_indexes, nimbus_index_<slot>
//! -- One table for each table of documents, in the order of insertion.
//! documents_<number> (
//!     seq     INTEGER PRIMARY KEY,  -- the number of the write that inserted it
//!     id      BLOB NOT NULL UNIQUE, -- 16 bytes, UUIDv7
//!     created INTEGER NOT NULL,     -- milliseconds since the Unix epoch
//!     updated INTEGER NOT NULL,     -- the same; never before `created`
//!     fields  BLOB NOT NULL,        -- JSONB; `json(fields)` is the text that came in, compact
//!     version INTEGER               -- the number of the write that wrote it last, if that is not `seq`
//! )
//! ```
//!
//! `PRAGMA user_version` holds the layout's version. Version 1 had no journal, version 2 nothing
//! but documents and their journal, version 3 no versions of documents, no keys of requests and no
//! cursor key, version 4 no counts of them by credential, version 5 no word about the order of
//! creation; such files are brought up to date when they are opened, without looking at documents.
//! Why it is so: `docs/decisions/0003-document-storage.md`.

use nimbus_keyproviders::{OsRandom, SecureRandom as _};
use nimbus_manifests::TenantId;
use rusqlite::{Connection, TransactionBehavior, params};
use zeroize::Zeroizing;

use super::{deploys, error::failure, jobs, remembered, schemas, system_fields, tables};
use crate::tenants::{CURSOR_KEY_BYTES, StoreError};

/// The layout that this version writes.
const VERSION: i64 = 6;

/// Makes version 3 of version 2; each resource has the tables of its own module.
const ADD_RESOURCES: &[&str] = &[deploys::TABLES, jobs::TABLES, schemas::TABLES];

/// What makes each version of the one before it.
const STEPS: [&[&str]; VERSION as usize] = [
    &[tables::TABLES],
    &[tables::JOURNAL],
    ADD_RESOURCES,
    &[tables::CURSOR_KEY, remembered::TABLE],
    &[remembered::ADD_CREDENTIALS],
    &[system_fields::ADD_ASCENDING],
];

/// Whether the file has the layout of this version.
pub(super) fn is_current(connection: &Connection, tenant: &TenantId) -> Result<bool, StoreError> {
    let current = || Ok(layout(connection)? == VERSION && is_nimbus(connection)?);
    current().map_err(|error| failure(tenant, error))
}

/// Whether a server serves this database: one that Nimbus made, or one with nothing in it.
pub(crate) fn is_served(connection: &Connection) -> rusqlite::Result<bool> {
    match layout(connection)? {
        0 => is_empty(connection),
        _ => is_nimbus(connection),
    }
}

/// Whether Nimbus made the tables: other applications number their layouts, too.
fn is_nimbus(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row(
        "SELECT count(*) > 0 FROM sqlite_schema WHERE type = 'table' AND name = 'nimbus_tables'",
        [],
        |row| row.get(0),
    )
}

/// Makes the tables of this version in a new file.
pub(super) fn fill(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    make(&transaction, &STEPS)?;
    draw_cursor_key(&transaction)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}

/// Sees to it that the file has the layout of this version: makes it in a file without any, brings
/// an older one up to date, refuses a newer one and files that are not ours.
pub(super) fn establish(connection: &mut Connection, tenant: &TenantId) -> Result<(), StoreError> {
    let sqlite = |error| failure(tenant, error);
    if is_current(connection, tenant)? {
        return Ok(());
    }
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(sqlite)?;
    let found = layout(&transaction).map_err(sqlite)?;
    let known = match usize::try_from(found) {
        Ok(0) if is_empty(&transaction).map_err(sqlite)? => 0,
        Ok(known @ 1..) if is_nimbus(&transaction).map_err(sqlite)? => known,
        _ => {
            return Err(StoreError::ForeignFile {
                path: transaction.path().unwrap_or_default().into(),
            });
        }
    };
    let steps = STEPS.get(known..).ok_or_else(|| StoreError::LayoutTooNew {
        tenant: tenant.clone(),
        found,
        known: VERSION,
    })?;
    make(&transaction, steps).map_err(sqlite)?;
    if found < 4 {
        add_versions(&transaction).map_err(sqlite)?;
        draw_cursor_key(&transaction).map_err(sqlite)?;
    }
    transaction
        .pragma_update(None, "user_version", VERSION)
        .map_err(sqlite)?;
    transaction.commit().map_err(sqlite)
}

fn make(connection: &Connection, steps: &[&[&str]]) -> rusqlite::Result<()> {
    let mut steps = steps.iter().copied().flatten();
    steps.try_for_each(|sql| connection.execute_batch(sql))
}

/// Gives documents their versions, as far as the journal knows of them; the rest keep the number of
/// their insertion.
fn add_versions(connection: &Connection) -> rusqlite::Result<()> {
    let mut tables = connection.prepare("SELECT number FROM nimbus_tables")?;
    let tables = tables.query_map([], |row| row.get::<_, i64>(0))?;
    for number in tables {
        let number = number?;
        connection.execute_batch(&format!(
            "ALTER TABLE documents_{number} ADD COLUMN version INTEGER"
        ))?;
    }
    let mut updates = connection.prepare(
        "SELECT number, id, max(sequence) FROM nimbus_journal WHERE change = 2 GROUP BY number, id",
    )?;
    let mut updates = updates.query([])?;
    while let Some(update) = updates.next()? {
        let number: i64 = update.get(0)?;
        let (id, sequence): (Vec<u8>, i64) = (update.get(1)?, update.get(2)?);
        // One that was removed and inserted again under its id is younger than that update.
        let set = format!("UPDATE documents_{number} SET version = ?2 WHERE id = ?1 AND seq < ?2");
        connection
            .prepare_cached(&set)?
            .execute(params![id, sequence])?;
    }
    Ok(())
}

fn draw_cursor_key(connection: &Connection) -> rusqlite::Result<()> {
    let mut key = Zeroizing::new([0; CURSOR_KEY_BYTES]);
    OsRandom
        .fill(&mut *key)
        .map_err(|error| rusqlite::Error::UserFunctionError(Box::new(error)))?;
    connection
        .execute("INSERT INTO nimbus_cursor_key VALUES (1, ?1)", [&key[..]])
        .map(drop)
}

fn layout(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| {
        row.get(0)
    })
}
