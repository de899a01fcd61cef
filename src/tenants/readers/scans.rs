//! Reads that may look at every document of a table have fewer places than a tenant has readers,
//! and a bound over all tenants. So what an index answers finds a reader, however many scans wait.
//!
//! Whether a query scans is known once it is planned, on a connection. So each begins as any other
//! read; one that scans and finds no place gives its reader back, waits for a place, and begins
//! again.

use std::{
    num::NonZero,
    sync::{Arc, LazyLock},
    thread,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Readers;
use crate::documents::query::{MAX_PAGE, Position, Query, QueryPage};
use crate::metrics::{self, Counted};
use crate::tenants::StoreError;
use crate::tenants::backend::{DocumentRows as _, Storage};

/// The places of one tenant; closed with it.
#[derive(Debug)]
pub(in crate::tenants) struct Scans(Arc<Semaphore>);

/// The right to look at every document of a table.
#[derive(Debug)]
pub(in crate::tenants) struct ScanPlace {
    _own: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Scans {
    /// Half of a tenant's readers, and at least one.
    pub(in crate::tenants) fn of(readers: u32) -> Self {
        let places = (readers / 2).max(1) as usize;
        Self(Arc::new(Semaphore::new(places)))
    }

    pub(in crate::tenants) fn close(&self) {
        self.0.close();
    }

    /// A place, if nobody has to be waited for.
    fn try_take(&self) -> Option<ScanPlace> {
        Some(ScanPlace {
            _own: Arc::clone(&self.0).try_acquire_owned().ok()?,
            _of_all: Arc::clone(&OF_ALL).try_acquire_owned().ok()?,
        })
    }

    /// A place; `None` when the tenant was closed.
    pub(in crate::tenants) async fn take(&self) -> Option<ScanPlace> {
        let _waiting = Counted::new(&metrics::WAITING_READS);
        Some(ScanPlace {
            _own: Arc::clone(&self.0).acquire_owned().await.ok()?,
            _of_all: Arc::clone(&OF_ALL).acquire_owned().await.ok()?,
        })
    }
}

impl<S: Storage> Readers<S> {
    /// The documents that a query finds.
    pub(in crate::tenants) async fn find(
        self: &Arc<Self>,
        query: Query,
        after: Option<Position>,
        limit: usize,
        most_bytes: usize,
    ) -> Result<QueryPage, StoreError> {
        let asked = Arc::new((query, after));
        let ask = |mut place: Option<ScanPlace>| {
            let (asked, readers) = (Arc::clone(&asked), Arc::clone(self));
            move |rows: &mut S::Rows| {
                let (query, after) = &*asked;
                let Some(table) = rows.table(&query.table)? else {
                    return Ok(Some(QueryPage {
                        documents: Vec::new(),
                        next: None,
                    }));
                };
                let mut may_scan = || {
                    place = place.take().or_else(|| readers.scans().try_take());
                    place.is_some()
                };
                let limit = limit.min(MAX_PAGE);
                rows.query(
                    table,
                    query,
                    after.as_ref(),
                    limit,
                    most_bytes,
                    &mut may_scan,
                )
            }
        };
        if let Some(page) = self.read(ask(None)).await? {
            return Ok(page);
        }
        let place = self.scan_place().await?;
        let found = self.read(ask(Some(place))).await?;
        Ok(found.expect("with a place a query is answered"))
    }

    /// Reads what every document of a table may have to be looked at for.
    pub(in crate::tenants) async fn scan<T: Send + 'static>(
        self: &Arc<Self>,
        scan: impl FnOnce(&mut S::Rows) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let place = self.scan_place().await?;
        self.read(move |rows| {
            let _place = place;
            scan(rows)
        })
        .await
    }

    pub(in crate::tenants) async fn scan_place(&self) -> Result<ScanPlace, StoreError> {
        self.scans().take().await.ok_or_else(|| self.closed())
    }
}

/// The places of all tenants: four for each core of the processor, and eight at least. With fewer,
/// two tenants with large tables would have those with small ones wait.
static OF_ALL: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    Arc::new(Semaphore::new((4 * cores).max(8)))
});
