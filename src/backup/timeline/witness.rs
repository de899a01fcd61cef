//! Whether packs were exchanged by somebody who has a data key of the control file that was
//! replaced.
//!
//! A pack names the one before by the SHA-256 of all of it, and an epoch the last pack before it.
//! So the first of them that is sealed with another key vouches for all before. To look costs whole
//! packs: it is done only where packs were read under a key that the newest snapshot is not under.

use std::collections::BTreeMap;

use super::super::epoch::epoch_name;
use super::super::pack::Pack;
use super::super::prover::Prover;
use super::super::{BackupError, Repository, sha256};
use super::state::ReadPacks;
use crate::envelope::Envelope;

/// What was looked at, up to one object.
#[derive(Default)]
struct Chain {
    /// SHA-256 of that object, which the next one names.
    last: Option<String>,
    /// The packs of its epoch.
    hashes: BTreeMap<u64, String>,
    /// The key that seals the last pack that was read.
    key: String,
}

/// What an epoch says of the packs that were read.
enum Next {
    /// It is sealed with another key, and names them.
    Vouches,
    /// It is sealed with the same key.
    Same,
    /// It names fewer.
    LeavesOut,
}

impl Repository {
    /// Refuses packs of which what comes after them says that they were others. Answers what
    /// nothing vouches for. `newest` is the key of the newest snapshot.
    pub(in crate::backup) async fn check_exchanged(
        &self,
        envelope: &Envelope,
        read: &ReadPacks,
        newest: &str,
    ) -> Result<Option<String>, BackupError> {
        if read.keys.iter().all(|key| key == newest) {
            return Ok(None);
        }
        let mut prover = Prover::new(self, Some(envelope));
        let mut chain = Chain::default();
        for epoch in self.epochs().await? {
            if epoch < read.epoch {
                continue;
            }
            if epoch > read.epoch {
                match self
                    .next_epoch(&mut prover, &mut chain, read, epoch)
                    .await?
                {
                    Next::Vouches => return Ok(None),
                    Next::LeavesOut => break,
                    Next::Same => {}
                }
            }
            if self.walk(&mut prover, &mut chain, read, epoch).await? || chain.key == newest {
                return Ok(None);
            }
        }
        Ok(Some(format!(
            "{} and those before are sealed with the data key {} of the control file, which was replaced since, and nothing that a later key seals \
             names them: whoever has that key could have exchanged them",
            Pack::name(read.epoch, read.last),
            chain.key
        )))
    }

    /// Goes on with an epoch. What is none is passed over.
    async fn next_epoch(
        &self,
        prover: &mut Prover<'_>,
        chain: &mut Chain,
        read: &ReadPacks,
        epoch: u64,
    ) -> Result<Next, BackupError> {
        let name = epoch_name(epoch);
        let found = match self.epoch(epoch).await {
            Ok(Some((found, sha256))) => match prover.prove(&name, &found).await {
                Ok(()) => Ok((found, sha256)),
                Err(error) => Err(error),
            },
            Ok(None) => return Ok(Next::Same),
            Err(error) => Err(error),
        };
        let (found, sha256) = match found {
            Ok(found) => found,
            Err(error) if error.proves_nothing() => return Ok(Next::Same),
            Err(error) => return Err(error),
        };
        let previous = found.claims.previous.as_ref();
        let named = previous.and_then(|previous| previous.pack_sha256.as_ref());
        let had = previous.and_then(|previous| chain.hashes.get(&previous.pack));
        if named != had {
            let why = format!("{name} goes on from another: it was exchanged, or put there");
            return Err(self.damaged(&Pack::name(read.epoch, read.last), why));
        }
        // A server that had been replaced stored some more, or somebody else did.
        let is_first = chain.hashes.contains_key(&read.last);
        if is_first && previous.is_none_or(|previous| previous.pack < read.last) {
            return Ok(Next::LeavesOut);
        }
        chain.last = Some(sha256);
        chain.hashes.clear();
        Ok(match found.dek_id.to_string() == chain.key {
            true => Next::Same,
            false => Next::Vouches,
        })
    }

    /// Goes on with the packs of an epoch; whether one behind those that were read is sealed with
    /// another key.
    async fn walk(
        &self,
        prover: &mut Prover<'_>,
        chain: &mut Chain,
        read: &ReadPacks,
        epoch: u64,
    ) -> Result<bool, BackupError> {
        let first = if epoch == read.epoch { read.first } else { 1 };
        let numbers = self.packs(epoch).await?.into_iter();
        for number in numbers.filter(|number| *number >= first) {
            let is_read = epoch == read.epoch && number <= read.last;
            let name = Pack::name(epoch, number);
            let found = match self.pack(epoch, number, true).await {
                Ok(Some((pack, object))) => match prover.prove(&name, &pack).await {
                    Ok(()) => Ok((pack, object)),
                    Err(error) => Err(error),
                },
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            let (pack, object) = match found {
                Ok(found) => found,
                // Shipping passed over it.
                Err(error) if error.proves_nothing() && !is_read => continue,
                Err(error) => return Err(error),
            };
            if chain
                .last
                .as_ref()
                .is_some_and(|last| *last != pack.claims.previous)
            {
                let why = format!("{name} goes on from another than what is there before it");
                return Err(self.damaged(&Pack::name(read.epoch, read.last), why));
            }
            let key = pack.dek_id.to_string();
            if is_read {
                chain.key = key;
            } else if chain.key != key {
                return Ok(true);
            }
            let sha256 = sha256(&object);
            let _none = chain.hashes.insert(number, sha256.clone());
            chain.last = Some(sha256);
        }
        Ok(false)
    }
}
