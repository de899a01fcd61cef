//! The pages of a database as they lie on the disk, at one moment, without its key: for backups.
//!
//! The database file together with the frames of its WAL that were committed at that moment are the
//! whole database. Neither changes while checkpoints are held off: commits append to the WAL, and
//! SQLite begins it afresh only when all of it is in the file already, in which case no frame is
//! needed. The lock that holds them off is that of SQLite's own index of the WAL, so it holds for
//! every connection of every process, and needs no key.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::page::PAGE;
use super::wal::{Changes, Salts, Tail, recover};
use crate::clock;
use crate::sqlite_file::{Hold, SqliteFile, WalIndex};

/// Bytes of a page, and of every unit that a backup counts.
pub(crate) const UNIT: usize = PAGE;

/// A database file whose pages are read without its key.
#[derive(Debug)]
pub(crate) struct Ciphertext {
    path: PathBuf,
    /// As it stood before it was opened.
    before: Option<OnDisk>,
    file: SqliteFile,
    held: bool,
    moment: Option<Moment>,
    changes: Option<Changes>,
}

/// What was committed at a moment.
#[derive(Debug, Clone, Copy)]
struct Moment {
    /// Which frames of the WAL lie over the file; `None` when the file has it all.
    frames: Option<(Salts, u32)>,
    /// Pages of the database.
    pages: u32,
}

