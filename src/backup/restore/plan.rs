//! Which snapshot is restored, and what that takes.

use super::log::later;
use super::{Chosen, Plan, Proof, Restore};
use crate::backup::catalogue::StoredFile;
use crate::backup::{BackupError, Repository};
use crate::envelope::Envelope;

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
        let candidates: Vec<u64> = match self.snapshot {
            Some(number) => vec![number],
            None => numbers.iter().rev().copied().collect(),
        };
        let mut found = None;
        for number in candidates {
            let Some((read, _)) = repository.catalogue(number).await? else {
                return Err(BackupError::NoSnapshot(format!(
                    "the repository {} has no snapshot {number}; it has {first} to {last}",
                    repository.shown()
                )));
            };
            match &read.claims.tenant {
                Some(tenant) if self.snapshot.is_some() => {
                    return Err(BackupError::NoSnapshot(format!(
                        "snapshot {number} holds the tenant {tenant} alone: a deployment is restored from a snapshot of all"
                    )));
                }
                Some(_) => {}
                None => {
                    found = Some(read);
                    break;
                }
            }
        }
        let Some(read) = found else {
            return Err(BackupError::NoSnapshot(format!(
                "no snapshot in the repository {} holds the whole deployment",
                repository.shown()
            )));
        };
        let newest = match repository.catalogue(*last).await? {
            Some((newest, _)) if newest.claims.number > read.claims.number => Some(newest),
            _ => None,
        };
        if let (true, Some(envelope)) = (self.proof != Proof::None, &envelope) {
            repository.prove(envelope, &read).await?;
            if let Some(newest) = &newest {
                repository.prove(envelope, newest).await?;
            }
        }
        let catalogue = read.claims;
        let newest_log =
            newest.map_or_else(|| catalogue.audit.clone(), |newest| newest.claims.audit);
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
        let pieces = log.iter().flat_map(|part| &part.pieces);
        let plan = Plan {
            repository: repository.shown(),
            snapshot: catalogue.number,
            taken: catalogue.taken.clone(),
            tenants: files.len() - 1,
            bytes: files.iter().map(|file| file.bytes).sum::<u64>()
                + log.iter().map(|part| part.bytes).sum::<u64>(),
            objects: runs.clone().count() + pieces.clone().count() + files.len(),
            read_bytes: runs.map(|run| run.bytes).sum::<u64>()
                + pieces.map(|piece| piece.bytes).sum::<u64>(),
            missing: catalogue
                .tenants
                .iter()
                .filter_map(|file| Some(format!("{}: {}", file.tenant()?, file.missing.as_ref()?)))
                .collect(),
            later,
            done_again: !self.as_it_was,
            unproven: Vec::new(),
            without_keys: without_keys.clone(),
        };
        Ok(Chosen {
            repository,
            log,
            restore: self,
            envelope,
            plan,
            catalogue,
        })
    }
}
