//! Settings: flags, environment and JSON file into one validated [`Settings`].
//!
//! [`Persistence`] is the one struct that all three sources fill: clap reads flags and environment into it, serde the `persistence` object of
//! the file named by `--config`; a flag wins over the environment, the environment over the file. [`Settings::check`] then looks at
//! what was said, and touches nothing; [`keys`] touches the system.
#![expect(
    clippy::disallowed_methods,
    reason = "files of settings are none of SQLite's"
)]

mod bytes;
mod duration;
mod key_map;
pub mod keys;
mod open_tenants;
mod said;
mod tenants;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use key_map::{KeyMap, KeyMapSource};
use nimbus_keyproviders::ProviderConfig;
use nimbus_keyproviders::aws_kms::settings::{self as aws_settings, Field, InvalidSetting};
use nimbus_keyproviders::recovery::{Recipient, RecipientError};
use nimbus_manifests::TenantId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use duration::{NoTime, Time};
pub use open_tenants::OpenTenants;
pub use tenants::{SecretUrl, TenantsIn};

use crate::backup::ship::Shipping;
use crate::backup::{BackupError, Location, S3Settings};
use crate::documents::read_object;
use crate::envelope::Terms;
use crate::process::{HomeError, Limits, Reserve};
use crate::sqlcipher::page_cache;
use crate::tenants::relational::NotAUrl;
use said::is_utf16;
pub(crate) use said::{as_meant, pieces, without_mark};

/// Where things are kept and what encrypts them, as an operator says it.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Storage and encryption")]
pub struct Persistence {
    /// Directory of the tenants' databases and their manifests [default: ./data]
    #[arg(long, env = "NIMBUS_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Directory of nimbus-control.db [default: the data directory]
    #[arg(long, env = "NIMBUS_CONTROL_DATA_DIR", value_name = "DIR")]
    pub control_data_dir: Option<PathBuf>,

    /// Where tenants live [default: sqlite]
    #[arg(long, env = "NIMBUS_TENANT_PROVIDER", value_name = "PROVIDER")]
    pub tenant_provider: Option<TenantProviderKind>,

    /// The Postgres database of the tenants: postgres://user:password@host/database. Flags are seen by all on this machine: give one with a password in the environment or a file
    #[arg(
        long,
        env = "NIMBUS_POSTGRES_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub postgres_url: Option<SecretUrl>,

    /// A file that holds that URL
    #[arg(long, env = "NIMBUS_POSTGRES_URL_FILE", value_name = "FILE")]
    pub postgres_url_file: Option<PathBuf>,

    /// The Postgres schema that says which tenants there are [default: nimbus_provider]
    #[arg(long, env = "NIMBUS_POSTGRES_METADATA_SCHEMA", value_name = "NAME")]
    pub postgres_metadata_schema: Option<String>,

