//! Which instants can be restored, and what belongs to one.
//!
//! An instant is that of a snapshot, or lies between a snapshot that was made while its server
//! shipped and the end of the packs that go on from it. What belongs to it is a
//! [catalogue](super::catalogue::Catalogue) again: that of the snapshot, with what the packs say up
//! to the instant.
//!
//! - Commits count by their times. As each beginning of the log is an instant of all tenants, so is
//!   what was committed up to a time.
//! - The control file and the audit log, and that a tenant is gone, count from the end of the pack
//!   that says so.

mod state;
mod tenant;
mod witness;

pub use self::state::Found;
pub use self::tenant::{Granularity, TenantRange};

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use self::state::State;
use super::catalogue::{SealedCatalogue, ShippedAt};
use super::chain::unproven;
use super::entries::snapshot_name;
use super::prover::Prover;
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

impl Repository {
    /// The ranges of instants that packs make. Nothing is proven, and no key is needed.
    ///
    /// # Errors
    ///
    /// [`BackupError`].
    pub async fn ranges(&self) -> Result<Vec<Range>, BackupError> {
        let mut begun: BTreeMap<u64, Vec<(SealedCatalogue, ShippedAt)>> = BTreeMap::new();
        for number in self.numbers().await?.0 {
            let read = match self.catalogue(number).await {
                Ok(Some((read, _))) => read,
                Ok(None) => continue,
                // It is named where snapshots are listed.
                Err(error) if error.is_damage() => continue,
                Err(error) => return Err(error),
            };
            if let Some(shipping) = read.claims.shipping {
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
            let last = packs.last().copied().unwrap_or(0);
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
                let (end, at) = self
                    .last_readable(epoch, shipping.pack, next.unwrap_or(last))
                    .await?;
                let to = at.unwrap_or_else(|| read.claims.taken.clone());
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

    /// The last pack from behind `first` up to `last` that can be read, and the instant at its end.
    async fn last_readable(
        &self,
        epoch: u64,
        first: u64,
        last: u64,
    ) -> Result<(u64, Option<String>), BackupError> {
        let packs = self.packs(epoch).await?.into_iter().rev();
        for number in packs.filter(|number| (first + 1..=last).contains(number)) {
            match self.pack(epoch, number, false).await {
                Ok(Some((read, _))) => return Ok((number, Some(read.claims.at))),
                Ok(None) => {}
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        Ok((first, None))
    }

    /// What belongs to the instant `at_ms`, or to the newest one. What does not prove to be a
    /// snapshot is passed over, and so are those in `passed`. What is under a key that is not
    /// at hand may be a snapshot: where packs lead to the instant from another one, nothing of it
    /// is in that; of the newest instant it is told (`withheld`).
    ///
    /// # Errors
    ///
    /// [`BackupError::NoSnapshot`] says which instants there are.
    pub(super) async fn instant(
        &self,
        envelope: Option<&Envelope>,
        at_ms: Option<i64>,
        passed: &BTreeSet<u64>,
    ) -> Result<Found, BackupError> {
        let mut prover = Prover::new(self, envelope);
        let upto = at_ms.unwrap_or(i64::MAX);
        let (numbers, _others) = self.numbers().await?;
        let (mut withheld, mut older) = (None, None);
        let numbers = numbers.into_iter().rev();
        for number in numbers.filter(|number| !passed.contains(number)) {
            let read = match self.catalogue(number).await {
                Ok(Some((read, _))) => read,
                Ok(None) => continue,
                Err(error) if error.is_damage() => continue,
                Err(error) => return Err(error),
            };
            let taken = clock::ms_of(&read.claims.taken).unwrap_or(i64::MAX);
            if read.claims.tenant.is_some() || taken > upto {
                continue;
            }
            if let Some(envelope) = envelope {
                match self.prove(envelope, &read).await {
                    Ok(()) => {}
                    Err(error) if error.is_damage() => continue,
                    Err(error) if error.proves_nothing() => {
                        withheld = withheld.or(Some((number, error)));
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            older = older.or(Some(number));
            let shipping = read.claims.shipping;
            let mut state = State::new(self, read.claims, taken);
            if let Some(shipping) = shipping {
                state.read(&mut prover, shipping, upto).await?;
            }
            if at_ms.is_none() || upto <= state.end_ms || upto == taken {
                let upto = upto.min(state.end_ms);
                let mut found = state.settle(&mut prover, upto).await?;
                match withheld {
                    Some((number, error)) if at_ms.is_some() => {
                        found.faults.push(unproven(number, &error));
                    }
                    withheld => {
                        let told = withheld.map(|(number, error)| {
                            self.withheld(number, error, Some(how_to_choose(&found)))
                        });
                        found.withheld = told;
                    }
                }
                return Ok(found);
            }
            if let Some(stopped) = state.stopped {
                return Err(stopped);
            }
            // Only a snapshot that nobody shipped from can lie within what was shipped.
            if shipping.is_some() {
                break;
            }
        }
        if let Some((number, error)) = withheld {
            let older = older.map(|older| format!("--snapshot {older}"));
            return Err(self.withheld(number, error, older));
        }
        Err(BackupError::NoSnapshot(self.none(at_ms).await?))
    }

    /// That an entry may be the newest, and is under a key that is not at hand; and with which flag
    /// the newest is restored that proves.
    pub(super) fn withheld(
        &self,
        number: u64,
        error: BackupError,
        flag: Option<String>,
    ) -> BackupError {
        let next = match flag {
            Some(flag) => {
                format!("run this again with `{flag}`, the newest that the keys at hand prove")
            }
            None => "there is nothing here that the keys at hand prove".to_owned(),
        };
        self.withheld_until(number, error, next)
    }

    pub(super) fn withheld_until(
        &self,
        number: u64,
        error: BackupError,
        next: String,
    ) -> BackupError {
        BackupError::Withheld {
            location: self.shown(),
            object: snapshot_name(number),
            next,
            source: Box::new(error),
        }
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
        for snapshot in self.snapshots(None).await?.0 {
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

/// The flag of `restore` that chooses what was found.
pub(super) fn how_to_choose(found: &Found) -> String {
    match found.packs {
        0 => format!("--snapshot {}", found.catalogue.number),
        _ => format!("--at {}", found.catalogue.taken),
    }
}
