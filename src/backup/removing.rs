//! Objects leave a repository: those of a tenant that is shredded, and of snapshots that are not
//! kept.
//!
//! Entries of `snapshots/` are created one after the other, each under the next number. A removal
//! takes a number as a snapshot does, and names what it removes. So one that makes a snapshot
//! learns of each removal that was recorded before its catalogue counts, and a removal of each
//! snapshot that was committed before it: nothing that a catalogue names is removed, whoever is
//! slow, and no clock decides.
//!
//! | step | in the repository after it | a kill here leaves |
//! | --- | --- | --- |
//! | 1. `removing/<number>` (`removal::announced`) | a mark | a mark that says nothing: there is no removal of that number. A later removal clears it |
//! | 2. `snapshots/<number>`: the removal (`removal::recorded`) | the removal, all objects | snapshots that it names are whole; a further run removes them. No snapshot uses the names that it removes while there is the mark |
//! | 3. catalogues removed (`removal::catalogues-removed`) | objects that no catalogue names | the same |
//! | 4. objects removed (`removal::objects-removed`) | the mark, packs | a further run removes the packs |
//! | 5. packs removed, the first ones first (`removal::pack-removed`) | the mark, some of the packs | the same; at the end a further run clears the mark, once it is a day old |
//! | 6. the mark removed | the rest | done |

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use nimbus_manifests::Subject;

use super::bundle;
use super::catalogue::{Catalogue, SealedCatalogue};
use super::chain::Chain;
use super::entries::{Entry, snapshot_name};
use super::prover::Prover;
use super::removal::{Gone, GonePacks, Removal, SealedRemoval};
use super::repository::said;
use super::sealed::seal;
use super::sealing_keys::{SealingKeys, sealed_by_old_key};
use super::store::Created;
use super::{BackupError, Repository};
use crate::clock;
use crate::envelope::Envelope;
use crate::failpoints::crash_point;

/// All entries of a repository that are proven.
#[derive(Debug, Default)]
pub(super) struct View {
    /// The snapshots, with the SHA-256 of their catalogues.
    pub(super) snapshots: BTreeMap<u64, (SealedCatalogue, String)>,
    /// The removals that are there.
    pub(super) removals: BTreeMap<u64, (SealedRemoval, String)>,
    /// What is not as it was written.
    pub(super) damage: Vec<String>,
    /// Numbers under which something else stands.
    taken: BTreeSet<u64>,
    /// Whether an entry is gone or damaged that may be put back from a copy, and then needs what
    /// nothing else names.
    pub(super) may_come_back: bool,
}

impl View {
    /// The newest entry: its number and its SHA-256.
    fn tip(&self) -> Option<(u64, &str)> {
        let snapshot = self.snapshots.iter().next_back();
        let removal = self.removals.iter().next_back();
        let snapshot = snapshot.map(|(number, (_, sha256))| (*number, sha256.as_str()));
        let removal = removal.map(|(number, (_, sha256))| (*number, sha256.as_str()));
        snapshot.max(removal)
    }

    fn pass_over(&mut self, number: u64, error: &BackupError) {
        self.damage.push(said(error));
        let _new = self.taken.insert(number);
    }

    /// What the newest removal says of all before.
    pub(super) fn newest_removal(&self) -> Option<&Removal> {
        let (_, (sealed, _)) = self.removals.iter().next_back()?;
        Some(&sealed.claims)
    }

    /// The snapshots that are there and that no removal names.
    pub(super) fn standing(&self) -> impl Iterator<Item = (u64, &SealedCatalogue)> {
        let gone: BTreeSet<u64> = self
            .newest_removal()
            .map(|removal| removal.gone.iter().map(|gone| gone.number).collect())
            .unwrap_or_default();
        self.snapshots
            .iter()
            .filter(move |(number, _)| !gone.contains(number))
            .map(|(number, (sealed, _))| (*number, sealed))
    }
}

/// What is to be removed.
#[derive(Debug, Default, Clone)]
pub(super) struct Removing {
    /// Entries.
    pub(super) entries: Vec<u64>,
    /// Files whose tenants are shredded.
    pub(super) shredded: BTreeSet<String>,
    /// Other objects.
    pub(super) objects: BTreeSet<String>,
    /// By epoch, up to which pack all; and its hash.
    pub(super) log: BTreeMap<u64, (u64, String)>,
}

