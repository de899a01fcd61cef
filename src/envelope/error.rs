//! Errors of the core.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus_keyproviders::{FailureClass, ProviderError, RandomError};
use nimbus_manifests::{Cipher, InvalidManifest, ParseError, SUFFIX, Subject, TenantId};

use crate::data_dir::{CONTROL, DATABASE, beside};
use crate::error_chain::error_chain;

/// Why a protected file was not opened, created or changed. Nothing was written in its place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// Another operation changed the manifest, or the keys in force, at the same time. Nothing was
    /// written.
    #[error("{}: its manifest or the keys in force were changed at the same time; try again", .path.display())]
    ChangedMeanwhile {
        /// The protected file.
        path: PathBuf,
    },
    /// The audit log cannot be written.
    #[error(transparent)]
    Audit(#[from] super::AuditError),
    /// Neither the file nor its manifest exists, and the caller asked for an existing file.
    #[error("{} does not exist", .path.display())]
    NotFound {
        /// The protected file.
        path: PathBuf,
    },
    /// The caller asked for a new file and one is there.
    #[error("{} already exists", .path.display())]
    AlreadyExists {
        /// The protected file.
        path: PathBuf,
    },
    /// A plaintext database while encryption is on.
    #[error(
        "{} is a plaintext database and encryption is on; encrypt it with \
         `{}`",
        .path.display(), migrate_command(.path)
    )]
    Plaintext {
        /// The plaintext file.
        path: PathBuf,
    },
    /// An encrypted file without its manifest.
    #[error(
        "{} is not a plaintext database and its manifest {} is missing; {}",
        .path.display(), manifest(.path), back(.path, "restore the manifest from a backup")
    )]
    ManifestMissing {
        /// The protected file.
        path: PathBuf,
    },
    /// The manifest says `new`: a creation that a crash cut short; nothing was ever in the file.
    #[error(
        "the creation of {} never came to its end and nothing is in it; create it again",
        .path.display()
    )]
    NeverInitialised {
        /// The protected file.
        path: PathBuf,
    },
    /// A manifest, and no key provider configured.
    #[error(
        "{} is encrypted and no key provider is configured; start with the --encryption-key-provider that \
         `nimbus encryption inspect {}` names",
        .path.display(), manifest(.path)
    )]
    EncryptionOff {
        /// The protected file.
        path: PathBuf,
    },
    /// The manifest says `ready`, and the database is gone.
    #[error(
        "the database {} is gone, its manifest is there; restore the database from a backup{}",
        .path.display(), without_backup(.path)
    )]
    DatabaseMissing {
        /// The protected file.
        path: PathBuf,
    },
    /// The control file has a copy of the manifest, and there is no database; there is no manifest
    /// either, or one that says `new`.
    #[error(
        "the database {} is gone: the control file has a copy of its manifest, so it existed; restore database and manifest from a \
         backup{}",
        .path.display(), without_backup(.path)
    )]
    Lost {
        /// The protected file.
        path: PathBuf,
    },
    /// The control file has a copy of a newer manifest.
    #[error(
        "the manifest {} is an older one than the control file has a copy of; put the newer back with `nimbus encryption repair`, \
         or, if database and manifest come from a backup, accept them with `nimbus encryption repair --accept-older {}`",
        manifest(.path), tenant_of(.path)
    )]
    ManifestOlder {
        /// The protected file.
        path: PathBuf,
    },
    /// The manifest says `ready`, and the database has 0 bytes.
    #[error(
        "the database {} was cut to 0 bytes; it is damaged, not new; restore it from a backup",
        .path.display()
    )]
    DatabaseEmpty {
        /// The protected file.
        path: PathBuf,
    },
    /// The manifest says that the file is encrypted, and it is plaintext.
    #[error(
        "{} is plaintext although its manifest says it is encrypted: a migration was cut short, then run it again; \
         or one of the two was put here by hand, then restore the encrypted file from a backup",
        .path.display()
    )]
    NotEncrypted {
        /// The protected file.
        path: PathBuf,
    },
    /// A directory, symbolic link or device where the file should be.
    #[error("{} is not a regular file; symbolic links are not followed", .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The manifest is not canonical text of a known version.
    #[error("the manifest {} cannot be read; {}", .path.display(), back(.path, "restore it from a backup"))]
    ManifestUnparsable {
        /// The manifest.
        path: PathBuf,
        /// The line and the rule it breaks.
        source: ParseError,
    },
    /// The key unwraps, and the manifest's MAC does not match.
    #[error(
        "the manifest {} was changed by someone without its key (MAC mismatch); {}",
        .path.display(), back(.path, "restore it from a backup")
    )]
    ManifestTampered {
        /// The manifest.
        path: PathBuf,
    },
    /// The manifest belongs to another file or tenant.
    #[error("the manifest {} belongs to {found}, not to {expected}; {}", .path.display(), back(.path, "restore the right one from a backup"))]
    SubjectMismatch {
        /// The manifest.
        path: PathBuf,
        /// Who the file belongs to.
        expected: Subject,
        /// Who the manifest says it belongs to.
        found: Subject,
    },
    /// The manifest names another cipher than this kind of file has.
    #[error("the manifest {} names cipher {found}, this kind of file has {expected}", .path.display())]
    CipherMismatch {
        /// The manifest.
        path: PathBuf,
        /// The cipher of this kind of file.
        expected: Cipher,
        /// The cipher that the manifest names.
        found: Cipher,
    },
    /// No configured key is among those that wrap this file's data key.
    #[error(
        "no configured key opens {}: its data key is wrapped by {}; configured: {}; \
         name the missing key in the settings (`nimbus start --encryption-previous-…`, or NIMBUS_ENCRYPTION_PREVIOUS_… for any command), or see docs/keys.md",
        .path.display(), .wrapped_by.join(", "), .configured.join(", ")
    )]
    NoMatchingKey {
        /// The protected file.
        path: PathBuf,
        /// `<provider> <key id>` of each wrap in the manifest.
        wrapped_by: Vec<String>,
        /// `<provider> <key id>` of each configured key.
        configured: Vec<String>,
    },
    /// A configured key is named by the manifest, and its provider could not unwrap.
    #[error("the data key of {} could not be unwrapped", .path.display())]
    Unwrap {
        /// The protected file.
        path: PathBuf,
        /// What the provider said.
        source: Arc<ProviderError>,
    },
    /// A new data key could not be drawn or wrapped.
    #[error("no data key could be made for {}", .path.display())]
    Wrap {
        /// The protected file.
        path: PathBuf,
        /// What the provider said.
        source: Arc<ProviderError>,
    },
    /// An operator locked the tenant.
    #[error(
        "tenant {tenant} is locked by an operator; `nimbus encryption unlock --tenant-id {tenant}` ends that"
    )]
    Locked {
        /// The tenant.
        tenant: TenantId,
    },
    /// The operating system has no randomness to give.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The manifest to be written breaks a rule of the format.
    #[error("the manifest of {} cannot be written", .path.display())]
    Invalid {
        /// The protected file.
        path: PathBuf,
        /// The rule.
        source: InvalidManifest,
    },
    /// The copy of the manifest in the control file could not be read or written.
    #[error("the copy of the manifest of {} in the control file could not be read or written", .path.display())]
    Mirror {
        /// The protected file.
        path: PathBuf,
        /// What the control file said.
        source: super::MirrorError,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was being done: `read`, `write`, `remove`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// How a manifest comes back: a tenant's may have a copy in the control file, the control file's
/// own has none.
fn back(path: &Path, from_backup: &str) -> String {
    let otherwise = match place(path) {
        Place::Tenant => REPAIR,
        Place::Control => {
            "; without one, move the control file and its manifest away: the next start makes a new one, see docs/files.md"
        }
        Place::Other => "",
    };
    format!("{from_backup}{otherwise}")
}

/// What brings a tenant's manifest back where the control file has a copy of it.
const REPAIR: &str = ", or put it back with `nimbus encryption repair`";

/// What to do about a database that is gone, but for a backup.
fn without_backup(path: &Path) -> &'static str {
    match place(path) {
        Place::Tenant => ", or delete the tenant",
        Place::Control => {
            "; without one, move the manifest away: the next start makes a new control file, see docs/files.md"
        }
        Place::Other => "",
    }
}

