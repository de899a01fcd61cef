//! `migrate`: a plaintext database becomes an encrypted one.
//!
//! In place, the states between the steps, for a database `S`; what a further run finds, and does:
//!
//! | step | on disk after it | a further run |
//! | --- | --- | --- |
//! | 1. the WAL is folded into `S` | `S` plaintext, whole by itself | begins |
//! | 2. copy made under a manifest `new` | `S`, `S.migrating`, its manifest `new` | throws the copy away and begins |
//! | 3. copy verified, manifest `ready` | the same, `ready` | the same |
//! | 4. `S` has a second name | and `S.plaintext`, the same file | the same, and keeps the name |
//! | 5. manifest renamed | `S` plaintext, manifest of `S` `ready`, `S.migrating` | moves the manifest back, and as above |
//! | 6. copy renamed over `S` | `S` encrypted, its manifest, `S.plaintext` | says that it is done; removes `S.plaintext` if asked to |
//! | 7. `S.plaintext` removed | `S` encrypted, its manifest | refuses: encrypted already |
//!
//! The plaintext is whole in every one of them until the encrypted file is in its place and was
//! opened there. In state 5 the server refuses the tenant and says to run the migration again.

mod checks;
mod copying;

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::Args;
use nimbus_manifests::{Subject, TenantId};

use super::error::io_error;
use super::{Engine, OperationError, check_space, make_parent, size_of};
use crate::control::{self, Control};
use crate::data_dir::{
    self, ENCRYPTED, MIGRATING, PLAINTEXT, beside, parent, side_files, sync_dir,
};
use crate::envelope::{
    Envelope, Event, EventKind, EventOutcome, FileKind, Intent, KeyedFile, Prepared, classify,
    manifest_path,
};
use crate::failpoints::crash_point;
use crate::process::DataDirLock;
use crate::runtime::{Progress, blocking};
use crate::sqlcipher;
use checks::{Stamp, exists, is_served, manifest_exists, reject_running_server, reject_target};
use copying::remove;

/// Encrypt a plaintext database
#[derive(Debug, Clone, Args)]
pub struct Migrate {
    /// The plaintext database
    #[arg(long, value_name = "FILE")]
    pub source: PathBuf,

    /// What kind of database it is
    #[arg(long = "provider", value_enum, value_name = "PROVIDER")]
    pub engine: Engine,

    /// Whose it is; only the control file needs none
    #[arg(long = "tenant-id", value_name = "TENANT")]
    pub tenant: Option<TenantId>,

    /// Where the encrypted database goes; a missing directory is made [default:
    /// <source>.encrypted]
    #[arg(long, value_name = "FILE")]
    pub target: Option<PathBuf>,

    /// Put the encrypted database in the place of the source, which is kept as <source>.plaintext
    #[arg(long, conflicts_with = "target")]
    pub in_place: bool,

    /// Do not compare the copy with the source, nor read its pages again
    #[arg(long, conflicts_with = "retire_source")]
    pub skip_validation: bool,

    /// Remove the plaintext when the encrypted database is verified
    #[arg(long)]
    pub retire_source: bool,
}

/// What was done.
#[derive(Debug)]
pub struct Migrated {
    /// Who the encrypted database belongs to.
    pub subject: Subject,
    /// Where it is.
    pub encrypted: PathBuf,
    /// Where the plaintext still is.
    pub plaintext: Option<PathBuf>,
    /// Whether a server serves it: not another application's database.
    pub served: bool,
}

impl Migrate {
    /// Does it. Blocks for as long as the copy takes; the source is only read. The control file in
    /// `control_dir` keeps a copy of the manifest of a tenant's file that is migrated in place.
    ///
    /// # Errors
    ///
    /// [`OperationError`]; the plaintext is then whole, under its own name or `<source>.plaintext`.
    pub async fn run(
        self,
        envelope: &Envelope,
        control_dir: &Path,
        progress: Option<Progress>,
    ) -> Result<Migrated, OperationError> {
        if envelope.keys().is_none() {
            return Err(OperationError::EncryptionOff);
        }
        let subject = self.subject()?;
        if self.in_place {
            self.reject_unserved_name(&subject)?;
        }
        reject_running_server(parent(&self.source))?;
        if self.in_place {
            return self
                .in_place(envelope, control_dir, subject, progress)
                .await;
        }
        let target = self.target.clone();
        let target = target.unwrap_or_else(|| beside(&self.source, ENCRYPTED));
        self.apart(envelope, subject, target, progress).await
    }

