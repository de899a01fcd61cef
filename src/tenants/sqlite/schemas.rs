//! The schemas of tables, and the indexes made from them.
//!
//! ```sql
//! -- The schemas, as canonical JSON.
//! nimbus_schemas (number INTEGER PRIMARY KEY, definition TEXT NOT NULL) -- number: of the table, as in nimbus_tables
//! -- Their indexes; each is an SQL index `nimbus_index_<slot>`. Names of users never become part of SQL text.
//! nimbus_indexes (
//!     slot       INTEGER PRIMARY KEY,
//!     number     INTEGER NOT NULL, -- of the table
//!     name       TEXT NOT NULL,    -- as the schema calls it
//!     definition TEXT NOT NULL     -- the fields and whether it is unique, as JSON
//! )
//! ```
//!
//! All of a change is in one savepoint of the writer's transaction, the making of indexes too: a crash leaves all of it
//! or nothing. Readers go on meanwhile with the state before it.
//!
//! | crash point | when |
//! | --- | --- |
//! | `tenants::schemas::indexes-made` | the indexes are there, the schema is not stored yet |

use std::sync::Arc;

use nimbus_manifests::TenantId;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};

use super::{
    apply::{Reader, Writing, malformed, stored_fields, take_room},
    expressions::Ordered,
    failure, layout, one_more,
};
use crate::{
    documents::{
        DocumentId, Fields, TableName,
        schema::{IndexRule, TableSchema},
    },
    failpoints::crash_point,
    tenants::{Listed, MAX_OFFENDERS, Offenders, StoreError},
};

/// What this module adds to a tenant's file.
pub(super) const TABLES: &str = "
    CREATE TABLE nimbus_schemas (number INTEGER PRIMARY KEY, definition TEXT NOT NULL) STRICT;
    CREATE TABLE nimbus_indexes (
        slot INTEGER PRIMARY KEY,
        number INTEGER NOT NULL,
        name TEXT NOT NULL,
        definition TEXT NOT NULL
    ) STRICT;
    CREATE INDEX nimbus_indexes_by_number ON nimbus_indexes (number);";

/// A table's documents were found to fit a schema, as they were after the write of this number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scanned {
    sequence: i64,
}

