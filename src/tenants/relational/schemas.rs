//! The schemas of tables, and their indexes.

use std::{collections::HashSet, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    columns::{INDEX_DEFINITION, INDEX_NAME, SCHEMA},
    documents::CHUNK,
    engine::{Engine, Malformed, Row, Value, values},
    held::{self, Table, Write},
    index::Index,
    reader::{DOCUMENT, Reader, stored_document},
    space::Space,
    transaction::RelationalTransaction,
};
use crate::documents::TableName;
use crate::documents::schema::{IndexRule, TableSchema};
use crate::tenants::backend::{Conflict, SchemaRows, SchemaWrites, StoredIndex, TableNumber};
use crate::tenants::{Listed, StoreError};

/// What an index is on, as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct Definition {
    fields: Vec<Vec<String>>,
    unique: bool,
}

impl<E: Engine> SchemaRows for Reader<E> {
    fn schema(&mut self, table: TableNumber) -> Result<Option<TableSchema>, StoreError> {
        let rows = self.ask_structure(
            "SELECT definition, tbl FROM @schemas WHERE tbl = ?",
            values![table],
        )?;
        let row = rows.into_iter().next();
        let schema = row.map(|row| stored_schema(&self.space, row));
        self.sound(schema.transpose())
    }

    fn schemas(
        &mut self,
        after: Option<&TableName>,
        limit: usize,
    ) -> Result<Listed<TableSchema>, StoreError> {
        // No name is empty.
        let after = after.map_or("", TableName::as_str);
        self.listed(
            "SELECT s.definition, s.tbl FROM @schemas s JOIN @tables t ON t.number = s.tbl WHERE t.name > ? ORDER BY t.name LIMIT ?",
            values![after, limit.saturating_add(1)],
            limit,
            stored_schema,
            |schema| schema.to_json().len(),
        )
    }

    fn all_schemas(&mut self) -> Result<Vec<TableSchema>, StoreError> {
        let rows = self.ask(
            "SELECT s.definition, s.tbl FROM @schemas s JOIN @tables t ON t.number = s.tbl ORDER BY t.name",
            Vec::new(),
        )?;
        let schemas = rows.into_iter().map(|row| stored_schema(&self.space, row));
        self.sound(schemas.collect())
    }
}

impl<E: Engine> Reader<E> {
    /// Part of a list. It takes room in memory for what it has.
    pub(super) fn listed<T>(
        &mut self,
        sql: &str,
        values: Vec<Value>,
        limit: usize,
        read: impl Fn(&Space<E>, Row) -> Result<T, Malformed>,
        weigh: impl Fn(&T) -> usize,
    ) -> Result<Listed<T>, StoreError> {
        let (mut items, mut bytes) = (Vec::new(), 0);
        self.each(sql, values, |space, row| {
            let item = read(space, row).map_err(|what| space.malformed(what))?;
            let weight = weigh(&item);
            space.take_room(weight)?;
            bytes += weight;
            items.push(Ok::<_, StoreError>(item));
            // The last one says that there are more.
            Ok(
                if bytes > crate::tenants::MAX_PAGE_BYTES && items.len() > 1 {
                    std::ops::ControlFlow::Break(())
                } else {
                    std::ops::ControlFlow::Continue(())
                },
            )
        })?;
        Listed::take(items.into_iter(), limit, weigh)
    }

    /// The indexes of a table.
    pub(super) fn table_indexes(&mut self, table: TableNumber) -> Result<Vec<Index>, StoreError> {
        let rows = self.ask_structure(
            "SELECT slot, name, definition FROM @indexes WHERE tbl = ? ORDER BY slot",
            values![table],
        )?;
        let of = self.sealed_table(table)?;
        let space = &self.space;
        let index = |mut row: Row| {
            let slot = row.integer(0)?;
            let sealed_with = || values![slot, table];
            let definition = space.open(INDEX_DEFINITION, sealed_with, row.bytes(2)?)?;
            let definition: Definition =
                serde_json::from_slice(&definition).map_err(|_| Malformed::of("an index"))?;
            let name = space.open_text(INDEX_NAME, || values![slot], row.bytes(1)?)?;
            let Definition { fields, unique } = definition;
            Ok(Index::new(space, of.as_ref(), slot, name, fields, unique))
        };
        self.sound(rows.into_iter().map(index).collect())
    }
}

impl<E: Engine> SchemaWrites for RelationalTransaction<E> {
    fn put_schema(&mut self, table: TableNumber, schema: &TableSchema) -> Result<(), StoreError> {
        let space = &self.reader.space;
        let row = values![space.seal(SCHEMA, || values![table], schema.to_json())?];
        self.put(Table::Schemas, values![table], Some(row));
        Ok(())
    }

    fn delete_schema(&mut self, table: TableNumber) -> Result<bool, StoreError> {
        let existed = self.reader.schema(table)?.is_some();
        self.put(Table::Schemas, values![table], None);
        Ok(existed)
    }

    fn indexes(&mut self, table: TableNumber) -> Result<Vec<StoredIndex>, StoreError> {
        let indexes = self.indexes_of(table)?;
        let stored = indexes.iter().map(|index| StoredIndex {
            slot: index.slot,
            name: index.name.clone(),
            fields: index.fields.clone(),
            unique: index.unique,
        });
        Ok(stored.collect())
    }

