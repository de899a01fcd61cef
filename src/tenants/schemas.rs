//! Schemas of tables: which documents must be looked at before one is set, and which indexes it
//! asks for.
//!
//! All of a change is in one savepoint of the writer's transaction, the making of indexes too: a
//! crash leaves all of it or nothing. Readers go on meanwhile with the state before it.
//!
//! | crash point | when |
//! | --- | --- |
//! | `tenants::schemas::indexes-made` | the indexes are there, the schema is not stored yet |

use std::{
    collections::{BTreeMap, HashSet},
    ops::ControlFlow,
    sync::Arc,
};

use nimbus_manifests::TenantId;

use super::backend::{
    Conflict, DocumentRows as _, Rows, SchemaRows as _, StoredIndex, TableNumber, Transaction,
};
use super::writing::Writing;
use super::{MAX_OFFENDERS, Offenders, StoreError};
use crate::documents::schema::{IndexRule, TableSchema};
use crate::documents::{DocumentId, Fields, TableName};
use crate::failpoints::crash_point;

/// A table's documents were found to fit a schema, as they were after the write of this number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scanned {
    sequence: i64,
}

/// What is known of tables whose documents were looked at before the writer's turn.
pub(super) type Scans = BTreeMap<TableName, Scanned>;

/// Looks through a table for documents that do not fit a schema, without the writer.
pub(super) fn scan(
    rows: &mut impl Rows,
    tenant: &TenantId,
    schema: &TableSchema,
) -> Result<Scanned, StoreError> {
    rows.snapshot(|rows| {
        let number = rows.table(schema.table())?;
        let sequence = rows.journal_bounds()?.latest;
        if let Some(number) = number
            && schema.constrains()
            && !rows
                .schema(number)?
                .is_some_and(|before| before.constrains_like(schema))
        {
            reject(schema, offenders(rows, tenant, number, schema)?)?;
        }
        Ok(Scanned { sequence })
    })
}

/// Looks through the tables of several schemas.
pub(super) fn scan_all<'a>(
    rows: &mut impl Rows,
    tenant: &TenantId,
    schemas: impl Iterator<Item = &'a TableSchema>,
) -> Result<Scans, StoreError> {
    schemas
        .map(|schema| Ok((schema.table().clone(), scan(rows, tenant, schema)?)))
        .collect()
}

/// The schema of a table.
pub(super) fn of_table(rows: &mut impl Rows, table: &TableName) -> Result<TableSchema, StoreError> {
    let schema = rows.snapshot(|rows| match rows.table(table)? {
        Some(number) => rows.schema(number),
        None => Ok(None),
    })?;
    schema.ok_or_else(|| not_found(table))
}

