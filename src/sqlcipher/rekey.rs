//! A database under its next key: copied page for page by SQLite's backup API, verified, and put in
//! the old one's place.
//!
//! `PRAGMA rekey` is never used: it can report success and have done nothing. States between the
//! steps, for a database `S` whose manifest says `rekeying`; in each, the opening table tries the
//! first key, then the next:
//!
//! | after | on disk | the next opening |
//! | --- | --- | --- |
//! | WAL folded into `S`, WAL mode left | `S` under the first key | opens under it; `ready` with the first key |
//! | copy made, flushed, verified | and `S.rekey` under the next | the same; the copy is removed |
//! | copy renamed over `S` | `S` under the next key | opens under it; `ready` with the next key |
//!
//! No WAL of the old file may outlive it: its frames would be taken for the new one's.

use std::path::Path;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ffi};

use super::copy::{Inventory, alone};
use super::error::{CopyError, io_error, sqlite, sqlite_error};
use super::{Database, PAGE_BYTES, confirm};
use crate::data_dir::{parent, sync_dir};
use crate::envelope::KeyedFile;
use crate::failpoints::crash_point;
use crate::runtime::Progress;
use crate::sqlite_file;

/// Puts a copy under the next key in the place of a database whose manifest says `rekeying`. Nobody
/// else may have the database open. Blocks.
///
/// # Errors
///
/// [`CopyError`]; the database is then still under its first key, whole.
pub(crate) fn swap_to_next_key(
    file: &KeyedFile,
    progress: Option<&Progress>,
) -> Result<(), CopyError> {
    let Some(copy) = file.copy_under_next() else {
        let path = file.path().to_owned();
        return Err(CopyError::Differs {
            path,
            what: "its number of data keys".to_owned(),
        });
    };
    let (path, copy_path) = (file.path(), copy.path().to_owned());
    let mut connection = alone(&Database::keyed(file.share()))?;
    sqlite_file::create(&copy_path).map_err(io_error("create", &copy_path))?;
    let target = Database::keyed(copy);
    copy_pages(&connection, &target, path, progress)?;
    crash_point!("rekey::copied");

    verify(&mut connection, &target, path, progress)?;
    // What the old file kept beside it goes with its last connection.
    connection
        .close()
        .map_err(|(_connection, error)| sqlite("close", path, error))?;
    sqlite_file::flush(&copy_path).map_err(io_error("flush", &copy_path))?;
    crash_point!("rekey::verified");
    // The old WAL's absence first: what is left of it would be taken for the new file's.
    let dir = parent(path);
    sync_dir(dir).map_err(io_error("flush", dir))?;
    std::fs::rename(&copy_path, path).map_err(io_error("rename", &copy_path))?;
    crash_point!("rekey::renamed");
    sync_dir(dir).map_err(io_error("flush", dir))?;
    crash_point!("rekey::swapped");
    Ok(())
}

/// Proves the copy: it opens under the next key, each of its pages authenticates, its structure is
/// right, and it holds what the source shows. The two are read at the same time. `progress` is
/// asked now and then whether to go on.
pub(super) fn verify(
    source: &mut Connection,
    target: &Database,
    path: &Path,
    progress: Option<&Progress>,
) -> Result<(), CopyError> {
    let compared = |error| sqlite("compare", path, error);
    ask_now_and_then(source, progress).map_err(compared)?;
    let inventories = std::thread::scope(|scope| {
        let source = &mut *source;
        let theirs = scope.spawn(move || Inventory::of(source).map_err(compared));
        let ours = target.verify_copy(progress).and_then(|copy| {
            let ours = Inventory::of(&copy).map_err(compared)?;
            // Its WAL is empty and goes with its last connection.
            copy.close()
                .map_err(|(_connection, error)| sqlite("close", target.path(), error))?;
            Ok(ours)
        });
        let theirs = theirs
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, CopyError>((theirs?, ours?))
    });
    ask_now_and_then(source, None).map_err(compared)?;
    let (theirs, ours) = inventories?;
    theirs.compare(&ours, path)
}

impl Database {
    /// Proves every page of a finished copy that nobody else has, each once. Gives the connection.
    fn verify_copy(&self, progress: Option<&Progress>) -> Result<Connection, CopyError> {
        let failed = |error| CopyError::from(self.explain("verify", error));
        let mut connection = self.fresh()?;
        ask_now_and_then(&mut connection, progress).map_err(failed)?;
        self.verify_once(&connection, progress)?;
        Ok(connection)
    }
}

/// Has a connection stop at its next opportunity when `progress` says so.
fn ask_now_and_then(
    connection: &mut Connection,
    progress: Option<&Progress>,
) -> rusqlite::Result<()> {
    let pages: u32 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
    let (progress, total) = (progress.cloned(), u64::from(pages) * PAGE_BYTES);
    let stop = progress.map(|progress| move || !progress(total, total));
    connection.progress_handler(ASK_EVERY, stop)
}

/// Every page, under the other key: row ids, free list and settings come along.
pub(super) fn copy_pages(
    connection: &Connection,
    target: &Database,
    path: &Path,
    progress: Option<&Progress>,
) -> Result<(), CopyError> {
    let failed = |source| sqlite("copy", path, source);
    let mut copy = target.bare()?;
    // What a crash leaves of it is thrown away, and it is flushed before it counts.
    copy.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF")
        .map_err(failed)?;
    {
        let backup = Backup::new(connection, &mut copy).map_err(failed)?;
        loop {
            let step = backup.step(PAGES_A_STEP).map_err(failed)?;
            let now = backup.progress();
            let total = u64::try_from(now.pagecount).unwrap_or(0);
            let left = u64::try_from(now.remaining).unwrap_or(0);
            let go_on = progress
                .is_none_or(|progress| progress((total - left) * PAGE_BYTES, total * PAGE_BYTES));
            if !go_on {
                return Err(failed(sqlite_error(ffi::SQLITE_INTERRUPT)));
            }
            match step {
                StepResult::Done => break,
                StepResult::More => {}
                // Nobody else may have the file: waiting would not help.
                _ => return Err(failed(sqlite_error(ffi::SQLITE_BUSY))),
            }
        }
    }
    confirm(connection).map_err(failed)?;
    copy.close()
        .map_err(|(_connection, error)| sqlite("write", target.path(), error))
}

/// 4 MiB.
const PAGES_A_STEP: i32 = 1024;
/// Of SQLite's machine, and of its structural check.
const ASK_EVERY: i32 = 2_000;
