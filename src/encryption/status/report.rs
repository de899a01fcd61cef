//! What `status` says: of the deployment, of its provider, of each file.

use std::io;
use std::path::PathBuf;

use nimbus_keyproviders::ProviderConfig;
use serde::{Deserialize, Serialize};

use crate::config::{KeyProviderKind, ProviderChoice};
use crate::schemas;

/// How closely each file is looked at.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    clap::ValueEnum,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Manifest and first bytes of the file; whether a configured key is named. No key is used.
    None,
    /// The data key is unwrapped and the manifest's MAC verified.
    Unwrap,
    /// The file is opened: page 1 authenticates.
    Open,
    /// Every page authenticates, and the database's structure is whole.
    Pages,
}

impl Verify {
    /// What was asked for; without that, data keys are unwrapped where it costs no call over the
    /// network.
    #[must_use]
    pub fn of(asked: Option<Self>, provider: &ProviderChoice) -> Self {
        let remote = matches!(
            provider,
            ProviderChoice::Configured(ProviderConfig::AwsKms { .. })
        );
        asked.unwrap_or(if remote { Self::None } else { Self::Unwrap })
    }

    /// Its name on the command line, in a query and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Unwrap => "unwrap",
            Self::Open => "open",
            Self::Pages => "pages",
        }
    }
}

/// What was found about one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = FileHealth)]
pub enum Health {
    /// As it should be, as far as it was looked at.
    Ok,
    /// A database in plaintext.
    Plaintext,
    /// No manifest beside a file that is not plaintext.
    ManifestMissing,
    /// The manifest cannot be read, or was changed by someone without its key.
    ManifestCorrupt,
    /// A manifest without its database, or a database that cannot be read.
    DatabaseMissing,
    /// No configured key unwraps the data key now.
    KeyUnavailable,
    /// Key and file do not belong together.
    KeyMismatch,
    /// The manifest belongs to another file.
    SubjectMismatch,
    /// A new data key is under way, or was when a crash cut it short; the next opening settles it.
    Rekeying,
    /// A manifest beside no file, under a name that Nimbus does not open.
    OrphanManifest,
    /// The database is damaged.
    PageCorrupt,
    /// The tenant is being deleted, and that has not ended.
    Deleting,
}

impl Health {
    /// Its name in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Plaintext => "plaintext",
            Self::ManifestMissing => "manifest-missing",
            Self::ManifestCorrupt => "manifest-corrupt",
            Self::DatabaseMissing => "database-missing",
            Self::KeyUnavailable => "key-unavailable",
            Self::KeyMismatch => "key-mismatch",
            Self::SubjectMismatch => "subject-mismatch",
            Self::Rekeying => "rekeying",
            Self::OrphanManifest => "orphan-manifest",
            Self::PageCorrupt => "page-corrupt",
            Self::Deleting => "deleting",
        }
    }
}

/// The answer of `nimbus encryption status --format json`; `docs/encryption.md` documents it.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EncryptionStatus {
    /// Whether a key provider is configured.
    pub enabled: bool,
    /// How closely files were looked at.
    pub verify: Verify,
    /// The key provider; null while encryption is off.
    #[schema(required)]
    pub provider: Option<ProviderReport>,
    /// The database that tenants are in which Nimbus does not encrypt: those that are named, and,
    /// without `--encryption-seal-external`, those that are made from now on. Missing where
    /// there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false)]
    pub unencrypted_tenants_in: Option<String>,
    /// The tenants of that database that are not sealed.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    #[schema(required = false)]
    pub unencrypted_tenants: Vec<String>,
    /// Every file, by path.
    pub files: Vec<FileReport>,
    /// Their sum.
    pub summary: Summary,
}

/// The configured key provider.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = KeyProvider)]
pub struct ProviderReport {
    /// `master-key-file`, `key-dir` or `aws-kms`.
    #[schema(value_type = KeyProviderKind)]
    pub kind: String,
    /// The key that wraps; null for `key-dir`, which has one per file, and where the provider does
    /// not answer.
    #[schema(required)]
    pub key_id: Option<String>,
    /// Where local keys lie.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false)]
    pub path: Option<String>,
    /// Why the provider cannot be used.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false)]
    pub error: Option<String>,
}

/// One file.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = ProtectedFile)]
pub struct FileReport {
    /// Its path, within the data directory where it lies there.
    pub path: String,
    /// Who it belongs to.
    #[schema(required)]
    pub subject: Option<String>,
    /// What it is encrypted with.
    #[schema(required)]
    pub cipher: Option<String>,
    /// `new`, `ready` or `rekeying`.
    #[schema(required, value_type = Option<schemas::FileState>)]
    pub state: Option<String>,
    /// How often its manifest was written.
    #[schema(required)]
    pub revision: Option<u64>,
    /// What makes it different from another file of the same name.
    #[schema(required)]
    pub file_id: Option<String>,
    /// The data key that it is encrypted under.
    #[schema(required)]
    pub dek_id: Option<String>,
    /// When that key was drawn.
    #[schema(required)]
    pub dek_created: Option<String>,
    /// Whether that key is older than `--encryption-dek-max-age`.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    #[schema(required = false)]
    pub dek_overdue: bool,
    /// Which keys wrap it.
    pub wraps: Vec<WrapReport>,
    /// What was found.
    pub health: Health,
    /// Whether an operator locked the tenant; the running server knows.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    #[schema(required = false)]
    pub locked: bool,
    /// When it was last restored from its backup and proven; the running server knows
    /// (`--backup-verify-every`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false)]
    pub restored: Option<String>,
    /// What is wrong and what to do next.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    #[schema(nullable = false)]
    pub detail: Option<String>,
}

/// One wrap of a data key.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = Wrap)]
pub struct WrapReport {
    /// The kind of provider.
    pub provider: String,
    /// The key that wraps.
    pub key_id: String,
    /// Since when.
    pub at: String,
}

/// Counts of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Summary {
    /// Files looked at.
    #[schema(value_type = u64)]
    pub files: usize,
    /// Those that are as they should be.
    #[schema(value_type = u64)]
    pub ok: usize,
    /// Those that need an operator.
    #[schema(value_type = u64)]
    pub problems: usize,
}

/// A directory that cannot be looked through.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot read {}; name the data directory with --data-dir, or in NIMBUS_DATA_DIR",
    std::path::absolute(.path).as_deref().unwrap_or(.path).display()
)]
pub struct StatusError {
    pub(super) path: PathBuf,
    pub(super) source: io::Error,
}
