//! The manifests in a repository move to the current key, so that the key before can be destroyed.
//!
//! Manifests of the same data keys stand for each other: a catalogue takes any of them. For each
//! such set:
//!
//! | step | in the repository after it | a kill here leaves |
//! | --- | --- | --- |
//! | 1. the newest that opens, wrapped anew, added (`rewrap::added`) | the manifests before, and the new one | both open; a further run goes on |
//! | 2. the new one read back and opened; the others removed (`rewrap::removed`) | the new one | done |
//!
//! What does not open is never removed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use nimbus_manifests::SealedManifest;
use serde::Serialize;

use super::repository::said;
use super::{BackupError, Repository, sha256};
use crate::control;
use crate::envelope::{Envelope, Event, EventKind, EventOutcome};
use crate::failpoints::crash_point;
use crate::runtime::Progress;

/// What was moved.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Moved {
    /// The repository.
    pub repository: String,
    /// How many sets of data keys there are.
    pub looked_at: usize,
    /// How many were wrapped anew.
    pub rewrapped: usize,
    /// How many manifests were removed.
    pub removed: usize,
    /// What still needs a key before, and why: object and reason.
    pub failed: Vec<String>,
}

impl Repository {
    /// Moves all manifests to the keys that wrap now.
    ///
    /// # Errors
    ///
    /// [`BackupError`]; a further run goes on.
    pub async fn rewrap(
        &self,
        envelope: &Envelope,
        progress: Progress,
    ) -> Result<Moved, BackupError> {
        let event = Event::new(EventKind::Rewrap, EventOutcome::Begun)
            .about(&control::subject())
            .saying(format!("the manifests in the repository {}", self.shown()));
        envelope.record(event.clone()).await?;
        let moved = self.move_all(envelope, progress).await;
        let ended = match &moved {
            Ok(moved) => Event {
                outcome: EventOutcome::Done,
                ..event
            }
            .saying(format!(
                "the manifests in the repository {}: {} wrapped anew, {} removed, {} left",
                moved.repository,
                moved.rewrapped,
                moved.removed,
                moved.failed.len()
            )),
            Err(_) => event.ended(&moved),
        };
        envelope.record(ended).await?;
        moved
    }

    async fn move_all(
        &self,
        envelope: &Envelope,
        progress: Progress,
    ) -> Result<Moved, BackupError> {
        let mut sets: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, _) in self.store.list("keys").await? {
            let set = name.rsplit_once('/').map_or("", |(set, _)| set).to_owned();
            sets.entry(set).or_default().push(name);
        }
        let (done, total) = (AtomicU64::new(0), sets.len() as u64);
        let moving = sets.into_values().map(|names| {
            let (done, progress) = (&done, &progress);
            async move {
                let moved = self.move_set(envelope, names).await;
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                match progress(done, total) {
                    true => moved,
                    false => Err(BackupError::Stopped),
                }
            }
            .boxed()
        });
        let moving: Vec<_> = moving.collect();
        let mut moving = stream::iter(moving).buffer_unordered(AT_ONCE);
        let mut all = Moved {
            repository: self.shown(),
            ..Moved::default()
        };
        while let Some(moved) = moving.next().await {
            let moved = moved?;
            all.looked_at += moved.looked_at;
            all.rewrapped += moved.rewrapped;
            all.removed += moved.removed;
            all.failed.extend(moved.failed);
        }
        all.failed.sort();
        Ok(all)
    }

    /// The manifests of one file and its first data key. Those of a rekey hold a second one, and
    /// stand for each other alone.
    async fn move_set(
        &self,
        envelope: &Envelope,
        names: Vec<String>,
    ) -> Result<Moved, BackupError> {
        let mut moved = Moved::default();
        let mut sets: BTreeMap<Vec<String>, Vec<(String, SealedManifest)>> = BTreeMap::new();
        for name in names {
            let text = match self.store.get(&name).await {
                Ok(Some(text)) => text,
                Ok(None) => continue,
                Err(error @ BackupError::Damaged { .. }) => {
                    moved.failed.push(said(&error));
                    continue;
                }
                Err(error) => return Err(error),
            };
            match SealedManifest::parse(&text) {
                Ok(sealed) => {
                    let deks = sealed.claims().deks().iter();
                    let deks = deks.map(|dek| dek.id.to_string()).collect();
                    sets.entry(deks).or_default().push((name, sealed));
                }
                Err(error) => moved.failed.push(format!("{name}: {error}")),
            }
        }
        for (_, mut manifests) in sets {
            moved.looked_at += 1;
            manifests.sort_by_key(|(_, sealed)| std::cmp::Reverse(sealed.claims().revision()));
            self.move_one(envelope, manifests, &mut moved).await?;
        }
        Ok(moved)
    }

    async fn move_one(
        &self,
        envelope: &Envelope,
        manifests: Vec<(String, SealedManifest)>,
        moved: &mut Moved,
    ) -> Result<(), BackupError> {
        let mut kept = None;
        let mut opened = Vec::new();
        for (name, sealed) in manifests {
            match envelope
                .unseal_apart(&self.path_of(&name), sealed.clone())
                .await
            {
                Ok(_keyed) => opened.push((name, sealed)),
                Err(error) => moved
                    .failed
                    .push(format!("{name}: {}", said(&BackupError::Envelope(error)))),
            }
        }
        if let Some((name, newest)) = opened.first() {
            let path = self.path_of(name);
            match envelope.rewrap_apart(&path, newest).await {
                Ok(None) => kept = Some(name.clone()),
                Ok(Some(new)) => {
                    kept = Some(self.add_manifest(envelope, name, &new).await?);
                    moved.rewrapped += 1;
                }
                Err(error) => moved
                    .failed
                    .push(format!("{name}: {}", said(&BackupError::Envelope(error)))),
            }
        }
        let Some(kept) = kept else { return Ok(()) };
        for (name, _) in opened {
            if name != kept {
                moved.removed += usize::from(self.store.remove(&name).await?);
                crash_point!("rewrap::removed");
            }
        }
        Ok(())
    }

    /// Adds a manifest beside one that it stands for, and proves that it opens. Answers its name.
    async fn add_manifest(
        &self,
        envelope: &Envelope,
        beside: &str,
        new: &SealedManifest,
    ) -> Result<String, BackupError> {
        let set = beside.rsplit_once('/').map_or("", |(set, _)| set);
        let name = format!("{set}/{}", sha256(new.as_bytes()));
        self.add(&name, Bytes::copy_from_slice(new.as_bytes()))
            .await?;
        crash_point!("rewrap::added");
        let read = self.store.get(&name).await?;
        let read = read.and_then(|text| SealedManifest::parse(&text).ok());
        let Some(read) = read.filter(|read| read.as_bytes() == new.as_bytes()) else {
            return Err(self.damaged(&name, "it is not read back as it was written"));
        };
        let _keyed = envelope.unseal_apart(&self.path_of(&name), read).await?;
        Ok(name)
    }

    /// For messages.
    fn path_of(&self, name: &str) -> PathBuf {
        Path::new(&self.shown()).join(name)
    }
}

/// Sets that are moved at a time; a key provider may be far away.
const AT_ONCE: usize = 8;
