//! Mutations and queries as SQL. Everything here runs on a connection that it is given, in whatever transaction that is in.

use std::{
    collections::HashMap,
    ffi::c_int,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nimbus_manifests::TenantId;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use super::{
    failure, layout,
    lookups::Wanted,
    plans::Plans,
    readers::{Readers, is_sound},
    remembered::{Expiry, Part},
    room::{self, Room},
};
use crate::{
    budget,
    documents::{
        Change, Document, DocumentId, Done, Expected, Fields, JournalPage, JournalRecord,
        MAX_JOURNAL_PAGE, Mutation, MutationOutcome, Once, TableName, schema::TableSchema,
    },
    metrics,
    tenants::{DueLog, StoreError, error::NoRoom},
};

/// Numbers of tables that are known to exist. They never change, so a connection asks for each once.
pub(super) type Tables = HashMap<TableName, i64>;

/// What the writer knows of its file without asking. Forgotten whenever something that changed it is undone.
#[derive(Debug, Default)]
pub(super) struct Known {
    tables: Tables,
    /// The schemas of tables, by their numbers; `None` of those without one.
    pub(super) schemas: HashMap<i64, Option<Arc<TableSchema>>>,
    /// Changed since the last savepoint.
    pub(super) changed: bool,
}

impl Known {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The writer's transaction, in the hands of those whose work is done in it.
pub(super) struct Writing<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) connection: &'a Connection,
    pub(super) known: &'a mut Known,
    /// Told of work that will be due, before there is.
    pub(super) due: &'a dyn DueLog,
    /// The number of the last write.
    sequence: i64,
    /// What was done so far, for the journal.
    pub(super) applied: Vec<Applied>,
    /// Whether all of this is undone in the end.
    pub(super) rehearsing: bool,
    /// Why the tenant may not grow, as it was before the transaction.
    pub(super) no_room: Option<NoRoom>,
    /// What is asked again as the transaction grows.
    pub(super) bounds: Option<Bounds<'a>>,
}

/// What bounds one transaction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds<'a> {
    pub(super) room: &'a Room,
    /// Know whether the tenant may still be used.
    pub(super) readers: &'a Readers,
}

/// What a mutation did, for the journal.
pub(super) struct Applied {
    change: Change,
    /// The document.
    pub(super) id: DocumentId,
    /// The number of its table.
    pub(super) number: i64,
    /// When, in milliseconds since the Unix epoch.
    at: i64,
}

impl Applied {
    /// Notes it in the journal.
    fn note(&self, connection: &Connection, sequence: i64) -> rusqlite::Result<()> {
        let Self {
            change,
            id,
            number,
            at,
        } = self;
        let change = change_number(*change);
        let _one = connection
            .prepare_cached("INSERT INTO nimbus_journal VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![sequence, change, number, id.as_bytes(), at])?;
        Ok(())
    }
}

impl<'a> Writing<'a> {
    /// A transaction that was begun; `sequence` is the number of the last write before it.
    pub(super) fn new(
        tenant: &'a TenantId,
        connection: &'a Connection,
        known: &'a mut Known,
        due: &'a dyn DueLog,
        sequence: i64,
    ) -> Self {
        Self {
            tenant,
            connection,
            known,
            due,
            sequence,
            applied: Vec::new(),
            rehearsing: false,
            no_room: None,
            bounds: None,
        }
    }

    /// Refuses what makes the tenant grow, when it may not. Whoever writes much asks again in between.
    pub(super) fn may_grow(&self) -> Result<(), StoreError> {
        let what = match self.no_room {
            Some(what) => what,
            None => match self.used_up()? {
                Some(what) => what,
                None => return Ok(()),
            },
        };
        match what {
            NoRoom::Tenant { .. } => metrics::REFUSED_TENANT_LIMIT.increment(1),
            NoRoom::Disk => metrics::REFUSED_DISK_RESERVE.increment(1),
        }
        let tenant = self.tenant.clone();
        Err(StoreError::NoRoom { tenant, what })
    }

