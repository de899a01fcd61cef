//! `export`: one encrypted database as plaintext, in a new file that only its owner can read.

use std::path::PathBuf;

use clap::Args;
use nimbus_manifests::{Subject, TenantId};

use super::error::io_error;
use super::{
    Engine, OperationError, check_engine, check_owner, check_space, make_parent, size_of,
    was_rewritten,
};
use crate::control;
use crate::data_dir::parent;
use crate::envelope::{
    Envelope, EnvelopeError, Event, EventKind, EventOutcome, FileKind, Intent, KeyedFile, Prepared,
    classify, manifest_path, read_manifest,
};
use crate::process::DataDirLock;
use crate::runtime::{Progress, blocking};
use crate::sqlcipher;

/// Write an encrypted database out in plaintext, to a new file that only you can read
#[derive(Debug, Clone, Args)]
pub struct Export {
    /// The encrypted database, or its manifest; they stand side by side
    #[arg(long, value_name = "FILE")]
    pub source: PathBuf,

    /// The new plaintext file; a missing directory is made
    #[arg(long, value_name = "FILE")]
    pub target: PathBuf,

    /// What kind of database it is
    #[arg(long = "provider", value_enum, value_name = "PROVIDER")]
    pub engine: Engine,

    /// Whose it is; only the control file needs none
    #[arg(long = "tenant-id", value_name = "TENANT")]
    pub tenant: Option<TenantId>,
}

impl Export {
    /// Does it. The manifest is verified and every page read through its MAC; the target appears
    /// whole or not at all.
    ///
    /// # Errors
    ///
    /// [`OperationError`]; no target stands then.
    pub async fn run(
        self,
        envelope: &Envelope,
        progress: Option<Progress>,
    ) -> Result<Subject, OperationError> {
        let (this, subject) = blocking(move || {
            let subject = self.check()?;
            Ok::<_, OperationError>((self, subject))
        })
        .await?;
        let file = this.prepare(envelope, &subject).await?;
        let event = Event::new(EventKind::Export, EventOutcome::Begun)
            .of(file.manifest())
            .saying(format!(
                "{} to {}",
                this.source.display(),
                this.target.display()
            ));
        // Before any plaintext is written.
        envelope.record(event.clone()).await?;
        let exported = this.copy(envelope, file, progress).await;
        envelope.record(event.ended(&exported)).await?;
        exported?;
        Ok(subject)
    }

    async fn prepare(
        &self,
        envelope: &Envelope,
        subject: &Subject,
    ) -> Result<KeyedFile, OperationError> {
        let prepared = envelope
            .prepare(&self.source, subject, self.engine.cipher(), Intent::Open)
            .await?;
        match prepared {
            Prepared::Keyed(file) => Ok(file),
            Prepared::Plain(_) => Err(OperationError::EncryptionOff),
        }
    }

    async fn copy(
        &self,
        envelope: &Envelope,
        file: KeyedFile,
        progress: Option<Progress>,
    ) -> Result<(), OperationError> {
        if self.engine == Engine::Redb {
            return Ok(control::export_plaintext(file, &self.target, progress).await?);
        }
        // A running server may be exchanging the file for one under a new data key just then: once
        // more, with the manifest as it is now.
        let (mut file, mut again) = (file, 0..ATTEMPTS);
        loop {
            let subject = file.manifest().subject().clone();
            let revision = Some(file.manifest().revision());
            match self.copy_sqlite(file, progress.clone()).await {
                Err(_) if was_rewritten(&self.source, revision).await && again.next().is_some() => {
                    file = self.prepare(envelope, &subject).await?;
                }
                copied => return copied,
            }
        }
    }

    async fn copy_sqlite(
        &self,
        file: KeyedFile,
        progress: Option<Progress>,
    ) -> Result<(), OperationError> {
        let this = self.clone();
        blocking(move || {
            let database = sqlcipher::open_beside_others(file)?;
            let exported = sqlcipher::export_plaintext(&database, &this.target, progress);
            // What SQLite kept beside the source goes, unless a server has the directory: that one
            // may be using it.
            if let Ok(_nobody_serves) = DataDirLock::acquire_if_used(parent(&this.source)) {
                database.tidy();
            }
            Ok(exported?)
        })
        .await
    }

    /// Looks at everything that can be wrong before a key is touched, and makes the target's
    /// directory.
    fn check(&self) -> Result<Subject, OperationError> {
        let manifest = manifest_path(&self.source);
        let sealed = read_manifest(&manifest).map_err(|source| OperationError::Manifest {
            path: manifest,
            source,
        })?;
        let kind = classify(&self.source).map_err(io_error("read", &self.source))?;
        let path = self.source.clone();
        let Some(sealed) = sealed else {
            return Err(match kind {
                FileKind::Absent => OperationError::SourceMissing { path },
                FileKind::PlainSqlite | FileKind::PlainRedb => {
                    OperationError::NotEncrypted { path }
                }
                _ => EnvelopeError::ManifestMissing { path }.into(),
            });
        };
        let subject = sealed.claims().subject();
        check_engine(&self.source, subject, self.engine)?;
        check_owner(&self.source, subject, self.tenant.as_ref())?;
        if std::fs::symlink_metadata(&self.target).is_ok() {
            return Err(OperationError::TargetExists {
                path: self.target.clone(),
            });
        }
        make_parent(&self.target)?;
        check_space(&self.target, size_of(&self.source))?;
        Ok(subject.clone())
    }
}

/// How often a source is copied again that has another manifest since.
const ATTEMPTS: usize = 3;
