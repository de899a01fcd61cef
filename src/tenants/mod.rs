//! Tenants and their stores: the traits that every tenant provider fulfils, and the providers, one folder each.
//!
//! A [`TenantProvider`] knows which tenants there are, and opens one into a [`TenantStore`]. Both are used behind
//! `Arc<dyn …>`; nothing in them names a backend.

mod error;
mod registry;
pub mod sqlite;

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;
use nimbus_manifests::TenantId;

pub use error::{Limit, StoreError};

use crate::control::{Control, ControlError};
use crate::documents::query::{Position, Query, QueryPage};
use crate::documents::{Document, DocumentId, JournalPage, Mutation, MutationOutcome, TableName};

/// The most documents that [`TenantStore::list`] returns.
pub const MAX_LIST: usize = 1000;

/// The most bytes of documents that [`TenantStore::list`] returns (64 MiB).
pub const MAX_LIST_BYTES: usize = 64 << 20;

/// The most tables a tenant may have.
pub const MAX_TABLES: usize = 1000;

/// Where tenants are kept.
#[async_trait]
pub trait TenantProvider: Debug + Send + Sync {
    /// Creates a tenant, durably.
    async fn create_tenant(&self, tenant: &TenantId) -> Result<(), StoreError>;

    /// Deletes a tenant with all that belongs to it. Requests under way on it end with
    /// [`StoreError::TenantNotFound`]. Once this has begun nothing brings the tenant back: a crash in the middle is
    /// finished by the next start.
    async fn delete_tenant(&self, tenant: &TenantId) -> Result<(), StoreError>;

    /// All tenants, sorted. One that is being created or deleted is not among them.
    async fn list_tenants(&self) -> Result<Vec<TenantId>, StoreError>;

    /// The store of one tenant, opened when it is not open yet. It stays open while the answer is held, so hold it
    /// for one request.
    async fn open(&self, tenant: &TenantId) -> Result<Arc<dyn TenantStore>, StoreError>;

    /// Whether the place where tenants are kept can be reached.
    async fn check(&self) -> Result<(), StoreError>;

    /// Closes every tenant, each once its queue is written and its readers are done, and opens none any more.
    async fn close(&self) -> Result<(), StoreError>;
}

/// One open tenant.
#[async_trait]
pub trait TenantStore: Debug + Send + Sync {
    /// Applies mutations in their order, all or none of them, and gives the outcome of each. An answer of `Ok` is
    /// durable. What one of them is refused for comes as [`StoreError::InBatch`], which says which one.
    ///
    /// A caller that goes away does not withdraw its mutations.
    async fn apply_all(&self, batch: Vec<Mutation>) -> Result<Vec<MutationOutcome>, StoreError>;

    /// Applies one mutation, as [`TenantStore::apply_all`] does, but with its error bare.
    async fn apply(&self, mutation: Mutation) -> Result<MutationOutcome, StoreError> {
        alone(self.apply_all(vec![mutation]).await)
    }

    /// One document.
    async fn get(&self, table: &TableName, id: DocumentId) -> Result<Document, StoreError>;

    /// The documents of a table in the order of their insertion, at most `limit` and at most [`MAX_LIST`]. A table
    /// that does not exist has none.
    async fn list(&self, table: &TableName, limit: usize) -> Result<Vec<Document>, StoreError>;

    /// The documents that a query finds, after a position or from the beginning: at most `limit`, at most
    /// [`MAX_PAGE`](crate::documents::query::MAX_PAGE) and at most [`MAX_LIST_BYTES`]. A table that does not exist has none.
    async fn query(
        &self,
        query: Query,
        after: Option<Position>,
        limit: usize,
    ) -> Result<QueryPage, StoreError>;

    /// The journal after the write number `after`, from its beginning without one: at most `limit` records and at most
    /// [`MAX_JOURNAL_PAGE`](crate::documents::MAX_JOURNAL_PAGE). Records older than its floor are passed over.
    async fn journal(&self, after: Option<u64>, limit: usize) -> Result<JournalPage, StoreError>;

    /// Closes this tenant ahead of time. The provider opens it again on demand.
    async fn close(&self) -> Result<(), StoreError>;
}

/// Where a deletion is recorded before it is carried out, so that a crash in the middle does not undo it: the control
/// file. Its calls block, and are durable when they return; all fail with [`StoreError::Control`].
pub trait DeletionLog: Debug + Send + Sync {
    /// Records that `tenant` is being deleted.
    fn begin_delete(&self, tenant: &TenantId) -> Result<(), StoreError>;

    /// Removes that record and what else is kept about the tenant, the mirror of its manifest included, at once.
    fn finish_delete(&self, tenant: &TenantId) -> Result<(), StoreError>;

    /// Deletions that were begun and not finished.
    fn pending_deletes(&self) -> Result<Vec<TenantId>, StoreError>;
}

impl DeletionLog for Control {
    fn begin_delete(&self, tenant: &TenantId) -> Result<(), StoreError> {
        Self::begin_delete(self, tenant).map_err(control_failed)
    }

    fn finish_delete(&self, tenant: &TenantId) -> Result<(), StoreError> {
        Self::finish_delete(self, tenant).map_err(control_failed)
    }

    fn pending_deletes(&self) -> Result<Vec<TenantId>, StoreError> {
        Self::pending_deletes(self).map_err(control_failed)
    }
}

/// The answer to a batch of one mutation, as the answer to that mutation.
fn alone(
    outcomes: Result<Vec<MutationOutcome>, StoreError>,
) -> Result<MutationOutcome, StoreError> {
    match outcomes {
        Ok(outcomes) => Ok(outcomes[0]),
        Err(StoreError::InBatch { source, .. }) => Err(*source),
        Err(error) => Err(error),
    }
}

fn control_failed(error: ControlError) -> StoreError {
    StoreError::Control {
        source: Arc::new(error),
    }
}
