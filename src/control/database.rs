//! The one opener of redb: on the encrypted device, or on a plain file when encryption is off.
#![expect(
    clippy::disallowed_methods,
    reason = "redb locks by `flock`, which belongs to one open file and not to the process"
)]

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus_keyproviders::{CipherKey, OsRandom};
use nimbus_manifests::FileId;
use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError, StorageError};

use super::ControlError;
use super::device::{BadBlock, BlockFile, Device};
use crate::data_dir::{TEMPORARY_PREFIX, parent, sync_dir};
use crate::envelope::KeyedFile;
use crate::failpoints::crash_point;

/// What a database is opened with.
#[derive(Debug)]
pub(super) enum Protection {
    /// The key that a verified manifest holds, and the file it is for.
    Keyed(CipherKey, FileId),
    /// Encryption is off.
    Plain,
}

impl Protection {
    pub(super) fn of(file: &KeyedFile) -> Self {
        Self::Keyed(file.cipher_key(), file.manifest().file_id())
    }
}

/// Opens the database at `path`. Every checksum in it is verified: they lie in encrypted blocks, so
/// that a block that was put back from an older copy, which authenticates by itself, is found out.
pub(super) fn open(path: &Path, protection: &Protection) -> Result<Database, ControlError> {
    open_known(path, protection).map(|(database, _)| database)
}

/// As [`open`], and says which file it is.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one opener that the lint protects"
)]
pub(super) fn open_known(
    path: &Path,
    protection: &Protection,
) -> Result<(Database, Inode), ControlError> {
    let failed = |error| explain(path, error);
    let builder = builder();
    let file = lock(path)?;
    let inode = Inode::of(&file).map_err(|source| ControlError::Io {
        action: "look at",
        path: path.to_owned(),
        source,
    })?;
    let opened = match protection {
        Protection::Keyed(key, file_id) => builder
            .create_with_backend(device_on(path, file, key, *file_id)?)
            .map_err(failed),
        Protection::Plain => builder
            .create_with_backend(FileBackend::new(file).map_err(failed)?)
            .map_err(failed),
    };
    Ok((opened?, inode))
}

/// Which file it is, whatever its name. No other file is it for as long as this one is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inode(u64, u64);

impl Inode {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self(found.dev(), found.ino()))
    }
}

/// Opens what `backend` holds, which is a copy of the database at `path`, and verifies every
/// checksum in it.
pub(super) fn check(path: &Path, backend: impl redb::StorageBackend) -> Result<(), ControlError> {
    open_on(path, backend).map(drop)
}

/// As [`check`], and gives the database.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one opener that the lint protects"
)]
pub(super) fn open_on(
    path: &Path,
    backend: impl redb::StorageBackend,
) -> Result<Database, ControlError> {
    builder()
        .create_with_backend(backend)
        .map_err(|error| explain(path, error))
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    let _builder = builder
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true);
    builder
}

/// The encrypted device at `path`, held for this process alone.
pub(super) fn device(
    path: &Path,
    key: &CipherKey,
    file_id: FileId,
) -> Result<Device<File>, ControlError> {
    device_on(path, lock(path)?, key, file_id)
}

/// The same over what is open already, and is or was at `path`.
pub(super) fn device_on<F: BlockFile>(
    path: &Path,
    file: F,
    key: &CipherKey,
    file_id: FileId,
) -> Result<Device<F>, ControlError> {
    Device::open(file, key, file_id, Arc::new(OsRandom))
        .map_err(|source| explain(path, DatabaseError::Storage(StorageError::Io(source))))
}

/// Makes a database at `path`, whole: under a temporary name, filled by `fill`, closed, flushed,
/// renamed. A crash leaves no file or a whole one.
pub(super) fn create(
    path: &Path,
    protection: &Protection,
    fill: impl FnOnce(&Database) -> Result<(), ControlError>,
) -> Result<(), ControlError> {
    let io_error = |action, path: &Path| {
        let path = path.to_owned();
        move |source| ControlError::Io {
            action,
            path,
            source,
        }
    };
    let dir = parent(path);
    let temporary = tempfile::Builder::new()
        .prefix(TEMPORARY_PREFIX)
        .tempfile_in(dir)
        .map_err(io_error("create a file in", dir))?
        .into_temp_path();
    let database = open(&temporary, protection)?;
    crash_point!("control::opened");
    fill(&database)?;
    drop(database);
    crash_point!("control::filled");
    File::open(&temporary)
        .and_then(|file| file.sync_all())
        .map_err(io_error("flush", path))?;
    temporary
        .persist(path)
        .map_err(|error| io_error("create", path)(error.error))?;
    crash_point!("control::renamed");
    sync_dir(dir).map_err(io_error("flush", dir))
}

/// Opens the file and takes it for this process alone: two openers would tear each other's blocks.
pub(super) fn lock(path: &Path) -> Result<File, ControlError> {
    let io_error = |source| ControlError::Io {
        action: "open",
        path: path.to_owned(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .map_err(io_error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ControlError::InUse {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(io_error(source)),
    }
}

/// What a failure of redb means for this file.
pub(super) fn explain(path: &Path, error: impl Into<redb::Error>) -> ControlError {
    let path: PathBuf = path.to_owned();
    match error.into() {
        redb::Error::Io(source) if bad_block(&source) == Some(0) => {
            ControlError::KeyMismatch { path }
        }
        redb::Error::Io(source) if bad_block(&source).is_some() => ControlError::Damaged {
            path,
            source: Box::new(source),
        },
        redb::Error::Io(source) => ControlError::Io {
            action: "read or write",
            path,
            source,
        },
        error @ redb::Error::Corrupted(_) => ControlError::Damaged {
            path,
            source: Box::new(error),
        },
        redb::Error::DatabaseAlreadyOpen => ControlError::InUse { path },
        error => ControlError::Database {
            path,
            source: Box::new(error),
        },
    }
}

fn bad_block(error: &io::Error) -> Option<u64> {
    let bad = error.get_ref()?.downcast_ref::<BadBlock>()?;
    Some(bad.block)
}

impl BlockFile for File {
    fn len(&self) -> io::Result<u64> {
        self.metadata().map(|file| file.len())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(out, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// The control file is small; what it caches is taken from the tenants.
const CACHE_BYTES: usize = 8 << 20;
