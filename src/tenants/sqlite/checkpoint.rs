//! When the WAL's pages go into the database file: the store's decision, and made here alone.
//!
//! SQLite would checkpoint inside the commit that crosses its threshold, while a caller waits. Here
//! it happens after the callers were answered. Whoever has to see every frame of the WAL before it
//! is overwritten has one place to ask.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use nimbus_manifests::TenantId;
use rusqlite::{Connection, MAIN_DB, wal::CheckpointMode};

use super::error::failure;
use crate::metrics::{self, Share};
use crate::tenants::StoreError;

/// Checkpoints one tenant's file through its writer.
#[derive(Debug)]
pub(super) struct Checkpoints {
    /// Pages in the WAL, as the last commit reported them.
    pages: Arc<AtomicI32>,
    /// The number of pages at which to try next.
    next: i32,
    /// What these pages are of the sum over all tenants.
    counted: Share,
}

impl Checkpoints {
    /// Has `writer` report the size of its WAL after each commit. What an earlier process left
    /// there is taken over into the file first.
    pub(super) fn install(writer: &mut Connection) -> rusqlite::Result<Self> {
        let pages = Arc::new(AtomicI32::new(0));
        let reported = Arc::clone(&pages);
        writer.wal_hook(Some(move |_wal: &mut rusqlite::hooks::Wal, pages| {
            reported.store(pages, Ordering::Relaxed);
            Ok(())
        }))?;
        let mut checkpoints = Self {
            pages,
            next: PASSIVE_PAGES,
            counted: Share::new(&metrics::WAL),
        };
        if pages_left(writer)? > 0 {
            checkpoints.passive(writer)?;
        }
        Ok(checkpoints)
    }

    /// Checkpoints when the WAL has grown enough. `pinned`: somebody needs its frames for long, and
    /// is not waited for.
    pub(super) fn after_commit(
        &mut self,
        writer: &Connection,
        pinned: bool,
    ) -> rusqlite::Result<()> {
        let pages = self.pages.load(Ordering::Relaxed);
        self.counted.set(self.bytes() as f64);
        if pages < PASSIVE_PAGES {
            // It was begun afresh since the last time.
            self.next = PASSIVE_PAGES;
            return Ok(());
        }
        if pages < self.next {
            return Ok(());
        }
        self.passive(writer)?;
        if pages >= TRUNCATE_PAGES && !pinned {
            // There was always some reader that kept the WAL from being begun afresh.
            self.truncate(writer)?;
        }
        Ok(())
    }

    /// Empties the WAL file, if no reader stays in the way for long: those that come once all is in
    /// the file do not need the WAL, so it is those under way that are waited for.
    pub(super) fn truncate(&mut self, writer: &Connection) -> rusqlite::Result<()> {
        writer.busy_timeout(TRUNCATE_PATIENCE)?;
        let result = writer.wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::TRUNCATE);
        writer.busy_timeout(BUSY_TIMEOUT)?;
        count(&result);
        match result {
            Ok(_) => {
                self.pages.store(0, Ordering::Relaxed);
                self.counted.set(0.0);
                self.next = PASSIVE_PAGES;
                Ok(())
            }
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// How many bytes the pages in the WAL take.
    pub(super) fn bytes(&self) -> u64 {
        u64::try_from(self.pages.load(Ordering::Relaxed)).unwrap_or(0) * FRAME_BYTES
    }

    /// How many frames the WAL has since the last commit.
    pub(super) fn frames(&self) -> u32 {
        u32::try_from(self.pages.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Whether there may be pages in the WAL.
    pub(super) fn pending(&self) -> bool {
        self.pages.load(Ordering::Relaxed) > 0
    }

    fn passive(&mut self, writer: &Connection) -> rusqlite::Result<()> {
        let result = writer.wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::PASSIVE);
        count(&result);
        let (pages, done) = match result {
            Ok(found) => found,
            // Who makes a copy under the next key is at it.
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => {
                self.next = self.pages.load(Ordering::Relaxed) + PASSIVE_PAGES;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.pages.store(pages, Ordering::Relaxed);
        self.next = if done == pages {
            PASSIVE_PAGES
        } else {
            pages + PASSIVE_PAGES
        };
        Ok(())
    }
}

fn count<T>(result: &rusqlite::Result<T>) {
    metrics::count(
        result,
        &metrics::CHECKPOINT_DONE,
        &metrics::CHECKPOINT_FAILED,
    );
}

/// Whether an earlier process left nothing in the WAL, so that it does not matter who closes the
/// file last: SQLite checkpoints then by itself.
pub(super) fn is_done(connection: &Connection, tenant: &TenantId) -> Result<bool, StoreError> {
    let left = pages_left(connection).map_err(|error| failure(tenant, error))?;
    Ok(left <= 0)
}

/// Pages in the WAL. Nothing is checkpointed.
fn pages_left(connection: &Connection) -> rusqlite::Result<i32> {
    let (left, _done) = connection.wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::NOOP)?;
    Ok(left)
}

/// A page in the WAL, with the header of its frame.
const FRAME_BYTES: u64 = 4096 + 24;
/// Pages in the WAL from which on it is worth a checkpoint: 4 MiB.
const PASSIVE_PAGES: i32 = 1000;
/// Pages in the WAL from which on readers are waited for: 64 MiB.
const TRUNCATE_PAGES: i32 = 16_000;
const TRUNCATE_PATIENCE: Duration = Duration::from_millis(100);
/// What the writer has otherwise.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
