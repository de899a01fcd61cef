//! Applies the opening table to a path, and unwraps what it allows.

use std::path::Path;
use std::sync::Arc;

use nimbus_manifests::{Cipher, SealedManifest, Subject, WrapContext};

use super::standing::Standing;
use super::table::{self, Step};
use super::unwrap::Failure;
use super::{
    Envelope, EnvelopeError, Event, EventKind, EventOutcome, FileKind, Intent, KeyRing, KeyedFile,
    PlainFile, Prepared, ReadError, Stage, classify, manifest_path, store,
};
use crate::error_chain::error_chain;
use crate::runtime::blocking;

/// What stands at `path`, and its manifest.
pub(super) fn look(path: &Path) -> Result<(Option<SealedManifest>, FileKind), EnvelopeError> {
    let manifest = store::read(&manifest_path(path)).map_err(|error| match error {
        ReadError::Io(source) => EnvelopeError::Io {
            action: "read",
            path: manifest_path(path),
            source,
        },
        ReadError::Parse(source) => EnvelopeError::ManifestUnparsable {
            path: manifest_path(path),
            source,
        },
    })?;
    let kind = classify(path).map_err(|source| EnvelopeError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    Ok((manifest, kind))
}

/// How often a manifest is looked at again that was written meanwhile.
const LOOKS: usize = 8;

impl Envelope {
    /// Applies the opening table to `path`: unwraps and verifies, or draws a key and publishes a
    /// `new` manifest, or refuses.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError`] names the row of the table, or what failed.
    pub async fn prepare(
        &self,
        path: &Path,
        subject: &Subject,
        cipher: Cipher,
        intent: Intent,
    ) -> Result<Prepared, EnvelopeError> {
        if let Some(tenant) = subject.tenant()
            && self.is_locked(tenant)
        {
            return Err(EnvelopeError::Locked {
                tenant: tenant.clone(),
            });
        }
        let (step, manifest) = self.examine(path, subject, cipher, intent).await?;
        let plain = |exists| {
            Ok(Prepared::Plain(PlainFile {
                path: path.to_owned(),
                exists,
            }))
        };
        match (step, manifest, self.keys()) {
            (Step::OpenPlain, ..) => plain(true),
            (Step::CreatePlain, ..) => plain(false),
            (Step::Keyed(stage), Some(sealed), Some(keys)) => {
                let unsealed = self.unseal(path, subject, cipher, sealed, &keys).await;
                unsealed.map(|file| Prepared::Keyed(KeyedFile { stage, ..file }))
            }
            (Step::Create, _, Some(keys)) => self
                .create(path, subject, cipher, &keys)
                .await
                .map(Prepared::Keyed),
            // `decide` takes these steps only with keys and, but for `Create`, a manifest; should
            // that change, fail closed.
            (Step::Keyed(_) | Step::Create, ..) => Err(EnvelopeError::EncryptionOff {
                path: path.to_owned(),
            }),
        }
    }

    /// What the opening table says of `path`, and the manifest that it said it of. No key is used.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError`] names the row of the table.
    async fn examine(
        &self,
        path: &Path,
        subject: &Subject,
        cipher: Cipher,
        intent: Intent,
    ) -> Result<(Step, Option<SealedManifest>), EnvelopeError> {
        let (manifest, kind, standing) = blocking({
            let (this, path, subject) = (self.clone(), path.to_owned(), subject.clone());
            move || this.look(&path, &subject)
        })
        .await?;
        let state = manifest.as_ref().map(|sealed| sealed.claims().state());
        let encryption = self.keys.is_some();
        let step = table::decide(path, state, standing, kind, cipher, encryption, intent)?;
        Ok((step, manifest))
    }

    /// Whether the opening table lets the file of `subject` at `path` be opened. No key is used.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError`] names the row of the table.
    pub(crate) async fn check(
        &self,
        path: &Path,
        subject: &Subject,
        cipher: Cipher,
    ) -> Result<(), EnvelopeError> {
        let examined = self.examine(path, subject, cipher, Intent::Open);
        examined.await.map(drop)
    }

    /// What stands at `path`, its manifest, and how that stands to its copies. Blocks.
    pub(super) fn look(
        &self,
        path: &Path,
        subject: &Subject,
    ) -> Result<(Option<SealedManifest>, FileKind, Standing), EnvelopeError> {
        let (mut manifest, mut kind) = look(path)?;
        let Some(mirror) = self.mirror_of(path, subject) else {
            return Ok((manifest, kind, Standing::Unknown));
        };
        for _again in 0..LOOKS {
            let copies = mirror
                .get(subject)
                .map_err(|source| EnvelopeError::Mirror {
                    path: path.to_owned(),
                    source,
                })?;
            let standing = match &manifest {
                // Whose it is comes first.
                Some(there) if there.claims().subject() != subject => Standing::Known,
                there => Standing::of(there.as_ref(), &copies),
            };
            let suspect = match standing {
                // The rekey may have ended between the two looks.
                Standing::Older | Standing::Ended(_) => true,
                Standing::Same | Standing::Known => kind == FileKind::Absent,
                Standing::Unknown => false,
            };
            if !suspect {
                return Ok((manifest, kind, standing));
            }
            // Manifest and copies are of one moment only if nobody wrote the manifest meanwhile.
            let (now, kind_now) = look(path)?;
            if now == manifest && kind_now == kind {
                return Ok((manifest, kind, standing));
            }
            (manifest, kind) = (now, kind_now);
        }
        Err(EnvelopeError::ChangedMeanwhile {
            path: path.to_owned(),
        })
    }

    /// The file at `path` under `sealed`, a manifest for it wherever that came from; whether its
    /// database opens by it is not known yet.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError`]: the keys in force do not unwrap it, or its MAC is wrong.
    pub(crate) async fn under(
        &self,
        path: &Path,
        sealed: &SealedManifest,
    ) -> Result<KeyedFile, EnvelopeError> {
        let keys = self.keys().ok_or_else(|| EnvelopeError::EncryptionOff {
            path: path.to_owned(),
        })?;
        let (subject, cipher) = (sealed.claims().subject(), sealed.claims().cipher());
        self.unseal(path, subject, cipher, sealed.clone(), &keys)
            .await
    }

    /// The keys that a manifest of a backup holds; the file itself is not looked at. `path` is for
    /// messages.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError`].
    pub(crate) async fn unseal_apart(
        &self,
        path: &Path,
        sealed: SealedManifest,
    ) -> Result<KeyedFile, EnvelopeError> {
        let Some(keys) = self.keys() else {
            let path = path.to_owned();
            return Err(EnvelopeError::EncryptionOff { path });
        };
        let (subject, cipher) = (sealed.claims().subject().clone(), sealed.claims().cipher());
        self.unseal(path, &subject, cipher, sealed, &keys).await
    }

    /// Unwraps the keys that `sealed` holds, and lets nothing of it count before its MAC was
    /// verified.
    pub(super) async fn unseal(
        &self,
        path: &Path,
        subject: &Subject,
        cipher: Cipher,
        sealed: SealedManifest,
        keys: &KeyRing,
    ) -> Result<KeyedFile, EnvelopeError> {
        let claims = sealed.claims();
        if claims.subject() != subject {
            return Err(EnvelopeError::SubjectMismatch {
                path: manifest_path(path),
                expected: subject.clone(),
                found: claims.subject().clone(),
            });
        }
        if claims.cipher() != cipher {
            return Err(EnvelopeError::CipherMismatch {
                path: manifest_path(path),
                expected: cipher,
                found: claims.cipher(),
            });
        }
        let mut deks = Vec::with_capacity(claims.deks().len());
        let mut lease = None;
        for entry in claims.deks() {
            let context = WrapContext {
                subject,
                file_id: claims.file_id(),
                cipher,
                dek_id: entry.id,
            };
            let unwrapped = self.unwrap(keys, path, entry, &context).await;
            if let Err(Failure { error, fresh: true }) = &unwrapped {
                // What it claims: nothing of it is verified without the key.
                let event = Event::new(EventKind::UnwrapFailed, EventOutcome::Failed);
                self.note(event.of(claims).saying(error_chain(error)));
            }
            let (dek, held) = unwrapped.map_err(|failure| failure.error)?;
            deks.push(Arc::new(dek));
            lease = lease.or(held);
        }
        let mut deks = deks.into_iter();
        let (Some(dek), next) = (deks.next(), deks.next()) else {
            unreachable!("a manifest holds one data key or two: its parser refuses others")
        };
        let manifest = sealed
            .verify(&dek.manifest_key(&claims.file_id()))
            .map_err(|_mismatch| EnvelopeError::ManifestTampered {
                path: manifest_path(path),
            })?
            .clone();
        let stage = Stage::from(manifest.state());
        Ok(KeyedFile {
            path: path.to_owned(),
            manifest,
            dek,
            next,
            stage,
            lease: lease.map(Arc::new),
        })
    }
}
