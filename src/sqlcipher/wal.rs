//! What was committed to a database since some moment, read from the frames of its WAL.
//!
//! ```text
//! header   magic 4 │ version 4 │ page size 4 │ sequence 4 │ salts 8 │ checksum 8         (32 bytes)
//! frame    page number 4 │ pages in the database after a commit, else 0: 4 │ salts 8 │ checksum 8 │ page 4096
//! ```
//!
//! All big-endian, in the clear (<https://www.sqlite.org/fileformat.html#the_write_ahead_log>). The
//! page of a frame is as it will lie in the database file, encrypted under its key. Which frames
//! are committed is asked of SQLite; nothing is guessed from checksums.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, MAIN_DB};

use super::page::{PAGE, Sealed};
use crate::data_dir::{WAL, beside};
use crate::sqlite_file::SqliteFile;

/// A place in the WAL: everything before it was seen.
///
/// Whoever holds it sees to it that no frame after it is checkpointed and overwritten, by a read
/// transaction that began before it.
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
    /// Which WAL the frames are of.
    salts: Option<Salts>,
}

pub(super) type Salts = [u8; 8];

/// Whether the WAL that `connection` to `database` has open is another than the one its index is
/// of. The connections of a process share the index, and each opens the WAL by its name: where that
/// was removed or replaced under them, the next one finds less than the index says. `page` is the
/// least that a page may have.
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
    beside(database, WAL)
}

/// Which frames of the WAL of `database` are committed, when no connection has it open: asked of
/// the frames themselves, as SQLite does when it opens a database after a crash. Each has a
/// checksum over all before it (<https://www.sqlite.org/fileformat.html#walformat>). `None` where
/// there is no WAL, or nothing in it is committed.
pub(super) fn recover(database: &Path) -> io::Result<Option<(Salts, u32)>> {
    let tail = Tail::new(database);
    let Some((wal, salts)) = tail.look()? else {
        return Ok(None);
    };
    let mut header = [0; HEADER as usize];
    wal.read_exact_at(&mut header, 0)?;
    let big_endian = match number(&header[..4]) {
        0x377f_0682 => false,
        0x377f_0683 => true,
        _ => return Ok(None),
    };
    let mut sums = Checksum {
        big_endian,
        sums: (0, 0),
    };
    sums.add(&header[..24]);
    let ours = number(&header[4..8]) == WAL_VERSION && number(&header[8..12]) == PAGE as u32;
    if !ours || !sums.is(&header[24..32]) {
        return Ok(None);
    }
    let frames = (wal.len()?.saturating_sub(HEADER)) / FRAME;
    let mut committed = 0;
    let mut frame = vec![0; FRAME as usize];
    for index in 0..u32::try_from(frames).unwrap_or(u32::MAX) {
        wal.read_exact_at(&mut frame, HEADER + u64::from(index) * FRAME)?;
        sums.add(&frame[..8]);
        sums.add(&frame[FRAME_HEAD..]);
        if frame[8..16] != salts || !sums.is(&frame[16..24]) {
            break;
        }
        if number(&frame[4..8]) != 0 {
            committed = index + 1;
        }
    }
    Ok((committed > 0).then_some((salts, committed)))
}

/// The checksum of a WAL.
struct Checksum {
    big_endian: bool,
    sums: (u32, u32),
}

impl Checksum {
    fn add(&mut self, bytes: &[u8]) {
        let word = |bytes: &[u8]| {
            let word = number(bytes);
            if self.big_endian {
                word
            } else {
                word.swap_bytes()
            }
        };
        let (mut first, mut second) = self.sums;
        for pair in bytes.chunks_exact(8) {
            first = first.wrapping_add(word(&pair[..4])).wrapping_add(second);
            second = second.wrapping_add(word(&pair[4..])).wrapping_add(first);
        }
        self.sums = (first, second);
    }

    fn is(&self, stored: &[u8]) -> bool {
        self.sums == (number(&stored[..4]), number(&stored[4..8]))
    }
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