    /// Whether what is in this transaction already has used up the room. The WAL does not count here: its frames are of the same pages.
    fn used_up(&self) -> Result<Option<NoRoom>, StoreError> {
        let Some(Bounds { room, readers }) = self.bounds else {
            return Ok(None);
        };
        if readers.is_halted() {
            return Err(readers.closed());
        }
        if let Some(limit) = room.tenant() {
            let bytes = room::in_use(self.connection).map_err(|error| self.failure(error))?;
            if bytes >= limit {
                return Ok(Some(NoRoom::Tenant { bytes, limit }));
            }
        }
        Ok(room.on_disk().err())
    }

    #[cfg(test)]
    pub(super) fn execute_batch(&self, sql: &str) {
        self.connection.execute_batch(sql).unwrap();
    }

    /// Does some work in a savepoint of its own. The inner error means that all of it was undone, the outer one that the whole
    /// transaction is gone. Savepoints nest.
    pub(super) fn all_or_nothing<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<Result<T, StoreError>, StoreError> {
        self.in_savepoint(true, work)
    }

    /// Does some work as [`Writing::all_or_nothing`] does, and undoes it all the same: what would have come of it.
    pub(super) fn rehearse<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<Result<T, StoreError>, StoreError> {
        let before = std::mem::replace(&mut self.rehearsing, true);
        let rehearsed = self.in_savepoint(false, work);
        self.rehearsing = before;
        rehearsed
    }

    /// Does one mutation without a savepoint: a statement that is refused has changed nothing. The errors are those of
    /// [`Writing::all_or_nothing`].
    pub(super) fn at_once<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<Result<T, StoreError>, StoreError> {
        match work(self) {
            // What meets a damaged page half way leaves its first half behind, unless all is undone.
            Err(error @ StoreError::Corrupt { .. }) => Err(error),
            // Some failures, a full disk among them, end the transaction.
            Err(error) if self.connection.is_autocommit() => Err(error),
            result => Ok(result),
        }
    }

