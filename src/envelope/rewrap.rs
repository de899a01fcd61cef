//! A data key under another key: the manifest changes, no page of the data does.
//!
//! Many manifests are replaced at once: announced to the mirror in one commit, all written, flushed
//! together, renamed, and made the mirror's only copies in a second commit. States a crash can
//! leave, for each manifest by itself:
//!
//! | after | on disk | the next start |
//! | --- | --- | --- |
//! | announced | old manifest; copies of the old one and of the new | opens with the old key, and drops the new copy |
//! | temporary files written, flushed | the same, and a `.nimbus-tmp-…` | the same; the rest is removed |
//! | renamed | new manifest; both copies | opens with the new key, and drops the old copy |
//! | mirrored | new manifest, its copy alone | opens with the new key |
//!
//! Both keys are configured until all is done, so that each of these opens. Should the operator
//! turn back instead and destroy either key, a lost manifest still comes back: one of the two
//! copies is under the key that is left.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use nimbus_keyproviders::recovery::Recipient;
use nimbus_keyproviders::{Dek, KeyProvider, ProviderError, proof, same_key};
use nimbus_manifests::{
    DekEntry, KeyId, Manifest, ProviderKind, SealedManifest, State, Subject, Wrap, WrapContext,
};

use super::opening::look;
use super::standing::Standing;
use super::{Envelope, EnvelopeError, KeyRing, KeyedFile, MirrorError, manifest_path, store};
use crate::failpoints::crash_point;
use crate::runtime::blocking;

/// Recovery recipients to add to manifests, and to drop from them. All others are kept.
#[derive(Debug, Clone, Default)]
pub struct Recipients {
    /// Each data key is wrapped to these, too.
    pub add: Vec<Recipient>,
    /// Wraps to these are left out.
    pub drop: Vec<KeyId>,
}

/// A manifest that was wrapped anew and is not published yet.
#[derive(Debug)]
pub struct Rewrapped {
    path: PathBuf,
    before: SealedManifest,
    pub(super) after: SealedManifest,
    /// What the mirror keeps of `before` and `after`; `None` where it keeps nothing.
    copies: Option<(SealedManifest, SealedManifest)>,
}

impl Rewrapped {
    /// The protected file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose it is.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        self.manifest().subject()
    }

    /// The manifest as it will be.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        self.after.claims()
    }
}

/// What [`Envelope::rewrap`] found.
#[derive(Debug)]
pub struct Rewrap {
    /// Whether a key map has it under a key of its own.
    pub mapped: bool,
    /// The dropped recipients that its data keys were wrapped to.
    pub dropped: Vec<KeyId>,
    /// The manifest wrapped anew; `None` when it was so already.
    pub change: Option<Rewrapped>,
}

impl Envelope {
    /// Proves that `by` can wrap for `subject` and unwrap it again, with a random data key that
    /// nothing is encrypted under.
    ///
    /// # Errors
    ///
    /// What the provider said.
    pub async fn prove(
        &self,
        by: &dyn KeyProvider,
        subject: &Subject,
    ) -> Result<(), ProviderError> {
        let now = self.clock.now();
        let (file_id, dek_id) = self.draw_ids(now)?;
        let context = WrapContext {
            subject,
            file_id,
            cipher: subject.cipher(),
            dek_id,
        };
        let dek = Dek::generate(&*self.random)?;
        let _proven = proof::wrap(by, &dek, &context, now).await?;
        Ok(())
    }

