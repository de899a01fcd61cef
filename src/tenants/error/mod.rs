//! Errors of operations on a tenant.

mod classes;
mod limits;

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use nimbus_keyproviders::RandomError;
use nimbus_manifests::TenantId;
use thiserror::Error;

use super::{MAX_LIST_BYTES, MAX_TABLES};
use crate::documents::deploy::{AppPath, ContentHash, GENERATIONS_KEPT};
use crate::documents::schedule::{CronName, DueWork, JobId, MAX_CRONS, MAX_JOBS, Origin};
use crate::documents::schema::Violation;
use crate::documents::{
    CREDENTIAL_PART, DocumentId, InputError, MAX_REMEMBERED, MAX_REMEMBERED_BYTES, TableName,
};
use crate::envelope::{EnvelopeError, Trouble};
use limits::DELETE;

pub use limits::{EngineFault, Limit, MAX_OFFENDERS, NoRoom, Offenders};

/// An operation on tenants or on one tenant's documents that did not succeed.
///
/// It can be cloned, because one failed commit or one failed opening answers every caller that
/// waited for it.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no such tenant, or it is being deleted.
    #[error("there is no tenant {tenant}")]
    TenantNotFound {
        /// The tenant asked for.
        tenant: TenantId,
    },
    /// A tenant of this name exists.
    #[error("tenant {tenant} exists already: use it, or choose another id")]
    TenantExists {
        /// The tenant to be created.
        tenant: TenantId,
    },
    /// There is no such document.
    #[error("there is no document {id} in table {table}")]
    DocumentNotFound {
        /// The table looked in.
        table: TableName,
        /// The document asked for.
        id: DocumentId,
    },
    /// A document with the id that the client chose exists.
    #[error(
        "document {id} exists already in table {table}: update it, or leave the id out to have one drawn"
    )]
    DocumentExists {
        /// The table.
        table: TableName,
        /// The id that is taken.
        id: DocumentId,
    },
    /// A document is not of the version that the request is for, so nothing was done.
    #[error("the condition on document {id} of table {table} does not hold: {}", match version {
        Some(version) => format!("it is at version {version}"),
        None => "there is no such document".to_owned(),
    })]
    PreconditionFailed {
        /// The table.
        table: TableName,
        /// The document.
        id: DocumentId,
        /// The version that is there; none when there is no such document.
        version: Option<i64>,
    },
    /// The key of a request was used with another request.
    #[error(
        "this Idempotency-Key was used with another request or credential within the last 24 hours: take a new key for a new request"
    )]
    KeyReused,
    /// As many keys of requests are remembered as may be.
    #[error(
        "the request cannot be remembered: {} {} keys and {} bytes of answers in 24 hours; send it without Idempotency-Key, or later",
        if *.own { "one credential may have" } else { "a tenant remembers" },
        if *.own { MAX_REMEMBERED / CREDENTIAL_PART } else { MAX_REMEMBERED },
        if *.own { MAX_REMEMBERED_BYTES / CREDENTIAL_PART } else { MAX_REMEMBERED_BYTES },
    )]
    TooManyRemembered {
        /// Whether the credential has its part, and not the tenant all that it may.
        own: bool,
    },
    /// There is no such generation, or it is not kept any more.
    #[error(
        "there is no generation {generation}: the last {GENERATIONS_KEPT} deploys are kept, GET /api/tenants/{{t}}/deploy lists them"
    )]
    GenerationNotFound {
        /// The generation asked for.
        generation: i64,
    },
    /// The active generation has no such file, or there is no active generation.
    #[error("there is no file {path} in the active generation")]
    FileNotFound {
        /// The path asked for.
        path: AppPath,
    },
    /// No generation that is kept has this content any more.
    #[error("the content with the sha256 {hash} was removed with the last generation that had it")]
    ContentGone {
        /// What names it.
        hash: ContentHash,
    },
    /// One mutation of a batch cannot be applied, and so none of the batch was.
    #[error("mutation {index} of the batch: {source}; nothing of the batch was applied")]
    InBatch {
        /// Its place in the batch, the first being 0.
        index: usize,
        /// What is wrong with it.
        source: Box<StoreError>,
    },
    /// The change would make a document that is no valid one, such as a patch that makes it too
    /// large.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The tenant has as many tables as it may have.
    #[error(
        "table {table} cannot be created: a tenant has at most {MAX_TABLES} tables; use one of them"
    )]
    TooManyTables {
        /// The table that would have been one too many.
        table: TableName,
    },
    /// There is no such job, or it ran so long ago that it is forgotten.
    #[error(
        "there is no job {id}: it was never scheduled, was cancelled, has not run yet, or is no longer remembered"
    )]
    JobNotFound {
        /// The job asked for.
        id: JobId,
    },
    /// The job to be cancelled ran already.
    #[error("job {id} ran already and cannot be cancelled: its history says what came of it")]
    JobRan {
        /// The job.
        id: JobId,
    },
    /// As many jobs wait as may.
    #[error(
        "the job cannot be scheduled: at most {MAX_JOBS} may wait in a tenant; wait for some to run, or cancel some"
    )]
    TooManyJobs,
    /// There is no such cron.
    #[error("there is no cron {name}")]
    CronNotFound {
        /// The cron asked for.
        name: CronName,
    },
    /// The cron belongs to someone else.
    #[error("cron {name} {}", match origin {
        Origin::Deploy => "is part of what is deployed: change it with the next deploy, or choose another name",
        Origin::Api => "was made through the API: delete it there, or choose another name",
    })]
    CronOwned {
        /// The cron.
        name: CronName,
        /// Who it belongs to.
        origin: Origin,
    },
    /// The tenant has as many crons as it may have.
    #[error("the cron cannot be made: a tenant has at most {MAX_CRONS}; delete one, or change one")]
    TooManyCrons,
    /// The table has no schema.
    #[error("table {table} has no schema: set one with PUT /api/tenants/…/schema/{table}")]
    SchemaNotFound {
        /// The table.
        table: TableName,
    },
    /// The document is not what its table's schema asks for.
    #[error("the document does not fit the schema of table {table}: {violation}")]
    SchemaViolation {
        /// The table.
        table: TableName,
        /// What is wrong with the document.
        violation: Violation,
    },
    /// A schema cannot be set, for documents that are there do not fit it.
    #[error("table {table} has documents that do not fit the schema: {offenders}")]
    SchemaOffended {
        /// The table.
        table: TableName,
        /// The first of them.
        offenders: Offenders,
    },
    /// Two documents would have the same values in the fields of a unique index.
    #[error(
        "two documents of table {table} would have the same values in {fields}, and index {index:?} is unique", fields = fields.join(", ")
    )]
    NotUnique {
        /// The table.
        table: TableName,
        /// The index, as its schema calls it.
        index: String,
        /// The fields of the index.
        fields: Vec<String>,
    },
    /// The documents asked for are too large to be returned at once.
    #[error(
        "the documents asked for from table {table} exceed {MAX_LIST_BYTES} bytes: ask for fewer, or page through them"
    )]
    ListTooLarge {
        /// The table.
        table: TableName,
    },
    /// A place in the journal that was not reached yet: the cursor is another tenant's, or of a
    /// later state of this one.
    #[error(
        "the journal's last write is number {latest}, and this cursor says {after}: it is not one of this tenant as it is now; read without \"after\""
    )]
    JournalCursor {
        /// The cursor.
        after: u64,
        /// The number of the last write.
        latest: i64,
    },
    /// Records after that place in the journal are forgotten: whoever goes on from there would miss
    /// writes.
    #[error(
        "the journal has all writes after number {floor}, and this cursor says {after}: writes between are forgotten; note \"latest_sequence\", read the tenant's tables again, then follow the journal from that number"
    )]
    JournalExpired {
        /// The cursor.
        after: u64,
        /// The lowest cursor that misses nothing.
        floor: i64,
    },
    /// The system gave no random bytes.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// More work is waiting than is let in. Nothing was done; trying again later is right.
    #[error("{what}: try again in a moment")]
    Busy {
        /// What is at its limit.
        what: Limit,
        /// The tenant asked for.
        tenant: TenantId,
    },
    /// The server is closing down, or the tenant was closed under this request; whether a mutation
    /// that was waiting was applied is not known.
    #[error("tenant {tenant} was closed while the request was under way: try again")]
    Closed {
        /// The tenant.
        tenant: TenantId,
    },
    /// The tenant's file could not be opened; the source says why and what to do.
    #[error("tenant {tenant} cannot be opened: {source}")]
    Open {
        /// The tenant.
        tenant: TenantId,
        /// What kind of trouble it is.
        trouble: Trouble,
        /// Whether the process, or the machine, had no files, threads or memory left.
        exhausted: bool,
        /// What the opener found.
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// The tenant's file was written by a newer version.
    #[error(
        "tenant {tenant} was written by a newer Nimbus (layout {found}, this one knows {known}): start that version again"
    )]
    LayoutTooNew {
        /// The tenant.
        tenant: TenantId,
        /// The layout in the file.
        found: i64,
        /// The newest layout this version knows.
        known: i64,
    },
    /// The file is a database, but not one of Nimbus.
    #[error(
        "{path} is a database of another application, which Nimbus does not serve: `nimbus encryption export` takes it out, or move it and \
         its manifest out of the data directory", path = path.display()
    )]
    ForeignFile {
        /// The file.
        path: PathBuf,
    },
    /// The tenant's file is damaged.
    #[error(
        "the data of tenant {tenant} is damaged: {source}; restore it from a backup ('nimbus encryption inspect' shows what is there)"
    )]
    Corrupt {
        /// The tenant.
        tenant: TenantId,
        /// What the engine found.
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// The WAL is not the one that the tenant has open. The tenant is opened afresh.
    #[error(
        "{} was removed or replaced while tenant {tenant} was open, and this write is not acknowledged; {}", .path.display(), if *.saved {
            "all that was acknowledged before is in the database: look whether this write is there, too, and try again"
        } else {
            "what was acknowledged since the last checkpoint may be lost: restore a backup if it is missing"
        }
    )]
    WalReplaced {
        /// The tenant.
        tenant: TenantId,
        /// The WAL.
        path: PathBuf,
        /// Whether all that it held came into the database.
        saved: bool,
    },
    /// The tenant may not grow. Nothing was changed.
    #[error("{}", match what {
        NoRoom::Tenant { bytes, limit } => format!("tenant {tenant} has {bytes} bytes, and may have {limit} (--max-tenant-bytes): {DELETE}"),
        NoRoom::Disk => format!("the server's disk is nearly full, and tenant {tenant} may not grow: {DELETE}"),
        NoRoom::Temporary => format!("there is no room for the temporary files that this takes for tenant {tenant}: \
            order by a field with an index, change fewer or smaller documents at a time, or try again later"),
    })]
    NoRoom {
        /// The tenant.
        tenant: TenantId,
        /// What is full.
        what: NoRoom,
    },
    /// The disk is full. Nothing was changed.
    #[error(
        "there is no space left for tenant {tenant}: free some on the data directory's disk; nothing was changed"
    )]
    StorageFull {
        /// The tenant.
        tenant: TenantId,
    },
    /// The storage engine failed in another way. A mutation was not applied.
    #[error("the storage engine failed for tenant {tenant}: {source}")]
    Engine {
        /// The tenant.
        tenant: TenantId,
        /// Where the failure lies.
        fault: EngineFault,
        /// What the engine reported.
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// The connection to the database broke during a commit, and the database could not be asked
    /// what became of it.
    #[error(
        "whether this write to tenant {tenant} was applied is not known: {source}; look before you send it again, or send it with an Idempotency-Key"
    )]
    Unsettled {
        /// The tenant.
        tenant: TenantId,
        /// What the engine reported.
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// The database that the tenants are in cannot be used.
    #[error("the database of the tenants cannot be used: {source}")]
    Provider {
        /// What the engine reported.
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// The data directory has tenants in files, and another provider is selected.
    #[error(
        "the data directory {} has tenants in files, {tenant} the first of them, which would not be found: select --tenant-provider sqlite, or name another --data-dir",
        .dir.display()
    )]
    InFiles {
        /// The directory.
        dir: PathBuf,
        /// The first of its tenants.
        tenant: TenantId,
    },
    /// The server seals what it stores in a database, and the tenant is not sealed.
    #[error(
        "tenant {tenant} is not sealed, and this server serves sealed tenants alone (--encryption-seal-external): serve it by a server without \
         that setting; if it was sealed when it was made, somebody has changed the database"
    )]
    NotSealed {
        /// The tenant.
        tenant: TenantId,
    },
    /// An index whose order a query needs has none, for the tenant is sealed.
    #[error(
        "index {index:?} of table {table} ({}) is sealed and has no order: it answers eq and in on its first fields, and exists false. \
         Filter by these, or take the index out of the schema to have the documents looked through", fields.join(", ")
    )]
    BlindIndex {
        /// The table.
        table: TableName,
        /// The index, as its schema calls it.
        index: String,
        /// The fields of the index.
        fields: Vec<String>,
    },
    /// What was asked for is done with tenants in files, and these are in a database.
    #[error("the tenants are in a database, where Nimbus has no keys of theirs: {instead}")]
    NotInFiles {
        /// What to do.
        instead: &'static str,
    },
    /// The storage engine fails at what one piece of work does, and not at that of others.
    #[error("{work} cannot be run: {source}")]
    Unrunnable {
        /// The work, which still waits.
        work: DueWork,
        /// What the engine reported.
        source: Box<StoreError>,
    },
    /// A file or directory could not be read or changed.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system answered.
        source: Arc<io::Error>,
    },
    /// The audit log cannot be written.
    #[error("tenant {tenant} is {}: {source}", match done {
        true => "deleted, but the audit log could not record it; delete it again once the log can be written",
        false => "not deleted, because the audit log could not record it",
    })]
    Unaudited {
        /// The tenant.
        tenant: TenantId,
        /// Whether it was done all the same.
        done: bool,
        /// What the log reported.
        source: Arc<EnvelopeError>,
    },
    /// A tenant's manifest could not be removed.
    #[error("the key of tenant {tenant} cannot be removed: {source}")]
    Envelope {
        /// The tenant.
        tenant: TenantId,
        /// What the envelope reported.
        source: Arc<EnvelopeError>,
    },
    /// The tenant got no new data key. It goes on under the one it has.
    #[error("tenant {tenant} got no new data key")]
    Rekey {
        /// The tenant.
        tenant: TenantId,
        /// Why not.
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// What a backup, or another deployment, has did not become a tenant.
    #[error("tenant {tenant} did not come to be; there is nothing of it")]
    Adopt {
        /// The tenant.
        tenant: TenantId,
        /// Why not.
        source: Arc<dyn StdError + Send + Sync>,
    },
    /// Files of a tenant that was deleted could not be removed.
    #[error(
        "tenant {tenant} is deleted but for files that cannot be removed; remove them, then run the command again, or restart the server: {}",
        .left.join("; ")
    )]
    LeftBehind {
        /// The tenant.
        tenant: TenantId,
        /// Each, and why.
        left: Vec<String>,
    },
    /// The control file could not be read or written.
    #[error("the control file failed: {source}")]
    Control {
        /// What it reported.
        source: Arc<dyn StdError + Send + Sync>,
    },
}

/// The tenants are in a database.
#[derive(Debug, Error)]
#[error(
    "tenants in a database have no data key, or, sealed, keep theirs: rotate-dek is not built for them"
)]
struct NoDataKeys;
