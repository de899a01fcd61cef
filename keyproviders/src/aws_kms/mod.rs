//! `aws-kms`: data keys come from AWS KMS and go back to it.
//!
//! A new data key is made by `GenerateDataKey` and opened by `Decrypt`. `Encrypt` wraps a data key
//! that there is: a rotation to another key. Every call carries the encryption context
//! `nimbus:format`, `nimbus:subject`, `nimbus:file-id`, `nimbus:cipher`, `nimbus:dek-id`, which key
//! policies can name and CloudTrail shows.
//!
//! The configured key may be an id or an alias; what it means is asked once, and from then on the
//! ARN is used. A wrap whose ARN is another one is not this provider's, but for replicas of one
//! multi-Region key; and `Decrypt` always names the ARN it expects.
//!
//! **What is wiped**: the plaintext key in the SDK's answer, in place. **What is not, here**: the
//! buffers below it, which hold the same key as base64 in JSON (the HTTP body, the TLS record
//! layer), and the body of an `Encrypt` request. They are freed with the call or with the
//! connection, which is closed after a second without a call; `nimbus` has an allocator that wipes
//! what is freed.

mod call;
mod chain;
mod classify;
mod client;
pub(crate) mod error;
mod http;
mod map;
pub mod settings;
pub mod table;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;

use async_trait::async_trait;
use aws_sdk_kms::Client;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{
    DataKeySpec, EncryptionAlgorithmSpec, KeyMetadata, KeySpec, KeyState, KeyUsageType,
};
use bytes::Bytes;
use nimbus_manifests::{KeyId, ProviderKind, Subject, Wrap, WrapAlgorithm, WrapContext};
use tokio::sync::{OnceCell, Semaphore};
use zeroize::Zeroizing;

use self::call::Call;
use crate::error::ProviderError;
use crate::keys::Dek;
use crate::provider::{KeyProvider, Unwrapped, Wrapped};

pub use self::chain::AwsChain;
pub use self::client::same_key;
pub use self::error::KmsError;
pub use self::map::KmsKeyMap;
pub use self::settings::KmsConfig;
pub use aws_credential_types::Credentials;
pub use aws_credential_types::provider::SharedCredentialsProvider;

/// A symmetric key in AWS KMS.
pub struct AwsKms {
    client: Client,
    config: KmsConfig,
    /// Where calls go, for messages: the endpoint, or the region whose default one it is.
    endpoint: String,
    /// How many calls with this key may be under way.
    permits: Semaphore,
    arn: OnceCell<KeyId>,
}

impl AwsKms {
    /// Resolves region and credentials by the standard AWS chain. The key is resolved at its
    /// first use, or by [`KeyProvider::check`].
    ///
    /// # Errors
    /// No region, no credentials, or a region that is not the one in the key's ARN.
    pub async fn connect(config: KmsConfig) -> Result<Self, KmsError> {
        Self::connect_as(config, None).await
    }

    /// As [`connect`](Self::connect), with `credentials` instead of the chain's if there are any.
    ///
    /// # Errors
    /// As `connect`.
    pub async fn connect_as(
        mut config: KmsConfig,
        credentials: Option<SharedCredentialsProvider>,
    ) -> Result<Self, KmsError> {
        config.key_id = client::localised(&config.key_id, config.region.as_deref());
        let (client, endpoint) = client::connect(&config, credentials).await?;
        let permits = Semaphore::new(config.max_concurrency);
        Self::over(client, config, endpoint, permits)
    }

    /// Another key, by the same client.
    fn beside(&self, key_id: &str) -> Result<Self, KmsError> {
        let config = KmsConfig {
            key_id: key_id.to_owned(),
            ..self.config.clone()
        };
        let (client, endpoint) = (self.client.clone(), self.endpoint.clone());
        // Of its own: calls with a key that does not answer hold up no other key's.
        let permits = Semaphore::new(config.max_concurrency);
        Self::over(client, config, endpoint, permits)
    }