    /// Wraps the data keys of `path` by who wraps for it in `target`, and to the `recipients`. What
    /// unwraps them now is in force. The manifest is verified first. Nothing is written.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError`]: the manifest is missing or not right, or a key cannot be had.
    pub async fn rewrap(
        &self,
        path: &Path,
        target: &KeyRing,
        recipients: &Recipients,
    ) -> Result<Rewrap, EnvelopeError> {
        let keys = self.keys().ok_or_else(|| EnvelopeError::EncryptionOff {
            path: path.to_owned(),
        })?;
        let (before, standing) = blocking({
            let (this, path) = (self.clone(), path.to_owned());
            move || {
                let (sealed, _kind) = look(&path)?;
                let Some(sealed) = sealed else {
                    return Err(EnvelopeError::ManifestMissing { path });
                };
                let (sealed, _kind, standing) = this.look(&path, sealed.claims().subject())?;
                let sealed = sealed.ok_or(EnvelopeError::ManifestMissing { path })?;
                Ok((sealed, standing))
            }
        })
        .await?;
        // Written anew it would be the newest.
        if matches!(standing, Standing::Older | Standing::Ended(_)) {
            return Err(EnvelopeError::ManifestOlder {
                path: path.to_owned(),
            });
        }
        let deks = before.claims().deks();
        let is_there = |id: &&KeyId| deks.iter().any(|dek| is_wrapped_to(dek, id));
        let same = Rewrap {
            mapped: target.is_mapped(before.claims().subject()),
            dropped: recipients.drop.iter().filter(is_there).cloned().collect(),
            change: None,
        };
        let verified = standing == Standing::Same;
        let made = self.wrapped_anew(path, &before, verified, &keys, target, recipients);
        let Some((file, manifest)) = made.await? else {
            return Ok(same);
        };
        let invalid = |source| EnvelopeError::Invalid {
            path: path.to_owned(),
            source,
        };
        let seal = |manifest: &Manifest| manifest.seal(&file.dek.manifest_key(&manifest.file_id()));
        let after = seal(&manifest);
        let copies = match (manifest.state(), standing) {
            // Nothing is in it yet.
            (State::New, Standing::Unknown) => None,
            // A creation that was cut short: the mirror has what comes next, and is to have it
            // under the new key.
            (State::New, _) => {
                let next = |manifest: &Manifest| manifest.settled(0).map(|next| seal(&next));
                Some((
                    next(&file.manifest).map_err(invalid)?,
                    next(&manifest).map_err(invalid)?,
                ))
            }
            _ => Some((before.clone(), after.clone())),
        };
        let change = Rewrapped {
            path: path.to_owned(),
            before,
            after,
            copies,
        };
        Ok(Rewrap {
            change: Some(change),
            ..same
        })
    }

    /// The file of a manifest of a backup, wrapped by who wraps for it now; `None` when it is so
    /// already. `path` is for messages.
    ///
    /// # Errors
    ///
    /// As [`Envelope::rewrap`].
    pub(crate) async fn rewrap_apart(
        &self,
        path: &Path,
        sealed: &SealedManifest,
    ) -> Result<Option<SealedManifest>, EnvelopeError> {
        let keys = self.keys().ok_or_else(|| EnvelopeError::EncryptionOff {
            path: path.to_owned(),
        })?;
        let recipients = Recipients::default();
        let made = self.wrapped_anew(path, sealed, false, &keys, &keys, &recipients);
        let Some((file, manifest)) = made.await? else {
            return Ok(None);
        };
        let key = file.dek.manifest_key(&manifest.file_id());
        Ok(Some(manifest.seal(&key)))
    }

