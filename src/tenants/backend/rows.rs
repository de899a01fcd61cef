//! Rows, in and out of a transaction.

use std::fmt::Debug;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::moved::MovedRows;
use super::stored::{
    AnswersEnd, AnswersOf, ChangedDocument, Conflict, JournalBounds, JournalEntry, NewDocument,
    StoredAnswer, StoredDocument, StoredIndex, TableNumber, Wanted,
};
use crate::documents::deploy::{AppFile, AppPath, ContentHash, Deploy, Generation, Resources};
use crate::documents::query::{Position, Query, QueryPage};
use crate::documents::schedule::{
    Cron, CronName, CronState, DueWork, FinishedJob, Job, JobId, JobPlace, LastRun,
};
use crate::documents::schema::{IndexRule, TableSchema};
use crate::documents::{Document, DocumentId, Fields, JournalRecord, Mutation, TableName};
use crate::tenants::{Listed, StoreError};

/// Documents and their journal.
pub trait DocumentRows {
    /// The number of a table; `None` when it does not exist.
    fn table(&mut self, name: &TableName) -> Result<Option<TableNumber>, StoreError>;

    /// One document.
    fn document(
        &mut self,
        table: TableNumber,
        id: DocumentId,
    ) -> Result<Option<Document>, StoreError>;

    /// The documents of an existing table that a query finds after a position: at most `limit`, and
    /// at most `most_bytes`. `may_scan` is asked where every document of the table may have to be
    /// looked at; `None` where it says no.
    fn query(
        &mut self,
        table: TableNumber,
        query: &Query,
        after: Option<&Position>,
        limit: usize,
        most_bytes: usize,
        may_scan: &mut dyn FnMut() -> bool,
    ) -> Result<Option<QueryPage>, StoreError>;

    /// Hands out the documents of a table in the order of their insertion, until told to stop.
    fn each_document(
        &mut self,
        table: TableNumber,
        each: impl FnMut(DocumentId, &Fields) -> ControlFlow<()>,
    ) -> Result<(), StoreError>;

    /// Hands out those of these documents that exist, in this order, until told to stop.
    fn each_of(
        &mut self,
        table: TableNumber,
        ids: &[DocumentId],
        each: impl FnMut(DocumentId, &Fields) -> ControlFlow<()>,
    ) -> Result<(), StoreError>;

    /// The journal's ends.
    fn journal_bounds(&mut self) -> Result<JournalBounds, StoreError>;

    /// The first `limit` records after a write.
    fn journal(&mut self, after: i64, limit: usize) -> Result<Vec<JournalRecord>, StoreError>;

    /// The documents of a table that the journal has a record of after a write. One may be named
    /// several times.
    fn written_since(
        &mut self,
        table: TableNumber,
        after: i64,
    ) -> Result<Vec<DocumentId>, StoreError>;
}

/// Jobs and crons.
pub trait JobRows {
    /// When the first job or cron is due.
    fn earliest_due(&mut self) -> Result<Option<i64>, StoreError>;

    /// Jobs that wait, in the order in which they run, after a place.
    fn jobs(&mut self, after: Option<JobPlace>, limit: usize) -> Result<Listed<Job>, StoreError>;

    /// A job that ran.
    fn finished_job(&mut self, id: JobId) -> Result<Option<FinishedJob>, StoreError>;

    /// Crons by name, after a name.
    fn crons(
        &mut self,
        after: Option<&CronName>,
        limit: usize,
    ) -> Result<Listed<CronState>, StoreError>;

    /// All crons, by name.
    fn all_crons(&mut self) -> Result<Vec<CronState>, StoreError>;
}

/// The schemas of tables.
pub trait SchemaRows {
    /// The schema of a table.
    fn schema(&mut self, table: TableNumber) -> Result<Option<TableSchema>, StoreError>;

    /// Schemas in the order of their tables' names, after a name.
    fn schemas(
        &mut self,
        after: Option<&TableName>,
        limit: usize,
    ) -> Result<Listed<TableSchema>, StoreError>;

    /// All schemas, in the order of their tables' names.
    fn all_schemas(&mut self) -> Result<Vec<TableSchema>, StoreError>;
}

/// Generations of what is deployed.
pub trait DeployRows {
    /// The active generation.
    fn active_generation(&mut self) -> Result<Option<i64>, StoreError>;

    /// The generations that are kept, newest first.
    fn generations(&mut self) -> Result<Vec<Generation>, StoreError>;

    /// The schemas and crons of a generation that is kept.
    fn resources(&mut self, generation: i64) -> Result<Option<Resources>, StoreError>;

    /// The files of a generation, by path.
    fn files(&mut self, generation: i64) -> Result<Vec<(String, ContentHash)>, StoreError>;

