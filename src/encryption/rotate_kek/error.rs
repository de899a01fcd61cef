//! Why a rotation was not begun, or did not end.

use std::path::PathBuf;

use nimbus_keyproviders::aws_kms::settings::InvalidSetting;
use nimbus_keyproviders::recovery::RecipientError;
use nimbus_keyproviders::{KeyFileError, ProviderError};

use crate::config::keys::KeysError;
use crate::envelope::{EnvelopeError, RowsError};

/// Why a rotation was not begun. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RotateKekError {
    /// Settings of more than one new key.
    #[error("name one new key: --new-master-key-file, --new-key-dir or --new-aws-kms-key-id")]
    ManyKeys,
    /// `--new-key-provider` without its setting, or with another's.
    #[error("--new-key-provider {provider} goes with {setting}, and with no other's setting")]
    WrongSetting {
        /// The kind that was named.
        provider: &'static str,
        /// Its setting.
        setting: &'static str,
    },
    /// `--new-aws-region` or `--new-aws-endpoint-url` without a KMS key.
    #[error("--new-aws-region and --new-aws-endpoint-url go with --new-aws-kms-key-id")]
    NoKmsKey,
    /// `--move-mapped` without a key to move to.
    #[error(
        "--move-mapped goes with a new key; without one, tenants of the key map move to the keys that it names"
    )]
    NothingToMoveTo,
    /// A key, a region or an endpoint of KMS that cannot be right.
    #[error("{setting} is refused")]
    Aws {
        /// The flag.
        setting: &'static str,
        /// What is wrong with it.
        source: InvalidSetting,
    },
    /// There is no rotating to plaintext.
    #[error("a key cannot be rotated to none; `nimbus encryption export` writes plaintext")]
    ToNone,
    /// Not an age recipient.
    #[error("the recipient {recipient:?} is refused")]
    Recipient {
        /// What was given.
        recipient: String,
        /// What is wrong with it.
        source: RecipientError,
    },
    /// One recipient to add and to drop.
    #[error("the recipient {recipient:?} is both added and dropped; leave one of the two out")]
    AddedAndDropped {
        /// What was given.
        recipient: String,
    },
    /// No path.
    #[error("no path was given; name a protected file, or the data directory with --all")]
    NoPath,
    /// Nothing stands at the path.
    #[error("there is neither a file {} nor a manifest of one; name a protected file, or the data directory with --all", .path.display())]
    NotThere {
        /// The path.
        path: PathBuf,
    },
    /// A directory without `--all`, or a file with it.
    #[error("{} is {}", .path.display(), if *.all { "no directory; leave --all out" } else { "a directory; rotate all that is in it with --all" })]
    WrongPath {
        /// The path.
        path: PathBuf,
        /// Whether all of a directory was asked for.
        all: bool,
    },
    /// Encryption is off.
    #[error("no key provider is configured; name the one that opens the files now in the settings")]
    EncryptionOff,
    /// The new key lies where it may not.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The new key cannot be used.
    #[error("the key to wrap with cannot be used; nothing was changed")]
    Provider(#[from] ProviderError),
    /// A key of the new directory cannot be made.
    #[error("a key of the new key directory cannot be made")]
    KeyFile(#[from] KeyFileError),
    /// The directory cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The manifests in the database cannot be read or written.
    #[error("the manifests of the tenants in the database cannot be read or written")]
    Rows {
        /// What the database said.
        source: RowsError,
    },
    /// It was stopped.
    #[error(
        "stopped after {done} of {total} files; run the command again for the rest, and keep both keys until then"
    )]
    Stopped {
        /// Files that were done.
        done: u64,
        /// Files there are.
        total: u64,
    },
    /// What was wrapped anew could not be written, or not be recorded.
    #[error(transparent)]
    Publish(#[from] EnvelopeError),
    /// It ended early, after the new key was put in force.
    #[error(
        "the rotation did not end, and {key} wraps new files already: keep both keys, put both into the settings, and run the command again"
    )]
    Unfinished {
        /// The new key.
        key: String,
        /// Why it ended.
        source: Box<RotateKekError>,
    },
}

impl RotateKekError {
    /// Whether what was said was wrong, before a key or a file was read.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NoPath
                | Self::WrongPath { .. }
                | Self::ManyKeys
                | Self::WrongSetting { .. }
                | Self::NoKmsKey
                | Self::NothingToMoveTo
                | Self::Aws { .. }
                | Self::ToNone
                | Self::Recipient { .. }
                | Self::AddedAndDropped { .. }
        )
    }
}
