//! Errors of the control file.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use nimbus_keyproviders::{FailureClass, ProviderError};

use crate::envelope::{EnvelopeError, Trouble};

/// Why the control file did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The core refused: the opening table, the manifest, or the key provider.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// Another process has the file.
    #[error("{} is in use by another process; stop it first", .path.display())]
    InUse {
        /// The control file.
        path: PathBuf,
    },
    /// The key of the manifest does not open the file.
    #[error("key and file do not match: {} does not authenticate under the key of its manifest; restore both from the same backup", .path.display())]
    KeyMismatch {
        /// The control file.
        path: PathBuf,
    },
    /// The key is right, and the file was changed, cut, or put together from two ages.
    #[error("{} is damaged or was tampered with; restore it and its manifest from a backup", .path.display())]
    Damaged {
        /// The control file.
        path: PathBuf,
        /// What was found.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A newer release wrote the file.
    #[error("{} has layout {found}, this release knows {known}; start the newer release again", .path.display())]
    NewerLayout {
        /// The control file.
        path: PathBuf,
        /// The layout in the file.
        found: u64,
        /// The newest layout this release knows.
        known: u64,
    },
    /// The key was taken back while the file was open.
    #[error("the key of {} is withheld", .path.display())]
    Withheld {
        /// The control file.
        path: PathBuf,
        /// What the provider said.
        source: Arc<ProviderError>,
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
    /// redb failed in another way.
    #[error("the control file {} failed", .path.display())]
    Database {
        /// The control file.
        path: PathBuf,
        /// What redb said.
        source: Box<redb::Error>,
    },
}

impl ControlError {
    /// What this failure means to the caller.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Envelope(error) => error.trouble(),
            Self::KeyMismatch { .. } => Trouble::KeyMismatch,
            Self::Withheld { source, .. } => match source.class() {
                FailureClass::Unavailable => Trouble::KeyUnavailable,
                _ => Trouble::KeyRevoked,
            },
            Self::Damaged { .. } => Trouble::Corrupt,
            Self::InUse { .. }
            | Self::NewerLayout { .. }
            | Self::Io { .. }
            | Self::Database { .. } => Trouble::Storage,
        }
    }
}
