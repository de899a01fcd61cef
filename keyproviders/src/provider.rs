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

    /// Whether a use of the key asks somebody over the network, whose answer may be another one a minute later. What such a provider unwraps
    /// is held under a lease, and asked for again. A provider that passes calls on to another answers as that one does.
    fn is_remote(&self) -> bool {
        false
    }

    /// The key that wraps for `subject` and for nobody else, where the provider's own owner can disable it (aws-kms with a key map).
    ///
    /// # Errors
    /// When keys cannot be resolved.
    async fn own_key(&self, _subject: &Subject) -> Result<Option<KeyId>, ProviderError> {
        Ok(None)
    }

    /// Disables the key that [`own_key`](Self::own_key) names; which it was.
    ///
    /// # Errors
    /// When it could not be disabled, or the key cannot be resolved.
    async fn disable_own_key(&self, _subject: &Subject) -> Result<Option<KeyId>, ProviderError> {
        Ok(None)
    }

    /// Where the keys lie, when that is a place on this machine.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// Wraps here the data key that `from` can unwrap; `None` when `wrap` is not `from`'s.
    ///
    /// A provider that can do so without the plaintext key leaving its home does (aws-kms).
    ///
    /// # Errors
    /// As [`unwrap`](Self::unwrap) of `from` and [`wrap`](Self::wrap) of this one.
    async fn rewrap(
        &self,
        from: &dyn KeyProvider,
        wrap: &Wrap,
        context: &WrapContext<'_>,
    ) -> Result<Option<Wrapped>, ProviderError> {
        match from.unwrap(wrap, context).await? {
            Unwrapped::NotMine => Ok(None),
            Unwrapped::Key(dek) => self.wrap(&dek, context).await.map(Some),
        }
    }
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

/// A wrapped key as a provider made it: a manifest's [`Wrap`] but for the time, which is the
/// caller's to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapped {
    /// The provider's kind.
    pub provider: ProviderKind,
    /// The key that wrapped.
    pub key_id: KeyId,
    /// How it wrapped.
    pub algorithm: WrapAlgorithm,
    /// The wrapped key.
    pub blob: Vec<u8>,
}

impl Wrapped {
    /// The wrap as it goes into a manifest.
    #[must_use]
    pub fn at(self, at: Timestamp) -> Wrap {
        Wrap {
            provider: self.provider,
            key_id: self.key_id,
            algorithm: self.algorithm,
            at,
            blob: self.blob,
        }
    }
}