    /// What the names of tenants' Postgres schemas begin with [default: tenant_]
    #[arg(
        long,
        env = "NIMBUS_POSTGRES_TENANT_SCHEMA_PREFIX",
        value_name = "PREFIX"
    )]
    pub postgres_tenant_schema_prefix: Option<String>,

    /// Connections to Postgres that are kept open [default: 0]
    #[arg(long, env = "NIMBUS_POSTGRES_MIN_CONNECTIONS", value_name = "N")]
    pub postgres_min_connections: Option<u16>,

    /// Connections to Postgres there may be at once [default: 32]
    #[arg(long, env = "NIMBUS_POSTGRES_MAX_CONNECTIONS", value_name = "N")]
    pub postgres_max_connections: Option<u16>,

    /// Who wraps the data keys [default: master-key-file, made at the first start]
    #[arg(long, env = "NIMBUS_ENCRYPTION_KEY_PROVIDER", value_name = "PROVIDER")]
    pub encryption_key_provider: Option<KeyProviderKind>,

    /// The master key: a file of 32 raw bytes, mode 0400 [default: nimbus/keys/master.key in the platform's data directory]
    #[arg(long, env = "NIMBUS_ENCRYPTION_MASTER_KEY_FILE", value_name = "FILE")]
    pub encryption_master_key_file: Option<PathBuf>,

    /// Directory of one key file a subject
    #[arg(long, env = "NIMBUS_ENCRYPTION_KEY_DIR", value_name = "DIR")]
    pub encryption_key_dir: Option<PathBuf>,

    /// AWS KMS key: id, alias or ARN
    #[arg(long, env = "NIMBUS_ENCRYPTION_AWS_KMS_KEY_ID", value_name = "KEY")]
    pub encryption_aws_kms_key_id: Option<String>,

    /// Tenants with an AWS KMS key of their own: a JSON file {"tenant": "key", …}
    #[arg(
        long,
        env = "NIMBUS_ENCRYPTION_AWS_KMS_KEY_MAP",
        value_name = "FILE",
        value_parser = clap::builder::ValueParser::new(|path: &str| Ok::<_, std::convert::Infallible>(KeyMapSource::from(path)))
    )]
    pub encryption_aws_kms_key_map: Option<KeyMapSource>,

    /// AWS region [default: the AWS chain's]
    #[arg(long, env = "NIMBUS_ENCRYPTION_AWS_REGION", value_name = "REGION")]
    pub encryption_aws_region: Option<String>,

    /// AWS KMS endpoint [default: AWS's for the region]
    #[arg(long, env = "NIMBUS_ENCRYPTION_AWS_ENDPOINT_URL", value_name = "URL")]
    pub encryption_aws_endpoint_url: Option<String>,

    /// An earlier master key, still accepted for opening; may be given several times
    #[arg(
        long,
        env = "NIMBUS_ENCRYPTION_PREVIOUS_MASTER_KEY_FILE",
        value_name = "FILE",
        value_delimiter = ','
    )]
    pub encryption_previous_master_key_file: Vec<PathBuf>,

    /// An earlier key directory, still accepted for opening
    #[arg(long, env = "NIMBUS_ENCRYPTION_PREVIOUS_KEY_DIR", value_name = "DIR")]
    pub encryption_previous_key_dir: Option<PathBuf>,

    /// An earlier AWS KMS key, still accepted for opening
    #[arg(
        long,
        env = "NIMBUS_ENCRYPTION_PREVIOUS_AWS_KMS_KEY_ID",
        value_name = "KEY"
    )]
    pub encryption_previous_aws_kms_key_id: Option<String>,

    /// An age recipient (age1…) that every new data key is also wrapped to; may be given several times
    #[arg(
        id = "encryption_recovery_recipients",
        long = "encryption-recovery-recipient",
        env = "NIMBUS_ENCRYPTION_RECOVERY_RECIPIENTS",
        value_name = "RECIPIENT",
        value_delimiter = ','
    )]
    pub encryption_recovery_recipients: Vec<String>,

    /// How long an answer of KMS counts for a data key in use before it is asked again, at most [default: 60s]
    #[arg(long, env = "NIMBUS_ENCRYPTION_KEY_LEASE", value_name = "TIME")]
    pub encryption_key_lease: Option<Time>,

    /// How long data keys are used on while KMS cannot be reached, after their lease [default: 1h]
    #[arg(long, env = "NIMBUS_ENCRYPTION_KEY_GRACE", value_name = "TIME")]
    pub encryption_key_grace: Option<Time>,

    /// Replace data keys older than this in the background: 90d, 12h, 30m [default: never]
    #[arg(long, env = "NIMBUS_ENCRYPTION_DEK_MAX_AGE", value_name = "TIME")]
    pub encryption_dek_max_age: Option<Time>,

    /// How many tenants may be open: 2000, or auto for what memory and files allow [default: auto]
    #[arg(long, env = "NIMBUS_MAX_OPEN_TENANTS", value_name = "N")]
    pub max_open_tenants: Option<OpenTenants>,

    /// Bytes that a tenant may have, after which only deletes are let in: 500MiB, 10GiB [default: no limit]
    #[arg(long, env = "NIMBUS_MAX_TENANT_BYTES", value_name = "BYTES")]
    pub max_tenant_bytes: Option<Bytes>,

    /// Bytes of memory for pages that are kept decrypted, of all tenants: 256MiB; 0 for none [default: an eighth of the memory, at most 1GiB]
    #[arg(long, env = "NIMBUS_PAGE_CACHE_BYTES", value_name = "BYTES")]
    pub page_cache_bytes: Option<Bytes>,

    /// Ship what is committed to this repository: a directory, or s3://bucket/prefix [default: none]
    #[arg(long, env = "NIMBUS_BACKUP_TO", value_name = "R")]
    pub backup_to: Option<String>,

    /// How often what is committed is shipped [default: 1s]
    #[arg(long, env = "NIMBUS_BACKUP_INTERVAL", value_name = "TIME")]
    pub backup_interval: Option<Time>,

    /// Restore each tenant from the repository into a scratch directory in TMPDIR once in this time, and prove it [default: off]
    #[arg(long, env = "NIMBUS_BACKUP_VERIFY_EVERY", value_name = "TIME")]
    pub backup_verify_every: Option<Time>,

    /// Bytes that may wait to be shipped, after which shipping begins afresh with a snapshot: 64MiB [default: 1GiB]
    #[arg(long, env = "NIMBUS_BACKUP_MAX_LAG_BYTES", value_name = "BYTES")]
    pub backup_max_lag_bytes: Option<Bytes>,

    /// AWS region of the buckets that backups are in [default: the AWS chain's]
    #[arg(long, env = "NIMBUS_BACKUP_S3_REGION", value_name = "REGION")]
    pub backup_s3_region: Option<String>,

    /// S3 endpoint of the buckets that backups are in [default: AWS's for the region]
    #[arg(long, env = "NIMBUS_BACKUP_S3_ENDPOINT_URL", value_name = "URL")]
    pub backup_s3_endpoint_url: Option<String>,

    /// Bytes kept free on the disk of the data directory: below, only what makes room is let in [default: a twentieth of the disk, at most 1GiB]
    #[arg(long, env = "NIMBUS_DISK_RESERVE_BYTES", value_name = "BYTES")]
    pub disk_reserve_bytes: Option<Bytes>,
}

