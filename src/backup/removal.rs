//! Objects leave a repository: those of a tenant that is shredded, and of snapshots that are not kept.
//!
//! Entries of `snapshots/` are created one after the other, each under the next number. A removal takes a number as a snapshot does, and names
//! what it removes. So one that makes a snapshot learns of each removal that was recorded before its catalogue counts, and a removal of each
//! snapshot that was committed before it: nothing that a catalogue names is removed, whoever is slow, and no clock decides.
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
use nimbus_manifests::{FileId, Subject};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::bundle;
use super::catalogue::{Catalogue, SealedCatalogue, are_keys};
use super::chain::{SealingKeys, sealed_by_old_key};
use super::is_sha256;
use super::repository::{Entry, snapshot_name};
use super::sealed::{Claims, Sealed, seal};
use super::store::Created;
use super::{BackupError, Repository};
use crate::clock;
use crate::envelope::Envelope;
use crate::failpoints::crash_point;

/// A removal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Removal {
    /// Its number, one more than that of the entry before.
    pub(super) number: u64,
    /// The repository that it is in.
    pub(super) repository: Uuid,
    /// When, RFC 3339, UTC.
    pub(super) at: String,
    /// SHA-256 of the entry before; `None` where it was removed and this is the first that is left.
    pub(super) previous: Option<String>,
    /// As in a catalogue: those of the newest snapshot, whose key seals it.
    #[serde(default)]
    pub(super) keys_before: Vec<String>,
    /// All entries that are removed, by this removal and by those before.
    pub(super) gone: Vec<Gone>,
    /// Entries that stay, and behind which one is gone, so that no other names them.
    #[serde(default)]
    pub(super) kept: Vec<Gone>,
    /// The ids of all files whose keys and pages are removed because their tenants were shredded, by this removal and by those before.
    pub(super) shredded: Vec<String>,
    /// The objects that this removal removes, besides entries.
    pub(super) objects: Vec<String>,
    /// Up to which pack of epochs all are removed, by this removal and by those before.
    #[serde(default)]
    pub(super) log: Vec<GonePacks>,
}

/// The first packs of an epoch, which are removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GonePacks {
    /// The epoch.
    pub(super) epoch: u64,
    /// The last of them.
    pub(super) pack: u64,
    /// SHA-256 of that one.
    pub(super) sha256: String,
}

/// An entry that is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gone {
    /// Its number.
    pub(super) number: u64,
    /// SHA-256 of it.
    pub(super) sha256: String,
}

impl Removal {
    /// Whether it removes anything that the catalogue names.
    pub(super) fn takes_from(&self, catalogue: &Catalogue) -> bool {
        let objects: BTreeSet<&str> = self.objects.iter().map(String::as_str).collect();
        let named = catalogue.spans();
        let mut taken = named.map(|span| objects.contains(span.object.as_str()));
        taken.any(|taken| taken)
            || catalogue.files().any(|file| {
                let manifests = format!("{}/", file.manifests());
                let mut keys = objects.range(manifests.as_str()..);
                self.shredded.contains(&file.file_id)
                    || keys.next().is_some_and(|key| key.starts_with(&manifests))
            })
    }
}

/// A removal whose MAC was not verified.
pub(super) type SealedRemoval = Sealed<Removal>;

impl Claims for Removal {
    const FORMAT: &'static str = "nimbus-removal/1";

    fn check(&self) -> Result<(), String> {
        let order = self
            .gone
            .windows(2)
            .all(|two| two[0].number < two[1].number);
        let mut named = self.gone.iter().chain(&self.kept);
        let gone = named.all(|gone| gone.number < self.number && is_sha256(&gone.sha256));
        let files = self
            .shredded
            .iter()
            .all(|file| file.parse::<FileId>().is_ok());
        let objects = self.objects.iter().all(|object| may_go(object));
        let log = self.log.windows(2).all(|two| two[0].epoch < two[1].epoch)
            && self.log.iter().all(|gone| is_sha256(&gone.sha256));
        let objects = objects && log;
        match order && gone && files && objects && are_keys(&self.keys_before) {
            true => Ok(()),
            false => Err("it removes what no removal does".to_owned()),
        }
    }
}

