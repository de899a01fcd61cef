//! Manifests on their way to the disk: mirrored first, then written beside their files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nimbus_manifests::{SealedManifest, State};

use super::file::Opened;
use super::store::{self, Publish};
use super::{Envelope, EnvelopeError, KeyedFile, manifest_path};
use crate::failpoints::crash_point;

/// Whose manifests were published, for who ships them.
#[derive(Debug, Default)]
pub(super) struct Published {
    watched: AtomicBool,
    paths: Mutex<BTreeSet<PathBuf>>,
}

impl Published {
    fn paths(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, path: &Path) {
        if self.watched.load(Ordering::Relaxed) {
            self.paths().insert(path.to_owned());
        }
    }
}

/// Puts a manifest back beside its file, where none stands. Blocks.
///
/// # Errors
///
/// [`EnvelopeError::Io`].
pub(crate) fn restore_manifest(path: &Path, copy: &SealedManifest) -> Result<(), EnvelopeError> {
    let path = manifest_path(path);
    store::write(&path, copy, Publish::New).map_err(|source| EnvelopeError::Io {
        action: "write",
        path,
        source,
    })
}

impl Envelope {
    /// Publishes `ready` for a file that was in `Stage::Initialise` or `Stage::Initialised`,
    /// once it is initialised and flushed.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Mirror`] or [`EnvelopeError::Io`]; the manifest on disk is then still
    /// `new`, or already `ready`.
    pub async fn publish_ready(&self, file: KeyedFile) -> Result<KeyedFile, EnvelopeError> {
        self.settle(file, Opened::First).await
    }

    /// As [`Envelope::publish_ready`], for a file whose name is durable as well.
    ///
    /// # Errors
    ///
    /// As [`Envelope::publish_ready`].
    pub(crate) async fn publish_named(&self, file: KeyedFile) -> Result<KeyedFile, EnvelopeError> {
        self.make_ready(file, Opened::First, false).await
    }

    /// Replaces a manifest by the one that follows on it; not one that another operation has put in
    /// its place meanwhile.
    pub(super) fn replace(
        &self,
        path: &Path,
        sealed: &SealedManifest,
    ) -> Result<(), EnvelopeError> {
        let _shared = self.publishing.read();
        let there = store::read(&manifest_path(path)).ok().flatten();
        let (follows, of) = (sealed.claims().revision(), sealed.claims().file_id());
        let before = there.map(|there| (there.claims().revision() + 1, there.claims().file_id()));
        if before != Some((follows, of)) {
            return Err(EnvelopeError::ChangedMeanwhile {
                path: path.to_owned(),
            });
        }
        self.publish_held(path, sealed, Publish::Replace)
    }

    /// Mirrors a manifest, then publishes it beside its file. The caller holds
    /// [`Envelope::publishing`].
    pub(super) fn publish_held(
        &self,
        path: &Path,
        sealed: &SealedManifest,
        publish: Publish,
    ) -> Result<(), EnvelopeError> {
        let manifest = sealed.claims();
        if manifest.state() != State::New
            && let Some(mirror) = self.mirror_of(path, manifest.subject())
        {
            mirror
                .put_many(&[(manifest.subject(), sealed.as_bytes())])
                .map_err(|source| EnvelopeError::Mirror {
                    path: path.to_owned(),
                    source,
                })?;
            crash_point!("manifest::mirrored");
        }
        let sidecar = manifest_path(path);
        store::write(&sidecar, sealed, publish).map_err(|source| EnvelopeError::Io {
            action: "write",
            path: sidecar,
            source,
        })?;
        self.published.note(path);
        Ok(())
    }

    /// Removes the manifest of `path`, durably: whatever is left of the file is then unreadable.
    /// The mirror's copy is the caller's to remove, in the same commit that ends the deletion.
    /// Blocks.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Io`].
    pub fn forget(&self, path: &Path) -> Result<(), EnvelopeError> {
        let path = manifest_path(path);
        let _shared = self.publishing.read();
        store::remove(&path).map_err(|source| EnvelopeError::Io {
            action: "remove",
            path,
            source,
        })
    }

    /// From here on it is remembered whose manifests are published.
    pub(crate) fn watch_manifests(&self) {
        self.published.watched.store(true, Ordering::Relaxed);
    }

    /// The files whose manifests were published since this was last asked.
    pub(crate) fn take_published(&self) -> BTreeSet<PathBuf> {
        std::mem::take(&mut *self.published.paths())
    }
}
