//! Key providers, recipients and leases, from what was said of them.

use std::collections::BTreeMap;
use std::time::Duration;

use nimbus_keyproviders::ProviderConfig;
use nimbus_keyproviders::aws_kms::settings::{self as aws_settings, Field};
use nimbus_keyproviders::recovery::Recipient;
use nimbus_manifests::TenantId;

use super::duration::Time;
use super::key_map::{KeyMap, KeyMapSource};
use super::kinds::{KeyProviderKind, ProviderChoice};
use super::said::{is_utf16, without_mark};
use super::{ConfigError, Persistence, keys};
use crate::documents::read_object;
use crate::envelope::Terms;

impl Persistence {
    /// The provider that is selected, with its own settings and no other's.
    pub(super) fn provider(&self) -> Result<ProviderChoice, ConfigError> {
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

    pub(super) fn previous(
        &self,
        provider: &ProviderChoice,
    ) -> Result<Vec<ProviderConfig>, ConfigError> {
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

    pub(super) fn recipients(
        &self,
        provider: &ProviderChoice,
    ) -> Result<Vec<Recipient>, ConfigError> {
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

    pub(super) fn terms(&self) -> Result<Terms, ConfigError> {
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

const MIN_LEASE: Duration = Duration::from_secs(1);
const MAX_LEASE: Duration = Duration::from_secs(3600);
/// A week.
const MAX_GRACE: Duration = Duration::from_secs(168 * 3600);
/// One wrap is the provider's, and one more is needed while a rotation is under way.
const MAX_RECIPIENTS: usize = nimbus_manifests::MAX_WRAPS - 2;
