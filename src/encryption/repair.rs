//! `repair`: manifests that are lost, unreadable or not their file's come back from their copies in
//! the control file.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nimbus_keyproviders::ProviderError;
use nimbus_keyproviders::aws_kms::KmsError;
use nimbus_manifests::{Cipher, SealedManifest, Subject, TenantId};

use super::error::io_error;
use super::{OperationError, pending, protected_files};
use crate::audit::{ControlLost, LogError};
use crate::control::{Control, ControlError};
use crate::data_dir;
use crate::deployment::{Deployment, OlderControl};
use crate::envelope::{
    self, Envelope, EnvelopeError, Event, EventKind, EventOutcome, FileKind, Intent, Prepared,
    ReadError, classify, manifest_path, read_manifest,
};
use crate::error_chain::error_chain;
use crate::process::DataDirLock;
use crate::runtime::blocking;
use crate::sqlcipher;

/// What was found about one manifest that is not right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repaired {
    /// It was put back.
    PutBack {
        /// Where what stood in its place is kept, if anything did.
        set_aside: Option<PathBuf>,
    },
    /// It is missing or wrong, the control file has no copy of it, and why it is wrong. Nothing was
    /// changed.
    NoCopy(String),
    /// Its database is gone: nothing to open.
    DatabaseMissing,
    /// Its database is plaintext: no manifest belongs beside it.
    Plaintext,
    /// It is an older one, and so is its database: the newer manifest does not open it. Nothing was
    /// changed.
    BothOlder,
    /// It is an older one, and the key of the newer one cannot be had: whether that opens the
    /// database is not known. Nothing was changed.
    CopyUnavailable(String),
    /// It is an older one, and is the newest from now on, as the operator said.
    Accepted,
    /// Its tenant is being deleted, and that has not ended: why not, and what ends it. Nothing was
    /// changed.
    Deleting(String),
    /// It could not be judged, put back or accepted, and why. The others were gone on with.
    Failed(String),
}

