//! Documents that a transaction is about to touch, and the entries that they have in indexes.

use super::{
    engine::{Engine, Row, parameter_rows, values},
    held::Table,
    reader::{DOCUMENT, Fetched, stored_document},
    transaction::RelationalTransaction,
};
use crate::documents::{Document, DocumentId, Fields, Mutation};
use crate::tenants::StoreError;
use crate::tenants::backend::{Conflict, TableNumber, Wanted};

/// An index, and a key in it.
type Entry = (i64, Vec<u8>);

impl<E: Engine> RelationalTransaction<E> {
    /// A document as this transaction has it. One that was not announced is read by itself.
    pub(super) fn known(
        &mut self,
        table: TableNumber,
        id: DocumentId,
    ) -> Result<&Option<(i64, Document)>, StoreError> {
        let place = (table, id);
        if self.reader.writes.documents.get(&place).is_none() {
            let name = self.reader.sealed_table(table)?;
            let sql = format!("SELECT {DOCUMENT} FROM @documents d WHERE tbl = ? AND id = ?");
            let rows = self
                .reader
                .ask_structure(&sql, values![table, id.as_bytes()])?;
            let row = rows.into_iter().next();
            let space = &self.reader.space;
            let document = row.map(|mut row| stored_document(space, name.as_ref(), &mut row, 0));
            let document = self.reader.sound(document.transpose())?;
            self.reader.writes.documents.learn(place, document);
        }
        Ok(self.reader.writes.documents.get(&place).unwrap_or(&None))
    }

    /// Reads at once what mutations are about to touch: documents, and whose the entries of unique
    /// indexes are that they make.
    pub(super) fn expect_mutations(&mut self, mutations: &[&Mutation]) -> Result<(), StoreError> {
        let wanted = mutations.iter().filter_map(|mutation| match mutation {
            Mutation::Insert { table, id, .. } => Some((table, (*id)?)),
            Mutation::Update { table, id, .. }
            | Mutation::Delete { table, id, .. }
            | Mutation::Check { table, id, .. } => Some((table, *id)),
        });
        let wanted: Vec<Wanted> = wanted
            .map(|(table, id)| Wanted {
                table: table.clone(),
                id,
            })
            .collect();
        for part in wanted.chunks(MOST_AT_ONCE) {
            for Fetched { place, document } in self.reader.fetch(part)? {
                self.reader.writes.documents.learn(place, document);
            }
        }
        let mut entries = Vec::new();
        for mutation in mutations {
            let Some(&table) = self.reader.numbers.get(mutation.table()) else {
                continue;
            };
            let merged;
            let fields = match mutation {
                Mutation::Insert { fields, .. } => fields,
                Mutation::Update { id, patch, .. } => {
                    let found = self.reader.writes.documents.get(&(table, *id));
                    let Some(Some((_, found))) = found else {
                        continue;
                    };
                    let Ok(fields) = found.fields.merged_with(patch) else {
                        continue;
                    };
                    merged = fields;
                    &merged
                }
                Mutation::Delete { .. } | Mutation::Check { .. } => continue,
            };
            for index in self.indexes_of(table)?.iter().filter(|index| index.unique) {
                if let (key, true) = index.entry(fields) {
                    entries.push((index.slot, key));
                }
            }
        }
        self.learn_owners(entries)
    }

    /// Learns whose entries of unique indexes are.
    fn learn_owners(&mut self, mut entries: Vec<Entry>) -> Result<(), StoreError> {
        entries.retain(|entry| self.reader.writes.uniques.get(entry).is_none());
        entries.sort_unstable();
        entries.dedup();
        for entries in entries.chunks(MOST_AT_ONCE) {
            for row in self.owners(entries)? {
                let (entry, seq) = row;
                self.reader.writes.uniques.learn(entry, Some(seq));
            }
            for entry in entries {
                self.reader.writes.uniques.learn(entry.clone(), None);
            }
        }
        Ok(())
    }

    /// Whose entries of unique indexes are, in the engine.
    pub(super) fn owners(&mut self, entries: &[Entry]) -> Result<Vec<(Entry, i64)>, StoreError> {
        let sql = format!(
            "SELECT slot, entry, seq FROM @uniques WHERE (slot, entry) IN ({{rows}} {})",
            parameter_rows(2, entries.len())
        );
        let values = entries
            .iter()
            .flat_map(|(slot, key)| values![*slot, &key[..]]);
        let rows = self.reader.ask_structure(&sql, values.collect())?;
        let owner = |mut row: Row| Ok(((row.integer(0)?, row.bytes(1)?), row.integer(2)?));
        self.reader.sound(rows.into_iter().map(owner).collect())
    }

    /// Changes the entries of a document in all indexes of its table, unless another has what a
    /// unique one lets only one have.
    pub(super) fn reindex(
        &mut self,
        table: TableNumber,
        seq: i64,
        before: Option<&Fields>,
        after: Option<&Fields>,
    ) -> Result<Result<(), Conflict>, StoreError> {
        let indexes = self.indexes_of(table)?;
        let mut changes = Vec::new();
        for index in indexes.iter() {
            let before = before.map(|fields| index.entry(fields));
            let after = after.map(|fields| index.entry(fields));
            if before == after {
                continue;
            }
            if let (true, Some((key, true))) = (index.unique, &after) {
                let entry = (index.slot, key.clone());
                self.learn_owners(vec![entry.clone()])?;
                let owner = self.reader.writes.uniques.get(&entry).copied().flatten();
                if owner.is_some_and(|owner| owner != seq) {
                    return Ok(Err(index.conflict()));
                }
            }
            changes.push((index.slot, index.unique, before, after));
        }
        for (slot, unique, before, after) in changes {
            if let Some((key, valued)) = before {
                self.put(Table::Entries, values![slot, &key[..], seq], None);
                if unique && valued {
                    self.put(Table::Uniques, values![slot, &key[..]], None);
                    self.reader.writes.uniques.set((slot, key), None);
                }
            }
            if let Some((key, valued)) = after {
                self.put_new(Table::Entries, values![slot, &key[..], seq], Vec::new());
                if unique && valued {
                    self.put_new(Table::Uniques, values![slot, &key[..]], values![seq]);
                    self.reader.writes.uniques.set((slot, key), Some(seq));
                }
            }
        }
        Ok(Ok(()))
    }
}

/// Documents or entries that one statement names.
const MOST_AT_ONCE: usize = 10_000;
