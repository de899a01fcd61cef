//! `rotate-kek`: the data keys of one file, or of all, under another key. No page of the data is
//! touched.
//!
//! Each file is a rotation of its own: one that was interrupted leaves some files on the old key
//! and some on the new, `status` shows which, and running it again finishes the rest.

mod error;
mod request;
mod rows;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus_keyproviders::{KeyProvider, OsRandom, ProviderConfig, key_dir, keyfile, same_key};
use nimbus_manifests::{KeyId, Subject};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

pub use error::RotateKekError;
pub use request::Request;

use super::{Failure, protected_files};
use crate::config::keys::reject_key_beside;
use crate::data_dir::protected_by;
use crate::envelope::{
    Envelope, EnvelopeError, Event, EventKind, EventOutcome, KeyRing, ManifestRows, Mapped,
    Recipients, Rewrapped, manifest_path, metered, read_manifest,
};
use crate::error_chain::error_chain;
use crate::runtime::{Progress, blocking};
use rows::Sums;

/// What was asked for, checked.
#[derive(Debug)]
pub struct RotateKek {
    path: PathBuf,
    all: bool,
    target: Option<ProviderConfig>,
    mapped: Mapped,
    recipients: Recipients,
}

/// The keys of a rotation.
struct Keys {
    /// In force when it began.
    before: Arc<KeyRing>,
    /// As they are to wrap afterwards.
    after: Arc<KeyRing>,
    /// The new key, if there is one.
    target: Option<Arc<dyn KeyProvider>>,
}

/// The result of `rotate-kek`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = KekRotated)]
pub struct Rotated {
    /// `<provider> <key id>` that the files are wrapped by now; without the key id for key-dir.
    pub key: String,
    /// Files whose wraps were changed.
    pub rewrapped: u64,
    /// Files that had them already.
    pub unchanged: u64,
    /// How many of these belong to tenants that the key map names: they are under their own keys,
    /// and not under the new one.
    pub kept: u64,
    /// Recipients that were to be dropped, and to which no data key was wrapped.
    pub not_wrapped_to: Vec<String>,
    /// Files that are as they were, and why.
    pub failed: Vec<Failure>,
}

