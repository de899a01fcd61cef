//! A snapshot, and what the packs after it say, up to an instant.

mod lines;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{FutureExt as _, StreamExt as _, stream};

use super::super::catalogue::{Catalogue, FramesOver, Piece, ShippedAt, StoredFile, StoredPart};
use super::super::pack::{
    Pack, PackedBase, PackedGone, PackedLog, PackedManifest, PackedPart, SealedPack, Segment,
};
use super::super::prover::Prover;
use super::super::repository::said;
use super::super::sealing_keys::sealed_by_old_key;
use super::super::{BackupError, Repository};
use crate::clock;
use crate::sqlcipher::UNIT;

/// What belongs to an instant.
#[derive(Debug)]
pub struct Found {
    /// As a snapshot of that instant would have it; its number is that of the snapshot from which
    /// the packs go on.
    pub catalogue: Catalogue,
    /// How many packs lead to it; 0 for the instant of a snapshot.
    pub packs: u64,
    /// What came after it and is not as it was written.
    pub faults: Vec<String>,
    /// That something may be newer, and cannot be proven: whoever wants the newest is told.
    pub(in crate::backup) withheld: Option<BackupError>,
    /// The packs that were read for it.
    pub(in crate::backup) read: ReadPacks,
}

/// Packs of an epoch that were read, one after the other.
#[derive(Debug, Default)]
pub(in crate::backup) struct ReadPacks {
    pub(in crate::backup) epoch: u64,
    /// The first, and the last.
    pub(in crate::backup) first: u64,
    pub(in crate::backup) last: u64,
    /// The data keys of the control file that seal them.
    pub(in crate::backup) keys: BTreeSet<String>,
}

impl Found {
    /// The instant of a snapshot.
    pub(in crate::backup) fn of(catalogue: Catalogue) -> Self {
        Self {
            catalogue,
            packs: 0,
            faults: Vec::new(),
            withheld: None,
            read: ReadPacks::default(),
        }
    }
}

/// A snapshot, and what the packs after it say.
pub(super) struct State<'a> {
    repository: &'a Repository,
    catalogue: Catalogue,
    taken_ms: i64,
    /// Bases from here on are later than the snapshot.
    base: u32,
    epoch: u64,
    /// The last pack that was read, and the instant at its end.
    pack: u64,
    packs: u64,
    pub(super) end_ms: i64,
    frames: BTreeMap<(String, u32), Vec<(Piece, Segment)>>,
    bases: BTreeMap<(String, u32), PackedBase>,
    /// With the instant at the end of its pack.
    gone: Vec<(PackedGone, i64)>,
    manifests: Vec<PackedManifest>,
    /// What is wrong with the pack at which reading ended.
    pub(super) stopped: Option<BackupError>,
    read: ReadPacks,
}

impl<'a> State<'a> {
    pub(super) fn new(repository: &'a Repository, catalogue: Catalogue, taken_ms: i64) -> Self {
        Self {
            repository,
            catalogue,
            taken_ms,
            base: 0,
            epoch: 0,
            pack: 0,
            packs: 0,
            end_ms: taken_ms,
            frames: BTreeMap::new(),
            bases: BTreeMap::new(),
            gone: Vec::new(),
            manifests: Vec::new(),
            stopped: None,
            read: ReadPacks::default(),
        }
    }

