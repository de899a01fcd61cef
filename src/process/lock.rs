//! One process owns a data directory at a time: an advisory lock on `nimbus.lock`, which also tells the command line where the
//! running server listens.
//!
//! The lock is the kernel's (`flock`) and dies with its holder, so a file left behind by a killed server locks nothing.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The server that holds a data directory, as it described itself in `nimbus.lock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningServer {
    /// Its process id.
    pub pid: u32,
    /// Where it listens; `None` while it is starting, and for a command that holds the directory.
    pub address: Option<SocketAddr>,
    /// SHA-256 of its TLS certificate, in hexadecimal; `None` when it speaks plain HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

/// Why a data directory could not be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process owns the directory.
    #[error("the data directory {} is in use{}", .dir.display(), describe(.holder))]
    Busy {
        /// The data directory.
        dir: PathBuf,
        /// Who holds it, when the lock file says so.
        holder: Option<RunningServer>,
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
    path: PathBuf,
}

impl DataDirLock {
    /// Takes `dir`, which must exist.
    ///
    /// # Errors
    ///
    /// [`LockError::Busy`] names the process that owns it.
    pub fn acquire(dir: &Path) -> Result<Self, LockError> {
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
                        holder: read(&mut file),
                    });
                }
                Err(TryLockError::Error(source)) => return Err(io_error(source)),
            }
        }
        let lock = Self { file, path };
        lock.announce(None, None)?;
        Ok(lock)
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

    /// Records where this process listens and what its certificate is, for the command line to find it.
    ///
    /// # Errors
    ///
    /// [`LockError::Io`] when the file cannot be written (a full disk, say).
    pub fn announce(
        &self,
        address: Option<SocketAddr>,
        certificate: Option<String>,
    ) -> Result<(), LockError> {
        let text = serde_json::to_vec(&RunningServer {
            pid: std::process::id(),
            address,
            certificate,
        })
        .map_err(io::Error::from);
        let write = |text: Vec<u8>| {
            let mut file = &self.file;
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(&text)
        };
        text.and_then(write).map_err(|source| LockError::Io {
            path: self.path.clone(),
            source,
        })
    }
}

impl Drop for DataDirLock {
    fn drop(&mut self) {
        // Best effort: a stale description does no harm, since only the kernel's lock counts.
        drop(self.file.set_len(0));
    }
}

/// Who owns `dir` right now; `None` when nobody does.
///
/// # Errors
///
/// [`LockError::Io`] when the lock file is there and cannot be read; [`LockError::Busy`] when the holder has not said who it is.
pub fn running_server(dir: &Path) -> Result<Option<RunningServer>, LockError> {
    let path = dir.join(FILE_NAME);
    let mut file = match open(&path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LockError::Io { path, source }),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => match read(&mut file) {
            Some(holder) => Ok(Some(holder)),
            None => Err(LockError::Busy {
                dir: dir.to_owned(),
                holder: None,
            }),
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

fn read(file: &mut File) -> Option<RunningServer> {
    let mut text = Vec::new();
    let _bytes = file.take(MAX_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn describe(holder: &Option<RunningServer>) -> String {
    match holder {
        Some(RunningServer { pid, address, .. }) => {
            let at = address
                .map(|address| format!(", listening on {address}"))
                .unwrap_or_default();
            format!(" by process {pid}{at}; stop it, or name another data directory (`nimbus start --data-dir`, NIMBUS_DATA_DIR)")
        }
        None => " by another process; stop it, or name another data directory (`nimbus start --data-dir`, NIMBUS_DATA_DIR)".to_owned(),
    }
}

const FILE_NAME: &str = "nimbus.lock";
const MAX_BYTES: u64 = 4096;
const ATTEMPTS: u32 = 5;
const PAUSE: std::time::Duration = std::time::Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_second_owner_and_names_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DataDirLock::acquire(dir.path()).unwrap();
        let address: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        lock.announce(Some(address), Some("ab".into())).unwrap();

        let error = DataDirLock::acquire(dir.path()).unwrap_err();
        let LockError::Busy {
            holder: Some(holder),
            ..
        } = &error
        else {
            panic!("{error:?}")
        };
        assert_eq!(holder.pid, std::process::id());
        assert_eq!(holder.address, Some(address));
        assert_eq!(holder.certificate.as_deref(), Some("ab"));
        assert_eq!(running_server(dir.path()).unwrap().as_ref(), Some(holder));
    }

    #[test]
    fn a_lock_left_behind_locks_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(running_server(dir.path()).unwrap().is_none());
        drop(DataDirLock::acquire(dir.path()).unwrap());
        assert!(running_server(dir.path()).unwrap().is_none());
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
