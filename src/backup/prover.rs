//! Proves what is read of a repository, by its MAC; each data key is unwrapped once.

use std::collections::BTreeMap;
use std::sync::Arc;

use nimbus_keyproviders::ArchiveKey;

use super::entries::{Entry, snapshot_name};
use super::sealed::{Claims, Sealed};
use super::{BackupError, Repository};
use crate::control::ArchiveSealer;
use crate::envelope::Envelope;
use crate::error_chain::error_chain;

/// Proves what is read of a repository.
pub(super) struct Prover<'a> {
    repository: &'a Repository,
    envelope: Option<&'a Envelope>,
    keys: BTreeMap<String, Arc<ArchiveKey>>,
}

impl<'a> Prover<'a> {
    /// Without keys nothing is proven.
    pub(super) fn new(repository: &'a Repository, envelope: Option<&'a Envelope>) -> Self {
        Self {
            repository,
            envelope,
            keys: BTreeMap::new(),
        }
    }

    /// As [`Prover::new`], with a key that is at hand.
    pub(super) fn knowing(
        repository: &'a Repository,
        envelope: &'a Envelope,
        sealer: &ArchiveSealer,
    ) -> Self {
        let key = (sealer.dek_id.to_string(), Arc::clone(&sealer.key));
        Self {
            keys: BTreeMap::from([key]),
            ..Self::new(repository, Some(envelope))
        }
    }

    /// Refuses what has a wrong MAC.
    pub(super) async fn prove<T: Claims>(
        &mut self,
        name: &str,
        read: &Sealed<T>,
    ) -> Result<(), BackupError> {
        let Some(envelope) = self.envelope else {
            return Ok(());
        };
        let dek_id = read.dek_id.to_string();
        if !self.keys.contains_key(&dek_id) {
            let key = self.repository.archive_key(envelope, &dek_id).await;
            let key = key.map_err(|error| self.unproven(name, error))?;
            let _none = self.keys.insert(dek_id.clone(), Arc::new(key));
        }
        match self
            .keys
            .get(&dek_id)
            .is_some_and(|key| read.is_authentic(key))
        {
            true => Ok(()),
            false => Err(self.repository.damaged(
                name,
                "its MAC is wrong: it was changed, or not written by this deployment",
            )),
        }
    }

    /// Names what cannot be proven because the manifest of its key is damaged or gone.
    fn unproven(&self, name: &str, error: BackupError) -> BackupError {
        match error.is_damage() {
            true => {
                let why = format!("its MAC cannot be checked: {}", error_chain(&error));
                self.repository.damaged(name, why)
            }
            false => error,
        }
    }

    /// Refuses an entry that this deployment did not write.
    pub(super) async fn entry(&mut self, number: u64, entry: &Entry) -> Result<(), BackupError> {
        let name = snapshot_name(number);
        match entry {
            Entry::Removal(sealed) => self.prove(&name, sealed).await,
            Entry::Snapshot(sealed) => {
                let control = &sealed.claims.control;
                let own = (sealed.dek_id.to_string(), &self.repository.deployment);
                if (&own.0, own.1) != (&control.dek_id, &control.file_id) {
                    let why = "its MAC names another key than its control file";
                    return Err(self.repository.damaged(&name, why));
                }
                if let Some(envelope) = self.envelope
                    && !self.keys.contains_key(&own.0)
                {
                    let keyed = self.repository.keyed(envelope, control).await;
                    let keyed = keyed.map_err(|error| self.unproven(&name, error))?;
                    let _none = self.keys.insert(own.0, Arc::new(keyed.archive_key()));
                }
                self.prove(&name, sealed).await
            }
        }
    }
}
