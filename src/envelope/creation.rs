//! A file that comes to be: its ids, its data key, its first manifest.

use std::path::Path;
use std::sync::Arc;

use nimbus_keyproviders::RandomError;
use nimbus_manifests::{
    Cipher, DekEntry, DekId, FileId, Manifest, State, Subject, Timestamp, WrapContext,
};

use super::store::Publish;
use super::{Envelope, EnvelopeError, Event, EventKind, EventOutcome, KeyRing, KeyedFile, Stage};
use crate::runtime::blocking;

impl Envelope {
    /// Draws a file id and a data key, and publishes the `new` manifest.
    pub(super) async fn create(
        &self,
        path: &Path,
        subject: &Subject,
        cipher: Cipher,
        keys: &KeyRing,
    ) -> Result<KeyedFile, EnvelopeError> {
        let file = self.draw(path, subject, cipher, keys, State::New).await?;
        self.record(Event::new(EventKind::Create, EventOutcome::Done).of(&file.manifest))
            .await?;
        let sealed = file.seal();
        let envelope = self.clone();
        let ring = keys.generation();
        blocking(move || {
            let _shared = envelope.publishing.read();
            // A file that comes to be under keys that a rotation has just replaced would be left
            // behind by it.
            if envelope.keys().map(|keys| keys.generation()) != Some(ring) {
                return Err(EnvelopeError::ChangedMeanwhile { path: file.path });
            }
            envelope.publish_held(&file.path, &sealed, Publish::New)?;
            Ok(file)
        })
        .await
    }

    /// Draws ids and a data key, and makes the first manifest. Nothing is written.
    pub(super) async fn draw(
        &self,
        path: &Path,
        subject: &Subject,
        cipher: Cipher,
        keys: &KeyRing,
        state: State,
    ) -> Result<KeyedFile, EnvelopeError> {
        let now = self.clock.now();
        let (file_id, id) = self.draw_ids(now)?;
        let context = WrapContext {
            subject,
            file_id,
            cipher,
            dek_id: id,
        };
        let (dek, wraps, lease) =
            self.generate(keys, &context, now)
                .await
                .map_err(|source| EnvelopeError::Wrap {
                    path: path.to_owned(),
                    source,
                })?;
        let entry = DekEntry {
            id,
            created: now,
            wraps,
        };
        let manifest = Manifest::new(subject.clone(), file_id, cipher, state, 1, now, vec![entry])
            .map_err(|source| EnvelopeError::Invalid {
                path: path.to_owned(),
                source,
            })?;
        Ok(KeyedFile {
            path: path.to_owned(),
            manifest,
            dek: Arc::new(dek),
            next: None,
            stage: Stage::Initialise,
            lease: lease.map(Arc::new),
        })
    }

    /// Ids for a new file and its data key.
    pub(super) fn draw_ids(&self, now: Timestamp) -> Result<(FileId, DekId), RandomError> {
        let (mut file, mut dek) = ([0; 10], [0; 8]);
        self.random.fill(&mut file)?;
        self.random.fill(&mut dek)?;
        let milliseconds = u64::try_from(now.unix()).unwrap_or(0) * 1000;
        let uuid = uuid::Builder::from_unix_timestamp_millis(milliseconds, &file).into_uuid();
        Ok((FileId::from_uuid(uuid), DekId::from_bytes(dek)))
    }
}
