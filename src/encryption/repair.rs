//! `repair`: manifests that are lost, unreadable or not their file's come back from their copies in the control file.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus_keyproviders::ProviderError;
use nimbus_keyproviders::aws_kms::KmsError;
use nimbus_manifests::{SealedManifest, Subject};

use super::OperationError;
use super::error::io_error;
use crate::audit::AuditLog;
use crate::control::Control;
use crate::envelope::{
    self, Envelope, EnvelopeError, Event, EventKind, EventOutcome, FileKind, Intent, blocking,
    classify, manifest_path, read_manifest,
};
use crate::process::DataDirLock;

/// What was found about one manifest that is not right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repaired {
    /// It was put back.
    PutBack,
    /// Its database is gone: nothing to open.
    DatabaseMissing,
    /// Its database is plaintext: no manifest belongs beside it.
    Plaintext,
}

impl Repaired {
    fn as_str(&self) -> &'static str {
        match self {
            Self::PutBack => "the manifest was put back from its copy",
            Self::DatabaseMissing => "the database is gone",
            Self::Plaintext => "the database is plaintext",
        }
    }
}

/// One manifest that was lost, or wrong.
#[derive(Debug, Clone)]
pub struct Repair {
    /// Whose it is.
    pub subject: Subject,
    /// The protected file.
    pub path: PathBuf,
    /// What was done.
    pub outcome: Repaired,
}

/// Puts back every tenant's manifest in `data_dir` that is missing, cannot be read, was changed or is another file's, and has a copy in
/// the control file of `control_dir`. What stands in its place is set aside. The server must be stopped.
///
/// # Errors
///
/// [`OperationError`]; the control file's own manifest must be there, it has no copy.
pub async fn repair(
    envelope: &Envelope,
    data_dir: &Path,
    control_dir: &Path,
) -> Result<Vec<Repair>, OperationError> {
    if envelope.keys().is_none() {
        return Err(OperationError::EncryptionOff);
    }
    let _lock = DataDirLock::acquire(data_dir)?;
    let control_path = Control::path_in(control_dir);
    if classify(&control_path).map_err(io_error("read", &control_path))? == FileKind::Absent {
        return Err(EnvelopeError::DatabaseMissing { path: control_path }.into());
    }
    let control = Arc::new(Control::open(envelope, control_dir).await?);
    let (log, dir) = (control.clone(), control_dir.to_owned());
    let log = blocking(move || AuditLog::open(log, &dir)).await?;
    let envelope = &envelope.clone().with_audit(Arc::new(log));
    let copies = blocking(move || control.manifests()).await?;
    let mut repairs = Vec::new();
    for copies in copies {
        // Only this deployment's own core wrote it there; what does not parse is of a newer release, and none of ours.
        let copies: Vec<SealedManifest> = copies
            .iter()
            .filter_map(|copy| SealedManifest::parse(copy).ok())
            .collect();
        let Some(last) = copies.last() else { continue };
        let path = data_dir.join(last.claims().subject().file_name());
        if let Some(copy) = replacement(envelope, &path, &copies).await {
            let event = Event::new(EventKind::Repair, EventOutcome::Begun).of(copy.claims());
            envelope.record(event.clone()).await?;
            let copy = copy.clone();
            let repaired = blocking(move || put_back(path, &copy)).await;
            let event = event.ended(&repaired);
            let event = match &repaired {
                Ok(Some(repair)) => event.saying(repair.outcome.as_str()),
                _ => event,
            };
            envelope.record(event).await?;
            repairs.extend(repaired?);
        }
    }
    Ok(repairs)
}

/// The copy that is to take the place of what stands beside `path`; `None` when that is right. Where a rotation was cut short there are two
/// copies, under different keys: the one that a key opens is wanted.
async fn replacement<'a>(
    envelope: &Envelope,
    path: &Path,
    copies: &'a [SealedManifest],
) -> Option<&'a SealedManifest> {
    let (before, announced) = copies.split_last()?;
    let mut opens = None;
    for copy in announced {
        if envelope.unwraps(path, copy).await {
            opens = Some(copy);
        }
    }
    if announced.is_empty() || opens.is_none() && envelope.unwraps(path, before).await {
        opens = Some(before);
    }
    let manifest = manifest_path(path);
    let there = match blocking(move || read_manifest(&manifest)).await {
        Ok(Some(there)) => there,
        Ok(None) | Err(_) => return Some(opens.unwrap_or(before)),
    };
    let is_there = |copy: &SealedManifest| copy.as_bytes() == there.as_bytes();
    if opens.is_some_and(is_there) {
        return None;
    }
    // A copy whose key is gone, while that of the other is here.
    if let Some(opens) = opens
        && copies.iter().any(is_there)
        && !envelope.unwraps(path, &there).await
    {
        return Some(opens);
    }
    let wrong = is_wrong(envelope, path, before).await;
    wrong.then_some(opens.unwrap_or(before))
}

/// Whether the manifest of `path`, which can be read, is anything else than what its key holder wrote for this file.
async fn is_wrong(envelope: &Envelope, path: &Path, copy: &SealedManifest) -> bool {
    let subject = copy.claims().subject();
    let opened = envelope
        .prepare(path, subject, copy.claims().cipher(), Intent::Open)
        .await;
    match opened {
        Err(
            EnvelopeError::SubjectMismatch { .. }
            | EnvelopeError::CipherMismatch { .. }
            | EnvelopeError::ManifestTampered { .. },
        ) => true,
        // A key that is there and does not open the wrap; not one that cannot be had now, or settings that are wrong.
        Err(EnvelopeError::Unwrap { source, .. }) => matches!(
            *source,
            ProviderError::UnwrapFailed { .. }
                | ProviderError::UnsupportedAlgorithm { .. }
                | ProviderError::Kms(KmsError::WrongContext { .. } | KmsError::WrongKey { .. })
        ),
        _ => false,
    }
}

/// One manifest that is wrong; `None` when there is nothing that it could belong to.
fn put_back(path: PathBuf, copy: &SealedManifest) -> Result<Option<Repair>, OperationError> {
    let subject = copy.claims().subject().clone();
    let manifest = manifest_path(&path);
    let kind = classify(&path).map_err(io_error("read", &path))?;
    if kind == FileKind::Absent && fs::symlink_metadata(&manifest).is_err() {
        return Ok(None);
    }
    let outcome = match kind {
        FileKind::Absent => Repaired::DatabaseMissing,
        FileKind::PlainSqlite | FileKind::PlainRedb => Repaired::Plaintext,
        FileKind::Empty | FileKind::Other | FileKind::NotAFile => {
            if fs::symlink_metadata(&manifest).is_ok() {
                envelope::set_aside(&manifest, "its copy in the control file takes its place")
                    .map_err(io_error("set aside", &manifest))?;
            }
            envelope::restore_manifest(&path, copy)?;
            Repaired::PutBack
        }
    };
    Ok(Some(Repair {
        subject,
        path,
        outcome,
    }))
}
