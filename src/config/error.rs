//! Errors of settings.

use std::path::PathBuf;

use nimbus_keyproviders::aws_kms::settings::InvalidSetting;
use nimbus_keyproviders::recovery::RecipientError;

use crate::backup::BackupError;
use crate::process::HomeError;
use crate::tenants::relational::NotAUrl;

/// Why settings were refused, before anything was touched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file named by `--config` cannot be read.
    #[error("cannot read the configuration file {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file named by `--config`, or the file of tenants' keys, is UTF-16.
    #[error("{} is written in UTF-16; save it as UTF-8", .path.display())]
    Utf16 {
        /// The file.
        path: PathBuf,
    },
    /// A path that cannot be what is meant.
    #[error("{setting} is {}: {why}", .path.display())]
    Path {
        /// The flag.
        setting: &'static str,
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is no directory for this user's data.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The file named by `--config` is not JSON of the documented keys.
    #[error("the configuration file {} is not right: {reason}; docs/configuration.md lists its keys", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The key or the place, and what is wrong there.
        reason: String,
    },
    /// A setting of a provider that is not selected.
    #[error(
        "{setting} is a setting of {needs}, and the key provider is {selected}; drop it, or select --encryption-key-provider {needs}"
    )]
    Foreign {
        /// The flag.
        setting: &'static str,
        /// The provider it belongs to.
        needs: &'static str,
        /// The provider that is selected.
        selected: &'static str,
    },
    /// A setting of a provider of tenants that is not selected.
    #[error(
        "{setting} is a setting of tenants in {needs}, and they are in {selected}; drop it, or select --tenant-provider {needs}"
    )]
    ForeignTenants {
        /// The flag.
        setting: &'static str,
        /// The provider it belongs to.
        needs: &'static str,
        /// The provider that is selected.
        selected: &'static str,
    },
    /// Tenants in a database, and none is named.
    #[error("--tenant-provider {provider} needs {file}, or {variable}")]
    NoDatabase {
        /// The provider.
        provider: &'static str,
        /// The flag of a file.
        file: &'static str,
        /// The environment's variable.
        variable: &'static str,
    },
    /// A database named twice.
    #[error("{url} and {file} say both which database it is; drop one")]
    TwoDatabases {
        /// The flag of a URL.
        url: &'static str,
        /// The flag of a file.
        file: &'static str,
    },
    /// A URL that is none.
    #[error("{setting} is refused")]
    Database {
        /// The flag.
        setting: &'static str,
        /// What is wrong with it.
        source: NotAUrl,
    },
    /// A name that the engine does not take, or that two things would have.
    #[error("{setting} is {name:?}: {why}")]
    Schema {
        /// The flag.
        setting: &'static str,
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A command on files, for tenants that are in none.
    #[error("{command} works on tenants in files, and these are in {place}: {instead}")]
    NotInFiles {
        /// The command.
        command: &'static str,
        /// Where they are.
        place: String,
        /// What to do.
        instead: &'static str,
    },
    /// A provider without its one necessary setting.
    #[error("--encryption-key-provider {provider} needs {setting}")]
    Missing {
        /// The provider.
        provider: &'static str,
        /// The flag.
        setting: &'static str,
    },
    /// A key, a region or an endpoint of KMS that cannot be right.
    #[error("{setting} is refused")]
    Aws {
        /// The flag.
        setting: &'static str,
        /// What is wrong with it.
        source: InvalidSetting,
    },
    /// A recovery recipient that is none. What was given is not repeated here: it may be a secret
    /// key. The cause repeats what is none.
    #[error("--encryption-recovery-recipient is refused")]
    Recipient {
        /// What the library said.
        source: RecipientError,
    },
    /// More recipients than a manifest has room for.
    #[error("{given} recovery recipients are too many: a manifest has room for {most}")]
    TooManyRecipients {
        /// How many were given.
        given: usize,
        /// How many there may be.
        most: usize,
    },
    /// The file of tenants' keys is not JSON of that form.
    #[error("the key map {} is not right: {reason}; it is a JSON object from tenant ids to KMS keys, each tenant once", .path.display())]
    KeyMap {
        /// The file.
        path: PathBuf,
        /// The place and the rule.
        reason: String,
    },
    /// A length of time that makes no sense.
    #[error("{setting} must be {bounds}")]
    OutOfBounds {
        /// The flag.
        setting: &'static str,
        /// From where to where.
        bounds: &'static str,
    },
    /// Proofs of a repository that nobody named.
    #[error("--backup-verify-every restores from the repository of --backup-to; name that, too")]
    NothingToVerify,
    /// What is kept of a repository that nobody named.
    #[error(
        "--backup-keep-commits and --backup-keep-daily say what stays in the repository of --backup-to; name that, too"
    )]
    NothingToKeep,
    /// A repository that cannot be one.
    #[error("--backup-to is refused")]
    Backup {
        /// What is wrong with it.
        source: Box<BackupError>,
    },
    /// An age of 0.
    #[error(
        "--encryption-dek-max-age must be at least 1s; leave it out to replace data keys by hand alone"
    )]
    NoAge,
}
