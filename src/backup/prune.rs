//! Snapshots that no rule keeps leave the repository, and objects that nothing names with them. How
//! they leave, and why nothing that a snapshot under way needs goes with them, is `removing`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::catalogue::Catalogue;
use super::keep::{Keep, Kept};
use super::removal::GonePacks;
use super::removing::{Removing, View, safe_age};
use super::shipped::{Names, Shipped};
use super::{BackupError, Repository, sha256};
use crate::clock;
use crate::control;
use crate::envelope::{Envelope, Event, EventKind, EventOutcome};
use crate::runtime::Progress;

/// What was removed, or would be.
#[derive(Debug, Clone, Serialize)]
pub struct Pruned {
    /// The repository.
    pub repository: String,
    /// The snapshots that are kept.
    pub kept: Vec<u64>,
    /// The snapshots that are not.
    pub removed: Vec<u64>,
    /// How many other objects go: what only those snapshots name, and what snapshots that were cut
    /// short left.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// How many packs go: those that were committed before the time in which each commit is kept.
    pub packs: usize,
    /// How many objects the packs that stay were put together from, and that are not needed any
    /// more.
    pub put_together: usize,
    /// What is not as it was written, and was passed over. Where a snapshot is among it, no pages
    /// and no manifests go: it may be put back from a copy.
    pub damage: Vec<String>,
}