/// The manifest of this file.
fn manifest(path: &Path) -> String {
    beside(path, SUFFIX).display().to_string()
}

/// The file of this manifest.
fn file_of(manifest: &Path) -> String {
    let shown = manifest.display().to_string();
    shown.strip_suffix(SUFFIX).unwrap_or(&shown).to_owned()
}

/// The tenant whose file this is by its name, for a command.
fn tenant_of(path: &Path) -> &str {
    let name = path.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.strip_suffix(DATABASE))
        .unwrap_or("<tenant>")
}

/// Which of the files that the server opens this is, by its name or its manifest's.
enum Place {
    Tenant,
    Control,
    Other,
}

fn place(path: &Path) -> Place {
    let name = path.file_name().and_then(|name| name.to_str());
    match name.map(|name| name.strip_suffix(SUFFIX).unwrap_or(name)) {
        Some(name) if name.ends_with(DATABASE) => Place::Tenant,
        Some(name) if name == CONTROL => Place::Control,
        _ => Place::Other,
    }
}

/// The command that encrypts the plaintext database at `path` where it stands.
pub(crate) fn migrate_command(path: &Path) -> String {
    let shown = path.display();
    let tenant = path
        .file_name()
        .and_then(|name| name.to_str()?.strip_suffix(DATABASE));
    match tenant {
        Some(tenant) => format!(
            "nimbus encryption migrate --provider sqlite --tenant-id {tenant} --source {shown} --in-place"
        ),
        None => format!("nimbus encryption migrate --provider redb --source {shown} --in-place"),
    }
}

