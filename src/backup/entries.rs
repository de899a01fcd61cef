//! What stands in `snapshots/`: catalogues of snapshots and removals, by their numbers.
//!
//! Whoever can write to the repository can put anything there, under any number. So nothing goes by
//! a number alone: an entry counts once its MAC is proven (`prover`) and its key was not replaced
//! before (`sealing_keys`). What does not count is named, and passed over.

use super::catalogue::SealedCatalogue;
use super::limits::is_number;
use super::removal::SealedRemoval;
use super::{BackupError, Repository, sha256};
use crate::error_chain::error_chain;

/// What stands under a number.
#[derive(Debug)]
pub(super) enum Entry {
    Snapshot(Box<SealedCatalogue>),
    Removal(Box<SealedRemoval>),
}

impl Entry {
    /// What it names as the entry before.
    pub(super) fn previous(&self) -> Option<&String> {
        match self {
            Self::Snapshot(sealed) => sealed.claims.previous.as_ref(),
            Self::Removal(sealed) => sealed.claims.previous.as_ref(),
        }
    }

    /// The data key of the control file that it is sealed with.
    pub(super) fn key(&self) -> String {
        match self {
            Self::Snapshot(sealed) => sealed.dek_id.to_string(),
            Self::Removal(sealed) => sealed.dek_id.to_string(),
        }
    }

    /// Those that sealed before it.
    pub(super) fn keys_before(&self) -> &[String] {
        match self {
            Self::Snapshot(sealed) => &sealed.claims.keys_before,
            Self::Removal(sealed) => &sealed.claims.keys_before,
        }
    }
}

impl Repository {
    /// The numbers of all snapshots and removals, in order; and what else lies among them.
    ///
    /// # Errors
    ///
    /// [`BackupError::Store`].
    pub async fn numbers(&self) -> Result<(Vec<u64>, Vec<String>), BackupError> {
        let (mut numbers, mut others) = (Vec::new(), Vec::new());
        for (name, _bytes) in self.store.list("snapshots").await? {
            let number = name
                .strip_prefix("snapshots/")
                .and_then(|name| name.parse().ok());
            let is_entry = |number: &u64| is_number(*number) && snapshot_name(*number) == name;
            match number.filter(is_entry) {
                Some(number) => numbers.push(number),
                None => others.push(name),
            }
        }
        numbers.sort_unstable();
        Ok((numbers, others))
    }

    /// The catalogue of a snapshot, whose MAC is not verified yet, and its SHA-256; `None` when
    /// there is none.
    ///
    /// # Errors
    ///
    /// [`BackupError::Damaged`] and [`BackupError::Newer`], among others.
    pub async fn catalogue(
        &self,
        number: u64,
    ) -> Result<Option<(SealedCatalogue, String)>, BackupError> {
        Ok(match self.entry(number).await? {
            Some((Entry::Snapshot(sealed), sha256)) => Some((*sealed, sha256)),
            Some((Entry::Removal(_), _)) | None => None,
        })
    }

    /// What stands under a number, whose MAC is not verified yet, and its SHA-256; `None` when
    /// there is nothing.
    ///
    /// # Errors
    ///
    /// As [`Repository::catalogue`].
    pub(super) async fn entry(&self, number: u64) -> Result<Option<(Entry, String)>, BackupError> {
        let object = snapshot_name(number);
        let Some(text) = self.store.get(&object).await? else {
            return Ok(None);
        };
        let (entry, claimed, repository, by) = if text.starts_with(b"nimbus-removal/") {
            let sealed = self.readable(&object, SealedRemoval::parse(&text))?;
            let (number, repository) = (sealed.claims.number, sealed.claims.repository);
            let by = sealed.file_id;
            (Entry::Removal(Box::new(sealed)), number, repository, by)
        } else {
            let sealed = self.readable(&object, SealedCatalogue::parse(&text))?;
            let (number, repository) = (sealed.claims.number, sealed.claims.repository);
            let by = sealed.file_id;
            (Entry::Snapshot(Box::new(sealed)), number, repository, by)
        };
        if claimed != number || repository != self.id {
            let why =
                format!("it is snapshot {claimed} of repository {repository}, and was put there");
            return Err(self.damaged(&object, why));
        }
        if by.to_string() != self.deployment {
            return Err(self.damaged(&object, "it is of another deployment, and was put there"));
        }
        Ok(Some((entry, sha256(&text))))
    }

    /// The newest snapshot that can be read, whose MAC is not verified yet; and what is behind it
    /// and cannot.
    ///
    /// # Errors
    ///
    /// [`BackupError::Store`].
    pub(super) async fn newest(
        &self,
    ) -> Result<(Option<SealedCatalogue>, Vec<String>), BackupError> {
        let mut damage = Vec::new();
        for number in self.numbers().await?.0.into_iter().rev() {
            match self.catalogue(number).await {
                Ok(Some((sealed, _))) => return Ok((Some(sealed), damage)),
                Ok(None) => {}
                Err(error) if error.is_damage() => damage.push(error_chain(&error)),
                Err(error) => return Err(error),
            }
        }
        Ok((None, damage))
    }
}

/// The object of a snapshot's catalogue.
pub(super) fn snapshot_name(number: u64) -> String {
    format!("snapshots/{number:010}")
}