impl Repaired {
    fn as_str(&self) -> &'static str {
        match self {
            Self::PutBack { .. } => "the manifest was put back from its copy",
            Self::NoCopy(_) => "the control file has no copy of the manifest",
            Self::DatabaseMissing => "the database is gone",
            Self::Plaintext => "the database is plaintext",
            Self::BothOlder => "the newer manifest does not open the database",
            Self::CopyUnavailable(_) => "the key of the newer manifest cannot be had",
            Self::Accepted => "the older manifest and its database were accepted",
            Self::Deleting(_) => "its tenant is being deleted",
            Self::Failed(_) => "it failed",
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

impl Repair {
    fn of(subject: Subject, path: PathBuf, outcome: Result<Repaired, OperationError>) -> Self {
        Self {
            subject,
            path,
            outcome: outcome.unwrap_or_else(|error| Repaired::Failed(error_chain(&error))),
        }
    }
}

/// Puts back every tenant's manifest in `data_dir` that is missing, cannot be read, was changed, is
/// older or another file's, and has a copy in the control file of `control_dir`. What stands in its
/// place is set aside. One that has no copy is named. The server must be stopped.
///
/// Of the tenants in `accepted`, an older manifest becomes the newest once it has opened its
/// database, where the copy does not open it. One tenant's failure is among the answers, and the
/// others are gone on with.
///
/// # Errors
///
/// [`OperationError`]; the control file's own manifest must be there, it has no copy.
pub async fn repair(
    envelope: &Envelope,
    data_dir: &Path,
    control_dir: &Path,
    accepted: &[TenantId],
) -> Result<Vec<Repair>, OperationError> {
    if envelope.keys().is_none() {
        return Err(OperationError::EncryptionOff);
    }
    if !data_dir.exists() {
        let path = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
        return Err(OperationError::NoDataDir { path });
    }
    let _lock = DataDirLock::acquire(data_dir)?;
    if let Some(lost) = ControlLost::look(control_dir, data_dir) {
        return Err(LogError::ControlLost(lost).into());
    }
    let control_path = Control::path_in(control_dir);
    if classify(&control_path).map_err(io_error("read", &control_path))? == FileKind::Absent {
        let there = std::fs::symlink_metadata(manifest_path(&control_path)).is_ok();
        return Err(match there {
            true => EnvelopeError::DatabaseMissing { path: control_path }.into(),
            false => LogError::NoControlFile { path: control_path }.into(),
        });
    }
    let older = OlderControl::Refuse;
    let deployment = Deployment::open(envelope.clone(), data_dir, control_dir, older).await?;
    let log = deployment.audit.ok_or(OperationError::EncryptionOff)?;
    let bare = &envelope.clone().with_audit(log);
    let (envelope, control) = (&deployment.envelope, deployment.control);
    let (copies, going) = blocking({
        let control = control.clone();
        move || {
            let mut copies = control.manifests()?;
            let going = control.pending_deletes()?;
            copies.retain(|one, _| one.tenant().is_some_and(|tenant| !going.contains(tenant)));
            Ok::<_, ControlError>((copies, going))
        }
    })
    .await?;
    let (mut repairs, mut unknown) = (Vec::new(), accepted.to_vec());
    unknown.retain(|tenant| !going.contains(tenant));
    for tenant in &going {
        let tenant = tenant.clone();
        let dirs = (control_dir.to_owned(), data_dir.to_owned());
        let subject = data_dir::subject(&tenant);
        let path = data_dir.join(subject.file_name());
        let described = blocking(move || pending::describe(&dirs.0, &dirs.1, &tenant)).await;
        repairs.push(Repair::of(subject, path, Ok(Repaired::Deleting(described))));
    }
    let mut settled: BTreeSet<TenantId> =
        going.into_iter().chain(accepted.iter().cloned()).collect();
    settled.extend(copies.keys().filter_map(Subject::tenant).cloned());
    for (subject, copies) in copies {
        unknown.retain(|tenant| Some(tenant) != subject.tenant());
        // Only this deployment's own core wrote it there; what does not parse is of a newer
        // release, and not written by this release.
        let copies: Vec<SealedManifest> = copies
            .all()
            .filter_map(|copy| SealedManifest::parse(copy).ok())
            .collect();
        let path = data_dir.join(subject.file_name());
        let outcome = match verdict(envelope, &path, &copies).await {
            Verdict::Right => continue,
            Verdict::Older(otherwise) => {
                match subject.tenant().filter(|one| accepted.contains(one)) {
                    Some(tenant) => accept(bare, &control, data_dir, tenant).await,
                    None => Ok(otherwise),
                }
            }
            Verdict::Wrong(copy) => put_back_audited(envelope, &path, copy).await,
            Verdict::Unreadable(source) => Err(OperationError::Manifest {
                path: manifest_path(&path),
                source,
            }),
        };
        repairs.push(Repair::of(subject, path, outcome));
    }
    for tenant in unknown {
        let outcome = accept(bare, &control, data_dir, &tenant).await;
        let subject = data_dir::subject(&tenant);
        let path = data_dir.join(subject.file_name());
        repairs.push(Repair::of(subject, path, outcome));
    }
    repairs.extend(without_copies(envelope, data_dir, &settled).await?);
    Ok(repairs)
}

/// What is wrong with the manifests of tenants' files in `dir` of which there is no copy; those of
/// `settled` were judged already.
async fn without_copies(
    envelope: &Envelope,
    dir: &Path,
    settled: &BTreeSet<TenantId>,
) -> Result<Vec<Repair>, OperationError> {
    let looked = dir.to_owned();
    let files = blocking(move || protected_files(&looked, None)).await;
    let files = files.map_err(|(path, source)| io_error("read", path)(source))?;
    let mut repairs = Vec::new();
    for path in files {
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(tenant) = name.and_then(data_dir::tenant_of_database) else {
            continue;
        };
        if settled.contains(&tenant) {
            continue;
        }
        let subject = data_dir::subject(&tenant);
        let opened = envelope
            .prepare(&path, &subject, subject.cipher(), Intent::Open)
            .await;
        let outcome = match opened {
            Err(error) if is_lost(&error) || is_wrong(&error) => {
                Repaired::NoCopy(error.without_copy())
            }
            // What else is wrong is not the manifest's fault, and `status` reports it.
            Ok(_) | Err(_) => continue,
        };
        repairs.push(Repair {
            subject,
            path,
            outcome,
        });
    }
    Ok(repairs)
}

/// Whether there is no manifest, or none that can be read.
fn is_lost(error: &EnvelopeError) -> bool {
    matches!(
        error,
        EnvelopeError::ManifestMissing { .. } | EnvelopeError::ManifestUnparsable { .. }
    )
}

/// Puts a manifest back from its copy, and records that in the audit log.
async fn put_back_audited(
    envelope: &Envelope,
    path: &Path,
    copy: &SealedManifest,
) -> Result<Repaired, OperationError> {
    let event = Event::new(EventKind::Repair, EventOutcome::Begun).of(copy.claims());
    envelope.record(event.clone()).await?;
    let (path, copy) = (path.to_owned(), copy.clone());
    let repaired = blocking(move || put_back(&path, &copy)).await;
    let event = event.ended(&repaired);
    let event = match &repaired {
        Ok(outcome) => event.saying(outcome.as_str()),
        Err(_) => event,
    };
    envelope.record(event).await?;
    repaired
}

/// Makes the manifest of a tenant the newest there is, once it has opened its database. `envelope`
/// goes by no copies.
async fn accept(
    envelope: &Envelope,
    control: &Arc<Control>,
    dir: &Path,
    tenant: &TenantId,
) -> Result<Repaired, OperationError> {
    let subject = data_dir::subject(tenant);
    let path = dir.join(subject.file_name());
    let prepared = envelope
        .prepare(&path, &subject, Cipher::Sqlcipher4, Intent::Open)
        .await?;
    let Prepared::Keyed(file) = prepared else {
        return Err(OperationError::EncryptionOff);
    };
    let event = Event::new(EventKind::Restore, EventOutcome::Begun).of(file.manifest());
    let sealed = blocking({
        let path = path.clone();
        move || {
            drop(sqlcipher::open_as_it_is(file)?);
            // It was proven just now, under the lock of the directory.
            let manifest = manifest_path(&path);
            match read_manifest(&manifest) {
                Ok(Some(sealed)) => Ok(sealed),
                Ok(None) => Err(EnvelopeError::ManifestMissing { path }.into()),
                Err(source) => Err(OperationError::Manifest {
                    path: manifest,
                    source,
                }),
            }
        }
    })
    .await?;
    envelope.record(event.clone()).await?;
    let (control, of) = (control.clone(), subject.clone());
    let accepted = blocking(move || control.put_many([(&of, sealed.as_bytes())])).await;
    let outcome = Repaired::Accepted;
    let event = event.ended(&accepted);
    envelope
        .record(match &accepted {
            Ok(()) => event.saying(outcome.as_str()),
            Err(_) => event,
        })
        .await?;
    accepted?;
    Ok(outcome)
}

/// What is to become of the manifest of a file.
enum Verdict<'a> {
    /// It is right, or its key cannot be had.
    Right,
    /// This copy is to take its place.
    Wrong(&'a SealedManifest),
    /// It is older than the copy, which does not take its place: this is why.
    Older(Repaired),
    /// The operating system does not say what it is.
    Unreadable(ReadError),
}

/// Judges what stands beside `path`. Where a rotation was cut short there are two copies, under
/// different keys: the one that a key opens is wanted.
async fn verdict<'a>(
    envelope: &Envelope,
    path: &Path,
    copies: &'a [SealedManifest],
) -> Verdict<'a> {
    let Some((before, announced)) = copies.split_last() else {
        return Verdict::Right;
    };
    let mut opens = None;
    for copy in announced {
        if envelope.under(path, copy).await.is_ok() {
            opens = Some(copy);
        }
    }
    if announced.is_empty() || opens.is_none() && envelope.under(path, before).await.is_ok() {
        opens = Some(before);
    }
    let wanted = opens.unwrap_or(before);
    let manifest = manifest_path(path);
    let there = match blocking(move || read_manifest(&manifest)).await {
        Ok(Some(there)) => there,
        Ok(None) | Err(ReadError::Parse(_)) => return Verdict::Wrong(wanted),
        Err(error) => return Verdict::Unreadable(error),
    };
    let is_there = |copy: &SealedManifest| copy.as_bytes() == there.as_bytes();
    if opens.is_some_and(is_there) {
        return Verdict::Right;
    }
    // A copy whose key is gone, while that of the other is here.
    if let Some(opens) = opens
        && copies.iter().any(is_there)
        && envelope.under(path, &there).await.is_err()
    {
        return Verdict::Wrong(opens);
    }
    let subject = before.claims().subject();
    let opened = envelope
        .prepare(path, subject, before.claims().cipher(), Intent::Open)
        .await;
    let is_older = match &opened {
        Err(error) => matches!(error, EnvelopeError::ManifestOlder { .. }),
        Ok(Prepared::Keyed(file)) => file.is_ended(),
        Ok(Prepared::Plain(_)) => false,
    };
    match opened {
        _ if is_older => match envelope.under(path, wanted).await {
            Err(error) => Verdict::Older(Repaired::CopyUnavailable(error_chain(&error))),
            Ok(file) => match blocking(move || sqlcipher::open_as_it_is(file).is_ok()).await {
                true => Verdict::Wrong(wanted),
                false => Verdict::Older(Repaired::BothOlder),
            },
        },
        Err(error) if is_wrong(&error) => Verdict::Wrong(wanted),
        _ => Verdict::Right,
    }
}

