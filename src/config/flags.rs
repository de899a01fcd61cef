//! What an operator says: flags, environment and the `persistence` object of the file.

use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;

use super::ConfigError;
use super::bytes::Bytes;
use super::duration::{OrOff, Time};
use super::key_map::KeyMapSource;
use super::kinds::{KeyProviderKind, TenantProviderKind};
use super::open_tenants::OpenTenants;
use super::said::{self, pieces};
use super::secret_url::SecretUrl;

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

    /// The Postgres database of the tenants: postgres://user:password@host/database. Flags are
    /// seen by all on this machine: give one with a password in the environment or a file
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

    /// The MariaDB or MySQL server of the tenants: mysql://user:password@host. Flags are seen by
    /// all on this machine: give one with a password in the environment or a file
    #[arg(
        long,
        env = "NIMBUS_MYSQL_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub mysql_url: Option<SecretUrl>,

    /// A file that holds that URL
    #[arg(long, env = "NIMBUS_MYSQL_URL_FILE", value_name = "FILE")]
    pub mysql_url_file: Option<PathBuf>,

    /// The MySQL database that says which tenants there are [default: nimbus_provider]
    #[arg(long, env = "NIMBUS_MYSQL_METADATA_DATABASE", value_name = "NAME")]
    pub mysql_metadata_database: Option<String>,

    /// What the names of tenants' MySQL databases begin with [default: tenant_]
    #[arg(
        long,
        env = "NIMBUS_MYSQL_TENANT_DATABASE_PREFIX",
        value_name = "PREFIX"
    )]
    pub mysql_tenant_database_prefix: Option<String>,

    /// Connections to MySQL that are kept open [default: 0]
    #[arg(long, env = "NIMBUS_MYSQL_MIN_CONNECTIONS", value_name = "N")]
    pub mysql_min_connections: Option<u16>,

    /// Connections to MySQL there may be at once [default: 32]
    #[arg(long, env = "NIMBUS_MYSQL_MAX_CONNECTIONS", value_name = "N")]
    pub mysql_max_connections: Option<u16>,

    /// Who wraps the data keys [default: master-key-file, made at the first start]
    #[arg(long, env = "NIMBUS_ENCRYPTION_KEY_PROVIDER", value_name = "PROVIDER")]
    pub encryption_key_provider: Option<KeyProviderKind>,

    /// The master key: a file of 32 raw bytes, mode 0400 [default: nimbus/keys/master.key in the
    /// platform's data directory]
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

    /// An age recipient (age1…) that every new data key is also wrapped to; may be given several
    /// times
    #[arg(
        id = "encryption_recovery_recipients",
        long = "encryption-recovery-recipient",
        env = "NIMBUS_ENCRYPTION_RECOVERY_RECIPIENTS",
        value_name = "RECIPIENT",
        value_delimiter = ','
    )]
    pub encryption_recovery_recipients: Vec<String>,

    /// How long an answer of KMS counts for a data key in use before it is asked again, at most
    /// [default: 60s]
    #[arg(long, env = "NIMBUS_ENCRYPTION_KEY_LEASE", value_name = "TIME")]
    pub encryption_key_lease: Option<Time>,

    /// How long data keys are used on while KMS cannot be reached, after their lease [default: 1h]
    #[arg(long, env = "NIMBUS_ENCRYPTION_KEY_GRACE", value_name = "TIME")]
    pub encryption_key_grace: Option<Time>,

    /// Replace data keys older than this in the background: 90d, 12h, 30m [default: never]
    #[arg(long, env = "NIMBUS_ENCRYPTION_DEK_MAX_AGE", value_name = "TIME")]
    pub encryption_dek_max_age: Option<Time>,

    /// Seal tenants in postgres or mysql before they reach the database: it gets no plaintext of
    /// documents [default: false]
    #[arg(
        long,
        env = "NIMBUS_ENCRYPTION_SEAL_EXTERNAL",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub encryption_seal_external: Option<bool>,

    /// How many tenants may be open: 2000, or auto for what memory and files allow [default: auto]
    #[arg(long, env = "NIMBUS_MAX_OPEN_TENANTS", value_name = "N")]
    pub max_open_tenants: Option<OpenTenants>,

    /// Bytes that a tenant may have, after which only deletes are let in: 500MiB, 10GiB [default:
    /// no limit]
    #[arg(long, env = "NIMBUS_MAX_TENANT_BYTES", value_name = "BYTES")]
    pub max_tenant_bytes: Option<Bytes>,

    /// Bytes of memory for pages that are kept decrypted, of all tenants: 256MiB; 0 for none
    /// [default: an eighth of the memory, at most 1GiB]
    #[arg(long, env = "NIMBUS_PAGE_CACHE_BYTES", value_name = "BYTES")]
    pub page_cache_bytes: Option<Bytes>,

    /// Ship what is committed to this repository: a directory, or s3://bucket/prefix [default:
    /// none]
    #[arg(long, env = "NIMBUS_BACKUP_TO", value_name = "R")]
    pub backup_to: Option<String>,

    /// How often what is committed is shipped [default: 1s]
    #[arg(long, env = "NIMBUS_BACKUP_INTERVAL", value_name = "TIME")]
    pub backup_interval: Option<Time>,

    /// Restore each tenant from the repository into a scratch directory in TMPDIR once in this
    /// time, and prove it [default: off]
    #[arg(long, env = "NIMBUS_BACKUP_VERIFY_EVERY", value_name = "TIME")]
    pub backup_verify_every: Option<Time>,

    /// Bytes that may wait to be shipped, after which shipping begins afresh with a snapshot:
    /// 64MiB [default: 1GiB]
    #[arg(long, env = "NIMBUS_BACKUP_MAX_LAG_BYTES", value_name = "BYTES")]
    pub backup_max_lag_bytes: Option<Bytes>,

    /// Keep each commit that was shipped within this time; of what is older, snapshots. `off`:
    /// the server prunes nothing [default: 72h]
    #[arg(long, env = "NIMBUS_BACKUP_KEEP_COMMITS", value_name = "TIME")]
    pub backup_keep_commits: Option<OrOff>,

    /// Keep the last snapshot of each day, for this many days that have one [default: 30]
    #[arg(long, env = "NIMBUS_BACKUP_KEEP_DAILY", value_name = "N")]
    pub backup_keep_daily: Option<u32>,

    /// AWS region of the buckets that backups are in [default: the AWS chain's]
    #[arg(long, env = "NIMBUS_BACKUP_S3_REGION", value_name = "REGION")]
    pub backup_s3_region: Option<String>,

    /// S3 endpoint of the buckets that backups are in [default: AWS's for the region]
    #[arg(long, env = "NIMBUS_BACKUP_S3_ENDPOINT_URL", value_name = "URL")]
    pub backup_s3_endpoint_url: Option<String>,

    /// Bytes kept free on the disk of the data directory: below, only what makes room is let in
    /// [default: a twentieth of the disk, at most 1GiB]
    #[arg(long, env = "NIMBUS_DISK_RESERVE_BYTES", value_name = "BYTES")]
    pub disk_reserve_bytes: Option<Bytes>,
}

