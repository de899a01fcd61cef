//! Kinds of providers, by their names in the settings.

use std::path::PathBuf;

use clap::ValueEnum;
use nimbus_keyproviders::ProviderConfig;
use serde::{Deserialize, Serialize};

use crate::schemas;

/// Where tenants live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TenantProviderKind {
    /// One SQLCipher file a tenant.
    Sqlite,
    /// One schema a tenant in a Postgres database, which Nimbus does not encrypt.
    Postgres,
    /// One database a tenant in MariaDB or MySQL, which Nimbus does not encrypt.
    Mysql,
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

impl utoipa::PartialSchema for KeyProviderKind {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        // Where a key is meant, `none` is none.
        let keys = [Self::MasterKeyFile, Self::KeyDir, Self::AwsKms];
        schemas::one_of(&keys.map(Self::name)).into()
    }
}

impl utoipa::ToSchema for KeyProviderKind {}

impl KeyProviderKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::MasterKeyFile => "master-key-file",
            Self::KeyDir => "key-dir",
            Self::AwsKms => "aws-kms",
            Self::None => "none",
        }
    }
}

/// Who wraps data keys, as the settings say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderChoice {
    /// Nobody said: the master key at this path, made at the first start on an empty data
    /// directory.
    Default(PathBuf),
    /// This one.
    Configured(ProviderConfig),
    /// Plaintext.
    Off,
}