    /// The region that `key_id` names, when it is not this client's.
    fn foreign_region<'a>(&self, key_id: &'a str) -> Option<&'a str> {
        let region = client::region_of_arn(key_id)?;
        let ours = self.client.config().region();
        ours.is_none_or(|ours| ours.as_ref() != region)
            .then_some(region)
    }

    /// Disables the key: from then on it opens nothing, until somebody enables it again.
    async fn disable(&self) -> Result<(), KmsError> {
        let arn = self.arn().await?;
        let call = self.call("DisableKey", arn.as_str(), "");
        let request = self.client.disable_key().key_id(arn.as_str());
        self.send(call, request.send()).await.map(drop)
    }

    fn over(
        client: Client,
        config: KmsConfig,
        endpoint: String,
        permits: Semaphore,
    ) -> Result<Self, KmsError> {
        let arn = OnceCell::new();
        if client::region_of_key_arn(&config.key_id).is_some() {
            let id = KeyId::new(config.key_id.as_str()).map_err(|_| KmsError::InvalidRequest {
                key: config.key_id.clone(),
                message: "not a possible ARN".into(),
            })?;
            // A key's own ARN needs no resolving, and so no permission for DescribeKey.
            drop(arn.set(id));
        }
        Ok(Self {
            client,
            config,
            endpoint,
            permits,
            arn,
        })
    }

    /// The ARN of the configured key, asked for once.
    async fn arn(&self) -> Result<&KeyId, KmsError> {
        self.arn
            .get_or_try_init(|| async {
                let key = self.describe(&self.config.key_id).await?;
                let arn = key.arn().unwrap_or_default();
                match KeyId::new(arn) {
                    Ok(id) if id.fits(ProviderKind::AwsKms) => Ok(id),
                    _ => {
                        let call = self.call("DescribeKey", &self.config.key_id, "");
                        Err(call.unexpected(format!("a key without an ARN: {arn:?}")))
                    }
                }
            })
            .await
    }

    async fn describe(&self, key: &str) -> Result<KeyMetadata, KmsError> {
        let call = self.call("DescribeKey", key, "");
        let reply = self
            .send(call, self.client.describe_key().key_id(key).send())
            .await?;
        let Some(metadata) = reply.key_metadata else {
            return Err(call.unexpected("no key metadata"));
        };
        // What is not said is not held against the key: emulators leave the usage out.
        let symmetric = metadata
            .key_spec()
            .is_none_or(|spec| *spec == KeySpec::SymmetricDefault)
            && metadata
                .key_usage()
                .is_none_or(|usage| *usage == KeyUsageType::EncryptDecrypt);
        if symmetric {
            return Ok(metadata);
        }
        let message = format!(
            "spec {}, usage {}",
            metadata.key_spec().map_or("unknown", KeySpec::as_str),
            metadata.key_usage().map_or("unknown", KeyUsageType::as_str)
        );
        Err(KmsError::WrongKeyType {
            key: key.to_owned(),
            message,
        })
    }

    fn call<'a>(&'a self, action: &'static str, key: &'a str, subject: &'a str) -> Call<'a> {
        let deadline = self.config.deadline;
        Call {
            action,
            key,
            subject,
            endpoint: &self.endpoint,
            deadline,
        }
    }

    /// Sends a request when its turn comes; the deadline covers the wait, the tries and the pauses.
    async fn send<T, E>(
        &self,
        call: Call<'_>,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, KmsError>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let turn = async {
            let _permit = self
                .permits
                .acquire()
                .await
                .expect("the semaphore is never closed");
            request.await
        };
        match tokio::time::timeout(call.deadline, turn).await {
            Ok(answer) => answer.map_err(|error| call.failed(error)),
            Err(_elapsed) => Err(call.timed_out()),
        }
    }

    /// A wrap as KMS made it, if it names the key it was asked to use.
    fn wrapped(
        &self,
        call: Call<'_>,
        arn: &KeyId,
        key_id: Option<&str>,
        blob: Option<Blob>,
    ) -> Result<Wrapped, KmsError> {
        if key_id != Some(arn.as_str()) {
            return Err(call.unexpected(format!(
                "the key used is {}, not the one asked for",
                key_id.unwrap_or("not named")
            )));
        }
        let blob = blob.map(Blob::into_inner).unwrap_or_default();
        if blob.is_empty() {
            return Err(call.unexpected("no wrapped key"));
        }
        Ok(Wrapped::new(
            ProviderKind::AwsKms,
            arn.clone(),
            WrapAlgorithm::SymmetricDefault,
            blob,
        ))
    }
}

#[async_trait]
impl KeyProvider for AwsKms {
    fn kind(&self) -> ProviderKind {
        ProviderKind::AwsKms
    }

    fn is_remote(&self) -> bool {
        true
    }

    async fn key_id(&self, _subject: &Subject) -> Result<KeyId, ProviderError> {
        Ok(self.arn().await?.clone())
    }

    async fn generate(&self, context: &WrapContext<'_>) -> Result<(Dek, Wrapped), ProviderError> {
        let arn = self.arn().await?;
        let call = self.call("GenerateDataKey", arn.as_str(), context.subject.as_str());
        let request = self
            .client
            .generate_data_key()
            .key_id(arn.as_str())
            .key_spec(DataKeySpec::Aes256)
            .set_encryption_context(Some(encryption_context(context)));
        let reply = self.send(call, request.send()).await?;
        // The key first: whatever else is wrong with the reply, it is in wiping memory by then.
        let dek = take_key(call, reply.plaintext)?;
        let wrapped = self.wrapped(call, arn, reply.key_id.as_deref(), reply.ciphertext_blob)?;
        Ok((dek, wrapped))
    }

