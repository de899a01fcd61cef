//! `export`: one encrypted database as plaintext, in a new file that only its owner can read.

use std::path::PathBuf;

use nimbus_manifests::{Subject, TenantId};

use super::error::io_error;
use super::{Engine, OperationError, check_engine, check_owner, check_space, make_parent, size_of};
use crate::control;
use crate::envelope::{
    Envelope, EnvelopeError, Event, EventKind, EventOutcome, FileKind, Intent, KeyedFile, Prepared,
    blocking, classify, manifest_path, read_manifest,
};
use crate::sqlcipher::{self, Progress};

/// What to export where.
#[derive(Debug, Clone)]
pub struct Export {
    /// The encrypted database, under whatever name the copy has.
    pub source: PathBuf,
    /// The new plaintext file; directories that are missing above it are made, mode 0700.
    pub target: PathBuf,
    /// What kind of database it is.
    pub engine: Engine,
    /// Whose it must be; `None` for the control file alone.
    pub tenant: Option<TenantId>,
}

impl Export {
    /// Does it. The manifest is verified and every page read through its MAC; the target appears whole or not at all.
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
        let prepared = envelope
            .prepare(&this.source, &subject, this.engine.cipher(), Intent::Open)
            .await?;
        let Prepared::Keyed(file) = prepared else {
            return Err(OperationError::EncryptionOff);
        };
        let event = Event::new(EventKind::Export, EventOutcome::Begun)
            .of(file.manifest())
            .saying(format!(
                "{} to {}",
                this.source.display(),
                this.target.display()
            ));
        // Before any plaintext is written.
        envelope.record(event.clone()).await?;
        let exported = this.copy(file, progress).await;
        envelope.record(event.ended(&exported)).await?;
        exported?;
        Ok(subject)
    }

    async fn copy(
        &self,
        file: KeyedFile,
        progress: Option<Progress>,
    ) -> Result<(), OperationError> {
        match self.engine {
            Engine::Sqlite => {
                let target = self.target.clone();
                blocking(move || {
                    let database = sqlcipher::open_as_it_is(file)?;
                    sqlcipher::export_plaintext(&database, &target, progress)?;
                    Ok::<_, OperationError>(())
                })
                .await?;
            }
            Engine::Redb => control::export_plaintext(file, &self.target, progress).await?,
        }
        Ok(())
    }

    /// Looks at everything that can be wrong before a key is touched, and makes the target's directory.
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
