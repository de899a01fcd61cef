//! Mutations and queries as SQL. Everything here runs on a connection that it is given, in whatever transaction that is in.

use std::{collections::HashMap, time::SystemTime};

use nimbus_manifests::TenantId;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{failure, schema};
use crate::{
    documents::{Document, DocumentId, Fields, Mutation, MutationOutcome, TableName},
    tenants::{MAX_LIST, MAX_LIST_BYTES, StoreError},
};

/// Numbers of tables that are known to exist. They never change, so a connection asks for each once.
pub(super) type Tables = HashMap<TableName, i64>;

/// What one mutation needs of its writer.
pub(super) struct Writing<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) connection: &'a Connection,
    pub(super) tables: &'a Tables,
    /// The number that an insertion gets.
    pub(super) seq: i64,
}

/// What a mutation did, for the writer to remember once it counts.
pub(super) struct Applied {
    pub(super) outcome: MutationOutcome,
    /// The table that came into being.
    pub(super) created: Option<(TableName, i64)>,
}

impl Writing<'_> {
    /// Applies one mutation.
    pub(super) fn apply(&self, mutation: &Mutation) -> Result<Applied, StoreError> {
        let (outcome, created) = match mutation {
            Mutation::Insert { table, fields, id } => self.insert(table, fields, *id)?,
            Mutation::Update { table, id, patch } => (self.update(table, *id, patch)?, None),
            Mutation::Delete { table, id } => (self.delete(table, *id)?, None),
        };
        Ok(Applied { outcome, created })
    }

    fn insert(
        &self,
        table: &TableName,
        fields: &Fields,
        chosen: Option<DocumentId>,
    ) -> Result<(MutationOutcome, Option<(TableName, i64)>), StoreError> {
        let (number, created) = match self.number(table)? {
            Some(number) => (number, None),
            None => {
                let number = schema::create_table(self.connection, table)
                    .map_err(|error| self.failure(error))?
                    .ok_or_else(|| StoreError::TooManyTables {
                        table: table.clone(),
                    })?;
                (number, Some((table.clone(), number)))
            }
        };
        // Drawn here and not by the caller, so that ids ascend in the order in which documents are stored.
        let (id, now) = match chosen {
            Some(id) => (id, now_ms()),
            None => {
                let id = DocumentId::generate();
                (id, id.unix_ms())
            }
        };
        let sql = format!("INSERT INTO documents_{number} VALUES (?1, ?2, ?3, ?3, jsonb(?4))");
        let _one = self
            .connection
            .prepare_cached(&sql)
            .and_then(|mut insert| {
                insert.execute(params![self.seq, id.as_bytes(), now, fields.as_json()])
            })
            .map_err(|error| match error.sqlite_error() {
                Some(rusqlite::ffi::Error {
                    extended_code: rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE,
                    ..
                }) => StoreError::DocumentExists {
                    table: table.clone(),
                    id,
                },
                _ => self.failure(error),
            })?;
        Ok((MutationOutcome::Inserted { id }, created))
    }

    fn update(
        &self,
        table: &TableName,
        id: DocumentId,
        patch: &Fields,
    ) -> Result<MutationOutcome, StoreError> {
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
        // A clock that was set back does not make a document older than it is.
        let now = now_ms().max(updated);
        let set = format!(
            "UPDATE documents_{number} SET updated = ?2, fields = jsonb(?3) WHERE seq = ?1"
        );
        let _one = self
            .connection
            .prepare_cached(&set)
            .and_then(|mut set| set.execute(params![seq, now, merged.as_json()]))
            .map_err(|error| self.failure(error))?;
        Ok(MutationOutcome::Updated { id })
    }

    fn delete(&self, table: &TableName, id: DocumentId) -> Result<MutationOutcome, StoreError> {
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
        Ok(MutationOutcome::Deleted { id })
    }

    fn number(&self, table: &TableName) -> Result<Option<i64>, StoreError> {
        if let Some(&number) = self.tables.get(table) {
            return Ok(Some(number));
        }
        schema::table_number(self.connection, table).map_err(|error| self.failure(error))
    }

    fn number_of(&self, table: &TableName, id: DocumentId) -> Result<i64, StoreError> {
        self.number(table)?.ok_or_else(|| not_found(table, id))
    }

    fn failure(&self, error: rusqlite::Error) -> StoreError {
        failure(self.tenant, error)
    }
}

/// A connection for reading, and the tables it has met.
#[derive(Debug)]
pub(super) struct Reader {
    connection: Connection,
    tables: Tables,
}

impl Reader {
    pub(super) fn new(connection: Connection) -> Self {
        Self {
            connection,
            tables: Tables::new(),
        }
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
                let Some(number) = number else { return Ok(None) };
                let sql = format!("SELECT id, created, updated, json(fields) FROM documents_{number} WHERE id = ?1");
                self.connection
                    .prepare_cached(&sql)?
                    .query_row(params![id.as_bytes()], stored_document)
                    .optional()
            })
            .map_err(|error| failure(tenant, error))?
            .ok_or_else(|| not_found(table, id))
    }

    /// The first documents of a table.
    pub(super) fn list(
        &mut self,
        tenant: &TenantId,
        table: &TableName,
        limit: usize,
    ) -> Result<Vec<Document>, StoreError> {
        let sqlite = |error| failure(tenant, error);
        let Some(number) = self.number(table).map_err(sqlite)? else {
            return Ok(Vec::new());
        };
        let limit = limit.min(MAX_LIST);
        let sql = format!(
            "SELECT id, created, updated, json(fields) FROM documents_{number} ORDER BY seq LIMIT ?1"
        );
        let mut statement = self.connection.prepare_cached(&sql).map_err(sqlite)?;
        // `limit` is at most MAX_LIST, which fits.
        let rows = statement
            .query_map(params![limit as i64], stored_document)
            .map_err(sqlite)?;
        let mut documents = Vec::new();
        let mut bytes = 0;
        for document in rows {
            let document = document.map_err(sqlite)?;
            bytes += document.fields.as_json().len();
            if bytes > MAX_LIST_BYTES {
                return Err(StoreError::ListTooLarge {
                    table: table.clone(),
                });
            }
            documents.push(document);
        }
        Ok(documents)
    }

    fn number(&mut self, table: &TableName) -> rusqlite::Result<Option<i64>> {
        if let Some(&number) = self.tables.get(table) {
            return Ok(Some(number));
        }
        let number = schema::table_number(&self.connection, table)?;
        if let Some(number) = number {
            let _new = self.tables.insert(table.clone(), number);
        }
        Ok(number)
    }
}

fn stored_document(row: &Row<'_>) -> rusqlite::Result<Document> {
    let id = DocumentId::from_bytes(row.get(0)?).ok_or_else(|| malformed(0, "id"))?;
    Ok(Document {
        id,
        created_ms: row.get(1)?,
        updated_ms: row.get(2)?,
        fields: stored_fields(row, 3)?,
    })
}

fn stored_fields(row: &Row<'_>, column: usize) -> rusqlite::Result<Fields> {
    Fields::from_stored(row.get(column)?).ok_or_else(|| malformed(column, "fields"))
}

/// A value that no version of Nimbus has written.
fn malformed(column: usize, name: &str) -> rusqlite::Error {
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
fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}
