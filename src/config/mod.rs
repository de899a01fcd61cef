//! Settings: flags, environment and JSON file into one validated [`Settings`].
//!
//! [`Persistence`] is the one struct that all three sources fill: clap reads flags and environment
//! into it, serde the `persistence` object of the file named by `--config`; a flag wins over the
//! environment, the environment over the file. [`Settings::check`] then looks at what was said, and
//! touches nothing; [`keys`] touches the system.
#![expect(
    clippy::disallowed_methods,
    reason = "files of settings are none of SQLite's"
)]

mod backups;
mod bytes;
mod duration;
mod error;
mod flags;
mod key_map;
pub mod keys;
mod kinds;
mod open_tenants;
mod providers;
mod said;
mod secret_url;
mod tenants;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use nimbus_keyproviders::ProviderConfig;
use nimbus_keyproviders::aws_kms::settings::{self as aws_settings, Field};
use nimbus_keyproviders::recovery::{Recipient, RecipientError};
use serde::Deserialize;
use serde_json::Value;

pub(crate) use duration::{NoTime, Time};
pub use error::ConfigError;
pub use flags::Persistence;
pub use kinds::{KeyProviderKind, ProviderChoice, TenantProviderKind};
pub use open_tenants::OpenTenants;
pub use secret_url::SecretUrl;
pub use tenants::TenantsIn;

use crate::backup::S3Settings;
use crate::backup::keep::Keep;
use crate::backup::ship::Shipping;
use crate::documents::read_object;
use crate::envelope::Terms;
use crate::process::{Limits, Reserve};
use crate::sqlcipher::page_cache;
use said::is_utf16;
pub(crate) use said::{as_meant, pieces, without_mark};

/// The file named by `--config`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ConfigFile {
    persistence: Persistence,
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
    /// What a server that ships keeps in its repository; `None` where it prunes nothing.
    pub backup_keep: Option<Keep>,
}

impl Settings {
    /// Checks what flags and environment said, and what the file adds. Reads that file and touches
    /// nothing else.
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
                "let the database archive its log, see docs/postgres.md and docs/mysql.md",
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
            backup_keep: said.keep()?,
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

/// 1 MiB: an empty tenant has a part of that.
const LEAST_TENANT_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests;