    fn in_savepoint<T>(
        &mut self,
        keep: bool,
        work: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<Result<T, StoreError>, StoreError> {
        self.execute("SAVEPOINT work")?;
        let (sequence, applied) = (self.sequence, self.applied.len());
        let changed = std::mem::take(&mut self.known.changed);
        let result = work(self);
        match &result {
            Ok(_) if keep => {
                self.execute("RELEASE work")?;
                self.known.changed |= changed;
            }
            // Some failures, a full disk among them, end the transaction.
            Err(error) if self.connection.is_autocommit() => return Err(error.clone()),
            _ => {
                self.execute("ROLLBACK TO work")?;
                self.execute("RELEASE work")?;
                self.sequence = sequence;
                self.applied.truncate(applied);
                if self.known.changed {
                    self.known.clear();
                }
                self.known.changed = changed;
            }
        }
        Ok(result)
    }

    /// Applies mutations in their order; says which one cannot be.
    pub(super) fn apply_all(
        &mut self,
        batch: &[Mutation],
    ) -> Result<Vec<MutationOutcome>, StoreError> {
        let apply = |(index, mutation)| {
            self.apply(mutation).map_err(|error| {
                if error.concerns_mutation() {
                    StoreError::InBatch {
                        index,
                        source: Box::new(error),
                    }
                } else {
                    error
                }
            })
        };
        batch.iter().enumerate().map(apply).collect()
    }

    /// Applies one mutation.
    pub(super) fn apply(&mut self, mutation: &Mutation) -> Result<MutationOutcome, StoreError> {
        let applied = match mutation {
            Mutation::Insert { table, fields, id } => self.insert(table, fields, *id),
            Mutation::Update {
                table,
                id,
                patch,
                if_version,
            } => self.update(table, *id, patch, *if_version),
            Mutation::Delete {
                table,
                id,
                if_version,
            } => self.delete(table, *id, *if_version),
            Mutation::Check {
                table,
                id,
                expected,
            } => {
                let version = self.demand(table, *id, expected)?;
                return Ok(MutationOutcome::new(*id, version));
            }
        }?;
        self.sequence += 1;
        let outcome = MutationOutcome::new(applied.id, Some(self.sequence));
        self.applied.push(applied);
        Ok(outcome)
    }

    /// Applies mutations under a key, which is done once.
    pub(super) fn apply_once(
        &mut self,
        batch: &[Mutation],
        once: &Once,
    ) -> Result<Done<Vec<MutationOutcome>>, StoreError> {
        let (parts, replayed) = self.once(once, |writing| {
            let outcomes = writing.apply_all(batch)?;
            let part = |outcome: &MutationOutcome| Part {
                id: *outcome.id().as_bytes(),
                // No write has this number.
                number: outcome.version().unwrap_or(0),
            };
            Ok(outcomes.iter().map(part).collect())
        })?;
        let outcome = parts.iter().map(|part| {
            let id = DocumentId::from_bytes(part.id).ok_or_else(|| malformed(0, "answer"))?;
            let version = (part.number > 0).then_some(part.number);
            Ok(MutationOutcome::new(id, version))
        });
        let outcome: rusqlite::Result<Vec<_>> = outcome.collect();
        Ok(Done {
            outcome: outcome.map_err(|error| self.failure(error))?,
            replayed,
        })
    }

    /// Refuses what depends on a document that is not as it is expected; gives the version that is there.
    fn demand(
        &mut self,
        table: &TableName,
        id: DocumentId,
        expected: &Expected,
    ) -> Result<Option<i64>, StoreError> {
        let version = match self.number(table)? {
            None => None,
            Some(number) => {
                let sql = format!("SELECT {VERSION} FROM documents_{number} WHERE id = ?1");
                self.connection
                    .prepare_cached(&sql)
                    .and_then(|mut find| {
                        find.query_row([&id.as_bytes()[..]], |row| row.get(0))
                            .optional()
                    })
                    .map_err(|error| self.failure(error))?
            }
        };
        if expected.holds(version) {
            return Ok(version);
        }
        Err(StoreError::PreconditionFailed {
            table: table.clone(),
            id,
            version,
        })
    }

    /// [`Writing::demand`] of a version, if one is named.
    fn demand_version(
        &mut self,
        table: &TableName,
        id: DocumentId,
        if_version: Option<i64>,
    ) -> Result<(), StoreError> {
        match if_version {
            None => Ok(()),
            Some(version) => {
                let expected = Expected::OneOf(vec![version]);
                self.demand(table, id, &expected).map(drop)
            }
        }
    }

    /// Forgets keys of requests that are old, if it is time to.
    pub(super) fn forget(&self, expiry: &mut Expiry) -> Result<(), StoreError> {
        expiry
            .forget(self.connection)
            .map_err(|error| self.failure(error))
    }

    /// Notes in the journal what was done after the write `before`, and gives the number of the last write.
    pub(super) fn write_journal(self, before: i64) -> rusqlite::Result<i64> {
        for (sequence, applied) in (before + 1..).zip(&self.applied) {
            applied.note(self.connection, sequence)?;
        }
        layout::trim_journal(self.connection, before, self.sequence)?;
        Ok(self.sequence)
    }

    fn execute(&self, sql: &'static str) -> Result<(), StoreError> {
        self.connection
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute([]))
            .map(drop)
            .map_err(|error| self.failure(error))
    }

    fn insert(
        &mut self,
        table: &TableName,
        fields: &Fields,
        chosen: Option<DocumentId>,
    ) -> Result<Applied, StoreError> {
        self.may_grow()?;
        let number = self.number_or_new(table)?;
        self.check(table, number, fields)?;
        // Drawn here and not by the caller, so that ids ascend in the order in which documents are stored.
        let (id, now) = match chosen {
            Some(id) => (id, now_ms()),
            None => {
                let id = DocumentId::generate();
                (id, id.unix_ms())
            }
        };
        let sql = format!(
            "INSERT INTO documents_{number} (seq, id, created, updated, fields) VALUES (?1, ?2, ?3, ?3, jsonb(?4))"
        );
        let _one = self
            .connection
            .prepare_cached(&sql)
            .and_then(|mut insert| {
                insert.execute(params![
                    self.sequence + 1,
                    id.as_bytes(),
                    now,
                    fields.as_json()
                ])
            })
            .map_err(|error| self.refusal(error, table, id))?;
        Ok(Applied {
            change: Change::Inserted,
            id,
            number,
            at: now,
        })
    }

