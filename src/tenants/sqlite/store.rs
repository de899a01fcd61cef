//! One open tenant.

use std::{
    ops::Range,
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use nimbus_manifests::{Subject, TenantId};
use rusqlite::Connection;
use tokio::{runtime::Handle, sync::oneshot, time::timeout};

use super::{
    Shared,
    apply::{Reader, Writing},
    checkpoint, failure, layout,
    lookups::Wanted,
    opening,
    readers::{GiveWay, Readers},
    room::Room,
    schedule,
    writer::{Size, Writer},
};
use crate::{
    documents::{
        Document, DocumentId, Done, JournalPage, Mutation, MutationOutcome, Once, TableName,
        deploy::{AppFile, AppPath, ContentHash, Deploy, Deployed, Generations},
        query::{Position, Query, QueryPage},
        schedule::{
            Cron, CronName, CronState, DueWork, FinishedJob, Job, JobId, JobPlace, NewJob, Origin,
            Ran,
        },
        schema::TableSchema,
    },
    envelope::{Envelope, Intent},
    metrics::{self, Counted},
    sqlcipher::{self, Database},
    tenants::{
        Cursors, DueLog, Listed, MAX_LIST_BYTES, MAX_PAGE_BYTES, StoreError, TenantStore,
        registry::{Lease, Registry, Resource},
    },
};

/// What each tenant that is opened is given.
#[derive(Debug, Clone)]
pub(super) struct Means {
    /// How many may read at once.
    pub(super) readers: u32,
    /// Who is told when work will be due.
    pub(super) due: Arc<dyn DueLog>,
    /// How much may be written.
    pub(super) room: Arc<Room>,
    /// Who makes way for its connections.
    pub(super) way: Arc<dyn GiveWay>,
}

/// Closes tenants that nobody uses.
#[derive(Debug)]
pub(super) struct Idle {
    pub(super) registry: Weak<Registry<OpenTenant>>,
    pub(super) runtime: Handle,
}

impl GiveWay for Idle {
    fn give_way(&self, tenant: &TenantId, error: &StoreError) -> bool {
        let Some(registry) = self.registry.upgrade() else {
            return false;
        };
        let made = async {
            // Two whose callers have gone may wait for each other.
            let way = registry.give_way(tenant, error);
            timeout(WAY_PATIENCE, way).await.unwrap_or(false)
        };
        self.runtime.block_on(made)
    }
}

/// A tenant's file, opened: its writer and its readers.
#[derive(Debug)]
pub(super) struct OpenTenant {
    writer: Arc<Writer>,
    readers: Arc<Readers>,
    cursors: Cursors,
    _open: Counted,
}

impl OpenTenant {
    /// Its writer.
    pub(super) fn writer(&self) -> &Arc<Writer> {
        &self.writer
    }

    /// Its readers.
    pub(super) fn readers(&self) -> &Arc<Readers> {
        &self.readers
    }

    /// Opens or creates the file at `path`, and sees to its layout.
    pub(super) async fn open(
        envelope: Envelope,
        path: PathBuf,
        subject: Subject,
        tenant: TenantId,
        intent: Intent,
        means: Means,
    ) -> Result<Self, StoreError> {
        let owner = tenant.clone();
        let establish = move |database| Self::establish(&tenant, database, means);
        sqlcipher::open_and(&envelope, &path, &subject, intent, establish)
            .await
            .unwrap_or_else(|error| Err(opening(&owner, error)))
    }

    /// Sees to the layout of an opened file. Blocks.
    fn establish(
        tenant: &TenantId,
        database: Database,
        Means {
            readers,
            due,
            room,
            way,
        }: Means,
    ) -> Result<Self, StoreError> {
        let readers = Readers::new(tenant, database, readers);
        let mut connection = readers.writer()?;
        readers.make_way_by(way);
        // Most tenants that are opened are read first, and many only read: the connection that is there serves
        // the reading, and the writer opens its own with the first mutation.
        let reads =
            layout::is_current(&connection, tenant)? && checkpoint::is_done(&connection, tenant)?;
        if !reads {
            layout::establish(&mut connection, tenant)?;
        }
        tell_due(&connection, tenant, &*due)?;
        let key = layout::cursor_key(&connection).map_err(|error| failure(tenant, error))?;
        let writes = if reads {
            readers.adopt(connection)?;
            None
        } else {
            Some(connection)
        };
        let writer = Writer::start(tenant, writes, Arc::clone(&readers), due, room)?;
        Ok(Self {
            writer: Arc::new(writer),
            readers,
            cursors: Cursors::new(tenant, &key),
            _open: Counted::new(&metrics::OPEN_TENANTS),
        })
    }
}

/// Has it noted when the tenant has work due: its file may have come from elsewhere, a backup say, with work that nobody knows of.
fn tell_due(
    connection: &Connection,
    tenant: &TenantId,
    due: &dyn DueLog,
) -> Result<(), StoreError> {
    let earliest = schedule::earliest_due(connection).map_err(|error| failure(tenant, error))?;
    if let Some(earliest) = earliest {
        due.found(tenant, earliest);
    }
    Ok(())
}

#[async_trait]
impl Resource for OpenTenant {
    async fn close(&self) -> Result<(), StoreError> {
        // Readers first: the last connection to go takes the WAL with it.
        self.readers.close().await;
        let writer = Arc::clone(&self.writer);
        // A panic in the writer's thread is reported by its join; this closure has nothing that panics.
        tokio::task::spawn_blocking(move || writer.close())
            .await
            .unwrap_or(Ok(()))
    }

    fn halt(&self) {
        self.readers.halt();
    }

    fn is_broken(&self) -> bool {
        self.writer.has_ended() || self.readers.is_lost()
    }
}

/// A tenant in the hands of a request.
#[derive(Debug)]
pub(super) struct SqliteTenant {
    pub(super) tenant: TenantId,
    pub(super) lease: Lease<OpenTenant>,
    pub(super) shared: Arc<Shared>,
}

impl SqliteTenant {
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
        self.explained(outcome)
    }

    /// A tenant that was closed under a request may have been deleted: then it is not found. Or its key was taken back.
    fn explained<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        result.map_err(|error| match error {
            StoreError::Closed { tenant } if !self.shared.exists(&tenant) => {
                StoreError::TenantNotFound { tenant }
            }
            StoreError::Closed { tenant } => {
                match self.lease.readers.withheld(&self.shared.envelope) {
                    Some(why) => opening(&tenant, why.into()),
                    None => StoreError::Closed { tenant },
                }
            }
            error => error,
        })
    }
}

