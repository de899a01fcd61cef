//! Snapshots that no rule keeps leave the repository, and objects that nothing names with them. How they leave, and why nothing that a snapshot
//! under way needs goes with them, is `removal`'s.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use serde::Serialize;

use super::bundle;
use super::catalogue::{Catalogue, SealedCatalogue};
use super::keep::{Keep, Kept};
use super::pack::Pack;
use super::removal::{GonePacks, Removing, View, safe_age};
use super::timeline::Prover;
use super::{BackupError, Repository, sha256};
use crate::clock;
use crate::control;
use crate::envelope::{Envelope, Event, EventKind, EventOutcome};
use crate::sqlcipher::UNIT;

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
    /// How many packs go: those that were committed before the time in which each commit is kept.
    pub packs: usize,
    /// How many objects the packs that stay were put together from, and that are not needed any more.
    pub put_together: usize,
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
            let (removing, mut pruned) = self.superfluous(&view, keep, &shipped).await?;
            if dry_run {
                return Ok(pruned);
            }
            let _finished = self.finish_removals(&view).await?;
            if pruned.removed.is_empty() && pruned.objects == 0 && pruned.packs == 0 {
                self.tidy(envelope, &view, &removing, &shipped, &mut pruned)
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
                self.tidy(envelope, &view, &removing, &shipped, &mut pruned)
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
                let object = super::repository::snapshot_name(*number);
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
                true => was_named.extend(&head.names),
                false => named.extend(&head.names),
            }
        }
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
            packs: shipped
                .packs
                .keys()
                .filter(|(epoch, pack)| is_gone(*epoch, *pack) && *pack > was_gone(*epoch))
                .count(),
            put_together: 0,
        };
        // What whoever ships has stored and not named yet is younger than the epoch.
        let epochs = self.store.list_aged("epochs").await?;
        let young = epochs.into_iter().map(|(_, age, _)| age).min();
        let young = young.unwrap_or_default().max(safe_age());
        let mut objects = BTreeSet::new();
        for kind in ["base", "audit", "keys"] {
            for (name, age, bytes) in self.store.list_aged(kind).await? {
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

    /// Up to which pack of each epoch all are removed, by now or by a removal before; with the hash of that.
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
        view: &View,
        removing: &Removing,
        shipped: &Shipped,
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

/// What packs say.
#[derive(Debug, Default)]
struct Shipped {
    /// By epoch and number.
    packs: BTreeMap<(u64, u64), Head>,
}

/// What of a pack decides what stays.
#[derive(Debug)]
struct Head {
    names: Names,
    /// The snapshot from which it goes on.
    anchor: Option<u64>,
    previous: String,
    at_ms: i64,
    /// Its length, about.
    bytes: u64,
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
            let mut seen = shipped.packs.range((epoch, 0)..=(epoch, u64::MAX));
            let seen = seen.next_back().map_or(0, |((_, number), _)| *number);
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
                    let _none = shipped
                        .packs
                        .insert((epoch, number), Head::of(&sealed.claims));
                }
            }
        }
        Ok(())
    }
}

impl Head {
    fn of(pack: &Pack) -> Self {
        let mut names = Names::default();
        let bases = pack.bases.iter().map(|base| &base.file);
        for file in pack.control.iter().chain(bases) {
            let objects = file.runs.iter().map(|run| run.object.clone());
            names.objects.extend(objects);
            let _new = names.keys.insert(file.manifests());
        }
        for manifest in &pack.manifests {
            for dek_id in &manifest.dek_ids {
                let keys = format!("keys/{}/{dek_id}", manifest.file_id);
                let _new = names.keys.insert(keys);
            }
        }
        let pieces = pack.pieces().into_iter();
        Self {
            names,
            anchor: pack.anchor,
            previous: pack.previous.clone(),
            at_ms: clock::ms_of(&pack.at).unwrap_or(i64::MAX),
            bytes: pieces
                .map(|piece| piece.offset + piece.bytes)
                .max()
                .unwrap_or(UNIT as u64),
        }
    }
}