    /// Goes on to frame `last` of the WAL with these `salts`, and gives what was committed on the
    /// way.
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
            changes
                .frames
                .insert(number(&head[0..4]), at + FRAME_HEAD as u64);
            if let pages @ 1.. = number(&head[4..8]) {
                changes.pages = Some(pages);
            }
        }
        self.frames = self.frames.max(last);
        changes.wal = Some(wal);
        changes.salts = Some(found);
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
    ///
    /// # Errors
    ///
    /// The WAL was begun afresh over it: SQLite writes the head of a frame before its page.
    pub(super) fn page(&self, number: u32) -> io::Result<Option<Sealed>> {
        let (Some(wal), Some(at)) = (&self.wal, self.frames.get(&number)) else {
            return Ok(None);
        };
        let mut page = [0; PAGE];
        wal.read_exact_at(&mut page, *at)?;
        let mut head = [0; FRAME_HEAD];
        wal.read_exact_at(&mut head, *at - FRAME_HEAD as u64)?;
        if head[..4] != number.to_be_bytes()
            || Some(&head[8..16]) != self.salts.as_ref().map(|salts| &salts[..])
        {
            return Err(io::Error::other(
                "the WAL was begun afresh under its reader",
            ));
        }
        Ok(Some(page))
    }
}

/// Hands out the frames of a WAL as they are committed, for a backup. Its one user is the
/// connection that commits, or a thread that it waits for.
#[derive(Debug)]
pub(crate) struct WalReader {
    path: PathBuf,
    wal: Option<SqliteFile>,
    salts: Option<Salts>,
    frames: u32,
}

impl WalReader {
    /// Before the first frame of the WAL of `database`. Nothing is opened yet.
    pub(crate) fn new(database: &Path) -> Self {
        Self {
            path: path(database),
            wal: None,
            salts: None,
            frames: 0,
        }
    }

    /// The frames up to number `last`, which is that of a commit, in pieces of whole frames.
    pub(crate) fn advance(&mut self, last: u32) -> io::Result<Vec<Vec<u8>>> {
        if last == 0 {
            return Ok(Vec::new());
        }
        let salts = self.look()?;
        if self.salts != Some(salts) {
            (self.salts, self.frames) = (Some(salts), 0);
        }
        let Some(wal) = &self.wal else {
            return Ok(Vec::new());
        };
        let mut pieces = Vec::new();
        while self.frames < last {
            let count = (last - self.frames).min(PIECE);
            let mut bytes = vec![0; count as usize * FRAME as usize];
            wal.read_exact_at(&mut bytes, HEADER + u64::from(self.frames) * FRAME)?;
            let ours = bytes
                .chunks_exact(FRAME as usize)
                .all(|frame| frame[8..16] == salts);
            if !ours {
                return Err(io::Error::other(
                    "a committed frame of the WAL is of another WAL",
                ));
            }
            pieces.push(bytes);
            self.frames += count;
        }
        Ok(pieces)
    }

    fn look(&mut self) -> io::Result<Salts> {
        let wal = match &self.wal {
            Some(wal) => wal,
            None => self.wal.insert(SqliteFile::open(&self.path)?),
        };
        let mut header = [0; HEADER as usize];
        wal.read_exact_at(&mut header, 0)?;
        let mut salts = [0; 8];
        salts.copy_from_slice(&header[16..24]);
        Ok(salts)
    }
}

/// The pages of whole frames as [`WalReader`] gives them: number, pages of the database where a
/// commit ends and else 0, the page.
pub(crate) fn frames(bytes: &[u8]) -> impl Iterator<Item = (u32, u32, &[u8])> {
    bytes.chunks_exact(FRAME as usize).map(|frame| {
        let (head, page) = frame.split_at(FRAME_HEAD);
        (number(&head[..4]), number(&head[4..8]), page)
    })
}

fn number(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// Frames in a piece: 1 MiB.
const PIECE: u32 = 256;
const WAL_VERSION: u32 = 3_007_000;
const HEADER: u64 = 32;
const FRAME_HEAD: usize = 24;
const FRAME: u64 = (FRAME_HEAD + PAGE) as u64;
