//! `rotate-dek`: a new data key for the data itself. Data that was encrypted under the old key and
//! has been deleted since can no longer be read, not even with the key-encryption key.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use nimbus_manifests::{Cipher, Subject, TenantId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::io_error;
use super::{
    Engine, Failure, OperationError, check_engine, check_owner, check_space, protected_files,
    size_of,
};
use crate::audit::OfflineLog;
use crate::control::{self, Control};
use crate::data_dir::parent;
use crate::deployment::{Deployment, OlderControl};
use crate::envelope::{
    Envelope, EnvelopeError, Event, EventKind, EventOutcome, FileKind, Intent, KeyedFile, Opened,
    Prepared, Stage, classify, manifest_path, read_manifest,
};
use crate::error_chain::error_chain;
use crate::runtime::{Progress, blocking};
use crate::tenants::TenantProvider;
use crate::{as_text, schemas, sqlcipher};

/// Give a file, or all of them, a new data key: every page is encrypted anew
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RotateDek, description = "The flags of `nimbus encryption rotate-dek`")]
pub struct Request {
    /// A protected file or its manifest; with --all, a data directory
    #[arg(long, value_name = "PATH")]
    #[schema(value_type = String, required = false)]
    #[serde(default)]
    pub path: PathBuf,

    /// Every file in the directory, and the control file
    #[arg(long, conflicts_with_all = ["provider", "tenant_id"])]
    #[schema(required = false)]
    #[serde(default)]
    pub all: bool,

    /// What kind of database it is [default: what its manifest says]
    #[arg(long, value_enum)]
    #[serde(default)]
    pub provider: Option<Engine>,

    /// Whose it is; only the control file needs none
    #[arg(long, value_name = "TENANT")]
    #[serde(default, with = "as_text::option")]
    #[schema(value_type = Option<schemas::TenantId>)]
    pub tenant_id: Option<TenantId>,
}

impl Request {
    /// The directory that the files are in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        match self.all {
            true => &self.path,
            false => parent(&self.path),
        }
    }

    /// Refuses a directory without `all`, and a file with it. Blocks.
    ///
    /// # Errors
    ///
    /// [`OperationError::Directory`], [`OperationError::NoDirectory`].
    pub fn check_path(&self) -> Result<(), OperationError> {
        let path = || self.path.clone();
        match (self.all, self.path.is_dir()) {
            (false, true) => Err(OperationError::Directory { path: path() }),
            (true, false) => Err(OperationError::NoDirectory { path: path() }),
            _ => Ok(()),
        }
    }
}

/// The result of `rotate-dek`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[schema(as = DekRotated)]
pub struct Rotated {
    /// Files that have a new data key.
    pub rotated: Vec<Renewed>,
    /// Files that are as they were, and why.
    pub failed: Vec<Failure>,
}

/// One file with a new data key.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Renewed {
    /// The protected file.
    pub path: String,
    /// Whose it is.
    pub subject: String,
}

/// The parts of a running server that a rotation goes through.
#[derive(Debug, Clone)]
pub struct DekRotator {
    /// The tenants.
    pub tenants: Arc<dyn TenantProvider>,
    /// The control file.
    pub control: Arc<Control>,
    /// The core.
    pub envelope: Envelope,
    /// Where the tenants' files are.
    pub data_dir: PathBuf,
    /// Where the control file is.
    pub control_dir: PathBuf,
}

impl DekRotator {
    /// Rejects at once what cannot be: no path, a path outside this server, a tenant to which
    /// the file does not belong.
    ///
    /// # Errors
    ///
    /// [`OperationError`] names what is wrong with the request.
    pub async fn check(&self, request: &Request) -> Result<(), OperationError> {
        let (this, request) = (self.clone(), request.clone());
        blocking(move || {
            if request.path.as_os_str().is_empty() {
                return Err(OperationError::NoPath);
            }
            if !request.all {
                let owner = Owner::Named(request.tenant_id);
                return this.owned(&request.path, request.provider, owner).map(drop);
            }
            if request.tenant_id.is_some() || request.provider.is_some() {
                return Err(OperationError::OneOrAll);
            }
            Self::check_served(&request.path, &this.data_dir)
        })
        .await
    }

