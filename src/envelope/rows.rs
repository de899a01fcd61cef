//! Manifests that are rows of a database, and no files: of tenants whose documents are sealed there
//! (`docs/sealed-format.md`).
//!
//! A row and its tenant come to be in one transaction, so a manifest is `ready` from the first:
//! there is no file that could be half made. Whoever owns the rows replaces one only where it still
//! has what was read ([`ManifestRows::replace`]): of two servers that wrap a data key anew at once,
//! one does. There is no copy in the control file: several servers have one row, and each a control
//! file of its own.

use std::error::Error as StdError;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus_manifests::{KeyId, SealedManifest, State, Subject, TenantId};

use super::keyring::Generation;
use super::rewrap::is_wrapped_to;
use super::{
    Envelope, EnvelopeError, Event, EventKind, EventOutcome, KeyRing, KeyedFile, Recipients, Stage,
    manifest_path,
};

/// Why rows could not be read or written.
pub type RowsError = Arc<dyn StdError + Send + Sync>;

/// A tenant, and its manifest if it is sealed.
pub type ManifestRow = (TenantId, Option<Vec<u8>>);

/// The rows of a database that have manifests.
pub trait ManifestRows: Debug + Send + Sync {
    /// What messages call a tenant's row.
    fn place(&self, tenant: &TenantId) -> PathBuf;

    /// All tenants that exist. Blocks.
    ///
    /// # Errors
    ///
    /// What the database said.
    fn list(&self) -> Result<Vec<ManifestRow>, RowsError>;

    /// Proves all that a sealed tenant has stored, with the key of its row. Blocks.
    ///
    /// # Errors
    ///
    /// What is wrong with it, or what the database said.
    fn prove(
        &self,
        envelope: &Envelope,
        tenant: &TenantId,
        file: &KeyedFile,
    ) -> Result<(), RowsError>;

    /// Replaces a manifest, durably, if it is still that of before; whether it was. Blocks.
    ///
    /// # Errors
    ///
    /// What the database said.
    fn replace(&self, tenant: &TenantId, before: &[u8], after: &[u8]) -> Result<bool, RowsError>;
}

/// A data key and a manifest for a row that is not there yet.
#[derive(Debug)]
pub struct Draft {
    file: KeyedFile,
    ring: Generation,
}

impl Draft {
    /// The manifest, as it is to be stored.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        self.file.seal().as_bytes().to_vec()
    }

    /// The key.
    #[must_use]
    pub fn file(&self) -> &KeyedFile {
        &self.file
    }
}

/// What [`Envelope::rewrap_row`] found.
#[derive(Debug)]
pub struct RowRewrap {
    /// Whether a key map has the tenant under a key of its own.
    pub mapped: bool,
    /// The dropped recipients that its data key was wrapped to.
    pub dropped: Vec<KeyId>,
    /// The manifest wrapped anew; `None` when it was so already.
    pub change: Option<SealedManifest>,
}

impl Envelope {
    /// Draws a data key for the tenant of a row, and records that.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError`].
    pub async fn draft(&self, place: &Path, subject: &Subject) -> Result<Draft, EnvelopeError> {
        let keys = self.keys_for(place)?;
        let drawn = self.draw(place, subject, subject.cipher(), &keys, State::Ready);
        let file = KeyedFile {
            stage: Stage::Ready,
            ..drawn.await?
        };
        self.record(Event::new(EventKind::Create, EventOutcome::Done).of(&file.manifest))
            .await?;
        let ring = keys.generation();
        Ok(Draft { file, ring })
    }

    /// Stores a draft, unless a rotation has replaced the keys that it was drawn under: it would be
    /// left behind. Blocks.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::ChangedMeanwhile`]; nothing is stored then.
    pub fn store_draft<T>(
        &self,
        draft: &Draft,
        store: impl FnOnce() -> T,
    ) -> Result<T, EnvelopeError> {
        let _shared = self.publishing.read();
        if self.keys().map(|keys| keys.generation()) != Some(draft.ring) {
            let path = draft.file.path.clone();
            return Err(EnvelopeError::ChangedMeanwhile { path });
        }
        Ok(store())
    }

    /// Unwraps and verifies the manifest of a row. That it was opened is not recorded, and whether
    /// the tenant is locked is not looked at: the database says that, for any server may end a
    /// lock.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError`].
    pub async fn open_row(
        &self,
        place: &Path,
        subject: &Subject,
        text: &[u8],
    ) -> Result<KeyedFile, EnvelopeError> {
        let keys = self.keys_for(place)?;
        let sealed = parse(place, text)?;
        self.unseal(place, subject, subject.cipher(), sealed, &keys)
            .await
    }

    /// Wraps the data key of a row by who wraps for it in `target`, and to the `recipients`. The
    /// manifest is verified first. Nothing is written.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError`].
    pub async fn rewrap_row(
        &self,
        place: &Path,
        subject: &Subject,
        text: &[u8],
        target: &KeyRing,
        recipients: &Recipients,
    ) -> Result<RowRewrap, EnvelopeError> {
        let keys = self.keys_for(place)?;
        let before = parse(place, text)?;
        if before.claims().subject() != subject {
            return Err(EnvelopeError::SubjectMismatch {
                path: manifest_path(place),
                expected: subject.clone(),
                found: before.claims().subject().clone(),
            });
        }
        let deks = before.claims().deks();
        let is_there = |id: &&KeyId| deks.iter().any(|dek| is_wrapped_to(dek, id));
        let dropped = recipients.drop.iter().filter(is_there).cloned().collect();
        let made = self.wrapped_anew(place, &before, false, &keys, target, recipients);
        let change = made.await?.map(|(file, manifest)| {
            let key = file.dek.manifest_key(&manifest.file_id());
            manifest.seal(&key)
        });
        Ok(RowRewrap {
            mapped: target.is_mapped(subject),
            dropped,
            change,
        })
    }

    /// A row has this manifest from here on: its new key is asked.
    pub fn row_rewrapped(&self, after: &SealedManifest) {
        if let Some(keys) = self.keys() {
            self.move_leases(&keys, after);
        }
    }

    fn keys_for(&self, place: &Path) -> Result<Arc<KeyRing>, EnvelopeError> {
        self.keys().ok_or_else(|| EnvelopeError::EncryptionOff {
            path: place.to_owned(),
        })
    }
}

fn parse(place: &Path, text: &[u8]) -> Result<SealedManifest, EnvelopeError> {
    SealedManifest::parse(text).map_err(|source| EnvelopeError::ManifestUnparsable {
        path: manifest_path(place),
        source,
    })
}
