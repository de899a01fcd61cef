//! The encrypted copy, and what is left of an earlier attempt.

use std::path::Path;
use std::{fs, io};

use nimbus_manifests::Subject;

use super::Migrate;
use super::checks::{exists, is_served, is_unfinished, manifest_exists};
use crate::data_dir::{parent, side_files, sync_dir};
use crate::encryption::error::io_error;
use crate::encryption::{Engine, OperationError};
use crate::envelope::{Envelope, Intent, PlainFile, Prepared, manifest_path};
use crate::runtime::{Progress, blocking};
use crate::{control, sqlcipher};

/// Removes a copy, its manifest last: while any of it is there, it is known for what it is.
pub(super) fn remove_copy(copy: &Path) -> Result<(), OperationError> {
    remove(copy)?;
    for path in side_files(copy).into_iter().chain([manifest_path(copy)]) {
        remove(&path)?;
    }
    let dir = parent(copy);
    sync_dir(dir).map_err(io_error("flush", dir))
}

pub(super) fn remove(path: &Path) -> Result<(), OperationError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", path)(error))
        }
        _removed => Ok(()),
    }
}

impl Migrate {
    /// The copy, verified, under a `ready` manifest, and whether a server serves it; or an error,
    /// and nothing of it.
    pub(super) async fn copy(
        &self,
        envelope: &Envelope,
        subject: &Subject,
        target: &Path,
        progress: Option<Progress>,
    ) -> Result<bool, OperationError> {
        let result = self.make_copy(envelope, subject, target, progress).await;
        if result.is_err() && is_unfinished(target) {
            // Best effort: what stays is begun again by a further run.
            drop(remove_copy(target));
        }
        result
    }

    async fn make_copy(
        &self,
        envelope: &Envelope,
        subject: &Subject,
        target: &Path,
        progress: Option<Progress>,
    ) -> Result<bool, OperationError> {
        match self.engine {
            Engine::Sqlite => {
                let (source, validate) = (&self.source, !self.skip_validation);
                let database = sqlcipher::import_plaintext(
                    envelope, source, target, subject, validate, progress,
                )
                .await?;
                Ok(blocking(move || is_served(&database)).await)
            }
            Engine::Redb => {
                let cipher = self.engine.cipher();
                let prepared = envelope
                    .prepare(target, subject, cipher, Intent::Create)
                    .await?;
                let Prepared::Keyed(file) = prepared else {
                    return Err(OperationError::EncryptionOff);
                };
                let file = control::import_plaintext(&self.source, file, progress).await?;
                drop(envelope.publish_ready(file).await?);
                Ok(true)
            }
        }
    }

    /// Undoes what an earlier run left before it swapped the files. Only files that no one but an
    /// earlier run made are touched, and only while the plaintext is in its place.
    pub(super) fn clear_attempt(&self, copy: &Path) -> Result<(), OperationError> {
        if !exists(copy) && !manifest_exists(copy) {
            return Ok(());
        }
        self.require_plaintext()?;
        // State 5: the manifest in the source's place is the copy's.
        if manifest_exists(&self.source) && !manifest_exists(copy) {
            fs::rename(manifest_path(&self.source), manifest_path(copy))
                .map_err(io_error("rename", manifest_path(&self.source)))?;
        }
        remove_copy(copy)
    }

    /// Makes the one file the whole database, for SQLite: the rename takes nothing but it.
    pub(super) async fn fold(&self) -> Result<(), OperationError> {
        if self.engine == Engine::Redb {
            return Ok(());
        }
        let plain = self.plain_source().await?;
        blocking(move || sqlcipher::fold_wal(&plain)).await?;
        Ok(())
    }

    async fn plain_source(&self) -> Result<PlainFile, OperationError> {
        let subject = self.subject()?;
        let prepared = Envelope::plaintext()
            .prepare(&self.source, &subject, self.engine.cipher(), Intent::Open)
            .await?;
        match prepared {
            Prepared::Plain(file) => Ok(file),
            Prepared::Keyed(_) => Err(OperationError::AlreadyEncrypted {
                path: self.source.clone(),
            }),
        }
    }
}
