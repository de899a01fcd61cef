//! Packs of one epoch that follow each other, in one object, whole and unchanged:
//! `log/<epoch>/<first>-<last>`.
//!
//! A pack an interval is some 86 000 objects a day. `prune` puts those of five minutes together,
//! and later those of an hour. Each stays a pack with its MAC and its place in the chain, so every
//! commit stays restorable; only where its bytes are changes.
//!
//! | step | in the repository after it | a kill here leaves |
//! | --- | --- | --- |
//! | 1. `log/<epoch>/<first>-<last>` created, and read back (`bundle::created`) | each of these packs twice | the same, which a further run ends |
//! | 2. each pack, and each smaller bundle, removed (`bundle::removed`) | some of them twice | the same |
//!
//! No record is needed: nothing leaves the repository. Whoever ships does not notice, as it never
//! reads its own packs; one whose answer was lost may store a pack again that is in a bundle by
//! now, and the next run removes it. Two that do this at a time make bundles that overlap, and
//! remove only what lies within their own. A reader that misses a pack looks for a bundle. The last
//! pack of an epoch stays what it is: nothing tells its hash yet.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::pack::Pack;
use super::sealed::{Claims, Sealed, seal};
use super::store::Created;
use super::{BackupError, Repository, is_sha256, limits, sha256};
use crate::control::ArchiveSealer;
use crate::failpoints::crash_point;

/// What a bundle holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bundle {
    /// The epoch that its packs are in.
    pub(super) epoch: u64,
    /// The repository that it is in.
    pub(super) repository: Uuid,
    /// The number of the first pack.
    pub(super) first: u64,
    /// The packs, one behind the other behind the third line.
    pub(super) packs: Vec<Bundled>,
}

/// A pack in a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bundled {
    /// Its length.
    pub(super) bytes: u64,
    /// SHA-256 of it.
    pub(super) sha256: String,
}

impl Claims for Bundle {
    const FORMAT: &'static str = "nimbus-bundle/1";

    fn check(&self) -> Result<(), String> {
        let lengths = self.packs.iter().map(|pack| pack.bytes);
        let total = lengths.fold(0_u64, u64::saturating_add);
        let hashes = self.packs.iter().all(|pack| is_sha256(&pack.sha256));
        let ends = self.first.checked_add(self.packs.len() as u64);
        match hashes && total <= limits::PACK && ends.is_some() && !self.packs.is_empty() {
            true => Ok(()),
            false => Err("what it says of its packs is not right".to_owned()),
        }
    }
}

impl Bundle {
    fn last(&self) -> u64 {
        self.first + self.packs.len() as u64 - 1
    }

    /// Where a pack is, behind a head of so many bytes.
    fn place(&self, head: u64, number: u64) -> Option<Range<u64>> {
        let at = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let pack = self.packs.get(at)?;
        let before: u64 = self.packs[..at].iter().map(|pack| pack.bytes).sum();
        Some(head + before..head + before + pack.bytes)
    }
}

/// The object of a bundle.
fn bundle_name(epoch: u64, first: u64, last: u64) -> String {
    format!("log/{epoch:010}/{first:010}-{last:010}")
}

/// The epoch and the numbers of a pack or a bundle, by its name.
pub(super) fn numbers_of(name: &str) -> Option<(u64, u64, u64)> {
    let mut parts = name.strip_prefix("log/")?.split('/');
    let (epoch, numbers) = (parts.next()?.parse().ok()?, parts.next()?);
    let (first, last) = match numbers.split_once('-') {
        Some((first, last)) => (first.parse().ok()?, last.parse().ok()?),
        None => (numbers.parse().ok()?, numbers.parse().ok()?),
    };
    if ![epoch, first, last].into_iter().all(limits::is_number) {
        return None;
    }
    let is_single = Pack::name(epoch, first) == name;
    let is_bundle = bundle_name(epoch, first, last) == name && first < last;
    (is_single || is_bundle).then_some((epoch, first, last))
}

/// Where the packs of epochs are, as they were last looked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(Arc<Mutex<Listings>>);

#[derive(Debug, Default)]
struct Listings {
    /// By epoch.
    listed: BTreeMap<u64, Listed>,
    /// The last bundle that was read, whole: its epoch, what it holds, the length of its head, its
    /// bytes.
    read: Option<(u64, Arc<Bundle>, u64, Bytes)>,
}

