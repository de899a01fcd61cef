//! What packs name: manifests, and the pages of files that were begun.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt as _;
use nimbus_manifests::SealedManifest;

use super::super::changes::Source;
use super::super::pack::{PackedBase, PackedManifest};
use super::super::saving::Saving;
use super::super::{BackupError, Repository, sha256};
use super::packs::{held_no_longer, unreadable};
use super::session::Session;
use super::{FIRST_PAUSE, LONGEST_PAUSE};
use crate::clock;
use crate::data_dir;
use crate::envelope::{manifest_path, read_manifest};
use crate::error_chain::error_chain;
use crate::failpoints::crash_point;
use crate::metrics;
use crate::runtime::{blocking, short_task};
use crate::tenants::sqlite::BegunBase;

impl Session {
    /// A file that was begun: a small one is stored before the next pack, a large one meanwhile.
    pub(super) async fn base(&mut self, begun: BegunBase) -> Result<(), BackupError> {
        let pages = {
            let captured = begun
                .captured
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            captured.pages.pages()
        };
        if pages > SMALL {
            let (repository, begun) = (self.repository.clone(), Arc::new(begun));
            self.storing.push(short_task(async move {
                let mut pause = FIRST_PAUSE;
                loop {
                    match store_base(repository.clone(), Arc::clone(&begun)).await {
                        Err(error @ BackupError::Store { .. }) => {
                            metrics::SHIPPING_FAILED.increment(1);
                            held_no_longer(Some(begun.since), &error_chain(&error))?;
                        }
                        done => return done,
                    }
                    tokio::time::sleep(pause).await;
                    pause = (2 * pause).min(LONGEST_PAUSE);
                }
            }));
            return Ok(());
        }
        let begun = Arc::new(begun);
        self.holding = Some(begun.since);
        let stored =
            self.insist(move |repository| store_base(repository, Arc::clone(&begun)).boxed());
        let stored = stored.await;
        self.holding = None;
        self.next.bases.push(stored?);
        crash_point!("ship::base-stored");
        Ok(())
    }

    /// Takes over large files that are stored by now; all of them where `wait` says so.
    pub(super) async fn stored(&mut self, wait: bool) -> Result<(), BackupError> {
        let mut left = Vec::new();
        for storing in std::mem::take(&mut self.storing) {
            if !wait && !storing.is_finished() {
                left.push(storing);
                continue;
            }
            match storing.await {
                Ok(stored) => self.next.bases.push(stored?),
                Err(_panic) => return Err(BackupError::Stopped),
            }
        }
        self.storing = left;
        Ok(())
    }

    /// Stores the manifests that changed.
    pub(super) async fn manifests(&mut self) -> Result<Vec<PackedManifest>, BackupError> {
        let mut packed = Vec::new();
        for path in std::mem::take(&mut self.next.manifests) {
            let sidecar = manifest_path(&path);
            match blocking(move || read_manifest(&sidecar)).await {
                Ok(Some(sealed)) => packed.push(self.manifest(&sealed).await?),
                // Deleted since.
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a manifest cannot be shipped");
                }
            }
        }
        Ok(packed)
    }

    pub(super) async fn manifest(
        &mut self,
        sealed: &SealedManifest,
    ) -> Result<PackedManifest, BackupError> {
        let (claims, text) = (sealed.claims(), Bytes::copy_from_slice(sealed.as_bytes()));
        let packed = PackedManifest {
            subject: claims.subject().to_string(),
            file_id: claims.file_id().to_string(),
            dek_ids: claims.deks().iter().map(|dek| dek.id.to_string()).collect(),
            manifest: sha256(&text),
        };
        let (file_id, dek_id) = (&packed.file_id, &packed.dek_ids[0]);
        let name = format!("keys/{file_id}/{dek_id}/{}", packed.manifest);
        let stored = self.insist(move |repository| {
            let (name, text) = (name.clone(), text.clone());
            async move { repository.add(&name, text).await }.boxed()
        });
        stored.await?;
        Ok(packed)
    }
}

async fn store_base(
    repository: Repository,
    begun: Arc<BegunBase>,
) -> Result<PackedBase, BackupError> {
    let manifest = {
        let captured = begun
            .captured
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        captured.manifest.clone()
    };
    let source = Source::Tenant(Arc::clone(&begun.captured));
    let manifest = SealedManifest::parse(&manifest).map_err(|error| unreadable(&error))?;
    let found = manifest.claims().subject();
    if *found != data_dir::subject(&begun.tenant) {
        return Err(BackupError::NotSaved(format!(
            "the manifest beside tenant {} is of {found}; `nimbus encryption repair` puts a copy back",
            begun.tenant
        )));
    }
    let file = Saving::afresh(&repository).file(&manifest, source).await?;
    Ok(PackedBase {
        base: begun.number,
        at: clock::stamp_of(begun.at_ms),
        dek_id: begun.dek_id.clone().unwrap_or_else(|| file.dek_id.clone()),
        file,
    })
}

/// A file of so many pages is stored before the pack that has its first frames: 16 MiB.
const SMALL: u32 = 4096;