/// Where tenants live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TenantProviderKind {
    /// One SQLCipher file a tenant.
    Sqlite,
    /// One schema a tenant in a Postgres database, which Nimbus does not encrypt.
    Postgres,
}

/// Who wraps data keys, by its name in the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyProviderKind {
    /// One key file for everything.
    MasterKeyFile,
    /// One key file a subject.
    KeyDir,
    /// A key in AWS KMS.
    AwsKms,
    /// Plaintext, by explicit choice.
    None,
}

impl KeyProviderKind {
    fn name(self) -> &'static str {
        match self {
            Self::MasterKeyFile => "master-key-file",
            Self::KeyDir => "key-dir",
            Self::AwsKms => "aws-kms",
            Self::None => "none",
        }
    }
}

/// The file named by `--config`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ConfigFile {
    persistence: Persistence,
}

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
    /// Tenants in Postgres without a database.
    #[error("--tenant-provider postgres needs --postgres-url-file, or NIMBUS_POSTGRES_URL")]
    NoDatabase,
    /// A database named twice.
    #[error("--postgres-url and --postgres-url-file say both which database it is; drop one")]
    TwoDatabases,
    /// A URL that is none.
    #[error("{setting} is refused")]
    Database {
        /// The flag.
        setting: &'static str,
        /// What is wrong with it.
        source: NotAUrl,
    },
    /// A name that cannot be one of Postgres, or that two things would have.
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
    /// A recovery recipient that is none. What was given is not repeated here: it may be a secret key. The cause repeats what is none.
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