impl Persistence {
    /// Fills what was not said from `file`.
    pub(super) fn or(self, file: Self) -> Self {
        macro_rules! merged {
            (options: $($option:ident)*; lists: $($list:ident)*) => {
                // A struct expression: a field that is missing here does not compile.
                Self {
                    $($option: self.$option.or(file.$option),)*
                    $($list: if self.$list.is_empty() { file.$list } else { self.$list },)*
                }
            };
        }
        merged! {
            options:
                data_dir
                control_data_dir
                tenant_provider
                postgres_url
                postgres_url_file
                postgres_metadata_schema
                postgres_tenant_schema_prefix
                postgres_min_connections
                postgres_max_connections
                mysql_url
                mysql_url_file
                mysql_metadata_database
                mysql_tenant_database_prefix
                mysql_min_connections
                mysql_max_connections
                encryption_key_provider
                encryption_master_key_file
                encryption_key_dir
                encryption_aws_kms_key_id
                encryption_aws_kms_key_map
                encryption_aws_region
                encryption_aws_endpoint_url
                encryption_previous_key_dir
                encryption_previous_aws_kms_key_id
                encryption_key_lease
                encryption_key_grace
                encryption_dek_max_age
                encryption_seal_external
                max_open_tenants
                max_tenant_bytes
                page_cache_bytes
                backup_to
                backup_interval
                backup_verify_every
                backup_keep_commits
                backup_keep_daily
                backup_max_lag_bytes
                backup_s3_region
                backup_s3_endpoint_url
                disk_reserve_bytes;
            lists:
                encryption_previous_master_key_file
                encryption_recovery_recipients
        }
    }

    /// Lists without what is none of their pieces, and paths that can be meant.
    pub(super) fn tidied(mut self) -> Result<Self, ConfigError> {
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
            ("--mysql-url-file", self.mysql_url_file.as_ref()),
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
}