/// What there is of an epoch.
#[derive(Debug, Default)]
struct Listed {
    /// Packs that are objects of their own.
    single: BTreeSet<u64>,
    /// First and last number of each bundle, the longest first. Nobody proved them.
    bundles: Vec<(u64, u64)>,
}

impl Listed {
    fn covering(&self, number: u64) -> Vec<(u64, u64)> {
        let covers = |(first, last): &&(u64, u64)| (*first..=*last).contains(&number);
        self.bundles.iter().filter(covers).copied().collect()
    }
}

impl Repository {
    /// The numbers of all packs of an epoch, in order, wherever they are.
    pub(super) async fn packs(&self, epoch: u64) -> Result<Vec<u64>, BackupError> {
        let listed = self.list_packs(epoch).await?;
        let mut numbers = listed.single.clone();
        for (first, last) in &listed.bundles {
            numbers.extend(*first..=*last);
        }
        let _before = self.places.0.lock().await.listed.insert(epoch, listed);
        Ok(numbers.into_iter().collect())
    }

    /// The numbers of packs that are objects of their own, in order. The last one of an epoch is.
    pub(super) async fn single_packs(&self, epoch: u64) -> Result<Vec<u64>, BackupError> {
        Ok(self.list_packs(epoch).await?.single.into_iter().collect())
    }

    /// Whether there is an object whose packs are all among the first ones of the epoch, up to this
    /// number.
    pub(super) async fn is_left(&self, epoch: u64, number: u64) -> Result<bool, BackupError> {
        let listed = self.list_packs(epoch).await?;
        let single = listed.single.first().is_some_and(|first| *first <= number);
        Ok(single || listed.bundles.iter().any(|(_, last)| *last <= number))
    }

    async fn list_packs(&self, epoch: u64) -> Result<Listed, BackupError> {
        let mut listed = Listed::default();
        for (name, _bytes) in self.store.list(&format!("log/{epoch:010}")).await? {
            match numbers_of(&name) {
                Some((_, first, last)) if first == last => {
                    let _new = listed.single.insert(first);
                }
                Some((_, first, last)) if last - first < MOST_PACKS => {
                    listed.bundles.push((first, last));
                }
                _ => {}
            }
        }
        let length = |(first, last): &(u64, u64)| std::cmp::Reverse(last - first);
        listed.bundles.sort_by_key(length);
        Ok(listed)
    }

    /// The object of a pack, or a part of it without what is behind its end; `None` where there is
    /// none.
    pub(super) async fn pack_bytes(
        &self,
        epoch: u64,
        number: u64,
        part: Option<Range<u64>>,
    ) -> Result<Option<Bytes>, BackupError> {
        let mut is_listed_now = false;
        loop {
            let (is_single, is_behind, covering) = {
                let known = self.places.0.lock().await;
                match known.listed.get(&epoch) {
                    // Later ones are not looked for: one that is there is found by its name.
                    Some(listed) => (
                        listed.single.contains(&number),
                        // Bundles end before the last pack.
                        listed.single.last().is_some_and(|last| *last < number),
                        Some(listed.covering(number)),
                    ),
                    None => (true, false, None),
                }
            };
            let is_bundled = covering.as_ref().is_some_and(|all| !all.is_empty());
            if (is_single || !is_bundled)
                && let Some(found) = self.single(epoch, number, part.clone()).await?
            {
                return Ok(Some(found));
            }
            let mut refused = None;
            for (first, last) in covering.iter().flatten().copied() {
                match self
                    .bundled((epoch, first, last), number, part.clone())
                    .await
                {
                    Ok(Some(found)) => return Ok(Some(found)),
                    Ok(None) => {}
                    // Somebody put it there.
                    Err(BackupError::Damaged { .. }) if is_behind => {}
                    Err(error @ BackupError::Damaged { .. }) => refused = Some(error),
                    Err(error) => return Err(error),
                }
            }
            // It may have moved since it was looked for.
            let is_unknown = covering.is_some() && !is_single && !is_bundled;
            match refused {
                Some(error) => return Err(error),
                None if is_listed_now || is_unknown => return Ok(None),
                None => drop(self.packs(epoch).await?),
            }
            is_listed_now = true;
        }
    }