/// Settings that were checked, each against the others.
#[derive(Debug)]
pub struct Settings {
    /// Directory of the tenants' databases.
    pub data_dir: PathBuf,
    /// Directory of the control file.
    pub control_data_dir: PathBuf,
    /// Where tenants live.
    pub tenants: TenantsIn,
    /// Who wraps new data keys.
    pub provider: ProviderChoice,
    /// Who may unwrap besides.
    pub previous: Vec<ProviderConfig>,
    /// Who can recover.
    pub recipients: Vec<Recipient>,
    /// How long what a remote provider unwrapped is held.
    pub terms: Terms,
    /// How old a data key may grow.
    pub dek_max_age: Option<Duration>,
    /// How many tenants may be open at a time.
    pub max_open_tenants: OpenTenants,
    /// How much memory the page cache may take; 0 for none, `None` where nobody said.
    pub page_cache_bytes: Option<u64>,
    /// How much may be written.
    pub limits: Limits,
    /// How buckets with backups are reached.
    pub backup_s3: S3Settings,
    /// What is shipped, and where to.
    pub shipping: Option<Shipping>,
    /// In which time each tenant is restored from there and proven.
    pub backup_verify_every: Option<Duration>,
}

/// Who wraps data keys, as the settings say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderChoice {
    /// Nobody said: the master key at this path, made at the first start on an empty data directory.
    Default(PathBuf),
    /// This one.
    Configured(ProviderConfig),
    /// Plaintext.
    Off,
}

impl Settings {
    /// Checks what flags and environment said, and what the file adds. Reads that file and touches nothing else.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the setting.
    pub fn check(said: Persistence, file: Option<&Path>) -> Result<Self, ConfigError> {
        let said = match file {
            Some(path) => said.or(read(path)?),
            None => said,
        };
        let said = said.tidied()?;
        let provider = said.provider()?;
        let recipients = said.recipients(&provider)?;
        let dek_max_age = said.encryption_dek_max_age.map(Time::duration);
        if provider == ProviderChoice::Off && dek_max_age.is_some() {
            return Err(ConfigError::Foreign {
                setting: "--encryption-dek-max-age",
                needs: "master-key-file",
                selected: "none",
            });
        }
        if dek_max_age.is_some_and(|age| age.is_zero()) {
            return Err(ConfigError::NoAge);
        }
        let tenants = said.tenants_in()?;
        if said.backup_to.is_some() {
            tenants.require_files(
                "--backup-to",
                "let the database archive its WAL, see docs/postgres.md",
            )?;
        }
        let data_dir = said.data_dir.clone().unwrap_or_else(|| "data".into());
        let max_open_tenants = said.max_open_tenants.unwrap_or_default();
        let limits = Limits {
            tenant: said.max_tenant_bytes.map(Bytes::count),
            reserve: said
                .disk_reserve_bytes
                .map_or(Reserve::Share, |bytes| Reserve::Bytes(bytes.count())),
        };
        if limits
            .tenant
            .is_some_and(|bytes| bytes < LEAST_TENANT_BYTES)
        {
            return Err(ConfigError::OutOfBounds {
                setting: "--max-tenant-bytes",
                bounds: "at least 1MiB",
            });
        }
        let page_cache_bytes = said.page_cache_bytes.map(Bytes::count);
        if page_cache_bytes.is_some_and(|bytes| (1..page_cache::LEAST_BYTES).contains(&bytes)) {
            return Err(ConfigError::OutOfBounds {
                setting: "--page-cache-bytes",
                bounds: "0, or at least 1MiB",
            });
        }
        let s3 = [
            ("--backup-s3-region", Field::Region, &said.backup_s3_region),
            (
                "--backup-s3-endpoint-url",
                Field::EndpointUrl,
                &said.backup_s3_endpoint_url,
            ),
        ];
        for (setting, field, given) in s3 {
            let checked = given
                .as_deref()
                .map_or(Ok(()), |given| aws_settings::check(field, given));
            checked.map_err(|source| ConfigError::Aws { setting, source })?;
        }
        Ok(Self {
            control_data_dir: said
                .control_data_dir
                .clone()
                .unwrap_or_else(|| data_dir.clone()),
            data_dir,
            tenants,
            previous: said.previous(&provider)?,
            terms: said.terms()?,
            provider,
            recipients,
            dek_max_age,
            max_open_tenants,
            page_cache_bytes,
            limits,
            shipping: said.shipping()?,
            backup_verify_every: said.verify_every()?,
            backup_s3: said.s3(),
        })
    }
}