    /// Who the copy will belong to: whatever the files are called, the one file that the server
    /// opens for this tenant, or the control file.
    fn subject(&self) -> Result<Subject, OperationError> {
        match (self.engine, &self.tenant) {
            (Engine::Redb, None) => Ok(control::subject()),
            (Engine::Redb, Some(tenant)) => Err(OperationError::OtherOwner {
                path: self.source.clone(),
                subject: control::subject(),
                named: Some(tenant.clone()),
            }),
            (Engine::Sqlite, None) => Err(OperationError::TenantNeeded),
            (Engine::Sqlite, Some(tenant)) => Ok(data_dir::subject(tenant)),
        }
    }

    async fn apart(
        self,
        envelope: &Envelope,
        subject: Subject,
        target: PathBuf,
        progress: Option<Progress>,
    ) -> Result<Migrated, OperationError> {
        reject_running_server(parent(&target))?;
        // No server starts there meanwhile: it would take what is half made for an unfinished
        // creation.
        let _lock = DataDirLock::acquire_if_used(parent(&target))?;
        self.require_plaintext()?;
        self.reject_other_names(&self.source, 1)?;
        reject_target(&target)?;
        make_parent(&target)?;
        check_space(&target, size_of(&self.source))?;
        let before = Stamp::of(&self.source)?;
        let served = self.copy(envelope, &subject, &target, progress).await?;
        let plaintext = if self.retire_source {
            before.check(&self.source)?;
            // Refused while another process has the database open; and no crash leaves its WAL,
            // which is plaintext too, behind alone.
            self.fold().await?;
            self.retire(&self.source)?;
            None
        } else {
            Some(self.source.clone())
        };
        self.record(envelope, &subject, &target).await?;
        Ok(Migrated {
            subject,
            encrypted: target,
            plaintext,
            served,
        })
    }

    async fn in_place(
        self,
        envelope: &Envelope,
        control_dir: &Path,
        subject: Subject,
        progress: Option<Progress>,
    ) -> Result<Migrated, OperationError> {
        let dir = parent(&self.source).to_owned();
        let lock = DataDirLock::acquire(&dir)?;
        let copy = beside(&self.source, MIGRATING);
        let plaintext = beside(&self.source, PLAINTEXT);
        if self.is_done(&plaintext)? {
            self.reject_other_names(&plaintext, 1)?;
            let (_file, served) = self.open_in_place(envelope, &subject).await?;
            return self.finish(envelope, subject, plaintext, served).await;
        }
        self.clear_attempt(&copy)?;
        self.require_plaintext()?;
        if manifest_exists(&self.source) {
            return Err(OperationError::TargetExists {
                path: manifest_path(&self.source),
            });
        }
        self.reject_other_plaintext(&plaintext)?;
        self.reject_other_names(&self.source, 1 + u64::from(exists(&plaintext)))?;
        check_space(&copy, size_of(&self.source))?;
        self.fold().await?;
        let before = Stamp::of(&self.source)?;
        let served = self.copy(envelope, &subject, &copy, progress).await?;
        crash_point!("migrate::verified");

        before.check(&self.source)?;
        match fs::hard_link(&self.source, &plaintext) {
            // Of an earlier run, or of somebody who came while the copy was made.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.reject_other_plaintext(&plaintext)?;
            }
            linked => linked.map_err(io_error("give a second name to", &self.source))?,
        }
        sync_dir(&dir).map_err(io_error("flush", &dir))?;
        crash_point!("migrate::linked");
        fs::rename(manifest_path(&copy), manifest_path(&self.source))
            .map_err(io_error("rename", manifest_path(&copy)))?;
        sync_dir(&dir).map_err(io_error("flush", &dir))?;
        crash_point!("migrate::manifest-moved");
        fs::rename(&copy, &self.source).map_err(io_error("rename", &copy))?;
        sync_dir(&dir).map_err(io_error("flush", &dir))?;
        crash_point!("migrate::swapped");

