//! Which provider: one enum, one constructor.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use nimbus_manifests::TenantId;

use crate::aws_kms::{AwsKms, KmsConfig, KmsKeyMap};
use crate::error::ProviderError;
use crate::key_dir::KeyDir;
use crate::master_key_file::MasterKeyFile;
use crate::provider::KeyProvider;

/// What an operator said about where keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProviderConfig {
    /// `master-key-file`: one key file for everything.
    MasterKeyFile {
        /// The file of 32 raw bytes.
        path: PathBuf,
    },
    /// `key-dir`: a key file a subject.
    KeyDir {
        /// The directory of key files.
        dir: PathBuf,
    },
    /// `aws-kms`: a symmetric key in AWS KMS.
    AwsKms {
        /// Key id, alias, or the ARN of either.
        key_id: String,
        /// The region; without it, the standard AWS chain's.
        region: Option<String>,
        /// The endpoint; without it, AWS's own for the region.
        endpoint_url: Option<String>,
        /// Tenants with a key of their own.
        key_map: BTreeMap<TenantId, String>,
    },
}

impl ProviderConfig {
    /// Makes the provider.
    ///
    /// Local keys are read and checked here. For aws-kms the region and the credentials are
    /// resolved here and the key at its first use: call [`KeyProvider::check`] to ask KMS now.
    ///
    /// # Errors
    /// What keeps the provider from being usable.
    pub async fn connect(&self) -> Result<Arc<dyn KeyProvider>, ProviderError> {
        Ok(match self {
            Self::MasterKeyFile { path } => {
                let path = path.clone();
                Arc::new(crate::blocking(move || MasterKeyFile::open(path)).await?)
            }
            Self::KeyDir { dir } => {
                let dir = dir.clone();
                Arc::new(crate::blocking(move || KeyDir::open(dir)).await?)
            }
            Self::AwsKms {
                key_id,
                region,
                endpoint_url,
                key_map,
            } => {
                let config = KmsConfig {
                    region: region.clone(),
                    endpoint_url: endpoint_url.clone(),
                    ..KmsConfig::new(key_id)
                };
                if key_map.is_empty() {
                    Arc::new(AwsKms::connect(config).await?)
                } else {
                    Arc::new(KmsKeyMap::connect(config, key_map).await?)
                }
            }
        })
    }
}