impl Writing<'_> {
    /// Sets the schema of a table, which comes into being if there is none; its documents must fit.
    pub(super) fn put_schema(&mut self, schema: &TableSchema) -> Result<(), StoreError> {
        self.put_scanned(schema, None)
    }

    /// The same, of documents that were looked at before.
    pub(super) fn put_scanned(
        &mut self,
        schema: &TableSchema,
        scanned: Option<Scanned>,
    ) -> Result<(), StoreError> {
        self.may_grow()?;
        let number = self.number_or_new(schema.table())?;
        let before = self.schema_of(number)?;
        if before.as_deref() == Some(schema) {
            return Ok(());
        }
        // Where only indexes change, every document fits: it was checked when it was written.
        if !before.is_some_and(|before| before.constrains_like(schema)) {
            self.reject_offenders(number, schema, scanned)?;
        }
        self.arrange_indexes(number, schema.table(), schema.indexes())?;
        crash_point!("tenants::schemas::indexes-made");
        let _one = self
            .connection
            .prepare_cached("INSERT OR REPLACE INTO nimbus_schemas VALUES (?1, ?2)")
            .and_then(|mut put| put.execute(params![number, schema.to_json()]))
            .map_err(|error| self.failure(error))?;
        self.learn(number, Some(Arc::new(schema.clone())));
        Ok(())
    }

    /// Takes the schema of a table away, and its indexes.
    pub(super) fn delete_schema(&mut self, table: &TableName) -> Result<(), StoreError> {
        let not_found = || StoreError::SchemaNotFound {
            table: table.clone(),
        };
        let number = self.number(table)?.ok_or_else(not_found)?;
        let deleted = self
            .connection
            .prepare_cached("DELETE FROM nimbus_schemas WHERE number = ?1")
            .and_then(|mut delete| delete.execute(params![number]))
            .map_err(|error| self.failure(error))?;
        if deleted == 0 {
            return Err(not_found());
        }
        self.arrange_indexes(number, table, &[])?;
        self.learn(number, None);
        Ok(())
    }

    /// Refuses a document that does not fit the schema of its table.
    pub(super) fn check(
        &mut self,
        table: &TableName,
        number: i64,
        fields: &Fields,
    ) -> Result<(), StoreError> {
        let Some(schema) = self.schema_of(number)? else {
            return Ok(());
        };
        schema
            .check(fields)
            .map_err(|violation| StoreError::SchemaViolation {
                table: table.clone(),
                violation,
            })
    }

    /// What it means that a document could not be written.
    pub(super) fn refusal(
        &self,
        error: rusqlite::Error,
        table: &TableName,
        id: DocumentId,
    ) -> StoreError {
        match violated(&error) {
            Some(Violated::Id) => StoreError::DocumentExists {
                table: table.clone(),
                id,
            },
            Some(Violated::Index(slot)) => self.not_unique(table, slot),
            None => self.failure(error),
        }
    }

    fn not_unique(&self, table: &TableName, slot: i64) -> StoreError {
        match index(self.connection, slot) {
            Ok((name, definition)) => StoreError::NotUnique {
                table: table.clone(),
                index: name,
                fields: definition
                    .fields
                    .iter()
                    .map(|names| names.join("."))
                    .collect(),
            },
            Err(error) => self.failure(error),
        }
    }

    /// The schema of a table.
    fn schema_of(&mut self, number: i64) -> Result<Option<Arc<TableSchema>>, StoreError> {
        if let Some(schema) = self.known.schemas.get(&number) {
            return Ok(schema.clone());
        }
        let schema = stored(self.connection, number).map_err(|error| self.failure(error))?;
        let schema = schema.map(Arc::new);
        self.remember(number, schema.clone());
        Ok(schema)
    }

    /// Remembers a schema that was changed.
    fn learn(&mut self, number: i64, schema: Option<Arc<TableSchema>>) {
        self.known.changed = true;
        self.remember(number, schema);
    }

    fn remember(&mut self, number: i64, schema: Option<Arc<TableSchema>>) {
        let schemas = &mut self.known.schemas;
        // Compiled they take memory: those in use are soon back.
        if schemas.len() >= REMEMBERED {
            schemas.clear();
        }
        let _before = schemas.insert(number, schema);
    }

    fn reject_offenders(
        &self,
        number: i64,
        schema: &TableSchema,
        scanned: Option<Scanned>,
    ) -> Result<(), StoreError> {
        if !schema.constrains() {
            return Ok(());
        }
        let found = scanned
            .map_or(Ok(None), |Scanned { sequence }| {
                self.written_since(number, sequence)
            })
            .and_then(|since| match since {
                Some(ids) => offenders_among(self.connection, number, schema, &ids),
                None => offenders(self.connection, number, schema),
            })
            .map_err(|error| self.failure(error))?;
        refuse(schema, found)
    }

    /// The documents of a table that were written after the write of this number; `None` where the journal does not say.
    fn written_since(
        &self,
        number: i64,
        sequence: i64,
    ) -> rusqlite::Result<Option<Vec<DocumentId>>> {
        let (_latest, floor) = layout::journal_bounds(self.connection)?;
        if floor > sequence {
            return Ok(None);
        }
        let mut noted = self.connection.prepare_cached(
            "SELECT id FROM nimbus_journal WHERE sequence > ?1 AND number = ?2 ORDER BY sequence",
        )?;
        let noted = noted.query_map(params![sequence, number], |row| {
            DocumentId::from_bytes(row.get(0)?).ok_or_else(|| malformed(0, "id"))
        })?;
        let mut ids = noted.collect::<rusqlite::Result<Vec<_>>>()?;
        // What is in this transaction is not in the journal yet.
        let applied = self.applied.iter();
        ids.extend(
            applied
                .filter(|applied| applied.number == number)
                .map(|applied| applied.id),
        );
        Ok(Some(ids))
    }

    /// Sees to it that a table has these indexes and no others. One that is there stays, whatever its name. A rehearsal makes those alone that documents
    /// may break: to make one and to undo it keeps the writer from others for as long as the thing itself.
    fn arrange_indexes(
        &self,
        number: i64,
        table: &TableName,
        rules: &[IndexRule],
    ) -> Result<(), StoreError> {
        let sqlite = |error| self.failure(error);
        let mut wanted: Vec<(&IndexRule, String)> = rules
            .iter()
            .map(|rule| (rule, Definition::of(rule).to_json()))
            .collect();
        for (slot, name, definition) in slots(self.connection, number).map_err(sqlite)? {
            let kept = wanted.iter().position(|(_, text)| *text == definition);
            let _rows = match kept.map(|place| wanted.swap_remove(place)) {
                Some((rule, _)) if rule.name == name => Ok(0),
                Some((rule, _)) => self.connection.execute(
                    "UPDATE nimbus_indexes SET name = ?2 WHERE slot = ?1",
                    params![slot, rule.name],
                ),
                None if self.rehearsing => Ok(0),
                None => drop_index(self.connection, slot),
            }
            .map_err(sqlite)?;
        }
        wanted.retain(|(rule, _)| rule.unique || !self.rehearsing);
        for (rule, definition) in wanted {
            // One can be as large as all documents of its table.
            self.may_grow()?;
            let made = make_index(self.connection, number, rule, &definition);
            made.map_err(|error| match violated(&error) {
                Some(Violated::Index(slot)) => self.not_unique(table, slot),
                _ => self.failure(error),
            })?;
        }
        Ok(())
    }
}