/// What a failure means to the caller: the one thing that HTTP codes and `status` are chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Trouble {
    /// There is no such file.
    NotFound,
    /// There is such a file already.
    AlreadyExists,
    /// The key cannot be had now: no matching key, provider unreachable or throttled.
    KeyUnavailable,
    /// The provider refuses this key: access denied, key disabled or pending deletion.
    KeyRevoked,
    /// An operator locked the tenant.
    Locked,
    /// Key and file do not belong together.
    KeyMismatch,
    /// The sidecar is missing.
    ManifestMissing,
    /// The sidecar is there and is not right.
    ManifestCorrupt,
    /// The sidecar is there and the database is not, or is empty.
    DatabaseMissing,
    /// Plaintext where encryption is configured.
    Plaintext,
    /// The database is damaged.
    Corrupt,
    /// The disk, or something else of this machine.
    Storage,
}

impl EnvelopeError {
    /// What is wrong and what to do next, where the control file has no copy of the manifest:
    /// `repair` does not help then.
    pub(crate) fn without_copy(&self) -> String {
        let otherwise = match self {
            Self::SubjectMismatch { path, found, .. } => match found.tenant() {
                // As whoever renamed both wants it.
                Some(tenant) => format!(
                    "; if both files were renamed, give them the name {} again, or take the data out with `nimbus encryption export \
                     --provider sqlite --tenant-id {tenant} --source {} --target <file>`, and migrate that",
                    found.file_name(),
                    file_of(path)
                ),
                None => String::new(),
            },
            Self::ManifestMissing { path } => format!(
                "; if the database was renamed, give it its old name again; without a manifest nothing opens it: delete tenant {}",
                tenant_of(path)
            ),
            Self::ManifestUnparsable { .. } | Self::ManifestTampered { .. } => {
                "; without one nothing opens the database".to_owned()
            }
            _ => String::new(),
        };
        let told = error_chain(self);
        match told.split_once(REPAIR) {
            Some((before, after)) => {
                format!("{before} (the control file has no copy of it){otherwise}{after}")
            }
            None => told,
        }
    }

    /// What this failure means to the caller.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::NotFound { .. } | Self::NeverInitialised { .. } => Trouble::NotFound,
            Self::AlreadyExists { .. } => Trouble::AlreadyExists,
            Self::Plaintext { .. } | Self::NotEncrypted { .. } => Trouble::Plaintext,
            Self::ManifestMissing { .. } => Trouble::ManifestMissing,
            Self::DatabaseMissing { .. } | Self::Lost { .. } | Self::DatabaseEmpty { .. } => {
                Trouble::DatabaseMissing
            }
            Self::ManifestUnparsable { .. }
            | Self::ManifestOlder { .. }
            | Self::ManifestTampered { .. }
            | Self::CipherMismatch { .. } => Trouble::ManifestCorrupt,
            Self::SubjectMismatch { .. } => Trouble::KeyMismatch,
            Self::EncryptionOff { .. } | Self::NoMatchingKey { .. } => Trouble::KeyUnavailable,
            Self::Locked { .. } => Trouble::Locked,
            Self::Unwrap { source, .. } | Self::Wrap { source, .. } => match source.class() {
                FailureClass::Denied => Trouble::KeyRevoked,
                FailureClass::Unavailable => Trouble::KeyUnavailable,
                FailureClass::Invalid => Trouble::KeyMismatch,
            },
            Self::NotAFile { .. }
            | Self::Audit(_)
            | Self::ChangedMeanwhile { .. }
            | Self::Random(_)
            | Self::Invalid { .. }
            | Self::Io { .. } => Trouble::Storage,
            // The control file, which every opening asks, may be under the key that was taken back.
            Self::Mirror { source, .. } => match source.withheld().map(ProviderError::class) {
                Some(FailureClass::Unavailable) => Trouble::KeyUnavailable,
                Some(_) => Trouble::KeyRevoked,
                None => Trouble::Storage,
            },
        }
    }
}
