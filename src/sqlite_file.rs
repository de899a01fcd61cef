//! The files of an SQLite database, opened by SQLite's own layer and by nothing else.
//!
//! POSIX locks belong to a process and an inode: `close` on any descriptor of a file drops all
//! locks that the process has on it
//! (<https://www.sqlite.org/howtocorrupt.html#_posix_advisory_locks_canceled_by_a_separate_thread_doing_close_>).
//! SQLite's layer knows on which inodes it holds locks, and defers the close of a descriptor until
//! the last lock is gone. So code that looks at a database, its `-wal` or its `-shm` outside of a
//! connection uses [`SqliteFile`]; `clippy.toml` forbids the other ways.
#![expect(
    unsafe_code,
    reason = "SQLite's layer is a table of C functions; there is no safe binding for it"
)]

use std::ffi::c_int;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;

use rusqlite::ffi;

/// A database, or a file beside it, opened through SQLite's layer. It takes no lock.
pub(crate) struct SqliteFile {
    /// What the layer keeps of the file; in a box of its own, aligned for pointers.
    file: *mut ffi::sqlite3_file,
    /// Length of that box, in units of its alignment.
    words: usize,
    /// The layer keeps a pointer to the name until the file is closed.
    name: Box<[u8]>,
    /// Whether the index of its WAL was opened with it.
    indexed: bool,
    /// Whether it has the lock of the index that keeps checkpoints away.
    holds_checkpoints: bool,
}

/// What is committed of a WAL, as the connections of a database know it
/// (<https://www.sqlite.org/walformat.html>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WalIndex {
    /// How many frames are committed.
    pub(crate) frames: u32,
    /// How many pages the database has after them.
    pub(crate) pages: u32,
    /// Which WAL it is.
    pub(crate) salts: [u8; 8],
    /// How many of the frames are in the database file as well.
    pub(crate) in_file: u32,
}

impl WalIndex {
    /// `None` when the header was being written just then; `Some(None)` when nobody has written
    /// one.
    fn of(first: &[u8; INDEX_HEADER], second: &[u8; INDEX_HEADER]) -> Option<Option<Self>> {
        let number = |at: usize| {
            let bytes = first[at..at + 4].try_into().ok();
            bytes.map_or(0, u32::from_ne_bytes)
        };
        if first != second || first[..48] != first[48..96] {
            return None;
        }
        if first[12] == 0 {
            return Some(None);
        }
        let mut salts = [0; 8];
        salts.copy_from_slice(&first[32..40]);
        Some(Some(Self {
            frames: number(16),
            pages: number(20),
            salts,
            in_file: number(96),
        }))
    }
}

/// What came of an attempt to keep checkpoints away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// There are none from here on.
    Held,
    /// No connection has the database open: the last that closes makes none, and the first that
    /// opens it may be followed by some.
    NotOpen,
    /// One is under way.
    UnderWay,
}

/// Two copies of the header, and how far checkpoints have come.
const INDEX_HEADER: usize = 100;
/// The index grows by so many bytes.
const INDEX_REGION: c_int = 32 * 1024;
/// The lock of the index that whoever checkpoints has alone.
const CHECKPOINT_LOCK: c_int = 1;
/// What stands before the name of a database.
const NAME_BEGINS: &[u8] = &[0; 4];

// SAFETY: the layer's methods may be called from any thread. Without `Sync`, they are called one at
// a time.
unsafe impl Send for SqliteFile {}

/// The first bytes of the file at `path`, at most `length`.
pub(crate) fn head(path: &Path, length: usize) -> io::Result<Vec<u8>> {
    let file = SqliteFile::open(path)?;
    let there = usize::try_from(file.len()?).unwrap_or(length);
    let mut head = vec![0; length.min(there)];
    file.read_exact_at(&mut head, 0)?;
    Ok(head)
}

/// Makes what was written to the file at `path` durable.
pub(crate) fn flush(path: &Path) -> io::Result<()> {
    SqliteFile::open(path)?.sync()
}

/// Makes an empty file of mode 0600 where nothing stands, for SQLite to fill.
#[expect(
    clippy::disallowed_methods,
    reason = "nobody holds a lock on a file that did not exist, and it is closed before anybody can"
)]
pub(crate) fn create(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;

    let created = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    created.map(drop)
}

