//! Tenants as SQLite files, encrypted or plain: one file a tenant, `<data-dir>/<tenant>.sqlite3`.
//!
//! This module and those below it are what is SQL or a file. What tenants mean is decided above, in
//! the core.

mod captured;
mod catalog;
mod checkpoint;
mod commit_log;
mod contents;
mod deploys;
mod documents;
mod error;
mod expressions;
mod files;
mod indexes;
pub(super) mod instant;
mod jobs;
mod migrations;
mod moved;
mod plans;
mod query;
mod reader;
mod rekey;
mod remembered;
mod room;
mod rows;
mod schemas;
mod sorting;
mod statement;
mod storage;
mod system_fields;
mod tables;
mod transaction;

pub use captured::Captured;
pub(crate) use catalog::require_none;
pub use commit_log::{
    BegunBase, Boundary, Broken, CommitLog, Frames, Gone, Mark, Position, Shipping,
};
pub use instant::{Capture, Capturing, Instants};
pub(crate) use migrations::is_served;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use nimbus_manifests::TenantId;

use super::backend::{Arrival, Backend, Opened};
use super::error::NoRoom;
use super::lifecycle::{LifecycleOptions, Tenants};
use super::open_tenant::OpenTenant;
use super::{DeletionLog, DueLog, ReaderLimits, StoreError, Unscheduled};
use crate::control::{AccessKeyId, KeyRecord};
use crate::data_dir::{self, subject};
use crate::envelope::{Envelope, Intent, KeyedFile};
use crate::failpoints::crash_point;
use crate::process::Limits;
use crate::runtime::{Progress, blocking};
use crate::sqlcipher::{self, ArrivingDatabase};
use error::opening;
use room::Room;
use storage::SqliteStorage;

/// How many tenants are kept open, and what each may use.
#[derive(Debug, Clone)]
pub struct SqliteOptions {
    /// Tenants open at once. A further one makes the least recently used one close.
    pub max_open_tenants: usize,
    /// Read connections, opened as they are needed.
    pub readers: ReaderLimits,
    /// How long a request waits while all open tenants are in use, before it is refused.
    pub open_patience: Duration,
    /// Receives due times.
    pub due: Arc<dyn DueLog>,
    /// How much may be written.
    pub limits: Limits,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            max_open_tenants: 256,
            readers: ReaderLimits::default(),
            open_patience: Duration::from_secs(5),
            due: Arc::new(Unscheduled),
            limits: Limits::default(),
        }
    }
}

/// Tenants in a directory of SQLite files. Cloning is cheap; all clones are the same tenants.
pub type SqliteTenants = Tenants<SqliteFiles>;

/// A directory of SQLite files.
#[derive(Debug)]
pub struct SqliteFiles {
    envelope: Envelope,
    dir: PathBuf,
    room: Arc<Room>,
    instants: Arc<Instants>,
}

impl SqliteTenants {
    /// The tenants in `dir`, which exists. Carries deletions to their end that a crash cut short;
    /// opens no tenant and asks no key provider.
    ///
    /// # Errors
    ///
    /// [`StoreError::Io`] when the directory cannot be read, [`StoreError::Control`] when the
    /// control file fails. A single tenant's trouble is not among them.
    pub async fn open(
        envelope: Envelope,
        deletions: Arc<dyn DeletionLog>,
        dir: PathBuf,
        options: SqliteOptions,
    ) -> Result<Self, StoreError> {
        sqlcipher::keep_free(&dir, options.limits.reserve);
        let room = Arc::new(Room::new(dir.clone(), options.limits));
        let files = SqliteFiles {
            envelope: envelope.clone(),
            instants: Arc::new(Instants::new(dir.clone(), Arc::clone(&room))),
            room,
            dir,
        };
        let options = LifecycleOptions {
            max_open_tenants: options.max_open_tenants,
            open_patience: options.open_patience,
            readers: options.readers,
            due: options.due,
        };
        Self::start(files, envelope, deletions, options).await
    }
}

#[cfg(test)]
impl SqliteTenants {
    /// Runs SQL at a tenant's writer, for tests that need an engine in trouble.
    pub(crate) async fn execute(&self, tenant: &TenantId, sql: &'static str) {
        let handle = self.0.open_handle(tenant).await.unwrap();
        let work = move |writing: &mut super::writing::Writing<
            '_,
            transaction::SqliteTransaction,
        >| { writing.transaction.execute_batch(sql) };
        let done = handle
            .writer()
            .run(super::group_commit::Size::SMALL, work)
            .unwrap();
        done.await.unwrap().unwrap();
    }
}

impl SqliteFiles {
    fn path(&self, tenant: &TenantId) -> PathBuf {
        self.dir.join(data_dir::database_name(tenant))
    }
}

