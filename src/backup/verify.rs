//! Whether a repository is whole and authentic.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt as _, stream};
use serde::Serialize;

use super::catalogue::{Piece, SealedCatalogue};
use super::repository::{said, snapshot_name};
use super::restore::{Dirs, Proof, Restore};
use super::run::{index, index_bytes, pages};
use super::{BackupError, Repository, sha256};
use crate::config::ProviderChoice;
use crate::envelope::Envelope;
use crate::sqlcipher::Progress;

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
        let mut before: Option<(u64, String)> = None;
        for number in numbers {
            let read = match self.catalogue(number).await {
                Ok(Some(read)) => read,
                Ok(None) => continue,
                Err(error @ (BackupError::Damaged { .. } | BackupError::Newer { .. })) => {
                    found.damage.push(said(&error));
                    before = None;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let (sealed, hash) = read;
            self.check_chain(&sealed, before.as_ref(), &mut found);
            before = Some((number, hash));
            if only.is_some_and(|only| only != number) {
                continue;
            }
            match self.prove(envelope, &sealed).await {
                Ok(()) => {
                    found.snapshots.push(number);
                    drop(catalogues.insert(number, sealed));
                }
                Err(BackupError::Envelope(error)) => {
                    let error = BackupError::Envelope(error);
                    found.damage.push(format!(
                        "{}: its MAC cannot be checked: {}",
                        snapshot_name(number),
                        said(&error)
                    ));
                }
                Err(error @ BackupError::Damaged { .. }) => found.damage.push(said(&error)),
                Err(error) => return Err(error),
            }
        }
        self.check_manifests(&catalogues, &mut found).await?;
        self.check_spans(&catalogues, &progress, &mut found).await?;
        if only.is_none() {
            self.verify_log(envelope, &catalogues, &progress, &mut found)
                .await?;
        }
        found.damage.sort();
        Ok(found)
    }

    /// Whether the snapshot goes on from the one before.
    fn check_chain(
        &self,
        sealed: &SealedCatalogue,
        before: Option<&(u64, String)>,
        found: &mut Verified,
    ) {
        let number = sealed.claims.number;
        match (&sealed.claims.previous, before) {
            (None, _) if number == 1 => {}
            (Some(previous), Some((last, hash))) if *last + 1 == number => {
                if previous != hash {
                    found.damage.push(format!(
                        "{} does not go on from {}: one of the two was replaced",
                        snapshot_name(number),
                        snapshot_name(*last)
                    ));
                }
            }
            _ => {
                let missing = snapshot_name(number.saturating_sub(1));
                found.damage.push(format!(
                    "{missing} is missing or damaged, and {} goes on from it",
                    snapshot_name(number)
                ));
            }
        }
    }

    async fn check_manifests(
        &self,
        catalogues: &BTreeMap<u64, SealedCatalogue>,
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
                let object = format!("{}/{}", file.manifests(), file.manifest);
                let hash = self.store.get(&object).await?.map(|text| sha256(&text));
                if hash.as_ref() == Some(&file.manifest) {
                    found.objects += 1;
                } else if self.manifests(file).await?.is_empty() {
                    found.damage.push(format!(
                        "{object} is {}, and no other manifest of {} is there: it cannot be opened (as it should be, if the tenant was shredded)",
                        if hash.is_some() { "damaged" } else { "missing" },
                        file.subject
                    ));
                } else {
                    found.damage.push(format!(
                        "{object} is missing or damaged; another manifest of {} is there",
                        file.subject
                    ));
                }
            }
        }
        Ok(())
    }

    async fn check_spans(
        &self,
        catalogues: &BTreeMap<u64, SealedCatalogue>,
        progress: &Progress,
        found: &mut Verified,
    ) -> Result<(), BackupError> {
        let mut spans: BTreeMap<(String, u64), Span> = BTreeMap::new();
        for sealed in catalogues.values() {
            let claims = &sealed.claims;
            for run in claims.files().flat_map(|file| &file.runs) {
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
        let looking = spans.into_values().map(|(piece, about)| async move {
            let read = self.span(&piece).await;
            let read = read.and_then(|object| match about {
                Some((count, sha)) if !is_run(&object, count, &sha) => Err(self.damaged(
                    &piece.object,
                    "it does not hold the pages that the snapshot names",
                )),
                _ => Ok(()),
            });
            (piece.bytes, read)
        });
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