impl Reader {
    /// The schema of a table.
    pub(super) fn schema(
        &mut self,
        tenant: &TenantId,
        table: &TableName,
    ) -> Result<TableSchema, StoreError> {
        let sqlite = |error| failure(tenant, error);
        let number = self.number(table).map_err(sqlite)?;
        let snapshot = self.snapshot().map_err(sqlite)?;
        number
            .map_or(Ok(None), |number| stored(&snapshot, number))
            .map_err(sqlite)?
            .ok_or_else(|| StoreError::SchemaNotFound {
                table: table.clone(),
            })
    }

    /// All schemas, in the order of their tables' names.
    pub(super) fn schemas(
        &self,
        tenant: &TenantId,
        after: Option<&TableName>,
        limit: usize,
    ) -> Result<Listed<TableSchema>, StoreError> {
        let list = || {
            let mut statement = self.connection().prepare_cached(
                "SELECT definition FROM nimbus_schemas JOIN nimbus_tables USING (number)
                 WHERE name > ?1 ORDER BY name LIMIT ?2",
            )?;
            // No name is empty.
            let after = after.map_or("", TableName::as_str);
            let rows = statement.query_map(params![after, one_more(limit)], |row| {
                let definition: String = row.get(0)?;
                take_room(definition.len())?;
                read(&definition)
            })?;
            Listed::take(rows, limit, |schema| schema.to_json().len())
        };
        list().map_err(|error| failure(tenant, error))
    }

    /// Looks through a table for documents that do not fit a schema, without the writer.
    pub(super) fn scan(
        &mut self,
        tenant: &TenantId,
        schema: &TableSchema,
    ) -> Result<Scanned, StoreError> {
        let sqlite = |error| failure(tenant, error);
        let number = self.number(schema.table()).map_err(sqlite)?;
        let snapshot = self.snapshot().map_err(sqlite)?;
        let sequence = layout::last_sequence(&snapshot).map_err(sqlite)?;
        if let Some(number) = number
            && schema.constrains()
            && !stored(&snapshot, number)
                .map_err(sqlite)?
                .is_some_and(|before| before.constrains_like(schema))
        {
            let found = offenders(&snapshot, number, schema).map_err(sqlite)?;
            refuse(schema, found)?;
        }
        Ok(Scanned { sequence })
    }
}

/// All schemas, in the order of their tables' names.
pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<TableSchema>> {
    connection
        .prepare_cached(
            "SELECT definition FROM nimbus_schemas JOIN nimbus_tables USING (number) ORDER BY name",
        )?
        .query_map([], |row| read(&row.get::<_, String>(0)?))?
        .collect()
}

/// What a unique index is on, whose rule was broken.
enum Violated {
    /// Ids of documents.
    Id,
    /// The index in this slot.
    Index(i64),
}

fn violated(error: &rusqlite::Error) -> Option<Violated> {
    let rusqlite::Error::SqliteFailure(code, message) = error else {
        return None;
    };
    if code.extended_code != rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE {
        return None;
    }
    // SQLite: UNIQUE constraint failed: index 'nimbus_index_7'
    let slot = message
        .as_deref()
        .and_then(|message| message.split_once("'nimbus_index_"))
        .and_then(|(_, rest)| rest.split_once('\''))
        .and_then(|(slot, _)| slot.parse().ok());
    Some(slot.map_or(Violated::Id, Violated::Index))
}

/// What an index is on.
#[derive(Debug, Serialize, Deserialize)]
struct Definition {
    /// The names on the way to each field.
    fields: Vec<Vec<String>>,
    unique: bool,
}

impl Definition {
    fn of(rule: &IndexRule) -> Self {
        Self {
            fields: rule
                .fields
                .iter()
                .map(|path| path.names().to_vec())
                .collect(),
            unique: rule.unique,
        }
    }

    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("names and a flag")
    }

    fn from_json(text: &str, column: usize) -> rusqlite::Result<Self> {
        serde_json::from_str(text).map_err(|_| malformed(column, "definition"))
    }
}

fn make_index(
    connection: &Connection,
    number: i64,
    rule: &IndexRule,
    definition: &str,
) -> rusqlite::Result<()> {
    let slot: i64 = connection.query_row(
        "INSERT INTO nimbus_indexes (number, name, definition) VALUES (?1, ?2, ?3) RETURNING slot",
        params![number, rule.name, definition],
        |row| row.get(0),
    )?;
    let columns: Vec<String> = rule
        .fields
        .iter()
        .map(|path| {
            let Ordered { rank, key } = Ordered::indexed(path.names());
            format!("{rank}, {key}")
        })
        .collect();
    let unique = if rule.unique { "UNIQUE " } else { "" };
    connection.execute_batch(&format!(
        "CREATE {unique}INDEX nimbus_index_{slot} ON documents_{number} ({})",
        columns.join(", ")
    ))
}

