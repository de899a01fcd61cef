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
//!
//! Storing and activating are one caller's work in the writer's transaction: after a crash, as to every reader, schemas,
//! indexes, crons and files are those of one generation.

mod contents;
mod reading;
mod resources;

use rusqlite::{Connection, OptionalExtension as _, params};

pub(super) use resources::Scans;

use super::apply::{Writing, now_ms};
use crate::{
    documents::deploy::{Deploy, Deployed, Diff, GENERATIONS_KEPT},
    tenants::{StoreError, Unscheduled},
};

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

impl Writing<'_> {
    /// Stores a deploy as the newest generation and activates it; a dry run comes as far as what would be different.
    pub(super) fn deploy(
        &mut self,
        deploy: &Deploy,
        scans: &Scans,
    ) -> Result<Deployed, StoreError> {
        self.may_grow()?;
        let previous = self.on_file(active)?;
        let files = self.on_file(|connection| contents::changes(connection, previous, deploy))?;
        if deploy.dry_run {
            // Nobody is to expect work of crons that do not come to be.
            let due = std::mem::replace(&mut self.due, &Unscheduled);
            let resources =
                self.rehearse(|writing| writing.establish(previous, &deploy.resources, scans));
            self.due = due;
            let (schemas, crons) = resources??;
            return Ok(Deployed {
                generation: None,
                previous_generation: previous,
                activated: false,
                diff: Diff {
                    files,
                    schemas,
                    crons,
                },
            });
        }
        let (schemas, crons) = self.establish(previous, &deploy.resources, scans)?;
        let generation = self.on_file(|connection| {
            let generation = store(connection, deploy)?;
            activate(connection, generation)?;
            forget_old(connection)?;
            Ok(generation)
        })?;
        Ok(Deployed {
            generation: Some(generation),
            previous_generation: previous,
            activated: true,
            diff: Diff {
                files,
                schemas,
                crons,
            },
        })
    }

    /// Activates a generation that is kept, the active one too: what was changed by hand since is as it has it again.
    pub(super) fn activate(
        &mut self,
        generation: i64,
        scans: &Scans,
    ) -> Result<Deployed, StoreError> {
        self.may_grow()?;
        let previous = self.on_file(active)?;
        let resources = self
            .on_file(|connection| resources::of(connection, generation))?
            .ok_or(StoreError::GenerationNotFound { generation })?;
        let files =
            self.on_file(|connection| contents::changes_between(connection, previous, generation))?;
        let (schemas, crons) = self.establish(previous, &resources, scans)?;
        self.on_file(|connection| activate(connection, generation))?;
        Ok(Deployed {
            generation: Some(generation),
            previous_generation: previous,
            activated: true,
            diff: Diff {
                files,
                schemas,
                crons,
            },
        })
    }

    fn on_file<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        work(self.connection).map_err(|error| self.failure(error))
    }
}

/// The generation that is active, if any is.
fn active(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT generation FROM nimbus_active")?
        .query_row([], |row| row.get(0))
        .optional()
}

fn activate(connection: &Connection, generation: i64) -> rusqlite::Result<()> {
    let _one = connection
        .prepare_cached("INSERT OR REPLACE INTO nimbus_active VALUES (1, ?1)")?
        .execute([generation])?;
    Ok(())
}

/// Stores a deploy, and gives the number of its generation.
fn store(connection: &Connection, deploy: &Deploy) -> rusqlite::Result<i64> {
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
             SELECT coalesce(max(generation), 0) + 1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8
             FROM nimbus_generations
             RETURNING generation",
        )?
        .query_row(
            params![
                name,
                now_ms(),
                schemas,
                crons,
                count,
                bytes as i64,
                resources.schemas_json(),
                resources.crons_json(),
            ],
            |row| row.get(0),
        )?;
    contents::store(connection, generation, files)?;
    Ok(generation)
}

/// Removes generations beyond [`GENERATIONS_KEPT`], the oldest first, and the contents that no other has. The newest has just been
/// activated, so none of them is the active one.
fn forget_old(connection: &Connection) -> rusqlite::Result<()> {
    let old = connection
        .prepare_cached(
            "SELECT generation FROM nimbus_generations
             ORDER BY generation DESC LIMIT -1 OFFSET ?1",
        )?
        .query_map([GENERATIONS_KEPT as i64], |row| row.get(0))?
        .collect::<rusqlite::Result<Vec<i64>>>()?;
    for generation in old {
        contents::forget(connection, generation)?;
        let _one = connection
            .prepare_cached("DELETE FROM nimbus_generations WHERE generation = ?1")?
            .execute([generation])?;
    }
    Ok(())
}
