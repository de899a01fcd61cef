//! Fixtures of this crate's tests.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nimbus_keyproviders::aws_kms::{AwsKms, Credentials, KmsConfig, SharedCredentialsProvider};
use nimbus_keyproviders::{Dek, KeyProvider, ProviderError, Unwrapped, proof};
use nimbus_manifests::{Cipher, DekId, FileId, Subject, Timestamp, Wrap, WrapContext};

/// An owned wrap context.
#[derive(Clone, Debug)]
pub(crate) struct Owned {
    pub(crate) subject: Subject,
    pub(crate) file_id: FileId,
    pub(crate) cipher: Cipher,
    pub(crate) dek_id: DekId,
}

impl Owned {
    pub(crate) fn demo() -> Self {
        Self {
            subject: "db:sqlite:tenant:demo:demo.sqlite3".parse().unwrap(),
            file_id: "0198f2c4-7d0e-7a51-9a3e-0f6f7f1f2a10".parse().unwrap(),
            cipher: Cipher::Sqlcipher4,
            dek_id: "4f1c0a9be2d35577".parse().unwrap(),
        }
    }

    pub(crate) fn context(&self) -> WrapContext<'_> {
        WrapContext {
            subject: &self.subject,
            file_id: self.file_id,
            cipher: self.cipher,
            dek_id: self.dek_id,
        }
    }
}

pub(crate) fn other_subject() -> Subject {
    "db:sqlite:tenant:other:demo.sqlite3".parse().unwrap()
}

/// When the tests wrap.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_unix(1_795_370_645).unwrap()
}

/// A new data key and its wrap, as it would stand in a manifest.
pub(crate) async fn generate(by: &dyn KeyProvider, context: &WrapContext<'_>) -> (Dek, Wrap) {
    proof::generate(by, context, now()).await.unwrap()
}

/// A wrap of a data key that there is.
pub(crate) async fn wrap(by: &dyn KeyProvider, dek: &Dek, context: &WrapContext<'_>) -> Wrap {
    try_wrap(by, dek, context).await.unwrap()
}

pub(crate) async fn try_wrap(
    by: &dyn KeyProvider,
    dek: &Dek,
    context: &WrapContext<'_>,
) -> Result<Wrap, ProviderError> {
    proof::wrap(by, dek, context, now()).await
}

/// The data key of an unwrap that must have given one.
pub(crate) fn key(unwrapped: Unwrapped) -> Dek {
    match unwrapped {
        Unwrapped::Key(dek) => dek,
        Unwrapped::NotMine => panic!("the provider did not know its own wrap"),
    }
}

/// Whether two data keys are the same, seen through what is derived from them.
pub(crate) fn same(one: &Dek, other: &Dek) -> bool {
    let file_id = Owned::demo().file_id;
    one.cipher_key(&file_id).expose() == other.cipher_key(&file_id).expose()
}

/// A file of `bytes` with `mode`.
pub(crate) fn file(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

/// A directory that only its owner can reach.
pub(crate) fn private_dir() -> tempfile::TempDir {
    let dir = tempfile::TempDir::new().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    dir
}

/// A KMS configuration with a test's patience.
pub(crate) fn kms_config(endpoint: &str, key_id: &str) -> KmsConfig {
    KmsConfig {
        region: Some("us-east-1".into()),
        endpoint_url: Some(endpoint.into()),
        deadline: Duration::from_secs(20),
        attempt_timeout: Duration::from_secs(10),
        max_attempts: 3,
        ..KmsConfig::new(key_id)
    }
}

pub(crate) async fn kms(config: KmsConfig) -> AwsKms {
    let credentials = Credentials::new("test", "test", None, None, "test");
    AwsKms::connect_as(config, Some(SharedCredentialsProvider::new(credentials)))
        .await
        .unwrap()
}
