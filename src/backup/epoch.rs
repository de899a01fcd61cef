//! Epochs: each server that begins to ship begins one, and whoever shipped before stops at the next
//! pack.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::catalogue::Catalogue;
use super::pack::{Pack, SealedPack, parse_head};
use super::prover::Prover;
use super::repository::said;
use super::sealed::{Claims, Sealed, seal};
use super::sealing_keys::sealed_by_old_key;
use super::store::Created;
use super::tip::Newest;
use super::{BackupError, Repository, is_sha256, limits, sha256};
use crate::clock;
use crate::control::ArchiveSealer;
use crate::envelope::Envelope;

/// An epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Epoch {
    /// Its number; the first is 1.
    pub epoch: u64,
    /// The repository that it is in.
    pub repository: Uuid,
    /// When, RFC 3339, UTC.
    pub began: String,
    /// The epoch before; `None` of the first.
    pub previous: Option<Previous>,
}

/// The epoch before, as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Previous {
    /// SHA-256 of its object.
    pub sha256: String,
    /// The number of its last pack; 0 where it had none.
    pub pack: u64,
    /// SHA-256 of that pack.
    pub pack_sha256: Option<String>,
}

/// An epoch whose MAC was not verified.
pub type SealedEpoch = Sealed<Epoch>;

impl Claims for Epoch {
    const FORMAT: &'static str = "nimbus-epoch/1";

    fn check(&self) -> Result<(), String> {
        let previous = self.previous.as_ref().is_none_or(|before| {
            let pack = before.pack_sha256.as_deref();
            is_sha256(&before.sha256)
                && pack.is_none_or(is_sha256)
                && (before.pack == 0) == pack.is_none()
        });
        match previous && clock::ms_of(&self.began).is_some() {
            true => Ok(()),
            false => Err("what it says of the epoch before is not right".to_owned()),
        }
    }
}

/// An epoch that was begun just now.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) epoch: u64,
    /// SHA-256 of its object.
    pub(super) sha256: String,
    /// No time in the repository that is proven is after this.
    pub(super) floor_ms: i64,
    /// What was in the way and is none.
    pub(super) skipped: Vec<String>,
}

/// The last pack of an epoch.
struct LastPack {
    number: u64,
    sha256: String,
    at_ms: i64,
    /// The data key of the control file that seals it.
    key: String,
}

/// The object of an epoch.
pub(super) fn epoch_name(epoch: u64) -> String {
    format!("epochs/{epoch:010}")
}

