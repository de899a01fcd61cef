//! `repair`: manifests that are lost or unreadable come back from their copies in the control file.

use std::fs;
use std::path::{Path, PathBuf};

use nimbus_manifests::{SealedManifest, Subject};

use super::OperationError;
use super::error::io_error;
use crate::control::Control;
use crate::envelope::{
    self, Envelope, EnvelopeError, FileKind, blocking, classify, manifest_path, read_manifest,
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

/// One manifest that was lost or unreadable.
#[derive(Debug, Clone)]
pub struct Repair {
    /// Whose it is.
    pub subject: Subject,
    /// The protected file.
    pub path: PathBuf,
    /// What was done.
    pub outcome: Repaired,
}

/// Puts back every tenant's manifest in `data_dir` that is missing or cannot be read and has a copy in the control file of `control_dir`.
/// What stands in its place is set aside. The server must be stopped.
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
    let control = Control::open(envelope, control_dir).await?;
    let data_dir = data_dir.to_owned();
    blocking(move || {
        let mut repairs = Vec::new();
        for copy in control.manifests()? {
            // Only this deployment's own core wrote it there; what does not parse is of a newer release, and none of ours.
            let Ok(sealed) = SealedManifest::parse(&copy) else {
                continue;
            };
            repairs.extend(put_back(&data_dir, &sealed)?);
        }
        Ok(repairs)
    })
    .await
}

/// One manifest; `None` when nothing is wrong with it.
fn put_back(dir: &Path, copy: &SealedManifest) -> Result<Option<Repair>, OperationError> {
    let subject = copy.claims().subject().clone();
    let path = dir.join(subject.file_name());
    let manifest = manifest_path(&path);
    let kind = classify(&path).map_err(io_error("read", &path))?;
    match read_manifest(&manifest) {
        Ok(Some(_there)) => return Ok(None),
        Ok(None) if kind == FileKind::Absent => return Ok(None),
        Ok(None) | Err(_) => {}
    }
    let outcome = match kind {
        FileKind::Absent => Repaired::DatabaseMissing,
        FileKind::PlainSqlite | FileKind::PlainRedb => Repaired::Plaintext,
        FileKind::Empty | FileKind::Other | FileKind::NotAFile => {
            if fs::symlink_metadata(&manifest).is_ok() {
                envelope::set_aside(&manifest).map_err(io_error("set aside", &manifest))?;
            }
            envelope::restore_manifest(&path, copy)?;
            tracing::info!(
                target: "nimbus::audit",
                event = "repair",
                %subject,
                "a manifest was put back from its copy in the control file"
            );
            Repaired::PutBack
        }
    };
    Ok(Some(Repair {
        subject,
        path,
        outcome,
    }))
}