fn drop_index(connection: &Connection, slot: i64) -> rusqlite::Result<usize> {
    connection.execute_batch(&format!("DROP INDEX nimbus_index_{slot}"))?;
    connection.execute("DELETE FROM nimbus_indexes WHERE slot = ?1", params![slot])
}

/// The indexes of a table: slot, name and definition.
fn slots(connection: &Connection, number: i64) -> rusqlite::Result<Vec<(i64, String, String)>> {
    connection
        .prepare_cached("SELECT slot, name, definition FROM nimbus_indexes WHERE number = ?1")?
        .query_map(params![number], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?
        .collect()
}

/// Name and definition of an index.
fn index(connection: &Connection, slot: i64) -> rusqlite::Result<(String, Definition)> {
    connection.query_row(
        "SELECT name, definition FROM nimbus_indexes WHERE slot = ?1",
        params![slot],
        |row| {
            let definition = Definition::from_json(&row.get::<_, String>(1)?, 1)?;
            Ok((row.get(0)?, definition))
        },
    )
}

/// The indexes of a table: of each, its fields.
pub(super) type Indexes = Vec<Vec<Indexed>>;

/// A field of an index.
#[derive(Debug)]
pub(super) struct Indexed {
    /// The names on the way to it.
    pub(super) names: Vec<String>,
    /// As the index has it.
    pub(super) columns: Ordered,
}

/// Reads the indexes of a table.
pub(super) fn indexes(connection: &Connection, number: i64) -> rusqlite::Result<Indexes> {
    let slots = slots(connection, number)?;
    let definitions = slots.iter();
    definitions
        .map(|(_, _, text)| {
            let fields = Definition::from_json(text, 2)?.fields.into_iter();
            let indexed = fields.map(|names| Indexed {
                columns: Ordered::indexed(&names),
                names,
            });
            Ok(indexed.collect())
        })
        .collect()
}

fn stored(connection: &Connection, number: i64) -> rusqlite::Result<Option<TableSchema>> {
    connection
        .prepare_cached("SELECT definition FROM nimbus_schemas WHERE number = ?1")?
        .query_row(params![number], |row| read(&row.get::<_, String>(0)?))
        .optional()
}

fn read(text: &str) -> rusqlite::Result<TableSchema> {
    TableSchema::from_stored(text).ok_or_else(|| malformed(0, "definition"))
}

/// The documents of a table that do not fit.
fn offenders(
    connection: &Connection,
    number: i64,
    schema: &TableSchema,
) -> rusqlite::Result<Offenders> {
    let mut all = connection.prepare(&format!(
        "SELECT id, json(fields) FROM documents_{number} ORDER BY seq"
    ))?;
    let mut rows = all.query([])?;
    let mut found = Offenders::default();
    while let Some(row) = rows.next()?
        && !found.more
    {
        let id = DocumentId::from_bytes(row.get(0)?).ok_or_else(|| malformed(0, "id"))?;
        found.judge(schema, id, &stored_fields(row, 1)?);
    }
    Ok(found)
}

/// Those of these documents that do not fit. Some may be gone.
fn offenders_among(
    connection: &Connection,
    number: i64,
    schema: &TableSchema,
    ids: &[DocumentId],
) -> rusqlite::Result<Offenders> {
    let mut one = connection.prepare_cached(&format!(
        "SELECT json(fields) FROM documents_{number} WHERE id = ?1"
    ))?;
    let mut found = Offenders::default();
    let mut seen = std::collections::HashSet::new();
    for &id in ids.iter().filter(|&&id| seen.insert(id)) {
        let fields = one
            .query_row(params![id.as_bytes()], |row| stored_fields(row, 0))
            .optional()?;
        if let Some(fields) = fields {
            found.judge(schema, id, &fields);
        }
        if found.more {
            break;
        }
    }
    Ok(found)
}

impl Offenders {
    fn judge(&mut self, schema: &TableSchema, id: DocumentId, fields: &Fields) {
        if let Err(violation) = schema.check(fields) {
            if self.first.len() == MAX_OFFENDERS {
                self.more = true;
            } else {
                self.first.push((id, violation));
            }
        }
    }
}

fn refuse(schema: &TableSchema, offenders: Offenders) -> Result<(), StoreError> {
    if offenders.first.is_empty() {
        return Ok(());
    }
    Err(StoreError::SchemaOffended {
        table: schema.table().clone(),
        offenders,
    })
}

/// Schemas that are kept in memory for their tables' writes, at most.
const REMEMBERED: usize = 64;
