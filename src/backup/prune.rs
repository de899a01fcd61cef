//! Snapshots that no rule keeps leave the repository, and objects that nothing names with them. How they leave, and why nothing that a snapshot
//! under way needs goes with them, is `removal`'s.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use serde::Serialize;

use super::keep::{Keep, Kept};
use super::pack::Pack;
use super::removal::{Removing, View, safe_age};
use super::timeline::Prover;
use super::{BackupError, Repository};
use crate::control;
use crate::envelope::{Envelope, Event, EventKind, EventOutcome};

/// What was removed, or would be.
#[derive(Debug, Clone, Serialize)]
pub struct Pruned {
    /// The repository.
    pub repository: String,
    /// The snapshots that are kept.
    pub kept: Vec<u64>,
    /// The snapshots that are not.
    pub removed: Vec<u64>,
    /// How many other objects go: what only those snapshots name, and what snapshots that were cut short left.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl Repository {
    /// Removes the snapshots that no rule keeps, and what nothing names any more; with `dry_run` it only says what that would be.
    ///
    /// # Errors
    ///
    /// [`BackupError`]; a further run goes on.
    pub async fn prune(
        &self,
        envelope: &Envelope,
        keep: Keep,
        dry_run: bool,
    ) -> Result<Pruned, BackupError> {
        let mut shipped = Shipped::default();
        loop {
            let view = self.view(envelope).await?;
            self.look_at_packs(envelope, &mut shipped).await?;
            let (removing, pruned) = self.superfluous(&view, keep, &shipped).await?;
            if dry_run {
                return Ok(pruned);
            }
            let _finished = self.finish_removals(&view).await?;
            if pruned.removed.is_empty() && pruned.objects == 0 {
                return Ok(pruned);
            }
            let event = Event::new(EventKind::Backup, EventOutcome::Begun)
                .about(&control::subject())
                .saying(format!(
                    "snapshots {:?} are removed from {}",
                    pruned.removed, pruned.repository
                ));
            envelope.record(event.clone()).await?;
            let done = self.remove(envelope, &view, &removing).await;
            let ended = match &done {
                Ok(_) => Event {
                    outcome: EventOutcome::Done,
                    ..event
                },
                Err(_) => event.ended(&done),
            };
            envelope.record(ended).await?;
            if done?.is_some() {
                return Ok(pruned);
            }
        }
    }

    /// What no rule keeps, and what nothing that is kept names.
    async fn superfluous(
        &self,
        view: &View,
        keep: Keep,
        shipped: &Shipped,
    ) -> Result<(Removing, Pruned), BackupError> {
        let standing: Vec<_> = view.standing().collect();
        let mut all = Vec::with_capacity(standing.len());
        for (number, sealed) in &standing {
            let Some(one) = Kept::of(&sealed.claims) else {
                let object = super::repository::snapshot_name(*number);
                return Err(self.damaged(&object, "its time is none"));
            };
            all.push(one);
        }
        let mut keeps = keep.keeps(&all);
        // The next snapshot builds on it.
        keeps.extend(standing.last().map(|(number, _)| *number));
        // Packs go on from these.
        keeps.extend(standing.iter().filter_map(|(number, sealed)| {
            let begins = sealed.claims.shipping.is_some_and(|at| at.afresh);
            (begins || shipped.anchors.contains(number)).then_some(*number)
        }));
        let (mut named, mut was_named) = (shipped.names.clone(), Names::default());
        for (number, sealed) in &standing {
            match keeps.contains(number) {
                true => named.add(sealed.claims.spans(), sealed.claims.files()),
                false => was_named.add(sealed.claims.spans(), sealed.claims.files()),
            }
        }
        let removed: Vec<u64> = standing
            .iter()
            .map(|(number, _)| *number)
            .filter(|number| !keeps.contains(number))
            .collect();
        let mut pruned = Pruned {
            repository: self.shown(),
            kept: keeps.into_iter().collect(),
            removed: removed.clone(),
            objects: 0,
            bytes: 0,
        };
        let mut objects = BTreeSet::new();
        for kind in ["base", "audit", "keys"] {
            for (name, age, bytes) in self.store.list_aged(kind).await? {
                let is_old = age >= safe_age();
                if !named.has(&name) && (was_named.has(&name) || is_old) {
                    pruned.objects += 1;
                    pruned.bytes += bytes;
                    let _new = objects.insert(name);
                }
            }
        }
        let mut entries = removed;
        entries.extend(self.superseded(view).await?);
        let removing = Removing {
            entries,
            objects,
            ..Removing::default()
        };
        Ok((removing, pruned))
    }
}

/// What packs name: they are never removed here, and neither is that.
#[derive(Debug, Default)]
struct Shipped {
    names: Names,
    /// Snapshots from which packs go on.
    anchors: BTreeSet<u64>,
    /// By epoch, up to which pack was looked.
    seen: BTreeMap<u64, u64>,
}

impl Repository {
    /// Reads the heads of all packs that were not looked at yet.
    async fn look_at_packs(
        &self,
        envelope: &Envelope,
        shipped: &mut Shipped,
    ) -> Result<(), BackupError> {
        let mut prover = Prover::new(self, Some(envelope));
        for epoch in self.epochs().await? {
            let seen = shipped.seen.get(&epoch).copied().unwrap_or(0);
            let packs = self.packs(epoch).await?.into_iter();
            let heads: Vec<_> = packs
                .filter(|number| *number > seen)
                .map(|number| {
                    let head = async move { (number, self.pack(epoch, number, false).await) };
                    head.boxed()
                })
                .collect();
            let mut reading = stream::iter(heads).buffered(AT_ONCE);
            while let Some((number, head)) = reading.next().await {
                if let Some((sealed, _)) = head? {
                    prover.prove(&Pack::name(epoch, number), &sealed).await?;
                    shipped.add(&sealed.claims);
                }
                let _before = shipped.seen.insert(epoch, number);
            }
        }
        Ok(())
    }
}

impl Shipped {
    fn add(&mut self, pack: &Pack) {
        self.anchors.extend(pack.anchor);
        let bases = pack.bases.iter().map(|base| &base.file);
        for file in pack.control.iter().chain(bases) {
            let objects = file.runs.iter().map(|run| run.object.clone());
            self.names.objects.extend(objects);
            let _new = self.names.keys.insert(file.manifests());
        }
        for manifest in &pack.manifests {
            for dek_id in &manifest.dek_ids {
                let keys = format!("keys/{}/{dek_id}", manifest.file_id);
                let _new = self.names.keys.insert(keys);
            }
        }
    }
}

/// Names of objects.
#[derive(Debug, Clone, Default)]
struct Names {
    objects: BTreeSet<String>,
    /// `keys/<file-id>/<dek-id>`: every manifest of a data key counts.
    keys: BTreeSet<String>,
}

impl Names {
    fn add<'a>(
        &mut self,
        spans: impl Iterator<Item = super::catalogue::Piece>,
        files: impl Iterator<Item = &'a super::catalogue::StoredFile>,
    ) {
        self.objects.extend(spans.map(|span| span.object));
        let files = files.filter(|file| file.missing.is_none());
        self.keys
            .extend(files.map(super::catalogue::StoredFile::manifests));
    }

    fn has(&self, name: &str) -> bool {
        let keys = name.rsplit_once('/').map(|(keys, _)| keys);
        self.objects.contains(name) || keys.is_some_and(|keys| self.keys.contains(keys))
    }
}

/// Heads of packs that are read at a time.
const AT_ONCE: usize = 16;