    /// Gives one file, or each in its turn, a new data key while it is used. With `all`, one that
    /// fails does not keep the others.
    ///
    /// # Errors
    ///
    /// [`OperationError`] when what was asked for cannot be done, or the one file failed.
    pub async fn rotate_dek(
        &self,
        request: Request,
        progress: Progress,
    ) -> Result<Rotated, OperationError> {
        self.check(&request).await?;
        let mut rotated = Rotated::default();
        if !request.all {
            let owner = Owner::Named(request.tenant_id);
            let done = self.renew(&request.path, request.provider, owner, progress);
            rotated.rotated.push(done.await?);
            return Ok(rotated);
        }
        let this = self.clone();
        let (files, sizes) = blocking(move || {
            let files = protected_files(&this.data_dir, Some(&this.control_dir))
                .map_err(|(path, error)| io_error("read", path)(error))?;
            let sizes: Vec<_> = files.iter().map(|path| size_of(path)).collect();
            Ok::<_, OperationError>((files, sizes))
        })
        .await?;
        let total: u64 = sizes.iter().sum();
        let mut before = 0;
        for (path, size) in files.iter().zip(sizes) {
            let progress = progress.clone();
            let of_all: Progress =
                Arc::new(move |done, _of_one| progress((before + done).min(total), total));
            match self.renew(path, None, Owner::Whoever, of_all).await {
                Ok(one) => rotated.rotated.push(one),
                Err(error) => rotated.failed.push(Failure {
                    path: path.display().to_string(),
                    error: error_chain(&error),
                }),
            }
            before += size;
        }
        let _go_on = progress(total, total);
        Ok(rotated)
    }

    /// One file.
    async fn renew(
        &self,
        path: &Path,
        engine: Option<Engine>,
        owner: Owner,
        progress: Progress,
    ) -> Result<Renewed, OperationError> {
        let (this, file) = (self.clone(), path.to_owned());
        let subject = blocking(move || {
            let subject = this.owned(&file, engine, owner)?;
            check_space(&file, size_of(&file))?;
            Ok::<_, OperationError>(subject)
        })
        .await?;
        match subject.tenant() {
            Some(tenant) => self.tenants.rotate_dek(tenant, progress).await?,
            None => self.control.rotate_dek(&self.envelope).await?,
        }
        Ok(Renewed {
            path: path.display().to_string(),
            subject: subject.to_string(),
        })
    }

    /// Whose `file` is; refuses one of another kind, owner or deployment. Blocks.
    fn owned(
        &self,
        file: &Path,
        engine: Option<Engine>,
        owner: Owner,
    ) -> Result<Subject, OperationError> {
        let subject = claimed_subject(file)?;
        if file.file_name() != Some(subject.file_name().as_ref()) {
            // The manifest of another file was put beside it: that one would get the key.
            return Err(OperationError::OthersManifest {
                path: file.to_owned(),
                subject,
            });
        }
        if let Some(engine) = engine {
            check_engine(file, &subject, engine)?;
        }
        if let Owner::Named(named) = owner {
            check_owner(file, &subject, named.as_ref())?;
        }
        let dir = match subject.tenant() {
            Some(_) => &self.data_dir,
            None => &self.control_dir,
        };
        Self::check_served(parent(file), dir)?;
        Ok(subject)
    }

    /// Refuses a directory that is not this server's.
    fn check_served(dir: &Path, own: &Path) -> Result<(), OperationError> {
        match (dir.canonicalize(), own.canonicalize()) {
            (Ok(dir), Ok(own)) if dir == own => Ok(()),
            _ => Err(OperationError::NotServed {
                path: dir.to_owned(),
                dir: own.to_owned(),
            }),
        }
    }
}

/// Who a file must belong to.
enum Owner {
    /// Everybody's turn comes.
    Whoever,
    /// Who was named; nobody for the control file.
    Named(Option<TenantId>),
}

