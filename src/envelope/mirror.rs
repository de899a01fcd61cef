//! Copies of manifests: what they are, and where they are kept.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus_keyproviders::ProviderError;
use nimbus_manifests::{Subject, TenantId};

/// What the control file said when a manifest's copy was written or read.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct MirrorError(Box<dyn std::error::Error + Send + Sync>);

impl MirrorError {
    /// Wraps the control file's own error.
    pub fn new(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(source.into())
    }

    /// What the key provider said, where the control file's own key is withheld.
    pub(super) fn withheld(&self) -> Option<&ProviderError> {
        let why: Option<&Arc<ProviderError>> = self.0.source()?.downcast_ref();
        why.map(|why| &**why)
    }
}

/// The copies of one manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copies {
    /// What a rotation is about to publish, or has published.
    pub announced: Option<Vec<u8>>,
    /// What was published, or was about to be.
    pub settled: Option<Vec<u8>>,
}

impl Copies {
    /// All of them, the newest first.
    pub fn all(&self) -> impl Iterator<Item = &[u8]> {
        self.announced
            .iter()
            .chain(&self.settled)
            .map(Vec::as_slice)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }
}

/// The mirror, and the directory of the files that it knows. Copies of them elsewhere are none of
/// its business.
#[derive(Debug, Clone)]
pub(super) struct Mirror {
    pub(super) copies: Arc<dyn ManifestMirror>,
    pub(super) home: PathBuf,
    /// The same as it was named, from the root.
    named: PathBuf,
}

impl Mirror {
    pub(super) fn new(copies: Arc<dyn ManifestMirror>, home: &Path) -> Self {
        Self {
            copies,
            home: home.canonicalize().unwrap_or_else(|_| home.to_owned()),
            named: absolute(home),
        }
    }

    /// Whether it has the copies of the manifests in `dir`.
    pub(super) fn is_of(&self, dir: &Path) -> bool {
        // By its name as well: a directory that is gone has no canonical one.
        dir == self.home
            || absolute(dir) == self.named
            || dir.canonicalize().is_ok_and(|dir| dir == self.home)
    }
}

/// `path` from the root, by its text alone.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Where a copy of each manifest is kept, so that a lost sidecar can be put back. All calls block
/// and are durable when they return.
pub trait ManifestMirror: fmt::Debug + Send + Sync {
    /// Keeps each manifest as the one copy of its subject's, all in one go.
    ///
    /// # Errors
    ///
    /// [`MirrorError`] when they are not all durable.
    fn put_many(&self, manifests: &[(&Subject, &[u8])]) -> Result<(), MirrorError>;

    /// Keeps each manifest beside the copy that there is: it is about to be published under another
    /// key, and until that is done nobody knows which of the two keys will be left.
    ///
    /// # Errors
    ///
    /// [`MirrorError`] when they are not all durable.
    fn announce(&self, manifests: &[(&Subject, &[u8])]) -> Result<(), MirrorError>;

    /// The copies of `subject`'s manifest.
    ///
    /// # Errors
    ///
    /// [`MirrorError`] when the control file cannot be read.
    fn get(&self, subject: &Subject) -> Result<Copies, MirrorError>;

    /// Whose manifests there are copies of, but for tenants that are being deleted.
    ///
    /// # Errors
    ///
    /// [`MirrorError`] when the control file cannot be read.
    fn subjects(&self) -> Result<Vec<Subject>, MirrorError>;

    /// Whose manifests were announced and not put since.
    ///
    /// # Errors
    ///
    /// [`MirrorError`] when the control file cannot be read.
    fn announced(&self) -> Result<Vec<Subject>, MirrorError>;

    /// Tenants whose deletion has begun and not ended.
    ///
    /// # Errors
    ///
    /// [`MirrorError`].
    fn going(&self) -> Result<Vec<TenantId>, MirrorError>;

    /// Forgets the copies of `subject`'s manifest, if there are any.
    ///
    /// # Errors
    ///
    /// [`MirrorError`] when their absence is not durable.
    fn remove(&self, subject: &Subject) -> Result<(), MirrorError>;
}