#[async_trait]
impl Backend for SqliteFiles {
    type Storage = SqliteStorage;
    type Arriving = ArrivingDatabase;

    fn list(&self, known: BTreeSet<TenantId>) -> Result<BTreeSet<TenantId>, StoreError> {
        catalog::scan(&self.dir, known)
    }

    fn exists(&self, tenant: &TenantId) -> bool {
        catalog::is_tenant(&self.path(tenant))
    }

    async fn open(
        &self,
        tenant: &TenantId,
        intent: Intent,
    ) -> Result<Opened<SqliteStorage>, StoreError> {
        let (owner, envelope) = (tenant.clone(), self.envelope.clone());
        let (room, instants) = (Arc::clone(&self.room), Arc::clone(&self.instants));
        let (held, of) = (Arc::clone(&self.instants), tenant.clone());
        if held.is_capturing() {
            held.admit(tenant).await;
            blocking(move || held.before_use(&of)).await;
        }
        let establish = move |database| {
            SqliteStorage::new(&owner, envelope, room, instants, database).establish()
        };
        let (path, subject) = (self.path(tenant), subject(tenant));
        sqlcipher::open_and(
            &self.envelope,
            &path,
            &subject,
            intent,
            migrations::fill,
            establish,
        )
        .await
        .unwrap_or_else(|error| Err(opening(tenant, error)))
    }

    fn forget(&self, tenant: &TenantId) -> Result<(), StoreError> {
        self.instants.before_use(tenant);
        self.instants.log().gone(tenant);
        self.envelope
            .forget(&self.path(tenant))
            .map_err(|source| StoreError::Envelope {
                tenant: tenant.clone(),
                source: Arc::new(source),
            })?;
        crash_point!("tenants::delete::key-removed");
        catalog::remove_files(&self.dir, tenant)?;
        crash_point!("tenants::delete::files-removed");
        Ok(())
    }

    fn is_lost(&self, tenant: &TenantId) -> bool {
        let found = self.path(tenant).symlink_metadata();
        found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    }

    async fn adopt(
        &self,
        tenant: &TenantId,
        source: KeyedFile,
        progress: Progress,
    ) -> Result<(), StoreError> {
        let (path, subject) = (self.path(tenant), subject(tenant));
        sqlcipher::adopt(&self.envelope, source, &path, &subject, progress)
            .await
            .map_err(|error| StoreError::not_adopted(tenant, error))
    }

    async fn arrive(
        &self,
        tenant: &TenantId,
    ) -> Result<Arrival<SqliteStorage, ArrivingDatabase>, StoreError> {
        let (path, subject) = (self.path(tenant), subject(tenant));
        let begun = ArrivingDatabase::begin(&self.envelope, &path, &subject, migrations::fill);
        let arriving = begun
            .await
            .map_err(|error| StoreError::not_adopted(tenant, error))?;
        let (envelope, room) = (self.envelope.clone(), Arc::clone(&self.room));
        let (instants, database) = (Arc::clone(&self.instants), arriving.database());
        Ok(Arrival {
            storage: SqliteStorage::new(tenant, envelope, room, instants, database),
            arriving,
        })
    }

    async fn arrived(
        &self,
        tenant: &TenantId,
        arriving: ArrivingDatabase,
        _keys: &[(AccessKeyId, KeyRecord)],
    ) -> Result<(), StoreError> {
        let published = arriving.publish(&self.envelope).await;
        published.map_err(|error| StoreError::not_adopted(tenant, error))
    }

    async fn turn_away(
        &self,
        tenant: &TenantId,
        arriving: ArrivingDatabase,
    ) -> Result<(), StoreError> {
        let envelope = self.envelope.clone();
        let gone = blocking(move || arriving.abandon(&envelope)).await;
        gone.map_err(|error| StoreError::not_adopted(tenant, error))
    }

    fn instants(&self) -> Option<(Arc<Instants>, PathBuf)> {
        Some((Arc::clone(&self.instants), self.dir.clone()))
    }

    fn created(&self, tenant: &TenantId) {
        self.instants.log().created(tenant);
    }

    fn no_room(&self) -> Option<NoRoom> {
        self.room.on_disk().err()
    }

    async fn rekey(
        &self,
        tenant: &TenantId,
        open: &OpenTenant<SqliteStorage>,
        progress: Progress,
    ) -> Result<(), StoreError> {
        self.renew_key(tenant, open, progress).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        let path = self.dir.clone();
        let found = tokio::fs::read_dir(&path).await;
        found.map(drop).map_err(|source| StoreError::Io {
            action: "read",
            path,
            source: Arc::new(source),
        })
    }
}

#[cfg(test)]
mod tests;
