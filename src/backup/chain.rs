//! Whether the entries of a repository follow one another, and by which data keys of the control
//! file they are sealed.
//!
//! Each entry names the SHA-256 of the one before, so whoever proves the newest proves all of them.
//! Nothing of this is known of entries that are gone, the newest among them.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};

use super::catalogue::Catalogue;
use super::entries::{Entry, snapshot_name};
use super::prover::Prover;
use super::removal::Removal;
use super::repository::said;
use super::sealing_keys::{SealingKeys, sealed_by_old_key};
use super::{BackupError, Repository};
use crate::control::ArchiveSealer;
use crate::envelope::Envelope;

/// Entries, each of which names the one before.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// By number: what each names as the one before, and its SHA-256; `None` of one that cannot be
    /// read.
    entries: BTreeMap<u64, Option<(Option<String>, String)>>,
    /// The newest removal, which names all that were removed.
    pub(super) removal: Option<Removal>,
}

impl Chain {
    pub(super) fn add(&mut self, number: u64, entry: &Entry, sha256: String) {
        let previous = entry.previous().cloned();
        let _new = self.entries.insert(number, Some((previous, sha256)));
    }

    pub(super) fn unreadable(&mut self, number: u64) {
        let _new = self.entries.insert(number, None);
    }

    /// What each entry from `first` on does not go on from; and those that were to be removed and
    /// are there. Numbers may be passed over: where something else stood there, whoever makes
    /// an entry takes the next.
    pub(super) fn check(&self, first: u64) -> (Vec<String>, Vec<String>) {
        let (mut damage, mut findings) = (Vec::new(), Vec::new());
        let gone = self.gone();
        for (number, entry) in self.entries.range(first..) {
            if gone.contains_key(number) {
                findings.push(format!(
                    "{} was to be removed, and is there: the removal was cut short; `nimbus backup prune` goes on with it",
                    snapshot_name(*number)
                ));
            }
            let Some((previous, _)) = entry else { continue };
            if *number == first && first > 1 {
                continue;
            }
            let (before, sha256) = self.before(*number, &gone).unzip();
            if previous.as_deref() == sha256 {
                continue;
            }
            let name = snapshot_name(*number);
            let lost = before.is_none_or(|before| before + 1 < *number);
            let unreadable = self.entries.range(before.unwrap_or(0) + 1..*number);
            let unreadable = unreadable.last().map(|(number, _)| *number);
            damage.push(match (lost, previous) {
                (true, Some(_)) => format!(
                    "{} is missing or damaged, and {name} goes on from it",
                    snapshot_name(unreadable.unwrap_or(*number - 1))
                ),
                _ => format!(
                    "{name} does not go on from {}: one of the two was replaced",
                    snapshot_name(before.unwrap_or(0))
                ),
            });
        }
        let kept = self.removal.iter().flat_map(|removal| &removal.kept);
        for kept in kept.filter(|kept| kept.number >= first) {
            let name = snapshot_name(kept.number);
            match self.entries.get(&kept.number) {
                Some(None) => {}
                Some(Some((_, sha256))) if *sha256 == kept.sha256 => {}
                Some(Some(_)) => damage.push(format!("{name} {REPLACED}")),
                None => damage.push(format!("{name} is missing, and no removal took it")),
            }
        }
        (damage, findings)
    }

    /// Whether something behind this number cannot be read.
    pub(super) fn is_unreadable_above(&self, number: u64) -> bool {
        let mut above = self.entries.range(number + 1..);
        above.any(|(_, entry)| entry.is_none())
    }

    /// The entry before a number, of those that can be read or were removed; and its SHA-256.
    fn before<'a>(&'a self, number: u64, gone: &BTreeMap<u64, &'a str>) -> Option<(u64, &'a str)> {
        let readable = self.entries.range(..number).rev();
        let readable = readable
            .filter_map(|(number, entry)| Some((*number, entry.as_ref()?.1.as_str())))
            .next();
        let removed = gone.range(..number).next_back();
        readable.max(removed.map(|(number, sha256)| (*number, *sha256)))
    }

    /// Whether the entry after this one, or the newest removal, names it by its SHA-256. `None`
    /// where neither tells.
    fn is_named(&self, number: u64) -> Option<bool> {
        let (_, sha256) = self.entries.get(&number)?.as_ref()?;
        let next = self.next(number).and_then(|next| {
            let (previous, _) = self.entries.get(&next)?.as_ref()?;
            let is_named = previous.as_ref() == Some(sha256);
            // One in between may be gone.
            (is_named || next == number + 1).then_some(is_named)
        });
        let removal = self.removal.iter();
        let mut all = removal.flat_map(|removal| removal.gone.iter().chain(&removal.kept));
        let by_removal = all.find(|one| one.number == number);
        next.or(by_removal.map(|one| one.sha256 == *sha256))
    }

    /// The next entry that can be read.
    fn next(&self, number: u64) -> Option<u64> {
        let mut later = self.entries.range(number + 1..);
        later
            .find(|(_, entry)| entry.is_some())
            .map(|(number, _)| *number)
    }

    fn gone(&self) -> BTreeMap<u64, &str> {
        let removal = self.removal.iter();
        let gone = removal.flat_map(|removal| &removal.gone);
        gone.map(|gone| (gone.number, gone.sha256.as_str()))
            .collect()
    }
}