impl<T: Transaction> Writing<'_, T> {
    /// Sets the schema of a table, which is created if it does not exist; its documents must fit.
    /// `scanned`: they were looked at before.
    pub(super) fn put_schema(
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
        self.transaction.put_schema(number, schema)?;
        self.learn(number, Some(Arc::new(schema.clone())));
        Ok(())
    }

    /// Removes the schema of a table, and its indexes.
    pub(super) fn delete_schema(&mut self, table: &TableName) -> Result<(), StoreError> {
        let number = self.number(table)?.ok_or_else(|| not_found(table))?;
        if !self.transaction.delete_schema(number)? {
            return Err(not_found(table));
        }
        self.arrange_indexes(number, table, &[])?;
        self.learn(number, None);
        Ok(())
    }

    /// Rejects a document that does not fit the schema of its table.
    pub(super) fn check(
        &mut self,
        table: &TableName,
        number: TableNumber,
        fields: &Fields,
    ) -> Result<(), StoreError> {
        let Some(schema) = self.schema_of(number)? else {
            return Ok(());
        };
        schema
            .check(self.tenant.as_str(), fields)
            .map_err(|violation| StoreError::SchemaViolation {
                table: table.clone(),
                violation,
            })
    }

    /// The schema of a table.
    fn schema_of(&mut self, number: TableNumber) -> Result<Option<Arc<TableSchema>>, StoreError> {
        if let Some(schema) = self.cache.schemas.get(&number) {
            return Ok(schema.clone());
        }
        let schema = self.transaction.rows()?.schema(number)?.map(Arc::new);
        self.remember_schema(number, schema.clone());
        Ok(schema)
    }

    /// Remembers a schema that was changed.
    fn learn(&mut self, number: TableNumber, schema: Option<Arc<TableSchema>>) {
        self.cache.changed = true;
        self.remember_schema(number, schema);
    }

    fn remember_schema(&mut self, number: TableNumber, schema: Option<Arc<TableSchema>>) {
        let schemas = &mut self.cache.schemas;
        // Compiled they take memory: those in use are soon back.
        if schemas.len() >= CACHED {
            schemas.clear();
        }
        schemas.insert(number, schema);
    }

    fn reject_offenders(
        &mut self,
        number: TableNumber,
        schema: &TableSchema,
        scanned: Option<Scanned>,
    ) -> Result<(), StoreError> {
        if !schema.constrains() {
            return Ok(());
        }
        let written = match scanned {
            Some(Scanned { sequence }) => self.written_since(number, sequence)?,
            None => None,
        };
        let tenant = self.tenant;
        let rows = self.transaction.rows()?;
        let found = match written {
            Some(ids) => offenders_among(rows, tenant, number, schema, &ids)?,
            None => offenders(rows, tenant, number, schema)?,
        };
        reject(schema, found)
    }

    /// The documents of a table that were written after the write of this number; `None` where the
    /// journal does not say.
    fn written_since(
        &mut self,
        number: TableNumber,
        sequence: i64,
    ) -> Result<Option<Vec<DocumentId>>, StoreError> {
        let rows = self.transaction.rows()?;
        if rows.journal_bounds()?.floor > sequence {
            return Ok(None);
        }
        let mut ids = rows.written_since(number, sequence)?;
        // What is in this transaction is not in the journal yet.
        let applied = self.applied.iter();
        ids.extend(
            applied
                .filter(|applied| applied.table == number)
                .map(|applied| applied.id),
        );
        Ok(Some(ids))
    }

    /// Sees to it that a table has these indexes and no others. One that is there stays, whatever
    /// its name. A rehearsal makes those alone that documents may break: to make one and to undo it
    /// keeps the writer from others for as long as the thing itself.
    fn arrange_indexes(
        &mut self,
        number: TableNumber,
        table: &TableName,
        rules: &[IndexRule],
    ) -> Result<(), StoreError> {
        let mut wanted: Vec<&IndexRule> = rules.iter().collect();
        for index in self.transaction.indexes(number)? {
            let kept = wanted.iter().position(|rule| is_of(rule, &index));
            match kept.map(|place| wanted.swap_remove(place)) {
                Some(rule) if rule.name == index.name => {}
                Some(rule) => self.transaction.rename_index(index.slot, &rule.name)?,
                None if self.rehearsing => {}
                None => self.transaction.drop_index(index.slot)?,
            }
        }
        wanted.retain(|rule| rule.unique || !self.rehearsing);
        for rule in wanted {
            // One can be as large as all documents of its table.
            self.may_grow()?;
            let made = self.transaction.create_index(number, rule)?;
            if let Err(Conflict::Index { name, fields }) = made {
                return Err(StoreError::NotUnique {
                    table: table.clone(),
                    index: name,
                    fields,
                });
            }
        }
        Ok(())
    }
}

/// Whether an index is what a rule asks for, whatever its name.
fn is_of(rule: &IndexRule, index: &StoredIndex) -> bool {
    let names = rule.fields.iter().map(|path| path.names());
    rule.unique == index.unique && names.eq(index.fields.iter().map(Vec::as_slice))
}

/// The documents of a table that do not fit.
fn offenders(
    rows: &mut impl Rows,
    tenant: &TenantId,
    number: TableNumber,
    schema: &TableSchema,
) -> Result<Offenders, StoreError> {
    let mut found = Offenders::default();
    rows.each_document(number, |id, fields| found.judge(tenant, schema, id, fields))?;
    Ok(found)
}

/// Those of these documents that do not fit. Some may be gone.
fn offenders_among(
    rows: &mut impl Rows,
    tenant: &TenantId,
    number: TableNumber,
    schema: &TableSchema,
    ids: &[DocumentId],
) -> Result<Offenders, StoreError> {
    let mut seen = HashSet::new();
    let once: Vec<DocumentId> = ids.iter().copied().filter(|id| seen.insert(*id)).collect();
    let mut found = Offenders::default();
    rows.each_of(number, &once, |id, fields| {
        found.judge(tenant, schema, id, fields)
    })?;
    Ok(found)
}

impl Offenders {
    /// Looks at one document. Goes on until there are more than are named.
    fn judge(
        &mut self,
        tenant: &TenantId,
        schema: &TableSchema,
        id: DocumentId,
        fields: &Fields,
    ) -> ControlFlow<()> {
        if let Err(violation) = schema.check(tenant.as_str(), fields) {
            if self.first.len() == MAX_OFFENDERS {
                self.more = true;
                return ControlFlow::Break(());
            }
            self.first.push((id, violation));
        }
        ControlFlow::Continue(())
    }
}

fn reject(schema: &TableSchema, offenders: Offenders) -> Result<(), StoreError> {
    if offenders.first.is_empty() {
        return Ok(());
    }
    Err(StoreError::SchemaOffended {
        table: schema.table().clone(),
        offenders,
    })
}

fn not_found(table: &TableName) -> StoreError {
    StoreError::SchemaNotFound {
        table: table.clone(),
    }
}

/// Schemas that are kept in memory for their tables' writes, at most.
const CACHED: usize = 64;
