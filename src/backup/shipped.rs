//! What packs say, of which retention decides what stays.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{FutureExt as _, StreamExt as _, stream};

use super::bundle;
use super::catalogue::{Catalogue, SealedCatalogue, StoredFile};
use super::pack::Pack;
use super::prover::Prover;
use super::repository::said;
use super::{BackupError, Repository};
use crate::clock;
use crate::envelope::Envelope;
use crate::runtime::Progress;
use crate::sqlcipher::UNIT;

/// What packs say.
#[derive(Debug, Default)]
pub(super) struct Shipped {
    /// By epoch and number.
    pub(super) packs: BTreeMap<(u64, u64), Head>,
    /// What is none.
    pub(super) damage: Vec<String>,
}

/// What of a pack decides what stays. A server keeps that of each pack: a quarter of a million in
/// three days.
#[derive(Debug)]
pub(super) struct Head {
    /// Objects that it names beside itself.
    objects: Box<[String]>,
    /// The manifests that it names, as in [`Names`].
    keys: Box<[String]>,
    /// The snapshot from which it goes on.
    anchor: Option<u64>,
    pub(super) previous: String,
    pub(super) at_ms: i64,
    /// Its length, about.
    bytes: u64,
}

impl Repository {
    /// Reads the heads of all packs that were not looked at yet.
    pub(super) async fn look_at_packs(
        &self,
        envelope: &Envelope,
        shipped: &mut Shipped,
        progress: &Progress,
    ) -> Result<(), BackupError> {
        let mut prover = Prover::new(self, Some(envelope));
        shipped.damage.clear();
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
                if !progress(0, 0) {
                    return Err(BackupError::Stopped);
                }
                let name = Pack::name(epoch, number);
                let head = match head {
                    Ok(Some((sealed, _))) => prover.prove(&name, &sealed).await.map(|()| sealed),
                    Ok(None) => continue,
                    Err(error) => Err(error),
                };
                match head {
                    Ok(sealed) => {
                        let head = Head::of(&sealed.claims);
                        let _none = shipped.packs.insert((epoch, number), head);
                    }
                    Err(error) if error.is_damage() => shipped.damage.push(said(&error)),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

impl Head {
    fn of(pack: &Pack) -> Self {
        let bases = pack.bases.iter().map(|base| &base.file);
        let files: Vec<_> = pack.control.iter().chain(bases).collect();
        let own = Pack::name(pack.epoch, pack.number);
        let runs = files.iter().flat_map(|file| &file.runs);
        let objects = runs.filter(|run| run.object != own);
        let manifests = pack.manifests.iter().flat_map(|manifest| {
            let of = |dek_id: &String| format!("keys/{}/{dek_id}", manifest.file_id);
            manifest.dek_ids.iter().map(of)
        });
        let keys = files.iter().map(|file| file.manifests());
        Self {
            objects: objects.map(|run| run.object.clone()).collect(),
            keys: keys.chain(manifests).collect(),
            anchor: pack.anchor,
            previous: pack.previous.clone(),
            at_ms: clock::ms_of(&pack.at).unwrap_or(i64::MAX),
            bytes: pack.end().unwrap_or(UNIT as u64),
        }
    }
}

impl Shipped {
    /// These packs are gone.
    pub(super) fn forget(&mut self, log: &BTreeMap<u64, (u64, String)>) {
        let gone = |epoch: u64| log.get(&epoch).map_or(0, |gone| gone.0);
        self.packs.retain(|(epoch, pack), _| *pack > gone(*epoch));
    }

    /// The last pack of each epoch that has any.
    pub(super) fn last_packs(&self) -> BTreeMap<u64, u64> {
        self.packs.keys().copied().collect()
    }

    /// The snapshots without which nothing leads to the packs that stay.
    pub(super) fn goes_on_from(
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

    /// The packs that are to be in one object, with their hashes: of an hour that is over for an
    /// hour, and of five minutes.
    pub(super) fn groups(
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
pub(super) struct Names {
    objects: BTreeSet<String>,
    /// `keys/<file-id>/<dek-id>`: every manifest of a data key counts.
    keys: BTreeSet<String>,
}

impl Names {
    pub(super) fn add(&mut self, catalogue: &Catalogue) {
        self.objects
            .extend(catalogue.extents().map(|one| one.object));
        let files = catalogue.files().filter(|file| file.missing.is_none());
        self.keys.extend(files.map(StoredFile::manifests));
    }

    pub(super) fn add_pack(&mut self, head: &Head) {
        self.objects.extend(head.objects.iter().cloned());
        for keys in &head.keys {
            if !self.keys.contains(keys) {
                let _new = self.keys.insert(keys.clone());
            }
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
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