/// What was found of the entries from one on, up to the newest.
#[derive(Debug, Default)]
pub(super) struct Above {
    /// What is not as it was written, by the entry that it was found at.
    pub(super) damage: Vec<String>,
    /// Entries that prove nothing, because their keys are not at hand.
    pub(super) unproven: Vec<String>,
    /// What is wrong with the first one.
    pub(super) first: Option<BackupError>,
    /// The newest snapshot that is as it was written, where it is not the first one.
    pub(super) newest: Option<Catalogue>,
}

impl Repository {
    /// Reads all entries from `first` on and proves them: each is authentic, follows the one
    /// before, and is sealed with a key that was not replaced by then.
    ///
    /// # Errors
    ///
    /// [`BackupError`] when the repository cannot be read; damage is part of the answer.
    pub(super) async fn above(
        &self,
        envelope: &Envelope,
        first: u64,
    ) -> Result<Above, BackupError> {
        let mut prover = Prover::new(self, Some(envelope));
        let (mut keys, refused) = self.keys_below(&mut prover, first).await?;
        let mut numbers = self.numbers().await?.0;
        numbers.retain(|number| *number >= first);
        let reading = numbers
            .into_iter()
            .map(|number| async move { (number, self.entry(number).await) }.boxed());
        let reading: Vec<_> = reading.collect();
        let mut reading = stream::iter(reading).buffered(AT_ONCE);
        let (mut above, mut chain) = (Above::default(), Chain::default());
        above.damage.extend(refused.iter().map(said));
        let (mut withheld, mut proven) = (Vec::new(), BTreeSet::new());
        while let Some((number, read)) = reading.next().await {
            let (entry, sha256) = match read {
                Ok(Some(read)) => read,
                Ok(None) => continue,
                Err(error) if error.is_damage() => {
                    chain.unreadable(number);
                    above.note(number == first, error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            match prover.entry(number, &entry).await {
                Ok(()) => {}
                Err(error @ BackupError::Envelope(_)) => {
                    chain.add(number, &entry, sha256);
                    withheld.push((number, error));
                    continue;
                }
                Err(error) if error.is_damage() => {
                    chain.unreadable(number);
                    above.note(number == first, error);
                    continue;
                }
                Err(error) => return Err(error),
            }
            if !keys.go_on(&entry.key(), entry.keys_before()) {
                let why = sealed_by_old_key(&entry.key());
                chain.unreadable(number);
                above.note(number == first, self.damaged(&snapshot_name(number), why));
                continue;
            }
            chain.add(number, &entry, sha256);
            let _new = proven.insert(number);
            match entry {
                Entry::Snapshot(sealed) if number > first => above.newest = Some(sealed.claims),
                Entry::Snapshot(_) => {}
                Entry::Removal(sealed) => chain.removal = Some(sealed.claims),
            }
        }
        let (damage, _unfinished) = chain.check(first);
        above.damage.extend(damage);
        let next = chain.next(first);
        let is_next_proven =
            chain.removal.is_some() || next.is_some_and(|next| proven.contains(&next));
        if is_next_proven && chain.is_named(first) == Some(false) {
            above.note(true, self.damaged(&snapshot_name(first), REPLACED));
        }
        for (number, error) in withheld {
            // The entry after it vouches for it.
            if chain.is_named(number) == Some(true) && number != first {
                continue;
            }
            match number == first {
                true => above.first = Some(error),
                false => above.unproven.push(unproven(number, &error)),
            }
        }
        Ok(above)
    }

    /// Goes on with an authentic entry.
    ///
    /// # Errors
    ///
    /// [`BackupError::Damaged`] of one whose key was replaced before.
    pub(super) fn go_on(
        &self,
        keys: &mut SealingKeys,
        (number, entry): (u64, Entry),
    ) -> Result<Entry, BackupError> {
        match keys.go_on(&entry.key(), entry.keys_before()) {
            true => Ok(entry),
            false => Err(self.damaged(&snapshot_name(number), sealed_by_old_key(&entry.key()))),
        }
    }

    /// Rejects a sealer with a key that another one replaced.
    ///
    /// # Errors
    ///
    /// [`BackupError::OlderKey`].
    pub(super) fn reject_replaced(
        &self,
        keys: &SealingKeys,
        sealer: &ArchiveSealer,
    ) -> Result<(), BackupError> {
        // Tests make snapshots so as somebody would who has an old key.
        ::fail::fail_point!("backup::old-key-seals", |_| Ok(()));
        let key = sealer.dek_id.to_string();
        match keys.replaced.contains(&key) {
            true => Err(BackupError::OlderKey {
                location: self.shown(),
                key,
            }),
            false => Ok(()),
        }
    }

    /// The keys of the entries below `number`. Of each run of entries under one key the last is
    /// read whole, of the others the last line alone: that one is not authentic, and whoever
    /// changes it can as well remove the entry. Besides, entries whose key was replaced before.
    pub(super) async fn keys_below(
        &self,
        prover: &mut Prover<'_>,
        number: u64,
    ) -> Result<(SealingKeys, Vec<BackupError>), BackupError> {
        let listed = self.store.list("snapshots").await?.into_iter();
        let mut below: Vec<_> = listed
            .filter_map(|(name, bytes)| {
                let at = name.strip_prefix("snapshots/")?.parse::<u64>().ok()?;
                (at < number && snapshot_name(at) == name).then_some((at, bytes))
            })
            .collect();
        below.sort_unstable();
        let ends = below.into_iter().map(|(at, bytes)| {
            async move {
                let part = bytes.saturating_sub(LAST_LINE)..bytes;
                // An object without a byte has no part.
                let end = match part.is_empty() {
                    true => None,
                    false => self.store.get_part(&snapshot_name(at), part).await?,
                };
                Ok::<_, BackupError>((at, end.and_then(|end| key_in(&end))))
            }
            .boxed()
        });
        let ends: Vec<_> = ends.collect();
        let ends: Vec<_> = stream::iter(ends).buffered(AT_ONCE).try_collect().await?;
        let mut runs: Vec<(String, Vec<u64>)> = Vec::new();
        for (at, key) in ends {
            let Some(key) = key else { continue };
            match runs.last_mut() {
                Some((last, run)) if *last == key => run.push(at),
                _ => runs.push((key, vec![at])),
            }
        }
        let (mut keys, mut refused) = (SealingKeys::default(), Vec::new());
        for (_, run) in runs {
            for at in run.into_iter().rev() {
                match self.proven_entry(prover, at).await {
                    Ok(Some(entry)) => {
                        refused.extend(self.go_on(&mut keys, (at, entry)).err());
                        break;
                    }
                    Ok(None) => {}
                    // Nor do the others under that key say anything.
                    Err(BackupError::Envelope(_)) => break,
                    Err(error) if error.is_damage() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok((keys, refused))
    }

    async fn proven_entry(
        &self,
        prover: &mut Prover<'_>,
        number: u64,
    ) -> Result<Option<Entry>, BackupError> {
        let Some((entry, _)) = self.entry(number).await? else {
            return Ok(None);
        };
        prover.entry(number, &entry).await?;
        Ok(Some(entry))
    }
}

impl Above {
    /// Whether what was found belongs to the newest snapshot that is as it was written.
    pub(super) fn vouches_for(&self, number: u64, first: &Catalogue) -> bool {
        let newest = self.newest.as_ref().unwrap_or(first);
        number <= newest.number
    }

    /// All that is to be told of them.
    pub(super) fn faults(self) -> Vec<String> {
        let mut faults = [self.damage, self.unproven].concat();
        faults.sort();
        faults.dedup();
        faults
    }

    fn note(&mut self, is_first: bool, error: BackupError) {
        match is_first {
            true => self.first = Some(error),
            false => self.damage.push(said(&error)),
        }
    }
}

/// Says that an entry proves nothing, and which key is missing.
pub(super) fn unproven(number: u64, error: &BackupError) -> String {
    format!(
        "{}: its MAC cannot be checked: {}",
        snapshot_name(number),
        said(error)
    )
}

/// The data key that the last line of an entry names.
fn key_in(end: &[u8]) -> Option<String> {
    let line = std::str::from_utf8(end)
        .ok()?
        .trim_end()
        .rsplit('\n')
        .next()?;
    let mut words = line.rsplit(' ');
    let (_mac, key) = (words.next()?, words.next()?);
    let key = key.parse::<nimbus_manifests::DekId>().ok()?;
    Some(key.to_string())
}

const REPLACED: &str = "was replaced: what comes after it goes on from another";
/// More than the last line of an entry has.
const LAST_LINE: u64 = 128;
/// Entries that are read at a time.
const AT_ONCE: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_key_in_the_last_line_and_nowhere_else() {
        let line = "mac: 01a22ade-1458-79f1-93cb-b7675b5c6529 69271c530a77808c pL0f=\n";
        assert_eq!(key_in(line.as_bytes()).as_deref(), Some("69271c530a77808c"));
        let cut = &format!("{{\"x\":\"y\"}}\n{line}").into_bytes()[4..];
        assert_eq!(key_in(cut).as_deref(), Some("69271c530a77808c"));
        for other in ["", "\n", "mac: x", "mac: a b c\n", "\u{7f} 69271c53 x"] {
            assert_eq!(key_in(other.as_bytes()), None, "{other:?}");
        }
    }
}
