//! The read connections of one tenant: few, opened when needed, used on blocking threads.

use std::path::{Path, PathBuf};
use std::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use std::time::Duration;

use arc_swap::ArcSwap;
use nimbus_manifests::TenantId;
use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{apply::Reader, lookups::Lookups, opening};
use crate::{
    budget,
    envelope::{Envelope, EnvelopeError},
    metrics::{self, Counted},
    sqlcipher::{Database, OpenError},
    tenants::StoreError,
};

/// A tenant's read connections. Each query is one statement, or one transaction, and so sees one snapshot.
#[derive(Debug)]
pub(super) struct Readers {
    tenant: TenantId,
    path: PathBuf,
    /// Another one once the file has another key.
    database: ArcSwap<Database>,
    /// As many as may read at once; closed with the tenant.
    permits: Arc<Semaphore>,
    count: u32,
    idle: Mutex<Vec<Reader>>,
    lookups: Lookups,
    /// How often tables or indexes have changed.
    schema: AtomicU64,
    /// Whether anything was read since [`Readers::shed_unused`] last asked.
    used: AtomicBool,
    /// Whether a copy follows the database and needs the frames of its WAL.
    followed: AtomicBool,
    /// Whether [`Readers::close`] was called.
    closing: AtomicBool,
    /// Whether what reads or writes the tenant is to fail: it was locked, its key taken back, or it is deleted.
    halted: Arc<AtomicBool>,
    /// Whether a connection found another WAL than the ones before it.
    lost: AtomicBool,
    /// Not set while the tenant is being opened: that is tried again as a whole.
    way: OnceLock<Arc<dyn GiveWay>>,
}

/// While it exists, a copy follows the database.
#[derive(Debug)]
pub(super) struct Followed(Arc<Readers>);

impl Drop for Followed {
    fn drop(&mut self) {
        self.0.followed.store(false, Ordering::Relaxed);
    }
}

/// What can be done when the process has no files left for a connection of a tenant that is open.
pub(super) trait GiveWay: std::fmt::Debug + Send + Sync {
    /// Closes another tenant that is idle; whether there was one. Blocks.
    fn give_way(&self, tenant: &TenantId, error: &StoreError) -> bool;
}

/// Who waits for a query. Dropped, it says that nobody does.
#[derive(Debug, Default)]
struct Caller {
    gone: Arc<AtomicBool>,
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

impl Readers {
    /// A pool of at most `count` connections, none of which is open yet.
    pub(super) fn new(tenant: &TenantId, database: Database, count: u32) -> Arc<Self> {
        let count = count.max(1);
        Arc::new(Self {
            tenant: tenant.clone(),
            path: database.path().to_owned(),
            database: ArcSwap::from_pointee(database),
            permits: Arc::new(Semaphore::new(count as usize)),
            count,
            idle: Mutex::new(Vec::new()),
            lookups: Lookups::default(),
            schema: AtomicU64::new(0),
            used: AtomicBool::new(false),
            followed: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            halted: Arc::default(),
            lost: AtomicBool::new(false),
            way: OnceLock::new(),
        })
    }

    /// From now on others make way for a connection that the process has no files left for.
    pub(super) fn make_way_by(&self, way: Arc<dyn GiveWay>) {
        let _set = self.way.set(way);
    }

    /// The tenant's database file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The database as it is opened now.
    pub(super) fn database(&self) -> Arc<Database> {
        self.database.load_full()
    }

    /// From now on connections are made to `database`: the same file under another key. Nobody reads meanwhile. Gives the database under the key
    /// before, whose cached pages are wiped when it is dropped; that takes a while.
    pub(super) fn reopen_as(&self, database: Database) -> Arc<Database> {
        self.shed();
        self.database.swap(Arc::new(database))
    }

    /// The same file under the same key, got from the key provider again.
    pub(super) fn hold_by(&self, database: Database) {
        let database = database.served_as(&self.database());
        self.database.store(Arc::new(database));
    }