    /// The file of the manifest `before`, and that manifest with its data keys wrapped anew; `None`
    /// when they are wrapped so already. What one says that was not `verified` before is believed
    /// only once it has opened.
    pub(super) async fn wrapped_anew(
        &self,
        path: &Path,
        before: &SealedManifest,
        verified: bool,
        keys: &KeyRing,
        target: &KeyRing,
        recipients: &Recipients,
    ) -> Result<Option<(KeyedFile, Manifest)>, EnvelopeError> {
        let (subject, cipher) = (before.claims().subject().clone(), before.claims().cipher());
        let wrap_failed = |source: Arc<ProviderError>| EnvelopeError::Wrap {
            path: path.to_owned(),
            source,
        };
        let target = target.wraps_for(&subject);
        let wanted = (
            target.kind(),
            target
                .key_id(&subject)
                .await
                .map_err(|error| wrap_failed(error.into()))?,
        );
        // A recovery identity is there because keys do not open: that a wrap names the wanted key
        // proves nothing then.
        let recovering = keys
            .providers()
            .any(|provider| provider.kind() == ProviderKind::Age);
        // Nor does it in a manifest that nobody has verified yet.
        let doubted = recovering || !verified;
        let done = |dek: &DekEntry| is_wrapped(dek, &wanted, recipients);
        if !doubted && before.claims().deks().iter().all(done) {
            return Ok(None);
        }
        let file = self
            .unseal(path, &subject, cipher, before.clone(), keys)
            .await?;
        let mut wraps = Vec::with_capacity(2);
        let plain = std::iter::once(&*file.dek).chain(file.next.as_deref());
        for (entry, dek) in file.manifest.deks().iter().zip(plain) {
            let context = WrapContext {
                subject: &subject,
                file_id: file.manifest.file_id(),
                cipher,
                dek_id: entry.id,
            };
            let mut kept = entry.wraps.iter().find(|wrap| is_by(wrap, &wanted));
            if let Some(wrap) = kept
                && doubted
            {
                let opens = proof::opens(target, wrap, dek, &context).await;
                kept = opens
                    .map_err(|error| wrap_failed(error.into()))?
                    .then_some(wrap);
            }
            let made = self.wraps(entry, dek, &context, target, kept, recipients);
            wraps.push(made.await.map_err(|error| wrap_failed(error.into()))?);
        }
        let before_and_after = file.manifest.deks().iter().zip(&wraps);
        if before_and_after
            .into_iter()
            .all(|(entry, wraps)| entry.wraps == *wraps)
        {
            return Ok(None);
        }
        let manifest = file.manifest.rewrapped(wraps);
        let manifest = manifest.map_err(|source| EnvelopeError::Invalid {
            path: path.to_owned(),
            source,
        })?;
        Ok(Some((file, manifest)))
    }

    /// The wraps of one data key: the target's, the one that is kept or a new one, then the
    /// recipients'.
    async fn wraps(
        &self,
        entry: &DekEntry,
        dek: &Dek,
        context: &WrapContext<'_>,
        target: &dyn KeyProvider,
        kept: Option<&Wrap>,
        recipients: &Recipients,
    ) -> Result<Vec<Wrap>, ProviderError> {
        let now = self.clock.now();
        let mut wraps = vec![match kept {
            Some(wrap) => wrap.clone(),
            None => proof::wrap(target, dek, context, now).await?,
        }];
        let kept = |wrap: &&Wrap| {
            wrap.provider == ProviderKind::Age && !recipients.drop.contains(&wrap.key_id)
        };
        wraps.extend(entry.wraps.iter().filter(kept).cloned());
        for recipient in &recipients.add {
            if !wraps.iter().any(|wrap| wrap.key_id == *recipient.key_id()) {
                wraps.push(recipient.wrap(dek, context, now)?);
            }
        }
        Ok(wraps)
    }