impl Repository {
    /// Begins the next epoch, behind the newest that is proven. Of two servers that do, one gets
    /// the number after the other's. `newest` is what snapshots go on from.
    pub(super) async fn begin_epoch(
        &self,
        envelope: &Envelope,
        sealer: &ArchiveSealer,
        newest: &Newest,
    ) -> Result<Begun, BackupError> {
        let mut prover = Prover::knowing(self, envelope, sealer);
        let claims = newest.before.as_ref().map(|sealed| &sealed.claims);
        let mut floor_ms = claims.and_then(|claims| clock::ms_of(&claims.taken));
        let mut skipped = Vec::new();
        let mut before = None;
        for epoch in self.epochs().await?.into_iter().rev() {
            match self.proven_epoch(&mut prover, epoch, claims).await {
                Ok(Some(sha256)) => {
                    before = Some((epoch, sha256));
                    break;
                }
                Ok(None) => {}
                Err(error) if error.proves_nothing() => skipped.push(said(&error)),
                Err(error) => return Err(error),
            }
        }
        let mut epoch = before.as_ref().map_or(0, |(epoch, _)| *epoch);
        loop {
            epoch += 1;
            let previous = match &before {
                None => None,
                Some((before, sha256)) => {
                    let last = self
                        .last_proven_pack(&mut prover, *before, claims, &mut skipped)
                        .await?;
                    // A time that an old key could seal says nothing.
                    let is_current = |last: &LastPack| !newest.keys.replaced.contains(&last.key);
                    floor_ms = floor_ms.max(
                        last.as_ref()
                            .filter(|last| is_current(last))
                            .map(|last| last.at_ms),
                    );
                    Some(Previous {
                        sha256: sha256.clone(),
                        pack: last.as_ref().map_or(0, |last| last.number),
                        pack_sha256: last.map(|last| last.sha256),
                    })
                }
            };
            let claimed = Epoch {
                epoch,
                repository: self.id,
                began: clock::stamp(),
                previous,
            };
            let object = Bytes::from(seal(&claimed, sealer));
            match self
                .store
                .create(&epoch_name(epoch), object.clone())
                .await?
            {
                Created::Done => {
                    let sha256 = sha256(&object);
                    // Packs that lie there would be in the way: it is left as it is, and the next
                    // one is begun.
                    if !self.packs(epoch).await?.is_empty() {
                        let why =
                            "it was there before its epoch began, and is not this deployment's";
                        skipped.push(said(&self.damaged(&format!("log/{epoch:010}"), why)));
                        before = Some((epoch, sha256));
                        continue;
                    }
                    return Ok(Begun {
                        epoch,
                        sha256,
                        floor_ms: floor_ms.unwrap_or(0),
                        skipped,
                    });
                }
                Created::Other => match self.proven_epoch(&mut prover, epoch, claims).await {
                    Ok(sha256) => before = sha256.map(|sha256| (epoch, sha256)).or(before),
                    Err(error) if error.proves_nothing() => {
                        let said = said(&error);
                        if !skipped.contains(&said) {
                            skipped.push(said);
                        }
                    }
                    Err(error) => return Err(error),
                },
            }
        }
    }

    /// The SHA-256 of an epoch's object, once it is proven; `None` where there is none. `newest` is
    /// the newest snapshot.
    async fn proven_epoch(
        &self,
        prover: &mut Prover<'_>,
        epoch: u64,
        newest: Option<&Catalogue>,
    ) -> Result<Option<String>, BackupError> {
        let Some((read, sha256)) = self.epoch(epoch).await? else {
            return Ok(None);
        };
        let name = epoch_name(epoch);
        prover.prove(&name, &read).await?;
        self.reject_older(newest, &name, (epoch, 0), &read.dek_id.to_string())?;
        Ok(Some(sha256))
    }

