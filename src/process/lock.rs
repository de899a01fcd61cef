//! One process owns a data directory at a time: an advisory lock on `nimbus.lock`.
//!
//! The lock is the kernel's (`flock`) and dies with its holder, so a file left behind by a killed
//! server locks nothing. What stands in the file is untrusted, as all that lies in the data
//! directory: it is shown to people and decides nothing.
#![expect(
    clippy::disallowed_methods,
    reason = "the lock file is none of SQLite's; its lock is `flock`'s, which belongs to one open file"
)]

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// Which lock file it is: the file itself, whatever path leads to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockId {
    device: u64,
    inode: u64,
}

impl LockId {
    fn of(file: &File) -> io::Result<Self> {
        let about = file.metadata()?;
        Ok(Self {
            device: about.dev(),
            inode: about.ino(),
        })
    }
}

impl fmt::Display for LockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x}", self.device, self.inode)
    }
}

/// The process that holds a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Its process id, as `nimbus.lock` says. For messages only.
    pub pid: Option<u32>,
    /// What it holds.
    pub lock: LockId,
}

/// What stands in the lock file.
#[derive(Serialize, Deserialize)]
struct Description {
    pid: u32,
}

/// Why a data directory could not be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process owns the directory.
    #[error("the data directory {} is in use by {}; stop it, or name another data directory (`nimbus start --data-dir`, NIMBUS_DATA_DIR)", .dir.display(), process(*.pid))]
    Busy {
        /// The data directory.
        dir: PathBuf,
        /// Who holds it, when the lock file says so.
        pid: Option<u32>,
    },
    /// A restoration was cut short there.
    #[error(
        "a restoration into {} was cut short, and nothing there counts: run `nimbus backup restore` into it again, which begins afresh, \
         or remove the directory", .dir.display()
    )]
    Unfinished {
        /// The data directory.
        dir: PathBuf,
    },
    /// The lock file could not be opened, locked or written.
    #[error("cannot lock {}; this user must be able to write there, or another must be the data directory (`nimbus start --data-dir`, NIMBUS_DATA_DIR)", .path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Exclusive ownership of a data directory, until dropped.
#[derive(Debug)]
pub struct DataDirLock {
    file: File,
    id: LockId,
}

impl DataDirLock {
    /// Takes `dir`, which must exist.
    ///
    /// # Errors
    ///
    /// [`LockError::Busy`] names the process that owns it; [`LockError::Unfinished`] of a directory
    /// whose restoration was cut short.
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
        let lock = Self::acquire_to_restore(dir)?;
        match dir.join(crate::data_dir::RESTORING).symlink_metadata() {
            Ok(_mark) => Err(LockError::Unfinished {
                dir: dir.to_owned(),
            }),
            Err(_none) => Ok(lock),
        }
    }

    /// As [`acquire`](Self::acquire), also of a directory whose restoration was cut short.
    ///
    /// # Errors
    ///
    /// [`LockError`].
    pub(crate) fn acquire_to_restore(dir: &Path) -> Result<Self, LockError> {
        let path = dir.join(FILE_NAME);
        let io_error = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let mut file = open(&path, true).map_err(io_error)?;
        // A command that asks who is running holds the lock for an instant: ask a few times.
        let mut attempts = 0;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if attempts < ATTEMPTS => {
                    attempts += 1;
                    std::thread::sleep(PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Busy {
                        dir: dir.to_owned(),
                        pid: read(&mut file),
                    });
                }
                Err(TryLockError::Error(source)) => return Err(io_error(source)),
            }
        }
        let id = LockId::of(&file).map_err(io_error)?;
        // For messages alone: a full disk must not keep away the commands that make room.
        let _told = describe(&mut file);
        Ok(Self { file, id })
    }

    /// Takes `dir` if it is a data directory: a server, or a command, has taken it before.
    ///
    /// # Errors
    ///
    /// As [`DataDirLock::acquire`].
    pub fn acquire_if_used(dir: &Path) -> Result<Option<Self>, LockError> {
        match dir.join(FILE_NAME).symlink_metadata() {
            Ok(_there) => Self::acquire(dir).map(Some),
            Err(_absent) => Ok(None),
        }
    }

    /// Which lock this is.
    #[must_use]
    pub fn id(&self) -> LockId {
        self.id
    }

    /// Keeps the directory until the process is gone, and says which lock it is.
    #[must_use]
    pub fn keep(self) -> LockId {
        let id = self.id;
        // A second directory of one process is kept, too: it is never dropped.
        if let Err(second) = KEPT.set(self) {
            std::mem::forget(second);
        }
        id
    }

    /// The directory that this process [keeps](Self::keep) names no process any more. It stays
    /// locked.
    pub fn name_nobody() {
        if let Some(lock) = KEPT.get() {
            lock.clear();
        }
    }

    fn clear(&self) {
        // Best effort: a stale description does no harm, since only the kernel's lock counts.
        drop(self.file.set_len(0));
    }
}

