//! `master-key-file`: one key file wraps the data keys of every file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use nimbus_manifests::{ProviderKind, Subject};

use crate::error::{KeyFileError, ProviderError};
use crate::keyfile;
use crate::local::LocalKey;
use crate::local_provider::{KeySource, LocalProvider};

/// The provider `master-key-file`.
pub type MasterKeyFile = LocalProvider<MasterKey>;

/// The key of one file, read once and held in key memory.
#[derive(Debug)]
pub struct MasterKey {
    path: PathBuf,
    key: Arc<LocalKey>,
}

impl MasterKeyFile {
    /// Reads the key at `path`.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, KeyFileError> {
        let path = path.into();
        let key = Arc::new(keyfile::read(&path)?);
        Ok(Self::new(MasterKey { path, key }))
    }

    /// Where the key was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.source.path
    }
}

#[async_trait]
impl KeySource for MasterKey {
    fn kind(&self) -> ProviderKind {
        ProviderKind::MasterKeyFile
    }

    async fn key(&self, _subject: &Subject) -> Result<Arc<LocalKey>, ProviderError> {
        Ok(Arc::clone(&self.key))
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }

    /// Reads the file again: it must still hold the key that is in use.
    async fn check(&self) -> Result<(), ProviderError> {
        let path = self.path.clone();
        let found = crate::blocking(move || keyfile::read(&path)).await?;
        if found.id() == self.key.id() {
            return Ok(());
        }
        Err(ProviderError::KeyFile(KeyFileError::Changed {
            path: self.path.clone(),
            expected: self.key.id().clone(),
            found: found.id().clone(),
        }))
    }
}
