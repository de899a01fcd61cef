//! What a snapshot goes on from: the newest entry, and by which keys entries are sealed; and its
//! own place behind that.
//!
//! Anybody who can write to the repository can put something under any number, and what was made
//! can be removed. So a number says nothing: the newest entry is the last one that is proven, what
//! is not is named and passed over, and so is its number. A new entry comes after the newest, and
//! after the last one that this deployment made, which it names as the one before also where that
//! is gone: whoever verifies misses it then.

use std::sync::Arc;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::catalogue::{Catalogue, SealedCatalogue};
use super::create::Deployment;
use super::entries::{Entry, snapshot_name};
use super::prover::Prover;
use super::repository::said;
use super::sealing_keys::{SealingKeys, sealed_by_old_key};
use super::store::Created as Put;
use super::{BackupError, Repository};
use crate::control::{ArchiveSealer, ControlError};
use crate::runtime::blocking;

impl Deployment {
    /// The newest entry, and the newest snapshot, proven. Refuses a sealer whose key another one
    /// replaced in the repository, and a repository in which another line of this deployment
    /// goes on, unless this one is to `take_over`.
    pub(super) async fn newest(
        &self,
        repository: &Repository,
        sealer: &ArchiveSealer,
        take_over: bool,
    ) -> Result<Newest, BackupError> {
        let (control, id) = (Arc::clone(&self.control), repository.id);
        let known =
            blocking(move || Ok::<_, ControlError>((control.made_snapshot(id)?, control.line()?)));
        let (own, line) = known.await?;
        let own = own.map(|(number, sha256)| Tip {
            number,
            sha256: HEXLOWER.encode(&sha256),
        });
        let mut prover = Prover::knowing(repository, &self.envelope, sealer);
        let mut newest = Newest {
            line,
            take_over,
            ..Newest::default()
        };
        let mut later = Vec::new();
        for number in repository.numbers().await?.0.into_iter().rev() {
            let (entry, sha256) = match repository.entry(number).await {
                Ok(Some(read)) => read,
                Ok(None) => continue,
                Err(error) if error.is_damage() => {
                    newest.pass_over(&error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let at = Tip { number, sha256 };
            // Noted when it was made: the key that it is sealed with may be gone.
            let is_own = own.as_ref() == Some(&at);
            if !is_own {
                match prover.entry(number, &entry).await {
                    Ok(()) => {}
                    Err(error) if error.proves_nothing() => {
                        newest.pass_over(&error);
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            if let Entry::Removal(_) = entry {
                later.push((at, entry));
                continue;
            }
            if !is_own {
                newest.keys = repository.keys_below(&mut prover, number).await?.0;
            }
            match (newest.accept(repository, &at, &entry), entry) {
                (true, Entry::Snapshot(sealed)) => newest.before = Some(*sealed),
                _ => continue,
            }
            break;
        }
        for (at, removal) in later.iter().rev() {
            let _counts = newest.accept(repository, at, removal);
        }
        if let Some(before) = &newest.before
            && own
                .as_ref()
                .is_none_or(|own| own.number < before.claims.number)
        {
            newest.reject_other_line(repository, before)?;
        }
        repository.reject_replaced(&newest.keys, sealer)?;
        newest.goes_after(own);
        Ok(newest)
    }

    /// Creates the catalogue under the next number that is free. It learns of each entry that came
    /// in between.
    pub(super) async fn commit(
        &self,
        repository: &Repository,
        sealer: &ArchiveSealer,
        newest: &mut Newest,
        mut catalogue: Catalogue,
    ) -> Result<(Catalogue, [u8; 32]), BackupError> {
        let mut prover = Prover::knowing(repository, &self.envelope, sealer);
        let mut number = newest.tip.as_ref().map_or(0, |tip| tip.number);
        loop {
            number += 1;
            catalogue.number = number;
            catalogue.previous = newest.tip.as_ref().map(|tip| tip.sha256.clone());
            repository.reject_replaced(&newest.keys, sealer)?;
            catalogue.keys_before = newest.keys.before(&sealer.dek_id.to_string());
            let text = catalogue.seal(sealer).map_err(|why| {
                BackupError::NotSaved(format!("the catalogue could not be read again: {why}"))
            })?;
            let sha256 = Sha256::digest(&text).into();
            let text = Bytes::from(text);
            let name = snapshot_name(number);
            if repository.store.create(&name, text).await? == Put::Done {
                return Ok((catalogue, sha256));
            }
            let theirs = match repository.entry(number).await {
                Ok(Some((entry, sha256))) => match prover.entry(number, &entry).await {
                    Ok(()) => Ok((entry, sha256)),
                    Err(error) => Err(error),
                },
                Ok(None) => return Err(repository.damaged(&name, "it comes and goes")),
                Err(error) => Err(error),
            };
            match theirs {
                Ok((entry, sha256)) => {
                    if let Entry::Snapshot(sealed) = &entry {
                        newest.reject_other_line(repository, sealed)?;
                    }
                    let counts = newest.accept(repository, &Tip { number, sha256 }, &entry);
                    if let Entry::Removal(sealed) = &entry
                        && counts
                        && sealed.claims.takes_from(&catalogue)
                    {
                        let location = repository.shown();
                        return Err(BackupError::RemovedMeanwhile { location });
                    }
                }
                // Its number is taken, and it is nothing to go on from.
                Err(error) if error.proves_nothing() => newest.pass_over(&error),
                Err(error) => return Err(error),
            }
        }
    }
}

/// What a snapshot goes on from.
#[derive(Default)]
pub(super) struct Newest {
    /// The newest entry.
    tip: Option<Tip>,
    /// The newest snapshot.
    pub(super) before: Option<SealedCatalogue>,
    /// The data keys of the control file that sealed entries.
    pub(super) keys: SealingKeys,
    /// What is not as it was written, and was passed over; and what is missed.
    pub(super) findings: Vec<String>,
    /// The line of this deployment.
    pub(super) line: Option<Uuid>,
    /// Whether it goes on in the place of another.
    take_over: bool,
}

/// An entry.
#[derive(PartialEq, Eq)]
struct Tip {
    number: u64,
    sha256: String,
}

impl Newest {
    /// Goes on from a proven entry, if its key was not replaced before.
    fn accept(&mut self, repository: &Repository, at: &Tip, entry: &Entry) -> bool {
        if !self.keys.go_on(&entry.key(), entry.keys_before()) {
            let why = sealed_by_old_key(&entry.key());
            self.pass_over(&repository.damaged(&snapshot_name(at.number), why));
            return false;
        }
        self.tip = Some(Tip {
            number: at.number,
            sha256: at.sha256.clone(),
        });
        true
    }

    /// Refuses to go on from a snapshot of another line: of the deployment that this one was
    /// restored from, say.
    fn reject_other_line(
        &self,
        repository: &Repository,
        theirs: &SealedCatalogue,
    ) -> Result<(), BackupError> {
        let claims = &theirs.claims;
        match self.take_over || claims.line == self.line {
            true => Ok(()),
            false => Err(BackupError::OtherLine {
                location: repository.shown(),
                snapshot: claims.number,
                taken: claims.taken.clone(),
            }),
        }
    }

    fn pass_over(&mut self, error: &BackupError) {
        let said = format!("{}; it is passed over", said(error));
        if !self.findings.contains(&said) {
            self.findings.push(said);
        }
    }

    /// What comes next comes after the last entry that this deployment made, too. Says so where
    /// that is gone, or another has its number.
    fn goes_after(&mut self, own: Option<Tip>) {
        let Some(own) = own else { return };
        let is_there = self
            .tip
            .as_ref()
            .is_some_and(|tip| tip.number > own.number || *tip == own);
        if is_there {
            return;
        }
        self.findings.push(format!(
            "{}, which this deployment made, is not in the repository any more, or was changed: find out who did that",
            snapshot_name(own.number)
        ));
        let is_behind = self.tip.as_ref().is_none_or(|tip| tip.number < own.number);
        if is_behind {
            self.tip = Some(own);
        }
    }
}
