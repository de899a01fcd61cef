//! What operators do with encrypted files: look at them, take plaintext out, bring plaintext in,
//! put lost manifests back.
//!
//! One file per operation. The command line and the server's routes call the same functions.

pub mod dek_age;
pub mod doctor;
mod error;
pub mod export;
pub(crate) mod gauges;
pub mod lock;
pub mod migrate;
mod pending;
pub mod repair;
pub mod rotate_dek;
pub mod rotate_kek;
pub mod shred;
pub mod status;

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nimbus_manifests::{Cipher, Subject, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

pub use error::OperationError;

use crate::data_dir::{Role, WAL, beside, parent, scan};
use crate::envelope::{manifest_path, read_manifest};
use crate::process::free_bytes;
use crate::runtime::blocking;

/// What kind of database a command is about.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// A tenant's database
    Sqlite,
    /// The control file
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

/// One file that is as it was.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = NotRotated)]
pub struct Failure {
    /// The protected file.
    pub path: String,
    /// Why.
    pub error: String,
}

/// Every file of a directory that has a manifest or should have one, and of its control directory
/// when that is another.
///
/// # Errors
///
/// The directory that cannot be read, and why.
pub fn protected_files(
    dir: &Path,
    control_dir: Option<&Path>,
) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let mut files = BTreeSet::new();
    let other = |control: &&Path| control.canonicalize().ok() != dir.canonicalize().ok();
    for dir in std::iter::once(dir).chain(control_dir.filter(other)) {
        let failed = |error| (dir.to_owned(), error);
        for entry in scan(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            files.extend(match entry.role {
                Role::Manifest(file) => Some(file),
                // Its manifest may be lost: what is done to all files must not pass it over in
                // silence.
                Role::Database(_) => Some(entry.path),
                _ => None,
            });
        }
    }
    Ok(files.into_iter().collect())
}

/// Refuses a file of another kind than was named.
fn check_engine(path: &Path, subject: &Subject, engine: Engine) -> Result<(), OperationError> {
    if subject.cipher() == engine.cipher() {
        return Ok(());
    }
    Err(OperationError::OtherEngine {
        path: path.to_owned(),
        subject: subject.clone(),
        engine: match engine {
            Engine::Sqlite => "redb",
            Engine::Redb => "sqlite",
        },
    })
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

/// Refuses to begin what the disk has no room for. `bytes` is what the copy will take; a twentieth
/// is added.
fn check_space(target: &Path, bytes: u64) -> Result<(), OperationError> {
    let dir = parent(target);
    let free = free_bytes(dir).map_err(error::io_error("look at the disk of", dir))?;
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

/// Whether the manifest of the file at `path` is another one than that of revision `seen`.
async fn was_rewritten(path: &Path, seen: Option<u64>) -> bool {
    let manifest = manifest_path(path);
    let now = blocking(move || read_manifest(&manifest)).await;
    now.ok()
        .flatten()
        .is_some_and(|sealed| Some(sealed.claims().revision()) != seen)
}

/// Whether a data key that was drawn at `since` is too old.
#[must_use]
fn is_overdue(since: Timestamp, now: Timestamp, max_age: Duration) -> bool {
    let age = now.unix().saturating_sub(since.unix());
    u64::try_from(age).is_ok_and(|age| age > max_age.as_secs())
}

/// What a file takes on the disk, its WAL included.
fn size_of(path: &Path) -> u64 {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
    size(path) + size(&beside(path, WAL))
}

const SLACK: u64 = 64 << 10;
