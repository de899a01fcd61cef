//! What is asked of a rotation, and what of it makes sense.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use nimbus_keyproviders::ProviderConfig;
use nimbus_keyproviders::aws_kms::KmsConfig;
use nimbus_keyproviders::aws_kms::settings::Field;
use nimbus_keyproviders::recovery::Recipient;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{RotateKek, RotateKekError};
use crate::config::KeyProviderKind;
use crate::envelope::{Mapped, Recipients};

/// Wrap data keys under another key; no page of the data is touched
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RotateKek, description = "The flags of `nimbus encryption rotate-kek`")]
pub struct Request {
    /// A protected file or its manifest; with --all, a data directory
    #[arg(long, value_name = "PATH")]
    #[schema(value_type = String, required = false)]
    #[serde(default)]
    pub path: PathBuf,

    /// Every file in the directory, and the control file
    #[arg(long)]
    #[schema(required = false)]
    #[serde(default)]
    pub all: bool,

    /// The kind of the new key; may be left out where a setting tells it
    #[arg(long, value_enum, value_name = "PROVIDER")]
    #[serde(default)]
    pub new_key_provider: Option<KeyProviderKind>,

    /// The new master key
    #[arg(long, value_name = "FILE")]
    #[schema(value_type = Option<String>)]
    #[serde(default)]
    pub new_master_key_file: Option<PathBuf>,

    /// The new key directory; keys that are missing there are made
    #[arg(long, value_name = "DIR")]
    #[schema(value_type = Option<String>)]
    #[serde(default)]
    pub new_key_dir: Option<PathBuf>,

    /// The new KMS key: id, alias or ARN
    #[arg(long, value_name = "KEY")]
    #[serde(default)]
    pub new_aws_kms_key_id: Option<String>,

    /// Its region
    #[arg(long, value_name = "REGION")]
    #[serde(default)]
    pub new_aws_region: Option<String>,

    /// Its endpoint
    #[arg(long, value_name = "URL")]
    #[serde(default)]
    pub new_aws_endpoint_url: Option<String>,

    /// Move tenants that the key map names off their own keys, too
    #[arg(long)]
    #[schema(required = false)]
    #[serde(default)]
    pub move_mapped: bool,

    /// Wrap each data key to this age recipient, too; may be given several times
    #[arg(long = "add-recipient", value_name = "RECIPIENT")]
    #[schema(required = false)]
    #[serde(default)]
    pub add_recipients: Vec<String>,

    /// Leave out the wraps to this age recipient; may be given several times
    #[arg(long = "drop-recipient", value_name = "RECIPIENT")]
    #[schema(required = false)]
    #[serde(default)]
    pub drop_recipients: Vec<String>,
}

impl Request {
    /// The same for another process, which has a working directory of its own.
    #[must_use]
    pub fn absolute(self) -> Self {
        let whole = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        Self {
            path: whole(self.path),
            new_master_key_file: self.new_master_key_file.map(whole),
            new_key_dir: self.new_key_dir.map(whole),
            ..self
        }
    }

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