impl Repository {
    /// Reads and proves all entries. What is none is named, and passed over.
    pub(super) async fn view(&self, envelope: &Envelope) -> Result<View, BackupError> {
        let (numbers, others) = self.numbers().await?;
        let (mut view, mut keys) = (View::default(), SealingKeys::default());
        let others = others.iter().map(|name| format!("{name} is no snapshot"));
        view.damage.extend(others);
        let (mut chain, mut prover) = (Chain::default(), Prover::new(self, Some(envelope)));
        for number in numbers {
            let read = match self.entry(number).await {
                Ok(Some((entry, sha256))) => match prover.entry(number, &entry).await {
                    Ok(()) => Ok((entry, sha256)),
                    Err(error) => Err(error),
                },
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            let (entry, sha256) = match read {
                Ok(read) => read,
                Err(error) if error.is_damage() => {
                    chain.unreadable(number);
                    view.pass_over(number, &error);
                    continue;
                }
                // It may name what would go.
                Err(error) if error.proves_nothing() => {
                    let name = snapshot_name(number);
                    let next = format!("move {name} out of the repository, and run this again");
                    return Err(self.withheld_until(number, error, next));
                }
                Err(error) => return Err(error),
            };
            if !keys.go_on(&entry.key(), entry.keys_before()) {
                let why = sealed_by_old_key(&entry.key());
                view.pass_over(number, &self.damaged(&snapshot_name(number), why));
                continue;
            }
            chain.add(number, &entry, sha256.clone());
            match entry {
                Entry::Snapshot(sealed) => drop(view.snapshots.insert(number, (*sealed, sha256))),
                Entry::Removal(sealed) => drop(view.removals.insert(number, (*sealed, sha256))),
            }
        }
        chain.removal = view.newest_removal().cloned();
        let tip = view.tip().map_or(0, |(number, _)| number);
        let (broken, _unfinished) = chain.check(1);
        view.may_come_back = !broken.is_empty() || chain.is_unreadable_above(tip);
        view.damage.extend(broken);
        Ok(view)
    }

    /// The number of the next entry.
    fn next_number(view: &View) -> u64 {
        let mut free = view.tip().map_or(0, |(number, _)| number) + 1;
        while view.taken.contains(&free) {
            free += 1;
        }
        free
    }

    /// Names of objects that a removal is removing now, and that so nobody uses; each with the
    /// number of that removal.
    pub(super) async fn condemned(
        &self,
        envelope: &Envelope,
    ) -> Result<BTreeMap<String, u64>, BackupError> {
        let mut condemned = BTreeMap::new();
        let mut prover = Prover::new(self, Some(envelope));
        for mark in self.marks().await? {
            let removal = match self.entry(mark.number).await {
                Ok(Some((entry, _))) => prover.entry(mark.number, &entry).await.map(|()| entry),
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            match removal {
                Ok(Entry::Removal(sealed)) => {
                    let objects = sealed.claims.objects.into_iter();
                    condemned.extend(objects.map(|object| (object, mark.number)));
                }
                Ok(Entry::Snapshot(_)) => {}
                // It removes nothing.
                Err(error) if error.proves_nothing() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(condemned)
    }

    /// Records a removal that goes on from all that `view` has, and removes what it names. `None`:
    /// something came in between; look again.
    pub(super) async fn remove(
        &self,
        envelope: &Envelope,
        view: &View,
        removing: &Removing,
    ) -> Result<Option<usize>, BackupError> {
        let mut removed = 0;
        let Some((_, (newest, _))) = view.snapshots.iter().next_back() else {
            return Ok(Some(removed));
        };
        let sealer = self.sealer(envelope, &newest.claims).await?;
        let removal = self.removal(view, &newest.claims, removing);
        let mark = mark_name(removal.number);
        self.mark(&mark).await?;
        crash_point!("removal::announced");
        let text = Bytes::from(seal(&removal, &sealer));
        let name = snapshot_name(removal.number);
        if let Created::Other = self.store.create(&name, text).await? {
            // A snapshot was faster, or another removal: what the mark is for is not to be.
            let _was_there = self.store.remove(&mark).await?;
            return Ok(None);
        }
        crash_point!("removal::recorded");
        self.carry_out(&removing.entries, &removal, &mut removed)
            .await?;
        let _was_there = self.store.remove(&mark).await?;
        Ok(Some(removed))
    }

    /// The removal that goes on from all that is there.
    fn removal(&self, view: &View, newest: &Catalogue, removing: &Removing) -> Removal {
        let before = view.newest_removal();
        let mut gone: BTreeMap<u64, String> = before
            .map(|before| {
                let gone = before.gone.iter();
                gone.map(|gone| (gone.number, gone.sha256.clone()))
                    .collect()
            })
            .unwrap_or_default();
        for number in &removing.entries {
            let snapshot = view.snapshots.get(number).map(|(_, sha256)| sha256);
            let sha256 = snapshot.or_else(|| view.removals.get(number).map(|(_, sha256)| sha256));
            if let Some(sha256) = sha256 {
                let _same = gone.insert(*number, sha256.clone());
            }
        }
        let mut shredded = removing.shredded.clone();
        shredded.extend(
            before
                .into_iter()
                .flat_map(|before| before.shredded.clone()),
        );
        let snapshots = view.snapshots.iter();
        let snapshots = snapshots.map(|(number, (_, sha256))| (*number, sha256));
        let removals = view.removals.iter();
        let all = snapshots.chain(removals.map(|(number, (_, sha256))| (*number, sha256)));
        let all: BTreeMap<u64, &String> = all.collect();
        let is_gone_behind = |number: &u64| {
            let stays = all.range(number + 1..).map(|(next, _)| next);
            let stays = stays.filter(|next| !gone.contains_key(next)).min();
            let leaves = gone.range(number + 1..).next();
            leaves.is_some_and(|(leaves, _)| stays.is_none_or(|stays| leaves < stays))
        };
        let kept = all
            .iter()
            .filter(|(number, _)| !gone.contains_key(number) && is_gone_behind(number));
        let kept: Vec<Gone> = kept
            .map(|(number, sha256)| Gone {
                number: *number,
                sha256: (*sha256).clone(),
            })
            .collect();
        let mut log = removing.log.clone();
        for gone in before.into_iter().flat_map(|before| &before.log) {
            let known = (gone.pack, gone.sha256.clone());
            let newest = log.entry(gone.epoch).or_insert_with(|| known.clone());
            if newest.0 < known.0 {
                *newest = known;
            }
        }
        let tip = view.tip();
        Removal {
            number: Self::next_number(view),
            repository: self.id,
            at: clock::stamp(),
            previous: tip.map(|(_, sha256)| sha256.to_owned()),
            keys_before: newest.keys_before.clone(),
            gone: gone
                .into_iter()
                .map(|(number, sha256)| Gone { number, sha256 })
                .collect(),
            kept,
            shredded: shredded.into_iter().collect(),
            objects: removing.objects.iter().cloned().collect(),
            log: log
                .into_iter()
                .map(|(epoch, (pack, sha256))| GonePacks {
                    epoch,
                    pack,
                    sha256,
                })
                .collect(),
        }
    }

    async fn mark(&self, name: &str) -> Result<(), BackupError> {
        let _whose = self.store.create(name, Bytes::from_static(b"\n")).await?;
        Ok(())
    }

    /// Removes what removals name that were cut short. Answers how many objects were there.
    pub(super) async fn finish_removals(&self, view: &View) -> Result<usize, BackupError> {
        let mut removed = 0;
        let last = view.tip().map_or(0, |(number, _)| number);
        for mark in self.marks().await? {
            if let Some((sealed, _)) = view.removals.get(&mark.number) {
                let claims = &sealed.claims;
                let entries: Vec<u64> = claims.gone.iter().map(|gone| gone.number).collect();
                self.carry_out(&entries, claims, &mut removed).await?;
            }
            // One that is slow, and not dead, finds that its mark is gone, and stops.
            if mark.age >= safe_age() && mark.number <= last {
                let _was_there = self.store.remove(&mark_name(mark.number)).await?;
            }
        }
        Ok(removed)
    }

    async fn carry_out(
        &self,
        entries: &[u64],
        removal: &Removal,
        removed: &mut usize,
    ) -> Result<(), BackupError> {
        for number in entries {
            *removed += usize::from(self.store.remove(&snapshot_name(*number)).await?);
        }
        crash_point!("removal::catalogues-removed");
        // Keys before pages.
        for object in removal.objects.iter().rev() {
            *removed += usize::from(self.store.remove(object).await?);
        }
        crash_point!("removal::objects-removed");
        for gone in &removal.log {
            // The first ones first: what is left goes on from a snapshot.
            for (name, _bytes) in self.store.list(&format!("log/{:010}", gone.epoch)).await? {
                let is_gone = |(_, _, last): (u64, u64, u64)| last <= gone.pack;
                if bundle::numbers_of(&name).is_some_and(is_gone) {
                    *removed += usize::from(self.store.remove(&name).await?);
                    crash_point!("removal::pack-removed");
                }
            }
        }
        Ok(())
    }

    /// Removals that the next one says all of, and that are at their end.
    pub(super) async fn superseded(&self, view: &View) -> Result<Vec<u64>, BackupError> {
        let marks = self.marks().await?;
        let under_way = |number: &u64| marks.iter().any(|mark| mark.number == *number);
        let removals = view.removals.keys().copied();
        Ok(removals.filter(|number| !under_way(number)).collect())
    }

    async fn marks(&self) -> Result<Vec<Mark>, BackupError> {
        let found = self.store.list_aged("removing").await?;
        let marks = found.into_iter().filter_map(|(name, age, _)| {
            let number = name.strip_prefix("removing/")?.parse().ok()?;
            Some(Mark { number, age })
        });
        Ok(marks.collect())
    }
}

/// Says that a removal is under way, or was cut short.
struct Mark {
    number: u64,
    age: Duration,
}

fn mark_name(number: u64) -> String {
    format!("removing/{number:010}")
}

/// The subject's ids of files in these snapshots.
pub(super) fn files_of(view: &View, subject: &Subject) -> BTreeSet<String> {
    let snapshots = view.snapshots.values();
    let files = snapshots.flat_map(|(sealed, _)| &sealed.claims.tenants);
    files
        .filter(|file| file.missing.is_none() && file.subject == subject.as_str())
        .map(|file| file.file_id.clone())
        .collect()
}

/// How old something must be that nobody refers to, to be nobody's: a snapshot that is being made
/// refers to what it adds at its end.
pub(super) fn safe_age() -> Duration {
    ::fail::fail_point!("removal::safe-age", |_| Duration::ZERO);
    Duration::from_secs(24 * 3600)
}
