//! A database under its next key: copied page for page by SQLite's backup API, verified, and put in the old one's place.
//!
//! `PRAGMA rekey` is never used: it can report success and have done nothing. States between the steps, for a database `S` whose manifest
//! says `rekeying`; in each, the opening table tries the first key, then the next:
//!
//! | after | on disk | the next opening |
//! | --- | --- | --- |
//! | WAL folded into `S`, WAL mode left | `S` under the first key | opens under it; `ready` with the first key |
//! | copy made, flushed, verified | and `S.rekey` under the next | the same; the copy is removed |
//! | copy renamed over `S` | `S` under the next key | opens under it; `ready` with the next key |
//!
//! No WAL of the old file may outlive it: its frames would be taken for the new one's.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ffi};

use super::Database;
use super::copy::{CopyError, Progress, alone, compare};
use crate::envelope::{KeyedFile, parent, sync_dir};
use crate::failpoints::crash_point;

/// Puts a copy under the next key in the place of a database whose manifest says `rekeying`. Nobody else may have the database open. Blocks.
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
    let io_error = |action, path: &Path| {
        let path = path.to_owned();
        move |source| CopyError::Io {
            action,
            path,
            source,
        }
    };
    let connection = alone(&Database::keyed(file.share()))?;
    let _file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&copy_path)
        .map_err(io_error("create", &copy_path))?;
    let target = Database::keyed(copy);
    copy_pages(&connection, &target, path, progress)?;
    crash_point!("rekey::copied");

    verify(&connection, &target, path)?;
    // What the old file kept beside it goes with its last connection.
    connection
        .close()
        .map_err(|(_connection, error)| sqlite("close", path, error))?;
    std::fs::File::open(&copy_path)
        .and_then(|file| file.sync_all())
        .map_err(io_error("flush", &copy_path))?;
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

/// Proves the copy: it opens under the next key, the MAC of each page is right, so is its structure, and it holds what the source shows.
pub(super) fn verify(source: &Connection, target: &Database, path: &Path) -> Result<(), CopyError> {
    target.verify_pages()?;
    let other = target.writer()?;
    compare((source, "main"), (&other, "main"), path)
        .map_err(|source| sqlite("compare", path, source))??;
    // Its WAL is empty and goes with its last connection.
    other
        .close()
        .map_err(|(_connection, error)| sqlite("close", target.path(), error))
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
    {
        let backup = Backup::new(connection, &mut copy).map_err(failed)?;
        loop {
            let step = backup.step(PAGES_A_STEP).map_err(failed)?;
            let now = backup.progress();
            let total = u64::try_from(now.pagecount).unwrap_or(0);
            let left = u64::try_from(now.remaining).unwrap_or(0);
            let go_on = progress.is_none_or(|progress| {
                progress(
                    (total - left) * super::PAGE_BYTES,
                    total * super::PAGE_BYTES,
                )
            });
            if !go_on {
                return Err(failed(told(ffi::SQLITE_INTERRUPT)));
            }
            match step {
                StepResult::Done => break,
                StepResult::More => {}
                // Nobody else may have the file: waiting would not help.
                _ => return Err(failed(told(ffi::SQLITE_BUSY))),
            }
        }
    }
    copy.close()
        .map_err(|(_connection, error)| sqlite("write", target.path(), error))
}

pub(super) fn told(code: std::ffi::c_int) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)
}

pub(super) fn sqlite(action: &'static str, path: &Path, source: rusqlite::Error) -> CopyError {
    CopyError::Sqlite {
        action,
        path: path.to_owned(),
        source,
    }
}

/// 4 MiB.
const PAGES_A_STEP: i32 = 1024;