    async fn single(
        &self,
        epoch: u64,
        number: u64,
        part: Option<Range<u64>>,
    ) -> Result<Option<Bytes>, BackupError> {
        let name = Pack::name(epoch, number);
        let Some(part) = part else {
            return self.store.get(&name).await;
        };
        match self.store.get_part(&name, part.clone()).await {
            Err(error @ BackupError::Damaged { .. }) => Err(error),
            // Some stores refuse a part behind the end.
            Err(_) => Ok(self.store.get(&name).await?.map(|whole| cut(&whole, &part))),
            found => found,
        }
    }

    /// A pack, or a part of it, out of a bundle; `None` where that is gone.
    async fn bundled(
        &self,
        (epoch, first, last): (u64, u64, u64),
        number: u64,
        part: Option<Range<u64>>,
    ) -> Result<Option<Bytes>, BackupError> {
        let mut known = self.places.0.lock().await;
        let is_read = |read: &(u64, Arc<Bundle>, u64, Bytes)| {
            (read.0, read.1.first, read.1.last()) == (epoch, first, last)
        };
        if !known.read.as_ref().is_some_and(is_read) {
            let Some((bundle, head, object)) = self.bundle(epoch, first, last).await? else {
                return Ok(None);
            };
            known.read = Some((epoch, Arc::new(bundle.claims), head, object));
        }
        let Some((_, bundle, head, object)) = known.read.as_ref() else {
            return Ok(None);
        };
        let found = bundle.place(*head, number).map(|place| cut(object, &place));
        Ok(found.map(|pack| match part {
            Some(part) => cut(&pack, &part),
            None => pack,
        }))
    }

    /// A bundle, whose MAC is not verified, the length of its head, and its object; `None` where
    /// there is none.
    pub(super) async fn bundle(
        &self,
        epoch: u64,
        first: u64,
        last: u64,
    ) -> Result<Option<(Sealed<Bundle>, u64, Bytes)>, BackupError> {
        let name = bundle_name(epoch, first, last);
        let Some(object) = self.store.get(&name).await? else {
            return Ok(None);
        };
        let (read, head) = self.readable(&name, Sealed::<Bundle>::parse_head(&object))?;
        let (claims, head) = (&read.claims, head as u64);
        let place = (claims.epoch, claims.first, claims.last(), claims.repository);
        if place != (epoch, first, last, self.id) || read.file_id.to_string() != self.deployment {
            return Err(self.damaged(&name, "it is another bundle, and was put there"));
        }
        let ends = claims.place(head, last).map_or(0, |place| place.end);
        if ends != object.len() as u64 {
            return Err(self.damaged(&name, "it has another length than its packs"));
        }
        Ok(Some((read, head, object)))
    }

    /// Whether each pack in a bundle is the one that it was made of.
    pub(super) fn check_bundle(
        &self,
        (read, head, object): &(Sealed<Bundle>, u64, Bytes),
    ) -> Result<(), BackupError> {
        let bundle = &read.claims;
        for (number, pack) in (bundle.first..).zip(&bundle.packs) {
            let place = bundle.place(*head, number).unwrap_or(0..0);
            if sha256(&cut(object, &place)) != pack.sha256 {
                let name = bundle_name(bundle.epoch, bundle.first, bundle.last());
                return Err(self.damaged(&name, format!("pack {number} in it was changed")));
            }
        }
        Ok(())
    }