static KEPT: OnceLock<DataDirLock> = OnceLock::new();

impl Drop for DataDirLock {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Who owns `dir` right now; `None` when nobody does.
///
/// # Errors
///
/// [`LockError::Io`] when the lock file is there and cannot be read.
pub fn holder(dir: &Path) -> Result<Option<Holder>, LockError> {
    let path = dir.join(FILE_NAME);
    let mut file = match open(&path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LockError::Io { path, source }),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => match LockId::of(&file) {
            Ok(lock) => Ok(Some(Holder {
                pid: read(&mut file),
                lock,
            })),
            Err(source) => Err(LockError::Io { path, source }),
        },
        Err(TryLockError::Error(source)) => Err(LockError::Io { path, source }),
    }
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(create)
        .create(create)
        .truncate(false)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
}

fn describe(file: &mut File) -> io::Result<()> {
    let pid = std::process::id();
    let text = serde_json::to_vec(&Description { pid })?;
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&text)
}

fn read(file: &mut File) -> Option<u32> {
    let mut text = Vec::new();
    let _bytes = file.take(MAX_BYTES).read_to_end(&mut text).ok()?;
    let Description { pid } = serde_json::from_slice(&text).ok()?;
    Some(pid)
}

/// A holder, in a message.
pub(crate) fn process(pid: Option<u32>) -> String {
    pid.map_or_else(
        || "another process".to_owned(),
        |pid| format!("process {pid}"),
    )
}

const FILE_NAME: &str = crate::data_dir::LOCK;
const MAX_BYTES: u64 = 4096;
const ATTEMPTS: u32 = 5;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_a_second_owner_and_names_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DataDirLock::acquire(dir.path()).unwrap();
        let error = DataDirLock::acquire(dir.path()).unwrap_err();
        let LockError::Busy { pid, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!(pid, Some(std::process::id()));
        let found = holder(dir.path()).unwrap();
        let lock = lock.id();
        assert_eq!(found, Some(Holder { pid, lock }));
    }

    #[test]
    fn a_description_that_is_no_description_is_nobody_in_particular() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DataDirLock::acquire(dir.path()).unwrap();
        for text in ["", "{", r#"{"address":"192.0.2.1:80"}"#] {
            std::fs::write(dir.path().join(FILE_NAME), text).unwrap();
            let pid = None;
            let lock = lock.id();
            assert_eq!(holder(dir.path()).unwrap(), Some(Holder { pid, lock }));
        }
    }

    #[test]
    fn a_lock_left_behind_locks_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(holder(dir.path()).unwrap().is_none());
        drop(DataDirLock::acquire(dir.path()).unwrap());
        assert!(holder(dir.path()).unwrap().is_none());
        drop(DataDirLock::acquire(dir.path()).unwrap());
    }

    #[test]
    fn does_not_follow_a_planted_symlink() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join(FILE_NAME)).unwrap();
        assert!(matches!(
            DataDirLock::acquire(dir.path()),
            Err(LockError::Io { .. })
        ));
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }
}
