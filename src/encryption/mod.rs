//! What operators do with encrypted files: look at them, take plaintext out, bring plaintext in, put lost
//! manifests back.
//!
//! One file an operation. The command line and the server's routes call the same functions; neither does any of this by itself.

mod error;
pub mod export;
pub mod migrate;
pub mod repair;
pub mod rotate_kek;
pub mod survey;

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use nimbus_manifests::{Cipher, Subject, TenantId};

pub use error::OperationError;

use crate::envelope::parent;

/// What kind of database a command is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// A tenant's SQLite database.
    Sqlite,
    /// The control file.
    Redb,
}

impl Engine {
    /// The cipher that protects this kind of file.
    #[must_use]
    pub fn cipher(self) -> Cipher {
        match self {
            Self::Sqlite => Cipher::Sqlcipher4,
            Self::Redb => Cipher::Blocks1,
        }
    }
}

/// Refuses a file that belongs to somebody else than who was named.
fn check_owner(
    path: &Path,
    subject: &Subject,
    tenant: Option<&TenantId>,
) -> Result<(), OperationError> {
    match (subject.tenant(), tenant) {
        (owner, named) if owner == named => Ok(()),
        (Some(_), None) => Err(OperationError::TenantNeeded),
        _ => Err(OperationError::OtherOwner {
            path: path.to_owned(),
            subject: subject.clone(),
            named: tenant.cloned(),
        }),
    }
}

/// Refuses to begin what the disk has no room for. `bytes` is what the copy will take; a twentieth is added.
fn check_space(target: &Path, bytes: u64) -> Result<(), OperationError> {
    let dir = parent(target);
    let disk = rustix::fs::statvfs(dir).map_err(|error| OperationError::Io {
        action: "look at the disk of",
        path: dir.to_owned(),
        source: error.into(),
    })?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let needed = bytes + bytes / 20 + SLACK;
    if free < needed {
        return Err(OperationError::NoSpace {
            dir: dir.to_owned(),
            needed,
            free,
        });
    }
    Ok(())
}

/// Makes the directories that are missing above a target, for this user alone.
fn make_parent(target: &Path) -> Result<(), OperationError> {
    let dir = parent(target);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(error::io_error("create", dir))
}

/// What a file takes on the disk, its WAL included.
fn size_of(path: &Path) -> u64 {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
    size(path) + size(&beside(path, "-wal"))
}

/// `<path><suffix>`.
fn beside(path: &Path, suffix: &str) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The name of a file, for a subject.
fn file_name(path: &Path) -> Result<&str, OperationError> {
    path.file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| OperationError::Unnamed {
            path: path.to_owned(),
        })
}

const SLACK: u64 = 64 << 10;
