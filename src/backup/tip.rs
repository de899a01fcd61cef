//! What a snapshot goes on from: the newest entry, and by which keys entries are sealed; and its own place behind that.

use std::sync::Arc;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

use super::catalogue::{Catalogue, SealedCatalogue};
use super::chain::SealingKeys;
use super::create::Deployment;
use super::repository::{Entry, snapshot_name};
use super::store::Created as Put;
use super::timeline::Prover;
use super::{BackupError, Repository};
use crate::control::ArchiveSealer;
use crate::runtime::blocking;

impl Deployment {
    /// Refuses a key that another one replaced in the repository.
    pub(super) async fn may_seal(
        &self,
        repository: &Repository,
        sealer: &ArchiveSealer,
    ) -> Result<(), BackupError> {
        self.newest(repository, sealer).await.map(drop)
    }

    /// The newest entry, and the newest snapshot, proven.
    pub(super) async fn newest(
        &self,
        repository: &Repository,
        sealer: &ArchiveSealer,
    ) -> Result<Newest, BackupError> {
        let (control, id) = (Arc::clone(&self.control), repository.id);
        let own = blocking(move || control.made_snapshot(id)).await?;
        let own = own.map(|(number, sha256)| (number, HEXLOWER.encode(&sha256)));
        let (mut tip, mut removals) = (None, Vec::new());
        for number in repository.numbers().await?.0.into_iter().rev() {
            let Some((entry, sha256)) = repository.entry(number).await? else {
                continue;
            };
            let is_own = own.as_ref() == Some(&(number, sha256.clone()));
            tip = tip.or(Some(Tip { number, sha256 }));
            let sealed = match entry {
                Entry::Snapshot(sealed) => sealed,
                Entry::Removal(sealed) => {
                    repository.prove_removal(&self.envelope, &sealed).await?;
                    removals.push((number, Entry::Removal(sealed)));
                    continue;
                }
            };
            if is_own {
                // Noted when it was made: the key that it is sealed with may be gone.
            } else if sealed.dek_id == sealer.dek_id {
                if !sealed.is_authentic(&sealer.key) {
                    return Err(repository.damaged(&snapshot_name(number), "its MAC is wrong"));
                }
            } else {
                repository.prove(&self.envelope, &sealed).await?;
            }
            let snapshot = (number, Entry::Snapshot(sealed));
            let mut keys = SealingKeys::default();
            if !is_own {
                let mut prover = Prover::new(repository, Some(&self.envelope));
                let (below, mut refused) = repository.keys_below(&mut prover, number).await?;
                if let Some(refused) = refused.pop() {
                    return Err(refused);
                }
                keys = below;
            }
            let before = repository.go_on(&mut keys, snapshot)?;
            for removal in removals.into_iter().rev() {
                let _counts = repository.go_on(&mut keys, removal)?;
            }
            repository.refuse_replaced(&keys, sealer)?;
            let missed = missed(own, tip.as_ref());
            return Ok(Newest {
                tip,
                before: match before {
                    Entry::Snapshot(sealed) => Some(*sealed),
                    Entry::Removal(_) => None,
                },
                keys,
                missed,
            });
        }
        let missed = missed(own, tip.as_ref());
        Ok(Newest {
            tip,
            before: None,
            keys: SealingKeys::default(),
            missed,
        })
    }

    /// Creates the catalogue under the next number that is free. It learns of each entry that came in between.
    pub(super) async fn commit(
        &self,
        repository: &Repository,
        sealer: &ArchiveSealer,
        (mut tip, mut keys): (Option<Tip>, SealingKeys),
        mut catalogue: Catalogue,
    ) -> Result<(Catalogue, [u8; 32]), BackupError> {
        loop {
            catalogue.number = tip.as_ref().map_or(0, |tip| tip.number) + 1;
            catalogue.previous = tip.map(|tip| tip.sha256);
            repository.refuse_replaced(&keys, sealer)?;
            catalogue.keys_before = keys.before(&sealer.dek_id.to_string());
            let text = catalogue.seal(sealer).map_err(|why| {
                BackupError::NotSaved(format!("the catalogue could not be read again: {why}"))
            })?;
            let sha256 = Sha256::digest(&text).into();
            let text = Bytes::from(text);
            let name = snapshot_name(catalogue.number);
            match repository.store.create(&name, text).await? {
                Put::Done => return Ok((catalogue, sha256)),
                Put::Other => {
                    let theirs = repository.entry(catalogue.number).await?;
                    let Some((theirs, sha256)) = theirs else {
                        return Err(repository.damaged(&name, "it comes and goes"));
                    };
                    match &theirs {
                        Entry::Snapshot(sealed) => {
                            repository.prove(&self.envelope, sealed).await?;
                        }
                        Entry::Removal(sealed) => {
                            repository.prove_removal(&self.envelope, sealed).await?;
                            if sealed.claims.takes_from(&catalogue) {
                                let location = repository.shown();
                                return Err(BackupError::RemovedMeanwhile { location });
                            }
                        }
                    }
                    let _theirs = repository.go_on(&mut keys, (catalogue.number, theirs))?;
                    tip = Some(Tip {
                        number: catalogue.number,
                        sha256,
                    });
                }
            }
        }
    }
}

/// Says that the last snapshot that this deployment made is gone, or another has its number.
fn missed(own: Option<(u64, String)>, tip: Option<&Tip>) -> Option<String> {
    let (number, sha256) = own?;
    let is_there = tip
        .is_some_and(|tip| tip.number > number || (tip.number, &tip.sha256) == (number, &sha256));
    (!is_there).then(|| {
        format!(
            "{}, which this deployment made, is not in the repository any more, or was changed: find out who did that",
            snapshot_name(number)
        )
    })
}

/// What a snapshot goes on from.
pub(super) struct Newest {
    pub(super) tip: Option<Tip>,
    /// The newest snapshot.
    pub(super) before: Option<SealedCatalogue>,
    /// The data keys of the control file that sealed entries.
    pub(super) keys: SealingKeys,
    /// Says what is missed there.
    pub(super) missed: Option<String>,
}

/// The newest entry.
pub(super) struct Tip {
    number: u64,
    sha256: String,
}