impl Shipped {
    /// The last pack of each epoch that has any.
    fn last_packs(&self) -> BTreeMap<u64, u64> {
        self.packs.keys().copied().collect()
    }

    /// The snapshots without which nothing leads to the packs that stay.
    fn goes_on_from(
        &self,
        standing: &[(u64, &SealedCatalogue)],
        log: &BTreeMap<u64, (u64, String)>,
    ) -> BTreeSet<u64> {
        let gone = |epoch: u64| log.get(&epoch).map_or(0, |gone| gone.0);
        let last = self.last_packs();
        let mut from = BTreeSet::new();
        let mut first: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (number, sealed) in standing {
            let Some(at) = sealed.claims.shipping else {
                continue;
            };
            let is_whole = sealed.claims.tenant.is_none();
            let all_gone = last
                .get(&at.epoch)
                .is_none_or(|last| *last <= gone(at.epoch));
            let leads = gone(at.epoch) == 0 || (!all_gone && at.pack >= gone(at.epoch));
            if at.afresh && leads {
                let _new = from.insert(*number);
            }
            if leads && is_whole && gone(at.epoch) > 0 {
                let first = first.entry(at.epoch).or_insert((at.pack, *number));
                *first = (*first).min((at.pack, *number));
            }
        }
        from.extend(first.into_values().map(|(_, number)| number));
        let stay = |(of, _): &(&(u64, u64), &Head)| of.1 > gone(of.0);
        let anchors = self.packs.iter().filter(stay);
        from.extend(anchors.filter_map(|(_, head)| head.anchor));
        from
    }

    /// The packs that are to be in one object, with their hashes: of an hour that is over for an hour, and of five minutes.
    fn groups(
        &self,
        log: &BTreeMap<u64, (u64, String)>,
    ) -> BTreeMap<(u64, u64), BTreeMap<u64, String>> {
        let newest = self.packs.values().map(|head| head.at_ms).max();
        let newest = newest.unwrap_or(0);
        let lengths = bucket_lengths();
        let bucket = |at_ms: i64| {
            let of = |length: i64| (length, at_ms.div_euclid(length));
            let is_over = |(length, number): &(i64, i64)| (number + 2) * length <= newest;
            lengths.map(of).into_iter().find(is_over)
        };
        let mut groups: BTreeMap<(u64, u64), BTreeMap<u64, String>> = BTreeMap::new();
        let mut open = None;
        for ((epoch, number), head) in &self.packs {
            let is_gone = log.get(epoch).is_some_and(|gone| *number <= gone.0);
            // Without the pack behind it, its hash is not known.
            let next = self.packs.get(&(*epoch, number + 1));
            let (Some(next), Some(bucket), false) = (next, bucket(head.at_ms), is_gone) else {
                open = None;
                continue;
            };
            open = match open {
                Some((of, first, last, bytes))
                    if (of, last + 1) == ((*epoch, bucket), *number)
                        && bytes + head.bytes <= bundle::MOST_BYTES =>
                {
                    Some((of, first, *number, bytes + head.bytes))
                }
                _ => Some(((*epoch, bucket), *number, *number, head.bytes)),
            };
            if let Some((_, first, _, _)) = open {
                let group = groups.entry((*epoch, first)).or_default();
                let _none = group.insert(*number, next.previous.clone());
            }
        }
        groups
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

    fn extend(&mut self, other: &Self) {
        self.objects.extend(other.objects.iter().cloned());
        self.keys.extend(other.keys.iter().cloned());
    }

    fn has(&self, name: &str) -> bool {
        let keys = name.rsplit_once('/').map(|(keys, _)| keys);
        self.objects.contains(name) || keys.is_some_and(|keys| self.keys.contains(keys))
    }
}

/// How long the times are whose packs are put together, in milliseconds, the longest first.
fn bucket_lengths() -> [i64; 2] {
    ::fail::fail_point!("bundle::short", |_| [2000, 500]);
    [3_600_000, 300_000]
}

/// Heads of packs that are read at a time.
const AT_ONCE: usize = 16;
