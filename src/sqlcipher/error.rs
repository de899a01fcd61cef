//! Errors of opening, copying and verifying a database.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ffi;

use crate::envelope::{EnvelopeError, Trouble};

/// Why a database was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The core refused: the opening table, the manifest, or the key provider.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// No page of the file authenticates under the key that its manifest holds.
    #[error(
        "key and file do not match: no page of {} authenticates under the key of its manifest; \
         restore the file and its manifest from the same backup",
        .path.display()
    )]
    KeyMismatch {
        /// The database.
        path: PathBuf,
    },
    /// The key is right, and the file is damaged.
    #[error("{} is damaged ({damage}); restore it from a backup", .path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What was found.
        damage: Damage,
    },
    /// The WAL beside the file is not the one that this process has open.
    #[error(
        "the WAL of {} was removed or replaced while it was in use; it is opened afresh once all its connections are closed",
        .path.display()
    )]
    WalReplaced {
        /// The database.
        path: PathBuf,
    },
    /// SQLite failed for another reason: a full disk, a permission, a lock.
    #[error("cannot {action} {}", .path.display())]
    Sqlite {
        /// What was being done.
        action: &'static str,
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// This binary was linked with a library that lacks what Nimbus relies on.
    #[error("this build of SQLCipher cannot be used: {0}; build Nimbus with its bundled SQLCipher")]
    Library(String),
}

/// What kind of damage was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// The file does not end at a page boundary.
    #[error("its size, {size} bytes, is not a whole number of 4096-byte pages")]
    Torn {
        /// Size of the file in bytes.
        size: u64,
    },
    /// Some pages authenticate and some do not.
    #[error("{bad} of {pages} pages do not authenticate")]
    Pages {
        /// Pages that do not authenticate.
        bad: u64,
        /// Pages in the file.
        pages: u64,
    },
    /// The pages authenticate, and SQLite's own structure is broken: pages are missing, or were put
    /// back from an older copy.
    #[error("its pages authenticate, its structure is broken")]
    Structure,
}

impl OpenError {
    /// What this failure means to the caller.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Envelope(error) => error.trouble(),
            Self::KeyMismatch { .. } => Trouble::KeyMismatch,
            Self::Damaged { .. } => Trouble::Corrupt,
            Self::Sqlite { .. } | Self::Io { .. } | Self::Library(_) | Self::WalReplaced { .. } => {
                Trouble::Storage
            }
        }
    }
}

/// Whether SQLite did not understand a statement of Nimbus: the schema needs a collation, a
/// function or a module that only its application has.
pub(super) fn is_not_understood(error: &rusqlite::Error) -> bool {
    matches!(error, rusqlite::Error::SqlInputError { .. })
        || error.sqlite_error_code() == Some(rusqlite::ErrorCode::Unknown)
}

/// Why a copy was not made. The source is untouched and no target stands.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// One of the two databases cannot be opened, read or written.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The target is there already.
    #[error("{} already exists and is not overwritten; name another target", .path.display())]
    TargetExists {
        /// The target.
        path: PathBuf,
    },
    /// Others have the file open and do not let go of it.
    #[error("{} is being read all the while; try again when it is used less", .path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// So little room is left that those who write would soon find none.
    #[error("{} was not copied to the end: the disk is nearly full; make room and run it again", .path.display())]
    NoRoom {
        /// The file.
        path: PathBuf,
    },
    /// The database was closed while it was copied.
    #[error("{} was closed while it was copied; run it again", .path.display())]
    Closed {
        /// The file.
        path: PathBuf,
    },
    /// A page of the source cannot be what it is.
    #[error("page {page} of {} is damaged; take out what can be read with `sqlite3 {} .recover | sqlite3 recovered.db`, and migrate that, or restore it from a backup", .path.display(), .path.display())]
    SourceDamaged {
        /// The source.
        path: PathBuf,
        /// The page.
        page: u32,
    },
    /// SQLite itself does not understand the schema of the source.
    #[error("SQLite cannot read {} ({said}): no program can use it as it is; take out what can be read with `sqlite3 {} .recover | sqlite3 recovered.db`, and migrate that", .path.display(), .path.display())]
    Schema {
        /// The source.
        path: PathBuf,
        /// What SQLite said.
        said: String,
    },
    /// SQLite's own check of the copy, and so of the source, finds that index and table do not go
    /// together.
    #[error("SQLite's own check of {} finds: {said}. Where an index does not fit its table, run `REINDEX` in the source, with its application if that has collations or functions of its own; \
             --skip-validation takes the file as it is", .path.display())]
    Inconsistent {
        /// The source.
        path: PathBuf,
        /// What was found first.
        said: String,
    },
    /// What was written is not what is read back.
    #[error("the copy of {} is not read back as it was written, and was thrown away; disk or memory is faulty", .path.display())]
    Unlike {
        /// The source.
        path: PathBuf,
    },
    /// The copy does not hold what the source holds.
    #[error("the copy differs from {} in {what}, and was thrown away; disk or memory may be faulty: check them, and run it again", .path.display())]
    Differs {
        /// The source.
        path: PathBuf,
        /// The table or object that differs.
        what: String,
    },
}

pub(super) fn damaged(path: &Path, pages: u64) -> CopyError {
    CopyError::Open(OpenError::Damaged {
        path: path.to_owned(),
        damage: Damage::Pages { bad: 1, pages },
    })
}

pub(super) fn io_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> CopyError + use<> {
    let path = path.to_owned();
    move |source| {
        CopyError::Open(OpenError::Io {
            action,
            path,
            source,
        })
    }
}

pub(super) fn sqlite_error(code: std::ffi::c_int) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)
}

pub(super) fn sqlite(action: &'static str, path: &Path, source: rusqlite::Error) -> CopyError {
    CopyError::Open(OpenError::Sqlite {
        action,
        path: path.to_owned(),
        source,
    })
}