impl RotateKek {
    /// The directory that the files are in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        if self.all {
            &self.path
        } else {
            crate::data_dir::parent(&self.path)
        }
    }

    /// Refuses a path where nothing stands, a directory without `all`, and a file with it. Blocks.
    ///
    /// # Errors
    ///
    /// [`RotateKekError::NotThere`], [`RotateKekError::WrongPath`].
    pub fn check_path(&self) -> Result<(), RotateKekError> {
        let there = |path: &Path| std::fs::symlink_metadata(path).is_ok();
        if !there(&self.path) && !there(&manifest_path(&self.path)) {
            let path = self.path.clone();
            return Err(RotateKekError::NotThere { path });
        }
        if self.path.is_dir() == self.all {
            return Ok(());
        }
        Err(RotateKekError::WrongPath {
            path: self.path.clone(),
            all: self.all,
        })
    }

    /// Accepts the new key already, where it can be had: a rotation that was cut short may have
    /// left the control file under it.
    pub async fn accept_target(&self, envelope: &Envelope) {
        let (Some(config), Some(keys)) = (&self.target, envelope.keys()) else {
            return;
        };
        // What is wrong with it is said when it is to wrap.
        if let Ok(target) = config.connect().await {
            envelope.use_keys(keys.also_accepting(metered(target)));
        }
    }

    /// Does it. With `all`, the new key is the one that wraps from now on in this process; the old
    /// ones are still accepted.
    ///
    /// `control_dir` is looked through, too, when it is not the directory itself, and so are the
    /// `manifests` of a database, with `all`.
    ///
    /// # Errors
    ///
    /// [`RotateKekError`] when it was not begun, or when the disk failed; a file's own trouble is
    /// part of the answer.
    pub async fn run(
        self,
        envelope: &Envelope,
        control_dir: Option<&Path>,
        manifests: Option<Arc<dyn ManifestRows>>,
        progress: Progress,
    ) -> Result<Rotated, RotateKekError> {
        self.check_path()?;
        let keys = self.keys(envelope, control_dir).await?;
        let key = describe(keys.after.current()).await;
        let put = self.put_in_force(envelope, &keys).await?;
        let in_force = put.is_some();
        let rotated = async {
            if let Some(put) = put {
                envelope.record(put).await?;
            }
            self.rewrap(envelope, control_dir, manifests, keys, progress)
                .await
        };
        rotated.await.map_err(|error| match error {
            RotateKekError::Stopped { .. } => error,
            error if in_force => RotateKekError::Unfinished {
                key,
                source: Box::new(error),
            },
            error => error,
        })
    }

    /// Wraps every file anew.
    async fn rewrap(
        self,
        envelope: &Envelope,
        control_dir: Option<&Path>,
        manifests: Option<Arc<dyn ManifestRows>>,
        keys: Keys,
        progress: Progress,
    ) -> Result<Rotated, RotateKekError> {
        // What was created since is under the old key; what is created from here on is under the
        // new one.
        let mut paths = self.files(control_dir).await?;
        if let Some(ProviderConfig::KeyDir { dir }) = &self.target {
            let (dir, paths) = (dir.clone(), paths.clone());
            blocking(move || make_keys(&dir, &paths)).await?;
        }
        // Of files that had the key already, after a rotation that was cut short: of theirs, too,
        // no copy under the old key is to stay.
        let (core, dir) = (envelope.clone(), self.dir().to_owned());
        blocking(move || core.settle_mirror(&dir)).await?;
        let mut rotated = Rotated {
            key: describe(keys.after.current()).await,
            ..Rotated::default()
        };
        let mut kept = BTreeSet::new();
        let mut dropped = BTreeSet::new();
        let total = paths.len() as u64;
        // Tenants that are made meanwhile write their manifests once more, others go away: both are
        // looked at again.
        for left in (0..TRIES).rev() {
            let mut moving = Vec::new();
            for batch in paths.chunks(BATCH) {
                let rotating = self.rotate(
                    envelope,
                    &keys,
                    batch,
                    &mut rotated,
                    &mut kept,
                    &mut dropped,
                );
                moving.extend(rotating.await?);
                let done = rotated.rewrapped + rotated.unchanged + rotated.failed.len() as u64;
                if !progress(done, total) && done < total {
                    return Err(RotateKekError::Stopped { done, total });
                }
            }
            if moving.is_empty() {
                break;
            }
            paths = self.files(control_dir).await?;
            moving.retain(|(path, _why)| paths.contains(path));
            if left == 0 {
                let failed = moving.drain(..).map(|(path, error)| Failure {
                    path: path.display().to_string(),
                    error,
                });
                rotated.failed.extend(failed);
            }
            paths = moving.into_iter().map(|(path, _why)| path).collect();
        }
        if let Some(manifests) = manifests.filter(|_| self.all) {
            let sums = Sums {
                rotated: &mut rotated,
                kept: &mut kept,
                dropped: &mut dropped,
            };
            self.rewrap_rows(envelope, &manifests, &keys, sums).await?;
        }
        rotated.kept = kept.len() as u64;
        let wrapped_to_none = self
            .recipients
            .drop
            .iter()
            .filter(|id| !dropped.contains(*id));
        rotated.not_wrapped_to = wrapped_to_none.map(ToString::to_string).collect();
        Ok(rotated)
    }

    async fn files(&self, control_dir: Option<&Path>) -> Result<Vec<PathBuf>, RotateKekError> {
        let (path, all) = (self.path.clone(), self.all);
        let control_dir = control_dir.map(Path::to_owned);
        blocking(move || files(path, all, control_dir)).await
    }

    /// Connects the new key, and proves it.
    async fn keys(
        &self,
        envelope: &Envelope,
        control_dir: Option<&Path>,
    ) -> Result<Keys, RotateKekError> {
        let before = envelope.keys().ok_or(RotateKekError::EncryptionOff)?;
        let paths = self.files(control_dir).await?;
        let Some(config) = &self.target else {
            let after = before.clone();
            self.prove(envelope, &after, &paths).await?;
            let target = None;
            return Ok(Keys {
                before,
                after,
                target,
            });
        };
        let dirs: Vec<_> = paths
            .iter()
            .map(|path| crate::data_dir::parent(path).to_owned())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        reject_key_beside(config, &dirs)?;
        if let ProviderConfig::KeyDir { dir } = config {
            let (dir, paths) = (dir.clone(), paths.clone());
            blocking(move || make_keys(&dir, &paths)).await?;
        }
        let target = metered(config.connect().await?);
        target.check().await?;
        let after = Arc::new(before.moved_to(target.clone(), self.mapped));
        self.prove(envelope, &after, &paths).await?;
        Ok(Keys {
            before,
            after,
            target: Some(target),
        })
    }

    /// Puts the new key in force. With `all` it wraps from now on, and the audit log says so first:
    /// what it cannot hold is not done. Gives the event that is to end that.
    async fn put_in_force(
        &self,
        envelope: &Envelope,
        keys: &Keys,
    ) -> Result<Option<Event>, RotateKekError> {
        let Some(target) = keys.target.clone() else {
            return Ok(None);
        };
        if !self.all {
            envelope.use_keys(keys.before.also_accepting(target));
            return Ok(None);
        }
        let event = Event::new(EventKind::Rewrap, EventOutcome::Begun);
        let said = format!("{} wraps new files from now on", describe(&*target).await);
        let event = event.saying(said);
        envelope.record(event.clone()).await?;
        envelope.use_keys(keys.before.moved_to(target, self.mapped));
        Ok(Some(event.ended(&Ok::<_, RotateKekError>(()))))
    }

    /// Has the key that is to wrap prove itself on a random data key, as soon as one file needs it.
    /// Tenants with keys of their own are left out: what one customer does with its key stops
    /// nobody else, and each wrap is proven again by itself.
    async fn prove(
        &self,
        envelope: &Envelope,
        after: &KeyRing,
        paths: &[PathBuf],
    ) -> Result<(), RotateKekError> {
        for path in paths {
            let manifest = manifest_path(path);
            // What cannot be read is reported when its turn comes.
            let Ok(Some(sealed)) = blocking(move || read_manifest(&manifest)).await else {
                continue;
            };
            let subject = sealed.claims().subject();
            if after.is_mapped(subject) {
                continue;
            }
            let by = after.wraps_for(subject);
            let id = by.key_id(subject).await?;
            let wraps = sealed.claims().deks().iter().map(|dek| &dek.wraps);
            let mut there = wraps.map(|wraps| wraps.iter().any(|wrap| same_key(&wrap.key_id, &id)));
            if !there.all(|there| there) {
                return Ok(envelope.prove(by, subject).await?);
            }
        }
        Ok(())
    }

    /// One batch: wrapped anew side by side, published together. Gives those that are as they were
    /// because their manifests were written, or not there, just then, and what to say of each.
    async fn rotate(
        &self,
        envelope: &Envelope,
        keys: &Keys,
        paths: &[PathBuf],
        rotated: &mut Rotated,
        kept: &mut BTreeSet<PathBuf>,
        dropped: &mut BTreeSet<KeyId>,
    ) -> Result<Vec<(PathBuf, String)>, RotateKekError> {
        let mut moving = Vec::new();
        let mut ready: Vec<Rewrapped> = Vec::with_capacity(paths.len());
        let mut wrapping = JoinSet::new();
        let mut waiting = paths.iter();
        loop {
            while wrapping.len() < AT_ONCE
                && let Some(path) = waiting.next()
            {
                let (envelope, path) = (envelope.clone(), path.clone());
                let (after, recipients) = (keys.after.clone(), self.recipients.clone());
                drop(wrapping.spawn(async move {
                    let result = envelope.rewrap(&path, &after, &recipients).await;
                    (path, result)
                }));
            }
            let Some(Ok((path, result))) = wrapping.join_next().await else {
                break;
            };
            match result {
                Ok(found) => {
                    dropped.extend(found.dropped);
                    if found.mapped && self.target.is_some() {
                        kept.insert(path);
                    }
                    match found.change {
                        Some(rewrapped) => ready.push(rewrapped),
                        None => rotated.unchanged += 1,
                    }
                }
                Err(error @ EnvelopeError::ManifestMissing { .. }) => {
                    moving.push((path, error_chain(&error)));
                }
                Err(error) => rotated.failed.push(Failure {
                    path: path.display().to_string(),
                    error: error_chain(&error),
                }),
            }
        }
        let leaves_its_own =
            |subject: &Subject| self.mapped == Mapped::Move && keys.before.is_mapped(subject);
        let events: Vec<_> = ready
            .iter()
            .map(|one| {
                let begun = Event::new(EventKind::Rewrap, EventOutcome::Begun).of(one.manifest());
                let event = match leaves_its_own(one.subject()) {
                    true => begun.saying(LEFT_THE_MAP),
                    false => begun,
                };
                (one.path().to_owned(), event)
            })
            .collect();
        let begun = events.iter().map(|(_path, event)| event.clone());
        envelope.record_all(begun.collect()).await?;
        let count = ready.len() as u64;
        let publisher = envelope.clone();
        let published = blocking(move || publisher.publish_rewrapped(ready)).await;
        let ended = events.into_iter().map(|(path, event)| match &published {
            Ok(changed) if changed.contains(&path) => Event {
                outcome: EventOutcome::Failed,
                ..event.saying("its manifest was changed meanwhile")
            },
            published => event.ended(published),
        });
        envelope.record_all(ended.collect()).await?;
        let changed = published?;
        rotated.rewrapped += count - changed.len() as u64;
        moving.extend(changed.into_iter().map(|path| (path, CHANGED.to_owned())));
        Ok(moving)
    }
}

