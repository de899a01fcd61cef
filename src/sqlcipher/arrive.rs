//! A database of this deployment whose content comes from elsewhere, statement by statement.
//!
//! It is made under a temporary name, and its manifest says `new` until it is whole:
//!
//! | on disk | crash point | next start |
//! | --- | --- | --- |
//! | manifest `new`, a temporary file with its WAL | `tenants::copy::begun`, `tenants::copy::put`, `tenants::copy::compared` | no tenant; the temporary files are removed |
//! | manifest `new`, the database under its name | `arrive::renamed` | no tenant; a further copy begins it again, a creation sets it aside |
//! | `ready` mirrored, then published | | the tenant, whole |
//!
//! Without encryption there is no manifest, and the rename makes the tenant.

use std::path::{Path, PathBuf};

use nimbus_manifests::{Cipher, Subject};
use tempfile::TempPath;

use super::copy::{alone, clear_attempt, remove_database};
use super::error::{CopyError, io_error, sqlite};
use super::opening::Fill;
use super::{Beside, Database, OpenError};
use crate::data_dir::{TEMPORARY_PREFIX, parent, sync_dir};
use crate::envelope::{Envelope, Intent, KeyedFile, Prepared};
use crate::failpoints::crash_point;
use crate::runtime::blocking;
use crate::sqlite_file;

/// A database that is being filled. Dropped, it is gone.
#[derive(Debug)]
pub struct ArrivingDatabase {
    path: PathBuf,
    file: Option<KeyedFile>,
    // In this order: what SQLite keeps beside it goes before the file itself.
    _beside: Beside,
    temporary: TempPath,
}

impl ArrivingDatabase {
    /// Begins the database of `subject` at `path`, where none is, with what `fill` makes.
    ///
    /// # Errors
    ///
    /// [`CopyError`].
    pub(crate) async fn begin(
        envelope: &Envelope,
        path: &Path,
        subject: &Subject,
        fill: Fill,
    ) -> Result<Self, CopyError> {
        let prepared = envelope
            .prepare(path, subject, Cipher::Sqlcipher4, Intent::Create)
            .await
            .map_err(OpenError::from)?;
        let path = path.to_owned();
        blocking(move || {
            let file = match prepared {
                Prepared::Keyed(file) => {
                    clear_attempt(&Database::keyed(file.share()))?;
                    Some(file)
                }
                Prepared::Plain(file) if file.exists() => {
                    return Err(CopyError::TargetExists { path });
                }
                Prepared::Plain(_) => None,
            };
            let dir = parent(&path);
            let temporary = tempfile::Builder::new()
                .prefix(TEMPORARY_PREFIX)
                .tempfile_in(dir)
                .map_err(io_error("create a file in", dir))?
                .into_temp_path();
            let arriving = Self {
                _beside: Beside(temporary.to_path_buf()),
                path,
                file,
                temporary,
            };
            let database = arriving.database();
            let made = database.make(&arriving.temporary, fill);
            made.map_err(|error| database.explain("create", error))?;
            Ok(arriving)
        })
        .await
    }

    /// The database under its temporary name.
    pub(crate) fn database(&self) -> Database {
        let file = self.file.as_ref().map(KeyedFile::share);
        Database::new(&self.temporary, file)
    }

    /// Gives it its name, and makes it count. No connection to it is open.
    ///
    /// # Errors
    ///
    /// [`CopyError`]; it is none then.
    pub(crate) async fn publish(self, envelope: &Envelope) -> Result<(), CopyError> {
        let file = blocking(move || self.name()).await?;
        if let Some(file) = file {
            let published = envelope.publish_ready(file).await;
            published.map_err(OpenError::from)?;
        }
        Ok(())
    }

    fn name(self) -> Result<Option<KeyedFile>, CopyError> {
        let database = self.database();
        // All of it in the one file, and in WAL mode again: as a creation leaves it.
        let connection = alone(&database)?;
        let failed = |error| sqlite("finish", &self.path, error);
        super::write_ahead(&connection).map_err(failed)?;
        connection
            .close()
            .map_err(|(_connection, error)| failed(error))?;
        let (path, dir) = (self.path.as_path(), parent(&self.path));
        sqlite_file::flush(&self.temporary).map_err(io_error("flush", &self.temporary))?;
        self.temporary
            .persist_noclobber(path)
            .map_err(|error| io_error("create", path)(error.error))?;
        sync_dir(dir).map_err(io_error("flush", dir))?;
        crash_point!("arrive::renamed");
        Ok(self.file)
    }

    /// Removes it, its key first.
    ///
    /// # Errors
    ///
    /// [`CopyError`].
    pub(crate) fn abandon(self, envelope: &Envelope) -> Result<(), CopyError> {
        if self.file.is_some() {
            envelope.forget(&self.path).map_err(OpenError::from)?;
            remove_database(&self.path).map_err(io_error("remove", &self.path))?;
        }
        Ok(())
    }
}
