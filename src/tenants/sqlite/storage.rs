//! A tenant's file, opened: what makes connections to it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use nimbus_keyproviders::ProviderError;
use nimbus_manifests::TenantId;
use rusqlite::Connection;

use super::error::{failure, opening};
use super::instant::Instants;
use super::reader::Reader;
use super::room::Room;
use super::system_fields::Ascending;
use super::transaction::{SqliteTransaction, TenantFile};
use super::{checkpoint, jobs, migrations, tables};
use crate::envelope::{Envelope, EnvelopeError, LeaseStanding};
use crate::sqlcipher::{self, Database, OpenError};
use crate::tenants::StoreError;
use crate::tenants::backend::{Opened, OpenedConnection, Standing, Storage};

/// A tenant's file.
#[derive(Debug)]
pub struct SqliteStorage {
    tenant: TenantId,
    path: PathBuf,
    envelope: Envelope,
    room: Arc<Room>,
    instants: Arc<Instants>,
    /// Another one once the file has another key.
    database: ArcSwap<Database>,
    /// Whether a copy follows the database and needs the frames of its WAL.
    followed: Arc<AtomicBool>,
    /// What readers found of tables of earlier layouts.
    ascending: Arc<Ascending>,
    /// Whether a connection found another WAL than the ones before it.
    lost: AtomicBool,
}

/// While it exists, a copy follows the database.
#[derive(Debug)]
pub(super) struct Followed(Arc<AtomicBool>);

impl Drop for Followed {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl SqliteStorage {
    /// A file that was opened.
    pub(super) fn new(
        tenant: &TenantId,
        envelope: Envelope,
        room: Arc<Room>,
        instants: Arc<Instants>,
        database: Database,
    ) -> Self {
        Self {
            tenant: tenant.clone(),
            path: database.path().to_owned(),
            envelope,
            room,
            instants,
            database: ArcSwap::from_pointee(database),
            followed: Arc::default(),
            ascending: Arc::default(),
            lost: AtomicBool::new(false),
        }
    }

    /// Brings the file's tables up to date. Blocks.
    pub(super) fn establish(self) -> Result<Opened<Self>, StoreError> {
        let tenant = &self.tenant;
        let sqlite = |error| failure(tenant, error);
        let mut connection = self.connection()?;
        // Most tenants that are opened are read first, and many only read: the connection that is
        // there serves the reading, and the writer opens its own with the first mutation.
        let is_current = migrations::is_current(&connection, tenant)?;
        let reads = is_current && checkpoint::is_done(&connection, tenant)?;
        // It was read: from here on its checkpoints can be held off.
        self.instants.before_use(tenant);
        if !reads {
            migrations::establish(&mut connection, tenant)?;
        }
        let earliest_due = jobs::earliest_due(&connection).map_err(sqlite)?;
        let cursor_key = tables::cursor_key(&connection).map_err(sqlite)?;
        sqlcipher::confirm(&connection).map_err(sqlite)?;
        let halted = Arc::default();
        let connection = if reads {
            connection
                .pragma_update(None, "query_only", true)
                .map_err(sqlite)?;
            OpenedConnection::Reader(Reader::pooled(tenant, connection, &self.ascending)?)
        } else {
            let writer = SqliteTransaction::new(&self.file(), connection, &halted, !is_current)?;
            OpenedConnection::Writer(writer)
        };
        Ok(Opened {
            storage: self,
            connection,
            halted,
            cursor_key,
            earliest_due,
        })
    }

    /// The database file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The database.
    pub(super) fn database(&self) -> Arc<Database> {
        self.database.load_full()
    }

    /// Says that a copy follows the database, for as long as the answer is held.
    pub(super) fn follow(&self) -> Followed {
        self.followed.store(true, Ordering::Relaxed);
        Followed(Arc::clone(&self.followed))
    }

    /// From now on connections are made to `database`: the same file under another key. Nobody
    /// reads meanwhile, and no connection is open. Gives the database under the key before, whose
    /// cached pages are wiped when it is dropped; that takes a while.
    pub(super) fn reopen_as(&self, database: Database) -> Arc<Database> {
        let dek_id = database
            .manifest()
            .map(|manifest| manifest.deks()[0].id.to_string());
        self.instants.log().swapped(&self.tenant, dek_id);
        self.database.swap(Arc::new(database))
    }

    /// The same file under the same key, got from the key provider again.
    pub(super) fn hold_by(&self, database: Database) {
        let database = database.served_as(&self.database.load());
        self.database.store(Arc::new(database));
    }

    /// A connection that writes. Blocks.
    pub(super) fn file(&self) -> TenantFile<'_> {
        TenantFile {
            tenant: &self.tenant,
            path: &self.path,
            database: self.database(),
            room: &self.room,
            instants: &self.instants,
            followed: &self.followed,
            ascending: &self.ascending,
        }
    }

    pub(super) fn connection(&self) -> Result<Connection, StoreError> {
        self.database
            .load()
            .writer()
            .map_err(|error| opening(&self.tenant, error))
    }
}

impl Storage for SqliteStorage {
    type Rows = Reader;
    type Transaction = SqliteTransaction;

    fn reader(&self) -> Result<Reader, StoreError> {
        let connection = self.database.load().reader().map_err(|error| {
            if matches!(error, OpenError::WalReplaced { .. }) {
                self.lost.store(true, Ordering::Relaxed);
            }
            opening(&self.tenant, error)
        })?;
        Reader::pooled(&self.tenant, connection, &self.ascending)
    }

    fn writer(&self, halted: &Arc<AtomicBool>) -> Result<SqliteTransaction, StoreError> {
        SqliteTransaction::new(&self.file(), self.connection()?, halted, false)
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    fn halted(&self) {
        self.database.load().close_pages();
    }

    fn closed(&self) {
        self.database.load().forget_pages();
    }

    fn standing(&self) -> Standing {
        let database = self.database.load();
        match database.standing() {
            LeaseStanding::Good => Standing::Good,
            LeaseStanding::RanOut => {
                let unwrap = EnvelopeError::Unwrap {
                    path: database.path().to_owned(),
                    source: Arc::new(ProviderError::LeaseRanOut),
                };
                Standing::Refused(opening(&self.tenant, unwrap.into()))
            }
            LeaseStanding::Abandoned => Standing::Unknown,
        }
    }

    fn withheld(&self) -> Option<StoreError> {
        let database = self.database.load();
        let why = self.envelope.withheld(&self.path, database.manifest()?)?;
        Some(opening(&self.tenant, why.into()))
    }
}
