//! Whether a repository is whole and authentic.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use futures_util::{FutureExt as _, StreamExt as _, stream};
use nimbus_manifests::SealedManifest;
use serde::Serialize;

use super::catalogue::{Catalogue, Extent, Piece, Run, SealedCatalogue, StoredFile};
use super::chain::{Chain, unproven};
use super::entries::{Entry, snapshot_name};
use super::prover::Prover;
use super::repository::said;
use super::restore::{Dirs, Proof, Restore};
use super::sealing_keys::{SealingKeys, sealed_by_old_key};
use super::{BackupError, Repository, sha256};
use crate::config::ProviderChoice;
use crate::control::{self, MirrorSeen};
use crate::envelope::Envelope;
use crate::runtime::{Progress, blocking};

/// What a look at a repository found.
#[derive(Debug, Clone, Default, Serialize, utoipa::ToSchema)]
#[schema(as = BackupsVerified)]
pub struct Verified {
    /// Snapshots that were looked at.
    pub snapshots: Vec<u64>,
    /// Objects that were read, whole.
    #[schema(value_type = u64)]
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What is not as it was written. Where it is empty, every snapshot that was looked at can be
    /// restored, byte for byte.
    pub damage: Vec<String>,
    /// What could not be proven, because its key is not at hand; which key that is.
    pub unproven: Vec<String>,
    /// What an operator should know besides.
    pub findings: Vec<String>,
    /// Files that snapshots hold and that nothing opens any more, because their tenants were
    /// shredded.
    pub shredded: Vec<String>,
    /// The snapshot that was restored into a scratch directory and opened there; null where that
    /// was not asked for, or did not succeed.
    #[schema(required)]
    pub restored: Option<u64>,
    /// How many packs over it.
    pub restored_packs: u64,
    /// Packs that were looked at.
    #[schema(value_type = u64)]
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
        let (mut chain, mut keys) = (Chain::default(), SealingKeys::default());
        let mut prover = Prover::new(self, Some(envelope));
        for number in numbers {
            let (entry, hash) = match self.entry(number).await {
                Ok(Some(read)) => read,
                Ok(None) => continue,
                Err(error) if error.is_damage() => {
                    found.damage.push(said(&error));
                    chain.unreadable(number);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut proven = prover.entry(number, &entry).await;
            if proven.is_ok() && !keys.go_on(&entry.key(), entry.keys_before()) {
                let why = sealed_by_old_key(&entry.key());
                proven = Err(self.damaged(&snapshot_name(number), why));
            }
            match proven {
                Err(ref error) if error.is_damage() => chain.unreadable(number),
                _ => chain.add(number, &entry, hash),
            }
            match (proven, entry) {
                (Ok(()), Entry::Snapshot(_)) if only.is_some_and(|only| only != number) => {}
                (Ok(()), Entry::Snapshot(sealed)) => {
                    found.snapshots.push(number);
                    drop(catalogues.insert(number, *sealed));
                }
                (Ok(()), Entry::Removal(sealed)) => chain.removal = Some(sealed.claims),
                (Err(error @ BackupError::Envelope(_)), _) => {
                    found.unproven.push(unproven(number, &error));
                }
                (Err(error), _) if error.is_damage() => found.damage.push(said(&error)),
                (Err(error), _) => return Err(error),
            }
        }
        let (damage, unfinished) = chain.check(1);
        found.damage.extend(damage);
        found.findings.extend(unfinished);
        let removal = chain.removal.unwrap_or_default();
        let shredded: BTreeSet<String> = removal.shredded.into_iter().collect();
        self.check_manifests(envelope, &catalogues, &shredded, &mut found)
            .await?;
        self.check_spans(&catalogues, &shredded, &progress, &mut found)
            .await?;
        if only.is_none() {
            let known = (&shredded, &removal.log[..]);
            self.verify_log(envelope, &catalogues, known, &progress, &mut found)
                .await?;
        }
        found.damage.sort();
        found.unproven.sort();
        found.unproven.dedup();
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
            let mut copies = None;
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
                    let line = format!("{} ({})", file.subject, file.file_id);
                    if !found.shredded.contains(&line) {
                        found.shredded.push(line);
                    }
                    continue;
                }
                let other = self.check_manifest(envelope, file, found).await?;
                let Some(other) = other.filter(|_| file.tenant().is_some()) else {
                    continue;
                };
                // The control file of that moment tells one that is older than what was there.
                if copies.is_none() {
                    copies = self.copies(envelope, &sealed.claims, found).await?;
                }
                if let (Some(copies), Ok(subject)) = (&copies, file.subject())
                    && copies.of_subject(&subject).outdates(&other)
                {
                    found.damage.push(format!(
                        "{}/{} is missing, and what is in its place is an older manifest of {}: it was put back",
                        file.manifests(),
                        file.manifest,
                        file.subject
                    ));
                }
            }
        }
        Ok(())
    }

    /// The copies of manifests in the control file of a snapshot.
    async fn copies(
        &self,
        envelope: &Envelope,
        snapshot: &Catalogue,
        found: &mut Verified,
    ) -> Result<Option<MirrorSeen>, BackupError> {
        let scratch = scratch()?;
        let path = scratch.path().join(control::FILE_NAME);
        let read = async {
            self.restore_pages(&snapshot.control, &path, &|_| Ok(()))
                .await?;
            let keyed = self.keyed_at(envelope, &snapshot.control, &path).await?;
            Ok::<_, BackupError>(blocking(move || MirrorSeen::of(&keyed)).await?)
        };
        match read.await {
            Ok(copies) => Ok(Some(copies)),
            Err(error @ BackupError::Envelope(_)) => {
                found.unproven.push(unproven(snapshot.number, &error));
                Ok(None)
            }
            Err(error) if error.is_damage() || matches!(error, BackupError::Control(_)) => {
                found.damage.push(said(&error));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether the manifest of a file is there, or one that stands for it, which is the answer.
    pub(super) async fn check_manifest(
        &self,
        envelope: &Envelope,
        file: &StoredFile,
        found: &mut Verified,
    ) -> Result<Option<SealedManifest>, BackupError> {
        let object = format!("{}/{}", file.manifests(), file.manifest);
        let text = match self.store.get(&object).await {
            Err(error @ BackupError::Damaged { .. }) => {
                found.damage.push(said(&error));
                return Ok(None);
            }
            read => read?,
        };
        let hash = text.map(|text| sha256(&text));
        if hash.as_ref() == Some(&file.manifest) {
            found.objects += 1;
            return Ok(None);
        }
        if hash.is_some() {
            found.damage.push(format!("{object} is damaged"));
            return Ok(None);
        }
        let others = self.manifests(file).await?;
        if others.is_empty() {
            found.damage.push(format!(
                "{object} is missing, and no other manifest of {} is there: it cannot be opened",
                file.subject
            ));
            return Ok(None);
        }
        // It was wrapped anew: the one that is there proves itself.
        let path = Path::new(&self.shown()).join(file.manifests());
        let mut refused = None;
        for other in others {
            match envelope.unseal_apart(&path, other.clone()).await {
                Ok(_keyed) => {
                    found.objects += 1;
                    return Ok(Some(other));
                }
                Err(error) => refused = refused.or(Some(BackupError::Envelope(error))),
            }
        }
        if let Some(error) = refused {
            found.unproven.push(format!(
                "{object} is not there, and what is in its place does not open: {}",
                said(&error)
            ));
        }
        Ok(None)
    }

    async fn check_spans(
        &self,
        catalogues: &BTreeMap<u64, SealedCatalogue>,
        shredded: &BTreeSet<String>,
        progress: &Progress,
        found: &mut Verified,
    ) -> Result<(), BackupError> {
        let mut spans: BTreeMap<Extent, Span<'_>> = BTreeMap::new();
        for sealed in catalogues.values() {
            let claims = &sealed.claims;
            let files = claims
                .files()
                .filter(|file| !shredded.contains(&file.file_id));
            for run in files.flat_map(|file| &file.runs) {
                let _same = spans.entry(run.extent()).or_insert(Span::Run(run));
            }
            for piece in claims.audit.iter().flat_map(|part| &part.pieces) {
                let _same = spans.entry(piece.extent()).or_insert(Span::Piece(piece));
            }
        }
        let total = spans.keys().map(|extent| extent.bytes).sum();
        let looking = spans.into_iter().map(|(extent, span)| {
            async move {
                let read = match span {
                    Span::Run(run) => self.run(run).await,
                    Span::Piece(piece) => self.span(piece).await,
                };
                (extent.bytes, read.map(drop))
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

    /// Restores a snapshot, the newest instant without `number`, into a scratch directory, proves
    /// every page, and removes it.
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
        let scratch = scratch()?;
        let restore = Restore {
            snapshot: number,
            at_ms: None,
            proof: Proof::Pages,
            as_it_was: true,
        };
        let chosen = match restore.choose(self.clone(), Some(envelope.clone())).await {
            Err(error @ BackupError::Withheld { .. }) => {
                found
                    .unproven
                    .push(format!("nothing was restored: {}", said(&error)));
                return Ok(());
            }
            chosen => chosen?,
        };
        let dirs = Dirs {
            data: scratch.path().join("data"),
            control: scratch.path().join("data"),
        };
        let plan = chosen.restore(dirs, provider, progress).await?;
        found.unproven.extend(plan.unproven);
        if !plan.damaged.is_empty() {
            found.findings.push(READ_ALL.to_owned());
        }
        let damaged = plan.damaged.into_iter();
        found
            .damage
            .extend(damaged.map(|one| format!("it was not restored: {one}")));
        found.damage.extend(plan.faults);
        found.restored = Some(plan.snapshot);
        found.restored_packs = plan.packs;
        Ok(())
    }
}

/// A directory for what is read and removed again.
fn scratch() -> Result<tempfile::TempDir, BackupError> {
    let scratch = tempfile::Builder::new().prefix("nimbus-verify-").tempdir();
    scratch.map_err(BackupError::io("make a directory in", std::env::temp_dir()))
}

/// Bytes that a catalogue names.
enum Span<'a> {
    Run(&'a Run),
    Piece(&'a Piece),
}

/// What to do about a page that was wrong when it was stored.
pub(super) const READ_ALL: &str = "where a tenant is sound on the disk, `nimbus backup create --read-all` stores it as it is there";
/// Objects that are read at a time.
const AT_ONCE: usize = 4;
