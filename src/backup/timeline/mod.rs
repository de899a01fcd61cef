//! Which instants can be restored, and what belongs to one.
//!
//! An instant is that of a snapshot, or lies between a snapshot that was made while its server shipped and the end of the packs that go on
//! from it. What belongs to it is a [`Catalogue`] again: that of the snapshot, with what the packs say up to the instant.
//!
//! - Commits count by their times. As each beginning of the log is an instant of all tenants, so is what was committed up to a time.
//! - The control file and the audit log, and that a tenant is gone, count from the end of the pack that says so.

mod state;

use std::collections::BTreeMap;

use nimbus_keyproviders::ArchiveKey;
use serde::Serialize;

use self::state::State;
use super::catalogue::{Catalogue, SealedCatalogue, ShippedAt};
use super::repository::{Entry, snapshot_name};
use super::sealed::{Claims, Sealed};
use super::{BackupError, Repository};
use crate::clock;
use crate::envelope::Envelope;

/// Instants that follow each other: each of them can be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = InstantRange)]
pub struct Range {
    /// The first.
    pub from: String,
    /// The last.
    pub to: String,
    /// The epoch.
    pub epoch: u64,
    /// The snapshot with which it begins.
    pub snapshot: u64,
    /// How many packs lead from one to the other.
    pub packs: u64,
}

/// What belongs to an instant.
#[derive(Debug)]
pub struct Found {
    /// As a snapshot of that instant would have it; its number is that of the snapshot from which the packs go on.
    pub catalogue: Catalogue,
    /// How many packs lead to it; 0 for the instant of a snapshot.
    pub packs: u64,
}

/// Proves what is read of a repository.
pub(super) struct Prover<'a> {
    repository: &'a Repository,
    envelope: Option<&'a Envelope>,
    keys: BTreeMap<String, ArchiveKey>,
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
            let key = self.repository.archive_key(envelope, &dek_id).await?;
            let _none = self.keys.insert(dek_id.clone(), key);
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
}

impl Prover<'_> {
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
                    let keyed = self.repository.keyed(envelope, control).await?;
                    let _none = self.keys.insert(own.0, keyed.archive_key());
                }
                self.prove(&name, sealed).await
            }
        }
    }
}

impl Repository {
    /// The ranges of instants that packs make. Nothing is proven, and no key is needed.
    ///
    /// # Errors
    ///
    /// [`BackupError`].
    pub async fn ranges(&self) -> Result<Vec<Range>, BackupError> {
        let mut begun: BTreeMap<u64, Vec<(SealedCatalogue, ShippedAt)>> = BTreeMap::new();
        for number in self.numbers().await?.0 {
            if let Some((read, _)) = self.catalogue(number).await?
                && let Some(shipping) = read.claims.shipping
            {
                begun
                    .entry(shipping.epoch)
                    .or_default()
                    .push((read, shipping));
            }
        }
        let mut ranges = Vec::new();
        for (epoch, all) in begun {
            let packs = self.packs(epoch).await?;
            let first = packs.first().copied();
            let last = self.last_pack(epoch).await?.or(packs.last().copied());
            let last = last.unwrap_or(0);
            // Packs before were removed.
            let leads = |at: &ShippedAt| first.is_none_or(|first| at.pack + 1 >= first);
            let mut begun: Vec<_> = Vec::new();
            for (read, at) in all {
                let is_first = begun.is_empty() && first.is_some_and(|first| first > 1);
                if leads(&at) && (at.afresh || (is_first && read.claims.tenant.is_none())) {
                    begun.push((read, at));
                }
            }
            for (place, (read, shipping)) in begun.iter().enumerate() {
                let next = begun.get(place + 1).map(|(_, next)| next.pack);
                let end = next.unwrap_or(last);
                let mut to = read.claims.taken.clone();
                if end > shipping.pack
                    && let Some((pack, _)) = self.pack(epoch, end, false).await?
                {
                    to = pack.claims.at;
                }
                ranges.push(Range {
                    from: read.claims.taken.clone(),
                    to,
                    epoch,
                    snapshot: read.claims.number,
                    packs: end.saturating_sub(shipping.pack),
                });
            }
        }
        Ok(ranges)
    }

    /// What belongs to the instant `at_ms`, or to the newest one.
    ///
    /// # Errors
    ///
    /// [`BackupError::NoSnapshot`] says which instants there are.
    pub async fn instant(
        &self,
        envelope: Option<&Envelope>,
        at_ms: Option<i64>,
    ) -> Result<Found, BackupError> {
        let mut prover = Prover::new(self, envelope);
        let upto = at_ms.unwrap_or(i64::MAX);
        let (numbers, _others) = self.numbers().await?;
        for number in numbers.into_iter().rev() {
            let read = match self.catalogue(number).await {
                // Which instant is the newest is not known then; one that was named is there or not.
                Err(error) if error.is_damage() && at_ms.is_some() => continue,
                read => read?,
            };
            let Some((read, _)) = read else {
                continue;
            };
            let taken = clock::ms_of(&read.claims.taken).unwrap_or(i64::MAX);
            if read.claims.tenant.is_some() || taken > upto {
                continue;
            }
            if let Some(envelope) = envelope {
                self.prove(envelope, &read).await?;
            }
            let shipping = read.claims.shipping;
            let mut state = State::new(self, read.claims, taken);
            if let Some(shipping) = shipping {
                state.read(&mut prover, shipping, upto).await?;
            }
            if at_ms.is_none() || upto <= state.end_ms || upto == taken {
                let at_ms = upto.min(state.end_ms);
                return state.settle(&mut prover, at_ms).await;
            }
            // Only a snapshot that nobody shipped from can lie within what was shipped.
            if shipping.is_some() {
                break;
            }
        }
        Err(BackupError::NoSnapshot(self.none(at_ms).await?))
    }

    /// Which instants there are, in words.
    async fn none(&self, at_ms: Option<i64>) -> Result<String, BackupError> {
        let shown = self.shown();
        let Some(at_ms) = at_ms else {
            return Ok(format!(
                "no snapshot in the repository {shown} holds the whole deployment"
            ));
        };
        let ranges = self.ranges().await?;
        let mut there: Vec<String> = ranges
            .iter()
            .map(|range| format!("each instant from {} to {}", range.from, range.to))
            .collect();
        for snapshot in self.snapshots(None).await? {
            let within = |range: &Range| {
                let at = clock::ms_of(&snapshot.taken);
                at >= clock::ms_of(&range.from) && at <= clock::ms_of(&range.to)
            };
            if snapshot.tenant.is_none() && !ranges.iter().any(within) {
                there.push(format!(
                    "snapshot {} of {}",
                    snapshot.snapshot, snapshot.taken
                ));
            }
        }
        let at = clock::stamp_of(at_ms);
        Ok(match there.is_empty() {
            true => format!("the repository {shown} has no snapshot of the whole deployment yet"),
            false => format!(
                "the repository {shown} cannot be restored to {at}: it has {}",
                there.join(", and ")
            ),
        })
    }
}
