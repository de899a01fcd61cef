//! Backups, from what was said of them, and what a repository must lie apart from.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nimbus_keyproviders::{ProviderConfig, keyfile};

use super::bytes::Bytes;
use super::duration::{OrOff, Time};
use super::kinds::ProviderChoice;
use super::{ConfigError, Persistence, Settings};
use crate::backup::keep::Keep;
use crate::backup::ship::Shipping;
use crate::backup::{BackupError, Location, Places, S3Settings};

impl Persistence {
    pub(super) fn s3(&self) -> S3Settings {
        S3Settings {
            region: self.backup_s3_region.clone(),
            endpoint_url: self.backup_s3_endpoint_url.clone(),
        }
    }

    /// In which time each tenant is restored and proven.
    pub(super) fn verify_every(&self) -> Result<Option<Duration>, ConfigError> {
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

    /// What a server that ships keeps.
    pub(super) fn keep(&self) -> Result<Option<Keep>, ConfigError> {
        let said = self.backup_keep_commits.is_some() || self.backup_keep_daily.is_some();
        if self.backup_to.is_none() {
            return match said {
                true => Err(ConfigError::NothingToKeep),
                false => Ok(None),
            };
        }
        let commits = match self.backup_keep_commits {
            Some(OrOff::Off) => return Ok(None),
            Some(OrOff::Time(time)) => time.duration(),
            None => KEEP_COMMITS,
        };
        let commits = Some(commits.as_secs());
        Ok(Some(Keep {
            // Within that time nothing goes.
            within: commits,
            daily: Some(self.backup_keep_daily.unwrap_or(KEEP_DAILY)),
            commits,
            ..Keep::default()
        }))
    }

    /// What is shipped, and where to.
    pub(super) fn shipping(&self) -> Result<Option<Shipping>, ConfigError> {
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
}

impl Places {
    /// The directories and the keys of these settings.
    #[must_use]
    pub fn of(settings: &Settings) -> Self {
        Self {
            dirs: vec![settings.data_dir.clone(), settings.control_data_dir.clone()],
            keys: keys(settings),
        }
    }
}

/// Keys that the settings name, each with the directory that keys lie in.
fn keys(settings: &Settings) -> Vec<(PathBuf, PathBuf)> {
    let file = |path: &Path| Some((keyfile::parent(path).to_owned(), path.to_owned()));
    let of = |config: &ProviderConfig| match config {
        ProviderConfig::MasterKeyFile { path } => file(path),
        ProviderConfig::KeyDir { dir } => Some((dir.clone(), dir.clone())),
        _ => None,
    };
    let current = match &settings.provider {
        ProviderChoice::Default(path) => file(path),
        ProviderChoice::Configured(config) => of(config),
        ProviderChoice::Off => None,
    };
    current
        .into_iter()
        .chain(settings.previous.iter().filter_map(of))
        .collect()
}

/// 1 MiB: a few commits.
const LEAST_LAG_BYTES: u64 = 1 << 20;
/// Three days.
const KEEP_COMMITS: Duration = Duration::from_secs(72 * 3600);
const KEEP_DAILY: u32 = 30;