    fn create_index(
        &mut self,
        table: TableNumber,
        rule: &IndexRule,
    ) -> Result<Result<(), Conflict>, StoreError> {
        let rows = self
            .reader
            .ask_structure("SELECT coalesce(max(slot), 0) FROM @indexes", Vec::new())?;
        let last = rows.first().map_or(Ok(0), |row| row.integer(0));
        let of = self.reader.sealed_table(table)?;
        let fields = rule.fields.iter().map(|path| path.names().to_vec());
        let slot = self.reader.sound(last)? + 1;
        let space = Arc::clone(&self.reader.space);
        let index = Index::new(
            &space,
            of.as_ref(),
            slot,
            rule.name.clone(),
            fields.collect(),
            rule.unique,
        );
        let definition = Definition {
            fields: index.fields.clone(),
            unique: index.unique,
        };
        let definition = serde_json::to_vec(&definition).expect("names and a flag");
        let name = space.seal(INDEX_NAME, || values![slot], &*index.name)?;
        let definition = space.seal(INDEX_DEFINITION, || values![slot, table], definition)?;
        let row = values![table, name, definition];
        self.put_new(Table::Indexes, values![slot], row);
        let _before = self.indexes.remove(&table);
        self.reader.send_and_pin()?;
        self.fill_index(table, &index)
    }

    fn rename_index(&mut self, slot: i64, name: &str) -> Result<(), StoreError> {
        self.indexes.clear();
        let name = self.reader.space.seal(INDEX_NAME, || values![slot], name)?;
        self.put_statement(
            "UPDATE @indexes SET name = ? WHERE slot = ?",
            values![name, slot],
        );
        self.restructured();
        Ok(())
    }

    fn drop_index(&mut self, slot: i64) -> Result<(), StoreError> {
        self.indexes.clear();
        self.put(Table::Indexes, values![slot], None);
        self.reader.send_and_pin()?;
        let statements = [
            "DELETE FROM @entries WHERE slot = ?",
            "DELETE FROM @uniques WHERE slot = ?",
        ]
        .map(|sql| self.reader.space.statement(sql, values![slot]));
        self.reader.run(&statements).map(drop)
    }
}

impl<E: Engine> RelationalTransaction<E> {
    /// The indexes of a table, as this transaction has them.
    pub(super) fn indexes_of(&mut self, table: TableNumber) -> Result<Arc<[Index]>, StoreError> {
        if let Some(indexes) = self.indexes.get(&table) {
            return Ok(Arc::clone(indexes));
        }
        let indexes: Arc<[Index]> = self.reader.table_indexes(table)?.into();
        let _new = self.indexes.insert(table, Arc::clone(&indexes));
        Ok(indexes)
    }

    /// Makes the entries of the documents that exist, part by part: memory holds the keys of one.
    fn fill_index(
        &mut self,
        table: TableNumber,
        index: &Index,
    ) -> Result<Result<(), Conflict>, StoreError> {
        let sql = format!(
            "SELECT {DOCUMENT} FROM @documents d WHERE tbl = ? AND seq > ? ORDER BY seq LIMIT {CHUNK}"
        );
        let name = self.reader.sealed_table(table)?;
        let mut after = 0;
        loop {
            let mut part = Vec::new();
            self.reader
                .each(&sql, values![table, after], |space, mut row| {
                    let read = stored_document(space, name.as_ref(), &mut row, 0);
                    let (seq, document) = read.map_err(|what| space.malformed(what))?;
                    let (key, valued) = index.entry(&document.fields);
                    part.push((seq, key, valued));
                    Ok(std::ops::ControlFlow::Continue(()))
                })?;
            let Some((last, ..)) = part.last() else {
                return Ok(Ok(()));
            };
            after = *last;
            let full = part.len() == CHUNK;
            let unique: Vec<(i64, Vec<u8>)> = part
                .iter()
                .filter(|(_, _, valued)| index.unique && *valued)
                .map(|(_, key, _)| (index.slot, key.clone()))
                .collect();
            let mut seen = HashSet::new();
            let twice = !unique.iter().all(|entry| seen.insert(entry));
            if twice || (!unique.is_empty() && !self.owners(&unique)?.is_empty()) {
                return Ok(Err(index.conflict()));
            }
            let slot = index.slot;
            let rows = part.into_iter().flat_map(|(seq, key, valued)| {
                let fresh = |table, key, row| Write::Row {
                    table,
                    key,
                    row: Some(row),
                    fresh: true,
                };
                let unique = (index.unique && valued)
                    .then(|| fresh(Table::Uniques, values![slot, &key[..]], values![seq]));
                let entry = fresh(Table::Entries, values![slot, key, seq], Vec::new());
                unique.into_iter().chain([entry])
            });
            let rows: Vec<Write> = rows.collect();
            let space = Arc::clone(&self.reader.space);
            let statements = held::statements(&rows, |sql| space.spell(sql));
            let _none = self.reader.run(&statements)?;
            if !full {
                return Ok(Ok(()));
            }
        }
    }
}

/// A schema, whose columns are its definition and its table.
fn stored_schema<E>(space: &Space<E>, mut row: Row) -> Result<TableSchema, Malformed> {
    let table = row.integer(1)?;
    let definition = space.open_text(SCHEMA, || values![table], row.bytes(0)?)?;
    TableSchema::from_stored(&definition).ok_or(Malformed::of("a schema"))
}