    /// Puts packs together whose hashes are known, where there is more than one object of them.
    /// Answers how many objects were removed.
    pub(super) async fn put_together(
        &self,
        sealer: &ArchiveSealer,
        epoch: u64,
        packs: &BTreeMap<u64, String>,
    ) -> Result<usize, BackupError> {
        let (Some((first, _)), Some((last, _))) = (packs.first_key_value(), packs.last_key_value())
        else {
            return Ok(0);
        };
        let (first, last) = (*first, *last);
        if first == last {
            return Ok(0);
        }
        let own = bundle_name(epoch, first, last);
        let listed = self.store.list(&format!("log/{epoch:010}")).await?;
        let within = |name: &&String| {
            let numbers = numbers_of(name);
            numbers.is_some_and(|(_, one, other)| first <= one && other <= last) && **name != own
        };
        let names: Vec<String> = listed.into_iter().map(|(name, _)| name).collect();
        let superfluous: Vec<&String> = names.iter().filter(within).collect();
        if superfluous.is_empty() {
            return Ok(0);
        }
        let mut is_covered = false;
        for name in &names {
            let numbers = numbers_of(name).filter(|(_, one, other)| one < other);
            if let Some((_, one, other)) = numbers
                && one <= first
                && last <= other
                && !is_covered
            {
                is_covered = self.holds((epoch, one, other), packs).await?;
            }
        }
        if !is_covered {
            let mut objects = BytesMut::new();
            let mut bundled = Vec::with_capacity(packs.len());
            for (number, hash) in packs {
                let name = Pack::name(epoch, *number);
                let Some(pack) = self.pack_bytes(epoch, *number, None).await? else {
                    return Err(self.damaged(&name, "it is missing"));
                };
                if sha256(&pack) != *hash {
                    return Err(self.damaged(&name, "the pack after it names another one"));
                }
                bundled.push(Bundled {
                    bytes: pack.len() as u64,
                    sha256: hash.clone(),
                });
                objects.extend_from_slice(&pack);
            }
            let bundle = Bundle {
                epoch,
                repository: self.id,
                first,
                packs: bundled,
            };
            let mut object = BytesMut::from(&seal(&bundle, sealer)[..]);
            object.extend_from_slice(&objects);
            let object = object.freeze();
            let created = self.store.create(&own, object.clone()).await?;
            let there = self.store.get(&own).await?;
            if created == Created::Other || there.as_ref() != Some(&object) {
                return Err(self.damaged(&own, "something else stands under that name"));
            }
            crash_point!("bundle::created");
        }
        let mut removed = 0;
        for name in superfluous {
            removed += usize::from(self.store.remove(name).await?);
            crash_point!("bundle::removed");
        }
        let _numbers = self.packs(epoch).await?;
        Ok(removed)
    }
}

impl Repository {
    /// Whether a bundle holds these packs, byte for byte.
    async fn holds(
        &self,
        (epoch, first, last): (u64, u64, u64),
        packs: &BTreeMap<u64, String>,
    ) -> Result<bool, BackupError> {
        let checked = match self.bundle(epoch, first, last).await {
            Ok(None) => return Ok(false),
            Ok(Some(read)) => self.check_bundle(&read).map(|()| read),
            Err(error) => Err(error),
        };
        match checked {
            Ok((read, _, _)) => {
                let of = (read.claims.first..).zip(&read.claims.packs);
                let held: BTreeMap<u64, &String> =
                    of.map(|(number, pack)| (number, &pack.sha256)).collect();
                Ok(packs
                    .iter()
                    .all(|(number, hash)| held.get(number) == Some(&hash)))
            }
            // Something that was put there.
            Err(BackupError::Damaged { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A part of an object, without what is behind its end.
fn cut(object: &Bytes, part: &Range<u64>) -> Bytes {
    let at = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(object.len());
    object.slice(at(part.start)..at(part.end).max(at(part.start)))
}

/// Where a bundle ends: so many bytes.
pub(super) const MOST_BYTES: u64 = 64 << 20;
/// A name that says more is none: one pack a second is 3600 an hour.
const MOST_PACKS: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_are_written_and_no_others() {
        for (name, numbers) in [
            ("log/0000000002/0000000017", Some((2, 17, 17))),
            ("log/0000000002/0000000017-0000000019", Some((2, 17, 19))),
            ("log/0000000002/0000000017-0000000017", None),
            ("log/0000000002/0000000019-0000000017", None),
            ("log/2/17", None),
            ("log/0000000002/0000000017-19", None),
            ("base/0000000002/0000000017", None),
        ] {
            assert_eq!(numbers_of(name), numbers, "{name}");
        }
    }

    #[test]
    fn a_pack_is_where_those_before_it_end() {
        let pack = |bytes| Bundled {
            bytes,
            sha256: "a".repeat(64),
        };
        let mut bundle = Bundle {
            epoch: 1,
            repository: Uuid::nil(),
            first: 7,
            packs: vec![pack(10), pack(5)],
        };
        assert_eq!(bundle.last(), 8);
        assert_eq!(bundle.place(100, 7), Some(100..110));
        assert_eq!(bundle.place(100, 8), Some(110..115));
        assert_eq!((bundle.place(100, 6), bundle.place(100, 9)), (None, None));
        assert!(bundle.check().is_ok());
        bundle.packs[1].bytes = u64::MAX;
        assert!(bundle.check().is_err());
        bundle.packs.clear();
        assert!(bundle.check().is_err());
    }
}
