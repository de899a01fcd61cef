//! Whether a repository is whole and authentic.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{FutureExt as _, StreamExt as _, stream};
use serde::Serialize;

use super::catalogue::{Piece, SealedCatalogue, StoredFile};
use super::removal::Removal;
use super::repository::{Entry, said, snapshot_name};
use super::restore::{Dirs, Proof, Restore};
use super::run::{index, index_bytes, pages};
use super::{BackupError, Repository, sha256};
use crate::config::ProviderChoice;
use crate::envelope::Envelope;
use crate::runtime::Progress;

/// What a look at a repository found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verified {
    /// Snapshots that were looked at.
    pub snapshots: Vec<u64>,
    /// Objects that were read, whole.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What is not as it was written. None: every snapshot that was looked at can be restored, byte for byte.
    pub damage: Vec<String>,
    /// What an operator should know besides.
    pub findings: Vec<String>,
    /// Files that snapshots hold and that nothing opens any more, because their tenants were shredded.
    pub shredded: Vec<String>,
    /// The snapshot that was restored into a scratch directory and opened there; `None` where that was not asked for, or did not succeed.
    pub restored: Option<u64>,
    /// How many packs over it.
    pub restored_packs: u64,
    /// Packs that were looked at.
    pub packs: usize,
}

impl Repository {
    /// Reads all that the snapshots name, or that `only` one names, and proves it by their MACs.
    ///
    /// # Errors
    ///
    /// [`BackupError`] when the repository cannot be read; damage is part of the answer.
    pub async fn verify(
        &self,
        envelope: &Envelope,
        only: Option<u64>,
        progress: Progress,
    ) -> Result<Verified, BackupError> {
        let mut found = Verified::default();
        let (numbers, others) = self.numbers().await?;
        if let Some(missing) = only.filter(|only| !numbers.contains(only)) {
            let none = format!("the repository {} has no snapshot {missing}", self.shown());
            return Err(BackupError::NoSnapshot(none));
        }
        if numbers.is_empty() {
            found.findings.push("there is no snapshot yet".to_owned());
        }
        let strange = others.iter().map(|name| format!("{name} is no snapshot"));
        found.damage.extend(strange);
        let mut catalogues = BTreeMap::new();
        let mut chain = Chain::default();
        for number in numbers {
            let (entry, hash) = match self.entry(number).await {
                Ok(Some(read)) => read,
                Ok(None) => continue,
                Err(error @ (BackupError::Damaged { .. } | BackupError::Newer { .. })) => {
                    found.damage.push(said(&error));
                    chain.unreadable(number);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let previous = match &entry {
                Entry::Snapshot(sealed) => sealed.claims.previous.clone(),
                Entry::Removal(sealed) => sealed.claims.previous.clone(),
            };
            chain.add(number, previous, hash);
            let proven = match &entry {
                Entry::Snapshot(_) if only.is_some_and(|only| only != number) => continue,
                Entry::Snapshot(sealed) => self.prove(envelope, sealed).await,
                Entry::Removal(sealed) => self.prove_removal(envelope, sealed).await,
            };
            match (proven, entry) {
                (Ok(()), Entry::Snapshot(sealed)) => {
                    found.snapshots.push(number);
                    drop(catalogues.insert(number, *sealed));
                }
                (Ok(()), Entry::Removal(sealed)) => chain.removal = Some(sealed.claims),
                (Err(BackupError::Envelope(error)), _) => {
                    let error = BackupError::Envelope(error);
                    found.damage.push(format!(
                        "{}: its MAC cannot be checked: {}",
                        snapshot_name(number),
                        said(&error)
                    ));
                }
                (Err(error @ BackupError::Damaged { .. }), _) => found.damage.push(said(&error)),
                (Err(error), _) => return Err(error),
            }
        }
        chain.check(&mut found);
        let removal = chain.removal.unwrap_or_default();
        let shredded: BTreeSet<String> = removal.shredded.into_iter().collect();
        self.check_manifests(envelope, &catalogues, &shredded, &mut found)
            .await?;
        self.check_spans(&catalogues, &shredded, &progress, &mut found)
            .await?;
        if only.is_none() {
            self.verify_log(envelope, &catalogues, &shredded, &progress, &mut found)
                .await?;
        }
        found.damage.sort();
        Ok(found)
    }

    async fn check_manifests(
        &self,
        envelope: &Envelope,
        catalogues: &BTreeMap<u64, SealedCatalogue>,
        shredded: &BTreeSet<String>,
        found: &mut Verified,
    ) -> Result<(), BackupError> {
        let mut seen = BTreeSet::new();
        for (number, sealed) in catalogues {
            for file in sealed.claims.files() {
                if let Some(why) = &file.missing {
                    found.findings.push(format!(
                        "snapshot {number} is without {}: {why}",
                        file.subject
                    ));
                    continue;
                }
                if !seen.insert((file.manifests(), file.manifest.clone())) {
                    continue;
                }
                if shredded.contains(&file.file_id) {
                    let told = format!("{} ({})", file.subject, file.file_id);
                    if !found.shredded.contains(&told) {
                        found.shredded.push(told);
                    }
                    continue;
                }
                self.check_manifest(envelope, file, found).await?;
            }
        }
        Ok(())
    }

    /// Whether the manifest of a file is there, or one that stands for it.
    pub(super) async fn check_manifest(
        &self,
        envelope: &Envelope,
        file: &StoredFile,
        found: &mut Verified,
    ) -> Result<(), BackupError> {
        let object = format!("{}/{}", file.manifests(), file.manifest);
        let text = match self.store.get(&object).await {
            Err(error @ BackupError::Damaged { .. }) => {
                found.damage.push(said(&error));
                return Ok(());
            }
            read => read?,
        };
        let hash = text.map(|text| sha256(&text));
        if hash.as_ref() == Some(&file.manifest) {
            found.objects += 1;
            return Ok(());
        }
        if hash.is_some() {
            found.damage.push(format!("{object} is damaged"));
            return Ok(());
        }
        if self.manifests(file).await?.is_empty() {
            found.damage.push(format!(
                "{object} is missing, and no other manifest of {} is there: it cannot be opened",
                file.subject
            ));
            return Ok(());
        }
        // It was wrapped anew: the one that is there proves itself.
        match self.keyed(envelope, file).await {
            Ok(_keyed) => found.objects += 1,
            Err(error @ BackupError::Envelope(_)) => found.findings.push(format!(
                "{object} is not there, and what is in its place does not open: {}",
                said(&error)
            )),
            Err(error @ BackupError::Damaged { .. }) => found.damage.push(said(&error)),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn check_spans(
        &self,
        catalogues: &BTreeMap<u64, SealedCatalogue>,
        shredded: &BTreeSet<String>,
        progress: &Progress,
        found: &mut Verified,
    ) -> Result<(), BackupError> {
        let mut spans: BTreeMap<(String, u64), Span> = BTreeMap::new();
        for sealed in catalogues.values() {
            let claims = &sealed.claims;
            let files = claims
                .files()
                .filter(|file| !shredded.contains(&file.file_id));
            for run in files.flat_map(|file| &file.runs) {
                let piece = run.piece();
                let about = Some((run.pages, run.index_sha256.clone()));
                let place = (piece.object.clone(), piece.offset);
                let _same = spans.entry(place).or_insert((piece, about));
            }
            for piece in claims.audit.iter().flat_map(|part| &part.pieces) {
                let place = (piece.object.clone(), piece.offset);
                let _same = spans.entry(place).or_insert((piece.clone(), None));
            }
        }
        let total = spans.values().map(|(piece, _)| piece.bytes).sum();
        let looking = spans.into_values().map(|(piece, about)| {
            async move {
                let read = self.span(&piece).await;
                let read = read.and_then(|object| match about {
                    Some((count, sha)) if !is_run(&object, count, &sha) => Err(self.damaged(
                        &piece.object,
                        "it does not hold the pages that the snapshot names",
                    )),
                    _ => Ok(()),
                });
                (piece.bytes, read)
            }
            .boxed()
        });
        let looking: Vec<_> = looking.collect();
        let mut looking = stream::iter(looking).buffer_unordered(AT_ONCE);
        while let Some((bytes, read)) = looking.next().await {
            found.objects += 1;
            found.bytes += bytes;
            match read {
                Ok(()) => {}
                Err(error @ BackupError::Damaged { .. }) => found.damage.push(said(&error)),
                Err(error) => return Err(error),
            }
            if !progress(found.bytes, total) {
                return Err(BackupError::Stopped);
            }
        }
        Ok(())
    }

    /// Restores a snapshot, the newest instant without `number`, into a scratch directory, proves every page, and removes it.
    ///
    /// # Errors
    ///
    /// [`BackupError`]: it cannot be restored, or not be proven.
    pub async fn rehearse(
        &self,
        envelope: &Envelope,
        number: Option<u64>,
        provider: &ProviderChoice,
        found: &mut Verified,
        progress: Progress,
    ) -> Result<(), BackupError> {
        let scratch = tempfile::Builder::new().prefix("nimbus-verify-").tempdir();
        let scratch =
            scratch.map_err(BackupError::io("make a directory in", std::env::temp_dir()))?;
        let restore = Restore {
            snapshot: number,
            at_ms: None,
            proof: Proof::Pages,
            as_it_was: true,
        };
        let chosen = restore.choose(self.clone(), Some(envelope.clone())).await?;
        let dirs = Dirs {
            data: scratch.path().join("data"),
            control: scratch.path().join("data"),
        };
        let plan = chosen.restore(dirs, provider, progress).await?;
        let unproven = plan
            .unproven
            .iter()
            .map(|one| format!("not proven, its key is not at hand: {one}"));
        found.findings.extend(unproven);
        found.restored = Some(plan.snapshot);
        found.restored_packs = plan.packs;
        Ok(())
    }
}

/// The entries of a repository, each of which names the one before.
#[derive(Default)]
struct Chain {
    /// By number: what each names as the one before, and its SHA-256; `None` of one that cannot be read.
    entries: BTreeMap<u64, Option<(Option<String>, String)>>,
    /// The newest removal, which names all that were removed.
    removal: Option<Removal>,
}

impl Chain {
    fn add(&mut self, number: u64, previous: Option<String>, sha256: String) {
        let _new = self.entries.insert(number, Some((previous, sha256)));
    }

    fn unreadable(&mut self, number: u64) {
        let _new = self.entries.insert(number, None);
    }

    /// Whether each entry goes on from the one before, or from one that was removed as it should be.
    fn check(&self, found: &mut Verified) {
        let removal = self.removal.iter();
        let gone: BTreeMap<u64, &str> = removal
            .flat_map(|removal| &removal.gone)
            .map(|gone| (gone.number, gone.sha256.as_str()))
            .collect();
        for (number, entry) in &self.entries {
            if gone.contains_key(number) {
                found.findings.push(format!(
                    "{} was to be removed, and is there: the removal was cut short; `nimbus backup prune` goes on with it",
                    snapshot_name(*number)
                ));
            }
            let Some((previous, _)) = entry else { continue };
            let before = number - 1;
            let there = self.entries.get(&before);
            let sha256 = match there {
                Some(Some((_, sha256))) => Some(sha256.as_str()),
                Some(None) => None,
                None => gone.get(&before).copied(),
            };
            match (previous, sha256) {
                (None, _) if *number == 1 => {}
                (Some(previous), Some(sha256)) if previous == sha256 => {}
                (_, Some(_)) => found.damage.push(format!(
                    "{} does not go on from {}: one of the two was replaced",
                    snapshot_name(*number),
                    snapshot_name(before)
                )),
                (_, None) => found.damage.push(format!(
                    "{} is missing or damaged, and {} goes on from it",
                    snapshot_name(before),
                    snapshot_name(*number)
                )),
            }
        }
    }
}

fn is_run(object: &[u8], count: u32, index_sha256: &str) -> bool {
    let head = usize::try_from(index_bytes(count))
        .ok()
        .and_then(|end| object.get(..end));
    let is_head = head.is_some_and(|head| sha256(head) == index_sha256);
    is_head
        && index(object).is_some_and(|index| index.count() == count as usize)
        && pages(object).is_some()
}

/// Bytes that a catalogue names; of pages, how many there are and the SHA-256 of their index.
type Span = (Piece, Option<(u32, String)>);

/// Objects that are read at a time.
const AT_ONCE: usize = 4;
