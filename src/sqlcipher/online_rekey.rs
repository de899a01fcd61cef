//! A database that is written all the while gets its next key: a copy that follows it, until the
//! two are the same.
//!
//! 1. A read transaction pins a snapshot. The copy is made from it and verified against it, as with
//!    the server stopped; writing goes on.
//! 2. What was committed since stands in the WAL, which the pin keeps from being begun afresh. Each
//!    page that changed is brought over: opened under the first key, sealed under the next,
//!    written, read again and compared. This is repeated until little is left.
//! 3. The writer holds still. The last pages are brought over, the copy is opened under the next
//!    key once more, the old file's WAL is folded in and gone, and the copy takes the old file's
//!    place.
//!
//! Whatever the swap publishes was therefore verified: each page either with the whole, or by
//! itself after it last changed. On the disk the states are those of [`super::rekey`]; the old file
//! is whole, with all that was acknowledged, until it is replaced.
//!
//! **No change is missed.** The place in the WAL up to which all was seen is never behind the
//! snapshot of the pin that is in force, and the next pin is set before the older one is let go.
//! SQLite does not overwrite a frame after the snapshot of a reader. A reader that finds the whole
//! WAL in the file already does not keep the WAL from being begun afresh, but then it has seen all
//! of it; nothing that is written after can go into the file, and so be overwritten, while it
//! reads.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nimbus_keyproviders::OsRandom;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, ErrorCode, MAIN_DB, ffi};

use super::error::{CopyError, damaged, io_error, sqlite, sqlite_error};
use super::key::page_key;
use super::page::{Content, LOCK_PAGE, PAGE, PageKey};
use super::rekey::{copy_pages, verify};
use super::wal::{Changes, Tail};
use super::{Database, swap_guard};
use crate::data_dir::{WAL, beside, parent, sync_dir};
use crate::envelope::KeyedFile;
use crate::failpoints::crash_point;
use crate::runtime::{Progress, short_thread};
use crate::sqlite_file::{self, SqliteFile};

/// A verified copy under the next key, and all that is needed to keep up with its source.
pub(crate) struct Following {
    file: KeyedFile,
    source: Database,
    target: Database,
    copy: Copy,
    opens: PageKey,
    seals: PageKey,
    tail: Tail,
    /// Asks what is committed, and checkpoints.
    watch: Option<Connection>,
    /// Reads the snapshot after which everything stays in the WAL.
    pin: Option<Connection>,
    /// The last flush of the copy, under way.
    flush: Option<JoinHandle<io::Result<()>>>,
    /// Asked now and then whether to go on.
    progress: Progress,
}

/// The growing copy, which is written by one and flushed by another.
type Copy = Arc<Mutex<SqliteFile>>;

/// Why the copy did not take its source's place. The source is as it was.
pub(crate) struct NotSwapped {
    /// What went wrong.
    pub(crate) error: CopyError,
    /// Whether the rename happened and could not be made durable: then nobody may go on with what
    /// is open.
    pub(crate) renamed: bool,
}

