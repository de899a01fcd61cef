//! A provider whose key exists only in this process: for tests.

use std::convert::Infallible;
use std::sync::Arc;

use async_trait::async_trait;
use nimbus_manifests::{ProviderKind, Subject};

use crate::error::ProviderError;
use crate::local::LocalKey;
use crate::local_provider::{KeySource, LocalProvider};
use crate::memory::KEY_BYTES;
use crate::random::{OsRandom, RandomError};

/// The provider with a key in memory. It calls itself `master-key-file`, since that is what it
/// stands in for; what it wraps is lost with the process unless the same key is given again.
pub type MemoryProvider = LocalProvider<MemoryKey>;

/// A key that lies in no file.
#[derive(Debug)]
pub struct MemoryKey(Arc<LocalKey>);

impl MemoryProvider {
    /// A key drawn from the operating system.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn random() -> Result<Self, RandomError> {
        Ok(Self::new(MemoryKey(Arc::new(LocalKey::generate(
            &OsRandom,
        )?))))
    }

    /// The key that `fill` writes.
    #[must_use]
    pub fn with_key(fill: impl FnOnce(&mut [u8; KEY_BYTES])) -> Self {
        let Ok(key) = LocalKey::try_init_with(|bytes| {
            fill(bytes);
            Ok::<(), Infallible>(())
        });
        Self::new(MemoryKey(Arc::new(key)))
    }
}

#[async_trait]
impl KeySource for MemoryKey {
    fn kind(&self) -> ProviderKind {
        ProviderKind::MasterKeyFile
    }

    async fn key(&self, _subject: &Subject) -> Result<Arc<LocalKey>, ProviderError> {
        Ok(Arc::clone(&self.0))
    }

    async fn check(&self) -> Result<(), ProviderError> {
        Ok(())
    }
}