    /// A file of the active generation.
    fn app_file(&mut self, path: &AppPath) -> Result<Option<AppFile>, StoreError>;

    /// Part of a content; fewer bytes than asked for when it ends before, or no longer exists.
    fn app_content(&mut self, hash: ContentHash, range: Range<u64>) -> Result<Vec<u8>, StoreError>;
}

/// A connection that reads what a tenant has stored.
pub trait Rows:
    DocumentRows + JobRows + SchemaRows + DeployRows + MovedRows + Debug + Send + 'static
{
    /// Does several reads on one state of the tenant. Not within a transaction, which has one state
    /// by itself.
    fn snapshot<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError>;

    /// Says which documents are about to be read in this snapshot. An engine behind a network reads
    /// them here, at once.
    fn announce(&mut self, _wanted: &[Wanted]) -> Result<(), StoreError> {
        Ok(())
    }

    /// Whether what was read so far may be given out: an engine may notice a damaged page and say
    /// so only afterwards.
    fn confirm(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Reads fail from here on once any of `stops` is set; without them they never do. It lasts
    /// until it is called again.
    fn stop_once(&mut self, stops: Option<[Arc<AtomicBool>; 2]>) -> Result<(), StoreError>;

    /// Tables or indexes may have changed: what is cached about them must be forgotten.
    fn forget_plans(&mut self);
}

/// Changes of tables, documents and the journal.
pub trait DocumentWrites {
    /// How many tables there are.
    fn count_tables(&mut self) -> Result<usize, StoreError>;

    /// Creates a table.
    fn create_table(&mut self, name: &TableName) -> Result<TableNumber, StoreError>;

    /// The version of a document; `None` when it does not exist.
    fn version(&mut self, table: TableNumber, id: DocumentId) -> Result<Option<i64>, StoreError>;

    /// A document to update.
    fn find(
        &mut self,
        table: TableNumber,
        id: DocumentId,
    ) -> Result<Option<StoredDocument>, StoreError>;

    /// When the document was created that was inserted last, of those that are there.
    fn last_created(&mut self, table: TableNumber) -> Result<Option<i64>, StoreError>;

    /// Says that the next document to be inserted is created earlier than the one before it. A
    /// backend that takes the order of insertion for that of creation does so no longer.
    fn created_out_of_order(&mut self, table: TableNumber) -> Result<(), StoreError>;

    /// Inserts a document. One that is refused for a conflict leaves nothing behind.
    fn insert(
        &mut self,
        table: TableNumber,
        document: NewDocument<'_>,
    ) -> Result<Result<(), Conflict>, StoreError>;

    /// Updates a document that exists. One that is refused for a conflict stays as it is.
    fn update(
        &mut self,
        table: TableNumber,
        document: ChangedDocument<'_>,
    ) -> Result<Result<(), Conflict>, StoreError>;

    /// Deletes a document; whether it existed.
    fn delete(&mut self, table: TableNumber, id: DocumentId) -> Result<bool, StoreError>;

    /// Appends to the journal: records with the numbers from `first` on.
    fn append_journal(&mut self, first: i64, entries: &[JournalEntry]) -> Result<(), StoreError>;

    /// Removes the records up to and with a number.
    fn trim_journal(&mut self, last: i64) -> Result<(), StoreError>;
}

/// Changes of the answers that are remembered.
pub trait AnswerWrites {
    /// The answer under a key.
    fn answer(&mut self, key: &[u8; 32]) -> Result<Option<StoredAnswer>, StoreError>;

    /// The first answer and the last one; `None` without any.
    fn answers(&mut self) -> Result<Option<(AnswersEnd, AnswersEnd)>, StoreError>;

    /// Stores an answer under a key that has none. `end` is where it stands.
    fn put_answer(
        &mut self,
        key: &[u8; 32],
        answer: &StoredAnswer,
        end: AnswersEnd,
    ) -> Result<(), StoreError>;

    /// Removes the answer under a key; whose it was, if it was anybody's.
    fn delete_answer(&mut self, key: &[u8; 32]) -> Result<Vec<AnswersOf>, StoreError>;

    /// Removes, of the first `most` answers, those outside these times; whose they were.
    fn delete_answers_outside(
        &mut self,
        most: usize,
        kept_ms: Range<i64>,
    ) -> Result<Vec<AnswersOf>, StoreError>;

    /// Adds to what is counted for a credential, and gives what it has by then. One that has none
    /// left is forgotten.
    fn count_answers(&mut self, more: AnswersOf) -> Result<AnswersOf, StoreError>;

    /// When the first answer was given.
    fn oldest_answer_ms(&mut self) -> Result<Option<i64>, StoreError>;
}

/// Changes of jobs and crons.
pub trait JobWrites {
    /// How many jobs wait.
    fn count_jobs(&mut self) -> Result<usize, StoreError>;

    /// Adds a job.
    fn insert_job(&mut self, job: &Job) -> Result<(), StoreError>;

    /// A job that waits.
    fn job(&mut self, id: JobId) -> Result<Option<Job>, StoreError>;

    /// Removes a job that waits; whether it did.
    fn delete_job(&mut self, id: JobId) -> Result<bool, StoreError>;

    /// What is due is about to be run: other servers leave it alone for as long as the transaction
    /// is open.
    fn claim_due(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// The first jobs that are due by a time, in the order in which they run: at most `limit`, and
    /// none after those that together have `most_bytes`.
    fn due_jobs(
        &mut self,
        by_ms: i64,
        limit: usize,
        most_bytes: usize,
    ) -> Result<Vec<Job>, StoreError>;

    /// Hands out what is due by a time, in the order of its time, jobs before crons, until told to
    /// stop: each with the first `characters` of its mutation, as [`Mutation::to_json`] writes it.
    fn each_due(
        &mut self,
        by_ms: i64,
        characters: usize,
        each: impl FnMut(DueWork, &str) -> ControlFlow<()>,
    ) -> Result<(), StoreError>;

    /// Adds a job to the history.
    fn insert_finished_job(&mut self, finished: &FinishedJob) -> Result<(), StoreError>;

    /// Removes all but the last `kept` jobs from the history.
    fn trim_job_history(&mut self, kept: usize) -> Result<(), StoreError>;

    /// How many crons there are.
    fn count_crons(&mut self) -> Result<usize, StoreError>;

    /// One cron.
    fn cron(&mut self, name: &CronName) -> Result<Option<CronState>, StoreError>;

    /// The first crons that are due by a time, in the order in which they run: at most `limit`, and
    /// none after those that together have `most_bytes`.
    fn due_crons(
        &mut self,
        by_ms: i64,
        limit: usize,
        most_bytes: usize,
    ) -> Result<Vec<CronState>, StoreError>;

    /// The crons whose next time was set by a clock that said more than this.
    fn crons_set_after(&mut self, clock_ms: i64) -> Result<Vec<Cron>, StoreError>;

    /// Puts a cron in the place of the one of its name, if there is one. It has not run.
    fn put_cron(&mut self, cron: &CronState, clock_ms: i64) -> Result<(), StoreError>;

    /// Changes what a cron does.
    fn set_cron_mutation(&mut self, name: &CronName, mutation: &Mutation)
    -> Result<(), StoreError>;

    /// Sets the next time of a cron.
    fn set_cron_next(
        &mut self,
        name: &CronName,
        next_due_ms: i64,
        clock_ms: i64,
    ) -> Result<(), StoreError>;

    /// Sets the last run of a cron.
    fn set_cron_last_run(&mut self, name: &CronName, run: &LastRun) -> Result<(), StoreError>;

    /// Removes a cron.
    fn delete_cron(&mut self, name: &CronName) -> Result<(), StoreError>;
}

/// Changes of schemas and indexes.
pub trait SchemaWrites {
    /// Puts a schema in the place of the one that its table has, if it has one.
    fn put_schema(&mut self, table: TableNumber, schema: &TableSchema) -> Result<(), StoreError>;

    /// Removes the schema of a table; whether it had one.
    fn delete_schema(&mut self, table: TableNumber) -> Result<bool, StoreError>;

    /// The indexes of a table.
    fn indexes(&mut self, table: TableNumber) -> Result<Vec<StoredIndex>, StoreError>;

    /// Makes an index over the documents that exist.
    fn create_index(
        &mut self,
        table: TableNumber,
        rule: &IndexRule,
    ) -> Result<Result<(), Conflict>, StoreError>;

    /// Gives an index another name.
    fn rename_index(&mut self, slot: i64, name: &str) -> Result<(), StoreError>;

    /// Removes an index.
    fn drop_index(&mut self, slot: i64) -> Result<(), StoreError>;
}

/// Changes of generations.
pub trait DeployWrites {
    /// Stores a deploy as the newest generation, and gives its number.
    fn store_generation(&mut self, deploy: &Deploy, created_ms: i64) -> Result<i64, StoreError>;

    /// Makes a generation the active one.
    fn set_active_generation(&mut self, generation: i64) -> Result<(), StoreError>;

    /// The generations beyond the newest `kept`.
    fn old_generations(&mut self, kept: usize) -> Result<Vec<i64>, StoreError>;

    /// Removes a generation, and the contents that no other has.
    fn delete_generation(&mut self, generation: i64) -> Result<(), StoreError>;
}