impl SqliteFile {
    /// Opens a regular file for reading. A symbolic link is not followed.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::open_as(path, ffi::SQLITE_OPEN_READONLY)
    }

    /// As [`open`](Self::open), for writing too.
    pub(crate) fn open_to_write(path: &Path) -> io::Result<Self> {
        Self::open_as(path, ffi::SQLITE_OPEN_READWRITE)
    }

    fn open_as(path: &Path, access: c_int) -> io::Result<Self> {
        // The layer would wait for the writer of a named pipe.
        if !std::fs::symlink_metadata(path)?.is_file() {
            return Err(io::Error::other("not a regular file; move it away"));
        }
        // SAFETY: finding the default layer has no preconditions; SQLite never frees it.
        let layer = unsafe { ffi::sqlite3_vfs_find(ptr::null()).as_mut() };
        let layer = layer.ok_or(io::ErrorKind::Unsupported)?;
        let open = layer.xOpen.ok_or(io::ErrorKind::Unsupported)?;
        let length = usize::try_from(layer.szOsFile).map_err(io::Error::other)?;
        let words = length.div_ceil(size_of::<u64>());
        // SQLite's names stand between zeros: it looks for their beginning and, after the end, for
        // parameters.
        let name = [NAME_BEGINS, path.as_os_str().as_bytes(), b"\0\0"].concat();
        let opened = Self {
            file: Box::into_raw(vec![0_u64; words].into_boxed_slice()).cast(),
            words,
            name: name.into_boxed_slice(),
            indexed: false,
            holds_checkpoints: false,
        };
        let mut granted = 0;
        // SAFETY: the layer is valid; the name is terminated and lives as long as the file; the
        // memory is zeroed and long enough.
        let code = unsafe {
            open(
                layer,
                opened.name[NAME_BEGINS.len()..].as_ptr().cast(),
                opened.file,
                access | ffi::SQLITE_OPEN_MAIN_DB,
                &raw mut granted,
            )
        };
        if code != ffi::SQLITE_OK {
            let last = layer.xGetLastError;
            // SAFETY: the layer is valid, and writes no text where there is no room for any.
            let error = last.map_or(0, |last| unsafe { last(layer, 0, ptr::null_mut()) });
            return Err(explain(code, error));
        }
        // What it may not write, the layer opens for reading.
        if granted & access == 0 {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(opened)
    }

    /// How long it is. (The layer says 0 of one byte.)
    pub(crate) fn len(&self) -> io::Result<u64> {
        let ask = self.methods()?.xFileSize;
        let ask = ask.ok_or(io::ErrorKind::Unsupported)?;
        let mut size = 0;
        // SAFETY: the file is open, and there is a place for the answer.
        self.done(unsafe { ask(self.file, &raw mut size) })?;
        u64::try_from(size).map_err(io::Error::other)
    }

    /// Fills `out` with what stands at `offset`.
    pub(crate) fn read_exact_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.methods()?.xRead.ok_or(io::ErrorKind::Unsupported)?;
        let (length, offset) = place(out.len(), offset)?;
        // SAFETY: the file is open, and there is room for so many bytes.
        self.done(unsafe { read(self.file, out.as_mut_ptr().cast(), length, offset) })
    }

    /// Writes `data` at `offset`.
    pub(crate) fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let write = self.methods()?.xWrite.ok_or(io::ErrorKind::Unsupported)?;
        let (length, offset) = place(data.len(), offset)?;
        // SAFETY: the file is open, and there are so many bytes.
        self.done(unsafe { write(self.file, data.as_ptr().cast(), length, offset) })
    }

    /// Cuts it to `length`.
    pub(crate) fn set_len(&self, length: u64) -> io::Result<()> {
        let cut = self.methods()?.xTruncate;
        let cut = cut.ok_or(io::ErrorKind::Unsupported)?;
        let (_none, length) = place(0, length)?;
        // SAFETY: the file is open.
        self.done(unsafe { cut(self.file, length) })
    }

    /// Makes what was written to it durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let sync = self.methods()?.xSync.ok_or(io::ErrorKind::Unsupported)?;
        // SAFETY: the file is open.
        self.done(unsafe { sync(self.file, ffi::SQLITE_SYNC_NORMAL) })
    }

    /// Keeps every checkpoint away, of any process, until the file is closed. Commits are not kept
    /// away: they go into the WAL, and what is in the database file stays as it is.
    ///
    /// Two locks do that: whoever checkpoints has that of the index alone, and the last connection
    /// that closes, which checkpoints without it, has the whole file alone. The first is not taken
    /// while no connection has made the index: whoever makes it needs that lock.
    pub(crate) fn hold_checkpoints(&mut self) -> io::Result<Hold> {
        let methods = self.methods()?;
        let (Some(lock), Some(lock_index)) = (methods.xLock, methods.xShmLock) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        // SAFETY: the file is open.
        match unsafe { lock(self.file, ffi::SQLITE_LOCK_SHARED) } {
            ffi::SQLITE_BUSY => return Ok(Hold::UnderWay),
            code => self.done(code)?,
        }
        if self.wal_index()?.is_none() {
            return Ok(Hold::NotOpen);
        }
        let how = ffi::SQLITE_SHM_LOCK | ffi::SQLITE_SHM_SHARED;
        // SAFETY: the file is open, and has its index open.
        match unsafe { lock_index(self.file, CHECKPOINT_LOCK, 1, how) } {
            ffi::SQLITE_BUSY => return Ok(Hold::UnderWay),
            code => self.done(code)?,
        }
        self.holds_checkpoints = true;
        Ok(Hold::Held)
    }

    /// What the index of the WAL says is committed; `None` where no connection has made it yet.
    pub(crate) fn wal_index(&mut self) -> io::Result<Option<WalIndex>> {
        let barrier = self.methods()?.xShmBarrier;
        let barrier = barrier.ok_or(io::ErrorKind::Unsupported)?;
        let Some(index) = self.map_index()? else {
            return Ok(None);
        };
        for _try in 0..1000 {
            // SAFETY: the mapping holds at least one region, which is longer than this, for as long
            // as the file is open. Others write there meanwhile, as all users of the index must
            // expect: what is read counts only if both copies of the header are the same.
            let read = || unsafe { index.cast::<[u8; INDEX_HEADER]>().read_volatile() };
            let (first, second) = {
                let first = read();
                // SAFETY: the file is open, and has its index open.
                unsafe { barrier(self.file) };
                (first, read())
            };
            if let Some(read) = WalIndex::of(&first, &second) {
                return Ok(read);
            }
        }
        Err(io::Error::other(
            "the index of the WAL is being written all the while",
        ))
    }

    /// The first region of the index of the WAL.
    fn map_index(&mut self) -> io::Result<Option<*const u8>> {
        let map = self.methods()?.xShmMap.ok_or(io::ErrorKind::Unsupported)?;
        let mut region: *mut std::ffi::c_void = ptr::null_mut();
        self.indexed = true;
        // SAFETY: the file is open, and there is a place for the answer.
        self.done(unsafe { map(self.file, 0, INDEX_REGION, 0, (&raw mut region).cast()) })?;
        Ok((!region.is_null()).then_some(region.cast_const().cast()))
    }

    fn methods(&self) -> io::Result<&ffi::sqlite3_io_methods> {
        // SAFETY: the memory was zeroed, or filled in by the layer, whose tables are static.
        let methods = unsafe { (*self.file).pMethods.as_ref() };
        methods.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn done(&self, code: c_int) -> io::Result<()> {
        if code == ffi::SQLITE_OK {
            return Ok(());
        }
        let mut error: c_int = 0;
        if let Some(ask) = self.methods()?.xFileControl {
            let last = ffi::SQLITE_FCNTL_LAST_ERRNO;
            // SAFETY: the file is open, and this question is answered with a number.
            let _unknown = unsafe { ask(self.file, last, (&raw mut error).cast()) };
        }
        Err(explain(code, error))
    }
}