impl Following {
    /// Copies a database whose manifest says `rekeying`, and verifies the copy, while others write.
    /// Blocks.
    ///
    /// # Errors
    ///
    /// [`CopyError`].
    pub(crate) fn begin(file: KeyedFile, progress: Progress) -> Result<Self, CopyError> {
        let path = file.path().to_owned();
        let Some(copy) = file.copy_under_next() else {
            let what = "its number of data keys".to_owned();
            return Err(CopyError::Differs { path, what });
        };
        let source = Database::keyed(file.share());
        let target = Database::keyed(copy);
        let copy = sqlite_file::create(target.path())
            .and_then(|()| SqliteFile::open_to_write(target.path()))
            .map_err(io_error("create", target.path()))?;
        let copy = Copy::new(copy.into());
        let watch = source.fresh()?;
        let mut pin = pinned(&source)?;
        let tail = Tail::new(&path);
        let failed = Arc::default();
        let copied = copy_pages(
            &pin,
            &target,
            &path,
            Some(&spread(&copy, &progress, &failed)),
        );
        if let Some(source) = failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(io_error("flush", target.path())(source));
        }
        copied?;
        crash_point!("rekey::copied");
        verify(&mut pin, &target, &path, Some(&progress))?;
        let opens = page_key(&source, &pin)?;
        let seals = page_key(&target, &target.fresh()?)?;
        Ok(Self {
            file,
            source,
            target,
            copy,
            opens,
            seals,
            tail,
            watch: Some(watch),
            pin: Some(pin),
            flush: None,
            progress,
        })
    }

    /// Brings over what was committed since it was last asked, and answers how many pages that
    /// were. What the copy has may go from the WAL into the file after that. Blocks.
    ///
    /// # Errors
    ///
    /// [`CopyError`].
    pub(crate) fn catch_up(&mut self) -> Result<usize, CopyError> {
        let pin = pinned(&self.source)?;
        let changed = self.advance()?;
        of(&self.copy)
            .sync()
            .map_err(io_error("flush", self.target.path()))?;
        self.pin = Some(pin);
        match self
            .watch()?
            .wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::PASSIVE)
        {
            Ok(_) => {}
            // The writer is at it.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {}
            Err(error) => return Err(sqlite("checkpoint", self.source.path(), error)),
        }
        Ok(changed)
    }

    /// Brings over the last pages, proves that the copy is what the source is, and lets go of the
    /// source. Nobody writes meanwhile. What is flushed of the copy is waited for by
    /// [`swap`](Self::swap), so that the source can be flushed meanwhile. Blocks.
    ///
    /// # Errors
    ///
    /// [`CopyError`].
    pub(crate) fn finish(&mut self) -> Result<(), CopyError> {
        let _changed = self.advance()?;
        let path = self.source.path();
        let copy = Arc::clone(&self.copy);
        let flush = short_thread("rekey-flush", move || of(&copy).sync());
        self.flush = Some(flush.map_err(io_error("flush", self.target.path()))?);
        let failed = |error| sqlite("compare", path, error);
        let copy = self.target.fresh()?;
        for pragma in ["page_count", "freelist_count", "user_version"] {
            let ask = |connection: &Connection| {
                connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0))
            };
            if ask(self.watch()?).map_err(failed)? != ask(&copy).map_err(failed)? {
                let (path, what) = (path.to_owned(), format!("its {pragma}"));
                return Err(CopyError::Differs { path, what });
            }
        }
        copy.close()
            .map_err(|(_connection, error)| sqlite("close", self.target.path(), error))?;
        crash_point!("rekey::verified");
        (self.pin, self.watch) = (None, None);
        Ok(())
    }

    /// Takes hold of the source again after [`finish`](Self::finish): it was not swapped, and
    /// nothing was written meanwhile. Blocks.
    ///
    /// # Errors
    ///
    /// [`CopyError`].
    pub(crate) fn resume(&mut self) -> Result<(), CopyError> {
        flushed(&mut self.flush, self.target.path())?;
        self.watch = Some(self.source.fresh()?);
        self.pin = Some(pinned(&self.source)?);
        Ok(())
    }

    /// Puts the copy in the source's place. Everybody closed the source, and its WAL went with the
    /// last of them. Blocks.
    ///
    /// # Errors
    ///
    /// [`NotSwapped`].
    pub(crate) fn swap(&mut self) -> Result<KeyedFile, NotSwapped> {
        let not = |renamed| move |error| NotSwapped { error, renamed };
        let (path, copy) = (self.source.path(), self.target.path());
        let busy = || {
            let path = path.to_owned();
            not(false)(CopyError::Busy { path })
        };
        let wal = beside(path, WAL);
        let has_wal = || std::fs::symlink_metadata(&wal).is_ok();
        if has_wal() {
            return Err(busy());
        }
        // The old WAL's absence first: what is left of it would be taken for the new file's.
        // Another one that is begun after this is empty, since the writer holds still.
        let dir = parent(path);
        sync_dir(dir).map_err(|source| not(false)(io_error("flush", dir)(source)))?;
        flushed(&mut self.flush, copy).map_err(not(false))?;
        let old = swap_guard::alone(path, || {
            if has_wal() {
                return Err(busy());
            }
            // Its blocks are given back when it is closed: not by the rename, and not while others
            // wait.
            let old = SqliteFile::open(path).map_err(io_error("open", path));
            let renamed = |old| {
                std::fs::rename(copy, path)
                    .map(|()| old)
                    .map_err(io_error("rename", copy))
            };
            old.and_then(renamed).map_err(not(false))
        })
        .unwrap_or_else(|| Err(busy()))?;
        crash_point!("rekey::renamed");
        sync_dir(dir).map_err(|source| not(true)(io_error("flush", dir)(source)))?;
        crash_point!("rekey::swapped");
        // Where no thread can be started, it is closed here.
        drop(short_thread("rekey-close", move || drop(old)));
        Ok(self.file.share())
    }

    /// Brings over what the WAL holds beyond the place that was seen.
    fn advance(&mut self) -> Result<usize, CopyError> {
        let path = self.source.path().to_owned();
        let changes = self.changes()?;
        let Some(pages) = changes.pages else {
            return Ok(0);
        };
        let on_copy = |action| io_error(action, self.target.path());
        let had = of(&self.copy).len().map_err(on_copy("read"))?;
        let had = u32::try_from(had / PAGE as u64).unwrap_or(u32::MAX);
        // A page that the database grew by and that was never written is all zeros.
        let grown = (had + 1..=pages).filter(|number| !changes.has(*number));
        for (done, number) in changes.numbers().chain(grown).enumerate() {
            if done % ASK_EVERY == 0 {
                self.go_on(pages)?;
            }
            if number > pages || number == LOCK_PAGE {
                continue;
            }
            let content = match changes.page(number).map_err(io_error("read", &path))? {
                None => Content::new([0; _]),
                Some(page) => self
                    .opens
                    .open(number, &page)
                    .ok_or_else(|| damaged(&path, pages.into()))?,
            };
            self.put(number, &content)?;
        }
        if had > pages {
            of(&self.copy)
                .set_len(u64::from(pages) * PAGE as u64)
                .map_err(on_copy("cut"))?;
        }
        Ok(changes.len())
    }

    fn go_on(&self, pages: u32) -> Result<(), CopyError> {
        let total = u64::from(pages) * PAGE as u64;
        if (self.progress)(total, total) {
            return Ok(());
        }
        Err(sqlite(
            "copy",
            self.source.path(),
            sqlite_error(ffi::SQLITE_INTERRUPT),
        ))
    }

    /// Writes a page of the copy, and reads it again.
    fn put(&self, number: u32, content: &Content) -> Result<(), CopyError> {
        let path = self.target.path();
        let sealed = self
            .seals
            .seal(number, content, &OsRandom)
            .map_err(|error| io_error("draw randomness for", path)(io::Error::other(error)))?;
        let at = u64::from(number - 1) * PAGE as u64;
        let mut again = [0; PAGE];
        let copy = of(&self.copy);
        copy.write_all_at(&sealed, at)
            .map_err(io_error("write", path))?;
        copy.read_exact_at(&mut again, at)
            .map_err(io_error("read", path))?;
        drop(copy);
        if self.seals.open(number, &again).as_ref() == Some(content) {
            return Ok(());
        }
        Err(CopyError::Differs {
            path: self.source.path().to_owned(),
            what: format!("page {number}"),
        })
    }

    /// What is committed and was not seen yet. Which WAL it is and how far it goes is asked until
    /// both answers belong together.
    fn changes(&mut self) -> Result<Changes, CopyError> {
        let path = self.source.path().to_owned();
        let read = || io_error("read the WAL of", &path);
        loop {
            let before = self.tail.salts().map_err(read())?;
            let (frames, _done) = self
                .watch()?
                .wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::NOOP)
                .map_err(|error| sqlite("look at the WAL of", &path, error))?;
            if before != self.tail.salts().map_err(read())? {
                continue;
            }
            let frames = u32::try_from(frames).unwrap_or(0);
            return self.tail.advance(before, frames).map_err(read());
        }
    }

    fn watch(&self) -> Result<&Connection, CopyError> {
        let closed = || {
            sqlite(
                "look at",
                self.source.path(),
                sqlite_error(ffi::SQLITE_MISUSE),
            )
        };
        self.watch.as_ref().ok_or_else(closed)
    }
}