#[async_trait]
impl TenantStore for SqliteTenant {
    async fn apply_once(
        &self,
        batch: Vec<Mutation>,
        once: Option<Once>,
    ) -> Result<Done<Vec<MutationOutcome>>, StoreError> {
        self.written(self.lease.writer.submit(batch, once)).await
    }

    async fn deploy(&self, deploy: Deploy) -> Result<Deployed, StoreError> {
        let scan = move |reader: &mut Reader, tenant: &TenantId| {
            let scans = reader.scan_all(tenant, &deploy.resources)?;
            Ok((deploy, scans))
        };
        let (deploy, scans) = self.explained(self.lease.readers.read(scan).await)?;
        let size = Size {
            bytes: deploy.weight(),
            // Most of what it writes are files: a row each, as a document is one.
            changes: deploy.files.len(),
        };
        let work = move |writing: &mut Writing<'_>| writing.deploy(&deploy, &scans);
        self.written(self.lease.writer.run_if_awaited(size, work))
            .await
    }

    async fn activate(&self, generation: i64) -> Result<Deployed, StoreError> {
        let scan = move |reader: &mut Reader, tenant: &TenantId| {
            let resources = reader.resources(tenant, generation)?;
            reader.scan_all(tenant, &resources)
        };
        let scans = self.explained(self.lease.readers.read(scan).await)?;
        let work = move |writing: &mut Writing<'_>| writing.activate(generation, &scans);
        self.written(self.lease.writer.run_if_awaited(Size::SMALL, work))
            .await
    }

    async fn generations(&self) -> Result<Generations, StoreError> {
        let result = self
            .lease
            .readers
            .read(|reader, tenant| reader.generations(tenant))
            .await;
        self.explained(result)
    }

    async fn app_file(&self, path: &AppPath) -> Result<AppFile, StoreError> {
        let path = path.clone();
        let result = self
            .lease
            .readers
            .read(move |reader, tenant| reader.app_file(tenant, &path))
            .await;
        self.explained(result)
    }

    async fn app_content(
        &self,
        hash: ContentHash,
        range: Range<u64>,
    ) -> Result<Vec<u8>, StoreError> {
        let result = self
            .lease
            .readers
            .read(move |reader, tenant| reader.app_content(tenant, hash, range))
            .await;
        self.explained(result)
    }

    async fn get(&self, table: &TableName, id: DocumentId) -> Result<Document, StoreError> {
        let table = table.clone();
        let result = self.lease.readers.get(Wanted { table, id }).await;
        self.explained(result)
    }

    async fn query(
        &self,
        query: Query,
        after: Option<Position>,
        limit: usize,
    ) -> Result<QueryPage, StoreError> {
        let result = self
            .lease
            .readers
            .read(move |reader, tenant| {
                reader.query(tenant, &query, after.as_ref(), limit, MAX_LIST_BYTES)
            })
            .await;
        self.explained(result)
    }

