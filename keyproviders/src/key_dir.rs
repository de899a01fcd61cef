//! `key-dir`: a directory with one key file a subject, so that a tenant's key can be handed out,
//! withheld or destroyed by itself.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use nimbus_manifests::{ProviderKind, Subject};

use crate::error::{KeyFileError, ProviderError};
use crate::keyfile;
use crate::local::LocalKey;
use crate::local_provider::{KeySource, LocalProvider};

/// The provider `key-dir`.
pub type KeyDir = LocalProvider<KeyFiles>;

/// Key files by subject. Each is read anew at each use: a file taken away is a key withheld.
#[derive(Debug)]
pub struct KeyFiles {
    dir: PathBuf,
}

/// Where `subject`'s key lies in `dir`: the hex of the subject's bytes and `.key`.
#[must_use]
pub fn path_for(dir: &Path, subject: &Subject) -> PathBuf {
    let name = data_encoding::HEXLOWER.encode(subject.as_str().as_bytes());
    dir.join(name + ".key")
}

impl KeyDir {
    /// The keys in `dir`, which must be a directory that only its owner can reach.
    ///
    /// # Errors
    /// What is wrong with the directory.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, KeyFileError> {
        let dir = dir.into();
        check_directory(&dir)?;
        Ok(Self::new(KeyFiles { dir }))
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.source.dir
    }
}

#[async_trait]
impl KeySource for KeyFiles {
    fn kind(&self) -> ProviderKind {
        ProviderKind::KeyDir
    }

    async fn key(&self, subject: &Subject) -> Result<Arc<LocalKey>, ProviderError> {
        let path = path_for(&self.dir, subject);
        match crate::blocking(move || keyfile::read(&path)).await {
            Err(ProviderError::KeyFile(KeyFileError::Missing { path })) => {
                Err(ProviderError::SubjectKeyMissing {
                    subject: subject.clone(),
                    path,
                })
            }
            read => read.map(Arc::new),
        }
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.dir)
    }

    async fn check(&self) -> Result<(), ProviderError> {
        let dir = self.dir.clone();
        crate::blocking(move || check_directory(&dir)).await
    }
}

/// Whoever can write in the directory can put a key of their own there, and whoever can list it
/// sees which subjects exist.
fn check_directory(dir: &Path) -> Result<(), KeyFileError> {
    let path = dir.to_owned();
    let metadata = match fs::metadata(dir) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(KeyFileError::DirectoryMissing { path });
        }
        Err(source) => return Err(KeyFileError::Io { path, source }),
    };
    if !metadata.is_dir() {
        return Err(KeyFileError::NotADirectory { path });
    }
    let euid = rustix::process::geteuid().as_raw();
    if metadata.uid() != euid && metadata.uid() != 0 {
        let owner = metadata.uid();
        return Err(KeyFileError::ForeignOwner {
            path,
            owner,
            euid,
            directory: true,
        });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::TooOpen {
            path,
            mode,
            directory: true,
        });
    }
    Ok(())
}