fn of(copy: &Copy) -> MutexGuard<'_, SqliteFile> {
    // It has no state of its own that a panic could leave half changed.
    copy.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The result of a flush that was begun. It is asked exactly once: the system reports a failed
/// flush once, and the next one succeeds.
fn flushed(begun: &mut Option<JoinHandle<io::Result<()>>>, copy: &Path) -> Result<(), CopyError> {
    let Some(begun) = begun.take() else {
        return Ok(());
    };
    let panicked = |_| Err(io::Error::other("the flush did not come to its end"));
    let flushed = begun.join().unwrap_or_else(panicked);
    flushed.map_err(io_error("flush", copy))
}

/// A connection in a read transaction.
fn pinned(database: &Database) -> Result<Connection, CopyError> {
    let connection = database.fresh()?;
    connection
        .execute_batch("BEGIN")
        .and_then(|()| {
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_row| Ok(()))
        })
        .map_err(|error| sqlite("read", database.path(), error))?;
    Ok(connection)
}

/// Flushes the growing copy now and then, so that the disk is never given all of it at once while
/// others wait for it; and leaves disk and processor to them for as long as copying and flushing
/// took. A flush that failed stops the copy, and is in `failed`.
fn spread(copy: &Copy, progress: &Progress, failed: &Arc<Mutex<Option<io::Error>>>) -> Progress {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    let (copy, progress, failed) = (Arc::clone(copy), progress.clone(), Arc::clone(failed));
    let flushed = AtomicU64::new(0);
    let rested = Mutex::new(Instant::now());
    Arc::new(move |done, total| {
        if done.saturating_sub(flushed.load(Relaxed)) < FLUSH_BYTES {
            return progress(done, total);
        }
        flushed.store(done, Relaxed);
        if let Err(error) = of(&copy).sync() {
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            return false;
        }
        let mut rested = rested.lock().unwrap_or_else(PoisonError::into_inner);
        thread::sleep(rested.elapsed().min(LONGEST_REST));
        *rested = Instant::now();
        progress(done, total)
    })
}

/// 1 MiB.
const FLUSH_BYTES: u64 = 1 << 20;
const LONGEST_REST: Duration = Duration::from_millis(500);
/// Pages that are brought over without asking whether to go on.
const ASK_EVERY: usize = 256;

#[cfg(test)]
mod tests;