    /// Reads packs until one goes beyond `upto`.
    pub(super) async fn read(
        &mut self,
        prover: &mut Prover<'_>,
        shipping: ShippedAt,
        upto: i64,
    ) -> Result<(), BackupError> {
        (self.epoch, self.pack, self.base) = (shipping.epoch, shipping.pack, shipping.base);
        (self.read.epoch, self.read.first) = (shipping.epoch, shipping.pack + 1);
        let (repository, epoch) = (self.repository, self.epoch);
        let reading = (self.pack + 1..).map(|number| repository.pack(epoch, number, false).boxed());
        let mut reading = stream::iter(reading).buffered(AHEAD);
        while self.end_ms <= upto {
            let name = Pack::name(epoch, self.pack + 1);
            let read = match reading.next().await {
                Some(Ok(Some((read, _)))) => self.proven(prover, &name, read).await,
                Some(Ok(None)) | None => break,
                Some(Err(error)) => Err(error),
            };
            match read {
                Ok(read) => {
                    let key = read.dek_id.to_string();
                    if !self.take(read.claims, upto)? {
                        break;
                    }
                    self.note(key, self.pack);
                }
                Err(error) if error.is_damage() => return self.stop(prover, error).await,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn note(&mut self, key: String, number: u64) {
        let _known = self.read.keys.insert(key);
        self.read.last = number;
    }

    async fn proven(
        &self,
        prover: &mut Prover<'_>,
        name: &str,
        read: SealedPack,
    ) -> Result<SealedPack, BackupError> {
        prover.prove(name, &read).await?;
        self.reject_old_key(name, &read)?;
        Ok(read)
    }

    /// What stands in the place of the next pack is none. Somebody may have put it there: unless a
    /// pack goes on from it, nothing is missing.
    async fn stop(
        &mut self,
        prover: &mut Prover<'_>,
        stopped: BackupError,
    ) -> Result<(), BackupError> {
        let later = self.repository.packs(self.epoch).await?.into_iter();
        for number in later.filter(|number| *number > self.pack + 1) {
            let name = Pack::name(self.epoch, number);
            let read = match self.repository.pack(self.epoch, number, false).await {
                Ok(Some((read, _))) => self.proven(prover, &name, read).await,
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            match read {
                Ok(read) if read.claims.anchor.is_none() => return Err(stopped),
                Ok(_) => break,
                Err(error) if error.is_damage() => {}
                Err(error) => return Err(error),
            }
        }
        self.stopped = Some(stopped);
        Ok(())
    }

    /// Rejects a pack that is sealed with a key which was replaced before the snapshot.
    fn reject_old_key(&self, name: &str, read: &SealedPack) -> Result<(), BackupError> {
        let key = read.dek_id.to_string();
        match self.catalogue.keys_before.contains(&key) {
            true => Err(self.repository.damaged(name, sealed_by_old_key(&key))),
            false => Ok(()),
        }
    }

    /// Takes over what the next pack says; `false` when it does not go on from here.
    fn take(&mut self, pack: Pack, upto: i64) -> Result<bool, BackupError> {
        let (Some(after), Some(at)) = (clock::ms_of(&pack.after), clock::ms_of(&pack.at)) else {
            return Ok(false);
        };
        let goes_on = match pack.anchor {
            Some(anchor) => self.packs == 0 && anchor <= self.catalogue.number,
            // The first one may have begun before the snapshot.
            None if self.packs == 0 => after <= self.end_ms,
            None => after == self.end_ms,
        };
        if !goes_on {
            return Ok(false);
        }
        for segment in &pack.frames {
            let of = self.frames.entry((segment.subject.clone(), segment.base));
            of.or_default()
                .push((pack.piece(&segment.span), segment.clone()));
        }
        for base in &pack.bases {
            let of = (base.file.subject.clone(), base.base);
            let _none = self.bases.insert(of, base.clone());
        }
        self.gone
            .extend(pack.gone.iter().map(|gone| (gone.clone(), at)));
        self.manifests.extend(pack.manifests.iter().cloned());
        if at <= upto {
            if let Some(log) = &pack.audit {
                self.log(log, &pack)?;
            }
            if let Some(control) = &pack.control {
                self.control(control);
            }
        }
        (self.pack, self.packs, self.end_ms) = (pack.number, self.packs + 1, at);
        Ok(true)
    }

    fn control(&mut self, control: &StoredFile) {
        let mut runs = match self.catalogue.control.dek_id == control.dek_id {
            true => std::mem::take(&mut self.catalogue.control.runs),
            // All of its pages are others.
            false => Vec::new(),
        };
        runs.extend(control.runs.iter().cloned());
        self.catalogue.control = StoredFile {
            runs,
            ..control.clone()
        };
    }

    fn log(&mut self, log: &PackedLog, pack: &Pack) -> Result<(), BackupError> {
        let before: BTreeMap<String, StoredPart> = self
            .catalogue
            .audit
            .drain(..)
            .map(|part| (part.name.clone(), part))
            .collect();
        // The first pack may have begun before the snapshot, which then has a part of what it adds,
        // and may have its new names.
        let renames = |part: &&PackedPart| part.of.as_ref().is_some_and(|of| *of != part.name);
        let mut renamed = log.changed.iter().filter(renames);
        let had_new_names = self.packs == 0
            && pack.anchor.is_none()
            && renamed.all(|part| before.contains_key(&part.name));
        for name in &log.parts {
            let changed = log.changed.iter().find(|part| part.name == *name);
            let of = changed.map_or(Some(name), |part| part.of.as_ref());
            let of = if had_new_names { Some(name) } else { of };
            let had = of.and_then(|of| before.get(of));
            let (Some(changed), pieces) = (changed, had.map(|had| had.pieces.clone())) else {
                match had {
                    Some(had) => self.catalogue.audit.push(had.clone()),
                    None => {
                        let object = Pack::name(pack.epoch, pack.number);
                        let why = format!("it says nothing of {name}, which is new");
                        return Err(self.repository.damaged(&object, why));
                    }
                }
                continue;
            };
            let mut pieces = pieces.unwrap_or_default();
            if let Some(added) = &changed.added {
                let begins = changed.bytes.saturating_sub(added.bytes);
                let mut piece = pack.piece(added);
                piece.skip = had.map_or(0, |had| had.bytes.saturating_sub(begins));
                pieces.extend((piece.skip < piece.bytes).then_some(piece));
            }
            self.catalogue.audit.push(StoredPart {
                name: name.clone(),
                bytes: changed.bytes,
                sha256: changed.sha256.clone(),
                pieces,
            });
        }
        Ok(())
    }

    /// What belongs to the instant `at_ms`.
    pub(super) async fn settle(
        mut self,
        prover: &mut Prover<'_>,
        at_ms: i64,
    ) -> Result<Found, BackupError> {
        self.read_late_bases(prover, at_ms).await?;
        let mut subjects: BTreeSet<String> = self
            .frames
            .keys()
            .map(|(subject, _)| subject.clone())
            .collect();
        subjects.extend(self.bases.keys().map(|(subject, _)| subject.clone()));
        let mut tenants: BTreeMap<String, StoredFile> = std::mem::take(&mut self.catalogue.tenants)
            .into_iter()
            .map(|file| (file.subject.clone(), file))
            .collect();
        subjects.extend(self.gone.iter().map(|(gone, _)| gone.subject.clone()));
        subjects.extend(tenants.keys().cloned());
        for subject in subjects {
            let file = self.file(&subject, tenants.remove(&subject), at_ms);
            self.catalogue.tenants.extend(file);
        }
        if self.packs > 0 {
            self.catalogue.taken = clock::stamp_of(at_ms);
        }
        Ok(Found {
            catalogue: self.catalogue,
            packs: self.packs,
            faults: self.stopped.iter().map(said).collect(),
            withheld: None,
            read: self.read,
        })
    }

    /// The pages of a large file may be named by a later pack than its first frames.
    async fn read_late_bases(
        &mut self,
        prover: &mut Prover<'_>,
        at_ms: i64,
    ) -> Result<(), BackupError> {
        let first_base = self.base;
        let is_missing = |state: &Self| {
            state.frames.iter().any(|(of, segments)| {
                of.1 >= first_base
                    && !state.bases.contains_key(of)
                    && segments.iter().any(|(_, one)| commits_by(one, at_ms) > 0)
            })
        };
        let mut number = self.pack;
        while is_missing(self) {
            number += 1;
            let Some((read, _)) = self.repository.pack(self.epoch, number, false).await? else {
                break;
            };
            let name = Pack::name(self.epoch, number);
            let read = self.proven(prover, &name, read).await?;
            self.note(read.dek_id.to_string(), number);
            for base in read.claims.bases {
                let of = (base.file.subject.clone(), base.base);
                let _none = self.bases.insert(of, base);
            }
        }
        Ok(())
    }

    /// The file of a tenant at an instant; `None` where there was none.
    fn file(&self, subject: &str, before: Option<StoredFile>, at_ms: i64) -> Option<StoredFile> {
        let gone = || {
            let of = |(gone, _): &&(PackedGone, i64)| gone.subject == subject;
            self.gone.iter().filter(of)
        };
        // What of it is later than the snapshot.
        let later = |gone: &&(PackedGone, i64)| clock::ms_of(&gone.0.at) >= Some(self.taken_ms);
        let applied = gone().filter(|(_, end)| *end <= at_ms);
        let gone_before = applied
            .clone()
            .map(|(gone, _)| gone.before)
            .max()
            .unwrap_or(0);
        let is_gone = applied.filter(later).count() > 0;
        let not_yet = gone().filter(|(_, end)| *end > at_ms);
        let not_yet = not_yet
            .map(|(gone, _)| gone.before)
            .min()
            .unwrap_or(u32::MAX);
        let counts = |number: u32| number >= gone_before && number < not_yet;
        let of_subject = (subject.to_owned(), self.base)..=(subject.to_owned(), u32::MAX);
        let begun = self.bases.range(of_subject.clone());
        let begun = begun
            .filter(|((_, number), base)| counts(*number) && clock::ms_of(&base.at) <= Some(at_ms));
        let begun = begun
            .max_by_key(|((_, number), _)| *number)
            .map(|((_, number), base)| (*number, base));
        let newest = self
            .frames
            .range(of_subject)
            .filter(|((_, number), segments)| {
                counts(*number) && segments.iter().any(|(_, one)| commits_by(one, at_ms) > 0)
            });
        let newest = newest
            .max_by_key(|((_, number), _)| *number)
            .map(|((_, number), _)| *number);
        let mut file = match begun {
            Some((_, base)) => base.file.clone(),
            None if is_gone => return None,
            None => before.clone().unwrap_or_else(|| StoredFile {
                subject: subject.to_owned(),
                file_id: uuid::Uuid::nil().to_string(),
                dek_id: "0".repeat(16),
                manifest: "0".repeat(64),
                bytes: 0,
                runs: Vec::new(),
                missing: Some("its pages are not in the repository".to_owned()),
                on_disk: None,
                over: None,
            }),
        };
        if newest > begun.map(|(number, _)| number) {
            file.missing = Some(
                "the pages that it had at that instant were not stored before the server ended; it is there at the instants before its data \
                 key was replaced, and in the snapshot after"
                    .to_owned(),
            );
            return Some(file);
        }
        if begun.is_none() && before.is_none() {
            // It came to be after that instant.
            return None;
        }
        let dek_id = begun.map_or(file.dek_id.clone(), |(_, base)| base.dek_id.clone());
        let over = match begun {
            Some((number, _)) => self.over(subject, number..=number, i64::MIN, at_ms),
            None => self.over(
                subject,
                0..=self.base.saturating_sub(1),
                self.taken_ms,
                at_ms,
            ),
        };
        if let Some((segments, pages)) = over {
            let bytes = file.bytes;
            file.over = Some(FramesOver { bytes, segments });
            file.bytes = u64::from(pages) * UNIT as u64;
        }
        let manifest = self
            .manifests
            .iter()
            .rev()
            .find(|one| one.file_id == file.file_id && one.dek_ids.contains(&dek_id));
        if let Some(newest) = manifest {
            file.dek_id = newest.dek_ids[0].clone();
            file.manifest = newest.manifest.clone();
        }
        Some(file)
    }

    /// The frames of a file that were committed by `at_ms`, and the pages of the database then.
    /// They count where some were committed since `since_ms`: those before change nothing.
    fn over(
        &self,
        subject: &str,
        bases: std::ops::RangeInclusive<u32>,
        since_ms: i64,
        at_ms: i64,
    ) -> Option<(Vec<(Piece, u32)>, u32)> {
        let of = (subject.to_owned(), *bases.start())..=(subject.to_owned(), *bases.end());
        let groups = self.frames.range(of).rev();
        for (_, segments) in groups {
            let last = segments
                .iter()
                .rposition(|(_, one)| commits_by(one, at_ms) > 0);
            let Some(last) = last else { continue };
            let (_, ends) = &segments[last];
            let commit = ends.commits[commits_by(ends, at_ms) - 1];
            if commit.2 < since_ms {
                continue;
            }
            let whole = segments[..last]
                .iter()
                .map(|(piece, one)| (piece.clone(), one.frames));
            let end = (segments[last].0.clone(), commit.0);
            return Some((whole.chain([end]).collect(), commit.1));
        }
        None
    }
}

/// How many commits of a segment were made by a time.
fn commits_by(segment: &Segment, at_ms: i64) -> usize {
    segment.commits.partition_point(|(_, _, ms)| *ms <= at_ms)
}

/// Packs that are read ahead.
const AHEAD: usize = 16;
