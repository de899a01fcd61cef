//! A new data key: `rekeying` with both keys before the data is copied, `ready` with one of them
//! after.

use std::path::Path;
use std::sync::Arc;

use nimbus_keyproviders::recovery::Recipient;
use nimbus_keyproviders::{Dek, ProviderError, proof};
use nimbus_manifests::{DekEntry, DekId, KeyId, ProviderKind, Timestamp, Wrap, WrapContext};

use super::store;
use super::{Envelope, EnvelopeError, KeyedFile, Opened, Stage};
use crate::data_dir::{REKEY, beside, parent, side_files, sync_dir};
use crate::failpoints::crash_point;
use crate::runtime::blocking;

impl Envelope {
    /// Begins a rekey: draws the next data key, wraps it as the first is wrapped (by the current
    /// provider, and to the same recipients), and publishes `rekeying` with both. What an earlier
    /// rekey left of a copy is removed.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError`]; the manifest on disk is then as it was, or already `rekeying`, which the
    /// next opening settles.
    pub async fn begin_rekey(&self, mut file: KeyedFile) -> Result<KeyedFile, EnvelopeError> {
        let path = file.path.clone();
        let keys = self
            .keys()
            .ok_or_else(|| EnvelopeError::EncryptionOff { path: path.clone() })?;
        let wrap_failed = |source: Arc<ProviderError>| EnvelopeError::Wrap {
            path: path.clone(),
            source,
        };
        let now = self.clock.now();
        let mut id = [0; 8];
        self.random.fill(&mut id)?;
        let id = DekId::from_bytes(id);
        let context = WrapContext {
            subject: file.manifest.subject(),
            file_id: file.manifest.file_id(),
            cipher: file.manifest.cipher(),
            dek_id: id,
        };
        let provider = keys.wraps_for(context.subject);
        let (dek, wrap) = proof::generate(provider, &context, now)
            .await
            .map_err(|error| wrap_failed(error.into()))?;
        let mut wraps = vec![wrap];
        for wrap in &file.manifest.deks()[0].wraps {
            if wrap.provider == ProviderKind::Age {
                let wrapped = for_recipient(&wrap.key_id, &dek, &context, now);
                wraps.push(wrapped.map_err(|error| wrap_failed(error.into()))?);
            }
        }
        let entry = DekEntry {
            id,
            created: now,
            wraps,
        };
        file.manifest = file
            .manifest
            .rekeying(entry)
            .map_err(|source| EnvelopeError::Invalid {
                path: path.clone(),
                source,
            })?;
        file.next = Some(Arc::new(dek));
        file.stage = Stage::Rekeying { ended: None };
        let sealed = file.seal();
        let envelope = self.clone();
        blocking(move || {
            remove_copy(&file.path)?;
            envelope.replace(&file.path, &sealed)?;
            crash_point!("rekey::begun");
            Ok(file)
        })
        .await
    }

    /// Ends a rekey that a crash cut short: `opened` says under which of the two keys page 1
    /// authenticated. Writes `ready` with that key alone, and removes what is left of an unfinished
    /// copy.
    ///
    /// # Errors
    ///
    /// As [`Envelope::publish_ready`].
    pub async fn settle(
        &self,
        file: KeyedFile,
        opened: Opened,
    ) -> Result<KeyedFile, EnvelopeError> {
        self.make_ready(file, opened, true).await
    }

    /// Writes `ready`. `renamed`: the name of the file may not be durable yet.
    pub(super) async fn make_ready(
        &self,
        file: KeyedFile,
        opened: Opened,
        renamed: bool,
    ) -> Result<KeyedFile, EnvelopeError> {
        let file = file.under(opened)?;
        let sealed = file.seal();
        let envelope = self.clone();
        blocking(move || {
            remove_copy(&file.path)?;
            // The mirror is about to say that the file is under this key alone: a power cut must
            // not take the swap back.
            if renamed {
                let dir = parent(&file.path);
                sync_dir(dir).map_err(|source| EnvelopeError::Io {
                    action: "flush",
                    path: dir.to_owned(),
                    source,
                })?;
            }
            envelope.replace(&file.path, &sealed)?;
            Ok(file)
        })
        .await
    }
}

/// A wrap for a recipient that a manifest names. One that is refused by now is said to be, and not
/// left out in silence.
fn for_recipient(
    id: &KeyId,
    dek: &Dek,
    context: &WrapContext<'_>,
    now: Timestamp,
) -> Result<Wrap, ProviderError> {
    let recipient: Recipient = id
        .as_str()
        .parse()
        .map_err(|source| ProviderError::Recipient {
            recipient: id.clone(),
            source,
        })?;
    recipient.wrap(dek, context, now)
}

/// Removes the copy that an unfinished rekey left, with its WAL.
fn remove_copy(path: &Path) -> Result<(), EnvelopeError> {
    let copy = beside(path, REKEY);
    for path in side_files(&copy).into_iter().chain([copy]) {
        store::remove(&path).map_err(|source| EnvelopeError::Io {
            action: "remove",
            path,
            source,
        })?;
    }
    Ok(())
}