    async fn wrap(&self, dek: &Dek, context: &WrapContext<'_>) -> Result<Wrapped, ProviderError> {
        let arn = self.arn().await?;
        let call = self.call("Encrypt", arn.as_str(), context.subject.as_str());
        // Shared with the SDK without a copy, and wiped when the last holder lets go of it.
        let plaintext =
            Blob::from_maybe_shared(Bytes::from_owner(Zeroizing::new(dek.bytes().to_vec())));
        let request = self
            .client
            .encrypt()
            .key_id(arn.as_str())
            .plaintext(plaintext)
            .encryption_algorithm(EncryptionAlgorithmSpec::SymmetricDefault)
            .set_encryption_context(Some(encryption_context(context)));
        let reply = self.send(call, request.send()).await?;
        Ok(self.wrapped(call, arn, reply.key_id.as_deref(), reply.ciphertext_blob)?)
    }

    async fn unwrap(
        &self,
        wrap: &Wrap,
        context: &WrapContext<'_>,
    ) -> Result<Unwrapped, ProviderError> {
        if wrap.provider != ProviderKind::AwsKms {
            return Ok(Unwrapped::NotMine);
        }
        let arn = self.arn().await?;
        if !same_key(&wrap.key_id, arn) {
            return Ok(Unwrapped::NotMine);
        }
        if wrap.algorithm != WrapAlgorithm::SymmetricDefault {
            return Err(ProviderError::UnsupportedAlgorithm {
                provider: ProviderKind::AwsKms,
                algorithm: wrap.algorithm,
            });
        }
        let call = self.call("Decrypt", arn.as_str(), context.subject.as_str());
        let request = self
            .client
            .decrypt()
            .key_id(arn.as_str())
            .ciphertext_blob(Blob::new(wrap.blob.as_slice()))
            .encryption_algorithm(EncryptionAlgorithmSpec::SymmetricDefault)
            .set_encryption_context(Some(encryption_context(context)));
        let reply = self.send(call, request.send()).await?;
        let dek = take_key(call, reply.plaintext)?;
        if reply.key_id.as_deref() != Some(arn.as_str()) {
            return Err(call
                .unexpected("another key was used than the one asked for")
                .into());
        }
        Ok(Unwrapped::Key(dek))
    }

    /// Asks KMS for the key's state (`DescribeKey`).
    async fn check(&self) -> Result<(), ProviderError> {
        let key = self.arn().await?.as_str();
        let metadata = self.describe(key).await?;
        let key = key.to_owned();
        Err(match metadata.key_state() {
            Some(KeyState::Enabled) => return Ok(()),
            Some(KeyState::Disabled) => KmsError::Disabled { key },
            Some(KeyState::PendingDeletion | KeyState::PendingReplicaDeletion) => {
                KmsError::PendingDeletion { key }
            }
            state => {
                let message = state.map_or("no state", KeyState::as_str).to_owned();
                KmsError::InvalidState { key, message }
            }
        }
        .into())
    }
}

impl fmt::Debug for AwsKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsKms")
            .field("key_id", &self.config.key_id)
            .field("arn", &self.arn.get())
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// What KMS binds the wrapped key to.
fn encryption_context(context: &WrapContext<'_>) -> HashMap<String, String> {
    [
        ("nimbus:format", FORMAT.to_owned()),
        ("nimbus:subject", context.subject.to_string()),
        ("nimbus:file-id", context.file_id.to_string()),
        ("nimbus:cipher", context.cipher.to_string()),
        ("nimbus:dek-id", context.dek_id.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// Moves a plaintext key from the SDK's answer into key memory and wipes the answer's copy.
fn take_key(call: Call<'_>, plaintext: Option<Blob>) -> Result<Dek, KmsError> {
    // `into_inner` takes over the buffer of a blob that nobody shares, so that this wipes it.
    let plaintext = Zeroizing::new(plaintext.map(Blob::into_inner).unwrap_or_default());
    Dek::try_init_with(|bytes| {
        if plaintext.len() != bytes.len() {
            return Err(call.unexpected(format!("a data key of {} bytes", plaintext.len())));
        }
        bytes.copy_from_slice(&plaintext);
        Ok(())
    })
}

/// What `nimbus:format` says.
const FORMAT: &str = "nimbus-enc/1";
