//! Which snapshot is restored, and what that takes.

use std::collections::BTreeSet;

use super::log::later;
use super::{Chosen, Plan, Proof, Restore};
use crate::backup::catalogue::{Catalogue, StoredFile, StoredPart};
use crate::backup::chain::Above;
use crate::backup::repository::said;
use crate::backup::timeline::Found;
use crate::backup::{BackupError, Repository};
use crate::envelope::Envelope;

/// The newest audit log of the repository: of its last snapshot, or of the packs that go on from
/// the last one of all.
async fn newest_log(
    repository: &Repository,
    prover: Option<&Envelope>,
    restore: &Restore,
    catalogue: &Catalogue,
    (above, passed): (&mut Above, &BTreeSet<u64>),
) -> Result<Vec<StoredPart>, BackupError> {
    let mut newest = (catalogue.taken.clone(), catalogue.audit.clone());
    let mut consider = |found: Catalogue| {
        if found.taken > newest.0 {
            newest = (found.taken, found.audit);
        }
    };
    let is_chosen = (restore.snapshot, restore.at_ms) != (None, None);
    if is_chosen {
        match repository.instant(prover, None, passed).await {
            // One that somebody made with an old key is not listened to.
            Ok(found)
                if prover.is_none() || above.vouches_for(found.catalogue.number, catalogue) =>
            {
                consider(found.catalogue);
            }
            Ok(_) => {}
            Err(BackupError::NoSnapshot(_)) => {}
            // What was chosen is restored all the same.
            Err(error) if error.is_damage() => above.damage.push(said(&error)),
            Err(error) => return Err(error),
        }
    }
    match (prover, above.newest.take()) {
        (_, Some(newest)) => consider(newest),
        (Some(_), None) => {}
        (None, None) => {
            let (read, damage) = repository.newest().await?;
            above.damage.extend(damage);
            read.into_iter().for_each(|read| consider(read.claims));
        }
    }
    Ok(newest.1)
}

impl Repository {
    /// What belongs to an instant, what was found of the entries behind it, and those among them
    /// that were taken for what they are not and passed over: somebody put them there with a
    /// key that was replaced, or in the place of another.
    pub(in crate::backup) async fn proven_instant(
        &self,
        prover: Option<&Envelope>,
        at_ms: Option<i64>,
    ) -> Result<(Found, Above, BTreeSet<u64>), BackupError> {
        let (mut passed, mut damage) = (BTreeSet::new(), Vec::new());
        loop {
            let found = self.instant(prover, at_ms, &passed).await;
            let mut found = found.map_err(|error| error.besides(&damage))?;
            let Some(envelope) = prover else {
                return Ok((found, Above::default(), passed));
            };
            let mut above = self.above(envelope, found.catalogue.number).await?;
            match above.first.take() {
                None => {
                    if let Some(withheld) = found.withheld.take() {
                        return Err(withheld);
                    }
                    above.damage.extend(damage);
                    let newest = above.newest.as_ref().unwrap_or(&found.catalogue);
                    let key = &newest.control.dek_id;
                    let exchanged = self.check_exchanged(envelope, &found.read, key);
                    above.damage.extend(exchanged.await?);
                    return Ok((found, above, passed));
                }
                Some(error) if error.is_damage() => {
                    damage.push(said(&error));
                    let _new = passed.insert(found.catalogue.number);
                }
                Some(error) => return Err(error),
            }
        }
    }
}

impl Restore {
    /// Chooses the snapshot, proves its catalogue, and finds out what it takes. Nothing is written.
    ///
    /// # Errors
    ///
    /// [`BackupError`].
    pub async fn choose(
        self,
        repository: Repository,
        envelope: Option<Envelope>,
    ) -> Result<Chosen, BackupError> {
        let (numbers, _others) = repository.numbers().await?;
        let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else {
            let none = format!("the repository {} has no snapshot yet", repository.shown());
            return Err(BackupError::NoSnapshot(none));
        };
        let prover = envelope.as_ref().filter(|_| self.proof != Proof::None);
        let (found, mut above, passed) = match self.snapshot {
            None => repository.proven_instant(prover, self.at_ms).await?,
            Some(number) => {
                let Some((read, _)) = repository.catalogue(number).await? else {
                    return Err(BackupError::NoSnapshot(format!(
                        "the repository {} has no snapshot {number}; it has {first} to {last}",
                        repository.shown()
                    )));
                };
                if let Some(tenant) = &read.claims.tenant {
                    return Err(BackupError::NoSnapshot(format!(
                        "snapshot {number} holds the tenant {tenant} alone: a deployment is restored from a snapshot of all"
                    )));
                }
                let mut above = Above::default();
                if let Some(envelope) = prover {
                    repository.prove(envelope, &read).await?;
                    above = repository.above(envelope, number).await?;
                }
                if let Some(error) = above.first.take() {
                    return Err(error);
                }
                (Found::of(read.claims), above, BTreeSet::new())
            }
        };
        let Found {
            catalogue,
            packs,
            faults,
            ..
        } = found;
        above.damage.extend(faults);
        let newest = above.newest.as_ref();
        let is_key_replaced =
            newest.is_some_and(|newest| newest.keys_before.contains(&catalogue.control.dek_id));
        let newest_log = newest_log(
            &repository,
            prover,
            &self,
            &catalogue,
            (&mut above, &passed),
        )
        .await?;
        let later = later(&repository, &catalogue.audit, &newest_log).await?;
        let mut without_keys = Vec::new();
        for file in catalogue.files().filter(|file| file.missing.is_none()) {
            if repository.manifests(file).await?.is_empty() {
                match file.tenant() {
                    Some(tenant) => without_keys.push(tenant.to_string()),
                    None => {
                        return Err(repository
                            .damaged(&file.manifests(), "the control file's manifest is missing"));
                    }
                }
            }
        }
        let log = if self.as_it_was {
            catalogue.audit.clone()
        } else {
            newest_log
        };
        let restored = |file: &&StoredFile| {
            file.missing.is_none()
                && file
                    .tenant()
                    .is_none_or(|tenant| !without_keys.contains(&tenant.to_string()))
        };
        let files: Vec<_> = catalogue.files().filter(restored).collect();
        let runs = files.iter().flat_map(|file| &file.runs);
        let over = files.iter().filter_map(|file| file.over.as_ref());
        let over = over.flat_map(|over| &over.segments);
        let pieces = log.iter().flat_map(|part| &part.pieces);
        let plan = Plan {
            repository: repository.shown(),
            snapshot: catalogue.number,
            taken: catalogue.taken.clone(),
            packs,
            tenants: files.len() - 1,
            bytes: files.iter().map(|file| file.bytes).sum::<u64>()
                + log.iter().map(|part| part.bytes).sum::<u64>(),
            objects: runs.clone().count()
                + over.clone().count()
                + pieces.clone().count()
                + files.len(),
            read_bytes: runs.map(|run| run.bytes).sum::<u64>()
                + over.map(|(piece, _)| piece.bytes).sum::<u64>()
                + pieces.map(|piece| piece.bytes).sum::<u64>(),
            missing: catalogue
                .tenants
                .iter()
                .filter_map(|file| Some(format!("{}: {}", file.tenant()?, file.missing.as_ref()?)))
                .collect(),
            later,
            done_again: !self.as_it_was,
            again: Vec::new(),
            unproven: Vec::new(),
            damaged: Vec::new(),
            faults: above.faults(),
            without_keys: without_keys.clone(),
        };
        Ok(Chosen {
            repository,
            log,
            restore: self,
            envelope,
            is_key_replaced,
            plan,
            catalogue,
        })
    }
}