    fn update(
        &mut self,
        table: &TableName,
        id: DocumentId,
        patch: &Fields,
        if_version: Option<i64>,
    ) -> Result<Applied, StoreError> {
        self.demand_version(table, id, if_version)?;
        self.may_grow()?;
        let number = self.number_of(table, id)?;
        let find =
            format!("SELECT seq, updated, json(fields) FROM documents_{number} WHERE id = ?1");
        let (seq, updated, fields) = self
            .connection
            .prepare_cached(&find)
            .and_then(|mut find| {
                find.query_row(params![id.as_bytes()], |row| {
                    Ok((
                        row.get::<_, i64>(0)?,
                        row.get::<_, i64>(1)?,
                        stored_fields(row, 2)?,
                    ))
                })
                .optional()
            })
            .map_err(|error| self.failure(error))?
            .ok_or_else(|| not_found(table, id))?;
        let merged = fields.merged_with(patch)?;
        self.check(table, number, &merged)?;
        // A clock that was set back does not make a document older than it is.
        let now = now_ms().max(updated);
        let set = format!(
            "UPDATE documents_{number} SET updated = ?2, fields = jsonb(?3), version = ?4 WHERE seq = ?1"
        );
        let _one = self
            .connection
            .prepare_cached(&set)
            .and_then(|mut set| set.execute(params![seq, now, merged.as_json(), self.sequence + 1]))
            .map_err(|error| self.refusal(error, table, id))?;
        Ok(Applied {
            change: Change::Updated,
            id,
            number,
            at: now,
        })
    }

    fn delete(
        &mut self,
        table: &TableName,
        id: DocumentId,
        if_version: Option<i64>,
    ) -> Result<Applied, StoreError> {
        self.demand_version(table, id, if_version)?;
        let number = self.number_of(table, id)?;
        let sql = format!("DELETE FROM documents_{number} WHERE id = ?1");
        let deleted = self
            .connection
            .prepare_cached(&sql)
            .and_then(|mut delete| delete.execute(params![id.as_bytes()]))
            .map_err(|error| self.failure(error))?;
        if deleted == 0 {
            return Err(not_found(table, id));
        }
        Ok(Applied {
            change: Change::Deleted,
            id,
            number,
            at: now_ms(),
        })
    }

    /// The number of a table of documents.
    pub(super) fn number(&mut self, table: &TableName) -> Result<Option<i64>, StoreError> {
        if let Some(&number) = self.known.tables.get(table) {
            return Ok(Some(number));
        }
        let number =
            layout::table_number(self.connection, table).map_err(|error| self.failure(error))?;
        if let Some(number) = number {
            let _new = self.known.tables.insert(table.clone(), number);
        }
        Ok(number)
    }

    /// The number of a table, which comes into being if there is none.
    pub(super) fn number_or_new(&mut self, table: &TableName) -> Result<i64, StoreError> {
        if let Some(number) = self.number(table)? {
            return Ok(number);
        }
        // Several statements, which may be all that its caller does before it fails.
        let number = self.all_or_nothing(|writing| {
            layout::create_table(writing.connection, table)
                .map_err(|error| writing.failure(error))?
                .ok_or_else(|| StoreError::TooManyTables {
                    table: table.clone(),
                })
        })??;
        self.known.changed = true;
        let _new = self.known.tables.insert(table.clone(), number);
        Ok(number)
    }

    fn number_of(&mut self, table: &TableName, id: DocumentId) -> Result<i64, StoreError> {
        self.number(table)?.ok_or_else(|| not_found(table, id))
    }