    /// Publishes what was wrapped anew, all with a few flushes. A manifest that was changed or
    /// removed meanwhile is left as it is; the paths of those are returned. Blocks.
    ///
    /// # Errors
    ///
    /// [`EnvelopeError::Mirror`] or [`EnvelopeError::Io`]: some manifests may be new and some old,
    /// each whole.
    pub fn publish_rewrapped(&self, batch: Vec<Rewrapped>) -> Result<Vec<PathBuf>, EnvelopeError> {
        // Nobody creates, settles or removes a manifest between the look and the rename.
        let _alone = self
            .publishing
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let unchanged = |one: &Rewrapped| is_at_place(&one.path, &one.before);
        let (batch, changed): (Vec<_>, Vec<_>) = batch.into_iter().partition(unchanged);
        let changed = changed
            .into_iter()
            .map(|rewrapped| rewrapped.path)
            .collect();
        let Some(first) = batch.first() else {
            return Ok(changed);
        };
        if let Some(mirror) = &self.mirror {
            self.to_mirror(
                &batch,
                |(_before, after), _one| after,
                |copies| mirror.copies.announce(copies),
            )?;
            crash_point!("manifests::announced");
        }
        let manifests: Vec<_> = batch
            .iter()
            .map(|rewrapped| (manifest_path(&rewrapped.path), rewrapped.after.as_bytes()))
            .collect();
        let replaced = store::replace_many(&manifests);
        let is_new = |one: &Rewrapped| replaced.is_ok() || is_at_place(&one.path, &one.after);
        batch.iter().for_each(|one| self.published.note(&one.path));
        if let Some(keys) = self.keys() {
            let new = batch.iter().filter(|one| is_new(one));
            new.for_each(|one| self.move_leases(&keys, &one.after));
        }
        if let Some(mirror) = &self.mirror {
            self.to_mirror(
                &batch,
                |(before, after), one| if is_new(one) { after } else { before },
                |copies| mirror.copies.put_many(copies),
            )?;
            crash_point!("manifests::mirrored");
        }
        replaced.map_err(|source| EnvelopeError::Io {
            action: "write the manifests beside",
            path: first.path.clone(),
            source,
        })?;
        Ok(changed)
    }

    /// Gives manifests to the mirror, but those that are none of its business.
    fn to_mirror<'a>(
        &self,
        batch: &'a [Rewrapped],
        which: impl Fn(&'a (SealedManifest, SealedManifest), &'a Rewrapped) -> &'a SealedManifest,
        give: impl FnOnce(&[(&Subject, &[u8])]) -> Result<(), MirrorError>,
    ) -> Result<(), EnvelopeError> {
        let copy = |one: &'a Rewrapped| {
            let _mirror = self.mirror_of(&one.path, one.subject())?;
            Some((one.subject(), which(one.copies.as_ref()?, one).as_bytes()))
        };
        let copies: Vec<_> = batch.iter().filter_map(copy).collect();
        let Some(first) = batch.first() else {
            return Ok(());
        };
        give(&copies).map_err(|source| EnvelopeError::Mirror {
            path: first.path.clone(),
            source,
        })
    }
}

/// Whether this very manifest stands beside `path`.
pub(super) fn is_at_place(path: &Path, manifest: &SealedManifest) -> bool {
    matches!(
        store::read(&manifest_path(path)),
        Ok(Some(now)) if now.as_bytes() == manifest.as_bytes()
    )
}

/// Whether a data key has the wanted wrap, no other provider's, and the recipients as asked for.
/// Whether a data key is wrapped to an age recipient.
pub(super) fn is_wrapped_to(entry: &DekEntry, recipient: &KeyId) -> bool {
    let is_it = |wrap: &Wrap| wrap.provider == ProviderKind::Age && wrap.key_id == *recipient;
    entry.wraps.iter().any(is_it)
}

fn is_wrapped(entry: &DekEntry, wanted: &(ProviderKind, KeyId), recipients: &Recipients) -> bool {
    let of_age = |id: &KeyId| is_wrapped_to(entry, id);
    entry
        .wraps
        .iter()
        .all(|wrap| wrap.provider == ProviderKind::Age || is_by(wrap, wanted))
        && entry.wraps.iter().any(|wrap| is_by(wrap, wanted))
        && recipients.add.iter().all(|one| of_age(one.key_id()))
        && !recipients.drop.iter().any(of_age)
}

fn is_by(wrap: &Wrap, (provider, key_id): &(ProviderKind, KeyId)) -> bool {
    wrap.provider == *provider && same_key(&wrap.key_id, key_id)
}