    async fn query_page(
        &self,
        query: Query,
        after: Option<Position>,
        limit: usize,
    ) -> Result<QueryPage, StoreError> {
        let result = self
            .lease
            .readers
            .read(move |reader, tenant| {
                reader.query(tenant, &query, after.as_ref(), limit, MAX_PAGE_BYTES)
            })
            .await;
        self.explained(result)
    }

    fn cursors(&self) -> &Cursors {
        &self.lease.cursors
    }

    async fn journal(&self, after: Option<u64>, limit: usize) -> Result<JournalPage, StoreError> {
        let result = self
            .lease
            .readers
            .read(move |reader, tenant| reader.journal(tenant, after, limit))
            .await;
        self.explained(result)
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
        let work =
            move |writing: &mut Writing<'_>| writing.put_job_once(&job, now_ms, once.as_ref());
        self.written(self.lease.writer.run(size, work)).await
    }

    async fn list_jobs(
        &self,
        after: Option<JobPlace>,
        limit: usize,
    ) -> Result<Listed<Job>, StoreError> {
        let read = move |reader: &mut Reader, tenant: &TenantId| reader.jobs(tenant, after, limit);
        self.explained(self.lease.readers.read(read).await)
    }

    async fn cancel_job(&self, id: JobId) -> Result<(), StoreError> {
        let work = move |writing: &mut Writing<'_>| writing.cancel_job(id);
        self.written(self.lease.writer.run(Size::SMALL, work)).await
    }

    async fn job_history(&self, id: JobId) -> Result<FinishedJob, StoreError> {
        let read = move |reader: &mut Reader, tenant: &TenantId| reader.job_history(tenant, id);
        self.explained(self.lease.readers.read(read).await)
    }

    async fn put_cron(&self, cron: Cron, now_ms: i64) -> Result<CronState, StoreError> {
        let size = Size {
            bytes: cron.mutation.weight(),
            changes: 1,
        };
        let work = move |writing: &mut Writing<'_>| writing.put_cron(&cron, Origin::Api, now_ms);
        self.written(self.lease.writer.run(size, work)).await
    }

    async fn list_crons(
        &self,
        after: Option<CronName>,
        limit: usize,
    ) -> Result<Listed<CronState>, StoreError> {
        let read = move |reader: &mut Reader, tenant: &TenantId| {
            reader.crons(tenant, after.as_ref(), limit)
        };
        self.explained(self.lease.readers.read(read).await)
    }

    async fn delete_cron(&self, name: CronName) -> Result<(), StoreError> {
        let work = move |writing: &mut Writing<'_>| writing.delete_cron(&name, Origin::Api);
        self.written(self.lease.writer.run(Size::SMALL, work)).await
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
        let work =
            move |writing: &mut Writing<'_>| writing.run_due(now_ms, limit, give_up.as_ref());
        self.written(self.lease.writer.run(size, work)).await
    }

    async fn put_schema(&self, schema: TableSchema) -> Result<(), StoreError> {
        let size = schema_size(&schema);
        if !schema.constrains() {
            let put = move |writing: &mut Writing<'_>| writing.put_schema(&schema);
            return self
                .written(self.lease.writer.run_if_awaited(size, put))
                .await;
        }
        // The table is looked through before the writer is bothered, which then looks at what was written since.
        let checked = schema.clone();
        let scanned = self
            .lease
            .readers
            .read(move |reader, tenant| reader.scan(tenant, &checked))
            .await;
        let scanned = self.explained(scanned)?;
        let put = move |writing: &mut Writing<'_>| writing.put_scanned(&schema, Some(scanned));
        self.written(self.lease.writer.run_if_awaited(size, put))
            .await
    }

    async fn delete_schema(&self, table: &TableName) -> Result<(), StoreError> {
        let table = table.clone();
        let delete = move |writing: &mut Writing<'_>| writing.delete_schema(&table);
        self.written(self.lease.writer.run(Size::SMALL, delete))
            .await
    }

    async fn schema(&self, table: &TableName) -> Result<TableSchema, StoreError> {
        let table = table.clone();
        let result = self
            .lease
            .readers
            .read(move |reader, tenant| reader.schema(tenant, &table))
            .await;
        self.explained(result)
    }

    async fn list_schemas(
        &self,
        after: Option<TableName>,
        limit: usize,
    ) -> Result<Listed<TableSchema>, StoreError> {
        let read = move |reader: &mut Reader, tenant: &TenantId| {
            reader.schemas(tenant, after.as_ref(), limit)
        };
        self.explained(self.lease.readers.read(read).await)
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.shared.registry.close(&self.tenant).await
    }
}

/// What setting a schema is to the writer's queue.
fn schema_size(schema: &TableSchema) -> Size {
    Size {
        bytes: schema.to_json().len(),
        changes: 1,
    }
}

/// How long the closing of an idle tenant is waited for.
const WAY_PATIENCE: Duration = Duration::from_secs(5);