/// Whether it means that a manifest which can be read is not what its key holder wrote for this
/// file, or is not all that there was of it.
fn is_wrong(error: &EnvelopeError) -> bool {
    match error {
        EnvelopeError::SubjectMismatch { .. }
        | EnvelopeError::CipherMismatch { .. }
        | EnvelopeError::ManifestTampered { .. }
        | EnvelopeError::Lost { .. } => true,
        // A key that is there and does not open the wrap; not one that cannot be had now, or
        // settings that are wrong.
        EnvelopeError::Unwrap { source, .. } => matches!(
            **source,
            ProviderError::UnwrapFailed { .. }
                | ProviderError::UnsupportedAlgorithm { .. }
                | ProviderError::Kms(KmsError::WrongContext { .. } | KmsError::WrongKey { .. })
        ),
        _ => false,
    }
}

/// One manifest that is wrong.
fn put_back(path: &Path, copy: &SealedManifest) -> Result<Repaired, OperationError> {
    let manifest = manifest_path(path);
    let kind = classify(path).map_err(io_error("read", path))?;
    let outcome = match kind {
        FileKind::Absent => Repaired::DatabaseMissing,
        FileKind::PlainSqlite | FileKind::PlainRedb => Repaired::Plaintext,
        FileKind::Empty | FileKind::Other | FileKind::NotAFile => {
            let set_aside = match fs::symlink_metadata(&manifest) {
                Ok(_) => {
                    let why = "its copy in the control file takes its place";
                    let aside = data_dir::set_aside(&manifest, why);
                    Some(aside.map_err(io_error("set aside", &manifest))?)
                }
                Err(_) => None,
            };
            envelope::restore_manifest(path, copy)?;
            Repaired::PutBack { set_aside }
        }
    };
    Ok(outcome)
}
