//! `rotate-dek`: a new data key for the data itself. Whatever was encrypted under the old one and is not there any more cannot be read again,
//! by anyone who has the key-encryption key either.

use std::path::Path;

use nimbus_manifests::{Cipher, Subject, TenantId};

use super::error::io_error;
use super::{Engine, OperationError, check_engine, check_owner, check_space, size_of};
use crate::control;
use crate::envelope::{
    Envelope, EnvelopeError, Event, EventKind, EventOutcome, FileKind, Intent, KeyedFile, Opened,
    Prepared, Stage, blocking, classify, manifest_path, read_manifest,
};
use crate::sqlcipher::{self, Progress};

/// Gives the file at `path` a new data key. Nobody may have it open; the caller holds the directory's lock.
///
/// A rekey that a crash cut short is settled first: then the file is under one key, and gets another.
///
/// # Errors
///
/// [`OperationError`]; the file opens, under its old key or the new one.
pub async fn rotate_dek(
    envelope: &Envelope,
    path: &Path,
    engine: Option<Engine>,
    tenant: Option<&TenantId>,
    progress: Progress,
) -> Result<Subject, OperationError> {
    let subject = blocking({
        let path = path.to_owned();
        move || claimed_subject(&path)
    })
    .await?;
    if let Some(engine) = engine {
        check_engine(path, &subject, engine)?;
    }
    check_owner(path, &subject, tenant)?;
    let file = settled(envelope, path, &subject).await?;
    blocking({
        let path = path.to_owned();
        move || check_space(&path, size_of(&path))
    })
    .await?;
    let event = Event::new(EventKind::Rekey, EventOutcome::Begun).of(file.manifest());
    envelope.record(event.clone()).await?;
    let rekeyed = rekey(envelope, file, &subject, progress).await;
    let event = match &rekeyed {
        Ok(file) => Event::new(EventKind::Rekey, EventOutcome::Done).of(file.manifest()),
        Err(_) => event.ended(&rekeyed),
    };
    envelope.record(event).await?;
    rekeyed.map(|_file| subject)
}

/// The copy under the next key, in the place of the file.
async fn rekey(
    envelope: &Envelope,
    file: KeyedFile,
    subject: &Subject,
    progress: Progress,
) -> Result<KeyedFile, OperationError> {
    let path = file.path().to_owned();
    let file = envelope.begin_rekey(file).await?;
    let swapped = blocking(move || {
        match file.manifest().cipher() {
            Cipher::Sqlcipher4 => sqlcipher::swap_to_next_key(&file, Some(&progress))?,
            Cipher::Blocks1 => control::swap_to_next_key(&file, Some(&progress))?,
        }
        Ok::<_, OperationError>(file)
    })
    .await;
    let file = match swapped {
        Ok(file) => file,
        Err(error) => {
            // Best effort: what stays is settled by the next opening.
            drop(settled(envelope, &path, subject).await);
            return Err(error);
        }
    };
    Ok(envelope.settle(file, Opened::Next).await?)
}

/// Who the manifest says the file belongs to.
fn claimed_subject(path: &Path) -> Result<Subject, OperationError> {
    let manifest = manifest_path(path);
    let sealed = read_manifest(&manifest).map_err(|source| OperationError::Manifest {
        path: manifest,
        source,
    })?;
    let path = path.to_owned();
    match sealed {
        Some(sealed) => Ok(sealed.claims().subject().clone()),
        None => Err(match classify(&path).map_err(io_error("read", &path))? {
            FileKind::Absent => OperationError::SourceMissing { path },
            FileKind::PlainSqlite | FileKind::PlainRedb => OperationError::NotEncrypted { path },
            _ => EnvelopeError::ManifestMissing { path }.into(),
        }),
    }
}

/// The file under one key.
async fn settled(
    envelope: &Envelope,
    path: &Path,
    subject: &Subject,
) -> Result<KeyedFile, OperationError> {
    let prepare = || envelope.prepare(path, subject, subject.cipher(), Intent::Open);
    for _again in 0..2 {
        let Prepared::Keyed(file) = prepare().await? else {
            return Err(OperationError::EncryptionOff);
        };
        match file.stage() {
            Stage::Ready => return Ok(file),
            Stage::Initialise => {
                let path = path.to_owned();
                return Err(EnvelopeError::NeverInitialised { path }.into());
            }
            Stage::Rekeying => {
                let (file, opened) = blocking(move || match file.manifest().cipher() {
                    Cipher::Sqlcipher4 => sqlcipher::which_key(file).map_err(OperationError::from),
                    Cipher::Blocks1 => {
                        let opened = control::which_key(&file)?;
                        Ok((file, opened))
                    }
                })
                .await?;
                drop(envelope.settle(file, opened).await?);
            }
        }
    }
    Err(OperationError::SourceChanged {
        path: path.to_owned(),
    })
}