/// Whether an object of this name is ever removed. Never entries, which are named by their numbers, nor what continuous shipping keeps.
fn may_go(object: &str) -> bool {
    let mut parts = object.split('/');
    let kind = parts.next().unwrap_or_default();
    let is_name = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
    };
    matches!(kind, "base" | "audit" | "keys") && parts.clone().count() > 0 && parts.all(is_name)
}

/// All entries of a repository, each proven.
#[derive(Debug, Default)]
pub(super) struct View {
    /// The snapshots, with the SHA-256 of their catalogues.
    pub(super) snapshots: BTreeMap<u64, (SealedCatalogue, String)>,
    /// The removals that are there.
    pub(super) removals: BTreeMap<u64, (SealedRemoval, String)>,
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
    /// Reads and proves all entries.
    pub(super) async fn view(&self, envelope: &Envelope) -> Result<View, BackupError> {
        let (numbers, others) = self.numbers().await?;
        if let Some(strange) = others.first() {
            return Err(self.damaged(strange, "it is no snapshot"));
        }
        let (mut view, mut keys) = (View::default(), SealingKeys::default());
        for number in numbers {
            let Some((entry, sha256)) = self.entry(number).await? else {
                continue;
            };
            match &entry {
                Entry::Snapshot(sealed) => self.prove(envelope, sealed).await?,
                Entry::Removal(sealed) => self.prove_removal(envelope, sealed).await?,
            }
            if !keys.go_on(&entry.key(), entry.keys_before()) {
                let why = sealed_by_old_key(&entry.key());
                return Err(self.damaged(&snapshot_name(number), why));
            }
            match entry {
                Entry::Snapshot(sealed) => drop(view.snapshots.insert(number, (*sealed, sha256))),
                Entry::Removal(sealed) => drop(view.removals.insert(number, (*sealed, sha256))),
            }
        }
        Ok(view)
    }

    /// Proves a removal by a manifest of the control file's data key of its time.
    pub(super) async fn prove_removal(
        &self,
        envelope: &Envelope,
        sealed: &SealedRemoval,
    ) -> Result<(), BackupError> {
        let object = snapshot_name(sealed.claims.number);
        let dek_id = sealed.dek_id.to_string();
        let key = self.archive_key(envelope, &dek_id).await?;
        match sealed.is_authentic(&key) {
            true => Ok(()),
            false => Err(self.damaged(
                &object,
                "its MAC is wrong: it was changed, or not written by this deployment",
            )),
        }
    }

    /// Names of objects that a removal is removing now, and that so nobody uses; each with the number of that removal.
    pub(super) async fn condemned(
        &self,
        envelope: &Envelope,
    ) -> Result<BTreeMap<String, u64>, BackupError> {
        let mut condemned = BTreeMap::new();
        for mark in self.marks().await? {
            if let Some((Entry::Removal(sealed), _)) = self.entry(mark.number).await? {
                self.prove_removal(envelope, &sealed).await?;
                let objects = sealed.claims.objects.into_iter();
                condemned.extend(objects.map(|object| (object, mark.number)));
            }
        }
        Ok(condemned)
    }

    /// Records a removal that goes on from all that `view` has, and removes what it names. `None`: something came in between; look again.
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
        let mut kept: Vec<Gone> = all
            .filter(|(number, _)| !gone.contains_key(number) && gone.contains_key(&(number + 1)))
            .map(|(number, sha256)| Gone {
                number,
                sha256: sha256.clone(),
            })
            .collect();
        kept.sort_by_key(|kept| kept.number);
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
            number: tip.map_or(0, |(number, _)| number) + 1,
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

/// How old something must be that nobody refers to, to be nobody's: a snapshot that is being made refers to what it adds at its end.
pub(super) fn safe_age() -> Duration {
    ::fail::fail_point!("removal::safe-age", |_| Duration::ZERO);
    Duration::from_secs(24 * 3600)
}
