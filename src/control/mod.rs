//! `nimbus-control.db`: what the deployment as a whole must remember, in a small redb file that is encrypted like everything else.
//!
//! It keeps the mirror of all manifests, the deletions under way, and has a place for usage and access keys. All calls block; each
//! write is one durable commit.

mod copy;
mod database;
mod device;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use nimbus_manifests::{Cipher, Subject, TenantId};
use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction,
};

pub(crate) use copy::{check, swap_to_next_key};
pub use copy::{export_plaintext, import_plaintext};
pub use device::BadBlock;

use crate::envelope::{
    CUT_SHORT, Envelope, EnvelopeError, Intent, KeyedFile, ManifestMirror, MirrorError, Opened,
    Prepared, Stage, Trouble, blocking, set_aside,
};
use database::{Protection, explain};

/// Why the control file did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The core refused: the opening table, the manifest, or the key provider.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// Another process has the file.
    #[error("{} is in use by another process; stop it first", .path.display())]
    InUse {
        /// The control file.
        path: PathBuf,
    },
    /// The key of the manifest does not open the file.
    #[error("key and file do not match: {} does not authenticate under the key of its manifest; restore both from the same backup", .path.display())]
    KeyMismatch {
        /// The control file.
        path: PathBuf,
    },
    /// The key is right, and the file was changed, cut, or put together from two ages.
    #[error("{} is damaged or was tampered with; restore it and its manifest from a backup", .path.display())]
    Damaged {
        /// The control file.
        path: PathBuf,
        /// What was found.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A newer release wrote the file.
    #[error("{} has layout {found}, this release knows {known}; start the newer release again", .path.display())]
    NewerLayout {
        /// The control file.
        path: PathBuf,
        /// The layout in the file.
        found: u64,
        /// The newest layout this release knows.
        known: u64,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// redb failed in another way.
    #[error("the control file {} failed", .path.display())]
    Database {
        /// The control file.
        path: PathBuf,
        /// What redb said.
        source: Box<redb::Error>,
    },
}

impl ControlError {
    /// What this failure means to who asked.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Envelope(error) => error.trouble(),
            Self::KeyMismatch { .. } => Trouble::KeyMismatch,
            Self::Damaged { .. } => Trouble::Corrupt,
            Self::InUse { .. }
            | Self::NewerLayout { .. }
            | Self::Io { .. }
            | Self::Database { .. } => Trouble::Storage,
        }
    }
}

/// The control file, open and held for this process alone.
#[derive(Debug)]
pub struct Control {
    /// `None` after a failed read or write, until it is opened again.
    database: RwLock<Option<Database>>,
    protection: Protection,
    path: PathBuf,
}

impl Control {
    /// Opens or creates the control file in `dir`, as the opening table says. Reads all of it: every checksum is verified.
    ///
    /// # Errors
    ///
    /// [`ControlError`]; nothing is created or changed in place of a file that is refused.
    pub async fn open(envelope: &Envelope, dir: &Path) -> Result<Self, ControlError> {
        let path = dir.join(FILE_NAME);
        let prepared = envelope
            .prepare(&path, &subject(), Cipher::Blocks1, Intent::OpenOrCreate)
            .await?;
        let protection = match prepared {
            Prepared::Plain(file) => {
                if !file.exists() {
                    let path = path.clone();
                    blocking(move || database::create(&path, &Protection::Plain, fill)).await?;
                }
                Protection::Plain
            }
            Prepared::Keyed(file) => {
                let file = match file.stage() {
                    Stage::Ready => file,
                    Stage::Initialise => {
                        let file = blocking(move || initialise(file)).await?;
                        envelope.publish_ready(file).await?
                    }
                    Stage::Rekeying => {
                        let (file, opened) = blocking(move || {
                            let opened = which_key(&file)?;
                            Ok::<_, ControlError>((file, opened))
                        })
                        .await?;
                        envelope.settle(file, opened).await?
                    }
                };
                Protection::of(&file)
            }
        };
        blocking(move || {
            let database = database::open(&path, &protection)?;
            let control = Self {
                database: RwLock::new(Some(database)),
                protection,
                path,
            };
            control.check_layout()?;
            Ok(control)
        })
        .await
    }

