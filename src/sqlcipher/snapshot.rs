//! One snapshot of a database, page by page, whatever others write meanwhile.
//!
//! A read transaction pins it. SQLite says how many frames of the WAL are committed and how many of
//! them are in the file already. If all are, the file is the snapshot, and nothing goes into it
//! while the transaction lasts; otherwise those frames lie over the file, and SQLite overwrites
//! none of them while it lasts (see [`super::online_rekey`]). Without a WAL the transaction keeps
//! everybody from writing into the file.

use crate::sqlcipher::error::io_error;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, MAIN_DB};

use super::Database;
use super::btree::{Fault, HEADER, Pages, u16_at, u32_at};
use super::error::{CopyError, sqlite};
use super::key::page_key;
use super::page::{CONTENT, PAGE, PageKey};
use crate::data_dir::{WAL, beside};
use crate::sqlite_file::SqliteFile;

/// A database as it was at one moment.
pub(super) struct Snapshot {
    _pin: Connection,
    watch: Connection,
    file: SqliteFile,
    wal: Option<SqliteFile>,
    /// Where the pages are that are not in the file yet.
    frames: BTreeMap<u32, u64>,
    /// What opens its pages; `None` for plaintext.
    key: Option<PageKey>,
    size: usize,
    usable: usize,
    count: u32,
}

impl Snapshot {
    /// The plaintext database at `path`, now. It is only read; what a crash left of a rollback
    /// journal is rolled back, as by everybody who opens it.
    pub(super) fn of_plaintext(path: &Path) -> Result<Self, CopyError> {
        Self::of(&Database {
            beside_others: true,
            ..Database::new(path, None)
        })
    }

    /// The database, now.
    pub(super) fn of(database: &Database) -> Result<Self, CopyError> {
        let path = database.path();
        let failed = |action| io_error(action, path);
        let which = || std::fs::metadata(path).map(|about| (about.dev(), about.ino()));
        let (pin, watch, file) = loop {
            let before = which().map_err(failed("look at"))?;
            let (pin, watch) = (open(database)?, open(database)?);
            pin.execute_batch("BEGIN")
                .and_then(|()| {
                    pin.query_row("SELECT count(*) FROM sqlite_schema", [], |_row| Ok(()))
                })
                .map_err(|error| sqlite("read", path, error))?;
            // SQLite's layer takes no link.
            let file = path.canonicalize().and_then(|path| SqliteFile::open(&path));
            let file = file.map_err(failed("open"))?;
            // A server may have exchanged the file just then. From here on the pin keeps it from
            // doing so.
            if which().map_err(failed("look at"))? == before {
                break (pin, watch, file);
            }
        };
        let key = match database.key() {
            Some(_) => Some(page_key(database, &pin)?),
            None => None,
        };
        let mut snapshot = Self {
            _pin: pin,
            watch,
            file,
            wal: None,
            frames: BTreeMap::new(),
            key,
            size: 0,
            usable: 0,
            count: 0,
        };
        snapshot.look_at_wal(path)?;
        snapshot
            .look_at_header()
            .map_err(|fault| fault.of(database))?;
        Ok(snapshot)
    }

    fn look_at_wal(&mut self, path: &Path) -> Result<(), CopyError> {
        let failed = |source| io_error("read the WAL of", path)(source);
        let name = beside(&path.canonicalize().map_err(failed)?, WAL);
        loop {
            let before = header_of(&name).map_err(failed)?;
            let (frames, in_file) = self
                .watch
                .wal_checkpoint_v2(Some(MAIN_DB), CheckpointMode::NOOP)
                .map_err(|error| sqlite("look at the WAL of", path, error))?;
            let after = header_of(&name).map_err(failed)?;
            let Some((wal, head)) = after else {
                return Ok(());
            };
            // Begun afresh just then.
            if before.map(|(_wal, head)| head) != Some(head) {
                continue;
            }
            if frames <= 0 || frames == in_file {
                return Ok(());
            }
            return self
                .index(wal, &head, u64::from(frames.unsigned_abs()))
                .map_err(failed);
        }
    }

