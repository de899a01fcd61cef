//! What is asked of a rotation, and what of it makes sense.

use std::collections::BTreeMap;
use std::path::PathBuf;

use nimbus_keyproviders::ProviderConfig;
use nimbus_keyproviders::aws_kms::KmsConfig;
use nimbus_keyproviders::aws_kms::settings::Field;
use nimbus_keyproviders::recovery::Recipient;
use serde::{Deserialize, Serialize};

use super::{RotateKek, RotateKekError};
use crate::config::KeyProviderKind;
use crate::envelope::{Mapped, Recipients};

/// What is asked for, as the command line and the server's route say it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Request {
    /// A protected file or its manifest; with `all`, a directory of them.
    pub path: PathBuf,
    /// Every file in the directory.
    pub all: bool,
    /// The kind of the new key; may be left out where a setting below tells it. Without any, files move to the current key.
    pub new_key_provider: Option<KeyProviderKind>,
    /// The new master key.
    pub new_master_key_file: Option<PathBuf>,
    /// The new key directory; keys that are missing there are made.
    pub new_key_dir: Option<PathBuf>,
    /// The new KMS key.
    pub new_aws_kms_key_id: Option<String>,
    /// Its region.
    pub new_aws_region: Option<String>,
    /// Its endpoint.
    pub new_aws_endpoint_url: Option<String>,
    /// Whether tenants that the key map names leave the keys that it names for them.
    pub move_mapped: bool,
    /// age recipients that each data key is to be wrapped to, too.
    pub add_recipients: Vec<String>,
    /// age recipients whose wraps are to go.
    pub drop_recipients: Vec<String>,
}

impl Request {
    /// Whether files move to a key that the settings may not name yet.
    #[must_use]
    pub fn names_a_key(&self) -> bool {
        self.new_key_provider.is_some()
            || self.new_master_key_file.is_some()
            || self.new_key_dir.is_some()
            || self.new_aws_kms_key_id.is_some()
    }

    /// Checks what was said; touches nothing.
    ///
    /// # Errors
    ///
    /// [`RotateKekError`] names the setting.
    pub fn check(self) -> Result<RotateKek, RotateKekError> {
        if self.path.as_os_str().is_empty() {
            return Err(RotateKekError::NoPath);
        }
        let target = self.target()?;
        let mapped = match self.move_mapped {
            true if target.is_none() => return Err(RotateKekError::NothingToMoveTo),
            true => Mapped::Move,
            false => Mapped::Stay,
        };
        let mut recipients = Recipients::default();
        for text in &self.add_recipients {
            let recipient: Recipient =
                text.parse().map_err(|source| RotateKekError::Recipient {
                    recipient: text.clone(),
                    source,
                })?;
            recipients.add.push(recipient);
        }
        for text in &self.drop_recipients {
            let recipient: Recipient =
                text.parse().map_err(|source| RotateKekError::Recipient {
                    recipient: text.clone(),
                    source,
                })?;
            let id = recipient.key_id().clone();
            if recipients.add.iter().any(|added| *added.key_id() == id) {
                return Err(RotateKekError::AddedAndDropped {
                    recipient: text.clone(),
                });
            }
            recipients.drop.push(id);
        }
        Ok(RotateKek {
            path: self.path,
            all: self.all,
            target,
            mapped,
            recipients,
        })
    }

    fn target(&self) -> Result<Option<ProviderConfig>, RotateKekError> {
        use KeyProviderKind::{AwsKms, KeyDir, MasterKeyFile, None as Off};
        let (file, dir, kms) = (
            self.new_master_key_file.clone(),
            self.new_key_dir.clone(),
            self.new_aws_kms_key_id.clone(),
        );
        let of_aws = self.new_aws_region.is_some() || self.new_aws_endpoint_url.is_some();
        if of_aws && kms.is_none() {
            return Err(RotateKekError::NoKmsKey);
        }
        let wrong = |provider, setting| Err(RotateKekError::WrongSetting { provider, setting });
        match (self.new_key_provider, file, dir, kms) {
            (Some(Off), ..) => Err(RotateKekError::ToNone),
            (None, None, None, None) => Ok(None),
            (None | Some(MasterKeyFile), Some(path), None, None) => {
                Ok(Some(ProviderConfig::MasterKeyFile { path }))
            }
            (None | Some(KeyDir), None, Some(dir), None) => {
                Ok(Some(ProviderConfig::KeyDir { dir }))
            }
            (None | Some(AwsKms), None, None, Some(key_id)) => self.kms(key_id).map(Some),
            (Some(MasterKeyFile), ..) => wrong("master-key-file", "--new-master-key-file"),
            (Some(KeyDir), ..) => wrong("key-dir", "--new-key-dir"),
            (Some(AwsKms), ..) => wrong("aws-kms", "--new-aws-kms-key-id"),
            (None, ..) => Err(RotateKekError::ManyKeys),
        }
    }

    fn kms(&self, key_id: String) -> Result<ProviderConfig, RotateKekError> {
        let config = KmsConfig {
            region: self.new_aws_region.clone(),
            endpoint_url: self.new_aws_endpoint_url.clone(),
            ..KmsConfig::new(key_id)
        };
        config.check().map_err(|source| RotateKekError::Aws {
            setting: match source.field {
                Field::Region => "--new-aws-region",
                Field::EndpointUrl => "--new-aws-endpoint-url",
                Field::KeyId | Field::Profile => "--new-aws-kms-key-id",
            },
            source,
        })?;
        Ok(ProviderConfig::AwsKms {
            key_id: config.key_id,
            region: config.region,
            endpoint_url: config.endpoint_url,
            key_map: BTreeMap::new(),
        })
    }
}