fn read(path: &Path) -> Result<Persistence, ConfigError> {
    let text = std::fs::read(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    if is_utf16(&text) {
        return Err(ConfigError::Utf16 {
            path: path.to_owned(),
        });
    }
    let parse = || {
        let text = without_mark(&text);
        let file: ConfigFile = read_object(text)?;
        // serde takes a list for a struct: its members by their places.
        let _objects: BTreeMap<String, BTreeMap<String, Value>> = read_object(text)?;
        Ok(file.persistence)
    };
    parse().map_err(|reason: String| {
        // A secret key in the wrong place is that first, whatever else is wrong.
        let shown = String::from_utf8_lossy(&text).to_ascii_lowercase();
        if shown.contains("age-secret-key-") {
            let source = RecipientError::SecretKey;
            return ConfigError::Recipient { source };
        }
        ConfigError::Parse {
            path: path.to_owned(),
            reason,
        }
    })
}

impl Persistence {
    /// Fills what was not said from `file`.
    fn or(self, file: Self) -> Self {
        fn list<T>(said: Vec<T>, file: Vec<T>) -> Vec<T> {
            if said.is_empty() { file } else { said }
        }
        Self {
            data_dir: self.data_dir.or(file.data_dir),
            control_data_dir: self.control_data_dir.or(file.control_data_dir),
            tenant_provider: self.tenant_provider.or(file.tenant_provider),
            postgres_url: self.postgres_url.or(file.postgres_url),
            postgres_url_file: self.postgres_url_file.or(file.postgres_url_file),
            postgres_metadata_schema: self
                .postgres_metadata_schema
                .or(file.postgres_metadata_schema),
            postgres_tenant_schema_prefix: self
                .postgres_tenant_schema_prefix
                .or(file.postgres_tenant_schema_prefix),
            postgres_min_connections: self
                .postgres_min_connections
                .or(file.postgres_min_connections),
            postgres_max_connections: self
                .postgres_max_connections
                .or(file.postgres_max_connections),
            encryption_key_provider: self
                .encryption_key_provider
                .or(file.encryption_key_provider),
            encryption_master_key_file: self
                .encryption_master_key_file
                .or(file.encryption_master_key_file),
            encryption_key_dir: self.encryption_key_dir.or(file.encryption_key_dir),
            encryption_aws_kms_key_id: self
                .encryption_aws_kms_key_id
                .or(file.encryption_aws_kms_key_id),
            encryption_aws_kms_key_map: self
                .encryption_aws_kms_key_map
                .or(file.encryption_aws_kms_key_map),
            encryption_aws_region: self.encryption_aws_region.or(file.encryption_aws_region),
            encryption_aws_endpoint_url: self
                .encryption_aws_endpoint_url
                .or(file.encryption_aws_endpoint_url),
            encryption_previous_master_key_file: list(
                self.encryption_previous_master_key_file,
                file.encryption_previous_master_key_file,
            ),
            encryption_previous_key_dir: self
                .encryption_previous_key_dir
                .or(file.encryption_previous_key_dir),
            encryption_previous_aws_kms_key_id: self
                .encryption_previous_aws_kms_key_id
                .or(file.encryption_previous_aws_kms_key_id),
            encryption_recovery_recipients: list(
                self.encryption_recovery_recipients,
                file.encryption_recovery_recipients,
            ),
            encryption_key_lease: self.encryption_key_lease.or(file.encryption_key_lease),
            encryption_key_grace: self.encryption_key_grace.or(file.encryption_key_grace),
            encryption_dek_max_age: self.encryption_dek_max_age.or(file.encryption_dek_max_age),
            max_open_tenants: self.max_open_tenants.or(file.max_open_tenants),
            max_tenant_bytes: self.max_tenant_bytes.or(file.max_tenant_bytes),
            page_cache_bytes: self.page_cache_bytes.or(file.page_cache_bytes),
            backup_to: self.backup_to.or(file.backup_to),
            backup_interval: self.backup_interval.or(file.backup_interval),
            backup_verify_every: self.backup_verify_every.or(file.backup_verify_every),
            backup_max_lag_bytes: self.backup_max_lag_bytes.or(file.backup_max_lag_bytes),
            backup_s3_region: self.backup_s3_region.or(file.backup_s3_region),
            backup_s3_endpoint_url: self.backup_s3_endpoint_url.or(file.backup_s3_endpoint_url),
            disk_reserve_bytes: self.disk_reserve_bytes.or(file.disk_reserve_bytes),
        }
    }

    fn s3(&self) -> S3Settings {
        S3Settings {
            region: self.backup_s3_region.clone(),
            endpoint_url: self.backup_s3_endpoint_url.clone(),
        }
    }

    /// In which time each tenant is restored and proven.
    fn verify_every(&self) -> Result<Option<Duration>, ConfigError> {
        let every = self.backup_verify_every.map(Time::duration);
        if every.is_some() && self.backup_to.is_none() {
            return Err(ConfigError::NothingToVerify);
        }
        if every.is_some_and(|every| every < Duration::from_secs(1)) {
            return Err(ConfigError::OutOfBounds {
                setting: "--backup-verify-every",
                bounds: "at least 1s",
            });
        }
        Ok(every)
    }

    /// What is shipped, and where to.
    fn shipping(&self) -> Result<Option<Shipping>, ConfigError> {
        let interval = self.backup_interval.map(Time::duration);
        let interval = interval.unwrap_or(Duration::from_secs(1));
        if !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(&interval) {
            return Err(ConfigError::OutOfBounds {
                setting: "--backup-interval",
                bounds: "1s to 1h",
            });
        }
        let most_bytes = self.backup_max_lag_bytes.map_or(1 << 30, Bytes::count);
        if most_bytes < LEAST_LAG_BYTES {
            return Err(ConfigError::OutOfBounds {
                setting: "--backup-max-lag-bytes",
                bounds: "at least 1MiB",
            });
        }
        let Some(to) = &self.backup_to else {
            return Ok(None);
        };
        let to: Location = to
            .parse()
            .map_err(|error: BackupError| ConfigError::Backup {
                source: Box::new(error),
            })?;
        Ok(Some(Shipping {
            to,
            s3: self.s3(),
            interval,
            most_bytes,
        }))
    }

    /// Lists without what is none of their pieces, and paths that can be meant.
    fn tidied(mut self) -> Result<Self, ConfigError> {
        self.encryption_recovery_recipients = pieces(self.encryption_recovery_recipients);
        self.encryption_previous_master_key_file =
            said::paths(self.encryption_previous_master_key_file);
        let key_map = match &self.encryption_aws_kms_key_map {
            Some(KeyMapSource::File(path)) => Some(path),
            _ => None,
        };
        let one = [
            ("--data-dir", self.data_dir.as_ref()),
            ("--control-data-dir", self.control_data_dir.as_ref()),
            (
                "--encryption-master-key-file",
                self.encryption_master_key_file.as_ref(),
            ),
            ("--encryption-key-dir", self.encryption_key_dir.as_ref()),
            ("--encryption-aws-kms-key-map", key_map),
            ("--postgres-url-file", self.postgres_url_file.as_ref()),
            (
                "--encryption-previous-key-dir",
                self.encryption_previous_key_dir.as_ref(),
            ),
        ];
        let one = one
            .into_iter()
            .filter_map(|(setting, path)| Some((setting, path?)));
        let list = self.encryption_previous_master_key_file.iter();
        let list = list.map(|path| ("--encryption-previous-master-key-file", path));
        for (setting, path) in one.chain(list) {
            let why = if path.as_os_str().is_empty() {
                Some("empty; leave it out for the default")
            } else {
                said::refused(path)
            };
            if let Some(why) = why {
                let path = path.clone();
                return Err(ConfigError::Path { setting, path, why });
            }
        }
        Ok(self)
    }

    /// The provider that is selected, with its own settings and no other's.
    fn provider(&self) -> Result<ProviderChoice, ConfigError> {
        use KeyProviderKind::{AwsKms, KeyDir, MasterKeyFile, None as Off};
        let selected = self.encryption_key_provider.unwrap_or(MasterKeyFile);
        let aws_previous = self.encryption_previous_aws_kms_key_id.is_some();
        let settings = [
            (
                "--encryption-master-key-file",
                MasterKeyFile,
                self.encryption_master_key_file.is_some(),
            ),
            (
                "--encryption-key-dir",
                KeyDir,
                self.encryption_key_dir.is_some(),
            ),
            (
                "--encryption-aws-kms-key-id",
                AwsKms,
                self.encryption_aws_kms_key_id.is_some(),
            ),
            (
                "--encryption-aws-kms-key-map",
                AwsKms,
                self.encryption_aws_kms_key_map.is_some(),
            ),
            (
                "--encryption-key-lease",
                AwsKms,
                self.encryption_key_lease.is_some() && !aws_previous,
            ),
            (
                "--encryption-key-grace",
                AwsKms,
                self.encryption_key_grace.is_some() && !aws_previous,
            ),
            // A previous KMS key needs region and endpoint as much as the current one.
            (
                "--encryption-aws-region",
                AwsKms,
                self.encryption_aws_region.is_some() && !aws_previous,
            ),
            (
                "--encryption-aws-endpoint-url",
                AwsKms,
                self.encryption_aws_endpoint_url.is_some() && !aws_previous,
            ),
        ];
        if let Some((setting, needs, _)) = settings
            .into_iter()
            .find(|(_, kind, given)| *given && *kind != selected)
        {
            return Err(ConfigError::Foreign {
                setting,
                needs: needs.name(),
                selected: selected.name(),
            });
        }
        let missing = |setting| ConfigError::Missing {
            provider: selected.name(),
            setting,
        };
        let default_key = || {
            let named = self.encryption_master_key_file.clone();
            named.map_or_else(keys::default_master_key, Ok)
        };
        Ok(match (selected, self.encryption_key_provider) {
            (MasterKeyFile, None) => ProviderChoice::Default(default_key()?),
            (MasterKeyFile, Some(_)) => ProviderChoice::Configured(ProviderConfig::MasterKeyFile {
                path: default_key()?,
            }),
            (KeyDir, _) => ProviderChoice::Configured(ProviderConfig::KeyDir {
                dir: self
                    .encryption_key_dir
                    .clone()
                    .ok_or(missing("--encryption-key-dir"))?,
            }),
            (AwsKms, _) => {
                let key = self.encryption_aws_kms_key_id.clone();
                let key = key.ok_or(missing("--encryption-aws-kms-key-id"))?;
                let setting = "--encryption-aws-kms-key-id";
                ProviderChoice::Configured(self.aws(setting, key, self.key_map()?)?)
            }
            (Off, _) => ProviderChoice::Off,
        })
    }

    fn previous(&self, provider: &ProviderChoice) -> Result<Vec<ProviderConfig>, ConfigError> {
        let files = self.encryption_previous_master_key_file.iter();
        let mut previous: Vec<_> = files
            .map(|path| ProviderConfig::MasterKeyFile { path: path.clone() })
            .collect();
        previous.extend(
            self.encryption_previous_key_dir
                .iter()
                .map(|dir| ProviderConfig::KeyDir { dir: dir.clone() }),
        );
        if let Some(key) = self.encryption_previous_aws_kms_key_id.clone() {
            let setting = "--encryption-previous-aws-kms-key-id";
            previous.push(self.aws(setting, key, BTreeMap::new())?);
        }
        if *provider == ProviderChoice::Off && !previous.is_empty() {
            return Err(ConfigError::Foreign {
                setting: "--encryption-previous-…",
                needs: "master-key-file",
                selected: "none",
            });
        }
        Ok(previous)
    }

    fn recipients(&self, provider: &ProviderChoice) -> Result<Vec<Recipient>, ConfigError> {
        let given = self.encryption_recovery_recipients.len();
        if given > MAX_RECIPIENTS {
            return Err(ConfigError::TooManyRecipients {
                given,
                most: MAX_RECIPIENTS,
            });
        }
        if given > 0 && *provider == ProviderChoice::Off {
            return Err(ConfigError::Foreign {
                setting: "--encryption-recovery-recipient",
                needs: "master-key-file",
                selected: "none",
            });
        }
        self.encryption_recovery_recipients
            .iter()
            .map(|text| {
                text.parse()
                    .map_err(|source| ConfigError::Recipient { source })
            })
            .collect()
    }

    /// The tenants that have a KMS key of their own.
    fn key_map(&self) -> Result<BTreeMap<TenantId, String>, ConfigError> {
        match &self.encryption_aws_kms_key_map {
            None => Ok(BTreeMap::new()),
            Some(KeyMapSource::Inline(map)) => Ok(map.0.clone()),
            Some(KeyMapSource::File(path)) => {
                let path = path.clone();
                match std::fs::read(&path) {
                    Err(source) => Err(ConfigError::Read { path, source }),
                    Ok(text) if is_utf16(&text) => Err(ConfigError::Utf16 { path }),
                    Ok(text) => read_object::<KeyMap>(without_mark(&text))
                        .map(|map| map.0)
                        .map_err(|reason| ConfigError::KeyMap { path, reason }),
                }
            }
        }
    }

    fn terms(&self) -> Result<Terms, ConfigError> {
        let standard = Terms::default();
        let terms = Terms {
            lease: self
                .encryption_key_lease
                .map_or(standard.lease, Time::duration),
            grace: self
                .encryption_key_grace
                .map_or(standard.grace, Time::duration),
        };
        if !(MIN_LEASE..=MAX_LEASE).contains(&terms.lease) {
            return Err(ConfigError::OutOfBounds {
                setting: "--encryption-key-lease",
                bounds: "1s to 1h",
            });
        }
        if terms.grace > MAX_GRACE {
            return Err(ConfigError::OutOfBounds {
                setting: "--encryption-key-grace",
                bounds: "0s to 168h",
            });
        }
        Ok(terms)
    }

    /// The key that `setting` names, where region and endpoint say.
    fn aws(
        &self,
        setting: &'static str,
        key_id: String,
        key_map: BTreeMap<TenantId, String>,
    ) -> Result<ProviderConfig, ConfigError> {
        let (region, endpoint_url) = (
            self.encryption_aws_region.clone(),
            self.encryption_aws_endpoint_url.clone(),
        );
        let given = [
            (setting, Field::KeyId, Some(&key_id)),
            ("--encryption-aws-region", Field::Region, region.as_ref()),
            (
                "--encryption-aws-endpoint-url",
                Field::EndpointUrl,
                endpoint_url.as_ref(),
            ),
        ];
        let given = given
            .into_iter()
            .filter_map(|(setting, field, given)| Some((setting, field, given?)));
        let of_tenants = key_map
            .values()
            .map(|key| ("--encryption-aws-kms-key-map", Field::KeyId, key));
        for (setting, field, given) in given.chain(of_tenants) {
            aws_settings::check(field, given)
                .map_err(|source| ConfigError::Aws { setting, source })?;
        }
        Ok(ProviderConfig::AwsKms {
            key_map,
            key_id,
            region,
            endpoint_url,
        })
    }
}

/// 1 MiB: a few commits.
const LEAST_LAG_BYTES: u64 = 1 << 20;
/// 1 MiB: an empty tenant has a part of that.
const LEAST_TENANT_BYTES: u64 = 1 << 20;
const MIN_LEASE: Duration = Duration::from_secs(1);
const MAX_LEASE: Duration = Duration::from_secs(3600);
/// A week.
const MAX_GRACE: Duration = Duration::from_secs(168 * 3600);
/// One wrap is the provider's, and one more is needed while a rotation is under way.
const MAX_RECIPIENTS: usize = nimbus_manifests::MAX_WRAPS - 2;

#[cfg(test)]
mod tests;
