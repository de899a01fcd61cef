//! The provider that all local keys share: a source supplies the key, and nothing else.

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use nimbus_manifests::{KeyId, ProviderKind, Subject, Wrap, WrapContext};

use crate::error::ProviderError;
use crate::keys::Dek;
use crate::local::{LocalAlgorithm, LocalKey};
use crate::provider::{KeyProvider, Unwrapped, Wrapped};
use crate::random::{OsRandom, SecureRandom};

/// Where a [`LocalProvider`] has its keys from.
#[async_trait]
pub trait KeySource: Debug + Send + Sync {
    /// Which kind of provider wraps with these keys.
    fn kind(&self) -> ProviderKind;

    /// The key for `subject`.
    ///
    /// # Errors
    /// When there is none that may be used.
    async fn key(&self, subject: &Subject) -> Result<Arc<LocalKey>, ProviderError>;

    /// Whether the source is still fit for use.
    ///
    /// # Errors
    /// The reason why it is not.
    async fn check(&self) -> Result<(), ProviderError>;

    /// Where the keys lie, when that is a place on this machine.
    fn path(&self) -> Option<&Path> {
        None
    }
}

/// Wraps and unwraps in this process with keys from `S`.
#[derive(Debug)]
pub struct LocalProvider<S> {
    pub(crate) source: S,
    algorithm: LocalAlgorithm,
    random: Arc<dyn SecureRandom>,
}

impl<S: KeySource> LocalProvider<S> {
    /// The provider over `source`, with the default algorithm and the system's randomness.
    #[must_use]
    pub fn new(source: S) -> Self {
        Self {
            source,
            algorithm: LocalAlgorithm::default(),
            random: Arc::new(OsRandom),
        }
    }

    /// The same keys, wrapping with `algorithm`. They unwrap both.
    #[must_use]
    pub fn with_algorithm(mut self, algorithm: LocalAlgorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// The same keys, with salts and data keys drawn from `random`.
    #[must_use]
    pub fn with_random(mut self, random: Arc<dyn SecureRandom>) -> Self {
        self.random = random;
        self
    }
}

#[async_trait]
impl<S: KeySource> KeyProvider for LocalProvider<S> {
    fn kind(&self) -> ProviderKind {
        self.source.kind()
    }

    async fn key_id(&self, subject: &Subject) -> Result<KeyId, ProviderError> {
        Ok(self.source.key(subject).await?.id().clone())
    }

    async fn generate(&self, context: &WrapContext<'_>) -> Result<(Dek, Wrapped), ProviderError> {
        let dek = Dek::generate(&*self.random)?;
        let wrapped = self.wrap(&dek, context).await?;
        Ok((dek, wrapped))
    }

    async fn wrap(&self, dek: &Dek, context: &WrapContext<'_>) -> Result<Wrapped, ProviderError> {
        let key = self.source.key(context.subject).await?;
        Ok(key.wrap(self.kind(), self.algorithm, &*self.random, dek, context)?)
    }

    async fn unwrap(
        &self,
        wrap: &Wrap,
        context: &WrapContext<'_>,
    ) -> Result<Unwrapped, ProviderError> {
        // Before a key is read: a wrap by another kind of provider needs none of these.
        if wrap.provider != self.kind() {
            return Ok(Unwrapped::NotMine);
        }
        self.source
            .key(context.subject)
            .await?
            .unwrap(self.kind(), wrap, context)
    }

    async fn check(&self) -> Result<(), ProviderError> {
        self.source.check().await
    }

    fn path(&self) -> Option<&Path> {
        self.source.path()
    }
}
