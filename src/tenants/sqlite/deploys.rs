//! Deploys as SQL: generations of an app's state, in the tenant's own file.
//!
//! ```sql
//! -- The deploys that are kept. The newest is always among them, so that no number is given twice.
//! nimbus_generations (
//!     generation INTEGER PRIMARY KEY,
//!     name       TEXT NOT NULL,
//!     created    INTEGER NOT NULL,  -- milliseconds since the Unix epoch
//!     schemas    INTEGER NOT NULL,  -- how many, as of crons and files
//!     crons      INTEGER NOT NULL,
//!     files      INTEGER NOT NULL,
//!     bytes      INTEGER NOT NULL,  -- in all files
//!     schema_list TEXT NOT NULL,    -- JSON
//!     cron_list   TEXT NOT NULL
//! )
//! -- One row, once there was a deploy.
//! nimbus_active   (id = 1, generation INTEGER NOT NULL)
//! -- Paths in normalisation form C.
//! nimbus_files    (generation INTEGER, path TEXT, content INTEGER, PRIMARY KEY (generation, path))
//! -- What is in files: equal contents once, whatever files and generations have them.
//! nimbus_contents (
//!     number INTEGER PRIMARY KEY,
//!     sha256 BLOB NOT NULL UNIQUE,
//!     size   INTEGER NOT NULL,      -- in bytes
//!     uses   INTEGER NOT NULL       -- rows of nimbus_files that name it; at none it is removed
//! )
//! -- The bytes of contents, in pieces of 64 KiB: a part is read without what lies before it.
//! nimbus_pieces   (id INTEGER PRIMARY KEY, bytes BLOB NOT NULL)  -- id: number * 65536 + place
//! ```

use std::ops::Range;

use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::contents;
use super::reader::Reader;
use super::rows::{malformed, sql_limit};
use super::transaction::SqliteTransaction;
use crate::documents::deploy::{AppFile, AppPath, ContentHash, Deploy, Generation, Resources};
use crate::tenants::StoreError;
use crate::tenants::backend::{DeployRows, DeployWrites};

/// Makes the tables.
pub(super) const TABLES: &str = "
    CREATE TABLE nimbus_generations (
        generation INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        created INTEGER NOT NULL,
        schemas INTEGER NOT NULL,
        crons INTEGER NOT NULL,
        files INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        schema_list TEXT NOT NULL,
        cron_list TEXT NOT NULL
    ) STRICT;
    CREATE TABLE nimbus_active (id INTEGER PRIMARY KEY CHECK (id = 1), generation INTEGER NOT NULL) STRICT;
    CREATE TABLE nimbus_files (
        generation INTEGER NOT NULL,
        path TEXT NOT NULL,
        content INTEGER NOT NULL,
        PRIMARY KEY (generation, path)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE nimbus_contents (
        number INTEGER PRIMARY KEY,
        sha256 BLOB NOT NULL UNIQUE,
        size INTEGER NOT NULL,
        uses INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE nimbus_pieces (id INTEGER PRIMARY KEY, bytes BLOB NOT NULL) STRICT;";

impl DeployRows for Reader {
    fn active_generation(&mut self) -> Result<Option<i64>, StoreError> {
        self.on(active)
    }

    fn generations(&mut self) -> Result<Vec<Generation>, StoreError> {
        self.on(generations)
    }

    fn resources(&mut self, generation: i64) -> Result<Option<Resources>, StoreError> {
        self.on(|connection| resources(connection, generation))
    }

    fn files(&mut self, generation: i64) -> Result<Vec<(String, ContentHash)>, StoreError> {
        self.on(|connection| contents::listing(connection, generation))
    }

    fn app_file(&mut self, path: &AppPath) -> Result<Option<AppFile>, StoreError> {
        self.on(|connection| contents::find(connection, path))
    }

    fn app_content(&mut self, hash: ContentHash, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        self.on(|connection| contents::read(connection, hash, range))
    }
}

impl DeployWrites for SqliteTransaction {
    fn store_generation(&mut self, deploy: &Deploy, created_ms: i64) -> Result<i64, StoreError> {
        self.on(|connection| store(connection, deploy, created_ms, None))
    }

    fn set_active_generation(&mut self, generation: i64) -> Result<(), StoreError> {
        let sql = "INSERT OR REPLACE INTO nimbus_active VALUES (1, ?1)";
        self.change(sql, [generation]).map(drop)
    }

    fn old_generations(&mut self, kept: usize) -> Result<Vec<i64>, StoreError> {
        self.on(|connection| {
            connection
                .prepare_cached(
                    "SELECT generation FROM nimbus_generations
                     ORDER BY generation DESC LIMIT -1 OFFSET ?1",
                )?
                .query_map([sql_limit(kept)], |row| row.get(0))?
                .collect()
        })
    }

    fn delete_generation(&mut self, generation: i64) -> Result<(), StoreError> {
        self.on(|connection| contents::forget(connection, generation))?;
        let sql = "DELETE FROM nimbus_generations WHERE generation = ?1";
        self.change(sql, [generation]).map(drop)
    }
}

/// The generation that is active, if any is.
fn active(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT generation FROM nimbus_active")?
        .query_row([], |row| row.get(0))
        .optional()
}

/// Stores a deploy as the generation of this number or the next, and gives the number.
pub(super) fn store(
    connection: &Connection,
    deploy: &Deploy,
    created_ms: i64,
    generation: Option<i64>,
) -> rusqlite::Result<i64> {
    let Deploy {
        name,
        resources,
        files,
        ..
    } = deploy;
    let bytes: usize = files.values().map(|file| file.bytes().len()).sum();
    // All of them came in one body: none is too large for the column.
    let counts = [resources.schemas.len(), resources.crons.len(), files.len()];
    let [schemas, crons, count] = counts.map(|count| count as i64);
    let generation = connection
        .prepare_cached(
            "INSERT INTO nimbus_generations
             SELECT coalesce(?9, max(generation) + 1, 1), ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8
             FROM nimbus_generations
             RETURNING generation",
        )?
        .query_row(
            params![
                name,
                created_ms,
                schemas,
                crons,
                count,
                bytes as i64,
                resources.schemas_json(),
                resources.crons_json(),
                generation,
            ],
            |row| row.get(0),
        )?;
    contents::store(connection, generation, files)?;
    Ok(generation)
}

fn generations(connection: &Connection) -> rusqlite::Result<Vec<Generation>> {
    connection
        .prepare_cached(
            "SELECT generation, name, created, schemas, crons, files, bytes
             FROM nimbus_generations ORDER BY generation DESC",
        )?
        .query_map([], stored_generation)?
        .collect()
}

fn stored_generation(row: &Row<'_>) -> rusqlite::Result<Generation> {
    Ok(Generation {
        generation: row.get(0)?,
        name: row.get(1)?,
        created_at: row.get(2)?,
        schemas: row.get(3)?,
        crons: row.get(4)?,
        files: row.get(5)?,
        bytes: row.get(6)?,
    })
}

/// The schemas and crons of a generation that is kept.
fn resources(connection: &Connection, generation: i64) -> rusqlite::Result<Option<Resources>> {
    connection
        .prepare_cached(
            "SELECT schema_list, cron_list FROM nimbus_generations WHERE generation = ?1",
        )?
        .query_row([generation], |row| {
            let (schemas, crons): (String, String) = (row.get(0)?, row.get(1)?);
            Resources::from_stored(&schemas, &crons).ok_or_else(|| malformed(0, "schema_list"))
        })
        .optional()
}
