//! The store that requests use: one tenant, held open.

use std::{ops::Range, sync::Arc};

use async_trait::async_trait;
use nimbus_manifests::TenantId;
use tokio::sync::oneshot;

use super::backend::{Backend, JobRows as _, SchemaRows as _, Storage, Wanted};
use super::group_commit::Size;
use super::open_tenant::OpenTenant;
use super::registry::TenantHandle;
use super::shared::Shared;
use super::writing::Writing;
use super::{
    Cursors, Listed, MAX_LIST_BYTES, MAX_PAGE_BYTES, StoreError, TenantStore, deploys, journal,
    schemas,
};
use crate::documents::deploy::{AppFile, AppPath, ContentHash, Deploy, Deployed, Generations};
use crate::documents::query::{Position, Query, QueryPage};
use crate::documents::schedule::{
    Cron, CronName, CronState, DueWork, FinishedJob, Job, JobId, JobPlace, NewJob, Origin, Ran,
};
use crate::documents::schema::TableSchema;
use crate::documents::{
    Document, DocumentId, Done, JournalPage, Mutation, MutationOutcome, Once, TableName,
};

/// A tenant in the hands of a request.
#[derive(Debug)]
pub(super) struct Store<B: Backend> {
    pub(super) tenant: TenantId,
    pub(super) handle: TenantHandle<OpenTenant<B::Storage>>,
    pub(super) shared: Arc<Shared<B>>,
}

type Rows<B> = <<B as Backend>::Storage as Storage>::Rows;
type TenantWriting<'a, B> = Writing<'a, <<B as Backend>::Storage as Storage>::Transaction>;

impl<B: Backend> Store<B> {
    /// Reads on a connection of the tenant.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Rows<B>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.explained(self.handle.readers.read(read).await).await
    }

    /// The same, where every document of a table may have to be looked at.
    async fn scan<T: Send + 'static>(
        &self,
        scan: impl FnOnce(&mut Rows<B>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.explained(self.handle.readers.scan(scan).await).await
    }

    /// Has the writer do some work, and waits until it is durable or refused.
    async fn write<T: Send + 'static>(
        &self,
        size: Size,
        work: impl FnOnce(&mut TenantWriting<'_, B>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.begun().await?;
        self.written(self.handle.writer.run(size, work)).await
    }

    /// The same for work that may take long: it is not begun when its caller has gone by then.
    async fn write_if_awaited<T: Send + 'static>(
        &self,
        size: Size,
        work: impl FnOnce(&mut TenantWriting<'_, B>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.begun().await?;
        self.written(self.handle.writer.run_if_awaited(size, work))
            .await
    }

    /// Sees to it that the writer has its thread. Where none can be started, an idle tenant is
    /// closed for it.
    async fn begun(&self) -> Result<(), StoreError> {
        while let Err(error) = self.handle.writer.begin() {
            let registry = &self.shared.registry;
            if !error.is_exhaustion() || !registry.give_way(&self.tenant, &error).await {
                return Err(error);
            }
        }
        Ok(())
    }

    /// What came of work that was queued at the writer.
    async fn written<T>(
        &self,
        queued: Result<oneshot::Receiver<Result<T, StoreError>>, StoreError>,
    ) -> Result<T, StoreError> {
        let outcome = match queued {
            Ok(answer) => answer.await.unwrap_or_else(|_closed| {
                Err(StoreError::Closed {
                    tenant: self.tenant.clone(),
                })
            }),
            Err(error) => Err(error),
        };
        self.explained(outcome).await
    }

    /// The documents that a query finds.
    async fn find(
        &self,
        query: Query,
        after: Option<Position>,
        limit: usize,
        most_bytes: usize,
    ) -> Result<QueryPage, StoreError> {
        let readers = &self.handle.readers;
        let found = readers.find(query, after, limit, most_bytes).await;
        self.explained(found).await
    }

    /// A tenant that was closed under a request may have been deleted, also by another server: then
    /// it is not found. Or its key was taken back.
    async fn explained<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        let Err(StoreError::Closed { tenant }) = result else {
            return result;
        };
        // Where that cannot be found out, it was closed.
        if self.shared.catch_up().await.is_ok()
            && let Err(refused) = self.shared.require(&tenant).await
        {
            return Err(refused);
        }
        let withheld = self.handle.readers.storage().withheld();
        Err(withheld.unwrap_or(StoreError::Closed { tenant }))
    }
}

#[async_trait]
impl<B: Backend> TenantStore for Store<B> {
    async fn apply_once(
        &self,
        batch: Vec<Mutation>,
        once: Option<Once>,
    ) -> Result<Done<Vec<MutationOutcome>>, StoreError> {
        self.begun().await?;
        self.written(self.handle.writer.submit(batch, once)).await
    }

    async fn deploy(&self, deploy: Deploy) -> Result<Deployed, StoreError> {
        // The tables are looked through before the writer is bothered, which then looks at what was
        // written since.
        let tenant = self.tenant.clone();
        let scan = move |rows: &mut Rows<B>| {
            let scans = schemas::scan_all(rows, &tenant, deploy.resources.schemas.values())?;
            Ok((deploy, scans))
        };
        let (deploy, scans) = self.scan(scan).await?;
        let size = Size {
            bytes: deploy.weight(),
            // Most of what it writes are files: a row each, as a document is one.
            changes: deploy.files.len(),
        };
        let work = move |writing: &mut TenantWriting<'_, B>| writing.deploy(&deploy, &scans);
        self.write_if_awaited(size, work).await
    }

