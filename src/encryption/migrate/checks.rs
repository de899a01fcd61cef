//! What a migration rejects before it changes anything.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nimbus_manifests::{State, Subject};

use super::Migrate;
use crate::encryption::error::io_error;
use crate::encryption::{Engine, OperationError, size_of};
use crate::envelope::{FileKind, classify, manifest_path, read_manifest};
use crate::process::{Holder, holder};
use crate::sqlcipher::Database;
use crate::tenants::sqlite;

/// What shows whether a file was written: size and time of its last change.
pub(super) struct Stamp(u64, i64, i64);

impl Stamp {
    pub(super) fn of(path: &Path) -> Result<Self, OperationError> {
        let file = fs::metadata(path).map_err(io_error("read", path))?;
        Ok(Self(size_of(path), file.mtime(), file.mtime_nsec()))
    }

    pub(super) fn check(&self, path: &Path) -> Result<(), OperationError> {
        let Self(size, seconds, nanoseconds) = Self::of(path)?;
        if (size, seconds, nanoseconds) == (self.0, self.1, self.2) {
            return Ok(());
        }
        Err(OperationError::SourceChanged {
            path: path.to_owned(),
        })
    }
}

/// Whether a server serves this database. One whose schema SQLite does not take is none of
/// Nimbus's.
pub(super) fn is_served(database: &Database) -> bool {
    let reader = database.reader();
    reader.is_ok_and(|connection| sqlite::is_served(&connection).unwrap_or(false))
}

/// A target must be free, but for what an earlier run of the same command began and did not finish.
pub(super) fn reject_target(target: &Path) -> Result<(), OperationError> {
    if is_unfinished(target) || !(exists(target) || manifest_exists(target)) {
        return Ok(());
    }
    let path = if exists(target) {
        target.to_owned()
    } else {
        manifest_path(target)
    };
    Err(OperationError::TargetExists { path })
}

/// Whether the manifest at `target` says `new`: no one ever stored anything there.
pub(super) fn is_unfinished(target: &Path) -> bool {
    matches!(
        read_manifest(&manifest_path(target)),
        Ok(Some(sealed)) if sealed.claims().state() == State::New
    )
}

pub(super) fn reject_running_server(dir: &Path) -> Result<(), OperationError> {
    match holder(dir)? {
        Some(Holder { pid, .. }) => Err(OperationError::ServerRuns {
            dir: dir.to_owned(),
            pid,
        }),
        None => Ok(()),
    }
}

pub(super) fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

pub(super) fn manifest_exists(path: &Path) -> bool {
    exists(&manifest_path(path))
}

impl Migrate {
    /// Under another name than its subject's, what is encrypted in place would be opened by no
    /// server.
    pub(super) fn reject_unserved_name(&self, subject: &Subject) -> Result<(), OperationError> {
        if self.source.file_name() == Some(subject.file_name().as_ref()) {
            return Ok(());
        }
        Err(OperationError::UnservedName {
            path: self.source.clone(),
            served: self.source.with_file_name(subject.file_name()),
        })
    }

    /// A file at `<source>.plaintext` that is not the source itself is somebody's, and kept.
    pub(super) fn reject_other_plaintext(&self, plaintext: &Path) -> Result<(), OperationError> {
        let id = |path: &Path| fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()));
        match (id(plaintext), id(&self.source)) {
            (Err(_), _) => Ok(()),
            (Ok(plaintext), Ok(source)) if plaintext == source => Ok(()),
            _ => Err(OperationError::TargetExists {
                path: plaintext.to_owned(),
            }),
        }
    }

    /// What has `own` names here and must be removed, and has others, would stay in plaintext
    /// under those.
    pub(super) fn reject_other_names(&self, path: &Path, own: u64) -> Result<(), OperationError> {
        let names = fs::symlink_metadata(path)
            .map_err(io_error("read", path))?
            .nlink();
        if self.retire_source && names > own {
            return Err(OperationError::OtherNames {
                path: path.to_owned(),
                others: names - own,
            });
        }
        Ok(())
    }

    pub(super) fn require_plaintext(&self) -> Result<(), OperationError> {
        let path = self.source.clone();
        let kind = classify(&path).map_err(io_error("read", &self.source))?;
        match (kind, self.engine) {
            (FileKind::PlainSqlite, Engine::Sqlite) | (FileKind::PlainRedb, Engine::Redb) => Ok(()),
            (FileKind::Absent, _) => Err(OperationError::SourceMissing { path }),
            (FileKind::Other, _) if manifest_exists(&path) => {
                Err(OperationError::AlreadyEncrypted { path })
            }
            (FileKind::NotAFile, _) => Err(OperationError::SourceNotAFile { path }),
            (FileKind::Empty, _) => Err(OperationError::SourceEmpty { path }),
            (_, engine) => Err(OperationError::WrongKind {
                path,
                engine: match engine {
                    Engine::Sqlite => "sqlite",
                    Engine::Redb => "redb",
                },
            }),
        }
    }
}
