//! The connection that writes to a tenant's file: transactions, the room that they may take, and
//! the files that they go to.

use std::ffi::c_int;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nimbus_manifests::TenantId;
use rusqlite::{Connection, MAIN_DB, wal::CheckpointMode};

use super::checkpoint::Checkpoints;
use super::commit_log::Follower;
use super::error::failure;
use super::files::{Files, Replaced};
use super::instant::Instants;
use super::reader::Reader;
use super::room::{self, Room};
use super::rows::WRITER_CACHE_KIB;
use super::system_fields::Ascending;
use super::tables;
use crate::metrics;
use crate::sqlcipher::Database;
use crate::tenants::StoreError;
use crate::tenants::backend::Transaction;
use crate::tenants::error::NoRoom;

/// A tenant's file, and what its connections share.
pub(super) struct TenantFile<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) path: &'a Path,
    pub(super) database: Arc<Database>,
    pub(super) room: &'a Arc<Room>,
    pub(super) instants: &'a Arc<Instants>,
    pub(super) followed: &'a Arc<AtomicBool>,
    pub(super) ascending: &'a Arc<Ascending>,
}

/// The connection that writes.
#[derive(Debug)]
pub struct SqliteTransaction {
    reader: Reader,
    checkpoints: Checkpoints,
    /// Hands what is committed to who ships it.
    follower: Follower,
    /// What it writes to.
    files: Files,
    room: Arc<Room>,
    instants: Arc<Instants>,
    /// Whether a copy follows the database and needs the frames of its WAL.
    followed: Arc<AtomicBool>,
    halted: Arc<AtomicBool>,
    /// The number of the last write that was committed.
    sequence: i64,
    /// The number of the last write of the transaction that is open.
    written: i64,
    /// Why the tenant may not grow, as it was before the transaction.
    full: Option<NoRoom>,
    /// The file is not where it was: this connection is not used again.
    broken: bool,
}

impl SqliteTransaction {
    /// The writer's connection to a file that has the tables of this version; `changed` says that
    /// it was just given them.
    pub(super) fn new(
        file: &TenantFile<'_>,
        mut connection: Connection,
        halted: &Arc<AtomicBool>,
        changed: bool,
    ) -> Result<Self, StoreError> {
        let tenant = file.tenant;
        let sqlite = |error| failure(tenant, error);
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection
            .pragma_update(None, "cache_size", WRITER_CACHE_KIB)
            .map_err(sqlite)?;
        let stop = Arc::clone(halted);
        connection
            .progress_handler(STEPS, Some(move || stop.load(Ordering::Relaxed)))
            .map_err(sqlite)?;
        let log = file.instants.log();
        let follower = Follower::begin(log, tenant, &file.database, changed);
        let checkpoints = Checkpoints::install(&mut connection).map_err(sqlite)?;
        let sequence = tables::journal_bounds(&connection).map_err(sqlite)?.latest;
        Ok(Self {
            reader: Reader::new(tenant, connection, file.ascending),
            checkpoints,
            follower,
            files: Files::opened(file.path),
            room: Arc::clone(file.room),
            instants: Arc::clone(file.instants),
            followed: Arc::clone(file.followed),
            halted: Arc::clone(halted),
            sequence,
            written: sequence,
            full: None,
            broken: false,
        })
    }

    /// The connection.
    pub(super) fn connection(&self) -> &Connection {
        &self.reader.connection
    }

    /// Does something on the connection; its failure is the tenant's.
    pub(super) fn on<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        self.reader.on(work)
    }

    /// Executes a statement; how many rows it changed.
    pub(super) fn change(
        &self,
        sql: &'static str,
        values: impl rusqlite::Params,
    ) -> Result<usize, StoreError> {
        self.on(|connection| connection.prepare_cached(sql)?.execute(values))
    }

    /// The answer of a statement that counts.
    pub(super) fn count(&self, sql: &'static str) -> Result<usize, StoreError> {
        let count: i64 = self.on(|connection| {
            connection
                .prepare_cached(sql)?
                .query_row([], |row| row.get(0))
        })?;
        Ok(usize::try_from(count).unwrap_or(usize::MAX))
    }

    pub(super) fn failure(&self, error: rusqlite::Error) -> StoreError {
        failure(self.tenant(), error)
    }

    /// The open transaction has written as far as this number.
    pub(super) fn wrote(&mut self, sequence: i64) {
        self.written = sequence;
    }

    #[cfg(test)]
    pub(in crate::tenants) fn execute_batch(&self, sql: &str) -> Result<(), StoreError> {
        self.on(|connection| connection.execute_batch(sql))
    }

    fn tenant(&self) -> &TenantId {
        self.reader.tenant()
    }

    fn is_followed(&self) -> bool {
        self.followed.load(Ordering::Relaxed)
    }

    fn not_halted(&self) -> Result<(), StoreError> {
        if self.halted.load(Ordering::Relaxed) {
            return Err(StoreError::Closed {
                tenant: self.tenant().clone(),
            });
        }
        Ok(())
    }

    /// Why the tenant may not grow before a transaction, if it may not.
    fn is_full(&mut self) -> rusqlite::Result<Option<NoRoom>> {
        if let Some(limit) = self.room.tenant() {
            let connection = &self.reader.connection;
            let mut bytes = room::in_use(connection)? + self.checkpoints.bytes();
            // What the WAL holds is in the database twice, for most of it.
            if bytes >= limit
                && self.checkpoints.pending()
                && !self.followed.load(Ordering::Relaxed)
            {
                self.checkpoints.truncate(connection)?;
                bytes = room::in_use(connection)? + self.checkpoints.bytes();
            }
            if bytes >= limit {
                return Ok(Some(NoRoom::Tenant { bytes, limit }));
            }
        }
        Ok(self.room.on_disk().err())
    }

    /// Whether what was written is in the files that the next opening finds. If not, this
    /// connection acknowledges nothing any more.
    fn still_there(&mut self) -> Result<(), StoreError> {
        let Some(replaced) = self.files.replaced() else {
            return Ok(());
        };
        self.broken = true;
        metrics::FILES_REPLACED.increment(1);
        let tenant = self.tenant().clone();
        let Replaced { path, wal } = &replaced;
        if !wal {
            tracing::error!(%tenant, path = %path.display(), "{replaced}; what was written since its last checkpoint may be lost");
            let source = Arc::new(replaced);
            return Err(StoreError::Corrupt { tenant, source });
        }
        let saved = self.save();
        match &saved {
            Ok(()) => {
                tracing::error!(%tenant, path = %path.display(), "{replaced}; all that it held is in the database now")
            }
            Err(error) => {
                tracing::error!(%tenant, path = %path.display(), %error, "{replaced}; what was written since the last checkpoint may be lost")
            }
        }
        Err(StoreError::WalReplaced {
            tenant,
            path: path.clone(),
            saved: saved.is_ok(),
        })
    }

    /// Brings what a WAL holds that has lost its name into the database, before it goes with the
    /// last connection.
    fn save(&self) -> rusqlite::Result<()> {
        let connection = self.connection();
        let emptied = connection.wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::TRUNCATE);
        match emptied {
            // A reader is in the way of beginning the WAL afresh, which does not matter if nothing
            // else is.
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => {
                let (frames, done) =
                    connection.wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::NOOP)?;
                if frames == done { Ok(()) } else { Err(error) }
            }
            other => other.map(drop),
        }
    }
}

