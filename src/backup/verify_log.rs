//! Whether what was shipped is whole and authentic: epochs, and the packs in them.

use std::collections::{BTreeMap, BTreeSet};

use super::bundle;
use super::catalogue::{Extent, Piece, SealedCatalogue, StoredFile};
use super::entries::snapshot_name;
use super::epoch::{Previous, epoch_name};
use super::pack::{Pack, SealedPack, frames};
use super::prover::Prover;
use super::removal::GonePacks;
use super::repository::said;
use super::sealed::Sealed;
use super::sealing_keys::sealed_by_old_key;
use super::verify::Verified;
use super::{BackupError, Repository, sha256};
use crate::envelope::Envelope;
use crate::runtime::Progress;

/// What the packs of an epoch are chained to.
struct Chain {
    sha256: String,
    /// The instant at the end of the last pack; `None` where the one before is not there.
    end: Option<String>,
    number: u64,
    /// Packs up to here are removed.
    gone: u64,
    hashes: BTreeMap<u64, String>,
}

/// By what a pack is looked at.
#[derive(Clone, Copy)]
struct Of<'a> {
    envelope: &'a Envelope,
    catalogues: &'a BTreeMap<u64, SealedCatalogue>,
    shredded: &'a BTreeSet<String>,
}

impl Repository {
    /// Reads all epochs and packs, and proves them by their MACs and as one chain.
    pub(super) async fn verify_log(
        &self,
        envelope: &Envelope,
        catalogues: &BTreeMap<u64, SealedCatalogue>,
        (shredded, gone): (&BTreeSet<String>, &[GonePacks]),
        progress: &Progress,
        found: &mut Verified,
    ) -> Result<(), BackupError> {
        let mut prover = Prover::new(self, Some(envelope));
        let mut shipped = BTreeSet::new();
        for (name, _bytes) in self.store.list("log").await? {
            match bundle::numbers_of(&name) {
                Some((epoch, first, last)) => {
                    let _new = shipped.insert(epoch);
                    if first < last {
                        let checked = match self.bundle(epoch, first, last).await {
                            Ok(Some(read)) => prover
                                .prove(&name, &read.0)
                                .await
                                .and_then(|()| self.check_bundle(&read)),
                            Ok(None) => Ok(()),
                            Err(error) => Err(error),
                        };
                        let _checked = noted(checked, found)?;
                    }
                }
                None => found.damage.push(format!("{name} is no pack")),
            }
        }
        let mut epochs: BTreeSet<u64> = self.epochs().await?.into_iter().collect();
        epochs.extend(shipped);
        let mut before: Option<(u64, Chain)> = None;
        for epoch in epochs {
            let name = epoch_name(epoch);
            let read = match self.epoch(epoch).await {
                Ok(Some((read, hash))) => prover.prove(&name, &read).await.map(|()| (read, hash)),
                Ok(None) => Err(self.damaged(&name, "it is missing")),
                Err(error) => Err(error),
            };
            let mut chain = Chain {
                sha256: String::new(),
                end: None,
                number: 0,
                gone: 0,
                hashes: BTreeMap::new(),
            };
            // Whoever begins an epoch passes over what is none.
            let mut counts = false;
            if let Some((read, hash)) = noted(read, found)? {
                counts = !self.check_key(&name, &read, (epoch, 0), catalogues, found);
                found.objects += 1;
                let previous = read.claims.previous.as_ref();
                self.check_previous(&name, previous, before.as_ref(), epoch, found);
                chain.sha256 = hash;
            }
            let mut packs = self.packs(epoch).await?;
            if let Some(gone) = gone.iter().find(|gone| gone.epoch == epoch) {
                let there = packs.partition_point(|number| *number <= gone.pack);
                drop(packs.drain(..there));
                if self.is_left(epoch, gone.pack).await? {
                    found.findings.push(format!(
                        "packs up to {} were to be removed, and are there: the removal was cut short; `nimbus backup prune` goes on with it",
                        Pack::name(epoch, gone.pack)
                    ));
                }
                (chain.number, chain.gone) = (gone.pack, gone.pack);
                chain.sha256 = gone.sha256.clone();
                let _none = chain.hashes.insert(gone.pack, gone.sha256.clone());
            }
            for number in packs {
                let name = Pack::name(epoch, number);
                if number != chain.number + 1 {
                    let missing = Pack::name(epoch, chain.number + 1);
                    found
                        .damage
                        .push(format!("{missing} is missing, and {name} comes after it"));
                    chain.sha256.clear();
                    chain.end = None;
                }
                chain.number = number;
                let read = match self.pack(epoch, number, true).await {
                    Ok(Some((read, object))) => {
                        prover.prove(&name, &read).await.map(|()| (read, object))
                    }
                    Ok(None) => Err(self.damaged(&name, "it is missing")),
                    Err(error) => Err(error),
                };
                let Some((read, object)) = noted(read, found)? else {
                    chain.sha256.clear();
                    chain.end = None;
                    continue;
                };
                found.objects += 1;
                found.packs += 1;
                found.bytes += object.len() as u64;
                if !progress(found.bytes, found.bytes) {
                    return Err(BackupError::Stopped);
                }
                let of = Of {
                    envelope,
                    catalogues,
                    shredded,
                };
                let _is_old = self.check_key(&name, &read, (epoch, number), catalogues, found);
                self.check_pack(&read, &object, &chain, of, found).await?;
                chain.sha256 = sha256(&object);
                chain.end = Some(read.claims.at);
                let _none = chain.hashes.insert(number, chain.sha256.clone());
            }
            if counts {
                before = Some((epoch, chain));
            }
        }
        Ok(())
    }