impl Drop for SqliteFile {
    fn drop(&mut self) {
        let unlock = self.methods().ok().and_then(|methods| methods.xShmLock);
        if let (true, Some(unlock)) = (self.holds_checkpoints, unlock) {
            let how = ffi::SQLITE_SHM_UNLOCK | ffi::SQLITE_SHM_SHARED;
            // SAFETY: the file is open, and has this lock. Unmapping alone would leave it with the
            // other connections of the process.
            let _code = unsafe { unlock(self.file, CHECKPOINT_LOCK, 1, how) };
        }
        let unmap = self.methods().ok().and_then(|methods| methods.xShmUnmap);
        if let (true, Some(unmap)) = (self.indexed, unmap) {
            // SAFETY: the file is open. The index stays for others.
            let _code = unsafe { unmap(self.file, 0) };
        }
        let close = self.methods().ok().and_then(|methods| methods.xClose);
        if let Some(close) = close {
            // SAFETY: the file is open. What cannot be closed, the layer gives up.
            let _code = unsafe { close(self.file) };
        }
        let memory = ptr::slice_from_raw_parts_mut(self.file.cast::<u64>(), self.words);
        // SAFETY: it came from a box of this length, and nobody has it any more.
        drop(unsafe { Box::from_raw(memory) });
    }
}

