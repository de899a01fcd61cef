//! Epochs: each server that begins to ship begins one, and whoever shipped before stops at the next pack.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::pack::{Pack, SealedPack, parse_head};
use super::sealed::{Claims, Sealed, seal};
use super::store::Created;
use super::{BackupError, Repository, is_sha256, limits, sha256};
use crate::clock;
use crate::control::ArchiveSealer;

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
    /// No time in the repository is after this.
    pub(super) floor_ms: i64,
}

/// The object of an epoch.
pub(super) fn epoch_name(epoch: u64) -> String {
    format!("epochs/{epoch:010}")
}

impl Repository {
    /// Begins the next epoch. Of two servers that do, one gets the number after the other's.
    pub(super) async fn begin_epoch(&self, sealer: &ArchiveSealer) -> Result<Begun, BackupError> {
        let mut floor_ms = 0;
        if let Some(newest) = self.numbers().await?.0.last()
            && let Some((read, _)) = self.catalogue(*newest).await?
        {
            floor_ms = clock::ms_of(&read.claims.taken).unwrap_or(0);
        }
        let mut before = self.epochs().await?.last().copied();
        loop {
            let previous = match before {
                None => None,
                Some(before) => {
                    let Some((_, object)) = self.epoch(before).await? else {
                        return Err(self.damaged(&epoch_name(before), "it comes and goes"));
                    };
                    let pack = self.last_pack(before).await?.unwrap_or(0);
                    let mut pack_sha256 = None;
                    if pack > 0 {
                        let name = Pack::name(before, pack);
                        let Some(object) = self.store.get(&name).await? else {
                            return Err(self.damaged(&name, "it comes and goes"));
                        };
                        let (read, _) = self.readable(&name, parse_head(&object))?;
                        let at = clock::ms_of(&read.claims.at).unwrap_or(0);
                        floor_ms = floor_ms.max(at);
                        pack_sha256 = Some(sha256(&object));
                    }
                    Some(Previous {
                        sha256: object,
                        pack,
                        pack_sha256,
                    })
                }
            };
            let epoch = Epoch {
                epoch: before.unwrap_or(0) + 1,
                repository: self.id,
                began: clock::stamp(),
                previous,
            };
            let object = Bytes::from(seal(&epoch, sealer));
            let name = epoch_name(epoch.epoch);
            match self.store.create(&name, object.clone()).await? {
                Created::Done => {
                    return Ok(Begun {
                        epoch: epoch.epoch,
                        sha256: sha256(&object),
                        floor_ms,
                    });
                }
                Created::Other => before = Some(epoch.epoch),
            }
        }
    }

    /// Whether there is an epoch after this one.
    pub(super) async fn is_replaced(&self, epoch: u64) -> Result<bool, BackupError> {
        Ok(self.store.get(&epoch_name(epoch + 1)).await?.is_some())
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

    async fn numbered(
        &self,
        dir: &str,
        name_of: impl Fn(u64) -> String,
    ) -> Result<Vec<u64>, BackupError> {
        let listed = self.store.list(dir).await?;
        let number = |name: &str| {
            let number = name.rsplit('/').next()?.parse().ok()?;
            (name_of(number) == name).then_some(number)
        };
        let mut numbers: Vec<u64> = listed.iter().filter_map(|(name, _)| number(name)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// An epoch, whose MAC is not verified yet, and the SHA-256 of its object; `None` when there is none.
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

    /// The head of a pack, whose MAC is not verified yet; `None` when there is none. With `whole`, its object, too.
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