    /// Whether the key that seals an object was replaced by a snapshot that was made while shipping
    /// had not come to its place; then it is named.
    fn check_key<T>(
        &self,
        name: &str,
        read: &Sealed<T>,
        place: (u64, u64),
        catalogues: &BTreeMap<u64, SealedCatalogue>,
        found: &mut Verified,
    ) -> bool {
        let key = read.dek_id.to_string();
        let replaces = |snapshot: &SealedCatalogue| {
            let at = snapshot.claims.shipping;
            at.is_some_and(|at| (at.epoch, at.pack) < place)
                && snapshot.claims.keys_before.contains(&key)
        };
        let is_old = catalogues.values().any(replaces);
        if is_old {
            let damaged = self.damaged(name, sealed_by_old_key(&key));
            found.damage.push(said(&damaged));
        }
        is_old
    }

    /// Whether an epoch goes on from the one before, as that was.
    fn check_previous(
        &self,
        name: &str,
        previous: Option<&Previous>,
        before: Option<&(u64, Chain)>,
        epoch: u64,
        found: &mut Verified,
    ) {
        let (previous, (epoch_before, before)) = match (previous, before) {
            (None, None) => return,
            (Some(previous), Some(before)) => (previous, before),
            _ => {
                found
                    .damage
                    .push(format!("{name} does not go on from the epoch before"));
                return;
            }
        };
        // The object itself, where it is damaged, has its own line.
        let is_other = |had: &str, says: &str| !had.is_empty() && had != says;
        let first = epoch_name(*epoch_before);
        let of_epoch = (before.hashes.is_empty() || before.number == 0)
            && is_other(&before.sha256, &previous.sha256);
        let of_pack = before
            .hashes
            .get(&previous.pack)
            .is_some_and(|had| is_other(had, previous.pack_sha256.as_deref().unwrap_or_default()));
        if (of_epoch || of_pack) && epoch_before + 1 < epoch {
            found.damage.push(format!(
                "{} is missing or damaged, and {name} goes on from it",
                epoch_name(epoch - 1)
            ));
            return;
        }
        if of_epoch || of_pack {
            found.damage.push(format!(
                "{name} does not go on from {first}: one of the two was replaced"
            ));
        }
        if before.number < previous.pack {
            let missing = Pack::name(*epoch_before, before.number + 1);
            found.damage.push(format!(
                "{missing} is missing: the epoch went on to pack {}",
                previous.pack
            ));
        } else if before.number > previous.pack.max(before.gone) {
            found.findings.push(format!(
                "{} and later of epoch {} were shipped by a server that another had replaced",
                Pack::name(*epoch_before, previous.pack + 1),
                epoch_before
            ));
        }
    }