/// The protected files that are meant.
fn files(
    path: PathBuf,
    all: bool,
    control_dir: Option<PathBuf>,
) -> Result<Vec<PathBuf>, RotateKekError> {
    if !all {
        return Ok(vec![protected_by(&path).unwrap_or(path)]);
    }
    protected_files(&path, control_dir.as_deref())
        .map_err(|(path, source)| RotateKekError::Read { path, source })
}

/// Makes the keys of a new key directory that are not there yet. Each is durable before anything is
/// wrapped by it.
fn make_keys(dir: &Path, files: &[PathBuf]) -> Result<(), RotateKekError> {
    for file in files {
        // What cannot be read is reported when its turn comes.
        if let Ok(Some(sealed)) = read_manifest(&manifest_path(file)) {
            let key = key_dir::path_for(dir, sealed.claims().subject());
            if std::fs::symlink_metadata(&key).is_err() {
                let _key = keyfile::generate_new(&key, &OsRandom)?;
            }
        }
    }
    Ok(())
}

async fn describe(provider: &dyn KeyProvider) -> String {
    let kind = provider.kind();
    if kind == nimbus_manifests::ProviderKind::KeyDir {
        return kind.to_string();
    }
    match provider.key_id(&crate::control::subject()).await {
        Ok(id) => format!("{kind} {id}"),
        Err(_) => kind.to_string(),
    }
}

/// What the audit log says of a tenant that the key map names, under another key.
const LEFT_THE_MAP: &str =
    "it leaves the key that the key map names for its tenant (--move-mapped)";
const CHANGED: &str = "its manifest was changed meanwhile; run the command again";
/// How often a file is taken up whose manifest was written meanwhile.
const TRIES: usize = 4;
/// Manifests that share their flushes.
const BATCH: usize = 1000;
/// Data keys under way at a time: KMS makes each wait, and providers bound their own calls.
const AT_ONCE: usize = 64;
