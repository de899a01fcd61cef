//! The read connections of one tenant: few, opened when needed, used on blocking threads.

mod lookups;
mod pool;
mod scans;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use std::time::Duration;

use nimbus_manifests::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::budget;
use crate::metrics::{self, Counted};
use crate::tenants::StoreError;
use crate::tenants::backend::{Rows as _, Storage};
use lookups::Lookups;
pub use pool::ReaderLimits;
use pool::{Place, Pool, Pooled, Taken};
use scans::Scans;

/// A tenant's read connections. Each query is one statement, or one transaction, and so sees one
/// snapshot.
#[derive(Debug)]
pub(in crate::tenants) struct Readers<S: Storage> {
    tenant: TenantId,
    storage: S,
    /// As many as may read at once; closed with the tenant.
    permits: Arc<Semaphore>,
    count: u32,
    scans: Scans,
    pool: Arc<Pool<Reader<S::Rows>>>,
    lookups: Lookups,
    /// How often tables or indexes have changed.
    schema: AtomicU64,
    /// Whether anything was read since [`Readers::shed_unused`] last asked.
    used: AtomicBool,
    /// Whether [`Readers::close`] was called.
    closing: AtomicBool,
    /// Whether what reads or writes the tenant is to fail: it was locked, its key taken back, or
    /// it is deleted.
    halted: Arc<AtomicBool>,
    /// Others that make way for a connection that the process has no files left for.
    way: Option<Arc<dyn GiveWay>>,
}

/// What can be done when the process has no files left for a connection of a tenant that is open.
pub(in crate::tenants) trait GiveWay: std::fmt::Debug + Send + Sync {
    /// Closes another tenant that is idle; whether there was one. Blocks.
    fn give_way(&self, tenant: &TenantId, error: &StoreError) -> bool;
}

/// A connection, and what it may rely on.
#[derive(Debug)]
pub(in crate::tenants) struct Reader<R> {
    pub(in crate::tenants) rows: R,
    /// The count of schema changes that what it caches is from.
    schema: u64,
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

impl<S: Storage> Readers<S> {
    /// A pool within `limits`, no connection of which is open yet. `halted` is what its writer
    /// looks at, too.
    pub(in crate::tenants) fn new(
        tenant: &TenantId,
        storage: S,
        limits: &ReaderLimits,
        halted: Arc<AtomicBool>,
        way: Option<Arc<dyn GiveWay>>,
    ) -> Arc<Self> {
        let count = limits.per_tenant;
        Arc::new(Self {
            tenant: tenant.clone(),
            storage,
            permits: Arc::new(Semaphore::new(count as usize)),
            count,
            scans: Scans::of(count),
            pool: Pool::new(limits),
            lookups: Lookups::default(),
            schema: AtomicU64::new(0),
            used: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            halted,
            way,
        })
    }

    /// The tenant's storage.
    pub(in crate::tenants) fn storage(&self) -> &S {
        &self.storage
    }

