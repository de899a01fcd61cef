//! What was committed to a database since some moment, read from the frames of its WAL.
//!
//! ```text
//! header   magic 4 │ version 4 │ page size 4 │ sequence 4 │ salts 8 │ checksum 8         (32 bytes)
//! frame    page number 4 │ pages in the database after a commit, else 0: 4 │ salts 8 │ checksum 8 │ page 4096
//! ```
//!
//! All big-endian, in the clear (<https://www.sqlite.org/fileformat.html#the_write_ahead_log>). The page of a frame is as it will lie in
//! the database file, encrypted under its key. Which frames are committed is asked of SQLite; nothing is guessed from checksums.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, MAIN_DB};

use super::page::{PAGE, Sealed};
use crate::data_dir::{SIDE_FILES, beside};
use crate::sqlite_file::SqliteFile;

/// A place in the WAL: everything before it was seen.
///
/// Whoever holds it sees to it that no frame after it is checkpointed and overwritten, by a read transaction that began before it.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    /// Which WAL the place is in: each that is begun afresh has other salts.
    salts: Option<Salts>,
    frames: u32,
}

/// The pages that frames hold, each in its last version, and the size of the database after them.
#[derive(Debug, Default)]
pub(super) struct Changes {
    frames: BTreeMap<u32, u64>,
    /// Pages in the database; `None` when nothing was committed.
    pub(super) pages: Option<u32>,
    wal: Option<SqliteFile>,
}

type Salts = [u8; 8];

/// Whether the WAL that `connection` to `database` has open is another than the one its index is of. The connections of a process share the
/// index, and each opens the WAL by its name: where that was removed or replaced under them, the next one finds less than the index says.
/// `page` is the least that a page may have.
pub(super) fn is_another(
    connection: &Connection,
    database: &Path,
    page: u64,
) -> rusqlite::Result<bool> {
    let frames = || {
        let looked = connection.wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::NOOP);
        looked.map(|(frames, _done)| frames)
    };
    let mut before = frames()?;
    while before > 0 {
        let length = std::fs::metadata(path(database)).map_or(0, |wal| wal.len());
        let after = frames()?;
        // It was not begun afresh meanwhile.
        if before == after {
            return Ok(
                length < HEADER + u64::from(before.unsigned_abs()) * (FRAME_HEAD as u64 + page)
            );
        }
        before = after;
    }
    Ok(false)
}

fn path(database: &Path) -> PathBuf {
    beside(database, SIDE_FILES[0])
}

impl Tail {
    /// Before the first frame of the WAL of `database`.
    pub(super) fn new(database: &Path) -> Self {
        Self {
            path: path(database),
            salts: None,
            frames: 0,
        }
    }

    /// Which WAL stands there now.
    pub(super) fn salts(&self) -> io::Result<Option<Salts>> {
        Ok(self.look()?.map(|(_, salts)| salts))
    }

    /// Goes on to frame `last` of the WAL with these `salts`, and gives what was committed on the way.
    pub(super) fn advance(&mut self, salts: Option<Salts>, last: u32) -> io::Result<Changes> {
        let Some((wal, found)) = self.look()? else {
            return Ok(Changes::default());
        };
        if Some(found) != salts {
            return Err(io::Error::other(
                "the WAL was begun afresh under its reader",
            ));
        }
        if self.salts != salts {
            (self.salts, self.frames) = (salts, 0);
        }
        let mut changes = Changes::default();
        for frame in self.frames..last {
            let at = HEADER + u64::from(frame) * FRAME;
            let mut head = [0; FRAME_HEAD];
            wal.read_exact_at(&mut head, at)?;
            if head[8..16] != found {
                return Err(io::Error::other(
                    "a committed frame of the WAL is of another WAL",
                ));
            }
            let _older = changes
                .frames
                .insert(number(&head[0..4]), at + FRAME_HEAD as u64);
            if let pages @ 1.. = number(&head[4..8]) {
                changes.pages = Some(pages);
            }
        }
        self.frames = self.frames.max(last);
        changes.wal = Some(wal);
        Ok(changes)
    }

    fn look(&self) -> io::Result<Option<(SqliteFile, Salts)>> {
        let wal = match SqliteFile::open(&self.path) {
            Ok(wal) => wal,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut header = [0; HEADER as usize];
        match wal.read_exact_at(&mut header, 0) {
            Ok(()) => {}
            // Emptied, and nothing was written since.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let mut salts = [0; 8];
        salts.copy_from_slice(&header[16..24]);
        Ok(Some((wal, salts)))
    }
}

impl Changes {
    /// How many pages changed.
    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    /// The numbers of the pages that changed, ascending.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.frames.keys().copied()
    }

    /// Whether a page changed.
    pub(super) fn has(&self, number: u32) -> bool {
        self.frames.contains_key(&number)
    }

    /// A changed page as it lies in the WAL; `None` when it did not change.
    pub(super) fn page(&self, number: u32) -> io::Result<Option<Sealed>> {
        let (Some(wal), Some(at)) = (&self.wal, self.frames.get(&number)) else {
            return Ok(None);
        };
        let mut page = [0; PAGE];
        wal.read_exact_at(&mut page, *at)?;
        Ok(Some(page))
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u32::from(*byte))
}

const HEADER: u64 = 32;
const FRAME_HEAD: usize = 24;
const FRAME: u64 = (FRAME_HEAD + PAGE) as u64;