    /// Says that a copy follows the database, for as long as the answer is held.
    pub(super) fn follow(self: &Arc<Self>) -> Followed {
        self.followed.store(true, Ordering::Relaxed);
        Followed(Arc::clone(self))
    }

    /// Whether a copy follows the database.
    pub(super) fn is_followed(&self) -> bool {
        self.followed.load(Ordering::Relaxed)
    }

    /// Waits for the queries under way, and has those that come wait until the answer is dropped. `None` when some query goes on for
    /// longer than `patience`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Closed`] when the tenant was closed.
    pub(super) async fn hold(
        self: &Arc<Self>,
        patience: Duration,
    ) -> Result<Option<OwnedSemaphorePermit>, StoreError> {
        let all = Arc::clone(&self.permits).acquire_many_owned(self.count);
        match timeout(patience, all).await {
            Ok(held) => held.map(Some).map_err(|_closed| self.closed()),
            Err(_elapsed) => Ok(None),
        }
    }

    /// Whether the tenant was closed, or is being closed and waits for the last queries.
    pub(super) fn is_closed(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Has reads and writes under way fail, and those that come: the tenant may not be used any more.
    pub(super) fn halt(&self) {
        self.halted.store(true, Ordering::Relaxed);
        self.database().close_pages();
    }

    /// Set by [`Readers::halt`].
    pub(super) fn halted(&self) -> &Arc<AtomicBool> {
        &self.halted
    }

    /// Whether [`Readers::halt`] was called.
    pub(super) fn is_halted(&self) -> bool {
        self.halted.load(Ordering::Relaxed)
    }

    /// Whether the tenant must be opened afresh: its WAL was removed or replaced.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// Runs a query on a blocking thread. One that nobody waits for any more (the request's deadline passed, the client went away) is
    /// interrupted: a scan does not go on for nothing and keep others of its tenant waiting.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        query: impl FnOnce(&mut Reader, &TenantId) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = self.permit().await?;
        let readers = Arc::clone(self);
        let caller = Caller::default();
        let gone = Arc::clone(&caller.gone);
        let account = budget::account();
        let reading = move |_: &OwnedSemaphorePermit| {
            let mut reader = readers.take()?;
            let stops = [Arc::clone(&gone), Arc::clone(&readers.halted)];
            reader.stop_once(Some(stops), &readers.tenant)?;
            let result = budget::charged_to(account, || query(&mut reader, &readers.tenant));
            if result.is_err() && gone.load(Ordering::Relaxed) {
                metrics::READ_INTERRUPTED.increment(1);
            }
            if is_sound(&result) {
                readers.give_back(reader);
            }
            if readers.is_halted() {
                return result.map_err(|_interrupted| readers.closed());
            }
            result
        };
        self.on_a_blocking_thread(permit, reading).await?
    }

    /// The right to use one of the connections.
    pub(super) async fn permit(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        let _waiting = Counted::new(&metrics::WAITING_READS);
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        permit.map_err(|_closed| self.closed())
    }

    /// Once started it runs to its end even if the client goes away; until then it holds its permit.
    pub(super) async fn on_a_blocking_thread<T: Send + 'static>(
        &self,
        permit: OwnedSemaphorePermit,
        reading: impl FnOnce(&OwnedSemaphorePermit) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let span = tracing::Span::current();
        let reading = tokio::task::spawn_blocking(move || span.in_scope(|| reading(&permit)));
        reading.await.map_err(|_panic| self.closed())
    }

    /// Waits for the queries under way, lets none begin any more, and closes the connections.
    pub(super) async fn close(self: &Arc<Self>) {
        self.closing.store(true, Ordering::Relaxed);
        // The semaphore is fair: queries that come after this wait behind it, and are refused.
        let all = self.permits.acquire_many(self.count).await;
        self.permits.close();
        drop(all);
        let readers = Arc::clone(self);
        // Closing a connection touches files. The writer's may go on for a moment, and keeps no page.
        let shed = tokio::task::spawn_blocking(move || {
            readers.shed();
            readers.database().forget_pages();
        });
        if let Err(error) = shed.await {
            tracing::error!(tenant = %self.tenant, %error, "closing the read connections failed");
        }
    }

