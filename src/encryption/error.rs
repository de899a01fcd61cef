//! Errors of operator actions.

use std::io;
use std::path::PathBuf;

use nimbus_manifests::{Subject, TenantId};

use crate::control::ControlError;
use crate::envelope::{EnvelopeError, ReadError};
use crate::process::LockError;
use crate::sqlcipher::{CopyError, OpenError};
use crate::tenants::StoreError;

/// Why an export or a migration was not done. The source is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperationError {
    /// The core refused.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// A database does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A copy of an SQLite database failed.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The audit log cannot be opened.
    #[error(transparent)]
    Audit(#[from] crate::audit::LogError),
    /// The control file failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A server, or another command, has the data directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A server is running on the directory of the file.
    #[error("a server ({}) runs on {}; stop it first: it would not see the file change under it", crate::process::process(*.pid), .dir.display())]
    ServerRuns {
        /// The data directory.
        dir: PathBuf,
        /// Its process id, when the lock file says so.
        pid: Option<u32>,
    },
    /// The manifest of the source cannot be read.
    #[error("the manifest {} cannot be read; put it back from a backup, or with `nimbus encryption repair`", .path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        source: ReadError,
    },
    /// No path.
    #[error("no path was given; name a protected file, or the data directory with --all")]
    NoPath,
    /// Nothing stands at the source.
    #[error("{} does not exist", .path.display())]
    SourceMissing {
        /// The source.
        path: PathBuf,
    },
    /// `migrate` of a symbolic link, a directory, a pipe or a device.
    #[error("{} is no regular file (a symbolic link, a directory, a pipe or a device), and is not read; name the database itself: `realpath {}` shows where a link leads", .path.display(), .path.display())]
    SourceNotAFile {
        /// The source.
        path: PathBuf,
    },
    /// `migrate` of a file without content.
    #[error("{} has 0 bytes: there is nothing to be encrypted; name the right --source, or create the tenant with a running server", .path.display())]
    SourceEmpty {
        /// The source.
        path: PathBuf,
    },
    /// `export` of a file that is plaintext.
    #[error("{} is not encrypted: it can be copied as it is", .path.display())]
    NotEncrypted {
        /// The source.
        path: PathBuf,
    },
    /// `migrate` of a file that is encrypted.
    #[error("{} is encrypted already; `nimbus encryption status` shows under which key", .path.display())]
    AlreadyEncrypted {
        /// The source.
        path: PathBuf,
    },
    /// `migrate` of something that is no database of the kind named.
    #[error("{} is not a plaintext {engine} database; name the right --source and --provider", .path.display())]
    WrongKind {
        /// The source.
        path: PathBuf,
        /// The kind that was named.
        engine: &'static str,
    },
    /// `export` of a file of the other kind.
    #[error("{} belongs to {subject}; name its kind with --provider {engine}", .path.display())]
    OtherEngine {
        /// The source.
        path: PathBuf,
        /// Who the manifest says it belongs to.
        subject: Subject,
        /// The kind it is.
        engine: &'static str,
    },
    /// No data directory.
    #[error("the data directory {} does not exist; name it with --data-dir, or in NIMBUS_DATA_DIR", .path.display())]
    NoDataDir {
        /// The directory, whole.
        path: PathBuf,
    },
    /// Something stands at the target.
    #[error("{} already exists and is not overwritten; name another target, or move it away", .path.display())]
    TargetExists {
        /// The target.
        path: PathBuf,
    },
    /// No tenant was named for a tenant's file.
    #[error("whose file is it? name the tenant with --tenant-id; only the control file needs none")]
    TenantNeeded,
    /// The manifest belongs to somebody else.
    #[error(
        "{} belongs to {subject}, not to {}; name its own tenant with --tenant-id",
        .path.display(), .named.as_ref().map_or("the deployment".to_owned(), |tenant| format!("tenant {tenant}"))
    )]
    OtherOwner {
        /// The file.
        path: PathBuf,
        /// Who it belongs to.
        subject: Subject,
        /// Who was named.
        named: Option<TenantId>,
    },
    /// The manifest beside a file is another's.
    #[error(
        "the manifest beside {} is of {subject}; `nimbus encryption status` says what helps",
        .path.display()
    )]
    OthersManifest {
        /// The file.
        path: PathBuf,
        /// Whose manifest it is.
        subject: Subject,
    },
    /// `migrate --in-place` of a file that the server does not open under its name.
    #[error(
        "{} would be encrypted for {}, and no server opens it under the name that it has; name the new file with --target {}, or rename the \
         source first: `mv {} {}`",
        .path.display(), .served.file_name().unwrap_or_default().display(), .served.display(), .path.display(), .served.display()
    )]
    UnservedName {
        /// The source.
        path: PathBuf,
        /// Where the server looks for it.
        served: PathBuf,
    },
    /// A running server was asked about a file that is none of its own.
    #[error("{} is not a file of this server; stop it, or name a file in {}", .path.display(), .dir.display())]
    NotServed {
        /// The file.
        path: PathBuf,
        /// The server's data directory.
        dir: PathBuf,
    },
    /// Something that goes with one file was said of all.
    #[error("a tenant or a provider goes with one file, not with all")]
    OneOrAll,
    /// A directory without `--all`.
    #[error(
        "{} is a directory; for every file in it: `nimbus encryption rotate-dek --path {} --all`",
        .path.display(), .path.display()
    )]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// No directory, with `--all`.
    #[error("{} is no directory; leave --all out for one file", .path.display())]
    NoDirectory {
        /// The path.
        path: PathBuf,
    },
    /// A tenant's store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Encryption is off in the settings.
    #[error(
        "no key provider is configured (--encryption-key-provider none); name one in NIMBUS_ENCRYPTION_KEY_PROVIDER or the \
         configuration file"
    )]
    EncryptionOff,
    /// The disk has no room for the copy.
    #[error("{} has {free} bytes free and the copy needs {needed}; make room, or name a target on another disk", .dir.display())]
    NoSpace {
        /// The directory of the target.
        dir: PathBuf,
        /// Bytes that the copy needs.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A plaintext file that must be removed has hard links.
    #[error(
        "{} has other names ({others} hard link(s)) that would keep the plaintext; `find <directory> -xdev -samefile {}` finds them: \
         remove them first, or leave --retire-source out",
        .path.display(), .path.display()
    )]
    OtherNames {
        /// The plaintext.
        path: PathBuf,
        /// How many others there are.
        others: u64,
    },
    /// The source changed while it was copied.
    #[error("{} was written while it was copied; stop whatever writes it, and run the command again", .path.display())]
    SourceChanged {
        /// The source.
        path: PathBuf,
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
}

impl OperationError {
    /// Whether what was said was wrong, before anything was looked at.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NoPath
                | Self::TenantNeeded
                | Self::OneOrAll
                | Self::Directory { .. }
                | Self::NoDirectory { .. }
        )
    }
}

/// Says what was being done to which file when the operating system refused.
pub(super) fn io_error(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> OperationError {
    let path = path.into();
    move |source| OperationError::Io {
        action,
        path,
        source,
    }
}