impl Repository {
    /// Removes the snapshots that no rule keeps, and what nothing names any more; with `dry_run` it
    /// only says what that would be.
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
        let (mut shipped, progress): (_, Progress) = (Shipped::default(), Arc::new(|_, _| true));
        let by = (&mut shipped, &progress);
        self.prune_from(envelope, keep, dry_run, by).await
    }

    /// The same, from what is known of packs; it steps back where `progress` says so.
    ///
    /// # Errors
    ///
    /// As [`Repository::prune`]; [`BackupError::Stopped`].
    pub(super) async fn prune_from(
        &self,
        envelope: &Envelope,
        keep: Keep,
        dry_run: bool,
        (shipped, progress): (&mut Shipped, &Progress),
    ) -> Result<Pruned, BackupError> {
        loop {
            let view = self.view(envelope).await?;
            self.look_at_packs(envelope, shipped, progress).await?;
            let (removing, mut pruned) = self.superfluous(&view, keep, shipped).await?;
            if dry_run {
                return Ok(pruned);
            }
            let _finished = self.finish_removals(&view).await?;
            if pruned.removed.is_empty() && pruned.objects == 0 && pruned.packs == 0 {
                self.tidy(
                    envelope,
                    (&view, &removing),
                    (shipped, progress),
                    &mut pruned,
                )
                .await?;
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
                shipped.forget(&removing.log);
                self.tidy(
                    envelope,
                    (&view, &removing),
                    (shipped, progress),
                    &mut pruned,
                )
                .await?;
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
                let object = super::entries::snapshot_name(*number);
                return Err(self.damaged(&object, "its time is none"));
            };
            all.push(one);
        }
        let mut keeps = keep.keeps(&all);
        // The next snapshot builds on it.
        keeps.extend(standing.last().map(|(number, _)| *number));
        let log = self.cut(view, keep, shipped).await?;
        let is_gone = |epoch: u64, pack: u64| log.get(&epoch).is_some_and(|gone| pack <= gone.0);
        let before: BTreeMap<u64, u64> = gone_before(view)
            .map(|gone| (gone.epoch, gone.pack))
            .collect();
        let was_gone = |epoch: u64| before.get(&epoch).copied().unwrap_or(0);
        // Packs go on from these.
        keeps.extend(shipped.goes_on_from(&standing, &log));
        let (mut named, mut was_named) = (Names::default(), Names::default());
        for ((epoch, pack), head) in &shipped.packs {
            match is_gone(*epoch, *pack) {
                true => was_named.add_pack(head),
                false => named.add_pack(head),
            }
        }
        for (number, sealed) in &standing {
            match keeps.contains(number) {
                true => named.add(&sealed.claims),
                false => was_named.add(&sealed.claims),
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
            packs: shipped
                .packs
                .keys()
                .filter(|(epoch, pack)| is_gone(*epoch, *pack) && *pack > was_gone(*epoch))
                .count(),
            put_together: 0,
            damage: [&view.damage[..], &shipped.damage].concat(),
        };
        // What whoever ships has stored and not named yet is younger than the epoch.
        let epochs = self.store.list_aged("epochs").await?;
        let young = epochs.into_iter().map(|(_, age, _)| age).min();
        let young = young.unwrap_or_default().max(safe_age());
        let mut objects = BTreeSet::new();
        for kind in ["base", "audit", "keys"] {
            for (name, age, bytes) in self.store.list_aged(kind).await? {
                // One that is damaged may be put back, and names what nothing else does.
                if view.may_come_back || !shipped.damage.is_empty() {
                    continue;
                }
                let is_old = age >= young;
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
            log,
            ..Removing::default()
        };
        Ok((removing, pruned))
    }

    /// Up to which pack of each epoch all are removed, by now or by a removal before; with the hash
    /// of that.
    async fn cut(
        &self,
        view: &View,
        keep: Keep,
        shipped: &Shipped,
    ) -> Result<BTreeMap<u64, (u64, String)>, BackupError> {
        let mut log: BTreeMap<u64, (u64, String)> = gone_before(view)
            .map(|gone| (gone.epoch, (gone.pack, gone.sha256.clone())))
            .collect();
        let Some(commits) = keep.commits else {
            return Ok(log);
        };
        let snapshots = || view.standing().map(|(_, sealed)| &sealed.claims);
        let taken = |one: &Catalogue| clock::ms_of(&one.taken).unwrap_or(i64::MAX);
        let ends = shipped.packs.values().map(|head| head.at_ms);
        let newest = ends.chain(snapshots().map(taken)).max().unwrap_or(0);
        let edge = newest.saturating_sub(i64::try_from(commits).unwrap_or(i64::MAX / 1000) * 1000);
        // The last snapshot from which every instant since can be reached.
        let before = snapshots().filter(|one| one.tenant.is_none() && taken(one) <= edge);
        let places = before.filter_map(|one| one.shipping.map(|at| (at.epoch, at.pack)));
        let Some((epoch, pack)) = places.max() else {
            return Ok(log);
        };
        for (of, last) in shipped.last_packs() {
            let upto = match of.cmp(&epoch) {
                std::cmp::Ordering::Less => last,
                // Something of it stays, by which the next epoch knows it.
                std::cmp::Ordering::Equal => pack.min(last - 1),
                std::cmp::Ordering::Greater => 0,
            };
            if upto > log.get(&of).map_or(0, |gone| gone.0) {
                let next = shipped.packs.get(&(of, upto + 1));
                let hash = match next {
                    Some(next) => next.previous.clone(),
                    None => match self.pack_bytes(of, upto, None).await? {
                        Some(object) => sha256(&object),
                        None => continue,
                    },
                };
                let _before = log.insert(of, (upto, hash));
            }
        }
        Ok(log)
    }

    /// Puts packs together, and removes what was said of proofs before.
    async fn tidy(
        &self,
        envelope: &Envelope,
        (view, removing): (&View, &Removing),
        (shipped, progress): (&Shipped, &Progress),
        pruned: &mut Pruned,
    ) -> Result<(), BackupError> {
        let mut proofs = self.store.list("proofs").await?;
        let _newest = proofs.pop();
        for (name, _bytes) in proofs {
            let _was_there = self.store.remove(&name).await?;
        }
        let Some((_, (newest, _))) = view.snapshots.iter().next_back() else {
            return Ok(());
        };
        let sealer = self.sealer(envelope, &newest.claims).await?;
        for ((epoch, _), packs) in shipped.groups(&removing.log) {
            if !progress(0, 0) {
                return Err(BackupError::Stopped);
            }
            pruned.put_together += self.put_together(&sealer, epoch, &packs).await?;
        }
        Ok(())
    }
}

/// The packs that removals before removed.
fn gone_before(view: &View) -> impl Iterator<Item = &GonePacks> {
    let newest = view.newest_removal().into_iter();
    newest.flat_map(|removal| &removal.log)
}