    /// Has readers look again which indexes there are: a change of them was committed.
    pub(super) fn note_schema_change(&self) {
        let _before = self.schema.fetch_add(1, Ordering::Relaxed);
    }

    /// Closes the connections that are not in use. Blocks.
    pub(super) fn shed(&self) {
        let idle = std::mem::take(&mut *self.idle());
        drop(idle);
    }

    /// Closes the connections when nothing was read since this was last asked. Blocks.
    pub(super) fn shed_unused(&self) {
        if !self.used.swap(false, Ordering::Relaxed) {
            self.shed();
        }
    }

    /// Why the tenant's key is not to be had, if that is why it was closed.
    pub(super) fn withheld(&self, envelope: &Envelope) -> Option<EnvelopeError> {
        envelope.withheld(&self.path, self.database().manifest()?)
    }

    /// A connection that writes, for the one who owns this tenant's writing. Blocks.
    pub(super) fn writer(&self) -> Result<Connection, StoreError> {
        self.connect(Database::writer)
    }

    /// A connection more. Blocks.
    fn connect(
        &self,
        open: impl Fn(&Database) -> Result<Connection, OpenError>,
    ) -> Result<Connection, StoreError> {
        loop {
            let error = match open(&self.database()) {
                Ok(connection) => return Ok(connection),
                Err(error) => opening(&self.tenant, error),
            };
            let way = self.way.get().filter(|_| error.is_exhaustion());
            if !way.is_some_and(|way| way.give_way(&self.tenant, &error)) {
                return Err(error);
            }
        }
    }

    /// Takes over a connection that is open already, for the first query. Blocks.
    pub(super) fn adopt(&self, connection: Connection) -> Result<(), StoreError> {
        connection
            .pragma_update(None, "query_only", true)
            .map_err(|error| super::failure(&self.tenant, error))?;
        self.give_back(self.reader(connection)?);
        Ok(())
    }

    pub(super) fn take(&self) -> Result<Reader, StoreError> {
        self.used.store(true, Ordering::Relaxed);
        let schema = self.schema.load(Ordering::Relaxed);
        // The one used last has the warmest cache.
        let idle = self.idle().pop();
        if let Some(mut reader) = idle {
            reader.plan_for(schema);
            return Ok(reader);
        }
        let connection = self.connect(|database| {
            let opened = database.reader();
            if matches!(opened, Err(OpenError::WalReplaced { .. })) {
                self.lost.store(true, Ordering::Relaxed);
            }
            opened
        })?;
        self.reader(connection)
    }

    pub(super) fn give_back(&self, reader: Reader) {
        self.idle().push(reader);
    }

    pub(super) fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    pub(super) fn lookups(&self) -> &Lookups {
        &self.lookups
    }

    pub(super) fn closed(&self) -> StoreError {
        StoreError::Closed {
            tenant: self.tenant.clone(),
        }
    }

    fn reader(&self, connection: Connection) -> Result<Reader, StoreError> {
        connection.set_prepared_statement_cache_capacity(STATEMENTS);
        connection
            .pragma_update(None, "cache_size", CACHE_KIB)
            .map_err(|error| super::failure(&self.tenant, error))?;
        Ok(Reader::new(connection))
    }

    /// How many connections are open and not in use.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.idle().len()
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Reader>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// After a page that did not authenticate a connection is not to be trusted with others.
pub(super) fn is_sound<T>(result: &Result<T, StoreError>) -> bool {
    !matches!(
        result,
        Err(StoreError::Corrupt { .. } | StoreError::Engine { .. })
    )
}

/// Prepared statements kept a connection.
const STATEMENTS: usize = 32;
/// Page cache of each, in KiB (negative: the unit is KiB and not pages).
const CACHE_KIB: i32 = -4096;