impl Transaction for SqliteTransaction {
    type Rows = Reader;

    fn begin(&mut self) -> Result<i64, StoreError> {
        self.not_halted()?;
        self.full = self.is_full().map_err(|error| self.failure(error))?;
        // What a transaction before this one made may have been undone with it.
        self.reader.forget_tables();
        self.reader.execute("BEGIN IMMEDIATE")?;
        self.on(|connection| self.reader.ascending.save(connection))?;
        self.written = self.sequence;
        Ok(self.sequence)
    }

    fn rows(&mut self) -> Result<&mut Reader, StoreError> {
        Ok(&mut self.reader)
    }

    fn is_open(&self) -> bool {
        !self.connection().is_autocommit()
    }

    fn savepoint(&mut self) -> Result<(), StoreError> {
        self.reader.execute("SAVEPOINT work")
    }

    fn release(&mut self) -> Result<(), StoreError> {
        self.reader.execute("RELEASE work")
    }

    fn undo(&mut self) -> Result<(), StoreError> {
        self.reader.forget_tables();
        self.reader.execute("ROLLBACK TO work")?;
        self.reader.execute("RELEASE work")
    }

    /// The WAL does not count within a transaction: its frames are of the same pages.
    fn no_room(&mut self) -> Result<Option<NoRoom>, StoreError> {
        if self.full.is_some() {
            return Ok(self.full);
        }
        self.not_halted()?;
        if let Some(limit) = self.room.tenant() {
            let bytes = self.on(room::in_use)?;
            if bytes >= limit {
                return Ok(Some(NoRoom::Tenant { bytes, limit }));
            }
        }
        Ok(self.room.on_disk().err())
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        {
            let _passed = self.instants.commit();
            self.reader.execute("COMMIT")?;
            self.follower.committed(self.checkpoints.frames());
        }
        self.sequence = self.written;
        self.still_there()
    }

    fn roll_back(&mut self) -> Result<(), StoreError> {
        self.on(|connection| connection.execute_batch("ROLLBACK"))
    }

    fn is_broken(&self) -> bool {
        self.broken
    }

    fn tidy(&mut self) {
        let pinned = self.is_followed();
        let connection = &self.reader.connection;
        if let Err(error) = self.checkpoints.after_commit(connection, pinned) {
            // The commits are safe in the WAL. The next checkpoint tries again.
            tracing::warn!(tenant = %self.reader.tenant(), %error, "checkpoint failed");
        }
    }

    /// Gives back the WAL's space, cached pages and statements. The connection itself is not needed
    /// if it had nothing to give back, and no copy follows what is in the WAL.
    fn rest(&mut self) -> bool {
        if !self.checkpoints.pending() {
            return !self.is_followed();
        }
        let connection = &self.reader.connection;
        connection.flush_prepared_statement_cache();
        let emptied = self.checkpoints.truncate(connection);
        if let Err(error) = emptied.and_then(|()| connection.release_memory()) {
            tracing::warn!(tenant = %self.reader.tenant(), %error, "checkpoint of an idle tenant failed");
        }
        false
    }

    /// Empties the WAL and closes the connection.
    fn finish(mut self) -> Result<(), StoreError> {
        let emptied = self.checkpoints.truncate(&self.reader.connection);
        let tenant = self.tenant().clone();
        let closed = self
            .reader
            .connection
            .close()
            .map_err(|(_connection, error)| error);
        emptied.and(closed).map_err(|error| failure(&tenant, error))
    }
}

/// Prepared statements kept: a handful for each of the tables in use.
const STATEMENTS: usize = 64;
/// Steps of SQLite's machine between two looks whether the tenant may still be used. An index of
/// few large documents takes few.
const STEPS: c_int = 200;