    async fn check_pack(
        &self,
        read: &SealedPack,
        object: &[u8],
        chain: &Chain,
        of: Of<'_>,
        found: &mut Verified,
    ) -> Result<(), BackupError> {
        let Of {
            envelope,
            catalogues,
            shredded,
        } = of;
        let pack = &read.claims;
        let name = Pack::name(pack.epoch, pack.number);
        if !chain.sha256.is_empty() && pack.previous != chain.sha256 {
            found.damage.push(format!(
                "{name} does not go on from what is before it: one of the two was replaced"
            ));
        }
        match pack.anchor {
            None => {
                if chain.end.as_ref().is_some_and(|end| *end != pack.after) {
                    found
                        .damage
                        .push(format!("{name} leaves out what was before it"));
                }
            }
            Some(anchor) => {
                let is_anchor = |read: &SealedCatalogue| {
                    let at = read.claims.shipping;
                    at.is_some_and(|at| (at.epoch, at.afresh) == (pack.epoch, true))
                        && read.claims.taken == pack.after
                };
                if !catalogues.get(&anchor).is_some_and(is_anchor) {
                    found.damage.push(format!(
                        "{name} goes on from {}, which is missing or damaged",
                        snapshot_name(anchor)
                    ));
                }
            }
        }
        let part = |extent: &Extent| {
            let begin = usize::try_from(extent.offset).ok()?;
            let end = begin.checked_add(usize::try_from(extent.bytes).ok()?)?;
            object.get(begin..end)
        };
        let piece = |piece: &Piece| {
            let found = part(&piece.extent());
            found.filter(|found| sha256(found) == piece.sha256)
        };
        let log = pack.added().all(|one| piece(&one).is_some());
        let segments = pack.frames.iter().all(|one| {
            let bytes = piece(&pack.piece(&one.span));
            bytes.and_then(frames).is_some()
        });
        let mut own = pack.own_runs();
        let runs = own.all(|run| part(&run.extent()).is_some_and(|found| run.is(found)));
        if !(log && segments && runs) {
            found.damage.push(format!(
                "{name} is damaged: its bytes are not those that it was made with"
            ));
        }
        let files = pack
            .control
            .iter()
            .chain(pack.bases.iter().map(|base| &base.file));
        let opening = files
            .clone()
            .filter(|file| !shredded.contains(&file.file_id));
        for file in opening {
            for run in file.runs.iter().filter(|run| run.object != name) {
                found.objects += 1;
                found.bytes += run.bytes;
                let read = self.run(run).await;
                let _read = noted(read.map(drop), found)?;
            }
        }
        let manifests = pack.manifests.iter().map(|one| StoredFile {
            subject: one.subject.clone(),
            file_id: one.file_id.clone(),
            dek_id: one.dek_ids[0].clone(),
            manifest: one.manifest.clone(),
            bytes: 0,
            runs: Vec::new(),
            missing: None,
            on_disk: None,
            over: None,
        });
        let files = files.cloned().chain(manifests);
        for file in files.filter(|file| !shredded.contains(&file.file_id)) {
            let _other = self.check_manifest(envelope, &file, found).await?;
        }
        Ok(())
    }
}

/// What was read; damage is noted.
fn noted<T>(read: Result<T, BackupError>, found: &mut Verified) -> Result<Option<T>, BackupError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error @ BackupError::Envelope(_)) => {
            found.unproven.push(said(&error));
            Ok(None)
        }
        Err(error) if error.is_damage() => {
            found.damage.push(said(&error));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