    fn index(&mut self, wal: SqliteFile, head: &[u8; WAL_HEADER], frames: u64) -> io::Result<()> {
        let frame = FRAME_HEAD as u64 + u64::from(u32_at(head, 8));
        for number in 0..frames {
            let at = WAL_HEADER as u64 + number * frame;
            let mut about = [0; FRAME_HEAD];
            wal.read_exact_at(&mut about, at)?;
            if about[8..16] != head[16..24] {
                return Err(io::Error::other(
                    "a committed frame of the WAL is of another WAL",
                ));
            }
            self.frames
                .insert(u32_at(&about, 0), at + FRAME_HEAD as u64);
            let pages = u32_at(&about, 4);
            if pages != 0 {
                self.count = pages;
            }
        }
        self.wal = Some(wal);
        Ok(())
    }

    fn look_at_header(&mut self) -> Result<(), Fault> {
        let committed = std::mem::replace(&mut self.count, 1);
        self.size = if self.key.is_some() { PAGE } else { HEADER };
        let header = self.read(1)?;
        self.size = match u16_at(&header, 16) {
            1 => 65536,
            size => size.into(),
        };
        self.usable = self.size.saturating_sub(header[20].into());
        let ours = self.key.is_none() || (self.size == PAGE && self.usable == CONTENT);
        if !self.size.is_power_of_two() || self.usable < LEAST_USABLE || !ours {
            return Err(Fault::Damaged(1));
        }
        let length = self.file.len().map_err(Fault::Read)? / self.size as u64;
        let told = u32_at(&header, 28);
        self.count = if committed != 0 {
            committed
        } else if told != 0 && header[24..28] == header[92..96] {
            told
        } else {
            u32::try_from(length).unwrap_or(u32::MAX)
        };
        Ok(())
    }

    /// Its first page's header.
    pub(super) fn header(&mut self) -> Result<Vec<u8>, Fault> {
        let mut page = self.read(1)?;
        page.truncate(HEADER);
        Ok(page)
    }

    /// How many bytes it has.
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.count) * self.size as u64
    }
}

impl Pages for Snapshot {
    fn usable(&self) -> usize {
        self.usable
    }

    fn count(&self) -> u32 {
        self.count
    }

    fn read(&mut self, number: u32) -> Result<Vec<u8>, Fault> {
        if number == 0 || number > self.count {
            return Err(Fault::Damaged(number));
        }
        let mut page = vec![0; self.size];
        let read = match (self.frames.get(&number), &self.wal) {
            (Some(at), Some(wal)) => wal.read_exact_at(&mut page, *at),
            _ => {
                let at = u64::from(number - 1) * self.size as u64;
                self.file.read_exact_at(&mut page, at)
            }
        };
        match (read, &self.key) {
            (Ok(()), None) => Ok(page),
            (Ok(()), Some(key)) => {
                let page = page.as_slice().try_into().ok();
                let content = page.and_then(|page| key.open(number, page));
                Ok(content.ok_or(Fault::Damaged(number))?.to_vec())
            }
            (Err(error), _) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(Fault::Damaged(number))
            }
            (Err(error), _) => Err(Fault::Read(error)),
        }
    }
}

fn open(database: &Database) -> Result<Connection, CopyError> {
    database
        .connect(database.path(), database.key().as_ref(), None)
        .map_err(|error| match &error {
            rusqlite::Error::SqliteFailure(_, Some(said)) if said.starts_with(MALFORMED) => {
                CopyError::Schema {
                    path: database.path().to_owned(),
                    said: said.clone(),
                }
            }
            _ => database.explain("open", error).into(),
        })
}

/// The WAL, and its header; `None` where there is none, or an empty one.
fn header_of(path: &Path) -> io::Result<Option<(SqliteFile, [u8; WAL_HEADER])>> {
    let file = match SqliteFile::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut header = [0; WAL_HEADER];
    match file.read_exact_at(&mut header, 0) {
        Ok(()) => Ok(Some((file, header))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

const MALFORMED: &str = "malformed database schema";
const WAL_HEADER: usize = 32;
const FRAME_HEAD: usize = 24;
/// SQLite asks for as much.
const LEAST_USABLE: usize = 480;