/// Does it while no server runs: the caller holds the lock of the directory. `envelope` has the
/// keys of the settings, and `place` says where their deployment is: only its files are in its
/// control file and its audit log.
///
/// # Errors
///
/// [`OperationError`] when it was not begun, or the one file failed.
pub async fn offline(
    envelope: &Envelope,
    request: &Request,
    place: &Place<'_>,
    progress: Progress,
) -> Result<Rotated, OperationError> {
    let Place {
        data_dir,
        control_dir,
    } = *place;
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    let control = Control::path_in(control_dir);
    // A copy elsewhere is none of this deployment's.
    let ours = same(request.dir(), data_dir);
    let files = match request.all {
        true => protected_files(&request.path, ours.then_some(control_dir))
            .map_err(|(path, error)| io_error("read", path)(error))?,
        false => vec![request.path.clone()],
    };
    let (own, tenants): (Vec<_>, Vec<_>) = files.into_iter().partition(|path| same(path, &control));
    let beside = || {
        let log = OfflineLog::new(
            envelope.clone(),
            control_dir.to_owned(),
            data_dir.to_owned(),
        );
        envelope.clone().with_audit(Arc::new(log))
    };
    let mut rotated = Rotated::default();
    if !tenants.is_empty() {
        // The control file keeps the copies of the tenants' manifests; its own turn comes when it
        // is closed.
        let deployment = match ours && manifest_path(&control).exists() {
            true => Some(
                Deployment::open(
                    envelope.clone(),
                    data_dir,
                    control_dir,
                    OlderControl::Refuse,
                )
                .await?,
            ),
            false => None,
        };
        let core = match &deployment {
            Some(deployment) => deployment.envelope.clone(),
            None if ours => beside(),
            None => envelope.clone(),
        };
        for path in tenants {
            rotate_one(&core, request, &path, &progress, &mut rotated).await?;
        }
    }
    let core = if ours { beside() } else { envelope.clone() };
    for path in own {
        rotate_one(&core, request, &path, &progress, &mut rotated).await?;
    }
    Ok(rotated)
}

/// Where a deployment is.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The tenants' directory.
    pub data_dir: &'a Path,
    /// The control file's directory.
    pub control_dir: &'a Path,
}

/// One file. With `all`, a failure is part of the answer and does not keep the others.
async fn rotate_one(
    envelope: &Envelope,
    request: &Request,
    path: &Path,
    progress: &Progress,
    rotated: &mut Rotated,
) -> Result<(), OperationError> {
    // With `all`, everybody's turn comes: whose a file is, its manifest says.
    let owner = match request.all {
        true => claimed_subject(path)
            .ok()
            .and_then(|subject| subject.tenant().cloned()),
        false => request.tenant_id.clone(),
    };
    let done = rotate_dek(
        envelope,
        path,
        request.provider,
        owner.as_ref(),
        progress.clone(),
    );
    let shown = path.display().to_string();
    match done.await {
        Ok(subject) => rotated.rotated.push(Renewed {
            path: shown,
            subject: subject.to_string(),
        }),
        Err(error) if request.all => rotated.failed.push(Failure {
            path: shown,
            error: error_chain(&error),
        }),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Gives the file at `path` a new data key. Nobody may have it open; the caller holds the
/// directory's lock.
///
/// A rekey that a crash cut short is settled first: then the file is under one key, and gets
/// another.
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
            // `prepare` opens no file of this cipher.
            Cipher::Sealed1 => {
                let path = file.path().to_owned();
                return Err(EnvelopeError::NotAFile { path }.into());
            }
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
            Stage::Initialise | Stage::Initialised => {
                let path = path.to_owned();
                return Err(EnvelopeError::NeverInitialised { path }.into());
            }
            Stage::Rekeying { .. } => {
                let (file, opened) = blocking(move || match file.manifest().cipher() {
                    Cipher::Sqlcipher4 => sqlcipher::which_key(file).map_err(OperationError::from),
                    Cipher::Blocks1 => {
                        let opened = control::which_key(&file)?;
                        Ok((file, opened))
                    }
                    Cipher::Sealed1 => {
                        let path = file.path().to_owned();
                        Err(EnvelopeError::NotAFile { path }.into())
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