    async fn activate(&self, generation: i64) -> Result<Deployed, StoreError> {
        let tenant = self.tenant.clone();
        let scan = move |rows: &mut Rows<B>| {
            let resources = deploys::resources(rows, generation)?;
            schemas::scan_all(rows, &tenant, resources.schemas.values())
        };
        let scans = self.scan(scan).await?;
        let work = move |writing: &mut TenantWriting<'_, B>| writing.activate(generation, &scans);
        self.write_if_awaited(Size::SMALL, work).await
    }

    async fn generations(&self) -> Result<Generations, StoreError> {
        self.read(deploys::generations).await
    }

    async fn app_file(&self, path: &AppPath) -> Result<AppFile, StoreError> {
        let path = path.clone();
        self.read(move |rows| deploys::app_file(rows, &path)).await
    }

    async fn app_content(
        &self,
        hash: ContentHash,
        range: Range<u64>,
    ) -> Result<Vec<u8>, StoreError> {
        self.read(move |rows| deploys::app_content(rows, hash, range))
            .await
    }

    async fn get(&self, table: &TableName, id: DocumentId) -> Result<Document, StoreError> {
        let table = table.clone();
        let result = self.handle.readers.get(Wanted { table, id }).await;
        self.explained(result).await
    }

    async fn query(
        &self,
        query: Query,
        after: Option<Position>,
        limit: usize,
    ) -> Result<QueryPage, StoreError> {
        self.find(query, after, limit, MAX_LIST_BYTES).await
    }

    async fn query_page(
        &self,
        query: Query,
        after: Option<Position>,
        limit: usize,
    ) -> Result<QueryPage, StoreError> {
        self.find(query, after, limit, MAX_PAGE_BYTES).await
    }

    fn cursors(&self) -> &Cursors {
        &self.handle.cursors
    }

    async fn journal(&self, after: Option<u64>, limit: usize) -> Result<JournalPage, StoreError> {
        self.read(move |rows| journal::page(rows, after, limit))
            .await
    }

    async fn schedule_once(
        &self,
        job: NewJob,
        now_ms: i64,
        once: Option<Once>,
    ) -> Result<Done<Job>, StoreError> {
        let size = Size {
            bytes: job.mutation.weight(),
            changes: 1,
        };
        let work = move |writing: &mut TenantWriting<'_, B>| {
            writing.put_job_once(&job, now_ms, once.as_ref())
        };
        self.write(size, work).await
    }

    async fn list_jobs(
        &self,
        after: Option<JobPlace>,
        limit: usize,
    ) -> Result<Listed<Job>, StoreError> {
        self.read(move |rows| rows.jobs(after, limit)).await
    }

    async fn cancel_job(&self, id: JobId) -> Result<(), StoreError> {
        let work = move |writing: &mut TenantWriting<'_, B>| writing.cancel_job(id);
        self.write(Size::SMALL, work).await
    }

    async fn job_history(&self, id: JobId) -> Result<FinishedJob, StoreError> {
        self.read(move |rows| rows.finished_job(id)?.ok_or(StoreError::JobNotFound { id }))
            .await
    }

    async fn put_cron(&self, cron: Cron, now_ms: i64) -> Result<CronState, StoreError> {
        let size = Size {
            bytes: cron.mutation.weight(),
            changes: 1,
        };
        let work =
            move |writing: &mut TenantWriting<'_, B>| writing.put_cron(&cron, Origin::Api, now_ms);
        self.write(size, work).await
    }

    async fn list_crons(
        &self,
        after: Option<CronName>,
        limit: usize,
    ) -> Result<Listed<CronState>, StoreError> {
        self.read(move |rows| rows.crons(after.as_ref(), limit))
            .await
    }

    async fn delete_cron(&self, name: CronName) -> Result<(), StoreError> {
        let work =
            move |writing: &mut TenantWriting<'_, B>| writing.delete_cron(&name, Origin::Api);
        self.write(Size::SMALL, work).await
    }

    async fn run_due(
        &self,
        now_ms: i64,
        limit: usize,
        give_up: Option<DueWork>,
    ) -> Result<Ran, StoreError> {
        let size = Size {
            bytes: 0,
            changes: limit,
        };
        let work = move |writing: &mut TenantWriting<'_, B>| {
            writing.run_due(now_ms, limit, give_up.as_ref())
        };
        self.write(size, work).await
    }

    async fn put_schema(&self, schema: TableSchema) -> Result<(), StoreError> {
        let size = Size {
            bytes: schema.to_json().len(),
            changes: 1,
        };
        let mut scanned = None;
        if schema.constrains() {
            // The table is looked through before the writer is bothered, which then looks at what
            // was written since.
            let (tenant, checked) = (self.tenant.clone(), schema.clone());
            let scan = move |rows: &mut Rows<B>| schemas::scan(rows, &tenant, &checked);
            scanned = Some(self.scan(scan).await?);
        }
        let put = move |writing: &mut TenantWriting<'_, B>| writing.put_schema(&schema, scanned);
        self.write_if_awaited(size, put).await
    }

    async fn delete_schema(&self, table: &TableName) -> Result<(), StoreError> {
        let table = table.clone();
        let delete = move |writing: &mut TenantWriting<'_, B>| writing.delete_schema(&table);
        self.write(Size::SMALL, delete).await
    }

    async fn schema(&self, table: &TableName) -> Result<TableSchema, StoreError> {
        let table = table.clone();
        self.read(move |rows| schemas::of_table(rows, &table)).await
    }

    async fn list_schemas(
        &self,
        after: Option<TableName>,
        limit: usize,
    ) -> Result<Listed<TableSchema>, StoreError> {
        self.read(move |rows| rows.schemas(after.as_ref(), limit))
            .await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.shared.close_tenant(&self.tenant).await
    }
}
