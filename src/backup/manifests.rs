//! The manifests in a repository: which belong to a file at a moment, and which of them open it.

use std::path::Path;

use nimbus_keyproviders::ArchiveKey;
use nimbus_manifests::SealedManifest;

use super::catalogue::StoredFile;
use super::{BackupError, Repository, sha256};
use crate::control;
use crate::envelope::{Copies, Envelope, KeyedFile};

impl Repository {
    /// The manifest that the snapshot was made with; where it is not there, all others that there
    /// are of the file and its data key, the newest first. What is no manifest of the two is
    /// left out.
    ///
    /// # Errors
    ///
    /// [`BackupError::Store`].
    pub(super) async fn manifests(
        &self,
        file: &StoredFile,
    ) -> Result<Vec<SealedManifest>, BackupError> {
        let named = format!("{}/{}", file.manifests(), file.manifest);
        match self.manifest(&named, file).await? {
            Some(manifest) => Ok(vec![manifest]),
            None => self.other_manifests(file).await,
        }
    }

    /// The manifests of a file and its data key but for the one that the snapshot was made with,
    /// the newest first.
    async fn other_manifests(&self, file: &StoredFile) -> Result<Vec<SealedManifest>, BackupError> {
        let named = format!("{}/{}", file.manifests(), file.manifest);
        let mut read = Vec::new();
        for (name, _) in self.store.list(&file.manifests()).await? {
            if name != named {
                read.extend(self.manifest(&name, file).await?);
            }
        }
        read.sort_by_key(|sealed| std::cmp::Reverse(sealed.claims().revision()));
        Ok(read)
    }

    /// The manifest of a file and its data key that the object `name` is.
    async fn manifest(
        &self,
        name: &str,
        file: &StoredFile,
    ) -> Result<Option<SealedManifest>, BackupError> {
        let manifest = match self.store.get(name).await {
            // Too long for one, or no file.
            Err(BackupError::Damaged { .. }) => None,
            read => read?,
        };
        let manifest = manifest.filter(|text| is_named_by_hash(name, text));
        let manifest = manifest.and_then(|text| SealedManifest::parse(&text).ok());
        Ok(manifest.filter(|sealed| file.is_manifest(sealed)))
    }

    /// The manifest that is restored beside a file: not one that is older than the control file's
    /// `copies`; and, where there is a core, one that opens, if any does. `None` where there is
    /// no other.
    ///
    /// # Errors
    ///
    /// [`BackupError::Store`].
    pub(super) async fn manifest_beside(
        &self,
        envelope: Option<&Envelope>,
        file: &StoredFile,
        path: &Path,
        copies: &Copies,
    ) -> Result<Option<SealedManifest>, BackupError> {
        let opens = async |manifest: &SealedManifest| match envelope {
            None => true,
            Some(envelope) => envelope.unseal_apart(path, manifest.clone()).await.is_ok(),
        };
        let mut first = None;
        for is_again in [false, true] {
            let manifests = match is_again {
                false => self.manifests(file).await?,
                true => self.other_manifests(file).await?,
            };
            for manifest in manifests.into_iter().filter(|one| !copies.outdates(one)) {
                if opens(&manifest).await {
                    return Ok(Some(manifest));
                }
                first = first.or(Some(manifest));
            }
        }
        for copy in copies.all() {
            let copy = SealedManifest::parse(copy).ok();
            let Some(copy) = copy.filter(|copy| file.is_manifest(copy)) else {
                continue;
            };
            if opens(&copy).await {
                return Ok(Some(copy));
            }
            first = first.or(Some(copy));
        }
        Ok(first)
    }

    /// The keys of a file at its moment.
    ///
    /// # Errors
    ///
    /// [`BackupError::Damaged`] when there is no manifest of it, [`BackupError::Envelope`] when
    /// none opens.
    pub(super) async fn keyed(
        &self,
        envelope: &Envelope,
        file: &StoredFile,
    ) -> Result<KeyedFile, BackupError> {
        let path = Path::new(&self.shown()).join(file.manifests());
        self.keyed_at(envelope, file, &path).await
    }

    /// The same for a copy of the file at `path`.
    ///
    /// # Errors
    ///
    /// As [`Repository::keyed`].
    pub(super) async fn keyed_at(
        &self,
        envelope: &Envelope,
        file: &StoredFile,
        path: &Path,
    ) -> Result<KeyedFile, BackupError> {
        let mut refused = None;
        for manifest in self.manifests(file).await? {
            match envelope.unseal_apart(path, manifest).await {
                Ok(keyed) => return Ok(keyed),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        // That one may be under a master key that is gone, and have been stored again under the one
        // after it.
        if let Some(error) = refused {
            // It may be under another key by now.
            for manifest in self.other_manifests(file).await? {
                if let Ok(keyed) = envelope.unseal_apart(path, manifest).await {
                    return Ok(keyed);
                }
            }
            return Err(error.into());
        }
        let object = format!("{}/{}", file.manifests(), file.manifest);
        let why = format!(
            "it is missing or changed, and there is no other manifest of {}",
            file.subject
        );
        Err(self.damaged(&object, why))
    }

    /// The key that seals catalogues, epochs and packs under a data key of the control file.
    pub(super) async fn archive_key(
        &self,
        envelope: &Envelope,
        dek_id: &str,
    ) -> Result<ArchiveKey, BackupError> {
        let control = StoredFile {
            subject: control::subject().to_string(),
            file_id: self.deployment.clone(),
            dek_id: dek_id.to_owned(),
            manifest: "0".repeat(64),
            bytes: 0,
            runs: Vec::new(),
            missing: None,
            on_disk: None,
            over: None,
        };
        match self.keyed(envelope, &control).await {
            Ok(keyed) => Ok(keyed.archive_key()),
            Err(error) if error.is_damage() => {
                let why = "there is no manifest of this data key of the control file";
                Err(self.damaged(&control.manifests(), why))
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether an object is what its name says: a SHA-256, behind which a dot and a number may stand.
fn is_named_by_hash(name: &str, content: &[u8]) -> bool {
    let last = name.rsplit('/').next().unwrap_or_default();
    last.split('.').next() == Some(&sha256(content))
}
