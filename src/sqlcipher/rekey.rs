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
use super::error::{CopyError, damaged, io_error, sqlite, sqlite_error};
use super::key::page_key;
use super::page::{Content, PAGE};
use super::{Database, PAGE_BYTES, confirm};
use crate::data_dir::{parent, sync_dir};
use crate::envelope::KeyedFile;
use crate::failpoints::crash_point;
use crate::runtime::Progress;
use crate::sqlite_file::{self, SqliteFile};

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
    /// Proves every page of a finished copy that nobody else has, with one reading: SQLite's own
    /// check reads each page that is in use through SQLCipher, which authenticates it; what it does
    /// not read, the leaves of the free list, is authenticated beside it. Gives the connection.
    fn verify_copy(&self, progress: Option<&Progress>) -> Result<Connection, CopyError> {
        let failed = |error| CopyError::from(self.explain("verify", error));
        let mut connection = self.fresh()?;
        ask_now_and_then(&mut connection, progress).map_err(failed)?;
        self.verify_structure(&connection)?;
        self.verify_free(&connection, progress)?;
        Ok(connection)
    }

    /// Authenticates the pages that are free: the leaves of the list, which hang on its trunks
    /// (<https://www.sqlite.org/fileformat.html#the_freelist>). The structure was checked before.
    fn verify_free(
        &self,
        connection: &Connection,
        progress: Option<&Progress>,
    ) -> Result<(), CopyError> {
        let path = self.path();
        let key = page_key(self, connection)?;
        let file = SqliteFile::open(path).map_err(io_error("open", path))?;
        let pages = file.len().map_err(io_error("read", path))? / PAGE_BYTES;
        let read = |number: u32| {
            let mut page = [0; PAGE];
            file.read_exact_at(&mut page, u64::from(number - 1) * PAGE_BYTES)
                .map_err(io_error("read", path))?;
            let content = key.open(number, &page);
            content.ok_or_else(|| damaged(path, pages))
        };
        let mut trunk = number(&read(1)?, FIRST_TRUNK);
        while trunk != 0 {
            if progress.is_some_and(|progress| !progress(pages * PAGE_BYTES, pages * PAGE_BYTES)) {
                return Err(sqlite("verify", path, sqlite_error(ffi::SQLITE_INTERRUPT)));
            }
            let content = read(trunk)?;
            for leaf in 0..number(&content, LEAVES) {
                let _authentic = read(number(&content, FIRST_LEAF + 4 * leaf as usize))?;
            }
            trunk = number(&content, NEXT_TRUNK);
        }
        Ok(())
    }
}

/// A number of a page, big-endian.
fn number(content: &Content, at: usize) -> u32 {
    let bytes = content.iter().skip(at).take(4);
    bytes.fold(0, |number, byte| number << 8 | u32::from(*byte))
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
/// Where the first trunk page of the free list stands, in page 1.
const FIRST_TRUNK: usize = 32;
/// In a trunk page: the next one, how many leaves hang on it, and which.
const NEXT_TRUNK: usize = 0;
const LEAVES: usize = 4;
const FIRST_LEAF: usize = 8;