    /// Waits for the queries under way, and has those that come wait until the answer is dropped.
    /// `None` when some query goes on for longer than `patience`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Closed`] when the tenant was closed.
    pub(in crate::tenants) async fn hold(
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
    pub(in crate::tenants) fn is_closed(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Has reads and writes under way fail, and those that come: the tenant may not be used any
    /// more.
    pub(in crate::tenants) fn halt(&self) {
        self.halted.store(true, Ordering::Relaxed);
        self.storage.halted();
    }

    /// Whether [`Readers::halt`] was called.
    pub(in crate::tenants) fn is_halted(&self) -> bool {
        self.halted.load(Ordering::Relaxed)
    }

    /// Whether the tenant must be opened afresh.
    pub(in crate::tenants) fn is_lost(&self) -> bool {
        self.storage.is_lost()
    }

    /// Runs a query on a blocking thread. One that nobody waits for any more (the request's
    /// deadline passed, the client went away) is interrupted: a scan does not go on for nothing and
    /// keep others of its tenant waiting.
    pub(in crate::tenants) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        query: impl FnOnce(&mut S::Rows) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = self.permit().await?;
        let readers = Arc::clone(self);
        let caller = Caller::default();
        let gone = Arc::clone(&caller.gone);
        let account = budget::account();
        let reading = move |_: &OwnedSemaphorePermit| {
            let mut reader = readers.take()?;
            let stops = [Arc::clone(&gone), Arc::clone(&readers.halted)];
            reader.rows.stop_once(Some(stops))?;
            let result = budget::charged_to(account, || query(&mut reader.rows));
            let result = result.and_then(|found| reader.rows.confirm().map(|()| found));
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
    pub(in crate::tenants) async fn permit(&self) -> Result<OwnedSemaphorePermit, StoreError> {
        let _waiting = Counted::new(&metrics::WAITING_READS);
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        permit.map_err(|_closed| self.closed())
    }

    /// Once started it runs to its end even if the client goes away; until then it holds its
    /// permit.
    pub(in crate::tenants) async fn on_a_blocking_thread<T: Send + 'static>(
        &self,
        permit: OwnedSemaphorePermit,
        reading: impl FnOnce(&OwnedSemaphorePermit) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let span = tracing::Span::current();
        let reading = tokio::task::spawn_blocking(move || span.in_scope(|| reading(&permit)));
        reading.await.map_err(|_panic| self.closed())
    }

    /// Waits for the queries under way, lets none begin any more, and closes the connections.
    pub(in crate::tenants) async fn close(self: &Arc<Self>) {
        self.closing.store(true, Ordering::Relaxed);
        // The semaphore is fair: queries that come after this wait behind it, and are refused.
        let all = self.permits.acquire_many(self.count).await;
        self.permits.close();
        self.scans.close();
        drop(all);
        let readers = Arc::clone(self);
        // Closing a connection touches files. The writer's may go on for a moment, and keeps no
        // page.
        let shed = tokio::task::spawn_blocking(move || {
            readers.shed();
            readers.storage.closed();
        });
        if let Err(error) = shed.await {
            tracing::error!(tenant = %self.tenant, %error, "closing the read connections failed");
        }
    }

    /// Has readers look again which indexes there are: a change of them was committed.
    pub(in crate::tenants) fn note_schema_change(&self) {
        self.schema.fetch_add(1, Ordering::Relaxed);
    }

    /// Closes the connections that are not in use. Blocks.
    pub(in crate::tenants) fn shed(&self) {
        self.pool.shed();
    }

    /// Closes the connections when nothing was read since this was last asked. Blocks.
    pub(in crate::tenants) fn shed_unused(&self) {
        if !self.used.swap(false, Ordering::Relaxed) {
            self.shed();
        }
    }

    /// The connection that writes, for the one who owns this tenant's writing. Blocks.
    pub(in crate::tenants) fn writer(&self) -> Result<S::Transaction, StoreError> {
        self.connect(|| self.storage.writer(&self.halted))
    }

    /// A connection more. Blocks.
    fn connect<T>(&self, open: impl Fn() -> Result<T, StoreError>) -> Result<T, StoreError> {
        loop {
            let error = match open() {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            let way = self.way.as_ref().filter(|_| error.is_exhaustion());
            if !way.is_some_and(|way| way.give_way(&self.tenant, &error)) {
                return Err(error);
            }
        }
    }

    /// Takes over a connection that is open already, for the first query.
    pub(in crate::tenants) fn adopt(&self, rows: S::Rows) {
        self.pool.adopt(Reader { rows, schema: 0 });
    }

    fn take(&self) -> Result<Pooled<Reader<S::Rows>>, StoreError> {
        self.used.store(true, Ordering::Relaxed);
        let now = self.schema.load(Ordering::Relaxed);
        match self.pool.take() {
            Taken::Idle(mut reader) => {
                if reader.schema != now {
                    reader.rows.forget_plans();
                    reader.schema = now;
                }
                Ok(reader)
            }
            Taken::New(place) => self.opened(place, now),
        }
    }

    fn opened(
        &self,
        place: Place<Reader<S::Rows>>,
        schema: u64,
    ) -> Result<Pooled<Reader<S::Rows>>, StoreError> {
        let rows = self.connect(|| self.storage.reader())?;
        Ok(place.filled(Reader { rows, schema }))
    }

    fn give_back(&self, reader: Pooled<Reader<S::Rows>>) {
        self.pool.give_back(reader);
    }

    pub(in crate::tenants) fn lookups(&self) -> &Lookups {
        &self.lookups
    }

    pub(in crate::tenants) fn scans(&self) -> &Scans {
        &self.scans
    }

    pub(in crate::tenants) fn closed(&self) -> StoreError {
        StoreError::Closed {
            tenant: self.tenant.clone(),
        }
    }

    /// How many connections are open and not in use.
    #[cfg(test)]
    pub(in crate::tenants) fn waiting(&self) -> usize {
        self.pool.idle()
    }
}

/// After a page that did not authenticate a connection must not be used for others.
pub(in crate::tenants) fn is_sound<T>(result: &Result<T, StoreError>) -> bool {
    !matches!(
        result,
        Err(StoreError::Corrupt { .. } | StoreError::Engine { .. })
    )
}