    pub(super) fn failure(&self, error: rusqlite::Error) -> StoreError {
        failure(self.tenant, error)
    }
}

/// A connection for reading, and the tables it has met.
#[derive(Debug)]
pub(super) struct Reader {
    connection: Connection,
    tables: Tables,
    plans: Plans,
    /// The count of schema changes that `plans` are from.
    schema: u64,
}

impl Reader {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection,
            tables: Tables::new(),
            plans: Plans::default(),
            schema: 0,
        }
    }

    /// Forgets how queries were gone about if tables or indexes have changed since.
    pub(super) fn plan_for(&mut self, schema: u64) {
        if self.schema != schema {
            self.plans = Plans::default();
            self.schema = schema;
        }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Has what is read from here on end with an error once any of `stops` is set; without them, nothing does. It lasts until it is said anew.
    pub(super) fn stop_once(
        &mut self,
        stops: Option<[Arc<AtomicBool>; 2]>,
        tenant: &TenantId,
    ) -> Result<(), StoreError> {
        let look = stops.map(|stops| move || stops.iter().any(|stop| stop.load(Ordering::Relaxed)));
        self.connection
            .progress_handler(STEPS, look)
            .map_err(|error| failure(tenant, error))
    }

    /// One document.
    pub(super) fn get(
        &mut self,
        tenant: &TenantId,
        table: &TableName,
        id: DocumentId,
    ) -> Result<Document, StoreError> {
        self.number(table)
            .and_then(|number| {
                let Some(number) = number else {
                    return Ok(None);
                };
                let sql = format!("SELECT {DOCUMENT} FROM documents_{number} WHERE id = ?1");
                self.connection
                    .prepare_cached(&sql)?
                    .query_row(params![id.as_bytes()], |row| stored_document(row, 0))
                    .optional()
            })
            .map_err(|error| failure(tenant, error))?
            .ok_or_else(|| not_found(table, id))
    }

    /// Documents in one state of the file; each result goes to the end of `found`. After a failure of the engine the rest is not looked for, and one that
    /// nobody waits for any more, by its place in `wanted`, is not read. Gives whether this connection may be used again.
    pub(super) fn get_each(
        &mut self,
        tenant: &TenantId,
        wanted: &[Wanted],
        is_gone: impl Fn(usize) -> bool,
        found: &mut Vec<Result<Document, StoreError>>,
    ) -> bool {
        let snapshot = wanted.len() > 1;
        // Who used the connection before may have gone away.
        let begun = self.stop_once(None, tenant).and_then(|()| match snapshot {
            true => self
                .execute("BEGIN")
                .map_err(|error| failure(tenant, error)),
            false => Ok(()),
        });
        if let Err(error) = begun {
            found.push(Err(error));
            return false;
        }
        for (place, Wanted { table, id }) in wanted.iter().enumerate() {
            if is_gone(place) {
                found.push(Err(not_found(table, *id)));
                continue;
            }
            let document = self.get(tenant, table, *id);
            let sound = is_sound(&document);
            found.push(document);
            if !sound {
                return false;
            }
        }
        !snapshot || self.execute("COMMIT").is_ok()
    }

    fn execute(&self, sql: &'static str) -> rusqlite::Result<()> {
        let mut statement = self.connection.prepare_cached(sql)?;
        statement.execute([]).map(drop)
    }

    /// One state of the file for several statements.
    pub(super) fn snapshot(&mut self) -> rusqlite::Result<Transaction<'_>> {
        self.connection.transaction()
    }

    /// The connection, and what is known of how queries are gone about on it.
    pub(super) fn planned(&mut self) -> (&mut Connection, &mut Plans) {
        (&mut self.connection, &mut self.plans)
    }

    /// Part of the journal.
    pub(super) fn journal(
        &mut self,
        tenant: &TenantId,
        after: Option<u64>,
        limit: usize,
    ) -> Result<JournalPage, StoreError> {
        let sqlite = |error| failure(tenant, error);
        let snapshot = self.snapshot().map_err(sqlite)?;
        let (latest, floor) = layout::journal_bounds(&snapshot).map_err(sqlite)?;
        let from = match after {
            None => floor,
            Some(after) => match i64::try_from(after) {
                Ok(from) if from < floor => {
                    return Err(StoreError::JournalExpired { after, floor });
                }
                Ok(from) if from <= latest => from,
                _ => return Err(StoreError::JournalCursor { after, latest }),
            },
        };
        let limit = limit.min(MAX_JOURNAL_PAGE);
        let mut records = snapshot
            .prepare_cached(
                "SELECT sequence, change, name, id, at
                 FROM nimbus_journal CROSS JOIN nimbus_tables USING (number)
                 WHERE sequence > ?1 ORDER BY sequence LIMIT ?2",
            )
            .and_then(|mut statement| {
                // `limit` is small; one more says whether there are more.
                let rows = statement.query_map(params![from, limit as i64 + 1], journal_record)?;
                rows.collect::<rusqlite::Result<Vec<_>>>()
            })
            .map_err(sqlite)?;
        let has_more = records.len() > limit;
        records.truncate(limit);
        Ok(JournalPage {
            records,
            latest,
            floor,
            has_more,
        })
    }

    pub(super) fn number(&mut self, table: &TableName) -> rusqlite::Result<Option<i64>> {
        if let Some(&number) = self.tables.get(table) {
            return Ok(Some(number));
        }
        let number = layout::table_number(&self.connection, table)?;
        if let Some(number) = number {
            let _new = self.tables.insert(table.clone(), number);
        }
        Ok(number)
    }
}