        let (file, _served) = self.open_in_place(envelope, &subject).await?;
        self.mirror(envelope, control_dir, file).await;
        let migrated = self.finish(envelope, subject, plaintext, served).await;
        drop(lock);
        migrated
    }

    /// Whether an earlier run came as far as swapping the files.
    fn is_done(&self, plaintext: &Path) -> Result<bool, OperationError> {
        let kind = classify(&self.source).map_err(io_error("read", &self.source))?;
        Ok(kind == FileKind::Other && manifest_exists(&self.source) && exists(plaintext))
    }

    /// Proves that what stands in the source's place now opens there, and says whether a server
    /// serves it.
    async fn open_in_place(
        &self,
        envelope: &Envelope,
        subject: &Subject,
    ) -> Result<(KeyedFile, bool), OperationError> {
        let cipher = self.engine.cipher();
        let open = || envelope.prepare(&self.source, subject, cipher, Intent::Open);
        let (Prepared::Keyed(file), Prepared::Keyed(proof)) = (open().await?, open().await?) else {
            return Err(OperationError::EncryptionOff);
        };
        let engine = self.engine;
        let served = blocking(move || match engine {
            // What is in the pages was compared when the copy was made.
            Engine::Sqlite => {
                let database = sqlcipher::open_as_it_is(proof)?;
                database.verify_macs()?;
                Ok::<_, OperationError>(is_served(&database))
            }
            Engine::Redb => {
                control::check(&proof)?;
                Ok(true)
            }
        })
        .await?;
        Ok((file, served))
    }

    /// Keeps a copy of the manifest in the control file. Where that cannot be had, the tenant's
    /// first opening does it.
    async fn mirror(&self, envelope: &Envelope, control_dir: &Path, file: KeyedFile) {
        if self.engine == Engine::Redb || !manifest_exists(&Control::path_in(control_dir)) {
            return;
        }
        let mirrored = match Control::open(envelope, control_dir).await {
            Ok(control) => {
                let control = std::sync::Arc::new(control);
                let envelope = envelope.clone().with_mirror(control, parent(&self.source));
                blocking(move || envelope.refresh_mirror(&file))
                    .await
                    .map_err(OperationError::from)
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = mirrored {
            tracing::warn!(%error, "the manifest is not mirrored yet; the tenant's first opening does it");
        }
    }

    async fn finish(
        self,
        envelope: &Envelope,
        subject: Subject,
        plaintext: PathBuf,
        served: bool,
    ) -> Result<Migrated, OperationError> {
        let kept = if self.retire_source {
            self.retire(&plaintext)?;
            None
        } else {
            Some(plaintext)
        };
        crash_point!("migrate::retired");
        self.record(envelope, &subject, &self.source).await?;
        Ok(Migrated {
            subject,
            encrypted: self.source,
            plaintext: kept,
            served,
        })
    }

    async fn record(
        &self,
        envelope: &Envelope,
        subject: &Subject,
        encrypted: &Path,
    ) -> Result<(), OperationError> {
        let kept = if self.retire_source {
            "removed"
        } else {
            "kept"
        };
        let event = Event::new(EventKind::Migrate, EventOutcome::Done)
            .about(subject)
            .saying(format!(
                "{} to {}; the plaintext was {kept}",
                self.source.display(),
                encrypted.display()
            ));
        Ok(envelope.record(event).await?)
    }

    /// Removes a plaintext database with its WAL.
    fn retire(&self, plaintext: &Path) -> Result<(), OperationError> {
        remove(plaintext)?;
        for path in side_files(plaintext) {
            remove(&path)?;
        }
        let dir = parent(plaintext);
        sync_dir(dir).map_err(io_error("flush", dir))
    }
}
