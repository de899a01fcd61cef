//! Why a database was not opened, copied or proven whole.

use std::io;
use std::path::PathBuf;

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
    #[error("this build of SQLCipher will not do: {0}; build Nimbus with its bundled SQLCipher")]
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
    /// The pages authenticate, and SQLite's own structure is broken: pages are missing, or were put back from an older copy.
    #[error("its pages authenticate, its structure is broken")]
    Structure,
}

impl OpenError {
    /// What this failure means to who asked.
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

/// Whether SQLite did not understand a statement of ours: the schema needs a collation, a function or a module that only its application has.
pub(super) fn is_not_understood(error: &rusqlite::Error) -> bool {
    matches!(error, rusqlite::Error::SqlInputError { .. })
        || error.sqlite_error_code() == Some(rusqlite::ErrorCode::Unknown)
}
