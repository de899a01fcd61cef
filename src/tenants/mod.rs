//! Tenants and their stores: the traits that every tenant provider fulfils, and the providers, one
//! folder each.
//!
//! A [`TenantProvider`] knows which tenants there are, and opens one into a [`TenantStore`]. Both
//! are used behind `Arc<dyn …>`; nothing in them names a backend.

pub mod backend;
#[cfg(test)]
mod conformance;
pub mod copy;
mod cursors;
mod deploys;
mod error;
mod following;
#[cfg(test)]
pub(crate) mod full_list;
mod group_commit;
mod idempotency;
mod jobs;
mod journal;
mod keyset;
mod lifecycle;
mod listed;
mod mutations;
mod open_tenant;
pub mod others;
mod readers;
mod registry;
pub mod relational;
mod schemas;
mod shared;
pub mod sqlite;
mod store;
mod writing;

use std::{fmt::Debug, ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use nimbus_manifests::TenantId;

pub use cursors::{CURSOR_KEY_BYTES, CursorKind, Cursors};
pub use error::{EngineFault, Limit, MAX_OFFENDERS, NoRoom, Offenders, StoreError};
pub use lifecycle::Tenants;
pub use listed::Listed;
pub use others::Claim;
pub use readers::ReaderLimits;

use crate::control::{AccessKeyId, Control, ControlError, KeyRecord};
use crate::documents::deploy::{AppFile, AppPath, ContentHash, Deploy, Deployed, Generations};
use crate::documents::query::{Position, Query, QueryPage};
use crate::documents::schedule::{
    Cron, CronName, CronState, DueWork, FinishedJob, Job, JobId, JobPlace, NewJob, Ran,
};
use crate::documents::schema::TableSchema;
use crate::documents::{
    Document, DocumentId, Done, Expected, JournalPage, Mutation, MutationOutcome, Once, TableName,
};
use crate::envelope::KeyedFile;
use crate::runtime::Progress;

/// The most bytes of documents that [`TenantStore::query`] returns (64 MiB).
pub const MAX_LIST_BYTES: usize = 64 << 20;

/// The most bytes of items in one part of a list, and of documents that [`TenantStore::query_page`]
/// returns (4 MiB): the next part has the rest.
pub const MAX_PAGE_BYTES: usize = 4 << 20;

/// The most tables a tenant may have.
pub const MAX_TABLES: usize = 1000;

/// Where tenants are kept.
#[async_trait]
pub trait TenantProvider: Debug + Send + Sync {
    /// Creates a tenant, durably.
    async fn create_tenant(&self, tenant: &TenantId) -> Result<(), StoreError>;

    /// Makes a tenant of the database of a backup, under a data key of its own, durably; `source`
    /// is nobody else's, and stays. A provider whose tenants are not encrypted by Nimbus refuses.
    async fn adopt_tenant(
        &self,
        tenant: &TenantId,
        _source: KeyedFile,
        _progress: Progress,
    ) -> Result<(), StoreError> {
        Err(StoreError::adopts_none(tenant))
    }

    /// Deletes a tenant with all that belongs to it. Requests under way on it end with
    /// [`StoreError::TenantNotFound`]. Once this has begun nothing brings the tenant back: a crash
    /// in the middle is finished by the next start.
    async fn delete_tenant(&self, tenant: &TenantId) -> Result<(), StoreError>;

    /// Gives a tenant a new data key while it is used. One that fails goes on under the key it has.
    /// A provider whose tenants are not encrypted by Nimbus refuses.
    async fn rotate_dek(&self, tenant: &TenantId, _progress: Progress) -> Result<(), StoreError> {
        Err(StoreError::no_data_keys(tenant))
    }

    /// All tenants, sorted. One that is being created or deleted is not among them.
    async fn list_tenants(&self) -> Result<Vec<TenantId>, StoreError>;

    /// The store of one tenant, opened when it is not open yet. It stays open while the answer is
    /// held, so hold it for one request.
    async fn open(&self, tenant: &TenantId) -> Result<Arc<dyn TenantStore>, StoreError>;

    /// Locks or unlocks a tenant where several servers share it; whether it was locked before.
    /// `None` where the control file has the locks.
    async fn set_locked(
        &self,
        _tenant: &TenantId,
        _locked: bool,
    ) -> Result<Option<bool>, StoreError> {
        Ok(None)
    }

    /// Whether due work of a tenant runs here, before the tenant is opened for it.
    async fn claim(&self, _tenant: &TenantId, _now_ms: i64) -> Result<Claim, StoreError> {
        Ok(Claim::Free)
    }

    /// A tenant to be read as it is stored, whether it is locked or not.
    async fn leave(&self, tenant: &TenantId) -> Result<Arc<dyn copy::Leaving>, StoreError>;

    /// A place for a tenant that comes from elsewhere, where none is.
    async fn arrive(&self, tenant: &TenantId) -> Result<Box<dyn copy::Arriving>, StoreError>;

    /// Whether a tenant that several servers share is locked.
    async fn is_locked(&self, tenant: &TenantId) -> Result<bool, StoreError>;

    /// Refuses what is done with tenants in files alone; `instead` says what to do.
    fn require_files(&self, _instead: &'static str) -> Result<(), StoreError> {
        Ok(())
    }

    /// Removes whatever is left under the name of a tenant that is none: of a creation that was cut
    /// short, a migration, or a deletion by an earlier release.
    async fn erase_leftovers(&self, tenant: &TenantId) -> Result<(), StoreError>;

    /// All tenants at one moment, between two commits, for a backup; `rest` freezes what else
    /// belongs to that moment. One at a time. `None` of a provider whose tenants are not files of
    /// Nimbus.
    async fn freeze(&self, _rest: Box<dyn FnOnce() + Send>) -> Option<Frozen> {
        None
    }

    /// What commits pass, and what they leave for who ships them; `None` of a provider whose
    /// tenants are not files of Nimbus.
    fn instants(&self) -> Option<Arc<sqlite::instant::Instants>> {
        None
    }

    /// Whether the place where tenants are kept can be reached.
    async fn check(&self) -> Result<(), StoreError>;

    /// Closes every tenant, each once its queue is written and its readers are done, and opens none
    /// any more.
    async fn close(&self) -> Result<(), StoreError>;
}

/// All tenants at one moment, kept until it is dropped.
#[derive(Debug)]
pub struct Frozen {
    /// The tenants.
    pub capturing: sqlite::Capturing,
    /// The moment, in the log of commits.
    pub mark: sqlite::Mark,
    /// How long commits waited for it.
    pub held_up: Duration,
}

/// One open tenant.
#[async_trait]
pub trait TenantStore: Debug + Send + Sync {
    /// Applies mutations in their order, all or none of them, and gives the outcome of each. An
    /// answer of `Ok` is durable. What one of them is refused for comes as [`StoreError::InBatch`],
    /// which says which one.
    ///
    /// Under a key it is done once: sent again, it gives the outcomes of the first time and changes
    /// nothing.
    ///
    /// A caller that goes away does not cancel its mutations.
    async fn apply_once(
        &self,
        batch: Vec<Mutation>,
        once: Option<Once>,
    ) -> Result<Done<Vec<MutationOutcome>>, StoreError>;

    /// Applies mutations as [`TenantStore::apply_once`] does, without a key.
    async fn apply_all(&self, batch: Vec<Mutation>) -> Result<Vec<MutationOutcome>, StoreError> {
        Ok(self.apply_once(batch, None).await?.outcome)
    }

    /// Applies one mutation, as [`TenantStore::apply_all`] does, but with its error bare.
    async fn apply(&self, mutation: Mutation) -> Result<MutationOutcome, StoreError> {
        alone(self.apply_all(vec![mutation]).await)
    }

    /// Applies one mutation if its document is as it is expected to be, as
    /// [`TenantStore::apply_once`] does, but with the error bare.
    async fn apply_if(
        &self,
        expected: Option<(DocumentId, Expected)>,
        mutation: Mutation,
        once: Option<Once>,
    ) -> Result<Done<MutationOutcome>, StoreError> {
        let check = expected.map(|(id, expected)| Mutation::Check {
            table: mutation.table().clone(),
            id,
            expected,
        });
        let batch = check.into_iter().chain([mutation]).collect();
        let done = self.apply_once(batch, once).await;
        let replayed = done.as_ref().is_ok_and(|done| done.replayed);
        let outcome = alone(done.map(|done| done.outcome))?;
        Ok(Done { outcome, replayed })
    }

    /// Stores a deploy as the newest generation and activates it, all at once: schemas with their
    /// indexes, crons and files. Generations beyond the last
    /// [`GENERATIONS_KEPT`](crate::documents::deploy::GENERATIONS_KEPT) are removed. A dry run
    /// changes nothing, and is refused for what the deploy would be refused for.
    async fn deploy(&self, deploy: Deploy) -> Result<Deployed, StoreError>;

    /// Activates a generation that is kept, as [`TenantStore::deploy`] does with a new one.
    async fn activate(&self, generation: i64) -> Result<Deployed, StoreError>;

    /// The generations that are kept.
    async fn generations(&self) -> Result<Generations, StoreError>;

    /// A file of the active generation.
    async fn app_file(&self, path: &AppPath) -> Result<AppFile, StoreError>;

    /// Part of the content of a file, whether its generation is still active or not; no more than
    /// lies in `range` is read. [`StoreError::ContentGone`] when no generation has it any more, or
    /// when it ends before the range does.
    async fn app_content(
        &self,
        hash: ContentHash,
        range: Range<u64>,
    ) -> Result<Vec<u8>, StoreError>;

    /// One document.
    async fn get(&self, table: &TableName, id: DocumentId) -> Result<Document, StoreError>;

    /// The documents that a query finds, after a position or from the beginning: at most `limit`,
    /// at most [`MAX_PAGE`](crate::documents::query::MAX_PAGE) and at most [`MAX_LIST_BYTES`]. A
    /// table that does not exist has none.
    async fn query(
        &self,
        query: Query,
        after: Option<Position>,
        limit: usize,
    ) -> Result<QueryPage, StoreError>;

    /// The same as one page of many: at most [`MAX_PAGE_BYTES`], so that it may be less than
    /// `limit` although there is more.
    async fn query_page(
        &self,
        query: Query,
        after: Option<Position>,
        limit: usize,
    ) -> Result<QueryPage, StoreError>;

    /// What seals the cursors of this tenant, and opens them.
    fn cursors(&self) -> &Cursors;

    /// The journal after the write number `after`, from its beginning without one: at most `limit`
    /// records and at most [`MAX_JOURNAL_PAGE`](crate::documents::MAX_JOURNAL_PAGE).
    /// [`StoreError::JournalExpired`] when records after that number are forgotten.
    async fn journal(&self, after: Option<u64>, limit: usize) -> Result<JournalPage, StoreError>;

    /// Has a mutation applied later: its delay after `now_ms`. An answer of `Ok` is durable, and
    /// the job runs whether the tenant is open then or not. Under a key it is done once, as
    /// [`TenantStore::apply_once`] does it.
    async fn schedule_once(
        &self,
        job: NewJob,
        now_ms: i64,
        once: Option<Once>,
    ) -> Result<Done<Job>, StoreError>;

    /// Schedules a job as [`TenantStore::schedule_once`] does, without a key.
    async fn schedule(&self, job: NewJob, now_ms: i64) -> Result<Job, StoreError> {
        Ok(self.schedule_once(job, now_ms, None).await?.outcome)
    }

    /// The jobs that wait, in the order in which they will run, after a place or from the first: at
    /// most `limit`, and at most [`MAX_PAGE_BYTES`].
    async fn list_jobs(
        &self,
        after: Option<JobPlace>,
        limit: usize,
    ) -> Result<Listed<Job>, StoreError>;

    /// Takes back a job that waits. One that ran is [`StoreError::JobRan`] for as long as it is
    /// remembered.
    async fn cancel_job(&self, id: JobId) -> Result<(), StoreError>;

    /// A job that ran, one of the last [`JOB_HISTORY`](crate::documents::schedule::JOB_HISTORY).
    async fn job_history(&self, id: JobId) -> Result<FinishedJob, StoreError>;

    /// Adds a cron of [`Origin::Api`](crate::documents::schedule::Origin::Api), or puts it in the
    /// place of the one of its name. With the schedule that it had it keeps its next time.
    async fn put_cron(&self, cron: Cron, now_ms: i64) -> Result<CronState, StoreError>;

    /// Crons by name, after one or from the first: at most `limit`, and at most [`MAX_PAGE_BYTES`].
    async fn list_crons(
        &self,
        after: Option<CronName>,
        limit: usize,
    ) -> Result<Listed<CronState>, StoreError>;

    /// Removes a cron of [`Origin::Api`](crate::documents::schedule::Origin::Api).
    async fn delete_cron(&self, name: CronName) -> Result<(), StoreError>;

    /// Runs jobs and crons that are due by `now_ms`, in the order of their time, jobs of one time
    /// in the order in which they were scheduled, and before crons; at most `limit`. What each of
    /// them does and that it ran are one: after a crash either both are there, or it runs again.
    /// One whose mutation cannot be applied has failed and is done; any other trouble is an error,
    /// and nothing of this call was done.
    ///
    /// Where the engine fails at what one of them does, the error is [`StoreError::Unrunnable`] and
    /// it still waits, unless it is the one to `give_up`: then it has failed and is done, too.
    async fn run_due(
        &self,
        now_ms: i64,
        limit: usize,
        give_up: Option<DueWork>,
    ) -> Result<Ran, StoreError>;

    /// Sets the schema of its table, which comes into being if there is none, and makes the indexes
    /// that it asks for; those that it does not ask for any more are dropped. Refused with
    /// [`StoreError::SchemaOffended`] while there are documents that do not fit it, and with
    /// [`StoreError::NotUnique`] where two have the same values in a unique index.
    async fn put_schema(&self, schema: TableSchema) -> Result<(), StoreError>;

    /// Takes the schema of a table away, and its indexes.
    async fn delete_schema(&self, table: &TableName) -> Result<(), StoreError>;

    /// The schema of a table.
    async fn schema(&self, table: &TableName) -> Result<TableSchema, StoreError>;

    /// Schemas in the order of their tables' names, after a table or from the first: at most
    /// `limit`, and at most [`MAX_PAGE_BYTES`].
    async fn list_schemas(
        &self,
        after: Option<TableName>,
        limit: usize,
    ) -> Result<Listed<TableSchema>, StoreError>;

    /// Closes this tenant ahead of time. The provider opens it again on demand.
    async fn close(&self) -> Result<(), StoreError>;
}

/// Where a deletion is recorded before it is carried out, so that a crash in the middle does not
/// undo it: the control file. Its calls block, and are durable when they return; all fail with
/// [`StoreError::Control`].
pub trait DeletionLog: Debug + Send + Sync {
    /// Forgets what is kept about an earlier tenant of that name, should there be anything: called
    /// before `tenant` is created.
    fn begin_create(&self, tenant: &TenantId) -> Result<(), StoreError>;

    /// Records that `tenant` is being deleted.
    fn begin_delete(&self, tenant: &TenantId) -> Result<(), StoreError>;

    /// Removes that record and what else is kept about the tenant, its access keys and the mirror
    /// of its manifest included, at once.
    fn finish_delete(&self, tenant: &TenantId) -> Result<(), StoreError>;

    /// Takes over the access keys of a tenant that comes from elsewhere, before it counts. Nothing
    /// where the backend has them.
    fn admit(
        &self,
        _tenant: &TenantId,
        _keys: &[(AccessKeyId, KeyRecord)],
    ) -> Result<(), StoreError> {
        Ok(())
    }

    /// Deletions that were begun and not finished.
    fn pending_deletes(&self) -> Result<Vec<TenantId>, StoreError>;
}

/// Where it is noted when tenants have work due, so that it is done whether they are open or not.
/// Its calls block.
pub trait DueLog: Debug + Send + Sync {
    /// Sees to it that the tenant is looked at when this is due, also after a crash. Called before
    /// the work itself is durable.
    fn expect(&self, tenant: &TenantId, due_ms: i64) -> Result<(), StoreError>;

    /// A tenant that was opened has work due then; it may have been noted or not.
    fn found(&self, tenant: &TenantId, due_ms: i64);

    /// Another server noted work that is due since then, and has not run it.
    fn overdue(&self, _tenant: &TenantId, _due_ms: i64) {}

    /// The tenant was deleted, its durable record with it.
    fn forget(&self, tenant: &TenantId);
}

/// Notes nothing: for tools and measurements, in whose time nothing is run.
#[derive(Debug, Clone, Copy)]
pub struct Unscheduled;

impl DueLog for Unscheduled {
    fn expect(&self, _: &TenantId, _: i64) -> Result<(), StoreError> {
        Ok(())
    }

    fn found(&self, _: &TenantId, _: i64) {}

    fn forget(&self, _: &TenantId) {}
}

impl DeletionLog for Control {
    fn begin_create(&self, tenant: &TenantId) -> Result<(), StoreError> {
        Self::begin_create(self, tenant).map_err(control_failed)
    }

    fn begin_delete(&self, tenant: &TenantId) -> Result<(), StoreError> {
        Self::begin_delete(self, tenant).map_err(control_failed)
    }

    fn finish_delete(&self, tenant: &TenantId) -> Result<(), StoreError> {
        Self::finish_delete(self, tenant).map_err(control_failed)
    }

    fn admit(
        &self,
        tenant: &TenantId,
        keys: &[(AccessKeyId, KeyRecord)],
    ) -> Result<(), StoreError> {
        Self::admit(self, tenant, keys).map_err(control_failed)
    }

    fn pending_deletes(&self) -> Result<Vec<TenantId>, StoreError> {
        Self::pending_deletes(self).map_err(control_failed)
    }
}

/// The answer to a batch, as the answer to its last mutation.
fn alone(
    outcomes: Result<Vec<MutationOutcome>, StoreError>,
) -> Result<MutationOutcome, StoreError> {
    match outcomes {
        Ok(outcomes) => Ok(outcomes[outcomes.len() - 1]),
        Err(StoreError::InBatch { source, .. }) => Err(*source),
        Err(error) => Err(error),
    }
}

pub(crate) fn control_failed(error: ControlError) -> StoreError {
    StoreError::Control {
        source: Arc::new(error),
    }
}