impl fmt::Debug for SqliteFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SqliteFile").finish_non_exhaustive()
    }
}

/// A length and an offset as SQLite counts them.
fn place(length: usize, offset: u64) -> io::Result<(c_int, i64)> {
    let length = c_int::try_from(length).map_err(io::Error::other)?;
    Ok((length, i64::try_from(offset).map_err(io::Error::other)?))
}

/// What a code of SQLite's means, with what the system said, if it said anything.
fn explain(code: c_int, error: c_int) -> io::Error {
    match code {
        ffi::SQLITE_IOERR_SHORT_READ => io::ErrorKind::UnexpectedEof.into(),
        ffi::SQLITE_FULL => io::ErrorKind::StorageFull.into(),
        _ if error != 0 => io::Error::from_raw_os_error(error),
        code => io::Error::other(rusqlite::ffi::Error::new(code)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rusqlite::Connection;

    use super::*;

    /// The POSIX locks of this process on the file at `path`. The kernel lists locks a page at a
    /// time and skips an entry when another process unlocks meanwhile: the fullest listing counts.
    fn locks(path: &Path) -> usize {
        (0..50).map(|_| listed_locks(path)).max().unwrap_or(0)
    }

    fn listed_locks(path: &Path) -> usize {
        use std::os::unix::fs::MetadataExt as _;

        let inode = format!(":{}", fs::metadata(path).unwrap().ino());
        let process = std::process::id().to_string();
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let ours = locks.lines().filter(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words[1] == "POSIX" && words[4] == process && words[5].ends_with(&inode)
        });
        ours.count()
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a plain database of the test's own"
    )]
    fn closing_keeps_the_locks_of_connections_and_a_plain_close_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sqlite3");
        let connection = Connection::open(&path).unwrap();
        let mode = connection.pragma_update(None, "journal_mode", "WAL");
        mode.unwrap();
        connection.execute_batch("CREATE TABLE t (x)").unwrap();
        let shm = dir.path().join("a.sqlite3-shm");
        let held = (locks(&path), locks(&shm));
        assert!(held.0 > 0 && held.1 > 0, "{held:?}");
        for _ in 0..3 {
            assert_eq!(head(&path, 15).unwrap(), b"SQLite format 3");
            flush(&path).unwrap();
            drop(SqliteFile::open_to_write(&path).unwrap());
        }
        assert_eq!((locks(&path), locks(&shm)), held);
        // Why there is such a file at all; and the test sees what it looks for.
        drop(fs::File::open(&path).unwrap());
        assert_eq!(locks(&path), 0);
    }

    #[test]
    fn reads_writes_and_cuts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        create(&path).unwrap();
        let again = create(&path).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        let file = SqliteFile::open_to_write(&path).unwrap();
        file.write_all_at(b"0123456789", 5).unwrap();
        file.sync().unwrap();
        assert_eq!(file.len().unwrap(), 15);
        let mut out = [1; 7];
        file.read_exact_at(&mut out, 3).unwrap();
        assert_eq!(&out, b"\0\x0001234");
        let short = file.read_exact_at(&mut out, 10).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        file.set_len(8).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"\0\0\0\0\x00012");
        assert_eq!(head(&path, 100).unwrap().len(), 8);
    }

    #[test]
    fn opens_nothing_but_files() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "content").unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), mode).unwrap();
        for name in ["link", "pipe", "."] {
            assert!(head(&at(name), 1).is_err(), "{name}");
        }
        let none = head(&at("none"), 1).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::NotFound);
        assert_eq!(head(&at("file"), 3).unwrap(), b"con");
    }
}