    /// Where the control file of `dir` lies.
    #[must_use]
    pub fn path_in(dir: &Path) -> PathBuf {
        dir.join(FILE_NAME)
    }

    /// Marks a tenant as being deleted, durably: from here on the next start finishes the deletion.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn begin_delete(&self, tenant: &TenantId) -> Result<(), ControlError> {
        self.write(|transaction| {
            let mut deletions = transaction.open_table(DELETIONS)?;
            let _old = deletions.insert(tenant.as_str(), ())?;
            Ok(())
        })
    }

    /// Ends a deletion: the tenant's mirrored manifests and its mark go in one commit.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn finish_delete(&self, tenant: &TenantId) -> Result<(), ControlError> {
        self.write(|transaction| {
            drop(transaction.open_table(DELETIONS)?.remove(tenant.as_str())?);
            let mut manifests = transaction.open_table(MANIFESTS)?;
            for kind in ["db:sqlite:tenant", "cache:libsql:tenant"] {
                // `;` follows `:`: everything that begins with this tenant's prefix.
                let range = format!("{kind}:{tenant}:")..format!("{kind}:{tenant};");
                let range = range.start.as_str()..range.end.as_str();
                manifests.retain_in::<&str, _>(range, |_, _| false)?;
            }
            Ok(())
        })
    }

    /// Tenants whose deletion has begun and not ended.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn pending_deletes(&self) -> Result<Vec<TenantId>, ControlError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let mut tenants = Vec::new();
            for entry in transaction.open_table(DELETIONS)?.iter()? {
                // Only this file's own writer put it there.
                tenants.extend(entry?.0.value().parse::<TenantId>().ok());
            }
            Ok(tenants)
        })
    }

    /// Every mirrored manifest, as it lay on the disk.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn manifests(&self) -> Result<Vec<Vec<u8>>, ControlError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let manifests = transaction.open_table(MANIFESTS)?;
            let mut all = Vec::new();
            for entry in manifests.iter()? {
                all.push(entry?.1.value().to_vec());
            }
            Ok(all)
        })
    }

    /// Mirrors many manifests in one commit.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn put_many<'a>(
        &self,
        manifests: impl IntoIterator<Item = (&'a Subject, &'a [u8])>,
    ) -> Result<(), ControlError> {
        let manifests: Vec<_> = manifests.into_iter().collect();
        self.write(|transaction| {
            let mut table = transaction.open_table(MANIFESTS)?;
            for (subject, manifest) in &manifests {
                let _old = table.insert(subject.as_str(), *manifest)?;
            }
            Ok(())
        })
    }

    /// One durable commit.
    fn write(
        &self,
        work: impl Fn(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), ControlError> {
        self.with(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_two_phase_commit(true);
            work(&transaction)?;
            Ok(transaction.commit()?)
        })
    }

    /// Works on the database. After one read or write that failed (a full disk, say) redb refuses everything: it is closed then, and
    /// opened again by whoever comes next, who finds what was committed, as after a crash.
    fn with<T>(
        &self,
        work: impl Fn(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, ControlError> {
        let attempt = || match &*self.database.read().unwrap_or_else(PoisonError::into_inner) {
            Some(database) => work(database),
            None => Err(redb::Error::PreviousIo),
        };
        let result = match attempt() {
            Err(redb::Error::PreviousIo) => {
                self.reopen()?;
                attempt()
            }
            result => result,
        };
        if matches!(result, Err(redb::Error::Io(_))) {
            let mut database = self
                .database
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            *database = None;
        }
        result.map_err(|error| explain(&self.path, error))
    }

    fn reopen(&self) -> Result<(), ControlError> {
        let mut database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // Closed first: it holds the file for itself alone.
        *database = None;
        *database = Some(database::open(&self.path, &self.protection)?);
        tracing::warn!(path = %self.path.display(), "the control file was opened again after a failure");
        Ok(())
    }

    fn check_layout(&self) -> Result<(), ControlError> {
        let found = self.with(|database| {
            let transaction = database.begin_read()?;
            let meta = transaction.open_table(META)?;
            Ok(meta.get(LAYOUT)?.map_or(0, |value| value.value()))
        })?;
        if found > KNOWN_LAYOUT {
            return Err(ControlError::NewerLayout {
                path: self.path.clone(),
                found,
                known: KNOWN_LAYOUT,
            });
        }
        Ok(())
    }
}

impl ManifestMirror for Control {
    fn put(&self, subject: &Subject, manifest: &[u8]) -> Result<(), MirrorError> {
        Self::put_many(self, [(subject, manifest)]).map_err(MirrorError::new)
    }

    fn put_many(&self, manifests: &[(&Subject, &[u8])]) -> Result<(), MirrorError> {
        Self::put_many(self, manifests.iter().copied()).map_err(MirrorError::new)
    }

    fn get(&self, subject: &Subject) -> Result<Option<Vec<u8>>, MirrorError> {
        self.with(|database| {
            let transaction = database.begin_read()?;
            let manifests = transaction.open_table(MANIFESTS)?;
            let copy = manifests.get(subject.as_str())?;
            Ok(copy.map(|copy| copy.value().to_vec()))
        })
        .map_err(MirrorError::new)
    }

    fn remove(&self, subject: &Subject) -> Result<(), MirrorError> {
        self.write(|transaction| {
            drop(
                transaction
                    .open_table(MANIFESTS)?
                    .remove(subject.as_str())?,
            );
            Ok(())
        })
        .map_err(MirrorError::new)
    }
}

/// The subject of the control file.
#[must_use]
pub fn subject() -> Subject {
    Subject::control(FILE_NAME).expect("the control file's name is a file name")
}

/// Makes every table, so that a reader finds them, and notes the layout.
fn fill(database: &Database) -> Result<(), ControlError> {
    let work = || -> Result<(), redb::Error> {
        let transaction = database.begin_write()?;
        drop(transaction.open_table(META)?.insert(LAYOUT, KNOWN_LAYOUT)?);
        drop(transaction.open_table(MANIFESTS)?);
        drop(transaction.open_table(DELETIONS)?);
        drop(transaction.open_table(ACCESS_KEYS)?);
        drop(transaction.open_table(USAGE)?);
        transaction.commit()?;
        Ok(())
    };
    work().map_err(|error| explain(Path::new(FILE_NAME), error))
}

/// Finishes a creation that was cut short, or begins one. A file that stands there already is kept if it opens, and set aside if not.
fn initialise(file: KeyedFile) -> Result<KeyedFile, ControlError> {
    let path = file.path();
    let protection = Protection::of(&file);
    let there = std::fs::symlink_metadata(path).is_ok_and(|file| file.len() > 0);
    if there {
        match database::open(path, &protection) {
            Ok(_opens) => return Ok(file),
            Err(error @ ControlError::InUse { .. }) => return Err(error),
            Err(_) => set_aside(path, CUT_SHORT).map_err(|source| ControlError::Io {
                action: "set aside",
                path: path.to_owned(),
                source,
            })?,
        }
    }
    database::create(path, &protection, fill)?;
    Ok(file)
}

/// Finds out whether a rekey that was cut short had swapped the file already.
pub(crate) fn which_key(file: &KeyedFile) -> Result<Opened, ControlError> {
    let first = match database::open(file.path(), &Protection::of(file)) {
        Ok(_database) => return Ok(Opened::First),
        Err(error) => error,
    };
    let Some(next) = file.next_cipher_key() else {
        return Err(first);
    };
    match database::open(
        file.path(),
        &Protection::Keyed(next, file.manifest().file_id()),
    ) {
        Ok(_database) => Ok(Opened::Next),
        Err(_) => Err(first),
    }
}

/// The control file's name.
pub const FILE_NAME: &str = "nimbus-control.db";

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Subject to manifest, as it lies on the disk.
const MANIFESTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("manifests");
/// Tenants whose deletion has begun.
const DELETIONS: TableDefinition<'_, &str, ()> = TableDefinition::new("deletions");
/// Key id to a tenant access key's record; written by the release that has access keys.
const ACCESS_KEYS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("access_keys");
/// Month and keyed identity hash to a count; written by the release that counts usage.
const USAGE: TableDefinition<'_, (&str, &[u8]), u64> = TableDefinition::new("usage");
const LAYOUT: &str = "layout";
const KNOWN_LAYOUT: u64 = 1;

#[cfg(test)]
mod tests;
