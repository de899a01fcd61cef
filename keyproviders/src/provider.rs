//! The trait that every key provider implements, and what passes through it.

use std::fmt::Debug;
use std::path::Path;

use async_trait::async_trait;
use nimbus_manifests::{KeyId, ProviderKind, Subject, Timestamp, Wrap, WrapAlgorithm, WrapContext};

use crate::error::ProviderError;
use crate::keys::Dek;

/// Who wraps and unwraps data keys.
///
/// A provider holds (or can reach) key-encryption keys; it knows nothing of files and decides
/// nothing about rotation. Every wrap is bound to its [`WrapContext`]: subject, file, cipher,
/// DEK id, provider and key id.
#[async_trait]
pub trait KeyProvider: Debug + Send + Sync {
    /// Which kind of provider the manifest names for wraps made here.
    fn kind(&self) -> ProviderKind;

    /// The id of the key that would wrap for `subject` now.
    ///
    /// # Errors
    /// When the key cannot be read or resolved.
    async fn key_id(&self, subject: &Subject) -> Result<KeyId, ProviderError>;

    /// Draws a new data key and wraps it.
    ///
    /// # Errors
    /// When the key cannot be reached or used.
    async fn generate(&self, context: &WrapContext<'_>) -> Result<(Dek, Wrapped), ProviderError>;

    /// Wraps a data key that exists.
    ///
    /// # Errors
    /// When the key cannot be reached or used.
    async fn wrap(&self, dek: &Dek, context: &WrapContext<'_>) -> Result<Wrapped, ProviderError>;

    /// Unwraps `wrap`, if it is this provider's: same kind, same key id.
    ///
    /// # Errors
    /// When it is this provider's and does not open, or the key cannot be reached or used.
    async fn unwrap(
        &self,
        wrap: &Wrap,
        context: &WrapContext<'_>,
    ) -> Result<Unwrapped, ProviderError>;

    /// Whether the key is there and usable, without touching any data key.
    ///
    /// # Errors
    /// The reason why it is not.
    async fn check(&self) -> Result<(), ProviderError>;

    /// Whether a use of the key asks somebody over the network, whose answer may be another one a
    /// minute later. What such a provider unwraps is held under a lease, and asked for again. A
    /// provider that passes calls on to another answers as that one does.
    fn is_remote(&self) -> bool {
        false
    }

    /// Whether an operator named a key for `subject` by itself (aws-kms with a key map).
    fn is_mapped(&self, _subject: &Subject) -> bool {
        false
    }

    /// Keys of one subject each, where this provider has such keys and can disable them.
    fn own_keys(&self) -> Option<&dyn OwnKeys> {
        None
    }

    /// Where the keys lie, when that is a place on this machine.
    fn path(&self) -> Option<&Path> {
        None
    }
}

/// Keys that wrap for one subject each, and that their owner can disable (aws-kms with a key map).
#[async_trait]
pub trait OwnKeys: Send + Sync {
    /// The key that wraps for `subject` and for nobody else.
    ///
    /// # Errors
    /// When keys cannot be resolved.
    async fn own_key(&self, subject: &Subject) -> Result<Option<KeyId>, ProviderError>;

    /// Disables the key that [`own_key`](Self::own_key) names; which it was.
    ///
    /// # Errors
    /// When it could not be disabled, or the key cannot be resolved.
    async fn disable_own_key(&self, subject: &Subject) -> Result<Option<KeyId>, ProviderError>;
}

/// The answer of an unwrap that did not fail.
#[derive(Debug)]
#[must_use]
pub enum Unwrapped {
    /// The wrap belongs to another provider or another key: try the next one.
    NotMine,
    /// The data key.
    Key(Dek),
}

/// A wrapped key as a provider made it, of which nobody knows yet whether it opens. Only
/// [`proof`](crate::proof) makes a manifest's [`Wrap`] of it.
#[derive(Debug)]
pub struct Wrapped {
    provider: ProviderKind,
    key_id: KeyId,
    algorithm: WrapAlgorithm,
    blob: Vec<u8>,
}

impl Wrapped {
    /// What `provider` made of a data key with the key `key_id`.
    #[must_use]
    pub fn new(
        provider: ProviderKind,
        key_id: KeyId,
        algorithm: WrapAlgorithm,
        blob: Vec<u8>,
    ) -> Self {
        Self {
            provider,
            key_id,
            algorithm,
            blob,
        }
    }

    pub(crate) fn at(self, at: Timestamp) -> Wrap {
        Wrap {
            provider: self.provider,
            key_id: self.key_id,
            algorithm: self.algorithm,
            at,
            blob: self.blob,
        }
    }
}