impl Ciphertext {
    /// Opens the database at `path`; nothing keeps it from changing yet.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            before: OnDisk::of(path),
            file: SqliteFile::open(path)?,
            held: false,
            moment: None,
            changes: None,
        })
    }

    /// Holds checkpoints off until this is dropped. Waits for one that is under way, as long as
    /// `patience`. `false` when nobody has the database open: then whoever opens it asks again
    /// before anything is written. Blocks.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] when one took longer.
    pub(crate) fn hold(&mut self, patience: Duration) -> io::Result<bool> {
        let until = Instant::now() + patience;
        while !self.held {
            match self.file.hold_checkpoints()? {
                Hold::Held => self.held = true,
                Hold::NotOpen => break,
                Hold::UnderWay if Instant::now() >= until => {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Hold::UnderWay => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        Ok(self.held)
    }

    /// Whether a WAL with anything in it stands beside the database.
    pub(crate) fn has_wal(&self) -> bool {
        let wal = crate::data_dir::beside(&self.path, crate::data_dir::WAL);
        std::fs::metadata(wal).is_ok_and(|wal| wal.len() > 0)
    }

    /// From here on it is the database as it is committed now. Checkpoints are held off, or nobody
    /// has the database open.
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        let in_file = |length: u64| u32::try_from(length / PAGE as u64).map_err(io::Error::other);
        let index = if self.held {
            self.file.wal_index()?
        } else {
            None
        };
        let moment = match index {
            Some(WalIndex { frames: 0, .. }) => Moment {
                frames: None,
                pages: in_file(self.file.len()?)?,
            },
            Some(index) => Moment {
                frames: (index.in_file < index.frames).then_some((index.salts, index.frames)),
                pages: index.pages,
            },
            None => Moment {
                frames: recover(&self.path)?,
                pages: in_file(self.file.len()?)?,
            },
        };
        self.moment = Some(moment);
        Ok(())
    }

    /// Looks where the pages lie; from here on the WAL need not have its name any more.
    pub(crate) fn locate(&mut self) -> io::Result<()> {
        let Some(moment) = &mut self.moment else {
            return Err(io::Error::other("no moment was chosen"));
        };
        if let (Some((salts, frames)), None) = (moment.frames, &self.changes) {
            let changes = Tail::new(&self.path).advance(Some(salts), frames)?;
            let Some(pages) = changes.pages else {
                return Err(io::Error::other(
                    "the WAL is gone, and what it held with it",
                ));
            };
            moment.pages = pages;
            self.changes = Some(changes);
        }
        if moment.pages == 0 {
            return Err(io::Error::other("the database is empty"));
        }
        Ok(())
    }

    /// How the file stands on the disk, where all that is committed is in it: standing so again
    /// means that nothing was written to it since. `None` where frames of the WAL lie over it, or
    /// where it changed only now, so that another change could leave the same times.
    pub(crate) fn on_disk(&self) -> Option<String> {
        let now = OnDisk::of(&self.path)?;
        let is_whole = self.moment.is_some_and(|moment| moment.frames.is_none());
        let stands = self.before == Some(now) && now.is_settled();
        (is_whole && stands).then(|| now.to_string())
    }

    /// How many pages it has.
    pub(crate) fn pages(&self) -> u32 {
        self.moment.map_or(0, |moment| moment.pages)
    }

    /// Fills `out` with as many whole pages as fit, from number `first` on.
    pub(crate) fn read(&self, first: u32, out: &mut [u8]) -> io::Result<()> {
        let at = u64::from(first - 1) * PAGE as u64;
        let there = self.file.len()?.saturating_sub(at);
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(out.len());
        self.file.read_exact_at(&mut out[..there], at)?;
        for (number, page) in (first..).zip(out.chunks_exact_mut(PAGE)) {
            let changed = match &self.changes {
                Some(changes) => changes.page(number)?,
                None => None,
            };
            let in_file = u64::from(number) * PAGE as u64 <= at + there as u64;
            match changed {
                Some(changed) => page.copy_from_slice(&changed),
                None if in_file => {}
                // SQLite never writes the page where locks lie.
                None if number == super::page::LOCK_PAGE => page.fill(0),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        Ok(())
    }
}

/// Which file it is, and when it was last changed. No program but the kernel chooses the time of
/// its last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OnDisk {
    device: u64,
    inode: u64,
    length: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

impl OnDisk {
    fn of(path: &Path) -> Option<Self> {
        let found = std::fs::symlink_metadata(path).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            length: found.len(),
            written: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }

    /// Whether it has not changed for longer than the times of a file are coarse.
    fn is_settled(&self) -> bool {
        clock::now().as_second().saturating_sub(self.changed.0) > SETTLED
    }
}

impl fmt::Display for OnDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (written, changed) = (self.written, self.changed);
        write!(
            f,
            "{}-{}-{}-{}.{:09}-{}.{:09}",
            self.device, self.inode, self.length, written.0, written.1, changed.0, changed.1
        )
    }
}

/// Seconds: more than the times of any file system are coarse.
const SETTLED: i64 = 2;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use rusqlite::Connection;
    use rusqlite::wal::CheckpointMode;

    use super::*;

    /// A plaintext database in WAL mode whose checkpoints are made by hand.
    fn database(dir: &Path) -> (PathBuf, Connection) {
        let path = dir.join("a.sqlite3");
        let connection = Connection::open(&path).unwrap();
        let mode = "PRAGMA page_size = 4096; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (n, x)";
        connection.execute_batch(mode).unwrap();
        (path, connection)
    }

    fn insert(connection: &Connection, from: i64, to: i64) {
        for n in from..to {
            let fill = "x".repeat(usize::try_from(n % 7).unwrap() * 700);
            connection
                .execute("INSERT INTO t VALUES (?1, ?2)", (n, fill))
                .unwrap();
        }
    }

    /// The rows of what was read, as a database of its own.
    fn rows(pages: &Ciphertext) -> i64 {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("copy");
        let mut bytes = vec![0; pages.pages() as usize * PAGE];
        pages.read(1, &mut bytes).unwrap();
        fs::write(&copy, bytes).unwrap();
        let connection = Connection::open(&copy).unwrap();
        let check = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
        assert_eq!(
            connection
                .query_row("PRAGMA integrity_check", [], check)
                .unwrap(),
            "ok"
        );
        connection
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap()
    }

    #[test]
    fn is_what_was_committed_at_the_moment_whatever_is_written_and_checkpointed_after() {
        for (checkpointed, then) in [(0, 10), (10, 10), (10, 25)] {
            let dir = tempfile::tempdir().unwrap();
            let (path, connection) = database(dir.path());
            insert(&connection, 0, checkpointed);
            if checkpointed > 0 {
                let _done = connection
                    .wal_checkpoint_v2(Some(rusqlite::MAIN_DB), CheckpointMode::PASSIVE)
                    .unwrap();
            }
            insert(&connection, checkpointed, then);
            let mut pages = Ciphertext::open(&path).unwrap();
            assert!(pages.hold(Duration::ZERO).unwrap());
            // Between the hold and the moment, it goes on.
            insert(&connection, then, then + 5);
            pages.settle().unwrap();
            insert(&connection, then + 5, then + 400);
            for mode in [
                CheckpointMode::PASSIVE,
                CheckpointMode::TRUNCATE,
                CheckpointMode::RESTART,
            ] {
                let refused = connection
                    .wal_checkpoint_v2(Some(rusqlite::MAIN_DB), mode)
                    .unwrap_err();
                let busy = Some(rusqlite::ErrorCode::DatabaseBusy);
                assert_eq!(refused.sqlite_error_code(), busy);
            }
            connection.execute("DELETE FROM t WHERE n % 2", []).unwrap();
            pages.locate().unwrap();
            let mut another = Ciphertext::open(&path).unwrap();
            assert!(another.hold(Duration::ZERO).unwrap());
            drop(another);
            assert_eq!(rows(&pages), then + 5);
            // The last connection closes, and leaves the WAL where it is.
            drop(connection);
            assert_eq!(rows(&pages), then + 5);
            let connection = Connection::open(&path).unwrap();
            let truncate =
                || connection.wal_checkpoint_v2(Some(rusqlite::MAIN_DB), CheckpointMode::TRUNCATE);
            let count = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
            let _opens_the_wal = connection
                .query_row("SELECT count(*) FROM t", [], count)
                .unwrap();
            assert!(truncate().is_err());
            drop(pages);
            // Let go, it keeps nothing back from connections that are open.
            let _done = truncate().unwrap();
        }
    }

    #[test]
    fn a_database_that_is_held_is_opened_read_and_written_by_others() {
        let dir = tempfile::tempdir().unwrap();
        let (path, connection) = database(dir.path());
        insert(&connection, 0, 20);
        let left = fs::read(crate::data_dir::beside(&path, "-wal")).unwrap();
        let whole = fs::read(&path).unwrap();
        drop(connection);
        for killed in [false, true] {
            if killed {
                fs::write(&path, &whole).unwrap();
                fs::write(crate::data_dir::beside(&path, "-wal"), &left).unwrap();
            }
            let mut pages = Ciphertext::open(&path).unwrap();
            assert!(!pages.hold(Duration::ZERO).unwrap());
            pages.settle().unwrap();
            pages.locate().unwrap();
            let connection = Connection::open(&path).unwrap();
            connection.busy_timeout(Duration::ZERO).unwrap();
            let count = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
            let found = connection.query_row("SELECT count(*) FROM t", [], count);
            assert_eq!(found, Ok(20), "{killed}");
            let mut guard = Ciphertext::open(&path).unwrap();
            assert!(guard.hold(Duration::ZERO).unwrap());
            insert(&connection, 20, 30);
            let checkpoint = |mode| connection.wal_checkpoint_v2(Some(rusqlite::MAIN_DB), mode);
            let refused = checkpoint(CheckpointMode::TRUNCATE).unwrap_err();
            let busy = Some(rusqlite::ErrorCode::DatabaseBusy);
            assert_eq!(refused.sqlite_error_code(), busy);
            assert_eq!(rows(&pages), 20);
            drop(guard);
            // Without it, and once the WAL is begun afresh, what is read is not taken for what was.
            let _done = checkpoint(CheckpointMode::PASSIVE).unwrap();
            insert(&connection, 30, 200);
            let mut page = [0; PAGE];
            let refused = (1..=pages.pages()).any(|number| pages.read(number, &mut page).is_err());
            assert_eq!(refused, killed);
            drop(pages);
            connection
                .execute("DELETE FROM t WHERE n >= 20", [])
                .unwrap();
        }
    }

    #[test]
    fn finds_what_a_kill_left_in_the_wal_and_nothing_that_was_not_committed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, connection) = database(dir.path());
        insert(&connection, 0, 20);
        let _done = connection
            .wal_checkpoint_v2(Some(rusqlite::MAIN_DB), CheckpointMode::PASSIVE)
            .unwrap();
        // Begins the WAL afresh, over frames of before.
        insert(&connection, 20, 31);
        let copy = tempfile::tempdir().unwrap();
        let there = copy.path().join("a.sqlite3");
        let wal = |path: &Path| crate::data_dir::beside(path, "-wal");
        let _bytes = fs::copy(&path, &there).unwrap();
        let whole = fs::read(wal(&path)).unwrap();
        let committed = |wal_bytes: &[u8]| {
            fs::write(wal(&there), wal_bytes).unwrap();
            let mut pages = Ciphertext::open(&there).unwrap();
            assert_eq!(pages.has_wal(), !wal_bytes.is_empty());
            pages.settle().unwrap();
            pages.locate().unwrap();
            let found = rows(&pages);
            drop(pages);
            // What SQLite itself makes of it.
            let opened = tempfile::tempdir().unwrap();
            let again = opened.path().join("a.sqlite3");
            let _bytes = fs::copy(&there, &again).unwrap();
            fs::write(wal(&again), wal_bytes).unwrap();
            let connection = Connection::open(&again).unwrap();
            let theirs: i64 = connection
                .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
                .unwrap();
            assert_eq!(found, theirs);
            found
        };
        assert_eq!(committed(&whole), 31);
        assert_eq!(committed(&[]), 20);
        let mut seen = Vec::new();
        for cut in (0..whole.len()).step_by(1777) {
            seen.push(committed(&whole[..cut]));
        }
        assert!(seen.windows(2).all(|two| two[0] <= two[1]), "{seen:?}");
        assert!(seen.contains(&20) && seen.contains(&25), "{seen:?}");
        let mut torn = whole.clone();
        torn[32 + 24 + 100] ^= 1;
        assert_eq!(committed(&torn), 20);
    }
}