    /// The last pack of an epoch that is proven. It is in no bundle.
    async fn last_proven_pack(
        &self,
        prover: &mut Prover<'_>,
        epoch: u64,
        newest: Option<&Catalogue>,
        skipped: &mut Vec<String>,
    ) -> Result<Option<LastPack>, BackupError> {
        for number in self.single_packs(epoch).await?.into_iter().rev() {
            let name = Pack::name(epoch, number);
            let read = match self.pack(epoch, number, true).await {
                Ok(Some((read, object))) => match prover.prove(&name, &read).await {
                    Ok(()) => Ok((read, object)),
                    Err(error) => Err(error),
                },
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            let proven = read.and_then(|(read, object)| {
                let key = read.dek_id.to_string();
                self.reject_older(newest, &name, (epoch, number), &key)?;
                Ok(LastPack {
                    number,
                    sha256: sha256(&object),
                    at_ms: clock::ms_of(&read.claims.at).unwrap_or(0),
                    key,
                })
            });
            match proven {
                Ok(last) => return Ok(Some(last)),
                Err(error) if error.proves_nothing() => skipped.push(said(&error)),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Rejects what comes after a snapshot under a key that was replaced before it.
    fn reject_older(
        &self,
        newest: Option<&Catalogue>,
        name: &str,
        place: (u64, u64),
        key: &String,
    ) -> Result<(), BackupError> {
        let is_older = newest.is_some_and(|newest| {
            let at = newest.shipping.map(|at| (at.epoch, at.pack));
            at.is_some_and(|at| at < place) && newest.keys_before.contains(key)
        });
        match is_older {
            true => Err(self.damaged(name, sealed_by_old_key(key))),
            false => Ok(()),
        }
    }

    /// Whether there is an epoch after this one: `next`, or one behind it where what has that
    /// number proves nothing, which is told and passed over. Whoever begins an epoch has no key
    /// that was `replaced`.
    pub(super) async fn is_replaced(
        &self,
        prover: &mut Prover<'_>,
        next: &mut u64,
        replaced: &BTreeSet<String>,
    ) -> Result<bool, BackupError> {
        loop {
            let name = epoch_name(*next);
            let read = match self.epoch(*next).await {
                Ok(None) => return Ok(false),
                Ok(Some((read, _))) => prover.prove(&name, &read).await.and_then(|()| {
                    let key = read.dek_id.to_string();
                    match replaced.contains(&key) {
                        true => Err(self.damaged(&name, sealed_by_old_key(&key))),
                        false => Ok(()),
                    }
                }),
                Err(error) => Err(error),
            };
            match read {
                Ok(()) => return Ok(true),
                Err(error) if error.proves_nothing() => {
                    let why = said(&error);
                    tracing::warn!(
                        why,
                        "what is no epoch stands in the place of the next: it is passed over; move it away"
                    );
                    *next += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// This epoch is not the last one any more.
    pub(super) fn replaced(&self, epoch: u64) -> BackupError {
        let location = self.shown();
        BackupError::Replaced { location, epoch }
    }

    /// The numbers of all epochs, in order.
    pub(super) async fn epochs(&self) -> Result<Vec<u64>, BackupError> {
        self.numbered("epochs", epoch_name).await
    }

    /// An epoch, whose MAC is not verified yet, and the SHA-256 of its object; `None` when there is
    /// none.
    pub(super) async fn epoch(
        &self,
        epoch: u64,
    ) -> Result<Option<(SealedEpoch, String)>, BackupError> {
        let name = epoch_name(epoch);
        let Some(object) = self.store.get(&name).await? else {
            return Ok(None);
        };
        let read = self.readable(&name, SealedEpoch::parse(&object))?;
        if read.claims.epoch != epoch || read.claims.repository != self.id {
            return Err(self.damaged(&name, "it is another epoch's, and was put there"));
        }
        self.ours(&name, &read)?;
        Ok(Some((read, sha256(&object))))
    }

    /// The head of a pack, whose MAC is not verified yet; `None` when there is none. With `whole`,
    /// its object, too.
    pub(super) async fn pack(
        &self,
        epoch: u64,
        number: u64,
        whole: bool,
    ) -> Result<Option<(SealedPack, Bytes)>, BackupError> {
        let name = Pack::name(epoch, number);
        let (mut part, end) = match whole {
            true => (None, limits::PACK),
            false => (Some(0..HEAD), HEAD),
        };
        let mut read = end;
        let Some(mut begin) = self.pack_bytes(epoch, number, part.clone()).await? else {
            return Ok(None);
        };
        // A head that is longer than what is read of it at first.
        while super::sealed::ends(&begin).len() < 3 && begin.len() as u64 == read {
            read = (read * 16).min(limits::PACK);
            part = part.map(|part| 0..read.max(part.end));
            let more = self.pack_bytes(epoch, number, part.clone()).await?;
            let is_longer = |more: &Bytes| more.len() > begin.len();
            let Some(more) = more.filter(is_longer) else {
                break;
            };
            begin = more;
        }
        let (read, _) = self.readable(&name, parse_head(&begin))?;
        let claims = &read.claims;
        if (claims.epoch, claims.number, claims.repository) != (epoch, number, self.id) {
            let why = format!(
                "it is pack {} of epoch {} of repository {}, and was put there",
                claims.number, claims.epoch, claims.repository
            );
            return Err(self.damaged(&name, why));
        }
        self.ours(&name, &read)?;
        Ok(Some((read, begin)))
    }

    fn ours<T>(&self, name: &str, read: &Sealed<T>) -> Result<(), BackupError> {
        match read.file_id.to_string() == self.deployment {
            true => Ok(()),
            false => Err(self.damaged(name, "it is of another deployment, and was put there")),
        }
    }
}

/// What is read of a pack at first: 64 KiB.
const HEAD: u64 = 64 << 10;