/// The version of a stored document: a write that only inserted it is its number.
pub(super) const VERSION: &str = "ifnull(version, seq)";

/// The columns of a stored document, which [`stored_document`] reads.
pub(super) const DOCUMENT: &str = "id, created, updated, ifnull(version, seq), json(fields)";

/// A document whose columns begin with this one.
pub(super) fn stored_document(row: &Row<'_>, first: usize) -> rusqlite::Result<Document> {
    let id = DocumentId::from_bytes(row.get(first)?).ok_or_else(|| malformed(first, "id"))?;
    Ok(Document {
        id,
        created_ms: row.get(first + 1)?,
        updated_ms: row.get(first + 2)?,
        version: row.get(first + 3)?,
        fields: stored_fields(row, first + 4)?,
    })
}

/// Takes room in memory for part of an answer. [`failure`] knows the error.
pub(super) fn take_room(bytes: usize) -> rusqlite::Result<()> {
    budget::take(bytes).map_err(|refused| rusqlite::Error::UserFunctionError(Box::new(refused)))
}

fn journal_record(row: &Row<'_>) -> rusqlite::Result<JournalRecord> {
    let change = match row.get(1)? {
        1 => Change::Inserted,
        2 => Change::Updated,
        3 => Change::Deleted,
        _ => return Err(malformed(1, "change")),
    };
    let table: String = row.get(2)?;
    Ok(JournalRecord {
        sequence: row.get(0)?,
        change,
        table: table.parse().map_err(|_| malformed(2, "name"))?,
        id: DocumentId::from_bytes(row.get(3)?).ok_or_else(|| malformed(3, "id"))?,
        at_ms: row.get(4)?,
    })
}

/// A change as the journal holds it; [`journal_record`] reads it.
fn change_number(change: Change) -> i64 {
    match change {
        Change::Inserted => 1,
        Change::Updated => 2,
        Change::Deleted => 3,
    }
}

pub(super) fn stored_fields(row: &Row<'_>, column: usize) -> rusqlite::Result<Fields> {
    Fields::from_stored(row.get(column)?).ok_or_else(|| malformed(column, "fields"))
}

/// A value that no version of Nimbus has written.
pub(super) fn malformed(column: usize, name: &str) -> rusqlite::Error {
    let kind = rusqlite::types::Type::Blob;
    rusqlite::Error::FromSqlConversionFailure(column, kind, format!("{name} is malformed").into())
}

fn not_found(table: &TableName, id: DocumentId) -> StoreError {
    StoreError::DocumentNotFound {
        table: table.clone(),
        id,
    }
}

/// The time now, in milliseconds since the Unix epoch.
pub(super) fn now_ms() -> i64 {
    crate::clock::now_ms()
}

/// Steps of SQLite's machine between two looks whether anybody waits: a fraction of a millisecond.
const STEPS: c_int = 10_000;
